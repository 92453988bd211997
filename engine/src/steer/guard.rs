//! The guard: when the process dies, the kernel does not answer for connections that a successor will continue.
//!
//! Behind a link that only gets copies of the frames (packet sockets) the guard has a second duty, while the process
//! lives: it is what keeps the kernel from handling what was taken ([`Guarded::AllTaken`]).
//!
//! On the ingress of each device stands a classifier (`cls_bpf`, direct action) that knows the same sets as the XDP
//! program and drops what that would have taken: frames to services and replies of real servers, not ICMP, not
//! fragments without ports. Frames that the XDP program redirects never come so far; when it is gone, they do. The
//! kernel keeps filter, program and maps without a process. The live process pushes a deadline ahead of it
//! ([`Guard::refresh`]), after which the filter lets everything pass.
//!
//! The filter is found again by its name. It outlives us, so whether the qdisc it hangs on was made for it is a part of
//! the name.

use super::bpf::{self, Map, MapKind, Program, ProgramKind};
use super::error::SteerError;
use super::netlink::{self, CREATE, EXCLUSIVE, REPLACE, Request, Route};
use super::{Steering, program};
use nix::time::{ClockId, clock_gettime};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

/// The filter's name on a qdisc that was there before.
const NAME: &str = "uvs-guard";
/// The filter's name on a qdisc that we made and that goes with it.
const NAME_WITH_QDISC: &str = "uvs-guard+clsact";
/// The name of the map that holds the deadline.
const DEADLINE: &str = "uvs_deadline";
/// The filter's handle: `uvs` in ASCII.
const HANDLE: u32 = 0x0075_7673;
/// Before every other filter, whose verdict would end the walk.
const FIRST_PRIORITY: u16 = 1;
/// Where to look for a free priority when the first belongs to filters of another kind.
const LAST_PRIORITY: u16 = 64;

/// Stands behind the XDP program on the devices it was installed on.
///
/// Dropping this leaves it standing, which is its purpose; [`Guard::remove`] takes it away.
#[derive(Debug)]
pub struct Guard {
    program: Program,
    deadline: Map<u32, u64>,
    devices: Vec<u32>,
}

/// What a guard drops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guarded {
    /// What the kernel would answer with a RST if nobody took it: enough behind an XDP program, which takes frames away.
    Certain,
    /// Everything that is ours: behind packet sockets, which get copies.
    AllTaken,
}

/// A guard that stands on a device, of whatever process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The device's index.
    pub ifindex: u32,
    /// The device's name.
    pub device: String,
    /// How long it goes on dropping unless it is refreshed; zero when it has expired, `None` when this process may not
    /// look (`CAP_SYS_ADMIN`).
    pub remaining: Option<Duration>,
}

impl Guard {
    /// A guard over what `steering` takes, now and later, on no device yet; its time begins.
    pub fn new(steering: &Steering, timeout: Duration, guarded: Guarded) -> Result<Self, SteerError> {
        let deadline = Map::create(MapKind::Array, 1, DEADLINE, None)?;
        let instructions = program::guard(steering.sets.descriptors(), deadline.as_fd(), guarded)?;
        let program = Program::load(ProgramKind::Classifier, 0, &instructions, "uvs_guard")?;
        let guard = Guard { program, deadline, devices: Vec::new() };
        guard.refresh(timeout)?;
        Ok(guard)
    }

