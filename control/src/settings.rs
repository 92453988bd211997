//! The settings of IPVS, `net.ipv4.vs.*`: their names, defaults and ranges are the kernel's (`ip_vs_ctl.c`, 6.1), and who honours
//! each. Those that mean nothing to a director outside the kernel have one value, which is said and can be set.
//!
//! Settings of what is not there yet are not here either.

use std::ops::RangeInclusive;
use uvs_conntrack::protocol::tcp;
use uvs_engine::snapshot::{ForwardOptions, Reuse};

/// What a name begins with as `sysctl` prints it.
pub const PREFIX: &str = "net.ipv4.vs.";

/// Who does by a setting, or why nobody can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Honoured {
    /// The pipeline, by [`ForwardOptions`].
    ByPipeline,
    /// The defence under load, once a second.
    ByDefence,
    /// The estimator of rates.
    ByEstimator,
    /// Nobody: it has this meaning already, and no other. A sentence.
    Always(&'static str),
}

macro_rules! settings {
    ($($variant:ident = $name:literal, $default:literal, $range:expr, $honoured:expr, $meaning:literal;)+) => {
        /// A setting.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Setting {
            $(#[doc = $meaning] $variant,)+
        }

        impl Setting {
            /// Every setting, in the order of their names.
            pub const ALL: &'static [Setting] = &[$(Setting::$variant,)+];

            /// Its name below `net.ipv4.vs`.
            pub fn name(self) -> &'static str {
                match self { $(Setting::$variant => $name,)+ }
            }

            /// What it is unless somebody sets it.
            pub fn default_value(self) -> i32 {
                match self { $(Setting::$variant => $default,)+ }
            }

            /// What the kernel takes for it.
            pub fn range(self) -> RangeInclusive<i32> {
                match self { $(Setting::$variant => $range,)+ }
            }

            /// Who honours it.
            pub fn honoured(self) -> Honoured {
                match self { $(Setting::$variant => $honoured,)+ }
            }

            /// What it means, in a few words.
            pub fn meaning(self) -> &'static str {
                match self { $(Setting::$variant => $meaning,)+ }
            }
        }
    };
}

use Honoured::{Always, ByDefence, ByEstimator, ByPipeline};

/// What the kernel takes where it looks at nothing but the type.
const ANY: RangeInclusive<i32> = i32::MIN..=i32::MAX;
/// Off; by itself when memory is short, at rest; the same, at work; always.
const MODE: RangeInclusive<i32> = 0..=3;

settings! {
    AmDroprate = "am_droprate", 10, ANY, ByDefence,
        "with drop_packet 3, of how many packets that would begin connections one is dropped";
    Amemthresh = "amemthresh", 1024, ANY, ByDefence,
        "pages of memory: with fewer free, the defences of mode 1 are at work";
    BackupOnly = "backup_only", 0, 0..=0, Always("there is no backup daemon that would take part"),
        "whether a director that runs the backup daemon forwards nothing";
    ConnReuseMode = "conn_reuse_mode", 1, ANY, ByPipeline,
        "whether a client's new connection from the same port replaces one in TIME_WAIT or CLOSE (not 0) or, seen one way, in \
         FIN_WAIT (bit 2)";
    Conntrack = "conntrack", 0, 0..=0, Always("packets of services do not pass netfilter, which would track them"),
        "whether netfilter tracks connections to services";
    DebugLevel = "debug_level", 0, 0..=0, Always("`uvs capture` and RUST_LOG show what happens"),
        "how much the kernel logs";
    DropEntry = "drop_entry", 0, MODE, ByDefence,
        "whether half-open and little-used connections are dropped: 0 never, 1 and 2 when memory is short, 3 always";
    DropPacket = "drop_packet", 0, MODE, ByDefence,
        "whether packets that would begin connections are dropped: 0 never, 1 and 2 when memory is short, 3 always";
    ExpireNodestConn = "expire_nodest_conn", 0, ANY, ByPipeline,
        "whether connections of removed real servers end at once, and new ones of a client leave one of weight 0";
    ExpireQuiescentTemplate = "expire_quiescent_template", 0, ANY, ByPipeline,
        "whether persistence keeps no clients with a real server of weight 0";
    IgnoreTunneled = "ignore_tunneled", 1, 1..=1,
        Always("what this host itself takes out of tunnels never comes to a director outside its kernel"),
        "whether what came to this host through a tunnel is left to it";
    NatIcmpSend = "nat_icmp_send", 0, ANY, ByPipeline,
        "whether a real server is told that its packet belongs to no connection";
    PmtuDisc = "pmtu_disc", 1, ANY, ByPipeline,
        "whether a tunnel takes \"don't fragment\" over to the packet around";
    RunEstimation = "run_estimation", 1, ANY, ByEstimator,
        "whether rates are computed; with 0 they stay as they are";
    ScheduleIcmp = "schedule_icmp", 0, ANY, ByPipeline,
        "whether an ICMP error about a packet of no connection is sent to a real server";
    SecureTcp = "secure_tcp", 0, MODE, ByDefence,
        "whether the client's word alone makes no TCP connection established: 0 it does, 1 and 2 not when memory is short, 3 never";
    SloppyTcp = "sloppy_tcp", 0, ANY, ByPipeline,
        "whether a TCP segment without SYN begins a connection";
    SnatReroute = "snat_reroute", 1, 1..=1, Always("replies always go by the route to their client"),
        "whether replies of masqueraded connections go by the route of their new source";
}

