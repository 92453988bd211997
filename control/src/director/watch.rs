//! The control thread: it follows the kernel and the workers, and looks after what needs looking after.

use super::SharedRegistry;
use super::defence;
use super::kernel::Kernel;
use super::rates::PERIOD;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};
use uvs_engine::Config;
use uvs_engine::worker::{Notice, Notices, Running};

/// How often the guard's deadline is moved, at least.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// Why the control thread stopped watching.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// By a signal.
    Asked,
    /// No device is left.
    DevicesGone,
    /// A worker's thread ended.
    WorkerDied,
}

impl End {
    /// Whether connections are to be kept from the kernel until the next start, as the guard does when the process dies.
    pub(super) fn is_crash(self) -> bool {
        match self {
            End::WorkerDied => true,
            End::Asked | End::DevicesGone => false,
        }
    }
}

/// Becomes readable when this process is asked to end, or its terminal is closed. Started by `nohup` it does not end with
/// its terminal.
pub(super) fn signals() -> io::Result<UnixStream> {
    let (read, write) = UnixStream::pair()?;
    let hang_up = (!is_ignored(SIGHUP)).then_some(SIGHUP);
    for signal in [SIGTERM, SIGINT, SIGQUIT].into_iter().chain(hang_up) {
        signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
    }
    Ok(read)
}

/// Whether whoever started this process had it ignore `signal` (proc_pid_status(5), SigIgn).
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// What the control thread looks at and acts on.
pub(super) struct Watch {
    pub(super) config: Arc<Config>,
    pub(super) kernel: Kernel,
    pub(super) news: OwnedFd,
    pub(super) notices: Arc<Notices>,
    pub(super) registry: SharedRegistry,
    pub(super) running: Arc<Running>,
}

impl Watch {
    /// Watches until there is a reason to end.
    pub(super) fn run(&self, signals: &UnixStream) -> End {
        let (mut beat, mut estimate) = (Instant::now(), Instant::now() + PERIOD);
        let mut defend = Instant::now() + defence::PERIOD;
        loop {
            if self.wait(signals, beat.min(estimate).min(defend)) {
                return End::Asked;
            }
            self.hear();
            let changes = self.kernel.look();
            if changes.addresses {
                let local = self.kernel.local_addresses();
                super::lock(&self.registry).plane_mut().set_local(local);
            }
            if changes.addresses || changes.routes {
                super::lock(&self.registry).plane_mut().refresh_sources();
            }
            if changes.next_hops && self.running.tallies().any(|(tally, _)| tally.holding() > 0) {
                self.running.wake();
            }
            let now = Instant::now();
            if now >= beat {
                beat = now + HEARTBEAT;
                super::lock(&self.registry).plane_mut().keep_guard();
                if !self.running.is_whole() {
                    return End::WorkerDied;
                }
                if !self.kernel.has_devices() {
                    return End::DevicesGone;
                }
            }
            if now >= defend {
                defend = now + defence::PERIOD;
                super::lock(&self.registry).plane_mut().defend(super::now());
            }
            if now >= estimate {
                estimate = now + PERIOD;
                super::lock(&self.registry).plane_mut().look_after(super::now());
            }
        }
    }

    /// Waits until there is something to look at or `until`. Whether this process is asked to end.
    fn wait(&self, signals: &UnixStream, until: Instant) -> bool {
        let wait = until.min(self.kernel.due()).saturating_duration_since(Instant::now());
        let limit = PollTimeout::try_from(wait + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        let mut fds = [
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.news.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.notices.as_fd(), PollFlags::POLLIN),
        ];
        // Interrupted or not, it is time to look around.
        let _woken = poll(&mut fds, limit);
        fds[0].any().unwrap_or(false)
    }

    /// Hears what the workers say.
    fn hear(&self) {
        while let Some(notice) = self.notices.next() {
            match notice {
                Notice::Unresolved(neighbour) => self.kernel.resolve(neighbour),
                Notice::DeviceGone(port) => {
                    let snapshot = self.config.load();
                    let name = snapshot.ports.get(usize::from(port.0)).map_or("a device", |port| &port.name);
                    tracing::error!("{name} is gone: its queues are closed, the other devices go on");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guard_stays_after_a_fault_only() {
        for (end, stays) in [(End::Asked, false), (End::DevicesGone, false), (End::WorkerDied, true)] {
            assert_eq!(end.is_crash(), stays, "{end:?}");
        }
    }
}
