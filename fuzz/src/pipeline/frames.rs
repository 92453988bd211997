//! Frames made of choices.

use super::input::Input;
use super::world;
use crate::director::edit::{LINK, is_v4, resum, seal, with_extensions, with_options, with_tcp_options};
use crate::director::own::{OWN, OWN_MAC};
use crate::director::report::{Report, routers};
use crate::director::*;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use uvs_engine::PortId;
use uvs_engine::packet::{ethernet, piece, split};

/// A frame, and whether all its checksums are right or for us to finish.
pub struct Making {
    pub frame: Vec<u8>,
    pub good: bool,
}

/// As it lies in the input, but for whom it is for.
pub fn raw(input: &mut Input<'_>) -> (PortId, Vec<u8>) {
    let port = input.below(2);
    let length = input.below(300);
    let mut frame = input.bytes(length).to_vec();
    if frame.len() >= 6 && input.below(4) > 0 {
        frame[..6].copy_from_slice(&PORT_MACS[port]);
    }
    (PortId(u16::try_from(port).unwrap_or(0)), frame)
}

/// A client's or a real server's packet, with what may be odd about it.
pub fn made(with_own: bool, input: &mut Input<'_>) -> (PortId, Making) {
    let plan = world::plan(input.below(world::SERVICES));
    let protocol = [TCP, UDP][input.below(2)];
    let flags = [SYN, ACK, FIN | ACK, RST, SYN | ACK, 0, SYN | FIN][input.below(7)];
    let from_client = input.below(4) > 0;
    let (outside, mut frame) = if from_client {
        (CLIENTS, Frame::from_client(&plan, protocol, flags))
    } else {
        (SERVERS, Frame::from_server(&plan, protocol, flags))
    };
    let choice = input.byte();
    frame.from.set_port(frame.from.port() + u16::from(choice % 4));
    let port = if with_own && choice >> 6 == 3 {
        frame = by_own(frame, &plan, from_client);
        OWN
    } else {
        outside
    };
    if from_client && input.below(16) == 1 {
        frame.from.set_ip(odd_source(&plan, input));
    }
    frame.ttl = if input.below(8) == 1 { input.byte() } else { 64 };
    let length = match input.below(8) {
        0..4 => input.below(64),
        4 | 5 => 1200 + input.below(256),
        6 => input.below(9000),
        _ => usize::from(input.word() % 64_000),
    };
    frame.payload = (0..=u8::MAX).collect::<Vec<u8>>().repeat(length / 256 + 1);
    frame.payload.truncate(length);
    let tags: &[(u16, u16)] = [&[][..], &[], &[(0x8100, 5)], &[(0x88a8, 6), (0x8100, 7)]][input.below(4)];
    let (mut bytes, mut good) = match input.below(4) {
        0 => (frame.unfinished(), true),
        1 => {
            let bytes = with_headers(frame.bytes(), input);
            let good = oracle::verify(&bytes).is_ok();
            (bytes, good)
        }
        _ => (frame.bytes(), true),
    };
    if input.below(4) == 1 {
        good = damage(&mut bytes, input);
    }
    let frame = if bytes.len() < LINK { bytes } else { edit::tagged(bytes, tags) };
    (port, Making { frame, good })
}

/// The same from a socket of this host.
fn by_own(frame: Frame, plan: &Plan, from_client: bool) -> Frame {
    let mut from = frame.from;
    if from_client {
        from.set_ip(plan.service.ip());
    } else {
        from = at(if plan.service.is_ipv4() { "172.16.0.9:8080" } else { "[fd00:2::9]:8080" });
    }
    Frame { from, to_mac: OWN_MAC, from_mac: [0; 6], ..frame }
}

fn odd_source(plan: &Plan, input: &mut Input<'_>) -> IpAddr {
    match (input.below(4), plan.client.is_ipv4()) {
        (0, _) => plan.service.ip(),
        (1, _) => plan.server.ip(),
        (2, true) => Ipv4Addr::new(10, 0, 0, 77).into(),
        (2, false) => Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 0x77).into(),
        (_, true) => Ipv4Addr::new(192, 0, 2, input.byte()).into(),
        (_, false) => Ipv6Addr::LOCALHOST.into(),
    }
}

/// Options or extension headers, well formed or not.
fn with_headers(bytes: Vec<u8>, input: &mut Input<'_>) -> Vec<u8> {
    let words = input.below(11);
    let mut options = input.bytes(words * 4).to_vec();
    options.resize(words * 4, 1);
    match (input.below(2), is_v4(&bytes)) {
        (0, _) if bytes[LINK + if is_v4(&bytes) { 9 } else { 6 }] == TCP && bytes.len() < 60_000 => {
            with_tcp_options(bytes, &options)
        }
        (_, true) => with_options(bytes, &options),
        (_, false) => {
            let kinds = [0, 43, 44, 51, 60, 60, 60, 50];
            let kind = kinds[usize::from(input.byte() % 8)];
            with_extensions(bytes, &[(kind, &[0; 7][..]); 10][..words])
        }
    }
}

/// Changes some bytes of the headers, and mends the checksums or not. Whether they are right.
fn damage(bytes: &mut Vec<u8>, input: &mut Input<'_>) -> bool {
    for _ in 0..1 + input.below(3) {
        let at = input.below(100);
        if let Some(byte) = bytes.get_mut(at) {
            *byte = input.byte();
        }
    }
    if input.below(4) == 1 {
        let length = input.below(120);
        bytes.truncate(length);
    }
    if input.below(2) == 1 {
        mend(bytes);
    }
    oracle::verify(bytes).is_ok()
}

