//! What is said on the control socket: requests, responses, and the things they speak of.
//!
//! The types are IPVS's own model of a virtual server table, so that what `ipvsadm` can say can be said here, and a director
//! answers with the refusals the kernel gives. They are plain data: rules about them live in [`crate::registry`].
//!
//! The encoding is JSON; [`VERSION`] changes when an old peer would misunderstand a new one.

use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::{fmt, ops};

/// The version of this protocol. A director answers another version with [`Refusal::Version`].
pub const VERSION: u32 = 1;

/// A transport protocol that a virtual service may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP, RFC 9293.
    Tcp,
    /// UDP, RFC 768.
    Udp,
    /// SCTP, RFC 9260.
    Sctp,
}

impl Protocol {
    /// The number of the protocol in an IP header.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        })
    }
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 }
    }
}

/// What a virtual service is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceId {
    /// A virtual address and port of one protocol.
    Address {
        /// The protocol.
        protocol: Protocol,
        /// Virtual IP address and port; port 0 stands for every port.
        address: SocketAddr,
    },
    /// A firewall mark.
    Mark {
        /// The mark, never 0.
        mark: u32,
        /// The family of the packets meant.
        family: Family,
    },
}

impl ServiceId {
    /// The family of the service's packets.
    pub fn family(&self) -> Family {
        match self {
            ServiceId::Address { address, .. } => Family::of(address.ip()),
            ServiceId::Mark { family, .. } => *family,
        }
    }

    /// The virtual port; 0 for a service by mark.
    pub fn port(&self) -> u16 {
        match self {
            ServiceId::Address { address, .. } => address.port(),
            ServiceId::Mark { .. } => 0,
        }
    }
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServiceId::Address { protocol, address } => write!(f, "{protocol} {address}"),
            ServiceId::Mark { mark, family: Family::Ipv4 } => write!(f, "FWM {mark}"),
            ServiceId::Mark { mark, family: Family::Ipv6 } => write!(f, "FWM {mark} IPv6"),
        }
    }
}

/// The scheduler flags of `ipvsadm -b`, as the kernel numbers them from bit 3 of the service flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SchedulerFlags(pub u8);

impl SchedulerFlags {
    /// flag-1: `sh-fallback` of scheduler sh, `mh-fallback` of scheduler mh.
    pub const ONE: SchedulerFlags = SchedulerFlags(1);
    /// flag-2: `sh-port` of scheduler sh, `mh-port` of scheduler mh.
    pub const TWO: SchedulerFlags = SchedulerFlags(2);
    /// flag-3: not used by any scheduler of IPVS.
    pub const THREE: SchedulerFlags = SchedulerFlags(4);

    /// Whether all of `flags` are set here.
    pub fn contains(self, flags: SchedulerFlags) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// Whether none is set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl ops::BitOr for SchedulerFlags {
    type Output = SchedulerFlags;
    fn bitor(self, other: SchedulerFlags) -> SchedulerFlags {
        SchedulerFlags(self.0 | other.0)
    }
}

/// Which clients count as one for persistence (`ipvsadm -M`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Netmask {
    /// Bits of the client's address that count; IPVS does not ask for them to be contiguous.
    Ipv4(Ipv4Addr),
    /// Leading bits of the client's address that count, 1 to 128.
    Ipv6(u8),
}

impl Netmask {
    /// Every client for itself.
    pub fn host(family: Family) -> Self {
        match family {
            Family::Ipv4 => Netmask::Ipv4(Ipv4Addr::BROADCAST),
            Family::Ipv6 => Netmask::Ipv6(128),
        }
    }
}

/// A virtual service as it should be (`ipvsadm -A` and `-E`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// What it is known by.
    pub id: ServiceId,
    /// The name of its scheduler.
    pub scheduler: String,
    /// The scheduler's flags.
    #[serde(default, skip_serializing_if = "is_default")]
    pub flags: SchedulerFlags,
    /// Seconds that a client keeps to its real server, when the service is persistent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub persistent: Option<u32>,
    /// Which clients count as one for persistence.
    pub netmask: Netmask,
    /// The persistence engine (`--pe`).
    #[serde(default, skip_serializing_if = "is_default")]
    pub engine: Option<String>,
    /// Whether each UDP packet is scheduled for itself (`-o`).
    #[serde(default, skip_serializing_if = "is_default")]
    pub one_packet: bool,
}

impl ServiceSpec {
    /// A service with a scheduler and nothing else.
    pub fn new(id: ServiceId, scheduler: &str) -> Self {
        ServiceSpec {
            netmask: Netmask::host(id.family()),
            id,
            scheduler: scheduler.to_owned(),
            flags: SchedulerFlags::default(),
            persistent: None,
            engine: None,
            one_packet: false,
        }
    }
}

