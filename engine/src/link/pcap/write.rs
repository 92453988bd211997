//! Writing capture files: each function appends one piece of a file, in little-endian order.

use super::{Direction, ETHERNET, MAX_FRAME, block, magic, option};
use std::time::Duration;

/// What is to be written of one frame.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// The number of its interface, in the order in which interfaces were written.
    pub interface: u32,
    /// When, since 1970.
    pub time: Duration,
    /// Bytes that it has on the wire.
    pub wire_len: u32,
    /// Which way it went.
    pub direction: Option<Direction>,
    /// What is to be said about it, if not empty. pcap files have no room for it.
    pub comment: &'a str,
    /// The frame, from its Ethernet header on. What exceeds [`MAX_FRAME`] is left out.
    pub bytes: &'a [u8],
}

impl<'a> Frame<'a> {
    fn captured(&self) -> (&'a [u8], u32) {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX).min(MAX_FRAME);
        (&self.bytes[..length as usize], length)
    }
}

/// The beginning of a pcap file, whose times are in nanoseconds.
pub fn pcap_header(to: &mut Vec<u8>) {
    to.extend(magic::NANOSECONDS.to_le_bytes());
    to.extend([2_u16, 4].map(u16::to_le_bytes).concat());
    to.extend([0, 0, MAX_FRAME, ETHERNET.into()].map(u32::to_le_bytes).concat());
}

/// A frame of a pcap file. Times after the year 2106 cannot be told.
pub fn pcap_record(to: &mut Vec<u8>, frame: &Frame<'_>) {
    let (bytes, length) = frame.captured();
    let seconds = u32::try_from(frame.time.as_secs()).unwrap_or(u32::MAX);
    let wire_len = frame.wire_len.max(length);
    to.extend([seconds, frame.time.subsec_nanos(), length, wire_len].map(u32::to_le_bytes).concat());
    to.extend(bytes);
}

/// The beginning of a pcapng file.
pub fn pcapng_section(to: &mut Vec<u8>) {
    enclose(to, block::SECTION, |to| {
        to.extend(block::ORDER.to_le_bytes());
        to.extend([1_u16, 0].map(u16::to_le_bytes).concat());
        // The section's length is not known before it ends.
        to.extend((-1_i64).to_le_bytes());
        add_option(to, option::PROGRAM, concat!("uvs ", env!("CARGO_PKG_VERSION")).as_bytes());
        add_option(to, option::END, &[]);
    });
}

/// An interface of a pcapng file, of which at most `snap` bytes of each frame are kept. Its times are in nanoseconds.
pub fn pcapng_interface(to: &mut Vec<u8>, name: &str, snap: u32) {
    enclose(to, block::INTERFACE, |to| {
        to.extend(u32::from(ETHERNET).to_le_bytes());
        to.extend(snap.to_le_bytes());
        add_option(to, option::NAME, name.as_bytes());
        add_option(to, option::RESOLUTION, &[9]);
        add_option(to, option::END, &[]);
    });
}

/// What is known of interface `number` at `time`: that many of its frames were lost for want of room.
pub fn pcapng_statistics(to: &mut Vec<u8>, number: u32, time: Duration, lost: u64) {
    enclose(to, block::STATISTICS, |to| {
        to.extend(number.to_le_bytes());
        add_time(to, time);
        add_option(to, option::LOST, &lost.to_le_bytes());
        add_option(to, option::END, &[]);
    });
}

/// A frame of a pcapng file.
pub fn pcapng_packet(to: &mut Vec<u8>, frame: &Frame<'_>) {
    let (bytes, length) = frame.captured();
    enclose(to, block::ENHANCED, |to| {
        to.extend(frame.interface.to_le_bytes());
        add_time(to, frame.time);
        to.extend([length, frame.wire_len.max(length)].map(u32::to_le_bytes).concat());
        to.extend(bytes);
        pad(to, bytes.len());
        let flags: u32 = match frame.direction {
            None => 0,
            Some(Direction::In) => 1,
            Some(Direction::Out) => 2,
        };
        if flags != 0 {
            add_option(to, option::FLAGS, &flags.to_le_bytes());
        }
        if !frame.comment.is_empty() {
            add_option(to, option::COMMENT, frame.comment.as_bytes());
        }
        if flags != 0 || !frame.comment.is_empty() {
            add_option(to, option::END, &[]);
        }
    });
}

/// Nanoseconds, their upper half first.
fn add_time(to: &mut Vec<u8>, time: Duration) {
    let [a, b, c, d, e, f, g, h] = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).to_be_bytes();
    let (high, low) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
    to.extend([high, low].map(u32::to_le_bytes).concat());
}

/// A block around what `body` appends.
fn enclose(to: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = to.len();
    to.extend([kind, 0].map(u32::to_le_bytes).concat());
    body(to);
    // Frames and options are bounded, so that the length is far below 4 GiB.
    let length = u32::try_from(to.len() - start + 4).unwrap_or(u32::MAX).to_le_bytes();
    to[start + 4..start + 8].copy_from_slice(&length);
    to.extend(length);
}

/// An option; a value longer than 65535 bytes is cut.
fn add_option(to: &mut Vec<u8>, code: u16, value: &[u8]) {
    let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
    let value = &value[..usize::from(length)];
    to.extend([code, length].map(u16::to_le_bytes).concat());
    to.extend(value);
    pad(to, value.len());
}

fn pad(to: &mut Vec<u8>, length: usize) {
    to.extend(&[0; 3][..length.next_multiple_of(4) - length]);
}
