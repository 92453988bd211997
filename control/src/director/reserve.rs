//! Ports kept from the kernel's own sockets (`reserve_ports`), for full NAT at addresses of this host.
//!
//! What was reserved before is noted in a file before it is changed, and restored at the end: by this director, or when it was
//! killed by the next one or by `uvs guard off`.

use std::fs;
use std::io::{self, Write};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use uvs_engine::link::namespace;

const SYSCTL: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
const NOTES: &str = "/run/uvs";

/// Keeps these ports from the kernel's own sockets, and no others than before. With none, all is as it was.
///
/// # Errors
/// The note cannot be written, or the kernel refuses.
pub(super) fn reserve(wanted: &[RangeInclusive<u16>]) -> io::Result<()> {
    let note = note()?;
    let current = fs::read_to_string(SYSCTL)?.trim().to_owned();
    let before = read(&note)?.map_or_else(|| current.clone(), |(before, _)| before);
    let ours = union(&before, wanted);
    if wanted.is_empty() {
        return restore().map(drop);
    }
    if current == ours {
        return Ok(());
    }
    fs::create_dir_all(NOTES)?;
    let mut file = fs::File::create(&note)?;
    write!(file, "{before}\n{ours}\n")?;
    file.sync_all()?;
    fs::write(SYSCTL, format!("{ours}\n"))
}

/// Undoes what `reserve` did in this network namespace, by whichever process. Says whether there was anything to undo. What
/// somebody else has changed since stays as it is.
///
/// # Errors
/// The note cannot be read, or the kernel refuses.
pub fn restore() -> io::Result<bool> {
    let note = note()?;
    let Some((before, ours)) = read(&note)? else { return Ok(false) };
    if fs::read_to_string(SYSCTL)?.trim() == ours {
        fs::write(SYSCTL, format!("{before}\n"))?;
    } else {
        tracing::warn!("{SYSCTL} was changed by somebody else and stays as it is");
    }
    fs::remove_file(note)?;
    Ok(true)
}

/// Where this network namespace's note is.
fn note() -> io::Result<PathBuf> {
    Ok(Path::new(NOTES).join(format!("reserved-ports-{}", namespace::cookie()?)))
}

/// What a note says: the ports that were reserved before, and those that are.
fn read(note: &Path) -> io::Result<Option<(String, String)>> {
    match fs::read_to_string(note) {
        Ok(text) => {
            let mut lines = text.lines().map(str::to_owned);
            Ok(lines.next().zip(lines.next()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A list of ports, in the kernel's notation.
pub(super) fn ranges(text: &str) -> impl Iterator<Item = RangeInclusive<u16>> {
    text.trim().split(',').filter_map(|word| {
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        Some(first.parse().ok()?..=last.parse().ok()?)
    })
}

/// The ports of `text` and of `more`, as the kernel prints them.
fn union(text: &str, more: &[RangeInclusive<u16>]) -> String {
    let mut all: Vec<_> = ranges(text).chain(more.iter().cloned()).collect();
    all.sort_by_key(|range| *range.start());
    let mut merged: Vec<RangeInclusive<u16>> = Vec::new();
    for range in all {
        match merged.last_mut() {
            Some(last) if *range.start() <= last.end().saturating_add(1) => {
                *last = *last.start()..=*last.end().max(range.end());
            }
            _ => merged.push(range),
        }
    }
    let words = merged.iter().map(|range| match (range.start(), range.end()) {
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first}-{last}"),
    });
    words.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_joined_as_the_kernel_prints_them() {
        for (before, more, expected) in [
            ("", vec![], ""),
            ("", vec![5000..=5000], "5000"),
            ("8080,40000-40009", vec![40005..=40020, 50000..=60999], "8080,40000-40020,50000-60999"),
            ("1-2", vec![3..=4], "1-4"),
            ("65535", vec![1..=65534], "1-65535"),
        ] {
            assert_eq!(union(before, &more), expected, "{before:?} and {more:?}");
        }
    }
}
