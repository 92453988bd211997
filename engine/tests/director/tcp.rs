//! Two ends of a TCP connection, as simple as they can be, and networks between them and the director that lose, repeat and
//! reorder.

use super::full_nat::{Lab, Segment, options};
use super::{ACK, FIN, SYN};
use etherparse::TcpOptionElement::{Noop, SelectiveAcknowledgement};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// The most payload of a segment.
const SIZE: usize = 100;

/// How far before its first number a peer may hear itself acknowledged.
const OLDEST: i32 = -107;

/// One end. Places in its own numbers are counted from its SYN's, those in the other's from the first byte's.
#[derive(Clone, Debug)]
pub struct Peer {
    local: SocketAddr,
    remote: Option<SocketAddr>,
    initial: u32,
    data: Vec<u8>,
    acknowledged: u32,
    next: u32,
    sent: u32,
    other: Option<u32>,
    got: BTreeMap<u32, u8>,
    end: Option<u32>,
}

impl Peer {
    pub fn client(local: SocketAddr, remote: SocketAddr, initial: u32, data: Vec<u8>) -> Self {
        Peer { remote: Some(remote), ..Peer::server(local, initial, data) }
    }

    pub fn server(local: SocketAddr, initial: u32, data: Vec<u8>) -> Self {
        Peer {
            local,
            remote: None,
            initial,
            data,
            acknowledged: 0,
            next: 0,
            sent: 0,
            other: None,
            got: BTreeMap::new(),
            end: None,
        }
    }

    /// What it heard so far without a gap.
    pub fn heard(&self) -> Vec<u8> {
        (0..).map_while(|place| self.got.get(&place).copied()).collect()
    }

    fn is_open(&self) -> bool {
        self.acknowledged > 0
    }

    /// Whether the other has heard all, and this one has heard the other's end.
    fn is_done(&self) -> bool {
        let all = 2 + u32::try_from(self.data.len()).unwrap();
        let heard = u32::try_from(self.heard().len()).unwrap();
        self.acknowledged == all && self.end == Some(heard)
    }

    fn segment(&self, flags: u8, place: u32) -> Option<Segment> {
        let heard = u32::try_from(self.heard().len()).unwrap();
        let (flags, acknowledgement) = match self.other {
            Some(other) => {
                let end = u32::from(self.end == Some(heard));
                (flags | ACK, other.wrapping_add(1 + heard + end))
            }
            None => (flags, 0),
        };
        let sequence = self.initial.wrapping_add(place);
        let mut segment = Segment::new(self.local, self.remote?, flags, sequence, acknowledgement);
        let gap = self.got.keys().find(|place| **place > heard).copied();
        if let (Some(start), Some(other)) = (gap, self.other) {
            let length = (start..).take_while(|place| self.got.contains_key(place)).count();
            let edge = |place: u32| other.wrapping_add(1 + place);
            let block = (edge(start), edge(start + u32::try_from(length).unwrap()));
            segment.options = options(&[Noop, Noop, SelectiveAcknowledgement(block, [None; 3])]);
        }
        Some(segment)
    }

    /// The next segment it has to send, if any.
    fn speak(&mut self) -> Option<Segment> {
        if self.next == 0 {
            self.remote?;
            self.next = 1;
            self.sent = self.sent.max(1);
            return self.segment(SYN, 0);
        }
        let all = 2 + u32::try_from(self.data.len()).unwrap();
        if !self.is_open() || self.next >= all {
            return None;
        }
        let place = self.next;
        let from = usize::try_from(place - 1).unwrap();
        let to = self.data.len().min(from + SIZE);
        let last = to == self.data.len();
        let mut segment = self.segment(if last { FIN } else { 0 }, place)?;
        segment.payload = self.data[from..to].to_vec();
        self.next = if last { all } else { u32::try_from(to + 1).unwrap() };
        self.sent = self.sent.max(self.next);
        Some(segment)
    }

    /// Its time is up: it sends again what was not acknowledged.
    fn hurry(&mut self) {
        self.next = self.acknowledged;
    }

