//! Judges that need no tables: one forwards everything from one device to the next.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use uvs_conntrack::Tick;
use uvs_engine::worker::Process;
use uvs_engine::{Packet, PortId, Reason, Snapshot, Verdict};

/// Sends what comes from port 2n out of port 2n + 1 and the other way round, with transport checksums completed: a veth peer
/// leaves them to the device.
#[derive(Debug, Default)]
pub(crate) struct Forwarder {
    pub(crate) seen: Arc<Seen>,
}

#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) in_parts: AtomicU64,
    pub(crate) dropped: AtomicU64,
    pub(crate) longest: AtomicU64,
}

impl Process for Forwarder {
    fn process(&mut self, _: &Snapshot, _: Tick, packets: &mut [Packet<'_>], verdicts: &mut [Verdict]) {
        for (packet, verdict) in packets.iter_mut().zip(verdicts) {
            self.seen.in_parts.fetch_add(u64::from(!packet.rest().is_empty()), Relaxed);
            self.seen.longest.fetch_max(packet.total_len() as u64, Relaxed);
            complete_checksum(packet);
            *verdict = Verdict::Transmit(PortId(packet.port().0 ^ 1));
        }
    }

    fn dropped(&mut self, _: Reason, _: Option<(PortId, &[&[u8]])>) {
        self.seen.dropped.fetch_add(1, Relaxed);
    }

    fn between(&mut self, _: Tick) {}

    fn sleep(&mut self, _: Tick) {}
}

/// Computes the checksum of TCP or UDP over IPv4 anew, over all parts.
pub(crate) fn complete_checksum(packet: &mut Packet<'_>) {
    const NETWORK: usize = 14;
    const TRANSPORT: usize = 34;
    let rest = packet.rest();
    let frame = packet.frame_mut();
    if frame.len() < TRANSPORT + 8 || frame[12..14] != [8, 0] || frame[NETWORK] != 0x45 {
        return;
    }
    let field = match frame[NETWORK + 9] {
        6 => TRANSPORT + 16,
        17 => TRANSPORT + 6,
        _ => return,
    };
    let length = usize::from(u16::from_be_bytes([frame[16], frame[17]])) - 20;
    frame[field..field + 2].fill(0);
    let header = [&frame[NETWORK + 12..TRANSPORT], &[0, frame[NETWORK + 9]]].concat();
    let mut sum = sum_words(&header) + length as u64;
    let (first, mut left) = (&frame[TRANSPORT..], length);
    let mut odd = false;
    for part in std::iter::once(first).chain(rest.iter().copied()) {
        let part = &part[..part.len().min(left)];
        left -= part.len();
        let words = sum_words(part);
        // The words of a part that starts at an odd byte are swapped, and so is their sum (RFC 1071).
        sum += if odd { words << 8 } else { words };
        odd ^= part.len() % 2 == 1;
    }
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    let sum = !u16::try_from(sum).unwrap();
    frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
}

/// The sum of the 16-bit words of `bytes`, an odd last one padded with zero.
fn sum_words(bytes: &[u8]) -> u64 {
    let (words, last) = bytes.as_chunks::<2>();
    let sum: u64 = words.iter().map(|&word| u64::from(u16::from_be_bytes(word))).sum();
    sum + last.first().map_or(0, |&byte| u64::from(byte) << 8)
}
