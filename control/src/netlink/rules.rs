//! The rules by which the kernel chooses a routing table.

use super::tables::TABLES;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

/// Priorities of the default rules, in the order of [`TABLES`].
const PRIORITIES: [u32; 3] = [0, 32_766, 32_767];

/// One of the three rules that every namespace begins with: look into this table, whatever the packet.
pub(super) fn is_default(rule: &RuleMessage) -> bool {
    let find = |pick: fn(&RuleAttribute) -> Option<u32>| rule.attributes.iter().find_map(pick);
    let priority = find(|attribute| match attribute {
        RuleAttribute::Priority(priority) => Some(*priority),
        _ => None,
    });
    let table = find(|attribute| match attribute {
        RuleAttribute::Table(table) => Some(*table),
        _ => None,
    });
    let unselective = rule.attributes.iter().all(|attribute| {
        matches!(
            attribute,
            RuleAttribute::Priority(_)
                | RuleAttribute::Table(_)
                | RuleAttribute::Protocol(_)
                | RuleAttribute::SuppressPrefixLen(u32::MAX)
                | RuleAttribute::Other(_)
        )
    });
    unselective
        && rule.header.action == RuleAction::ToTable
        && (rule.header.src_len, rule.header.dst_len, rule.header.tos) == (0, 0, 0)
        && TABLES
            .iter()
            .zip(PRIORITIES)
            .any(|(of, at)| table.unwrap_or(rule.header.table.into()) == *of && priority.unwrap_or(0) == at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_route::AddressFamily;
    use netlink_packet_route::rule::{RuleFlags, RuleHeader};

    #[test]
    fn the_rules_every_namespace_begins_with_are_known() {
        let rule = |table: u8, attributes: &[RuleAttribute], src_len: u8| {
            let mut rule = RuleMessage::default();
            rule.header = RuleHeader {
                family: AddressFamily::Inet,
                table,
                src_len,
                action: RuleAction::ToTable,
                flags: RuleFlags::empty(),
                ..RuleHeader::default()
            };
            rule.attributes = attributes.to_vec();
            is_default(&rule)
        };
        use RuleAttribute::{FwMark, Priority, SuppressPrefixLen, Table};
        assert!(rule(255, &[Table(255)], 0));
        assert!(rule(254, &[Priority(32_766), SuppressPrefixLen(u32::MAX)], 0));
        assert!(rule(253, &[Priority(32_767), Table(253)], 0));
        assert!(!rule(254, &[Priority(100)], 0), "another priority");
        assert!(!rule(254, &[Priority(32_766), FwMark(1)], 0), "for marked packets");
        assert!(!rule(254, &[Priority(32_766), SuppressPrefixLen(0)], 0), "not for the default route");
        assert!(!rule(254, &[Priority(32_766)], 24), "for one source");
        assert!(!rule(0, &[Priority(32_766), Table(1000)], 0), "another table");
    }
}
