//! A table in a `memfd`: it outlives the process for as long as somebody keeps the descriptor.
//!
//! The file is as long as the table at its greatest extent, and takes memory only where something was written. It is
//! sealed against changes of its size, so that no access to the mapping can fault.
#![allow(unsafe_code, reason = "maps shared memory and views it as arrays of atomics")]

use super::Storage;
use crate::layout::{Bucket, Cold, Geometry, Header, MAGIC, Narrow, Record, VERSION, Wide};
use crate::sync::Relaxed;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::ptr::NonNull;

/// Why a table could not be made or mapped.
#[derive(Debug, thiserror::Error)]
pub enum MemfdError {
    /// The kernel refused.
    #[error(
        "cannot {what} for the connection table of {bytes} bytes: {error}; lower the connection limits or free memory"
    )]
    Refused {
        /// What was tried.
        what: &'static str,
        /// Size of the table at its greatest extent.
        bytes: usize,
        /// The kernel's answer.
        error: io::Error,
    },
    /// What the descriptor refers to is no connection table.
    #[error("the descriptor holds no connection table: {0}; start with a new one")]
    NotATable(&'static str),
    /// A table of another version of uvs.
    #[error(
        "the connection table has layout version {found}, this program reads version {VERSION}; start with a new one"
    )]
    OtherVersion {
        /// The version found.
        found: u32,
    },
    /// The size of the file is not what the table's limits ask for.
    #[error(
        "the connection table's file has {found} bytes where its limits need {needed}; start with a new one"
    )]
    WrongSize {
        /// Bytes the file has.
        found: u64,
        /// Bytes the limits in its header need.
        needed: usize,
    },
}

/// Where the arrays begin, in bytes from the start of the file; each on a page of its own.
#[derive(Clone, Copy, Debug)]
struct Offsets {
    records: usize,
    buckets: usize,
    narrow: usize,
    cold: usize,
    wide: usize,
    end: usize,
}

const PAGE: usize = 4096;

impl Offsets {
    fn of(geometry: &Geometry) -> Self {
        let after = |start: usize, length: usize| (start + length).next_multiple_of(PAGE);
        let records = after(0, size_of::<Header>());
        let buckets = after(records, geometry.destinations as usize * size_of::<Record>());
        let narrow = after(buckets, geometry.buckets() * size_of::<Bucket>());
        let cold = after(narrow, geometry.narrow as usize * size_of::<Narrow>());
        let wide = after(cold, geometry.narrow as usize * size_of::<Cold>());
        let end = after(wide, geometry.wide as usize * size_of::<Wide>());
        Offsets { records, buckets, narrow, cold, wide, end }
    }
}

/// A table in shared memory.
#[derive(Debug)]
pub struct Memfd {
    file: File,
    base: NonNull<u8>,
    length: usize,
    arrays: Arrays,
}

/// The arrays of a mapping, found once: every packet reads some of them.
#[derive(Debug)]
struct Arrays {
    records: NonNull<[Record]>,
    buckets: NonNull<[Bucket]>,
    narrow: NonNull<[Narrow]>,
    cold: NonNull<[Cold]>,
    wide: NonNull<[Wide]>,
}

impl Arrays {
    /// The arrays in a mapping of `offsets.end` bytes at `base`.
    fn of(base: NonNull<u8>, offsets: &Offsets, geometry: &Geometry) -> Self {
        Arrays {
            records: array(base, offsets.records, geometry.destinations as usize),
            buckets: array(base, offsets.buckets, geometry.buckets()),
            narrow: array(base, offsets.narrow, geometry.narrow as usize),
            cold: array(base, offsets.cold, geometry.narrow as usize),
            wide: array(base, offsets.wide, geometry.wide as usize),
        }
    }
}

/// `length` values of `T` from byte `offset` of the mapping on.
fn array<T>(base: NonNull<u8>, offset: usize, length: usize) -> NonNull<[T]> {
    // SAFETY: by `Offsets::of` the array lies inside the mapping.
    let start = unsafe { base.add(offset) };
    NonNull::slice_from_raw_parts(start.cast::<T>(), length)
}

// SAFETY: the mapping belongs to this value alone and is only ever viewed as atomics.
unsafe impl Send for Memfd {}
// SAFETY: as above: all access through shared references is atomic.
unsafe impl Sync for Memfd {}

