//! Filters of ours beside each other and beside those of others.

use super::*;
use crate::steer::testing::in_namespace;
use crate::steer::{Diversion, Guard, Guarded, Steering, diversion, guard};
use std::time::Duration;

const LOOPBACK: u32 = 1;
const LONG: Duration = Duration::from_secs(600);
const GUARD: &str = "uvs-guard";
const GUARD_WITH_QDISC: &str = "uvs-guard+clsact";

fn guard() -> Guard {
    Guard::new(&Steering::new().unwrap(), LONG, Guarded::Certain).unwrap()
}

fn diversion() -> Diversion {
    Diversion::new(&Steering::new().unwrap(), LOOPBACK, LONG).unwrap()
}

fn has_qdisc(route: &mut Route) -> bool {
    let message = tc_message(LOOPBACK, 0, 0, 0);
    let qdiscs = route.dump(Request::new(libc::RTM_GETQDISC, 0, &message)).unwrap();
    qdiscs.iter().any(|m| m[4..8] == LOOPBACK.to_ne_bytes() && m[8..12] == CLSACT_HANDLE.to_ne_bytes())
}

fn names(route: &mut Route, parent: u32) -> Vec<(u16, String)> {
    let messages = all_filters(route, LOOPBACK, parent).unwrap();
    let read = |message: &Vec<u8>| {
        let priority = u16::try_from(netlink::number(&message[16..])? >> 16).ok()?;
        let name = netlink::find(netlink::find(&message[20..], TCA_OPTIONS)?, 7)?;
        Some((priority, String::from_utf8_lossy(name).trim_end_matches('\0').to_owned()))
    };
    messages.iter().filter_map(read).collect()
}

#[test]
fn leaves_nothing_behind() {
    in_namespace(|| {
        let mut route = Route::open().unwrap();
        let mut guard = guard();
        assert!(!has_qdisc(&mut route));
        guard.install(LOOPBACK).unwrap();
        guard.install(LOOPBACK).unwrap();
        assert_eq!(names(&mut route, INGRESS), [(1, GUARD_WITH_QDISC.to_owned())]);
        guard.remove().unwrap();
        assert!(!has_qdisc(&mut route));
    });
}

#[test]
fn the_last_one_takes_the_qdisc_along() {
    for (guard_first, guard_leaves_first) in [(true, true), (true, false), (false, true), (false, false)] {
        in_namespace(|| {
            let mut route = Route::open().unwrap();
            let (mut guard, mut diversion) = (guard(), diversion());
            if guard_first {
                guard.install(LOOPBACK).unwrap();
            }
            diversion.install(LOOPBACK).unwrap();
            guard.install(LOOPBACK).unwrap();
            assert_eq!(names(&mut route, EGRESS), [(1, "uvs-own+clsact".to_owned())]);
            assert_eq!(names(&mut route, INGRESS), [(1, GUARD_WITH_QDISC.to_owned())]);
            if guard_leaves_first {
                guard.remove().unwrap();
                assert!(has_qdisc(&mut route));
                diversion.remove().unwrap();
            } else {
                diversion.remove().unwrap();
                assert!(has_qdisc(&mut route));
                guard.remove().unwrap();
            }
            assert!(!has_qdisc(&mut route), "{guard_first} {guard_leaves_first}");
        });
    }
}

#[test]
fn what_a_killed_process_left_is_removed() {
    in_namespace(|| {
        let mut route = Route::open().unwrap();
        let (mut guard, mut diversion) = (guard(), diversion());
        diversion.install(LOOPBACK).unwrap();
        guard.install(LOOPBACK).unwrap();
        drop((guard, diversion));
        assert_eq!(diversion::remove_all().unwrap(), ["lo"]);
        assert_eq!(guard::remove_all().unwrap().len(), 1);
        assert!(!has_qdisc(&mut route));
        assert!(diversion::remove_all().unwrap().is_empty());
    });
}

