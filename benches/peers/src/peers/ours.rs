//! The crate itself.

use std::hint::black_box;
use std::time::Duration;

use rediscope::{
    Builder, RetryPolicy, SessionManager, TransactionOptions, Transactional, prelude::*,
};
use tokio::runtime::Runtime;

use super::threads;
use crate::measure::Crew;
use crate::scenario::{BATCH, Job, POOL, Row, Scenario};
use crate::server::Server;
use crate::tens;
use crate::work;

pub const GROUPED_SETTINGS: &str = "the same with TransactionOptions::grouped()";

fn builder(server: &Server, row: &Row) -> Builder {
    // Idle connections as r2d2 has them by default.
    SessionManager::builder(server.info(row.via)).max_size(POOL as u32).min_idle(POOL as u32)
}

fn sessions(server: &Server, row: &Row) -> SessionManager {
    builder(server, row).build().expect("settings that work")
}

pub fn run(server: &Server, _: &Runtime, row: &Row) -> Option<Crew> {
    blocks(row, sessions(server, row).transactional())
}

pub fn run_polls(server: &Server, _: &Runtime, row: &Row) -> Option<Crew> {
    if row.workers > 1 {
        return None; // a call that is not alone does not poll
    }
    let builder = builder(server, row).poll(Duration::from_micros(50));
    blocks(row, builder.build().expect("settings that work").transactional())
}

pub fn grouped(server: &Server, _: &Runtime, row: &Row) -> Option<Crew> {
    if row.workers <= POOL {
        return None; // a free link is taken: nothing is grouped
    }
    blocks(row, sessions(server, row).transactional().with(TransactionOptions::new().grouped()))
}

pub fn grouped_once(server: &Server, _: &Runtime, row: &Row) -> Option<Crew> {
    if row.workers <= POOL {
        return None;
    }
    let both = TransactionOptions::new().grouped().exactly_once();
    blocks(row, sessions(server, row).transactional().with(both))
}

fn blocks(row: &Row, handle: Transactional) -> Option<Crew> {
    if !matches!(row.scenario, Scenario::Two | Scenario::Ten | Scenario::Batch) {
        return None;
    }
    threads(row, |job| {
        let handle = handle.clone();
        Box::new(move |clock| {
            let Job { first, second, ten, .. } = &job;
            match job.scenario {
                Scenario::Two => work!(clock, {
                    let both = handle.run(|tx| Ok((tx.incr(first, 1), tx.incr(second, 1))));
                    black_box(both.expect("two INCRs"));
                    1
                }),
                Scenario::Ten => work!(clock, {
                    black_box(tens::run_ten(&handle, ten));
                    1
                }),
                _ => work!(clock, {
                    let all = handle
                        .run(|tx| Ok((0..BATCH).map(|_| tx.incr(first, 1)).collect::<Vec<_>>()));
                    assert_eq!(all.expect("a batch").len(), BATCH);
                    1
                }),
            }
        })
    })
}

pub fn guard(server: &Server, _: &Runtime, row: &Row) -> Option<Crew> {
    if !matches!(row.scenario, Scenario::Two | Scenario::Ten) {
        return None;
    }
    let handle = sessions(server, row).transactional();
    threads(row, |job| {
        let handle = handle.clone();
        Box::new(move |clock| {
            let Job { first, second, ten, .. } = &job;
            work!(clock, {
                let mut tx = handle.begin().expect("a connection");
                if job.scenario == Scenario::Two {
                    let both = (tx.incr(first, 1), tx.incr(second, 1));
                    let replies = tx.commit().expect("two INCRs");
                    black_box(replies.get(both).expect("both values"));
                } else {
                    let all = tens::block(&mut tx, ten);
                    let replies = tx.commit().expect("ten mixed");
                    black_box(replies.get(all).expect("ten values"));
                }
                1
            })
        })
    })
}

pub fn watch(server: &Server, _: &Runtime, row: &Row) -> Option<Crew> {
    watching(row, &sessions(server, row))
}

pub fn watch_merged(server: &Server, _: &Runtime, row: &Row) -> Option<Crew> {
    if row.scenario != Scenario::Watch(1) {
        return None; // only blocks that watch the same key are merged
    }
    watching(row, &builder(server, row).max_merged(32).build().expect("settings that work"))
}

fn watching(row: &Row, sessions: &SessionManager) -> Option<Crew> {
    if !matches!(row.scenario, Scenario::Watch(_)) {
        return None;
    }
    let patient = RetryPolicy::default().attempts(u32::MAX).deadline(Duration::from_secs(60));
    let handle = sessions.transactional();
    threads(row, |job| {
        let handle = handle.clone();
        Box::new(move |clock| {
            work!(clock, {
                let key = job.any();
                let mut tries = 0;
                let mut watch = handle.watch([key]).retry(patient);
                let get = redis::cmd("GET").arg(key).take();
                let value = watch.declare::<i64>(get).expect("a read");
                let count: i64 = watch
                    .run(|read, tx| {
                        tries += 1;
                        let value = read.declared(value)?;
                        tx.set(key, value + 1);
                        Ok(tx.incr(&job.first, 1))
                    })
                    .expect("a transaction");
                black_box(count);
                tries
            })
        })
    })
}

pub fn pooled(server: &Server, _: &Runtime, row: &Row) -> Option<Crew> {
    if row.scenario != Scenario::Get {
        return None;
    }
    let handle = sessions(server, row).pooled();
    threads(row, |job| {
        let mut handle = handle.clone();
        Box::new(move |clock| {
            work!(clock, {
                let value: i64 = handle.get(&job.first).expect("GET");
                black_box(value);
                1
            })
        })
    })
}
