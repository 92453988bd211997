//! Live frames for whoever wants to see them: as they come in, as they leave, and those that are dropped, with the reason.
//!
//! A [`Tapped`] process copies what a capture's filter lets through into a queue of its worker, from where a [`Feed`]
//! takes it. Nobody waits for anybody: what finds no room is counted as lost. While nobody captures, a worker looks at one
//! flag for each batch and does nothing else.

mod filter;
mod parse;
mod tap;

#[cfg(test)]
mod tests;

pub use filter::{Filter, Seen};
pub use parse::{FilterError, MAX_LENGTH};
pub use tap::Tapped;

use crate::batch::PortId;
use crate::verdict::Reason;
use arc_swap::ArcSwap;
use crossbeam_queue::SegQueue;
use crossbeam_utils::CachePadded;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Captures that run at a time.
pub const MAX_CAPTURES: usize = 8;

/// Bytes that may wait for one capture's reader, of all workers together.
const ROOM: usize = 16 << 20;

/// What a record takes besides the frame's bytes, about.
const OVERHEAD: usize = 128;

/// What a capture shows of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It came in by the device.
    In,
    /// It leaves by the device, as rewritten.
    Out,
    /// It was dropped: as it came in, or as it could not be sent.
    Dropped,
}

/// Ways a device has in a capture.
pub const WAYS: [Way; 3] = [Way::In, Way::Out, Way::Dropped];

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Way::In => "in",
            Way::Out => "out",
            Way::Dropped => "drop",
        })
    }
}

/// What there is to say about a frame that its bytes do not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// Nothing.
    Nothing,
    /// It is the host's.
    ToHost,
    /// It waits for this neighbour's link-layer address.
    Held(IpAddr),
    /// It waits for the first fragment of its datagram.
    Awaits,
    /// It is cut into segments whose IP packets have at most that many bytes.
    Segments(u16),
    /// It is sent in fragments whose IP packets have at most that many bytes.
    Fragments(u16),
    /// Why it was dropped.
    Dropped(Reason),
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::Nothing => Ok(()),
            Note::ToHost => f.write_str("left to the host"),
            Note::Held(address) => write!(f, "held until {address} has a link-layer address"),
            Note::Awaits => f.write_str("held until the first fragment comes"),
            Note::Segments(limit) => write!(f, "cut into segments of {limit} bytes at most"),
            Note::Fragments(limit) => write!(f, "sent in fragments of {limit} bytes at most"),
            Note::Dropped(reason) => write!(f, "{}: {}", reason.name(), reason.explanation()),
        }
    }
}

/// A frame that was captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// When, since 1970.
    pub time: Duration,
    /// The number of its interface: three for each device that the capture is of, in the order of [`WAYS`].
    pub interface: u32,
    /// Which way it went.
    pub way: Way,
    /// Bytes of the whole frame.
    pub wire_len: u32,
    /// What there is to say about it.
    pub note: Note,
    /// The frame from its Ethernet header on, as far as it is kept.
    pub bytes: Box<[u8]>,
}

/// What is to be captured.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Of which frames.
    pub filter: Filter,
    /// By which devices they come in or leave.
    pub ports: Vec<PortId>,
    /// Bytes kept of each.
    pub snap: usize,
}

/// As many captures run as may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{MAX_CAPTURES} captures run already: end one of them first")]
pub struct TooMany;

/// All captures of a director.
#[derive(Debug)]
pub struct Captures {
    /// Whether there is one: all that a worker looks at otherwise.
    on: AtomicBool,
    running: ArcSwap<Vec<Arc<Capture>>>,
    /// Held while `on` and `running` change.
    change: Mutex<()>,
    feeds: AtomicUsize,
    closed: AtomicBool,
    workers: usize,
}

impl Captures {
    /// None yet, for so many workers.
    pub fn new(workers: usize) -> Arc<Self> {
        Arc::new(Captures {
            on: AtomicBool::new(false),
            running: ArcSwap::default(),
            change: Mutex::new(()),
            feeds: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            workers,
        })
    }

