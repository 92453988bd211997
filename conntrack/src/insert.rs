//! Making connections.
//!
//! # One connection per client flow
//!
//! Two workers may see the first packets of a flow at once. Each makes an entry in phase `Tentative`, which lookups do not see,
//! puts it into the index, and then (a sequentially consistent fence between) looks for others with the same client flow.
//! Of two insertions at least one finds the other: each fences between publishing and looking. Who finds
//!
//! - a live one, gives up and uses that;
//! - a tentative one, must see it `Aborted` before it may become live itself, and that is a compare-and-swap on the
//!   other's word, which the other needs to become live. So two never both get there.
//!
//! Anybody may abort anybody; to get one winner rather than two losers the lower entry number aborts the higher at once, and
//! the higher waits a moment for the lower to be decided and aborts it only then (its thread may not be running). No
//! thread ever needs another to go on.
//!
//! While the index grows one insertion may still publish in the old level and the other already in the new one. The second
//! searches both. The first reads the levels again after its fence: had the second's fence come before, it sees that the
//! index is growing, and searches both too.
//!
//! # Replies
//!
//! The reply flow goes into the index after the connection is live. Should the connection end in between, whoever ends it finds no
//! reply flow to take out yet: both fence between what they wrote and what they look for, so that one of them sees the other,
//! and takes it out. Two connections may have the same one (a client with one
//! port to two services on one real server): the newer takes the place of the older, as in IPVS.
//!
//! Not so where the real server knows only the director (full NAT): an *exclusive* reply flow goes into the index together with
//! the client's, before the connection is live, and is settled by the same rules. So of live connections no two have the
//! same reply flow if either claims it for itself alone; a connection that claims nothing goes without its replies rather
//! than take them from one that does. It is live when it enters its reply flow, and fences and looks once more after that:
//! either it sees the claim or the claim's maker sees it.

use crate::connection::{Class, ConnId, Entry, Sequence};
use crate::flow::{Direction, Flow};
use crate::handle::Handle;
use crate::index::Reference;
use crate::meta::{Meta, Phase, flags};
use crate::storage::{Storage, prefetch};
use crate::sync::{AcqRel, Relaxed, Release, SeqCst, fence, spin_loop};
use crate::time::Tick;
use crate::{DestinationId, NEW_CONNECTION_SECONDS};

/// How often an insertion looks whether an equal one with a lower number is decided, before it aborts it.
const PATIENCE: u32 = if cfg!(loom) { 1 } else { 128 };

/// What a new connection is.
#[derive(Clone, Copy, Debug)]
pub struct NewConnection {
    /// The client's packets: client → virtual service.
    pub client: Flow,
    /// The real server's packets: real server → client (full NAT: → local address). Not of the client's family in tunnels only.
    pub real: Flow,
    /// Whether packets of the real side are looked up (they pass the director: NAT).
    pub index_reply: bool,
    /// Whether no other connection may have the same real side (full NAT). It is looked up, then.
    pub exclusive_reply: bool,
    /// Its real server.
    pub destination: DestinationId,
    /// Forwarding method and whatever else of [`flags`] holds from the start; [`flags::INACTIVE`] for all but
    /// templates, as in IPVS.
    pub flags: u16,
    /// State, by the protocol's number for it.
    pub state: u8,
    /// Seconds until it ends if no packet comes; at first [`NEW_CONNECTION_SECONDS`].
    pub timeout_seconds: u32,
    /// The template (or connection) that controls it, as found in this batch. One that has ended meanwhile is left out.
    pub template: Option<ConnId>,
    /// The mark it was scheduled by, 0 without.
    pub fwmark: u32,
    /// How its sequence numbers are translated.
    pub sequence: Sequence,
}

impl NewConnection {
    /// A connection as IPVS makes it: no state yet, inactive, three seconds to live, uncontrolled, replies looked up.
    #[must_use]
    pub fn new(client: Flow, real: Flow, destination: DestinationId) -> Self {
        NewConnection {
            client,
            real,
            index_reply: true,
            exclusive_reply: false,
            destination,
            flags: flags::INACTIVE,
            state: 0,
            timeout_seconds: NEW_CONNECTION_SECONDS,
            template: None,
            fwmark: 0,
            sequence: Sequence::default(),
        }
    }

    fn class(&self) -> Class {
        if self.client.is_ipv4() && self.real.is_ipv4() { Class::Narrow } else { Class::Wide }
    }
}

/// The outcome of an insertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inserted {
    /// The connection with the client flow asked for.
    pub id: ConnId,
    /// `false`: it was there already, made by another worker at the same time or earlier, and may have another destination.
    pub fresh: bool,
}

