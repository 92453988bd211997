//! `table/{implementation}/{operation}/{size}`: the connection table against maps one could have taken instead.
//!
//! One element = one connection of TCP over IPv4 with both its flows. `lookup`: a packet's flow, picked at random from the size's
//! many, is found and its connection's time of last packet renewed, in batches of 64 (the table's staged lookup; the maps have
//! none). `insert`: connections come one after another into a table that begins empty and ends at the size, growth and all.
//! `expiry`: the time of all of the size's connections is over and they are ended, both flows of each taken out.
//!
//! All maps hash by foldhash (keyed, fast) and hold the same 48 bytes per connection behind an `Arc` that both flows share.

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use std::hash::{Hash, Hasher};
use std::hint::black_box;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};
use uvs_conntrack::{
    Candidate, DestinationId, Flow, Flow4, Limits, NewConnection, SharedHandle, SharedTable, Tick,
};

const SIZES: [u32; 3] = [4096, 65_536, 1_048_576];
const BATCH: usize = 64;
const START: Tick = Tick(1000);
const TIMEOUT_SECONDS: u32 = 60;

fn client_flow(n: u32) -> Flow4 {
    let mixed = n.wrapping_mul(0x9e37_79b1);
    let [a, b, c, d] = mixed.to_be_bytes();
    Flow4::from_wire([10, a, b, c, 192, 168, 0, d & 15], [16 | d >> 4, d, 0, 80], 6)
}

fn real_flow(n: u32) -> Flow4 {
    let [_, a, b, c, ..] = client_flow(n).addresses.to_ne_bytes();
    let [p, q, ..] = client_flow(n).ports.to_ne_bytes();
    let server = Ipv4Addr::from(0xac10_0000 + n % 200).octets();
    let [s, t, u, v] = server;
    Flow4::from_wire([s, t, u, v, 10, a, b, c], [0x1f, 0x90, p, q], 6)
}

/// What every implementation does.
trait Store {
    fn with_room_for(size: u32) -> Self;
    fn insert(&mut self, n: u32);
    fn lookup(&self, flows: &[Flow4; BATCH], now: Tick) -> usize;
    /// How many connections ended.
    fn expire(&mut self, now: Tick) -> usize;
    /// After each batch.
    fn between_batches(&mut self) {}
}

struct Uvs(SharedHandle);

impl Store for Uvs {
    fn with_room_for(size: u32) -> Self {
        let limits = Limits { connections4: size, connections6: 0, ..Limits::default() };
        let table = SharedTable::create(limits).expect("memory for the table");
        Uvs(table.handle().expect("the first handle"))
    }

    fn insert(&mut self, n: u32) {
        let (client, real) = (Flow::V4(client_flow(n)), Flow::V4(real_flow(n)));
        let new = NewConnection {
            timeout_seconds: TIMEOUT_SECONDS,
            ..NewConnection::new(client, real, DestinationId(n % 200))
        };
        self.0.insert(&new, START).expect("room");
    }

    fn lookup(&self, flows: &[Flow4; BATCH], now: Tick) -> usize {
        let hashes = flows.map(|flow| {
            let hash = self.0.hash4(&flow);
            self.0.prefetch(hash);
            hash
        });
        let candidates = hashes.map(|hash| self.0.candidate(hash));
        let found = |(candidate, flow): (Candidate, &Flow4)| {
            let search = || self.0.found(self.0.search(candidate, &Flow::V4(*flow))?);
            let found = self.0.likeliest4(candidate, flow).or_else(search)?;
            found.connection.touch(found.direction, now);
            Some(())
        };
        candidates.into_iter().zip(flows).filter_map(found).count()
    }

    fn expire(&mut self, now: Tick) -> usize {
        let mut ended = 0;
        loop {
            let some = self.0.sweep(now, 16, |_| {});
            ended += some;
            self.0.quiescent();
            if self.0.table().stats().connections4 == 0 {
                return ended;
            }
        }
    }

