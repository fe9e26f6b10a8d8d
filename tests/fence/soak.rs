//! The run: its phases, each with a server of its own, and the comparison at the end of each.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread;
use std::time::{Duration, Instant};

use super::books::{self, Verdict};
use super::report::Report;
use super::worker::{Ground, Harvest, Worker, sessions};
use crate::support::eventually;
use crate::support::server::Server;

pub(crate) const THREADS: u64 = 16;
/// Of the cuts that were asked for, so many more are made where registers are deleted.
const TAMPERED: u64 = 10;
/// A cut and all that belongs to it takes no longer, on any machine, by one of the threads.
const SLOWEST: Duration = Duration::from_millis(500);
const AT_LEAST: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(20);

/// One phase.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Variant {
    pub(crate) name: &'static str,
    arguments: &'static [&'static str],
    pub(crate) tampered: bool,
}

const IO_THREADS: &[&str] = &["--io-threads", "2", "--io-threads-do-reads", "yes"];

const VARIANTS: [Variant; 3] = [
    Variant { name: "one io thread", arguments: &[], tampered: false },
    Variant { name: "two io threads", arguments: IO_THREADS, tampered: false },
    Variant { name: "registers deleted", arguments: IO_THREADS, tampered: true },
];

/// What a phase came to.
#[derive(Debug)]
pub(crate) struct Phase {
    pub(crate) variant: Variant,
    pub(crate) wanted: u64,
    pub(crate) verdict: Verdict,
    pub(crate) harvest: Harvest,
    /// How often the server ran EXEC.
    pub(crate) execs: u64,
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
    Report { seed, cuts, phases, took: begun.elapsed() }
}

fn phase(variant: Variant, wanted: u64, seed: u64) -> Phase {
    let begun = Instant::now();
    let server = Arc::new(Server::with(variant.arguments));
    let ground = Arc::new(Ground {
        stranger: sessions(server.url(), "stranger"),
        left: AtomicU64::new(wanted),
        until: begun + AT_LEAST + SLOWEST * u32::try_from(wanted / THREADS).expect("a number"),
        tampered: variant.tampered,
        server: Arc::clone(&server),
    });
    let workers: Vec<_> = (0..THREADS)
        .map(|number| {
            let ground = Arc::clone(&ground);
            let builder = thread::Builder::new().name(format!("worker-{number}"));
            builder.spawn(move || Worker::new(number, seed, ground).work()).expect("start a worker")
        })
        .collect();
    let mut harvest = Harvest::default();
    for worker in workers {
        harvest.add(worker.join().expect("a worker panicked"));
    }
    // What was held until a moment ago has arrived, or never will, when nobody is connected.
    eventually(PATIENCE, "the server has nobody left", || server.clients() == 0);
    let execs = server.calls("exec");
    let deeds = &mut harvest.deeds;
    let verdict = books::close(&server, &ground.stranger, THREADS, deeds, variant.tampered);
    ground.stranger.close(Duration::ZERO);
    Phase { variant, wanted, verdict, harvest, execs, took: begun.elapsed() }
}

impl Harvest {
    fn add(&mut self, other: Self) {
        self.deeds.extend(other.deeds);
        for (manner, count) in other.manners {
            *self.manners.entry(manner).or_default() += count;
        }
        self.late += other.late;
        self.tampered += other.tampered;
    }
}
