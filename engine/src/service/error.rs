//! Why a service refuses a command.

use crate::service::ServiceKey;
use std::net::SocketAddr;

/// What is wrong with a command on services or real servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServiceError {
    /// There is a service with this address, port and protocol.
    #[error("the virtual service {0} exists already: edit it, or delete it first")]
    ServiceExists(ServiceKey),
    /// There is none.
    #[error("there is no virtual service {0}: add it first")]
    NoSuchService(ServiceKey),
    /// The service has this real server.
    #[error("{0} is a real server of this service already: edit it, or delete it first")]
    DestinationExists(SocketAddr),
    /// It has not.
    #[error("{0} is not a real server of this service: add it first")]
    NoSuchDestination(SocketAddr),
    /// The weight is more than the kernel's signed integer holds.
    #[error("a weight of {0} is out of range: use at most 2147483647")]
    WeightOutOfRange(u32),
    /// The lower threshold is above the upper one.
    #[error("the lower threshold {lower} is above the upper threshold {upper}: lower it or raise the other")]
    ThresholdsOutOfRange {
        /// Connections at which the real server takes no more.
        upper: u32,
        /// Connections below which it takes them again.
        lower: u32,
    },
    /// Not the address of one host.
    #[error("{0} is not a unicast address that a real server can have")]
    NotUnicast(SocketAddr),
    /// IPv4 and IPv6 do not go together with this forwarding method.
    #[error(
        "the real server {0} is of the other IP version than its service, which this forwarding method cannot bridge"
    )]
    FamilyMismatch(SocketAddr),
    /// Every place for a service is taken.
    #[error("no room for another virtual service: delete one first")]
    TooManyServices,
    /// The table of destinations, or the service's list, is full.
    #[error("no room for another real server: raise the limit of destinations")]
    TooManyDestinations,
}