    /// Puts the guard on a device of this thread's network namespace. One that another process left there is replaced,
    /// in one step: no frame meets neither.
    pub fn install(&mut self, ifindex: u32) -> Result<(), SteerError> {
        let mut route = Route::open().map_err(|e| SteerError::from_network("open a netlink socket", e))?;
        let standing = filters(&mut route, ifindex)?;
        if let [first, duplicates @ ..] = &standing[..] {
            self.put_filter(&mut route, ifindex, first.priority, &first.name, REPLACE)
                .map_err(|source| refused("replace the guard", source))?;
            for duplicate in duplicates {
                remove_filter(&mut route, duplicate)?;
            }
        } else {
            let made = make_qdisc(&mut route, ifindex)?;
            let name = if made { NAME_WITH_QDISC } else { NAME };
            if let Err(error) = self.put_new_filter(&mut route, ifindex, name) {
                if made {
                    remove_qdisc(&mut route, ifindex)?;
                }
                return Err(error);
            }
        }
        if !self.devices.contains(&ifindex) {
            self.devices.push(ifindex);
        }
        Ok(())
    }

    /// Lets the guard drop for `timeout` from now. The live process calls this more often than that.
    pub fn refresh(&self, timeout: Duration) -> Result<(), SteerError> {
        let nanoseconds = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
        self.deadline
            .insert(&0, &monotonic_now().saturating_add(nanoseconds))
            .map_err(|source| SteerError::os("refresh the guard", source))
    }

    /// Takes the guard away from every device it was installed on: the kernel has all frames again.
    pub fn remove(self) -> Result<(), SteerError> {
        // What it still stands on must not go on dropping, whatever fails below.
        self.refresh(Duration::ZERO)?;
        let mut route = Route::open().map_err(|e| SteerError::from_network("open a netlink socket", e))?;
        for &ifindex in &self.devices {
            remove_from(&mut route, ifindex)?;
        }
        Ok(())
    }

    /// Whether the guard would drop a frame that came now. Frames are of an Ethernet header (14 bytes) at least.
    pub fn drops(&self, frame: &[u8]) -> io::Result<bool> {
        Ok(self.program.test_run(frame)? == program::TC_DROP)
    }

    /// Adds the filter before every other, or, where filters of another kind hold that priority, as early as it goes.
    fn put_new_filter(&self, route: &mut Route, ifindex: u32, name: &str) -> Result<(), SteerError> {
        let mut result = Err(io::Error::from_raw_os_error(libc::EEXIST));
        for priority in FIRST_PRIORITY..=LAST_PRIORITY {
            result = self.put_filter(route, ifindex, priority, name, EXCLUSIVE);
            match &result {
                Err(error) if matches!(error.raw_os_error(), Some(libc::EEXIST | libc::EINVAL)) => {}
                _ => break,
            }
        }
        result.map_err(|source| refused("install the guard", source))
    }

    fn put_filter(
        &self,
        route: &mut Route,
        ifindex: u32,
        priority: u16,
        name: &str,
        flag: u16,
    ) -> io::Result<()> {
        const TCA_BPF_FD: u16 = 6;
        const TCA_BPF_NAME: u16 = 7;
        const TCA_BPF_FLAGS: u16 = 8;
        const ACT_DIRECT: u32 = 1;
        let program = self.program.as_fd().as_raw_fd().cast_unsigned().to_ne_bytes();
        let name = [name.as_bytes(), b"\0"].concat();
        let options = netlink::nested(&[
            (TCA_BPF_FD, &program),
            (TCA_BPF_NAME, &name),
            (TCA_BPF_FLAGS, &ACT_DIRECT.to_ne_bytes()),
        ]);
        let message = tc_message(ifindex, HANDLE, INGRESS, information(priority));
        route.change(
            Request::new(libc::RTM_NEWTFILTER, CREATE | flag, &message)
                .with(TCA_KIND, b"bpf\0")
                .with(TCA_OPTIONS | netlink::NESTED, &options),
        )
    }
}

/// Removes every guard of this network namespace, of whatever process, and returns where they stood.
pub fn remove_all() -> Result<Vec<Standing>, SteerError> {
    let standing = status()?;
    let mut route = Route::open().map_err(|e| SteerError::from_network("open a netlink socket", e))?;
    for guard in &standing {
        remove_from(&mut route, guard.ifindex)?;
    }
    Ok(standing)
}

