//! Nothing stays behind: what this process made and what dead ones left.
//!
//! A namespace carries its maker's process id in its name (`uvs-<pid>-<number>-client`), so that one whose maker is dead is
//! known to be stale. Names without a number after `uvs-` were made to stay and are removed only when asked for.

use crate::namespace::DIRECTORY;
use crate::{Error, Namespace, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What has to be undone should this process end early.
#[derive(Debug)]
pub(crate) struct Living {
    pub(crate) namespaces: BTreeSet<String>,
    pub(crate) children: BTreeSet<i32>,
    undoings: BTreeMap<u64, Undoing>,
    /// Undoings so far.
    undone: u64,
}

static LIVING: Mutex<Living> = Mutex::new(Living {
    namespaces: BTreeSet::new(),
    children: BTreeSet::new(),
    undoings: BTreeMap::new(),
    undone: 0,
});

/// A command and the namespace that it is run in.
#[derive(Debug)]
struct Undoing {
    namespace: PathBuf,
    command: Vec<OsString>,
}

impl Undoing {
    /// Runs it to its end, unheard.
    fn run(&self) {
        let Some((program, arguments)) = self.command.split_first() else { return };
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = Namespace::start_in(&self.namespace, &mut command);
        let _nothing_more_to_do = child.map(|mut child| child.wait());
    }
}

/// A command that undoes what others have done in a namespace: processes in the background, notes about them. It runs when
/// this is dropped, and when a signal ends this process.
#[derive(Debug)]
pub struct Undo {
    number: u64,
}

impl Undo {
    /// Has `command`, a program and its arguments, run in the namespace called `name`.
    pub fn new(name: &str, command: Vec<OsString>) -> Self {
        let mut living = living();
        let number = living.undone;
        living.undone += 1;
        living.undoings.insert(number, Undoing { namespace: Path::new(DIRECTORY).join(name), command });
        Undo { number }
    }

    /// Leaves everything as it is when this process is gone.
    pub fn keep(self) {
        living().undoings.remove(&self.number);
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        let undoing = living().undoings.remove(&self.number);
        if let Some(undoing) = undoing {
            undoing.run();
        }
    }
}

/// Whoever makes or removes a namespace or a child holds this, so that an end by signal finds the list complete.
pub(crate) fn living() -> MutexGuard<'static, Living> {
    LIVING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on SIGINT, SIGTERM, SIGQUIT and SIGHUP end this process with status 128 + signal, after its children were killed, what
/// is to be undone was undone, its namespaces were removed and `farewell` was said on stderr.
pub fn end_on_signals(farewell: &'static str) -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGQUIT, SIGHUP])
        .map_err(Error::when("catch the signals that end it"))?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            if let Some(signal) = signals.forever().next() {
                let everything = living();
                for child in &everything.children {
                    let _gone_already = kill(Pid::from_raw(*child), Signal::SIGKILL);
                }
                everything.undoings.values().for_each(Undoing::run);
                for namespace in &everything.namespaces {
                    remove(namespace);
                }
                // The terminal may be what is gone.
                let _nobody_listens = writeln!(std::io::stderr(), "{farewell}");
                std::process::exit(128 + signal);
            }
        })
        .map_err(Error::when("start the thread that waits for signals"))?;
    Ok(())
}

/// Removes the namespaces of dead processes, and ends what still runs in them. Returns how many there were.
pub fn remove_stale() -> usize {
    let stale: Vec<String> = names().into_iter().filter(|name| maker(name).is_some_and(is_dead)).collect();
    stale.iter().for_each(|name| end_and_remove(name));
    stale.len()
}

/// Removes the namespaces whose names begin with `prefix`, and ends what runs in them. Returns how many there were.
pub fn remove_named(prefix: &str) -> usize {
    let wanted: Vec<String> = names().into_iter().filter(|name| name.starts_with(prefix)).collect();
    wanted.iter().for_each(|name| end_and_remove(name));
    wanted.len()
}

/// The names of all namespaces that have one.
pub fn names() -> Vec<String> {
    let Ok(entries) = fs::read_dir(DIRECTORY) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Takes the name `name` away. The namespace itself ends with its last process and socket.
pub(crate) fn remove(name: &str) {
    let path = Path::new(DIRECTORY).join(name);
    let _was_not_mounted = nix::mount::umount2(&path, nix::mount::MntFlags::MNT_DETACH);
    let _was_gone = fs::remove_file(&path);
}

/// The process that made the namespace `uvs-<pid>-…`.
fn maker(name: &str) -> Option<i32> {
    name.strip_prefix("uvs-")?.split('-').next()?.parse().ok()
}

fn is_dead(pid: i32) -> bool {
    pid > 0 && !Path::new(&format!("/proc/{pid}")).exists()
}

fn end_and_remove(name: &str) {
    for (signal, patience) in
        [(Signal::SIGTERM, Duration::from_secs(2)), (Signal::SIGKILL, Duration::from_secs(2))]
    {
        inhabitants(name).into_iter().for_each(|pid| {
            let _gone_already = kill(Pid::from_raw(pid), signal);
        });
        if crate::wait::until("the processes in it to end", patience, || inhabitants(name).is_empty()).is_ok()
        {
            break;
        }
    }
    remove(name);
}

/// The processes that run in the namespace `name`.
fn inhabitants(name: &str) -> Vec<i32> {
    let inode = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    let Some(wanted) = inode(&Path::new(DIRECTORY).join(name)) else { return Vec::new() };
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| inode(Path::new(&format!("/proc/{pid}/ns/net"))) == Some(wanted))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_maker_is_told_by_the_name() {
        for (name, expected) in [
            ("uvs-123-0-client", Some(123)),
            ("uvs-demo-client", None),
            ("other-123-0-client", None),
            ("uvs-", None),
        ] {
            assert_eq!(maker(name), expected, "{name}");
        }
    }

    #[test]
    fn this_process_lives_and_none_has_the_greatest_id() {
        assert!(!is_dead(i32::try_from(std::process::id()).unwrap()));
        assert!(is_dead(i32::MAX));
    }
}
