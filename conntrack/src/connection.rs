//! One connection, as its packets and listings see it.

use crate::DestinationId;
use crate::flow::{Direction, Flow, Flow4, Flow6};
use crate::layout::{Cold, Head, Narrow, Wide};
use crate::meta::{Meta, flags};
use crate::protocol;
use crate::sync::{AcqRel, Acquire, Relaxed};
use crate::time::Tick;

/// Names an entry of the table: bit 30 the class, below it the number.
///
/// Good until the next quiescent point of the handle that gave it; after that the entry may be another connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub(crate) u32);

/// How a connection's TCP sequence numbers are translated. Both numbers are one word of the entry: several workers may
/// translate its packets at once, and must agree on both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sequence {
    /// What is added to sequence numbers of packets from the client, and taken from acknowledgements of packets to it,
    /// wrapping.
    pub delta: u32,
    /// A second number, whose meaning the forwarding method gives it; 0: none.
    pub mark: u32,
}

impl Sequence {
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the halves of the word")]
    fn from_word(word: u64) -> Self {
        Sequence { delta: word as u32, mark: (word >> 32) as u32 }
    }

    #[inline]
    pub(crate) fn word(self) -> u64 {
        u64::from(self.delta) | u64::from(self.mark) << 32
    }
}

/// The two sizes of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Class {
    Narrow = 0,
    Wide = 1,
}

impl ConnId {
    /// No connection.
    pub const NONE: ConnId = ConnId(0);
    const WIDE: u32 = 1 << 30;

    pub(crate) fn new(class: Class, number: u32) -> Self {
        ConnId(number | if class == Class::Wide { Self::WIDE } else { 0 })
    }

    #[inline]
    pub(crate) fn class(self) -> Class {
        if self.0 & Self::WIDE == 0 { Class::Narrow } else { Class::Wide }
    }

    #[inline]
    pub(crate) fn number(self) -> u32 {
        self.0 & !Self::WIDE
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Entry<'a> {
    Narrow(&'a Narrow, &'a Cold),
    Wide(&'a Wide),
}

impl<'a> Entry<'a> {
    #[inline]
    pub(crate) fn head(self) -> &'a Head {
        match self {
            Entry::Narrow(narrow, _) => &narrow.head,
            Entry::Wide(wide) => &wide.head,
        }
    }

    pub(crate) fn cold(self) -> &'a Cold {
        match self {
            Entry::Narrow(_, cold) => cold,
            Entry::Wide(wide) => &wide.cold,
        }
    }

    #[inline]
    pub(crate) fn meta(self) -> Meta {
        Meta(self.head().meta.load(Acquire))
    }

    /// `true` when the word was `old` and is `new` now.
    #[inline]
    pub(crate) fn swap_meta(self, old: Meta, new: Meta) -> bool {
        self.head().meta.compare_exchange(old.0, new.0, AcqRel, Acquire).is_ok()
    }

    /// The flow of packets that travel in `direction`.
    pub(crate) fn flow(self, direction: Direction, meta: Meta) -> Flow {
        match self {
            Entry::Narrow(narrow, _) => Flow::V4(narrow.flow(direction, meta.protocol())),
            Entry::Wide(wide) => {
                let flow = wide.flow(direction, meta.protocol());
                if meta.is_ipv4(direction) { Flow::V4(flow.unmapped()) } else { Flow::V6(flow) }
            }
        }
    }

    /// Writes both sides. For the maker of the entry, before anybody else can see it.
    pub(crate) fn set_flows(self, client: &Flow, real: &Flow) {
        for (at, flow) in [client, real].into_iter().enumerate() {
            match (self, flow) {
                (Entry::Narrow(narrow, _), Flow::V4(flow)) => {
                    narrow.addresses[at].store(flow.addresses, Relaxed);
                    narrow.ports[at].store(flow.ports, Relaxed);
                }
                // A narrow entry is only ever chosen for two IPv4 sides.
                (Entry::Narrow(..), Flow::V6(_)) => {}
                (Entry::Wide(wide), flow) => {
                    let flow = flow.wide();
                    for (to, word) in wide.addresses[at].iter().zip(flow.addresses) {
                        to.store(word, Relaxed);
                    }
                    wide.ports[at].store(flow.ports, Relaxed);
                }
            }
        }
    }
}

