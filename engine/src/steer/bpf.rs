//! The commands of `bpf(2)` that steering needs. Every object is an [`OwnedFd`]; the kernel keeps it while somebody
//! (we, a program that names it, a filter that holds the program) does.

use super::asm::Instruction;
use super::error::SteerError;
use super::key::Key;
use std::ffi::CStr;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Types whose every bit pattern is a value and that have no padding, so that the kernel may read and write them.
///
/// # Safety
/// The implementor is `repr(C)` or primitive, has no padding bytes, and any bytes make a valid value of it.
pub unsafe trait Plain: Copy {
    /// The value of all zeroes.
    const ZERO: Self;
}

// SAFETY: an integer has no padding and takes any bits.
unsafe impl Plain for u8 {
    const ZERO: Self = 0;
}
// SAFETY: an integer has no padding and takes any bits.
unsafe impl Plain for u32 {
    const ZERO: Self = 0;
}
// SAFETY: an integer has no padding and takes any bits.
unsafe impl Plain for u64 {
    const ZERO: Self = 0;
}
// SAFETY: `repr(C)` of byte fields only: no padding, and any bytes are a key.
unsafe impl Plain for Key {
    const ZERO: Self = Key::ZERO;
}

/// `enum bpf_cmd`.
mod command {
    pub(super) const MAP_CREATE: libc::c_int = 0;
    pub(super) const MAP_LOOKUP: libc::c_int = 1;
    pub(super) const MAP_UPDATE: libc::c_int = 2;
    pub(super) const MAP_DELETE: libc::c_int = 3;
    pub(super) const PROGRAM_LOAD: libc::c_int = 5;
    pub(super) const PROGRAM_TEST_RUN: libc::c_int = 10;
    pub(super) const PROGRAM_BY_ID: libc::c_int = 13;
    pub(super) const MAP_BY_ID: libc::c_int = 14;
    pub(super) const OBJECT_INFO: libc::c_int = 15;
    pub(super) const MAP_UPDATE_BATCH: libc::c_int = 26;
    pub(super) const LINK_CREATE: libc::c_int = 28;
}

/// A kind of map (`enum bpf_map_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MapKind {
    /// Keys to values; room is taken as entries come.
    Hash = 1,
    /// Values by index.
    Array = 2,
    /// Maps by index.
    ArrayOfMaps = 12,
    /// AF_XDP sockets by queue.
    Sockets = 17,
}

/// A kind of program (`enum bpf_prog_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ProgramKind {
    /// A classifier on a qdisc.
    Classifier = 3,
    /// XDP.
    Xdp = 6,
}

/// The program takes frames of several buffers (kernel 5.18 and later).
pub const TAKES_FRAGMENTS: u32 = 1 << 5;

