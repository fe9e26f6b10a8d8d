//! Locks of threads and of tasks beside rslock: one interleaved run on a private server, in a new order each round.
//! `scripts/bench locks` runs it.
//!
//! `locks [--seed N] [--rounds N] [--slice MS] [--into FOLDER | --dry]`: the section of `figures.md` in
//! FOLDER (`benches`) is written, with `--dry` it is only printed.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a benchmark that fails says so and ends"
)]

use std::collections::BTreeMap;
use std::fmt::Write as _;

use rediscope_peers::lockers::{Locker, Shown, Slice, alone, handed_over};
use rediscope_peers::machine;
use rediscope_peers::report::{SPREAD, Spread, thousands};
use rediscope_peers::section::Section;
use rediscope_peers::server::{Server, Via};

/// What is done, and by how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Row {
    Alone(Way),
    HandedOver(usize, Way),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Tcp,
    Unix,
}

const ROWS: [Row; 6] = [
    Row::Alone(Way::Tcp),
    Row::Alone(Way::Unix),
    Row::HandedOver(16, Way::Tcp),
    Row::HandedOver(16, Way::Unix),
    Row::HandedOver(64, Way::Tcp),
    Row::HandedOver(64, Way::Unix),
];

/// Number of parts of a slice with one client alone, each with new connections.
const PARTS: u32 = 6;

impl Way {
    fn via(self) -> Via {
        match self {
            Self::Tcp => Via::Tcp,
            Self::Unix => Via::Unix,
        }
    }
}

impl Row {
    fn name(self) -> String {
        let (what, way) = match self {
            Self::Alone(way) => ("acquire and release, alone".to_owned(), way),
            Self::HandedOver(waiters, way) => (format!("hand-over, {waiters} wait"), way),
        };
        what + if way == Way::Unix { ", unix socket" } else { "" }
    }

    fn lockers(self) -> &'static [Locker] {
        match self {
            // Neither fairness nor pauses make a difference if no client waits.
            Self::Alone(_) => &[Locker::Ours, Locker::Tasks, Locker::Rslock, Locker::Scripts],
            Self::HandedOver(..) => &Locker::ALL,
        }
    }

    fn show(self, locker: Locker, stage: &Stage<'_>) -> Shown {
        let (server, runtime, plan) = (stage.server, stage.runtime, stage.plan);
        match self {
            Self::Alone(way) => alone(locker, server, runtime, way.via(), plan),
            Self::HandedOver(waiters, way) => {
                handed_over(locker, server, runtime, (way.via(), waiters), plan)
            }
        }
    }
}

struct Stage<'a> {
    server: &'a Server,
    runtime: &'a tokio::runtime::Runtime,
    plan: Slice,
}

type Measured = BTreeMap<(Row, Locker), Vec<Shown>>;

fn main() {
    let section = Section::from_arguments("locks", 7, 600);
    let (rounds, slice, seed) = (section.rounds, section.slice, section.seed);
    let runtime = machine::runtime();
    let server = Server::start();
    let plan = Slice { warm_up: slice / 4, slice };
    let stage = Stage { server: &server, runtime: &runtime, plan };
    let part = Slice { warm_up: plan.warm_up / PARTS, slice: slice / PARTS };
    let parts = Stage { server: &server, runtime: &runtime, plan: part };
    let mut measured = Measured::new();
    for round in 1..=rounds {
        let mut rows = ROWS;
        fastrand::shuffle(&mut rows);
        for row in rows {
            let mut lockers = row.lockers().to_vec();
            let (times, stage) = match row {
                // One client and one server: where the system puts the two is for a slice to last.
                Row::Alone(_) => (PARTS, &parts),
                Row::HandedOver(..) => (1, &stage),
            };
            for _ in 0..times {
                fastrand::shuffle(&mut lockers);
                for &locker in &lockers {
                    measured.entry((row, locker)).or_default().push(row.show(locker, stage));
                }
            }
        }
        eprint!("\rround {round} of {rounds}");
    }
    eprintln!();
    let caption = format!(
        "Measured on {}; {rounds} rounds of {} ms a slice, seed {seed}. \
         Client and server share the cores. A ratio is taken within each round; a target that is \
         missed is in **bold**.",
        section.machine(),
        slice.as_millis(),
    );
    let text = format!("{caption}\n\n{}\n{}\n{}", targets(&measured), table(&measured), settings());
    section.write(&text);
}

