//! A wire: a namespace of its own in the middle of a link, where frames are shaped, dropped and captured.
//!
//! XDP on the nodes' ends passes frames on before any queueing discipline or packet socket of the node sees them, so
//! shaping and capturing happen here: two veth ends, an nftables `netdev` ingress chain on each that loses its share
//! and forwards the rest to the other end, and a token bucket on the way out.

use std::process::Command;

use anyhow::Result;

use super::{
    netns::{self, Netns},
    topology::{QUEUE, Shape},
};

/// The namespace between two ends of a link.
#[derive(Clone, Debug)]
pub struct Wire {
    namespace: Netns,
    shapes: [Shape; 2],
}

/// The interfaces in it: towards the first and the second end of the link.
pub const ENDS: [&str; 2] = ["first", "second"];

impl Wire {
    /// Makes it of a namespace that has both interfaces already.
    ///
    /// # Errors
    /// What `ip`, `nft` or `tc` say.
    pub fn new(namespace: Netns, mtu: u32, shapes: [Shape; 2]) -> Result<Self> {
        for end in ENDS {
            namespace.sysctl(&format!("ipv6/conf/{end}/disable_ipv6"), "1")?;
            namespace.ip(&format!("link set {end} mtu {mtu} up\n"))?;
            namespace.run(|| netns::gro(end, true))??;
        }
        let mut wire = Self { namespace, shapes };
        wire.nft()?;
        for (direction, shape) in shapes.into_iter().enumerate() {
            wire.shape(direction, shape)?;
        }
        Ok(wire)
    }

    /// Where to capture: the namespace; the interfaces are [`ENDS`].
    #[must_use]
    pub fn namespace(&self) -> &Netns {
        &self.namespace
    }

    /// What happens in a direction: 0 from the first end to the second, 1 back.
    #[must_use]
    pub fn shapes(&self) -> [Shape; 2] {
        self.shapes
    }

    /// Changes it for a direction.
    ///
    /// # Errors
    /// What `nft` or `tc` say.
    pub fn shape(&mut self, direction: usize, shape: Shape) -> Result<()> {
        self.shapes[direction] = shape;
        self.nft()?;
        let out = ENDS[1 - direction];
        match shape.rate {
            Some(rate) => {
                // A burst has room for one segmented packet of the largest size, and for 4 ms.
                let burst = (rate / 8 / 250).max(70_000);
                let queue = QUEUE.as_millis();
                self.tc(&format!("qdisc replace dev {out} root tbf rate {rate}bit burst {burst} latency {queue}ms\n"))
            }
            // Deleting where there is none is an error; replacing by the default is not.
            None => self.tc(&format!("qdisc replace dev {out} root pfifo limit 1000\n")),
        }
    }

    fn tc(&self, lines: &str) -> Result<()> {
        netns::batch(
            Command::new("tc").args(["-n", self.namespace.name(), "-batch", "-"]),
            lines,
        )
    }

    /// Replaces all rules in one transaction.
    fn nft(&self) -> Result<()> {
        let mut rules =
            String::from("add table netdev wire\ndelete table netdev wire\ntable netdev wire {\n");
        for (direction, shape) in self.shapes.iter().enumerate() {
            let (from, to) = (ENDS[direction], ENDS[1 - direction]);
            rules += &format!(
                "chain {from} {{ type filter hook ingress device \"{from}\" priority 0; policy drop;\n"
            );
            if shape.loss_ppm > 0 {
                rules += &format!(
                    "numgen random mod 1000000 < {} counter drop\n",
                    shape.loss_ppm
                );
            }
            if !shape.cut {
                rules += &format!("counter fwd to \"{to}\"\n");
            }
            rules += "}\n";
        }
        rules += "}\n";
        netns::batch(self.namespace.command("nft").args(["-f", "-"]), &rules)
    }
}