/// Why a connection was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotInserted {
    /// There is no room for another connection.
    #[error("the connection table is full; raise its limit or shorten timeouts")]
    Full,
    /// It asked for an exclusive reply flow, and another connection has that.
    #[error("another connection has this reply flow; use another local port")]
    ReplyTaken,
}

/// How many insertions ahead an entry is fetched: what an insertion writes to it has to arrive before it can be published.
const AHEAD: usize = 2;

/// What an insertion learnt of others with one of its flows.
#[derive(Clone, Copy)]
enum Rivals {
    None,
    Live(ConnId),
    /// One of them aborted us.
    Won,
}

impl<S: Storage> Handle<S> {
    /// Makes a connection, or finds the one there is with the same client flow.
    ///
    /// # Errors
    /// [`NotInserted::Full`] when all entries of its class are in use or the index has no room for it; counted. The index makes
    /// room at quiescent points of all handles: who inserts many thousands at once passes one every hundred.
    /// [`NotInserted::ReplyTaken`] for an exclusive reply flow that another connection has; counted.
    pub fn insert(&mut self, new: &NewConnection, now: Tick) -> Result<Inserted, NotInserted> {
        if self.table.growth.is_packed(self.table.index().levels()) {
            self.counters().index_full.add(1);
            return Err(NotInserted::Full);
        }
        let hash = self.hash(&new.client);
        self.prefetch(hash);
        let mut claim = None;
        if new.index_reply || new.exclusive_reply {
            let reply = self.hash(&new.real);
            self.prefetch(reply);
            claim = new.exclusive_reply.then_some(reply);
            if claim.is_some() && self.table.claims.load(Relaxed) == 0 {
                self.table.claims.store(1, Relaxed);
            }
        }
        loop {
            let id = self.prepare(new, now)?;
            if !self.publish(id, hash, claim) {
                return Err(NotInserted::Full);
            }
            fence(SeqCst);
            let rivals = self.rivals(hash, id, Direction::In, &new.client);
            let claims = match (&rivals, claim) {
                (Rivals::None, Some(reply)) => self.rivals(reply, id, Direction::Out, &new.real),
                _ => Rivals::None,
            };
            match (rivals, claims) {
                (Rivals::None, Rivals::None) if self.commit(id) => {
                    self.count_slots(if claim.is_some() { 2 } else { 1 });
                    return self.complete(id, new, now);
                }
                (Rivals::Live(other), _) => {
                    self.counters().conflicts.add(1);
                    self.withdraw(id, hash, claim);
                    return Ok(Inserted { id: other, fresh: false });
                }
                (_, Rivals::Live(_)) => {
                    self.counters().replies_refused.add(1);
                    self.withdraw(id, hash, claim);
                    return Err(NotInserted::ReplyTaken);
                }
                _ => {
                    self.counters().aborted.add(1);
                    self.withdraw(id, hash, claim);
                }
            }
        }
    }

    /// A tentative entry that nobody can find yet.
    fn prepare(&mut self, new: &NewConnection, now: Tick) -> Result<ConnId, NotInserted> {
        let table = &self.table;
        let header = table.storage.header();
        let id = self.allocator.take(new.class(), header, &table.exchange, &table.epochs);
        if let Some(coming) = self.allocator.coming(new.class(), AHEAD) {
            table.prefetch(coming);
            if let Some(entry) = table.entry(coming) {
                prefetch(entry.cold());
            }
        }
        let entry = id.and_then(|id| table.entry(id));
        let (Some(id), Some(entry)) = (id, entry) else {
            self.counters().full.add(1);
            return Err(NotInserted::Full);
        };
        let template = new.template.filter(|template| self.attach(*template)).unwrap_or(ConnId::NONE);
        let mut meta = Meta::new(new.client.protocol(), new.flags, new.state, new.timeout_seconds);
        if id.class() == Class::Wide {
            meta = meta.with_families(new.client.is_ipv4(), new.real.is_ipv4());
        }
        if new.exclusive_reply {
            meta = meta.with_exclusive_reply();
        } else if new.index_reply {
            meta = meta.with_replies();
        }
        entry.fill(new, template, now);
        // Nobody acts on a tentative entry before it is in the index, and the index publishes it.
        entry.head().meta.store(meta.0, Release);
        Ok(id)
    }

    /// Puts the client's flow, and the reply flow that is claimed with it, into the index. `false`: there is no room, and the
    /// entry was taken back.
    fn publish(&mut self, id: ConnId, hash: u64, claim: Option<u64>) -> bool {
        if !self.put(hash, Reference::new(id, Direction::In)) {
            self.take_back(id);
            return false;
        }
        let claimed = claim.is_none_or(|reply| self.put(reply, Reference::new(id, Direction::Out)));
        if !claimed {
            self.withdraw(id, hash, None);
        }
        claimed
    }

