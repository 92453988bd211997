//! One worker's packet socket on one device.

use super::ring::{Arrival, Ring, slot_for};
use super::sys::{self, Slices, VNET_HEADER};
use crate::batch::{BATCH, PortId};
use crate::link::memory::{Batch, Frame, HEADROOM, Part, Parts, Pool, Region};
use crate::link::{Device, Error, Gone, MAX_PARTS, Queue, Sending, Statistics, cut};
use crate::packet::segment;
use crate::steer::View;
use crate::verdict::Reason;
use arrayvec::ArrayVec;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Frames of others that one call of `receive` looks at: the worker has other queues.
const LOOKS: usize = 1024;

/// Where in a chunk a received frame starts.
const START: usize = HEADROOM as usize;

/// Datagrams of a super-frame: the kernel makes none of more (`UDP_MAX_SEGMENTS`).
const MOST_DATAGRAMS: usize = 128;

/// Length of the two addresses that a VLAN tag stands behind.
const ADDRESSES: usize = 12;

/// How a packet socket is to be opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which frames are ours.
    pub view: View,
    /// Bytes of the receive ring: frames that may arrive while the worker does not look. A power of two of a MiB or more.
    pub receive_bytes: u32,
    /// Parts of frames that may wait to be sent.
    pub transmit_slots: u32,
}

impl Options {
    /// The usual sizes.
    pub fn new(view: View) -> Self {
        Options { view, receive_bytes: 8 << 20, transmit_slots: 1024 }
    }

    /// Chunks the worker's region needs for one such socket.
    pub fn frames(&self) -> u32 {
        4 * self.transmit_slots
    }
}

/// A packet socket bound to a device. It takes what its view says is ours; the kernel has every frame besides, and a guard
/// has to take those from it.
#[derive(Debug)]
pub struct Socket {
    ring: Ring,
    view: View,
    region: Arc<Region>,
    port: PortId,
    /// Parts of datagrams that super-frames were made of, until a batch has room.
    datagrams: VecDeque<Part>,
    /// Parts of frames to send, in order.
    waiting: VecDeque<Part>,
    transmit_slots: usize,
    counts: Arc<Counts>,
    fd: OwnedFd,
}

/// What a socket counts for those who watch it.
#[derive(Debug, Default)]
struct Counts {
    /// Frames longer than a slot that the kernel had no room to keep.
    lost: AtomicU64,
    /// Frames that the device did not take, ever.
    refused: AtomicU64,
}

impl Socket {
    /// Binds to `device`: from now on its frames come here.
    ///
    /// # Errors
    /// See [`Error`]; each says what to do.
    pub fn open(device: &Device, port: PortId, pool: &Pool, options: &Options) -> Result<Self, Error> {
        let failed = |action| move |source| Error::Kernel { action, device: device.name.clone(), source };
        let fd = sys::socket().map_err(|source| match source.raw_os_error() {
            Some(libc::EAFNOSUPPORT) => Error::NoPacketSockets,
            Some(libc::EPERM) => {
                Error::Capability { action: "opening a packet socket", capability: "CAP_NET_RAW" }
            }
            _ => failed("opening a packet socket")(source),
        })?;
        sys::shape(&fd).map_err(failed("setting up a packet socket"))?;
        let bytes = options.receive_bytes.cast_signed();
        sys::widen(&fd, bytes, bytes).map_err(|source| match source.raw_os_error() {
            Some(libc::EPERM) => {
                Error::Capability { action: "widening a packet socket", capability: "CAP_NET_ADMIN" }
            }
            _ => failed("widening a packet socket")(source),
        })?;
        let slot = slot_for(device.mtu);
        let slots = options.receive_bytes / slot;
        sys::make_ring(&fd, slots, slot).map_err(|source| match source.raw_os_error() {
            Some(libc::ENOMEM) => Error::Memory { mebibytes: options.receive_bytes as usize >> 20, source },
            _ => failed("making the ring of a packet socket")(source),
        })?;
        let ring = Ring::map(&fd, slots, slot).map_err(failed("mapping the ring of a packet socket"))?;
        sys::bind(&fd, device.index).map_err(|source| match source.raw_os_error() {
            Some(libc::ENODEV) => Error::NoDevice(device.name.clone()),
            _ => failed("binding a packet socket")(source),
        })?;
        let transmit_slots = options.transmit_slots as usize;
        Ok(Socket {
            ring,
            view: options.view.clone(),
            region: pool.region().clone(),
            port,
            datagrams: VecDeque::new(),
            waiting: VecDeque::with_capacity(transmit_slots),
            transmit_slots,
            counts: Arc::default(),
            fd,
        })
    }