/// How packets reach a real server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Network address translation (`-m`).
    Masquerading,
    /// Direct routing (`-g`), ipvsadm's default.
    #[default]
    Direct,
    /// An IP tunnel (`-i`).
    Tunnel(Tunnel),
}

/// The encapsulation of a tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tunnel {
    /// The protocol it uses.
    pub kind: TunnelKind,
    /// The UDP port of a GUE tunnel; otherwise 0.
    #[serde(default, skip_serializing_if = "is_default")]
    pub port: u16,
    /// Its checksums.
    #[serde(default, skip_serializing_if = "is_default")]
    pub checksum: TunnelChecksum,
}

/// The protocol of a tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TunnelKind {
    /// IP in IP, RFC 2003 and RFC 2473.
    #[default]
    Ipip,
    /// Generic UDP encapsulation.
    Gue,
    /// GRE, RFC 2784.
    Gre,
}

/// The checksums of a tunnel's own header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TunnelChecksum {
    /// None.
    #[default]
    None,
    /// Over the whole packet.
    Full,
    /// Remote checksum offload, GUE only.
    Remote,
}

/// A real server as it should be (`ipvsadm -a` and `-e`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerSpec {
    /// Its address and port.
    pub address: SocketAddr,
    /// How packets reach it.
    #[serde(default)]
    pub method: Method,
    /// Its share; 0 takes no new connections. At most `i32::MAX`.
    pub weight: u32,
    /// Connections from which on it takes no new ones; 0 for no limit.
    #[serde(default, skip_serializing_if = "is_default")]
    pub upper_threshold: u32,
    /// Connections below which it takes new ones again; 0 for three quarters of the upper threshold.
    #[serde(default, skip_serializing_if = "is_default")]
    pub lower_threshold: u32,
}

impl ServerSpec {
    /// A real server with ipvsadm's defaults: direct routing, weight 1, no thresholds.
    pub fn new(address: SocketAddr) -> Self {
        ServerSpec { address, method: Method::Direct, weight: 1, upper_threshold: 0, lower_threshold: 0 }
    }

    /// The server as `service` can reach it: direct routing and tunnels leave the packet's port as it is, so the server's
    /// port is the service's, whatever was asked for. A service by mark leaves it alone.
    #[must_use]
    pub fn reached_from(mut self, service: &ServiceId) -> Self {
        if let (ServiceId::Address { address, .. }, Method::Direct | Method::Tunnel(_)) =
            (service, self.method)
        {
            self.address.set_port(address.port());
        }
        self
    }
}

/// State timeouts in seconds (`ipvsadm --set`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeouts {
    /// An established TCP connection.
    pub tcp: u32,
    /// A TCP connection after a FIN.
    pub tcp_fin: u32,
    /// A UDP connection.
    pub udp: u32,
}

impl Default for Timeouts {
    /// The kernel's: 900, 120, 300.
    fn default() -> Self {
        Timeouts { tcp: 900, tcp_fin: 120, udp: 300 }
    }
}

/// Which side of the connection synchronisation a daemon is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DaemonState {
    /// Sends its connections.
    Master,
    /// Receives them.
    Backup,
}

/// A connection synchronisation daemon (`ipvsadm --start-daemon`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Daemon {
    /// Its side.
    pub state: DaemonState,
    /// The interface it sends or listens on; the director chooses when empty.
    pub interface: String,
    /// The identity both sides share, 0 to 255.
    pub sync_id: u8,
    /// The longest message in bytes; 0 lets the director choose.
    pub max_length: u16,
    /// The multicast group, when given.
    pub group: Option<IpAddr>,
    /// The UDP port; 0 lets the director choose.
    pub port: u16,
    /// The TTL of its packets; 0 lets the director choose.
    pub ttl: u8,
}

/// What is asked of a director.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Adds a virtual service.
    AddService(ServiceSpec),
    /// Replaces every attribute of a virtual service but its identity.
    EditService(ServiceSpec),
    /// Removes a virtual service with its real servers.
    DeleteService(ServiceId),
    /// Adds a real server to a virtual service.
    AddServer {
        /// The virtual service.
        service: ServiceId,
        /// The real server.
        server: ServerSpec,
    },
    /// Replaces every attribute of a real server but its address.
    EditServer {
        /// The virtual service.
        service: ServiceId,
        /// The real server.
        server: ServerSpec,
    },
    /// Removes a real server from a virtual service.
    DeleteServer {
        /// The virtual service.
        service: ServiceId,
        /// The address and port of the real server.
        server: SocketAddr,
    },
    /// Removes every virtual service.
    Flush,
    /// Sets counters to zero: one service's with its servers', or all and the totals.
    Zero(Option<ServiceId>),
    /// Lists virtual services: one, or all in the kernel's order, a page at a time.
    Services {
        /// The one wanted.
        service: Option<ServiceId>,
        /// Where the last page ended.
        after: Option<u64>,
    },
    /// Lists connections in table order, a page at a time.
    Connections {
        /// Where the last page ended.
        after: Option<u64>,
    },
    /// Asks for the state timeouts.
    Timeouts,
    /// Sets state timeouts; 0 leaves one as it is.
    SetTimeouts(Timeouts),
    /// Lists the synchronisation daemons.
    Daemons,
    /// Starts a synchronisation daemon.
    StartDaemon(Daemon),
    /// Stops a synchronisation daemon.
    StopDaemon {
        /// Which.
        state: DaemonState,
    },
    /// Asks for workers, devices, drops and the table's filling.
    Status,
    /// Takes the guard off this director's services until it starts again.
    GuardOff,
    /// Several requests in one session: carried out in order whatever becomes of the earlier ones, the workers waited for
    /// once. No batch inside a batch.
    Batch(Vec<Request>),
}

