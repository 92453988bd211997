//! What ipvsadm's command line is made of: commands, options, and which may stand together.

/// The commands. Exactly one begins a command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    AddService,
    EditService,
    DeleteService,
    Flush,
    List,
    AddServer,
    EditServer,
    DeleteServer,
    AddLocal,
    DeleteLocal,
    ListLocals,
    Set,
    StartDaemon,
    StopDaemon,
    Restore,
    Save,
    Zero,
    Help,
    Version,
}

impl Verb {
    /// The name that messages give it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Verb::AddService => "add-service",
            Verb::EditService => "edit-service",
            Verb::DeleteService => "delete-service",
            Verb::Flush => "flush",
            Verb::List => "list",
            Verb::AddServer => "add-server",
            Verb::EditServer => "edit-server",
            Verb::DeleteServer => "delete-server",
            Verb::AddLocal => "add-laddr",
            Verb::DeleteLocal => "del-laddr",
            Verb::ListLocals => "get-laddr",
            Verb::Set => "set",
            Verb::StartDaemon => "start-daemon",
            Verb::StopDaemon => "stop-daemon",
            Verb::Restore => "restore",
            Verb::Save => "save",
            Verb::Zero => "zero",
            Verb::Help => "help",
            Verb::Version => "version",
        }
    }

    /// Which options may, must or must alone stand with it.
    fn rules(self) -> Rules {
        use Opt::*;
        match self {
            Verb::AddService | Verb::EditService => Rules {
                required: &[ServiceAddress],
                optional: &[
                    Scheduler,
                    Persistent,
                    Netmask,
                    Ops,
                    Pe,
                    SchedFlags,
                    ClientAddress,
                    ToaKind,
                    ToaKindIpv6,
                    ToaNotOnSyn,
                    Mss,
                    Refuse,
                    StateTimeouts,
                    TableSize,
                    HalfLife,
                    LoadBound,
                ],
                ..Rules::NONE
            },
            Verb::DeleteService => Rules { required: &[ServiceAddress], ..Rules::NONE },
            Verb::List => Rules {
                exclusive: &[Connection, ServiceAddress, Timeout, Daemon],
                optional: &[
                    Numeric,
                    Stats,
                    Rate,
                    Thresholds,
                    PersistentConn,
                    Nosort,
                    Syncid,
                    Exact,
                    TunInfo,
                    Json,
                ],
                ..Rules::NONE
            },
            Verb::AddServer | Verb::EditServer => Rules {
                required: &[ServiceAddress, RealServer],
                optional: &[
                    ForwardingMethod,
                    Weight,
                    UThreshold,
                    LThreshold,
                    TunType,
                    TunPort,
                    TunNocsum,
                    TunCsum,
                    TunRemcsum,
                ],
                ..Rules::NONE
            },
            Verb::DeleteServer => Rules { required: &[ServiceAddress, RealServer], ..Rules::NONE },
            Verb::AddLocal | Verb::DeleteLocal => {
                Rules { required: &[ServiceAddress, LocalAddress], ..Rules::NONE }
            }
            Verb::ListLocals => Rules { optional: &[ServiceAddress, Numeric], ..Rules::NONE },
            Verb::StartDaemon => Rules {
                optional: &[McastInterface, Syncid, McastGroup, McastPort, McastTtl, SyncMaxlen],
                ..Rules::NONE
            },
            Verb::StopDaemon => Rules { optional: &[Syncid], ..Rules::NONE },
            Verb::Save => Rules { optional: &[Numeric], ..Rules::NONE },
            Verb::Zero => Rules { optional: &[ServiceAddress], ..Rules::NONE },
            Verb::Flush | Verb::Set | Verb::Restore | Verb::Help | Verb::Version => Rules::NONE,
        }
    }
}

struct Rules {
    required: &'static [Opt],
    optional: &'static [Opt],
    exclusive: &'static [Opt],
}

impl Rules {
    const NONE: Rules = Rules { required: &[], optional: &[], exclusive: &[] };
}

/// The options as the rules know them, in the order in which ipvsadm checks them. Several switches may be one option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opt {
    Numeric,
    Connection,
    ServiceAddress,
    Scheduler,
    Persistent,
    Netmask,
    RealServer,
    ForwardingMethod,
    Weight,
    UThreshold,
    LThreshold,
    McastInterface,
    Timeout,
    Daemon,
    Stats,
    Rate,
    Thresholds,
    PersistentConn,
    Nosort,
    Syncid,
    Exact,
    Ops,
    Pe,
    SchedFlags,
    McastGroup,
    McastPort,
    McastTtl,
    SyncMaxlen,
    TunInfo,
    TunType,
    TunPort,
    TunNocsum,
    TunCsum,
    TunRemcsum,
    Json,
    LocalAddress,
    ClientAddress,
    ToaKind,
    ToaKindIpv6,
    ToaNotOnSyn,
    Mss,
    Refuse,
    StateTimeouts,
    TableSize,
    HalfLife,
    LoadBound,
}

