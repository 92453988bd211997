//! What a service's scheduler is told: its flags, and what uvs can tell it beyond IPVS.

use super::is_default;
use serde::{Deserialize, Serialize};
use std::ops;
use uvs_schedulers::MH_TABLE_SIZES;

/// The scheduler flags of `ipvsadm -b`, as the kernel numbers them from bit 3 of the service flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SchedulerFlags(pub u8);

impl SchedulerFlags {
    /// flag-1: `sh-fallback` of scheduler sh, `mh-fallback` of scheduler mh.
    pub const ONE: SchedulerFlags = SchedulerFlags(1);
    /// flag-2: `sh-port` of scheduler sh, `mh-port` of scheduler mh.
    pub const TWO: SchedulerFlags = SchedulerFlags(2);
    /// flag-3: not used by any scheduler of IPVS.
    pub const THREE: SchedulerFlags = SchedulerFlags(4);

    /// What `ipvsadm -b` takes: the scheduler that the name is of, where it is not of all; the name; the flag.
    pub const NAMES: [(Option<&'static str>, &'static str, SchedulerFlags); 7] = [
        (Some("sh"), "sh-fallback", SchedulerFlags::ONE),
        (Some("sh"), "sh-port", SchedulerFlags::TWO),
        (Some("mh"), "mh-fallback", SchedulerFlags::ONE),
        (Some("mh"), "mh-port", SchedulerFlags::TWO),
        (None, "flag-1", SchedulerFlags::ONE),
        (None, "flag-2", SchedulerFlags::TWO),
        (None, "flag-3", SchedulerFlags::THREE),
    ];

    /// Whether all of `flags` are set.
    pub fn contains(self, flags: SchedulerFlags) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// No flag is set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// What ipvsadm calls the flags of a service with this scheduler. What has no name there is left out, as it does.
    pub fn names(self, scheduler: &str) -> impl Iterator<Item = &'static str> {
        let own = Self::NAMES.iter().find(|(of, ..)| *of == Some(scheduler)).and_then(|(of, ..)| *of);
        let set = Self::NAMES.iter().filter(move |(of, _, flag)| *of == own && self.contains(*flag));
        set.map(|(_, name, _)| *name)
    }
}

impl ops::BitOr for SchedulerFlags {
    type Output = SchedulerFlags;
    fn bitor(self, other: SchedulerFlags) -> SchedulerFlags {
        SchedulerFlags(self.0 | other.0)
    }
}

/// What a service's scheduler is told beyond its flags. None of it is IPVS's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchedulerOptions {
    /// Slots of the table of mh; 4093 when it is not said.
    #[serde(default, skip_serializing_if = "is_default")]
    pub table_size: Option<u32>,
}

impl SchedulerOptions {
    /// What is wrong with these options for the scheduler, in a sentence.
    pub fn fault(&self, scheduler: &str) -> Option<String> {
        let size = self.table_size?;
        if scheduler != "mh" {
            return Some("only the scheduler mh has a table whose size can be chosen".into());
        }
        let sizes = MH_TABLE_SIZES.map(|size| size.to_string()).join(", ");
        (!MH_TABLE_SIZES.contains(&size)).then(|| format!("the table of mh has one of {sizes} slots"))
    }
}

impl From<SchedulerOptions> for uvs_schedulers::Options {
    fn from(options: SchedulerOptions) -> Self {
        uvs_schedulers::Options { table_size: options.table_size.unwrap_or(0) }
    }
}
