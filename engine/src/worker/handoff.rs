//! From a worker that has no ring on the egress device to one that has.
//!
//! The receiver lays out free frames of its own region; the sender takes one, copies the frame into it and puts it into the
//! receiver's mailbox. Everything is bounded and lock-free; between two workers order is kept.

use super::bell::Bell;
use crate::link::{Frame, Part, Parts, Pool, Region};
use crossbeam_queue::ArrayQueue;
use crossbeam_utils::CachePadded;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::AcqRel, Ordering::Relaxed, Ordering::SeqCst};

/// Free frames a worker lays out for the others, and parts that may wait in its mailbox from each of them.
pub(super) const CAPACITY: usize = 512;

/// Workers of one director at most: one bit each in a mailbox.
pub const MAX_WORKERS: usize = 64;

/// Where one worker receives frames from the others.
#[derive(Debug)]
pub(super) struct Mailbox {
    region: Arc<Region>,
    blanks: ArrayQueue<Frame>,
    /// Filled frames by sender: with one sender each, the parts of a frame stay together.
    from: Box<[ArrayQueue<Part>]>,
    /// Senders who put something in since the receiver last looked.
    arrived: CachePadded<AtomicU64>,
    bell: Arc<Bell>,
}

impl Mailbox {
    /// A mailbox for the owner of `pool`, with blanks from it, for letters of `senders` workers.
    pub(super) fn new(pool: &mut Pool, senders: usize, bell: Arc<Bell>) -> Self {
        let mailbox = Mailbox {
            region: pool.region().clone(),
            blanks: ArrayQueue::new(CAPACITY),
            from: (0..senders).map(|_| ArrayQueue::new(CAPACITY)).collect(),
            arrived: CachePadded::default(),
            bell,
        };
        if senders > 1 {
            for frame in (0..CAPACITY).map_while(|_| pool.take()) {
                mailbox.put_back(frame);
            }
        }
        mailbox
    }

    /// Copies a frame from the memory of worker `sender` into the mailbox. `false`, and nothing done, when it is full or
    /// has no blanks.
    pub(super) fn post(&self, sender: usize, frame: &Parts, source: &Region) -> bool {
        let queue = &self.from[sender];
        if queue.capacity() - queue.len() < frame.len() {
            return false;
        }
        let mut copy = Parts::new();
        for part in frame {
            let Some(mut blank) = self.blanks.pop() else {
                copy.drain(..).for_each(|part| self.put_back(part.frame));
                return false;
            };
            let (start, len) = (usize::from(part.start), usize::from(part.len));
            let room = self.region.bytes(&mut blank).get_mut(start..start + len);
            let Some(room) = room else {
                self.put_back(blank);
                copy.drain(..).for_each(|part| self.put_back(part.frame));
                return false;
            };
            room.copy_from_slice(part.bytes(source));
            copy.push(Part { frame: blank, ..*part });
        }
        for part in copy {
            // There is room: it was looked for above, and nobody else puts anything into this queue.
            if let Err(part) = queue.push(part) {
                self.put_back(part.frame);
            }
        }
        true
    }

    /// Tells the receiver that worker `sender` posted something; once for many frames.
    pub(super) fn announce(&self, sender: usize) {
        self.arrived.fetch_or(1 << sender, SeqCst);
        self.bell.ring();
    }

    /// There is room for every frame that was ever taken out.
    fn put_back(&self, frame: Frame) {
        let _kept = self.blanks.push(frame);
    }
}

/// The receiving end of a mailbox, held by its owner.
#[derive(Debug)]
pub(super) struct Reader {
    mailbox: Arc<Mailbox>,
    /// Blanks to be laid out for parts that were read when the pool had none.
    owed: usize,
    /// By sender, the parts read so far of a frame that is just being posted.
    unfinished: Box<[Parts]>,
}

impl Reader {
    pub(super) fn new(mailbox: Arc<Mailbox>) -> Self {
        let unfinished = mailbox.from.iter().map(|_| Parts::new()).collect();
        Reader { mailbox, owed: 0, unfinished }
    }

    /// Hands every frame that arrived to `take`; what it leaves goes back to `pool`. A new blank is laid out for each part
    /// read, as soon as the pool has one. Whether anything had arrived.
    pub(super) fn collect(&mut self, pool: &mut Pool, mut take: impl FnMut(&mut Parts, &Region)) -> bool {
        self.lay_out(pool);
        let mailbox = &*self.mailbox;
        if mailbox.arrived.load(Relaxed) == 0 {
            return false;
        }
        let arrived = mailbox.arrived.swap(0, AcqRel);
        for (sender, (queue, frame)) in mailbox.from.iter().zip(&mut self.unfinished).enumerate() {
            if arrived & (1 << sender) == 0 {
                continue;
            }
            while let Some(part) = queue.pop() {
                self.owed += 1;
                let last = !part.more;
                frame.push(part);
                if last {
                    take(frame, &mailbox.region);
                    pool.give_all(frame);
                }
            }
        }
        self.lay_out(pool);
        true
    }

