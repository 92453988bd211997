//! Capture files: pcap and pcapng read, both written. Ethernet only.
//!
//! pcap as libpcap's `pcap-savefile(5)` has it: both byte orders, microseconds or nanoseconds. pcapng as
//! draft-ietf-opsawg-pcapng has it: section headers, interface descriptions, enhanced and simple packets, and of interface
//! statistics what was lost; other blocks are skipped. What is read may be damaged or hostile: nothing is believed that the bytes do not bear out, and no more memory is
//! taken than there are bytes to fill it.

mod reader;
mod write;

#[cfg(test)]
mod tests;

pub use reader::Reader;
pub use write::{
    Frame, pcap_header, pcap_record, pcapng_interface, pcapng_packet, pcapng_section, pcapng_statistics,
};

use std::io;
use std::time::Duration;

/// `LINKTYPE_ETHERNET`.
const ETHERNET: u16 = 1;

/// The most bytes of one frame that a file may hold: libpcap's `MAXIMUM_SNAPLEN`.
pub const MAX_FRAME: u32 = 262_144;

/// What one pcapng block is type of.
mod block {
    pub(super) const SECTION: u32 = 0x0a0d_0d0a;
    pub(super) const INTERFACE: u32 = 1;
    pub(super) const SIMPLE: u32 = 3;
    pub(super) const STATISTICS: u32 = 5;
    pub(super) const ENHANCED: u32 = 6;
    /// The byte-order magic of a section header.
    pub(super) const ORDER: u32 = 0x1a2b_3c4d;
}

/// Options of pcapng blocks.
mod option {
    pub(super) const END: u16 = 0;
    pub(super) const COMMENT: u16 = 1;
    /// Of an interface: its name.
    pub(super) const NAME: u16 = 2;
    /// Of a packet: its direction, among others.
    pub(super) const FLAGS: u16 = 2;
    /// Of an interface's statistics: frames lost for want of room.
    pub(super) const LOST: u16 = 5;
    /// Of a section: the program that wrote it.
    pub(super) const PROGRAM: u16 = 4;
    /// Of an interface: the unit of its times.
    pub(super) const RESOLUTION: u16 = 9;
    /// Of an interface: seconds to add to its times.
    pub(super) const OFFSET: u16 = 14;
}

/// Magic numbers of pcap files in the writer's byte order.
mod magic {
    pub(super) const MICROSECONDS: u32 = 0xa1b2_c3d4;
    pub(super) const NANOSECONDS: u32 = 0xa1b2_3c4d;
}

/// Which way a frame went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// It was received.
    In,
    /// It was sent.
    Out,
}

/// One frame of a capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The place of its interface in [`Reader::interfaces`].
    pub interface: usize,
    /// When, since 1970.
    pub time: Duration,
    /// Bytes it had on the wire; not less than [`Record::bytes`].
    pub wire_len: u32,
    /// Which way it went, when the file says so.
    pub direction: Option<Direction>,
    /// What the file says about it.
    pub comment: Option<String>,
    /// The frame from its Ethernet header on, as far as it was captured.
    pub bytes: Vec<u8>,
}

/// What a capture was taken from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name, when the file gives it.
    pub name: Option<String>,
    /// Frames lost so far for want of room, when the file says so.
    pub lost: Option<u64>,
    link_type: u16,
    /// Bytes kept of each frame; 0 for all.
    snap: u32,
    clock: Clock,
}

/// How an interface counts time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Clock {
    /// Units in a second.
    units: u128,
    /// Seconds to add.
    offset: i64,
}

/// Why a capture cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is something else.
    #[error("is neither a pcap nor a pcapng file")]
    NotACapture,
    /// It ends too early, as when the program that wrote it was killed.
    #[error("ends in the middle of a record, at byte {0}: what came before it is whole")]
    CutShort(u64),
    /// A field contradicts another one.
    #[error("is damaged at byte {at}: {what}")]
    Damaged {
        /// Where the record begins.
        at: u64,
        /// What is wrong there.
        what: &'static str,
    },
    /// Frames without Ethernet header.
    #[error(
        "has frames of link type {0}, not of Ethernet (1): capture on one device rather than on `any`, which has no \
         link-layer addresses"
    )]
    LinkType(u16),
}
