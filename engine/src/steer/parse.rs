//! The part of the programs that reads headers: from a frame to keys on the stack.
//!
//! Registers: `R6` is the context, `R7` the next header, `R8` the end of what may be read, `R9` the protocol that `R7`
//! points at. Nothing is read that was not compared with `R8` first; what ends too early goes to `pass`.

use super::asm::Register::{Fp, R2, R3, R7, R8, R9};
use super::asm::When::{AnyBit, Differs, Equal, Greater, Less};
use super::asm::Width::{Byte, Double, Half, Word};
use super::asm::{Assembler, Label, Register};
use super::key::{self, IPV4, IPV6};
use std::ops::RangeInclusive;

/// Where the key of the destination lies on the stack.
pub(super) const DESTINATION: i16 = -24;
/// Where the key of the source lies on the stack.
pub(super) const SOURCE: i16 = -48;
/// Where the key of the address the frame is going to, alone, lies on the stack.
pub(super) const HOST: i16 = -72;

const TCP: i32 = libc::IPPROTO_TCP;
pub(super) const UDP: i32 = libc::IPPROTO_UDP;
const IPV4_IN_IP: i32 = libc::IPPROTO_IPIP;
const IPV6_IN_IP: i32 = libc::IPPROTO_IPV6;
const GRE: i32 = libc::IPPROTO_GRE;
const HOP_BY_HOP: i32 = 0;
const ROUTING: i32 = 43;
const FRAGMENT: i32 = 44;
const DESTINATION_OPTIONS: i32 = 60;

/// How many IPv6 extension headers are followed. RFC 8504 §5.3 lets a host limit them; longer chains go to the kernel.
pub(super) const EXTENSION_HEADERS: usize = 6;
/// The same for a packet that an ICMP error quotes. The verifier walks every combination of both chains, and gives up
/// after a million instructions.
pub(super) const QUOTED_EXTENSION_HEADERS: usize = 2;
/// How many VLAN tags are skipped.
pub(super) const TAGS: usize = 2;
/// The ICMP errors of RFC 792: unreachable, source quench, time exceeded, parameter problem.
pub(super) const ERRORS4: [i32; 4] = [3, 4, 11, 12];
/// The ICMPv6 errors of RFC 4443.
pub(super) const ERRORS6: RangeInclusive<i32> = 1..=4;

/// What becomes of fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fragments {
    /// Every fragment is looked up by its addresses alone.
    ByAddress,
    /// A first fragment is looked up by its ports, as a whole packet is; later ones pass.
    FirstByPorts,
}

/// Where the parser leads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exits {
    /// The keys of a flow are on the stack.
    pub(super) flow: Label,
    /// The keys of a packet that an ICMP error quotes and that may be an encapsulated one of ours are on the stack: of
    /// UDP (protocol in `R9`) as those of a flow, of another encapsulation without ports.
    pub(super) tunnel: Label,
    /// The addresses of a fragment of TCP or UDP are on the stack; port and protocol of the keys are zero.
    pub(super) fragment: Label,
    /// Not ours.
    pub(super) pass: Label,
}

/// Where in the frame a packet lies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layer {
    /// It is what the frame carries.
    Outer,
    /// An ICMP error quotes it. It travelled the other way: its source is where the error belongs, so it is stored
    /// with source and destination exchanged, and one decision serves both.
    Quoted,
}

/// Emits the parser of an Ethernet frame that `R7` points at.
///
/// With `errors`, ICMP errors are looked up by the packet they quote; otherwise ICMP passes.
pub(super) fn frame(a: &mut Assembler, fragments: Fragments, errors: bool, exits: Exits) {
    let (ipv4, ipv6) = (a.label(), a.label());
    need(a, 14, exits.pass);
    // A frame to a group of stations is none of ours: IPVS takes only what is addressed to this host (PACKET_HOST).
    a.load(Byte, R2, R7, 0).jump_if(AnyBit, R2, 1, exits.pass);
    a.load(Half, R2, R7, 12).add_value(R7, 14);
    let network = a.label();
    for _ in 0..TAGS {
        let tagged = a.label();
        a.jump_if(Equal, R2, network16(0x8100), tagged).jump_if(Differs, R2, network16(0x88a8), network);
        a.bind(tagged);
        need(a, 4, exits.pass);
        a.load(Half, R2, R7, 2).add_value(R7, 4);
    }
    a.bind(network);
    a.jump_if(Equal, R2, network16(0x0800), ipv4).jump_if(Equal, R2, network16(0x86dd), ipv6);
    a.jump(exits.pass);

    a.bind(ipv4);
    packet4(a, Layer::Outer, fragments, exits);
    ports_or(a, exits, if errors { icmp4 } else { nothing });
    a.bind(ipv6);
    packet6(a, Layer::Outer, fragments, exits);
    ports_or(a, exits, if errors { icmp6 } else { nothing });
}

