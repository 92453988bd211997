//! A director under test, and the world around it.

use crate::harness::{Outcome, check};
use libtest_mimic::Failed;
use nix::sys::signal::Signal;
use std::ffi::OsStr;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;
use uvs::control::api::{Request, Response, Status};
use uvs::control::client::Client;
use uvs::control::options::SocketPlace;
use uvs_lab::http::{Load, Server};
use uvs_lab::{Arms, Namespace, Plan, Prefix, Process, Topology, wait};

/// The binary under test.
pub(crate) const UVS: &str = env!("CARGO_BIN_EXE_uvs");

/// How long anything that should happen may take on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// A family to ask a topology's addresses of.
pub(crate) const V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
/// The other one.
pub(crate) const V6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// A local address for full NAT that no host has: the real servers send what is for it to their gateway.
pub(crate) fn local(like: IpAddr) -> IpAddr {
    if like.is_ipv4() {
        IpAddr::from([10, 9, 8, 7])
    } else {
        IpAddr::from([0x2001, 0xdb8, 0x999, 0, 0, 0, 0, 7])
    }
}

/// A running `uvs run`. Dropping it ends it.
pub(crate) struct Director {
    process: Process,
}

impl Director {
    /// Starts one on all devices of the topology's director, with one unpinned worker unless `arguments` say otherwise, and
    /// waits until it is ready.
    pub(crate) fn start(topology: &Topology, arguments: &[&str]) -> Result<Self, Failed> {
        let devices = topology.director_devices();
        let mut all: Vec<&str> = devices.iter().flat_map(|device| ["--interface", device]).collect();
        if !arguments.contains(&"--workers") {
            all.extend(["--workers", "1"]);
        }
        all.extend(arguments);
        Director::start_with(topology, &all)
    }

    /// Starts one with exactly these arguments, unpinned, and waits until it is ready.
    pub(crate) fn start_with(topology: &Topology, arguments: &[&str]) -> Result<Self, Failed> {
        Director::start_as(topology, &["--unpinned"], arguments)
    }

    /// The same on cores of its own where `arguments` name some.
    pub(crate) fn start_pinned(topology: &Topology, arguments: &[&str]) -> Result<Self, Failed> {
        Director::start_as(topology, &[], arguments)
    }

    fn start_as(topology: &Topology, first: &[&str], arguments: &[&str]) -> Result<Self, Failed> {
        let mut command = Command::new(UVS);
        command.arg("run").args(first).args(arguments);
        let mut process = Process::start(&topology.director, &mut command)?;
        process.wait_for_line("ready", LIMIT)?;
        Ok(Director { process })
    }

    /// The cores that each of its workers may run on, as the kernel writes them.
    pub(crate) fn cores_of_workers(&self) -> Result<Vec<String>, Failed> {
        let mut cores = Vec::new();
        for thread in std::fs::read_dir(format!("/proc/{}/task", self.process.id()))? {
            let path = thread?.path();
            if std::fs::read_to_string(path.join("comm"))?.starts_with("uvs-worker") {
                let status = std::fs::read_to_string(path.join("status"))?;
                let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
                cores.push(allowed.unwrap_or_default().trim().to_owned());
            }
        }
        cores.sort();
        Ok(cores)
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        self.process.stderr()
    }

    /// Whether it still runs.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.process.try_status().is_none()
    }

    /// Kills it as kill -9 does.
    pub(crate) fn kill(&mut self) -> Outcome {
        Ok(self.process.kill().map(drop)?)
    }

    /// Sends it a signal.
    pub(crate) fn signal(&mut self, signal: Signal) -> Outcome {
        Ok(self.process.signal(signal)?)
    }

    /// Ends it as an init system does, and returns its exit code.
    pub(crate) fn terminate(&mut self) -> Result<Option<i32>, Failed> {
        self.process.signal(Signal::SIGTERM)?;
        Ok(self.process.wait(LIMIT)?.code())
    }
}

/// A topology with the VIPs on the director's eth0, an HTTP server on every real server's port 80 in both families, and a
/// director without services.
pub(crate) struct World {
    pub(crate) director: Director,
    pub(crate) http: Vec<Server>,
    pub(crate) topology: Topology,
    vips: [IpAddr; 2],
}

impl World {
    /// Builds it; `arguments` are added to the director's.
    pub(crate) fn build(plan: &Plan, arguments: &[&str]) -> Result<Self, Failed> {
        let topology = Topology::build(plan)?;
        let vips = [topology.vip(), topology.vip6()];
        for vip in vips {
            topology.director.net().add_address("eth0", Prefix::host(vip))?;
        }
        World::start(topology, vips, arguments)
    }