/// The guards that stand in this network namespace.
pub fn status() -> Result<Vec<Standing>, SteerError> {
    let mut route = Route::open().map_err(|e| SteerError::from_network("open a netlink socket", e))?;
    let devices = route.devices().map_err(|e| SteerError::from_network("list the devices", e))?;
    let mut standing = Vec::new();
    for ifindex in devices {
        if let Some(filter) = filters(&mut route, ifindex)?.first()
            && let Some(device) = netlink::device_name(ifindex)
        {
            standing.push(Standing { ifindex, device, remaining: remaining(filter.program) });
        }
    }
    Ok(standing)
}

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
/// `TC_H_CLSACT`: the qdisc's place beside the device's own.
const CLSACT: u32 = 0xffff_fff1;
/// The clsact qdisc itself.
const CLSACT_HANDLE: u32 = 0xffff_0000;
/// `TC_H_MIN_INGRESS` of it.
const INGRESS: u32 = 0xffff_fff2;
/// `TC_H_MIN_EGRESS` of it.
const EGRESS: u32 = 0xffff_fff3;

/// A guard's filter as the kernel lists it.
struct Filter {
    ifindex: u32,
    handle: u32,
    priority: u16,
    name: String,
    program: u32,
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

/// Makes the qdisc that filters on ingress hang on. Says whether it was not there before.
fn make_qdisc(route: &mut Route, ifindex: u32) -> Result<bool, SteerError> {
    let message = tc_message(ifindex, CLSACT_HANDLE, CLSACT, 0);
    let request = Request::new(libc::RTM_NEWQDISC, CREATE | EXCLUSIVE, &message).with(TCA_KIND, b"clsact\0");
    match route.change(request) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENODEV) => Err(SteerError::NoDevice(ifindex)),
            Some(libc::ENOENT | libc::EOPNOTSUPP) => Err(SteerError::NoSupport {
                doing: "install the guard",
                lacking: "clsact qdisc (CONFIG_NET_SCH_INGRESS); set `on_crash = kernel` to run without a guard",
            }),
            _ => Err(SteerError::from_network("install the guard", error)),
        },
    }
}

fn refused(doing: &'static str, source: io::Error) -> SteerError {
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::EOPNOTSUPP) => SteerError::NoSupport {
            doing,
            lacking: "cls_bpf classifier (CONFIG_NET_CLS_BPF); set `on_crash = kernel` to run without a guard",
        },
        _ => SteerError::from_network(doing, source),
    }
}

/// The guards' filters on a device; one, unless something went wrong before.
fn filters(route: &mut Route, ifindex: u32) -> Result<Vec<Filter>, SteerError> {
    let messages = all_filters(route, ifindex, INGRESS)?;
    Ok(messages.iter().filter_map(|message| guard_filter(ifindex, message)).collect())
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

/// Reads a filter; `None` when it is not one of ours.
fn guard_filter(ifindex: u32, message: &[u8]) -> Option<Filter> {
    const TCA_BPF_NAME: u16 = 7;
    const TCA_BPF_ID: u16 = 11;
    let handle = netlink::number(message.get(8..)?)?;
    let priority = netlink::number(message.get(16..)?)? >> 16;
    let attributes = message.get(20..)?;
    let options = netlink::find(attributes, TCA_OPTIONS)?;
    let name = netlink::find(options, TCA_BPF_NAME)?;
    let name = str::from_utf8(name.strip_suffix(b"\0")?).ok()?;
    let program = netlink::find(options, TCA_BPF_ID).and_then(netlink::number).unwrap_or(0);
    let ours = name == NAME || name == NAME_WITH_QDISC;
    let priority = u16::try_from(priority).ok()?;
    ours.then(|| Filter { ifindex, handle, priority, name: name.into(), program })
}

/// Removes the guards from a device, and the qdisc if it was made for them and nobody else uses it.
fn remove_from(route: &mut Route, ifindex: u32) -> Result<(), SteerError> {
    let standing = filters(route, ifindex)?;
    for filter in &standing {
        remove_filter(route, filter)?;
    }
    if !standing.iter().any(|filter| filter.name == NAME_WITH_QDISC) {
        return Ok(());
    }
    for parent in [INGRESS, EGRESS] {
        if !all_filters(route, ifindex, parent)?.is_empty() {
            return Ok(());
        }
    }
    remove_qdisc(route, ifindex)
}

fn remove_qdisc(route: &mut Route, ifindex: u32) -> Result<(), SteerError> {
    let message = tc_message(ifindex, CLSACT_HANDLE, CLSACT, 0);
    let request = Request::new(libc::RTM_DELQDISC, 0, &message);
    gone(route.change(request)).map_err(|e| SteerError::from_network("remove the guard's qdisc", e))
}

fn remove_filter(route: &mut Route, filter: &Filter) -> Result<(), SteerError> {
    let message = tc_message(filter.ifindex, filter.handle, INGRESS, information(filter.priority));
    let request = Request::new(libc::RTM_DELTFILTER, 0, &message).with(TCA_KIND, b"bpf\0");
    gone(route.change(request)).map_err(|e| SteerError::from_network("remove the guard", e))
}

/// That a device or filter went by itself is as good.
fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)) => Ok(()),
        other => other,
    }
}

