//! Where a table lies: on the heap, or in memory that outlives the process.

mod heap;
mod intrinsics;
#[cfg(not(loom))]
mod memfd;

pub use heap::Heap;
pub(crate) use intrinsics::{equal_bytes, prefetch};
#[cfg(not(loom))]
pub use memfd::{Memfd, MemfdError};

use crate::layout::{Bucket, Cold, Header, Narrow, Record, Wide};

/// The memory of a table: arrays of atomics, zero where nothing was ever written, at the same place for as long as it lives.
pub trait Storage: Send + Sync + 'static {
    /// What the table says about itself.
    fn header(&self) -> &Header;
    /// The index, at its greatest extent.
    fn buckets(&self) -> &[Bucket];
    /// IPv4 entries.
    fn narrow(&self) -> &[Narrow];
    /// What few packets need of the IPv4 entry of the same number.
    fn cold(&self) -> &[Cold];
    /// IPv6 entries.
    fn wide(&self) -> &[Wide];
    /// The destination directory.
    fn records(&self) -> &[Record];
    /// Bytes of physical memory it takes at present.
    fn resident_bytes(&self) -> u64;
}
