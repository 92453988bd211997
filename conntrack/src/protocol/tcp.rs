//! The TCP state machine of IPVS: what a director infers of a connection from the packets it sees, which may be one
//! direction only. The matrices are those of the Linux kernel (`ip_vs_proto_tcp.c`, 6.1).

use State::{
    Close as CL, CloseWait as CW, Established as ES, FinWait as FW, LastAck as LA, Listen as LI, None as NO,
    SynAck as SA, SynRecv as SR, SynSent as SS, TimeWait as TW,
};

/// State of a connection. The values are IPVS's own (the synchronisation protocol carries them).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "the states of TCP, named as IPVS names them")]
pub enum State {
    None = 0,
    Established = 1,
    SynSent = 2,
    SynRecv = 3,
    FinWait = 4,
    TimeWait = 5,
    Close = 6,
    CloseWait = 7,
    LastAck = 8,
    Listen = 9,
    SynAck = 10,
}

/// How many states there are.
pub const STATES: usize = 11;

const ALL: [State; STATES] = [NO, ES, SS, SR, FW, TW, CL, CW, LA, LI, SA];

impl State {
    /// The state with IPVS's number `raw`.
    #[inline]
    #[must_use]
    pub fn from_raw(raw: u8) -> Option<Self> {
        ALL.get(usize::from(raw)).copied()
    }

    /// Whether a connection in this state counts as active (`activeconns`): established or in its handshake, so that
    /// least-connection schedulers react to bursts.
    #[inline]
    #[must_use]
    pub fn is_active(self) -> bool {
        matches!(self, State::Established | State::SynSent | State::SynRecv | State::SynAck)
    }

    /// As `ipvsadm -Lc` prints it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            State::None => "NONE",
            State::Established => "ESTABLISHED",
            State::SynSent => "SYN_SENT",
            State::SynRecv => "SYN_RECV",
            State::FinWait => "FIN_WAIT",
            State::TimeWait => "TIME_WAIT",
            State::Close => "CLOSE",
            State::CloseWait => "CLOSE_WAIT",
            State::LastAck => "LAST_ACK",
            State::Listen => "LISTEN",
            State::SynAck => "SYNACK",
        }
    }
}

/// What a segment's flags mean to the state machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Event {
    /// SYN set.
    Syn = 0,
    /// FIN set, no SYN.
    Fin = 1,
    /// ACK set, neither SYN nor FIN.
    Ack = 2,
    /// RST set, whatever else is.
    Rst = 3,
}

/// FIN bit of the flags byte (RFC 9293).
pub const FIN: u8 = 0x01;
/// SYN bit of the flags byte.
pub const SYN: u8 = 0x02;
/// RST bit of the flags byte.
pub const RST: u8 = 0x04;
/// ACK bit of the flags byte.
pub const ACK: u8 = 0x10;

impl Event {
    /// The event of a segment with this flags byte: RST before SYN before FIN before ACK. None of them is no event, and
    /// closes the connection ([`next`]).
    #[inline]
    #[must_use]
    pub fn of(flags: u8) -> Option<Self> {
        match flags {
            _ if flags & RST != 0 => Some(Event::Rst),
            _ if flags & SYN != 0 => Some(Event::Syn),
            _ if flags & FIN != 0 => Some(Event::Fin),
            _ if flags & ACK != 0 => Some(Event::Ack),
            _ => None,
        }
    }
}

/// Which matrix rules transitions: `secure_tcp` swaps it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Mode {
    /// Everyday rules.
    #[default]
    Normal = 0,
    /// Under attack a half-open connection does not become established by the client's word alone.
    Secure = 1,
}

/// Which rows of the matrix apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum View {
    /// A client's packet on a connection whose replies pass the director.
    In = 0,
    /// A real server's packet.
    Out = 1,
    /// A client's packet on a connection whose replies go around the director (direct routing, tunnels).
    InOnly = 2,
}

/// The state after `event`, seen in `view`, in `state`. No event closes.
#[inline]
#[must_use]
pub fn next(mode: Mode, view: View, event: Option<Event>, state: State) -> State {
    match event {
        Some(event) => MATRICES[mode as usize][view as usize][event as usize][state as usize],
        None => State::Close,
    }
}

type Rows = [[State; STATES]; 4];

