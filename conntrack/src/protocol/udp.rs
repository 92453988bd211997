//! UDP: one state, never counted as active. A reply assures the controlling template.

/// The only state.
pub const NORMAL: u8 = 0;
