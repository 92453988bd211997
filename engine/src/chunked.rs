//! An array of shared cells that takes memory as its indices come into use.

use std::sync::OnceLock;

/// Cells made at a time.
const CHUNK: usize = 256;

/// Up to a fixed number of cells. Reading one costs an index more than an array does; a cell, once made, stays.
#[derive(Debug)]
pub(crate) struct Chunked<T> {
    chunks: Box<[OnceLock<Box<[T; CHUNK]>>]>,
}

impl<T: Default> Chunked<T> {
    /// Room for `capacity` cells, rounded up; none is made yet.
    pub(crate) fn new(capacity: usize) -> Self {
        Chunked { chunks: (0..capacity.div_ceil(CHUNK)).map(|_| OnceLock::new()).collect() }
    }

    /// The cell, if it was made.
    #[inline]
    pub(crate) fn get(&self, index: usize) -> Option<&T> {
        Some(&self.chunks.get(index / CHUNK)?.get()?[index % CHUNK])
    }

    /// The cell, made (with its chunk) when it was not. `None` beyond the capacity.
    pub(crate) fn make(&self, index: usize) -> Option<&T> {
        let chunk = self.chunks.get(index / CHUNK)?;
        Some(&chunk.get_or_init(|| Box::new(std::array::from_fn(|_| T::default())))[index % CHUNK])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    #[test]
    fn cells_come_with_use_and_stay() {
        let cells = Chunked::<AtomicU32>::new(2 * CHUNK);
        assert!(cells.get(CHUNK).is_none());
        cells.make(CHUNK).unwrap().store(7, Relaxed);
        assert!(cells.get(CHUNK - 1).is_none(), "another chunk's");
        assert_eq!(cells.get(CHUNK).unwrap().load(Relaxed), 7);
        assert_eq!(cells.make(CHUNK).unwrap().load(Relaxed), 7);
        assert!(cells.make(2 * CHUNK).is_none());
    }
}
