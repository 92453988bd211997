//! ovf, weighted overflow: the destination with the greatest weight until it has more active connections than that, then
//! the next one.

use crate::fo::Inferiority;
use crate::least::{Least, Measure};
use crate::pool::Destination;

pub(crate) type Overflow = Least<InferiorityUntilFull>;

#[derive(Debug, Default)]
pub(crate) struct InferiorityUntilFull;

impl Measure for InferiorityUntilFull {
    #[inline]
    fn of(destination: &Destination) -> Option<u128> {
        if destination.active <= destination.weight { Inferiority::of(destination) } else { None }
    }
}