    /// Shares the device's frames by flow with the other sockets of `group`, a new one without it. Returns the group.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the kernel refuses.
    pub fn share(&mut self, device: &Device, group: Option<u16>) -> Result<u16, Error> {
        let group = sys::share(&self.fd, group).map_err(|source| Error::Kernel {
            action: "sharing a device among packet sockets",
            device: device.name.clone(),
            source,
        })?;
        // What came before is the others' too.
        while let Some(Arrival { waits, .. }) = self.ring.peek() {
            self.pass_over(waits);
        }
        Ok(group)
    }

    /// A second descriptor of the socket, to ask the kernel for its statistics from another thread.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn probe(&self) -> io::Result<Probe> {
        Ok(Probe { fd: self.fd.try_clone()?, dropped: AtomicU64::new(0), counts: self.counts.clone() })
    }

    /// Lets the next frame go.
    fn pass_over(&mut self, waits: bool) {
        if waits {
            sys::receive_long(&self.fd, &mut [0; VNET_HEADER], &mut []);
        }
        self.ring.release();
    }

    /// Takes the next frame into `batch`, where and in `pool` there is room for its `parts`.
    fn take(&mut self, parts: usize, pool: &mut Pool, batch: &mut Batch) {
        let mut frames: ArrayVec<Frame, MAX_PARTS> = std::iter::from_fn(|| pool.take()).take(parts).collect();
        let Some(arrival) = self.ring.peek() else {
            return frames.into_iter().for_each(|frame| pool.give(frame));
        };
        let read = if arrival.waits {
            let mut buffers: ArrayVec<&mut [u8], MAX_PARTS> =
                frames.iter_mut().map(|frame| &mut self.region.bytes(frame)[START..]).collect();
            sys::receive_long(&self.fd, &mut [0; VNET_HEADER], &mut buffers)
        } else {
            for (frame, bytes) in frames.iter_mut().zip(arrival.bytes.chunks(room(&self.region))) {
                self.region.bytes(frame)[START..][..bytes.len()].copy_from_slice(bytes);
            }
            Some(arrival.bytes.len())
        };
        let Some(length) = read else {
            self.counts.lost.fetch_add(1, Relaxed);
            frames.into_iter().for_each(|frame| pool.give(frame));
            return self.ring.release();
        };
        let mut left = length;
        let Arrival { mut tag, datagrams, .. } = arrival;
        let begin = batch.len();
        for mut frame in frames {
            let mut len = left.min(room(&self.region));
            let mut start = START;
            left -= len;
            if let Some(tag) = tag.take() {
                start -= tag.len();
                let chunk = self.region.bytes(&mut frame);
                chunk.copy_within(START..START + ADDRESSES, start);
                chunk[start + ADDRESSES..][..tag.len()].copy_from_slice(&tag);
                len += tag.len();
            }
            #[allow(clippy::cast_possible_truncation)] // within a chunk
            batch.push(Part { frame, start: start as u16, len: len as u16, port: self.port, more: left > 0 });
        }
        self.ring.release();
        if let Some(size) = datagrams {
            let whole = batch.drain(begin..).collect();
            self.cut(whole, size.into(), pool);
        }
    }

    /// Cuts a UDP super-frame where the kernel says, which nothing behind here could know. What is none goes on as it is.
    #[cold]
    fn cut(&mut self, mut whole: Parts, size: usize, pool: &mut Pool) {
        let slices = cut::slices(&whole, &self.region);
        let pieces = segment::datagrams(&slices, size).ok().filter(|pieces| pieces.len() <= MOST_DATAGRAMS);
        let Some(pieces) = pieces else {
            drop(slices);
            return self.datagrams.extend(whole);
        };
        for piece in pieces {
            match cut::lay(pool, &slices, &piece, self.port) {
                Ok(laid) => self.datagrams.extend(laid),
                Err(_) => {
                    self.counts.lost.fetch_add(1, Relaxed);
                }
            }
        }
        drop(slices);
        pool.give_all(&mut whole);
    }

    /// Moves datagrams of super-frames into `batch`. Returns whether there was room for all.
    fn hand_on(&mut self, batch: &mut Batch) -> bool {
        while let Some(last) = self.datagrams.iter().position(|part| !part.more) {
            if last >= batch.remaining_capacity() {
                return false;
            }
            batch.extend(self.datagrams.drain(..=last));
        }
        true
    }
}

