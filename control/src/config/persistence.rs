//! How a service keeps clients with their real servers, in a configuration file.

use super::reader::{Found, Reader, Section};
use crate::api::{Family, Netmask, ServiceSpec};
use crate::registry::LONGEST_TIMEOUT;
use std::fmt::Write;
use std::net::Ipv4Addr;

/// The keys as they were written.
pub(super) struct Written<'r> {
    pub(super) persistent: Option<u32>,
    netmask: Option<Found<&'r str>>,
}

/// Reads the keys of a service.
pub(super) fn read<'r>(section: &Section<'r, '_>) -> Written<'r> {
    const NETMASK: &str = "a netmask, such as \"255.255.255.0\", or of IPv6 its length, such as \"64\"";
    let persistent = section.number("persistent", 1..=LONGEST_TIMEOUT).map(|found| found.value);
    Written { persistent, netmask: section.text("netmask", NETMASK) }
}

impl Written<'_> {
    /// The netmask of a service of this family. What is wrong with it is noted.
    pub(super) fn netmask(&self, reader: &Reader<'_>, family: Family) -> Netmask {
        let all = Netmask::host(family);
        let Some(Found { value, at }) = &self.netmask else { return all };
        let (read, expected) = match family {
            Family::Ipv4 => (
                value.parse::<Ipv4Addr>().ok().map(Netmask::Ipv4),
                "the bits of an IPv4 address that tell clients apart, such as \"255.255.255.0\"",
            ),
            Family::Ipv6 => (
                value.parse().ok().filter(|bits| (1..=128).contains(bits)).map(Netmask::Ipv6),
                "how many leading bits of an IPv6 address tell clients apart, \"1\" to \"128\"",
            ),
        };
        if self.persistent.is_none() {
            reader.expected(at.clone(), "`netmask`", "it only beside `persistent`");
        } else if read.is_none() {
            reader.expected(at.clone(), format!("the text \"{value}\""), expected);
        }
        read.unwrap_or(all)
    }
}

/// Writes those that are not as they would be anyway.
pub(super) fn render(text: &mut String, service: &ServiceSpec) {
    let Some(seconds) = service.persistent else { return };
    let _ = writeln!(text, "persistent = {seconds}");
    if service.netmask != Netmask::host(service.id.family()) {
        let _ = match service.netmask {
            Netmask::Ipv4(mask) => writeln!(text, "netmask = \"{mask}\""),
            Netmask::Ipv6(bits) => writeln!(text, "netmask = \"{bits}\""),
        };
    }
}
