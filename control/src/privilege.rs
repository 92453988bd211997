//! Which capabilities a director needs, and which of them this process lacks.

use std::fmt;

/// A capability by its bit in `CapEff` and what a director needs it for.
struct Need {
    bit: u32,
    name: &'static str,
    purpose: &'static str,
}

/// Bits from `linux/capability.h`.
const NEEDS: &[Need] = &[
    Need { bit: 12, name: "CAP_NET_ADMIN", purpose: "attach the steering program and the guard" },
    Need { bit: 13, name: "CAP_NET_RAW", purpose: "open AF_XDP and packet sockets" },
    Need {
        bit: PERFMON,
        name: "CAP_PERFMON",
        purpose: "let the steering program and the guard read headers of any length",
    },
    Need { bit: BPF, name: "CAP_BPF", purpose: "load the steering program and the guard" },
];

/// `CAP_SYS_ADMIN` includes what `CAP_BPF` and `CAP_PERFMON` were split from.
const SYS_ADMIN: u32 = 21;
const PERFMON: u32 = 38;
const BPF: u32 = 39;

/// The capabilities this process lacks, as one sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Missing(Vec<(&'static str, &'static str)>);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this process lacks ")?;
        for (n, (name, purpose)) in self.0.iter().enumerate() {
            write!(f, "{}{name} (to {purpose})", if n > 0 { ", " } else { "" })?;
        }
        f.write_str(": run as root, or give the binary these capabilities with setcap")
    }
}

/// Checks the effective capabilities of this process.
pub fn check() -> Result<(), Missing> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    match effective(&status) {
        Some(set) => check_set(set),
        // Without /proc the kernel will tell at the first call that needs one.
        None => Ok(()),
    }
}

fn effective(status: &str) -> Option<u64> {
    let hex = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(hex.trim(), 16).ok()
}

fn check_set(set: u64) -> Result<(), Missing> {
    let has = |bit: u32| set >> bit & 1 == 1;
    let missing: Vec<_> = NEEDS
        .iter()
        .filter(|need| !(has(need.bit) || [BPF, PERFMON].contains(&need.bit) && has(SYS_ADMIN)))
        .map(|need| (need.name, need.purpose))
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(Missing(missing)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_lacks_nothing_and_nobody_everything() {
        assert_eq!(check_set(u64::MAX), Ok(()));
        let sentence = check_set(0).unwrap_err().to_string();
        for name in ["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_PERFMON", "CAP_BPF"] {
            assert!(sentence.contains(name), "{sentence}");
        }
    }

    #[test]
    fn sys_admin_stands_in_for_bpf() {
        assert_eq!(check_set(1 << 12 | 1 << 13 | 1 << 21), Ok(()));
        assert_eq!(check_set(1 << 12 | 1 << 38 | 1 << 39).unwrap_err().0.len(), 1);
    }

    #[test]
    fn reads_the_line_of_proc() {
        assert_eq!(effective("Name:\tx\nCapEff:\t00000000a80425fb\n"), Some(0xa804_25fb));
        assert_eq!(effective("Name:\tx\n"), None);
    }
}
