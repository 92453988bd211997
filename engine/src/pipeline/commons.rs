//! What all workers' pipelines share besides the connection table.

use super::fragments::Fragments;

/// What all workers' pipelines share besides the connection table and the configuration.
#[derive(Debug, Default)]
pub struct Commons {
    /// The datagrams of which fragments are on their way.
    pub(super) fragments: Fragments,
}
