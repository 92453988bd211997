//! Fragments of datagrams.

use super::View;
use super::parse::Parsed;
use super::schedule::service_of;
use super::track::Tracker;
use crate::batch::Packet;
use crate::verdict::{Reason, Verdict};

impl Tracker {
    /// The first fragment of a datagram: dropped when it belongs to a connection or a service.
    pub(super) fn fragment(&mut self, view: &View<'_>, packet: &mut Packet<'_>, parsed: &Parsed) -> Verdict {
        if self.handle.find(&parsed.flow).is_some() || service_of(view, parsed).is_some() {
            return Verdict::Drop(Reason::Fragment);
        }
        self.give_back(packet, parsed)
    }
}
