//! Packet sockets under the workers.

use super::{Bridge, CLIENT, PLAIN, SERVER, Shape, udp_echo, wait_for};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::Ordering::Relaxed;
use uvs_engine::PortId;
use uvs_engine::link::{Batch, Device, Part, Pool, Queue, Sending, raw};
use uvs_engine::steer::Steering;
use uvs_engine::worker::{Link, Notice, Seat};

const TCP: u8 = 6;
const UDP: u8 = 17;

/// A forwarder by packet sockets for all that goes to port 7, 9 or 80 of the server and for all that comes back. ARP is not
/// among it: the ends know each other. Each of the forwarder's devices has the address of the end behind the other one,
/// for a packet socket to see the frames as the host's own.
fn bridge(shape: Shape, devices: &[&str]) -> Bridge {
    let mut bridge = Bridge::build(shape);
    let client = bridge.client.net(|net| net.mac("c0"));
    let server = bridge.server.net(|net| net.mac("s0"));
    bridge.client.net(|net| net.add_neighbour("c0", SERVER.into(), server));
    bridge.server.net(|net| net.add_neighbour("s0", CLIENT.into(), client));
    bridge.director.net(|net| net.set_mac("d0", server));
    bridge.director.net(|net| net.set_mac("d1", client));
    start(&mut bridge, devices);
    bridge
}

fn start(bridge: &mut Bridge, devices: &[&str]) {
    let mut steering = Steering::new().unwrap();
    for (port, protocol) in [(7, UDP), (9, UDP), (80, TCP)] {
        steering.add_service(SERVER.into(), port, protocol).unwrap();
        steering.add_reply(SERVER.into(), port, protocol).unwrap();
    }
    steering.reveal();
    let seat = |(port, name): (u16, &&str)| Seat {
        port: PortId(port),
        device: Device::open(name).unwrap(),
        link: Link::Raw(raw::Options::new(steering.view())),
    };
    let seats: Vec<Seat> = bridge.director.run(|| (0..).zip(devices).map(seat).collect());
    bridge.work(&seats, |_| Vec::new());
}

fn lost(bridge: &Bridge) -> u64 {
    let lost = |probe: &uvs_engine::link::Probe| {
        let counted = probe.statistics().unwrap();
        counted.dropped + counted.receive_full + counted.invalid_transmit
    };
    bridge.running().lanes().iter().map(|lane| lost(&lane.probe)).sum()
}

#[test]
fn datagrams_there_and_back() {
    for (mtu, lengths) in [(1500, &[1, 100, 1472][..]), (9000, &[1500, 3840, 3841, 8972])] {
        let bridge = bridge(Shape { mtu, ..PLAIN }, &["d0", "d1"]);
        for &length in lengths {
            udp_echo(&bridge, length, 20);
        }
        assert_eq!(bridge.seen.dropped.load(Relaxed) + lost(&bridge), 0);
    }
}

/// The kernel, or the device, has taken the tag out of the frame; it goes on with it.
#[test]
fn a_vlan_tag_is_kept() {
    let bridge = bridge(PLAIN, &["d0", "d1"]);
    let mut steering = Steering::new().unwrap();
    steering.add_service(SERVER.into(), 7, UDP).unwrap();
    steering.reveal();
    let options = raw::Options::new(steering.view());
    let mut pool = Pool::new(1024, 2048).unwrap();
    let end = |namespace: &super::Namespace, name: &str| {
        let device = namespace.run(|| Device::open(name).unwrap());
        let socket = namespace.run(|| raw::Socket::open(&device, PortId(0), &pool, &options).unwrap());
        (socket, device.mac)
    };
    let ((mut client, from), (mut server, to)) = (end(&bridge.client, "c0"), end(&bridge.server, "s0"));
    // Addresses, tags, and a datagram of no payload to port 7.
    let tagged = |tags: &[u8]| {
        let packet =
            b"\x08\0\x45\0\0\x1c\0\0\x40\0\x40\x11\0\0\x0a\x09\0\x01\x0a\x09\0\x02\x0f\xa0\0\x07\0\x08\xdc\x22";
        let mut frame = [&to, &from, tags, packet].concat();
        frame.resize(60, 0);
        frame
    };
    let region = pool.region().clone();
    for tags in [&b""[..], b"\x81\0\x20\x64", b"\x88\xa8\x20\x64", b"\x88\xa8\0\x64\x81\0\0\x07"] {
        let sent = tagged(tags);
        let mut frame = pool.take().unwrap();
        region.bytes(&mut frame)[256..][..sent.len()].copy_from_slice(&sent);
        let len = u16::try_from(sent.len()).unwrap();
        let part = Part { frame, start: 256, len, port: PortId(0), more: false };
        client.transmit(&mut [part].into_iter().collect()).unwrap();
        assert_eq!(client.tend(&mut pool), Ok(Sending::Done));
        let mut got = Batch::new();
        wait_for("the frame to come through", || {
            assert_eq!(server.receive(&mut pool, &mut got), 0);
            !got.is_empty()
        });
        let [part] = &got[..] else { panic!("{} parts", got.len()) };
        assert_eq!(part.bytes(&region), sent);
        got.drain(..).for_each(|part| pool.give(part.frame));
    }
}