    /// Hears a segment; what it says to that at once.
    fn hear(&mut self, segment: &Segment) -> Option<Segment> {
        if segment.flags & SYN != 0 {
            assert!(self.other.is_none_or(|other| other == segment.sequence), "another SYN: {segment:?}");
            self.other = Some(segment.sequence);
            self.remote = Some(segment.from);
        }
        let other = self.other?;
        if segment.flags & ACK != 0 {
            let place = |number: u32| number.wrapping_sub(self.initial);
            let acknowledged = place(segment.acknowledgement);
            // One that was overtaken may seem as much older as a header is long: an old acknowledgement, which says nothing.
            let old = acknowledged.cast_signed() < 0;
            let range = OLDEST..=self.sent.cast_signed();
            let said = acknowledged.cast_signed();
            assert!(range.contains(&said), "{said} of {} acknowledged: {segment:?}", self.sent);
            let acknowledged = if old { 0 } else { acknowledged };
            if let [1, 1, 5, 10, edges @ ..] = &segment.options[..] {
                let edge = |at: usize| place(u32::from_be_bytes(edges[at..at + 4].try_into().unwrap()));
                let right = old || edge(0) <= edge(4) && edge(4) <= self.sent;
                assert!(right, "{} sent: {segment:?}", self.sent);
            }
            self.acknowledged = self.acknowledged.max(acknowledged);
            self.next = self.next.max(self.acknowledged);
        }
        let place = segment.sequence.wrapping_sub(other.wrapping_add(1));
        for (place, byte) in (0..).map(|index| place.wrapping_add(index)).zip(&segment.payload) {
            if place < 1 << 20 {
                let before = self.got.insert(place, *byte);
                assert!(before.is_none_or(|before| before == *byte), "two bytes for place {place}");
            }
        }
        if segment.flags & FIN != 0 {
            let end = place.wrapping_add(u32::try_from(segment.payload.len()).unwrap());
            assert!(self.end.is_none_or(|before| before == end), "two ends");
            self.end = Some(end);
        }
        let to_acknowledge = segment.flags & (SYN | FIN) != 0 || !segment.payload.is_empty();
        let answers = self.next > 0 && to_acknowledge;
        if answers { self.segment(0, self.next) } else { None }
    }
}

/// Both ends and what is on its way between them and the director.
#[derive(Debug)]
pub struct Network {
    pub client: Peer,
    pub server: Peer,
    from_client: Vec<Segment>,
    to_server: Vec<Segment>,
    from_server: Vec<Segment>,
    to_client: Vec<Segment>,
}

impl Network {
    pub fn new(client: Peer, server: Peer) -> Self {
        let none = Vec::new;
        Network {
            client,
            server,
            from_client: none(),
            to_server: none(),
            from_server: none(),
            to_client: none(),
        }
    }

    /// Something happens: what, chance says.
    pub fn step(&mut self, lab: &mut Lab, choice: u8, chance: &mut impl Iterator<Item = u8>) {
        match choice % 12 {
            0 => self.client.hurry(),
            1 => self.server.hurry(),
            2 | 3 => self.from_client.extend(self.client.speak()),
            4 | 5 => self.from_server.extend(self.server.speak()),
            way => {
                let which = usize::from(chance.next().unwrap_or(0));
                let fate = chance.next().unwrap_or(0) % 8;
                let queue = match way {
                    6 | 7 => &mut self.from_client,
                    8 => &mut self.to_server,
                    9 | 10 => &mut self.from_server,
                    _ => &mut self.to_client,
                };
                if queue.is_empty() {
                    return;
                }
                let at = which % queue.len();
                let segment = if fate == 0 { queue[at].clone() } else { queue.remove(at) };
                if fate != 1 {
                    self.arrive(lab, way, &segment);
                }
            }
        }
    }

    fn arrive(&mut self, lab: &mut Lab, way: u8, segment: &Segment) {
        match way {
            // A SYN from long ago would begin another connection.
            6 | 7 if segment.flags & SYN != 0 && self.client.is_open() => {}
            6 | 7 => {
                let seen = lab.at_server(segment);
                self.to_server.push(seen);
            }
            8 => self.from_server.extend(self.server.hear(segment)),
            9 | 10 => {
                let client = self.client.local;
                let seen = lab.at_client(segment, client);
                self.to_client.push(seen);
            }
            _ => self.from_client.extend(self.client.hear(segment)),
        }
    }

    /// From now on everything arrives, until nothing is left to be said.
    pub fn finish(&mut self, lab: &mut Lab) {
        for _ in 0..100 {
            if self.client.is_done() && self.server.is_done() {
                return;
            }
            self.client.hurry();
            self.server.hurry();
            for _ in 0..4 {
                while let Some(segment) = self.client.speak() {
                    self.from_client.push(segment);
                }
                while let Some(segment) = self.server.speak() {
                    self.from_server.push(segment);
                }
                for way in [6, 8, 9, 11] {
                    let queue = match way {
                        6 => &mut self.from_client,
                        8 => &mut self.to_server,
                        9 => &mut self.from_server,
                        _ => &mut self.to_client,
                    };
                    for segment in std::mem::take(queue) {
                        self.arrive(lab, way, &segment);
                    }
                }
            }
        }
        panic!("they never end: {self:#?}");
    }
}
