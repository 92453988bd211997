//! The hosts of one method: namespaces, two real servers and the director, each a process of this same binary.

use super::method::Method;
use super::picture;
use anyhow::{Context, bail};
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use uvs_lab::cleanup::Undo;
use uvs_lab::http::{self, Connection};
use uvs_lab::{Namespace, Plan, Prefix, Process, Topology, has_ipv6, wait};

/// How long the director or a server may take to be ready.
const READY: Duration = Duration::from_secs(8);

/// The real servers' weights: the first gets two of three connections.
pub(super) const WEIGHTS: [u32; 2] = [2, 1];

/// An address of each family, to ask the topology's of.
pub(super) const V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// Everything that one method is shown on. Dropping it ends the processes, restores the real servers and removes the
/// namespaces, in this order.
pub(super) struct Stage {
    director: Process,
    servers: Vec<Process>,
    restores: Vec<Undo>,
    pub(super) topology: Topology,
    pub(super) method: Method,
    program: PathBuf,
}

/// What the director counted of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) connections: u64,
    pub(super) in_packets: u64,
    pub(super) out_packets: u64,
}

/// The IP versions this kernel has.
pub(super) fn families() -> Vec<IpAddr> {
    if has_ipv6() { vec![V4, V6] } else { vec![V4] }
}

