//! The table at the end, and which of its figures fail the run.

use std::fmt;
use std::time::Duration;

use rediscope::status::{PoolCounters, Status};

use super::calls::{Call, Machine};
use super::expectations::Reported;
use super::faults::Fault;
use super::fixture::POOL;
use super::ledger::Verdict;
use super::operations;
use super::soak::Plan;

/// Once the last fault is lifted, within this a fresh transaction commits; and once it is quiet,
/// within this every connection there may be can be held at once.
const RECOVERY: Duration = Duration::from_secs(2);
/// On top of a call's deadlines and of the machine's own worst stall: the threads are many more
/// than the processors.
const CALL_SLACK: Duration = Duration::from_secs(1);
/// By how much resident memory may grow between the first tenth and the last.
const GROWTH: i64 = 10_000_000;

/// The longest call of a kind.
#[derive(Debug)]
pub(crate) struct Timing {
    pub(crate) call: Call,
    pub(crate) longest: Duration,
    pub(crate) culprit: String,
}

/// All there is to say about a run.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) plan: Plan,
    pub(crate) threads: usize,
    pub(crate) took: Duration,
    pub(crate) verdict: Verdict,
    pub(crate) faults: Vec<(Fault, u64)>,
    pub(crate) rounds: u64,
    /// Once quiet.
    pub(crate) status: Status,
    pub(crate) recovery: Option<Duration>,
    pub(crate) capacity: Option<Duration>,
    pub(crate) timings: [Timing; Call::ALL.len()],
    pub(crate) machine: Machine,
    pub(crate) connections: usize,
    /// Before and after.
    pub(crate) library_threads: (usize, usize),
    pub(crate) other_threads: (usize, usize),
}

impl Report {
    fn count(&self, reported: Reported) -> u64 {
        self.verdict.counts(reported).0
    }

    fn money_expected() -> i64 {
        operations::ACCOUNTS as i64 * operations::OPENING_BALANCE
    }

    fn growth(&self) -> Option<i64> {
        self.machine.memory.map(|(first, last)| last as i64 - first as i64)
    }

    /// What must be true and is not.
    pub(crate) fn broken(&self) -> Vec<String> {
        let verdict = &self.verdict;
        let mut broken = verdict.words.clone();
        let mut must = |holds: bool, what: String| {
            if !holds {
                broken.push(what);
            }
        };
        must(verdict.wrong == 0, format!("{} wrong results", verdict.wrong));
        must(verdict.wrong_balances == 0, format!("{} wrong balances", verdict.wrong_balances));
        must(verdict.wrong_pairs == 0, format!("{} wrong pairs", verdict.wrong_pairs));
        must(verdict.money == Self::money_expected(), format!("money: {}", verdict.money));
        let limit = 2 * POOL as usize;
        must(self.connections <= limit, format!("{} connections", self.connections));
        for pool in [&self.status.pooled, &self.status.transactional] {
            let idle = pool.in_use == 0 && pool.waiting == 0 && pool.scopes.is_empty();
            must(idle, format!("not quiet: {pool}"));
        }
        for (what, took) in [
            ("a fresh transaction committed", self.recovery),
            ("all places could be held at once", self.capacity),
        ] {
            must(
                took.is_some_and(|took| took <= RECOVERY + self.machine.stall),
                format!("{what} after {took:?}"),
            );
        }
        for Timing { call, longest, culprit } in &self.timings {
            let limit = call.limit() + self.machine.stall + CALL_SLACK;
            must(*longest <= limit, format!("{}: {longest:?} by {culprit}", call.text()));
        }
        if let Some(growth) = self.growth() {
            must(growth < GROWTH, format!("memory grew by {growth} bytes"));
        }
        for (whose, (before, after)) in
            [("library", self.library_threads), ("other", self.other_threads)]
        {
            must(before == after, format!("{whose} threads: {before} before, {after} after"));
        }
        // Or the rest of it would mean little.
        for (fault, count) in &self.faults {
            must(*count > 0, format!("never injected: {}", fault.text()));
        }
        for reported in [
            Reported::Committed,
            Reported::InDoubt,
            Reported::Conflict,
            Reported::Panicked,
            Reported::Forgotten,
        ] {
            must(self.count(reported) > 0, format!("never returned: {}", reported.text()));
        }
        broken
    }
}