/// Why a director refused. Where IPVS has an errno for it, the variant means the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// EEXIST for a service.
    #[error("Service already exists")]
    ServiceExists,
    /// ESRCH when a service itself is meant.
    #[error("No such service")]
    NoSuchService,
    /// ESRCH when one of its servers is meant.
    #[error("Service not defined")]
    ServiceNotDefined,
    /// EEXIST for a server.
    #[error("Destination already exists")]
    ServerExists,
    /// ENOENT for a server.
    #[error("No such destination")]
    NoSuchServer,
    /// ENOENT for a service.
    #[error("Scheduler or persistence engine not found")]
    SchedulerNotFound,
    /// ERANGE.
    #[error("Numerical result out of range")]
    OutOfRange,
    /// EINVAL.
    #[error("Invalid operation.  Possibly wrong module version, address not unicast, ...")]
    Invalid,
    /// EEXIST for a daemon.
    #[error("Daemon has already run")]
    DaemonRunning,
    /// ESRCH for a daemon.
    #[error("No daemon is running")]
    NoDaemon,
    /// ENODEV.
    #[error("No such device")]
    NoSuchDevice,
    /// IPVS would do it; this director cannot. A sentence.
    #[error("{0}")]
    Unsupported(String),
    /// The director could not carry it out. A sentence.
    #[error("{0}")]
    Failed(String),
    /// The request could not be read. A sentence.
    #[error("the director did not understand the request: {0}")]
    Malformed(String),
    /// The peer speaks another version of this protocol.
    #[error(
        "this program speaks version {asked} of the control protocol and the director version {spoken}: use the uvs that runs as director"
    )]
    Version {
        /// What the peer asked for.
        asked: u32,
        /// What the director speaks.
        spoken: u32,
    },
}

/// What a director answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// It is done, and every worker works by it.
    Done,
    /// It is not done.
    Refused(Refusal),
    /// A page of virtual services.
    Services {
        /// In the kernel's order.
        services: Vec<ServiceEntry>,
        /// Where the next page begins, when there is one.
        next: Option<u64>,
        /// Buckets of the connection table.
        table_size: u32,
    },
    /// A page of connections.
    Connections {
        /// In table order.
        connections: Vec<ConnectionEntry>,
        /// Where the next page begins, when there is one.
        next: Option<u64>,
    },
    /// The state timeouts.
    Timeouts(Timeouts),
    /// The running synchronisation daemons.
    Daemons(Vec<Daemon>),
    /// The director's state.
    Status(Box<Status>),
    /// The answers to a batch, one for each request.
    Batch(Vec<Response>),
}

impl From<Result<(), Refusal>> for Response {
    fn from(result: Result<(), Refusal>) -> Self {
        match result {
            Ok(()) => Response::Done,
            Err(refusal) => Response::Refused(refusal),
        }
    }
}

/// Sums since the start or the last zeroing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Connections scheduled.
    #[serde(skip_serializing_if = "is_default")]
    pub connections: u64,
    /// Packets from clients.
    #[serde(skip_serializing_if = "is_default")]
    pub in_packets: u64,
    /// Packets to clients.
    #[serde(skip_serializing_if = "is_default")]
    pub out_packets: u64,
    /// Bytes of IP packets from clients.
    #[serde(skip_serializing_if = "is_default")]
    pub in_bytes: u64,
    /// Bytes of IP packets to clients.
    #[serde(skip_serializing_if = "is_default")]
    pub out_bytes: u64,
}

/// Per-second averages of [`Counters`], over a few multiples of two seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rates {
    /// Connections per second.
    #[serde(skip_serializing_if = "is_default")]
    pub connections: u64,
    /// Packets per second from clients.
    #[serde(skip_serializing_if = "is_default")]
    pub in_packets: u64,
    /// Packets per second to clients.
    #[serde(skip_serializing_if = "is_default")]
    pub out_packets: u64,
    /// Bytes per second from clients.
    #[serde(skip_serializing_if = "is_default")]
    pub in_bytes: u64,
    /// Bytes per second to clients.
    #[serde(skip_serializing_if = "is_default")]
    pub out_bytes: u64,
}

