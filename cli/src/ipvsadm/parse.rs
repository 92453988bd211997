//! From words to a command: what each switch says, then whether all of it makes sense together.

use super::address::{self, HostPort};
use super::options::{Given, Opt, Switch, Verb};
use super::words::{Found, Reader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use uvs_control::api::{
    ClientAddress, Daemon, DaemonState, Family, Method, Netmask, Protocol, RefuseWith, SchedulerFlags,
    SchedulerOptions, ServerSpec, ServiceId, ServiceSpec, Terms, Timeouts, Tunnel, TunnelChecksum,
    TunnelKind,
};
use uvs_control::registry::LONGEST_TIMEOUT;

/// A command that makes sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Add(ServiceSpec),
    Edit(ServiceSpec),
    Delete(ServiceId),
    Flush,
    AddServer(ServiceId, ServerSpec),
    EditServer(ServiceId, ServerSpec),
    DeleteServer(ServiceId, SocketAddr),
    AddLocal(ServiceId, IpAddr),
    DeleteLocal(ServiceId, IpAddr),
    ListLocals { service: Option<ServiceId>, numeric: bool },
    Zero(Option<ServiceId>),
    Set(Timeouts),
    StartDaemon(Daemon),
    StopDaemon(DaemonState),
    List(Listing),
    Save { numeric: bool },
    Restore,
    Help,
    Version,
}

/// What `-L` lists, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listing {
    pub(super) what: Listed,
    pub(super) columns: Columns,
    pub(super) numeric: bool,
    pub(super) exact: bool,
    pub(super) sorted: bool,
    pub(super) persistent: bool,
    pub(super) json: bool,
}

/// What is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listed {
    Services(Option<ServiceId>),
    Connections,
    Timeouts,
    Daemons,
}

/// Which numbers a listing of services shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Columns {
    Usual,
    Stats,
    Rate,
    Thresholds,
    PersistentConnections,
    Tunnels,
}

impl Listing {
    /// What ipvsadm does without any argument.
    pub(super) const ALL_BY_NAME: Listing = Listing {
        what: Listed::Services(None),
        columns: Columns::Usual,
        numeric: false,
        exact: false,
        sorted: true,
        persistent: false,
        json: false,
    };
}

/// Why a command line makes no sense: the text for standard error, without its last line feed, and the exit status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Complaint {
    pub(super) text: String,
    pub(super) status: u8,
    /// Whether a restore goes on with the next line all the same.
    pub(super) passes: bool,
}

/// A complaint that ipvsadm itself makes.
fn complaint<T>(text: impl Into<String>) -> Result<T, Complaint> {
    Err(text.into().into())
}

/// A complaint about the shape of the command line.
fn malformed(text: String) -> Complaint {
    Complaint { text, status: 255, passes: true }
}

impl Complaint {
    /// What is said when there is no command to begin with.
    pub(super) fn try_help() -> Self {
        let text = "Try `ipvsadm -h' or 'ipvsadm --help' for more information.".to_owned();
        Complaint { passes: false, ..malformed(text) }
    }
}

impl From<String> for Complaint {
    fn from(text: String) -> Self {
        Complaint { text, status: 2, passes: false }
    }
}

/// Reads a command from its words, the program's name not among them.
pub(super) fn parse(words: &[String]) -> Result<Command, Complaint> {
    let mut reader = Reader::new(words);
    let (verb, state) = match reader.next() {
        Some(Ok(Found { switch: Switch::Verb(verb), value, .. })) => (verb, daemon_state(verb, value)?),
        _ => return Err(Complaint::try_help()),
    };
    match verb {
        Verb::Help => return Ok(Command::Help),
        Verb::Version => return Ok(Command::Version),
        _ => {}
    }
    let mut draft = Draft::default();
    while let Some(found) = reader.next() {
        draft.take(&found.map_err(malformed)?)?;
    }
    let timeouts = match verb {
        Verb::Set => Some(set_values(&mut reader.leftover)?),
        _ => None,
    };
    if let Some(word) = reader.leftover.first() {
        return complaint(format!("unexpected argument {word}"));
    }
    draft.take_flags()?;
    draft.given.check(verb)?;
    draft.finish(verb, state, timeouts.unwrap_or_default())
}

fn daemon_state(verb: Verb, value: Option<&str>) -> Result<DaemonState, Complaint> {
    match (verb, value) {
        (Verb::StartDaemon | Verb::StopDaemon, Some("backup")) => Ok(DaemonState::Backup),
        (Verb::StartDaemon, Some(other)) if other != "master" => {
            complaint("illegal start-daemon parameter specified")
        }
        (Verb::StopDaemon, Some(other)) if other != "master" => complaint("illegal start_daemon specified"),
        _ => Ok(DaemonState::Master),
    }
}

