//! What is said on the control socket: requests, responses, and the things they speak of.
//!
//! The types are IPVS's own model of a virtual server table, so that what `ipvsadm` can say can be said here, and a director
//! answers with the refusals the kernel gives. They are plain data: rules about them live in [`crate::registry`].
//!
//! The encoding is JSON; [`VERSION`] changes when an old peer would misunderstand a new one.

mod activity;
mod capture;
mod connections;
mod daemons;
mod scheduling;
mod services;
mod status;
mod terms;
mod timeouts;

pub use activity::{
    Counters, LocalActivity, LocalEntry, Rates, ServerActivity, ServerEntry, ServiceActivity, ServiceEntry,
    Statistics,
};
pub use capture::CaptureSpec;
pub use connections::{ConnectionEntry, Timeouts};
pub use daemons::{Daemon, DaemonState};
pub use scheduling::{SchedulerFlags, SchedulerOptions};
pub use services::{
    Family, Method, Netmask, Protocol, ServerSpec, ServiceId, ServiceSpec, Tunnel, TunnelChecksum, TunnelKind,
};
pub use status::{
    DeviceStatus, DropCount, EventCount, NextHopStatus, QueueStatus, Status, TableStatus, WorkerStatus,
};
pub use terms::{AddressOption, ClientAddress, MSS, RefuseWith, Terms};
pub use timeouts::StateTimeouts;

use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

/// The version of this protocol. A director answers another version with [`Refusal::Version`].
pub const VERSION: u32 = 1;

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
    /// Gives a virtual service a local address for full NAT.
    AddLocal {
        /// The virtual service.
        service: ServiceId,
        /// The local address.
        address: IpAddr,
    },
    /// Takes a local address from a virtual service. It leaves when the connections it has are gone.
    DeleteLocal {
        /// The virtual service.
        service: ServiceId,
        /// The local address.
        address: IpAddr,
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
    /// Asks for the sums and averages of all services together.
    Statistics,
    /// Asks for the state timeouts.
    Timeouts,
    /// Sets state timeouts; 0 leaves one as it is.
    SetTimeouts(Timeouts),
    /// Asks for every setting of `net.ipv4.vs`.
    Settings,
    /// Sets one.
    SetSetting {
        /// Its name below `net.ipv4.vs`.
        name: String,
        /// Its value.
        value: i32,
    },
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
    /// Shows frames as they pass: see [`CaptureSpec`]. Not part of a batch.
    Capture(CaptureSpec),
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
    /// EEXIST for a local address.
    #[error("Local address already exists")]
    LocalExists,
    /// ENOENT for a local address.
    #[error("No such local address")]
    NoSuchLocal,
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
    /// The sums and averages of all services together.
    Statistics(Statistics),
    /// The state timeouts.
    Timeouts(Timeouts),
    /// Every setting by its name, in their order, with its value.
    Settings(Vec<(String, i32)>),
    /// The running synchronisation daemons.
    Daemons(Vec<Daemon>),
    /// The director's state.
    Status(Box<Status>),
    /// A capture begins; see [`CaptureSpec`].
    Capture {
        /// What its frames are of, in the stream's order.
        interfaces: Vec<String>,
    },
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

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
