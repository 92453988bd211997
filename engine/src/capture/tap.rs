//! The place where a worker's frames are looked at.

use super::{Capture, Captures, Note, Record, Seen, Way};
use crate::batch::{Packet, PortId};
use crate::link::MAX_PARTS;
use crate::snapshot::Snapshot;
use crate::verdict::{Reason, Verdict};
use crate::worker::Process;
use arrayvec::ArrayVec;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};
use uvs_conntrack::Tick;

/// Bytes of a frame that a filter may have to look at.
const HEADERS: usize = 512;

/// A process whose frames can be captured.
#[derive(Debug)]
pub struct Tapped<P> {
    process: P,
    captures: Arc<Captures>,
    worker: usize,
    /// Whether the frames judged next came in earlier.
    again: bool,
    /// The frames of a batch as they came, one after the other.
    came: Vec<u8>,
    /// Where each ends there, and its whole length.
    ends: Vec<(usize, usize)>,
    /// What was captured of a batch whose verdicts may not have been carried out yet.
    pending: Vec<Pending>,
}

/// A record that becomes a drop if its frame cannot be sent.
#[derive(Debug)]
struct Pending {
    /// The address at which the frame lies, if it is to be sent.
    place: Option<usize>,
    capture: Arc<Capture>,
    record: Record,
}

/// One sight of a frame.
#[derive(Clone, Copy)]
struct Sight<'a> {
    time: Duration,
    port: PortId,
    way: Way,
    note: Note,
    parts: &'a [&'a [u8]],
    /// Bytes of the whole frame, of which `parts` may lack the end.
    len: usize,
}

/// What a verdict has to show: the frame as it came, the frame as it leaves.
#[derive(Clone, Copy)]
struct Shown {
    before: Option<(Way, Note)>,
    /// By which device it leaves.
    after: Option<(PortId, Note)>,
}

impl Shown {
    /// `again`: of a frame that was shown as it came.
    fn of(verdict: Verdict, again: bool) -> Self {
        let came = |note| (!again).then_some((Way::In, note));
        let sent = |port, note| Shown { before: came(Note::Nothing), after: Some((port, note)) };
        let stays = |before| Shown { before, after: None };
        match verdict {
            Verdict::Transmit(port) => sent(port, Note::Nothing),
            Verdict::Fragment(port, limit) => sent(port, Note::Fragments(limit)),
            Verdict::Segment(limit) => stays(came(Note::Segments(limit))),
            Verdict::Hold(neighbour) => stays(came(Note::Held(neighbour.address))),
            Verdict::Await => stays(came(Note::Awaits)),
            Verdict::ToKernel => stays(Some((Way::In, Note::ToHost))),
            Verdict::Drop(reason) => stays(Some((Way::Dropped, Note::Dropped(reason)))),
        }
    }
}

impl<P> Tapped<P> {
    /// Shows the frames that `process` judges, as worker `worker`, to `captures`.
    pub fn new(process: P, captures: Arc<Captures>, worker: usize) -> Self {
        Tapped { process, captures, worker, again: false, came: vec![], ends: vec![], pending: vec![] }
    }

