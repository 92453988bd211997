//! A UDP server that answers with its name and what it was sent, and a client for it.

use crate::{Error, Namespace, Result};
use nix::sys::socket::{setsockopt, sockopt};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
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
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// Listens at `address` in `namespace`.
    pub fn start(namespace: &Namespace, address: SocketAddr, name: &str) -> Result<Self> {
        let socket = bind(namespace, address)?;
        socket.set_read_timeout(Some(TURN)).map_err(Error::when("set a timeout"))?;
        let end = Arc::new(AtomicBool::new(false));
        let (ends, greeting) = (end.clone(), format!("{name} "));
        let thread = std::thread::Builder::new()
            .name(format!("udp {name}"))
            .spawn(move || answer(&socket, greeting.as_bytes(), &ends))
            .map_err(Error::when("start a thread"))?;
        Ok(Echo { end, thread: Some(thread) })
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

fn answer(socket: &UdpSocket, greeting: &[u8], end: &AtomicBool) {
    let mut buffer = vec![0; DATAGRAM];
    while !end.load(Relaxed) {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
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

    /// Lets datagrams travel at most `hops` hops, and has the socket fail when an ICMP error says that one did not arrive.
    pub fn travel(&self, hops: u8) -> Result<()> {
        let (hops, what) = (i32::from(hops), "set a socket's hops");
        if self.socket.local_addr().map_err(Error::when(what))?.is_ipv4() {
            setsockopt(&self.socket, sockopt::Ipv4Ttl, &hops).map_err(Error::when(what))?;
            setsockopt(&self.socket, sockopt::Ipv4RecvErr, &true).map_err(Error::when(what))
        } else {
            setsockopt(&self.socket, sockopt::Ipv6Ttl, &hops).map_err(Error::when(what))?;
            setsockopt(&self.socket, sockopt::Ipv6RecvErr, &true).map_err(Error::when(what))
        }
    }

    /// Sends `question` and returns who answered, once an answer that repeats the question has come within `limit`.
    pub fn ask(&self, question: &[u8], limit: Duration) -> Result<String> {
        self.socket.set_read_timeout(Some(limit)).map_err(Error::when("set a timeout"))?;
        self.socket.send(question).map_err(Error::when(format!("send {} bytes", question.len())))?;
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

fn bind(namespace: &Namespace, address: SocketAddr) -> Result<UdpSocket> {
    namespace.run(|| UdpSocket::bind(address))?.map_err(Error::when(format!("listen at {address}")))
}
