//! A cluster beside one server, and exactly once beside plain, with tasks of tokio that write to random slots: one
//! interleaved run, in a new order each round. `scripts/bench tokio` runs it.
//!
//! `clusters [--seed N] [--rounds N] [--slice MS] [--into FOLDER | --dry]`: the section of `figures.md` in FOLDER (`benches`) is
//! written, with `--dry` it is only printed. The sums on the servers are compared with the acknowledged transactions in
//! the end.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a benchmark that fails says so and ends"
)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use rediscope::aio::{SessionManager, Transactional};
use rediscope::{TransactionOptions, prelude::*};
use rediscope_peers::machine;
use rediscope_peers::report::{SPREAD, Spread, thousands};
use rediscope_peers::section::Section;
use rediscope_testing::cluster::{Cluster, SLOTS};
use rediscope_testing::server::Server;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

const MASTERS: u32 = 3;
/// Number of lanes to each master.
const LANES: [u32; 6] = [1, 2, 4, 8, 16, 64];
/// Number of lanes that one server may have.
const MOST_LANES: u32 = 64;
/// Number of connections of redis-rs to each master.
const BARE: u32 = 2;
const TASKS: [usize; 2] = [64, 1_000];
/// Number of hash tags, most of which have a slot of their own.
const TAGS: usize = 4_096;

/// One way to write, by so many tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    way: Way,
    tasks: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    /// One server, with as many lanes as a cluster has to all masters.
    Server(u32),
    /// The same server as the only master of a cluster, where a block travels with those of its slot only.
    Alone(u32),
    /// Three masters, with so many lanes to each.
    Plain(u32),
    Once(u32),
    /// The exchanges of exactly-once blocks on 3 masters, one a block, from as many sockets to each: bytes are
    /// written and lines of replies are counted.
    Exchanges(u32),
    /// redis-rs's multiplexed connections, without transactions: two INCRs in a pipeline, on as many connections.
    BareServer(u32),
    BareMasters(u32),
    /// The same with a MULTI and an EXEC around them.
    AtomicServer(u32),
    AtomicMasters(u32),
}

impl Way {
    fn all() -> Vec<Self> {
        let all = |lanes: u32| lanes * MASTERS;
        let of = |lanes: u32| {
            let one = [Self::Server(all(lanes)), Self::Alone(all(lanes))];
            one.into_iter().filter(move |_| all(lanes) <= MOST_LANES).chain([
                Self::Plain(lanes),
                Self::Once(lanes),
                Self::Exchanges(lanes),
            ])
        };
        let (one, each) = (all(BARE), BARE);
        let bare = [Self::BareServer(one), Self::BareMasters(each)];
        let atomic = [Self::AtomicServer(one), Self::AtomicMasters(each)];
        LANES.into_iter().flat_map(of).chain(bare).chain(atomic).collect()
    }

    fn name(self) -> String {
        match self {
            Self::Server(lanes) => format!("one server, {lanes} lanes"),
            Self::Alone(lanes) => format!("a cluster of one master, {lanes} lanes"),
            Self::Plain(lanes) => format!("3 masters, {lanes} lanes to each"),
            Self::Once(lanes) => format!("3 masters, {lanes} lanes to each, exactly once"),
            Self::Exchanges(lanes) => format!("3 masters, {lanes} sockets to each, bare exchanges"),
            Self::BareServer(lanes) => {
                format!("redis-rs, INCRs on one server, {lanes} connections")
            }
            Self::BareMasters(lanes) => format!("redis-rs, INCRs on 3 masters, {lanes} to each"),
            Self::AtomicServer(lanes) => {
                format!("redis-rs, atomic pipelines on one server, {lanes} connections")
            }
            Self::AtomicMasters(lanes) => {
                format!("redis-rs, atomic pipelines on 3 masters, {lanes} to each")
            }
        }
    }

    fn handle(self, Servers { server, alone, cluster }: &Servers, runtime: &Runtime) -> Handle {
        let _inside = runtime.enter();
        let bare = |urls: Vec<String>, masters, each, atomic| {
            Handle::Bare(runtime.block_on(Bare::connect(&urls, masters, each, atomic)))
        };
        let masters = || cluster.nodes().iter().map(|node| node.server.url()).collect();
        let (url, lanes) = match self {
            Self::BareServer(each) => return bare(vec![server.url()], None, each, false),
            Self::AtomicServer(each) => return bare(vec![server.url()], None, each, true),
            Self::Exchanges(each) => return Handle::Exchanges(Exchanges::to(cluster, each)),
            Self::BareMasters(each) => return bare(masters(), Some(cluster), each, false),
            Self::AtomicMasters(each) => return bare(masters(), Some(cluster), each, true),
            Self::Server(lanes) => (server.url(), lanes),
            Self::Alone(lanes) => (alone.url(), lanes),
            Self::Plain(lanes) | Self::Once(lanes) => (cluster.url(), lanes),
        };
        let builder = SessionManager::builder(url).lanes(lanes);
        let handle = builder.build_async().expect("settings").transactional();
        match self {
            Self::Once(_) => {
                Handle::Ours(Box::new(handle.with(TransactionOptions::new().exactly_once())))
            }
            _ => Handle::Ours(Box::new(handle)),
        }
    }
}

