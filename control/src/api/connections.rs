//! Connections: how long they live, and one in a listing.

use super::is_default;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

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
