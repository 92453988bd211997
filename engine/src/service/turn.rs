//! A decision that takes more than one step, under the service's lock.

use super::{Chosen, Core, Member, NoDestination, Persistence, Service};
use std::sync::MutexGuard;
use uvs_conntrack::DestinationId;
use uvs_schedulers::Request;

/// A worker's turn to decide for a service: nobody else does meanwhile.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    service: &'a Service,
    core: MutexGuard<'a, Core>,
}

impl Service {
    /// Waits for the turn, and tells the scheduler what connections did since the last one.
    pub(crate) fn turn(&self) -> Turn<'_> {
        let mut core = self.core();
        self.settle(&mut core);
        Turn { service: self, core }
    }
}

impl Turn<'_> {
    /// How the service keeps clients.
    pub(crate) fn persistence(&self) -> Option<Persistence> {
        self.core.terms.persistence
    }

    /// Has the scheduler choose a real server.
    pub(crate) fn choose(&mut self, request: &Request) -> Result<DestinationId, NoDestination> {
        let slot = self.core.balancer.choose(request).ok_or(NoDestination)?;
        let member = self.core.members.get(slot.index()).and_then(Option::as_ref).ok_or(NoDestination)?;
        Ok(member.place.id)
    }

    /// A real server, if it is one of the service's now.
    pub(crate) fn server(&self, id: DestinationId) -> Option<Chosen<'_>> {
        let Member { address, method, plan, .. } = *self.member(id)?;
        Some(Chosen { id, address, method, plan, locals: &self.core.locals })
    }

    /// A real server has a new connection.
    pub(crate) fn began(&mut self, id: DestinationId, active: bool) {
        let Some(slot) = self.member(id).map(|member| member.slot) else { return };
        self.service.destinations.began(id, active);
        let connections = self.service.destinations.connections(id);
        self.core.balancer.settle(slot, connections.active, connections.inactive);
    }

    fn member(&self, id: DestinationId) -> Option<&Member> {
        let slot = self.service.destinations.slot(id)?;
        self.core.members.get(slot)?.as_ref().filter(|member| member.place.id == id)
    }
}
