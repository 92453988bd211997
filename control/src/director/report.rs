//! What a director says of itself: status and connections.

use super::kernel::Kernel;
use super::load::Load;
use crate::api::{
    ConnectionEntry, DeviceStatus, DropCount, EventCount, QueueStatus, Refusal, Request, Response, Status,
    TableStatus, WorkerStatus,
};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;
use uvs_conntrack::{Connection, SharedHandle};
use uvs_engine::capture::Captures;
use uvs_engine::counters::{Counters, Event, WorkerCounters};
use uvs_engine::forward;
use uvs_engine::link::xdp::Statistics;
use uvs_engine::steer::Attachment;
use uvs_engine::worker::Running;
use uvs_engine::{Reason, Snapshot};

/// Connections on one page of a listing.
const PAGE: usize = 8192;

/// What is there to report on.
pub(super) struct Report {
    pub(super) running: Arc<Running>,
    pub(super) attachments: Vec<Attachment>,
    pub(super) handle: SharedHandle,
    pub(super) since: Instant,
    /// Each worker's own counters.
    pub(super) drops: Vec<Arc<WorkerCounters>>,
    pub(super) load: Load,
    pub(super) kernel: Kernel,
    pub(super) captures: Arc<Captures>,
}

impl Report {
    /// Whether frames are taken by packet sockets, which get copies of them.
    pub(super) fn takes_copies(&self) -> bool {
        self.running.lanes().iter().any(|lane| lane.probe.xdp_socket().is_none())
    }

    /// Answers what is no matter of services and servers.
    pub(super) fn answer(
        &mut self,
        request: &Request,
        snapshot: &Snapshot,
        counters: &Counters,
        servers: usize,
        guarded: bool,
    ) -> Response {
        match request {
            Request::Connections { after } => self.connections(after.unwrap_or(0)),
            Request::Status => Response::Status(Box::new(self.status(snapshot, counters, servers, guarded))),
            Request::Daemons => Response::Daemons(Vec::new()),
            Request::StopDaemon { .. } => Response::Refused(Refusal::NoDaemon),
            Request::StartDaemon(_) => Response::Refused(Refusal::Unsupported(
                "this director does not synchronise connections".into(),
            )),
            _ => Response::Refused(Refusal::Malformed("not a question about the director".into())),
        }
    }

    /// A page of connections in table order, those after the place where the last page ended.
    fn connections(&mut self, after: u64) -> Response {
        let now = super::now();
        let after = u32::try_from(after).unwrap_or(u32::MAX);
        self.handle.quiescent();
        let mut last = after;
        let page = self.handle.connections_after(after).take(PAGE).map(|(place, connection)| {
            last = place;
            let shown = forward::is_own(connection.meta().flags())
                .then(|| self.handle.table().destinations().get(connection.destination()))
                .flatten();
            let entry = entry(&connection, now);
            shown.map_or(entry.clone(), |identity| ConnectionEntry { server: identity.server, ..entry })
        });
        let connections: Vec<_> = page.collect();
        self.handle.sleep();
        let next = (connections.len() == PAGE).then_some(last.into());
        Response::Connections { connections, next }
    }

