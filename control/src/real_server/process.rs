//! A process that outlives the command that started it, known by more than its number.

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::time::{Duration, Instant};

/// How long a process may take to end after SIGTERM before it is killed.
const PATIENCE: Duration = Duration::from_secs(5);

/// A process. Its number may be another's by now; its number and the time it was started are its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    pub(super) pid: u32,
    /// Clock ticks from the start of the machine (field 22 of `/proc/PID/stat`).
    started: u64,
}

impl Process {
    /// The running process of this number.
    pub(super) fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (state, started) = parse(&stat)?;
        (!matches!(state, 'Z' | 'X')).then_some(Process { pid, started })
    }

    /// Whether it is still there.
    pub(super) fn is_running(&self) -> bool {
        Process::of(self.pid) == Some(*self)
    }

    /// Asks it to end, kills it when it does not, and waits until it is gone. `false` when it was gone before.
    pub(super) fn end(&self) -> io::Result<bool> {
        if !self.is_running() {
            return Ok(false);
        }
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            match kill(Pid::from_raw(self.pid.cast_signed()), signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(error.into()),
            }
            let end = Instant::now() + PATIENCE;
            while Instant::now() < end {
                if !self.is_running() {
                    return Ok(true);
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, "it does not end, not even by SIGKILL"))
    }
}

/// State and start time in a line of `/proc/PID/stat`; the command's name in it may hold anything.
fn parse(stat: &str) -> Option<(char, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_line_of_proc() {
        let line = "42 (a) b (c)) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 123456 9 9 9";
        assert_eq!(parse(line), Some(('S', 123_456)));
        assert_eq!(parse("42 (a) S 1"), None);
    }

    #[test]
    fn knows_itself_and_not_another_of_its_number() {
        let me = Process::of(std::process::id()).unwrap();
        assert!(me.is_running());
        assert!(!Process { started: me.started + 1, ..me }.is_running());
        assert!(!Process { started: me.started + 1, ..me }.end().unwrap());
    }
}