/// Emits the parser of what follows an IP header: the ports of TCP and UDP, else what `otherwise` emits, which must
/// end in a jump.
fn ports_or(a: &mut Assembler, exits: Exits, otherwise: fn(&mut Assembler, Exits)) {
    let ports = a.label();
    a.jump_if(Equal, R9, TCP, ports).jump_if(Equal, R9, UDP, ports);
    otherwise(a, exits);
    a.bind(ports);
    read_ports(a, Layer::Outer, exits);
}

fn nothing(a: &mut Assembler, exits: Exits) {
    a.jump(exits.pass);
}

fn icmp4(a: &mut Assembler, exits: Exits) {
    let error = a.label();
    a.jump_if(Differs, R9, libc::IPPROTO_ICMP, exits.pass);
    need(a, 8, exits.pass);
    a.load(Byte, R2, R7, 0).add_value(R7, 8);
    for kind in ERRORS4 {
        a.jump_if(Equal, R2, kind, error);
    }
    a.jump(exits.pass).bind(error);
    packet4(a, Layer::Quoted, Fragments::FirstByPorts, exits);
    quoted_ports(a, exits);
}

fn icmp6(a: &mut Assembler, exits: Exits) {
    a.jump_if(Differs, R9, libc::IPPROTO_ICMPV6, exits.pass);
    need(a, 8, exits.pass);
    a.load(Byte, R2, R7, 0).add_value(R7, 8);
    a.jump_if(Less, R2, *ERRORS6.start(), exits.pass).jump_if(Greater, R2, *ERRORS6.end(), exits.pass);
    packet6(a, Layer::Quoted, Fragments::FirstByPorts, exits);
    quoted_ports(a, exits);
}

fn quoted_ports(a: &mut Assembler, exits: Exits) {
    let (ports, tunnel) = (a.label(), a.label());
    a.jump_if(Equal, R9, TCP, ports).jump_if(Equal, R9, UDP, ports);
    for encapsulation in [IPV4_IN_IP, IPV6_IN_IP, GRE] {
        a.jump_if(Equal, R9, encapsulation, tunnel);
    }
    a.jump(exits.pass).bind(tunnel);
    a.store(Byte, Fp, SOURCE + key::at::PROTOCOL, R9).jump(exits.tunnel);
    a.bind(ports);
    read_ports(a, Layer::Quoted, exits);
}

fn read_ports(a: &mut Assembler, layer: Layer, exits: Exits) {
    let (source, destination) = keys(layer);
    need(a, 4, exits.pass);
    a.load(Half, R2, R7, 0).store(Half, Fp, source + key::at::PORT, R2);
    a.load(Half, R2, R7, 2).store(Half, Fp, destination + key::at::PORT, R2);
    a.store(Byte, Fp, source + key::at::PROTOCOL, R9).store(Byte, Fp, destination + key::at::PROTOCOL, R9);
    if layer == Layer::Quoted {
        a.jump_if(Equal, R9, UDP, exits.tunnel);
    }
    a.jump(exits.flow);
}

/// Emits the parser of an IPv4 header, options included (RFC 791).
fn packet4(a: &mut Assembler, layer: Layer, fragments: Fragments, exits: Exits) {
    let (source, destination) = keys(layer);
    need(a, 20, exits.pass);
    a.load(Byte, R2, R7, 0).copy(R3, R2).and_value(R3, 0xf0).jump_if(Differs, R3, 0x40, exits.pass);
    a.and_value(R2, 0x0f).shift_left(R2, 2).jump_if(Less, R2, 20, exits.pass);
    a.load(Byte, R9, R7, 9);
    address4(a, source, 12);
    address4(a, destination, 16);
    if layer == Layer::Outer {
        address4(a, HOST, 16);
    }
    a.load(Half, R3, R7, 6).add(R7, R2);
    match fragments {
        Fragments::ByAddress => {
            let whole = a.label();
            // More fragments, or an offset.
            a.copy(R2, R3).and_value(R2, network16(0x3fff)).jump_if(Equal, R2, 0, whole);
            a.jump_if(Equal, R9, TCP, exits.fragment).jump_if(Equal, R9, UDP, exits.fragment);
            a.jump(exits.pass).bind(whole);
        }
        Fragments::FirstByPorts => {
            a.jump_if(AnyBit, R3, network16(0x1fff), exits.pass);
        }
    }
}