impl Stage {
    /// Builds it, up to a director that is ready and has no service yet. `names` begins the namespaces' names.
    pub(super) fn build(method: Method, names: Option<String>) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find the program that is running")?;
        let topology = Topology::build(&Plan { names, arms: method.arms(), ..Plan::default() })?;
        for vip in families().into_iter().map(|family| vip(&topology, family)) {
            topology.director.net().add_address("eth0", Prefix::host(vip))?;
        }
        let mut servers = Vec::new();
        // One socket for all addresses of both versions: the virtual ones come later.
        let any = if has_ipv6() { V6 } else { V4 };
        for (index, namespace) in topology.servers.iter().enumerate() {
            let mut command = Command::new(&program);
            command.args(["demo", "--serve", &name(index), &SocketAddr::new(any, 80).to_string()]);
            command.args(method.is_told_by_proxy().then_some("--proxied"));
            servers.push(Process::start(namespace, &mut command)?);
        }
        let mut command = Command::new(&program);
        command.args(["run", "--unpinned"]);
        for device in topology.director_devices() {
            command.args(["--interface", &device]);
        }
        let mut director = Process::start(&topology.director, &mut command)?;
        let mut restores = Vec::new();
        if method.on_real_servers().is_some() {
            restores.extend(topology.servers.iter().map(|server| {
                let restore = ["real-server", "stop"].map(OsString::from);
                Undo::new(server.name(), [vec![program.clone().into()], restore.to_vec()].concat())
            }));
        }
        for server in &mut servers {
            server.wait_for_line("ready", READY).context("a real server does not start")?;
        }
        director.wait_for_line("ready", READY).context("the director does not start")?;
        Ok(Stage { director, servers, restores, topology, method, program })
    }

    /// The virtual service's address.
    pub(super) fn service(&self, family: IpAddr) -> SocketAddr {
        SocketAddr::new(vip(&self.topology, family), 80)
    }

    /// The commands on each real server, as they are typed after `uvs`.
    pub(super) fn real_server_commands(&self, family: IpAddr) -> Vec<String> {
        let start =
            |method| format!("real-server start --vip {} --method {method}", self.service(family).ip());
        self.method.on_real_servers().map(start).into_iter().collect()
    }

    /// The commands that make the virtual service, as they are typed after `ipvsadm`.
    pub(super) fn commands(&self, family: IpAddr) -> Vec<String> {
        let (service, option) = (self.service(family), self.method.option());
        let told = if self.method.is_told_by_proxy() { " --client-address proxy-v2" } else { "" };
        let mut commands = vec![format!("-A -t {service} -s wrr{told}")];
        commands.extend(WEIGHTS.iter().enumerate().map(|(index, weight)| {
            let server = SocketAddr::new(self.topology.server_address(index, family), 80);
            format!("-a -t {service} -r {server} {option} -w {weight}")
        }));
        if self.method == Method::FullNat {
            commands.push(format!("-P -t {service} -z {}", self.topology.director_address(family)));
        }
        commands
    }

    /// Sets up the real servers and the virtual service of one IP version.
    pub(super) fn set_up(&self, family: IpAddr) -> anyhow::Result<()> {
        for command in self.real_server_commands(family) {
            for server in &self.topology.servers {
                self.run(server, &command)?;
            }
        }
        for command in self.commands(family) {
            self.run(&self.topology.director, &format!("ipvsadm {command}"))?;
        }
        Ok(())
    }

    /// Runs this program with the words of `line` and returns what it prints.
    fn run(&self, namespace: &Namespace, line: &str) -> anyhow::Result<String> {
        let mut process = Process::start(namespace, Command::new(&self.program).args(line.split(' ')))?;
        let status = process.wait(READY)?;
        if !status.success() {
            bail!("uvs {line} ended with {status}: {}", process.stderr().trim_end());
        }
        Ok(process.stdout())
    }

    /// Waits until the listing counts the last packets of the connections, and returns it: workers publish counters as
    /// they go, and the last ACK of a connection comes after its answer was read.
    pub(super) fn settled(&self, options: &str) -> anyhow::Result<String> {
        let list = |options: &str| self.run(&self.topology.director, &format!("ipvsadm {options}"));
        let mut last = list("-Ln --stats")?;
        let settled = wait::until("the counters to settle", Duration::from_secs(2), || {
            let Ok(now) = list("-Ln --stats") else { return false };
            std::mem::replace(&mut last, now) == last
        });
        // Whoever looks sees what there is.
        drop(settled);
        list(options)
    }

    /// What the director counted of the service.
    pub(super) fn counted(&self, family: IpAddr) -> anyhow::Result<Counted> {
        let listing = self.settled(&format!("-L --json -t {}", self.service(family)))?;
        let listing: serde_json::Value = serde_json::from_str(&listing)?;
        let count = |what: &str| {
            listing["services"][0]["counters"][what]
                .as_u64()
                .with_context(|| format!("no {what} in {listing}"))
        };
        Ok(Counted {
            connections: count("connections")?,
            in_packets: count("in_packets")?,
            out_packets: count("out_packets")?,
        })
    }

    /// The client's address as a real server sees it: the connection's, or what the PROXY protocol says.
    pub(super) fn seen_client(&self, family: IpAddr) -> anyhow::Result<IpAddr> {
        let mut connection = Connection::open(&self.topology.client, self.service(family), READY)?;
        let body = String::from_utf8_lossy(&connection.get("/client")?.body).into_owned();
        let seen: SocketAddr = body.trim_end().parse().with_context(|| format!("{body:?} is no address"))?;
        Ok(seen.ip().to_canonical())
    }

    /// The real servers with the answers each gave.
    pub(super) fn servers(&self, report: &http::Report) -> [picture::Server; 2] {
        let shares = report.shares();
        [0, 1].map(|index| picture::Server {
            answers: shares.get(name(index).as_str()).copied().unwrap_or(0),
            address: SocketAddr::new(self.topology.server_address(index, V4), 80),
            weight: WEIGHTS[index],
            name: name(index),
        })
    }

    /// What the director has logged.
    pub(super) fn log(&self) -> String {
        self.director.stderr()
    }

    /// Leaves everything standing.
    pub(super) fn keep(self) {
        self.director.keep();
        self.servers.into_iter().for_each(Process::keep);
        self.restores.into_iter().for_each(Undo::keep);
        self.topology.keep();
    }

    /// The command that runs something where `namespace` is.
    pub(super) fn inside(namespace: &Namespace) -> String {
        format!("nsenter --net={}", namespace.path().display())
    }

    /// The program's path, for commands to try.
    pub(super) fn program(&self) -> String {
        self.program.display().to_string()
    }
}

fn vip(topology: &Topology, family: IpAddr) -> IpAddr {
    if family.is_ipv4() { topology.vip() } else { topology.vip6() }
}

fn name(index: usize) -> String {
    format!("rs{}", index + 1)
}
