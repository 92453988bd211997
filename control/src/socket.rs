//! The control socket of a director: who may speak, and how one peer's nonsense stays its own.
//!
//! The socket is abstract unless a path is given, so that each network namespace has its own and nothing is left behind.
//! Only root and the director's own user are heard. Each peer has a thread of its own for as long as it is connected; a peer that is silent, slow or
//! incoherent loses its connection and nobody else notices.

use crate::api::{CaptureSpec, Refusal, Request, Response, VERSION};
use crate::capture::Stream;
use crate::client::Client;
use crate::frame::{self, Received};
use crate::options::SocketPlace;
use nix::sys::socket::{Shutdown, getsockopt, shutdown, sockopt};
use nix::unistd::{Uid, geteuid};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Whoever answers requests.
pub trait Director: Send + Sync + 'static {
    /// Carries out one request. Called by several threads at once.
    fn handle(&self, request: Request) -> Response;

    /// Begins a capture.
    ///
    /// # Errors
    /// Why not.
    fn capture(&self, _spec: &CaptureSpec) -> Result<Stream, Refusal> {
        Err(Refusal::Unsupported("this director shows no frames".into()))
    }
}

impl<F: Fn(Request) -> Response + Send + Sync + 'static> Director for F {
    fn handle(&self, request: Request) -> Response {
        self(request)
    }
}

/// The abstract name. Two directors in two network namespaces do not meet.
const ABSTRACT_NAME: &[u8] = b"uvs/control";

/// A peer has this long to say a whole request, and to take in the answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// When others wait, a peer has this long to say a request.
const GRACE: Duration = Duration::from_millis(500);

/// A director that was killed may take this long to be gone.
const DYING: Duration = Duration::from_secs(3);

/// Peers that are served at once. More wait until one is done, or has said nothing for [`GRACE`]: [`PATIENCE`] bounds what one
/// may take for a request, not how many it makes.
const PEERS: usize = 128;

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another director answers there.
    #[error("another director already answers at {0}: stop it first, or give this one `--socket PATH`")]
    Taken(SocketPlace),
    /// A file that is no socket has the name.
    #[error("{0} exists and is not a socket: give another path with `--socket`")]
    NotASocket(PathBuf),
    /// The kernel refused.
    #[error("cannot make the control socket at {place}: {error}")]
    Kernel {
        /// Where it should have been.
        place: SocketPlace,
        /// What the kernel said.
        error: io::Error,
    },
}

/// A control socket that answers. Dropping it closes the socket and removes its file.
#[derive(Debug)]
pub struct Server {
    listener: Arc<UnixListener>,
    seats: Arc<Seats>,
    file: Option<PathBuf>,
    accepting: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts to answer at `place` for `director`.
    ///
    /// # Errors
    /// When another director answers there, or the socket cannot be made.
    pub fn start(place: &SocketPlace, director: Arc<dyn Director>) -> Result<Self, SocketError> {
        let listener = Arc::new(bind(place)?);
        let file = match place {
            SocketPlace::Namespace => None,
            SocketPlace::Path(path) => Some(path.clone()),
        };
        let seats = Arc::new(Seats::default());
        let (accepted_from, seated) = (listener.clone(), seats.clone());
        let accepting = thread::Builder::new()
            .name("uvs-control".into())
            .spawn(move || accept(&accepted_from, &seated, &director))
            .map_err(|error| SocketError::Kernel { place: place.clone(), error })?;
        Ok(Server { listener, seats, file, accepting: Some(accepting) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            let _ = std::fs::remove_file(file);
        }
        self.seats.close();
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

/// Waits until nobody listens at `place`: the kernel closes the socket of a director that was killed only when it has taken
/// apart what the director had.
///
/// # Errors
/// A director answers there, or one that does not answer stays.
pub fn await_vacancy(place: &SocketPlace) -> Result<(), SocketError> {
    let end = Instant::now() + DYING;
    let client = Client::new(place.clone());
    while client.reach().is_ok() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || client.is_answered(left) {
            return Err(SocketError::Taken(place.clone()));
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Connects to the socket at `place`.
pub(crate) fn connect(place: &SocketPlace) -> io::Result<UnixStream> {
    match place {
        SocketPlace::Namespace => UnixStream::connect_addr(&SocketAddr::from_abstract_name(ABSTRACT_NAME)?),
        SocketPlace::Path(path) => UnixStream::connect(path),
    }
}

/// The user whose process is at the other end, when the kernel tells.
pub(crate) fn peer(stream: &impl AsFd) -> Option<Uid> {
    getsockopt(stream, sockopt::PeerCredentials).ok().map(|peer| Uid::from_raw(peer.uid()))
}

/// Whether a director of this process's user does what `peer` says.
fn is_heard(peer: Option<Uid>) -> bool {
    peer.is_some_and(|user| user.is_root() || user == geteuid())
}

/// A request as it travels.
#[derive(Serialize)]
pub(crate) struct Spoken<'a> {
    pub(crate) version: u32,
    pub(crate) request: &'a Request,
}

/// A request as it arrives: what it says is looked at only when its version is ours.
#[derive(Deserialize)]
struct Heard<'a> {
    version: u32,
    #[serde(borrow)]
    request: &'a RawValue,
}

fn bind(place: &SocketPlace) -> Result<UnixListener, SocketError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => SocketError::Taken(place.clone()),
        _ => SocketError::Kernel { place: place.clone(), error },
    };
    match place {
        SocketPlace::Namespace => {
            let address = SocketAddr::from_abstract_name(ABSTRACT_NAME).map_err(failed)?;
            UnixListener::bind_addr(&address).map_err(failed)
        }
        SocketPlace::Path(path) => bind_file(path, failed),
    }
}

/// Makes the socket under a name of its own and moves it into place, so that it never stands there unprotected and a
/// stale one is replaced in one step.
fn bind_file(path: &Path, failed: impl Fn(io::Error) -> SocketError) -> Result<UnixListener, SocketError> {
    if let Ok(found) = path.symlink_metadata() {
        if !found.file_type().is_socket() {
            return Err(SocketError::NotASocket(path.to_owned()));
        }
        if UnixStream::connect(path).is_ok() {
            return Err(SocketError::Taken(SocketPlace::Path(path.to_owned())));
        }
    }
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}", std::process::id()));
    let _ = std::fs::remove_file(&fresh);
    let listener = UnixListener::bind(&fresh).map_err(&failed)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))
        .and_then(|()| std::fs::rename(&fresh, path))
        .map_err(|error| {
            let _ = std::fs::remove_file(&fresh);
            failed(error)
        })?;
    Ok(listener)
}

