//! The programs: one that hands our frames to AF_XDP, the guard's, that drops them while nobody does, and the diversion's, that
//! hands us what this host sends itself.
//!
//! The first two look a packet up in the same sets in the same order:
//!
//! 1. its destination (address, port, protocol) among the services, then the same with any port;
//! 2. its source among the real servers whose replies we translate, unless the destination is an address of this host.
//!    Of those, a source of ours (the local addresses of full NAT) gets its replies too, but for ports that may be those
//!    of the host's own sockets;
//! 3. ICMP errors by the packet they quote, source and destination exchanged; those to this host about an encapsulated
//!    packet by the far end of the tunnel;
//! 4. fragments by their addresses alone.
//!
//! The guard behind an XDP program leaves ICMP errors to the kernel, and of fragments it drops only first ones, by their
//! ports; behind sockets that get a copy of each frame it decides as the XDP program does.
//!
//! The diversion looks, on the loopback device, for the destination among the services, and everywhere for the source among the
//! real servers that are this host itself; ICMP errors and fragments as above.
//!
//! Everything else goes on to the kernel.

use super::asm::Register::{Fp, R0, R1, R2, R3, R7, R8, R9};
use super::asm::When::{AnyBit, AtMost, Differs, Equal};
use super::asm::Width::{Double, Half, Word};
use super::asm::{Assembler, AssemblyError, Instruction, Label};
use super::guard::Guarded;
use super::key;
use super::maps::{Descriptors, Set};
use super::parse::{self, CONTEXT, DESTINATION, Exits, Fragments, HOST, SOURCE, UDP};
use std::os::fd::{AsRawFd, BorrowedFd};

/// `XDP_PASS`: the frame goes on to the kernel's stack.
pub const XDP_PASS: u32 = 2;
/// `XDP_REDIRECT`: the frame goes to the AF_XDP socket of its queue.
pub const XDP_REDIRECT: u32 = 4;
/// `TC_ACT_UNSPEC`: the frame goes on to the next filter.
pub const TC_UNSPECIFIED: u32 = u32::MAX;
/// `TC_ACT_SHOT`: the frame is dropped.
pub const TC_DROP: u32 = 2;
/// `TC_ACT_REDIRECT`: the frame leaves by another device.
pub const TC_REDIRECT: u32 = 7;

/// `enum bpf_func_id`.
mod helper {
    pub(super) const MAP_LOOKUP: i32 = 1;
    pub(super) const CLOCK_MONOTONIC: i32 = 5;
    pub(super) const REDIRECT: i32 = 23;
    pub(super) const PULL_DATA: i32 = 39;
    pub(super) const REDIRECT_MAP: i32 = 51;
}

/// Where the number of a slot or of an array's entry lies on the stack.
const INDEX: i16 = -4;
/// How much of a frame the guard wants in one piece: more than the headers of all but the strangest packets.
const HEADERS: i32 = 192;

/// The XDP program: frames of ours go to the socket of their queue in `sockets`, and to the kernel if it has none.
pub(super) fn steer(
    maps: Descriptors<'_>,
    sockets: BorrowedFd<'_>,
) -> Result<Vec<Instruction>, AssemblyError> {
    /// Offsets in `struct xdp_md`.
    const DATA: i16 = 0;
    const DATA_END: i16 = 4;
    const QUEUE: i16 = 16;

    let mut a = Assembler::default();
    let (exits, ours) = (exits(&mut a), a.label());
    a.copy(CONTEXT, R1).load(Word, R7, CONTEXT, DATA).load(Word, R8, CONTEXT, DATA_END);
    parse::frame(&mut a, Fragments::ByAddress, true, exits);
    decide_all(&mut a, maps, exits, ours);

    a.bind(ours);
    a.load_map(R1, sockets.as_raw_fd()).load(Word, R2, CONTEXT, QUEUE).set(R3, XDP_PASS.cast_signed());
    a.call(helper::REDIRECT_MAP).exit();
    a.bind(exits.pass).set(R0, XDP_PASS.cast_signed()).exit();
    a.finish()
}

/// The guard's classifier: frames of ours are dropped until the time that `deadline` holds, in nanoseconds of
/// CLOCK_MONOTONIC.
pub(super) fn guard(
    maps: Descriptors<'_>,
    deadline: BorrowedFd<'_>,
    guarded: Guarded,
) -> Result<Vec<Instruction>, AssemblyError> {
    let mut a = Assembler::default();
    let (exits, ours) = (exits(&mut a), a.label());
    a.copy(CONTEXT, R1);
    before(&mut a, deadline, exits.pass);
    linear_headers(&mut a);
    match guarded {
        Guarded::Certain => {
            parse::frame(&mut a, Fragments::FirstByPorts, false, exits);
            decide_flow(&mut a, maps, exits, ours);
        }
        Guarded::AllTaken => {
            parse::frame(&mut a, Fragments::ByAddress, true, exits);
            decide_all(&mut a, maps, exits, ours);
        }
    }

    a.bind(ours).set(R0, TC_DROP.cast_signed()).exit();
    a.bind(exits.pass).set(R0, TC_UNSPECIFIED.cast_signed()).exit();
    a.finish()
}