#[test]
fn workers_share_a_device_by_flow() {
    let bridge = bridge(Shape { workers: 2, ..PLAIN }, &["d0", "d1"]);
    let lanes: Vec<_> =
        bridge.running().lanes().iter().map(|lane| (lane.worker, lane.port.0, lane.queue)).collect();
    assert_eq!(lanes, [(0, 0, 0), (0, 1, 0), (1, 0, 1), (1, 1, 1)]);
    udp_echo(&bridge, 1000, 200);
    let tallies = bridge.tallies();
    assert!(tallies.iter().all(|tally| tally.received() > 10), "one worker received nothing: {tallies:?}");
    let received: u64 = tallies.iter().map(|tally| tally.received()).sum();
    assert_eq!(received, 400, "each frame reached one worker: {tallies:?}");
    assert_eq!(bridge.seen.dropped.load(Relaxed) + lost(&bridge), 0);
}

/// A veth peer's super-frames are longer than the ring's slots. None that is longer than the device takes is sent on.
#[test]
fn super_frames_arrive_whole() {
    let bridge = bridge(PLAIN, &["d0", "d1"]);
    let listener = bridge.server.run(|| TcpListener::bind((SERVER, 80)).unwrap());
    let mut client = bridge.client.run(|| TcpStream::connect((SERVER, 80)).unwrap());
    let (_connection, _) = listener.accept().unwrap();
    client.set_nonblocking(true).unwrap();
    let _as_much_as_fits = std::io::Write::write(&mut client, &vec![7; 1 << 20]);
    wait_for("a super-frame", || bridge.seen.longest.load(Relaxed) > 2800);
    wait_for("its refusal by the device", || lost(&bridge) > 0);
}

#[test]
fn a_device_that_goes_down_comes_up_and_vanishes() {
    let mut bridge = bridge(PLAIN, &["d0", "d1"]);
    bridge.working = None;
    let third = super::Namespace::new();
    bridge.director.veth("d2", 1, 1500, &third, "t0");
    start(&mut bridge, &["d0", "d1", "d2"]);
    udp_echo(&bridge, 100, 3);
    for device in ["d0", "d1"] {
        bridge.director.net(|net| net.down(device));
        bridge.director.net(|net| net.up(device));
    }
    let server = bridge.server.run(|| UdpSocket::bind((SERVER, 9)).unwrap());
    let client = bridge.client.run(|| UdpSocket::bind((CLIENT, 0)).unwrap());
    server.set_nonblocking(true).unwrap();
    client.set_nonblocking(true).unwrap();
    // The kernel may take a second to let the devices send again.
    wait_for("a datagram to come through both ways again", || {
        let asked = client.send_to(b"seen", (SERVER, 9));
        let answered = server.recv_from(&mut [0; 4]).and_then(|(_, from)| server.send_to(b"seen", from));
        asked.and(answered).and_then(|_| client.recv(&mut [0; 4])).is_ok()
    });
    drop(server);
    udp_echo(&bridge, 100, 3);
    assert_eq!(bridge.notices.next(), None, "a device that is down is not gone");
    bridge.director.net(|net| net.delete("d2"));
    let mut notice = None;
    wait_for("the notice that the device is gone", || {
        notice = notice.or_else(|| bridge.notices.next());
        notice.is_some()
    });
    assert_eq!(notice, Some(Notice::DeviceGone(PortId(2))));
    udp_echo(&bridge, 100, 3);
}

/// What is for somebody else is the kernel's alone: nothing of it is looked at twice.
#[test]
fn only_ours_is_taken() {
    let bridge = bridge(PLAIN, &["d0", "d1"]);
    let client = bridge.client.run(|| UdpSocket::bind((CLIENT, 0)).unwrap());
    for _ in 0..100 {
        client.send_to(b"not ours", (SERVER, 8)).unwrap();
    }
    udp_echo(&bridge, 100, 3);
    assert_eq!(bridge.tallies()[0].received(), 6);
}
