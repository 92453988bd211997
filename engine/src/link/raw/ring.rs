//! The receive ring of a packet socket (`TPACKET_V2`): slots of equal size that kernel and user space own in turn.
//!
//! A slot begins with `struct tpacket2_hdr` and, behind it, the sender's `struct sockaddr_ll`; the frame lies where the
//! header says, its offload header (`struct virtio_net_hdr`) right before it.
#![allow(unsafe_code)] // memory shared with the kernel; see the SAFETY lines

use super::sys::{self, Mapping, VNET_HEADER};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering::Acquire, Ordering::Release};

/// Offsets in `struct tpacket2_hdr`.
mod at {
    pub(super) const LENGTH: usize = 4;
    pub(super) const CAPTURED: usize = 8;
    pub(super) const MAC: usize = 12;
    pub(super) const TAG: usize = 24;
    pub(super) const TAG_KIND: usize = 26;
    /// Of the `struct sockaddr_ll` behind it: whose frame it is.
    pub(super) const PACKET_TYPE: usize = 32 + 10;
}

/// Offsets in `struct virtio_net_hdr`, and the kind of a UDP super-frame there (Linux 6.2; older kernels lose those).
mod offload {
    pub(super) const KIND: usize = 1;
    pub(super) const SIZE: usize = 4;
    pub(super) const UDP: u8 = 5;
}

/// What the status word of a slot says.
mod status {
    pub(super) const OURS: u32 = 1;
    pub(super) const LONGER: u32 = 1 << 1;
    pub(super) const TAGGED: u32 = 1 << 4;
    pub(super) const TAG_KIND_KNOWN: u32 = 1 << 6;
}

/// `PACKET_OTHERHOST` and `PACKET_OUTGOING`: frames that a promiscuous device heard, frames this host sent.
const NOT_RECEIVED: [u8; 2] = [3, 4];

/// The receive ring.
#[derive(Debug)]
pub(super) struct Ring {
    mapping: Mapping,
    slot: usize,
    slots: usize,
    next: usize,
}

/// What lies in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Arrival<'a> {
    /// The frame, from its Ethernet header on, without the tag; its beginning only when it is longer than the slot.
    pub(super) bytes: &'a [u8],
    /// Its length without the tag.
    pub(super) length: usize,
    /// Whether the whole of it waits to be read from the socket.
    pub(super) waits: bool,
    /// The VLAN tag that the kernel or the device took out of the frame: its ethertype and its value.
    pub(super) tag: Option<[u8; 4]>,
    /// Whether it came from the wire, for this host or for many.
    pub(super) received: bool,
    /// Bytes of data in each datagram that it was made of, if it is a UDP super-frame.
    pub(super) datagrams: Option<u16>,
}

impl Ring {
    /// Maps the ring that was made with these sizes ([`sys::make_ring`]).
    pub(super) fn map(fd: &OwnedFd, slots: u32, slot: u32) -> io::Result<Self> {
        let (slots, slot) = (slots as usize, slot as usize);
        Ok(Ring { mapping: Mapping::new(fd, slots * slot)?, slot, slots, next: 0 })
    }

    /// Where the next slot begins.
    fn slot(&self) -> *mut u8 {
        // SAFETY: `next` is below `slots`, so this lies within the mapping.
        unsafe { self.mapping.base.as_ptr().add(self.next * self.slot) }
    }

    fn status(&self) -> &AtomicU32 {
        // SAFETY: slots are aligned to 16 bytes at least, live as long as the mapping, and the kernel, too, reads and writes this
        // word as a whole.
        unsafe { AtomicU32::from_ptr(self.slot().cast()) }
    }

    /// The next frame, if there is one.
    pub(super) fn peek(&self) -> Option<Arrival<'_>> {
        let status = self.status().load(Acquire);
        if status & status::OURS == 0 {
            return None;
        }
        // SAFETY: the slot lies within the mapping; its status says that the kernel has finished writing it, and it does not
        // write it again before `release`, which takes the ring mutably and so ends the life of this slice.
        let slot = unsafe { std::slice::from_raw_parts(self.slot(), self.slot) };
        Some(arrival(slot, status))
    }

    /// Gives the next slot back to the kernel.
    pub(super) fn release(&mut self) {
        self.status().store(0, Release);
        self.next = (self.next + 1) % self.slots;
    }
}

