//! uvs — Linux Virtual Server as a userspace program.
//!
//! This crate is a thin face over the rooms of the workspace; it owns the binary, the benchmarks and the end-to-end tests.

pub use uvs_conntrack as conntrack;
pub use uvs_control as control;
pub use uvs_engine as engine;
pub use uvs_lab as lab;
pub use uvs_schedulers as schedulers;
