//! What is done, by how many, and what the server must hold afterwards.

use redis::{Commands, Connection};

use crate::server::Via;
use crate::tens::Ten;

/// The connections a pool may have.
pub const POOL: usize = 8;
/// The commands of the batch.
pub const BATCH: usize = 10_000;
/// What a plain GET reads.
pub const READ: i64 = 1_234_567;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// `MULTI`, two INCRs, `EXEC`.
    Two,
    /// Ten commands of seven kinds in one transaction, every reply decoded.
    Ten,
    /// A random one of so many keys: `WATCH`, `GET`; `MULTI`, `SET`, `INCR`, `EXEC`; again at a conflict.
    Watch(usize),
    /// One GET.
    Get,
    /// 10,000 INCRs in one transaction, every reply decoded.
    Batch,
}

/// The callers of the crate's own rows. Some peers of threads are tasks all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callers {
    Threads,
    Tasks,
}

/// One line of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    pub scenario: Scenario,
    pub workers: usize,
    pub via: Via,
    pub callers: Callers,
}

impl Row {
    pub fn name(&self) -> String {
        let what = match self.scenario {
            Scenario::Two => "two INCRs".to_owned(),
            Scenario::Ten => "ten mixed".to_owned(),
            Scenario::Watch(1) => "watch one key".to_owned(),
            Scenario::Watch(keys) => format!("watch {keys} keys"),
            Scenario::Get => "plain GET".to_owned(),
            Scenario::Batch => format!("batch of {BATCH}"),
        };
        let via = if self.via == Via::Unix { ", unix socket" } else { "" };
        match self.callers {
            Callers::Threads => format!("{what}, {}/{POOL}{via}", self.workers),
            Callers::Tasks if self.workers == 1 => format!("{what}, one task{via}"),
            Callers::Tasks => {
                format!("{what}, {} tasks{via}", crate::report::thousands(self.workers as f64))
            }
        }
    }
}

/// What one worker works on.
#[derive(Clone, Debug)]
pub struct Job {
    pub worker: usize,
    pub scenario: Scenario,
    /// The two INCRs; the first is also read, batched and counted on.
    pub first: String,
    pub second: String,
    pub ten: Ten,
    /// What is watched, in turn.
    pub watched: std::sync::Arc<[String]>,
}

impl Job {
    pub fn all(row: &Row) -> Vec<Self> {
        let watched = match row.scenario {
            Scenario::Watch(keys) => (0..keys).map(watched).collect(),
            _ => std::sync::Arc::from([]),
        };
        let job = |worker| Self {
            worker,
            scenario: row.scenario,
            first: first(worker),
            second: second(worker),
            ten: Ten::of(worker),
            watched: std::sync::Arc::clone(&watched),
        };
        (0..row.workers).map(job).collect()
    }

    /// A key to watch.
    pub fn any(&self) -> &str {
        match &*self.watched {
            [only] => only,
            many => &many[fastrand::usize(..many.len())],
        }
    }
}

fn first(worker: usize) -> String {
    format!("a:{worker}")
}

fn second(worker: usize) -> String {
    format!("b:{worker}")
}

fn watched(nth: usize) -> String {
    format!("k:{nth}")
}

/// Empties the server and puts there what the row needs.
pub fn prepare(row: &Row, admin: &mut Connection) {
    redis::cmd("FLUSHALL").arg("SYNC").exec(admin).expect("FLUSHALL");
    redis::cmd("CONFIG").arg("RESETSTAT").exec(admin).expect("CONFIG RESETSTAT");
    let mut pipe = redis::pipe();
    match row.scenario {
        Scenario::Get => (0..row.workers).for_each(|worker| {
            pipe.set(first(worker), READ);
        }),
        Scenario::Watch(keys) => (0..keys).for_each(|nth| {
            pipe.set(watched(nth), 0);
        }),
        _ => {}
    }
    if !pipe.is_empty() {
        pipe.exec(admin).expect("what the row needs");
    }
}

/// Whether the server holds what `done` operations leave behind: the sums, and both halves of each
/// transaction.
pub fn verify(row: &Row, admin: &mut Connection, done: u64) -> Result<(), String> {
    let workers = 0..row.workers;
    let firsts: Vec<String> = workers.clone().map(first).collect();
    let found = match row.scenario {
        Scenario::Two => {
            let seconds: Vec<String> = workers.map(second).collect();
            vec![sum(admin, &firsts), sum(admin, &seconds)]
        }
        Scenario::Ten => {
            let tens: Vec<Ten> = workers.map(Ten::of).collect();
            let numbers: Vec<String> = tens.iter().map(|ten| ten.number.clone()).collect();
            let length = |ten: &Ten| admin.llen::<_, u64>(&ten.list).expect("LLEN");
            let lists = tens.iter().map(length).sum();
            vec![lists, sum(admin, &numbers)]
        }
        Scenario::Watch(keys) => {
            let keys: Vec<String> = (0..keys).map(watched).collect();
            vec![sum(admin, &keys), sum(admin, &firsts)]
        }
        Scenario::Get => {
            let stats: String = redis::cmd("INFO").arg("stats").query(admin).expect("INFO");
            let hits = stats.lines().find_map(|line| line.strip_prefix("keyspace_hits:"));
            vec![hits.and_then(|hits| hits.parse().ok()).unwrap_or(0)]
        }
        Scenario::Batch => vec![sum(admin, &firsts) / BATCH as u64],
    };
    if found.iter().all(|found| *found == done) {
        return Ok(());
    }
    Err(format!("{done} operations were acknowledged, the server counts {found:?}"))
}

fn sum(admin: &mut Connection, keys: &[String]) -> u64 {
    let values: Vec<Option<u64>> = admin.mget(keys).expect("MGET");
    values.into_iter().flatten().sum()
}
