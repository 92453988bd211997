//! The lock-free connection table, protocol state machines and timeouts.

mod flow;
pub mod protocol;
mod time;
mod timeouts;

pub use flow::{Direction, Flow, Flow4, Flow6};
pub use time::{MAX_TIMEOUT, TICKS_PER_SECOND, Tick};
pub use timeouts::{NEW_CONNECTION_SECONDS, TEMPLATE_REARM_SECONDS, Timeouts};

/// A real server of a virtual service: its place in the table's destination directory, the same before and after a restart
/// of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DestinationId(pub u32);

impl DestinationId {
    /// No destination.
    pub const NONE: DestinationId = DestinationId(u32::MAX);
}
