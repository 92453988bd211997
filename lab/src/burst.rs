//! New TCP connections, faster than the kernel of a client makes them: one thread with raw frames, in the names of addresses that
//! no host has. The server is a kernel's.

use crate::http::listen;
use crate::probe::{flags, internet_checksum, numbered_segment};
use crate::{Error, Namespace, Result, Topology};
use nix::ifaddrs::getifaddrs;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
    shutdown, socket, sockopt,
};
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long nothing comes before a segment is taken for lost: longer than anybody who has it is kept from answering.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often a segment is sent.
const TRIES: u8 = 4;
/// The clients' addresses: 198.18.0.0/16, of the range for benchmarks (RFC 2544).
pub(crate) const CLIENTS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
/// Ports of each client, from this one on.
const FIRST_PORT: u16 = 1024;
const PORTS: u32 = 60_000;
/// Bytes that may wait to be received.
const BUFFER: usize = 16 << 20;

/// A server that closes each connection as soon as it is made. Ends when dropped.
#[derive(Debug)]
pub struct Closer {
    listener: Arc<TcpListener>,
    accepted: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Closer {
    /// Listens at `address` in `namespace`.
    pub fn start(namespace: &Namespace, address: SocketAddr) -> Result<Self> {
        let listener = Arc::new(namespace.run(|| listen(address))??);
        let accepted = Arc::new(AtomicU64::new(0));
        let (accepts, counts) = (listener.clone(), accepted.clone());
        let thread = std::thread::Builder::new()
            .name("closer".into())
            .spawn(move || {
                while accepts.accept().is_ok() {
                    counts.fetch_add(1, Relaxed);
                }
            })
            .map_err(Error::when("start a thread"))?;
        Ok(Closer { listener, accepted, thread: Some(thread) })
    }

    /// Connections so far.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Relaxed)
    }
}

impl Drop for Closer {
    fn drop(&mut self) {
        let _accept_fails_from_now_on = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

/// How many connections to make, and where to.
#[derive(Clone, Copy, Debug)]
pub struct Burst {
    /// A service whose server closes first.
    pub target: SocketAddrV4,
    /// Connections altogether, 3,900,000 at most.
    pub connections: u32,
    /// Connections in progress at any time.
    pub window: usize,
}

/// What became of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Connections made and closed by both sides.
    pub completed: u32,
    /// Connections that were reset or never answered.
    pub failed: u32,
    /// SYNs sent once more, because nobody answered.
    pub syns_sent_again: u32,
    /// Segments sent once more, SYNs among them.
    pub sent_again: u32,
    /// Those of them that were lost, and not only late on a busy machine: others came and went that began after them.
    pub lost: u32,
    /// Segments sent altogether.
    pub sent: u64,
    /// Segments received.
    pub received: u64,
    /// How long it all took.
    pub elapsed: Duration,
}

impl Tally {
    /// Connections made in a second.
    pub fn rate(&self) -> f64 {
        f64::from(self.completed) / self.elapsed.as_secs_f64().max(f64::EPSILON)
    }
}

/// A connection in progress.
#[derive(Clone, Copy, Debug)]
struct Connection {
    /// What was sent last, when, and how many connections had come to their end then.
    sent: u8,
    at: Instant,
    completed: u32,
    tries: u8,
    /// The next sequence number, and what was acknowledged.
    sequence: u32,
    acknowledged: u32,
}

/// What of a received segment matters here.
struct Received {
    client: SocketAddrV4,
    flags: u8,
    sequence: u32,
    acknowledged: u32,
    payload: u32,
}

impl Burst {
    /// Ten thousand, 256 at a time.
    pub fn new(target: SocketAddrV4) -> Self {
        Burst { target, connections: 10_000, window: 256 }
    }

    /// Makes them from the client of a topology that was planned for it.
    pub fn run(&self, topology: &Topology) -> Result<Tally> {
        let macs = [topology.director.net().mac("eth0")?, topology.client.net().mac("eth0")?];
        let socket = topology.client.run(|| open("eth0"))??;
        let mut run = Run { burst: self, macs, socket, open: HashMap::new(), tally: Tally::default() };
        let begin = Instant::now();
        run.carry_on()?;
        run.tally.elapsed = begin.elapsed();
        Ok(run.tally)
    }

    /// The client of a connection by its number.
    fn client(number: u32) -> SocketAddrV4 {
        let address = Ipv4Addr::from(u32::from(CLIENTS) + 1 + number / PORTS);
        let port = u16::try_from(number % PORTS).map_or(FIRST_PORT, |port| FIRST_PORT + port);
        SocketAddrV4::new(address, port)
    }
}

struct Run<'a> {
    burst: &'a Burst,
    macs: [[u8; 6]; 2],
    socket: OwnedFd,
    open: HashMap<SocketAddrV4, Connection>,
    tally: Tally,
}