/// Makes the checksums right where a packet is plain enough for that.
fn mend(bytes: &mut [u8]) {
    let header = |bytes: &[u8]| match bytes.get(12..LINK + 40)? {
        [8, 0, 0x45, .., _] if bytes[LINK + 6] & 0x3f == 0 && bytes[LINK + 7] == 0 => Some(LINK + 9),
        [0x86, 0xdd, first, ..] if first >> 4 == 6 => Some(LINK + 6),
        _ => None,
    };
    let Some(protocol) = header(bytes) else { return };
    if is_v4(bytes) {
        seal(bytes);
    }
    let transport = LINK + if is_v4(bytes) { 20 } else { 40 };
    if matches!(bytes[protocol], TCP | UDP) && bytes.len() >= transport + 20 && bytes.len() < 65_000 {
        resum(bytes);
    }
}

/// What is sent back to a frame that was sent by device `near`: its reverse, with other flags.
pub fn answer(sent: &[u8], input: &mut Input<'_>) -> Option<Making> {
    let mut frame = sent.to_vec();
    let (addresses, transport) = match frame.get(12..LINK + 60)? {
        [8, 0, 0x45, ..] => (LINK + 12..LINK + 20, LINK + 20),
        [0x86, 0xdd, ..] => (LINK + 8..LINK + 40, LINK + 40),
        _ => return None,
    };
    let swap = |bytes: &mut [u8]| {
        let (a, b) = bytes.split_at_mut(bytes.len() / 2);
        a.swap_with_slice(b);
    };
    swap(&mut frame[..12]);
    swap(&mut frame[addresses]);
    swap(&mut frame[transport..transport + 4]);
    let (hops, protocol) = if is_v4(&frame) { (LINK + 8, LINK + 9) } else { (LINK + 7, LINK + 6) };
    frame[hops] = 64;
    if frame[protocol] == TCP {
        frame[transport + 13] = [SYN | ACK, ACK, FIN | ACK, RST, ACK][input.below(5)];
    }
    mend(&mut frame);
    let good = oracle::verify(&frame).is_ok();
    Some(Making { frame, good })
}

/// An ICMP error about a frame that was sent by device `near`.
pub fn error(sent: &[u8], near: usize, input: &mut Input<'_>) -> Option<Making> {
    let quote = sent.get(LINK..)?;
    let from = match sent.get(12..LINK + 40)? {
        [8, 0, 0x45, ..] => SocketAddr::new(<[u8; 4]>::try_from(&quote[12..16]).ok()?.into(), 0),
        [0x86, 0xdd, ..] => SocketAddr::new(<[u8; 16]>::try_from(&quote[8..24]).ok()?.into(), 0),
        _ => return None,
    };
    let kinds: &[(u8, u8)] = if from.is_ipv4() {
        &[(3, 4), (3, 3), (11, 0), (12, 0), (4, 0), (8, 0), (3, 2)]
    } else {
        &[(2, 0), (1, 4), (3, 0), (4, 1), (4, 0), (128, 0), (1, 0)]
    };
    let (kind, code) = kinds[input.below(kinds.len())];
    let length = [quote.len(), 548, 28, 60][input.below(4)].min(quote.len()).min(60_000);
    let plan = plans()[usize::from(!from.is_ipv4())];
    let report = Report {
        to_mac: PORT_MACS[near],
        from_mac: [CLIENT_MAC, SERVER_MAC][near],
        from: routers(&plan)[near],
        to: from.ip(),
        ttl: 60,
        kind,
        code,
        word: [0, 0, input.byte() % 8, input.byte()],
        quote: quote[..length].to_vec(),
    };
    Some(Making { frame: report.bytes(), good: true })
}

/// The frame's packet in fragments, in an order of its own, one of them twice or not at all.
pub fn fragments(frame: &[u8], input: &mut Input<'_>) -> Vec<Vec<u8>> {
    let mut whole = frame.to_vec();
    if whole.len() > LINK + 20 && is_v4(&whole) && whole[LINK] == 0x45 {
        whole[LINK + 6] &= !0x40;
        seal(&mut whole);
    }
    // Some extension headers have to come before the fragment header, which those that we send do without.
    match ethernet::payload(&whole) {
        Ok((ethernet::IPV6, at)) if !whole.get(at + 6).is_some_and(|next| [TCP, UDP].contains(next)) => {
            return vec![];
        }
        _ => {}
    }
    let limit = 100 + 8 * input.below(180);
    let parts = [&whole[..]];
    let Ok(pieces) = split::fragments(&parts, limit, u32::from(input.byte() % 4)) else { return vec![] };
    let laid = pieces.map(|it| {
        let stretch = piece::stretch(&parts, it.payload.clone()).flatten();
        it.headers.iter().chain(stretch).copied().collect()
    });
    let mut fragments: Vec<Vec<u8>> = laid.take(64).collect();
    if !fragments.is_empty() {
        let first = input.below(fragments.len());
        fragments.rotate_left(first);
        match input.below(4) {
            1 => fragments.push(fragments[0].clone()),
            2 => fragments.truncate(first + 1),
            _ => {}
        }
    }
    fragments
}
