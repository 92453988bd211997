//! The daemons that synchronise connections between directors.

use serde::{Deserialize, Serialize};
use std::net::IpAddr;

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
