//! What both sides do: the plan, its transfers one after another, the kills beside them.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use rediscope::redis;

use crate::connections::{self, Killed};
use crate::transfer::{Ledger, Transfer, TransferResult};

const KILL_INTERVAL: Duration = Duration::from_millis(100);
/// Minimum number of kills in a run. A short run kills faster, in proportion to its transfers, and
/// makes more transfers if it still has too few kills.
pub(crate) const MIN_KILLS: Killed = Killed { all: 100, busy: 20 };

/// The results of some transfers, by number.
pub(crate) type Results = Vec<(u64, TransferResult)>;

/// The size of a run, from the command line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) transfers: u64,
    /// Number of threads or tasks.
    pub(crate) workers: u64,
    pub(crate) accounts: usize,
    pub(crate) seed: u64,
}

/// What the workers of one run have done so far.
#[derive(Debug)]
pub(crate) struct Workload {
    pub(crate) plan: Plan,
    pub(crate) begun: Instant,
    /// Transfers that were started.
    transfers: AtomicU64,
    kills: AtomicU64,
    busy_kills: AtomicU64,
    killer_ended: AtomicBool,
    finished: AtomicBool,
    reads: AtomicU64,
    failed_reads: Mutex<Vec<String>>,
    bar: ProgressBar,
}

impl Workload {
    pub(crate) fn new(plan: Plan) -> Self {
        // Draws nothing if stderr is no terminal.
        let bar = ProgressBar::new(plan.transfers);
        let style = "{elapsed_precise} {wide_bar} {pos}/{len} transfers, {eta} left, {msg}";
        bar.set_style(ProgressStyle::with_template(style).unwrap_or(ProgressStyle::default_bar()));
        Self {
            plan,
            begun: Instant::now(),
            transfers: AtomicU64::new(0),
            kills: AtomicU64::new(0),
            busy_kills: AtomicU64::new(0),
            killer_ended: AtomicBool::new(false),
            finished: AtomicBool::new(false),
            reads: AtomicU64::new(0),
            failed_reads: Mutex::default(),
            bar,
        }
    }

    /// The next transfer, until all of the plan are made.
    pub(crate) fn next(&self) -> Option<Transfer> {
        let id = self.transfers.fetch_add(1, Ordering::Relaxed);
        let killed = self.killed();
        let enough = killed.all >= MIN_KILLS.all && killed.busy >= MIN_KILLS.busy;
        let wait_for_kills = !enough && !self.killer_ended.load(Ordering::Relaxed);
        if id >= self.plan.transfers && !wait_for_kills {
            return None;
        }
        self.bar.inc(1);
        Some(Transfer::nth(id, self.plan.seed, self.plan.accounts))
    }

    /// All transfers are made: the killer and the reader end.
    pub(crate) fn finish(&self) {
        self.finished.store(true, Ordering::Relaxed);
        self.bar.finish_and_clear();
    }

    pub(crate) fn killed(&self) -> Killed {
        Killed {
            all: self.kills.load(Ordering::Relaxed),
            busy: self.busy_kills.load(Ordering::Relaxed),
        }
    }

    /// Kills connections until the run is finished.
    pub(crate) fn kill(
        &self,
        ledger: &Ledger,
        mut admin: redis::Connection,
    ) -> redis::RedisResult<()> {
        // The workers wait for kills, so they must notice an early return or a panic as well.
        scopeguard::defer! { self.killer_ended.store(true, Ordering::Relaxed); }
        let mut last_kill = Instant::now();
        while !self.finished.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(1));
            if last_kill.elapsed() < KILL_INTERVAL && !self.is_behind_with_kills() {
                continue;
            }
            last_kill = Instant::now();
            let killed = connections::kill_some(&mut admin, &ledger.connections)?;
            self.kills.fetch_add(killed.all, Ordering::Relaxed);
            self.busy_kills.fetch_add(killed.busy, Ordering::Relaxed);
            self.bar.set_message(format!("{} connections killed", self.killed().all));
        }
        Ok(())
    }

    fn is_behind_with_kills(&self) -> bool {
        let killed = self.killed();
        let transfers = self.transfers.load(Ordering::Relaxed).min(self.plan.transfers);
        let due = |least: u64| least * transfers / self.plan.transfers.max(1);
        killed.all < due(MIN_KILLS.all) || killed.busy < due(MIN_KILLS.busy)
    }

    /// The number of the next read, until the run is finished.
    pub(crate) fn next_read(&self) -> Option<u64> {
        let goes_on = !self.finished.load(Ordering::Relaxed);
        goes_on.then(|| self.reads.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn any_account(&self, ledger: &Ledger) -> String {
        ledger.account(fastrand::usize(..self.plan.accounts))
    }

    pub(crate) fn failed_read(&self, error: rediscope::Error) {
        if let Ok(mut failed) = self.failed_reads.lock() {
            failed.push(error.to_string());
        }
    }

    pub(crate) fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    pub(crate) fn failed_reads(&self) -> Vec<String> {
        self.failed_reads.lock().map(|failed| failed.clone()).unwrap_or_default()
    }
}