/// Takes the three values of `--set` from the words that are no switches.
fn set_values(leftover: &mut Vec<&str>) -> Result<Timeouts, Complaint> {
    if leftover.len() < 3 {
        return complaint("--set option requires 3 timeout values");
    }
    let mut values = leftover.drain(..3).map(|text| timeout(text, 0));
    let mut next = || values.next().unwrap_or(Ok(0));
    Ok(Timeouts { tcp: next()?, tcp_fin: next()?, udp: next()? })
}

fn timeout(text: &str, least: i64) -> Result<u32, Complaint> {
    match whole(text, least, LONGEST_TIMEOUT) {
        Some(seconds) => Ok(seconds),
        None => complaint(format!("invalid timeout value `{text}' specified")),
    }
}

/// A number between two bounds.
fn whole(text: &str, least: i64, most: u32) -> Option<u32> {
    address::number(text, least, most.into()).and_then(|number| u32::try_from(number).ok())
}

fn bounded(text: &str, least: i64, most: u32, what: &str) -> Result<u32, Complaint> {
    match whole(text, least, most) {
        Some(number) => Ok(number),
        None => complaint(format!("illegal {what} specified")),
    }
}

fn short(text: &str, least: i64, what: &str) -> Result<u16, Complaint> {
    Ok(u16::try_from(bounded(text, least, u16::MAX.into(), what)?).unwrap_or(u16::MAX))
}

const WEIGHT_LIMIT: u32 = i32::MAX.unsigned_abs();

/// What the switches have said so far. What one says can depend on the ones before it.
#[derive(Debug)]
struct Draft {
    given: Given,
    protocol: Protocol,
    family: Family,
    address: IpAddr,
    port: u16,
    mark: Option<u32>,
    netmask: Netmask,
    scheduler: String,
    flags_text: String,
    flags: SchedulerFlags,
    options: SchedulerOptions,
    persistent: Option<u32>,
    one_packet: bool,
    engine: Option<String>,
    terms: Terms,
    server: Option<SocketAddr>,
    local: Option<IpAddr>,
    method: Method,
    tunnel: Tunnel,
    weight: u32,
    upper: u32,
    lower: u32,
    daemon: Daemon,
}

impl Default for Draft {
    fn default() -> Self {
        Draft {
            given: Given::default(),
            protocol: Protocol::Tcp,
            family: Family::Ipv4,
            address: Ipv4Addr::UNSPECIFIED.into(),
            port: 0,
            mark: None,
            netmask: Netmask::host(Family::Ipv4),
            scheduler: "wlc".to_owned(),
            flags_text: String::new(),
            flags: SchedulerFlags::default(),
            options: SchedulerOptions::default(),
            persistent: None,
            one_packet: false,
            engine: None,
            terms: Terms::default(),
            server: None,
            local: None,
            method: Method::Direct,
            tunnel: Tunnel::default(),
            weight: 1,
            upper: 0,
            lower: 0,
            daemon: Daemon {
                state: DaemonState::Master,
                interface: String::new(),
                sync_id: 0,
                max_length: 0,
                group: None,
                port: 0,
                ttl: 0,
            },
        }
    }
}

impl Draft {
    fn take(&mut self, found: &Found<'_>) -> Result<(), Complaint> {
        let value = found.value.unwrap_or_default();
        match found.switch {
            Switch::Verb(_) => return complaint(format!("invalid option `{}'", found.word)),
            Switch::TcpService => self.service(Protocol::Tcp, value)?,
            Switch::UdpService => self.service(Protocol::Udp, value)?,
            Switch::SctpService => self.service(Protocol::Sctp, value)?,
            Switch::FwmarkService => {
                self.given.note(Opt::ServiceAddress)?;
                self.mark = whole(value, 1, u32::MAX);
                if self.mark.is_none() {
                    return complaint(format!("invalid fwmark value `{value}' specified"));
                }
            }
            Switch::Ipv6 => {
                if self.mark.is_none() {
                    return complaint("-6 used before -f\n");
                }
                self.family = Family::Ipv6;
                self.netmask = Netmask::host(Family::Ipv6);
            }
            Switch::Gatewaying => self.method(Method::Direct)?,
            Switch::Ipip => self.method(Method::Tunnel(Tunnel::default()))?,
            Switch::Masquerading => self.method(Method::Masquerading)?,
            Switch::FullNat => self.method(Method::FullNat)?,
            Switch::Sort => {}
            Switch::Plain(option) => {
                self.given.note(option)?;
                self.plain(option, found.value, value)?;
            }
        }
        Ok(())
    }

