//! The destination directory: which real server a connection's [`DestinationId`] means, before and after a restart.
//!
//! Only the control side uses it; connections carry the number alone. It lies in the table's memory because the numbers in
//! the connections mean nothing without it.

use crate::DestinationId;
use crate::layout::Record;
use crate::sync::{Acquire, Relaxed, Release};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What makes a real server of a service the one it is, as in IPVS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// IP protocol number of the service.
    pub protocol: u8,
    /// The firewall mark of the service, 0 for one that is addressed.
    pub fwmark: u32,
    /// Address and port of the service; unspecified for one that is marked.
    pub service: SocketAddr,
    /// Address and port of the real server.
    pub server: SocketAddr,
}

/// Every place in the directory is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the table knows {0} real servers, which is its limit; raise the limit of destinations and restart")]
pub struct DirectoryFull(pub u32);

const USED: u32 = 1 << 31;
const SERVICE4: u32 = 1 << 8;
const SERVER4: u32 = 1 << 9;

/// Finds numbers for identities. Its records are in the table's memory, its search structure beside it.
#[derive(Debug, Default)]
pub(crate) struct Numbers(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    by_identity: HashMap<Identity, u32>,
    free: Vec<u32>,
    /// Records at and above this were never used.
    fresh: u32,
}

impl Numbers {
    /// Reads the records of a table just mapped.
    pub(crate) fn read(records: &[Record]) -> Self {
        let mut state = State::default();
        // Records are handed out in order, and those given up stay behind marked: the first untouched one is the end.
        for (number, record) in (0_u32..).zip(records) {
            let kind = record.kind.load(Acquire);
            if kind == 0 {
                break;
            }
            state.fresh = number + 1;
            match record.identity(kind) {
                Some(identity) => {
                    state.by_identity.insert(identity, number);
                }
                None => state.free.push(number),
            }
        }
        Numbers(Mutex::new(state))
    }
}

/// The destination directory of a table.
#[derive(Clone, Copy, Debug)]
pub struct Directory<'a> {
    pub(crate) records: &'a [Record],
    pub(crate) numbers: &'a Numbers,
}