    fn lay_out(&mut self, pool: &mut Pool) {
        while self.owed > 0
            && let Some(blank) = pool.take()
        {
            self.mailbox.put_back(blank);
            self.owed -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::PortId;

    fn frame(pool: &mut Pool, parts: &[u8]) -> Parts {
        let mut frame = Parts::new();
        for (index, &byte) in parts.iter().enumerate() {
            let mut chunk = pool.take().unwrap();
            pool.region().bytes(&mut chunk)[256..300].fill(byte);
            let more = index + 1 < parts.len();
            frame.push(Part { frame: chunk, start: 256, len: 44, port: PortId(3), more });
        }
        frame
    }

    fn pools() -> (Pool, Pool, Arc<Bell>) {
        (Pool::new(1024, 2048).unwrap(), Pool::new(1024, 2048).unwrap(), Bell::new().unwrap())
    }

    #[test]
    fn frames_arrive_whole_and_in_order_and_no_chunk_is_lost() {
        let (mut mine, mut yours, bell) = pools();
        let mailbox = Arc::new(Mailbox::new(&mut yours, 2, bell));
        let mut reader = Reader::new(mailbox.clone());
        for round in 0..1000_u32 {
            let bytes = [round.to_le_bytes()[0], 2, 3];
            let mut sent = frame(&mut mine, &bytes[..1 + round as usize % 3]);
            assert!(mailbox.post(1, &sent, mine.region()));
            mailbox.announce(1);
            mine.give_all(&mut sent);
            let (region, mut got) = (yours.region().clone(), vec![]);
            assert!(reader.collect(&mut yours, |frame, _| {
                got.extend(frame.iter().map(|part| (part.bytes(&region)[43], part.len, part.port)));
            }));
            let expected: Vec<_> = bytes[..got.len()].iter().map(|&byte| (byte, 44, PortId(3))).collect();
            assert_eq!(got, expected);
            assert_eq!(got.len(), 1 + round as usize % 3);
        }
        assert!(!reader.collect(&mut yours, |_, _| unreachable!()));
        assert_eq!((mine.len(), yours.len()), (1024, 1024 - CAPACITY));
    }

    #[test]
    fn blanks_that_an_empty_pool_could_not_give_are_laid_out_later() {
        let (mut mine, mut yours, bell) = pools();
        let mailbox = Arc::new(Mailbox::new(&mut yours, 2, bell));
        let mut reader = Reader::new(mailbox.clone());
        let mut elsewhere: Vec<_> = std::iter::from_fn(|| yours.take()).collect();
        let single = frame(&mut mine, &[1]);
        for _ in 0..CAPACITY {
            assert!(mailbox.post(1, &single, mine.region()));
        }
        mailbox.announce(1);
        let mut held = vec![];
        assert!(reader.collect(&mut yours, |frame, _| held.extend(frame.drain(..))));
        assert_eq!((held.len(), mailbox.blanks.len()), (CAPACITY, 0));
        elsewhere.drain(..).for_each(|chunk| yours.give(chunk));
        assert!(!reader.collect(&mut yours, |_, _| unreachable!()));
        assert_eq!(mailbox.blanks.len(), CAPACITY);
    }

    #[test]
    fn a_full_mailbox_refuses_and_keeps_its_blanks() {
        let (mut mine, mut yours, bell) = pools();
        let mailbox = Mailbox::new(&mut yours, 2, bell);
        let single = frame(&mut mine, &[1]);
        let mut posted = 0;
        while mailbox.post(1, &single, mine.region()) {
            posted += 1;
        }
        assert_eq!((posted, mailbox.blanks.len()), (CAPACITY, 0));
        let triple = frame(&mut mine, &[1, 2, 3]);
        mailbox.from[1].pop().map(|part| mailbox.put_back(part.frame)).unwrap();
        mailbox.from[1].pop().map(|part| mailbox.put_back(part.frame)).unwrap();
        assert!(!mailbox.post(1, &triple, mine.region()), "room for two parts only");
        assert!(!mailbox.post(0, &triple, mine.region()), "two blanks only");
        assert_eq!(mailbox.blanks.len(), 2);
    }
}
