//! What tests of this room need from the kernel.

/// Runs `work` on a thread of its own in a network namespace of its own, which ends with it.
pub(super) fn in_namespace(work: impl FnOnce() + Send) {
    on_own_thread(|| {
        // SAFETY: no memory is passed; only this thread, which nobody else uses, changes its namespace.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(result, 0, "these tests need CAP_SYS_ADMIN: {}", std::io::Error::last_os_error());
        work();
    });
}

/// Runs `work` on a thread of its own that has no capabilities.
pub(super) fn without_capabilities<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    on_own_thread(|| {
        const VERSION_3: u32 = 0x2008_0522;
        let header = [VERSION_3, 0];
        let none = [0_u32; 6];
        // SAFETY: the call reads the two structures, which are of 32-bit words, for the calling thread.
        let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        work()
    })
}

fn on_own_thread<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| {
        scope.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
