//! The services of a configuration, put into a snapshot that no worker uses yet. No host's own sockets have ports here that full
//! NAT would have to leave alone.

use super::plane::{destination, key, refusal};
use crate::api::{ClientAddress, Netmask, Refusal, RefuseWith, ServiceSpec};
use crate::options::RunOptions;
use std::net::IpAddr;
use std::sync::Arc;
use uvs_engine::Snapshot;
use uvs_engine::packet::proxy::Version;
use uvs_engine::plan::{AddressOption, Tell};
use uvs_engine::service::{Clients, Destinations, LocalPool, Persistence, Ports, Service, Terms};

/// Tells a service all of its description but the scheduler.
pub(super) fn describe(service: &Service, spec: &ServiceSpec) {
    service.set_flags(u32::from(spec.flags.0) << 3);
    service.set_options(spec.options.into());
    service.set_terms(terms(spec));
}

/// What holds for all real servers of a service.
fn terms(spec: &ServiceSpec) -> Terms {
    let terms = spec.terms;
    let option = terms.toa;
    Terms {
        tell: match terms.client_address.unwrap_or(ClientAddress::Toa) {
            ClientAddress::None => Tell::Nothing,
            ClientAddress::ProxyV1 => Tell::Header(Version::One),
            ClientAddress::ProxyV2 => Tell::Header(Version::Two),
            ClientAddress::Toa => Tell::Option(AddressOption {
                kind: option.kind,
                kind_ipv6: option.kind_ipv6,
                on_syn: option.on_syn,
            }),
        },
        segment_size: terms.mss.unwrap_or(0),
        resets: terms.refuse == RefuseWith::Reset,
        one_packet: spec.one_packet,
        timeouts: terms.timeouts.0,
        persistence: spec.persistent.map(|timeout| Persistence {
            timeout,
            clients: match spec.netmask {
                Netmask::Ipv4(mask) => Clients::Mask(mask),
                Netmask::Ipv6(bits) => Clients::Prefix(bits),
            },
        }),
    }
}

/// Adds the services of `options`, which have passed the registry, with their real servers. `source` says where a tunnel to one of
/// them begins.
///
/// # Errors
/// The first one's that the data plane has no room for.
pub(crate) fn offer(
    snapshot: &mut Snapshot,
    destinations: &Arc<Destinations>,
    options: &RunOptions,
    source: impl Fn(IpAddr) -> Option<IpAddr>,
) -> Result<(), Refusal> {
    let schedulers = uvs_schedulers::Registry::default();
    for (spec, servers) in &options.services {
        let key = key(&spec.id).ok_or(Refusal::Invalid)?;
        let scheduler = schedulers.make(&spec.scheduler).map_err(|_| Refusal::SchedulerNotFound)?;
        let service = Service::new(key, &spec.scheduler, scheduler, destinations.clone()).map_err(refusal)?;
        describe(&service, spec);
        let ports = spec.local_ports.map_or_else(Ports::default, |(first, last)| Ports::new([first..=last]));
        let locals = options.locals.iter().filter(|(id, _)| *id == spec.id);
        let locals = locals.map(|(_, address)| (destinations.locals().enter(*address), ports.clone()));
        service.set_locals(LocalPool::new(locals.collect()));
        for server in servers {
            service.add(&destination(server, &source)?).map_err(refusal)?;
        }
        snapshot.services = snapshot.services.with(service).map_err(refusal)?;
    }
    Ok(())
}
