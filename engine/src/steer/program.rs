//! The two programs: one that hands our frames to AF_XDP, and the guard's, that drops them while nobody does.
//!
//! Both look a packet up in the same sets in the same order:
//!
//! 1. its destination (address, port, protocol) among the services, then the same with any port;
//! 2. its source among the real servers whose replies we translate, unless the destination is an address of this host;
//! 3. ICMP errors by the packet they quote, source and destination exchanged (the XDP program only);
//! 4. fragments by their addresses alone (the XDP program; the guard takes only first fragments, by their ports).
//!
//! Everything else goes on to the kernel.

use super::asm::Register::{Fp, R0, R1, R2, R3, R7, R8};
use super::asm::When::{AtMost, Differs, Equal};
use super::asm::Width::{Double, Half, Word};
use super::asm::{Assembler, AssemblyError, Instruction, Label};
use super::key;
use super::maps::Set;
use super::parse::{self, CONTEXT, DESTINATION, Exits, Fragments, HOST, SOURCE};
use std::os::fd::{AsRawFd, BorrowedFd};

/// `XDP_PASS`: the frame goes on to the kernel's stack.
pub const XDP_PASS: u32 = 2;
/// `XDP_REDIRECT`: the frame goes to the AF_XDP socket of its queue.
pub const XDP_REDIRECT: u32 = 4;
/// `TC_ACT_UNSPEC`: the frame goes on to the next filter.
pub const TC_UNSPECIFIED: u32 = u32::MAX;
/// `TC_ACT_SHOT`: the frame is dropped.
pub const TC_DROP: u32 = 2;

/// `enum bpf_func_id`.
mod helper {
    pub(super) const MAP_LOOKUP: i32 = 1;
    pub(super) const CLOCK_MONOTONIC: i32 = 5;
    pub(super) const PULL_DATA: i32 = 39;
    pub(super) const REDIRECT_MAP: i32 = 51;
}

/// Where the number of a slot or of an array's entry lies on the stack.
const INDEX: i16 = -4;
/// How much of a frame the guard wants in one piece: more than the headers of all but the strangest packets.
const HEADERS: i32 = 192;

/// The XDP program: frames of ours go to the socket of their queue in `sockets`, and to the kernel if it has none.
pub(super) fn steer(
    sets: BorrowedFd<'_>,
    sockets: BorrowedFd<'_>,
) -> Result<Vec<Instruction>, AssemblyError> {
    /// Offsets in `struct xdp_md`.
    const DATA: i16 = 0;
    const DATA_END: i16 = 4;
    const QUEUE: i16 = 16;

    let mut a = Assembler::default();
    let exits = Exits { flow: a.label(), fragment: a.label(), pass: a.label() };
    let ours = a.label();
    a.copy(CONTEXT, R1).load(Word, R7, CONTEXT, DATA).load(Word, R8, CONTEXT, DATA_END);
    parse::frame(&mut a, Fragments::ByAddress, true, exits);
    decide_flow(&mut a, sets, exits.flow, ours, exits.pass);
    decide_fragment(&mut a, sets, exits.fragment, ours, exits.pass);

    a.bind(ours);
    a.load_map(R1, sockets.as_raw_fd()).load(Word, R2, CONTEXT, QUEUE).set(R3, XDP_PASS.cast_signed());
    a.call(helper::REDIRECT_MAP).exit();
    a.bind(exits.pass).set(R0, XDP_PASS.cast_signed()).exit();
    a.finish()
}

/// The guard's classifier: frames of ours are dropped until the time that `deadline` holds, in nanoseconds of
/// CLOCK_MONOTONIC.
pub(super) fn guard(
    sets: BorrowedFd<'_>,
    deadline: BorrowedFd<'_>,
) -> Result<Vec<Instruction>, AssemblyError> {
    let mut a = Assembler::default();
    let exits = Exits { flow: a.label(), fragment: a.label(), pass: a.label() };
    let ours = a.label();
    a.copy(CONTEXT, R1);
    before(&mut a, deadline, exits.pass);
    linear_headers(&mut a);
    parse::frame(&mut a, Fragments::FirstByPorts, false, exits);
    decide_flow(&mut a, sets, exits.flow, ours, exits.pass);

    a.bind(ours).set(R0, TC_DROP.cast_signed()).exit();
    a.bind(exits.pass).set(R0, TC_UNSPECIFIED.cast_signed()).exit();
    a.finish()
}