/// Round by round, so that what slows the machine slows both.
fn ratio(measured: &Measured, row: Row, (ours, peer): (Locker, Locker), of: Of) -> Option<Spread> {
    let rounds = |locker| measured.get(&(row, locker)).map_or(&[][..], Vec::as_slice);
    let both = rounds(ours).iter().zip(rounds(peer));
    Spread::of(both.map(|(ours, theirs)| of(ours, theirs)).collect())
}

fn median(shown: &[Shown], of: impl Fn(&Shown) -> f64) -> f64 {
    Spread::of(shown.iter().map(of).collect()).map_or(f64::NAN, |spread| spread.median)
}

fn targets(measured: &Measured) -> String {
    let mut text =
        format!("| what | ours | measured | target | {SPREAD} | |\n|---|---|---|---|---|---|\n");
    let mut line = |(row, ours, peer), what: &str, target: Option<f64>, of: Of| {
        let row: Row = row;
        let Some(spread) = ratio(measured, row, (ours, peer), of) else { return };
        let Spread { median, lower, upper, .. } = spread;
        let bound = target.map_or(String::new(), |target| format!("≥ {target}"));
        let (bold, verdict) = match target {
            None => ("", ""),
            Some(target) if median >= target => ("", "met"),
            Some(_) => ("**", "**not met**"),
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {bound} | {bold}{median:.2}{bold} ({lower:.2} to {upper:.2}) | {verdict} |",
            row.name(),
            ours.name(),
            what.replace("{}", peer.name()),
        );
    };
    for row in ROWS {
        for (ours, handed_over) in [(Locker::Ours, 1.5), (Locker::Tasks, 5.0)] {
            if let Row::Alone(_) = row {
                line((row, ours, Locker::Rslock), "rate, of {}", Some(1.0), |a, b| a.rate / b.rate);
                line((row, ours, Locker::Scripts), "rate, of {}", None, |a, b| a.rate / b.rate);
                if ours == Locker::Tasks {
                    let both = (row, Locker::Scripts, Locker::Rslock);
                    line(both, "rate, of {} (the bound)", None, |a, b| a.rate / b.rate);
                }
                continue;
            }
            for (peer, target) in [(Locker::Rslock, Some(handed_over)), (Locker::RslockQuick, None)]
            {
                let both = (row, ours, peer);
                line(both, "{}: median latency, of ours", target, |a, b| b.p50 / a.p50);
                line(both, "{}: p99 of the latency, of ours", None, |a, b| b.p99 / a.p99);
                line(both, "{}: commands, of ours", None, |a, b| b.requests / a.requests);
            }
        }
    }
    text
}

/// A ratio of ours to a peer.
type Of = fn(&Shown, &Shown) -> f64;

fn table(measured: &Measured) -> String {
    let mut text = "| | | a second | latency p50 | p99 | commands | server time |\n\
                    |---|---|--:|--:|--:|--:|--:|\n"
        .to_owned();
    for row in ROWS {
        for locker in row.lockers() {
            let Some(shown) = measured.get(&(row, *locker)) else { continue };
            let wait = |seconds: f64| match seconds {
                0.0 => String::new(),
                short if short < 1e-3 => format!("{:.0} µs", short * 1e6),
                long => format!("{:.1} ms", long * 1e3),
            };
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {:.1} | {} |",
                row.name(),
                locker.name(),
                thousands(median(shown, |shown| shown.rate)),
                wait(median(shown, |shown| shown.p50)),
                wait(median(shown, |shown| shown.p99)),
                median(shown, |shown| shown.requests),
                wait(median(shown, |shown| shown.server)),
            );
        }
    }
    text
}

fn settings() -> String {
    let line = |locker: &Locker| format!("| {} | {} |\n", locker.name(), locker.settings());
    let all = Locker::ALL.iter().chain([&Locker::Scripts]);
    let lines: String = all.map(line).collect();
    format!("| peer | version and settings |\n|---|---|\n{lines}")
}
