//! The system calls of AF_XDP, each wrapped once.
#![expect(unsafe_code, reason = "system calls and mappings; see the SAFETY lines")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

/// `XDP_MAX_TX_SKB_BUDGET`, not yet in libc: frames one `sendto` may send in copy mode.
const MAX_TX_BUDGET: i32 = 9;

/// `AF_XDP` as an address carries it.
const FAMILY: u16 = 44;

/// A shared mapping, unmapped when dropped.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping is memory that belongs to the process, not to a thread.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `fd` from `offset` on, to read and write.
    pub(super) fn new(fd: &OwnedFd, len: usize, offset: i64) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let base =
            unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, fd.as_raw_fd(), offset) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Mapping { base, len })
    }

    /// A pointer to `count` values of `T` at `offset`, checked to lie within the mapping and to be aligned.
    pub(super) fn at<T>(&self, offset: u64, count: usize) -> io::Result<NonNull<T>> {
        let offset = usize::try_from(offset).map_err(|_| io::ErrorKind::InvalidData)?;
        let end = size_of::<T>().checked_mul(count).and_then(|bytes| bytes.checked_add(offset));
        if end.is_none_or(|end| end > self.len) || !offset.is_multiple_of(align_of::<T>()) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        // SAFETY: `offset` was just checked to lie within the mapping.
        Ok(unsafe { self.base.add(offset) }.cast())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length; pointers from `at` live beside the mapping in one struct.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// The size of a `T`, as socket calls count.
#[expect(clippy::cast_possible_truncation, reason = "a few dozen bytes")]
const fn size<T>() -> libc::socklen_t {
    size_of::<T>() as libc::socklen_t
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A new AF_XDP socket.
pub(super) fn socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets one of the socket's `SOL_XDP` options.
fn set<T>(fd: &OwnedFd, option: i32, value: &T) -> io::Result<()> {
    let len = size::<T>();
    // SAFETY: the pointer and the length describe `value`, which the kernel only reads.
    check(unsafe {
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_XDP, option, (&raw const *value).cast(), len)
    })?;
    Ok(())
}

/// Reads one of the socket's `SOL_XDP` options into `value`, which stays as it is where the kernel writes less.
fn get<T>(fd: &impl AsFd, option: i32, value: &mut T) -> io::Result<()> {
    let mut len = size::<T>();
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: the pointer and the length describe `value`, of which every bit pattern is valid (integers only).
    check(unsafe { libc::getsockopt(fd, libc::SOL_XDP, option, (&raw mut *value).cast(), &raw mut len) })?;
    Ok(())
}

/// Registers `len` bytes at `address` as the socket's frames.
pub(super) fn register(fd: &OwnedFd, address: u64, len: usize, chunk: u32) -> io::Result<()> {
    let registration = libc::xdp_umem_reg {
        addr: address,
        len: len as u64,
        chunk_size: chunk,
        headroom: 0,
        flags: 0,
        tx_metadata_len: 0,
    };
    set(fd, libc::XDP_UMEM_REG, &registration)
}

/// Entries of the four rings; powers of two.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) receive: u32,
    pub(super) transmit: u32,
    pub(super) fill: u32,
    pub(super) completion: u32,
}

/// Makes the rings and says where their parts lie.
pub(super) fn make_rings(fd: &OwnedFd, sizes: Sizes) -> io::Result<libc::xdp_mmap_offsets> {
    set(fd, libc::XDP_UMEM_FILL_RING, &sizes.fill)?;
    set(fd, libc::XDP_UMEM_COMPLETION_RING, &sizes.completion)?;
    set(fd, libc::XDP_RX_RING, &sizes.receive)?;
    set(fd, libc::XDP_TX_RING, &sizes.transmit)?;
    let none = || libc::xdp_ring_offset { producer: 0, consumer: 0, desc: 0, flags: 0 };
    let mut offsets = libc::xdp_mmap_offsets { rx: none(), tx: none(), fr: none(), cr: none() };
    get(fd, libc::XDP_MMAP_OFFSETS, &mut offsets)?;
    Ok(offsets)
}

/// Lets one `sendto` send up to `frames` in copy mode. Kernels before 6.18 keep to 32; nothing depends on it.
pub(super) fn widen_transmit_budget(fd: &OwnedFd, frames: u32) {
    let _older_kernels_refuse = set(fd, MAX_TX_BUDGET, &frames);
}

/// Binds the socket to a queue.
pub(super) fn bind(fd: &OwnedFd, ifindex: u32, queue: u32, flags: u16) -> io::Result<()> {
    let address = libc::sockaddr_xdp {
        sxdp_family: FAMILY,
        sxdp_flags: flags,
        sxdp_ifindex: ifindex,
        sxdp_queue_id: queue,
        sxdp_shared_umem_fd: 0,
    };
    let len = size::<libc::sockaddr_xdp>();
    // SAFETY: the pointer and the length describe `address`, which the kernel only reads.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) })?;
    Ok(())
}

/// Whether the kernel runs the bound socket without copying.
pub(super) fn is_zero_copy(fd: &OwnedFd) -> io::Result<bool> {
    let mut flags = 0_u32;
    get(fd, libc::XDP_OPTIONS, &mut flags)?;
    Ok(flags & libc::XDP_OPTIONS_ZEROCOPY != 0)
}

/// Asks the kernel to send what the transmit ring holds.
pub(super) fn kick_transmit(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: no data, no address.
    let sent =
        unsafe { libc::sendto(fd.as_raw_fd(), std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Asks the kernel to look at the fill ring.
pub(super) fn kick_receive(fd: &OwnedFd) -> io::Result<()> {
    let (fd, null) = (fd.as_raw_fd(), std::ptr::null_mut());
    // SAFETY: no buffer, no address.
    let got = unsafe {
        libc::recvfrom(fd, null, 0, libc::MSG_DONTWAIT, std::ptr::null_mut(), std::ptr::null_mut())
    };
    if got < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What the kernel counts for one socket (`XDP_STATISTICS`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Frames dropped on receive for another reason than a full ring: too long for a chunk, mostly.
    pub dropped: u64,
    /// Entries of the fill ring the kernel refused.
    pub invalid_fill: u64,
    /// Entries of the transmit ring the kernel refused.
    pub invalid_transmit: u64,
    /// Frames dropped because the receive ring was full: the worker was too slow.
    pub receive_full: u64,
    /// Times the kernel wanted a chunk to receive into and there was none.
    pub fill_empty: u64,
    /// Times the kernel wanted to send and there was nothing.
    pub transmit_empty: u64,
}

/// Reads what the kernel counted.
pub(super) fn statistics(fd: &impl AsFd) -> io::Result<Statistics> {
    let mut raw = libc::xdp_statistics {
        rx_dropped: 0,
        rx_invalid_descs: 0,
        tx_invalid_descs: 0,
        rx_ring_full: 0,
        rx_fill_ring_empty_descs: 0,
        tx_ring_empty_descs: 0,
    };
    get(fd, libc::XDP_STATISTICS, &mut raw)?;
    Ok(Statistics {
        dropped: raw.rx_dropped,
        invalid_fill: raw.rx_invalid_descs,
        invalid_transmit: raw.tx_invalid_descs,
        receive_full: raw.rx_ring_full,
        fill_empty: raw.rx_fill_ring_empty_descs,
        transmit_empty: raw.tx_ring_empty_descs,
    })
}
