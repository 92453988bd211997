//! The other end of the control socket: what `ipvsadm`, `uvs status` and their like speak through.

use crate::api::{
    CaptureSpec, ConnectionEntry, Refusal, Request, Response, ServiceEntry, ServiceId, VERSION,
};
use crate::frame::{self, Received};
use crate::options::SocketPlace;
use crate::socket::{self, Spoken};
use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// A director has this long to take in a request, and to answer it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("no director answers at {0}: start one with `uvs run --interface NAME`")]
    NoDirector(SocketPlace),
    /// The caller is neither root nor the user of the director.
    #[error("Permission denied (you must be root)")]
    NotRoot,
    /// Whoever listens is another user.
    #[error(
        "whoever listens at {0} is another user: speak to a director as the user it runs as, or find out who it is with \
         `ss -xlp`"
    )]
    Impostor(SocketPlace),
    /// The connection broke or the director is stuck.
    #[error("the director at {place} did not answer: {error}")]
    Broken {
        /// Where it was asked.
        place: SocketPlace,
        /// What went wrong.
        error: io::Error,
    },
    /// The director said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Speaks to one director.
#[derive(Clone, Debug)]
pub struct Client {
    place: SocketPlace,
}

/// Every service of a listing, and the size of the connection table that titles it.
#[derive(Clone, Debug, PartialEq)]
pub struct Listing {
    /// In the kernel's order.
    pub services: Vec<ServiceEntry>,
    /// Buckets of the connection table.
    pub table_size: u32,
}

impl Client {
    /// A client of the director at `place`. Connects only when it has something to say.
    pub fn new(place: SocketPlace) -> Self {
        Client { place }
    }

    /// Whether a director is there that would hear the caller.
    ///
    /// # Errors
    /// Nobody is there, or it is another user's.
    pub fn reach(&self) -> Result<(), ClientError> {
        self.connect().map(drop)
    }

    /// Whether a director answers the caller within `patience`, be it with a refusal.
    pub(crate) fn is_answered(&self, patience: Duration) -> bool {
        self.ask_within(&Request::Timeouts, patience).is_ok()
    }

    /// Asks for one thing.
    ///
    /// # Errors
    /// No answer came. A refusal is an answer.
    pub fn ask(&self, request: &Request) -> Result<Response, ClientError> {
        self.ask_within(request, PATIENCE)
    }

    fn ask_within(&self, request: &Request, patience: Duration) -> Result<Response, ClientError> {
        self.ask_on(&mut self.connect()?, request, patience)
    }

    /// Begins a capture. What its frames are of, and the connection by which their stream comes.
    ///
    /// # Errors
    /// No answer, or a refusal.
    pub fn capture(&self, spec: CaptureSpec) -> Result<(Vec<String>, UnixStream), ClientError> {
        let mut stream = self.connect()?;
        let interfaces = match self.ask_on(&mut stream, &Request::Capture(spec), PATIENCE)? {
            Response::Capture { interfaces } => interfaces,
            other => return Err(self.unexpected(other)),
        };
        let waiting = stream.set_read_timeout(None);
        waiting.map_err(|error| ClientError::Broken { place: self.place.clone(), error })?;
        Ok((interfaces, stream))
    }

    fn ask_on(
        &self,
        stream: &mut UnixStream,
        request: &Request,
        patience: Duration,
    ) -> Result<Response, ClientError> {
        let broken = |error| ClientError::Broken { place: self.place.clone(), error };
        let body = serde_json::to_vec(&Spoken { version: VERSION, request })
            .map_err(|error| broken(error.into()))?;
        frame::send(stream, &body, patience).map_err(broken)?;
        match frame::receive(stream, frame::RESPONSE_LIMIT, patience).map_err(broken)? {
            Received::Message(body) => serde_json::from_slice(&body).map_err(|error| broken(error.into())),
            Received::End => Err(broken(io::ErrorKind::UnexpectedEof.into())),
            Received::TooLong(_) => Err(broken(io::ErrorKind::InvalidData.into())),
        }
    }

    /// All virtual services, or the one asked for.
    ///
    /// # Errors
    /// No answer, or a refusal.
    pub fn services(&self, service: Option<ServiceId>) -> Result<Listing, ClientError> {
        let mut all = Listing { services: Vec::new(), table_size: 0 };
        let mut after = None;
        loop {
            match self.ask(&Request::Services { service, after })? {
                Response::Services { services, next, table_size } => {
                    all.services.extend(services);
                    all.table_size = table_size;
                    after = next;
                }
                other => return Err(self.unexpected(other)),
            }
            if after.is_none() {
                return Ok(all);
            }
        }
    }

    /// Calls `each` with every connection, in table order.
    ///
    /// # Errors
    /// No answer, or a refusal.
    pub fn connections(&self, mut each: impl FnMut(&ConnectionEntry)) -> Result<(), ClientError> {
        let mut after = None;
        loop {
            match self.ask(&Request::Connections { after })? {
                Response::Connections { connections, next } => {
                    connections.iter().for_each(&mut each);
                    after = next;
                }
                other => return Err(self.unexpected(other)),
            }
            if after.is_none() {
                return Ok(());
            }
        }
    }

    /// The error that an answer of the wrong kind is.
    pub fn unexpected(&self, response: Response) -> ClientError {
        match response {
            Response::Refused(refusal) => ClientError::Refused(refusal),
            _ => ClientError::Broken { place: self.place.clone(), error: io::ErrorKind::InvalidData.into() },
        }
    }

    fn connect(&self) -> Result<UnixStream, ClientError> {
        let own = nix::unistd::geteuid();
        let stream = socket::connect(&self.place).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => ClientError::NotRoot,
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => match &self.place {
                // As ipvsadm says before it looks for anything.
                SocketPlace::Namespace if !own.is_root() => ClientError::NotRoot,
                place => ClientError::NoDirector(place.clone()),
            },
            _ => ClientError::Broken { place: self.place.clone(), error },
        })?;
        match socket::peer(&stream) {
            Some(listener) if listener == own => Ok(stream),
            Some(listener) if listener.is_root() => Err(ClientError::NotRoot),
            _ => Err(ClientError::Impostor(self.place.clone())),
        }
    }
}
