//! Which frames are ours: the XDP program, the guard, and the way back to the kernel.
//!
//! [`Steering`] holds the services and real servers in maps of the kernel. Its XDP program, one per device, hands their
//! frames to the AF_XDP socket of the queue they came on and leaves everything else to the kernel untouched, under any
//! load. The [`Guard`] stands behind it: when the process dies, the kernel does not answer what was ours. What was taken
//! and turns out not to be ours goes back through [`WayBack`]. Packets of this host's own sockets come by a [`Diversion`].
//!
//! The order in which they are set up matters: the services, the guard, the sockets, and the XDP program last, so that
//! no frame of ours meets the kernel in between.
//!
//! Programs are assembled here and loaded by `bpf(2)`: no compiler, no library, no binary. Kernel 5.15 or later.

// The kernel is spoken to in its own structures.
#![allow(unsafe_code)]

pub mod asm;
mod attach;
pub mod bpf;
pub mod diversion;
mod error;
mod filter;
pub mod guard;
mod key;
mod maps;
pub(crate) mod netlink;
mod parse;
pub mod program;
#[cfg(test)]
mod testing;
mod view;
pub mod way_back;

pub use attach::{Attachment, DryRun, Mode, WantedMode};
pub use diversion::{Diversion, OwnDevice};
pub use error::SteerError;
pub use guard::{Guard, Guarded};
pub use key::Key;
pub use view::{Known, View};
pub use way_back::{Injected, WayBack};

use maps::{Set, Sets};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::os::fd::BorrowedFd;

/// The services and real servers whose frames are ours, as the programs in the kernel know them.
///
/// A change is in effect on every device, and for the guard, when its call returns. Services and replies may be added
/// several times (virtual services share addresses, and real servers), sources and tunnels too: each stays until it was
/// removed as often.
#[derive(Debug)]
pub struct Steering {
    sets: Sets,
}

/// How much a [`Steering`] holds; addresses alone count as keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keys {
    /// Keys of services.
    pub services: usize,
    /// Keys of real servers whose replies are translated.
    pub replies: usize,
    /// Addresses of this host.
    pub locals: usize,
    /// Addresses that packets to real servers are sent from.
    pub sources: usize,
    /// Ends of tunnels.
    pub tunnels: usize,
    /// Real servers that are this host itself.
    pub own_servers: usize,
}

impl Steering {
    /// Steers nothing yet.
    pub fn new() -> Result<Self, SteerError> {
        Ok(Steering { sets: Sets::new()? })
    }

    /// Takes frames to `address`, `port` (0: every port) and `protocol` (IANA number of TCP or UDP), ICMP errors about
    /// them, and fragments to `address`.
    pub fn add_service(&mut self, address: IpAddr, port: u16, protocol: u8) -> Result<(), SteerError> {
        self.add(Set::Services, address, port, protocol)
    }

    /// Undoes one [`Steering::add_service`]. Says whether there was one.
    pub fn remove_service(&mut self, address: IpAddr, port: u16, protocol: u8) -> Result<bool, SteerError> {
        self.remove(Set::Services, address, port, protocol)
    }

    /// Takes frames from the real server's `address`, `port` (0: every port) and `protocol` that do not go to this host,
    /// ICMP errors about packets to it, and fragments from `address`.
    pub fn add_reply(&mut self, address: IpAddr, port: u16, protocol: u8) -> Result<(), SteerError> {
        self.add(Set::Replies, address, port, protocol)
    }

    /// Undoes one [`Steering::add_reply`]. Says whether there was one.
    pub fn remove_reply(&mut self, address: IpAddr, port: u16, protocol: u8) -> Result<bool, SteerError> {
        self.remove(Set::Replies, address, port, protocol)
    }

    /// Packets to real servers leave from `address`: frames from real servers ([`Steering::add_reply`]) to it are taken
    /// even when it is an address of this host, except to the ports of [`Steering::set_host_ports`].
    pub fn add_source(&mut self, address: IpAddr) -> Result<(), SteerError> {
        self.sets.claim(Set::Sources, Key::address(address))
    }

    /// Undoes one [`Steering::add_source`]. Says whether there was one.
    pub fn remove_source(&mut self, address: IpAddr) -> Result<bool, SteerError> {
        self.sets.release(Set::Sources, Key::address(address))
    }

    /// Says which ports, of all addresses and protocols, may be those of the host's own sockets: frames from real
    /// servers to an address of this host and such a port are the kernel's. None until this is called.
    pub fn set_host_ports(&mut self, ranges: &[RangeInclusive<u16>]) -> Result<(), SteerError> {
        self.sets.set_host_ports(ranges)
    }

    /// Takes ICMP errors to this host about packets that were encapsulated towards `address`: of `protocol` 4 (IPv4 in
    /// IP), 41 (IPv6 in IP) or 47 (GRE) with `port` 0, or of UDP to `port`.
    pub fn add_tunnel(&mut self, address: IpAddr, port: u16, protocol: u8) -> Result<(), SteerError> {
        self.sets.claim(Set::Tunnels, encapsulation(address, port, protocol)?)
    }

    /// Undoes one [`Steering::add_tunnel`]. Says whether there was one.
    pub fn remove_tunnel(&mut self, address: IpAddr, port: u16, protocol: u8) -> Result<bool, SteerError> {
        self.sets.release(Set::Tunnels, encapsulation(address, port, protocol)?)
    }

    /// A [`Diversion`] takes what the real server at `address`, `port` and `protocol`, which is this host itself, sends.
    pub fn add_own_server(&mut self, address: IpAddr, port: u16, protocol: u8) -> Result<(), SteerError> {
        self.add(Set::OwnServers, address, port, protocol)
    }

