//! The hashing schedulers: their tables made anew for each choice.

use crate::kernel::{Ask, Real, Service};

/// The table of mh in these tests, the smallest that a kernel can have, and half its index.
pub(crate) const SIZE: u32 = 251;
const BITS: u32 = 8 / 2;

fn hash_32(value: u32) -> usize {
    (value.wrapping_mul(0x61c8_8647) >> 24) as usize
}

/// What a client's hash begins with.
fn key(service: &Service, ask: &Ask) -> u32 {
    ask.client.wrapping_add(if service.by_port { u32::from(ask.port) } else { 0 })
}

fn look_up(service: &Service, table: &[usize], bucket: impl Fn(usize) -> usize) -> Option<usize> {
    let first = bucket(0);
    let usable = |bucket: usize| Some(*table.get(bucket)?).filter(|place| service.list[*place].usable());
    if !service.fallback {
        return usable(first);
    }
    let mut found = usable(first);
    for offset in 0..table.len() {
        found = found.or_else(|| usable(bucket((offset + first) % table.len())));
    }
    found
}

pub(crate) fn destination_hashing(service: &Service, ask: &Ask) -> Option<usize> {
    let place = hash_32(ask.address).checked_rem(service.list.len())?;
    service.list[place].usable().then_some(place)
}

pub(crate) fn source_hashing(service: &Service, ask: &Ask) -> Option<usize> {
    let mut table = Vec::new();
    let mut place = 0;
    let mut filled = 0;
    while table.len() < 256 && !service.list.is_empty() {
        table.push(place);
        filled += 1;
        if filled >= service.list[place].weight {
            place = (place + 1) % service.list.len();
            filled = 0;
        }
    }
    let hashed = hash_32(key(service, ask));
    look_up(service, &table, |offset| (offset + hashed) & 255)
}

fn sip_hash_1_3(key: u64, bytes: [u8; 4]) -> u32 {
    let (mut a, mut b) = (key ^ 0x736f_6d65_7073_6575, key ^ 0x646f_7261_6e64_6f6d);
    let (mut c, mut d) = (key ^ 0x6c79_6765_6e65_7261, key ^ 0x7465_6462_7974_6573);
    let block = u64::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3], 0, 0, 0, 4]);
    let mut round = |before: u64, after: u64, ends: u64| {
        d ^= before;
        a = a.wrapping_add(b);
        b = a ^ b.rotate_left(13);
        a = a.rotate_left(32);
        c = c.wrapping_add(d);
        d = c ^ d.rotate_left(16);
        a = a.wrapping_add(d);
        d = a ^ d.rotate_left(21);
        c = c.wrapping_add(b);
        b = c ^ b.rotate_left(17);
        c = c.rotate_left(32);
        a ^= after;
        c ^= ends;
        a ^ b ^ c ^ d
    };
    round(block, block, 0xff);
    round(0, 0, 0);
    round(0, 0, 0);
    u32::try_from(round(0, 0, 0) & 0xffff_ffff).expect("half of it")
}

fn first_hash(value: u32) -> usize {
    sip_hash_1_3(2_654_435_761, value.to_le_bytes()) as usize
}

pub(crate) fn maglev(service: &Service, ask: &Ask) -> Option<usize> {
    let size = SIZE as usize;
    let heaviest = service.list.iter().map(|real| real.last_weight).max().unwrap_or(0);
    if heaviest == 0 {
        return None;
    }
    let divides = |d: &i64| service.list.iter().all(|real| real.last_weight % d == 0);
    let divisor = (1..=heaviest).rev().find(divides).expect("1 divides all");
    let occupied = 64 - (heaviest / divisor).leading_zeros();
    let shift = occupied.saturating_sub(BITS);
    let turns = |real: &Real| match real.last_weight {
        0 => 0,
        weight => ((weight / divisor) >> shift).max(1),
    };
    let home = |real: &Real| real.id.wrapping_add(80);
    let second_hash = |value: u32| sip_hash_1_3(2_654_446_892, value.to_le_bytes()) as usize;
    let steps: Vec<_> = service.list.iter().map(|real| second_hash(home(real)) % (size - 1) + 1).collect();
    let mut places: Vec<_> = service.list.iter().map(|real| first_hash(home(real)) % size).collect();
    let mut table = vec![usize::MAX; size];
    let mut taken = 0;
    'full: loop {
        for (place, real) in service.list.iter().enumerate() {
            for _ in 0..turns(real) {
                if taken == size {
                    break 'full;
                }
                while table[places[place]] != usize::MAX {
                    places[place] = (places[place] + steps[place]) % size;
                }
                table[places[place]] = place;
                taken += 1;
            }
        }
    }
    look_up(service, &table, |offset| {
        let offset = u32::try_from(offset).expect("a small one");
        first_hash(key(service, ask).wrapping_add(offset)) % size
    })
}
