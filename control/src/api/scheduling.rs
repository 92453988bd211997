//! What a service's scheduler is told: its flags, and what uvs can tell it beyond IPVS.

use super::is_default;
use serde::{Deserialize, Serialize};
use std::ops::{self, RangeInclusive};
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
    /// Slots of the table of mh or chbl; 4093 when it is not said.
    #[serde(default, skip_serializing_if = "is_default")]
    pub table_size: Option<u32>,
    /// The seconds after which p2c counts a connection half; 10 when it is not said.
    #[serde(default, skip_serializing_if = "is_default")]
    pub half_life: Option<u32>,
    /// The percent of its share that a server gets of chbl at most; 125 when it is not said.
    #[serde(default, skip_serializing_if = "is_default")]
    pub load_bound: Option<u32>,
}

/// The bounds of [`SchedulerOptions::half_life`], in seconds.
const HALF_LIFE: RangeInclusive<u32> = 1..=86_400;
/// The bounds of [`SchedulerOptions::load_bound`], in percent.
const LOAD_BOUND: RangeInclusive<u32> = 101..=10_000;

impl SchedulerOptions {
    /// The schedulers that look at it, by the name that each option has in the configuration.
    const OF: [(&'static str, &'static [&'static str]); 3] =
        [("table_size", &["mh", "chbl"]), ("half_life", &["p2c"]), ("load_bound", &["chbl"])];

    /// What is wrong with these options for the scheduler: the name that the option has in the configuration, and a sentence.
    pub fn fault(&self, scheduler: &str) -> Option<(&'static str, String)> {
        let values = [self.table_size, self.half_life, self.load_bound];
        for ((name, schedulers), value) in Self::OF.into_iter().zip(values) {
            let Some(value) = value else { continue };
            let what = name.replace('_', " ");
            if !schedulers.contains(&scheduler) {
                return Some((name, format!("only the scheduler {} has a {what}", schedulers.join(" or "))));
            }
            let (right, range) = match name {
                "half_life" => (HALF_LIFE.contains(&value), "1 to 86400 seconds".to_owned()),
                "load_bound" => (LOAD_BOUND.contains(&value), "101 to 10000 percent".to_owned()),
                _ => {
                    let sizes = MH_TABLE_SIZES.map(|size| size.to_string()).join(", ");
                    (MH_TABLE_SIZES.contains(&value), format!("one of {sizes} slots"))
                }
            };
            if !right {
                return Some((name, format!("the {what} of {scheduler} is {range}")));
            }
        }
        None
    }
}

impl From<SchedulerOptions> for uvs_schedulers::Options {
    fn from(options: SchedulerOptions) -> Self {
        let SchedulerOptions { table_size, half_life, load_bound } = options;
        uvs_schedulers::Options {
            table_size: table_size.unwrap_or(0),
            half_life: half_life.unwrap_or(0),
            load_bound: load_bound.unwrap_or(0),
        }
    }
}
