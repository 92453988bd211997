//! New connections of persistent services: a template keeps their client with its real server.

use super::View;
use super::parse::Parsed;
use super::schedule::{self, Refusal};
use super::track::Tracker;
use crate::batch::Packet;
use crate::service::{Chosen, Persistence, Service, Turn};
use crate::verdict::Reason;
use std::net::SocketAddr;
use uvs_conntrack::{ConnId, DestinationId, Flow, Inserted, NewConnection, flags};

/// What a client is remembered by.
struct Memory<'a> {
    service: &'a Service,
    persistence: Persistence,
    key: Flow,
}

impl Tracker {
    /// As [`Tracker::begin_connection`], with the real server that the client has if it has one (`ip_vs_sched_persist`). The
    /// service's lock is held from the look at the template to its making: of a client's first packets, that may come to
    /// several workers at once, one makes it.
    #[inline(never)]
    pub(super) fn begin_persistent(
        &mut self,
        view: &View<'_>,
        packet: &Packet<'_>,
        parsed: &Parsed,
        service: &Service,
    ) -> Result<Inserted, Refusal> {
        let mut turn = service.turn();
        // None: a command took it away a moment ago.
        let memory = turn.persistence().map(|persistence| {
            let key = persistence.template(service.key(), &parsed.flow);
            Memory { service, persistence, key }
        });
        let kept = memory.as_ref().and_then(|memory| self.kept(view, &turn, memory));
        let id = match kept {
            Some((_, id)) => id,
            None => turn.choose(&schedule::request(view, parsed))?,
        };
        let mut chosen = turn.server(id).ok_or(Refusal::NoDestination)?;
        let mut template = match (kept, &memory) {
            (Some((template, _)), _) => Some(template),
            (None, Some(memory)) => Some(self.keep(view, memory, &chosen)?),
            (None, None) => None,
        };
        let configured = chosen.address;
        if service.key().port != parsed.flow.destination().port() {
            // A service of every port leaves the packet's as it is, whatever the real server's.
            chosen.address.set_port(0);
        }
        let one_packet = schedule::is_one_packet(view, packet, service, parsed);
        let mut connection = schedule::new_connection(view, parsed, &chosen);
        connection.template = template;
        let inserted = self.enter(view, packet, parsed, &chosen, one_packet, &mut connection)?;
        if let Some(memory) = &memory
            && inserted.fresh
            && self.handle.connection(inserted.id).is_some_and(|child| child.template().is_none())
        {
            // The template's time was over just now.
            chosen.address = configured;
            template = Some(self.keep(view, memory, &chosen)?);
        }
        if let Some(template) = template.and_then(|template| self.handle.connection(template)) {
            // For as long as it was, be that since the last child went (a minute) or as the service was when it was made.
            let seconds = template.meta().timeout();
            self.handle.restart_timeout(template.id(), seconds, view.now);
        }
        if inserted.fresh {
            turn.began(id, connection.flags & flags::INACTIVE == 0);
        }
        Ok(inserted)
    }

    /// The template of the client, and the real server that it leads to (`ip_vs_check_template`). One that leads to none of the
    /// service's, or to one that shall not keep clients, ends here.
    fn kept(
        &mut self,
        view: &View<'_>,
        turn: &Turn<'_>,
        memory: &Memory<'_>,
    ) -> Option<(ConnId, DestinationId)> {
        let template = self.handle.find(&memory.key)?.id;
        let id = self.handle.connection(template)?.destination();
        let quiescent =
            || view.snapshot.options.expire_quiescent_template && self.destinations.is_quiescent(id);
        if turn.server(id).is_some() && !quiescent() {
            return Some((template, id));
        }
        self.invalidate(view, template);
        None
    }

    /// Ends a template that keeps its client no more. As in IPVS it stays in listings until its time is over.
    #[cold]
    fn invalidate(&mut self, view: &View<'_>, id: ConnId) {
        let Some(template) = self.handle.connection(id) else { return };
        let (client, meta) = (template.client(), template.meta());
        let server = SocketAddr::new(template.real().source().ip().to_canonical(), u16::MAX);
        let (from, service) = (client.source(), client.destination().ip());
        let destination = template.destination();
        let key = Flow::invalid_template(from.ip(), service, template.protocol());
        let shown = NewConnection {
            index_reply: false,
            flags: meta.flags(),
            state: meta.state(),
            timeout_seconds: template.seconds_left(view.now),
            ..NewConnection::new(key, Flow::new(server, from, key.protocol()), destination)
        };
        self.end_connection(id);
        // Where there is no room, or another one, it is not worth it.
        if self.handle.insert(&shown, view.now).is_ok_and(|inserted| inserted.fresh) {
            self.destinations.kept(destination);
        }
    }

    /// Makes the template of a client that is to keep to `chosen`.
    fn keep(&mut self, view: &View<'_>, memory: &Memory<'_>, chosen: &Chosen<'_>) -> Result<ConnId, Reason> {
        let Memory { service, persistence, key } = memory;
        let port = Persistence::shown_port(service.key(), chosen.address.port());
        let server = SocketAddr::new(chosen.address.ip(), port);
        // Nothing assures it, and the defence is to spare it nevertheless.
        let one_packet = if service.is_one_packet() { flags::ONE_PACKET } else { 0 };
        let template = NewConnection {
            index_reply: false,
            flags: chosen.method.connection_flags() | flags::TEMPLATE | one_packet,
            timeout_seconds: persistence.timeout,
            ..NewConnection::new(*key, Flow::new(server, key.source(), key.protocol()), chosen.id)
        };
        let inserted = self.handle.insert(&template, view.now).map_err(|_full| Reason::TableFull)?;
        if inserted.fresh {
            self.destinations.kept(chosen.id);
        }
        Ok(inserted.id)
    }
}