impl Directory<'_> {
    /// The number of this destination; the one it had, if the directory knows it.
    ///
    /// # Errors
    /// When the directory is full.
    pub fn intern(&self, identity: &Identity) -> Result<DestinationId, DirectoryFull> {
        let mut state = self.state();
        if let Some(number) = state.by_identity.get(identity) {
            return Ok(DestinationId(*number));
        }
        let number = match state.free.pop() {
            Some(number) => number,
            None => state.fresh,
        };
        let Some(record) = self.records.get(number as usize) else {
            return Err(DirectoryFull(u32::try_from(self.records.len()).unwrap_or(u32::MAX)));
        };
        record.write(identity);
        state.fresh = state.fresh.max(number + 1);
        state.by_identity.insert(*identity, number);
        Ok(DestinationId(number))
    }

    /// Which destination a number means.
    #[must_use]
    pub fn get(&self, id: DestinationId) -> Option<Identity> {
        let _no_writer = self.state();
        let record = self.records.get(id.0 as usize)?;
        record.identity(record.kind.load(Acquire))
    }

    /// Gives a number up. The caller knows that no connection carries it.
    pub fn forget(&self, id: DestinationId) {
        let mut state = self.state();
        let Some(record) = self.records.get(id.0 as usize) else { return };
        if let Some(identity) = record.identity(record.kind.load(Acquire)) {
            // Not 0: the records before the first untouched one are all marked.
            record.kind.store(SERVICE4, Release);
            state.by_identity.remove(&identity);
            state.free.push(id.0);
        }
    }

    /// Every destination known, in no order.
    #[must_use]
    pub fn all(&self) -> Vec<(DestinationId, Identity)> {
        let state = self.state();
        state.by_identity.iter().map(|(identity, number)| (DestinationId(*number), *identity)).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.numbers.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn words(ip: IpAddr) -> [u64; 2] {
    let octets = match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
    .octets();
    let (halves, _) = octets.as_chunks::<8>();
    [u64::from_ne_bytes(halves[0]), u64::from_ne_bytes(halves[1])]
}

fn address(words: [u64; 2], is_v4: bool) -> IpAddr {
    let mut octets = [0; 16];
    octets[..8].copy_from_slice(&words[0].to_ne_bytes());
    octets[8..].copy_from_slice(&words[1].to_ne_bytes());
    let v6 = Ipv6Addr::from(octets);
    match v6.to_ipv4_mapped() {
        Some(v4) if is_v4 => IpAddr::V4(v4),
        _ => IpAddr::V6(v6),
    }
}

impl Record {
    /// The kind goes last: a writer that dies before leaves a free record.
    fn write(&self, identity: &Identity) {
        let family = |at: SocketAddr, bit: u32| if at.is_ipv4() { bit } else { 0 };
        self.fwmark.store(identity.fwmark, Relaxed);
        self.service_port.store(identity.service.port().into(), Relaxed);
        self.server_port.store(identity.server.port().into(), Relaxed);
        for (at, ip) in [(&self.service, identity.service.ip()), (&self.server, identity.server.ip())] {
            for (to, word) in at.iter().zip(words(ip)) {
                to.store(word, Relaxed);
            }
        }
        let families = family(identity.service, SERVICE4) | family(identity.server, SERVER4);
        self.kind.store(USED | families | u32::from(identity.protocol), Release);
    }

    fn identity(&self, kind: u32) -> Option<Identity> {
        if kind & USED == 0 {
            return None;
        }
        let port = |stored: u32| u16::try_from(stored).ok();
        let load = |at: &[crate::sync::AtomicU64; 2]| [at[0].load(Relaxed), at[1].load(Relaxed)];
        let service = address(load(&self.service), kind & SERVICE4 != 0);
        let server = address(load(&self.server), kind & SERVER4 != 0);
        Some(Identity {
            protocol: u8::try_from(kind & 0xff).ok()?,
            fwmark: self.fwmark.load(Relaxed),
            service: SocketAddr::new(service, port(self.service_port.load(Relaxed))?),
            server: SocketAddr::new(server, port(self.server_port.load(Relaxed))?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(n: u8) -> Identity {
        let server = format!("10.0.0.{n}:80").parse().unwrap();
        Identity { protocol: 6, fwmark: 0, service: "192.0.2.1:80".parse().unwrap(), server }
    }

    #[test]
    fn numbers_last_and_are_bounded() {
        let records: Vec<Record> = (0..3).map(|_| Record::default()).collect();
        let numbers = Numbers::read(&records);
        let directory = Directory { records: &records, numbers: &numbers };
        let ids: Vec<_> = (1..=3).map(|n| directory.intern(&identity(n)).unwrap()).collect();
        assert_eq!(ids, [0, 1, 2].map(DestinationId));
        assert_eq!(directory.intern(&identity(2)), Ok(ids[1]), "the one it had");
        assert_eq!(directory.intern(&identity(4)), Err(DirectoryFull(3)));
        directory.forget(ids[1]);
        assert_eq!(directory.get(ids[1]), None);

        let numbers = Numbers::read(&records);
        let directory = Directory { records: &records, numbers: &numbers };
        assert_eq!(directory.get(ids[2]), Some(identity(3)), "known after mapping again");
        let mixed = Identity {
            protocol: 17,
            fwmark: 7,
            service: "0.0.0.0:0".parse().unwrap(),
            server: "[fd00::1]:53".parse().unwrap(),
        };
        assert_eq!(directory.intern(&mixed), Ok(ids[1]), "a number given up is given again");
        assert_eq!(directory.get(ids[1]), Some(mixed));
        assert_eq!(directory.all().len(), 3);
    }
}
