//! One message on the control socket: a length of four bytes, little-endian, and as many bytes of JSON.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// The longest request: a restore is sent in pieces.
pub(crate) const REQUEST_LIMIT: usize = 16 << 20;

/// The longest response: one service with a million real servers fits.
pub(crate) const RESPONSE_LIMIT: usize = 1 << 30;

/// Bytes asked for at a time, so that memory follows what really arrives and not what a peer announces.
const STEP: usize = 64 << 10;

/// Sends one message that the peer takes in within `limit`.
pub(crate) fn send(stream: &mut UnixStream, body: &[u8], limit: Duration) -> io::Result<()> {
    let length = u32::try_from(body.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let deadline = Instant::now() + limit;
    drain(stream, &length.to_le_bytes(), deadline)?;
    drain(stream, body, deadline)
}

/// What arrived.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// A message.
    Message(Vec<u8>),
    /// The peer closed where a message would begin.
    End,
    /// The peer announced more than it may send.
    TooLong(usize),
}

/// Receives one message that is complete within `limit`.
pub(crate) fn receive(stream: &mut UnixStream, longest: usize, limit: Duration) -> io::Result<Received> {
    let deadline = Instant::now() + limit;
    let mut length = [0; 4];
    match fill(stream, &mut length, deadline)? {
        0 => return Ok(Received::End),
        4 => {}
        _ => return Err(io::ErrorKind::UnexpectedEof.into()),
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > longest {
        return Ok(Received::TooLong(length));
    }
    let mut body = Vec::new();
    while body.len() < length {
        let start = body.len();
        body.resize(length.min(start + STEP.max(start)), 0);
        let end = body.len();
        if fill(stream, &mut body[start..], deadline)? != end - start {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(Received::Message(body))
}

/// Writes all of `bytes`.
fn drain(stream: &mut UnixStream, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.set_write_timeout(Some(left(deadline)?))?;
        match stream.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) => retry(error)?,
        }
    }
    Ok(())
}

/// Reads until `room` is full or the peer closes; the count of bytes read.
fn fill(stream: &mut UnixStream, room: &mut [u8], deadline: Instant) -> io::Result<usize> {
    let mut filled = 0;
    while filled < room.len() {
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(&mut room[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) => retry(error)?,
        }
    }
    Ok(filled)
}

/// What is left until `deadline`, which is never nothing: a timeout of zero would mean for ever.
fn left(deadline: Instant) -> io::Result<Duration> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
        left => Ok(left),
    }
}

/// Only an interrupted call is made again. The kernel calls a timeout EAGAIN.
fn retry(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::Interrupted => Ok(()),
        io::ErrorKind::WouldBlock => Err(io::ErrorKind::TimedOut.into()),
        _ => Err(error),
    }
}
