//! Reading capture files of either format.

use super::{Clock, Direction, ETHERNET, Error, Interface, MAX_FRAME, Record, block, magic, option};
use std::io::Read;
use std::time::Duration;

/// The longest pcapng block that is believed: a frame with 16 MiB of options, as Wireshark has it.
const MAX_BLOCK: u32 = 16 << 20;

/// Interfaces of one file that are kept.
const MAX_INTERFACES: usize = 65_536;

/// The order of a file's numbers.
#[derive(Clone, Copy, Debug)]
enum Order {
    Little,
    Big,
}

impl Order {
    fn half(self, bytes: [u8; 2]) -> u16 {
        match self {
            Order::Little => u16::from_le_bytes(bytes),
            Order::Big => u16::from_be_bytes(bytes),
        }
    }

    fn word(self, bytes: [u8; 4]) -> u32 {
        match self {
            Order::Little => u32::from_le_bytes(bytes),
            Order::Big => u32::from_be_bytes(bytes),
        }
    }

    fn long(self, bytes: [u8; 8]) -> u64 {
        match self {
            Order::Little => u64::from_le_bytes(bytes),
            Order::Big => u64::from_be_bytes(bytes),
        }
    }
}

/// A capture being read from its beginning. An iterator over its frames; after an error there are none.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    /// Bytes read so far.
    at: u64,
    order: Order,
    format: Format,
    interfaces: Vec<Interface>,
    /// When the last frame was: simple packets do not say.
    last: Duration,
    ended: bool,
}

#[derive(Clone, Copy, Debug)]
enum Format {
    Pcap,
    /// The first interface of the section is that one.
    Pcapng(usize),
}

impl<R: Read> Reader<R> {
    /// Reads the beginning of a capture.
    ///
    /// # Errors
    /// When it is none.
    pub fn new(from: R) -> Result<Self, Error> {
        let mut reader = Reader {
            from,
            at: 0,
            order: Order::Little,
            format: Format::Pcap,
            interfaces: Vec::new(),
            last: Duration::ZERO,
            ended: false,
        };
        let first: [u8; 4] = reader.start()?.ok_or(Error::NotACapture)?;
        let known = [magic::MICROSECONDS, magic::NANOSECONDS];
        match (u32::from_le_bytes(first), u32::from_be_bytes(first)) {
            (block::SECTION, _) => reader.section(0)?,
            (number, _) if known.contains(&number) => reader.pcap(Order::Little, number)?,
            (_, number) if known.contains(&number) => reader.pcap(Order::Big, number)?,
            _ => return Err(Error::NotACapture),
        }
        Ok(reader)
    }

    /// What frames so far were captured from. A pcap file has one interface without a name.
    pub fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    /// What it reads from.
    pub fn get_ref(&self) -> &R {
        &self.from
    }

    /// The rest of a pcap file's header.
    fn pcap(&mut self, order: Order, number: u32) -> Result<(), Error> {
        let header: [u8; 20] = self.array()?;
        self.order = order;
        let fields = Fields { bytes: &header, order, at: 0 };
        if fields.half(0) != Some(2) {
            return Err(Error::Damaged { at: 4, what: "its version is not 2" });
        }
        // The upper half of the link type tells of a frame check sequence, which is as padding to us.
        let link_type = fields.word(16).unwrap_or(0) & 0xffff;
        let units = if number == magic::NANOSECONDS { 1_000_000_000 } else { 1_000_000 };
        let link_type = u16::try_from(link_type).unwrap_or(0);
        let clock = Clock { units, offset: 0 };
        self.interfaces.push(Interface { name: None, lost: None, link_type, snap: 0, clock });
        if link_type == ETHERNET { Ok(()) } else { Err(Error::LinkType(link_type)) }
    }

    fn pcap_record(&mut self) -> Result<Option<Record>, Error> {
        let at = self.at;
        let Some(header) = self.start::<16>()? else { return Ok(None) };
        let order = self.order;
        let word = |n| {
            let fields = Fields { bytes: &header, order, at };
            fields.word(n).unwrap_or(0)
        };
        let (seconds, fraction, length, wire_len) = (word(0), word(4), word(8), word(12));
        if length > MAX_FRAME {
            return Err(Error::Damaged { at, what: "a frame of more than 262144 bytes" });
        }
        let bytes = self.bytes(length)?;
        let fraction = self.interfaces[0].clock.duration(fraction.into());
        let time = Duration::from_secs(seconds.into()).saturating_add(fraction);
        Ok(Some(Record {
            interface: 0,
            time,
            wire_len: wire_len.max(length),
            direction: None,
            comment: None,
            bytes,
        }))
    }