impl Narrow {
    #[inline]
    fn flow(&self, direction: Direction, protocol: u8) -> Flow4 {
        let at = direction.index();
        Flow4 { addresses: self.addresses[at].load(Relaxed), ports: self.ports[at].load(Relaxed), protocol }
    }
}

impl Wide {
    #[inline(always)]
    fn flow(&self, direction: Direction, protocol: u8) -> Flow6 {
        let at = direction.index();
        let [a, b, c, d] = &self.addresses[at];
        let addresses = [a.load(Relaxed), b.load(Relaxed), c.load(Relaxed), d.load(Relaxed)];
        Flow6 { addresses, ports: self.ports[at].load(Relaxed), protocol }
    }
}

/// A connection (or template) of the table. Borrowed from a handle, which therefore cannot pass a quiescent point while
/// it is held: what it shows is one connection, though others may change it at the same time.
#[derive(Clone, Copy, Debug)]
pub struct Connection<'a> {
    pub(crate) id: ConnId,
    pub(crate) entry: Entry<'a>,
}

impl Connection<'_> {
    /// Its name until the next quiescent point.
    #[inline]
    #[must_use]
    pub fn id(&self) -> ConnId {
        self.id
    }

    /// Flags, state, protocol, timeout: one consistent reading.
    #[inline]
    #[must_use]
    pub fn meta(&self) -> Meta {
        self.entry.meta()
    }

    /// The flow of packets from the client: client → virtual service.
    #[must_use]
    pub fn client(&self) -> Flow {
        self.flow(Direction::In)
    }

    /// The flow of packets from the real server: real server → client, or → local address with full NAT.
    #[must_use]
    pub fn real(&self) -> Flow {
        self.flow(Direction::Out)
    }

    /// The flow of packets that travel in `direction`, as they arrive.
    #[inline]
    #[must_use]
    pub fn flow(&self, direction: Direction) -> Flow {
        self.entry.flow(direction, self.meta())
    }

    /// As [`Connection::flow`] when both sides are IPv4, at the least cost; `meta` is what [`Connection::meta`] said.
    #[inline]
    #[must_use]
    pub fn flow4(&self, meta: Meta, direction: Direction) -> Option<Flow4> {
        match self.entry {
            Entry::Narrow(narrow, _) => Some(narrow.flow(direction, meta.protocol())),
            Entry::Wide(_) => self.wide_flow4(direction),
        }
    }

    /// As [`Connection::flow4`], when both sides are IPv6.
    #[inline]
    #[must_use]
    pub fn flow6(&self, meta: Meta, direction: Direction) -> Option<Flow6> {
        match self.entry {
            Entry::Wide(wide) if !meta.is_ipv4(direction) => Some(wide.flow(direction, meta.protocol())),
            _ => None,
        }
    }

    /// Whether client and real server speak different IP versions.
    #[inline]
    pub fn joins_families(&self, meta: Meta) -> bool {
        matches!(self.entry, Entry::Wide(_)) && meta.is_ipv4(Direction::In) != meta.is_ipv4(Direction::Out)
    }

    #[cold]
    fn wide_flow4(&self, direction: Direction) -> Option<Flow4> {
        match self.flow(direction) {
            Flow::V4(flow) => Some(flow),
            Flow::V6(_) => None,
        }
    }

    /// Its real server.
    #[inline]
    #[must_use]
    pub fn destination(&self) -> DestinationId {
        DestinationId(self.entry.head().destination.load(Relaxed))
    }

    /// The template that controls it.
    #[must_use]
    pub fn template(&self) -> Option<ConnId> {
        Some(ConnId(self.entry.head().template.load(Relaxed))).filter(|id| *id != ConnId::NONE)
    }

    /// Whether it is a template.
    #[must_use]
    pub fn is_template(&self) -> bool {
        self.meta().has(flags::TEMPLATE)
    }

    /// Its IP protocol number; a template's is that of the connections it is for, 0 when it is for those of any.
    #[must_use]
    pub fn protocol(&self) -> u8 {
        let meta = self.meta();
        let number = meta.protocol();
        if meta.has(flags::TEMPLATE) { protocol::of_connections(number) } else { number }
    }

    /// Whether it counts among its destination's active connections.
    #[must_use]
    pub fn is_active(&self) -> bool {
        !self.meta().has(flags::INACTIVE)
    }

    /// State as `ipvsadm -Lc` prints it.
    #[must_use]
    pub fn state_name(&self) -> &'static str {
        let meta = self.meta();
        protocol::state_name(meta.protocol(), meta.state(), meta.has(flags::TEMPLATE))
    }

    /// Packets from the client so far.
    #[must_use]
    pub fn packets(&self) -> u32 {
        self.entry.head().packets.load(Relaxed)
    }

    /// When its last packet came.
    #[must_use]
    pub fn seen(&self) -> Tick {
        Tick(self.entry.head().seen.load(Relaxed))
    }

    /// When it ends if no packet comes.
    #[must_use]
    pub fn deadline(&self) -> Tick {
        self.seen().plus_seconds(self.meta().timeout())
    }

    /// Whole seconds left to it at `now`; 0 when its time is over.
    #[must_use]
    pub fn seconds_left(&self, now: Tick) -> u32 {
        let ticks = self.deadline().since(now).max(0).cast_unsigned();
        ticks / crate::TICKS_PER_SECOND
    }

    /// The mark it was scheduled by, 0 without.
    #[must_use]
    pub fn fwmark(&self) -> u32 {
        self.entry.cold().fwmark.load(Relaxed)
    }

    /// How many connections it controls.
    #[must_use]
    pub fn children(&self) -> u32 {
        self.entry.cold().children.load(Relaxed)
    }

    /// The sync stamp (when it was last told to the backup, in the synchroniser's terms) and its owner's number.
    #[must_use]
    pub fn sync(&self) -> (u32, u32) {
        let cold = self.entry.cold();
        (cold.sync_stamp.load(Relaxed), cold.owner.load(Relaxed))
    }

    /// Sets what [`Connection::sync`] returns.
    pub fn set_sync(&self, stamp: u32, owner: u32) {
        let cold = self.entry.cold();
        cold.sync_stamp.store(stamp, Relaxed);
        cold.owner.store(owner, Relaxed);
    }

    /// A packet passed: its time, and its count if it came from the client (what IPVS counts). Two workers counting at once may
    /// lose one count; nothing but the drop-entry defence reads it.
    #[inline]
    pub fn touch(&self, direction: Direction, now: Tick) {
        let head = self.entry.head();
        if head.seen.load(Relaxed) != now.0 {
            head.seen.store(now.0, Relaxed);
        }
        if direction == Direction::In {
            head.packets.store(head.packets.load(Relaxed).wrapping_add(1), Relaxed);
        }
    }

    /// What [`Connection::set_hop`] stored for packets that arrive travelling in `direction`; 0 at first.
    #[inline]
    #[must_use]
    pub fn hop(&self, direction: Direction) -> u32 {
        self.entry.head().hop[direction.index()].load(Relaxed)
    }

    /// Remembers a next hop, in the caller's terms.
    #[inline]
    pub fn set_hop(&self, direction: Direction, hop: u32) {
        self.entry.head().hop[direction.index()].store(hop, Relaxed);
    }

    /// Clears flags that were set when it was made and that nothing counts by. Whether this call did; `false` when another had,
    /// or the connection is over.
    pub fn clear(&self, flags: u16) -> bool {
        loop {
            let meta = self.entry.meta();
            if !meta.is_live() || meta.flags() & flags == 0 {
                return false;
            }
            if self.entry.swap_meta(meta, meta.without(flags)) {
                return true;
            }
        }
    }

    /// How its sequence numbers are translated: one consistent reading.
    #[inline]
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        Sequence::from_word(self.entry.head().sequence.load(Relaxed))
    }

    /// Changes what [`Connection::sequence`] returns; `false` when it was not `old`, because another worker changed it.
    pub fn swap_sequence(&self, old: Sequence, new: Sequence) -> bool {
        let word = &self.entry.head().sequence;
        word.compare_exchange(old.word(), new.word(), Relaxed, Relaxed).is_ok()
    }
}
