//! The snapshot's ports as the kernel's devices change.

use super::{Event, Link};
use std::sync::Arc;
use uvs_engine::PortId;
use uvs_engine::snapshot::{Config, Port};

/// What became of a device that the director holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortChange {
    /// Its name, Ethernet address, MTU or readiness changed.
    Changed(PortId),
    /// It is gone. One of the same name may come back, with another index: it is not the same device.
    Gone(PortId),
}

/// Takes over into the snapshot what `events` say of its ports, in one change at most. A port whose device is gone
/// stays, down, because connections name ports by their number.
pub fn follow_ports(config: &Config, events: &[Event]) -> Vec<PortChange> {
    let mut ports = config.load().ports.to_vec();
    let mut changes = Vec::new();
    for event in events {
        for (port, id) in ports.iter_mut().zip(0_u16..) {
            match event {
                Event::LinkChanged(link) if link.ifindex == port.ifindex => {
                    let now = Port::from(link);
                    if *port != now {
                        *port = now;
                        changes.push(PortChange::Changed(PortId(id)));
                    }
                }
                Event::LinkGone { ifindex, .. } if *ifindex == port.ifindex => {
                    port.up = false;
                    changes.push(PortChange::Gone(PortId(id)));
                }
                _ => {}
            }
        }
    }
    if !changes.is_empty() {
        config.publish(|snapshot| snapshot.ports = Arc::from(ports));
    }
    changes
}

impl From<&Link> for Port {
    fn from(link: &Link) -> Self {
        Port {
            ifindex: link.ifindex,
            name: link.name.clone(),
            mac: link.mac.unwrap_or_default(),
            mtu: link.mtu,
            up: link.up,
        }
    }
}