    /// Begins a capture, which runs until its feed is dropped.
    ///
    /// # Errors
    /// [`TooMany`] when [`MAX_CAPTURES`] run.
    pub fn begin(self: &Arc<Self>, wanted: Wanted) -> Result<Feed, TooMany> {
        let _changing = self.changing();
        let mut running = self.running.load().to_vec();
        if running.len() >= MAX_CAPTURES {
            return Err(TooMany);
        }
        let capture = Arc::new(Capture::new(wanted, self.workers));
        running.push(capture.clone());
        self.running.store(Arc::new(running));
        self.feeds.fetch_add(1, Relaxed);
        self.on.store(true, Relaxed);
        Ok(Feed { captures: self.clone(), capture })
    }

    /// How many run.
    pub fn count(&self) -> usize {
        self.running.load().len()
    }

    /// Feeds that are not dropped yet.
    pub fn feeds(&self) -> usize {
        self.feeds.load(Relaxed)
    }

    /// Asks all feeds to end.
    pub fn close(&self) {
        self.closed.store(true, Relaxed);
    }

    fn end(&self, capture: &Arc<Capture>) {
        let _changing = self.changing();
        let mut running = self.running.load().to_vec();
        running.retain(|other| !Arc::ptr_eq(other, capture));
        if running.is_empty() {
            self.on.store(false, Relaxed);
        }
        self.running.store(Arc::new(running));
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.change.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One capture, as the workers see it.
#[derive(Debug)]
struct Capture {
    wanted: Wanted,
    lanes: Vec<CachePadded<Lane>>,
    /// By interface.
    lost: Vec<AtomicU64>,
}

/// What one worker has for one capture.
#[derive(Debug, Default)]
struct Lane {
    records: SegQueue<Record>,
    /// Bytes of them, and of those about to come.
    filled: AtomicUsize,
}

impl Capture {
    fn new(wanted: Wanted, workers: usize) -> Self {
        let lost = wanted.ports.iter().flat_map(|_| WAYS).map(|_| AtomicU64::new(0)).collect();
        Capture { lanes: (0..workers).map(|_| CachePadded::default()).collect(), lost, wanted }
    }

    /// The interface that a frame of device `port` belongs to, if it is wanted.
    fn interface(&self, port: PortId, way: Way) -> Option<u32> {
        let place = self.wanted.ports.iter().position(|wanted| *wanted == port)?;
        u32::try_from(place * WAYS.len() + way as usize).ok()
    }

    /// Room for a record of `len` bytes of worker `worker`, until it is taken out. When there is none the frame is lost.
    fn take_room(&self, worker: usize, interface: u32, len: usize) -> bool {
        let Some(lane) = self.lanes.get(worker) else { return false };
        let most = ROOM / self.lanes.len();
        let taken = lane.filled.fetch_add(len + OVERHEAD, Relaxed) + len + OVERHEAD <= most;
        if !taken {
            lane.filled.fetch_sub(len + OVERHEAD, Relaxed);
            if let Some(lost) = self.lost.get(interface as usize) {
                lost.fetch_add(1, Relaxed);
            }
        }
        taken
    }

    /// Hands over a record for which there is room.
    fn push(&self, worker: usize, record: Record) {
        if let Some(lane) = self.lanes.get(worker) {
            lane.records.push(record);
        }
    }
}

/// The reading end of a capture. Dropping it ends the capture.
#[derive(Debug)]
pub struct Feed {
    captures: Arc<Captures>,
    capture: Arc<Capture>,
}

impl Feed {
    /// What was captured since the last time, of all workers in the order of time.
    pub fn take(&mut self) -> Vec<Record> {
        let mut records = Vec::new();
        for lane in &self.capture.lanes {
            // Not more than there are now, or a busy worker would keep this going for ever.
            for _ in 0..lane.records.len() {
                let Some(record) = lane.records.pop() else { break };
                lane.filled.fetch_sub(record.bytes.len() + OVERHEAD, Relaxed);
                records.push(record);
            }
        }
        records.sort_by_key(|record| record.time);
        records
    }

    /// Frames lost so far for want of room, by interface.
    pub fn lost(&self) -> impl Iterator<Item = u64> {
        self.capture.lost.iter().map(|lost| lost.load(Relaxed))
    }

    /// Ends the capture. What was captured so far can still be taken.
    pub fn end(&self) {
        self.captures.end(&self.capture);
    }

    /// Whether the director ends, and this feed should.
    pub fn is_over(&self) -> bool {
        self.captures.closed.load(Relaxed)
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.end();
        self.captures.feeds.fetch_sub(1, Relaxed);
    }
}
