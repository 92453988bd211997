//! What tells a network namespace from every other, also from those that are gone.
#![expect(unsafe_code, reason = "getsockopt; see the SAFETY line")]

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;

/// The number that the kernel gave the calling thread's network namespace (`SO_NETNS_COOKIE`, Linux 5.14): no other has it until
/// the machine starts again. The inode of `/proc/self/ns/net` is given again as soon as its namespace is gone.
///
/// # Errors
/// What the kernel said; `ENOPROTOOPT` when it is older.
pub fn cookie() -> io::Result<u64> {
    let socket = UnixDatagram::unbound()?;
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of_val(&cookie)).unwrap_or(0);
    // SAFETY: pointer and length are of one live integer, of which every bit pattern is valid.
    let got = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if got < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_one_cookie() {
        let cookie = cookie().unwrap();
        assert_ne!(cookie, 0);
        assert_eq!(std::thread::spawn(super::cookie).join().unwrap().unwrap(), cookie);
    }
}
