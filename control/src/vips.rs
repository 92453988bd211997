//! The virtual addresses on this host: put on a device and announced when asked to (`--assign-vips`), taken off again,
//! and looked at whether any traffic for them can come this way.

mod announce;
mod reach;

pub use announce::{AnnounceError, Announcer};
pub use reach::{Host, Reach};

use crate::netlink::{AddressChange, Client, NetlinkError};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How often a new address is announced: the first time at once, for neighbours that miss one.
const ANNOUNCEMENTS: u32 = 3;
/// Time between announcements.
const PAUSE: Duration = Duration::from_secs(1);

/// Why a virtual address could not be put on a device.
#[derive(Debug, thiserror::Error)]
pub enum VipError {
    /// There is no device.
    #[error("no device to put {0} on: the director holds none that is there; name one with --interface")]
    NoDevice(IpAddr),
    /// Every host has these to itself, or they are no host's.
    #[error(
        "{0} is no address that a host can have on a network; choose a unicast address as virtual address"
    )]
    NotAHosts(IpAddr),
    /// The kernel said no.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// What became of a virtual address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Assigned {
    /// This call put it on the device with this index.
    Added(u32),
    /// It was on the device with this index before, by someone else's doing: it will not be taken off.
    Found(u32),
    /// An earlier call put it there.
    Kept(u32),
}

#[derive(Debug, Default)]
struct Vip {
    /// Where it is; `None` when it could not be put anywhere.
    ifindex: Option<u32>,
    services: usize,
    ours: bool,
    announcements: u32,
}

/// The virtual addresses that were put on devices. Dropped, it takes off those it added, and no others.
///
/// A process that was killed leaves its addresses behind; the next one finds them there and leaves them there too.
#[derive(Debug)]
pub struct Vips {
    client: Client,
    announcer: Announcer,
    device: Option<u32>,
    vips: BTreeMap<IpAddr, Vip>,
    due: Option<Instant>,
}

impl Vips {
    /// Puts addresses on the device with the index `device`; without one, each on a device held whose subnet it
    /// belongs to, or else on the first device held.
    pub fn new(client: Client, announcer: Announcer, device: Option<u32>) -> Self {
        Vips { client, announcer, device, vips: BTreeMap::new(), due: None }
    }

    /// A service has the address `vip`: puts it on a device unless this host has it, and announces it.
    ///
    /// # Errors
    /// It could not be put there. The service counts nevertheless: [`Vips::withdraw`] is to be called for it as for others.
    pub fn assign(&mut self, vip: IpAddr, host: &Host<'_>, now: Instant) -> Result<Assigned, VipError> {
        let known = self.vips.entry(vip).or_default();
        known.services += 1;
        if let Some(ifindex) = known.ifindex {
            return Ok(Assigned::Kept(ifindex));
        }
        if vip.is_unspecified() || vip.is_loopback() || vip.is_multicast() {
            return Err(VipError::NotAHosts(vip));
        }
        let found = host.device_with(vip);
        let ifindex = found
            .or(self.device)
            .or_else(|| host.subnet_of(vip))
            .or_else(|| host.first())
            .ok_or(VipError::NoDevice(vip))?;
        let ours = found.is_none() && self.client.add_address(ifindex, vip)? == AddressChange::Done;
        (known.ifindex, known.ours) = (Some(ifindex), ours);
        if ours {
            known.announcements = ANNOUNCEMENTS;
            announce(&self.announcer, vip, known);
            self.due.get_or_insert(now + PAUSE);
        }
        Ok(if ours { Assigned::Added(ifindex) } else { Assigned::Found(ifindex) })
    }

    /// A service with the address `vip` is gone. With the last one goes the address, if it was put there by us.
    pub fn withdraw(&mut self, vip: IpAddr) -> Result<(), VipError> {
        let Some(known) = self.vips.get_mut(&vip) else { return Ok(()) };
        known.services -= 1;
        if known.services > 0 {
            return Ok(());
        }
        match self.vips.remove(&vip) {
            Some(Vip { ours: true, ifindex: Some(ifindex), .. }) => {
                self.client.remove_address(ifindex, vip)?;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// When [`Vips::tick`] has something to do.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Announces new addresses again.
    pub fn tick(&mut self, now: Instant) {
        if self.due.is_none_or(|due| now < due) {
            return;
        }
        for (address, vip) in &mut self.vips {
            announce(&self.announcer, *address, vip);
        }
        self.due = self.vips.values().any(|vip| vip.announcements > 0).then(|| now + PAUSE);
    }
}

fn announce(announcer: &Announcer, address: IpAddr, vip: &mut Vip) {
    if let Some(ifindex) = vip.ifindex.filter(|_| vip.announcements > 0) {
        vip.announcements -= 1;
        if let Err(error) = announcer.announce(ifindex, address) {
            tracing::warn!("{error}; neighbours may look for {address} where it was");
            vip.announcements = 0;
        }
    }
}

impl Drop for Vips {
    fn drop(&mut self) {
        for (address, vip) in std::mem::take(&mut self.vips) {
            if vip.ours
                && let Some(ifindex) = vip.ifindex
                && let Err(error) = self.client.remove_address(ifindex, address)
            {
                tracing::warn!("{error}");
            }
        }
    }
}
