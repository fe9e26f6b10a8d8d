//! The demo: transfers between accounts while connections are killed, and an audit of every result.
//!
//! ```text
//! cargo run --release -p rediscope-examples --bin bank                # threads, then tasks of tokio
//! cargo run --release -p rediscope-examples --bin bank -- --tokio     # tasks only; --blocking: threads only
//! cargo run --release -p rediscope-examples --bin bank -- --transfers 1000000 --threads 128 --tasks 1000 --seed 7
//! ```
//!
//! It starts a Redis server of its own ($REDIS_SERVER, or `redis-server` on the PATH), or uses the
//! one in $REDIS_URL. Many threads, and then many tasks, move money between accounts over a pool of 8,
//! by `watch(keys).run_with`. Some of the transfers are dropped, some return early with an error, some
//! panic, and some futures are dropped before their end. Every 100 ms some of the demo's own connections
//! are killed, most of them in the middle of a transfer. Each transfer counts itself in a ledger, in
//! the same transaction. At the end each result that the library returned is compared with the ledger.
//!
//! Its keys are under one random prefix and are removed at the end. It exits non-zero if the sum of
//! all balances changed, if a result was wrong, or if a transfer failed other than in doubt.

mod audit;
mod connections;
mod report;
mod tasks;
mod threads;
mod transfer;
mod workload;

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use rediscope::status::Status;
use rediscope::{Builder, RetryPolicy, SessionManager, TransactionOptions, redis};
use rediscope_examples::server::PrivateServer;
use rediscope_examples::{args, keys};

use audit::{ServerState, Verdict};
use connections::OwnConnections;
use report::Report;
use transfer::Ledger;
use workload::{Plan, Results, Workload};

const POOL: u32 = 8;
/// Lanes of each pool of tokio's side, by default.
const LANES: usize = 2;
const OPENING_BALANCE: i64 = 1_000;
/// Maximum time until a session manager's connections are closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The callers of one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Threads,
    Tasks,
}

impl Side {
    /// Maximum number of connections on the server.
    fn connection_limit(self) -> usize {
        match self {
            Self::Threads => 2 * POOL as usize,
            Self::Tasks => 2 * (POOL as usize + LANES),
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let ([transfers, threads, tasks, accounts, seed], [only_tasks, only_threads]) =
        args::numbers_and_switches(
            [
                ("--transfers", 200_000),
                ("--threads", 64),
                ("--tasks", 256),
                ("--accounts", 1_000),
                ("--seed", 1),
            ],
            ["--tokio", "--blocking"],
        )?;
    // Kept until the end, because its drop stops the server.
    let (server, url) = match std::env::var("REDIS_URL") {
        Ok(url) => (None, url),
        Err(_) => {
            let server = PrivateServer::start()?;
            let url = server.url();
            (Some(server), url)
        }
    };
    transfer::expect_bugs();
    let mut failures = Vec::new();
    for (side, workers, other_only) in
        [(Side::Threads, threads, only_tasks), (Side::Tasks, tasks, only_threads)]
    {
        if other_only {
            continue;
        }
        let accounts = accounts.max(2) as usize;
        let plan = Plan { transfers, workers: workers.max(1), accounts, seed };
        let prefix = keys::unique_prefix("bank");
        let report = run(side, plan, &url, &prefix, server.is_some());
        // After a failure as well; the first error is returned.
        let removed = keys::remove_all(&url, &prefix);
        let report = report?;
        removed?;
        println!("{report}");
        failures.extend(report.failures());
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("; ").into()) }
}

fn run(
    side: Side,
    plan: Plan,
    url: &str,
    prefix: &str,
    private: bool,
) -> Result<Report, Box<dyn Error>> {
    let mut admin = keys::connect(url)?;
    let ledger = Ledger { prefix: prefix.to_owned(), connections: OwnConnections::default() };
    open_accounts(&mut admin, &ledger, plan.accounts)?;
    let run = match side {
        Side::Threads => by_threads(plan, url, ledger, private)?,
        Side::Tasks => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(by_tasks(plan, url, ledger, private))?
        }
    };
    let Run { workload, results, state, status, took } = run;
    Ok(Report {
        side,
        server: status.server.clone(),
        private,
        took,
        workers: plan.workers,
        verdict: Verdict::new(&state, &results, plan.seed, OPENING_BALANCE),
        killed: workload.killed(),
        reads: workload.reads(),
        failed_reads: workload.failed_reads(),
        status,
        money_before: OPENING_BALANCE * plan.accounts as i64,
        money_after: state.money(),
        connections: state.connections,
    })
}

/// One side's run, read before its session manager is closed.
struct Run {
    workload: Arc<Workload>,
    results: Results,
    state: ServerState,
    status: Status,
    took: Duration,
}

fn by_threads(plan: Plan, url: &str, ledger: Ledger, private: bool) -> Result<Run, Box<dyn Error>> {
    let sessions = builder(url).build()?;
    let workload = Arc::new(Workload::new(plan));
    let results = threads::run(&workload, &sessions, options(), &ledger, keys::connect(url)?)?;
    let took = workload.begun.elapsed();
    let limit = Side::Threads.connection_limit();
    let state =
        ServerState::read(&mut keys::connect(url)?, &ledger, plan.accounts, (limit, private))?;
    let status = sessions.status();
    sessions.close(CLOSE_TIMEOUT);
    Ok(Run { workload, results, state, status, took })
}

async fn by_tasks(
    plan: Plan,
    url: &str,
    ledger: Ledger,
    private: bool,
) -> Result<Run, Box<dyn Error>> {
    let sessions = builder(url).build_async()?;
    let (workload, ledger) = (Arc::new(Workload::new(plan)), Arc::new(ledger));
    let admin = keys::connect(url)?;
    let results =
        tasks::run(Arc::clone(&workload), sessions.clone(), options(), Arc::clone(&ledger), admin)
            .await?;
    let took = workload.begun.elapsed();
    let limit = Side::Tasks.connection_limit();
    let state =
        ServerState::read(&mut keys::connect(url)?, &ledger, plan.accounts, (limit, private))?;
    let status = sessions.status();
    sessions.close(CLOSE_TIMEOUT).await;
    Ok(Run { workload, results, state, status, took })
}

fn builder(url: &str) -> Builder {
    SessionManager::builder(url)
        .max_size(POOL)
        // Long, so that a slow machine does not look like a lost connection.
        .response_timeout(Duration::from_secs(10))
        .checkout_timeout(Duration::from_secs(30))
}

/// Each conflict means that another transfer was applied, so retries make progress overall: they are
/// bounded by time, not by number.
fn options() -> TransactionOptions {
    TransactionOptions::new().name("transfer").retry(
        RetryPolicy::default()
            .attempts(u32::MAX)
            .deadline(Duration::from_secs(60))
            .max_backoff(Duration::from_millis(20)),
    )
}

fn open_accounts(
    admin: &mut redis::Connection,
    ledger: &Ledger,
    accounts: usize,
) -> redis::RedisResult<()> {
    let numbers: Vec<_> = (0..accounts).collect();
    for chunk in numbers.chunks(1000) {
        let items: Vec<_> = chunk.iter().map(|n| (ledger.account(*n), OPENING_BALANCE)).collect();
        let _: () = redis::Commands::mset(admin, &items)?;
    }
    Ok(())
}
