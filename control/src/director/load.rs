//! How much of the time each worker ran, from the kernel's account of its thread.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

/// Processor time of the workers, sampled every few seconds.
#[derive(Debug, Default)]
pub(super) struct Load {
    sampled: Option<Instant>,
    workers: HashMap<u32, Worker>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Worker {
    ran: Duration,
    share: f32,
}

impl Load {
    /// Takes a sample.
    pub(super) fn sample(&mut self) {
        let now = Instant::now();
        let period = self.sampled.replace(now).map(|before| now.saturating_duration_since(before));
        for (id, ran) in workers() {
            let worker = self.workers.entry(id).or_default();
            if let Some(period) = period.filter(|period| !period.is_zero()) {
                worker.share = ran.saturating_sub(worker.ran).div_duration_f32(period).min(1.0);
            }
            worker.ran = ran;
        }
    }

    /// The part of the time between the last two samples that a worker was not asleep, 0 to 1.
    pub(super) fn of(&self, worker: u32) -> f32 {
        self.workers.get(&worker).map_or(0.0, |worker| worker.share)
    }
}

/// Workers by number, with the time their threads ran. They are known by the names that [`uvs_engine::worker`] gives
/// them.
fn workers() -> Vec<(u32, Duration)> {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    threads
        .filter_map(|thread| {
            let name = fs::read_to_string(thread.path().join("comm")).ok()?;
            let id = name.trim_end().strip_prefix("uvs-worker-")?.parse().ok()?;
            // The first number is nanoseconds on a processor (Documentation/scheduler/sched-stats.rst).
            let account = fs::read_to_string(thread.path().join("schedstat")).ok()?;
            let nanoseconds = account.split(' ').next()?.parse().ok()?;
            Some((id, Duration::from_nanos(nanoseconds)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_works_is_seen_to_work() {
        let (send, done) = std::sync::mpsc::channel::<()>();
        let worker = std::thread::Builder::new().name("uvs-worker-977".into()).spawn(move || {
            while done.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                std::hint::spin_loop();
            }
        });
        let mut load = Load::default();
        load.sample();
        let end = Instant::now() + Duration::from_secs(10);
        while load.of(977) == 0.0 {
            assert!(Instant::now() < end, "this kernel tells no thread's time: CONFIG_SCHED_INFO is needed");
            std::thread::yield_now();
            load.sample();
        }
        assert!(load.of(977) <= 1.0);
        assert!(load.of(978) == 0.0);
        drop(send);
        worker.unwrap().join().unwrap();
    }
}
