//! A worker's turns, one by one, with queues that are lists and a judge that does as it is told.

use super::handoff::{self, Mailbox};
use super::hands::{Hands, Tools};
use super::*;
use crate::batch::PortId;
use crate::link::{Gone, Part, Parts, Pool, Queue, Sending};
use crate::snapshot::Config;
use crate::verdict::Neighbour;
use nix::sys::eventfd::EventFd;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard};

const FRAMES: usize = 2048;
const NEIGHBOUR: Neighbour =
    Neighbour { port: PortId(1), address: std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)) };

/// What a test sees of a queue.
#[derive(Clone, Default)]
struct Wire(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    arriving: VecDeque<Vec<Vec<u8>>>,
    sent: Vec<Vec<Vec<u8>>>,
    full: bool,
    gone: bool,
}

impl Wire {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

struct List {
    port: PortId,
    wire: Wire,
    region: Arc<Region>,
    sending: Vec<Parts>,
    event: EventFd,
}

impl Queue for List {
    fn port(&self) -> PortId {
        self.port
    }

    fn receive(&mut self, pool: &mut Pool, batch: &mut Batch) -> u64 {
        let mut state = self.wire.state();
        while state.arriving.front().is_some_and(|parts| parts.len() <= batch.remaining_capacity()) {
            let parts = state.arriving.pop_front().unwrap();
            for (index, bytes) in parts.iter().enumerate() {
                let mut frame = pool.take().expect("frames were lost");
                self.region.bytes(&mut frame)[256..256 + bytes.len()].copy_from_slice(bytes);
                let (len, more) = (u16::try_from(bytes.len()).unwrap(), index + 1 < parts.len());
                batch.push(Part { frame, start: 256, len, port: self.port, more });
            }
        }
        0
    }

    fn transmit(&mut self, frame: &mut Parts) -> Result<(), Reason> {
        if self.wire.state().full {
            return Err(Reason::TxFull);
        }
        self.sending.push(frame.take());
        Ok(())
    }

    fn tend(&mut self, pool: &mut Pool) -> Result<Sending, Gone> {
        let mut state = self.wire.state();
        for mut frame in self.sending.drain(..) {
            state.sent.push(frame.iter().map(|part| part.bytes(&self.region).to_vec()).collect());
            pool.give_all(&mut frame);
        }
        if state.gone { Err(Gone) } else { Ok(Sending::Done) }
    }

