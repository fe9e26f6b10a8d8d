//! The demo: transfers between accounts while connections are killed, and an audit of every result.
//!
//! ```text
//! cargo run --release -p rediscope-examples --bin bank
//! cargo run --release -p rediscope-examples --bin bank -- --transfers 1000000 --threads 128 --seed 7
//! ```
//!
//! It starts a Redis server of its own ($REDIS_SERVER, or `redis-server` on the PATH), or uses the
//! one in $REDIS_URL. Many threads move money between accounts over a pool of 8, by
//! `watch(keys).run_with`. Some of the transfers are dropped, some return early with an error, some
//! panic. Every 100 ms some of the demo's own connections are killed, most of them in the middle of
//! a transfer. Each transfer counts itself in a ledger, in the same transaction. At the end each
//! result that the library returned is compared with the ledger.
//!
//! Its keys are under one random prefix and are removed at the end. It exits non-zero if the sum of
//! all balances changed, if a result was wrong, or if a transfer failed other than in doubt.

mod audit;
mod connections;
mod report;
mod transfer;

use std::error::Error;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use rediscope::{RetryPolicy, SessionManager, TransactionOptions, prelude::*, redis};
use rediscope_examples::server::PrivateServer;
use rediscope_examples::{args, keys};

use audit::{ServerState, Verdict};
use connections::{Killed, OwnConnections};
use report::Report;
use transfer::{Bank, Transfer, TransferResult};

const POOL: u32 = 8;
const OPENING_BALANCE: i64 = 1_000;
const KILL_INTERVAL: Duration = Duration::from_millis(100);
/// Minimum number of kills in a run. A short run kills faster, in proportion to its transfers, and
/// makes more transfers if it still has too few kills.
const MIN_KILLS: Killed = Killed { all: 100, busy: 20 };

/// The size of a run, from the command line.
#[derive(Clone, Copy, Debug)]
struct Plan {
    transfers: u64,
    threads: u64,
    accounts: usize,
    seed: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let [transfers, threads, accounts, seed] = args::numbers([
        ("--transfers", 200_000),
        ("--threads", 64),
        ("--accounts", 1_000),
        ("--seed", 1),
    ])?;
    let plan =
        Plan { transfers, threads: threads.max(1), accounts: accounts.max(2) as usize, seed };
    // Kept until the end, because its drop stops the server.
    let (server, url) = match std::env::var("REDIS_URL") {
        Ok(url) => (None, url),
        Err(_) => {
            let server = PrivateServer::start()?;
            let url = server.url();
            (Some(server), url)
        }
    };
    let prefix = keys::unique_prefix("bank");
    let report = run(plan, &url, &prefix, server.is_some());
    // After a failure as well; the first error is returned.
    let removed = keys::remove_all(&url, &prefix);
    let report = report?;
    removed?;
    print!("{report}");
    match report.failures() {
        failures if failures.is_empty() => Ok(()),
        failures => Err(failures.join("; ").into()),
    }
}

fn run(plan: Plan, url: &str, prefix: &str, private: bool) -> Result<Report, Box<dyn Error>> {
    let sessions = SessionManager::builder(url)
        .max_size(POOL)
        // Long, so that a slow machine does not look like a lost connection.
        .response_timeout(Duration::from_secs(10))
        .checkout_timeout(Duration::from_secs(30))
        .build()?;
    let bank = Bank {
        // Each conflict means that another transfer was applied, so retries make progress overall:
        // they are bounded by time, not by number.
        handle: sessions.transactional().with(
            TransactionOptions::new().name("transfer").retry(
                RetryPolicy::default()
                    .attempts(u32::MAX)
                    .deadline(Duration::from_secs(60))
                    .max_backoff(Duration::from_millis(20)),
            ),
        ),
        prefix: prefix.to_owned(),
        connections: OwnConnections::default(),
    };
    let mut admin = keys::connect(url)?;
    open_accounts(&sessions, &bank, plan.accounts)?;
    transfer::expect_bugs();

    let workload = Workload::new(plan);
    let results = workload.run(&bank, &sessions, &mut admin)?;
    let took = workload.begun.elapsed();

    let state = ServerState::read(&mut admin, &bank, plan.accounts, (2 * POOL as usize, private))?;
    Ok(Report {
        server: sessions.status().server,
        private,
        took,
        threads: plan.threads,
        verdict: Verdict::new(&state, &results, plan.seed, OPENING_BALANCE),
        killed: workload.killed(),
        reads: workload.reads.load(Ordering::Relaxed),
        failed_reads: workload.failed_reads.into_inner().unwrap_or_default(),
        status: sessions.status(),
        money_before: OPENING_BALANCE * plan.accounts as i64,
        money_after: state.money(),
        connections: state.connections,
    })
}

