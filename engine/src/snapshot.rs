//! The configuration as workers see it: an immutable snapshot behind one atomic pointer.
//!
//! A change makes a new [`Snapshot`] that shares structure with the old one (every map in it is persistent, every large
//! part behind an `Arc`), so one command costs O(log n). [`Config::publish`] swaps the pointer; [`Config::settle`] returns
//! when every worker works from it, which is when a command may say that it is done.

use crate::batch::PortId;
use crate::mtu::PathMtus;
use crate::nexthop::{NextHops, Routes};
use crate::service::{LocalPool, Services};
use crate::steer;
use arc_swap::ArcSwap;
use crossbeam_utils::CachePadded;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use uvs_conntrack::Timeouts;
use uvs_conntrack::protocol::tcp;

/// One device of this director, as the pipeline needs to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The kernel's index of the device.
    pub ifindex: u32,
    /// The kernel's name of the device.
    pub name: String,
    /// Its link-layer address: the source of every frame sent through it.
    pub mac: [u8; 6],
    /// Its MTU in bytes, link-layer header not counted.
    pub mtu: u32,
    /// Whether the device is there and up.
    pub up: bool,
    /// This host's addresses on it that it reports errors from: one of IPv4, one of IPv6.
    pub addresses: [Option<IpAddr>; 2],
    /// Whether its frames may have been made of many: in generic mode and by packet sockets, of what a
    /// sender or the kernel merged.
    pub merged: bool,
}

/// What becomes of a client's packets when the real server of their connection was removed from its service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnRemove {
    /// They are dropped until the real server is added again, as in IPVS; the real server's own packets pass.
    #[default]
    Drop,
    /// They go on to it until the connection ends. Only new connections go elsewhere.
    Keep,
}

/// How packets are forwarded, whatever their service (IPVS's settings under `net.ipv4.vs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForwardOptions {
    /// Whether a tunnel keeps to "don't fragment": the packet around takes the bit over, and clients are told what is too long
    /// (`pmtu_disc`).
    pub pmtu_disc: bool,
    /// Whether the packet around shows congestion that the packet inside experienced (RFC 6040), which IPVS does not let it
    /// (RFC 3168).
    pub rfc6040: bool,
    /// Whose connections a client may begin anew from the same port (`conn_reuse_mode`).
    pub reuse: Reuse,
    /// Whether a TCP segment without SYN begins a connection, too (`sloppy_tcp`).
    pub sloppy_tcp: bool,
    /// By which table TCP connections change their state (`secure_tcp`).
    pub tcp_mode: tcp::Mode,
    /// Of how many packets that would begin connections one is dropped; 0: none, negative: all (`drop_packet`).
    pub drop_rate: i32,
    /// Whether a real server is told that its packet belongs to no connection (`nat_icmp_send`).
    pub nat_icmp_send: bool,
    /// Whether an ICMP error about a packet of no connection begins one (`schedule_icmp`).
    pub schedule_icmp: bool,
    /// Whether persistence no longer keeps clients with a real server of weight 0 (`expire_quiescent_template`).
    pub expire_quiescent_template: bool,
    /// Whether connections of removed real servers end at once, and those to real servers of weight 0 when their client begins
    /// anew (`expire_nodest_conn`).
    pub expire_nodest_conn: bool,
}

/// Which connections give way to a new one of the same client's port (`conn_reuse_mode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reuse {
    /// None.
    Never,
    /// Those that are over: in TIME_WAIT or CLOSE.
    #[default]
    Over,
    /// These, and those in FIN_WAIT of which the director sees the client's packets alone.
    OverOrHalfClosed,
}

impl Default for ForwardOptions {
    fn default() -> Self {
        ForwardOptions {
            pmtu_disc: true,
            rfc6040: false,
            reuse: Reuse::default(),
            sloppy_tcp: false,
            tcp_mode: tcp::Mode::default(),
            drop_rate: 0,
            nat_icmp_send: false,
            schedule_icmp: false,
            expire_quiescent_template: false,
            expire_nodest_conn: false,
        }
    }
}

/// How packets of this host's own sockets come and go.
#[derive(Clone, Debug)]
pub struct OwnTraffic {
    /// The device that they come by when they are for a service or from a real server that is this host itself, and go by to
    /// them.
    pub port: PortId,
    /// The addresses of this host that real servers see its own connections to services come from, each with the ports to use.
    pub sources: Arc<[(IpAddr, Arc<LocalPool>)]>,
}

/// Everything that decides what happens to a packet and is not itself changed by packets.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Counts changes; a later snapshot has a greater one.
    pub generation: u64,
    /// Virtual services by address, port and protocol.
    pub services: Services,
    /// Routes by destination, and the neighbours known on our links.
    pub routes: Arc<Routes>,
    /// Link-layer addresses of the next hops. Shared by all snapshots; read without a lock.
    pub hops: Arc<NextHops>,
    /// The devices, by [`crate::batch::PortId`].
    pub ports: Arc<[Port]>,
    /// The addresses of this host, sorted.
    pub own: Arc<[IpAddr]>,
    /// How packets of this host's own sockets come and go; none: they do not.
    pub own_traffic: Option<OwnTraffic>,
    /// State timeouts (`ipvsadm --set`).
    pub timeouts: Arc<Timeouts>,
    /// What becomes of the connections of removed real servers.
    pub on_remove: OnRemove,
    /// How packets are forwarded.
    pub options: ForwardOptions,
    /// Whose replies come through here, where that is asked of packets of no connection.
    pub repliers: steer::View,
    /// What is known of the paths to tunnelled real servers. Shared by all snapshots; packets change it.
    pub paths: Arc<PathMtus>,
}

