//! The targets of the performance work, each with the peer that it is measured against.

use crate::measure::Sample;
use crate::peers;
use crate::report::{Measured, Spread};
use crate::scenario::{Callers, POOL, Row, Scenario};
use crate::server::Via;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    Rate,
    P50,
    P99,
    ClientCpu,
    Longest,
    Tries,
    Slowest,
}

impl Metric {
    pub fn of(self, sample: &Sample) -> f64 {
        match self {
            Self::Rate => sample.rate,
            Self::P50 => sample.p50,
            Self::P99 => sample.p99,
            Self::ClientCpu => sample.client_cpu,
            Self::Longest => sample.longest * 1e3,
            Self::Tries => sample.tries,
            Self::Slowest => sample.slowest,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::P50 => "p50",
            Self::P99 => "p99",
            Self::ClientCpu => "client processor time",
            Self::Longest => "longest wait, ms",
            Self::Tries => "tries per commit",
            Self::Slowest => "slowest worker, of the mean",
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Against {
    Peer(&'static str),
    /// Whichever other client commits most in the row.
    Best,
    NoPeer,
}

#[derive(Clone, Copy, Debug)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// One line of the table of targets.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    row: Row,
    ours: &'static str,
    metric: Metric,
    against: Against,
    bound: Bound,
    /// What is hoped for beyond the target.
    hope: Option<f64>,
}

pub fn of(callers: Callers) -> Vec<Target> {
    match callers {
        Callers::Threads => of_threads(),
        Callers::Tasks => of_tasks(),
    }
}

fn of_threads() -> Vec<Target> {
    use Against::{Best, NoPeer, Peer};
    use Bound::{AtLeast, AtMost};
    let target = Target::new;
    let row =
        |scenario, workers| Row { scenario, workers, via: Via::Tcp, callers: Callers::Threads };
    let alone = row(Scenario::Two, 1);
    let fitting = row(Scenario::Two, 8);
    let two = row(Scenario::Two, 64);
    let ten = row(Scenario::Ten, 64);
    let many = row(Scenario::Watch(1_000), 64);
    let one = row(Scenario::Watch(1), 64);
    let get = row(Scenario::Get, 64);
    let unchecked = Peer(peers::R2D2_UNCHECKED);
    let multiplexed = Peer(peers::MULTIPLEXED);
    let deadpool = Peer(peers::DEADPOOL);
    let bb8 = Peer(peers::BB8_UNCHECKED);
    vec![
        target(alone, peers::RUN, Metric::Rate, Peer(peers::DEDICATED), AtLeast(0.97)),
        target(alone, peers::RUN_POLLS, Metric::Rate, Peer(peers::DEDICATED), AtLeast(1.8)),
        target(alone, peers::RUN, Metric::Rate, Peer(peers::R2D2), AtLeast(1.8)),
        target(alone, peers::RUN, Metric::Rate, Peer(peers::TRANSACTION), AtLeast(3.5)),
        target(fitting, peers::RUN, Metric::Rate, unchecked, AtLeast(0.97)),
        target(two, peers::GROUPED, Metric::Rate, multiplexed, AtLeast(0.75)).hoping(0.9),
        target(two, peers::GROUPED, Metric::Rate, unchecked, AtLeast(2.6)),
        target(two, peers::GROUPED, Metric::P99, unchecked, AtMost(0.035)),
        target(two, peers::GROUPED_ONCE, Metric::Rate, multiplexed, AtLeast(0.72)),
        target(two, peers::GROUPED_ONCE, Metric::Rate, Peer(peers::GROUPED), AtLeast(0.95)),
        target(ten, peers::GROUPED, Metric::Rate, multiplexed, AtLeast(1.0)),
        target(ten, peers::GROUPED, Metric::Rate, unchecked, AtLeast(2.2)),
        target(two, peers::RUN, Metric::Rate, unchecked, AtLeast(1.4)).hoping(1.6),
        target(two, peers::RUN, Metric::P99, unchecked, AtMost(0.04)),
        target(two, peers::GUARD, Metric::Rate, unchecked, AtLeast(1.4)).hoping(1.6),
        target(two, peers::GUARD, Metric::P99, unchecked, AtMost(0.04)),
        target(two, peers::GUARD, Metric::Longest, NoPeer, AtMost(15.0)),
        target(many, peers::WATCH, Metric::Rate, deadpool, AtLeast(1.5)),
        target(many, peers::WATCH, Metric::Rate, bb8, AtLeast(0.95)).hoping(1.05),
        target(many, peers::WATCH, Metric::P99, deadpool, AtMost(0.6)),
        target(many, peers::WATCH, Metric::Slowest, NoPeer, AtLeast(0.5)),
        target(one, peers::WATCH, Metric::Rate, Best, AtLeast(1.1)),
        target(one, peers::WATCH, Metric::Tries, NoPeer, AtMost(1.01)),
        target(one, peers::WATCH, Metric::P99, deadpool, AtMost(0.5)),
        target(one, peers::WATCH_MERGED, Metric::Rate, Best, AtLeast(3.0)).hoping(8.0),
        target(one, peers::WATCH_MERGED, Metric::Tries, NoPeer, AtMost(1.01)),
        target(one, peers::WATCH_MERGED, Metric::P99, deadpool, AtMost(0.5)),
        target(get, peers::POOLED, Metric::Rate, unchecked, AtLeast(3.2)),
        target(get, peers::POOLED, Metric::P99, unchecked, AtMost(0.1)),
    ]
}

fn of_tasks() -> Vec<Target> {
    use Against::{Best, NoPeer, Peer};
    use Bound::{AtLeast, AtMost};
    use peers::{TASKS_ONCE, TASKS_POOLED, TASKS_RUN, TASKS_WATCH, TASKS_WATCH_MERGED};
    let target = Target::new;
    let row = |scenario, workers| Row { scenario, workers, via: Via::Tcp, callers: Callers::Tasks };
    let alone = row(Scenario::Two, 1);
    let two = row(Scenario::Two, 64);
    let crowd = row(Scenario::Two, 1_000);
    let ten = row(Scenario::Ten, 64);
    let many = row(Scenario::Watch(1_000), 64);
    let one = row(Scenario::Watch(1), 64);
    let get = row(Scenario::Get, 64);
    let multiplexed = Peer(peers::MULTIPLEXED);
    let deadpool = Peer(peers::DEADPOOL);
    vec![
        target(two, TASKS_RUN, Metric::Rate, multiplexed, AtLeast(1.8)).hoping(3.0),
        target(two, TASKS_RUN, Metric::ClientCpu, multiplexed, AtMost(0.5)),
        target(crowd, TASKS_RUN, Metric::Rate, multiplexed, AtLeast(2.2)).hoping(4.0),
        target(crowd, TASKS_RUN, Metric::P99, multiplexed, AtMost(0.6)),
        target(two, TASKS_ONCE, Metric::Rate, multiplexed, AtLeast(1.8)),
        target(crowd, TASKS_ONCE, Metric::Rate, multiplexed, AtLeast(3.0)),
        target(ten, TASKS_RUN, Metric::Rate, multiplexed, AtLeast(1.5)),
        target(get, TASKS_POOLED, Metric::Rate, multiplexed, AtLeast(1.2)),
        target(many, TASKS_WATCH, Metric::Rate, deadpool, AtLeast(1.1)),
        target(many, TASKS_WATCH, Metric::Rate, Peer(peers::BB8_UNCHECKED), AtLeast(1.2)),
        target(many, TASKS_WATCH, Metric::P99, deadpool, AtMost(0.5)),
        target(one, TASKS_WATCH, Metric::Rate, Best, AtLeast(1.2)),
        target(one, TASKS_WATCH, Metric::Tries, NoPeer, AtMost(1.01)),
        target(one, TASKS_WATCH_MERGED, Metric::Rate, Best, AtLeast(3.0)).hoping(8.0),
        target(one, TASKS_WATCH_MERGED, Metric::Tries, NoPeer, AtMost(1.01)),
        target(one, TASKS_WATCH_MERGED, Metric::P99, deadpool, AtMost(0.5)),
        target(alone, TASKS_RUN, Metric::Rate, multiplexed, AtLeast(0.95)),
        target(alone, TASKS_RUN, Metric::P50, multiplexed, AtMost(1.05)),
    ]
}

/// Whether something is demanded of this row.
pub fn is_one(row: &Row) -> bool {
    of(row.callers).iter().any(|target| target.row == *row)
}

impl Target {
    fn new(row: Row, ours: &'static str, metric: Metric, against: Against, bound: Bound) -> Self {
        Self { row, ours, metric, against, bound, hope: None }
    }

    fn hoping(self, hope: f64) -> Self {
        Self { hope: Some(hope), ..self }
    }

    /// One line of the table; a target that is missed has its figure in bold.
    pub fn line(&self, measured: &Measured) -> String {
        let name = self.row.name();
        let (against, found) = match self.against {
            Against::Peer(peer) => (peer, measured.ratio(&self.row, self.ours, peer, self.metric)),
            Against::Best => match measured.best_peer(&self.row) {
                Some(peer) => (peer, measured.ratio(&self.row, self.ours, peer, self.metric)),
                None => ("the best peer", None),
            },
            Against::NoPeer => ("", measured.spread(&self.row, self.ours, self.metric)),
        };
        let against = match self.against {
            Against::NoPeer => self.metric.name().to_owned(),
            Against::Best => format!("{}, of {against} (the best peer)", self.metric.name()),
            Against::Peer(_) => format!("{}, of {against}", self.metric.name()),
        };
        let hope = self.hope.map(|hope| format!(" (goal {hope})")).unwrap_or_default();
        let bound = match self.bound {
            Bound::AtLeast(bound) => format!("≥ {bound}"),
            Bound::AtMost(bound) => format!("≤ {bound}"),
        };
        let (figure, verdict) = match found {
            None => ("not measured".to_owned(), ""),
            Some(Spread { median, lower, upper, most }) => {
                // The longest wait is the longest of all rounds, and not their median.
                let judged = if self.metric == Metric::Longest { most } else { median };
                let met = match self.bound {
                    Bound::AtLeast(bound) => judged >= bound,
                    Bound::AtMost(bound) => judged <= bound,
                };
                let bold = if met { "" } else { "**" };
                let range = match self.metric {
                    Metric::Longest => {
                        format!("({} to {}, {})", figure(lower), figure(upper), figure(most))
                    }
                    _ => format!("({} to {})", figure(lower), figure(upper)),
                };
                let verdict = if met { "met" } else { "**not met**" };
                (format!("{bold}{}{bold} {range}", figure(median)), verdict)
            }
        };
        let limit = self.limit(measured).unwrap_or_default();
        format!(
            "| {name} | {} | {against} | {bound}{hope} | {figure} | {verdict} | {limit} |",
            self.ours
        )
    }

    /// What raw bytes come to in the same way of sharing the connections.
    fn limit(&self, measured: &Measured) -> Option<String> {
        let raw = match self.ours {
            peers::GROUPED | peers::GROUPED_ONCE => peers::RAW_GROUPED,
            peers::RUN if self.row.workers > POOL => peers::RAW_AHEAD,
            peers::GUARD => peers::RAW_HANDED,
            peers::TASKS_RUN => peers::RAW_MERGED,
            peers::TASKS_ONCE => peers::RAW_MERGED_ONCE,
            peers::WATCH | peers::TASKS_WATCH => peers::RAW_WATCH,
            peers::WATCH_MERGED | peers::TASKS_WATCH_MERGED | peers::TASKS_POOLED => return None,
            peers::POOLED if self.row.workers > POOL => peers::RAW_GROUPED,
            _ => peers::RAW,
        };
        let Spread { median, lower, upper, .. } = match self.against {
            Against::Peer(peer) => measured.ratio(&self.row, raw, peer, self.metric)?,
            Against::Best => {
                measured.ratio(&self.row, raw, measured.best_peer(&self.row)?, self.metric)?
            }
            Against::NoPeer => measured.spread(&self.row, raw, self.metric)?,
        };
        Some(format!("{} ({} to {})", figure(median), figure(lower), figure(upper)))
    }
}

fn figure(value: f64) -> String {
    if value < 0.1 { format!("{value:.4}") } else { format!("{value:.2}") }
}
