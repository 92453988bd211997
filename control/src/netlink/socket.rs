//! A route netlink socket: requests with acknowledgements, dumps, and the kernel's own words when it refuses.

use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST,
    NLMSG_DONE, NLMSG_ERROR, NetlinkMessage, NetlinkPayload, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{SocketAddr, protocols::NETLINK_ROUTE};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// Longer than any datagram the kernel makes: dumps are cut at 32 KiB, notifications at a page or two.
const DATAGRAM: usize = 64 * 1024;
/// The kernel answers within the call; a lost answer must not hang the control thread.
const ANSWER_SECONDS: i64 = 5;
/// How often a dump that the kernel calls interrupted by changes is started again before its result is taken as it is.
const DUMP_TRIES: u32 = 5;
/// `NLMSGERR_ATTR_MSG`: the kernel's explanation in an error message's trailing attributes.
const ATTR_MSG: u16 = 1;
/// Bytes of the netlink header, which an error message repeats.
const HEADER: usize = 16;

/// Why a conversation with the kernel failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket could not be made or set up.
    #[error("cannot open a netlink socket ({0}); the kernel must offer NETLINK_ROUTE to this process")]
    Open(#[source] io::Error),
    /// The kernel did not take a request.
    #[error("cannot send a request to {what}: {source}")]
    Send {
        /// What was asked.
        what: String,
        /// The system's reason.
        source: io::Error,
    },
    /// No answer could be read.
    #[error("no answer from the kernel to the request to {what}: {source}")]
    Receive {
        /// What was asked.
        what: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The kernel refused a request.
    #[error("the kernel refused to {what}: {source}{explanation}")]
    Refused {
        /// What was asked.
        what: String,
        /// The kernel's error number.
        source: io::Error,
        /// The kernel's own words in parentheses, or nothing.
        explanation: String,
    },
    /// An answer could not be understood.
    #[error("the kernel's answer to the request to {what} is malformed: {reason}")]
    Malformed {
        /// What was asked.
        what: String,
        /// What was wrong with it.
        reason: String,
    },
}

impl NetlinkError {
    /// The kernel's error number, when the kernel refused.
    pub fn errno(&self) -> Option<i32> {
        match self {
            NetlinkError::Refused { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

/// One datagram, or the news that the kernel had to throw some away.
pub(super) enum Received {
    /// Messages of one datagram follow in the buffer.
    Datagram,
    /// Nothing is waiting.
    Nothing,
    /// The receive buffer overflowed: notifications were lost.
    Overflow,
}

/// A netlink socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct Socket {
    inner: netlink_sys::Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// A socket for requests. Waits for answers, a few seconds at most.
    pub(super) fn open() -> Result<Self, NetlinkError> {
        let socket = Self::make().map_err(NetlinkError::Open)?;
        let limit = TimeVal::new(ANSWER_SECONDS, 0);
        setsockopt(&socket.inner, sockopt::ReceiveTimeout, &limit)
            .map_err(|e| NetlinkError::Open(e.into()))?;
        Ok(socket)
    }

    /// A socket that receives the notifications of `groups` (`RTNLGRP_*`) and never waits. Its receive buffer holds
    /// `buffer` bytes, or as many as this process may ask for.
    pub(super) fn subscribe(groups: &[u32], buffer: usize) -> Result<Self, NetlinkError> {
        let set_up = || -> io::Result<Self> {
            let socket = Self::make()?;
            // Above the system's limit only with CAP_NET_ADMIN; without, the limit is what there is.
            if setsockopt(&socket.inner, sockopt::RcvBufForce, &buffer).is_err() {
                setsockopt(&socket.inner, sockopt::RcvBuf, &buffer)?;
            }
            for group in groups {
                socket.inner.add_membership(*group)?;
            }
            socket.inner.set_non_blocking(true)?;
            Ok(socket)
        };
        set_up().map_err(NetlinkError::Open)
    }

    /// A socket whose every request fails, because it speaks to a process that is not there.
    #[cfg(test)]
    pub(super) fn deaf() -> Result<Self, NetlinkError> {
        let socket = Self::open()?;
        socket.inner.connect(&SocketAddr::new(u32::MAX, 0)).map_err(NetlinkError::Open)?;
        Ok(socket)
    }

    fn make() -> io::Result<Self> {
        let mut inner = netlink_sys::Socket::new(NETLINK_ROUTE)?;
        inner.bind_auto()?;
        inner.connect(&SocketAddr::new(0, 0))?;
        inner.set_ext_ack(true)?;
        inner.set_cap_ack(true)?;
        Ok(Socket { inner, sequence: 0, buffer: Vec::with_capacity(DATAGRAM) })
    }

    /// Has the kernel carry out `message`; `flags` are added to request and acknowledge. `what` completes the sentence
    /// "the kernel refused to …".
    pub(super) fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        what: &dyn Fn() -> String,
    ) -> Result<(), NetlinkError> {
        let sequence = self.send(message, NLM_F_REQUEST | NLM_F_ACK | flags, what)?;
        loop {
            self.answer(what)?;
            for message in messages(&self.buffer) {
                if message.sequence == sequence && message.kind == NLMSG_ERROR {
                    return message.into_error(what).map_or(Ok(()), Err);
                }
            }
        }
    }

    /// Asks for a list and lets `each` collect its messages, undecoded, into what `start` makes. A list that changed
    /// while it was made is asked for again.
    pub(super) fn dump<S>(
        &mut self,
        message: &RouteNetlinkMessage,
        what: &dyn Fn() -> String,
        mut start: impl FnMut() -> S,
        mut each: impl FnMut(&mut S, RawMessage<'_>),
    ) -> Result<S, NetlinkError> {
        let mut attempt = 0;
        loop {
            let mut list = start();
            let whole = self.dump_once(message.clone(), what, |raw| each(&mut list, raw))?;
            attempt += 1;
            if whole || attempt == DUMP_TRIES {
                return Ok(list);
            }
        }
    }

    fn dump_once(
        &mut self,
        message: RouteNetlinkMessage,
        what: &dyn Fn() -> String,
        mut each: impl FnMut(RawMessage<'_>),
    ) -> Result<bool, NetlinkError> {
        let sequence = self.send(message, NLM_F_REQUEST | NLM_F_DUMP, what)?;
        let mut whole = true;
        loop {
            self.answer(what)?;
            for message in messages(&self.buffer) {
                if message.sequence != sequence {
                    continue;
                }
                whole &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.kind {
                    NLMSG_DONE | NLMSG_ERROR => return message.into_error(what).map_or(Ok(whole), Err),
                    _ => each(message),
                }
            }
        }
    }

    /// Takes the next datagram of notifications; read it with [`Socket::notifications`].
    pub(super) fn receive(&mut self) -> io::Result<Received> {
        self.buffer.clear();
        loop {
            match self.inner.recv(&mut self.buffer, 0) {
                Ok(_) => return Ok(Received::Datagram),
                Err(e) => match e.raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EAGAIN) => return Ok(Received::Nothing),
                    Some(libc::ENOBUFS) => return Ok(Received::Overflow),
                    _ => return Err(e),
                },
            }
        }
    }

    /// The messages of the datagram that [`Socket::receive`] took.
    pub(super) fn notifications(&self) -> impl Iterator<Item = RawMessage<'_>> {
        messages(&self.buffer)
    }

    fn send(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        what: &dyn Fn() -> String,
    ) -> Result<u32, NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(message);
        message.header.flags = flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        match self.inner.send(&bytes, 0) {
            Ok(_) => Ok(self.sequence),
            Err(source) => Err(NetlinkError::Send { what: what(), source }),
        }
    }

    fn answer(&mut self, what: &dyn Fn() -> String) -> Result<(), NetlinkError> {
        let receive = self.receive().and_then(|received| match received {
            Received::Datagram => Ok(()),
            Received::Nothing => Err(io::ErrorKind::TimedOut.into()),
            Received::Overflow => Err(io::Error::from_raw_os_error(libc::ENOBUFS)),
        });
        receive.map_err(|source| NetlinkError::Receive { what: what(), source })
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

/// One netlink message as it came.
pub(super) struct RawMessage<'a> {
    /// `RTM_*` or a control type.
    pub(super) kind: u16,
    flags: u16,
    sequence: u32,
    bytes: &'a [u8],
}

impl RawMessage<'_> {
    /// The message with its type's fields.
    pub(super) fn decode(&self) -> Result<RouteNetlinkMessage, DecodeError> {
        match NetlinkMessage::<RouteNetlinkMessage>::deserialize(self.bytes)?.payload {
            NetlinkPayload::InnerMessage(message) => Ok(message),
            other => Err(DecodeError::from(format!("expected a route message, found {other:?}"))),
        }
    }

    /// What an error or end-of-list message says; `None` when all is well.
    fn into_error(self, what: &dyn Fn() -> String) -> Option<NetlinkError> {
        let payload = self.bytes.get(HEADER..).unwrap_or_default();
        let Some((code, rest)) = payload.split_first_chunk::<4>() else {
            // The end of a list may come without a code.
            let reason = "it ends within its error code".to_owned();
            return (self.kind == NLMSG_ERROR).then(|| NetlinkError::Malformed { what: what(), reason });
        };
        let code = i32::from_ne_bytes(*code);
        if code == 0 {
            return None;
        }
        let attributes = match self.kind {
            NLMSG_ERROR => repeated_request(rest, self.flags).and_then(|skip| rest.get(skip..)),
            _ => Some(rest),
        };
        let words = attributes.filter(|_| self.flags & NLM_F_ACK_TLVS != 0).and_then(kernels_words);
        Some(NetlinkError::Refused {
            what: what(),
            source: io::Error::from_raw_os_error(code.saturating_neg()),
            explanation: words.map(|words| format!(" ({words})")).unwrap_or_default(),
        })
    }
}

/// How many bytes of an error message repeat the request before its attributes begin.
fn repeated_request(rest: &[u8], flags: u16) -> Option<usize> {
    if flags & NLM_F_CAPPED != 0 {
        return Some(HEADER);
    }
    let length = u32::from_ne_bytes(*rest.first_chunk::<4>()?);
    usize::try_from(length).ok().map(|length| length.next_multiple_of(4))
}

fn kernels_words(attributes: &[u8]) -> Option<String> {
    let message = NlasIterator::new(attributes).map_while(Result::ok).find(|nla| nla.kind() == ATTR_MSG)?;
    let text = message.value().split(|byte| *byte == 0).next()?;
    Some(String::from_utf8_lossy(text).into_owned())
}

/// Splits a datagram into its messages; stops where a length makes no sense.
fn messages(mut datagram: &[u8]) -> impl Iterator<Item = RawMessage<'_>> {
    std::iter::from_fn(move || {
        let header = datagram.first_chunk::<HEADER>()?;
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *header;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
        let bytes = datagram.get(..length).filter(|bytes| bytes.len() >= HEADER)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(RawMessage {
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            bytes,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message of `kind` with `flags`, sequence 7 and `payload`.
    fn message(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER + payload.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(7_u32.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(payload);
        bytes
    }

    fn refusal(flags: u16, code: i32, rest: &[u8]) -> Option<String> {
        let bytes = message(NLMSG_ERROR, flags, &[&code.to_ne_bytes(), rest].concat());
        let raw = messages(&bytes).next().unwrap();
        raw.into_error(&|| "add a route".to_owned()).map(|e| e.to_string())
    }

    #[test]
    fn errors_speak_the_kernels_words() {
        let words = [&[18, 0, 1, 0][..], b"Unknown route\0", &[0, 0]].concat();
        let capped = [&[0; HEADER][..], &words].concat();
        let repeated = [&message(24, 0, &[1, 2, 3, 4])[..], &words].concat();
        let bare = "the kernel refused to add a route: No such process (os error 3)";
        let full = format!("{bare} (Unknown route)");
        let cases = [
            ("an acknowledgement", refusal(0, 0, &[]), None),
            ("a bare refusal", refusal(0, -3, &[]), Some(bare)),
            ("words after the header", refusal(NLM_F_CAPPED | NLM_F_ACK_TLVS, -3, &capped), Some(&full[..])),
            ("words after the request", refusal(NLM_F_ACK_TLVS, -3, &repeated), Some(&full[..])),
            ("words cut short", refusal(NLM_F_CAPPED | NLM_F_ACK_TLVS, -3, &capped[..20]), Some(bare)),
        ];
        for (shows, found, expected) in cases {
            assert_eq!(found.as_deref(), expected, "{shows}");
        }
    }

    #[test]
    fn datagrams_are_split_and_nonsense_ends_them() {
        let kinds = |bytes: &[u8]| messages(bytes).map(|m| m.kind).collect::<Vec<_>>();
        let two = [message(16, 0, &[1, 2, 3, 4]), message(20, 0, &[])].concat();
        assert_eq!(kinds(&two), [16, 20]);
        assert_eq!(kinds(&two[..two.len() - 1]), [16], "the second is cut short");
        let mut wrong = two.clone();
        wrong[20..24].copy_from_slice(&3_u32.to_ne_bytes());
        assert_eq!(kinds(&wrong), [16], "a length shorter than its own header");
        assert_eq!(kinds(&[]), [0; 0]);
    }

    #[test]
    fn a_message_of_another_protocol_is_not_decoded() {
        let bytes = message(999, 0, &[]);
        assert!(messages(&bytes).next().unwrap().decode().is_err());
    }
}