impl Setting {
    /// The setting of a name, with or without what `sysctl` puts before it, in dots or slashes.
    pub fn find(name: &str) -> Option<Self> {
        let bare = name.strip_prefix(PREFIX).or_else(|| name.strip_prefix("net/ipv4/vs/")).unwrap_or(name);
        Setting::ALL.iter().copied().find(|setting| setting.name() == bare)
    }

    /// Why it cannot have this value. A sentence.
    pub fn fault(self, value: i32) -> Option<String> {
        let range = self.range();
        if range.contains(&value) {
            return None;
        }
        Some(match self.honoured() {
            Always(why) => format!("{}{} is always {} here: {why}", PREFIX, self.name(), range.start()),
            _ => {
                format!("{PREFIX}{} is a whole number from {} to {}", self.name(), range.start(), range.end())
            }
        })
    }
}

/// The number that the kernel reads from a text (`proc_dointvec`): decimal, `0x` hexadecimal or `0` octal, up to the first blank.
pub fn number(text: &str) -> Option<i32> {
    let word = text.split_ascii_whitespace().next()?;
    let (sign, digits) = word.strip_prefix('-').map_or((1, word), |digits| (-1, digits));
    let (digits, radix) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(hexadecimal) => (hexadecimal, 16),
        None if digits.len() > 1 && digits.starts_with('0') => (&digits[1..], 8),
        None => (digits, 10),
    };
    // `from_str_radix` would take another sign.
    let all_digits = !digits.is_empty() && digits.chars().all(|digit| digit.is_digit(radix));
    let magnitude = all_digits.then(|| i64::from_str_radix(digits, radix).ok()).flatten()?;
    i32::try_from(sign * magnitude).ok()
}

/// The value of every setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings([i32; Setting::ALL.len()]);

impl Default for Settings {
    fn default() -> Self {
        Settings(std::array::from_fn(|at| Setting::ALL[at].default_value()))
    }
}

impl Settings {
    /// The value of one.
    pub fn get(&self, setting: Setting) -> i32 {
        self.0[setting as usize]
    }

    /// Sets one.
    ///
    /// # Errors
    /// It cannot have this value. A sentence.
    pub fn set(&mut self, setting: Setting, value: i32) -> Result<(), String> {
        if let Some(fault) = setting.fault(value) {
            return Err(fault);
        }
        self.0[setting as usize] = value;
        Ok(())
    }

    /// A defence goes from rest to work, or back.
    pub(crate) fn set_mode(&mut self, setting: Setting, mode: i32) {
        self.0[setting as usize] = mode;
    }

    /// Each with its value, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (Setting, i32)> {
        Setting::ALL.iter().map(|setting| (*setting, self.get(*setting)))
    }

    /// What the pipeline does by them, but for the defence.
    pub fn forward(&self, rfc6040: bool) -> ForwardOptions {
        let is_on = |setting| self.get(setting) != 0;
        let reuse = match self.get(Setting::ConnReuseMode) {
            0 => Reuse::Never,
            mode if mode & 2 != 0 => Reuse::OverOrHalfClosed,
            _ => Reuse::Over,
        };
        ForwardOptions {
            rfc6040,
            pmtu_disc: is_on(Setting::PmtuDisc),
            reuse,
            sloppy_tcp: is_on(Setting::SloppyTcp),
            tcp_mode: tcp::Mode::Normal,
            drop_rate: 0,
            nat_icmp_send: is_on(Setting::NatIcmpSend),
            schedule_icmp: is_on(Setting::ScheduleIcmp),
            expire_quiescent_template: is_on(Setting::ExpireQuiescentTemplate),
            expire_nodest_conn: is_on(Setting::ExpireNodestConn),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_the_kernel_reads_them() {
        for (text, value) in [
            ("0", Some(0)),
            ("-1", Some(-1)),
            ("2147483647", Some(i32::MAX)),
            ("2147483648", None),
            ("-2147483648", Some(i32::MIN)),
            ("abc", None),
            ("1 2", Some(1)),
            (" 7\n", Some(7)),
            ("", None),
            ("0x10", Some(16)),
            ("010", Some(8)),
            ("08", None),
            ("0x", None),
            ("1,2", None),
            ("+5", None),
            ("--5", None),
            ("0x-5", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(number(text), value, "{text:?}");
        }
    }

    #[test]
    fn every_setting_is_found_by_its_name_and_may_be_what_it_is() {
        let names: Vec<_> = Setting::ALL.iter().map(|setting| setting.name()).collect();
        assert!(names.is_sorted(), "as sysctl lists them");
        let settings = Settings::default();
        for (setting, value) in settings.iter() {
            assert_eq!(Setting::find(setting.name()), Some(setting));
            assert_eq!(Setting::find(&format!("net.ipv4.vs.{}", setting.name())), Some(setting));
            assert_eq!(Setting::find(&format!("net/ipv4/vs/{}", setting.name())), Some(setting));
            assert_eq!(setting.fault(value), None);
        }
        assert_eq!(Setting::find("net.ipv4.ip_forward"), None);
        assert_eq!(settings.forward(false), ForwardOptions::default());
    }

    #[test]
    fn what_cannot_be_is_refused_in_a_sentence() {
        let mut settings = Settings::default();
        let fault = settings.set(Setting::DropEntry, 4);
        assert_eq!(fault, Err("net.ipv4.vs.drop_entry is a whole number from 0 to 3".into()));
        let fault = settings.set(Setting::SnatReroute, 0);
        assert_eq!(
            fault,
            Err("net.ipv4.vs.snat_reroute is always 1 here: replies always go by the route to their client"
                .into())
        );
        assert_eq!(settings, Settings::default());
        settings.set(Setting::ConnReuseMode, 6).unwrap();
        assert_eq!(settings.forward(true).reuse, Reuse::OverOrHalfClosed);
    }
}