/// Emits the parser of an IPv6 header and its extension headers (RFC 8200).
fn packet6(a: &mut Assembler, layer: Layer, fragments: Fragments, exits: Exits) {
    let (source, destination) = keys(layer);
    need(a, 40, exits.pass);
    a.load(Byte, R2, R7, 0).and_value(R2, 0xf0).jump_if(Differs, R2, 0x60, exits.pass);
    a.load(Byte, R9, R7, 6);
    address6(a, source, 8);
    address6(a, destination, 24);
    let mut extensions = QUOTED_EXTENSION_HEADERS;
    if layer == Layer::Outer {
        address6(a, HOST, 24);
        extensions = EXTENSION_HEADERS;
    }
    a.add_value(R7, 40);
    let upper = a.label();
    for _ in 0..extensions {
        extension(a, fragments, upper, exits);
    }
    a.bind(upper);
}

/// Emits the parser of one header that may be an extension header; any other leads to `upper`.
fn extension(a: &mut Assembler, fragments: Fragments, upper: Label, exits: Exits) {
    let (fragment, options, next) = (a.label(), a.label(), a.label());
    a.jump_if(Equal, R9, FRAGMENT, fragment);
    for header in [HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS] {
        a.jump_if(Equal, R9, header, options);
    }
    a.jump(upper);

    a.bind(options);
    need(a, 8, exits.pass);
    // Next header; length in units of 8 bytes, the first not counted.
    a.load(Byte, R9, R7, 0).load(Byte, R2, R7, 1);
    a.add_value(R2, 1).shift_left(R2, 3).add(R7, R2).jump(next);

    a.bind(fragment);
    need(a, 8, exits.pass);
    a.load(Byte, R9, R7, 0).load(Half, R2, R7, 2).add_value(R7, 8);
    match fragments {
        Fragments::ByAddress => {
            // An offset, or more to come; a fragment that is all of its packet (RFC 6946) goes on as a whole one.
            a.and_value(R2, network16(0xfff9)).jump_if(Equal, R2, 0, next);
            for header in [TCP, UDP, DESTINATION_OPTIONS] {
                a.jump_if(Equal, R9, header, exits.fragment);
            }
            a.jump(exits.pass);
        }
        Fragments::FirstByPorts => {
            a.jump_if(AnyBit, R2, network16(0xfff8), exits.pass);
        }
    }
    a.bind(next);
}

/// Goes to `pass` unless `bytes` more can be read at `R7`.
fn need(a: &mut Assembler, bytes: i32, pass: Label) {
    a.copy(R2, R7).add_value(R2, bytes).jump_if_register(Greater, R2, R8, pass);
}

/// Writes the key of the IPv4 address at `R7 + offset` to the stack, without port and protocol.
fn address4(a: &mut Assembler, to: i16, offset: i16) {
    let at = to + key::at::ADDRESS;
    a.store_value(Double, Fp, at, 0);
    a.store_value(Word, Fp, at + 8, i32::from_ne_bytes([0, 0, 0xff, 0xff]));
    a.load(Word, R3, R7, offset).store(Word, Fp, at + 12, R3);
    no_port(a, to, IPV4);
}

/// Writes the key of the IPv6 address at `R7 + offset` to the stack, without port and protocol.
fn address6(a: &mut Assembler, to: i16, offset: i16) {
    for part in [0, 4, 8, 12] {
        a.load(Word, R3, R7, offset + part).store(Word, Fp, to + key::at::ADDRESS + part, R3);
    }
    no_port(a, to, IPV6);
}

fn no_port(a: &mut Assembler, to: i16, family: u8) {
    a.store_value(Word, Fp, to + key::at::PORT, i32::from_ne_bytes([0, 0, 0, family]));
}

/// Where source and destination of a packet go.
fn keys(layer: Layer) -> (i16, i16) {
    match layer {
        Layer::Outer => (SOURCE, DESTINATION),
        Layer::Quoted => (DESTINATION, SOURCE),
    }
}

/// What a load of two bytes gives when they are `value` in network order.
fn network16(value: u16) -> i32 {
    i32::from(value.to_be())
}

/// A register that the parser leaves free for the context.
pub(super) const CONTEXT: Register = Register::R6;
