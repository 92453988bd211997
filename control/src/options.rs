//! What a director is started with: the command line over the configuration file over the defaults.

use crate::api::{ServerSpec, ServiceId, ServiceSpec, Timeouts};
use crate::settings::Settings;
use serde::Deserialize;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;
use uvs_engine::snapshot::OnRemove;

/// Everything a director needs to know when it starts.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RunOptions {
    /// The devices to take frames from.
    pub interfaces: Interfaces,
    /// How frames are taken.
    pub io: Io,
    /// Where the steering program runs.
    pub xdp_mode: XdpMode,
    /// The polling threads.
    pub workers: Workers,
    /// Where the control socket is.
    pub socket: SocketPlace,
    /// Put the virtual addresses on the interfaces, and take them off at the end.
    pub assign_vips: bool,
    /// Whether ports for full NAT at addresses of this host are reserved, instead of leaving its own sockets' alone.
    pub reserve_ports: bool,
    /// What becomes of packets for the services when the process dies.
    pub on_crash: OnCrash,
    /// How long the guard outlives the process.
    pub guard_timeout: GuardTimeout,
    /// What becomes of the connections of a real server that is removed.
    pub on_remove: OnRemove,
    /// The bounds of the tables.
    pub limits: Limits,
    /// State timeouts.
    pub timeouts: Timeouts,
    /// Settings of `net.ipv4.vs`.
    pub settings: Settings,
    /// Whether the packet around a tunnelled one shows congestion that the packet inside experienced (RFC 6040).
    pub rfc6040: bool,
    /// The virtual services to start with, each with its real servers in the order they are added.
    pub services: Vec<(ServiceSpec, Vec<ServerSpec>)>,
    /// The local addresses of full NAT to start with, each with the service that uses it.
    pub locals: Vec<(ServiceId, IpAddr)>,
}

/// The devices of a director.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interfaces {
    /// Every usable one.
    All,
    /// These, by name. Empty means that none was given.
    Named(Vec<String>),
}

impl Default for Interfaces {
    fn default() -> Self {
        Interfaces::Named(Vec::new())
    }
}

impl Interfaces {
    /// From names as given, where `all` stands for every usable device.
    pub fn from_names(names: Vec<String>) -> Self {
        if names.iter().any(|name| name == "all") { Interfaces::All } else { Interfaces::Named(names) }
    }

    /// Whether none was given.
    pub fn is_empty(&self) -> bool {
        matches!(self, Interfaces::Named(names) if names.is_empty())
    }
}

/// How frames are taken from a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Io {
    /// The best way there is.
    #[default]
    Auto,
    /// AF_XDP.
    Xdp,
    /// Packet sockets.
    Raw,
}

/// Where the steering program runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// In the driver, or in the kernel's generic path where the driver cannot.
    #[default]
    Auto,
    /// In the driver or not at all.
    Native,
    /// In the kernel's generic path.
    Generic,
}

/// The polling threads of a director.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Workers {
    /// As many, or as many as fit the cores and queues when not given.
    Count {
        /// How many.
        count: Option<usize>,
        /// Whether each is pinned to a core of its own.
        pinned: bool,
    },
    /// One on each of these cores.
    Cores(Vec<usize>),
}

impl Default for Workers {
    fn default() -> Self {
        Workers::Count { count: None, pinned: true }
    }
}

/// Where a control socket is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SocketPlace {
    /// The abstract socket of this network namespace.
    #[default]
    Namespace,
    /// A socket in the file system.
    Path(PathBuf),
}

impl fmt::Display for SocketPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SocketPlace::Namespace => {
                f.write_str("the abstract socket @uvs/control of this network namespace")
            }
            SocketPlace::Path(path) => path.display().fmt(f),
        }
    }
}

/// What becomes of packets for the services when the process dies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnCrash {
    /// They are dropped until the director is back or the guard expires, so that no connection is reset.
    #[default]
    Guard,
    /// The kernel gets them at once, and answers them.
    Kernel,
}

/// How long the guard outlives the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuardTimeout(pub Duration);

impl Default for GuardTimeout {
    /// One minute: long enough to start again, short enough not to puzzle anybody.
    fn default() -> Self {
        GuardTimeout(Duration::from_secs(60))
    }
}

/// The bounds of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections whose addresses are all IPv4.
    pub connections_ipv4: u32,
    /// Connections with an IPv6 address.
    pub connections_ipv6: u32,
    /// Real servers over all services, the removed ones that connections still name included.
    pub destinations: u32,
}

impl Default for Limits {
    /// Memory is used only as connections come.
    fn default() -> Self {
        Limits { connections_ipv4: 4 << 20, connections_ipv6: 1 << 20, destinations: 1 << 16 }
    }
}

