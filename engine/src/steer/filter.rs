//! Classifiers of ours on devices (`cls_bpf`, direct action), found again by their names: they outlive the process.
//!
//! They hang on a clsact qdisc. Whether that was made for one of ours is a part of the name, and every other one of ours on the
//! device bears it too: the last that goes takes the qdisc with it, unless somebody else's filters hang there.

use super::bpf::Program;
use super::error::SteerError;
use super::netlink::{self, CREATE, EXCLUSIVE, REPLACE, Request, Route};
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// The filters' handle: `uvs` in ASCII.
const HANDLE: u32 = 0x0075_7673;
/// Before every other filter, whose verdict would end the walk.
const FIRST_PRIORITY: u16 = 1;
/// Where to look for a free priority when the first belongs to filters of another kind.
const LAST_PRIORITY: u16 = 64;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
/// `TC_H_CLSACT`: the qdisc's place beside the device's own.
const CLSACT: u32 = 0xffff_fff1;
/// The clsact qdisc itself.
pub(super) const CLSACT_HANDLE: u32 = 0xffff_0000;
/// `TC_H_MIN_INGRESS` of it.
pub(super) const INGRESS: u32 = 0xffff_fff2;
/// `TC_H_MIN_EGRESS` of it.
pub(super) const EGRESS: u32 = 0xffff_fff3;

/// What a filter of ours is for.
#[derive(Debug)]
pub(super) struct Duty {
    /// Which frames of a device it sees: [`INGRESS`] or [`EGRESS`].
    pub(super) parent: u32,
    /// Its name on a qdisc that was there before.
    pub(super) name: &'static str,
    /// Its name on a qdisc that we made.
    pub(super) name_with_qdisc: &'static str,
    /// What fails when it cannot be installed.
    pub(super) install: &'static str,
    /// What fails when it cannot be removed.
    pub(super) remove: &'static str,
    /// What a kernel lacks that has no clsact qdisc, and one that has no classifier.
    pub(super) lacking: [&'static str; 2],
}

/// Both duties there are.
const ALL: [&Duty; 2] = [&super::guard::DUTY, &super::diversion::DUTY];

/// A filter as the kernel lists it.
pub(super) struct Filter {
    ifindex: u32,
    parent: u32,
    handle: u32,
    priority: u16,
    name: String,
    /// The kernel's number of its program.
    pub(super) program: u32,
}

/// Puts a filter on a device. One that another process left there is replaced, in one step: no frame meets neither.
pub(super) fn install(duty: &Duty, ifindex: u32, program: &Program) -> Result<(), SteerError> {
    let mut route = open()?;
    let standing = filters(&mut route, duty, ifindex)?;
    if let [first, duplicates @ ..] = &standing[..] {
        put(&mut route, duty, ifindex, program, first.priority, &first.name, REPLACE)
            .map_err(|source| refused(duty, source))?;
        return duplicates.iter().try_for_each(|duplicate| remove_filter(&mut route, duty, duplicate));
    }
    let made = make_qdisc(&mut route, duty, ifindex)?;
    let name = if made || has_our_qdisc(&mut route, ifindex)? { duty.name_with_qdisc } else { duty.name };
    if let Err(error) = put_new(&mut route, duty, ifindex, program, name) {
        if made {
            remove_qdisc(&mut route, duty, ifindex)?;
        }
        return Err(error);
    }
    Ok(())
}

/// Removes the filters of a duty from a device, and the qdisc if it was made for ours and nobody uses it now.
pub(super) fn remove(duty: &Duty, ifindex: u32) -> Result<(), SteerError> {
    let mut route = open()?;
    let made = has_our_qdisc(&mut route, ifindex)?;
    for filter in filters(&mut route, duty, ifindex)? {
        remove_filter(&mut route, duty, &filter)?;
    }
    for parent in [INGRESS, EGRESS] {
        if !made || !all_filters(&mut route, ifindex, parent)?.is_empty() {
            return Ok(());
        }
    }
    remove_qdisc(&mut route, duty, ifindex)
}

/// The devices of this network namespace with a filter of a duty, of whatever process: index, name, the filter.
pub(super) fn standing(duty: &Duty) -> Result<Vec<(u32, String, Filter)>, SteerError> {
    let mut route = open()?;
    let devices = route.devices().map_err(|e| SteerError::from_network("list the devices", e))?;
    let mut standing = Vec::new();
    for ifindex in devices {
        if let Some(filter) = filters(&mut route, duty, ifindex)?.into_iter().next()
            && let Some(device) = netlink::device_name(ifindex)
        {
            standing.push((ifindex, device, filter));
        }
    }
    Ok(standing)
}

fn open() -> Result<Route, SteerError> {
    Route::open().map_err(|e| SteerError::from_network("open a netlink socket", e))
}

/// Adds the filter before every other, or, where filters of another kind hold that priority, as early as it goes.
fn put_new(
    route: &mut Route,
    duty: &Duty,
    ifindex: u32,
    program: &Program,
    name: &str,
) -> Result<(), SteerError> {
    let mut result = Err(io::Error::from_raw_os_error(libc::EEXIST));
    for priority in FIRST_PRIORITY..=LAST_PRIORITY {
        result = put(route, duty, ifindex, program, priority, name, EXCLUSIVE);
        match &result {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EEXIST | libc::EINVAL)) => {}
            _ => break,
        }
    }
    result.map_err(|source| refused(duty, source))
}