/// Bytes of a frame that one chunk takes.
fn room(region: &Region) -> usize {
    region.chunk() as usize - START
}

impl Queue for Socket {
    fn port(&self) -> PortId {
        self.port
    }

    fn receive(&mut self, pool: &mut Pool, batch: &mut Batch) -> u64 {
        if !self.hand_on(batch) {
            return 0;
        }
        let known = self.view.look();
        let mut refused = 0;
        for _ in 0..LOOKS {
            let Some(arrival) = self.ring.peek() else { break };
            let Arrival { bytes, length, waits, received, .. } = arrival;
            let parts = length.div_ceil(room(&self.region));
            if !received || !known.takes(bytes) {
                self.pass_over(waits);
            } else if parts > MAX_PARTS {
                refused += 1;
                self.pass_over(waits);
            } else if length > bytes.len() && !waits {
                self.counts.lost.fetch_add(1, Relaxed);
                self.pass_over(false);
            } else if parts > batch.remaining_capacity().min(pool.len()) {
                break;
            } else {
                self.take(parts, pool, batch);
                if !self.hand_on(batch) {
                    break;
                }
            }
        }
        refused
    }

    fn transmit(&mut self, frame: &mut Parts) -> Result<(), Reason> {
        if self.waiting.len() + frame.len() > self.transmit_slots {
            return Err(Reason::TxFull);
        }
        self.waiting.extend(frame.drain(..));
        Ok(())
    }

    fn tend(&mut self, pool: &mut Pool) -> Result<Sending, Gone> {
        let before = self.waiting.len();
        while !self.waiting.is_empty() {
            let mut frames = next_frames(&self.waiting, &self.region);
            let done = match send(&self.fd, &mut frames) {
                Ok(sent) => sent,
                Err(error) => match error.raw_os_error() {
                    Some(libc::ENXIO | libc::ENODEV) => return Err(Gone),
                    Some(libc::EMSGSIZE | libc::EINVAL) => {
                        self.counts.refused.fetch_add(1, Relaxed);
                        1
                    }
                    // The device is down, or its queue or the socket's buffer is full.
                    _ => break,
                },
            };
            for _ in 0..done {
                while let Some(part) = self.waiting.pop_front() {
                    pool.give(part.frame);
                    if !part.more {
                        break;
                    }
                }
            }
        }
        Ok(match self.waiting.len() {
            0 => Sending::Done,
            left if left < before => Sending::Moving,
            _ => Sending::Stuck,
        })
    }

    fn check(&self) -> Result<(), Gone> {
        // A device that goes down leaves an error, which would keep the worker from sleeping.
        let _asked_below_whether_it_is_there = sys::clear_error(&self.fd);
        match sys::bound_to(&self.fd) {
            Ok(-1) => Err(Gone),
            _ => Ok(()),
        }
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The first frames of those that wait, as slices to send.
fn next_frames(waiting: &VecDeque<Part>, region: &Region) -> ArrayVec<Slices, BATCH> {
    let mut frames = ArrayVec::new();
    let mut slices = sys::slices();
    for part in waiting {
        sys::append(&mut slices, part.bytes(region));
        if !part.more {
            frames.push(std::mem::replace(&mut slices, sys::slices()));
            if frames.is_full() {
                break;
            }
        }
    }
    frames
}

#[allow(unsafe_code)] // the slices lead to frames that wait
fn send(fd: &OwnedFd, frames: &mut [Slices]) -> io::Result<usize> {
    // SAFETY: the slices were made just now from the parts of frames whose tokens wait in the socket, which is borrowed
    // mutably meanwhile: nobody writes those chunks.
    unsafe { sys::send(fd, frames) }
}

/// A view of a socket for those who only watch it.
#[derive(Debug)]
pub struct Probe {
    fd: OwnedFd,
    /// What the kernel said it dropped so far: it forgets when it is asked.
    dropped: AtomicU64,
    counts: Arc<Counts>,
}

impl Probe {
    /// What was counted for this socket since it was bound. Frames that were not ours are among those that were dropped
    /// because the ring was full.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn statistics(&self) -> io::Result<Statistics> {
        let new = u64::from(sys::take_drops(&self.fd)?);
        Ok(Statistics {
            dropped: self.counts.lost.load(Relaxed),
            receive_full: self.dropped.fetch_add(new, Relaxed) + new,
            invalid_transmit: self.counts.refused.load(Relaxed),
            ..Statistics::default()
        })
    }
}