/// What the command line of `uvs run` said. It wins over the configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--interface`, each time it was given.
    pub interfaces: Vec<String>,
    /// `--io`.
    pub io: Option<Io>,
    /// `--xdp-mode`.
    pub xdp_mode: Option<XdpMode>,
    /// `--workers`.
    pub workers: Option<usize>,
    /// `--cores`.
    pub cores: Option<Vec<usize>>,
    /// `--unpinned`.
    pub unpinned: bool,
    /// `--socket`.
    pub socket: Option<PathBuf>,
    /// `--assign-vips`.
    pub assign_vips: bool,
}

impl RunOptions {
    /// These options with what the command line said instead.
    #[must_use]
    pub fn overridden(mut self, by: Overrides) -> Self {
        if !by.interfaces.is_empty() {
            self.interfaces = Interfaces::from_names(by.interfaces);
        }
        self.io = by.io.unwrap_or(self.io);
        self.xdp_mode = by.xdp_mode.unwrap_or(self.xdp_mode);
        self.workers = match (by.cores, by.workers) {
            (Some(cores), _) => Workers::Cores(cores),
            (None, Some(count)) => {
                let configured = !matches!(self.workers, Workers::Count { pinned: false, .. });
                Workers::Count { count: Some(count), pinned: configured && !by.unpinned }
            }
            (None, None) if by.unpinned => match self.workers {
                Workers::Count { count, .. } => Workers::Count { count, pinned: false },
                Workers::Cores(cores) => Workers::Count { count: Some(cores.len()), pinned: false },
            },
            (None, None) => self.workers,
        };
        if let Some(path) = by.socket {
            self.socket = SocketPlace::Path(path);
        }
        self.assign_vips |= by.assign_vips;
        self
    }
}

/// The cores of a list as the kernel writes them: `0-3,8,10-11`.
///
/// # Errors
/// A sentence that says what was found instead.
pub fn parse_cores(list: &str) -> Result<Vec<usize>, String> {
    let mut cores = Vec::new();
    for part in list.split(',') {
        let wrong = || format!("`{part}` is neither a core's number nor a range such as 0-3");
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: usize = first.trim().parse().map_err(|_| wrong())?;
        let last: usize = last.trim().parse().map_err(|_| wrong())?;
        if first > last || last > 4095 {
            return Err(wrong());
        }
        for core in first..=last {
            if cores.contains(&core) {
                return Err(format!("core {core} is named twice"));
            }
            cores.push(core);
        }
    }
    Ok(cores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_written_as_the_kernel_writes_them() {
        for (list, cores) in [
            ("0", Ok(vec![0])),
            ("0-3,8", Ok(vec![0, 1, 2, 3, 8])),
            ("2,0", Ok(vec![2, 0])),
            ("", Err("`` is neither a core's number nor a range such as 0-3")),
            ("3-1", Err("`3-1` is neither a core's number nor a range such as 0-3")),
            ("0-99999999", Err("`0-99999999` is neither a core's number nor a range such as 0-3")),
            ("0-2,1", Err("core 1 is named twice")),
        ] {
            assert_eq!(parse_cores(list), cores.map_err(str::to_owned), "{list}");
        }
    }

    #[test]
    fn the_command_line_wins() {
        let configured = RunOptions {
            interfaces: Interfaces::Named(vec!["eth0".into()]),
            workers: Workers::Cores(vec![1, 2]),
            assign_vips: true,
            ..RunOptions::default()
        };
        assert_eq!(configured.clone().overridden(Overrides::default()), configured);
        let unpinned = configured.clone().overridden(Overrides { unpinned: true, ..Overrides::default() });
        assert_eq!(unpinned.workers, Workers::Count { count: Some(2), pinned: false });
        let all = configured.overridden(Overrides {
            interfaces: vec!["all".into()],
            socket: Some("/run/uvs".into()),
            workers: Some(1),
            ..Overrides::default()
        });
        assert_eq!(all.interfaces, Interfaces::All);
        assert_eq!(all.socket, SocketPlace::Path("/run/uvs".into()));
        assert_eq!(all.workers, Workers::Count { count: Some(1), pinned: true });
        assert!(all.assign_vips);
        let unpinned =
            RunOptions { workers: Workers::Count { count: None, pinned: false }, ..RunOptions::default() };
        let counted = unpinned.overridden(Overrides { workers: Some(3), ..Overrides::default() });
        assert_eq!(counted.workers, Workers::Count { count: Some(3), pinned: false }, "as the file says");
    }
}
