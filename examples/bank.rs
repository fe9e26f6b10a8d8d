//! The demo: a bank under fire, and an audit of every answer it gave.
//!
//! ```text
//! cargo run --release --example bank
//! cargo run --release --example bank -- --transfers 1000000 --threads 128 --accounts 100 --seed 7
//! ```
//!
//! It starts a Redis server of its own ($REDIS_SERVER, or `redis-server` on the PATH), or uses the
//! one in $REDIS_URL. Many threads move money between accounts over a pool of 8, by
//! `watch(keys).run_with`. Some of the transfers are dropped, some return early with an error, some
//! panic; and every 100 ms some of the demo's own connections are killed, most of them in the
//! middle of a transfer. Each transfer counts itself in a ledger, in the same transaction. At the
//! end what everybody was told is compared with the ledger.
//!
//! Its keys are under one random prefix and are removed at the end. It exits non-zero when money
//! came or went, when an answer was wrong, or when anybody saw an error other than a doubt.

#[path = "support/args.rs"]
mod args;
#[path = "bank/audit.rs"]
mod audit;
#[path = "support/keys.rs"]
mod keys;
#[path = "bank/links.rs"]
mod links;
#[path = "bank/report.rs"]
mod report;
#[path = "support/server.rs"]
mod server;
#[path = "bank/transfer.rs"]
mod transfer;

use std::error::Error;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use rediscope::{RetryPolicy, SessionManager, TransactionOptions, prelude::*, redis};

use audit::{Books, Verdict};
use links::{Killed, Links};
use report::Report;
use server::PrivateServer;
use transfer::{Bank, Told, Transfer};

const POOL: u32 = 8;
const OPENING_BALANCE: i64 = 1_000;
const KILL_EVERY: Duration = Duration::from_millis(100);
/// A run too short for these kills at that pace is killed faster: there is never a smaller part of
/// the kills behind it than of the transfers. If need be it goes on beyond its transfers.
const LEAST_KILLS: Killed = Killed { all: 100, busy: 20 };

