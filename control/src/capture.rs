//! A capture on its way to whoever asked for it: pcapng blocks on the control connection.
//!
//! The workers never wait for a peer, and nor does anybody else: a peer that does not read has a thread here to itself and
//! loses frames, which are counted in the stream.

use crate::api::{CaptureSpec, Refusal};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use uvs_engine::PortId;
use uvs_engine::capture::{Captures, Feed, Filter, WAYS, Wanted, Way};
use uvs_engine::link::pcap::{self, Direction, MAX_FRAME};
use uvs_engine::snapshot::Port;

/// How often what was captured is looked for.
const PERIOD: Duration = Duration::from_millis(20);

/// A peer has this long to read the rest when a capture ends.
const PATIENCE: Duration = Duration::from_secs(1);

/// A capture that was begun for a peer.
#[derive(Debug)]
pub struct Stream {
    feed: Feed,
    interfaces: Vec<String>,
    snap: u32,
    /// By interface, the losses that the peer knows of.
    told: Vec<u64>,
}

impl Stream {
    /// Begins a capture of the director whose devices are `ports`.
    ///
    /// # Errors
    /// It is of no device of this director, its filter cannot be read, or too many run already.
    pub fn begin(captures: &Arc<Captures>, ports: &[Port], spec: &CaptureSpec) -> Result<Self, Refusal> {
        let filter = Filter::parse(&spec.filter).map_err(|error| Refusal::Failed(error.to_string()))?;
        let chosen = choose(ports, &spec.interfaces)?;
        let names = chosen.iter().filter_map(|port| ports.get(usize::from(port.0)));
        let interfaces: Vec<String> =
            names.flat_map(|port| WAYS.map(|way| format!("{} {way}", port.name))).collect();
        let snap = if spec.snap == 0 { MAX_FRAME } else { spec.snap.min(MAX_FRAME) };
        let wanted = Wanted { filter, ports: chosen, snap: snap as usize };
        let feed = captures.begin(wanted).map_err(|error| Refusal::Failed(error.to_string()))?;
        Ok(Stream { told: vec![0; interfaces.len()], feed, interfaces, snap })
    }

    /// The names of what its frames are of, by their numbers in the stream.
    pub fn interfaces(&self) -> &[String] {
        &self.interfaces
    }

    /// Sends what is captured until the peer has enough or is gone, or the director ends.
    ///
    /// # Errors
    /// The peer went away, or took too long to read the rest.
    pub(crate) fn run(mut self, mut peer: &UnixStream) -> io::Result<()> {
        peer.set_nonblocking(true)?;
        let (mut blocks, mut sent) = (self.header(), 0);
        let (mut ended, mut told_all): (Option<Instant>, _) = (None, false);
        loop {
            let sending = sent < blocks.len();
            let found = wait(peer, sending, ended.is_none())?;
            if found.intersects(PollFlags::POLLHUP | PollFlags::POLLERR) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            if sending {
                sent += unless_later(peer.write(&blocks[sent..]))?.unwrap_or(0);
            } else {
                // What a worker was about to hand over when the capture ended has come by then.
                let last = ended.is_some_and(|since| since.elapsed() >= PERIOD);
                (blocks, sent) = (self.next(), 0);
                if last && blocks.is_empty() {
                    if told_all {
                        return Ok(());
                    }
                    blocks = self.losses();
                    told_all = true;
                }
            }
            let enough = found.contains(PollFlags::POLLIN) && has_enough(peer)?;
            if ended.is_none() && (enough || self.feed.is_over()) {
                self.feed.end();
                ended = Some(Instant::now());
            }
            if ended.is_some_and(|since| since.elapsed() > PATIENCE) {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    /// The beginning of the stream.
    fn header(&self) -> Vec<u8> {
        let mut blocks = Vec::new();
        pcap::pcapng_section(&mut blocks);
        self.interfaces.iter().for_each(|name| pcap::pcapng_interface(&mut blocks, name, self.snap));
        blocks
    }

    /// What was captured since the last time, and lost.
    fn next(&mut self) -> Vec<u8> {
        let mut blocks = Vec::new();
        for record in self.feed.take() {
            let direction = match record.way {
                Way::In => Some(Direction::In),
                Way::Out => Some(Direction::Out),
                Way::Dropped => None,
            };
            let frame = pcap::Frame {
                interface: record.interface,
                time: record.time,
                wire_len: record.wire_len,
                direction,
                comment: &record.note.to_string(),
                bytes: &record.bytes,
            };
            pcap::pcapng_packet(&mut blocks, &frame);
        }
        let now = now();
        for ((interface, lost), told) in (0..).zip(self.feed.lost()).zip(&mut self.told) {
            if lost != *told {
                *told = lost;
                pcap::pcapng_statistics(&mut blocks, interface, now, lost);
            }
        }
        blocks
    }

    /// What was lost of every interface. It comes last: a peer that did not get all of it knows that the director died.
    fn losses(&self) -> Vec<u8> {
        let (mut blocks, now) = (Vec::new(), now());
        for (interface, lost) in (0..).zip(&self.told) {
            pcap::pcapng_statistics(&mut blocks, interface, now, *lost);
        }
        blocks
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// The devices with these names, or all.
fn choose(ports: &[Port], names: &[String]) -> Result<Vec<PortId>, Refusal> {
    let find = |name: &String| {
        let found = ports.iter().zip(0..).find(|(port, _)| port.name == *name);
        found.map(|(_, number)| PortId(number)).ok_or_else(|| {
            let names: Vec<&str> = ports.iter().map(|port| port.name.as_str()).collect();
            Refusal::Failed(format!("{name} is no device of the director, which has {}", names.join(", ")))
        })
    };
    if names.is_empty() {
        return Ok((0..).map(PortId).take(ports.len()).collect());
    }
    let mut chosen = names.iter().map(find).collect::<Result<Vec<_>, _>>()?;
    chosen.sort_unstable();
    chosen.dedup();
    Ok(chosen)
}

/// Waits for [`PERIOD`] at most: until blocks can be sent, until the peer says something.
fn wait(peer: &UnixStream, sending: bool, listening: bool) -> io::Result<PollFlags> {
    let mut wanted = PollFlags::empty();
    wanted.set(PollFlags::POLLOUT, sending);
    wanted.set(PollFlags::POLLIN, listening);
    let mut peers = [PollFd::new(peer.as_fd(), wanted)];
    match poll(&mut peers, PollTimeout::try_from(PERIOD).unwrap_or(PollTimeout::ZERO)) {
        Ok(_) => Ok(peers[0].revents().unwrap_or(PollFlags::empty())),
        Err(nix::errno::Errno::EINTR) => Ok(PollFlags::empty()),
        Err(error) => Err(error.into()),
    }
}

/// The peer shut its sending side down. One that talks on has had enough, too.
fn has_enough(mut peer: &UnixStream) -> io::Result<bool> {
    Ok(unless_later(peer.read(&mut [0; 64]))?.is_some())
}

/// `None` for what would have to wait.
fn unless_later(done: io::Result<usize>) -> io::Result<Option<usize>> {
    match done {
        Ok(count) => Ok(Some(count)),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
