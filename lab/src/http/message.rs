//! Reading one HTTP message: its head by `httparse`, its body by `Content-Length`.

use std::io::{self, Read};

/// The longest head taken, in bytes.
const HEAD: usize = 16 * 1024;

/// The most fields a head may have.
const FIELDS: usize = 64;

/// The head of a message, as far as these endpoints use it.
#[derive(Debug, Default)]
pub(super) struct Head {
    /// Method of a request.
    pub(super) method: String,
    /// Target of a request.
    pub(super) path: String,
    /// Status of an answer.
    pub(super) status: u16,
    /// `Server` field.
    pub(super) server: String,
    /// `Content-Length`, 0 when absent.
    pub(super) length: u64,
    /// `Connection: close` was said.
    pub(super) close: bool,
}

/// A connection's incoming bytes, cut into messages.
#[derive(Debug)]
pub(super) struct Incoming<R> {
    reader: R,
    buffer: Vec<u8>,
    /// Bytes of `buffer` before this place have been used.
    used: usize,
}

impl<R: Read> Incoming<R> {
    pub(super) fn new(reader: R) -> Self {
        Incoming { reader, buffer: Vec::new(), used: 0 }
    }

    /// The head of the next request, or `None` when the peer has closed the connection between two messages.
    pub(super) fn request(&mut self) -> io::Result<Option<Head>> {
        self.head(|bytes| {
            let mut fields = [httparse::EMPTY_HEADER; FIELDS];
            let mut request = httparse::Request::new(&mut fields);
            Ok(match request.parse(bytes)? {
                httparse::Status::Partial => None,
                httparse::Status::Complete(length) => {
                    let mut head = from_fields(request.headers);
                    head.method = request.method.unwrap_or_default().into();
                    head.path = request.path.unwrap_or_default().into();
                    Some((length, head))
                }
            })
        })
    }

    /// The head of the next answer.
    pub(super) fn answer(&mut self) -> io::Result<Head> {
        let head = self.head(|bytes| {
            let mut fields = [httparse::EMPTY_HEADER; FIELDS];
            let mut response = httparse::Response::new(&mut fields);
            Ok(match response.parse(bytes)? {
                httparse::Status::Partial => None,
                httparse::Status::Complete(length) => {
                    let mut head = from_fields(response.headers);
                    head.status = response.code.unwrap_or_default();
                    Some((length, head))
                }
            })
        })?;
        head.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "closed instead of answering"))
    }

    fn head(
        &mut self,
        parse: impl Fn(&[u8]) -> Result<Option<(usize, Head)>, httparse::Error>,
    ) -> io::Result<Option<Head>> {
        loop {
            let pending = &self.buffer[self.used..];
            if let Some((length, head)) = parse(pending).map_err(io::Error::other)? {
                self.used += length;
                return Ok(Some(head));
            }
            if pending.len() >= HEAD {
                return Err(io::Error::other("the head of an HTTP message is too long"));
            }
            let nothing_yet = pending.is_empty();
            if self.fill()? == 0 {
                return if nothing_yet { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    /// Hands the next `length` bytes to `take`, piece by piece.
    pub(super) fn body(
        &mut self,
        length: u64,
        mut take: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut left = length;
        while left > 0 {
            if self.used == self.buffer.len() && self.fill()? == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!("closed {left} bytes before the end of a body of {length}"),
                ));
            }
            let piece = crate::stream::chunk_len(left, self.buffer.len() - self.used);
            take(&self.buffer[self.used..self.used + piece])?;
            self.used += piece;
            left -= piece as u64;
        }
        Ok(())
    }

    /// Reads what has come. 0 when the peer has closed.
    fn fill(&mut self) -> io::Result<usize> {
        self.buffer.drain(..self.used);
        self.used = 0;
        let end = self.buffer.len();
        self.buffer.resize(end + 64 * 1024, 0);
        let got = loop {
            match self.reader.read(&mut self.buffer[end..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        self.buffer.truncate(end + *got.as_ref().unwrap_or(&0));
        got
    }
}

fn from_fields(fields: &[httparse::Header<'_>]) -> Head {
    let value = |name: &str| {
        let field = fields.iter().find(|field| field.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(field.value).ok()
    };
    Head {
        server: value("server").unwrap_or_default().into(),
        length: value("content-length").and_then(|length| length.trim().parse().ok()).unwrap_or(0),
        close: value("connection").is_some_and(|wish| wish.eq_ignore_ascii_case("close")),
        ..Head::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Delivers one byte at a time, the worst a network can do.
    struct Trickle<'a>(&'a [u8]);

    impl Read for Trickle<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let Some((first, rest)) = self.0.split_first() else { return Ok(0) };
            buffer[0] = *first;
            self.0 = rest;
            Ok(1)
        }
    }

    #[test]
    fn messages_are_cut_at_their_ends_however_they_arrive() {
        let bytes =
            b"PUT /x HTTP/1.1\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nConnection: close\r\n\r\n";
        let mut incoming = Incoming::new(Trickle(bytes));
        let first = incoming.request().unwrap().unwrap();
        assert_eq!(
            (first.method.as_str(), first.path.as_str(), first.length, first.close),
            ("PUT", "/x", 5, false)
        );
        let mut body = Vec::new();
        let take = |piece: &[u8]| {
            body.extend_from_slice(piece);
            Ok(())
        };
        incoming.body(5, take).unwrap();
        assert_eq!(body, b"hello");
        let second = incoming.request().unwrap().unwrap();
        assert_eq!((second.method.as_str(), second.close), ("GET", true));
        assert!(incoming.request().unwrap().is_none());
    }

    #[test]
    fn an_end_in_the_middle_is_an_error() {
        assert!(Incoming::new(Trickle(b"GET / HT")).request().is_err());
        assert!(Incoming::new(Trickle(b"")).answer().is_err());
        assert!(Incoming::new(Trickle(b"hell")).body(5, |_| Ok(())).is_err());
        assert!(Incoming::new(Trickle(b"\x01\x02\x03\r\n\r\n")).request().is_err());
    }
}