    /// The next frame of a pcapng file; the blocks before it are taken note of.
    fn pcapng_record(&mut self) -> Result<Option<Record>, Error> {
        loop {
            let at = self.at;
            let Some(kind) = self.start()? else { return Ok(None) };
            let kind = self.order.word(kind);
            // The same in either order.
            if kind == block::SECTION {
                self.section(at)?;
                continue;
            }
            let length = self.array()?;
            let length = self.order.word(length);
            let body = self.body(at, length, 8)?;
            let order = self.order;
            let fields = Fields { bytes: &body, order, at };
            let record = match kind {
                block::INTERFACE => {
                    self.interface(&fields)?;
                    None
                }
                block::ENHANCED => Some(self.enhanced(&fields)?),
                block::SIMPLE => Some(self.simple(&fields)?),
                block::STATISTICS => {
                    self.statistics(&fields)?;
                    None
                }
                _ => None,
            };
            if record.is_some() {
                return Ok(record);
            }
        }
    }

    /// A section header after its type: from here on the order may be another one, and interfaces are counted anew.
    fn section(&mut self, at: u64) -> Result<(), Error> {
        let [length, order] = [self.array()?, self.array()?];
        self.order = match (u32::from_le_bytes(order), u32::from_be_bytes(order)) {
            (block::ORDER, _) => Order::Little,
            (_, block::ORDER) => Order::Big,
            _ => return Err(Error::Damaged { at, what: "a section header without byte-order magic" }),
        };
        let body = self.body(at, self.order.word(length), 12)?;
        let fields = Fields { bytes: &body, order: self.order, at };
        if fields.half(0) != Some(1) {
            return Err(Error::Damaged { at, what: "a section whose version is not 1" });
        }
        self.format = Format::Pcapng(self.interfaces.len());
        Ok(())
    }

    /// What is left of a block of `length` bytes of which `read` were read, without the length that is repeated at its end.
    fn body(&mut self, at: u64, length: u32, read: u32) -> Result<Vec<u8>, Error> {
        let rest = length.checked_sub(read + 4).filter(|_| length.is_multiple_of(4) && length <= MAX_BLOCK);
        let rest = rest.ok_or(Error::Damaged { at, what: "a block of impossible length" })?;
        let body = self.bytes(rest)?;
        let repeated = self.array()?;
        if self.order.word(repeated) != length {
            return Err(Error::Damaged { at, what: "a block whose two lengths differ" });
        }
        Ok(body)
    }

    fn interface(&mut self, fields: &Fields<'_>) -> Result<(), Error> {
        let too_short = fields.damaged("an interface description that is too short");
        let (Some(link_type), Some(snap)) = (fields.half(0), fields.word(4)) else { return Err(too_short) };
        let mut interface = Interface {
            name: None,
            lost: None,
            link_type,
            snap,
            clock: Clock { units: 1_000_000, offset: 0 },
        };
        fields.options(8, |code, value| {
            match (code, value) {
                (option::NAME, name) => interface.name = Some(String::from_utf8_lossy(name).into_owned()),
                (option::RESOLUTION, [resolution, ..]) => {
                    let exponent = u32::from(resolution & 0x7f);
                    let base = if resolution & 0x80 == 0 { 10_u128 } else { 2 };
                    match base.checked_pow(exponent) {
                        Some(units) => interface.clock.units = units,
                        None => return Err(fields.damaged("an interface with an impossible unit of time")),
                    }
                }
                (option::OFFSET, value) => {
                    let offset = value.first_chunk().map_or(0, |value| fields.order.long(*value));
                    interface.clock.offset = offset.cast_signed();
                }
                _ => {}
            }
            Ok(())
        })?;
        if self.interfaces.len() >= MAX_INTERFACES {
            return Err(fields.damaged("more than 65536 interfaces"));
        }
        self.interfaces.push(interface);
        Ok(())
    }

    /// The interface `number` of this section, whose frames are Ethernet's.
    fn interface_of(&self, fields: &Fields<'_>, number: u32) -> Result<(usize, &Interface), Error> {
        let first = match self.format {
            Format::Pcap => 0,
            Format::Pcapng(first) => first,
        };
        let place = usize::try_from(number).ok().and_then(|number| first.checked_add(number));
        let found = place.and_then(|place| Some((place, self.interfaces.get(place)?)));
        match found {
            Some((_, interface)) if interface.link_type != ETHERNET => {
                Err(Error::LinkType(interface.link_type))
            }
            Some(found) => Ok(found),
            None => Err(fields.damaged("a frame of an interface that is not described")),
        }
    }

    fn enhanced(&self, fields: &Fields<'_>) -> Result<Record, Error> {
        let word = |offset| fields.word(offset).ok_or_else(|| fields.damaged("a packet that is too short"));
        let (number, length, wire_len) = (word(0)?, word(12)?, word(16)?);
        let (interface, description) = self.interface_of(fields, number)?;
        let time = description.clock.time(u64::from(word(4)?) << 32 | u64::from(word(8)?));
        let bytes = fields.frame(20, length)?;
        let (mut direction, mut comment) = (None, None);
        fields.options(20 + bytes.len().next_multiple_of(4), |code, value| {
            match code {
                option::COMMENT => comment = Some(String::from_utf8_lossy(value).into_owned()),
                option::FLAGS => {
                    let flags = value.first_chunk().map_or(0, |value| fields.order.word(*value));
                    direction = match flags & 3 {
                        1 => Some(Direction::In),
                        2 => Some(Direction::Out),
                        _ => None,
                    };
                }
                _ => {}
            }
            Ok(())
        })?;
        Ok(Record { interface, time, wire_len: wire_len.max(length), direction, comment, bytes })
    }

