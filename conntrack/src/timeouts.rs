//! How long a connection lives without a packet, by protocol and state.

use crate::protocol::tcp;
use crate::time::MAX_TIMEOUT;

/// State timeouts in seconds; the defaults are IPVS's. One table serves the normal and the secure TCP matrix, as in IPVS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    tcp: [u32; tcp::STATES],
    udp: u32,
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
