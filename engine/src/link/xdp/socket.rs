//! One queue of one device as an AF_XDP socket.

use super::ring::{Consumer, Descriptor, Producer};
use super::sys::{self, Sizes, Statistics};
use crate::batch::PortId;
use crate::link::memory::{Batch, Part, Parts, Pool, Region};
use crate::link::{Device, Error, Gone, MAX_PARTS, MAX_SENT_PARTS, Queue, Sending};
use crate::verdict::Reason;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a queue may stay busy before that is an error: the kernel releases the sockets of a process that died about
/// 100 ms later.
const BUSY_LIMIT: Duration = Duration::from_secs(2);

/// How a socket is to be opened.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Slots of the fill and receive rings: frames that may arrive while the worker does not look. A power of two.
    pub receive_slots: u32,
    /// Slots of the transmit and completion rings. A power of two.
    pub transmit_slots: u32,
    /// Whether to try zero-copy. Off for a device whose XDP program runs in generic mode.
    pub zero_copy: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options { receive_slots: 2048, transmit_slots: 1024, zero_copy: true }
    }
}

impl Options {
    /// Frames the worker's region needs for one such socket, so that no socket can starve another.
    pub fn frames(&self) -> u32 {
        2 * (self.receive_slots + self.transmit_slots)
    }
}

/// An AF_XDP socket bound to one queue of one device. Frames reach it once an XDP program redirects them to it.
#[derive(Debug)]
pub struct Socket {
    receive: Consumer<Descriptor>,
    transmit: Producer<Descriptor>,
    fill: Producer<u64>,
    completion: Consumer<u64>,
    region: Arc<Region>,
    port: PortId,
    queue: u32,
    zero_copy: bool,
    multi_buffer: bool,
    fd: OwnedFd,
}

impl Socket {
    /// Binds queue `queue` of `device` with the frames of `pool`'s region and fills its fill ring. Tries zero-copy first,
    /// then copy; multi-buffer wherever the device has it, and insists on it where the MTU needs it. A busy queue is
    /// retried for two seconds.
    ///
    /// # Errors
    /// See [`Error`]; each says what to do.
    pub fn open(
        device: &Device,
        queue: u32,
        port: PortId,
        pool: &mut Pool,
        options: Options,
    ) -> Result<Self, Error> {
        let patience = Instant::now() + BUSY_LIMIT;
        let mut socket = loop {
            match Self::open_once(device, queue, port, pool.region(), options) {
                Err(Error::Busy { .. }) if Instant::now() < patience => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                other => break other?,
            }
        };
        socket.refill(pool);
        Ok(socket)
    }

    /// Goes down the ladder of modes to the first the device takes.
    fn open_once(
        device: &Device,
        queue: u32,
        port: PortId,
        region: &Arc<Region>,
        options: Options,
    ) -> Result<Self, Error> {
        let limit = Region::largest_mtu(region.chunk());
        let fits = device.mtu <= limit;
        let zero_copy = [libc::XDP_ZEROCOPY | libc::XDP_USE_SG, libc::XDP_ZEROCOPY];
        let copy = [libc::XDP_COPY | libc::XDP_USE_SG, libc::XDP_COPY];
        let ladder = zero_copy.into_iter().filter(|_| options.zero_copy).chain(copy);
        let mut refused = None;
        for flags in ladder.filter(|flags| fits || flags & libc::XDP_USE_SG != 0) {
            match Self::bind(device, queue, port, region, options, flags) {
                Err(Error::Kernel { source, .. }) if is_refusal_of_a_mode(&source) => refused = Some(source),
                other => return other,
            }
        }
        Err(match refused {
            Some(source) if fits => {
                Error::Kernel { action: "binding an AF_XDP socket", device: device.name.clone(), source }
            }
            _ => Error::Mtu { device: device.name.clone(), mtu: device.mtu, limit },
        })
    }