    fn check(&self) -> Result<(), Gone> {
        Ok(())
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// The first byte of a frame says what becomes of it; its second byte is increased.
#[derive(Clone, Default)]
struct Obedient {
    dropped: Arc<Mutex<Vec<Reason>>>,
    calls: Arc<Mutex<Vec<&'static str>>>,
    first_came: bool,
    released: bool,
    giving_up: bool,
}

const TRANSMIT_0: u8 = 0;
const TRANSMIT_1: u8 = 1;
const TRANSMIT_ELSEWHERE: u8 = 2;
const TO_KERNEL: u8 = 4;
const HOLD_UNTIL_GENERATION_1: u8 = 5;
const DROP: u8 = 6;
/// What is longer than 1,000 bytes is cut into TCP segments of that length, and goes by device 1.
const SEGMENT: u8 = 7;
/// Goes by device 1, in IP fragments of at most 1,000 bytes.
const FRAGMENT: u8 = 8;
/// Waits until one came whose first byte is `FIRST`; both go by device 1.
const LATER: u8 = 10;
const FIRST: u8 = 11;

impl Process for Obedient {
    fn process(
        &mut self,
        snapshot: &Snapshot,
        _: Tick,
        packets: &mut [Packet<'_>],
        verdicts: &mut [Verdict],
    ) {
        assert_eq!(packets.len(), verdicts.len());
        self.calls.lock().unwrap().push("process");
        for (packet, verdict) in packets.iter_mut().zip(verdicts) {
            *verdict = match packet.frame()[0] {
                TO_KERNEL => Verdict::ToKernel,
                HOLD_UNTIL_GENERATION_1 if snapshot.generation == 0 => Verdict::Hold(NEIGHBOUR),
                HOLD_UNTIL_GENERATION_1 => Verdict::Transmit(PortId(1)),
                DROP => Verdict::Drop(Reason::NoDestination),
                SEGMENT if packet.total_len() > 1014 => Verdict::Segment(1000),
                SEGMENT => Verdict::Transmit(PortId(1)),
                FRAGMENT => Verdict::Fragment(PortId(1), 1000),
                LATER if !self.first_came => Verdict::Await,
                LATER => Verdict::Transmit(PortId(1)),
                FIRST => {
                    (self.first_came, self.released) = (true, true);
                    Verdict::Transmit(PortId(1))
                }
                port => Verdict::Transmit(PortId(port.into())),
            };
            if let Verdict::Hold(_) = verdict {
                self.calls.lock().unwrap().extend(self.giving_up.then_some("held in vain"));
            }
            if !matches!(verdict, Verdict::Hold(_) | Verdict::Segment(_) | Verdict::Await) {
                packet.frame_mut()[1] += 1;
            }
        }
    }

    fn give_up(&mut self, waited: bool) {
        self.giving_up = waited;
    }

    fn dropped(&mut self, reason: Reason, _: Option<(PortId, &[&[u8]])>) {
        self.dropped.lock().unwrap().push(reason);
    }

    fn take_released(&mut self) -> bool {
        std::mem::take(&mut self.released)
    }

    fn between(&mut self, _: Tick) {
        self.calls.lock().unwrap().push("between");
    }

    fn sleep(&mut self, _: Tick) {
        self.calls.lock().unwrap().push("sleep");
    }
}

/// Worker 0 of two, with a queue of each of the first two devices; device 2 is held by worker 1, device 3 by nobody.
struct Bench {
    worker: Worker<Obedient>,
    wires: [Wire; 2],
    judge: Obedient,
    kernel: Wire,
    config: Arc<Config>,
    notices: Arc<Notices>,
    tally: Arc<Tally>,
    other: (Pool, handoff::Reader),
    now: Duration,
}

impl Bench {
    fn new() -> Self {
        let mut pool = Pool::new(u32::try_from(FRAMES + handoff::CAPACITY).unwrap(), 2048).unwrap();
        let mut others_pool = Pool::new(1024, 2048).unwrap();
        let region = pool.region().clone();
        let bell = Bell::new().unwrap();
        let mailboxes = [
            Arc::new(Mailbox::new(&mut pool, 2, bell.clone())),
            Arc::new(Mailbox::new(&mut others_pool, 2, Bell::new().unwrap())),
        ];
        let wires = [Wire::default(), Wire::default()];
        let queue = |(port, wire): (u16, &Wire)| {
            let (wire, region, event) = (wire.clone(), region.clone(), EventFd::new().unwrap());
            Box::new(List { port: PortId(port), wire, region, sending: vec![], event }) as Box<dyn Queue>
        };
        let queues = (0..).zip(&wires).map(queue).collect();
        let (judge, kernel, tally) = (Obedient::default(), Wire::default(), Arc::new(Tally::default()));
        let (config, notices) = (Config::new(Snapshot::empty(Arc::default())), Notices::new().unwrap());
        let to = kernel.clone();
        let way_back = Box::new(move |parts: &[&[u8]]| {
            let mut kernel = to.state();
            if !kernel.full {
                kernel.sent.push(parts.iter().map(|part| part.to_vec()).collect());
            }
            !kernel.full
        });
        let reader = handoff::Reader::new(mailboxes[1].clone());
        let tools = Tools {
            me: 0,
            pool,
            queues,
            owners: [vec![0], vec![0, 1], vec![1], vec![]].into(),
            own: None,
            mailboxes: mailboxes.into(),
            way_back,
            notices: notices.clone(),
            tally: tally.clone(),
        };
        let worker = Worker {
            follower: config.follow(),
            process: judge.clone(),
            hands: Hands::new(tools),
            region,
            bell,
            batch: Batch::new(),
            busy: Duration::ZERO,
        };
        let other = (others_pool, reader);
        Bench { worker, wires, judge, kernel, config, notices, tally, other, now: Duration::from_secs(100) }
    }

    fn arrive(&self, port: usize, parts: &[&[u8]]) {
        self.wires[port].state().arriving.push_back(parts.iter().map(|part| part.to_vec()).collect());
    }

    fn turn_after(&mut self, milliseconds: u64) -> bool {
        self.now += Duration::from_millis(milliseconds);
        self.worker.turn(self.now)
    }

    fn sent(&self, port: usize) -> Vec<Vec<Vec<u8>>> {
        std::mem::take(&mut self.wires[port].state().sent)
    }

    fn dropped(&self) -> Vec<Reason> {
        std::mem::take(&mut self.judge.dropped.lock().unwrap())
    }

    /// Frames that are in nobody's hands.
    fn free(&self) -> usize {
        self.worker.hands.free_frames()
    }
}

#[test]
fn each_verdict_is_carried_out() {
    let mut bench = Bench::new();
    for first in [TRANSMIT_1, TRANSMIT_0, TO_KERNEL, DROP, 3, 9, TRANSMIT_ELSEWHERE] {
        bench.arrive(0, &[&[first, 10, 77]]);
    }
    assert!(bench.turn_after(0));
    assert_eq!(bench.sent(0), [[[TRANSMIT_0, 11, 77]]]);
    assert_eq!(bench.sent(1), [[[TRANSMIT_1, 11, 77]]]);
    assert_eq!(bench.kernel.state().sent, [[[TO_KERNEL, 11, 77]]]);
    assert_eq!(bench.dropped(), [Reason::EgressNotOurs, Reason::EgressNotOurs]);
    let (pool, reader) = &mut bench.other;
    let (region, mut got) = (pool.region().clone(), vec![]);
    assert!(reader.collect(pool, |frame, _| got.push((frame[0].bytes(&region).to_vec(), frame[0].port))));
    assert_eq!(got, [(vec![TRANSMIT_ELSEWHERE, 11, 77], PortId(2))]);
    assert_eq!(bench.free(), FRAMES);
    let tally = &bench.tally;
    assert_eq!((tally.received(), tally.received_bytes()), (7, 21));
    assert_eq!((tally.transmitted(), tally.handed(), tally.returned()), (2, 1, 1));
    assert!(!bench.turn_after(0), "nothing is left to do");
}

#[test]
fn a_frame_in_parts_leaves_in_the_same_parts() {
    let mut bench = Bench::new();
    bench.arrive(0, &[&[TRANSMIT_1, 1], &[2, 2, 2], &[3]]);
    bench.arrive(0, &[&[TRANSMIT_1, 5]]);
    bench.turn_after(0);
    let expected: [&[&[u8]]; 2] = [&[&[TRANSMIT_1, 2], &[2, 2, 2], &[3]], &[&[TRANSMIT_1, 6]]];
    assert_eq!(bench.sent(1), expected);
    assert_eq!(bench.free(), FRAMES);
}

/// A frame whose first byte is `first`, with `length` bytes of TCP data, in parts as a ring brings them.
fn tcp(first: u8, length: usize) -> Vec<Vec<u8>> {
    let ethernet = etherparse::PacketBuilder::ethernet2([4; 6], [first, 0, 0, 0, 0, 0]);
    let mut ip =
        etherparse::Ipv4Header::new(0, 64, etherparse::IpNumber::TCP, [10, 0, 0, 2], [10, 0, 0, 9]).unwrap();
    ip.dont_fragment = false;
    let ip = etherparse::IpHeaders::Ipv4(ip, etherparse::Ipv4Extensions::default());
    let mut bytes = vec![];
    let data: Vec<u8> = (0..length).map(|at| at.to_le_bytes()[0]).collect();
    ethernet.ip(ip).tcp(40000, 80, 1, 1000).write(&mut bytes, &data).unwrap();
    bytes.chunks(2048 - 256).map(<[u8]>::to_vec).collect()
}

fn arrive_in_parts(bench: &Bench, frame: &[Vec<u8>]) {
    bench.arrive(0, &frame.iter().map(Vec::as_slice).collect::<Vec<_>>());
}

#[test]
fn a_super_frame_is_cut_in_its_place() {
    let mut bench = Bench::new();
    bench.arrive(0, &[&[TRANSMIT_1, 10]]);
    arrive_in_parts(&bench, &tcp(SEGMENT, 64_000));
    bench.arrive(0, &[&[TRANSMIT_1, 20]]);
    while bench.turn_after(0) {}
    let sent = bench.sent(1);
    assert_eq!((&sent[0], &sent[sent.len() - 1]), (&vec![vec![TRANSMIT_1, 11]], &vec![vec![TRANSMIT_1, 21]]));
    let data: Vec<u8> =
        sent[1..sent.len() - 1].iter().flat_map(|frame| frame.concat()[54..].to_vec()).collect();
    assert!(data.iter().copied().eq((0..64_000_usize).map(|at| at.to_le_bytes()[0])));
    assert_eq!((sent.len(), sent[1].concat().len()), (2 + 64_000_usize.div_ceil(960), 1014));
    assert_eq!((bench.dropped(), bench.free()), (vec![], FRAMES));
}

#[test]
fn a_packet_leaves_in_fragments() {
    let mut bench = Bench::new();
    arrive_in_parts(&bench, &tcp(FRAGMENT, 2000));
    while bench.turn_after(0) {}
    let lengths: Vec<usize> = bench.sent(1).iter().map(|frame| frame.concat().len()).collect();
    assert_eq!(lengths, [34 + 976, 34 + 976, 34 + 2020 - 2 * 976]);
    assert_eq!((bench.dropped(), bench.free()), (vec![], FRAMES));
}

#[test]
fn fragments_follow_the_first_one_in_the_same_turn() {
    let mut bench = Bench::new();
    bench.arrive(0, &[&[LATER, 1]]);
    bench.turn_after(0);
    assert_eq!((bench.sent(1).len(), bench.free()), (0, FRAMES - 1));
    bench.arrive(0, &[&[LATER, 3]]);
    bench.arrive(1, &[&[FIRST, 5]]);
    bench.turn_after(0);
    bench.turn_after(0);
    assert_eq!(bench.sent(1), [[[FIRST, 6]], [[LATER, 2]], [[LATER, 4]]]);
    assert_eq!((bench.dropped(), bench.free()), (vec![], FRAMES));
}

#[test]
fn fragments_that_another_worker_released_are_tried_at_every_tick() {
    let mut bench = Bench::new();
    bench.arrive(0, &[&[LATER, 1]]);
    bench.turn_after(0);
    bench.worker.process.first_came = true;
    bench.turn_after(0);
    assert_eq!(bench.sent(1).len(), 0);
    bench.turn_after(10);
    bench.turn_after(0);
    assert_eq!(bench.sent(1), [[[LATER, 2]]]);
}

#[test]
fn fragments_without_a_first_one_are_given_up_and_bounded() {
    let mut bench = Bench::new();
    for _ in 0..300 {
        bench.arrive(0, &[&[LATER, 1]]);
    }
    while bench.turn_after(0) {}
    assert_eq!((bench.dropped(), bench.free()), (vec![Reason::FragmentFlood; 300 - 256], FRAMES - 256));
    for _ in 0..30 {
        bench.turn_after(100);
    }
    assert_eq!((bench.dropped(), bench.free()), (vec![Reason::FragmentTimeout; 256], FRAMES));
}

#[test]
fn what_cannot_be_cut_is_dropped_by_name() {
    let mut bench = Bench::new();
    let mut no_tcp = tcp(SEGMENT, 3000);
    no_tcp[0][23] = 17;
    arrive_in_parts(&bench, &no_tcp);
    bench.arrive(0, &[&[FRAGMENT, 0, 0]]);
    while bench.turn_after(0) {}
    assert_eq!(bench.dropped(), [Reason::Malformed, Reason::Truncated]);
    // More pieces than there are free frames.
    let wires = bench.wires.clone();
    for _ in 0..8 {
        arrive_in_parts(&bench, &tcp(SEGMENT, 64_000));
    }
    wires[1].state().full = true;
    while bench.turn_after(0) {}
    assert!(bench.dropped().iter().all(|reason| matches!(reason, Reason::TxFull | Reason::NoFrames)));
    assert_eq!(bench.free(), FRAMES);
}

#[test]
fn what_cannot_be_carried_out_is_dropped_by_name() {
    let mut bench = Bench::new();
    bench.wires[1].state().full = true;
    bench.kernel.state().full = true;
    for first in [TRANSMIT_1, TO_KERNEL] {
        bench.arrive(0, &[&[first, 0]]);
    }
    for _ in 0..=handoff::CAPACITY {
        bench.arrive(0, &[&[TRANSMIT_ELSEWHERE, 0]]);
    }
    while bench.turn_after(0) {}
    assert_eq!(bench.dropped(), [Reason::TxFull, Reason::WayBackFull, Reason::HandOffFull]);
    assert_eq!(bench.free(), FRAMES);
}

#[test]
fn a_held_frame_goes_when_the_configuration_knows_its_next_hop() {
    let mut bench = Bench::new();
    bench.arrive(0, &[&[HOLD_UNTIL_GENERATION_1, 10]]);
    bench.turn_after(0);
    assert_eq!(bench.notices.next(), Some(Notice::Unresolved(NEIGHBOUR)));
    assert_eq!((bench.notices.next(), bench.free()), (None, FRAMES - 1));
    bench.turn_after(150);
    assert_eq!((bench.sent(1).len(), bench.tally.holding()), (0, 1));
    bench.config.publish(|_| {});
    bench.turn_after(10);
    assert_eq!(bench.sent(1), [[[HOLD_UNTIL_GENERATION_1, 11]]]);
    bench.turn_after(10);
    assert_eq!((bench.free(), bench.tally.held(), bench.tally.holding()), (FRAMES, 1, 0));
    assert_eq!((bench.notices.next(), bench.dropped()), (None, vec![]));
}

#[test]
fn a_held_frame_is_given_up_after_three_seconds() {
    let mut bench = Bench::new();
    bench.arrive(0, &[&[HOLD_UNTIL_GENERATION_1, 0]]);
    for _ in 0..29 {
        bench.turn_after(100);
    }
    assert_eq!((bench.dropped(), bench.free()), (vec![], FRAMES - 1));
    let in_vain = |bench: &Bench| {
        bench.judge.calls.lock().unwrap().iter().filter(|call| **call == "held in vain").count()
    };
    assert_eq!(in_vain(&bench), 0);
    for _ in 0..3 {
        bench.turn_after(100);
    }
    assert_eq!((bench.dropped(), bench.free()), (vec![Reason::NeighbourUnresolved], FRAMES));
    assert_eq!(in_vain(&bench), 1);
    let asked = std::iter::from_fn(|| bench.notices.next()).count();
    assert_eq!(asked, 3, "at once and every second");
}

#[test]
fn what_another_worker_hands_over_is_sent() {
    let mut bench = Bench::new();
    let (pool, mailbox) = (&mut bench.other.0, bench.worker.hands.mailbox());
    let mut letter = Parts::new();
    for (value, more) in [(1, true), (2, false)] {
        let mut frame = pool.take().unwrap();
        pool.region().bytes(&mut frame)[300] = value;
        letter.push(Part { frame, start: 300, len: 1, port: PortId(1), more });
    }
    assert!(mailbox.post(1, &letter, pool.region()));
    assert!(!bench.worker.turn(bench.now), "not announced yet");
    mailbox.announce(1);
    assert!(bench.worker.turn(bench.now));
    assert_eq!(bench.sent(1), [[[1], [2]]]);
    bench.worker.turn(bench.now);
    assert_eq!((bench.free(), bench.tally.taken()), (FRAMES, 1));
}

#[test]
fn a_device_that_is_gone_is_told_once_and_its_frames_take_the_other_way() {
    let mut bench = Bench::new();
    bench.wires[1].state().gone = true;
    bench.turn_after(0);
    assert_eq!(bench.notices.next(), Some(Notice::DeviceGone(PortId(1))));
    bench.arrive(0, &[&[TRANSMIT_1, 0]]);
    bench.arrive(0, &[&[TRANSMIT_0, 0]]);
    bench.turn_after(0);
    assert_eq!((bench.sent(0).len(), bench.tally.handed()), (1, 1), "worker 1 has a queue of device 1 too");
    assert_eq!((bench.tally.gone(), bench.notices.next()), (1, None));
}

#[test]
fn every_turn_and_every_wake_begins_with_between() {
    let mut bench = Bench::new();
    bench.arrive(0, &[&[TRANSMIT_1, 0]]);
    bench.turn_after(0);
    bench.worker.bell.ring();
    bench.worker.sleep(bench.now);
    bench.turn_after(0);
    assert_eq!(*bench.judge.calls.lock().unwrap(), ["between", "process", "sleep", "between"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever comes and whatever becomes of it, no chunk is lost and every frame is accounted for.
    #[test]
    fn no_frame_is_lost(frames in prop::collection::vec((0..2_usize, 0..12_u8, 1..19_usize), 0..300)) {
        let mut bench = Bench::new();
        for (port, first, parts) in &frames {
            let mut parts = vec![vec![1_u8; 10]; *parts];
            parts[0][0] = *first;
            bench.wires[*port].state().arriving.push_back(parts);
        }
        while bench.turn_after(0) {
            let (pool, reader) = &mut bench.other;
            reader.collect(pool, |_, _| {});
        }
        let held = frames.iter().filter(|frame| [HOLD_UNTIL_GENERATION_1, LATER].contains(&frame.1)).count();
        let judged_dropped = frames.iter().filter(|frame| frame.1 == DROP).count();
        bench.worker.process.first_came = true;
        bench.config.publish(|_| {});
        bench.turn_after(20);
        bench.turn_after(0);
        let sent = bench.sent(0).len() + bench.sent(1).len() + bench.kernel.state().sent.len();
        let handed = usize::try_from(bench.tally.handed()).unwrap();
        let dropped = bench.dropped().len();
        prop_assert_eq!(sent + handed + dropped + judged_dropped, frames.len());
        prop_assert!(usize::try_from(bench.tally.held()).unwrap() <= held);
        prop_assert_eq!(bench.free(), FRAMES);
        prop_assert_eq!(bench.other.0.len(), 1024 - handoff::CAPACITY);
    }
}
