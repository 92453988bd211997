//! Which devices a director takes frames from, and which worker runs where.

use super::StartError;
use crate::options::{Interfaces, Workers};
use nix::sched::sched_getaffinity;
use nix::unistd::Pid;
use uvs_engine::link::Device;
use uvs_engine::snapshot::Port;
use uvs_engine::steer::{diversion, way_back};
use uvs_engine::worker::MAX_WORKERS;

/// The devices of this network namespace that a director could be given.
///
/// # Errors
/// When the kernel does not list its devices.
pub fn usable() -> Result<Vec<Device>, StartError> {
    let ours = [way_back::DEVICE_PREFIX, diversion::DEVICE_PREFIX];
    let is_ours = |device: &Device| ours.iter().any(|prefix| device.name.starts_with(prefix));
    Ok(Device::all()?.into_iter().filter(|device| device.up && !is_ours(device)).collect())
}

/// The devices meant by `interfaces`.
pub(super) fn choose(interfaces: &Interfaces) -> Result<Vec<Device>, StartError> {
    let names = match interfaces {
        Interfaces::All => {
            let all = usable()?;
            return if all.is_empty() { Err(StartError::NoDevices) } else { Ok(all) };
        }
        Interfaces::Named(names) if names.is_empty() => return Err(StartError::NoDevices),
        Interfaces::Named(names) => names,
    };
    let mut devices: Vec<Device> = Vec::with_capacity(names.len());
    for name in names {
        let device = Device::open(name)?;
        if !device.up {
            return Err(StartError::Down(device.name));
        }
        if devices.iter().all(|other| other.index != device.index) {
            devices.push(device);
        }
    }
    Ok(devices)
}

/// The devices as the snapshot knows them.
pub(super) fn ports(devices: &[Device]) -> Vec<Port> {
    devices
        .iter()
        .map(|device| Port {
            ifindex: device.index,
            name: device.name.clone(),
            mac: device.mac,
            mtu: device.mtu,
            up: device.up,
            addresses: [None; 2],
            merged: false,
        })
        .collect()
}

/// The processor of each worker, or `None` for one that runs wherever the kernel puts it.
///
/// Without a number given there are as many workers as the device with the most queues has queues, but no more than this
/// process may use processors.
pub(super) fn cores(workers: &Workers, devices: &[Device]) -> Result<Vec<Option<usize>>, StartError> {
    placed(workers, devices, &allowed_cores())
}

fn placed(
    workers: &Workers,
    devices: &[Device],
    allowed: &[usize],
) -> Result<Vec<Option<usize>>, StartError> {
    match workers {
        Workers::Cores(cores) => {
            if let Some(core) = cores.iter().find(|core| !allowed.contains(core)) {
                return Err(StartError::NoSuchCore { core: *core, allowed: listed(allowed) });
            }
            match cores.len() {
                0 => Err(StartError::NoWorkers),
                1..=MAX_WORKERS => Ok(cores.iter().copied().map(Some).collect()),
                count => Err(StartError::TooManyWorkers(count)),
            }
        }
        Workers::Count { count: Some(0), .. } => Err(StartError::NoWorkers),
        Workers::Count { count: Some(count), .. } if *count > MAX_WORKERS => {
            Err(StartError::TooManyWorkers(*count))
        }
        Workers::Count { count, pinned } => {
            let queues = devices.iter().map(|device| device.queues as usize).max().unwrap_or(1);
            let count = count.unwrap_or(queues.min(allowed.len()).clamp(1, MAX_WORKERS));
            if *pinned && count > allowed.len() {
                tracing::warn!(
                    "{count} workers share {} processors: they are not pinned (one worker a processor is best)",
                    allowed.len()
                );
            }
            let pin = *pinned && count <= allowed.len();
            Ok((0..count).map(|n| if pin { allowed.get(n).copied() } else { None }).collect())
        }
    }
}

/// The processors this process may run on.
fn allowed_cores() -> Vec<usize> {
    let fallback = || (0..std::thread::available_parallelism().map_or(1, usize::from)).collect();
    match sched_getaffinity(Pid::from_raw(0)) {
        Ok(set) => {
            (0..nix::sched::CpuSet::count()).filter(|core| set.is_set(*core).unwrap_or(false)).collect()
        }
        Err(_) => fallback(),
    }
}

fn listed(cores: &[usize]) -> String {
    cores.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(queues: u32) -> Device {
        Device { name: "eth0".into(), index: 2, mac: [2, 0, 0, 0, 0, 1], mtu: 1500, queues, up: true }
    }

    #[test]
    fn as_many_workers_as_queues_or_processors() {
        let count = |workers: &Workers, queues| cores(workers, &[device(queues), device(1)]).unwrap().len();
        let default = Workers::default();
        assert_eq!(count(&default, 1), 1);
        assert_eq!(count(&default, 4096), allowed_cores().len().min(MAX_WORKERS));
        assert_eq!(count(&Workers::Count { count: Some(3), pinned: false }, 1), 3);
    }

    #[test]
    fn cores_that_are_not_there_are_named() {
        let error = cores(&Workers::Cores(vec![0, 100_000]), &[device(1)]).unwrap_err().to_string();
        assert!(error.contains("100000"), "{error}");
        assert!(cores(&Workers::Count { count: Some(0), pinned: true }, &[]).is_err());
    }

    #[test]
    fn more_workers_than_there_can_be_are_refused() {
        let allowed: Vec<_> = (0..MAX_WORKERS + 1).collect();
        let counted = |count| Workers::Count { count: Some(count), pinned: true };
        for (workers, expected) in [
            (Workers::Cores(allowed.clone()), None),
            (Workers::Cores(allowed[1..].to_vec()), Some(MAX_WORKERS)),
            (Workers::Cores(Vec::new()), None),
            (counted(MAX_WORKERS + 1), None),
            (counted(MAX_WORKERS), Some(MAX_WORKERS)),
        ] {
            let placed = placed(&workers, &[device(1)], &allowed).map(|cores| cores.len()).ok();
            assert_eq!(placed, expected, "{workers:?}");
        }
    }
}