/// What a virtual service has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceActivity {
    /// Its sums.
    #[serde(skip_serializing_if = "is_default")]
    pub counters: Counters,
    /// Its averages.
    #[serde(skip_serializing_if = "is_default")]
    pub rates: Rates,
}

/// What a real server has done and does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerActivity {
    /// Connections in an active state.
    #[serde(skip_serializing_if = "is_default")]
    pub active: u32,
    /// Its other connections.
    #[serde(skip_serializing_if = "is_default")]
    pub inactive: u32,
    /// Persistence templates that lead to it.
    #[serde(skip_serializing_if = "is_default")]
    pub persistent: u32,
    /// Its sums.
    #[serde(skip_serializing_if = "is_default")]
    pub counters: Counters,
    /// Its averages.
    #[serde(skip_serializing_if = "is_default")]
    pub rates: Rates,
}

/// A virtual service in a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceEntry {
    /// What it is.
    pub service: ServiceSpec,
    /// What it has done.
    #[serde(default, skip_serializing_if = "is_default")]
    pub activity: ServiceActivity,
    /// Its real servers, newest first.
    pub servers: Vec<ServerEntry>,
}

/// A real server in a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerEntry {
    /// What it is.
    pub server: ServerSpec,
    /// What it has done and does.
    #[serde(default, skip_serializing_if = "is_default")]
    pub activity: ServerActivity,
}

/// A connection in a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionEntry {
    /// The number of its protocol in an IP header; 0 for the template of a mark.
    pub protocol: u8,
    /// The client.
    pub client: SocketAddr,
    /// The virtual address it came to.
    pub virtual_address: SocketAddr,
    /// The real server it goes to.
    pub server: SocketAddr,
    /// The name of its state, as IPVS names it.
    pub state: String,
    /// Seconds until it expires.
    pub expires: u32,
    /// The persistence engine and its data, of a template that has them.
    #[serde(default, skip_serializing_if = "is_default")]
    pub engine: Option<(String, String)>,
}

/// The state of a director.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The version of uvs.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Seconds since it became ready.
    pub uptime: u64,
    /// Its polling threads.
    pub workers: Vec<WorkerStatus>,
    /// Its devices.
    pub devices: Vec<DeviceStatus>,
    /// Its connection table.
    pub table: TableStatus,
    /// How many virtual services and real servers it has.
    pub services: u64,
    /// Real servers of all its services.
    pub servers: u64,
    /// Every reason a packet may be dropped for, with its count.
    pub drops: Vec<DropCount>,
    /// Frames given back to the kernel.
    pub to_kernel: u64,
    /// Next hops whose link-layer address is not known now.
    pub unresolved: u64,
    /// What the guard would do if this process died now: `guard` or `kernel`.
    pub on_crash: String,
}

/// One polling thread.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Its number.
    pub id: u32,
    /// The core it is pinned to.
    pub core: Option<u32>,
    /// Frames taken from rings.
    pub received: u64,
    /// Frames put on rings.
    pub transmitted: u64,
    /// Frames handed to the worker that has a ring on the egress device.
    pub handed_off: u64,
    /// Frames dropped, for all reasons.
    pub dropped: u64,
    /// The part of the last seconds it was not asleep, 0 to 1.
    pub busy: f32,
}

/// One device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// The kernel's name of it.
    pub name: String,
    /// The kernel's index of it.
    pub index: u32,
    /// Its link-layer address.
    pub mac: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is there and up.
    pub up: bool,
    /// Where the steering program runs: `native` or `generic`.
    pub mode: String,
    /// How frames reach the rings: `zero-copy` or `copy`.
    pub copy: String,
    /// Its bound receive queues and who polls them.
    pub queues: Vec<QueueStatus>,
}

/// One receive queue of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStatus {
    /// The queue's number.
    pub queue: u32,
    /// The number of the worker that polls it.
    pub worker: u32,
    /// Frames the kernel dropped because no buffer was there.
    pub kernel_dropped: u64,
}

/// The connection table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableStatus {
    /// Connections it has.
    pub connections: u64,
    /// Connections it may have.
    pub capacity: u64,
    /// Bytes of memory it uses now.
    pub resident_bytes: u64,
    /// Connections ever made.
    pub inserted: u64,
    /// Connections that expired.
    pub expired: u64,
    /// Connections not made because it was full.
    pub full: u64,
}

/// A reason and how many frames were dropped for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropCount {
    /// Its name.
    pub reason: String,
    /// One sentence about it.
    pub explanation: String,
    /// Frames.
    pub count: u64,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