/// What is to be done, from the command line.
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
    // Kept until the end: dropped, the server is gone.
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
    // Whatever came of it; but the first error is the one to tell.
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
        // The demo is about connections that die, not about a machine that is slow.
        .response_timeout(Duration::from_secs(10))
        .checkout_timeout(Duration::from_secs(30))
        .build()?;
    let bank = Bank {
        // A conflict means that somebody else's transfer went through, so trying on is no waste:
        // time is the bound, not the number of attempts.
        handle: sessions.transactional().with(
            TransactionOptions::new().name("transfer").retry(
                RetryPolicy::default()
                    .attempts(u32::MAX)
                    .deadline(Duration::from_secs(60))
                    .max_backoff(Duration::from_millis(20)),
            ),
        ),
        prefix: prefix.to_owned(),
        links: Links::default(),
    };
    let mut admin = keys::connect(url)?;
    open_accounts(&sessions, &bank, plan.accounts)?;
    transfer::expect_bugs();

    let day = Day::new(plan);
    let told = day.pass(&bank, &sessions, &mut admin)?;
    let took = day.begun.elapsed();

    let books = Books::read(&mut admin, &bank, plan.accounts, (2 * POOL as usize, private))?;
    Ok(Report {
        server: sessions.status().server,
        private,
        took,
        threads: plan.threads,
        verdict: Verdict::on(&books, &told, plan.seed, OPENING_BALANCE),
        killed: day.killed(),
        reads: day.reads.load(Ordering::Relaxed),
        failed_reads: day.failed_reads.into_inner().unwrap_or_default(),
        status: sessions.status(),
        money_before: OPENING_BALANCE * plan.accounts as i64,
        money_after: books.money(),
        connections: books.connections,
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

/// A day at the bank, as far as it has come.
#[derive(Debug)]
struct Day {
    plan: Plan,
    begun: Instant,
    /// Transfers that were begun.
    transfers: AtomicU64,
    kills: AtomicU64,
    busy_kills: AtomicU64,
    killer_gone: AtomicBool,
    over: AtomicBool,
    reads: AtomicU64,
    failed_reads: Mutex<Vec<String>>,
    bar: ProgressBar,
}

impl Day {
    fn new(plan: Plan) -> Self {
        // Draws nothing where nobody watches.
        let bar = ProgressBar::new(plan.transfers);
        let style = "{elapsed_precise} {wide_bar} {pos}/{len} transfers, {eta} left, {msg}";
        bar.set_style(ProgressStyle::with_template(style).unwrap_or(ProgressStyle::default_bar()));
        Self {
            plan,
            begun: Instant::now(),
            transfers: AtomicU64::new(0),
            kills: AtomicU64::new(0),
            busy_kills: AtomicU64::new(0),
            killer_gone: AtomicBool::new(false),
            over: AtomicBool::new(false),
            reads: AtomicU64::new(0),
            failed_reads: Mutex::default(),
            bar,
        }
    }

    /// Runs the threads and gathers what each transfer's maker was told.
    fn pass(
        &self,
        bank: &Bank,
        sessions: &SessionManager,
        admin: &mut redis::Connection,
    ) -> Result<Vec<(u64, Told)>, Box<dyn Error>> {
        thread::scope(|scope| {
            let killer = scope.spawn(|| self.kill(bank, admin));
            let reader = scope.spawn(|| self.read(bank, sessions));
            let makers: Vec<_> =
                (0..self.plan.threads).map(|_| scope.spawn(|| self.make(bank))).collect();
            let told: Vec<_> = makers.into_iter().map(|maker| maker.join()).collect();
            self.over.store(true, Ordering::Relaxed);
            self.bar.finish_and_clear();
            killer.join().map_err(|_| "the killer panicked")??;
            reader.join().map_err(|_| "the reader panicked")?;
            let told: Result<Vec<_>, _> = told.into_iter().collect();
            let told = told.map_err(|_| "a maker panicked outside of its transfers")?;
            Ok(told.into_iter().flatten().collect())
        })
    }

    /// Makes transfers until there are no more to be made.
    fn make(&self, bank: &Bank) -> Vec<(u64, Told)> {
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
        let enough = killed.all >= LEAST_KILLS.all && killed.busy >= LEAST_KILLS.busy;
        let wait_for_kills = !enough && !self.killer_gone.load(Ordering::Relaxed);
        (id < self.plan.transfers || wait_for_kills).then_some(id)
    }

    fn killed(&self) -> Killed {
        Killed {
            all: self.kills.load(Ordering::Relaxed),
            busy: self.busy_kills.load(Ordering::Relaxed),
        }
    }

    fn kill(&self, bank: &Bank, admin: &mut redis::Connection) -> redis::RedisResult<()> {
        // However this ends: the makers wait for it.
        scopeguard::defer! { self.killer_gone.store(true, Ordering::Relaxed); }
        let mut last = Instant::now();
        while !self.over.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(1));
            if last.elapsed() < KILL_EVERY && !self.is_behind_with_kills() {
                continue;
            }
            last = Instant::now();
            let killed = links::kill_some(admin, &bank.links)?;
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
        killed.all < due(LEAST_KILLS.all) || killed.busy < due(LEAST_KILLS.busy)
    }

    /// A customer who looks at a balance now and then, over the pooled handle. Its connection is
    /// idle in between, longer than it is trusted, and is killed like all others: no look may fail.
    fn read(&self, bank: &Bank, sessions: &SessionManager) {
        let mut db = sessions.pooled();
        while !self.over.load(Ordering::Relaxed) {
            let reads = self.reads.fetch_add(1, Ordering::Relaxed);
            let account = bank.account(fastrand::usize(..self.plan.accounts));
            if let Err(error) = db.get::<_, i64>(account)
                && let Ok(mut failed) = self.failed_reads.lock()
            {
                failed.push(rediscope::Error::from(error).to_string());
            }
            // For the killer's sake and not the customer's, so a failure is nobody's error.
            if reads.is_multiple_of(8)
                && let Ok(id) = redis::cmd("CLIENT").arg("ID").query(&mut db)
            {
                bank.links.note(id);
            }
            thread::sleep(Duration::from_millis(7));
        }
    }
}