    /// The same with no addresses but the director's own, which are the virtual ones.
    fn build_without_vips(plan: &Plan, arguments: &[&str]) -> Result<Self, Failed> {
        let topology = Topology::build(plan)?;
        let vips = [V4, V6].map(|family| topology.director_address(family));
        World::start(topology, vips, arguments)
    }

    /// A world whose director was started by `start`.
    pub(crate) fn of(start: impl FnOnce(&Topology) -> Result<Director, Failed>) -> Result<Self, Failed> {
        let topology = Topology::build(&Plan::default())?;
        let vips = [topology.vip(), topology.vip6()];
        for vip in vips {
            topology.director.net().add_address("eth0", Prefix::host(vip))?;
        }
        let (http, director) = (real_servers(&topology)?, start(&topology)?);
        Ok(World { director, http, topology, vips })
    }

    fn start(topology: Topology, vips: [IpAddr; 2], arguments: &[&str]) -> Result<Self, Failed> {
        let http = real_servers(&topology)?;
        let director = Director::start(&topology, arguments)?;
        Ok(World { director, http, topology, vips })
    }

    /// The virtual address of a family.
    pub(crate) fn vip(&self, family: IpAddr) -> IpAddr {
        self.vips[usize::from(family.is_ipv6())]
    }

    /// Port 80 of the virtual address.
    pub(crate) fn service(&self, family: IpAddr) -> SocketAddr {
        SocketAddr::new(self.vip(family), 80)
    }

    /// A port of real server `index`.
    pub(crate) fn server(&self, index: usize, family: IpAddr, port: u16) -> SocketAddr {
        SocketAddr::new(self.topology.server_address(index, family), port)
    }

    /// Runs `ipvsadm` with the words of `line` and returns what it prints; it must succeed.
    pub(crate) fn ipvsadm(&self, line: &str) -> Result<String, Failed> {
        let output = ipvsadm(&self.topology.director, line)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("ipvsadm {line}: {}, {}", output.status, said.trim_end()).into());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Makes the TCP service on port 80 of a family's VIP, with NAT to port 80 of every real server; `weights` in order of
    /// the servers.
    pub(crate) fn balance(&self, family: IpAddr, scheduler: &str, weights: &[u32]) -> Outcome {
        let service = self.service(family);
        self.ipvsadm(&format!("-A -t {service} -s {scheduler}"))?;
        for (index, weight) in weights.iter().enumerate() {
            self.ipvsadm(&format!("-a -t {service} -r {} -m -w {weight}", self.server(index, family, 80)))?;
        }
        Ok(())
    }

    /// The director's state.
    pub(crate) fn status(&self) -> Result<Status, Failed> {
        let client = Client::new(SocketPlace::Namespace);
        match self.topology.director.run(|| client.ask(&Request::Status))?? {
            Response::Status(status) => Ok(*status),
            other => Err(format!("asked for its state, the director answered {other:?}").into()),
        }
    }

    /// Frames dropped for `reason` so far.
    pub(crate) fn drops(&self, reason: &str) -> Result<u64, Failed> {
        let drops = self.status()?.drops;
        let found = drops.iter().find(|drop| drop.reason == reason).map(|drop| drop.count);
        found.ok_or_else(|| format!("there is no counter {reason}, only {drops:?}").into())
    }

    /// How often `event` was counted so far.
    pub(crate) fn events(&self, event: &str) -> Result<u64, Failed> {
        let events = self.status()?.events;
        let found = events.iter().find(|counted| counted.event == event).map(|counted| counted.count);
        found.ok_or_else(|| format!("there is no counter {event}, only {events:?}").into())
    }

    /// Waits until frames were dropped for `reason`.
    pub(crate) fn wait_for_drops(&self, reason: &str, at_least: u64) -> Outcome {
        let what = format!("{at_least} drops for {reason}");
        Ok(wait::until(&what, LIMIT, || self.drops(reason).is_ok_and(|count| count >= at_least))?)
    }
}

/// Runs `test` in a new world; a failure comes with the director's log.
pub(crate) fn in_world(plan: &Plan, arguments: &[&str], test: impl FnOnce(&mut World) -> Outcome) -> Outcome {
    observe(World::build(plan, arguments)?, test)
}

/// The same where the director's only addresses are the virtual ones.
pub(crate) fn in_world_without_vips(plan: &Plan, test: impl FnOnce(&mut World) -> Outcome) -> Outcome {
    observe(World::build_without_vips(plan, &[])?, test)
}

