//! Connections whose real server was removed, ended before their time.

use super::Destinations;
use uvs_conntrack::{Connection, SharedHandle};

/// Connections that are looked at before the table may use ended ones again.
const PAGE: usize = 8192;

impl Destinations {
    /// Ends the connections and templates of removed destinations, but for those that control others (IPVS's
    /// `ip_vs_expire_nodest_conn_flush`). A controlling one goes with the last that it controls.
    pub fn end_orphans(&self, handle: &mut SharedHandle) {
        // Templates after what they control.
        for templates in [false, true] {
            let mut last = 0;
            loop {
                handle.quiescent();
                let is_orphan = |it: &Connection<'_>| {
                    it.is_template() == templates
                        && it.children() == 0
                        && !self.is_available(it.destination())
                };
                let mut looked = 0;
                let page = handle.connections_after(last).take(PAGE);
                let orphans: Vec<_> = page
                    .inspect(|(place, _)| (last, looked) = (*place, looked + 1))
                    .filter(|(_, it)| is_orphan(it))
                    .map(|(_, it)| it.id())
                    .collect();
                for id in orphans {
                    if let Some(connection) = handle.remove(id) {
                        self.ended(&connection);
                    }
                }
                if looked < PAGE {
                    break;
                }
            }
        }
        handle.sleep();
    }
}
