//! A table in ordinary memory, for tests, checkers, benchmarks and replays.

use super::Storage;
use crate::layout::{Bucket, Cold, Geometry, Header, Narrow, Record, Wide};

/// A table in ordinary memory; it ends with the process.
#[derive(Debug)]
pub struct Heap {
    header: Header,
    buckets: Box<[Bucket]>,
    narrow: Box<[Narrow]>,
    cold: Box<[Cold]>,
    wide: Box<[Wide]>,
    records: Box<[Record]>,
}

fn zeroed<T: Default>(length: usize) -> Box<[T]> {
    std::iter::repeat_with(T::default).take(length).collect()
}

impl Heap {
    pub(crate) fn new(geometry: &Geometry) -> Self {
        Heap {
            header: Header::default(),
            buckets: zeroed(geometry.buckets()),
            narrow: zeroed(geometry.narrow as usize),
            cold: zeroed(geometry.narrow as usize),
            wide: zeroed(geometry.wide as usize),
            records: zeroed(geometry.destinations as usize),
        }
    }
}

impl Storage for Heap {
    #[inline]
    fn header(&self) -> &Header {
        &self.header
    }

    #[inline]
    fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    #[inline]
    fn narrow(&self) -> &[Narrow] {
        &self.narrow
    }

    fn cold(&self) -> &[Cold] {
        &self.cold
    }

    #[inline]
    fn wide(&self) -> &[Wide] {
        &self.wide
    }

    fn records(&self) -> &[Record] {
        &self.records
    }

    fn resident_bytes(&self) -> u64 {
        let sizes = [
            size_of::<Header>(),
            size_of_val(&*self.buckets),
            size_of_val(&*self.narrow),
            size_of_val(&*self.cold),
            size_of_val(&*self.wide),
            size_of_val(&*self.records),
        ];
        sizes.iter().map(|size| *size as u64).sum()
    }
}