/// What the tasks write with.
#[derive(Clone)]
enum Handle {
    Ours(Box<Transactional>),
    Bare(Bare),
    Exchanges(Exchanges),
}

/// The address of each master, with its tags, and the number of sockets to each.
#[derive(Clone)]
struct Exchanges {
    masters: Arc<[(SocketAddr, Vec<usize>)]>,
    each: u32,
}

impl Exchanges {
    fn to(cluster: &Cluster, each: u32) -> Self {
        let of = |nth| {
            let slots = cluster.slots_of(nth);
            let tags = (0..TAGS).filter(|tag| slots.contains(&slot_of(tag.to_string().as_bytes())));
            (cluster.nodes()[nth].server.address(), tags.collect())
        };
        Self { masters: (0..MASTERS as usize).map(of).collect(), each }
    }

    /// Returns the number of exchanges between `start` and `end`, and of all.
    async fn run(&self, start: Instant, end: Instant) -> (u64, u64) {
        let mut sockets = Vec::new();
        for nth in 0..self.masters.len() {
            for _ in 0..self.each {
                let of = self.clone();
                sockets.push(tokio::spawn(async move {
                    let (address, tags) = &of.masters[nth];
                    one_socket(*address, tags, start, end).await
                }));
            }
        }
        let (mut counted, mut all) = (0, 0);
        for socket in sockets {
            let (its_counted, its_all) = socket.await.expect("a task");
            counted += its_counted;
            all += its_all;
        }
        (counted, all)
    }
}

/// Sends the commands of one exactly-once block after the other, and reads the replies of each: the block, its
/// register, and the register of the next block.
async fn one_socket(
    address: SocketAddr,
    tags: &[usize],
    start: Instant,
    end: Instant,
) -> (u64, u64) {
    /// MULTI, three QUEUED, four of EXEC, SET and WATCH.
    const LINES: usize = 10;
    let mut socket = TcpStream::connect(address).await.expect("a socket");
    socket.set_nodelay(true).expect("a socket");
    let (mut counted, mut all, mut replies) = (0_u64, 0_u64, [0; 4096]);
    let own = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(own);
    let word = |words: &[&str]| redis::cmd(words[0]).arg(&words[1..]).get_packed_command();
    let mut tag = tags[random.usize(..tags.len())];
    while Instant::now() < end {
        let next = tags[random.usize(..tags.len())];
        let register = |tag: usize| format!("{{{tag}}}:register:{own}");
        let written = |tag: usize| word(&["SET", &register(tag), &all.to_string(), "EX", "60"]);
        let bytes = [
            redis::cmd("MULTI").get_packed_command(),
            word(&["INCR", &format!("{{{tag}}}:a")]),
            word(&["INCR", &format!("{{{tag}}}:b")]),
            written(tag),
            redis::cmd("EXEC").get_packed_command(),
            written(next),
            word(&["WATCH", &register(next)]),
        ]
        .concat();
        socket.write_all(&bytes).await.expect("a write");
        let mut lines = 0;
        while lines < LINES {
            let read = socket.read(&mut replies).await.expect("a read");
            assert!(read > 0, "the server has closed");
            lines += replies[..read].iter().filter(|byte| **byte == b'\n').count();
        }
        all += 1;
        counted += u64::from((start..end).contains(&Instant::now()));
        tag = next;
    }
    (counted, all)
}

/// The multiplexed connections to each master, and the master of each tag.
#[derive(Clone)]
struct Bare {
    connections: Arc<[Vec<MultiplexedConnection>]>,
    masters: Arc<[usize]>,
    atomic: bool,
}

impl Bare {
    async fn connect(urls: &[String], of: Option<&Cluster>, each: u32, atomic: bool) -> Self {
        let mut connections = Vec::new();
        for url in urls {
            let client = redis::Client::open(&**url).expect("its address");
            let mut to_one = Vec::new();
            for _ in 0..each {
                let connection = client.get_multiplexed_async_connection().await;
                to_one.push(connection.expect("a connection"));
            }
            connections.push(to_one);
        }
        let slots = of.map_or(Vec::new(), |cluster| {
            (0..urls.len()).map(|nth| cluster.slots_of(nth)).collect::<Vec<_>>()
        });
        let master = |tag: usize| {
            let slot = slot_of(tag.to_string().as_bytes());
            slots.iter().position(|slots| slots.contains(&slot)).unwrap_or(0)
        };
        let masters: Vec<_> = (0..TAGS).map(master).collect();
        Self { connections: connections.into(), masters: masters.into(), atomic }
    }
}

