//! The defence under load, as IPVS has it (`update_defense_level`, `ip_vs_random_dropentry`): looked at once a second and when one
//! of its settings changes.

use crate::settings::{Setting, Settings};
use std::time::Duration;
use uvs_conntrack::protocol::{self, tcp};
use uvs_conntrack::{Connection, SharedHandle, Tick, flags};
use uvs_engine::service::Destinations;
use uvs_engine::snapshot::ForwardOptions;

/// How far two looks are apart.
pub(super) const PERIOD: Duration = Duration::from_secs(1);

/// The part of the table that is looked at each time.
const PART: u32 = 32;

/// A connection without a packet for so many seconds is not in use now.
const IDLE_SECONDS: u32 = 60;

/// Connections of which the client sent at most so many packets may be dropped though they were established.
const FEW_PACKETS: usize = 8;

/// What is at work.
#[derive(Debug, Default)]
pub(super) struct Defence {
    tcp_mode: tcp::Mode,
    drop_rate: i32,
    drops_entries: bool,
    /// Where the next look at the table begins.
    after: u32,
    /// By how many packets the client sent: how many such connections are spared until one is dropped.
    spared: [u8; FEW_PACKETS + 1],
}

impl Defence {
    /// Whether anything may be or come to be at work.
    pub(super) fn watches(&self, settings: &Settings) -> bool {
        [Setting::DropEntry, Setting::DropPacket, Setting::SecureTcp]
            .iter()
            .any(|mode| settings.get(*mode) != 0)
    }

    /// Sets what is at work with so many pages of memory free, and the settings of modes 1 and 2 to which it is.
    pub(super) fn update(&mut self, settings: &mut Settings, free: i64) {
        let threshold = i64::from(settings.get(Setting::Amemthresh));
        let short = free < threshold;
        let mut works = |setting| match settings.get(setting) {
            mode @ (1 | 2) => {
                let now = if short { 2 } else { 1 };
                if mode != now {
                    settings.set_mode(setting, now);
                }
                short
            }
            mode => mode == 3,
        };
        self.drops_entries = works(Setting::DropEntry);
        self.tcp_mode = if works(Setting::SecureTcp) { tcp::Mode::Secure } else { tcp::Mode::Normal };
        let drops = works(Setting::DropPacket);
        self.drop_rate = match settings.get(Setting::DropPacket) {
            _ if !drops => 0,
            3 => settings.get(Setting::AmDroprate),
            _ => i32::try_from(threshold / (threshold - free)).unwrap_or(i32::MAX),
        };
    }

    /// What the pipeline has to do of it.
    pub(super) fn apply(&self, options: ForwardOptions) -> ForwardOptions {
        ForwardOptions { tcp_mode: self.tcp_mode, drop_rate: self.drop_rate, ..options }
    }

    /// Drops connections of a part of the table, if it is so far.
    pub(super) fn drop_entries(&mut self, handle: &mut SharedHandle, destinations: &Destinations, now: Tick) {
        if !self.drops_entries {
            return;
        }
        let stats = handle.table().stats();
        let part = usize::try_from((stats.connections4 + stats.connections6).div_ceil(PART.into()))
            .unwrap_or(usize::MAX);
        handle.quiescent();
        let mut doomed = Vec::new();
        let mut last = None;
        for (place, connection) in handle.connections_after(self.after).take(part) {
            last = Some(place);
            if self.may_go(&connection, now) {
                doomed.push(connection.id());
            }
        }
        // Round and round.
        self.after = last.unwrap_or(0);
        for id in doomed {
            if let Some(connection) = handle.remove(id) {
                destinations.ended(&connection);
            }
        }
        handle.sleep();
    }

