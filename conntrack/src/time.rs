//! Time as the table counts it.

/// An instant: CLOCK_MONOTONIC in units of 10 ms, wrapping after 497 days. It is read once per batch by whoever owns the
/// clock and passed in; nothing in this crate reads a clock.
///
/// Two ticks compare rightly while they are less than 248 days apart; timeouts end at [`MAX_TIMEOUT`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tick(pub u32);

/// Ticks in one second.
pub const TICKS_PER_SECOND: u32 = 100;

/// The longest timeout of a connection in seconds: 31 days, as `ipvsadm` limits it.
pub const MAX_TIMEOUT: u32 = 31 * 24 * 3600;

impl Tick {
    /// The tick of a CLOCK_MONOTONIC reading.
    #[must_use]
    pub fn of(since_boot: std::time::Duration) -> Self {
        let wrapped = (since_boot.as_millis() / 10) & u128::from(u32::MAX);
        Tick(u32::try_from(wrapped).unwrap_or(0))
    }

    /// The tick `seconds` later.
    #[inline]
    #[must_use]
    pub fn plus_seconds(self, seconds: u32) -> Self {
        Tick(self.0.wrapping_add(seconds.wrapping_mul(TICKS_PER_SECOND)))
    }

    /// Ticks from `earlier` to `self`; negative when `self` is before it.
    #[inline]
    #[must_use]
    pub fn since(self, earlier: Tick) -> i32 {
        self.0.wrapping_sub(earlier.0).cast_signed()
    }

    /// Whether `self` lies before `other`.
    #[inline]
    #[must_use]
    pub fn is_before(self, other: Tick) -> bool {
        self.since(other) < 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn order_survives_the_wrap() {
        let early = Tick(u32::MAX - 10);
        let late = early.plus_seconds(1);
        assert_eq!(late, Tick(89));
        assert!(early.is_before(late));
        assert!(!late.is_before(early));
        assert!(!late.is_before(late));
        assert_eq!(late.since(early), 100);
        assert!(early.is_before(early.plus_seconds(MAX_TIMEOUT)));
    }

    #[test]
    fn a_tick_is_ten_milliseconds() {
        assert_eq!(Tick::of(Duration::from_millis(12_349)), Tick(1_234));
        assert_eq!(Tick::of(Duration::from_millis(10 * ((1 << 32) + 7))), Tick(7));
    }
}
