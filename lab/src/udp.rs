//! A UDP server that answers with its name and what it was sent, and a client for it.

use crate::{Error, Namespace, Result};
use nix::sys::socket::{setsockopt, sockopt};
use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// The longest datagram there is.
const DATAGRAM: usize = 65_535;

/// How often a server looks whether it should end.
const TURN: Duration = Duration::from_millis(50);

/// A server that answers `name`, a space, and the datagram. Ends when dropped.
#[derive(Debug)]
pub struct Echo {
    end: Arc<AtomicBool>,
    seen: Arc<Seen>,
    thread: Option<JoinHandle<()>>,
}

/// What a server has seen.
#[derive(Debug, Default)]
struct Seen {
    senders: Mutex<BTreeSet<SocketAddr>>,
    refusals: AtomicU64,
}

impl Echo {
    /// Listens at `address` in `namespace`.
    pub fn start(namespace: &Namespace, address: SocketAddr, name: &str) -> Result<Self> {
        let socket = bind(namespace, address)?;
        socket.set_read_timeout(Some(TURN)).map_err(Error::when("set a timeout"))?;
        hear_errors(&socket, address.is_ipv4())?;
        let (end, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Seen::default()));
        let (ends, sees, greeting) = (end.clone(), seen.clone(), format!("{name} "));
        let thread = std::thread::Builder::new()
            .name(format!("udp {name}"))
            .spawn(move || answer(&socket, greeting.as_bytes(), &sees, &ends))
            .map_err(Error::when("start a thread"))?;
        Ok(Echo { end, seen, thread: Some(thread) })
    }

    /// The addresses and ports that datagrams came from.
    pub fn senders(&self) -> BTreeSet<SocketAddr> {
        self.seen.senders.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many ICMP errors have said that an answer came to a closed port.
    pub fn refusals(&self) -> u64 {
        self.seen.refusals.load(Relaxed)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.end.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

fn answer(socket: &UdpSocket, greeting: &[u8], seen: &Seen, end: &AtomicBool) {
    let mut buffer = vec![0; DATAGRAM];
    let note = |error: &io::Error| {
        seen.refusals.fetch_add(u64::from(error.kind() == io::ErrorKind::ConnectionRefused), Relaxed);
    };
    while !end.load(Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut buffer).inspect_err(note) else { continue };
        seen.senders.lock().unwrap_or_else(PoisonError::into_inner).insert(from);
        let answer = [greeting, &buffer[..length]].concat();
        let _lost_like_any_datagram = socket.send_to(&answer, from);
    }
}

/// A client's socket, connected to one address.
#[derive(Debug)]
pub struct Client {
    socket: UdpSocket,
}

impl Client {
    /// A socket in `namespace`, of a port the kernel chooses, that talks to `server`.
    pub fn connect(namespace: &Namespace, server: SocketAddr) -> Result<Self> {
        let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let any = any.parse().map_err(|_| Error::Protocol(format!("{any} is no address")))?;
        let socket = bind(namespace, any)?;
        socket.connect(server).map_err(Error::when(format!("connect to {server}")))?;
        Ok(Client { socket })
    }

    /// The address and port this side has.
    pub fn local(&self) -> Result<SocketAddr> {
        self.socket.local_addr().map_err(Error::when("tell the own address"))
    }

    /// Sends `question` and waits for nothing.
    pub fn say(&self, question: &[u8]) -> Result<()> {
        let sent = self.socket.send(question).map(drop);
        sent.map_err(Error::when(format!("send {} bytes", question.len())))
    }

    /// Lets datagrams travel at most `hops` hops, and has the socket fail when an ICMP error says that one did not arrive.
    pub fn travel(&self, hops: u8) -> Result<()> {
        let (hops, what) = (i32::from(hops), "set a socket's hops");
        let v4 = self.local()?.is_ipv4();
        if v4 {
            setsockopt(&self.socket, sockopt::Ipv4Ttl, &hops).map_err(Error::when(what))?;
        } else {
            setsockopt(&self.socket, sockopt::Ipv6Ttl, &hops).map_err(Error::when(what))?;
        }
        hear_errors(&self.socket, v4)
    }

    /// Sends each of `questions`, which are of one length, in one super-frame, if the device takes such; returns how many of them were
    /// answered within `limit` by an answer that repeats them.
    pub fn ask_at_once(&self, questions: &[Vec<u8>], limit: Duration) -> Result<usize> {
        let length = questions.first().map_or(0, Vec::len);
        let size = i32::try_from(length).map_err(|_| Error::Protocol(format!("{length} bytes")))?;
        setsockopt(&self.socket, sockopt::UdpGsoSegment, &size).map_err(Error::when("have datagrams cut"))?;
        self.socket.set_read_timeout(Some(limit)).map_err(Error::when("set a timeout"))?;
        self.say(&questions.concat())?;
        let mut buffer = vec![0; DATAGRAM];
        let mut left: BTreeSet<&[u8]> = questions.iter().map(Vec::as_slice).collect();
        while !left.is_empty() {
            let Ok(length) = self.socket.recv(&mut buffer) else { break };
            // Behind the name and a space.
            if let Some(name) = buffer[..length].iter().position(|byte| *byte == b' ') {
                left.remove(&buffer[name + 1..length]);
            }
        }
        Ok(questions.len() - left.len())
    }

    /// Sends `question` and returns who answered, once an answer that repeats the question has come within `limit`.
    pub fn ask(&self, question: &[u8], limit: Duration) -> Result<String> {
        self.socket.set_read_timeout(Some(limit)).map_err(Error::when("set a timeout"))?;
        self.say(question)?;
        let mut buffer = vec![0; DATAGRAM];
        let length = self.socket.recv(&mut buffer).map_err(Error::when("receive the answer"))?;
        let answer = &buffer[..length];
        let name = answer.strip_suffix(question).and_then(|name| name.strip_suffix(b" "));
        match name {
            Some(name) => Ok(String::from_utf8_lossy(name).into_owned()),
            None => Err(Error::Protocol(format!(
                "a datagram of {} bytes was answered by one of {length} bytes that does not repeat it",
                question.len()
            ))),
        }
    }
}

/// Has a socket fail when an ICMP error says that a datagram of its did not arrive.
fn hear_errors(socket: &UdpSocket, v4: bool) -> Result<()> {
    let set = match v4 {
        true => setsockopt(socket, sockopt::Ipv4RecvErr, &true),
        false => setsockopt(socket, sockopt::Ipv6RecvErr, &true),
    };
    set.map_err(Error::when("have a socket hear errors"))
}

fn bind(namespace: &Namespace, address: SocketAddr) -> Result<UdpSocket> {
    namespace.run(|| UdpSocket::bind(address))?.map_err(Error::when(format!("listen at {address}")))
}
