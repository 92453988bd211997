//! Both ends of a ring in a memfd mapped twice: what the kernel does is played by the other end.

use super::*;
use nix::sys::memfd::{MFdFlags, memfd_create};
use proptest::prelude::*;
use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;

const OFFSETS: libc::xdp_ring_offset =
    libc::xdp_ring_offset { producer: 0, consumer: 64, flags: 128, desc: 192 };

/// A memfd holding a ring of `size` slots whose counters both stand at `start`.
fn shared(size: u32, start: u32) -> OwnedFd {
    let fd = memfd_create("ring", MFdFlags::MFD_CLOEXEC).unwrap();
    let file = File::from(fd.try_clone().unwrap());
    file.set_len(192 + 8 * u64::from(size)).unwrap();
    file.write_all_at(&start.to_ne_bytes(), OFFSETS.producer).unwrap();
    file.write_all_at(&start.to_ne_bytes(), OFFSETS.consumer).unwrap();
    fd
}

fn ends(size: u32, start: u32) -> (Producer<u64>, Consumer<u64>) {
    let fd = shared(size, start);
    (Producer::map(&fd, &OFFSETS, size, 0).unwrap(), Consumer::map(&fd, &OFFSETS, size, 0).unwrap())
}

fn drain(consumer: &mut Consumer<u64>, wanted: u32) -> Vec<u64> {
    let (first, second) = consumer.filled(wanted);
    let got = [first, second].concat();
    consumer.release(u32::try_from(got.len()).unwrap());
    got
}

#[test]
fn what_is_staged_shows_when_published() {
    let (mut producer, mut consumer) = ends(4, 0);
    assert!(producer.stage(7));
    assert_eq!(drain(&mut consumer, 9), []);
    producer.publish();
    assert_eq!(producer.outstanding(), 1);
    assert_eq!(drain(&mut consumer, 9), [7]);
    assert_eq!(producer.outstanding(), 0);
}

#[test]
fn a_full_ring_takes_no_more() {
    let (mut producer, mut consumer) = ends(2, u32::MAX);
    assert!(producer.stage(1) && producer.stage(2) && !producer.stage(3));
    producer.publish();
    assert_eq!(drain(&mut consumer, 1), [1]);
    assert!(producer.stage(3) && !producer.stage(4));
    producer.publish();
    assert_eq!(drain(&mut consumer, 9), [2, 3]);
}

#[test]
fn not_released_is_seen_again() {
    let (mut producer, mut consumer) = ends(4, 3);
    producer.stage(1);
    producer.stage(2);
    producer.publish();
    assert_eq!(consumer.filled(9), (&[1][..], &[2][..]));
    consumer.release(1);
    assert_eq!(consumer.filled(9), (&[2][..], &[][..]));
    consumer.release(100);
    assert_eq!(producer.vacant(4), 4);
}

#[test]
fn the_wakeup_flag_is_read_each_time() {
    let fd = shared(4, 0);
    let producer: Producer<u64> = Producer::map(&fd, &OFFSETS, 4, 0).unwrap();
    assert!(!producer.needs_wakeup());
    File::from(fd).write_all_at(&1_u32.to_ne_bytes(), OFFSETS.flags).unwrap();
    assert!(producer.needs_wakeup());
}

#[test]
fn a_counter_gone_wild_leads_nowhere() {
    let fd = shared(4, 0);
    let mut consumer: Consumer<u64> = Consumer::map(&fd, &OFFSETS, 4, 0).unwrap();
    let mut producer: Producer<u64> = Producer::map(&fd, &OFFSETS, 4, 0).unwrap();
    let file = File::from(fd);
    file.write_all_at(&1000_u32.to_ne_bytes(), OFFSETS.producer).unwrap();
    let (first, second) = consumer.filled(u32::MAX);
    assert_eq!(first.len() + second.len(), 4);
    file.write_all_at(&77_u32.to_ne_bytes(), OFFSETS.consumer).unwrap();
    assert_eq!(producer.vacant(u32::MAX), 0);
}

#[test]
fn offsets_outside_the_mapping_are_refused() {
    let fd = shared(4, 0);
    let odd = libc::xdp_ring_offset { producer: 2, ..OFFSETS };
    assert!(Producer::<u64>::map(&fd, &odd, 4, 0).is_err());
    assert!(Producer::<u64>::map(&fd, &OFFSETS, 3, 0).is_err());
    let endless = libc::xdp_ring_offset { desc: u64::MAX, ..OFFSETS };
    assert!(Producer::<u64>::map(&fd, &endless, 4, 0).is_err());
}

#[derive(Clone, Debug)]
enum Step {
    Stage(u8),
    Publish,
    Consume(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (1..20_u8).prop_map(Step::Stage),
        2 => Just(Step::Publish),
        3 => (0..40_u32).prop_map(Step::Consume),
    ];
    prop::collection::vec(step, 0..200)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever is staged comes out once, in order, from any start of the counters, and never more than fits.
    #[test]
    fn a_ring_is_a_bounded_queue(bits in 0..7_u32, before_wrap in 0..200_u32, steps in steps()) {
        let size = 1 << bits;
        let (mut producer, mut consumer) = ends(size, 0_u32.wrapping_sub(before_wrap));
        let (mut staged, mut published) = (VecDeque::new(), VecDeque::new());
        let mut next = 0_u64;
        for step in steps {
            match step {
                Step::Stage(count) => for _ in 0..count {
                    let full = staged.len() + published.len() == size as usize;
                    prop_assert_eq!(producer.stage(next), !full);
                    if !full { staged.push_back(next); }
                    next += 1;
                },
                Step::Publish => {
                    producer.publish();
                    published.append(&mut staged);
                }
                Step::Consume(wanted) => {
                    let expected: Vec<u64> = published.drain(..published.len().min(wanted as usize)).collect();
                    prop_assert_eq!(drain(&mut consumer, wanted), expected);
                }
            }
            prop_assert_eq!(producer.outstanding() as usize, published.len());
        }
    }
}
