//! What can go wrong while a lab is built or used.

use std::io;

/// A step that failed, and why.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The process may not make network namespaces.
    #[error("making network namespaces needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN): run it with sudo")]
    Privilege,
    /// The kernel knows no device of this kind.
    #[error(
        "the kernel has no {0} devices: load the module (modprobe {0}) or use a kernel that has it built in"
    )]
    NoSuchKind(&'static str),
    /// A name is taken.
    #[error("{0} exists already: remove it first")]
    Exists(String),
    /// A system call failed.
    #[error("cannot {what}: {source}")]
    System {
        /// What was attempted, to read after "cannot".
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Something did not become true in time.
    #[error("waited {seconds} s in vain for {what}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long, in seconds.
        seconds: u64,
    },
    /// A peer answered something else than it should.
    #[error("{0}")]
    Protocol(String),
}

impl Error {
    /// For `map_err`: the system call made to `what` failed.
    pub fn when<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Error {
        move |source| Error::System { what: what.into(), source: source.into() }
    }
}
