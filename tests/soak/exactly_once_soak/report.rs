//! The figures of a soak, and which of them must be zero.

use std::fmt;
use std::time::Duration;

use super::faults::Cut;
use super::ledger::Fates;
use super::operations::Reported;
use super::resolvers::Manner;
use super::soak::{Phase, THREADS};
use super::worker::Results;

/// Of all cuts, in percent: or the rest of it would mean little.
const LEAST_OF_EACH: u64 = 20;
/// The same while slots move: a resolver is redirected more often than cut.
const LEAST_MOVING: u64 = 10;

#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) seed: u64,
    /// The variables that make it.
    pub(crate) command: String,
    pub(crate) phases: Vec<Phase>,
    pub(crate) took: Duration,
}

impl Phase {
    fn fates(&self) -> Fates {
        self.verdict.fates.values().fold(Fates::default(), |sum, fates| sum.plus(*fates))
    }

    fn count(&self, reported: Reported) -> u64 {
        self.verdict.reported.get(&reported).copied().unwrap_or(0)
    }

    /// EXECs that the server ran and that applied nothing. If no other client writes the watched keys,
    /// a resolver had come first.
    fn refused(&self) -> u64 {
        self.execs.saturating_sub(self.verdict.applied)
    }
}

impl Report {
    /// What must be true and is not.
    pub(crate) fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        for phase in &self.phases {
            let verdict = &phase.verdict;
            broken.extend(verdict.words.iter().cloned());
            let mut must = |holds: bool, what: String| {
                if !holds {
                    broken.push(format!("{}: {what}", phase.variant.name));
                }
            };
            must(verdict.wrong == 0, format!("{} wrong results", verdict.wrong));
            let fates = phase.fates();
            must(fates.all >= phase.wanted, format!("{} cuts only", fates.all));
            if phase.variant.tampered {
                must(phase.results.tampered > 0, "no register was deleted".to_owned());
                continue;
            }
            for (what, count) in
                [("committed", fates.committed), ("not committed", fates.not_committed)]
            {
                let least = if phase.variant.moving { LEAST_MOVING } else { LEAST_OF_EACH };
                let enough = count * 100 >= fates.all * least;
                must(enough, format!("{count} of {} cuts resolved as {what}", fates.all));
            }
            must(verdict.again[2] == 0, format!("{} doubts unresolved", verdict.again[2]));
            must(phase.results.late > 0, "nothing was let go late".to_owned());
            must(phase.refused() > 0, "no EXEC came too late".to_owned());
            if phase.variant.moving {
                let Results { moved_under, redirections, .. } = phase.results;
                must(phase.moved[0] > 0 && phase.moved[1] > 0, "no slot moved".to_owned());
                must(redirections > 0, "no request was redirected".to_owned());
                must(moved_under > 0, "no slot moved under a doubt".to_owned());
            }
            // With fewer, chance may leave one out.
            let many = phase.wanted >= 50 * Cut::ALL.len() as u64;
            for cut in Cut::ALL {
                let met = !many || verdict.fates.contains_key(cut);
                must(met, format!("never cut: {}", cut.text()));
            }
        }
        broken
    }
}

/// In Markdown, so that a run can be put into the documentation as it is.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let release = if cfg!(debug_assertions) { "" } else { "--release " };
        let (seed, command) = (self.seed, &self.command);
        writeln!(
            f,
            "`{command} REDISCOPE_SOAK_SEED={seed} cargo test {release}--test soak exactly_once_soak:: \
             -- --nocapture`: {:.1} s, {THREADS} threads. Of a cut: how many, and of those \
             resolved as committed, as not committed, unknown; the rest left no doubt.\n",
            self.took.as_secs_f64()
        )?;
        let mut row = |name: &str, value: &dyn Fn(&Phase) -> String| {
            let values: Vec<_> = self.phases.iter().map(value).collect();
            writeln!(f, "| {name} | {} |", values.join(" | "))
        };
        row("figure", &|phase| phase.variant.name.to_owned())?;
        row("---", &|_| "---:".to_owned())?;
        row("transactions", &|phase| phase.verdict.operations.to_string())?;
        row("cuts", &|phase| phase.fates().text())?;
        for cut in Cut::ALL {
            let fates = |phase: &Phase| phase.verdict.fates.get(cut).copied().unwrap_or_default();
            row(cut.text(), &|phase| fates(phase).text())?;
        }
        for reported in [
            Reported::Committed,
            Reported::Unseen,
            Reported::InDoubt,
            Reported::NotSent,
            Reported::NotBegun,
            Reported::Conflict,
            Reported::Rejected,
        ] {
            row(&format!("returned {}", reported.text()), &|phase| {
                phase.count(reported).to_string()
            })?;
        }
        for manner in Manner::ALL {
            let count = |phase: &Phase| phase.results.manners.get(&manner).copied().unwrap_or(0);
            row(&format!("resolved {}", manner.text()), &|phase| count(phase).to_string())?;
        }
        row("resolved by `run` itself: committed, not", &|phase| {
            let [committed, not_committed] = phase.verdict.by_run;
            format!("{committed}, {not_committed}")
        })?;
        row("results in all: committed, not, unknown", &|phase| three(phase.verdict.answers))?;
        row("doubts resolved again at the end: likewise", &|phase| three(phase.verdict.again))?;
        row("no result in time", &|phase| phase.verdict.unreachable.to_string())?;
        row("deletions and foreign writes", &|phase| phase.results.tampered.to_string())?;
        row("held requests let go after the resolution", &|phase| phase.results.late.to_string())?;
        row("slots that moved, keys that were moved ahead", &|phase| {
            let [slots, keys] = phase.moved;
            format!("{slots}, {keys}")
        })?;
        row("redirections that `run` followed", &|phase| phase.results.redirections.to_string())?;
        row("doubts whose slot moved between the transaction and the answer", &|phase| {
            phase.results.moved_under.to_string()
        })?;
        row("EXECs that the server ran", &|phase| phase.execs.to_string())?;
        row("of these refused, a resolver (or a tamperer) being first", &|phase| {
            phase.refused().to_string()
        })?;
        row("seconds", &|phase| format!("{:.1}", phase.took.as_secs_f64()))?;
        row("wrong results", &|phase| phase.verdict.wrong.to_string())
    }
}

impl Fates {
    fn text(self) -> String {
        format!("{}: {}, {}, {}", self.all, self.committed, self.not_committed, self.unknown)
    }
}

fn three([committed, not_committed, unknown]: [u64; 3]) -> String {
    format!("{committed}, {not_committed}, {unknown}")
}