/// The peers that are being served, and a bell for when one is done.
#[derive(Debug, Default)]
struct Seats {
    state: Mutex<SeatState>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct SeatState {
    peers: BTreeMap<u64, Peer>,
    seated: u64,
    closed: bool,
}

#[derive(Debug)]
struct Peer {
    stream: UnixStream,
    /// Since when it is to say something.
    silent: Option<Instant>,
}

struct Seat {
    seats: Arc<Seats>,
    number: u64,
}

impl Seats {
    /// Waits for a seat; none when the socket closes. When all are taken, who has been silent longest loses his.
    fn take(self: &Arc<Self>, stream: UnixStream) -> Option<Seat> {
        let mut state = self.lock();
        while state.peers.len() >= PEERS && !state.closed {
            let silent = state.peers.values().filter_map(|peer| Some((peer.silent?, &peer.stream)));
            if let Some((since, stream)) = silent.min_by_key(|(since, _)| *since)
                && since.elapsed() >= GRACE
            {
                let _gone_already = stream.shutdown(std::net::Shutdown::Both);
            }
            let waited = self.freed.wait_timeout(state, GRACE / 10);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let number = state.seated;
        state.seated += 1;
        state.peers.insert(number, Peer { stream, silent: Some(Instant::now()) });
        (!state.closed).then(|| Seat { seats: self.clone(), number })
    }

    fn close(&self) {
        self.lock().closed = true;
        self.freed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, SeatState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// Whether it is the peer's turn to say something.
    fn set_silent(&self, silent: bool) {
        if let Some(peer) = self.seats.lock().peers.get_mut(&self.number) {
            peer.silent = silent.then(Instant::now);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.lock().peers.remove(&self.number);
        self.seats.freed.notify_one();
    }
}

fn accept(listener: &UnixListener, seats: &Arc<Seats>, director: &Arc<dyn Director>) {
    loop {
        match listener.accept() {
            Ok((stream, _)) if is_heard(peer(&stream)) => {
                let Ok(again) = stream.try_clone() else { continue };
                let Some(seat) = seats.take(again) else { return };
                let director = director.clone();
                let served = thread::Builder::new().name("uvs-peer".into()).spawn(move || {
                    serve(stream, &seat, &*director);
                });
                if let Err(error) = served {
                    tracing::warn!(%error, "no thread for a peer of the control socket");
                }
            }
            Ok(_) => tracing::warn!(
                "a peer of the control socket is neither root nor this director's user and was not heard"
            ),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return,
            Err(error) => {
                tracing::warn!(%error, "the control socket could not accept a peer");
                thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

/// Answers one peer until it closes or stops making sense.
fn serve(mut stream: UnixStream, seat: &Seat, director: &dyn Director) {
    loop {
        seat.set_silent(true);
        let received = frame::receive(&mut stream, frame::REQUEST_LIMIT, PATIENCE);
        seat.set_silent(false);
        let (response, more) = match received {
            Ok(Received::Message(body)) => match understand(&body) {
                Ok(Request::Capture(spec)) => match director.capture(&spec) {
                    // Whatever ends it, the connection ends with it.
                    Ok(capture) => return drop(show(capture, &mut stream)),
                    Err(refusal) => (Response::Refused(refusal), true),
                },
                Ok(request) => (director.handle(request), true),
                Err(refusal) => (Response::Refused(refusal), false),
            },
            Ok(Received::TooLong(length)) => {
                let limit = frame::REQUEST_LIMIT;
                let refusal =
                    Refusal::Malformed(format!("it is {length} bytes long, and {limit} is the limit"));
                (Response::Refused(refusal), false)
            }
            Ok(Received::End) | Err(_) => return,
        };
        if answer(&mut stream, &response).is_err() || !more {
            return;
        }
    }
}

fn answer(stream: &mut UnixStream, response: &Response) -> io::Result<()> {
    frame::send(stream, &serde_json::to_vec(response)?, PATIENCE)
}

/// Answers one peer with frames from now on.
fn show(capture: Stream, stream: &mut UnixStream) -> io::Result<()> {
    answer(stream, &Response::Capture { interfaces: capture.interfaces().to_vec() })?;
    capture.run(stream)
}

fn understand(body: &[u8]) -> Result<Request, Refusal> {
    let malformed = |error: serde_json::Error| Refusal::Malformed(error.to_string());
    let heard: Heard<'_> = serde_json::from_slice(body).map_err(malformed)?;
    if heard.version != VERSION {
        return Err(Refusal::Version { asked: heard.version, spoken: VERSION });
    }
    let request: Request = serde_json::from_str(heard.request.get()).map_err(malformed)?;
    match &request {
        Request::Batch(parts) if parts.iter().any(|part| matches!(part, Request::Batch(_))) => {
            Err(Refusal::Malformed("a batch inside a batch".into()))
        }
        _ => Ok(request),
    }
}