    fn status(&self, snapshot: &Snapshot, counters: &Counters, servers: usize, guarded: bool) -> Status {
        let table = self.handle.table().stats();
        let events = Event::ALL.iter().map(|event| EventCount {
            event: event.name().to_owned(),
            explanation: event.explanation().to_owned(),
            count: counters.events(*event),
        });
        let drops = Reason::ALL.iter().map(|reason| DropCount {
            reason: reason.name().to_owned(),
            explanation: reason.explanation().to_owned(),
            count: counters.drops(*reason),
        });
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime: self.since.elapsed().as_secs(),
            workers: self.workers(),
            devices: self.devices(snapshot),
            table: TableStatus {
                connections: table.connections4 + table.connections6,
                capacity: table.capacity4 + table.capacity6,
                resident_bytes: table.resident_bytes,
                inserted: table.inserted,
                expired: table.expired,
                full: table.full + table.index_full,
            },
            services: snapshot.services.len() as u64,
            servers: servers as u64,
            drops: drops.collect(),
            events: events.collect(),
            to_kernel: counters.events(Event::ToKernel),
            held: self.running.tallies().map(|(tally, _)| tally.holding()).sum(),
            captures: self.captures.count() as u64,
            next_hops: self.kernel.next_hops(),
            on_crash: if guarded { "guard" } else { "kernel" }.to_owned(),
        }
    }

    fn workers(&self) -> Vec<WorkerStatus> {
        let tallies = self.running.tallies().zip(0_u32..);
        tallies
            .map(|((tally, core), id)| WorkerStatus {
                id,
                core: core.and_then(|core| u32::try_from(core).ok()),
                received: tally.received(),
                transmitted: tally.transmitted(),
                handed_off: tally.handed(),
                dropped: self.drops.get(id as usize).map_or(0, |counters| dropped(counters)),
                busy: self.load.of(id),
            })
            .collect()
    }

    fn devices(&self, snapshot: &Snapshot) -> Vec<DeviceStatus> {
        let own = snapshot.own_traffic.as_ref().map(|own| own.port.0);
        let ports = snapshot.ports.iter().zip(0_u16..).filter(|(_, id)| Some(*id) != own);
        ports
            .map(|(port, id)| {
                let lanes: Vec<_> = self.running.lanes().iter().filter(|lane| lane.port.0 == id).collect();
                let attachment =
                    self.attachments.iter().find(|attachment| attachment.ifindex() == port.ifindex);
                DeviceStatus {
                    name: port.name.clone(),
                    index: port.ifindex,
                    mac: written(port.mac),
                    mtu: port.mtu,
                    up: port.up,
                    mode: match attachment {
                        Some(attachment) => attachment.mode().to_string(),
                        None => "raw".to_owned(),
                    },
                    copy: if lanes.iter().all(|lane| lane.zero_copy) { "zero-copy" } else { "copy" }
                        .to_owned(),
                    queues: lanes
                        .iter()
                        .map(|lane| {
                            queue(lane.queue, lane.worker, &lane.probe.statistics().unwrap_or_default())
                        })
                        .collect(),
                }
            })
            .collect()
    }
}

fn dropped(counters: &WorkerCounters) -> u64 {
    Reason::ALL.iter().map(|reason| counters.drops(*reason)).sum()
}

fn queue(queue: u32, worker: usize, counted: &Statistics) -> QueueStatus {
    QueueStatus {
        queue,
        worker: u32::try_from(worker).unwrap_or(u32::MAX),
        ring_full: counted.receive_full,
        kernel_dropped: counted.dropped,
        fill_empty: counted.fill_empty,
        transmit_refused: counted.invalid_transmit,
    }
}

/// A link-layer address as `ip link` writes it.
fn written(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// A tunnel's real server of the other family than its client is kept in the form of an IPv6 address.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn entry(connection: &Connection<'_>, now: uvs_conntrack::Tick) -> ConnectionEntry {
    let (client, real) = (connection.client(), connection.real());
    ConnectionEntry {
        protocol: connection.protocol(),
        client: client.source(),
        virtual_address: client.destination(),
        server: canonical(real.source()),
        state: connection.state_name().to_owned(),
        expires: connection.seconds_left(now),
        engine: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_counted_keeps_its_cause() {
        let counted = Statistics {
            dropped: 1,
            invalid_fill: 2,
            invalid_transmit: 3,
            receive_full: 4,
            fill_empty: 5,
            transmit_empty: 6,
        };
        let expected = QueueStatus {
            queue: 7,
            worker: 8,
            ring_full: 4,
            kernel_dropped: 1,
            fill_empty: 5,
            transmit_refused: 3,
        };
        assert_eq!(queue(7, 8, &counted), expected);
    }
}
