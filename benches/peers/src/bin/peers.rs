//! The peer benchmark: every client in one interleaved run on a private server, in a new order each
//! round. `scripts/bench` runs it.
//!
//! `peers [--tasks] [--quick] [--seed N] [--rounds N] [--slice MS] [--only TEXT] [--peer NAME]… [--busy N] [--into FOLDER]`:
//! with `--tasks` the crate's callers are tasks of tokio, else threads. `--only` leaves the rows whose
//! name has TEXT, `--peer` the peers of these names; `--busy` runs N endless loops beside it. Without any
//! of them the page in FOLDER (`docs`) is written, and the figures of every peer (`benches/figures.md`,
//! else beside the page).

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a benchmark that fails says so and ends"
)]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rediscope_peers::measure::{self, Sample};
use rediscope_peers::peers::{self, Peer};
use rediscope_peers::report::{self, Measured};
use rediscope_peers::scenario::{self, Callers, Row, Scenario};
use rediscope_peers::server::{Server, Via};
use rediscope_peers::{machine, soak, targets};

/// The folder of the pages.
const PAGES: &str = "docs";

struct Plan {
    callers: Callers,
    quick: bool,
    seed: u64,
    rounds: usize,
    slice: Duration,
    warm_up: Duration,
    only: Option<String>,
    peers: Vec<String>,
    busy: usize,
    into: String,
}

impl Plan {
    fn read() -> Self {
        let mut plan = Self {
            callers: Callers::Threads,
            quick: false,
            seed: fastrand::u64(..1 << 32),
            rounds: 0,
            slice: Duration::ZERO,
            warm_up: Duration::ZERO,
            only: None,
            peers: Vec::new(),
            busy: 0,
            into: PAGES.to_owned(),
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().unwrap_or_else(|| usage());
            match argument.as_str() {
                "--tasks" => plan.callers = Callers::Tasks,
                "--quick" => plan.quick = true,
                "--seed" => plan.seed = number(&value()),
                "--rounds" => plan.rounds = number(&value()) as usize,
                "--slice" => plan.slice = Duration::from_millis(number(&value())),
                "--only" => plan.only = Some(value()),
                "--peer" => plan.peers.push(value()),
                "--busy" => plan.busy = number(&value()) as usize,
                "--into" => plan.into = value(),
                _ => usage(),
            }
        }
        let (rounds, slice, warm_up) = if plan.quick { (5, 110, 25) } else { (8, 250, 50) };
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
        let callers = self.callers;
        let row = |(scenario, workers, via)| Row { scenario, workers, via, callers };
        let wanted = |row: &Row| self.only.as_ref().is_none_or(|only| row.name().contains(only));
        if callers == Callers::Tasks {
            let rows = [
                (Scenario::Two, 64, Via::Tcp),
                (Scenario::Two, 1_000, Via::Tcp),
                (Scenario::Ten, 64, Via::Tcp),
                (Scenario::Get, 64, Via::Tcp),
                (Scenario::Watch(1_000), 64, Via::Tcp),
                (Scenario::Watch(1), 64, Via::Tcp),
                (Scenario::Two, 1, Via::Tcp),
            ];
            return rows.map(row).into_iter().filter(wanted).collect();
        }
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
        must.iter().chain(more).copied().map(row).filter(wanted).collect()
    }

    fn peers(&self) -> Vec<Peer> {
        let wanted =
            |peer: &Peer| self.peers.is_empty() || self.peers.iter().any(|name| name == peer.name);
        peers::of(self.callers).into_iter().filter(wanted).collect()
    }

    /// The page with the summary.
    fn page(&self) -> PathBuf {
        Path::new(&self.into).join("performance.md")
    }

    /// The file with the figures of every peer: in another folder than the pages.
    fn figures(&self) -> PathBuf {
        let folder = if self.into == PAGES { "benches" } else { &self.into };
        Path::new(folder).join("figures.md")
    }

    /// Whether all rows and peers are measured, so that the page may say so.
    fn is_whole(&self) -> bool {
        self.only.is_none() && self.peers.is_empty() && self.busy == 0
    }

    /// How often the row has its turn in a round, and for how long: its slice and its warm-up. If no
    /// worker waits for a connection, slices differ by the core that the system gives each thread: many
    /// short ones are better than a few long ones. If workers wait, a slice must be longer than most waits.
    fn turns(&self, row: &Row, round: usize) -> (usize, Duration, Duration) {
        let fits = row.workers <= scenario::POOL;
        let (slice, warm_up) = (self.slice, self.warm_up);
        if self.callers == Callers::Tasks {
            return match row.workers {
                1 => (2, slice / 2, warm_up),
                _ => (1, slice, warm_up),
            };
        }
        match (row.scenario, targets::is_one(row)) {
            (Scenario::Two, true) if fits && self.quick => (2, slice / 2, warm_up / 2),
            (Scenario::Two, true) if fits => (4, slice / 4, warm_up / 2),
            // A batch takes some milliseconds, so that a slice holds only a few.
            (Scenario::Batch, _) => (1, 2 * slice, warm_up),
            (Scenario::Two | Scenario::Watch(_), true) if !self.quick => (2, slice, warm_up),
            (_, true) => (1, slice, warm_up),
            (_, false) if self.quick => (1, slice, warm_up),
            (_, false) => (round % 2, slice * 3 / 5, warm_up),
        }
    }