    fn between_batches(&mut self) {
        self.0.quiescent();
    }
}

/// A flow as a key of a map.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key(Flow4);

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0.addresses);
        state.write_u64(u64::from(self.0.ports) | u64::from(self.0.protocol) << 32);
    }
}

struct Connection {
    seen: AtomicU32,
    _rest: [u32; 11],
}

impl Connection {
    fn new() -> Arc<Self> {
        Arc::new(Connection { seen: AtomicU32::new(START.0), _rest: [0; 11] })
    }

    fn is_over(&self, now: Tick) -> bool {
        Tick(self.seen.load(Relaxed)).plus_seconds(TIMEOUT_SECONDS).is_before(now)
    }
}

type Build = foldhash::fast::RandomState;
type Plain = hashbrown::HashMap<Key, Arc<Connection>, Build>;

fn keys(n: u32) -> [Key; 2] {
    [Key(client_flow(n)), Key(real_flow(n))]
}

/// Both maps of hashbrown differ in the lock alone.
macro_rules! behind_a_lock {
    ($name:ident, $lock:ident, $read:ident, $write:ident) => {
        struct $name($lock<Plain>);

        impl Store for $name {
            fn with_room_for(_: u32) -> Self {
                $name($lock::new(Plain::default()))
            }

            fn insert(&mut self, n: u32) {
                let connection = Connection::new();
                for key in keys(n) {
                    self.0.$write().expect("not poisoned").insert(key, connection.clone());
                }
            }

            fn lookup(&self, flows: &[Flow4; BATCH], now: Tick) -> usize {
                let found = |flow: &&Flow4| {
                    let map = self.0.$read().expect("not poisoned");
                    map.get(&Key(**flow)).map(|found| found.seen.store(now.0, Relaxed)).is_some()
                };
                flows.iter().filter(found).count()
            }

            fn expire(&mut self, now: Tick) -> usize {
                let mut map = self.0.$write().expect("not poisoned");
                let before = map.len();
                map.retain(|_, connection| !connection.is_over(now));
                (before - map.len()) / 2
            }
        }
    };
}

behind_a_lock!(HashbrownRwLock, RwLock, read, write);
behind_a_lock!(HashbrownMutex, Mutex, lock, lock);

struct Dash(dashmap::DashMap<Key, Arc<Connection>, Build>);

impl Store for Dash {
    fn with_room_for(_: u32) -> Self {
        Dash(dashmap::DashMap::default())
    }

    fn insert(&mut self, n: u32) {
        let connection = Connection::new();
        for key in keys(n) {
            self.0.insert(key, connection.clone());
        }
    }

    fn lookup(&self, flows: &[Flow4; BATCH], now: Tick) -> usize {
        let found =
            |flow: &&Flow4| self.0.get(&Key(**flow)).map(|found| found.seen.store(now.0, Relaxed)).is_some();
        flows.iter().filter(found).count()
    }

    fn expire(&mut self, now: Tick) -> usize {
        let before = self.0.len();
        self.0.retain(|_, connection| !connection.is_over(now));
        (before - self.0.len()) / 2
    }
}

struct Papaya(papaya::HashMap<Key, Arc<Connection>, Build>);

impl Store for Papaya {
    fn with_room_for(_: u32) -> Self {
        Papaya(papaya::HashMap::default())
    }

    fn insert(&mut self, n: u32) {
        let connection = Connection::new();
        let map = self.0.pin();
        for key in keys(n) {
            map.insert(key, connection.clone());
        }
    }

    fn lookup(&self, flows: &[Flow4; BATCH], now: Tick) -> usize {
        let map = self.0.pin();
        let found =
            |flow: &&Flow4| map.get(&Key(**flow)).map(|found| found.seen.store(now.0, Relaxed)).is_some();
        flows.iter().filter(found).count()
    }

    fn expire(&mut self, now: Tick) -> usize {
        let map = self.0.pin();
        let before = map.len();
        map.retain(|_, connection| !connection.is_over(now));
        (before - map.len()) / 2
    }
}

