//! A packet of a known connection allocates nothing.

mod director;

use director::*;
use std::net::SocketAddr;
use uvs_engine::forward::Method;
use uvs_engine::pipeline::View;
use uvs_engine::plan::{AddressOption, Tell};
use uvs_engine::service::{LocalPool, Ports, Terms};
use uvs_engine::{BATCH, Packet, PortId, Verdict};

#[test]
fn packets_of_known_connections_allocate_nothing() {
    for plan in plans() {
        for method in &PLAIN {
            for protocol in [TCP, UDP] {
                let (mut director, _) = Director::with_server(&plan, *method);
                let clients: Vec<Frame> = (1..=64)
                    .map(|port| {
                        let from = std::net::SocketAddr::new(plan.client.ip(), port);
                        Frame { from, ..Frame::from_client(&plan, protocol, SYN) }
                    })
                    .collect();
                for frame in &clients {
                    assert_eq!(director.run(CLIENTS, &frame.bytes()).0, Verdict::Transmit(SERVERS));
                }
                // Every kind of event of a known connection: data, the end, data after the end; unfinished checksums.
                for flags in [ACK, FIN | ACK, ACK, RST] {
                    let frames: Vec<Vec<u8>> =
                        clients.iter().map(|frame| Frame { flags, ..frame.clone() }.unfinished()).collect();
                    assert_eq!(
                        allocations(&mut director, CLIENTS, frames),
                        0,
                        "{method:?} {protocol} {flags}"
                    );
                    if *method == Method::Nat {
                        let replies = clients.iter().map(|frame| {
                            Frame { to: frame.from, ..Frame::from_server(&plan, protocol, flags) }.bytes()
                        });
                        let replies: Vec<Vec<u8>> = replies.collect();
                        assert_eq!(allocations(&mut director, SERVERS, replies), 0, "replies");
                    }
                }
            }
        }
    }
}

#[test]
fn packets_of_known_connections_by_full_nat_allocate_nothing() {
    let tells = [Tell::Nothing, Tell::Option(AddressOption::default())];
    for (plan, tell) in plans().into_iter().flat_map(|plan| tells.map(|tell| (plan, tell))) {
        for protocol in [TCP, UDP] {
            let mut director = Director::new();
            let local = SocketAddr::new(plan.second.ip(), 0);
            let locals = director.destinations.locals().enter(local.ip());
            for service in director.serve(plan.service) {
                service.set_locals(LocalPool::new(vec![(locals.clone(), Ports::new([6000..=6063]))]));
                service.set_terms(Terms { tell, ..Terms::default() });
                service.add(&destination(plan.server, Method::FullNat, &plan)).unwrap();
            }
            let clients: Vec<Frame> = (1..=64)
                .map(|port| Frame {
                    from: SocketAddr::new(plan.client.ip(), port),
                    ..Frame::from_client(&plan, protocol, SYN)
                })
                .collect();
            for frame in &clients {
                assert_eq!(director.run(CLIENTS, &frame.bytes()).0, Verdict::Transmit(SERVERS));
            }
            for flags in [ACK, FIN | ACK, ACK, RST] {
                let frames = clients.iter().map(|frame| Frame { flags, ..frame.clone() }.unfinished());
                let frames: Vec<_> = frames.collect();
                assert_eq!(allocations(&mut director, CLIENTS, frames), 0, "{tell:?} {protocol} {flags}");
                let replies = (6000..6064).map(|port| {
                    let to = SocketAddr::new(local.ip(), port);
                    Frame { to, ..Frame::from_server(&plan, protocol, flags) }.bytes()
                });
                let replies: Vec<_> = replies.collect();
                assert_eq!(allocations(&mut director, SERVERS, replies), 0, "replies, {protocol} {flags}");
            }
        }
    }
}

/// How often a batch of these frames allocates on its way through the pipeline.
fn allocations(director: &mut Director, port: PortId, mut frames: Vec<Vec<u8>>) -> u64 {
    const HEADROOM: usize = 64;
    let mut packets: Vec<Packet<'_>> = frames
        .iter_mut()
        .map(|frame| {
            let len = frame.len();
            frame.splice(..0, [0; HEADROOM]);
            Packet::new(frame, HEADROOM, len, port)
        })
        .collect();
    let mut verdicts = [Verdict::ToKernel; BATCH];
    let view = View { snapshot: &director.snapshot, now: director.now };
    director.pipeline.between(director.now);
    let counted = allocation_counter::measure(|| {
        director.pipeline.process(&view, &mut packets, &mut verdicts);
    });
    assert!(verdicts.iter().all(|verdict| matches!(verdict, Verdict::Transmit(_))), "{verdicts:?}");
    counted.count_total
}