fn put(
    route: &mut Route,
    duty: &Duty,
    ifindex: u32,
    program: &Program,
    priority: u16,
    name: &str,
    flag: u16,
) -> io::Result<()> {
    const TCA_BPF_FD: u16 = 6;
    const TCA_BPF_NAME: u16 = 7;
    const TCA_BPF_FLAGS: u16 = 8;
    const ACT_DIRECT: u32 = 1;
    let program = program.as_fd().as_raw_fd().cast_unsigned().to_ne_bytes();
    let name = [name.as_bytes(), b"\0"].concat();
    let options = netlink::nested(&[
        (TCA_BPF_FD, &program),
        (TCA_BPF_NAME, &name),
        (TCA_BPF_FLAGS, &ACT_DIRECT.to_ne_bytes()),
    ]);
    let message = tc_message(ifindex, HANDLE, duty.parent, information(priority));
    route.change(
        Request::new(libc::RTM_NEWTFILTER, CREATE | flag, &message)
            .with(TCA_KIND, b"bpf\0")
            .with(TCA_OPTIONS | netlink::NESTED, &options),
    )
}

/// `struct tcmsg`
fn tc_message(ifindex: u32, handle: u32, parent: u32, information: u32) -> [u8; 20] {
    let mut message = [0; 20];
    message[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    message[8..12].copy_from_slice(&handle.to_ne_bytes());
    message[12..16].copy_from_slice(&parent.to_ne_bytes());
    message[16..20].copy_from_slice(&information.to_ne_bytes());
    message
}

/// Priority, and all protocols.
fn information(priority: u16) -> u32 {
    const ETH_P_ALL: u16 = 3;
    u32::from(priority) << 16 | u32::from(ETH_P_ALL.to_be())
}

/// Makes the qdisc that filters hang on. Says whether it was not there before.
fn make_qdisc(route: &mut Route, duty: &Duty, ifindex: u32) -> Result<bool, SteerError> {
    let message = tc_message(ifindex, CLSACT_HANDLE, CLSACT, 0);
    let request = Request::new(libc::RTM_NEWQDISC, CREATE | EXCLUSIVE, &message).with(TCA_KIND, b"clsact\0");
    match route.change(request) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENODEV) => Err(SteerError::NoDevice(ifindex)),
            Some(libc::ENOENT | libc::EOPNOTSUPP) => {
                Err(SteerError::NoSupport { doing: duty.install, lacking: duty.lacking[0] })
            }
            _ => Err(SteerError::from_network(duty.install, error)),
        },
    }
}

fn refused(duty: &Duty, source: io::Error) -> SteerError {
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::EOPNOTSUPP) => {
            SteerError::NoSupport { doing: duty.install, lacking: duty.lacking[1] }
        }
        _ => SteerError::from_network(duty.install, source),
    }
}

/// Whether the qdisc was made for one of our filters that stand on the device.
fn has_our_qdisc(route: &mut Route, ifindex: u32) -> Result<bool, SteerError> {
    for duty in ALL {
        if filters(route, duty, ifindex)?.iter().any(|filter| filter.name == duty.name_with_qdisc) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A duty's filters on a device; one, unless something went wrong before.
fn filters(route: &mut Route, duty: &Duty, ifindex: u32) -> Result<Vec<Filter>, SteerError> {
    let messages = all_filters(route, ifindex, duty.parent)?;
    Ok(messages.iter().filter_map(|message| filter(duty, ifindex, message)).collect())
}

fn all_filters(route: &mut Route, ifindex: u32, parent: u32) -> Result<Vec<Vec<u8>>, SteerError> {
    let message = tc_message(ifindex, 0, parent, 0);
    match route.dump(Request::new(libc::RTM_GETTFILTER, 0, &message)) {
        Ok(messages) => Ok(messages),
        // No qdisc that could have filters there.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT | libc::ENODEV)) => {
            Ok(Vec::new())
        }
        Err(error) => Err(SteerError::from_network("list the filters of a device", error)),
    }
}

/// Reads a filter; `None` when it is not one of the duty.
fn filter(duty: &Duty, ifindex: u32, message: &[u8]) -> Option<Filter> {
    const TCA_BPF_NAME: u16 = 7;
    const TCA_BPF_ID: u16 = 11;
    let handle = netlink::number(message.get(8..)?)?;
    let priority = netlink::number(message.get(16..)?)? >> 16;
    let attributes = message.get(20..)?;
    let options = netlink::find(attributes, TCA_OPTIONS)?;
    let name = netlink::find(options, TCA_BPF_NAME)?;
    let name = str::from_utf8(name.strip_suffix(b"\0")?).ok()?;
    let program = netlink::find(options, TCA_BPF_ID).and_then(netlink::number).unwrap_or(0);
    let ours = name == duty.name || name == duty.name_with_qdisc;
    let (parent, priority) = (duty.parent, u16::try_from(priority).ok()?);
    ours.then(|| Filter { ifindex, parent, handle, priority, name: name.into(), program })
}

fn remove_qdisc(route: &mut Route, duty: &Duty, ifindex: u32) -> Result<(), SteerError> {
    let message = tc_message(ifindex, CLSACT_HANDLE, CLSACT, 0);
    let request = Request::new(libc::RTM_DELQDISC, 0, &message);
    gone(route.change(request)).map_err(|e| SteerError::from_network(duty.remove, e))
}

fn remove_filter(route: &mut Route, duty: &Duty, filter: &Filter) -> Result<(), SteerError> {
    let message = tc_message(filter.ifindex, filter.handle, filter.parent, information(filter.priority));
    let request = Request::new(libc::RTM_DELTFILTER, 0, &message).with(TCA_KIND, b"bpf\0");
    gone(route.change(request)).map_err(|e| SteerError::from_network(duty.remove, e))
}

/// That a device or filter went by itself is as good.
fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests;
