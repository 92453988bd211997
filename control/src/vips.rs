//! The virtual addresses on this host: put on a device, announced and kept there when asked to (`--assign-vips`), taken off
//! again, and looked at whether any traffic for them can come this way.

mod announce;
mod reach;

pub use announce::{AnnounceError, Announcer};
pub use reach::{Host, Reach};

use crate::netlink::{AddressChange, Client, Event, NetlinkError};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How often a new address is announced: the first time at once, for neighbours that miss one.
const ANNOUNCEMENTS: u32 = 3;
/// Time between announcements, and at least between two times that an address is put back.
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
    /// It is on every link.
    #[error(
        "{0} is link-local, which does not say on which of the devices it is to be; put it on one with 'ip address add {0} \
         dev DEVICE nodad'"
    )]
    LinkLocal(IpAddr),
    /// The kernel said no.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// What became of a virtual address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Assigned {
    /// This call put it on the device with this index, or a director that was killed did.
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
    /// When it was last put back, or that was tried.
    put_back: Option<Instant>,
}

/// A device as its neighbours find it: its Ethernet address while it is up.
type Seen = Option<[u8; 6]>;

/// The virtual addresses that were put on devices. Dropped, it takes off those it added, and no others.
///
/// The kernel marks them as a director's ([`Client::add_address`]): those that a killed one left behind are taken over.
#[derive(Debug)]
pub struct Vips {
    client: Client,
    announcer: Announcer,
    device: Option<u32>,
    vips: BTreeMap<IpAddr, Vip>,
    /// What a killed director left behind, and no service of this one has had yet.
    left: BTreeMap<IpAddr, u32>,
    devices: BTreeMap<u32, Seen>,
    due: Option<Instant>,
}

impl Vips {
    /// Puts addresses on the device with the index `device`; without one, each on a device held whose subnet it
    /// belongs to, or else on the first device held.
    pub fn new(client: Client, announcer: Announcer, device: Option<u32>) -> Self {
        Vips {
            client,
            announcer,
            device,
            vips: BTreeMap::new(),
            left: BTreeMap::new(),
            devices: BTreeMap::new(),
            due: None,
        }
    }

    /// Takes over what a director that was killed left on the devices held. Another that runs has other devices.
    ///
    /// # Errors
    /// The kernel does not list its addresses.
    pub fn take_over(&mut self, held: &[u32]) -> Result<(), NetlinkError> {
        let marked = self.client.marked_addresses()?.into_iter().filter(|(_, device)| held.contains(device));
        self.left.extend(marked);
        Ok(())
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
        if vip.is_unspecified() || vip.is_loopback() || vip.is_multicast() || host.is_broadcast(vip) {
            return Err(VipError::NotAHosts(vip));
        }
        let left = self.left.remove(&vip).filter(|device| host.device_with(vip) == Some(*device));
        let found = host.device_with(vip);
        let ifindex = match found {
            Some(device) => device,
            None => place_for(vip, self.device, host)?,
        };
        let added = found.is_none() && self.client.add_address(ifindex, vip)? == AddressChange::Done;
        let ours = added || left.is_some();
        (known.ifindex, known.ours) = (Some(ifindex), ours);
        if ours {
            known.announcements = ANNOUNCEMENTS;
            announce(&self.announcer, vip, known);
            self.due.get_or_insert(now + PAUSE);
        }
        Ok(if ours { Assigned::Added(ifindex) } else { Assigned::Found(ifindex) })
    }

    /// Takes over what became of devices and addresses: what this host has lost is put back, on a device that is up; and
    /// neighbours hear where an address is when its device came up or has another Ethernet address.
    pub fn follow(&mut self, events: &[Event], host: &Host<'_>, now: Instant) {
        for event in events {
            let (ifindex, seen) = match event {
                Event::LinkChanged(link) => (link.ifindex, link.mac.filter(|_| link.up)),
                Event::LinkGone { ifindex, .. } => (*ifindex, None),
                _ => continue,
            };
            let before = self.devices.insert(ifindex, seen);
            if seen.is_some() && before.is_some_and(|before| before != seen) {
                let there = self.vips.values_mut().filter(|vip| vip.ours && vip.ifindex == Some(ifindex));
                there.for_each(|vip| vip.announcements = ANNOUNCEMENTS);
                self.due = Some(now);
            }
        }
        self.put_back(host, now);
    }

    /// Puts back the addresses that this host has lost, each at most once a [`PAUSE`].
    fn put_back(&mut self, host: &Host<'_>, now: Instant) {
        let lost = self
            .vips
            .iter_mut()
            .filter(|(address, vip)| vip.ifindex.is_some() && host.device_with(**address).is_none());
        for (address, vip) in lost {
            let wait = vip.put_back.map(|last| last + PAUSE).filter(|again| now < *again);
            if let Some(again) = wait {
                self.due = Some(self.due.map_or(again, |due| due.min(again)));
                continue;
            }
            let before = vip.ifindex.filter(|device| host.has(*device));
            let place = before.map_or_else(|| place_for(*address, self.device, host), Ok);
            let up = |device: &u32| self.devices.get(device).is_none_or(Option::is_some);
            let Some(ifindex) = place.ok().filter(up) else { continue };
            vip.put_back = Some(now);
            match self.client.add_address(ifindex, *address) {
                Ok(AddressChange::Done) => {
                    tracing::warn!("{address} was lost, and is put back");
                    *vip = Vip { ifindex: Some(ifindex), ours: true, announcements: ANNOUNCEMENTS, ..*vip };
                    self.due = Some(now);
                }
                // The news of it is on its way.
                Ok(AddressChange::AlreadySo) => {}
                Err(error) => tracing::warn!("{address} was lost, and is not put back: {error}"),
            }
        }
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

    /// Announces new addresses again, and puts lost ones back.
    pub fn tick(&mut self, host: &Host<'_>, now: Instant) {
        if self.due.is_none_or(|due| now < due) {
            return;
        }
        self.due = None;
        for (address, vip) in &mut self.vips {
            announce(&self.announcer, *address, vip);
        }
        self.put_back(host, now);
        if self.due.is_none() {
            self.due = self.vips.values().any(|vip| vip.announcements > 0).then(|| now + PAUSE);
        }
    }
}

/// Where to put an address that this host has not: on `device`, else a device held whose subnet it belongs to, else the
/// first device held.
fn place_for(vip: IpAddr, device: Option<u32>, host: &Host<'_>) -> Result<u32, VipError> {
    if device.is_none() && host.has_several() && matches!(vip, IpAddr::V6(vip) if vip.is_unicast_link_local())
    {
        return Err(VipError::LinkLocal(vip));
    }
    device.or_else(|| host.subnet_of(vip)).or_else(|| host.first()).ok_or(VipError::NoDevice(vip))
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
        let vips = std::mem::take(&mut self.vips).into_iter();
        let ours =
            vips.filter(|(_, vip)| vip.ours).filter_map(|(address, vip)| Some((address, vip.ifindex?)));
        for (address, ifindex) in ours.chain(std::mem::take(&mut self.left)) {
            if let Err(error) = self.client.remove_address(ifindex, address) {
                tracing::warn!("{error}");
            }
        }
    }
}
