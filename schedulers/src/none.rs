//! none: no new connection goes anywhere (a service of IPVS without scheduler, `ip_vs_add_service`).

use crate::pool::{Pool, Slot};
use crate::scheduler::{Request, Scheduler};

/// Chooses nobody, whoever is there. Remembers nothing.
#[derive(Debug, Default)]
pub(crate) struct Nobody;

impl Scheduler for Nobody {
    fn choose(&mut self, _pool: &Pool, _request: &Request) -> Option<Slot> {
        None
    }
}