    fn plain(&mut self, option: Opt, given: Option<&str>, value: &str) -> Result<(), Complaint> {
        match option {
            Opt::Scheduler if !value.is_empty() => value.clone_into(&mut self.scheduler),
            Opt::Persistent => self.persistent = Some(given.map_or(Ok(360), |text| timeout(text, 1))?),
            Opt::Netmask => self.netmask = self.parse_netmask(value)?,
            Opt::Ops => self.one_packet = true,
            Opt::Pe => self.engine = Some(value.to_owned()).filter(|name| !name.is_empty()),
            Opt::SchedFlags => value.clone_into(&mut self.flags_text),
            Opt::TableSize => self.options.table_size = Some(bounded(value, 1, u32::MAX, "table-size")?),
            Opt::HalfLife => self.options.half_life = Some(bounded(value, 1, u32::MAX, "half-life")?),
            Opt::LoadBound => self.options.load_bound = Some(bounded(value, 1, u32::MAX, "load-bound")?),
            Opt::RealServer => match address::host_port(value, self.protocol) {
                Some(HostPort { address, port }) => {
                    self.server = Some(SocketAddr::new(address, port.unwrap_or(self.port)));
                }
                None => return complaint("illegal real server address[:port] specified"),
            },
            Opt::LocalAddress => match value.parse() {
                Ok(address) => self.local = Some(address),
                Err(_) => return complaint("illegal local address specified"),
            },
            Opt::Weight => self.weight = bounded(value, 0, WEIGHT_LIMIT, "weight")?,
            Opt::UThreshold => self.upper = bounded(value, 0, WEIGHT_LIMIT, "u_threshold")?,
            Opt::LThreshold => self.lower = bounded(value, 0, WEIGHT_LIMIT, "l_threshold")?,
            Opt::TunType => {
                self.tunnel.kind = match value {
                    "ipip" => TunnelKind::Ipip,
                    "gue" => TunnelKind::Gue,
                    "gre" => TunnelKind::Gre,
                    _ => return complaint("illegal tunnel type specified"),
                }
            }
            Opt::ClientAddress => {
                self.terms.client_address = Some(match value {
                    "none" => ClientAddress::None,
                    "toa" => ClientAddress::Toa,
                    "proxy-v1" => ClientAddress::ProxyV1,
                    "proxy-v2" => ClientAddress::ProxyV2,
                    _ => return complaint("illegal client address specified"),
                });
            }
            Opt::ToaKind => self.terms.toa.kind = byte(bounded(value, 0, 255, "toa-kind")?),
            Opt::ToaKindIpv6 => self.terms.toa.kind_ipv6 = byte(bounded(value, 0, 255, "toa-kind-ipv6")?),
            Opt::ToaNotOnSyn => self.terms.toa.on_syn = false,
            Opt::Mss => self.terms.mss = Some(short(value, 1, "mss")?),
            Opt::Refuse => {
                self.terms.refuse = match value {
                    "icmp" => RefuseWith::Icmp,
                    "reset" => RefuseWith::Reset,
                    _ => return complaint("illegal refusal specified"),
                }
            }
            Opt::StateTimeouts => match value.parse() {
                Ok(timeouts) => self.terms.timeouts = timeouts,
                Err(fault) => return complaint(format!("illegal state timeouts specified: {fault}")),
            },
            Opt::TunPort => self.tunnel.port = short(value, 1, "tunnel port")?,
            Opt::TunCsum => self.tunnel.checksum = TunnelChecksum::Full,
            Opt::TunRemcsum => self.tunnel.checksum = TunnelChecksum::Remote,
            Opt::Syncid => self.daemon.sync_id = byte(bounded(value, 0, 255, "syncid")?),
            Opt::McastInterface => value.clone_into(&mut self.daemon.interface),
            Opt::McastGroup => self.daemon.group = Some(group(value)?),
            Opt::McastPort => self.daemon.port = short(value, 1, "mcast-port")?,
            Opt::McastTtl => self.daemon.ttl = byte(bounded(value, 1, 255, "mcast-ttl")?),
            Opt::SyncMaxlen => {
                let length = bounded(value, 1, u32::from(u16::MAX) - 28, "sync-maxlen")?;
                self.daemon.max_length = u16::try_from(length).unwrap_or(u16::MAX);
            }
            _ => {}
        }
        Ok(())
    }

