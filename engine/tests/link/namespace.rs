//! Network namespaces without names: they exist while a descriptor or a thread holds them, so nothing is left behind.

use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::os::fd::AsFd;
use std::thread;
use uvs_lab::{Error, Rtnl, Veth};

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
        namespace.net(|net| net.up("lo"));
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

    /// Changes the namespace's devices and addresses.
    pub(crate) fn net<T: Send>(&self, change: impl FnOnce(&mut Rtnl) -> Result<T, Error> + Send) -> T {
        self.run(|| Rtnl::open().and_then(|mut net| change(&mut net)).unwrap())
    }

    /// A veth pair between here and `other`, up on both ends, with `queues` receive queues here.
    pub(crate) fn veth(&self, name: &str, queues: u32, mtu: u32, other: &Namespace, peer: &str) {
        let end = |name| Veth { name, queues, mtu };
        self.net(|net| {
            net.add_veth(end(name), end(peer), other.file.as_fd())?;
            net.up(name)
        });
        other.net(|net| net.up(peer));
    }
}
