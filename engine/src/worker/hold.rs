//! Frames that wait for their next hop's link-layer address, and fragments that wait for the first one of their datagram.

use crate::link::Parts;
use crate::verdict::Neighbour;
use std::collections::VecDeque;
use uvs_conntrack::Tick;

/// Parts of frames that one worker holds at most: a quarter of what it has to spare.
const CAPACITY: usize = 512;

/// Parts it holds at most for one neighbour, so that a silent one leaves room for the others.
const PER_NEIGHBOUR: usize = 128;

/// Parts of fragments it keeps at most that wait for the first one of their datagram.
const FRAGMENTS: usize = 256;

/// How long a frame is held: as long as the kernel tries to resolve an address.
const PATIENCE_SECONDS: u32 = 3;

/// Ticks after which held frames are tried again though no change was seen.
const RETRY_TICKS: i32 = 10;

/// The same while fragments are among them: another worker may have seen the first one.
const FRAGMENT_RETRY_TICKS: i32 = 1;

/// Of frames just held it is not known by which configuration they were judged: they are judged again at the next tick.
const UNKNOWN: u64 = u64::MAX;

/// Held frames, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Holding {
    frames: VecDeque<Held>,
    /// Parts of all of them.
    parts: usize,
    /// How many parts of them are fragments'.
    fragments: usize,
    awaited: Vec<Awaited>,
    /// The generation of the configuration by which they were last judged, and when.
    tried: (u64, Tick),
}

#[derive(Debug)]
struct Held {
    frame: Parts,
    since: Tick,
}

/// A neighbour that frames wait for.
#[derive(Debug)]
struct Awaited {
    neighbour: Neighbour,
    parts: usize,
    asked: Tick,
}

/// What became of a frame that was to be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// It waits; the neighbour is being resolved.
    Waits,
    /// It waits; somebody has to be told to resolve the neighbour.
    Ask,
    /// There is no room for it.
    Full,
}

impl Holding {
    /// Takes `frame`, held since `since`, unless it says [`Kept::Full`].
    pub(super) fn keep(&mut self, frame: &mut Parts, neighbour: Neighbour, since: Tick, now: Tick) -> Kept {
        let parts = frame.len();
        if self.parts + parts > CAPACITY {
            return Kept::Full;
        }
        let known = self.awaited.iter_mut().find(|awaited| awaited.neighbour == neighbour);
        let answer = match known {
            Some(awaited) if awaited.parts + parts > PER_NEIGHBOUR => return Kept::Full,
            Some(awaited) => {
                awaited.parts += parts;
                let again =
                    now.since(awaited.asked) >= Tick::default().plus_seconds(1).since(Tick::default());
                if again {
                    awaited.asked = now;
                }
                if again { Kept::Ask } else { Kept::Waits }
            }
            None => {
                self.awaited.push(Awaited { neighbour, parts, asked: now });
                Kept::Ask
            }
        };
        self.push(frame, since, now);
        answer
    }

    /// Takes `frame`, a fragment held since `since`, unless there is no room for it.
    pub(super) fn keep_fragment(&mut self, frame: &mut Parts, since: Tick, now: Tick) -> bool {
        let parts = frame.len();
        let room = self.fragments + parts <= FRAGMENTS && self.parts + parts <= CAPACITY;
        if room {
            self.push(frame, since, now);
            self.fragments += parts;
        }
        room
    }

    fn push(&mut self, frame: &mut Parts, since: Tick, now: Tick) {
        if self.frames.is_empty() {
            self.tried = (UNKNOWN, now);
        }
        self.parts += frame.len();
        self.frames.push_back(Held { frame: frame.take(), since });
    }

    /// How many frames wait.
    pub(super) fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether it is time to run the held frames through the pipeline again: the configuration changed, or a while passed.
    pub(super) fn is_due(&self, generation: u64, now: Tick) -> bool {
        let (then, tried) = self.tried;
        let ticks = now.since(tried);
        let retry = if self.fragments > 0 { FRAGMENT_RETRY_TICKS } else { RETRY_TICKS };
        !self.frames.is_empty() && ((then != generation && ticks > 0) || !(0..retry).contains(&ticks))
    }

    /// Gives all frames out, each with the tick since which it is held, to be judged again.
    pub(super) fn release(
        &mut self,
        generation: u64,
        now: Tick,
    ) -> impl Iterator<Item = (Parts, Tick)> + use<> {
        self.tried = (generation, now);
        // Who is still awaited when the frames come back keeps the time it was last asked for.
        self.awaited.retain_mut(|awaited| std::mem::take(&mut awaited.parts) > 0);
        (self.parts, self.fragments) = (0, 0);
        std::mem::take(&mut self.frames).into_iter().map(|held| (held.frame, held.since))
    }
}