/// Emits: to `pass` once the clock has reached the time in `deadline`.
fn before(a: &mut Assembler, deadline: BorrowedFd<'_>, pass: Label) {
    a.store_value(Word, Fp, INDEX, 0);
    a.load_map(R1, deadline.as_raw_fd()).copy(R2, Fp).add_value(R2, i32::from(INDEX));
    a.call(helper::MAP_LOOKUP).jump_if(Equal, R0, 0, pass).load(Double, R7, R0, 0);
    a.call(helper::CLOCK_MONOTONIC).jump_if_register(AtMost, R7, R0, pass);
}

/// Emits: `R7` to `R8` are the frame's bytes, its headers among them also when the driver left them in page fragments.
fn linear_headers(a: &mut Assembler) {
    /// Offsets in `struct __sk_buff`.
    const LENGTH: i16 = 0;
    const DATA: i16 = 76;
    const DATA_END: i16 = 80;

    let (short, linear) = (a.label(), a.label());
    let bounds = |a: &mut Assembler| {
        a.load(Word, R7, CONTEXT, DATA).load(Word, R8, CONTEXT, DATA_END);
    };
    bounds(a);
    a.copy(R2, R7).add_value(R2, HEADERS).jump_if_register(AtMost, R2, R8, linear);
    a.load(Word, R2, CONTEXT, LENGTH).jump_if(AtMost, R2, HEADERS, short).set(R2, HEADERS);
    a.bind(short).copy(R1, CONTEXT).call(helper::PULL_DATA);
    bounds(a);
    a.bind(linear);
}

/// Emits the decision on a flow whose keys are on the stack.
fn decide_flow(a: &mut Assembler, sets: BorrowedFd<'_>, flow: Label, ours: Label, pass: Label) {
    let reply = a.label();
    a.bind(flow);
    look_up(a, sets, Set::Services, DESTINATION, ours);
    any_port(a, DESTINATION);
    look_up(a, sets, Set::Services, DESTINATION, ours);
    look_up(a, sets, Set::Replies, SOURCE, reply);
    any_port(a, SOURCE);
    look_up(a, sets, Set::Replies, SOURCE, reply);
    a.jump(pass);
    a.bind(reply);
    look_up(a, sets, Set::Locals, HOST, pass);
    a.jump(ours);
}

/// Emits the decision on a fragment whose addresses are on the stack.
fn decide_fragment(a: &mut Assembler, sets: BorrowedFd<'_>, fragment: Label, ours: Label, pass: Label) {
    let reply = a.label();
    a.bind(fragment);
    look_up(a, sets, Set::Services, HOST, ours);
    look_up(a, sets, Set::Replies, SOURCE, reply);
    a.jump(pass);
    a.bind(reply);
    look_up(a, sets, Set::Locals, HOST, pass);
    a.jump(ours);
}

fn any_port(a: &mut Assembler, key: i16) {
    a.store_value(Half, Fp, key + key::at::PORT, 0);
}

/// Emits: to `found` when the key on the stack is in the set.
fn look_up(a: &mut Assembler, sets: BorrowedFd<'_>, set: Set, key: i16, found: Label) {
    let absent = a.label();
    a.store_value(Word, Fp, INDEX, (set as u32).cast_signed());
    a.load_map(R1, sets.as_raw_fd()).copy(R2, Fp).add_value(R2, i32::from(INDEX));
    a.call(helper::MAP_LOOKUP).jump_if(Equal, R0, 0, absent);
    a.copy(R1, R0).copy(R2, Fp).add_value(R2, i32::from(key));
    a.call(helper::MAP_LOOKUP).jump_if(Differs, R0, 0, found);
    a.bind(absent);
}
