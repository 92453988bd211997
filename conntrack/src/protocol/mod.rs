//! Protocol state machines, as IPVS has them.

pub mod tcp;
pub mod udp;

/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;

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