/// Whether a frame held since `since` is to be given up.
pub(super) fn is_given_up(since: Tick, now: Tick) -> bool {
    now.since(since.plus_seconds(PATIENCE_SECONDS)) >= 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::PortId;
    use crate::link::{Part, Pool};

    fn neighbour(last: u8) -> Neighbour {
        Neighbour { port: PortId(0), address: [10, 0, 0, last].into() }
    }

    fn keep(holding: &mut Holding, pool: &mut Pool, last: u8, now: u32) -> Kept {
        let mut frame = Parts::new();
        frame.push(Part { frame: pool.take().unwrap(), start: 256, len: 60, port: PortId(0), more: false });
        holding.keep(&mut frame, neighbour(last), Tick(now), Tick(now))
    }

    #[test]
    fn a_neighbour_is_asked_for_at_once_and_then_every_second() {
        let (mut holding, mut pool) = (Holding::default(), Pool::new(16, 2048).unwrap());
        let table = [
            (0, 1, Kept::Ask),
            (0, 1, Kept::Waits),
            (0, 2, Kept::Ask),
            (99, 1, Kept::Waits),
            (100, 1, Kept::Ask),
            (101, 1, Kept::Waits),
        ];
        for (now, last, expected) in table {
            assert_eq!(keep(&mut holding, &mut pool, last, now), expected, "tick {now}, neighbour {last}");
        }
    }

    #[test]
    fn one_silent_neighbour_leaves_room_for_others_and_all_is_bounded() {
        let (mut holding, mut pool) = (Holding::default(), Pool::new(1024, 2048).unwrap());
        let mut kept =
            |last| (0..200).filter(|_| keep(&mut holding, &mut pool, last, 0) != Kept::Full).count();
        let counts: Vec<usize> = (0..5).map(&mut kept).collect();
        assert_eq!(counts, [PER_NEIGHBOUR, PER_NEIGHBOUR, PER_NEIGHBOUR, PER_NEIGHBOUR, 0]);
        assert_eq!(holding.len(), CAPACITY);
    }

    #[test]
    fn frames_of_many_parts_count_as_many() {
        let (mut holding, mut pool) = (Holding::default(), Pool::new(1024, 2048).unwrap());
        let mut kept = 0;
        for last in 0..5 {
            for _ in 0..200 {
                let mut frame = Parts::new();
                for more in [true, true, false] {
                    let chunk = pool.take().unwrap();
                    frame.push(Part { frame: chunk, start: 256, len: 60, port: PortId(0), more });
                }
                if holding.keep(&mut frame, neighbour(last), Tick(0), Tick(0)) == Kept::Full {
                    pool.give_all(&mut frame);
                } else {
                    kept += 1;
                }
            }
        }
        assert_eq!(kept, 4 * (PER_NEIGHBOUR / 3) + (CAPACITY - 4 * (PER_NEIGHBOUR / 3) * 3) / 3);
    }

    #[test]
    fn frames_are_tried_again_after_a_change_or_a_while() {
        let (mut holding, mut pool) = (Holding::default(), Pool::new(16, 2048).unwrap());
        assert!(!holding.is_due(1, Tick(0)), "nothing is held");
        keep(&mut holding, &mut pool, 1, 0);
        let mut frames: Vec<_> = holding.release(1, Tick(5)).collect();
        assert_eq!((frames.len(), holding.len()), (1, 0));
        let (frame, since) = &mut frames[0];
        assert_eq!(holding.keep(frame, neighbour(1), *since, Tick(5)), Kept::Waits, "asked for at tick 0");
        let table = [(1, 5, false), (1, 6, true), (2, 6, true), (1, 4, true)];
        for (generation, now, due) in table {
            assert_eq!(holding.is_due(generation, Tick(now)), due, "generation {generation}, tick {now}");
        }
        holding.tried = (1, Tick(5));
        let table = [(1, 5, false), (2, 5, false), (2, 6, true), (1, 14, false), (1, 15, true)];
        for (generation, now, due) in table {
            assert_eq!(holding.is_due(generation, Tick(now)), due, "generation {generation}, tick {now}");
        }
    }

    #[test]
    fn patience_ends_after_three_seconds() {
        let since = Tick(u32::MAX - 100);
        assert!(!is_given_up(since, Tick(since.0.wrapping_add(299))));
        assert!(is_given_up(since, Tick(since.0.wrapping_add(300))));
    }
}
