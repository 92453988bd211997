//! What the fuzz targets run; `engine/tests/corpus.rs` runs the same over the files of `corpus/`.

pub mod captures;
#[path = "../../engine/tests/director/mod.rs"]
pub mod director;
pub mod pipeline;