    fn put(&self, hash: u64, reference: Reference) -> bool {
        let index = self.table.index();
        if index.put(hash, reference, index.levels().target()) {
            return true;
        }
        // Full already, where the average says it should not be: a bigger index may have room at once.
        if self.grow() && index.put(hash, reference, index.levels().target()) {
            return true;
        }
        self.counters().index_full.add(1);
        false
    }

    /// Settles with everybody else who has the same flow. After the fence that follows our own publication. Reply flows may be
    /// shared by connections that claim nothing.
    fn rivals(&self, hash: u64, id: ConnId, direction: Direction, flow: &Flow) -> Rivals {
        let Some(own) = self.table.entry(id) else { return Rivals::None };
        let unshared = direction == Direction::In || own.meta().has_exclusive_reply();
        let others = self.table.index().search(hash, |found| {
            let other = found.reference.id();
            if other == id || found.reference.direction() != direction {
                return None;
            }
            let entry = self.table.entry(other)?;
            let meta = entry.meta();
            let is_rival = meta.protocol() == flow.protocol()
                && (unshared || meta.has_exclusive_reply())
                && entry.flow(direction, meta) == *flow;
            if is_rival { self.settle_with(id, other, entry) } else { None }
        });
        others.unwrap_or(Rivals::None)
    }

    /// `None` when `other` is out of the way for good.
    fn settle_with(&self, id: ConnId, other: ConnId, entry: Entry<'_>) -> Option<Rivals> {
        let own = self.table.entry(id)?;
        let mut patience = if id < other { 0 } else { PATIENCE };
        loop {
            let meta = entry.meta();
            match meta.phase() {
                Phase::Live => return Some(Rivals::Live(other)),
                Phase::Free | Phase::Detached | Phase::Aborted => return None,
                Phase::Tentative => {}
            }
            if own.meta().phase() == Phase::Aborted {
                return Some(Rivals::Won);
            }
            if patience > 0 {
                patience -= 1;
                spin_loop();
            } else if entry.swap_meta(meta, meta.with_phase(Phase::Aborted)) {
                return None;
            }
        }
    }

    /// From tentative to live. `false`: aborted.
    fn commit(&self, id: ConnId) -> bool {
        let Some(entry) = self.table.entry(id) else { return false };
        let meta = entry.meta();
        meta.phase() == Phase::Tentative && entry.swap_meta(meta, meta.with_phase(Phase::Live))
    }

    /// What remains once the connection is live.
    fn complete(&mut self, id: ConnId, new: &NewConnection, now: Tick) -> Result<Inserted, NotInserted> {
        self.counters().inserted[id.class() as usize].add(1);
        self.table.dues.lower(id, now.plus_seconds(new.timeout_seconds));
        if new.index_reply && !new.exclusive_reply && !self.index_reply(id, &new.real) {
            self.remove(id);
            return Err(NotInserted::Full);
        }
        Ok(Inserted { id, fresh: true })
    }

    /// `false`: the index has no room.
    fn index_reply(&mut self, id: ConnId, real: &Flow) -> bool {
        let hash = self.hash(real);
        let reference = Reference::new(id, Direction::Out);
        let replaced = self.table.index().search(hash, |found| {
            if found.reference.direction() != Direction::Out {
                return None;
            }
            let entry = self.table.entry(found.reference.id())?;
            let meta = entry.meta();
            let is_equal = meta.protocol() == real.protocol()
                && !meta.has_exclusive_reply()
                && entry.flow(Direction::Out, meta) == *real;
            (is_equal && found.bucket.replace(found.slot, found.reference, reference)).then_some(())
        });
        if replaced.is_some() {
            self.counters().replies_replaced.add(1);
        } else if self.put(hash, reference) {
            self.count_slots(1);
        } else {
            return false;
        }
        fence(SeqCst);
        if self.table.entry(id).is_none_or(|entry| entry.meta().phase() != Phase::Live) {
            if self.table.index().remove(hash, reference) {
                self.count_slots(-1);
            }
        // Who claims says so before its own fence: either we see that here, or it saw the reference that we just put.
        } else if self.table.claims.load(Relaxed) != 0
            && matches!(self.rivals(hash, id, Direction::Out, real), Rivals::Live(_))
        {
            self.forgo_reply(id, hash);
        }
        true
    }

    /// The connection goes without its replies: somebody claims them.
    #[cold]
    fn forgo_reply(&mut self, id: ConnId, hash: u64) {
        self.counters().replies_refused.add(1);
        if self.table.index().remove(hash, Reference::new(id, Direction::Out)) {
            self.count_slots(-1);
        }
        let Some(entry) = self.table.entry(id) else { return };
        loop {
            let meta = entry.meta();
            if meta.phase() != Phase::Live || entry.swap_meta(meta, meta.without_replies()) {
                return;
            }
        }
    }