    /// Undoes one [`Steering::add_own_server`]. Says whether there was one.
    pub fn remove_own_server(
        &mut self,
        address: IpAddr,
        port: u16,
        protocol: u8,
    ) -> Result<bool, SteerError> {
        self.remove(Set::OwnServers, address, port, protocol)
    }

    /// Says which addresses this host has: frames from real servers to these are the kernel's, unless they are sources
    /// ([`Steering::add_source`]).
    pub fn set_local(&mut self, addresses: impl IntoIterator<Item = IpAddr>) -> Result<(), SteerError> {
        self.sets.set(Set::Locals, addresses.into_iter().map(Key::address))
    }

    /// How much there is.
    pub fn keys(&self) -> Keys {
        Keys {
            services: self.sets.len(Set::Services),
            replies: self.sets.len(Set::Replies),
            locals: self.sets.len(Set::Locals),
            sources: self.sets.len(Set::Sources),
            tunnels: self.sets.len(Set::Tunnels),
            own_servers: self.sets.len(Set::OwnServers),
        }
    }

    /// Puts the program on a device of this thread's network namespace. `sockets` are the device's AF_XDP sockets by
    /// queue, with their fill rings filled: frames flow at once. A queue without a socket leaves its frames to the
    /// kernel.
    pub fn attach(
        &self,
        ifindex: u32,
        mode: WantedMode,
        sockets: &[(u32, BorrowedFd<'_>)],
    ) -> Result<Attachment, SteerError> {
        Attachment::new(self.sets.descriptors(), ifindex, mode, sockets)
    }

    /// The same for links that get every frame and have to leave alone what is not ours. Empty until
    /// [`Steering::reveal`].
    pub fn view(&self) -> View {
        self.sets.view().clone()
    }

    /// Lets views see what is ours, now and later: when a guard stands that keeps the kernel from handling it too.
    pub fn reveal(&mut self) {
        self.sets.reveal();
    }

    /// The XDP program without a device, to ask it what it would do with a frame.
    pub fn dry_run(&self) -> Result<DryRun, SteerError> {
        DryRun::new(self.sets.descriptors())
    }

    fn add(&mut self, set: Set, address: IpAddr, port: u16, protocol: u8) -> Result<(), SteerError> {
        let key = steerable(address, port, protocol)?;
        self.sets.claim(set, Key::address(address))?;
        if let Err(error) = self.sets.claim(set, key) {
            self.sets.release(set, Key::address(address))?;
            return Err(error);
        }
        Ok(())
    }

    fn remove(&mut self, set: Set, address: IpAddr, port: u16, protocol: u8) -> Result<bool, SteerError> {
        let key = steerable(address, port, protocol)?;
        Ok(self.sets.release(set, key)? && self.sets.release(set, Key::address(address))?)
    }
}

fn steerable(address: IpAddr, port: u16, protocol: u8) -> Result<Key, SteerError> {
    match i32::from(protocol) {
        libc::IPPROTO_TCP | libc::IPPROTO_UDP => Ok(Key::new(address, port, protocol)),
        _ => Err(SteerError::Protocol(protocol)),
    }
}

fn encapsulation(address: IpAddr, port: u16, protocol: u8) -> Result<Key, SteerError> {
    match i32::from(protocol) {
        libc::IPPROTO_IPIP | libc::IPPROTO_IPV6 | libc::IPPROTO_GRE => Ok(Key::new(address, 0, protocol)),
        libc::IPPROTO_UDP => Ok(Key::new(address, port, protocol)),
        _ => Err(SteerError::Encapsulation(protocol)),
    }
}

#[cfg(test)]
mod tests {
    use super::testing::with_capabilities;
    use super::*;

    /// Whoever lacks the privilege is told which.
    #[test]
    fn says_which_capability_is_missing() {
        let (steering, way_back, guards) = with_capabilities(&[], || {
            (
                Steering::new().map(drop).unwrap_err().to_string(),
                WayBack::open().map(drop).unwrap_err().to_string(),
                guard::remove_all().map(drop),
            )
        });
        let both = "this process lacks CAP_BPF and CAP_NET_ADMIN; run it as root or give it these";
        assert_eq!(steering, format!("not allowed to make a BPF map: {both}"));
        assert!(way_back.ends_with("this process lacks CAP_NET_ADMIN; run it as root or give it these"));
        // To list what is not there needs no privilege.
        assert!(guards.is_ok(), "{guards:?}");
    }

    /// Root is not needed.
    #[test]
    fn few_capabilities_are_enough() {
        const NET_ADMIN: u32 = 12;
        const NET_RAW: u32 = 13;
        const PERFMON: u32 = 38;
        const BPF: u32 = 39;
        let load = || -> Result<(), SteerError> {
            let steering = Steering::new()?;
            steering.dry_run()?;
            Guard::new(&steering, std::time::Duration::ZERO, Guarded::Certain).map(drop)
        };
        with_capabilities(&[NET_ADMIN, NET_RAW, PERFMON, BPF], load).unwrap();
        for (bits, lacking) in [
            ([NET_ADMIN, NET_RAW, BPF], "load a BPF program: this process lacks CAP_PERFMON;"),
            ([NET_ADMIN, PERFMON, BPF], "open an AF_XDP socket: this process lacks CAP_NET_RAW;"),
            ([NET_ADMIN, NET_RAW, PERFMON], "make a BPF map: this process lacks CAP_BPF;"),
            ([NET_RAW, PERFMON, BPF], "make a BPF map: this process lacks CAP_NET_ADMIN;"),
        ] {
            let refused = with_capabilities(&bits, load).unwrap_err().to_string();
            assert!(refused.contains(lacking), "{refused}");
        }
    }
}