#[test]
fn keeps_a_qdisc_that_was_there() {
    in_namespace(|| {
        let mut route = Route::open().unwrap();
        assert!(make_qdisc(&mut route, &guard::DUTY, LOOPBACK).unwrap());
        let mut first = guard();
        first.install(LOOPBACK).unwrap();
        let mut second = guard();
        second.install(LOOPBACK).unwrap();
        let mut diversion = diversion();
        diversion.install(LOOPBACK).unwrap();
        assert_eq!(names(&mut route, INGRESS), [(1, GUARD.to_owned())]);
        second.remove().unwrap();
        diversion.remove().unwrap();
        assert!(names(&mut route, INGRESS).is_empty() && names(&mut route, EGRESS).is_empty());
        assert!(has_qdisc(&mut route));
    });
}

#[test]
fn keeps_its_qdisc_for_the_filters_of_others() {
    in_namespace(|| {
        let mut route = Route::open().unwrap();
        let mut guard = guard();
        guard.install(LOOPBACK).unwrap();
        let theirs = tc_message(LOOPBACK, 1, EGRESS, information(5));
        put_other(&mut route, &theirs, guard.program());
        assert_eq!(guard::remove_all().unwrap().len(), 1);
        assert!(names(&mut route, INGRESS).is_empty());
        assert_eq!(names(&mut route, EGRESS), [(5, "theirs".to_owned())]);
    });
}

#[test]
fn stands_before_filters_of_others() {
    in_namespace(|| {
        let mut route = Route::open().unwrap();
        make_qdisc(&mut route, &guard::DUTY, LOOPBACK).unwrap();
        let mut guard = guard();
        let theirs = tc_message(LOOPBACK, 1, INGRESS, information(1));
        put_other(&mut route, &theirs, guard.program());
        guard.install(LOOPBACK).unwrap();
        assert_eq!(names(&mut route, INGRESS), [(1, GUARD.to_owned()), (1, "theirs".to_owned())]);
        guard.remove().unwrap();
        assert_eq!(names(&mut route, INGRESS), [(1, "theirs".to_owned())]);
    });
}

#[test]
fn takes_the_next_priority_from_filters_of_another_protocol() {
    in_namespace(|| {
        let mut route = Route::open().unwrap();
        make_qdisc(&mut route, &guard::DUTY, LOOPBACK).unwrap();
        let mut guard = guard();
        let ipv4_only = 1 << 16 | u32::from(0x0800_u16.to_be());
        put_other(&mut route, &tc_message(LOOPBACK, 1, INGRESS, ipv4_only), guard.program());
        guard.install(LOOPBACK).unwrap();
        assert_eq!(names(&mut route, INGRESS), [(1, "theirs".to_owned()), (2, GUARD.to_owned())]);
    });
}

#[test]
fn removes_duplicates() {
    in_namespace(|| {
        let mut route = Route::open().unwrap();
        let mut guard = guard();
        guard.install(LOOPBACK).unwrap();
        put(&mut route, &guard::DUTY, LOOPBACK, guard.program(), 3, GUARD, EXCLUSIVE).unwrap();
        assert_eq!(names(&mut route, INGRESS).len(), 2);
        guard.install(LOOPBACK).unwrap();
        assert_eq!(names(&mut route, INGRESS), [(1, GUARD_WITH_QDISC.to_owned())]);
    });
}

fn put_other(route: &mut Route, message: &[u8], program: &Program) {
    let fd = program.as_fd().as_raw_fd().cast_unsigned().to_ne_bytes();
    let options = netlink::nested(&[(6, &fd), (7, b"theirs\0"), (8, &1_u32.to_ne_bytes())]);
    let request = Request::new(libc::RTM_NEWTFILTER, CREATE | EXCLUSIVE, message)
        .with(TCA_KIND, b"bpf\0")
        .with(TCA_OPTIONS | netlink::NESTED, &options);
    route.change(request).unwrap();
}
