//! A network namespace with a name, as `ip netns` knows them.

use crate::{Error, Result, Rtnl, Veth, cleanup, wait};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Where names of network namespaces are kept, by iproute2's convention.
pub const DIRECTORY: &str = "/run/netns";

/// How long a device may take to become usable.
const READY: Duration = Duration::from_secs(10);

/// A network namespace. Dropping it removes the name; the namespace ends with the last process or socket in it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    file: File,
    rtnl: Mutex<Rtnl>,
    stays: bool,
}

impl Namespace {
    /// Makes the namespace `name`: loopback up, IPv6 addresses usable at once, no router solicitations, ICMP echo
    /// sockets for everybody.
    pub fn create(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let mut living = cleanup::living();
        prepare_directory()?;
        let path = Path::new(DIRECTORY).join(&name);
        match File::create_new(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Error::Exists(format!("the network namespace {name}")));
            }
            other => other.map_err(Error::when(format!("create {}", path.display())))?,
        };
        living.namespaces.insert(name.clone());
        let (file, rtnl) = on_own_thread("namespace", || unshare_onto(&path)).inspect_err(|_| {
            living.namespaces.remove(&name);
            cleanup::remove(&name);
        })?;
        drop(living);
        let namespace = Namespace { name, file, rtnl: Mutex::new(rtnl), stays: false };
        namespace.settle_down()?;
        Ok(namespace)
    }

    fn settle_down(&self) -> Result<()> {
        if has_ipv6() {
            for scope in ["all", "default"] {
                self.sysctl(&format!("net/ipv6/conf/{scope}/accept_dad"), "0")?;
                self.sysctl(&format!("net/ipv6/conf/{scope}/router_solicitations"), "0")?;
            }
        }
        self.sysctl("net/ipv4/ping_group_range", "0 2147483647")?;
        self.net().up("lo")
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.name)
    }

    /// A descriptor of it.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Its devices, addresses and routes.
    pub fn net(&self) -> MutexGuard<'_, Rtnl> {
        self.rtnl.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` inside and returns what it returns. Sockets it opens stay inside whoever uses them afterwards.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> Result<R> {
        on_own_thread("inside", || {
            self.enter()?;
            Ok(work())
        })
    }

    /// Starts a thread inside.
    pub fn spawn<R: Send + 'static>(
        &self,
        thread: &str,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> Result<JoinHandle<Result<R>>> {
        let file = self.file.try_clone().map_err(Error::when("copy a descriptor"))?;
        std::thread::Builder::new()
            .name(thread.into())
            .spawn(move || {
                enter(&file)?;
                Ok(work())
            })
            .map_err(Error::when(format!("start the thread {thread}")))
    }

    /// Starts a process inside. /sys and the mounts are the caller's.
    pub fn start(&self, command: &mut Command) -> Result<Child> {
        let what = format!("start {}", command.get_program().display());
        self.run(|| command.spawn())?.map_err(Error::when(what))
    }

    /// Starts a process in the namespace at `path`.
    pub(crate) fn start_in(path: &Path, command: &mut Command) -> Result<Child> {
        let what = format!("start {}", command.get_program().display());
        let file = File::open(path).map_err(Error::when(format!("open {}", path.display())))?;
        on_own_thread("namespace", || {
            enter(&file)?;
            command.spawn().map_err(Error::when(what))
        })
    }

    /// Sets a sysctl, named with slashes: `net/ipv4/ip_forward`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key);
        self.run(|| fs::write(&path, value))?.map_err(Error::when(format!("set {key} to {value}")))
    }

    /// Waits until these devices are up, have a carrier and all their addresses may be used.
    pub fn wait_ready(&self, devices: &[&str]) -> Result<()> {
        devices.iter().try_for_each(|device| {
            wait::until(&format!("{device} in {} to be ready", self.name), READY, || {
                self.net().is_ready(device).unwrap_or(false)
            })
        })
    }

    /// Leaves the namespace and its name standing when this value, and this process, are gone.
    pub fn keep(mut self) {
        cleanup::living().namespaces.remove(&self.name);
        self.stays = true;
    }

    fn enter(&self) -> Result<()> {
        enter(&self.file)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if !self.stays {
            let mut living = cleanup::living();
            cleanup::remove(&self.name);
            living.namespaces.remove(&self.name);
        }
    }
}

fn enter(file: &File) -> Result<()> {
    setns(file, CloneFlags::CLONE_NEWNET).map_err(Error::when("enter a network namespace"))
}

/// Runs `work` on a thread that ends with it: its namespace is nobody else's concern.
fn on_own_thread<R: Send>(name: &str, work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn_scoped(scope, work)
            .map_err(Error::when("start a thread"))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Puts the calling thread into a new namespace and mounts that onto `path`.
fn unshare_onto(path: &Path) -> Result<(File, Rtnl)> {
    match unshare(CloneFlags::CLONE_NEWNET) {
        Err(Errno::EPERM) => return Err(Error::Privilege),
        other => other.map_err(Error::when("make a network namespace"))?,
    }
    let own = "/proc/thread-self/ns/net";
    mount(Some(own), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(Error::when(format!("mount a network namespace onto {}", path.display())))?;
    let file = File::open(path).map_err(Error::when(format!("open {}", path.display())))?;
    Ok((file, Rtnl::open()?))
}

/// As `ip netns` does it: the directory is a mount of its own whose changes reach every mount namespace, so that a name
/// removed here pins nothing elsewhere.
fn prepare_directory() -> Result<()> {
    let denied = |error: io::Error| match error.kind() {
        io::ErrorKind::PermissionDenied => Error::Privilege,
        _ => Error::System { what: format!("prepare {DIRECTORY}"), source: error },
    };
    fs::create_dir_all(DIRECTORY).map_err(denied)?;
    let share =
        || mount(None::<&str>, DIRECTORY, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>);
    match share() {
        Err(Errno::EINVAL) => {}
        other => return other.map_err(|errno| denied(errno.into())),
    }
    mount(Some(DIRECTORY), DIRECTORY, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .and_then(|()| share())
        .map_err(|errno| denied(errno.into()))
}

/// Whether this kernel has IPv6. Without it labs are IPv4 only.
pub fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

/// Why this process cannot build a lab on this machine, if so: it lacks the privilege, or the kernel lacks veth.
pub fn obstacle() -> Option<Error> {
    let pair = || {
        let pid = std::process::id();
        let (here, there) =
            (Namespace::create(format!("uvs-{pid}-try-a"))?, Namespace::create(format!("uvs-{pid}-try-b"))?);
        let end = |name| Veth { name, queues: 1, mtu: 1500 };
        here.net().add_veth(end("a"), end("b"), there.fd())
    };
    pair().err().filter(|error| matches!(error, Error::Privilege | Error::NoSuchKind(_)))
}