    fn bind(
        device: &Device,
        queue: u32,
        port: PortId,
        region: &Arc<Region>,
        options: Options,
        flags: u16,
    ) -> Result<Self, Error> {
        let failed = |action| move |source| Error::Kernel { action, device: device.name.clone(), source };
        let fd = sys::socket().map_err(|source| match source.raw_os_error() {
            Some(libc::EAFNOSUPPORT) => Error::NoAfXdp,
            Some(libc::EPERM) => {
                Error::Capability { action: "opening an AF_XDP socket", capability: "CAP_NET_RAW" }
            }
            _ => failed("opening an AF_XDP socket")(source),
        })?;
        let mebibytes = region.len() >> 20;
        sys::register(&fd, region.address(), region.len(), region.chunk()).map_err(|source| match source
            .raw_os_error()
        {
            Some(libc::ENOBUFS) => Error::LockedMemory { mebibytes },
            Some(libc::ENOMEM) => Error::Memory { mebibytes, source },
            _ => failed("registering memory for AF_XDP")(source),
        })?;
        let sizes = Sizes {
            receive: options.receive_slots,
            transmit: options.transmit_slots,
            fill: options.receive_slots,
            completion: options.transmit_slots,
        };
        let offsets = sys::make_rings(&fd, sizes).map_err(failed("making AF_XDP rings"))?;
        let mapped = failed("mapping AF_XDP rings");
        #[expect(clippy::cast_possible_wrap, reason = "0x1_0000_0000 and 0x1_8000_0000")]
        let (fill_page, completion_page) =
            (libc::XDP_UMEM_PGOFF_FILL_RING as i64, libc::XDP_UMEM_PGOFF_COMPLETION_RING as i64);
        let receive =
            Consumer::map(&fd, &offsets.rx, sizes.receive, libc::XDP_PGOFF_RX_RING).map_err(&mapped)?;
        let transmit =
            Producer::map(&fd, &offsets.tx, sizes.transmit, libc::XDP_PGOFF_TX_RING).map_err(&mapped)?;
        let fill = Producer::map(&fd, &offsets.fr, sizes.fill, fill_page).map_err(&mapped)?;
        let completion =
            Consumer::map(&fd, &offsets.cr, sizes.completion, completion_page).map_err(&mapped)?;
        sys::widen_transmit_budget(&fd, options.transmit_slots);
        sys::bind(&fd, device.index, queue, flags | libc::XDP_USE_NEED_WAKEUP).map_err(
            |source| match source.raw_os_error() {
                Some(libc::EBUSY) => Error::Busy { device: device.name.clone(), queue },
                Some(libc::ENODEV) => Error::NoDevice(device.name.clone()),
                _ => failed("binding an AF_XDP socket")(source),
            },
        )?;
        let zero_copy = sys::is_zero_copy(&fd).map_err(failed("asking an AF_XDP socket for its mode"))?;
        let multi_buffer = flags & libc::XDP_USE_SG != 0;
        let region = region.clone();
        Ok(Socket { receive, transmit, fill, completion, region, port, queue, zero_copy, multi_buffer, fd })
    }

    /// The queue it is bound to.
    pub fn queue(&self) -> u32 {
        self.queue
    }

    /// Whether the device reads and writes our memory itself.
    pub fn zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// Whether frames may come and go in several parts.
    pub fn multi_buffer(&self) -> bool {
        self.multi_buffer
    }

    /// A second descriptor of the socket, to ask the kernel for its statistics from another thread.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn probe(&self) -> io::Result<Probe> {
        Ok(Probe { fd: self.fd.try_clone()? })
    }

    /// Takes back the frames that were sent.
    fn reclaim(&mut self, pool: &mut Pool) {
        let (first, second) = self.completion.filled(u32::MAX);
        let mut count = 0;
        for &address in first.iter().chain(second) {
            pool.give(adopt(&self.region, address).0);
            count += 1;
        }
        self.completion.release(count);
    }

    /// Offers the kernel as many chunks to receive into as it has room for.
    fn refill(&mut self, pool: &mut Pool) {
        for _ in 0..self.fill.vacant(u32::MAX) {
            let Some(frame) = pool.take() else { break };
            self.fill.stage(self.region.surrender(frame, 0));
        }
        self.fill.publish();
    }

    /// Has the kernel look at the transmit ring, if anything waits there.
    fn send(&mut self) -> Result<Sending, Gone> {
        let waiting = self.transmit.outstanding();
        if waiting == 0 {
            return Ok(Sending::Done);
        }
        if self.transmit.needs_wakeup() {
            still_there(sys::kick_transmit(&self.fd))?;
        }
        Ok(match self.transmit.outstanding() {
            0 => Sending::Done,
            left if left < waiting => Sending::Moving,
            _ => Sending::Stuck,
        })
    }
}