impl Memfd {
    /// An empty table's memory.
    pub(crate) fn create(geometry: Geometry) -> Result<Self, MemfdError> {
        let offsets = Offsets::of(&geometry);
        let bytes = offsets.end;
        let refused = |what, error| MemfdError::Refused { what, bytes, error };
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
        // SAFETY: the name is a string that ends in NUL.
        let fd = unsafe { libc::memfd_create(c"uvs-connections".as_ptr(), flags) };
        if fd < 0 {
            return Err(refused("create a memory file", io::Error::last_os_error()));
        }
        // SAFETY: the descriptor was just made and nobody else has it.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(bytes as u64).map_err(|error| refused("size the memory file", error))?;
        // SAFETY: a plain system call on our own descriptor.
        let sealed = unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW) };
        if sealed < 0 {
            return Err(refused("seal the memory file", io::Error::last_os_error()));
        }
        Self::map(file, geometry, offsets)
    }

    /// Maps a table that another process, or this one earlier, made.
    pub(crate) fn open(fd: OwnedFd) -> Result<Self, MemfdError> {
        let file = File::from(fd);
        // SAFETY: a plain system call on our own descriptor.
        let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
        if seals < 0 || seals & libc::F_SEAL_SHRINK == 0 {
            return Err(MemfdError::NotATable("it is not a sealed memory file"));
        }
        let found = file.metadata().map_err(|_| MemfdError::NotATable("its size cannot be read"))?.len();
        if found < PAGE as u64 {
            return Err(MemfdError::NotATable("it is too short for a header"));
        }
        let geometry = Self::read_geometry(file.try_clone().ok(), found)?;
        let offsets = Offsets::of(&geometry);
        if found != offsets.end as u64 {
            return Err(MemfdError::WrongSize { found, needed: offsets.end });
        }
        Self::map(file, geometry, offsets)
    }

    /// Maps the header alone to learn how long the arrays are.
    fn read_geometry(file: Option<File>, length: u64) -> Result<Geometry, MemfdError> {
        let file = file.ok_or(MemfdError::NotATable("its descriptor cannot be duplicated"))?;
        let nothing = Geometry { narrow: 0, wide: 0, destinations: 0, max_level: 0 };
        let header_only = Offsets { records: 0, buckets: 0, narrow: 0, cold: 0, wide: 0, end: PAGE };
        let first_page = Self::map(file, nothing, header_only)?;
        let header = first_page.header();
        if header.magic.load(Relaxed) != MAGIC {
            return Err(MemfdError::NotATable("it does not begin as one"));
        }
        let found = header.version.load(Relaxed);
        if found != VERSION {
            return Err(MemfdError::OtherVersion { found });
        }
        let limits = header.limits();
        // Bounds every later computation of sizes.
        if u64::from(limits.connections4) + u64::from(limits.connections6) > length
            || u64::from(limits.destinations) > length
            || u64::from(limits.first_buckets) > length
        {
            return Err(MemfdError::NotATable("its limits are beyond its size"));
        }
        Ok(Geometry::of(&limits))
    }

    fn map(file: File, geometry: Geometry, offsets: Offsets) -> Result<Self, MemfdError> {
        let bytes = offsets.end;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at a place of the kernel's choice touches no other memory.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, flags, file.as_raw_fd(), 0) };
        if base == libc::MAP_FAILED {
            return Err(MemfdError::Refused {
                what: "map the memory file",
                bytes,
                error: io::Error::last_os_error(),
            });
        }
        let base =
            NonNull::new(base.cast::<u8>()).ok_or(MemfdError::NotATable("it was mapped at address zero"))?;
        // Huge pages where the machine gives them to shared memory; without them all works the same.
        // SAFETY: advice about exactly the range just mapped changes nothing in it.
        unsafe { libc::madvise(base.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
        let arrays = Arrays::of(base, &offsets, &geometry);
        Ok(Memfd { file, base, length: bytes, arrays })
    }

    /// The descriptor to keep, or to hand to the next process.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// One of [`Arrays`].
    ///
    /// Sound for those of this very mapping alone: private to this file.
    #[inline]
    fn view<T>(&self, array: NonNull<[T]>) -> &[T] {
        // SAFETY: the mapping lives as long as `self` and cannot shrink (sealed); the array lies inside it by `Offsets::of`,
        // at a multiple of the page size, hence aligned; `T` consists of atomics, for which every bit pattern is valid and
        // which may be changed by others at any time.
        unsafe { array.as_ref() }
    }
}

impl Drop for Memfd {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with this length, and no reference into it outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.length) };
    }
}

impl Storage for Memfd {
    #[inline]
    fn header(&self) -> &Header {
        // SAFETY: the file is at least a page long and begins with the header, all atomics.
        unsafe { self.base.cast::<Header>().as_ref() }
    }

    #[inline]
    fn buckets(&self) -> &[Bucket] {
        self.view(self.arrays.buckets)
    }

    #[inline]
    fn narrow(&self) -> &[Narrow] {
        self.view(self.arrays.narrow)
    }

    #[inline]
    fn cold(&self) -> &[Cold] {
        self.view(self.arrays.cold)
    }

    #[inline]
    fn wide(&self) -> &[Wide] {
        self.view(self.arrays.wide)
    }

    fn records(&self) -> &[Record] {
        self.view(self.arrays.records)
    }

    fn resident_bytes(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.blocks() * 512)
    }
}