fn arrival(slot: &[u8], status: u32) -> Arrival<'_> {
    let word = |at: usize| u32::from_ne_bytes(bytes(slot, at)) as usize;
    let half = |at: usize| u16::from_ne_bytes(bytes(slot, at));
    let start = usize::from(half(at::MAC));
    let captured = slot.get(start..).unwrap_or_default();
    let length = word(at::LENGTH);
    let tag = (status & status::TAGGED != 0).then(|| {
        let kind = if status & status::TAG_KIND_KNOWN != 0 { half(at::TAG_KIND) } else { 0x8100 };
        let ([a, b], [c, d]) = (kind.to_be_bytes(), half(at::TAG).to_be_bytes());
        [a, b, c, d]
    });
    let offload = start.checked_sub(VNET_HEADER).and_then(|start| slot.get(start..)).unwrap_or_default();
    let datagrams = (offload.get(offload::KIND) == Some(&offload::UDP))
        .then(|| u16::from_ne_bytes(bytes(offload, offload::SIZE)));
    Arrival {
        bytes: &captured[..captured.len().min(word(at::CAPTURED))],
        length,
        waits: status & status::LONGER != 0,
        tag,
        received: !NOT_RECEIVED.contains(&slot[at::PACKET_TYPE]),
        datagrams,
    }
}

fn bytes<const N: usize>(slot: &[u8], at: usize) -> [u8; N] {
    slot.get(at..).and_then(|rest| rest.first_chunk().copied()).unwrap_or([0; N])
}

/// The size of slots for frames of `mtu`: a power of two that divides a block.
pub(super) fn slot_for(mtu: u32) -> u32 {
    /// `struct tpacket2_hdr`, `struct sockaddr_ll`, the offload header, alignment, Ethernet header, one inner VLAN tag.
    const HEADERS: u32 = 128;
    mtu.saturating_add(HEADERS).next_power_of_two().clamp(2048, sys::BLOCK)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(length: u32, captured: u32, frame: &[u8]) -> Vec<u8> {
        let mut slot = vec![0; 256];
        slot[at::LENGTH..][..4].copy_from_slice(&length.to_ne_bytes());
        slot[at::CAPTURED..][..4].copy_from_slice(&captured.to_ne_bytes());
        slot[at::MAC..][..2].copy_from_slice(&92_u16.to_ne_bytes());
        slot[at::TAG..][..2].copy_from_slice(&0x2064_u16.to_ne_bytes());
        slot[at::TAG_KIND..][..2].copy_from_slice(&0x88a8_u16.to_ne_bytes());
        slot[92..][..frame.len()].copy_from_slice(frame);
        slot
    }

    #[test]
    fn reads_what_the_header_says() {
        let plain = slot(60, 60, &[7; 60]);
        let whole =
            Arrival { bytes: &[7; 60], length: 60, waits: false, tag: None, received: true, datagrams: None };
        assert_eq!(arrival(&plain, 1), whole);
        assert_eq!(arrival(&plain, 1 | 1 << 4).tag, Some([0x81, 0, 0x20, 0x64]));
        assert_eq!(arrival(&plain, 1 | 1 << 4 | 1 << 6).tag, Some([0x88, 0xa8, 0x20, 0x64]));
        let mut made_of_many = plain.clone();
        made_of_many[92 - VNET_HEADER + offload::KIND] = offload::UDP;
        made_of_many[92 - VNET_HEADER + offload::SIZE..][..2].copy_from_slice(&1200_u16.to_ne_bytes());
        assert_eq!(arrival(&made_of_many, 1), Arrival { datagrams: Some(1200), ..whole });
        let long = slot(9000, 164, &[7; 164]);
        assert_eq!(arrival(&long, 3), Arrival { bytes: &[7; 164], length: 9000, waits: true, ..whole });
        let mut outgoing = plain.clone();
        outgoing[at::PACKET_TYPE] = 4;
        assert!(!arrival(&outgoing, 1).received);
        // The kernel would not; nothing is read beyond the slot all the same.
        let wrong = slot(60, 6000, &[7; 60]);
        assert_eq!(arrival(&wrong, 1).bytes.len(), 256 - 92);
    }

    #[test]
    fn slots_hold_a_frame_and_divide_a_block() {
        for (mtu, slot) in
            [(68, 2048), (1500, 2048), (1920, 2048), (1921, 4096), (9000, 16384), (65_535, 65_536)]
        {
            assert_eq!(slot_for(mtu), slot, "{mtu}");
            assert_eq!(sys::BLOCK % slot_for(mtu), 0);
        }
    }

    #[test]
    fn the_layout_is_the_kernels() {
        use std::mem::offset_of;
        type Header = libc::tpacket2_hdr;
        assert_eq!(
            [
                offset_of!(Header, tp_len),
                offset_of!(Header, tp_snaplen),
                offset_of!(Header, tp_mac),
                offset_of!(Header, tp_vlan_tci),
                offset_of!(Header, tp_vlan_tpid),
                size_of::<Header>().next_multiple_of(16) + offset_of!(libc::sockaddr_ll, sll_pkttype),
            ],
            [at::LENGTH, at::CAPTURED, at::MAC, at::TAG, at::TAG_KIND, at::PACKET_TYPE]
        );
    }
}
