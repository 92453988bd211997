//! Protocol state machines, as IPVS has them.

pub mod tcp;
pub mod udp;

/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;

/// Set in the protocol number that a template has in the table, so that no packet finds one: a datagram from port 0 has the
/// addresses and ports of its client's template.
const TEMPLATE: u8 = 0x80;
/// Set besides in that of one that is of no use any more.
const INVALID: u8 = 0x40;

/// The number that stands for `protocol` in the flows of templates. No protocol whose packets are looked up has such a number,
/// or one with the bit of those that are of no use any more.
pub(crate) const fn of_template(protocol: u8, invalid: bool) -> u8 {
    if invalid { protocol ^ TEMPLATE | INVALID } else { protocol ^ TEMPLATE }
}

/// What [`of_template`] was told.
pub(crate) const fn of_connections(template: u8) -> u8 {
    (template & !INVALID) ^ TEMPLATE
}

/// State of a template that controls, or has controlled, a connection which came to life (IPVS: ASSURED).
pub const TEMPLATE_ASSURED: u8 = 1;

/// The name of a connection's state as `ipvsadm -Lc` prints it.
#[must_use]
pub fn state_name(protocol: u8, state: u8, template: bool) -> &'static str {
    match protocol {
        _ if template && state == TEMPLATE_ASSURED => "ASSURED",
        _ if template => "NONE",
        TCP => tcp::State::from_raw(state).map_or("BUG!", tcp::State::name),
        UDP if state == udp::NORMAL => "UDP",
        UDP => "BUG!",
        _ => "NONE",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_have_numbers_of_their_own() {
        for protocol in [0, TCP, UDP, 132] {
            for invalid in [false, true] {
                let number = of_template(protocol, invalid);
                assert!(![0, TCP, UDP, 132].contains(&number));
                assert_eq!(of_connections(number), protocol);
            }
        }
    }

    #[test]
    fn names_as_ipvsadm_prints_them() {
        for (protocol, state, template, name) in [
            (TCP, 0, false, "NONE"),
            (TCP, 1, false, "ESTABLISHED"),
            (TCP, 3, false, "SYN_RECV"),
            (TCP, 10, false, "SYNACK"),
            (TCP, 11, false, "BUG!"),
            (UDP, 0, false, "UDP"),
            (UDP, 1, false, "BUG!"),
            (TCP, 0, true, "NONE"),
            (TCP, 1, true, "ASSURED"),
            (0, 0, true, "NONE"),
        ] {
            assert_eq!(state_name(protocol, state, template), name);
        }
    }
}
