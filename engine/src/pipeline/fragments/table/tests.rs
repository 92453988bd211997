use super::*;
use proptest::prelude::*;
use uvs_conntrack::Flow4;

const OURS: Fate = Fate::Ours { ports: 7, id: None, shift: 0 };

fn key(id: u32) -> Key {
    Key { flow: Flow::V4(Flow4 { addresses: 1, ports: 0, protocol: 17 }), id }
}

fn piece(start: u16, end: u16, more: bool) -> Piece {
    Piece { start, end, more }
}

/// The pieces one after the other, each forwarded unless it is refused or has to wait.
fn run(fragments: &Fragments, pieces: &[Piece]) -> Vec<Seen> {
    let each = |piece: &Piece| {
        let seen = fragments.saw(&key(1), piece, Tick(0)).0;
        if piece.start == 0 && seen == Seen::Open {
            fragments.settle(&key(1), OURS);
        }
        if seen == Seen::Go(OURS) || piece.start == 0 && seen == Seen::Open {
            fragments.passed(&key(1), piece);
        }
        seen
    };
    pieces.iter().map(each).collect()
}

fn known(fragments: &Fragments) -> usize {
    fragments.buckets.iter().map(|bucket| bucket.lock().unwrap().len()).sum()
}

#[test]
fn what_contradicts_is_refused() {
    let (first, second) = (piece(0, 80, true), piece(80, 160, true));
    type Row<'a> = (&'a str, &'a [Piece], &'a [Seen], usize);
    let table: [Row<'_>; 8] = [
        (
            "in order",
            &[first, second, piece(160, 168, false)],
            &[Seen::Open, Seen::Go(OURS), Seen::Go(OURS)],
            0,
        ),
        ("the first last", &[second, first], &[Seen::Open, Seen::Open], 1),
        (
            "the same again",
            &[first, second, second, first],
            &[Seen::Open, Seen::Go(OURS), Seen::Overlap, Seen::Overlap],
            1,
        ),
        (
            "an overlap, and what comes after it",
            &[first, piece(72, 160, true), second],
            &[Seen::Open, Seen::Overlap, Seen::Go(Fate::Refused)],
            1,
        ),
        (
            "one behind the end",
            &[first, piece(160, 168, false), piece(168, 176, true)],
            &[Seen::Open, Seen::Go(OURS), Seen::Overlap],
            1,
        ),
        (
            "another end",
            &[first, piece(160, 168, false), piece(80, 88, false)],
            &[Seen::Open, Seen::Go(OURS), Seen::Overlap],
            1,
        ),
        (
            "an end before what was seen",
            &[first, piece(160, 240, true), piece(80, 88, false)],
            &[Seen::Open, Seen::Go(OURS), Seen::Overlap],
            1,
        ),
        ("a whole by itself", &[piece(0, 80, false)], &[Seen::Open], 0),
    ];
    for (what, pieces, expected, left) in table {
        let fragments = Fragments::default();
        assert_eq!(run(&fragments, pieces), expected, "{what}");
        assert_eq!(known(&fragments), left, "{what}");
    }
}

#[test]
fn too_many_gaps_are_refused() {
    let fragments = Fragments::default();
    let pieces: Vec<Piece> = (0..40).map(|at| piece(at * 16, at * 16 + 8, true)).collect();
    let refused = run(&fragments, &pieces).iter().position(|seen| *seen == Seen::Go(Fate::Refused));
    assert_eq!(refused, Some(MAX_RUNS + 1));
}

#[test]
fn datagrams_are_forgotten_after_half_a_minute_and_under_flood() {
    let fragments = Fragments::default();
    let first = piece(0, 80, true);
    fragments.saw(&key(1), &first, Tick(0));
    fragments.settle(&key(1), OURS);
    let second = piece(80, 160, true);
    assert_eq!(fragments.saw(&key(1), &second, Tick(2999)).0, Seen::Go(OURS));
    assert_eq!(fragments.saw(&key(1), &second, Tick(3000)).0, Seen::Open);

    let fragments = Fragments::default();
    let flood = 100_000;
    let forgotten: u64 = (0..flood).map(|id| fragments.saw(&key(id), &second, Tick(0)).1).sum();
    assert_eq!(known(&fragments), BUCKETS * PER_BUCKET);
    assert_eq!(forgotten, u64::from(flood) - (BUCKETS * PER_BUCKET) as u64);
}

#[test]
fn who_waits_is_told_once() {
    let fragments = Fragments::default();
    assert!(!fragments.settle(&key(1), OURS), "nobody knows it");
    fragments.saw(&key(1), &piece(80, 160, true), Tick(0));
    assert!(fragments.settle(&key(1), OURS));
    assert!(!fragments.settle(&key(1), OURS));
}

proptest! {
    /// In any order all pieces go, the last of them ends the memory, and none is taken for an overlap.
    #[test]
    fn any_order_is_complete(
        order in Just((0..12_u16).collect::<Vec<u16>>()).prop_shuffle(),
        count in 1_u16..12,
    ) {
        let fragments = Fragments::default();
        let mut waiting: Vec<Piece> = order
            .into_iter()
            .filter(|at| *at < count)
            .map(|at| piece(at * 80, at * 80 + 80, at + 1 < count))
            .collect();
        let mut rounds = 0;
        while !waiting.is_empty() {
            let seen = run(&fragments, &waiting);
            prop_assert!(!seen.contains(&Seen::Overlap), "{:?}", seen);
            let mut seen = seen.into_iter();
            waiting.retain(|piece| seen.next() == Some(Seen::Open) && piece.start > 0);
            rounds += 1;
        }
        prop_assert!(rounds <= 2);
        prop_assert_eq!(known(&fragments), 0);
    }
}
