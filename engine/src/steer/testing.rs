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

/// Runs `work` on a thread of its own that has only these capabilities.
pub(super) fn with_capabilities<R: Send>(bits: &[u32], work: impl FnOnce() -> R + Send) -> R {
    on_own_thread(|| {
        const VERSION_3: u32 = 0x2008_0522;
        let header = [VERSION_3, 0];
        let all = bits.iter().fold(0_u64, |all, bit| all | 1 << bit);
        let [low, high] = [all & 0xffff_ffff, all >> 32].map(|half| u32::try_from(half).unwrap());
        // Effective, permitted and inheritable, of the lower and of the higher 32.
        let sets = [low, low, 0, high, high, 0];
        // SAFETY: the call reads the two structures, which are of 32-bit words, for the calling thread.
        let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        work()
    })
}

fn on_own_thread<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| {
        scope.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