impl Queue for Socket {
    fn port(&self) -> PortId {
        self.port
    }

    fn receive(&mut self, pool: &mut Pool, batch: &mut Batch) -> u64 {
        #[expect(clippy::cast_possible_truncation, reason = "at most BATCH")]
        let room = batch.remaining_capacity() as u32;
        let (first, second) = self.receive.filled(room);
        let mut descriptors = first.iter().chain(second);
        let (mut taken, mut refused) = (0, 0);
        // The kernel shows whole frames only, so a row that ends within one was cut by `room`: the frame waits.
        while let Some(parts) =
            descriptors.clone().position(|descriptor| !descriptor.continued()).map(|last| last + 1)
        {
            for descriptor in descriptors.by_ref().take(parts) {
                let (frame, start) = adopt(&self.region, descriptor.address);
                if parts > MAX_PARTS {
                    pool.give(frame);
                } else {
                    #[expect(clippy::cast_possible_truncation, reason = "at most a chunk")]
                    let len = descriptor.len as u16;
                    batch.push(Part { frame, start, len, port: self.port, more: descriptor.continued() });
                }
            }
            refused += u64::from(parts > MAX_PARTS);
            taken += parts;
        }
        #[expect(clippy::cast_possible_truncation, reason = "at most `room`")]
        self.receive.release(taken as u32);
        refused
    }

    fn transmit(&mut self, frame: &mut Parts) -> Result<(), Reason> {
        if frame.len() > if self.multi_buffer { MAX_SENT_PARTS } else { 1 } {
            return Err(Reason::TooManyParts);
        }
        #[expect(clippy::cast_possible_truncation, reason = "at most MAX_SENT_PARTS")]
        let parts = frame.len() as u32;
        if self.transmit.vacant(parts) < parts {
            return Err(Reason::TxFull);
        }
        for part in frame.drain(..) {
            self.transmit.stage(Descriptor {
                address: self.region.surrender(part.frame, part.start),
                len: u32::from(part.len),
                options: if part.more { libc::XDP_PKT_CONTD } else { 0 },
            });
        }
        Ok(())
    }

    fn tend(&mut self, pool: &mut Pool) -> Result<Sending, Gone> {
        self.transmit.publish();
        let sending = self.send();
        self.reclaim(pool);
        self.refill(pool);
        if self.fill.needs_wakeup() {
            still_there(sys::kick_receive(&self.fd))?;
        }
        sending
    }

    fn check(&self) -> Result<(), Gone> {
        still_there(sys::kick_receive(&self.fd))
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A view of a socket for those who only watch it.
#[derive(Debug)]
pub struct Probe {
    fd: OwnedFd,
}

impl Probe {
    /// What the kernel counted for this socket since it was bound.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn statistics(&self) -> io::Result<Statistics> {
        sys::statistics(&self.fd)
    }
}

impl AsFd for Probe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The token of a chunk the kernel returned in the receive or completion ring of a socket.
#[expect(unsafe_code, reason = "the one place where chunks come back")]
fn adopt(region: &Region, address: u64) -> (crate::link::Frame, u16) {
    // SAFETY: these rings carry only chunks that were surrendered to the fill or transmit ring of the same socket, each once,
    // and the caller releases the slot so that it is not read again.
    unsafe { region.adopt(address) }
}

/// `EOPNOTSUPP`: the device cannot; `EINVAL`: the kernel does not know the flag.
fn is_refusal_of_a_mode(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL))
}

/// Tells a device that is gone from the many reasons to try again later: a budget used up (EAGAIN), a busy queue (EBUSY,
/// ENOBUFS), a device that is down (ENETDOWN), a signal (EINTR).
fn still_there(result: io::Result<()>) -> Result<(), Gone> {
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENXIO | libc::ENODEV)) => Err(Gone),
        _ => Ok(()),
    }
}