    fn service(&mut self, protocol: Protocol, text: &str) -> Result<(), Complaint> {
        self.given.note(Opt::ServiceAddress)?;
        self.protocol = protocol;
        let Some(HostPort { address, port }) = address::host_port(text, protocol) else {
            return complaint("illegal virtual server address[:port] specified");
        };
        self.address = address;
        self.port = port.unwrap_or(0);
        self.family = Family::of(address);
        if self.family == Family::Ipv6 {
            self.netmask = Netmask::host(Family::Ipv6);
        }
        Ok(())
    }

    fn method(&mut self, method: Method) -> Result<(), Complaint> {
        self.given.note(Opt::ForwardingMethod)?;
        self.method = method;
        Ok(())
    }

    fn parse_netmask(&self, text: &str) -> Result<Netmask, Complaint> {
        match self.family {
            Family::Ipv4 => match address::inet_aton(text) {
                Some(mask) => Ok(Netmask::Ipv4(mask)),
                None => complaint("illegal virtual server persistent mask specified"),
            },
            Family::Ipv6 => match u8::try_from(address::leading_number(text)) {
                Ok(bits @ 1..=128) => Ok(Netmask::Ipv6(bits)),
                _ => complaint("illegal ipv6 netmask specified"),
            },
        }
    }

    /// Scheduler flags are read last: what they are called depends on the scheduler.
    fn take_flags(&mut self) -> Result<(), Complaint> {
        for name in self.flags_text.split(',').filter(|name| !name.is_empty()) {
            let known = SchedulerFlags::NAMES.into_iter().find(|(_, known, _)| *known == name);
            let Some((scheduler, _, flag)) = known else {
                return complaint(format!("invalid scheduler flag `{name}'"));
            };
            if scheduler.is_some_and(|scheduler| scheduler != self.scheduler) {
                return complaint(format!("incompatible scheduler flag `{name}'"));
            }
            self.flags = self.flags | flag;
        }
        Ok(())
    }

    fn finish(self, verb: Verb, state: DaemonState, timeouts: Timeouts) -> Result<Command, Complaint> {
        Ok(match verb {
            Verb::AddService => Command::Add(self.service_spec()?),
            Verb::EditService => Command::Edit(self.service_spec()?),
            Verb::DeleteService => Command::Delete(self.id()),
            Verb::Flush => Command::Flush,
            Verb::AddServer => Command::AddServer(self.id(), self.server_spec()?),
            Verb::EditServer => Command::EditServer(self.id(), self.server_spec()?),
            Verb::DeleteServer => Command::DeleteServer(self.id(), self.server_address()),
            Verb::AddLocal => Command::AddLocal(self.id(), self.local_address()),
            Verb::DeleteLocal => Command::DeleteLocal(self.id(), self.local_address()),
            Verb::ListLocals => Command::ListLocals {
                service: self.given.has(Opt::ServiceAddress).then(|| self.id()),
                numeric: self.given.has(Opt::Numeric),
            },
            Verb::Zero => Command::Zero(self.given.has(Opt::ServiceAddress).then(|| self.id())),
            Verb::Set => Command::Set(timeouts),
            Verb::StartDaemon => Command::StartDaemon(Daemon { state, ..self.daemon }),
            Verb::StopDaemon => Command::StopDaemon(state),
            Verb::List => Command::List(self.listing()?),
            Verb::Save => Command::Save { numeric: self.given.has(Opt::Numeric) },
            Verb::Restore => Command::Restore,
            Verb::Help => Command::Help,
            Verb::Version => Command::Version,
        })
    }

    fn id(&self) -> ServiceId {
        match self.mark {
            Some(mark) => ServiceId::Mark { mark, family: self.family },
            None => ServiceId::Address {
                protocol: self.protocol,
                address: SocketAddr::new(self.address, self.port),
            },
        }
    }

    fn service_spec(self) -> Result<ServiceSpec, Complaint> {
        if self.mark.is_none() && self.port == 0 && self.persistent.is_none() {
            return complaint("Zero port specified for non-persistent service");
        }
        if self.one_packet && self.mark.is_none() && self.protocol != Protocol::Udp {
            return complaint("One-Packet Scheduling is only for UDP virtual services");
        }
        Ok(ServiceSpec {
            id: self.id(),
            scheduler: self.scheduler,
            flags: self.flags,
            options: self.options,
            persistent: self.persistent,
            netmask: self.netmask,
            engine: self.engine,
            one_packet: self.one_packet,
            local_ports: None,
            terms: self.terms,
        })
    }

    /// The options were checked: it is there.
    fn local_address(&self) -> IpAddr {
        self.local.unwrap_or(self.address)
    }

    fn server_address(&self) -> SocketAddr {
        self.server.unwrap_or_else(|| SocketAddr::new(self.address, self.port))
    }

