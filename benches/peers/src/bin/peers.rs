//! The peer benchmark: every client in one interleaved run on a private server, in a new order each
//! round. `scripts/bench` runs it.
//!
//! `peers [--quick] [--seed N] [--rounds N] [--slice MS] [--only TEXT] [--peer NAME]… [--into FOLDER]`:
//! `--only` leaves the rows whose name has TEXT, `--peer` the peers of these names; without either
//! the page and the plot in FOLDER (`docs`) are written.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a benchmark that fails says so and ends"
)]

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rediscope_peers::measure::{self, Sample};
use rediscope_peers::peers::{self, Peer};
use rediscope_peers::report::{self, Measured};
use rediscope_peers::scenario::{self, Row, Scenario};
use rediscope_peers::server::{Server, Via};
use rediscope_peers::{machine, plot, soak, targets};

struct Plan {
    quick: bool,
    seed: u64,
    rounds: usize,
    slice: Duration,
    warm_up: Duration,
    only: Option<String>,
    peers: Vec<String>,
    into: String,
}

impl Plan {
    fn read() -> Self {
        let mut plan = Self {
            quick: false,
            seed: fastrand::u64(..1 << 32),
            rounds: 0,
            slice: Duration::ZERO,
            warm_up: Duration::ZERO,
            only: None,
            peers: Vec::new(),
            into: "docs".to_owned(),
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().unwrap_or_else(|| usage());
            match argument.as_str() {
                "--quick" => plan.quick = true,
                "--seed" => plan.seed = number(&value()),
                "--rounds" => plan.rounds = number(&value()) as usize,
                "--slice" => plan.slice = Duration::from_millis(number(&value())),
                "--only" => plan.only = Some(value()),
                "--peer" => plan.peers.push(value()),
                "--into" => plan.into = value(),
                _ => usage(),
            }
        }
        let (rounds, slice, warm_up) = if plan.quick { (5, 110, 25) } else { (11, 300, 60) };
        if plan.rounds == 0 {
            plan.rounds = rounds;
        }
        if plan.slice.is_zero() {
            plan.slice = Duration::from_millis(slice);
        }
        plan.warm_up = Duration::from_millis(warm_up);
        plan
    }

    fn rows(&self) -> Vec<Row> {
        let row = |(scenario, workers, via)| Row { scenario, workers, via };
        let must = [
            (Scenario::Two, 1, Via::Tcp),
            (Scenario::Two, 8, Via::Tcp),
            (Scenario::Two, 64, Via::Tcp),
            (Scenario::Ten, 64, Via::Tcp),
            (Scenario::Watch(1_000), 64, Via::Tcp),
            (Scenario::Watch(1), 64, Via::Tcp),
            (Scenario::Get, 64, Via::Tcp),
            (Scenario::Batch, 1, Via::Tcp),
            (Scenario::Two, 64, Via::Unix),
        ];
        let more = [
            (Scenario::Two, 1, Via::Unix),
            (Scenario::Two, 8, Via::Unix),
            (Scenario::Ten, 1, Via::Tcp),
            (Scenario::Ten, 8, Via::Tcp),
            (Scenario::Ten, 64, Via::Unix),
            (Scenario::Watch(1_000), 8, Via::Tcp),
            (Scenario::Watch(1), 8, Via::Tcp),
            (Scenario::Get, 1, Via::Tcp),
            (Scenario::Get, 8, Via::Tcp),
            (Scenario::Get, 64, Via::Unix),
        ];
        let more: &[_] = if self.quick { &[] } else { &more };
        let wanted = |row: &Row| self.only.as_ref().is_none_or(|only| row.name().contains(only));
        must.iter().chain(more).copied().map(row).filter(wanted).collect()
    }

    fn peers(&self) -> Vec<Peer> {
        let wanted =
            |peer: &Peer| self.peers.is_empty() || self.peers.iter().any(|name| name == peer.name);
        peers::all().into_iter().filter(wanted).collect()
    }

    /// Whether all rows and peers are measured, so that the page may say so.
    fn is_whole(&self) -> bool {
        self.only.is_none() && self.peers.is_empty()
    }

    /// How often the row has its turn in a round, and for how long: its slice and its warm-up. Where
    /// nobody waits for a connection, slices differ by where the system puts the threads: many short
    /// ones say more than a few long ones. Where somebody does, a slice must be longer than the
    /// longest wait.
    fn turns(&self, row: &Row, round: usize) -> (usize, Duration, Duration) {
        let fits = row.workers <= scenario::POOL;
        match (row.scenario, targets::is_one(row)) {
            (Scenario::Two, true) if fits && self.quick => (2, self.slice / 2, self.warm_up / 2),
            (Scenario::Two, true) if fits => (8, self.slice / 5, self.warm_up / 2),
            // A batch is some milliseconds: the slice is to hold a few.
            (Scenario::Batch, _) => (1, 2 * self.slice, self.warm_up),
            (_, true) if !self.quick => (2, self.slice, self.warm_up),
            (_, false) if !self.quick && round.is_multiple_of(2) => (0, self.slice, self.warm_up),
            _ => (1, self.slice, self.warm_up),
        }
    }
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|_| usage())
}

