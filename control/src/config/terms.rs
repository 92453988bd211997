//! What uvs does for a service beyond what IPVS can, in a configuration file.

use super::reader::Section;
use crate::api::{AddressOption, ClientAddress, MSS, RefuseWith, StateTimeouts, Terms};
use std::fmt::Write;
use uvs_conntrack::{MAX_TIMEOUT, OwnTimeouts};

const CLIENT_ADDRESS: [(&str, ClientAddress); 4] = [
    ("toa", ClientAddress::Toa),
    ("proxy-v1", ClientAddress::ProxyV1),
    ("proxy-v2", ClientAddress::ProxyV2),
    ("none", ClientAddress::None),
];
const REFUSE: [(&str, RefuseWith); 2] = [("icmp", RefuseWith::Icmp), ("reset", RefuseWith::Reset)];

/// Reads the keys of a service.
pub(super) fn read(section: &Section<'_, '_>) -> Terms {
    let usual = AddressOption::default();
    let kind = |key, usual| {
        let found = section.number(key, 0..=255);
        found.and_then(|found| u8::try_from(found.value).ok()).unwrap_or(usual)
    };
    let mss = section.number("mss", u32::from(*MSS.start())..=u32::from(*MSS.end()));
    Terms {
        client_address: section.one_of("client_address", &CLIENT_ADDRESS),
        toa: AddressOption {
            kind: kind("toa_kind", usual.kind),
            kind_ipv6: kind("toa_kind_ipv6", usual.kind_ipv6),
            on_syn: section.boolean("toa_on_syn").map_or(usual.on_syn, |found| found.value),
        },
        mss: mss.and_then(|found| u16::try_from(found.value).ok()),
        refuse: section.one_of("refuse", &REFUSE).unwrap_or_default(),
        timeouts: section.table("timeouts").map(timeouts).unwrap_or_default(),
    }
}

fn timeouts(section: Section<'_, '_>) -> StateTimeouts {
    let mut timeouts = StateTimeouts::default();
    for state in OwnTimeouts::NAMES {
        if let Some(found) = section.number(state, 1..=MAX_TIMEOUT) {
            timeouts.0.set(state, found.value);
        }
    }
    section.finish();
    timeouts
}

/// Writes those that are not as they would be anyway.
pub(super) fn render(text: &mut String, terms: &Terms) {
    let usual = AddressOption::default();
    let Terms { client_address, toa, mss, refuse, timeouts } = terms;
    for (word, _) in CLIENT_ADDRESS.iter().filter(|(_, how)| Some(*how) == *client_address) {
        let _ = writeln!(text, "client_address = \"{word}\"");
    }
    for (key, kind, usual) in
        [("toa_kind", toa.kind, usual.kind), ("toa_kind_ipv6", toa.kind_ipv6, usual.kind_ipv6)]
    {
        if kind != usual {
            let _ = writeln!(text, "{key} = {kind}");
        }
    }
    if !toa.on_syn {
        text.push_str("toa_on_syn = false\n");
    }
    if let Some(mss) = mss {
        let _ = writeln!(text, "mss = {mss}");
    }
    if *refuse == RefuseWith::Reset {
        text.push_str("refuse = \"reset\"\n");
    }
    if !timeouts.0.is_empty() {
        let items = timeouts.0.iter().map(|(state, seconds)| format!("{state} = {seconds}"));
        let _ = writeln!(text, "timeouts = {{ {} }}", items.collect::<Vec<_>>().join(", "));
    }
}
