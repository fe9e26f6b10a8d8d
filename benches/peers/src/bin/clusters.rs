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
use std::time::{Duration, Instant};

use rediscope::aio::{SessionManager, Transactional};
use rediscope::{TransactionOptions, prelude::*};
use rediscope_peers::machine;
use rediscope_peers::report::{SPREAD, Spread, thousands};
use rediscope_peers::section::Section;
use rediscope_testing::cluster::Cluster;
use rediscope_testing::server::Server;
use tokio::runtime::Runtime;

const MASTERS: u32 = 3;
/// Number of lanes to each master.
const LANES: [u32; 5] = [2, 4, 8, 16, 32];
/// Number of lanes that one server may have.
const MOST_LANES: u32 = 64;
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
}

impl Way {
    fn all() -> Vec<Self> {
        let all = |lanes: u32| lanes * MASTERS;
        let of = |lanes: u32| {
            let one = [Self::Server(all(lanes)), Self::Alone(all(lanes))];
            one.into_iter()
                .filter(move |_| all(lanes) <= MOST_LANES)
                .chain([Self::Plain(lanes), Self::Once(lanes)])
        };
        LANES.into_iter().flat_map(of).collect()
    }

    fn name(self) -> String {
        match self {
            Self::Server(lanes) => format!("one server, {lanes} lanes"),
            Self::Alone(lanes) => format!("a cluster of one master, {lanes} lanes"),
            Self::Plain(lanes) => format!("3 masters, {lanes} lanes to each"),
            Self::Once(lanes) => format!("3 masters, {lanes} lanes to each, exactly once"),
        }
    }

    fn handle(
        self,
        Servers { server, alone, cluster }: &Servers,
        runtime: &Runtime,
    ) -> Transactional {
        let _inside = runtime.enter();
        let (url, lanes) = match self {
            Self::Server(lanes) => (server.url(), lanes),
            Self::Alone(lanes) => (alone.url(), lanes),
            Self::Plain(lanes) | Self::Once(lanes) => (cluster.url(), lanes),
        };
        let builder = SessionManager::builder(url).lanes(lanes);
        let handle = builder.build_async().expect("settings").transactional();
        match self {
            Self::Once(_) => handle.with(TransactionOptions::new().exactly_once()),
            _ => handle,
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
async fn write(handle: &Transactional, tasks: usize, slice: Duration) -> (f64, u64) {
    let start = Instant::now() + slice / 4;
    let end = start + slice;
    let tasks = (0..tasks).map(|_| {
        let (handle, mut random) = (handle.clone(), fastrand::Rng::with_seed(fastrand::u64(..)));
        tokio::spawn(async move {
            let (mut counted, mut all) = (0_u64, 0_u64);
            while Instant::now() < end {
                let tag = random.usize(..TAGS);
                let (a, b) = (format!("{{{tag}}}:a"), format!("{{{tag}}}:b"));
                let both = handle.run(|tx| Ok((tx.incr(&a, 1), tx.incr(&b, 1))));
                black_box(both.await.expect("two INCRs"));
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
        for lanes in LANES {
            let once = Way::Once(lanes);
            let what = "exactly once on 3 masters, of plain with as many lanes";
            line(what, Some(0.4), (tasks, lanes), (once, Way::Plain(lanes)));
            let what = "exactly once on 3 masters, of plain with 2 lanes";
            line(what, None, (tasks, lanes), (once, Way::Plain(2)));
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
