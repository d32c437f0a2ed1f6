//! How many clients there may be, in all and from one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{count, counters};

/// Bounds on clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// At a time, in all.
    pub clients: usize,
    /// At a time, from one address; of IPv6 the first 64 bits count.
    pub per_address: usize,
}

counters! {
    /// What the gate counted.
    pub struct GateCounters("clients") {
        accepted_total: "Clients let in.",
        refused_full_total: "Clients turned away because there were as many as may be.",
        refused_address_total: "Clients turned away because there were as many from their address as may be.",
        tls_failed_total: "TLS handshakes that failed or took too long.",
        accept_failed_total: "Times the system could not accept a client.",
    }
}

/// Why a client is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There are as many clients as may be.
    #[error("there are as many clients as may be")]
    Full,
    /// There are as many from this address as may be.
    #[error("there are as many clients from this address as may be")]
    Address,
}

/// Lets clients in.
#[derive(Debug)]
pub struct Gate {
    limits: Limits,
    inside: Mutex<Inside>,
    /// What was counted.
    pub counters: GateCounters,
}

#[derive(Debug, Default)]
struct Inside {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// A client that is in; dropping it lets it out.
#[derive(Debug)]
pub struct Pass {
    gate: Arc<Gate>,
    address: IpAddr,
}

impl Gate {
    /// With these bounds.
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            inside: Mutex::default(),
            counters: GateCounters::default(),
        })
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Clients that are in.
    pub fn clients(&self) -> usize {
        self.inside().all
    }

    /// Lets a client in, or says why not.
    pub fn enter(self: &Arc<Self>, address: IpAddr) -> Result<Pass, Refused> {
        let address = group(address);
        let mut inside = self.inside();
        if inside.all >= self.limits.clients {
            count!(self.counters.refused_full_total);
            return Err(Refused::Full);
        }
        let same = inside.by_address.get(&address).copied().unwrap_or(0);
        if same >= self.limits.per_address {
            count!(self.counters.refused_address_total);
            return Err(Refused::Address);
        }
        inside.by_address.insert(address, same + 1);
        inside.all += 1;
        count!(self.counters.accepted_total);
        Ok(Pass {
            gate: self.clone(),
            address,
        })
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut inside = self.gate.inside();
        inside.all -= 1;
        if let Some(same) = inside.by_address.get_mut(&self.address) {
            *same -= 1;
            if *same == 0 {
                inside.by_address.remove(&self.address);
            }
        }
    }
}

/// What counts as one address.
fn group(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => IpAddr::from((u128::from(v6) & !u128::from(u64::MAX)).to_be_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_bounds_hold_and_room_comes_back() {
        let gate = Gate::new(Limits {
            clients: 3,
            per_address: 2,
        });
        let a: IpAddr = "10.0.0.1".parse().unwrap();
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        let (first, second) = (gate.enter(a).unwrap(), gate.enter(mapped).unwrap());
        assert_eq!(gate.enter(a).unwrap_err(), Refused::Address);
        let v6 = |text: &str| gate.enter(text.parse().unwrap());
        let third = v6("2001:db8::1").unwrap();
        assert_eq!(v6("2001:db8:0:1::1").unwrap_err(), Refused::Full);
        drop(first);
        let _fourth = v6("2001:db8::2").unwrap();
        drop((second, third));
        assert_eq!(gate.clients(), 1);
        let _fifth = v6("2001:db8::3").unwrap();
        assert_eq!(v6("2001:db8::4").unwrap_err(), Refused::Address);
        let counted = gate.counters.figures();
        let value = |name: &str| counted.iter().find(|f| f.name == name).unwrap().value;
        assert_eq!(value("clients_accepted_total"), 5);
        assert_eq!(value("clients_refused_address_total"), 2);
        assert_eq!(value("clients_refused_full_total"), 1);
    }
}
