//! What can go wrong when steering is set up, and what to do about it.

use super::asm::AssemblyError;
use std::io;

/// Why frames cannot be steered, guarded or handed back.
#[derive(Debug, thiserror::Error)]
pub enum SteerError {
    /// The kernel does not let this process.
    #[error("not allowed to {doing}: {}", missing(lacking))]
    NotPermitted {
        /// What was tried.
        doing: &'static str,
        /// The capabilities needed that this process lacks.
        lacking: Vec<&'static str>,
    },
    /// A file's owner and mode keep this process from it, whatever its capabilities.
    #[error(
        "cannot {doing}: this process's user may not read and write {file}; run it as root, or let its user do so"
    )]
    NoAccess {
        /// What was tried.
        doing: &'static str,
        /// The file.
        file: &'static str,
    },
    /// The kernel was built without something.
    #[error("cannot {doing}: this kernel has no {lacking}")]
    NoSupport {
        /// What was tried.
        doing: &'static str,
        /// What the kernel lacks, with the configuration option that adds it.
        lacking: &'static str,
    },
    /// Another XDP program is on the device.
    #[error(
        "another XDP program is attached to {device}; remove it with `{command}`, or end the program that holds it"
    )]
    Claimed {
        /// The device.
        device: String,
        /// What removes the other program.
        command: String,
    },
    /// The device's driver does not run XDP programs in the mode asked for.
    #[error("{device} does not take an XDP program in {mode} mode: {source}")]
    Unsupported {
        /// The device.
        device: String,
        /// The mode.
        mode: super::Mode,
        /// What the kernel said.
        source: io::Error,
    },
    /// No device of this index.
    #[error("there is no network device with index {0} here")]
    NoDevice(u32),
    /// A port was given with a protocol that has none.
    #[error("protocol {0} cannot be steered: only TCP (6) and UDP (17) can")]
    Protocol(u8),
    /// A tunnel of a protocol that encapsulates nothing.
    #[error("protocol {0} is no encapsulation: IPv4 in IP (4), IPv6 in IP (41), GRE (47) and UDP (17) are")]
    Encapsulation(u8),
    /// The kernel's verifier refuses a program.
    #[error("the kernel's verifier refuses the program ({source}):\n{log}")]
    Verifier {
        /// What the call returned.
        source: io::Error,
        /// The end of the verifier's log.
        log: String,
    },
    /// A program could not be assembled.
    #[error("the steering program could not be assembled: {0}")]
    Assembly(#[from] AssemblyError),
    /// Anything else the kernel answered.
    #[error("cannot {doing}: {source}")]
    Os {
        /// What was tried.
        doing: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl SteerError {
    pub(super) fn os(doing: impl Into<String>, source: io::Error) -> Self {
        SteerError::Os { doing: doing.into(), source }
    }

    /// What a failed `bpf(2)` means.
    pub(super) fn from_bpf(doing: &'static str, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => {
                SteerError::NotPermitted { doing, lacking: missing_capabilities(&[CAP_BPF, CAP_NET_ADMIN]) }
            }
            Some(libc::ENOSYS) => {
                SteerError::NoSupport { doing, lacking: "bpf(2) system call (CONFIG_BPF_SYSCALL)" }
            }
            _ => SteerError::os(doing, source),
        }
    }

    /// What the verifier's refusal means. Without `CAP_PERFMON` it forbids what reading headers of any length takes.
    pub(super) fn from_verifier(source: io::Error, log: String) -> Self {
        match &missing_capabilities(&[CAP_PERFMON])[..] {
            [] => SteerError::Verifier { source, log },
            lacking => SteerError::NotPermitted { doing: "load a BPF program", lacking: lacking.to_vec() },
        }
    }

    /// What a failure to open a raw socket of a family means.
    pub(super) fn from_socket(doing: &'static str, source: io::Error, family: &'static str) -> Self {
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => {
                SteerError::NotPermitted { doing, lacking: missing_capabilities(&[CAP_NET_RAW]) }
            }
            Some(libc::EAFNOSUPPORT) => SteerError::NoSupport { doing, lacking: family },
            _ => SteerError::os(doing, source),
        }
    }

    /// What a failed netlink request or ioctl means.
    pub(super) fn from_network(doing: &'static str, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => {
                SteerError::NotPermitted { doing, lacking: missing_capabilities(&[CAP_NET_ADMIN]) }
            }
            _ => SteerError::os(doing, source),
        }
    }
}

fn missing(lacking: &[&str]) -> String {
    if lacking.is_empty() {
        "this process has the capabilities, but a security policy (lockdown, seccomp, a user namespace) forbids it".into()
    } else {
        format!("this process lacks {}; run it as root or give it these", lacking.join(" and "))
    }
}

type Capability = (&'static str, u32);
const CAP_NET_ADMIN: Capability = ("CAP_NET_ADMIN", 12);
const CAP_NET_RAW: Capability = ("CAP_NET_RAW", 13);
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: Capability = ("CAP_PERFMON", 38);
const CAP_BPF: Capability = ("CAP_BPF", 39);

/// Which of the capabilities `needed` this thread does not have in effect. `CAP_SYS_ADMIN` includes `CAP_BPF` and
/// `CAP_PERFMON`.
fn missing_capabilities(needed: &[Capability]) -> Vec<&'static str> {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let Some(effective) = effective_capabilities(&status) else { return Vec::new() };
    let in_effect = |bit: u32| effective >> bit & 1 == 1;
    let has =
        |bit: u32| in_effect(bit) || [CAP_BPF.1, CAP_PERFMON.1].contains(&bit) && in_effect(CAP_SYS_ADMIN);
    needed.iter().filter(|&&(_, bit)| !has(bit)).map(|&(name, _)| name).collect()
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_effective_set() {
        assert_eq!(effective_capabilities("Name:\tx\nCapEff:\t000001ff00000000\n"), Some(0x1ff << 32));
        assert_eq!(effective_capabilities("Name:\tx\n"), None);
    }

    #[test]
    fn says_what_is_missing() {
        let error = SteerError::NotPermitted { doing: "load a BPF program", lacking: vec!["CAP_BPF"] };
        assert_eq!(
            error.to_string(),
            "not allowed to load a BPF program: this process lacks CAP_BPF; run it as root or give it these"
        );
    }
}