    fn may_go(&mut self, connection: &Connection<'_>, now: Tick) -> bool {
        if connection.children() > 0 {
            return false;
        }
        let meta = connection.meta();
        if connection.is_template() {
            // Of a service that schedules packet by packet no packet is counted at it, so that IPVS never finds it little used.
            return meta.state() != protocol::TEMPLATE_ASSURED && !meta.has(flags::ONE_PACKET);
        }
        if meta.protocol() != protocol::TCP {
            return self.is_little_used(connection, now);
        }
        match tcp::State::from_raw(meta.state()) {
            Some(tcp::State::SynRecv | tcp::State::SynAck) => true,
            Some(tcp::State::Established) => self.is_little_used(connection, now),
            _ => false,
        }
    }

    /// Whether a connection is idle and the one of as many as its client sent packets that is dropped (`todrop_entry`).
    fn is_little_used(&mut self, connection: &Connection<'_>, now: Tick) -> bool {
        let packets = connection.packets() as usize;
        let idle = connection.seen().plus_seconds(IDLE_SECONDS);
        let Some(spared) = self.spared.get_mut(packets).filter(|_| packets > 0 && !now.is_before(idle))
        else {
            return false;
        };
        *spared = spared.saturating_sub(1);
        if *spared > 0 {
            return false;
        }
        *spared = u8::try_from(packets).unwrap_or(u8::MAX);
        true
    }
}

/// What the pipeline does by the settings where there is memory to spare.
pub(crate) fn with_memory_to_spare(settings: &Settings, rfc6040: bool) -> ForwardOptions {
    let mut defence = Defence::default();
    defence.update(&mut settings.clone(), i64::MAX);
    defence.apply(settings.forward(rfc6040))
}

/// Pages of memory that are free, as IPVS counts them: those of no use and those of buffers (`si_meminfo`). Plenty where the
/// kernel does not say.
pub(super) fn free_pages() -> i64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    pages(&text).unwrap_or(i64::MAX)
}

