//! The smallest XDP program there is for AF_XDP: every frame to the socket of its queue, or to the kernel where there is none.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use uvs_engine::PortId;
use uvs_engine::worker::Lane;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Generic = 2,
    Native = 4,
}

/// The program on a device, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Attached(#[allow(dead_code)] [OwnedFd; 3]);

/// Redirects everything that `ifindex`, known as `port`, receives to the sockets among `lanes`.
pub(crate) fn redirect(lanes: &[Lane], port: PortId, ifindex: u32, mode: Mode) -> Attached {
    const XSKMAP: u32 = 17;
    let map = map_create(XSKMAP, 4, 4, 64).unwrap();
    for lane in lanes.iter().filter(|lane| lane.port == port) {
        map_update(&map, lane.queue, lane.probe.xdp_socket().unwrap().as_raw_fd().cast_unsigned()).unwrap();
    }
    // r2 = ctx->rx_queue_index; r1 = map; r3 = XDP_PASS; call bpf_redirect_map; exit
    let instruction = |code: u8, registers: u8, offset: i16, immediate: i32| -> [u8; 8] {
        let mut bytes = [code, registers, 0, 0, 0, 0, 0, 0];
        bytes[2..4].copy_from_slice(&offset.to_ne_bytes());
        bytes[4..].copy_from_slice(&immediate.to_ne_bytes());
        bytes
    };
    let program = program_load(&[
        instruction(0x61, 0x12, 16, 0),
        instruction(0x18, 0x11, 0, map.as_raw_fd()),
        instruction(0, 0, 0, 0),
        instruction(0xb7, 0x03, 0, 2),
        instruction(0x85, 0, 0, 51),
        instruction(0x95, 0, 0, 0),
    ])
    .unwrap();
    let link = attach(&program, ifindex, mode).unwrap();
    Attached([map, program, link])
}

/// # Safety
/// `attribute` is laid out as the kernel's `union bpf_attr` for `command`.
unsafe fn bpf<T>(command: i32, attribute: &T) -> io::Result<i32> {
    // SAFETY: the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attribute, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(i32::try_from(result).unwrap()) }
}

/// # Safety
/// As for [`bpf`]; and the command returns a descriptor.
unsafe fn bpf_object<T>(command: i32, attribute: &T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let fd = unsafe { bpf(command, attribute) }?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn map_create(kind: u32, key: u32, value: u32, entries: u32) -> io::Result<OwnedFd> {
    // SAFETY: BPF_MAP_CREATE starts with these four words.
    unsafe { bpf_object(0, &[kind, key, value, entries]) }
}

fn map_update(map: &OwnedFd, key: u32, value: u32) -> io::Result<()> {
    let fd = u64::from(map.as_raw_fd().cast_unsigned());
    // SAFETY: BPF_MAP_UPDATE_ELEM: descriptor, pointers to key and value, flags.
    unsafe { bpf(2, &[fd.to_le(), &raw const key as u64, &raw const value as u64, 0]) }?;
    Ok(())
}

fn program_load(instructions: &[[u8; 8]]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log: [u64; 2],
        kernel: u32,
        flags: u32,
    }
    const XDP: u32 = 6;
    const XDP_HAS_FRAGS: u32 = 1 << 5;
    let load = Load {
        kind: XDP,
        count: u32::try_from(instructions.len()).unwrap(),
        instructions: instructions.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
        log: [0; 2],
        kernel: 0,
        flags: XDP_HAS_FRAGS,
    };
    // SAFETY: the beginning of BPF_PROG_LOAD's attribute; its pointers outlive the call.
    unsafe { bpf_object(5, &load) }
}

fn attach(program: &OwnedFd, ifindex: u32, mode: Mode) -> io::Result<OwnedFd> {
    const XDP: u32 = 37;
    // SAFETY: BPF_LINK_CREATE: program, device, kind of attachment, flags.
    unsafe { bpf_object(28, &[program.as_raw_fd().cast_unsigned(), ifindex, XDP, mode as u32]) }
}