/// Every option with the name that messages give it, in checking order.
const OPTIONS: [(Opt, &str); 46] = [
    (Opt::Numeric, "numeric"),
    (Opt::Connection, "connection"),
    (Opt::ServiceAddress, "service-address"),
    (Opt::Scheduler, "scheduler"),
    (Opt::Persistent, "persistent"),
    (Opt::Netmask, "netmask"),
    (Opt::RealServer, "real-server"),
    (Opt::ForwardingMethod, "forwarding-method"),
    (Opt::Weight, "weight"),
    (Opt::UThreshold, "u-threshold"),
    (Opt::LThreshold, "l-threshold"),
    (Opt::McastInterface, "mcast-interface"),
    (Opt::Timeout, "timeout"),
    (Opt::Daemon, "daemon"),
    (Opt::Stats, "stats"),
    (Opt::Rate, "rate"),
    (Opt::Thresholds, "thresholds"),
    (Opt::PersistentConn, "persistent-conn"),
    (Opt::Nosort, "nosort"),
    (Opt::Syncid, "syncid"),
    (Opt::Exact, "exact"),
    (Opt::Ops, "ops"),
    (Opt::Pe, "pe"),
    (Opt::SchedFlags, "sched-flags"),
    (Opt::McastGroup, "mcast-group"),
    (Opt::McastPort, "mcast-port"),
    (Opt::McastTtl, "mcast-ttl"),
    (Opt::SyncMaxlen, "sync-maxlen"),
    (Opt::TunInfo, "tun-info"),
    (Opt::TunType, "tun-type"),
    (Opt::TunPort, "tun-port"),
    (Opt::TunNocsum, "tun-nocsum"),
    (Opt::TunCsum, "tun-csum"),
    (Opt::TunRemcsum, "tun-remcsum"),
    (Opt::Json, "json"),
    (Opt::LocalAddress, "local-address"),
    (Opt::ClientAddress, "client-address"),
    (Opt::ToaKind, "toa-kind"),
    (Opt::ToaKindIpv6, "toa-kind-ipv6"),
    (Opt::ToaNotOnSyn, "toa-not-on-syn"),
    (Opt::Mss, "mss"),
    (Opt::Refuse, "refuse"),
    (Opt::StateTimeouts, "state-timeouts"),
    (Opt::TableSize, "table-size"),
    (Opt::HalfLife, "half-life"),
    (Opt::LoadBound, "load-bound"),
];

/// The options given so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Given(u64);

impl Given {
    /// Notes an option; an option stands once.
    pub(super) fn note(&mut self, option: Opt) -> Result<(), String> {
        if self.has(option) {
            let (_, name) = OPTIONS[option as usize];
            return Err(format!("multiple '{name}' options specified"));
        }
        self.0 |= 1 << option as u32;
        Ok(())
    }

    /// Whether an option was given.
    pub(super) fn has(self, option: Opt) -> bool {
        self.0 & 1 << option as u32 != 0
    }

    /// Whether these options may stand with `verb`.
    pub(super) fn check(self, verb: Verb) -> Result<(), String> {
        let rules = verb.rules();
        let command = verb.name();
        let mut alone = None;
        for (option, name) in OPTIONS {
            let given = self.has(option);
            if rules.required.contains(&option) {
                if !given {
                    return Err(format!(
                        "You need to supply the '{name}' option for the '{command}' command"
                    ));
                }
            } else if given && rules.exclusive.contains(&option) {
                if let Some(other) = alone {
                    return Err(format!(
                        "The option '{name}' conflicts with the '{other}' option in the '{command}' command"
                    ));
                }
                alone = Some(name);
            } else if given && !rules.optional.contains(&option) {
                return Err(format!("Illegal '{name}' option with the '{command}' command"));
            }
        }
        Ok(())
    }
}

impl Verb {
    /// Whether a command with this verb has a switch: local addresses have their own, which ipvsadm does not know elsewhere.
    pub(super) fn has(self, (_, _, _, switch): SwitchRow) -> bool {
        match switch {
            Switch::Verb(Verb::AddLocal | Verb::DeleteLocal | Verb::ListLocals) => false,
            Switch::Plain(Opt::LocalAddress) => matches!(self, Verb::AddLocal | Verb::DeleteLocal),
            _ => true,
        }
    }

