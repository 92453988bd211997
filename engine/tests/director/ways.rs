//! Every way there is for a client's packets to their real server.

use super::*;
use uvs_engine::packet::proxy::Version;
use uvs_engine::plan::{AddressOption, Tell};
use uvs_engine::service::Terms;

/// How a packet is forwarded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Way {
    Plain(Method),
    Tunnel(TunnelKind, TunnelChecksum),
    /// By full NAT, the client's address told and segments no longer than [`SEGMENT_SIZE`].
    Told(Tell),
}

/// What SYNs by [`Way::Told`] announce at most.
pub const SEGMENT_SIZE: u16 = 1200;

const TOA: Tell = Tell::Option(AddressOption { kind: 254, kind_ipv6: 254, on_syn: true });

/// Each way, and whether the real server is of the other IP version.
pub const WAYS: [(Way, bool); 19] = [
    (Way::Plain(Method::Nat), false),
    (Way::Plain(Method::Direct), false),
    (Way::Plain(Method::FullNat), false),
    (Way::Plain(Method::FullNat), true),
    (Way::Tunnel(TunnelKind::Ipip, TunnelChecksum::None), false),
    (Way::Tunnel(TunnelKind::Ipip, TunnelChecksum::None), true),
    (Way::Tunnel(TunnelKind::Gue, TunnelChecksum::None), true),
    (Way::Tunnel(TunnelKind::Gue, TunnelChecksum::Full), false),
    (Way::Tunnel(TunnelKind::Gue, TunnelChecksum::Full), true),
    (Way::Tunnel(TunnelKind::Gue, TunnelChecksum::Remote), false),
    (Way::Tunnel(TunnelKind::Gue, TunnelChecksum::Remote), true),
    (Way::Tunnel(TunnelKind::Gre, TunnelChecksum::None), true),
    (Way::Tunnel(TunnelKind::Gre, TunnelChecksum::Full), false),
    (Way::Tunnel(TunnelKind::Gre, TunnelChecksum::Full), true),
    (Way::Told(TOA), false),
    (Way::Told(TOA), true),
    (Way::Told(Tell::Header(Version::One)), false),
    (Way::Told(Tell::Header(Version::Two)), false),
    (Way::Told(Tell::Header(Version::Two)), true),
];

impl Way {
    /// A real server reached like that.
    fn config(self, server: SocketAddr, plan: &Plan) -> DestinationConfig {
        match self {
            Way::Plain(method) => destination(server, method, plan),
            Way::Told(_) => destination(server, Method::FullNat, plan),
            Way::Tunnel(kind, checksum) => {
                let address = SocketAddr::new(server.ip(), plan.service.port());
                let config = DestinationConfig::new(address, Method::Tunnel);
                DestinationConfig { plan: tunnelled(kind, checksum, server.ip()), ..config }
            }
        }
    }
}

impl Director {
    /// Adds services at the plan's address with one real server, `server`; replies to full NAT come to the director's own
    /// address of either version, on these ports.
    pub fn serve_by(
        &mut self,
        way: Way,
        plan: &Plan,
        server: SocketAddr,
        ports: &Ports,
    ) -> [Arc<Service>; 2] {
        let services = self.serve(plan.service);
        let locals = [DIRECTOR4[1], DIRECTOR6[1]].map(|own| {
            let address = own.parse().unwrap();
            (self.destinations.locals().enter(address), ports.clone())
        });
        for service in &services {
            service.set_locals(LocalPool::new(locals.to_vec()));
            if let Way::Told(tell) = way {
                service.set_terms(Terms { tell, segment_size: SEGMENT_SIZE, ..Terms::default() });
            }
            service.add(&way.config(server, plan)).unwrap();
        }
        services
    }
}