    fn server_spec(&self) -> Result<ServerSpec, Complaint> {
        let address = self.server_address();
        let tunneled = matches!(self.method, Method::Tunnel(_));
        if Family::of(address.ip()) != self.family && !self.method.joins_families() {
            return complaint("Different address family is allowed only for tunneling servers");
        }
        let method = if tunneled {
            self.check_tunnel()?;
            Method::Tunnel(self.tunnel)
        } else {
            let tunnel_options = [Opt::TunType, Opt::TunPort, Opt::TunNocsum, Opt::TunCsum, Opt::TunRemcsum];
            if tunnel_options.into_iter().any(|option| self.given.has(option)) {
                return complaint("Tunnel options conflict with forward method");
            }
            self.method
        };
        let server = ServerSpec {
            address,
            method,
            weight: self.weight,
            upper_threshold: self.upper,
            lower_threshold: self.lower,
        };
        Ok(server.reached_from(&self.id()))
    }

    /// Which tunnel options may stand together, by type of tunnel.
    fn check_tunnel(&self) -> Result<(), Complaint> {
        const OPTIONS: [(Opt, &str); 4] = [
            (Opt::TunPort, "tun-port"),
            (Opt::TunNocsum, "tun-nocsum"),
            (Opt::TunCsum, "tun-csum"),
            (Opt::TunRemcsum, "tun-remcsum"),
        ];
        let (kind, port_needed, allowed): (_, _, &[Opt]) = match self.tunnel.kind {
            TunnelKind::Ipip => ("ipip", false, &[]),
            TunnelKind::Gue => ("gue", true, &[Opt::TunNocsum, Opt::TunCsum, Opt::TunRemcsum]),
            TunnelKind::Gre => ("gre", false, &[Opt::TunNocsum, Opt::TunCsum]),
        };
        let mut checksum = None;
        for (option, name) in OPTIONS {
            let given = self.given.has(option);
            if option == Opt::TunPort && port_needed {
                if !given {
                    return complaint(format!(
                        "You need to supply the '{name}' option for the '{kind}' tunnel type"
                    ));
                }
            } else if given && !allowed.contains(&option) {
                return complaint(format!("Illegal '{name}' option with the '{kind}' tunnel type"));
            } else if given {
                if let Some(other) = checksum {
                    return complaint(format!(
                        "The option '{name}' conflicts with the '{other}' option in the '{kind}' tunnel type"
                    ));
                }
                checksum = Some(name);
            }
        }
        Ok(())
    }

    fn listing(&self) -> Result<Listing, Complaint> {
        let has = |option| self.given.has(option);
        let what = if has(Opt::Connection) {
            Listed::Connections
        } else if has(Opt::Timeout) {
            Listed::Timeouts
        } else if has(Opt::Daemon) {
            Listed::Daemons
        } else {
            Listed::Services(has(Opt::ServiceAddress).then(|| self.id()))
        };
        let counting = has(Opt::Stats) || has(Opt::Rate) || has(Opt::Thresholds);
        let persistent = has(Opt::PersistentConn);
        let conflict = match what {
            Listed::Services(_) => false,
            Listed::Connections => counting,
            Listed::Timeouts | Listed::Daemons => counting || persistent,
        };
        if conflict {
            return complaint("options conflicts in the list command");
        }
        let columns = [
            (Opt::Stats, Columns::Stats),
            (Opt::Rate, Columns::Rate),
            (Opt::Thresholds, Columns::Thresholds),
            (Opt::PersistentConn, Columns::PersistentConnections),
            (Opt::TunInfo, Columns::Tunnels),
        ];
        Ok(Listing {
            what,
            columns: columns
                .into_iter()
                .find(|(option, _)| has(*option))
                .map_or(Columns::Usual, |(_, columns)| columns),
            numeric: has(Opt::Numeric),
            exact: has(Opt::Exact),
            sorted: !has(Opt::Nosort),
            persistent,
            json: has(Opt::Json),
        })
    }
}

fn byte(number: u32) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX)
}

/// A multicast group; an IPv6 one needs a scope that is neither reserved nor this node's own.
fn group(text: &str) -> Result<IpAddr, Complaint> {
    match text.parse::<std::net::Ipv6Addr>() {
        Ok(group) if group.is_multicast() => Ok(group.into()),
        Ok(_) => complaint(format!("invalid IPv6 mcast-group `{text}'")),
        Err(_) => match address::inet_aton(text) {
            Some(group) if group.is_multicast() => Ok(group.into()),
            _ if text.contains(':') => complaint(format!("invalid IPv6 mcast-group `{text}'")),
            _ => complaint(format!("invalid IPv4 mcast-group `{text}'")),
        },
    }
}
