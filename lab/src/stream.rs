//! One endless deterministic stream of bytes: every byte depends on its place, so a lost, doubled, swapped or changed
//! byte anywhere in a transfer is found.

use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Fills `buffer` with the stream's bytes from `offset` on.
pub fn fill(offset: u64, buffer: &mut [u8]) {
    let mut place = offset;
    let mut rest = buffer;
    while !rest.is_empty() {
        let word = word(place / 8);
        let skip = (place % 8) as usize;
        let take = rest.len().min(8 - skip);
        let (now, later) = rest.split_at_mut(take);
        now.copy_from_slice(&word[skip..skip + take]);
        place += take as u64;
        rest = later;
    }
}

/// The SHA-256 of the stream's first `length` bytes, in hexadecimal. Lengths once asked for are remembered.
pub fn sha256(length: u64) -> String {
    static KNOWN: Mutex<BTreeMap<u64, String>> = Mutex::new(BTreeMap::new());
    let known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner).get(&length).cloned();
    known.unwrap_or_else(|| {
        let hash = compute_sha256(length);
        KNOWN.lock().unwrap_or_else(PoisonError::into_inner).insert(length, hash.clone());
        hash
    })
}

fn compute_sha256(length: u64) -> String {
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 64 * 1024];
    let mut done = 0;
    while done < length {
        let take = chunk_len(length - done, chunk.len());
        fill(done, &mut chunk[..take]);
        hash.update(&chunk[..take]);
        done += take as u64;
    }
    hex(&hash.finalize())
}

/// Bytes of the next chunk when `left` remain and a chunk has room for `room`.
pub(crate) fn chunk_len(left: u64, room: usize) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(room)
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Eight bytes of the stream: the finaliser of SplitMix64 over the word's number.
fn word(index: u64) -> [u8; 8] {
    let mut z = index.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x5555_7673);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_cut_of_the_stream_gives_the_same_bytes() {
        let mut whole = [0; 100];
        fill(0, &mut whole);
        for (from, to) in [(0, 1), (3, 21), (7, 8), (8, 9), (15, 100), (99, 100)] {
            let mut part = vec![0; to - from];
            fill(from as u64, &mut part);
            assert_eq!(part, whole[from..to], "bytes {from}..{to}");
        }
    }

    #[test]
    fn the_hash_is_that_of_the_bytes() {
        let mut bytes = vec![0; 200_001];
        fill(0, &mut bytes);
        assert_eq!(sha256(200_001), hex(&Sha256::digest(&bytes)));
        assert_eq!(sha256(0), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