fn observe(mut world: World, test: impl FnOnce(&mut World) -> Outcome) -> Outcome {
    let outcome = test(&mut world).and_then(|()| {
        let log = world.director.log();
        check(!log.contains("panicked"), "the director panicked")
    });
    outcome.map_err(|failed| {
        let message = failed.message().unwrap_or("failed");
        let status = world.status().map_or_else(|_| "none".into(), |status| format!("{status:#?}"));
        format!("{message}\n--- the director logged:\n{}--- its state: {status}", world.director.log()).into()
    })
}

/// The default plan, nothing added.
pub(crate) fn in_default_world(test: impl FnOnce(&mut World) -> Outcome) -> Outcome {
    in_world(&Plan::default(), &[], test)
}

/// An HTTP server on port 80 of every real server and family.
fn real_servers(topology: &Topology) -> Result<Vec<Server>, Failed> {
    let mut servers = Vec::new();
    for (index, namespace) in topology.servers.iter().enumerate() {
        for family in [V4, V6] {
            let address = SocketAddr::new(topology.server_address(index, family), 80);
            servers.push(Server::start(namespace, address, &format!("rs{}", index + 1))?);
        }
    }
    Ok(servers)
}

/// One arm, for direct routing: the VIP is on every real server's loopback, where nobody asks for it by ARP.
pub(crate) fn one_arm() -> Plan {
    Plan { arms: Arms::One, ..Plan::default() }
}

/// Runs `ipvsadm`, by that name, with the words of `line`.
pub(crate) fn ipvsadm(namespace: &Namespace, line: &str) -> Result<Output, Failed> {
    output(namespace, Command::new(ipvsadm_path()?).args(line.split_whitespace()))
}

/// Runs `uvs` with these arguments to its end.
pub(crate) fn uvs<S: AsRef<OsStr>>(
    namespace: &Namespace,
    arguments: impl IntoIterator<Item = S>,
) -> Result<Output, Failed> {
    output(namespace, Command::new(UVS).args(arguments))
}

/// Runs a command to its end inside `namespace`.
pub(crate) fn output(namespace: &Namespace, command: &mut Command) -> Result<Output, Failed> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(namespace.start(command)?.wait_with_output()?)
}

/// A name `ipvsadm` for the binary; one that leads elsewhere, as in a copied build directory, is put right.
fn ipvsadm_path() -> Result<PathBuf, Failed> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let path = directory.join("ipvsadm");
    if fs::read_link(&path).is_ok_and(|target| target == Path::new(UVS)) {
        return Ok(path);
    }
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let new = directory.join(format!("ipvsadm-{}-{}", std::process::id(), NUMBER.fetch_add(1, Relaxed)));
    let made = symlink(UVS, &new).and_then(|()| fs::rename(&new, &path));
    made.map_err(|error| format!("cannot make {}: {error}", path.display()))?;
    Ok(path)
}

/// A copy of the binary that everybody may execute, wherever the build directory is.
pub(crate) struct PublicCopy(PathBuf);

impl PublicCopy {
    /// Makes one for the test `user`.
    pub(crate) fn make(user: &str) -> Result<Self, Failed> {
        let path = std::env::temp_dir().join(format!("uvs-{}-public-{user}", std::process::id()));
        let copy = PublicCopy(path);
        fs::copy(UVS, &copy.0)?;
        fs::set_permissions(&copy.0, fs::Permissions::from_mode(0o755))?;
        Ok(copy)
    }
}

impl Drop for PublicCopy {
    fn drop(&mut self) {
        let _was_never_made = fs::remove_file(&self.0);
    }
}

/// A configuration file that is removed again.
pub(crate) struct Configuration(PathBuf);

impl Configuration {
    /// Writes one; `name` tells it from others.
    pub(crate) fn write(name: &str, text: &str) -> Result<Self, Failed> {
        let path = std::env::temp_dir().join(format!("uvs-{}-{name}.toml", std::process::id()));
        fs::write(&path, text)?;
        Ok(Configuration(path))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for Configuration {
    fn drop(&mut self) {
        let _gone_already = fs::remove_file(&self.0);
    }
}

/// A command run as nobody.
pub(crate) fn unprivileged(copy: &PublicCopy, arguments: &[&str]) -> Command {
    let mut command = Command::new(&copy.0);
    command.args(arguments).uid(65534).gid(65534).current_dir("/");
    command
}

/// `requests` of `/` by eight clients.
pub(crate) fn load(target: SocketAddr, requests: usize, keep_alive: bool) -> Load {
    Load { clients: 8, keep_alive, limit: LIMIT, ..Load::new(target, requests) }
}
