//! Every way there is for a client's packets to their real server.

use super::*;

/// How a packet is forwarded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Way {
    Plain(Method),
    Tunnel(TunnelKind, TunnelChecksum),
}

/// Each way, and whether the real server is of the other IP version.
pub const WAYS: [(Way, bool); 14] = [
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
];

impl Way {
    /// A real server reached like that.
    fn config(self, server: SocketAddr, plan: &Plan) -> DestinationConfig {
        match self {
            Way::Plain(method) => destination(server, method, plan),
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
            service.add(&way.config(server, plan)).unwrap();
        }
        services
    }
}