fn open_accounts(
    sessions: &SessionManager,
    bank: &Bank,
    accounts: usize,
) -> Result<(), rediscope::Error> {
    let numbers: Vec<_> = (0..accounts).collect();
    for chunk in numbers.chunks(1000) {
        let items: Vec<_> = chunk.iter().map(|n| (bank.account(*n), OPENING_BALANCE)).collect();
        let _: () = sessions.pooled().mset(&items)?;
    }
    Ok(())
}

/// The threads of one run, and what they have done so far.
#[derive(Debug)]
struct Workload {
    plan: Plan,
    begun: Instant,
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
    fn new(plan: Plan) -> Self {
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

    /// Runs all threads and returns the result of each transfer.
    fn run(
        &self,
        bank: &Bank,
        sessions: &SessionManager,
        admin: &mut redis::Connection,
    ) -> Result<Vec<(u64, TransferResult)>, Box<dyn Error>> {
        thread::scope(|scope| {
            let killer = scope.spawn(|| self.kill(bank, admin));
            let reader = scope.spawn(|| self.read(bank, sessions));
            let workers: Vec<_> =
                (0..self.plan.threads).map(|_| scope.spawn(|| self.transfer(bank))).collect();
            let results: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
            self.finished.store(true, Ordering::Relaxed);
            self.bar.finish_and_clear();
            killer.join().map_err(|_| "the killer panicked")??;
            reader.join().map_err(|_| "the reader panicked")?;
            let results: Result<Vec<_>, _> = results.into_iter().collect();
            let results = results.map_err(|_| "a worker panicked outside of its transfers")?;
            Ok(results.into_iter().flatten().collect())
        })
    }

    /// Makes transfers until all of the plan are made.
    fn transfer(&self, bank: &Bank) -> Vec<(u64, TransferResult)> {
        let next = || self.next();
        std::iter::from_fn(next)
            .map(|id| {
                let transfer = Transfer::nth(id, self.plan.seed, self.plan.accounts);
                self.bar.inc(1);
                (id, bank.make(&transfer))
            })
            .collect()
    }

    fn next(&self) -> Option<u64> {
        let id = self.transfers.fetch_add(1, Ordering::Relaxed);
        let killed = self.killed();
        let enough = killed.all >= MIN_KILLS.all && killed.busy >= MIN_KILLS.busy;
        let wait_for_kills = !enough && !self.killer_ended.load(Ordering::Relaxed);
        (id < self.plan.transfers || wait_for_kills).then_some(id)
    }

    fn killed(&self) -> Killed {
        Killed {
            all: self.kills.load(Ordering::Relaxed),
            busy: self.busy_kills.load(Ordering::Relaxed),
        }
    }

    fn kill(&self, bank: &Bank, admin: &mut redis::Connection) -> redis::RedisResult<()> {
        // The workers wait for kills, so they must notice an early return or a panic as well.
        scopeguard::defer! { self.killer_ended.store(true, Ordering::Relaxed); }
        let mut last_kill = Instant::now();
        while !self.finished.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(1));
            if last_kill.elapsed() < KILL_INTERVAL && !self.is_behind_with_kills() {
                continue;
            }
            last_kill = Instant::now();
            let killed = connections::kill_some(admin, &bank.connections)?;
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

    /// Reads a balance now and then, over the pooled handle. In between, its connection is idle for
    /// longer than `trust_window` and may be killed; no read may fail because of that.
    fn read(&self, bank: &Bank, sessions: &SessionManager) {
        let mut db = sessions.pooled();
        while !self.finished.load(Ordering::Relaxed) {
            let reads = self.reads.fetch_add(1, Ordering::Relaxed);
            let account = bank.account(fastrand::usize(..self.plan.accounts));
            if let Err(error) = db.get::<_, i64>(account)
                && let Ok(mut failed) = self.failed_reads.lock()
            {
                failed.push(rediscope::Error::from(error).to_string());
            }
            // Only makes the connection known to the killer, so a failure is ignored.
            if reads.is_multiple_of(8)
                && let Ok(id) = redis::cmd("CLIENT").arg("ID").query(&mut db)
            {
                bank.connections.add(id);
            }
            thread::sleep(Duration::from_millis(7));
        }
    }
}
