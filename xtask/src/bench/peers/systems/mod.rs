//! What races: each system's name, and how it is started on a chain of namespaces.

mod kernel;
mod nebula;
mod tinc;
mod weft;
mod wireguard;
mod yggdrasil;

use anyhow::Result;

use super::site::Site;
use crate::paths::Programs;

/// A system on a path of a certain length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct System {
    /// Its name on the command line, in JSON and in the tables.
    pub(crate) name: &'static str,
    /// What it is, for people.
    pub(crate) about: &'static str,
    /// What runs.
    pub(crate) kind: Kind,
    /// Nodes between client and server.
    pub(crate) transits: usize,
    /// What is measured.
    pub(crate) scope: Scope,
}

/// What runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// IPv4 routing in the kernel, unencrypted.
    Kernel {
        /// TSO, GSO and GRO of every veth end.
        offloads: bool,
    },
    /// Weft.
    Weft,
    /// yggdrasil, one node in each namespace.
    Yggdrasil,
    /// nebula, the node in the middle being lighthouse and relay.
    Nebula,
    /// wireguard-go at both ends, kernel routing in the middle.
    WireGuard,
    /// A `weftd` with a thousand sessions; nothing of the others' traffic.
    Crowd,
    /// tinc, one node in each namespace, the ends indirectly connected.
    Tinc,
}

/// What is measured of a system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// All kinds of traffic.
    Full,
    /// What tells the cost of a hop: one TCP stream each way, idle latency.
    Hops,
    /// Memory with many sessions, once in a run.
    Memory,
}

/// All, in the order of the tables.
pub(crate) const SYSTEMS: &[System] = &[
    System {
        name: "kernel",
        about: "kernel routing, plain, all offloads on",
        kind: Kind::Kernel { offloads: true },
        transits: 1,
        scope: Scope::Full,
    },
    System {
        name: "kernel_no_offload",
        about: "kernel routing, plain, TSO, GSO and GRO off",
        kind: Kind::Kernel { offloads: false },
        transits: 1,
        scope: Scope::Full,
    },
    System {
        name: "weft",
        about: "Weft over one transit",
        kind: Kind::Weft,
        transits: 1,
        scope: Scope::Full,
    },
    System {
        name: "weft_direct",
        about: "Weft, the ends being neighbours",
        kind: Kind::Weft,
        transits: 0,
        scope: Scope::Full,
    },
    System {
        name: "yggdrasil",
        about: "yggdrasil over one transit",
        kind: Kind::Yggdrasil,
        transits: 1,
        scope: Scope::Full,
    },
    System {
        name: "nebula_relay",
        about: "nebula, relayed by the transit",
        kind: Kind::Nebula,
        transits: 1,
        scope: Scope::Full,
    },
    System {
        name: "wireguard_go",
        about: "wireguard-go end to end, kernel routing in the middle",
        kind: Kind::WireGuard,
        transits: 1,
        scope: Scope::Full,
    },
    System {
        name: "tinc",
        about: "tinc, relayed by the transit",
        kind: Kind::Tinc,
        transits: 1,
        scope: Scope::Full,
    },
    hops("kernel_2", Kind::Kernel { offloads: true }, 2),
    hops("weft_2", Kind::Weft, 2),
    hops("kernel_3", Kind::Kernel { offloads: true }, 3),
    hops("weft_3", Kind::Weft, 3),
    hops("kernel_5", Kind::Kernel { offloads: true }, 5),
    hops("weft_5", Kind::Weft, 5),
    System {
        name: "weft_sessions",
        about: "Weft with 1,000 sessions",
        kind: Kind::Crowd,
        transits: 0,
        scope: Scope::Memory,
    },
];

const fn hops(name: &'static str, kind: Kind, transits: usize) -> System {
    let about = match kind {
        Kind::Kernel { .. } => "kernel routing over more transits",
        _ => "Weft over more transits",
    };
    System {
        name,
        about,
        kind,
        transits,
        scope: Scope::Hops,
    }
}

impl System {
    /// The system of this name.
    #[must_use]
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        SYSTEMS.iter().find(|s| s.name == name)
    }

    /// What it is, with the number of transits where that is what differs.
    #[must_use]
    pub(crate) fn about_with_length(&self) -> String {
        match self.scope {
            Scope::Full | Scope::Memory => self.about.to_owned(),
            Scope::Hops => format!("{} ({})", self.about, self.transits),
        }
    }

    /// Brings it up on a chain of its own, until the client's traffic reaches the server.
    ///
    /// # Errors
    /// Why it cannot be started.
    pub(crate) fn start(&self, programs: &Programs) -> Result<Site> {
        let mut site = Site::build(self, programs)?;
        match self.kind {
            Kind::Kernel { offloads } => kernel::start(&mut site, offloads),
            Kind::Weft => weft::start(&mut site),
            Kind::Yggdrasil => yggdrasil::start(&mut site),
            Kind::Nebula => nebula::start(&mut site),
            Kind::WireGuard => wireguard::start(&mut site),
            Kind::Tinc => tinc::start(&mut site),
            Kind::Crowd => anyhow::bail!("{} has no path to start", self.name),
        }?;
        site.wait_answering()?;
        Ok(site)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_different_and_found() {
        let names = SYSTEMS.iter().map(|s| s.name).collect::<BTreeSet<_>>();
        assert_eq!(names.len(), SYSTEMS.len());
        assert_eq!(System::named("tinc").unwrap().kind, Kind::Tinc);
        assert!(System::named("openvpn").is_none());
    }
}