    /// The turns in words.
    fn shape(&self) -> String {
        let kind = if self.quick { "quick" } else { "full" };
        if self.callers == Callers::Tasks {
            let slice = self.slice.as_millis();
            return format!(
                "{kind} run: {} interleaved rounds with slices of {slice} ms",
                self.rounds
            );
        }
        let times = |scenario, workers| {
            let row = Row { scenario, workers, via: Via::Tcp, callers: self.callers };
            let (turns, slice, _) = self.turns(&row, 1);
            (turns * self.rounds, slice.as_millis())
        };
        let (alone, short) = times(Scenario::Two, 1);
        let (watch, whole) = times(Scenario::Watch(1), scenario::POOL * 8);
        let mut shape = format!(
            "{kind} run: {} interleaved rounds with slices of {whole} ms; {alone} slices of {short} ms \
             for two INCRs, 1/8 and 8/8",
            self.rounds
        );
        if !self.quick {
            let (_, rest) = times(Scenario::Get, 1);
            let odd = self.rounds.div_ceil(2);
            shape += &format!(
                "; {watch} slices for two INCRs and watch, 64/8; {odd} slices of {rest} ms for rows \
                 without a target"
            );
        }
        shape
    }
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|_| usage())
}

fn usage() -> ! {
    eprintln!(
        "peers [--tasks] [--quick] [--seed N] [--rounds N] [--slice MS] [--only TEXT] [--peer NAME] [--busy N] [--into FOLDER]"
    );
    std::process::exit(2)
}

fn main() {
    let plan = Plan::read();
    let began = Instant::now();
    let load = machine::load();
    let rows = plan.rows();
    fastrand::seed(plan.seed);
    println!("{}", report::settings(plan.callers));
    let runtime = machine::runtime();
    let server = Server::start();
    let _loops = machine::Loops::start(plan.busy);
    let mut measured = Measured::default();
    let mut failures = 0;
    for round in 1..=plan.rounds {
        // Whole rows in a new order, and the peers in a new order in each: what is compared is
        // near in time, and no peer always follows the same one.
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
    let soak = match plan.is_whole() && plan.callers == Callers::Threads {
        true => soak::line(&server, if plan.quick { 100_000 } else { 1_000_000 }),
        false => String::new(),
    };
    let beside = match plan.busy {
        0 => String::new(),
        loops => format!(", {loops} endless loops beside it"),
    };
    let caption = format!(
        "{}; load average before {}; {}{beside}, seed {}",
        machine::describe(),
        load.map_or("unknown".to_owned(), |load| format!("{load:.1}")),
        plan.shape(),
        plan.seed,
    );
    let targets = report::targets(&measured, plan.callers) + &soak;
    let best = report::best(&measured, &rows);
    let tables = report::rows(&measured, &rows);
    let took = began.elapsed().as_secs_f64();
    println!("{caption}; took {took:.0} s\n\n{targets}\n{best}{tables}");
    if plan.is_whole() {
        let section = match plan.callers {
            Callers::Threads => "measured",
            Callers::Tasks => "tokio",
        };
        write(&plan.page(), section, &page(&plan, &caption, &best));
        write(&plan.figures(), section, &figures(&plan, &caption, &targets, &tables));
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
    let measured = measure::measure(server, runtime, crew, warm_up, slice);
    Some(measured.and_then(|(sample, done)| {
        scenario::verify(row, &mut admin, done)?;
        Ok(sample)
    }))
}

/// The section of the page: each row beside its best peer.
fn page(plan: &Plan, caption: &str, best: &str) -> String {
    let fits = match plan.callers {
        Callers::Threads => {
            " (redis-rs dedicated only if its connections are no more than the row's)"
        }
        Callers::Tasks => "",
    };
    let text = format!(
        "Measured on {caption}. A ratio is taken within each round; figures are medians, with the quartiles \
         of the rounds in brackets.\n\n\
         The quickest form of this crate beside the quickest other client{fits}; a ratio below 1 is in \
         **bold**:\n\n\
         {best}"
    );
    report::narrow(&text)
}

/// The section of the file with all figures: the targets, each peer of each row, and the peers' settings.
fn figures(plan: &Plan, caption: &str, targets: &str, tables: &str) -> String {
    let cpu = match plan.callers {
        Callers::Threads => "",
        Callers::Tasks => {
            " CPU is the processor time of one operation, of the client's process and of the server."
        }
    };
    let text = format!(
        "Measured on {caption}. Client and server share the cores; TCP_NODELAY is on for all. Waits include \
         checkout and retries. Medians of the rounds, with quartiles in brackets; the longest wait is the \
         longest of all. A ratio is taken within each round; a target that is missed is in \
         **bold**.{cpu}\n\n\
         {targets}\
         {tables}\n\
         {}",
        report::settings(plan.callers)
    );
    report::narrow(&text)
}

/// Writes the section of this name.
fn write(page: &Path, section: &str, text: &str) {
    let before = std::fs::read_to_string(page).unwrap_or_default();
    std::fs::write(page, report::insert_as(&before, section, text)).expect("write the page");
    eprintln!("wrote {}", page.display());
}