fn pages(meminfo: &str) -> Option<i64> {
    const KIB_A_PAGE: i64 = 4;
    let kib = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix(" kB")?.parse::<i64>().ok()
    };
    Some((kib("MemFree")? + kib("Buffers")?) / KIB_A_PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use uvs_conntrack::{
        DestinationId, Direction, Flow, Limits, NewConnection, Sequence, SharedTable, TICKS_PER_SECOND,
    };
    use uvs_engine::counters::Counters;

    const MODES: [Setting; 3] = [Setting::DropEntry, Setting::DropPacket, Setting::SecureTcp];

    #[test]
    fn what_is_at_work_by_mode_and_memory() {
        // A mode, pages free of a threshold of 1024: the mode then, whether it works, one of how many packets is dropped.
        for (mode, free, after, works, rate) in [
            (0, 0, 0, false, 0),
            (1, 1024, 1, false, 0),
            (1, 1023, 2, true, 1024),
            (1, 512, 2, true, 2),
            (1, 0, 2, true, 1),
            (2, 0, 2, true, 1),
            (2, 5000, 1, false, 0),
            (3, 5000, 3, true, 10),
            (3, 0, 3, true, 10),
        ] {
            let mut settings = Settings::default();
            for setting in MODES {
                settings.set(setting, mode).unwrap();
            }
            let mut defence = Defence::default();
            assert_eq!(defence.watches(&settings), mode != 0);
            defence.update(&mut settings, free);
            assert_eq!(MODES.map(|setting| settings.get(setting)), [after; 3], "mode {mode}, {free} free");
            assert_eq!(defence.drops_entries, works, "mode {mode}, {free} free");
            assert_eq!(defence.tcp_mode == tcp::Mode::Secure, works, "mode {mode}, {free} free");
            assert_eq!(defence.drop_rate, rate, "mode {mode}, {free} free");
        }
    }

    /// What becomes of connections in one round through the table: by protocol, state, flags, packets from the client, seconds
    /// since the last one.
    #[test]
    fn half_open_and_little_used_connections_go() {
        const ES: u8 = tcp::State::Established as u8;
        let begin = Tick(5000);
        let now = begin.plus_seconds(1000);
        let cases = [
            ("half open", protocol::TCP, tcp::State::SynRecv as u8, 0, 1, 0, true),
            ("half open, under attack", protocol::TCP, tcp::State::SynAck as u8, 0, 1, 0, true),
            ("of which only one way is seen", protocol::TCP, tcp::State::SynSent as u8, 0, 1, 900, false),
            ("ending", protocol::TCP, tcp::State::CloseWait as u8, 0, 1, 900, false),
            ("without a packet", protocol::TCP, ES, 0, 0, 900, false),
            ("the first of two packets", protocol::TCP, ES, 0, 2, 900, true),
            ("the second of two packets", protocol::TCP, ES, 0, 2, 900, false),
            ("the third of two packets", protocol::TCP, ES, 0, 2, 60, true),
            ("of eight packets", protocol::TCP, ES, 0, 8, 60, true),
            ("of nine", protocol::TCP, ES, 0, 9, 900, false),
            ("in use", protocol::TCP, ES, 0, 1, 59, false),
            ("a datagram", protocol::UDP, 0, 0, 1, 60, true),
            ("a datagram of just now", protocol::UDP, 0, 0, 1, 1, false),
            ("a template", protocol::TCP, 0, flags::TEMPLATE, 0, 0, true),
            (
                "a template for datagrams one by one",
                protocol::UDP,
                0,
                flags::TEMPLATE | flags::ONE_PACKET,
                0,
                900,
                false,
            ),
            (
                "an assured template",
                protocol::TCP,
                protocol::TEMPLATE_ASSURED,
                flags::TEMPLATE,
                0,
                900,
                false,
            ),
        ];
        let limits = Limits { connections4: 100, connections6: 8, destinations: 8, first_buckets: 4 };
        let table = SharedTable::create(limits).unwrap();
        let destinations = Destinations::new(table.clone(), Counters::new(8));
        let mut handle = table.handle().unwrap();
        for (number, (_, protocol, state, flags, packets, idle, _)) in (1000..).zip(cases) {
            let client = SocketAddr::from(([10, 0, 0, 2], number));
            let service = SocketAddr::from(([10, 0, 0, 1], 80));
            let connection = NewConnection {
                client: Flow::new(client, service, protocol),
                real: Flow::new(SocketAddr::from(([10, 0, 1, 1], 80)), client, protocol),
                index_reply: false,
                exclusive_reply: false,
                destination: DestinationId::NONE,
                flags,
                state,
                timeout_seconds: 3600,
                template: None,
                fwmark: 0,
                sequence: Sequence::default(),
            };
            let seen = Tick(now.0 - idle * TICKS_PER_SECOND);
            let id = handle.insert(&connection, seen).unwrap().id;
            let connection = handle.connection(id).unwrap();
            (0..packets).for_each(|_| connection.touch(Direction::In, seen));
        }
        let left = |handle: &SharedHandle| -> Vec<u16> {
            let all = handle.connections_after(0);
            all.map(|(_, connection)| connection.client().source().port() - 1000).collect()
        };
        let mut defence = Defence::default();
        defence.drop_entries(&mut handle, &destinations, now);
        assert_eq!(left(&handle).len(), cases.len(), "at rest");
        defence.drops_entries = true;
        // A thirty-second part of so few connections is one.
        (0..cases.len()).for_each(|_| defence.drop_entries(&mut handle, &destinations, now));
        let mut left = left(&handle);
        left.sort_unstable();
        let expected = (0..).zip(cases).filter(|(_, (.., goes))| !goes).map(|(number, _)| number);
        let names: Vec<_> = left.iter().map(|number| cases[usize::from(*number)].0).collect();
        assert_eq!(left, expected.collect::<Vec<_>>(), "{names:?} are left");
    }

    #[test]
    fn free_memory_is_read_from_the_kernels_words() {
        let text = "MemTotal:        1006196 kB\nMemFree:          970616 kB\nMemAvailable:     974168 kB\nBuffers:  8 kB\n";
        assert_eq!(pages(text), Some(242_656));
        assert_eq!(pages("MemFree: 5 kB\n"), None);
        assert!(free_pages() > 0);
    }
}
