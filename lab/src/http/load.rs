//! Many requests at once, each answer checked and timed.

use super::client::{Answer, Connection};
use crate::{Error, Namespace, Result};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A client's thread only copies bytes.
const STACK: usize = 256 * 1024;

/// What to ask for, how often, and how.
#[derive(Clone, Debug)]
pub struct Load {
    /// Where to.
    pub target: SocketAddr,
    /// What to get.
    pub path: String,
    /// Requests altogether.
    pub requests: usize,
    /// Clients at work at the same time; each asks again when it has its answer.
    pub clients: usize,
    /// Whether a client keeps its connection for its next request.
    pub keep_alive: bool,
    /// Whether all clients first connect and only then ask, each as often as the others, so that their connections are open
    /// at the same time.
    pub together: bool,
    /// How long one connect, read or write may take.
    pub limit: Duration,
}

impl Load {
    /// `requests` of `/` by one client, on new connections.
    pub fn new(target: SocketAddr, requests: usize) -> Self {
        Load {
            target,
            path: "/".into(),
            requests,
            clients: 1,
            keep_alive: false,
            together: false,
            limit: Duration::from_secs(10),
        }
    }

    /// Runs it from `namespace`.
    pub fn run(&self, namespace: &Namespace) -> Result<Report> {
        self.run_until(namespace, &AtomicBool::new(false))
    }

    /// Runs it from `namespace` until all requests are made or `stop` is set.
    pub fn run_until(&self, namespace: &Namespace, stop: &AtomicBool) -> Result<Report> {
        namespace.run(|| self.run_here(stop))?
    }

    fn run_here(&self, stop: &AtomicBool) -> Result<Report> {
        let (next, gathered, begin) = (AtomicUsize::new(0), Gate::default(), Instant::now());
        let mut report = Report::default();
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..self.clients)
                .map(|_| {
                    std::thread::Builder::new()
                        .stack_size(STACK)
                        .spawn_scoped(scope, || self.client(&next, &gathered, stop))
                })
                .collect();
            for client in clients {
                let part = client.map_err(Error::when("start a client's thread"))?;
                report.add(part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
            Ok(())
        })?;
        report.elapsed = begin.elapsed();
        Ok(report)
    }

    fn client(&self, next: &AtomicUsize, gathered: &Gate, stop: &AtomicBool) -> Report {
        let mut report = Report::default();
        let mut connection = None;
        if self.together {
            connection = report.note(Connection::open_here(self.target, self.limit));
            gathered.pass(self.clients, self.limit);
        }
        let share = if self.together { self.requests / self.clients } else { usize::MAX };
        for _ in 0..share {
            if stop.load(Relaxed) || next.fetch_add(1, Relaxed) >= self.requests {
                break;
            }
            let begin = Instant::now();
            let answer = self.request(&mut connection);
            let latency = begin.elapsed();
            if let Some(answer) = report.note(answer) {
                report.faults.extend(answer.fault(&self.path));
                report.samples.push(Sample { server: answer.server, latency });
            }
        }
        report
    }

    fn request(&self, kept: &mut Option<Connection>) -> Result<Answer> {
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => Connection::open_here(self.target, self.limit)?,
        };
        let answer = connection.get(&self.path)?;
        if self.keep_alive {
            *kept = Some(connection);
        }
        Ok(answer)
    }
}

/// Opens when everybody has arrived, or too late for the last.
#[derive(Default)]
struct Gate {
    arrived: Mutex<usize>,
    changed: Condvar,
}

impl Gate {
    fn pass(&self, everybody: usize, limit: Duration) {
        let mut arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        *arrived += 1;
        if *arrived == everybody {
            self.changed.notify_all();
        }
        drop(self.changed.wait_timeout_while(arrived, limit, |arrived| *arrived < everybody));
    }
}

/// One answered request.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The server that answered.
    pub server: String,
    /// From before the connect (when there was one) to the end of the answer.
    pub latency: Duration,
}

/// What came of a [`Load`].
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The answers.
    pub samples: Vec<Sample>,
    /// Wrong answers and failed requests, each in one sentence.
    pub faults: Vec<String>,
    /// How long it all took.
    pub elapsed: Duration,
}

impl Report {
    /// Answers by server.
    pub fn shares(&self) -> BTreeMap<&str, usize> {
        let mut shares = BTreeMap::new();
        for sample in &self.samples {
            *shares.entry(sample.server.as_str()).or_default() += 1;
        }
        shares
    }

    /// The latency that `percent` of the requests did not exceed (nearest rank); zero without requests.
    pub fn percentile(&self, percent: f64) -> Duration {
        let mut latencies: Vec<_> = self.samples.iter().map(|sample| sample.latency).collect();
        latencies.sort_unstable();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rank among few samples"
        )]
        let rank = (percent / 100.0 * latencies.len() as f64).ceil() as usize;
        latencies.get(rank.clamp(1, latencies.len().max(1)) - 1).copied().unwrap_or_default()
    }

    /// Requests answered in a second.
    pub fn rate(&self) -> f64 {
        self.samples.len() as f64 / self.elapsed.as_secs_f64().max(f64::EPSILON)
    }

    fn add(&mut self, other: Report) {
        self.samples.extend(other.samples);
        self.faults.extend(other.faults);
    }

    fn note<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.faults.push(error.to_string())).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let sample = |ms| Sample { server: "rs1".into(), latency: Duration::from_millis(ms) };
        let report = Report { samples: (1..=10).rev().map(sample).collect(), ..Report::default() };
        for (percent, expected) in [(0.0, 1), (10.0, 1), (50.0, 5), (51.0, 6), (99.0, 10), (100.0, 10)] {
            assert_eq!(report.percentile(percent), Duration::from_millis(expected), "{percent} %");
        }
        assert_eq!(Report::default().percentile(50.0), Duration::ZERO);
    }
}