/// The diversion's classifier: until the time that `deadline` holds, what this host sends and we have to see leaves by the device
/// `to`.
pub(super) fn divert(
    maps: Descriptors<'_>,
    deadline: BorrowedFd<'_>,
    to: u32,
    loopback: bool,
) -> Result<Vec<Instruction>, AssemblyError> {
    /// Offset in `struct __sk_buff`.
    const VLAN_PRESENT: i16 = 20;

    let mut a = Assembler::default();
    let (exits, ours) = (exits(&mut a), a.label());
    a.copy(CONTEXT, R1);
    before(&mut a, deadline, exits.pass);
    // On its way out by a VLAN's device, which none is that we hold.
    a.load(Word, R2, CONTEXT, VLAN_PRESENT).jump_if(Differs, R2, 0, exits.pass);
    linear_headers(&mut a);
    parse::frame(&mut a, Fragments::ByAddress, true, exits);
    a.bind(exits.tunnel).jump_if(Differs, R9, UDP, exits.pass);
    a.bind(exits.flow);
    if loopback {
        look_up(&mut a, maps, Set::Services, DESTINATION, ours);
        any_port(&mut a, DESTINATION);
        look_up(&mut a, maps, Set::Services, DESTINATION, ours);
    }
    look_up(&mut a, maps, Set::OwnServers, SOURCE, ours);
    a.jump(exits.pass);
    a.bind(exits.fragment);
    if loopback {
        look_up(&mut a, maps, Set::Services, DESTINATION, ours);
    }
    look_up(&mut a, maps, Set::OwnServers, SOURCE, ours);
    a.jump(exits.pass);

    a.bind(ours).set(R1, to.cast_signed()).set(R2, 0).call(helper::REDIRECT).exit();
    a.bind(exits.pass).set(R0, TC_UNSPECIFIED.cast_signed()).exit();
    a.finish()
}

fn exits(a: &mut Assembler) -> Exits {
    Exits { flow: a.label(), tunnel: a.label(), fragment: a.label(), pass: a.label() }
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

/// Emits the decision on whatever the parser found.
fn decide_all(a: &mut Assembler, maps: Descriptors<'_>, exits: Exits, ours: Label) {
    decide_tunnel(a, maps, exits, ours);
    decide_flow(a, maps, exits, ours);
    decide_fragment(a, maps, exits, ours);
}

/// Emits the decision on a packet that an ICMP error quotes, if it can be one that we encapsulated: only the far end's
/// address and port are looked at, and only when the error is for this host. Otherwise UDP goes on as a flow.
fn decide_tunnel(a: &mut Assembler, maps: Descriptors<'_>, exits: Exits, ours: Label) {
    let (local, other) = (a.label(), a.label());
    a.bind(exits.tunnel);
    look_up(a, maps, Set::Locals, HOST, local);
    a.jump(other).bind(local);
    look_up(a, maps, Set::Tunnels, SOURCE, ours);
    a.bind(other).jump_if(Differs, R9, UDP, exits.pass);
}

/// Emits the decision on a flow whose keys are on the stack.
fn decide_flow(a: &mut Assembler, maps: Descriptors<'_>, exits: Exits, ours: Label) {
    let (reply, local, source) = (a.label(), a.label(), a.label());
    a.bind(exits.flow);
    a.load(Half, R9, Fp, DESTINATION + key::at::PORT);
    look_up(a, maps, Set::Services, DESTINATION, ours);
    any_port(a, DESTINATION);
    look_up(a, maps, Set::Services, DESTINATION, ours);
    look_up(a, maps, Set::Replies, SOURCE, reply);
    any_port(a, SOURCE);
    look_up(a, maps, Set::Replies, SOURCE, reply);
    a.jump(exits.pass);
    a.bind(reply);
    look_up(a, maps, Set::Locals, HOST, local);
    a.jump(ours).bind(local);
    look_up(a, maps, Set::Sources, HOST, source);
    a.jump(exits.pass).bind(source);
    a.from_network16(R9);
    unless_host_port(a, maps, exits.pass);
    a.jump(ours);
}

/// Emits the decision on a fragment whose addresses are on the stack. It has no port to tell the host's own by: the
/// pipeline gives back what it does not know.
fn decide_fragment(a: &mut Assembler, maps: Descriptors<'_>, exits: Exits, ours: Label) {
    let (reply, local) = (a.label(), a.label());
    a.bind(exits.fragment);
    look_up(a, maps, Set::Services, HOST, ours);
    look_up(a, maps, Set::Replies, SOURCE, reply);
    a.jump(exits.pass);
    a.bind(reply);
    look_up(a, maps, Set::Locals, HOST, local);
    a.jump(ours).bind(local);
    look_up(a, maps, Set::Sources, HOST, ours);
    a.jump(exits.pass);
}

/// Emits: to `pass` when the port in `R9` may be that of a socket of the host.
fn unless_host_port(a: &mut Assembler, maps: Descriptors<'_>, pass: Label) {
    a.copy(R2, R9).shift_right(R2, 6).store(Word, Fp, INDEX, R2);
    a.load_map(R1, maps.host_ports.as_raw_fd()).copy(R2, Fp).add_value(R2, i32::from(INDEX));
    a.call(helper::MAP_LOOKUP).jump_if(Equal, R0, 0, pass);
    a.load(Double, R1, R0, 0).and_value(R9, 63).shift_right_by(R1, R9).jump_if(AnyBit, R1, 1, pass);
}

fn any_port(a: &mut Assembler, key: i16) {
    a.store_value(Half, Fp, key + key::at::PORT, 0);
}

/// Emits: to `found` when the key on the stack is in the set.
fn look_up(a: &mut Assembler, maps: Descriptors<'_>, set: Set, key: i16, found: Label) {
    let absent = a.label();
    a.store_value(Word, Fp, INDEX, (set as u32).cast_signed());
    a.load_map(R1, maps.sets.as_raw_fd()).copy(R2, Fp).add_value(R2, i32::from(INDEX));
    a.call(helper::MAP_LOOKUP).jump_if(Equal, R0, 0, absent);
    a.copy(R1, R0).copy(R2, Fp).add_value(R2, i32::from(key));
    a.call(helper::MAP_LOOKUP).jump_if(Differs, R0, 0, found);
    a.bind(absent);
}
