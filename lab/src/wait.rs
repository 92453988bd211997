//! Waiting for a condition, never for a number of milliseconds.

use crate::{Error, Result};
use std::time::{Duration, Instant};

/// How often a condition is looked at.
const PAUSE: Duration = Duration::from_millis(5);

/// Returns as soon as `condition` holds; an error naming `what` when it does not within `limit`.
pub fn until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
    until_some(what, limit, || condition().then_some(()))
}

/// Returns the first thing that `look` finds; an error naming `what` when it finds nothing within `limit`.
pub fn until_some<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if Instant::now() >= end {
            return Err(Error::Timeout { what: what.into(), seconds: limit.as_secs() });
        }
        std::thread::sleep(PAUSE);
    }
}
