//! The lock-free connection table, protocol state machines and timeouts.