fn usage() -> ! {
    eprintln!(
        "peers [--quick] [--seed N] [--rounds N] [--slice MS] [--only TEXT] [--peer NAME] [--into FOLDER]"
    );
    std::process::exit(2)
}

fn main() {
    let plan = Plan::read();
    let began = Instant::now();
    let load = machine::load();
    let rows = plan.rows();
    fastrand::seed(plan.seed);
    println!("{}", report::settings());
    let runtime = machine::runtime();
    let server = Server::start();
    let mut measured = Measured::default();
    let mut failures = 0;
    for round in 1..=plan.rounds {
        // Whole rows in a new order, and the peers in a new order in each: what is compared is
        // near in time, and nobody is always behind the same neighbour.
        let turns = |row: &Row| std::iter::repeat_n(*row, plan.turns(row, round).0);
        let mut shuffled: Vec<_> = rows.iter().flat_map(turns).collect();
        fastrand::shuffle(&mut shuffled);
        let slices = shuffled.into_iter().flat_map(|row| {
            let mut peers = plan.peers();
            fastrand::shuffle(&mut peers);
            peers.into_iter().map(move |peer| (row, peer))
        });
        for (row, peer) in slices {
            match slice(&plan, &server, &runtime, &row, &peer) {
                None => {}
                Some(Ok(sample)) => measured.note(&row, peer.name, Some(sample)),
                Some(Err(why)) => {
                    eprintln!("{}, {}: {why}", row.name(), peer.name);
                    measured.note(&row, peer.name, None);
                    failures += 1;
                }
            }
        }
        eprint!("\rround {round} of {}", plan.rounds);
        let _ = std::io::stderr().flush();
    }
    eprintln!();
    let soak = match plan.is_whole() {
        true => soak::line(&server, if plan.quick { 100_000 } else { 1_000_000 }),
        false => String::new(),
    };
    let alone = Row { scenario: Scenario::Two, workers: 1, via: Via::Tcp };
    let (turns, short, _) = plan.turns(&alone, 1);
    let caption = format!(
        "{}; load average before {}; {} run: {} rounds of {} ms a slice ({}), seed {}",
        machine::describe(),
        load.map_or("unknown".to_owned(), |load| format!("{load:.1}")),
        if plan.quick { "quick" } else { "full" },
        plan.rounds,
        plan.slice.as_millis(),
        format_args!(
            "{} of {} ms for two INCRs, 1/8 and 8/8{}",
            turns * plan.rounds,
            short.as_millis(),
            if plan.quick {
                ""
            } else {
                "; two a round for other targets, one in two rounds for the rest"
            }
        ),
        plan.seed,
    );
    let targets = report::targets(&measured, &soak);
    let tables = report::rows(&measured, &rows);
    println!("{caption}; took {:.0} s\n\n{targets}{tables}", began.elapsed().as_secs_f64());
    if plan.is_whole() {
        write(&plan, &caption, &targets, &tables, &plot::svg(&measured, &rows, &caption));
    }
    if failures > 0 {
        eprintln!("{failures} slices failed");
        std::process::exit(1);
    }
}

/// One peer does one thing for a while, on an empty server. `None`: it cannot.
fn slice(
    plan: &Plan,
    server: &Server,
    runtime: &tokio::runtime::Runtime,
    row: &Row,
    peer: &Peer,
) -> Option<Result<Sample, String>> {
    let mut admin = server.admin();
    scenario::prepare(row, &mut admin);
    let crew = (peer.open)(server, runtime, row)?;
    let (_, slice, warm_up) = plan.turns(row, 1);
    let measured = measure::measure(runtime, crew, warm_up, slice);
    Some(measured.and_then(|(sample, done)| {
        scenario::verify(row, &mut admin, done)?;
        Ok(sample)
    }))
}

fn write(plan: &Plan, caption: &str, targets: &str, tables: &str, svg: &str) {
    let text = format!(
        "Measured on {caption}. Client and server share the cores; TCP_NODELAY is on for all. Waits \
         include checkout and retries. A ratio is taken within each round; a target that is missed \
         is in **bold**.\n\n\
         {targets}\n\
         ![Operations a second](performance.svg)\n\n\
         ### Every peer\n\n\
         Medians of the rounds; the longest wait is the longest of all.\n\
         {tables}\n\
         ### Settings\n\n\
         {}",
        report::settings()
    );
    let folder = Path::new(&plan.into);
    let page = folder.join("performance.md");
    let before = std::fs::read_to_string(&page).unwrap_or_default();
    std::fs::write(&page, report::insert(&before, &text)).expect("write the page");
    std::fs::write(folder.join("performance.svg"), svg).expect("write the plot");
    eprintln!("wrote {} and performance.svg", page.display());
}
