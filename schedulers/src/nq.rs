//! nq, never queue: the first destination without active connections, or else what sed chooses.

use crate::least::{Least, Measure};
use crate::pool::Destination;
use crate::sed::ExpectedDelay;

pub(crate) type NeverQueue = Least<Queue>;

#[derive(Debug, Default)]
pub(crate) struct Queue;

impl Measure for Queue {
    #[inline]
    fn of(destination: &Destination) -> Option<u128> {
        if destination.active == 0 { Some(0) } else { ExpectedDelay::of(destination) }
    }
}
