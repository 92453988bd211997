//! A client's connection.

use super::message::Incoming;
use super::server::send_body;
use crate::{Error, Namespace, Result, stream};
use sha2::{Digest, Sha256};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

/// Bodies up to this length are kept; of longer ones only the hash.
const KEPT: u64 = 4096;

/// One answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The name of the server that gave it.
    pub server: String,
    /// Length of the body in bytes.
    pub length: u64,
    /// SHA-256 of the body, hexadecimal.
    pub sha256: String,
    /// The body itself, when it is short.
    pub body: Vec<u8>,
}

impl Answer {
    /// Why this is not the right answer to `GET path`, if it is not.
    pub fn fault(&self, path: &str) -> Option<String> {
        let (length, sha256) = match path.strip_prefix("/bytes/").and_then(|length| length.parse().ok()) {
            Some(length) => (length, stream::sha256(length)),
            None => {
                let expected = format!("{}\n", self.server);
                (expected.len() as u64, stream::hex(&Sha256::digest(&expected)))
            }
        };
        let right = self.status == 200 && self.length == length && self.sha256 == sha256;
        (!right).then(|| {
            format!(
                "GET {path} gave status {}, {} bytes from {:?} with SHA-256 {}, not {length} bytes with {sha256}",
                self.status, self.length, self.server, self.sha256
            )
        })
    }
}

/// A connection to one address, kept until dropped.
#[derive(Debug)]
pub struct Connection {
    stream: Arc<TcpStream>,
    incoming: Incoming<SharedStream>,
    target: SocketAddr,
}

/// Reads a stream that is also written to.
#[derive(Debug)]
struct SharedStream(Arc<TcpStream>);

impl io::Read for SharedStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self.0).read(buffer)
    }
}

impl Connection {
    /// Connects from `namespace` to `target`. No single read or write may then take longer than `limit`.
    pub fn open(namespace: &Namespace, target: SocketAddr, limit: Duration) -> Result<Self> {
        namespace.run(|| Connection::open_here(target, limit))?
    }

    /// The same from the namespace of the calling thread.
    pub fn open_here(target: SocketAddr, limit: Duration) -> Result<Self> {
        let opened = TcpStream::connect_timeout(&target, limit).and_then(|stream| {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(limit))?;
            stream.set_write_timeout(Some(limit))?;
            Ok(Arc::new(stream))
        });
        let stream = opened.map_err(Error::when(format!("connect to {target}")))?;
        Ok(Connection { incoming: Incoming::new(SharedStream(stream.clone())), stream, target })
    }

    /// The address and port this side has.
    pub fn local(&self) -> Result<SocketAddr> {
        self.stream.local_addr().map_err(Error::when("tell the own address"))
    }

    /// `GET path`.
    pub fn get(&mut self, path: &str) -> Result<Answer> {
        let asked = self.ask("GET", path, 0);
        asked.and_then(|()| self.answer()).map_err(Error::when(format!("get http://{}{path}", self.target)))
    }

    /// `GET path`, of whose body only the length is looked at. For measuring the way, not the hash.
    pub fn skim(&mut self, path: &str) -> Result<u64> {
        let skimmed = self.ask("GET", path, 0).and_then(|()| {
            let head = self.incoming.answer()?;
            self.incoming.body(head.length, |_| Ok(()))?;
            Ok(head.length)
        });
        skimmed.map_err(Error::when(format!("get http://{}{path}", self.target)))
    }

    /// `PUT path` with the first `length` bytes of the stream.
    pub fn put(&mut self, path: &str, length: u64) -> Result<Answer> {
        let asked = self.ask("PUT", path, length).and_then(|()| send_body(&self.stream, length));
        asked
            .and_then(|()| self.answer())
            .map_err(Error::when(format!("put to http://{}{path}", self.target)))
    }

    fn ask(&self, method: &str, path: &str, length: u64) -> io::Result<()> {
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: {length}\r\n\r\n", self.target);
        (&*self.stream).write_all(head.as_bytes())
    }

    fn answer(&mut self) -> io::Result<Answer> {
        let head = self.incoming.answer()?;
        let (mut hash, mut body) = (Sha256::new(), Vec::new());
        self.incoming.body(head.length, |piece| {
            hash.update(piece);
            if head.length <= KEPT {
                body.extend_from_slice(piece);
            }
            Ok(())
        })?;
        let sha256 = stream::hex(&hash.finalize());
        Ok(Answer { status: head.status, server: head.server, length: head.length, sha256, body })
    }
}