    /// What a switch is in a command with this verb, as the patch that brought full NAT had it before `-b` got another meaning:
    /// with real servers it is full NAT.
    pub(super) fn meaning(self, (letter, long, value, switch): SwitchRow) -> (Value, Switch) {
        match (self, letter) {
            (Verb::AddServer | Verb::EditServer, Some('b')) if long == "sched-flags" => {
                (Value::None, Switch::FullNat)
            }
            _ => (value, switch),
        }
    }
}

/// What one switch on the command line stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Switch {
    Verb(Verb),
    TcpService,
    UdpService,
    SctpService,
    FwmarkService,
    Ipv6,
    Gatewaying,
    Ipip,
    Masquerading,
    FullNat,
    Sort,
    Plain(Opt),
}

/// Whether a switch has a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    None,
    Needed,
    Optional,
}

/// A switch: its letter when it has one, its long name, its value, its meaning.
pub(super) type SwitchRow = (Option<char>, &'static str, Value, Switch);

/// Every switch.
pub(super) const SWITCHES: [SwitchRow; 74] = {
    use self::Verb as V;
    use Switch::*;
    use Value::{Needed, None as Bare, Optional};
    [
        (Some('A'), "add-service", Bare, Verb(V::AddService)),
        (Some('E'), "edit-service", Bare, Verb(V::EditService)),
        (Some('D'), "delete-service", Bare, Verb(V::DeleteService)),
        (Some('C'), "clear", Bare, Verb(V::Flush)),
        (Some('L'), "list", Bare, Verb(V::List)),
        (Some('l'), "list", Bare, Verb(V::List)),
        (Some('Z'), "zero", Bare, Verb(V::Zero)),
        (Some('a'), "add-server", Bare, Verb(V::AddServer)),
        (Some('e'), "edit-server", Bare, Verb(V::EditServer)),
        (Some('d'), "delete-server", Bare, Verb(V::DeleteServer)),
        (Some('P'), "add-laddr", Bare, Verb(V::AddLocal)),
        (Some('Q'), "del-laddr", Bare, Verb(V::DeleteLocal)),
        (Some('G'), "get-laddr", Bare, Verb(V::ListLocals)),
        (None, "set", Bare, Verb(V::Set)),
        (Some('R'), "restore", Bare, Verb(V::Restore)),
        (Some('S'), "save", Bare, Verb(V::Save)),
        (None, "start-daemon", Needed, Verb(V::StartDaemon)),
        (None, "stop-daemon", Needed, Verb(V::StopDaemon)),
        (Some('h'), "help", Bare, Verb(V::Help)),
        (Some('v'), "version", Bare, Verb(V::Version)),
        (Some('t'), "tcp-service", Needed, TcpService),
        (Some('u'), "udp-service", Needed, UdpService),
        (None, "sctp-service", Needed, SctpService),
        (Some('f'), "fwmark-service", Needed, FwmarkService),
        (Some('6'), "ipv6", Bare, Ipv6),
        (Some('s'), "scheduler", Needed, Plain(Opt::Scheduler)),
        (Some('p'), "persistent", Optional, Plain(Opt::Persistent)),
        (Some('M'), "netmask", Needed, Plain(Opt::Netmask)),
        (Some('o'), "ops", Bare, Plain(Opt::Ops)),
        (None, "pe", Needed, Plain(Opt::Pe)),
        (Some('b'), "sched-flags", Needed, Plain(Opt::SchedFlags)),
        (Some('r'), "real-server", Needed, Plain(Opt::RealServer)),
        (Some('g'), "gatewaying", Bare, Gatewaying),
        (Some('i'), "ipip", Bare, Ipip),
        (Some('m'), "masquerading", Bare, Masquerading),
        (None, "fullnat", Bare, FullNat),
        (Some('z'), "laddr", Needed, Plain(Opt::LocalAddress)),
        (None, "tun-type", Needed, Plain(Opt::TunType)),
        (None, "tun-port", Needed, Plain(Opt::TunPort)),
        (None, "tun-nocsum", Bare, Plain(Opt::TunNocsum)),
        (None, "tun-csum", Bare, Plain(Opt::TunCsum)),
        (None, "tun-remcsum", Bare, Plain(Opt::TunRemcsum)),
        (Some('w'), "weight", Needed, Plain(Opt::Weight)),
        (Some('x'), "u-threshold", Needed, Plain(Opt::UThreshold)),
        (Some('y'), "l-threshold", Needed, Plain(Opt::LThreshold)),
        (Some('c'), "connection", Bare, Plain(Opt::Connection)),
        (None, "timeout", Bare, Plain(Opt::Timeout)),
        (None, "daemon", Bare, Plain(Opt::Daemon)),
        (None, "stats", Bare, Plain(Opt::Stats)),
        (None, "rate", Bare, Plain(Opt::Rate)),
        (None, "thresholds", Bare, Plain(Opt::Thresholds)),
        (None, "persistent-conn", Bare, Plain(Opt::PersistentConn)),
        (None, "tun-info", Bare, Plain(Opt::TunInfo)),
        (None, "nosort", Bare, Plain(Opt::Nosort)),
        (None, "sort", Bare, Sort),
        (Some('X'), "exact", Bare, Plain(Opt::Exact)),
        (Some('n'), "numeric", Bare, Plain(Opt::Numeric)),
        (None, "syncid", Needed, Plain(Opt::Syncid)),
        (None, "mcast-interface", Needed, Plain(Opt::McastInterface)),
        (None, "mcast-group", Needed, Plain(Opt::McastGroup)),
        (None, "mcast-port", Needed, Plain(Opt::McastPort)),
        (None, "mcast-ttl", Needed, Plain(Opt::McastTtl)),
        (None, "sync-maxlen", Needed, Plain(Opt::SyncMaxlen)),
        (None, "json", Bare, Plain(Opt::Json)),
        (None, "client-address", Needed, Plain(Opt::ClientAddress)),
        (None, "toa-kind", Needed, Plain(Opt::ToaKind)),
        (None, "toa-kind-ipv6", Needed, Plain(Opt::ToaKindIpv6)),
        (None, "toa-not-on-syn", Bare, Plain(Opt::ToaNotOnSyn)),
        (None, "mss", Needed, Plain(Opt::Mss)),
        (None, "refuse", Needed, Plain(Opt::Refuse)),
        (None, "state-timeouts", Needed, Plain(Opt::StateTimeouts)),
        (None, "table-size", Needed, Plain(Opt::TableSize)),
        (None, "half-life", Needed, Plain(Opt::HalfLife)),
        (None, "load-bound", Needed, Plain(Opt::LoadBound)),
    ]
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_agree_with_themselves() {
        for (number, (option, name)) in OPTIONS.iter().enumerate() {
            assert_eq!(*option as usize, number, "{name} is out of its place");
        }
        for (letter, long, ..) in SWITCHES {
            let same = |(other, ..): &&SwitchRow| letter.is_some() && *other == letter;
            assert!(SWITCHES.iter().filter(same).count() <= 1, "-{letter:?} has two meanings");
            let named = SWITCHES.iter().filter(|(_, other, ..)| *other == long);
            assert!(named.count() == 1 || long == "list", "--{long} has two meanings");
        }
    }

    #[test]
    fn the_help_names_every_switch() {
        let help = include_str!("help.txt");
        let words: Vec<&str> = help.split([' ', ',', '\n', '|', ':', ';']).collect();
        for (letter, long, ..) in SWITCHES {
            assert!(words.contains(&format!("--{long}").as_str()), "--{long} is not in the help");
            let letter = letter.map(|letter| format!("-{letter}"));
            assert!(
                letter.is_none_or(|letter| words.contains(&letter.as_str())),
                "a letter of --{long} is not"
            );
        }
    }

    #[test]
    fn options_stand_once_and_where_they_may() {
        let given = |options: &[Opt]| {
            let mut given = Given::default();
            options.iter().try_for_each(|option| given.note(*option)).map(|()| given)
        };
        for (verb, options, complaint) in [
            (Verb::List, &[Opt::Numeric, Opt::Stats, Opt::Rate][..], None),
            (Verb::List, &[Opt::Numeric, Opt::Numeric], Some("multiple 'numeric' options specified")),
            (
                Verb::Flush,
                &[Opt::Exact, Opt::Scheduler],
                Some("Illegal 'scheduler' option with the 'flush' command"),
            ),
            (
                Verb::AddServer,
                &[Opt::Weight],
                Some("You need to supply the 'service-address' option for the 'add-server' command"),
            ),
            (
                Verb::List,
                &[Opt::Timeout, Opt::Connection],
                Some("The option 'timeout' conflicts with the 'connection' option in the 'list' command"),
            ),
        ] {
            let found = given(options).and_then(|given| given.check(verb)).err();
            assert_eq!(found.as_deref(), complaint, "{verb:?} {options:?}");
        }
    }
}