/// The hash slot of a tag: CRC-16 of the XMODEM kind.
fn slot_of(tag: &[u8]) -> u16 {
    let sum = tag.iter().fold(0_u16, |sum, byte| {
        (0..8).fold(sum ^ (u16::from(*byte) << 8), |sum, _| match sum & 0x8000 {
            0 => sum << 1,
            _ => (sum << 1) ^ 0x1021,
        })
    });
    sum % SLOTS
}

impl Handle {
    /// Two INCRs of a tag.
    async fn write(&self, tag: usize, random: usize) {
        let (a, b) = (format!("{{{tag}}}:a"), format!("{{{tag}}}:b"));
        match self {
            Self::Ours(handle) => {
                let both = handle.run(|tx| Ok((tx.incr(&a, 1), tx.incr(&b, 1))));
                black_box(both.await.expect("two INCRs"));
            }
            Self::Exchanges(_) => {}
            Self::Bare(bare) => {
                let to_one = &bare.connections[bare.masters[tag]];
                let mut connection = to_one[random % to_one.len()].clone();
                let mut pipe = redis::pipe();
                if bare.atomic {
                    pipe.atomic();
                }
                pipe.incr(&a, 1).incr(&b, 1);
                let both: (u64, u64) = pipe.query_async(&mut connection).await.expect("INCRs");
                black_box(both);
            }
        }
    }
}

struct Servers {
    server: Server,
    alone: Cluster,
    cluster: Cluster,
}

type Measured = BTreeMap<Row, Vec<f64>>;

fn main() {
    let section = Section::from_arguments("clusters", 9, 250);
    let (rounds, slice, seed) = (section.rounds, section.slice, section.seed);
    let runtime = machine::runtime();
    let servers = Servers {
        server: Server::start(),
        alone: Cluster::start(1, 0),
        cluster: Cluster::start(MASTERS as usize, 0),
    };
    let handle = |way: Way| (way, way.handle(&servers, &runtime));
    let ways: Vec<_> = Way::all().into_iter().map(handle).collect();
    let (mut measured, mut done) = (Measured::new(), 0);
    for round in 0..=rounds {
        let mut rows: Vec<_> = TASKS
            .iter()
            .flat_map(|tasks| ways.iter().map(move |(way, handle)| (*tasks, *way, handle)))
            .collect();
        fastrand::shuffle(&mut rows);
        for (tasks, way, handle) in rows {
            let (rate, all) = runtime.block_on(write(handle, tasks, slice));
            done += all;
            // The first round opens the connections.
            if round > 0 {
                measured.entry(Row { way, tasks }).or_default().push(rate);
            }
        }
        eprint!("\rround {round} of {rounds}");
    }
    eprintln!();
    let [alone, cluster] = [&servers.alone, &servers.cluster].map(Cluster::nodes);
    let nodes = alone.iter().chain(cluster.iter()).map(|node| &node.server);
    let sums = nodes.chain([&servers.server]).map(sums);
    let all = sums.fold([0, 0], |[a, b], [more_a, more_b]| [a + more_a, b + more_b]);
    assert_eq!(all, [done, done], "acknowledged is what is there");
    let text = format!(
        "Measured on {}; {rounds} interleaved rounds with slices of {} ms, seed {seed}. Client and \
         servers share the cores. A transaction is two INCRs of one hash tag, a random one of {TAGS}. A ratio is taken \
         within each round; a target that is missed is in **bold**.\n\n{}\n{}",
        section.machine(),
        slice.as_millis(),
        targets(&measured),
        table(&measured),
    );
    section.write(&text);
}

/// Returns the transactions a second after a warm-up, and the number of all.
async fn write(handle: &Handle, tasks: usize, slice: Duration) -> (f64, u64) {
    let start = Instant::now() + slice / 4;
    let end = start + slice;
    if let Handle::Exchanges(exchanges) = handle {
        let (counted, all) = exchanges.run(start, end).await;
        return (counted as f64 / slice.as_secs_f64(), all);
    }
    let tasks = (0..tasks).map(|_| {
        let (handle, mut random) = (handle.clone(), fastrand::Rng::with_seed(fastrand::u64(..)));
        tokio::spawn(async move {
            let (mut counted, mut all) = (0_u64, 0_u64);
            while Instant::now() < end {
                let tag = random.usize(..TAGS);
                handle.write(tag, random.usize(..)).await;
                all += 1;
                counted += u64::from((start..end).contains(&Instant::now()));
            }
            (counted, all)
        })
    });
    let (mut counted, mut all) = (0, 0);
    for task in tasks.collect::<Vec<_>>() {
        let (its_counted, its_all) = task.await.expect("a task");
        counted += its_counted;
        all += its_all;
    }
    (counted as f64 / slice.as_secs_f64(), all)
}