fn filled<S: Store>(size: u32) -> S {
    let mut store = S::with_room_for(size);
    fill(&mut store, size);
    store
}

fn fill<S: Store>(store: &mut S, size: u32) {
    for n in 0..size {
        store.insert(n);
        if n % 64 == 63 {
            store.between_batches();
        }
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let scaled = ((self.0 >> 32) * u64::from(bound)) >> 32;
        u32::try_from(scaled).expect("below a 32-bit bound")
    }
}

fn lookup<S: Store>(criterion: &mut Criterion, name: &str) {
    let mut group = criterion.benchmark_group("table");
    group.throughput(Throughput::Elements(BATCH as u64));
    for size in SIZES {
        group.bench_function(BenchmarkId::new(format!("{name}/lookup"), size), |bencher| {
            let mut store = filled::<S>(size);
            for _ in 0..size / 8 {
                store.between_batches();
            }
            let mut random = Random(0x1234_5678_9abc_def1);
            let mut rounds = 0;
            // Picking the flows is not timed.
            bencher.iter_custom(|iterations| {
                let mut flows = vec![[client_flow(0); BATCH]; 64];
                let mut spent = Duration::ZERO;
                let mut left = iterations;
                while left > 0 {
                    let some = left.min(64);
                    for flow in flows.iter_mut().flatten() {
                        *flow = client_flow(random.below(size));
                    }
                    rounds += 1;
                    let before = Instant::now();
                    for batch in flows.iter().take(usize::try_from(some).expect("at most 64")) {
                        assert_eq!(store.lookup(black_box(batch), Tick(START.0 + rounds % 1000)), BATCH);
                    }
                    spent += before.elapsed();
                    left -= some;
                }
                spent
            });
        });
    }
    group.finish();
}

fn insert<S: Store>(criterion: &mut Criterion, name: &str) {
    let mut group = criterion.benchmark_group("table");
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    for size in SIZES {
        group.throughput(Throughput::Elements(size.into()));
        group.bench_function(BenchmarkId::new(format!("{name}/insert"), size), |bencher| {
            bencher.iter_custom(|iterations| {
                let timed = |_| {
                    let mut store = S::with_room_for(size);
                    let before = Instant::now();
                    fill(&mut store, size);
                    before.elapsed()
                };
                (0..iterations).map(timed).sum()
            });
        });
    }
    group.finish();
}

fn expiry<S: Store>(criterion: &mut Criterion, name: &str) {
    let mut group = criterion.benchmark_group("table");
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    let over = START.plus_seconds(TIMEOUT_SECONDS + 1);
    for size in SIZES {
        group.throughput(Throughput::Elements(size.into()));
        group.bench_function(BenchmarkId::new(format!("{name}/expiry"), size), |bencher| {
            bencher.iter_custom(|iterations| {
                let timed = |_| {
                    let mut store = filled::<S>(size);
                    let before = Instant::now();
                    assert_eq!(store.expire(over), size as usize);
                    before.elapsed()
                };
                (0..iterations).map(timed).sum()
            });
        });
    }
    group.finish();
}

fn all<S: Store>(criterion: &mut Criterion, name: &str) {
    lookup::<S>(criterion, name);
    insert::<S>(criterion, name);
    expiry::<S>(criterion, name);
}

fn main() {
    let quick = Criterion::default().warm_up_time(Duration::from_secs(1));
    let mut criterion = quick.measurement_time(Duration::from_secs(2)).configure_from_args();
    all::<Uvs>(&mut criterion, "uvs");
    all::<HashbrownRwLock>(&mut criterion, "hashbrown-rwlock");
    all::<HashbrownMutex>(&mut criterion, "hashbrown-mutex");
    all::<Dash>(&mut criterion, "dashmap");
    all::<Papaya>(&mut criterion, "papaya");
    criterion.final_summary();
}
