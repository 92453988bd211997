//! The lock-free connection table, protocol state machines and timeouts.
//!
//! One [`Table`] holds the connections of all workers, both directions of each findable, in memory that outlives the process
//! ([`SharedTable`]) or on the heap. Every thread works on it through a [`Handle`] of its own. Lookups and insertions take
//! no lock and wait for nobody:
//!
//! - `index`: from a flow's hash to its entry, growing as connections come;
//! - `insert`: one connection per client flow, whoever inserts at the same time;
//! - `epoch`, `allocator`: when an entry may be used again, and by whom;
//! - `due`, `sweep`: expiry without a timer per connection;
//! - `transition`, [`protocol`]: states and their timeouts, as IPVS has them;
//! - `repair`: what a process finds that maps the table after another one died;
//! - `directory`: which real server a connection's [`DestinationId`] means.

mod allocator;
mod connection;
mod directory;
mod due;
mod epoch;
mod flow;
mod growth;
mod handle;
mod hash;
mod index;
mod insert;
mod layout;
mod meta;
pub mod protocol;
mod repair;
mod stats;
mod storage;
mod sweep;
mod sync;
mod table;
mod time;
mod timeouts;
mod transition;

pub use connection::{ConnId, Connection, Sequence};
pub use directory::{Directory, DirectoryFull, Identity};
pub use epoch::MAX_HANDLES;
pub use flow::{Direction, Flow, Flow4, Flow6};
#[cfg(not(loom))]
pub use handle::SharedHandle;
pub use handle::{Candidate, Found, Handle, Hit};
pub use insert::{Inserted, NewConnection, NotInserted};
pub use layout::{Limits, MAX_CONNECTIONS};
pub use meta::{Meta, flags};
pub use stats::TableStats;
#[cfg(not(loom))]
pub use storage::{Heap, Memfd, MemfdError, Storage};
#[cfg(loom)]
pub use storage::{Heap, Storage};
#[cfg(not(loom))]
pub use table::SharedTable;
pub use table::{Table, TableError, TooManyHandles};
pub use time::{MAX_TIMEOUT, TICKS_PER_SECOND, Tick};
pub use timeouts::{NEW_CONNECTION_SECONDS, OwnTimeouts, TEMPLATE_REARM_SECONDS, Timeouts};
pub use transition::{Load, Transition};

/// A real server of a virtual service: its place in the table's destination directory, the same before and after a restart
/// of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DestinationId(pub u32);

impl DestinationId {
    /// No destination.
    pub const NONE: DestinationId = DestinationId(u32::MAX);
}
