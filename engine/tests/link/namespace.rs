//! Network namespaces without names: they exist while a descriptor or a thread holds them, so nothing is left behind.

use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::thread;

/// A network namespace.
#[derive(Debug)]
pub(crate) struct Namespace {
    file: File,
}

impl Namespace {
    /// A new one, its loopback up and IPv6 off (so that nothing is sent unasked).
    pub(crate) fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace needs CAP_SYS_ADMIN");
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        let file = thread::scope(|scope| scope.spawn(make).join().unwrap());
        let namespace = Namespace { file };
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs `work` on a thread within the namespace.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| self.spawn(scope, work).join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
    }

    /// Starts a thread within the namespace.
    pub(crate) fn spawn<'scope, T: Send + 'scope>(
        &'scope self,
        scope: &'scope thread::Scope<'scope, '_>,
        work: impl FnOnce() -> T + Send + 'scope,
    ) -> thread::ScopedJoinHandle<'scope, T> {
        scope.spawn(move || {
            setns(&self.file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }

    /// Runs `ip` with these words.
    pub(crate) fn ip(&self, words: &str) {
        let output = self.run(|| Command::new("ip").args(words.split(' ')).output().unwrap());
        assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// How `ip` finds the namespace.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// A veth pair between here and `other`, up on both ends, with `queues` receive queues here.
    pub(crate) fn veth(&self, name: &str, queues: u32, mtu: u32, other: &Namespace, peer: &str) {
        let there = other.path();
        self.ip(&format!(
            "link add {name} mtu {mtu} numrxqueues {queues} numtxqueues {queues} type veth \
peer name {peer} mtu {mtu} numrxqueues {queues} numtxqueues {queues} netns {there}"
        ));
        self.ip(&format!("link set {name} up"));
        other.ip(&format!("link set {peer} up"));
    }
}