/// One `bpf(2)` call. `attribute` is read, and for some commands written, by the kernel.
///
/// # Safety
/// `T` is `repr(C)` without padding, a prefix of the kernel's `union bpf_attr` for `command`; each pointer in it is null or to live
/// memory of the length that the kernel takes it to have, which nobody else uses where the command writes there.
unsafe fn bpf<T>(command: libc::c_int, attribute: &mut T) -> io::Result<RawFd> {
    // SAFETY: the kernel reads and writes no more of `attribute` than its length; the rest is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attribute, size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(result).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// As [`bpf`], for the commands that return a new file descriptor.
///
/// # Safety
/// As of [`bpf`]; and `command` is one of those.
unsafe fn bpf_fd<T>(command: libc::c_int, attribute: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: promised by the caller.
    let fd = unsafe { bpf(command, attribute) }?;
    // SAFETY: the command succeeded and made this descriptor for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A name as the kernel keeps it: at most 15 characters of letters, digits, `_` and `.`.
fn name(text: &str) -> [u8; 16] {
    let mut name = [0; 16];
    for (to, from) in name[..15].iter_mut().zip(text.bytes()) {
        *to = from;
    }
    name
}

fn number(fd: &impl AsRawFd) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn length_of<T>(items: &[T]) -> u32 {
    u32::try_from(items.len()).unwrap_or(u32::MAX)
}

fn size<T>() -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or(u32::MAX)
}

/// A map from `K` to `V`. Of maps that hold descriptors (maps of maps, of sockets) `V` is the `u32` number.
#[derive(Debug)]
pub struct Map<K, V> {
    fd: OwnedFd,
    entry: PhantomData<fn(K) -> V>,
}

#[repr(C)]
struct Element {
    map: u32,
    zero: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl<K: Plain, V: Plain> Map<K, V> {
    /// A map of at most `entries`. A map of maps takes `inner` as the model of what it holds.
    pub fn create(
        kind: MapKind,
        entries: u32,
        text: &str,
        inner: Option<BorrowedFd<'_>>,
    ) -> Result<Self, SteerError> {
        #[repr(C)]
        struct Create {
            kind: u32,
            key: u32,
            value: u32,
            entries: u32,
            flags: u32,
            inner: u32,
            node: u32,
            name: [u8; 16],
        }
        const NO_PREALLOCATION: u32 = 1;
        let mut create = Create {
            kind: kind as u32,
            key: size::<K>(),
            value: size::<V>(),
            entries,
            flags: if kind == MapKind::Hash { NO_PREALLOCATION } else { 0 },
            inner: inner.map_or(0, |fd| number(&fd)),
            node: 0,
            name: name(text),
        };
        // SAFETY: the structure is the kernel's for this command, and has no pointers.
        let fd = unsafe { bpf_fd(command::MAP_CREATE, &mut create) }
            .map_err(|source| SteerError::from_bpf("make a BPF map", source))?;
        Ok(Map { fd, entry: PhantomData })
    }

    /// Sets `key` to `value`.
    pub fn insert(&self, key: &K, value: &V) -> io::Result<()> {
        let mut element = self.element(key, (&raw const *value).expose_provenance());
        // SAFETY: key and value are live and of the sizes the map was made with.
        unsafe { bpf(command::MAP_UPDATE, &mut element) }.map(drop)
    }

    /// Takes `key` out; an error of [`io::ErrorKind::NotFound`] when it is not in.
    pub fn remove(&self, key: &K) -> io::Result<()> {
        let mut element = self.element(key, 0);
        // SAFETY: the key is live and of the size the map was made with; there is no value.
        unsafe { bpf(command::MAP_DELETE, &mut element) }.map(drop)
    }

    /// The value of `key`, if it is in.
    pub fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = V::ZERO;
        let mut element = self.element(key, (&raw mut value).expose_provenance());
        // SAFETY: key and value are live and of the sizes the map was made with; the value is ours alone to be written.
        match unsafe { bpf(command::MAP_LOOKUP, &mut element) } {
            Ok(_) => Ok(Some(value)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sets all `keys` to the `values` at the same places in as few calls as the kernel takes.
    pub fn insert_all(&self, keys: &[K], values: &[V]) -> io::Result<()> {
        #[repr(C)]
        struct Batch {
            from: u64,
            to: u64,
            keys: u64,
            values: u64,
            count: u32,
            map: u32,
            element_flags: u64,
            flags: u64,
        }
        let (mut keys, mut values) = (keys, values);
        while !keys.is_empty() {
            let (some, rest) = keys.split_at(keys.len().min(1 << 16));
            let (their_values, other_values) = values.split_at_checked(some.len()).unwrap_or((&[], &[]));
            if their_values.is_empty() {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let mut batch = Batch {
                from: 0,
                to: 0,
                keys: some.as_ptr().expose_provenance() as u64,
                values: their_values.as_ptr().expose_provenance() as u64,
                count: length_of(some),
                map: number(&self.fd),
                element_flags: 0,
                flags: 0,
            };
            // SAFETY: as many live keys and values as `batch` says, of the sizes the map was made with.
            unsafe { bpf(command::MAP_UPDATE_BATCH, &mut batch) }?;
            (keys, values) = (rest, other_values);
        }
        Ok(())
    }

    fn element(&self, key: &K, value: usize) -> Element {
        let key = (&raw const *key).expose_provenance() as u64;
        Element { map: number(&self.fd), zero: 0, key, value: value as u64, flags: 0 }
    }
}

impl<K, V> AsFd for Map<K, V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl<K, V> AsRawFd for Map<K, V> {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// A loaded program.
#[derive(Debug)]
pub struct Program {
    fd: OwnedFd,
}

/// The licence the kernel is told, of the project's two the one it knows as compatible with its own.
const LICENCE: &CStr = c"Dual MIT/GPL";

impl Program {
    /// Loads `instructions`; when the verifier refuses them, its log is in the error.
    pub fn load(
        kind: ProgramKind,
        flags: u32,
        instructions: &[Instruction],
        text: &str,
    ) -> Result<Self, SteerError> {
        #[repr(C)]
        struct Load {
            kind: u32,
            count: u32,
            instructions: u64,
            licence: u64,
            log_level: u32,
            log_size: u32,
            log: u64,
            kernel: u32,
            flags: u32,
            name: [u8; 16],
        }
        let mut load = Load {
            kind: kind as u32,
            count: length_of(instructions),
            instructions: instructions.as_ptr().expose_provenance() as u64,
            licence: LICENCE.as_ptr().expose_provenance() as u64,
            log_level: 0,
            log_size: 0,
            log: 0,
            kernel: 0,
            flags,
            name: name(text),
        };
        // SAFETY: the instructions and the licence are live, and there is no log.
        let refused = match unsafe { bpf_fd(command::PROGRAM_LOAD, &mut load) } {
            Ok(fd) => return Ok(Program { fd }),
            Err(error)
                if !matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EACCES | libc::E2BIG)) =>
            {
                return Err(SteerError::from_bpf("load a BPF program", error));
            }
            Err(error) => error,
        };
        let mut log = vec![0_u8; 1 << 20];
        load.log_level = 1;
        load.log_size = length_of(&log);
        load.log = log.as_mut_ptr().expose_provenance() as u64;
        // SAFETY: as above, and the log is as long as it is said to be, and ours alone.
        if let Ok(fd) = unsafe { bpf_fd(command::PROGRAM_LOAD, &mut load) } {
            return Ok(Program { fd });
        }
        let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
        let lines = String::from_utf8_lossy(&log[..end]);
        Err(SteerError::from_verifier(refused, last_lines(&lines, 12)))
    }

    /// Runs the program in the kernel over `frame`, without any device (`BPF_PROG_TEST_RUN`), and returns what it
    /// returns. The kernel refuses frames below an Ethernet header (14 bytes), as no device hands it one.
    pub fn test_run(&self, frame: &[u8]) -> io::Result<u32> {
        #[repr(C)]
        struct Run {
            program: u32,
            result: u32,
            length_in: u32,
            length_out: u32,
            data_in: u64,
            data_out: u64,
            repeat: u32,
            duration: u32,
        }
        let mut run = Run {
            program: number(&self.fd),
            result: 0,
            length_in: length_of(frame),
            length_out: 0,
            data_in: frame.as_ptr().expose_provenance() as u64,
            data_out: 0,
            repeat: 1,
            duration: 0,
        };
        // SAFETY: the frame is live and as long as it is said to be; nothing is written but `run`.
        unsafe { bpf(command::PROGRAM_TEST_RUN, &mut run) }?;
        Ok(run.result)
    }

    /// The program of this id, which another process may have loaded. Needs `CAP_SYS_ADMIN`.
    pub(super) fn by_id(id: u32) -> io::Result<Self> {
        Ok(Program { fd: by_id(command::PROGRAM_BY_ID, id)? })
    }

    /// The ids of the maps that the program names.
    pub(super) fn map_ids(&self) -> io::Result<Vec<u32>> {
        #[repr(C)]
        struct ProgramInfo {
            kind: u32,
            id: u32,
            tag: [u8; 8],
            jited: u32,
            translated: u32,
            jited_at: u64,
            translated_at: u64,
            loaded: u64,
            creator: u32,
            maps: u32,
            maps_at: u64,
            name: [u8; 16],
        }
        let mut ids = [0_u32; 16];
        let mut info = ProgramInfo {
            kind: 0,
            id: 0,
            tag: [0; 8],
            jited: 0,
            translated: 0,
            jited_at: 0,
            translated_at: 0,
            loaded: 0,
            creator: 0,
            maps: length_of(&ids),
            maps_at: ids.as_mut_ptr().expose_provenance() as u64,
            name: [0; 16],
        };
        // SAFETY: the structure begins the kernel's for programs; it has one pointer, to as many ids as it says.
        unsafe { object_info(&self.fd, &mut info) }?;
        let count = usize::try_from(info.maps).unwrap_or(0).min(ids.len());
        Ok(ids[..count].to_vec())
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The map of this id and its name, if its key and value are of these sizes. Needs `CAP_SYS_ADMIN`.
pub(super) fn map_by_id<K: Plain, V: Plain>(id: u32) -> io::Result<Option<(Map<K, V>, String)>> {
    #[repr(C)]
    struct MapInfo {
        kind: u32,
        id: u32,
        key: u32,
        value: u32,
        entries: u32,
        flags: u32,
        name: [u8; 16],
    }
    let fd = by_id(command::MAP_BY_ID, id)?;
    let mut info = MapInfo { kind: 0, id: 0, key: 0, value: 0, entries: 0, flags: 0, name: [0; 16] };
    // SAFETY: the structure begins the kernel's for maps, and has no pointers.
    unsafe { object_info(&fd, &mut info) }?;
    if (info.key, info.value) != (size::<K>(), size::<V>()) {
        return Ok(None);
    }
    let name = info.name.iter().take_while(|&&byte| byte != 0).map(|&byte| char::from(byte)).collect();
    Ok(Some((Map { fd, entry: PhantomData }, name)))
}

/// Attaches an XDP program to a device; `flags` are `XDP_FLAGS_*`. The program leaves the device when the descriptor
/// returned is closed.
pub(super) fn attach_xdp(program: &Program, ifindex: u32, flags: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Link {
        program: u32,
        ifindex: u32,
        kind: u32,
        flags: u32,
    }
    const XDP: u32 = 37;
    let mut link = Link { program: number(&program.fd), ifindex, kind: XDP, flags };
    // SAFETY: the structure is the kernel's for this command, and has no pointers.
    unsafe { bpf_fd(command::LINK_CREATE, &mut link) }
}

/// A new descriptor of the object of this id; `command` is one of the `…_BY_ID`.
fn by_id(command: libc::c_int, id: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct ById {
        id: u32,
        next: u32,
        flags: u32,
    }
    // SAFETY: the structure is the kernel's for these commands, and has no pointers.
    unsafe { bpf_fd(command, &mut ById { id, next: 0, flags: 0 }) }
}

/// What the kernel says of an object.
///
/// # Safety
/// `T` is `repr(C)`, a prefix of the kernel's structure for this kind of object, and each pointer in it is to live memory of the
/// length it says, which nobody else uses.
unsafe fn object_info<T>(object: &OwnedFd, info: &mut T) -> io::Result<()> {
    #[repr(C)]
    struct Info {
        object: u32,
        length: u32,
        info: u64,
    }
    let at = (&raw mut *info).expose_provenance() as u64;
    let mut request = Info { object: number(object), length: size::<T>(), info: at };
    // SAFETY: the pointer is to `info`, which is live, as long as it is said to be, and ours alone; the rest is the caller's promise.
    unsafe { bpf(command::OBJECT_INFO, &mut request) }.map(drop)
}

/// The end of the verifier's log, which says what it refused.
fn last_lines(log: &str, count: usize) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::super::asm::{Assembler, Register::R0, Register::R3};
    use super::*;

    #[test]
    fn names_fit_the_kernel() {
        assert_eq!(&name("uvs_services"), b"uvs_services\0\0\0\0");
        assert_eq!(&name("a_name_longer_than_15"), b"a_name_longer_t\0");
    }

    #[test]
    fn the_verifiers_words_are_in_the_error() {
        let mut program = Assembler::default();
        program.copy(R0, R3).exit();
        let error = Program::load(ProgramKind::Xdp, 0, &program.finish().unwrap(), "bad").unwrap_err();
        assert!(error.to_string().contains("R3 !read_ok"), "{error}");
    }

    #[test]
    fn a_map_keeps_what_it_is_told() {
        let map = Map::<u32, u64>::create(MapKind::Hash, 300, "test", None).unwrap();
        let keys: Vec<u32> = (0..300).collect();
        let values: Vec<u64> = keys.iter().map(|&key| u64::from(key) << 33).collect();
        map.insert_all(&keys, &values).unwrap();
        assert_eq!(map.get(&299).unwrap(), Some(299 << 33));
        map.remove(&299).unwrap();
        assert_eq!(map.get(&299).unwrap(), None);
        assert_eq!(map.remove(&299).unwrap_err().kind(), io::ErrorKind::NotFound);
        map.insert(&300, &1).unwrap();
        assert!(map.insert(&301, &1).is_err(), "the map is full");
        assert!(map.insert_all(&[1, 2], &[1]).is_err());
    }
}