/// In Markdown, so that a run can be put into the documentation as it is.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, value: String| writeln!(f, "| {name} | {value} |");
        let (verdict, status) = (&self.verdict, &self.status);
        let seed = self.plan.seed;
        row("figure", "value".to_owned())?;
        row("---", "---:".to_owned())?;
        let (seconds, release) = (self.plan.lasts.as_secs(), !cfg!(debug_assertions));
        row(
            "command",
            format!(
                "`REDISCOPE_SOAK_SECONDS={seconds} REDISCOPE_SOAK_SEED={seed} cargo test {}--test \
                 soak fault_soak:: -- --nocapture`",
                if release { "--release " } else { "" }
            ),
        )?;
        row("seed", seed.to_string())?;
        row("seconds", format!("{:.1}", self.took.as_secs_f64()))?;
        row("threads, on two pools of", format!("{}, {POOL}", self.threads))?;
        row("transactions and commands", verdict.operations.to_string())?;
        for &reported in Reported::ALL {
            let (count, applied) = verdict.counts(reported);
            let doubt = matches!(reported, Reported::InDoubt | Reported::LostInDoubt);
            match (doubt, count) {
                (true, _) => row(reported.text(), format!("{count}, of which applied {applied}"))?,
                (false, 0) => {}
                (false, _) => row(reported.text(), count.to_string())?,
            }
        }
        let codes: Vec<_> =
            verdict.codes.iter().map(|(code, count)| format!("{count} {code}")).collect();
        row("the server's refusals", codes.join(", "))?;
        let faults: u64 = self.faults.iter().map(|(_, count)| count).sum();
        row("faults", format!("{faults} in {} rounds", self.rounds))?;
        for (fault, count) in &self.faults {
            row(fault.text(), count.to_string())?;
        }
        row("connections replaced, transactions", replaced(&status.transactional.counts))?;
        row("connections replaced, single commands", replaced(&status.pooled.counts))?;
        for Timing { call, longest, .. } in &self.timings {
            let what = format!("longest {} (deadlines allow {:?})", call.text(), call.limit());
            row(&what, format!("{:.3} s", longest.as_secs_f64()))?;
        }
        row("longest stall of the machine", format!("{:.3} s", self.machine.stall.as_secs_f64()))?;
        for (what, took) in [
            ("fresh transaction after the last fault", self.recovery),
            ("all 8 + 8 connections held at once, once quiet", self.capacity),
        ] {
            row(what, took.map_or("never".to_owned(), |t| format!("{:.3} s", t.as_secs_f64())))?;
        }
        row(
            "connections on the server once quiet",
            format!("{} (at most 8 + 8)", self.connections),
        )?;
        let pools = [&status.transactional, &status.pooled];
        let sum = |count: fn(&rediscope::status::PoolStatus) -> usize| -> usize {
            pools.iter().map(|pool| count(pool)).sum()
        };
        row(
            "in use, waiting, open scopes",
            format!(
                "{}, {}, {}",
                sum(|pool| pool.in_use as usize),
                sum(|pool| pool.waiting),
                sum(|pool| pool.scopes.len())
            ),
        )?;
        let (before, after) = self.library_threads;
        row("the library's threads, before and after", format!("{before}, {after}"))?;
        if let (Some((first, last)), Some(growth)) = (self.machine.memory, self.growth()) {
            let megabytes = |bytes: i64| format!("{:.2} MB", bytes as f64 / 1e6);
            row("memory in the first tenth", megabytes(first as i64))?;
            row("memory in the last tenth", megabytes(last as i64))?;
            row("growth", megabytes(growth))?;
        }
        row("money, before and after", format!("{}, {}", Self::money_expected(), verdict.money))?;
        row("accounts and pairs torn", (verdict.wrong_balances + verdict.wrong_pairs).to_string())?;
        row("wrong results", verdict.wrong.to_string())
    }
}

fn replaced(counts: &PoolCounters) -> String {
    let reasons: Vec<_> =
        counts.replaced.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    format!("{}: {}", counts.all_replaced(), reasons.join(", "))
}
