//! The system calls of packet sockets, each wrapped once.
#![allow(unsafe_code)] // system calls and mappings; see the SAFETY lines

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

/// `struct virtio_net_hdr` in the machine's byte order: what goes before each frame.
pub(super) const VNET_HEADER: usize = 10;

/// Bytes of a block of the ring; slots do not cross blocks.
pub(super) const BLOCK: u32 = 1 << 16;

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The size of a `T`, as socket calls count.
#[allow(clippy::cast_possible_truncation)] // a few dozen bytes
const fn size<T>() -> libc::socklen_t {
    size_of::<T>() as libc::socklen_t
}

/// A new packet socket that receives nothing yet.
pub(super) fn socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set<T>(fd: &OwnedFd, level: i32, option: i32, value: &T) -> io::Result<()> {
    let (fd, len) = (fd.as_raw_fd(), size::<T>());
    // SAFETY: the pointer and the length describe `value`, which the kernel only reads.
    check(unsafe { libc::setsockopt(fd, level, option, (&raw const *value).cast(), len) })?;
    Ok(())
}

fn get<T>(fd: &impl AsFd, level: i32, option: i32, value: &mut T) -> io::Result<()> {
    let mut len = size::<T>();
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: the pointer and the length describe `value`, of which every bit pattern is valid (integers only).
    check(unsafe { libc::getsockopt(fd, level, option, (&raw mut *value).cast(), &raw mut len) })?;
    Ok(())
}

/// Makes frames come and go as they are wanted here: whole, with offload headers, not those this host sends itself, and
/// sent past the queueing discipline (and so past every filter on egress).
pub(super) fn shape(fd: &OwnedFd) -> io::Result<()> {
    const VERSION_2: i32 = 1;
    for (option, value) in [
        (libc::PACKET_VERSION, VERSION_2),
        (libc::PACKET_VNET_HDR, 1),
        (libc::PACKET_COPY_THRESH, 1),
        (libc::PACKET_IGNORE_OUTGOING, 1),
        (libc::PACKET_QDISC_BYPASS, 1),
    ] {
        set(fd, libc::SOL_PACKET, option, &value)?;
    }
    Ok(())
}

/// How many bytes of frames beyond the ring may wait on their way in, and of frames on their way out.
pub(super) fn widen(fd: &OwnedFd, receive: i32, send: i32) -> io::Result<()> {
    set(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &receive)?;
    set(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &send)
}

/// Makes the receive ring: `slots` of `slot` bytes, which divide a [`BLOCK`].
pub(super) fn make_ring(fd: &OwnedFd, slots: u32, slot: u32) -> io::Result<()> {
    let ring = libc::tpacket_req {
        tp_block_size: BLOCK,
        tp_block_nr: slots / (BLOCK / slot),
        tp_frame_size: slot,
        tp_frame_nr: slots,
    };
    set(fd, libc::SOL_PACKET, libc::PACKET_RX_RING, &ring)
}

fn address(ifindex: i32) -> libc::sockaddr_ll {
    // SAFETY: all zeroes is an address of integers and an array of them.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).unwrap_or(0);
    #[allow(clippy::cast_possible_truncation)] // 3
    let every_protocol = libc::ETH_P_ALL as u16;
    address.sll_protocol = every_protocol.to_be();
    address.sll_ifindex = ifindex;
    address
}

/// From now on the socket gets the device's frames.
pub(super) fn bind(fd: &OwnedFd, ifindex: u32) -> io::Result<()> {
    let address = address(ifindex.cast_signed());
    let len = size::<libc::sockaddr_ll>();
    // SAFETY: the pointer and the length describe `address`, which the kernel only reads.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) })?;
    Ok(())
}

/// The index of the device the socket is bound to; -1 when that is gone.
pub(super) fn bound_to(fd: &OwnedFd) -> io::Result<i32> {
    let mut address = address(0);
    let mut len = size::<libc::sockaddr_ll>();
    // SAFETY: the pointer and the length describe `address`, of which every bit pattern is valid.
    check(unsafe { libc::getsockname(fd.as_raw_fd(), (&raw mut address).cast(), &raw mut len) })?;
    Ok(address.sll_ifindex)
}

/// Reads and clears the socket's error: a device that went down leaves one.
pub(super) fn clear_error(fd: &OwnedFd) -> io::Result<()> {
    let mut error = 0_i32;
    get(fd, libc::SOL_SOCKET, libc::SO_ERROR, &mut error)
}

