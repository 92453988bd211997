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
//! The filter is found again by its name, which says whether the qdisc it hangs on was made for it.

use super::bpf::{self, Map, MapKind, Program, ProgramKind};
use super::error::SteerError;
use super::filter::{self, Duty};
use super::{Steering, program};
use nix::time::{ClockId, clock_gettime};
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

/// The guard's filter.
pub(super) const DUTY: Duty = Duty {
    parent: filter::INGRESS,
    name: "uvs-guard",
    name_with_qdisc: "uvs-guard+clsact",
    install: "install the guard",
    remove: "remove the guard",
    lacking: [
        "clsact qdisc (CONFIG_NET_SCH_INGRESS); set `on_crash = kernel` to run without a guard",
        "cls_bpf classifier (CONFIG_NET_CLS_BPF); set `on_crash = kernel` to run without a guard",
    ],
};

/// The name of the map that holds the deadline.
const DEADLINE: &str = "uvs_deadline";

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
        filter::install(&DUTY, ifindex, &self.program)?;
        if !self.devices.contains(&ifindex) {
            self.devices.push(ifindex);
        }
        Ok(())
    }

    /// Lets the guard drop for `timeout` from now. The live process calls this more often than that.
    pub fn refresh(&self, timeout: Duration) -> Result<(), SteerError> {
        self.deadline
            .insert(&0, &deadline_after(timeout))
            .map_err(|source| SteerError::os("refresh the guard", source))
    }

    /// Takes the guard away from every device it was installed on: the kernel has all frames again.
    pub fn remove(self) -> Result<(), SteerError> {
        // What it still stands on must not go on dropping, whatever fails below.
        self.refresh(Duration::ZERO)?;
        self.devices.iter().try_for_each(|&ifindex| filter::remove(&DUTY, ifindex))
    }

    /// Whether the guard would drop a frame that came now. Frames are of an Ethernet header (14 bytes) at least.
    pub fn drops(&self, frame: &[u8]) -> io::Result<bool> {
        Ok(self.program.test_run(frame)? == program::TC_DROP)
    }

    #[cfg(test)]
    pub(super) fn program(&self) -> &Program {
        &self.program
    }
}

/// Removes every guard of this network namespace, of whatever process, and returns where they stood.
pub fn remove_all() -> Result<Vec<Standing>, SteerError> {
    let standing = status()?;
    standing.iter().try_for_each(|guard| filter::remove(&DUTY, guard.ifindex))?;
    Ok(standing)
}

/// The guards that stand in this network namespace.
pub fn status() -> Result<Vec<Standing>, SteerError> {
    let standing = |(ifindex, device, filter): (u32, String, filter::Filter)| Standing {
        ifindex,
        device,
        remaining: remaining(filter.program),
    };
    Ok(filter::standing(&DUTY)?.into_iter().map(standing).collect())
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

/// What `bpf_ktime_get_ns` returns once `timeout` has passed.
pub(super) fn deadline_after(timeout: Duration) -> u64 {
    let nanoseconds = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
    monotonic_now().saturating_add(nanoseconds)
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

    #[test]
    fn a_device_that_is_gone_is_no_fault_of_a_removal() {
        in_namespace(|| {
            let steering = Steering::new().unwrap();
            let mut guard = Guard::new(&steering, Duration::from_secs(600), Guarded::Certain).unwrap();
            assert!(matches!(guard.install(4711), Err(SteerError::NoDevice(4711))));
            guard.devices.push(4711);
            guard.remove().unwrap();
        });
    }
}
