//! The run: its phases, each with a server of its own, and the comparison at the end of each.

use crate::SOON;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread;
use std::time::{Duration, Instant};

use super::fixture::Target;
use super::ledger::{self, Leave, Verdict};
use super::report::Report;
use super::resolvers::Rule;
use super::worker::{Results, Shared, Worker, prefix, sessions};
use rediscope_testing::eventually;
use rediscope_testing::server::Server;

pub(crate) const THREADS: u64 = 16;
/// Number of further cuts while registers are deleted, a fraction of all: one in ten.
const TAMPERED: u64 = 10;
/// A cut and all that belongs to it takes no longer, on any machine, by one of the threads.
const SLOWEST: Duration = Duration::from_millis(500);
const AT_LEAST: Duration = Duration::from_secs(60);

/// One phase.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Variant {
    pub(crate) name: &'static str,
    arguments: &'static [&'static str],
    pub(crate) tampered: bool,
    /// In a cluster whose slots move.
    pub(crate) moving: bool,
}

impl Variant {
    const fn new(name: &'static str, arguments: &'static [&'static str]) -> Self {
        Self { name, arguments, tampered: false, moving: false }
    }

    #[cfg(target_os = "linux")]
    pub(crate) const fn moving(name: &'static str) -> Self {
        Self { moving: true, ..Self::new(name, &[]) }
    }
}

const IO_THREADS: &[&str] = &["--io-threads", "2", "--io-threads-do-reads", "yes"];

const VARIANTS: [Variant; 3] = [
    Variant::new("one io thread", &[]),
    Variant::new("two io threads", IO_THREADS),
    Variant { tampered: true, ..Variant::new("registers deleted", IO_THREADS) },
];

/// What a phase came to.
#[derive(Debug)]
pub(crate) struct Phase {
    pub(crate) variant: Variant,
    pub(crate) wanted: u64,
    pub(crate) verdict: Verdict,
    pub(crate) results: Results,
    /// How often the server ran EXEC.
    pub(crate) execs: u64,
    /// Slots that moved, and keys with them.
    pub(crate) moved: [u64; 2],
    pub(crate) took: Duration,
}

pub(crate) fn run(seed: u64, cuts: u64) -> Report {
    let shares = [cuts.div_ceil(2), cuts / 2, cuts.div_ceil(TAMPERED)];
    let begun = Instant::now();
    let phases = VARIANTS
        .iter()
        .zip(shares)
        .zip(0..)
        .map(|((variant, share), nth)| phase(*variant, share, seed.wrapping_add(nth << 32)))
        .collect();
    let command = format!("REDISCOPE_CUTS={cuts}");
    Report { seed, command, phases, took: begun.elapsed() }
}

fn phase(variant: Variant, wanted: u64, seed: u64) -> Phase {
    let begun = Instant::now();
    let target = Target::One(Server::with(variant.arguments));
    let shared = Arc::new(shared(target, variant, Rule::WatchedRegister, wanted));
    let results = work(&shared, seed);
    close(&shared, variant, wanted, results, begun)
}

pub(crate) fn shared(target: Target, variant: Variant, rule: Rule, wanted: u64) -> Shared {
    let share = u32::try_from(wanted / THREADS).expect("a number");
    Shared {
        strangers: (0..THREADS).map(|worker| sessions(target.url(), &prefix(worker))).collect(),
        left: AtomicU64::new(wanted),
        until: Instant::now() + AT_LEAST + SLOWEST * share,
        tampered: variant.tampered,
        rule,
        steps: Shared::steps(THREADS),
        target,
    }
}

/// All workers, until enough was cut.
pub(crate) fn work(shared: &Arc<Shared>, seed: u64) -> Results {
    let workers: Vec<_> = (0..THREADS)
        .map(|number| {
            let shared = Arc::clone(shared);
            let builder = thread::Builder::new().name(format!("worker-{number}"));
            builder.spawn(move || Worker::new(number, seed, shared).work()).expect("start a worker")
        })
        .collect();
    let mut results = Results::default();
    for worker in workers {
        results.add(worker.join().expect("a worker panicked"));
    }
    results
}

/// Compares everything, once nothing is on its way any more.
pub(crate) fn close(
    shared: &Shared,
    variant: Variant,
    wanted: u64,
    mut results: Results,
    begun: Instant,
) -> Phase {
    let target = &shared.target;
    // When no client is connected, what was held until a moment ago has arrived or never will.
    eventually(SOON, "the server has no client left", || target.clients() == 0);
    let execs = target.sum(|server| server.calls("exec"));
    let leave =
        Leave { registers_gone: variant.tampered, conflicts: variant.tampered || variant.moving };
    let operations = &mut results.operations;
    let verdict =
        ledger::close(target, &|worker| shared.stranger(worker), THREADS, operations, leave);
    for stranger in &shared.strangers {
        stranger.close(Duration::ZERO);
    }
    Phase { variant, wanted, verdict, results, execs, moved: [0; 2], took: begun.elapsed() }
}

impl Results {
    fn add(&mut self, other: Self) {
        self.operations.extend(other.operations);
        for (manner, count) in other.manners {
            *self.manners.entry(manner).or_default() += count;
        }
        self.late += other.late;
        self.tampered += other.tampered;
        self.moved_under += other.moved_under;
        self.redirections += other.redirections;
    }
}
