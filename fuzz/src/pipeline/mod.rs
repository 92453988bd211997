//! Bytes as what happens to a director: frames whole and in parts, cut, damaged and mended, fragments in any order, errors about
//! what was sent, time. Two workers share its table: one does all that workers do, the other only judges.

mod frames;
mod input;
mod world;

use crate::director::own::OWN;
use crate::director::{CLIENTS, Director, SERVERS, oracle};
use frames::Making;
use input::Input;
use std::time::Duration;
use uvs_conntrack::Tick;
use uvs_engine::pipeline::{Pipeline, View};
use uvs_engine::worker::{Offline, Outcome};
use uvs_engine::{Config, Packet, PortId, Verdict};

/// What is done at most in one run.
const STEPS: usize = 48;

/// Bytes before a frame in its buffer.
const HEADROOM: usize = 256;

/// A director and the frames it sent last.
struct Run {
    worker: Offline<Pipeline>,
    other: Director,
    now: Duration,
    /// Frames that are free when nothing is held.
    free: usize,
    /// By port, the last frame sent.
    last: [Vec<u8>; 3],
    /// Whether a frame may wait that is not what it should be.
    doubtful: bool,
    drops: u64,
}

/// Does what `data` says. Panics where something is not as it should be.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut run = Run::new(world::director(&mut input));
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        run.step(&mut input);
    }
    run.wait(Duration::from_secs(5));
    assert_eq!(run.worker.free_frames(), run.free, "a frame was lost");
    let counted: u64 = uvs_engine::Reason::ALL.iter().map(|reason| run.other.counters.drops(*reason)).sum();
    assert!(counted >= run.drops, "{} drops, {counted} counted", run.drops);
}

impl Run {
    fn new(mut other: Director) -> Self {
        let config = Config::new(other.snapshot.clone());
        let second = other.another_pipeline();
        let first = std::mem::replace(&mut other.pipeline, second);
        let ports = u16::try_from(other.snapshot.ports.len()).unwrap_or(0);
        let worker = Offline::new(&config, ports, first).expect("memory for one worker");
        let free = worker.free_frames();
        let mut run = Run {
            worker,
            other,
            now: Duration::ZERO,
            free,
            last: [vec![], vec![], vec![]],
            doubtful: false,
            drops: 0,
        };
        run.wait(Duration::from_secs(1000));
        run.other.pipeline.sleep(Tick::of(run.now));
        run
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(8) {
            0 => {
                let unit = [1, 10, 1000, 60_000][input.below(4)];
                self.wait(Duration::from_millis(unit * u64::from(input.byte())));
            }
            1 => {
                let (port, frame) = frames::raw(input);
                self.receive(port, &frame, false);
            }
            2 => {
                let from = match input.below(2) {
                    0 if !self.last[usize::from(OWN.0)].is_empty() => usize::from(OWN.0),
                    other => other,
                };
                if let Some(frame) = frames::answer(&self.last[from], input) {
                    self.submit(PortId(u16::try_from(from).unwrap_or(0)), frame, input);
                }
            }
            3 => {
                let from = input.below(2);
                if let Some(frame) = frames::error(&self.last[from], from, input) {
                    self.submit(PortId(u16::try_from(from).unwrap_or(0)), frame, input);
                }
            }
            _ => {
                let (port, making) = frames::made(self.other.snapshot.own_traffic.is_some(), input);
                self.submit(port, making, input);
            }
        }
    }

    /// Whole, in fragments, or to the worker that only judges.
    fn submit(&mut self, port: PortId, Making { frame, good }: Making, input: &mut Input<'_>) {
        match input.below(8) {
            0 => {
                for fragment in frames::fragments(&frame, input) {
                    self.receive(port, &fragment, good);
                }
            }
            1 => self.judge(port, &frame, good, input),
            _ => self.receive(port, &frame, good),
        }
    }

    fn receive(&mut self, port: PortId, frame: &[u8], good: bool) {
        if frame.is_empty() {
            return;
        }
        self.doubtful |= !good;
        let outcome = self.worker.receive(port, frame.to_vec());
        let Outcome { verdicts, of_held, dropped, sent, returned } = &outcome;
        if let ([verdict], [], []) = (&verdicts[..], &of_held[..], &dropped[..]) {
            let done = (sent.len(), returned.len());
            match verdict {
                Verdict::Transmit(port) => assert!(done == (1, 0) && sent[0].0 == *port, "{outcome:?}"),
                Verdict::ToKernel => assert_eq!(done, (0, 1), "{outcome:?}"),
                Verdict::Fragment(..) => assert!(done.0 > 1, "{outcome:?}"),
                Verdict::Hold(_) | Verdict::Await | Verdict::Drop(_) => {
                    assert_eq!(done, (0, 0), "{outcome:?}");
                }
                Verdict::Segment(_) => panic!("cut into nothing"),
            }
        }
        let good = good && (of_held.is_empty() || !self.doubtful);
        self.look_at(outcome, good);
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        let outcome = self.worker.wait_until(self.now);
        self.look_at(outcome, !self.doubtful);
    }

    fn look_at(&mut self, outcome: Outcome, good: bool) {
        let drops =
            outcome.verdicts.iter().chain(&outcome.of_held).filter(|it| matches!(it, Verdict::Drop(_)));
        self.drops += (drops.count() + outcome.dropped.len()) as u64;
        for (port, frame) in outcome.sent {
            self.sent(port, frame, good);
        }
    }

    fn sent(&mut self, port: PortId, frame: Vec<u8>, good: bool) {
        assert!(frame.len() >= 14, "{frame:x?}");
        if good && let Err(wrong) = oracle::verify(&frame) {
            panic!("{wrong} in {frame:02x?}");
        }
        self.last[usize::from(port.0)] = frame;
    }

    /// Judges a frame that lies in parts of any length, in the middle of its memory.
    fn judge(&mut self, port: PortId, frame: &[u8], good: bool, input: &mut Input<'_>) {
        const GUARD: u8 = 0xa5;
        let cuts: [usize; 2] = std::array::from_fn(|_| input.below(frame.len() + 1));
        let (first, second) = (cuts[0].min(cuts[1]), cuts[0].max(cuts[1]));
        let rest = [&frame[first..second], &frame[second..]];
        let mut buffer = vec![GUARD; HEADROOM + first + HEADROOM];
        buffer[HEADROOM..HEADROOM + first].copy_from_slice(&frame[..first]);
        let now = Tick::of(self.now);
        let pipeline = &mut self.other.pipeline;
        let mut packets = [Packet::new(&mut buffer, HEADROOM, first, port).with_rest(&rest)];
        let mut verdicts = [Verdict::ToKernel];
        let view = View { snapshot: &self.other.snapshot, now };
        pipeline.between(now);
        pipeline.process(&view, &mut packets, &mut verdicts);
        pipeline.sleep(now);
        let [packet] = &packets;
        assert!(packet.start() <= HEADROOM + first, "{:?}", verdicts[0]);
        let out = [packet.frame(), &packet.rest().concat()].concat();
        assert!(buffer[HEADROOM + first..].iter().all(|byte| *byte == GUARD), "written behind the frame");
        match verdicts[0] {
            Verdict::Transmit(port) => {
                assert!([CLIENTS, SERVERS, OWN].contains(&port), "{port:?}");
                self.sent(port, out, good);
            }
            Verdict::Drop(_) => self.drops += 1,
            Verdict::Hold(_) | Verdict::Await | Verdict::Segment(_) => {
                assert_eq!(out, frame, "changed by {:?}", verdicts[0]);
            }
            Verdict::Fragment(..) | Verdict::ToKernel => {}
        }
    }
}
