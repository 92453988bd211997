//! How long a connection lives without a packet, by protocol and state.

use crate::protocol::tcp;
use crate::time::MAX_TIMEOUT;

/// State timeouts in seconds; the defaults are IPVS's. One table serves the normal and the secure TCP matrix, as in IPVS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    tcp: [u32; tcp::STATES],
    udp: u32,
}

/// Timeouts of its own that something has, by state, in seconds; of other states it has everybody's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct OwnTimeouts([u32; OwnTimeouts::NAMES.len()]);

/// Where UDP's stands.
const UDP: usize = tcp::STATES;

impl OwnTimeouts {
    /// The states that can have one: TCP's by IPVS's numbers, then UDP's.
    pub const NAMES: [&str; tcp::STATES + 1] = [
        "none",
        "established",
        "syn_sent",
        "syn_recv",
        "fin_wait",
        "time_wait",
        "close",
        "close_wait",
        "last_ack",
        "listen",
        "synack",
        "udp",
    ];

    /// Sets one; more than [`MAX_TIMEOUT`] counts as that, and 0 for none. Whether there is such a state.
    pub fn set(&mut self, name: &str, seconds: u32) -> bool {
        let place = Self::NAMES.iter().position(|known| *known == name);
        if let Some(place) = place {
            self.0[place] = seconds.min(MAX_TIMEOUT);
        }
        place.is_some()
    }

    /// Those that there are.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u32)> {
        Self::NAMES.into_iter().zip(self.0).filter(|(_, seconds)| *seconds != 0)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0 == [0; Self::NAMES.len()]
    }
}

/// Life of a connection between its creation and its first packet's state, in seconds (IPVS: three).
pub const NEW_CONNECTION_SECONDS: u32 = 3;

/// By how much a template lives on while it controls connections, in seconds (IPVS: sixty).
pub const TEMPLATE_REARM_SECONDS: u32 = 60;

impl Default for Timeouts {
    fn default() -> Self {
        let tcp = [
            2,   // NONE
            900, // ESTABLISHED
            120, // SYN_SENT
            60,  // SYN_RECV
            120, // FIN_WAIT
            120, // TIME_WAIT
            10,  // CLOSE
            60,  // CLOSE_WAIT
            30,  // LAST_ACK
            120, // LISTEN
            120, // SYNACK
        ];
        Timeouts { tcp, udp: 300 }
    }
}

impl Timeouts {
    /// Timeout of a TCP state in seconds.
    #[inline]
    #[must_use]
    pub fn tcp(&self, state: tcp::State) -> u32 {
        self.tcp[state as usize]
    }

    /// Timeout of UDP connections in seconds.
    #[inline]
    #[must_use]
    pub fn udp(&self) -> u32 {
        self.udp
    }

    /// These, with `own` in their place where there are such.
    #[must_use]
    pub fn with(&self, own: &OwnTimeouts) -> Timeouts {
        let or = |own: u32, all: u32| if own == 0 { all } else { own };
        let tcp = std::array::from_fn(|state| or(own.0[state], self.tcp[state]));
        Timeouts { tcp, udp: or(own.0[UDP], self.udp) }
    }

    /// `ipvsadm --set tcp tcpfin udp`: seconds for TCP ESTABLISHED, TCP FIN_WAIT and UDP. Zero keeps what was; more than
    /// [`MAX_TIMEOUT`] counts as that.
    pub fn set(&mut self, established: u32, fin_wait: u32, udp: u32) {
        let state = |state: tcp::State| state as usize;
        for (slot, seconds) in
            [(&mut self.tcp[state(tcp::State::Established)], established), (&mut self.udp, udp)]
        {
            if seconds != 0 {
                *slot = seconds.min(MAX_TIMEOUT);
            }
        }
        if fin_wait != 0 {
            self.tcp[state(tcp::State::FinWait)] = fin_wait.min(MAX_TIMEOUT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tcp::State;

    #[test]
    fn own_ones_stand_in_for_everybodys() {
        let mut own = OwnTimeouts::default();
        assert!(own.is_empty());
        assert!(
            own.set("established", 50)
                && own.set("udp", u32::MAX)
                && own.set("close", 7)
                && own.set("close", 0)
        );
        assert!(!own.set("SYN_RECV", 1), "names are in small letters");
        assert_eq!(own.iter().collect::<Vec<_>>(), [("established", 50), ("udp", MAX_TIMEOUT)]);
        let all = Timeouts::default();
        let with = all.with(&own);
        assert_eq!((with.tcp(State::Established), with.udp()), (50, MAX_TIMEOUT));
        assert_eq!(with.tcp(State::Close), all.tcp(State::Close));
        for (raw, name) in (0..).zip(OwnTimeouts::NAMES) {
            let state = State::from_raw(raw).map_or("udp".to_owned(), |state| state.name().to_lowercase());
            assert_eq!(name, state);
        }
    }

    #[test]
    fn set_keeps_what_is_given_as_zero() {
        let mut timeouts = Timeouts::default();
        timeouts.set(0, 7, 0);
        assert_eq!(timeouts.tcp(State::Established), 900);
        assert_eq!(timeouts.tcp(State::FinWait), 7);
        assert_eq!(timeouts.udp(), 300);
        timeouts.set(100, 0, u32::MAX);
        assert_eq!(timeouts.tcp(State::Established), 100);
        assert_eq!(timeouts.tcp(State::FinWait), 7);
        assert_eq!(timeouts.udp(), MAX_TIMEOUT);
    }
}