    fn statistics(&mut self, fields: &Fields<'_>) -> Result<(), Error> {
        let mut lost = None;
        fields.options(12, |code, value| {
            if let (option::LOST, Some(value)) = (code, value.first_chunk()) {
                lost = Some(fields.order.long(*value));
            }
            Ok(())
        })?;
        let first = match self.format {
            Format::Pcap => 0,
            Format::Pcapng(first) => first,
        };
        let place = fields.word(0).and_then(|number| first.checked_add(usize::try_from(number).ok()?));
        // Statistics of nothing known are nobody's.
        if let (Some(interface), Some(lost)) = (place.and_then(|place| self.interfaces.get_mut(place)), lost)
        {
            interface.lost = Some(lost);
        }
        Ok(())
    }

    fn simple(&self, fields: &Fields<'_>) -> Result<Record, Error> {
        let wire_len = fields.word(0).ok_or_else(|| fields.damaged("a packet that is too short"))?;
        let (interface, description) = self.interface_of(fields, 0)?;
        let snap = if description.snap == 0 { MAX_FRAME } else { description.snap };
        let bytes = fields.frame(4, wire_len.min(snap))?;
        Ok(Record { interface, time: self.last, wire_len, direction: None, comment: None, bytes })
    }

    /// The first `N` bytes of a record; `None` when there is no further one.
    fn start<const N: usize>(&mut self) -> Result<Option<[u8; N]>, Error> {
        let read = self.read(N as u64)?;
        match read.first_chunk() {
            Some(bytes) => Ok(Some(*bytes)),
            None if read.is_empty() => Ok(None),
            None => Err(Error::CutShort(self.at)),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        self.start()?.ok_or(Error::CutShort(self.at))
    }

    fn bytes(&mut self, length: u32) -> Result<Vec<u8>, Error> {
        let read = self.read(length.into())?;
        if read.len() as u64 == u64::from(length) { Ok(read) } else { Err(Error::CutShort(self.at)) }
    }

    /// Up to `length` bytes: fewer only when the file ends.
    fn read(&mut self, length: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        (&mut self.from).take(length).read_to_end(&mut bytes)?;
        self.at += bytes.len() as u64;
        Ok(bytes)
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Result<Record, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let record = match self.format {
            Format::Pcap => self.pcap_record(),
            Format::Pcapng(_) => self.pcapng_record(),
        };
        if let Ok(Some(record)) = &record {
            self.last = record.time;
        } else {
            self.ended = true;
        }
        record.transpose()
    }
}

/// The fields of a block, in the file's order.
struct Fields<'a> {
    bytes: &'a [u8],
    order: Order,
    /// Where the block begins in the file.
    at: u64,
}

impl<'a> Fields<'a> {
    fn half(&self, offset: usize) -> Option<u16> {
        self.bytes.get(offset..)?.first_chunk().map(|bytes| self.order.half(*bytes))
    }

    fn word(&self, offset: usize) -> Option<u32> {
        self.bytes.get(offset..)?.first_chunk().map(|bytes| self.order.word(*bytes))
    }

    fn damaged(&self, what: &'static str) -> Error {
        Error::Damaged { at: self.at, what }
    }

    fn frame(&self, offset: usize, length: u32) -> Result<Vec<u8>, Error> {
        if length > MAX_FRAME {
            return Err(self.damaged("a frame of more than 262144 bytes"));
        }
        let bytes = self.bytes.get(offset..).and_then(|bytes| bytes.get(..length as usize));
        bytes.map(<[u8]>::to_vec).ok_or_else(|| self.damaged("a frame longer than its block"))
    }

    /// Hands each option from `offset` on to `each`. There may be none.
    fn options(
        &self,
        offset: usize,
        mut each: impl FnMut(u16, &'a [u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut at = offset;
        while let (Some(code), Some(length)) = (self.half(at), self.half(at.saturating_add(2))) {
            if code == option::END {
                break;
            }
            let length = usize::from(length);
            let value = self.bytes.get(at + 4..).and_then(|bytes| bytes.get(..length));
            each(code, value.ok_or_else(|| self.damaged("an option longer than its block"))?)?;
            at += 4 + length.next_multiple_of(4);
        }
        Ok(())
    }
}

impl Clock {
    /// A time of `ticks`, since 1970. What lies before that is 1970.
    fn time(self, ticks: u64) -> Duration {
        let time = self.duration(ticks);
        let offset = Duration::from_secs(self.offset.unsigned_abs());
        if self.offset < 0 { time.saturating_sub(offset) } else { time.saturating_add(offset) }
    }

    fn duration(self, ticks: u64) -> Duration {
        let ticks = u128::from(ticks);
        let seconds = u64::try_from(ticks / self.units).unwrap_or(u64::MAX);
        // The remainder is below 2^64, so that this does not overflow.
        let nanoseconds = ticks % self.units * 1_000_000_000 / self.units;
        Duration::new(seconds, u32::try_from(nanoseconds).unwrap_or(0))
    }
}
