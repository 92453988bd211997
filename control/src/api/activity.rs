//! What services and real servers have done: counters, averages, and the entries of a listing that show them.

use super::{ServerSpec, ServiceSpec, is_default};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

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

/// What all services together have done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Statistics {
    /// Their sums and averages, of services that are gone, too.
    pub total: ServiceActivity,
    /// The sums of each worker since the start: nothing zeroes them.
    pub workers: Vec<Counters>,
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
    /// Its local addresses for full NAT, in the order they were added, then those that are leaving.
    #[serde(default, skip_serializing_if = "is_default")]
    pub locals: Vec<LocalEntry>,
}

/// A local address of a service in a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalEntry {
    /// The address.
    pub address: IpAddr,
    /// Whether it was taken from the service and stays for the connections it has.
    #[serde(default, skip_serializing_if = "is_default")]
    pub leaving: bool,
    /// What it has done and does, for all services together.
    #[serde(default, skip_serializing_if = "is_default")]
    pub activity: LocalActivity,
}

/// What a local address has done and does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LocalActivity {
    /// Ports that were in use when a new connection wanted them.
    #[serde(skip_serializing_if = "is_default")]
    pub conflicts: u64,
    /// Connections that use it now.
    #[serde(skip_serializing_if = "is_default")]
    pub connections: u64,
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