/// The sum of the first and of the second counters of all tags that the server has.
fn sums(server: &Server) -> [u64; 2] {
    ["a", "b"].map(|name| {
        let keys: Vec<String> = server.ask(&["KEYS", &format!("{{*}}:{name}")]);
        let mut pipe = redis::pipe();
        keys.iter().for_each(|key| _ = pipe.get(key));
        match keys.is_empty() {
            true => 0,
            false => {
                pipe.query::<Vec<u64>>(&mut server.connection()).expect("the counters").iter().sum()
            }
        }
    })
}

/// Round by round, so that what slows the machine slows both.
fn ratio(measured: &Measured, tasks: usize, one: Way, other: Way) -> Option<Spread> {
    let of = |way| measured.get(&Row { way, tasks });
    let both = of(one)?.iter().zip(of(other)?);
    Spread::of(both.map(|(one, other)| one / other).collect())
}

fn targets(measured: &Measured) -> String {
    let mut text = format!(
        "| what | tasks | lanes to each master | target | {SPREAD} | |\n|---|--:|--:|---|---|---|\n"
    );
    let mut line = |what: &str, target: Option<f64>, (tasks, lanes), (one, other)| {
        let Some(spread) = ratio(measured, tasks, one, other) else { return };
        let Spread { median, lower, upper, .. } = spread;
        let bound = target.map_or(String::new(), |target| format!("≥ {target}"));
        let (bold, verdict) = match target {
            None => ("", ""),
            Some(target) if median >= target => ("", "met"),
            Some(_) => ("**", "**not met**"),
        };
        let (tasks, lanes): (_, u32) = (thousands(tasks as f64), lanes);
        let _ = writeln!(
            text,
            "| {what} | {tasks} | {lanes} | {bound} | {bold}{median:.2}{bold} ({lower:.2} to {upper:.2}) | {verdict} |"
        );
    };
    for tasks in TASKS {
        for lanes in LANES {
            let both = (Way::Plain(lanes), Way::Server(lanes * MASTERS));
            line("3 masters, of one server with as many lanes", Some(0.9), (tasks, lanes), both);
            let both = (Way::Plain(lanes), Way::Alone(lanes * MASTERS));
            line(
                "3 masters, of a cluster of one master with as many lanes",
                None,
                (tasks, lanes),
                both,
            );
        }
    }
    for tasks in TASKS {
        let bare = (Way::BareMasters(BARE), Way::BareServer(BARE * MASTERS));
        let atomic = (Way::AtomicMasters(BARE), Way::AtomicServer(BARE * MASTERS));
        let what = "redis-rs, INCRs without transactions: 3 masters, of one server (the bound)";
        line(what, None, (tasks, BARE), bare);
        let what = "redis-rs, atomic pipelines: 3 masters, of one server";
        line(what, None, (tasks, BARE), atomic);
        let own = (Way::Plain(BARE), Way::AtomicMasters(BARE));
        line("3 masters, of redis-rs's atomic pipelines there", None, (tasks, BARE), own);
    }
    for tasks in TASKS {
        for lanes in LANES {
            let once = Way::Once(lanes);
            let what = "exactly once on 3 masters, of plain with as many lanes";
            line(what, Some(0.4), (tasks, lanes), (once, Way::Plain(lanes)));
            let what = "exactly once on 3 masters, of the bare exchanges on as many sockets";
            line(what, None, (tasks, lanes), (once, Way::Exchanges(lanes)));
            let what = "the bare exchanges, of plain with as many lanes (the bound)";
            line(what, None, (tasks, lanes), (Way::Exchanges(lanes), Way::Plain(lanes)));
        }
    }
    text
}

fn table(measured: &Measured) -> String {
    let mut text = "| | tasks | a second (quartiles of the rounds) |\n|---|--:|--:|\n".to_owned();
    for tasks in TASKS {
        for way in Way::all() {
            let rates = measured.get(&Row { way, tasks }).cloned().unwrap_or_default();
            let Some(Spread { median, lower, upper, .. }) = Spread::of(rates) else { continue };
            let _ = writeln!(
                text,
                "| {} | {} | {} ({} to {}) |",
                way.name(),
                thousands(tasks as f64),
                thousands(median),
                thousands(lower),
                thousands(upper),
            );
        }
    }
    text
}
