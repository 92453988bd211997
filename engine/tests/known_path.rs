//! A packet of a known connection allocates nothing.

mod director;

use director::*;
use uvs_engine::forward::Method;
use uvs_engine::pipeline::View;
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

/// How often a batch of these frames allocates on its way through the pipeline.
fn allocations(director: &mut Director, port: PortId, mut frames: Vec<Vec<u8>>) -> u64 {
    let mut packets: Vec<Packet<'_>> = frames
        .iter_mut()
        .map(|frame| {
            let len = frame.len();
            Packet::new(frame, 0, len, port)
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
