//! The table printed at the end, and the findings that fail the run.

use std::fmt;
use std::time::Duration;

use rediscope::status::{PoolCounters, Status};

use crate::audit::Verdict;
use crate::connections::Killed;
use crate::workload::MIN_KILLS;
use crate::{LANES, POOL, Side};

/// The figures of one run.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) side: Side,
    pub(crate) server: String,
    pub(crate) private: bool,
    pub(crate) took: Duration,
    /// Number of threads or tasks.
    pub(crate) workers: u64,
    pub(crate) verdict: Verdict,
    pub(crate) killed: Killed,
    pub(crate) reads: u64,
    pub(crate) failed_reads: Vec<String>,
    pub(crate) status: Status,
    pub(crate) money_before: i64,
    pub(crate) money_after: i64,
    pub(crate) connections: usize,
}

impl Report {
    fn other_errors(&self) -> u64 {
        self.verdict.failed + self.failed_reads.len() as u64
    }

    fn transfers(&self) -> u64 {
        let counts = &self.verdict;
        let ended_early = counts.broke + counts.dropped + counts.panicked;
        counts.committed + ended_early + counts.in_doubt + counts.cancelled + counts.failed
    }

    /// The promises that were broken.
    pub(crate) fn failures(&self) -> Vec<String> {
        let verdict = &self.verdict;
        let broken = |is: bool, text: String| is.then_some(text);
        [
            broken(verdict.wrong > 0, format!("{} wrong results", verdict.wrong)),
            broken(
                verdict.wrong_balances > 0,
                format!("{} wrong balances", verdict.wrong_balances),
            ),
            broken(
                self.money_before != self.money_after,
                "the sum of all balances changed".to_owned(),
            ),
            broken(self.other_errors() > 0, format!("{} other errors", self.other_errors())),
            broken(
                self.connections > self.side.connection_limit(),
                format!("{} connections on the server", self.connections),
            ),
            broken(
                self.killed.all < MIN_KILLS.all || self.killed.busy < MIN_KILLS.busy,
                format!("only {} kills, {} busy", self.killed.all, self.killed.busy),
            ),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |label: &str, text: String| writeln!(f, "{label:<24}{text}");
        let verdict = &self.verdict;
        let (transfers, pooled) = (&self.status.transactional.counts, &self.status.pooled.counts);
        let (callers, lanes) = match self.side {
            Side::Threads => ("threads", String::new()),
            Side::Tasks => ("tasks of tokio", format!(" + {} lanes", 2 * LANES)),
        };
        let owner = if self.private { "started for this" } else { "from REDIS_URL" };
        line("server", format!("{} ({owner})", self.server))?;
        line(
            "transfers",
            format!("{} by {} {callers} over {POOL} connections", self.transfers(), self.workers),
        )?;
        line("  committed", verdict.committed.to_string())?;
        line("  not enough money", format!("{} (returned early)", verdict.broke))?;
        line("  dropped", verdict.dropped.to_string())?;
        line("  panicked", format!("{} (inside the closure)", verdict.panicked))?;
        line(
            "  in doubt",
            format!("{}, of which {} were applied", verdict.in_doubt, verdict.in_doubt_applied),
        )?;
        if self.side == Side::Tasks {
            line(
                "  future dropped",
                format!(
                    "{}, of which {} were applied",
                    verdict.cancelled, verdict.cancelled_applied
                ),
            )?;
        }
        line("conflicts", transfers.conflicts.to_string())?;
        line("retries", transfers.retries.to_string())?;
        line("discards", transfers.discards.to_string())?;
        line(
            "kills",
            format!("{}, {} in the middle of a transfer", self.killed.all, self.killed.busy),
        )?;
        line("replaced connections", format!("{} for transfers", replaced(transfers)))?;
        line("", format!("{} for reads", replaced(pooled)))?;
        line("reads", format!("{}, {} failed", self.reads, self.failed_reads.len()))?;
        line(
            "connections on server",
            format!("{} (at most {POOL} + {POOL}{lanes})", self.connections),
        )?;
        line("money before", self.money_before.to_string())?;
        line(
            "money after",
            format!("{} ({} accounts wrong)", self.money_after, verdict.wrong_balances),
        )?;
        line("wrong results", verdict.wrong.to_string())?;
        line("other errors", self.other_errors().to_string())?;
        for failure in verdict.failures.iter().chain(self.failed_reads.iter().take(10)) {
            line("", failure.clone())?;
        }
        let seconds = self.took.as_secs_f64();
        let pace = self.transfers() as f64 / seconds;
        line("time", format!("{seconds:.1} s, {pace:.0} transfers a second"))
    }
}

fn replaced(counts: &PoolCounters) -> String {
    let reasons: Vec<_> =
        counts.replaced.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    if reasons.is_empty() {
        return "none".to_owned();
    }
    format!("{} ({})", counts.all_replaced(), reasons.join(", "))
}
