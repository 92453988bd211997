//! The queue of the device by which packets of this host's own sockets come and go ([`OwnDevice`]).
//!
//! It has no ring to look into: to ask it costs a system call, so a worker that is busy asks seldom. One that sleeps is woken.

use super::memory::{Batch, Frame, HEADROOM, Part, Parts, Pool, Region};
use super::{Gone, MAX_PARTS, Queue, Sending};
use crate::batch::PortId;
use crate::packet::ipv4::{self, Ipv4};
use crate::packet::{ethernet, protocol};
use crate::steer::{Injected, OwnDevice};
use crate::verdict::Reason;
use arrayvec::ArrayVec;
use std::io::ErrorKind;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// Looks of the worker for one at the device. It looks once a microsecond or less when it has nothing to do.
const LOOKS: u32 = 16;

/// The longest frame: an Ethernet header, two tags and the longest packet.
const LONGEST: usize = 14 + 8 + 65_535;

/// Where in a chunk a received frame starts.
const START: usize = HEADROOM as usize;

/// Longer IPv4 datagrams than this, in bytes, may not fit the links to real servers.
const SAFE: usize = 1280;

/// The only queue of the device.
#[derive(Debug)]
pub struct OwnQueue {
    device: Arc<OwnDevice>,
    port: PortId,
    region: Arc<Region>,
    buffer: Box<[u8]>,
    looks: u32,
    /// Datagrams that were allowed to be fragmented: the next one's identification.
    allowed: u16,
    gone: bool,
}

impl OwnQueue {
    /// The queue of `device`, which is `port`, for the owner of `pool`.
    pub fn new(device: Arc<OwnDevice>, port: PortId, pool: &Pool) -> Self {
        let (region, buffer) = (pool.region().clone(), vec![0; LONGEST].into());
        OwnQueue { device, port, region, buffer, looks: 0, allowed: 0, gone: false }
    }

    /// The loopback device takes datagrams of any length, so senders are not told that the way is shorter: long ones, the first
    /// `length` bytes of the buffer, may be fragmented. (Linux forbids it by default, to learn path MTUs; of an address of the host
    /// a connected socket learns none.)
    fn allow_fragments(&mut self, length: usize) {
        let frame = &mut self.buffer[..length];
        if length <= ethernet::HEADER_LEN + SAFE
            || frame[12..ethernet::HEADER_LEN] != ethernet::IPV4.to_be_bytes()
        {
            return;
        }
        let Ok(mut header) = Ipv4::parse_mut(frame, ethernet::HEADER_LEN) else { return };
        if header.protocol() == protocol::UDP && header.dont_fragment() {
            self.allowed = self.allowed.wrapping_add(1);
            header.set_fragment(0, false);
            header.set_id(self.allowed);
            let _it_is_there = ipv4::finish(frame, ethernet::HEADER_LEN);
        }
    }

    /// Copies the first `length` bytes of the buffer into `batch`.
    fn take(&mut self, length: usize, pool: &mut Pool, batch: &mut Batch) {
        let room = self.region.chunk() as usize - START;
        let chunks = self.buffer[..length].chunks(room);
        let count = chunks.len();
        let frames: ArrayVec<Frame, MAX_PARTS> = std::iter::from_fn(|| pool.take()).take(count).collect();
        for (at, (mut frame, bytes)) in frames.into_iter().zip(chunks).enumerate() {
            self.region.bytes(&mut frame)[START..][..bytes.len()].copy_from_slice(bytes);
            #[expect(clippy::cast_possible_truncation, reason = "within a chunk")]
            let (start, len) = (START as u16, bytes.len() as u16);
            batch.push(Part { frame, start, len, port: self.port, more: at + 1 < count });
        }
    }
}

impl Queue for OwnQueue {
    fn port(&self) -> PortId {
        self.port
    }

    fn receive(&mut self, pool: &mut Pool, batch: &mut Batch) -> u64 {
        self.looks = self.looks.wrapping_add(1);
        if !self.looks.is_multiple_of(LOOKS) || self.gone {
            return 0;
        }
        while batch.remaining_capacity() >= MAX_PARTS && pool.len() >= MAX_PARTS {
            match self.device.receive(&mut self.buffer) {
                Ok(length) => {
                    self.allow_fragments(length);
                    self.take(length, pool, batch);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.gone = error.kind() != ErrorKind::WouldBlock;
                    return 0;
                }
            }
        }
        // There may be more.
        self.looks = self.looks.wrapping_sub(1);
        0
    }

    fn transmit(&mut self, frame: &mut Parts) -> Result<(), Reason> {
        let slices: ArrayVec<&[u8], MAX_PARTS> = frame.iter().map(|part| part.bytes(&self.region)).collect();
        match self.device.inject(&slices) {
            Injected::Taken => Ok(()),
            Injected::Full | Injected::Refused => Err(Reason::WayBackFull),
        }
    }

    fn tend(&mut self, _pool: &mut Pool) -> Result<Sending, Gone> {
        Ok(Sending::Done)
    }

    fn check(&self) -> Result<(), Gone> {
        if self.gone { Err(Gone) } else { Ok(()) }
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.device.descriptor()
    }
}
