//! The XDP program on a device.

use super::bpf::{self, Map, MapKind, Program, ProgramKind, TAKES_FRAGMENTS};
use super::error::SteerError;
use super::maps::Descriptors;
use super::netlink::{self, Route};
use super::program;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// How an XDP program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the driver, before the kernel spends anything on the frame.
    Native,
    /// In the kernel's generic receive path, on any device.
    Generic,
}

impl Mode {
    /// `XDP_FLAGS_DRV_MODE` or `XDP_FLAGS_SKB_MODE`.
    fn flag(self) -> u32 {
        match self {
            Mode::Native => 1 << 2,
            Mode::Generic => 1 << 1,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Native => "native",
            Mode::Generic => "generic",
        })
    }
}

/// The mode that is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WantedMode {
    /// Native where the driver can, else generic.
    #[default]
    Auto,
    /// This one or an error.
    Only(Mode),
}

/// A steering program on a device. It leaves the device when this is dropped, and when the process ends in any way:
/// from then on the kernel has all frames.
#[derive(Debug)]
pub struct Attachment {
    ifindex: u32,
    mode: Mode,
    refused: Option<SteerError>,
    takes_fragments: bool,
    sockets: Map<u32, u32>,
    _link: OwnedFd,
}

impl Attachment {
    pub(super) fn new(
        maps: Descriptors<'_>,
        ifindex: u32,
        wanted: WantedMode,
        sockets: &[(u32, BorrowedFd<'_>)],
    ) -> Result<Self, SteerError> {
        let queues = sockets.iter().map(|&(queue, _)| queue + 1).max().unwrap_or(1);
        let map = Map::create(MapKind::Sockets, queues, "uvs_sockets", None)?;
        for (queue, socket) in sockets {
            put(&map, *queue, *socket)?;
        }
        let (program, takes_fragments) = load(maps, map.as_fd())?;
        let (link, mode, refused) = link(&program, ifindex, wanted)?;
        Ok(Attachment { ifindex, mode, refused, takes_fragments, sockets: map, _link: link })
    }

    /// The device's index.
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// The mode the program runs in.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Why it is not native mode, where either would do.
    pub fn refused(&self) -> Option<&SteerError> {
        self.refused.as_ref()
    }

    /// Whether frames of several buffers (MTU above a page) reach the sockets; kernels before 5.18 cannot.
    pub fn takes_fragments(&self) -> bool {
        self.takes_fragments
    }

    /// Gives the frames of `queue` to another socket. The queue is one of those that the program was attached with, or
    /// a lower one. A socket that is closed leaves by itself.
    pub fn set_socket(&self, queue: u32, socket: BorrowedFd<'_>) -> Result<(), SteerError> {
        put(&self.sockets, queue, socket)
    }
}

/// The steering program on no device: a frame of ours finds an AF_XDP socket behind queue 0, though nothing reads it.
#[derive(Debug)]
pub struct DryRun {
    program: Program,
    _socket: OwnedFd,
}

impl DryRun {
    pub(super) fn new(maps: Descriptors<'_>) -> Result<Self, SteerError> {
        let socket = xdp_socket()?;
        let sockets = Map::create(MapKind::Sockets, 1, "uvs_dry", None)?;
        put(&sockets, 0, socket.as_fd())?;
        Ok(DryRun { program: load(maps, sockets.as_fd())?.0, _socket: socket })
    }

    /// Whether a frame that came now would be taken. Frames are of an Ethernet header (14 bytes) at least.
    pub fn takes(&self, frame: &[u8]) -> io::Result<bool> {
        Ok(self.program.test_run(frame)? == program::XDP_REDIRECT)
    }
}

fn xdp_socket() -> Result<OwnedFd, SteerError> {
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        let source = io::Error::last_os_error();
        let family = "AF_XDP (CONFIG_XDP_SOCKETS)";
        return Err(SteerError::from_socket("open an AF_XDP socket", source, family));
    }
    // SAFETY: the socket was just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn put(sockets: &Map<u32, u32>, queue: u32, socket: BorrowedFd<'_>) -> Result<(), SteerError> {
    sockets.insert(&queue, &socket.as_raw_fd().cast_unsigned()).map_err(|source| {
        match source.raw_os_error() {
            Some(libc::EOPNOTSUPP) => SteerError::NoSupport {
                doing: "give a queue to a socket that is not of AF_XDP",
                lacking: "way to do so",
            },
            _ => SteerError::os(format!("give queue {queue} to its socket"), source),
        }
    })
}

/// Loads the program for one device. Says whether it takes frames of several buffers.
fn load(maps: Descriptors<'_>, sockets: BorrowedFd<'_>) -> Result<(Program, bool), SteerError> {
    let instructions = program::steer(maps, sockets)?;
    match Program::load(ProgramKind::Xdp, TAKES_FRAGMENTS, &instructions, "uvs_steer") {
        // A kernel that does not know the flag says EINVAL and leaves the log empty.
        Err(SteerError::Verifier { source, log })
            if source.raw_os_error() == Some(libc::EINVAL) && log.is_empty() =>
        {
            let program = Program::load(ProgramKind::Xdp, 0, &instructions, "uvs_steer")?;
            Ok((program, false))
        }
        loaded => Ok((loaded?, true)),
    }
}

type Linked = (OwnedFd, Mode, Option<SteerError>);

fn link(program: &Program, ifindex: u32, wanted: WantedMode) -> Result<Linked, SteerError> {
    let (first, second) = match wanted {
        WantedMode::Auto => (Mode::Native, Some(Mode::Generic)),
        WantedMode::Only(mode) => (mode, None),
    };
    match (link_as(program, ifindex, first), second) {
        (Err(refused @ SteerError::Unsupported { .. }), Some(second)) => {
            Ok((link_as(program, ifindex, second)?, second, Some(refused)))
        }
        (linked, _) => Ok((linked?, first, None)),
    }
}

fn link_as(program: &Program, ifindex: u32, mode: Mode) -> Result<OwnedFd, SteerError> {
    bpf::attach_xdp(program, ifindex, mode.flag()).map_err(|source| refusal(ifindex, mode, source))
}

/// What the kernel's answer to an attachment means (`bpf_xdp_link_attach` and `dev_xdp_attach` in `net/core/dev.c`).
fn refusal(ifindex: u32, mode: Mode, source: io::Error) -> SteerError {
    let Some(device) = netlink::device_name(ifindex) else { return SteerError::NoDevice(ifindex) };
    match source.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => claimed(ifindex, device),
        Some(libc::EPERM | libc::EACCES | libc::ENOSYS) => {
            SteerError::from_bpf("attach an XDP program", source)
        }
        _ => SteerError::Unsupported { device, mode, source },
    }
}

fn claimed(ifindex: u32, device: String) -> SteerError {
    let how = match Route::open().and_then(|mut route| route.xdp_attachment(ifindex)) {
        Ok(Some(netlink::XdpAttachment::Generic)) => "xdpgeneric",
        Ok(Some(netlink::XdpAttachment::Offloaded)) => "xdpoffload",
        _ => "xdpdrv",
    };
    SteerError::Claimed { command: format!("ip link set dev {device} {how} off"), device }
}