/// Columns: the current state in the order of its number. Rows: SYN, FIN, ACK, RST.
#[rustfmt::skip]
const MATRICES: [[Rows; 3]; 2] = [
    [
        // normal, in
        [
            [SR, ES, ES, SR, SR, SR, SR, SR, SR, SR, SR],
            [CL, CW, SS, TW, TW, TW, CL, CW, LA, LI, TW],
            [ES, ES, SS, ES, FW, TW, CL, CW, CL, LI, ES],
            [CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, SR],
        ],
        // normal, out
        [
            [SS, ES, SS, SR, SS, SS, SS, SS, SS, LI, SR],
            [TW, FW, SS, TW, FW, TW, CL, TW, LA, LI, TW],
            [ES, ES, SS, ES, FW, TW, CL, CW, LA, ES, ES],
            [CL, CL, SS, CL, CL, TW, CL, CL, CL, CL, CL],
        ],
        // normal, in-only
        [
            [SR, ES, ES, SR, SR, SR, SR, SR, SR, SR, SR],
            [CL, FW, SS, TW, FW, TW, CL, CW, LA, LI, TW],
            [ES, ES, SS, ES, FW, TW, CL, CW, CL, LI, ES],
            [CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, CL],
        ],
    ],
    [
        // secure, in
        [
            [SR, ES, ES, SR, SR, SR, SR, SR, SR, SR, SA],
            [CL, CW, SS, TW, TW, TW, CL, CW, LA, LI, SA],
            [ES, ES, SS, SR, FW, TW, CL, CW, CL, LI, SA],
            [CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, CL],
        ],
        // secure, out
        [
            [SS, ES, SS, SA, SS, SS, SS, SS, SS, LI, SA],
            [TW, FW, SS, TW, FW, TW, CL, TW, LA, LI, TW],
            [ES, ES, SS, ES, FW, TW, CL, CW, LA, ES, ES],
            [CL, CL, SS, CL, CL, TW, CL, CL, CL, CL, CL],
        ],
        // secure, in-only
        [
            [SA, ES, ES, SR, SA, SA, SA, SA, SA, SA, SA],
            [CL, FW, SS, TW, FW, TW, CL, CW, LA, LI, TW],
            [ES, ES, SS, ES, FW, TW, CL, CW, CL, LI, ES],
            [CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, CL],
        ],
    ],
];

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's tables in words: direction, event, and for each state, in the order of their numbers, the next.
    const NORMAL: &str = "
        in SYN SR ES ES SR SR SR SR SR SR SR SR
        in FIN CL CW SS TW TW TW CL CW LA LI TW
        in ACK ES ES SS ES FW TW CL CW CL LI ES
        in RST CL CL CL SR CL CL CL CL LA LI SR
        out SYN SS ES SS SR SS SS SS SS SS LI SR
        out FIN TW FW SS TW FW TW CL TW LA LI TW
        out ACK ES ES SS ES FW TW CL CW LA ES ES
        out RST CL CL SS CL CL TW CL CL CL CL CL
        in-only SYN SR ES ES SR SR SR SR SR SR SR SR
        in-only FIN CL FW SS TW FW TW CL CW LA LI TW
        in-only ACK ES ES SS ES FW TW CL CW CL LI ES
        in-only RST CL CL CL SR CL CL CL CL LA LI CL
    ";
    const SECURE: &str = "
        in SYN SR ES ES SR SR SR SR SR SR SR SA
        in FIN CL CW SS TW TW TW CL CW LA LI SA
        in ACK ES ES SS SR FW TW CL CW CL LI SA
        in RST CL CL CL SR CL CL CL CL LA LI CL
        out SYN SS ES SS SA SS SS SS SS SS LI SA
        out FIN TW FW SS TW FW TW CL TW LA LI TW
        out ACK ES ES SS ES FW TW CL CW LA ES ES
        out RST CL CL SS CL CL TW CL CL CL CL CL
        in-only SYN SA ES ES SR SA SA SA SA SA SA SA
        in-only FIN CL FW SS TW FW TW CL CW LA LI TW
        in-only ACK ES ES SS ES FW TW CL CW CL LI ES
        in-only RST CL CL CL SR CL CL CL CL LA LI CL
    ";

    #[test]
    fn every_transition_is_the_kernels() {
        const SHORT: [&str; STATES] = ["NO", "ES", "SS", "SR", "FW", "TW", "CL", "CW", "LA", "LI", "SA"];
        let mut seen = 0;
        for (mode, table) in [(Mode::Normal, NORMAL), (Mode::Secure, SECURE)] {
            for row in table.lines().filter(|row| !row.trim().is_empty()) {
                let words: Vec<&str> = row.split_whitespace().collect();
                let [direction, event, states @ ..] = &words[..] else { panic!("{row}") };
                let view = match *direction {
                    "in" => View::In,
                    "out" => View::Out,
                    "in-only" => View::InOnly,
                    other => panic!("{other}"),
                };
                let event = match *event {
                    "SYN" => Event::Syn,
                    "FIN" => Event::Fin,
                    "ACK" => Event::Ack,
                    "RST" => Event::Rst,
                    other => panic!("{other}"),
                };
                assert_eq!(states.len(), STATES, "{row}");
                for (state, expected) in ALL.into_iter().zip(states) {
                    let found = next(mode, view, Some(event), state);
                    assert_eq!(
                        SHORT[found as usize], *expected,
                        "{mode:?} {direction} {event:?} in {state:?}"
                    );
                    seen += 1;
                }
            }
        }
        assert_eq!(seen, 2 * 3 * 4 * STATES);
    }

    use Event::{Ack, Fin, Rst, Syn};
    use View::{In, InOnly, Out};

    #[test]
    fn flags_by_priority() {
        for (flags, event) in [
            (SYN, Some(Syn)),
            (SYN | ACK, Some(Syn)),
            (SYN | FIN, Some(Syn)),
            (FIN | ACK, Some(Fin)),
            (ACK | 0x08, Some(Ack)),
            (RST | SYN | FIN | ACK, Some(Rst)),
            (0, None),
            (0x28, None),
        ] {
            assert_eq!(Event::of(flags), event, "flags {flags:#04x}");
        }
    }

    #[test]
    fn lives_of_connections() {
        type Step = (View, Option<Event>, State);
        let lives: [(&str, Mode, &[Step]); 6] = [
            (
                "NAT, closed by the client",
                Mode::Normal,
                &[
                    (In, Some(Syn), SR),
                    (Out, Some(Syn), SR),
                    (In, Some(Ack), ES),
                    (Out, Some(Ack), ES),
                    (In, Some(Fin), CW),
                    (Out, Some(Fin), TW),
                    (In, Some(Ack), TW),
                    (In, Some(Syn), SR),
                ],
            ),
            (
                "NAT, closed by the real server",
                Mode::Normal,
                &[(In, Some(Syn), SR), (In, Some(Ack), ES), (Out, Some(Fin), FW), (In, Some(Fin), TW)],
            ),
            (
                "direct routing sees one way only",
                Mode::Normal,
                &[
                    (InOnly, Some(Syn), SR),
                    (InOnly, Some(Ack), ES),
                    (InOnly, Some(Fin), FW),
                    (InOnly, Some(Ack), FW),
                ],
            ),
            ("refused", Mode::Normal, &[(In, Some(Syn), SR), (Out, Some(Rst), CL)]),
            ("a segment without flags closes", Mode::Normal, &[(In, Some(Syn), SR), (In, None, CL)]),
            (
                "under attack the server must speak first",
                Mode::Secure,
                &[(In, Some(Syn), SR), (In, Some(Ack), SR), (Out, Some(Syn), SA), (Out, Some(Ack), ES)],
            ),
        ];
        for (what, mode, steps) in lives {
            let mut state = State::None;
            for (n, (view, event, expected)) in steps.iter().enumerate() {
                state = next(mode, *view, *event, state);
                assert_eq!(state, *expected, "{what}, step {n}");
            }
        }
    }

    #[test]
    fn the_handshake_counts_as_active() {
        let active: Vec<&str> =
            ALL.iter().filter(|state| state.is_active()).map(|state| state.name()).collect();
        assert_eq!(active, ["ESTABLISHED", "SYN_SENT", "SYN_RECV", "SYNACK"]);
    }

    #[test]
    fn numbers_and_states_agree() {
        for (raw, state) in (0_u8..).zip(ALL) {
            assert_eq!(state as u8, raw);
            assert_eq!(State::from_raw(raw), Some(state));
        }
        assert_eq!(State::from_raw(11), None);
    }
}