/// Has the sockets of one group share the device's frames by flow. Without a group a new one is made. Returns it.
pub(super) fn share(fd: &OwnedFd, group: Option<u16>) -> io::Result<u16> {
    const BY_FLOW: u32 = libc::PACKET_FANOUT_HASH | libc::PACKET_FANOUT_FLAG_ROLLOVER;
    let kind = if group.is_some() { BY_FLOW } else { BY_FLOW | libc::PACKET_FANOUT_FLAG_UNIQUEID };
    set(fd, libc::SOL_PACKET, libc::PACKET_FANOUT, &(kind << 16 | u32::from(group.unwrap_or(0))))?;
    let mut joined = 0_u32;
    get(fd, libc::SOL_PACKET, libc::PACKET_FANOUT, &mut joined)?;
    #[allow(clippy::cast_possible_truncation)] // the group is the low half
    Ok(joined as u16)
}

/// Frames dropped because ring and buffer were full, since this was last asked.
pub(super) fn take_drops(fd: &impl AsFd) -> io::Result<u32> {
    let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    get(fd, libc::SOL_PACKET, libc::PACKET_STATISTICS, &mut statistics)?;
    Ok(statistics.tp_drops)
}

/// Reads the next frame that was too long for a slot into `buffers`, its offload header into `header`. Returns its
/// length, or `None` when there is none or it was longer than the buffers.
pub(super) fn receive_long(
    fd: &OwnedFd,
    header: &mut [u8; VNET_HEADER],
    buffers: &mut [&mut [u8]],
) -> Option<usize> {
    let mut slices: arrayvec::ArrayVec<libc::iovec, { crate::link::MAX_PARTS + 1 }> =
        [libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: header.len() }].into_iter().collect();
    for buffer in buffers {
        slices.push(libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() });
    }
    // SAFETY: all zeroes is a message header without pointers.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = slices.as_mut_ptr();
    message.msg_iovlen = slices.len() as _;
    // SAFETY: the slices describe `header` and `buffers`, which are borrowed mutably for the call.
    let got = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let got = usize::try_from(got).ok()?;
    if message.msg_flags & libc::MSG_TRUNC != 0 { None } else { got.checked_sub(VNET_HEADER) }
}

/// A frame to send: its parts, after an offload header that asks for nothing.
pub(super) type Slices = arrayvec::ArrayVec<libc::iovec, { crate::link::MAX_PARTS + 1 }>;

/// The offload header of a frame that needs nothing done.
static PLAIN: [u8; VNET_HEADER] = [0; VNET_HEADER];

/// The slices of a frame that has no parts yet.
pub(super) fn slices() -> Slices {
    let mut slices = Slices::new();
    append(&mut slices, &PLAIN);
    slices
}

/// Appends a part of the frame.
pub(super) fn append(slices: &mut Slices, bytes: &[u8]) {
    slices.push(libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() });
}

/// Sends frames, in order. Returns how many the kernel took, which is at least one.
///
/// # Safety
/// The slices were made by [`append`] from bytes that live and do not change until this returns.
pub(super) unsafe fn send(fd: &OwnedFd, frames: &mut [Slices]) -> io::Result<usize> {
    let mut messages: arrayvec::ArrayVec<libc::mmsghdr, { crate::batch::BATCH }> = frames
        .iter_mut()
        .take(crate::batch::BATCH)
        .map(|slices| {
            // SAFETY: all zeroes is a message header without pointers.
            let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
            message.msg_hdr.msg_iov = slices.as_mut_ptr();
            message.msg_hdr.msg_iovlen = slices.len() as _;
            message
        })
        .collect();
    #[allow(clippy::cast_possible_truncation)] // at most BATCH
    let count = messages.len() as libc::c_uint;
    // SAFETY: the messages describe the slices, which describe live bytes (the caller's promise) that are only read.
    let sent =
        unsafe { libc::sendmmsg(fd.as_raw_fd(), messages.as_mut_ptr(), count, libc::MSG_DONTWAIT as _) };
    Ok(usize::try_from(check(sent)?).unwrap_or(0))
}

/// A shared mapping of a ring, unmapped when dropped.
#[derive(Debug)]
pub(super) struct Mapping {
    pub(super) base: NonNull<u8>,
    pub(super) len: usize,
}

// SAFETY: a mapping is memory that belongs to the process, not to a thread.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps the ring of a socket, `len` bytes.
    pub(super) fn new(fd: &OwnedFd, len: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let base =
            unsafe { libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED, fd.as_raw_fd(), 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Mapping { base, len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length; no slice of it outlives the ring that owns it.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
