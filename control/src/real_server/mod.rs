//! A real server's side of a service: what direct routing and tunnels need there, put in place and taken away again.
//!
//! Each change is written to a journal before it is made, with what there was before, so that `stop` restores exactly that,
//! also when `start`, `stop` or the decapsulator was killed in the middle. What several virtual addresses need together stays
//! until the last of them is stopped.

pub mod decapsulate;
mod journal;
mod process;
mod state;
mod sysctl;

use crate::netlink::NetlinkError;
use journal::{Journal, Journals, Step};
use serde::{Deserialize, Serialize};
use state::Want;
use std::net::IpAddr;
use std::{fmt, io};
use uvs_engine::service::is_one_host;

/// How a director's packets reach this real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Direct routing: packets for the virtual address come as they are.
    Direct,
    /// A tunnel.
    Tunnel(Encapsulation),
}

/// What a tunnel puts around packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encapsulation {
    /// An IP header.
    Ipip,
    /// An IP and a GRE header.
    Gre,
    /// An IP, a UDP and a GUE header.
    Gue {
        /// The UDP port.
        port: u16,
    },
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Method::Direct => f.write_str("dr"),
            Method::Tunnel(encapsulation) => write!(f, "tun ({encapsulation})"),
        }
    }
}

impl fmt::Display for Encapsulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Encapsulation::Ipip => f.write_str("ipip"),
            Encapsulation::Gre => f.write_str("gre"),
            Encapsulation::Gue { port } => write!(f, "gue at UDP port {port}"),
        }
    }
}

/// Why a real server could not be set up or restored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused something.
    #[error("cannot {doing}: {source}{}", hint(source))]
    Os {
        /// What was tried.
        doing: String,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel refused a change of devices or addresses.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The address is set up for another method.
    #[error("{vip} is set up here by {method}: `uvs real-server stop --vip {vip}` first")]
    OtherMethod {
        /// The virtual address.
        vip: IpAddr,
        /// Its method.
        method: Method,
    },
    /// The address can be found by ARP or neighbour discovery.
    #[error(
        "{vip} is an address of {device}, where this host answers for it and takes it from the director: \
         take it off with `ip address del`, `start` puts it on lo"
    )]
    Answered {
        /// The virtual address.
        vip: IpAddr,
        /// The device it is on.
        device: String,
    },
    /// No service can have the address.
    #[error("{0} cannot be a virtual address: it is not the unicast address of one host")]
    NotUnicast(IpAddr),
    /// A journal does not say what it should.
    #[error(
        "the journal {path} is damaged ({reason}): what it stands for has to be restored by hand, then delete it"
    )]
    Damaged {
        /// The journal's file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The process that takes packets out of tunnels did not start.
    #[error("the decapsulator did not start: {0}")]
    Decapsulator(String),
}

impl Error {
    fn os(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Error::Os { doing, source }
    }
}

fn hint(source: &io::Error) -> &'static str {
    if source.kind() == io::ErrorKind::PermissionDenied { "; run it as root" } else { "" }
}

/// Sets this host (this network namespace) up as a real server of `vip`. Doing it again mends what is missing. Returns what was
/// changed, in sentences.
///
/// # Errors
/// When something cannot be put in place; then nothing of a first start stays.
pub fn start(vip: IpAddr, method: Method) -> Result<Vec<String>, Error> {
    if !is_one_host(vip) || vip.is_loopback() || state::is_broadcast(vip)? {
        return Err(Error::NotUnicast(vip));
    }
    if let Some(device) = state::device_with(vip)?.into_iter().find(|device| device != state::LOOPBACK) {
        return Err(Error::Answered { vip, device });
    }
    let journals = Journals::open()?;
    let (mut journal, first) = match journals.load(vip)? {
        Some(journal) if journal.method != method => {
            return Err(Error::OtherMethod { vip, method: journal.method });
        }
        Some(journal) => (journal, false),
        None => (Journal { vip, method, steps: Vec::new() }, true),
    };
    journals.save(&journal)?;
    let mut said = Vec::new();
    for want in state::wants(vip, method) {
        match want.establish(&journals, &mut journal) {
            Ok(change) => said.extend(change),
            Err(error) => {
                if first {
                    undo_all(&journals, journal)?;
                }
                return Err(error);
            }
        }
    }
    Ok(said)
}

/// Undoes what [`start`] did for `vip` and is not needed by another virtual address. Returns what was changed, in sentences,
/// and what was left because somebody else has changed it since. Nothing, when nothing was set up.
///
/// # Errors
/// When something cannot be restored; the journal stays, and doing it again goes on from there.
pub fn stop(vip: IpAddr) -> Result<Vec<String>, Error> {
    let journals = Journals::open()?;
    match journals.load(vip)? {
        Some(journal) => undo_all(&journals, journal),
        None => Ok(Vec::new()),
    }
}

fn undo_all(journals: &Journals, mut journal: Journal) -> Result<Vec<String>, Error> {
    let mut others = journals.all()?;
    others.retain(|other| other.vip != journal.vip);
    let mut said = Vec::new();
    while let Some(step) = journal.steps.pop() {
        let heir = others
            .iter_mut()
            .find(|other| state::wants(other.vip, other.method).iter().any(|want| want.is_met_by(&step)));
        match heir {
            Some(heir) => {
                if !heir.steps.iter().any(|own| own.concerns_the_same(&step)) {
                    heir.steps.insert(0, step);
                    journals.save(heir)?;
                }
            }
            None => said.extend(step.undo()?),
        }
        journals.save(&journal)?;
    }
    journals.remove(journal.vip)?;
    Ok(said)
}

/// A virtual address that this host was set up for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The address.
    pub vip: IpAddr,
    /// How packets for it come.
    pub method: Method,
    /// What it needs, in words, and whether that is so.
    pub needs: Vec<(String, bool)>,
    /// The process that takes its packets out of their tunnel.
    pub decapsulator: Option<u32>,
}

/// What this host (this network namespace) is set up for.
///
/// # Errors
/// When a journal cannot be read.
pub fn status() -> Result<Vec<Standing>, Error> {
    let journals = Journals::open()?;
    let all = journals.all()?;
    let standing = all.iter().map(|journal| {
        let wants = state::wants(journal.vip, journal.method);
        let needs = wants.iter().map(|want| Ok((want.to_string(), want.is_met(&all)?)));
        let decapsulator = wants.iter().find_map(|want| match want {
            Want::Decapsulator(kind) => journal::decapsulator(&all, *kind).map(|process| process.pid),
            _ => None,
        });
        Ok(Standing {
            vip: journal.vip,
            method: journal.method,
            needs: needs.collect::<Result<_, Error>>()?,
            decapsulator,
        })
    });
    standing.collect()
}

impl Step {
    /// Restores what there was before this step. Says what was changed or left; nothing when it was undone already.
    fn undo(&self) -> Result<Option<String>, Error> {
        match self {
            Step::Sysctl { key, old, new } => sysctl::restore(key, old, new),
            Step::Address { device, address } => state::remove_address(device, *address),
            Step::Up { device } => state::take_down(device),
            Step::Decapsulator { process: None, .. } => Ok(None),
            Step::Decapsulator { kind, process: Some(process) } => {
                let ended = process.end().map_err(Error::os(format!("end process {}", process.pid)))?;
                Ok(ended.then(|| format!("the decapsulator for {kind} has ended")))
            }
        }
    }
}
