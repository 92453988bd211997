//! Threads that lack a capability.

use std::io;

/// `CAP_NET_RAW`.
pub(crate) const NET_RAW: u32 = 13;
/// `CAP_IPC_LOCK`.
pub(crate) const IPC_LOCK: u32 = 14;

/// Takes a capability from the calling thread.
pub(crate) fn give_up(capability: u32) {
    /// `struct __user_cap_data_struct`, of which version 3 has two for 64 capabilities.
    #[repr(C)]
    #[derive(Default)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0];
    let mut data = [Data::default(), Data::default()];
    // SAFETY: header and data are laid out as capget(2) wants them.
    let got = unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), data.as_mut_ptr()) };
    assert_eq!(got, 0, "{}", io::Error::last_os_error());
    data[capability as usize / 32].effective &= !(1 << (capability % 32));
    // SAFETY: as above.
    let set = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
}

/// Limits this process's locked memory to `bytes`. Threads with `CAP_IPC_LOCK` do not notice.
pub(crate) fn limit_locked_memory(bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: the pointer leads to a `struct rlimit`, which is only read.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
}