impl Snapshot {
    /// A director without devices, routes or services.
    pub fn empty(hops: Arc<NextHops>) -> Self {
        Snapshot {
            generation: 0,
            services: Services::default(),
            routes: Arc::default(),
            hops,
            ports: Arc::from([]),
            own: Arc::from([]),
            own_traffic: None,
            timeouts: Arc::default(),
            on_remove: OnRemove::default(),
            options: ForwardOptions::default(),
            repliers: steer::View::default(),
            paths: Arc::default(),
        }
    }

    /// Whether this host has the address.
    pub(crate) fn is_own(&self, address: IpAddr) -> bool {
        self.own.binary_search(&address).is_ok()
    }

    /// Whether packets that come by `port` are this host's own.
    pub(crate) fn is_own_port(&self, port: PortId) -> bool {
        self.own_traffic.as_ref().is_some_and(|own| own.port == port)
    }

    /// The address of this host that tells the sender of a packet that came in by `port` of an error, in the family of
    /// `like`: one of that device if it has any, else one of another device.
    pub(crate) fn own_address(&self, port: PortId, like: IpAddr) -> Option<IpAddr> {
        let family = usize::from(like.is_ipv6());
        let here = self.ports.get(usize::from(port.0));
        here.into_iter().chain(self.ports.iter()).find_map(|port| port.addresses[family])
    }
}

/// A worker that is asleep holds no snapshot: it takes the newest before it touches a frame.
const ASLEEP: u64 = u64::MAX;

/// The current snapshot and who works from which.
#[derive(Debug)]
pub struct Config {
    current: ArcSwap<Snapshot>,
    generation: CachePadded<AtomicU64>,
    /// What each worker works from.
    followers: Mutex<Vec<Arc<CachePadded<AtomicU64>>>>,
    /// Held while a change is made.
    publication: Mutex<()>,
}

impl Config {
    /// Starts from `snapshot`.
    pub fn new(snapshot: Snapshot) -> Arc<Self> {
        Arc::new(Config {
            generation: CachePadded::new(AtomicU64::new(snapshot.generation)),
            current: ArcSwap::from_pointee(snapshot),
            followers: Mutex::default(),
            publication: Mutex::default(),
        })
    }

    /// The newest snapshot.
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Replaces the snapshot by what `change` makes of a copy of it. Changes are made one at a time. Returns the new
    /// generation, for [`Config::settle`].
    pub fn publish(&self, change: impl FnOnce(&mut Snapshot)) -> u64 {
        let _one_at_a_time = self.publication.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = Snapshot::clone(&self.current.load());
        change(&mut next);
        next.generation += 1;
        let generation = next.generation;
        self.current.store(Arc::new(next));
        self.generation.store(generation, SeqCst);
        generation
    }

    /// Waits until every worker works from `generation` or a later one, at most `limit`. `false` when one did not.
    ///
    /// A sleeping worker counts at once: it takes the newest snapshot when it wakes.
    #[must_use]
    pub fn settle(&self, generation: u64, limit: Duration) -> bool {
        fence(SeqCst);
        let followers = self.followers().clone();
        let end = Instant::now() + limit;
        followers.iter().all(|follower| {
            let mut turns = 0_u32;
            while follower.load(SeqCst) < generation {
                if Instant::now() > end {
                    return false;
                }
                turns += 1;
                if turns > 64 {
                    std::thread::sleep(Duration::from_micros(20));
                } else {
                    std::thread::yield_now();
                }
            }
            true
        })
    }

    /// A new worker's view.
    pub fn follow(self: &Arc<Self>) -> Follower {
        let beat = Arc::new(CachePadded::new(AtomicU64::new(ASLEEP)));
        self.followers().push(beat.clone());
        Follower { config: self.clone(), snapshot: self.load(), beat }
    }

    fn followers(&self) -> MutexGuard<'_, Vec<Arc<CachePadded<AtomicU64>>>> {
        self.followers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One worker's hold on the configuration.
#[derive(Debug)]
pub struct Follower {
    config: Arc<Config>,
    snapshot: Arc<Snapshot>,
    beat: Arc<CachePadded<AtomicU64>>,
}

impl Follower {
    /// The snapshot to use for the next batch. Costs one load of a line that is written only by changes.
    #[inline]
    pub fn refresh(&mut self) -> &Snapshot {
        let newest = self.config.generation.load(SeqCst);
        if newest != self.snapshot.generation || self.beat.load(SeqCst) != newest {
            self.take_newest();
        }
        &self.snapshot
    }

    #[cold]
    fn take_newest(&mut self) {
        self.beat.store(0, SeqCst);
        fence(SeqCst);
        self.snapshot = self.config.load();
        self.beat.store(self.snapshot.generation, SeqCst);
    }

    /// The snapshot of the last [`Follower::refresh`].
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The worker is about to sleep and uses no snapshot until its next [`Follower::refresh`].
    pub fn sleep(&self) {
        self.beat.store(ASLEEP, SeqCst);
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.sleep();
        self.config.followers().retain(|beat| !Arc::ptr_eq(beat, &self.beat));
    }
}