/// How long the guard with this program goes on dropping.
fn remaining(program: u32) -> Option<Duration> {
    let maps = Program::by_id(program).and_then(|program| program.map_ids()).ok()?;
    let deadline = maps.into_iter().find_map(|id| {
        let (map, name) = bpf::map_by_id::<u32, u64>(id).ok()??;
        (name == DEADLINE).then_some(map)
    })?;
    let until = deadline.get(&0).ok()??;
    Some(Duration::from_nanos(until.saturating_sub(monotonic_now())))
}

/// What `bpf_ktime_get_ns` returns now: CLOCK_MONOTONIC in nanoseconds.
fn monotonic_now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::testing::in_namespace;
    use super::*;

    const LOOPBACK: u32 = 1;
    const LONG: Duration = Duration::from_secs(600);

    fn guard() -> Guard {
        Guard::new(&Steering::new().unwrap(), LONG, Guarded::Certain).unwrap()
    }

    fn has_qdisc(route: &mut Route) -> bool {
        let message = tc_message(LOOPBACK, 0, 0, 0);
        let qdiscs = route.dump(Request::new(libc::RTM_GETQDISC, 0, &message)).unwrap();
        qdiscs.iter().any(|m| m[4..8] == LOOPBACK.to_ne_bytes() && m[8..12] == CLSACT_HANDLE.to_ne_bytes())
    }

    fn names(route: &mut Route, parent: u32) -> Vec<(u16, String)> {
        let messages = all_filters(route, LOOPBACK, parent).unwrap();
        let read = |message: &Vec<u8>| {
            let priority = u16::try_from(netlink::number(&message[16..])? >> 16).ok()?;
            let name = netlink::find(netlink::find(&message[20..], TCA_OPTIONS)?, 7)?;
            Some((priority, String::from_utf8_lossy(name).trim_end_matches('\0').to_owned()))
        };
        messages.iter().filter_map(read).collect()
    }

    #[test]
    fn leaves_nothing_behind() {
        in_namespace(|| {
            let mut route = Route::open().unwrap();
            let mut guard = guard();
            assert!(!has_qdisc(&mut route));
            guard.install(LOOPBACK).unwrap();
            guard.install(LOOPBACK).unwrap();
            assert_eq!(names(&mut route, INGRESS), [(1, NAME_WITH_QDISC.to_owned())]);
            guard.remove().unwrap();
            assert!(!has_qdisc(&mut route));
        });
    }

    #[test]
    fn keeps_a_qdisc_that_was_there() {
        in_namespace(|| {
            let mut route = Route::open().unwrap();
            assert!(make_qdisc(&mut route, LOOPBACK).unwrap());
            let mut first = guard();
            first.install(LOOPBACK).unwrap();
            let mut second = guard();
            second.install(LOOPBACK).unwrap();
            assert_eq!(names(&mut route, INGRESS), [(1, NAME.to_owned())]);
            second.remove().unwrap();
            assert!(names(&mut route, INGRESS).is_empty());
            assert!(has_qdisc(&mut route));
        });
    }

    #[test]
    fn keeps_its_qdisc_for_the_filters_of_others() {
        in_namespace(|| {
            let mut route = Route::open().unwrap();
            let mut guard = guard();
            guard.install(LOOPBACK).unwrap();
            let theirs = tc_message(LOOPBACK, 1, EGRESS, information(5));
            put_other(&mut route, &theirs, &guard.program);
            assert_eq!(remove_all().unwrap().len(), 1);
            assert!(names(&mut route, INGRESS).is_empty());
            assert_eq!(names(&mut route, EGRESS), [(5, "theirs".to_owned())]);
        });
    }

    #[test]
    fn stands_before_filters_of_others() {
        in_namespace(|| {
            let mut route = Route::open().unwrap();
            make_qdisc(&mut route, LOOPBACK).unwrap();
            let mut guard = guard();
            let theirs = tc_message(LOOPBACK, 1, INGRESS, information(1));
            put_other(&mut route, &theirs, &guard.program);
            guard.install(LOOPBACK).unwrap();
            assert_eq!(names(&mut route, INGRESS), [(1, NAME.to_owned()), (1, "theirs".to_owned())]);
            guard.remove().unwrap();
            assert_eq!(names(&mut route, INGRESS), [(1, "theirs".to_owned())]);
        });
    }

    #[test]
    fn takes_the_next_priority_from_filters_of_another_protocol() {
        in_namespace(|| {
            let mut route = Route::open().unwrap();
            make_qdisc(&mut route, LOOPBACK).unwrap();
            let mut guard = guard();
            let ipv4_only = 1 << 16 | u32::from(0x0800_u16.to_be());
            put_other(&mut route, &tc_message(LOOPBACK, 1, INGRESS, ipv4_only), &guard.program);
            guard.install(LOOPBACK).unwrap();
            assert_eq!(names(&mut route, INGRESS), [(1, "theirs".to_owned()), (2, NAME.to_owned())]);
        });
    }

    #[test]
    fn removes_duplicates() {
        in_namespace(|| {
            let mut route = Route::open().unwrap();
            let mut guard = guard();
            guard.install(LOOPBACK).unwrap();
            guard.put_filter(&mut route, LOOPBACK, 3, NAME, EXCLUSIVE).unwrap();
            assert_eq!(names(&mut route, INGRESS).len(), 2);
            guard.install(LOOPBACK).unwrap();
            assert_eq!(names(&mut route, INGRESS), [(1, NAME_WITH_QDISC.to_owned())]);
        });
    }

    #[test]
    fn a_device_that_is_gone_is_no_fault_of_a_removal() {
        in_namespace(|| {
            let mut guard = guard();
            assert!(matches!(guard.install(4711), Err(SteerError::NoDevice(4711))));
            guard.devices.push(4711);
            guard.remove().unwrap();
        });
    }

    fn put_other(route: &mut Route, message: &[u8], program: &Program) {
        let fd = program.as_fd().as_raw_fd().cast_unsigned().to_ne_bytes();
        let options = netlink::nested(&[(6, &fd), (7, b"theirs\0"), (8, &1_u32.to_ne_bytes())]);
        let request = Request::new(libc::RTM_NEWTFILTER, CREATE | EXCLUSIVE, message)
            .with(TCA_KIND, b"bpf\0")
            .with(TCA_OPTIONS | netlink::NESTED, &options);
        route.change(request).unwrap();
    }
}