impl Run<'_> {
    fn carry_on(&mut self) -> Result<()> {
        let (mut begun, mut looked) = (0, Instant::now());
        let mut frame = [0; 2048];
        while begun < self.burst.connections || !self.open.is_empty() {
            while begun < self.burst.connections && self.open.len() < self.burst.window {
                let client = Burst::client(begun);
                let connection = Connection {
                    sent: flags::SYN,
                    at: Instant::now(),
                    completed: self.tally.completed,
                    tries: 1,
                    sequence: begun.wrapping_mul(0x9e37_79b9),
                    acknowledged: 0,
                };
                self.send(client, &connection)?;
                self.open.insert(client, connection);
                begun += 1;
            }
            let mut ready = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            let _interrupted = poll(&mut ready, PollTimeout::from(100_u8));
            while let Ok(length) = recv(self.socket.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT) {
                if let Some(received) = self.parse(&frame[..length]) {
                    self.tally.received += 1;
                    self.answer(&received)?;
                }
            }
            if looked.elapsed() > PATIENCE / 4 {
                looked = Instant::now();
                self.send_again(looked)?;
            }
        }
        Ok(())
    }

    fn answer(&mut self, received: &Received) -> Result<()> {
        let Some(mut connection) = self.open.get(&received.client).copied() else { return Ok(()) };
        if received.flags & flags::RST != 0 {
            self.open.remove(&received.client);
            self.tally.failed += 1;
            return Ok(());
        }
        let next = connection.sequence.wrapping_add(1);
        let (syn, fin) = (received.flags & flags::SYN != 0, received.flags & flags::FIN != 0);
        if connection.sent & flags::FIN != 0 && !syn && received.acknowledged == next {
            self.open.remove(&received.client);
            self.tally.completed += 1;
            return Ok(());
        }
        let end = received.sequence.wrapping_add(received.payload);
        if syn && connection.sent == flags::SYN {
            (connection.sent, connection.sequence) = (flags::ACK, next);
        } else if fin && connection.sent == flags::ACK {
            connection.sent = flags::FIN | flags::ACK;
        } else if !syn && !fin {
            return Ok(());
        }
        connection.acknowledged = end.wrapping_add(1);
        (connection.at, connection.completed, connection.tries) = (Instant::now(), self.tally.completed, 1);
        self.send(received.client, &connection)?;
        self.open.insert(received.client, connection);
        Ok(())
    }

    fn send_again(&mut self, now: Instant) -> Result<()> {
        let late = |connection: &Connection| now.duration_since(connection.at) > PATIENCE;
        let all: Vec<_> =
            self.open.iter().filter(|(_, it)| late(it)).map(|(client, it)| (*client, *it)).collect();
        for (client, connection) in all {
            if connection.tries == TRIES {
                self.open.remove(&client);
                self.tally.failed += 1;
                continue;
            }
            self.tally.sent_again += 1;
            self.tally.syns_sent_again += u32::from(connection.sent == flags::SYN);
            let since = usize::try_from(self.tally.completed - connection.completed).unwrap_or(usize::MAX);
            self.tally.lost += u32::from(since > 2 * self.burst.window);
            self.send(client, &connection)?;
            let (completed, tries) = (self.tally.completed, connection.tries + 1);
            self.open.insert(client, Connection { at: now, completed, tries, ..connection });
        }
        Ok(())
    }

    fn send(&mut self, from: SocketAddrV4, connection: &Connection) -> Result<()> {
        let to = self.burst.target;
        let numbers = [connection.sequence, connection.acknowledged];
        let tcp = numbered_segment(from, to, connection.sent, numbers);
        let mut ip = [0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        ip[12..16].copy_from_slice(&from.ip().octets());
        ip[16..20].copy_from_slice(&to.ip().octets());
        let sum = internet_checksum(ip.into_iter());
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        let [director, own] = self.macs;
        let frame = [&director[..], &own, &[8, 0], &ip, &tcp].concat();
        match send(self.socket.as_raw_fd(), &frame, MsgFlags::empty()) {
            Ok(_) => {
                self.tally.sent += 1;
                Ok(())
            }
            // The device's queue is full: as good as lost on the way.
            Err(nix::errno::Errno::ENOBUFS) => Ok(()),
            Err(error) => Err(Error::System { what: "send a frame".into(), source: error.into() }),
        }
    }

    /// A segment from the target.
    fn parse(&self, frame: &[u8]) -> Option<Received> {
        let ip = frame.get(14..34).filter(|ip| frame[12..14] == [8, 0] && ip[0] == 0x45 && ip[9] == 6)?;
        let tcp = frame.get(34..54)?;
        let word = |bytes: &[u8], at: usize| {
            u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let port = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
        let from = SocketAddrV4::new(word(ip, 12).into(), port(0));
        let headers = 20 + u32::from(tcp[12] >> 4) * 4;
        (from == self.burst.target).then(|| Received {
            client: SocketAddrV4::new(word(ip, 16).into(), port(2)),
            flags: tcp[13],
            sequence: word(tcp, 4),
            acknowledged: word(tcp, 8),
            payload: u32::from(u16::from_be_bytes([ip[2], ip[3]])).saturating_sub(headers),
        })
    }
}

/// A packet socket of a device of the calling thread's namespace.
fn open(device: &str) -> Result<OwnedFd> {
    let failed = |errno: nix::errno::Errno| Error::System {
        what: "open a packet socket".into(),
        source: errno.into(),
    };
    let flags = SockFlag::SOCK_CLOEXEC;
    let opened = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).map_err(failed)?;
    let link = getifaddrs().map_err(failed)?.find_map(|entry| {
        let link = entry.address.as_ref()?.as_link_addr().copied();
        link.filter(|_| entry.interface_name == device)
    });
    let link = link.ok_or_else(|| Error::Protocol(format!("{device} has no Ethernet address")))?;
    setsockopt(&opened, sockopt::RcvBufForce, &BUFFER).map_err(failed)?;
    bind(opened.as_raw_fd(), &link).map_err(failed)?;
    Ok(opened)
}
