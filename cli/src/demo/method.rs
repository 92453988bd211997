//! The forwarding methods as the demo shows them: how the hosts are wired, what is typed, what is promised.

use clap::ValueEnum;
use uvs_lab::Arms;

/// A forwarding method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Nat,
    FullNat,
    Direct,
    Tunnel,
}

impl Method {
    /// In the order in which they are shown.
    pub(super) const ALL: [Method; 4] = [Method::Nat, Method::FullNat, Method::Direct, Method::Tunnel];

    /// Its title, which says how it is asked for.
    pub(super) fn title(self) -> &'static str {
        match self {
            Method::Nat => "NAT",
            Method::FullNat => "FULLNAT",
            Method::Direct => "DR",
            Method::Tunnel => "TUN",
        }
    }

    /// What it is, in a sentence.
    pub(super) fn idea(self) -> &'static str {
        match self {
            Method::Nat => {
                "the director is the real servers' gateway: requests and answers pass it, rewritten"
            }
            Method::FullNat => {
                "real servers anywhere answer the director, which tells them the client by the PROXY protocol"
            }
            Method::Direct => "real servers on the director's network answer the client themselves",
            Method::Tunnel => {
                "real servers anywhere get requests in a tunnel and answer the client themselves"
            }
        }
    }

    /// What the director's box says.
    pub(super) fn words(self) -> &'static str {
        match self {
            Method::Nat => "NAT by AF_XDP",
            Method::FullNat => "full NAT",
            Method::Direct => "direct routing",
            Method::Tunnel => "IP in IP",
        }
    }

    /// What stands between the director and the real servers.
    pub(super) fn between(self) -> &'static str {
        match self {
            Method::Nat => "",
            Method::FullNat | Method::Tunnel => "router",
            Method::Direct => "switch",
        }
    }

    /// The option of `ipvsadm -a`.
    pub(super) fn option(self) -> &'static str {
        match self {
            Method::Nat => "-m",
            Method::FullNat => "-b",
            Method::Direct => "-g",
            Method::Tunnel => "-i",
        }
    }

    /// What real servers are set up for by `uvs real-server start --method`, if they need to be.
    pub(super) fn on_real_servers(self) -> Option<&'static str> {
        match self {
            Method::Nat | Method::FullNat => None,
            Method::Direct => Some("dr"),
            Method::Tunnel => Some("tun"),
        }
    }

    /// Whether answers come back through the director.
    pub(super) fn answers_pass(self) -> bool {
        matches!(self, Method::Nat | Method::FullNat)
    }

    /// Whether real servers learn the client's address by the PROXY protocol: the connection's own is the director's.
    pub(super) fn is_told_by_proxy(self) -> bool {
        self == Method::FullNat
    }

    /// How the hosts are wired.
    pub(super) fn arms(self) -> Arms {
        match self {
            Method::Nat => Arms::Two,
            Method::FullNat | Method::Tunnel => Arms::Beyond,
            Method::Direct => Arms::One,
        }
    }
}

/// What the command line asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Wanted {
    /// Masquerading (ipvsadm -m)
    Nat,
    /// Full NAT (ipvsadm -b)
    Fullnat,
    /// Direct routing (ipvsadm -g)
    Dr,
    /// An IP-in-IP tunnel (ipvsadm -i)
    Tun,
    /// One after the other
    All,
}

impl Wanted {
    pub(super) fn methods(self) -> &'static [Method] {
        match self {
            Wanted::Nat => &[Method::Nat],
            Wanted::Fullnat => &[Method::FullNat],
            Wanted::Dr => &[Method::Direct],
            Wanted::Tun => &[Method::Tunnel],
            Wanted::All => &Method::ALL,
        }
    }
}
