//! The demo's four hosts: namespaces, two real servers and the director, each a process of this same binary.

use super::picture;
use anyhow::{Context, bail};
use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;
use uvs_lab::{Namespace, Plan, Prefix, Process, Topology, http, wait};

/// How long the director or a server may take to be ready.
const READY: Duration = Duration::from_secs(8);

/// The real servers' weights: the first gets two of three connections.
pub(super) const WEIGHTS: [u32; 2] = [2, 1];

const V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Everything the demo runs on. Dropping it ends the processes and removes the namespaces.
pub(super) struct Stage {
    director: Process,
    servers: Vec<Process>,
    pub(super) topology: Topology,
    program: PathBuf,
}

impl Stage {
    /// Builds it, up to a director that is ready and has no service yet. `names` begins the namespaces' names.
    pub(super) fn build(names: Option<String>) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find the program that is running")?;
        let topology = Topology::build(&Plan { names, ..Plan::default() })?;
        topology.director.net().add_address("eth0", Prefix::host(topology.vip()))?;
        let mut servers = Vec::new();
        for (index, namespace) in topology.servers.iter().enumerate() {
            let address = SocketAddr::new(topology.server_address(index, V4), 80).to_string();
            let mut command = Command::new(&program);
            command.args(["demo", "--serve", &format!("rs{}", index + 1), &address]);
            servers.push(Process::start(namespace, &mut command)?);
        }
        let mut command = Command::new(&program);
        command.args(["run", "--unpinned"]);
        for device in topology.director_devices() {
            command.args(["--interface", &device]);
        }
        let mut director = Process::start(&topology.director, &mut command)?;
        for server in &mut servers {
            server.wait_for_line("ready", READY).context("a real server does not start")?;
        }
        director.wait_for_line("ready", READY).context("the director does not start")?;
        Ok(Stage { director, servers, topology, program })
    }

    /// The virtual service's address.
    pub(super) fn service(&self) -> SocketAddr {
        SocketAddr::new(self.topology.vip(), 80)
    }

    /// The commands that make the virtual service, as they are typed after `ipvsadm`.
    pub(super) fn commands(&self) -> Vec<String> {
        let service = self.service();
        let mut commands = vec![format!("-A -t {service} -s wrr")];
        commands.extend(WEIGHTS.iter().enumerate().map(|(index, weight)| {
            format!("-a -t {service} -r {}:80 -m -w {weight}", self.topology.server_address(index, V4))
        }));
        commands
    }

    /// Runs `ipvsadm` with these arguments where the director is, and returns what it prints.
    pub(super) fn ipvsadm<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> anyhow::Result<String> {
        let mut command = Command::new(&self.program);
        command
            .arg("ipvsadm")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = self.topology.director.start(&mut command)?;
        let output = child.wait_with_output().context("cannot read what ipvsadm prints")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("ipvsadm ended with {}: {}", output.status, said.trim_end());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Waits until the listing counts the last packets of the connections, and returns it: workers publish counters as
    /// they go, and the last ACK of a connection comes after its answer was read.
    pub(super) fn settled_stats(&self) -> anyhow::Result<String> {
        let arguments = ["-Ln", "--stats"];
        let mut last = self.ipvsadm(arguments)?;
        let settled = wait::until_some("the counters to settle", Duration::from_secs(2), || {
            let now = self.ipvsadm(arguments).ok()?;
            if now == last {
                return Some(now);
            }
            last = now;
            None
        });
        Ok(settled.unwrap_or(last))
    }

    /// The real servers with the answers each gave.
    pub(super) fn servers(&self, report: &http::Report) -> [picture::Server; 2] {
        let shares = report.shares();
        [0, 1].map(|index| {
            let name = format!("rs{}", index + 1);
            picture::Server {
                answers: shares.get(name.as_str()).copied().unwrap_or(0),
                address: SocketAddr::new(self.topology.server_address(index, V4), 80),
                weight: WEIGHTS[index],
                name,
            }
        })
    }

    /// The client's address.
    pub(super) fn client(&self) -> IpAddr {
        self.topology.client_address(V4)
    }

    /// What the director has logged.
    pub(super) fn log(&self) -> String {
        self.director.stderr()
    }

    /// Leaves everything standing.
    pub(super) fn keep(self) {
        self.director.keep();
        self.servers.into_iter().for_each(Process::keep);
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
