//! What a director says of itself: workers, devices, drops, the connection table.

use serde::{Deserialize, Serialize};

/// The state of a director.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The version of uvs.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Seconds since it became ready.
    pub uptime: u64,
    /// Its polling threads.
    pub workers: Vec<WorkerStatus>,
    /// Its devices.
    pub devices: Vec<DeviceStatus>,
    /// Its connection table.
    pub table: TableStatus,
    /// How many virtual services and real servers it has.
    pub services: u64,
    /// Real servers of all its services.
    pub servers: u64,
    /// Every reason a packet may be dropped for, with its count.
    pub drops: Vec<DropCount>,
    /// Everything else that is counted, with how often it happened.
    #[serde(default)]
    pub events: Vec<EventCount>,
    /// Frames given back to the kernel.
    pub to_kernel: u64,
    /// Frames that wait for their next hop's link-layer address now.
    pub held: u64,
    /// Captures that run.
    #[serde(default)]
    pub captures: u64,
    /// Its next hops.
    pub next_hops: NextHopStatus,
    /// What the guard would do if this process died now: `guard` or `kernel`.
    pub on_crash: String,
}

/// One polling thread.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Its number.
    pub id: u32,
    /// The core it is pinned to.
    pub core: Option<u32>,
    /// Frames taken from rings.
    pub received: u64,
    /// Frames put on rings.
    pub transmitted: u64,
    /// Frames handed to the worker that has a ring on the egress device.
    pub handed_off: u64,
    /// Frames dropped, for all reasons.
    pub dropped: u64,
    /// The part of the last seconds it was not asleep, 0 to 1.
    pub busy: f32,
}

/// One device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// The kernel's name of it.
    pub name: String,
    /// The kernel's index of it.
    pub index: u32,
    /// Its link-layer address.
    pub mac: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is there and up.
    pub up: bool,
    /// Where the steering program runs: `native` or `generic`; `raw` for packet sockets, which need none.
    pub mode: String,
    /// How frames reach the rings: `zero-copy` or `copy`.
    pub copy: String,
    /// Its bound receive queues and who polls them.
    pub queues: Vec<QueueStatus>,
}

/// One receive queue of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStatus {
    /// The queue's number.
    pub queue: u32,
    /// The number of the worker that polls it.
    pub worker: u32,
    /// Frames the kernel dropped because the receive ring was full: the worker was too slow.
    pub ring_full: u64,
    /// Frames the kernel dropped because there was no free chunk for them, or because they were too long for one.
    pub kernel_dropped: u64,
    /// Times the kernel wanted a free chunk and there was none: which of the two it was.
    pub fill_empty: u64,
    /// Frames of the worker that the kernel did not take to send.
    pub transmit_refused: u64,
}

/// How often something happened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventCount {
    /// Its name.
    pub event: String,
    /// What it is.
    pub explanation: String,
    /// How often.
    pub count: u64,
}

/// What was done about next hops and their link-layer addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextHopStatus {
    /// Times the kernel was asked to resolve or confirm one.
    pub asked: u64,
    /// Requests of workers passed over because too many came at once.
    pub passed_over: u64,
    /// Times one found no place in the table.
    pub no_room: u64,
}

/// The connection table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableStatus {
    /// Connections it has.
    pub connections: u64,
    /// Connections it may have.
    pub capacity: u64,
    /// Bytes of memory it uses now.
    pub resident_bytes: u64,
    /// Connections ever made.
    pub inserted: u64,
    /// Connections that expired.
    pub expired: u64,
    /// Connections not made because it was full.
    pub full: u64,
}

/// A reason and how many frames were dropped for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropCount {
    /// Its name.
    pub reason: String,
    /// One sentence about it.
    pub explanation: String,
    /// Frames.
    pub count: u64,
}
