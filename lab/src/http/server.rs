//! The real server: one thread a connection, which copes with thousands.

use super::message::{Head, Incoming};
use super::proxy;
use crate::{Error, Namespace, Result, stream};
use nix::sys::socket::{Backlog, Shutdown, listen, shutdown};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Connections that may wait to be accepted; 1,000 clients at once fit.
const BACKLOG: i32 = 4096;

/// A connection's thread only copies bytes.
const STACK: usize = 256 * 1024;

/// A server on threads of this process. Dropping it closes all its connections.
#[derive(Debug)]
pub struct Server {
    listener: Arc<TcpListener>,
    connections: Connections,
    answered: Arc<AtomicU64>,
    acceptor: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens at `address` in `namespace` and answers as `name`.
    pub fn start(namespace: &Namespace, address: SocketAddr, name: &str) -> Result<Self> {
        Server::start_with(namespace, address, name, false)
    }

    /// The same behind somebody who speaks the PROXY protocol, version 1 or 2: `GET /client` tells what it said of the client.
    pub fn start_proxied(namespace: &Namespace, address: SocketAddr, name: &str) -> Result<Self> {
        Server::start_with(namespace, address, name, true)
    }

    fn start_with(namespace: &Namespace, address: SocketAddr, name: &str, proxied: bool) -> Result<Self> {
        let listener = Arc::new(namespace.run(|| open(address))??);
        let (connections, answered) = (Connections::default(), Arc::new(AtomicU64::new(0)));
        let (accepts, registers, counts) = (listener.clone(), connections.clone(), answered.clone());
        let name: Arc<str> = name.into();
        let acceptor = std::thread::Builder::new()
            .name(format!("http {name}"))
            .spawn(move || accept(&accepts, &registers, &counts, &name, proxied))
            .map_err(Error::when("start a thread"))?;
        Ok(Server { listener, connections, answered, acceptor: Some(acceptor) })
    }

    /// Requests answered so far, one in the middle of its answer included.
    pub fn answered(&self) -> u64 {
        self.answered.load(Relaxed)
    }

    /// Connections open now.
    pub fn open_connections(&self) -> usize {
        self.connections.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _accept_fails_from_now_on = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        if let Some(acceptor) = self.acceptor.take() {
            let _panicked = acceptor.join();
        }
        for connection in self.connections.0.lock().unwrap_or_else(PoisonError::into_inner).values() {
            let _closed_already = connection.shutdown(std::net::Shutdown::Both);
        }
    }
}

/// Serves at `address` in the namespace of the calling thread as `name`, until the process ends; if `proxied`, behind somebody who
/// speaks the PROXY protocol. `ready` is called once clients can connect.
pub fn serve(address: SocketAddr, name: &str, proxied: bool, ready: impl FnOnce()) -> Result<()> {
    let listener = open(address)?;
    ready();
    accept(&listener, &Connections::default(), &Arc::default(), &name.into(), proxied);
    Ok(())
}

#[derive(Clone, Debug, Default)]
struct Connections(Arc<Mutex<HashMap<u64, Arc<TcpStream>>>>);

/// A listener at `address`, in the namespace of the calling thread, that keeps up with thousands of clients at once.
pub(crate) fn open(address: SocketAddr) -> Result<TcpListener> {
    let failed = |error: io::Error| Error::System { what: format!("listen at {address}"), source: error };
    let listener = TcpListener::bind(address).map_err(failed)?;
    Backlog::new(BACKLOG)
        .and_then(|backlog| listen(&listener, backlog))
        .map_err(|errno| failed(errno.into()))?;
    Ok(listener)
}

/// Accepts until the listener is shut down.
fn accept(
    listener: &TcpListener,
    connections: &Connections,
    answered: &Arc<AtomicU64>,
    name: &Arc<str>,
    proxied: bool,
) {
    for number in 0.. {
        let stream = match listener.accept() {
            Ok((stream, _)) => Arc::new(stream),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return,
            Err(_) => {
                // Out of descriptors or the client is gone again: neither is a reason to end.
                std::thread::yield_now();
                continue;
            }
        };
        let (all, counts, name) = (connections.clone(), answered.clone(), name.clone());
        all.0.lock().unwrap_or_else(PoisonError::into_inner).insert(number, stream.clone());
        let spawned = std::thread::Builder::new().stack_size(STACK).spawn(move || {
            let _the_client_notices = converse(&stream, &counts, &name, proxied);
            all.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
        });
        if spawned.is_err() {
            connections.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
        }
    }
}

/// Answers the requests of one connection until it is closed.
fn converse(stream: &TcpStream, answered: &AtomicU64, name: &str, proxied: bool) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let client = if proxied { proxy::read(stream)? } else { stream.peer_addr()? };
    let mut incoming = Incoming::new(stream);
    while let Some(request) = incoming.request()? {
        // Before the answer, so that a client that has it finds it counted.
        answered.fetch_add(1, Relaxed);
        answer(stream, &mut incoming, &request, name, client)?;
        if request.close {
            break;
        }
    }
    Ok(())
}

fn answer(
    stream: &TcpStream,
    incoming: &mut Incoming<&TcpStream>,
    request: &Head,
    name: &str,
    client: SocketAddr,
) -> io::Result<()> {
    match (request.method.as_str(), request.path.as_str()) {
        ("PUT" | "POST", "/null") => {
            incoming.body(request.length, |_| Ok(()))?;
            say(stream, name, "200 OK", format!("{}\n", request.length).as_bytes())
        }
        ("PUT" | "POST", _) => {
            let mut hash = Sha256::new();
            incoming.body(request.length, |piece| {
                hash.update(piece);
                Ok(())
            })?;
            say(stream, name, "200 OK", format!("{}\n", stream::hex(&hash.finalize())).as_bytes())
        }
        ("GET", "/client") => say(stream, name, "200 OK", format!("{client}\n").as_bytes()),
        ("GET", "/") => say(stream, name, "200 OK", format!("{name}\n").as_bytes()),
        ("GET", path) => match path.strip_prefix("/bytes/").and_then(|length| length.parse().ok()) {
            Some(length) => send_stream(stream, name, length),
            None => say(stream, name, "404 Not Found", b"there are /, /client and /bytes/N\n"),
        },
        _ => say(stream, name, "405 Method Not Allowed", b"there are GET, PUT and POST\n"),
    }
}

fn head(name: &str, status: &str, length: u64) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nServer: {name}\r\nContent-Length: {length}\r\n\r\n").into_bytes()
}

fn say(mut stream: &TcpStream, name: &str, status: &str, body: &[u8]) -> io::Result<()> {
    let mut message = head(name, status, body.len() as u64);
    message.extend_from_slice(body);
    stream.write_all(&message)
}

fn send_stream(mut stream: &TcpStream, name: &str, length: u64) -> io::Result<()> {
    stream.write_all(&head(name, "200 OK", length))?;
    send_body(stream, length)
}

/// Writes the first `length` bytes of the stream.
pub(super) fn send_body(mut stream: &TcpStream, length: u64) -> io::Result<()> {
    let mut chunk = vec![0; crate::stream::chunk_len(length, 256 * 1024)];
    let mut done = 0;
    while done < length {
        let size = crate::stream::chunk_len(length - done, chunk.len());
        crate::stream::fill(done, &mut chunk[..size]);
        stream.write_all(&chunk[..size])?;
        done += size as u64;
    }
    Ok(())
}