    /// Keeps the frames as they came, up to `limit` bytes of each.
    fn copy(&mut self, packets: &[Packet<'_>], limit: usize) {
        self.came.clear();
        self.ends.clear();
        for packet in packets {
            append(&mut self.came, limit, &parts(packet));
            self.ends.push((self.came.len(), packet.total_len()));
        }
    }

    /// What there is to capture of the judged frames.
    fn look(&mut self, packets: &[Packet<'_>], verdicts: &[Verdict], again: bool, captures: &[Arc<Capture>]) {
        let (time, mut start) = (now(), 0);
        for ((packet, verdict), &(end, len)) in packets.iter().zip(verdicts).zip(&self.ends) {
            let before = [&self.came[start..end]];
            start = end;
            let shown = Shown::of(*verdict, again);
            let after = shown.after.map(|_| parts(packet));
            let dropped = matches!(verdict, Verdict::Drop(_));
            let seen = Seen::of(before[0], after.as_ref().map(|_| packet.frame()), dropped);
            let came = shown.before.map(|(way, note)| {
                (None, Sight { time, port: packet.port(), way, note, parts: &before, len })
            });
            let leaves = shown.after.zip(after.as_ref()).map(|((port, note), parts)| {
                let place = packet.frame().as_ptr().addr();
                (Some(place), Sight { time, port, way: Way::Out, note, parts, len: packet.total_len() })
            });
            for capture in captures.iter().filter(|capture| capture.wanted.filter.matches(&seen)) {
                for (place, sight) in came.iter().chain(&leaves) {
                    if let Some(record) = sight.record(capture, self.worker) {
                        self.pending.push(Pending { place: *place, capture: capture.clone(), record });
                    }
                }
            }
        }
    }

    /// Hands over what became of the last batch.
    #[cold]
    fn flush(&mut self) {
        for Pending { capture, record, .. } in self.pending.drain(..) {
            capture.push(self.worker, record);
        }
    }

    /// A frame could not be sent, or not be held, or not be given back to the host.
    #[cold]
    fn not_carried_out(&mut self, reason: Reason, port: PortId, parts: &[&[u8]]) {
        let Some(head) = parts.first() else { return };
        let (place, note) = (Some(head.as_ptr().addr()), Note::Dropped(reason));
        let mut known = false;
        for Pending { record, .. } in self.pending.iter_mut().filter(|pending| pending.place == place) {
            known = true;
            record.interface += Way::Dropped as u32 - record.way as u32;
            (record.way, record.note) = (Way::Dropped, note);
        }
        if known {
            return;
        }
        let len = parts.iter().map(|part| part.len()).sum();
        let sight = Sight { time: now(), port, way: Way::Dropped, note, parts, len };
        let seen = Seen::of(head, None, true);
        let captures = self.captures.running.load_full();
        for capture in captures.iter().filter(|capture| capture.wanted.filter.matches(&seen)) {
            if let Some(record) = sight.record(capture, self.worker) {
                self.pending.push(Pending { place: None, capture: capture.clone(), record });
            }
        }
    }
}

impl<P: Process> Tapped<P> {
    #[cold]
    fn watched(
        &mut self,
        snapshot: &Snapshot,
        now: Tick,
        packets: &mut [Packet<'_>],
        verdicts: &mut [Verdict],
    ) {
        self.flush();
        let again = std::mem::take(&mut self.again);
        let captures = self.captures.running.load_full();
        let limit = captures.iter().map(|capture| capture.wanted.snap).max().unwrap_or(0).max(HEADERS);
        self.copy(packets, limit);
        self.process.process(snapshot, now, packets, verdicts);
        self.look(packets, verdicts, again, &captures);
    }
}

impl<P: Process> Process for Tapped<P> {
    fn process(
        &mut self,
        snapshot: &Snapshot,
        now: Tick,
        packets: &mut [Packet<'_>],
        verdicts: &mut [Verdict],
    ) {
        if self.captures.on.load(Relaxed) {
            self.watched(snapshot, now, packets, verdicts);
        } else {
            self.process.process(snapshot, now, packets, verdicts);
        }
    }

    fn again(&mut self) {
        self.again = true;
        self.process.again();
    }

    fn give_up(&mut self, waited: bool) {
        self.process.give_up(waited);
    }

    fn dropped(&mut self, reason: Reason, frame: Option<(PortId, &[&[u8]])>) {
        self.process.dropped(reason, frame);
        if let Some((port, parts)) = frame.filter(|_| self.captures.on.load(Relaxed)) {
            self.not_carried_out(reason, port, parts);
        }
    }

    fn take_released(&mut self) -> bool {
        self.process.take_released()
    }

    /// All verdicts of the turn before were carried out.
    fn between(&mut self, now: Tick) {
        if !self.pending.is_empty() {
            self.flush();
        }
        self.again = false;
        self.process.between(now);
    }

    fn sleep(&mut self, now: Tick) {
        self.flush();
        self.process.sleep(now);
    }
}

impl Sight<'_> {
    /// The record of it for `capture`, if that is of its device and has room.
    fn record(&self, capture: &Capture, worker: usize) -> Option<Record> {
        let Sight { time, port, way, note, parts, len } = *self;
        let interface = capture.interface(port, way)?;
        let kept = parts.iter().map(|part| part.len()).sum::<usize>().min(capture.wanted.snap);
        if !capture.take_room(worker, interface, kept) {
            return None;
        }
        let mut bytes = Vec::with_capacity(kept);
        append(&mut bytes, kept, parts);
        let wire_len = u32::try_from(len).unwrap_or(u32::MAX);
        Some(Record { time, interface, way, wire_len, note, bytes: bytes.into() })
    }
}

fn parts<'a>(packet: &'a Packet<'_>) -> ArrayVec<&'a [u8], MAX_PARTS> {
    std::iter::once(packet.frame()).chain(packet.rest().iter().copied()).take(MAX_PARTS).collect()
}

/// Appends the first `limit` bytes of a frame.
fn append(to: &mut Vec<u8>, limit: usize, parts: &[&[u8]]) {
    let end = to.len().saturating_add(limit);
    for part in parts {
        to.extend(&part[..part.len().min(end - to.len())]);
    }
}

/// Since 1970.
fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