    /// Takes an insertion that came to nothing out of the index.
    fn withdraw(&mut self, id: ConnId, hash: u64, claim: Option<u64>) {
        if let Some(entry) = self.table.entry(id) {
            // Whoever waits for this one to be decided sees it.
            let meta = entry.meta();
            entry.head().meta.store(meta.with_phase(Phase::Aborted).0, Release);
        }
        self.table.index().remove(hash, Reference::new(id, Direction::In));
        if let Some(reply) = claim {
            self.table.index().remove(reply, Reference::new(id, Direction::Out));
        }
        self.take_back(id);
    }

    /// Frees an entry that never became a connection.
    fn take_back(&mut self, id: ConnId) {
        if let Some(entry) = self.table.entry(id) {
            entry.head().meta.store(entry.meta().with_phase(Phase::Free).0, Release);
            self.detach(ConnId(entry.head().template.load(Relaxed)));
        }
        self.allocator.give_up(id);
    }

    /// A connection that is live, whose maker has not looked yet who else has its replies.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn make_live(&mut self, new: &NewConnection, now: Tick) -> ConnId {
        let id = self.prepare(new, now).expect("room");
        let hash = self.hash(&new.client);
        assert!(self.put(hash, Reference::new(id, Direction::In)) && self.commit(id));
        id
    }

    /// Puts a connection under `template`'s control. `false`: that has ended.
    ///
    /// Expiry ends what controls nothing in three steps: it clears the bit set here, then reads the count raised here, then
    /// swaps the word it read. Whichever of the two words is touched first, an attachment in between is seen: by the count if
    /// it came before the bit was cleared, by the failing swap if after.
    pub(crate) fn attach(&self, template: ConnId) -> bool {
        let Some(entry) = self.table.entry(template) else { return false };
        entry.cold().children.fetch_add(1, AcqRel);
        let before = Meta(entry.head().meta.fetch_or(Meta::CONTROLS, AcqRel));
        let alive = before.phase() == Phase::Live;
        if !alive {
            entry.cold().children.fetch_sub(1, AcqRel);
        }
        alive
    }

    pub(crate) fn detach(&self, template: ConnId) {
        if template != ConnId::NONE
            && let Some(entry) = self.table.entry(template)
        {
            entry.cold().children.fetch_sub(1, AcqRel);
        }
    }
}

impl Entry<'_> {
    /// Writes all but the meta word. For the maker of the entry, before anybody else can see it.
    fn fill(self, new: &NewConnection, template: ConnId, now: Tick) {
        let (head, cold) = (self.head(), self.cold());
        self.set_flows(&new.client, &new.real);
        head.seen.store(now.0, Relaxed);
        head.packets.store(0, Relaxed);
        head.destination.store(new.destination.0, Relaxed);
        head.template.store(template.0, Relaxed);
        for hop in &head.hop {
            hop.store(0, Relaxed);
        }
        head.sequence.store(new.sequence.word(), Relaxed);
        cold.fwmark.store(new.fwmark, Relaxed);
        cold.sync_stamp.store(0, Relaxed);
        cold.owner.store(0, Relaxed);
        cold.children.store(0, Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::{Limits, Table};

    /// What another worker may do between the two halves of an insertion.
    #[test]
    fn a_reply_is_not_left_behind_by_a_connection_that_ended_meanwhile() {
        let limits = Limits { connections4: 100, connections6: 100, destinations: 1, first_buckets: 4 };
        let table = Table::on_heap(limits).expect("a small table");
        let mut handle = table.handle().expect("the first handle");
        let client = ([192, 0, 2, 1], 1000).into();
        let flows = [80, 81].map(|port| Flow::new(client, ([203, 0, 113, 1], port).into(), 6));
        let real = Flow::new(([10, 0, 0, 1], 80).into(), client, 6);
        // The second time the reply takes an older connection's place.
        for (replaces, left) in [(false, 0), (true, 1)] {
            if replaces {
                handle.insert(&NewConnection::new(flows[1], real, DestinationId(0)), Tick(1)).expect("room");
            }
            let new = NewConnection::new(flows[0], real, DestinationId(0));
            let id = handle.prepare(&new, Tick(1)).expect("room");
            let hash = handle.hash(&new.client);
            assert!(handle.put(hash, Reference::new(id, Direction::In)) && handle.commit(id));
            handle.count_slots(1);
            assert!(handle.remove(id).is_some());
            assert!(handle.index_reply(id, &real));
            assert_eq!(table.slots_taken(), left, "replaces: {replaces}");
        }
    }
}
