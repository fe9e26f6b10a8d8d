//! The crate itself, with tasks of tokio as callers.

use std::hint::black_box;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use redis::AsyncCommands;
use rediscope::aio::{SessionManager, Transactional};
use rediscope::{RetryPolicy, TransactionOptions, prelude::*};
use tokio::runtime::Runtime;

use super::tasks;
use crate::measure::Crew;
use crate::scenario::{Job, POOL, Row, Scenario};
use crate::server::Server;
use crate::tens;
use crate::work;

fn sessions(server: &Server, runtime: &Runtime, row: &Row) -> SessionManager {
    merging(server, runtime, row, 1)
}

/// Up to `most` blocks in one EXEC.
fn merging(server: &Server, runtime: &Runtime, row: &Row, most: u32) -> SessionManager {
    // Connections are opened in the runtime, and belong to it.
    let _inside = runtime.enter();
    SessionManager::builder(server.info(row.via))
        .max_size(POOL as u32)
        // As the pools of the peers.
        .min_idle(POOL as u32)
        .max_merged(most)
        .build_async()
        .expect("settings that work")
}

pub fn run(server: &Server, runtime: &Runtime, row: &Row) -> Option<Crew> {
    blocks(row, sessions(server, runtime, row).transactional())
}

pub fn once(server: &Server, runtime: &Runtime, row: &Row) -> Option<Crew> {
    let once = TransactionOptions::new().exactly_once();
    blocks(row, sessions(server, runtime, row).transactional().with(once))
}

fn blocks(row: &Row, handle: Transactional) -> Option<Crew> {
    if !matches!(row.scenario, Scenario::Two | Scenario::Ten) {
        return None;
    }
    tasks(row, |job| {
        let handle = handle.clone();
        Box::new(move |clock| {
            Box::pin(async move {
                let Job { first, second, ten, .. } = &job;
                if job.scenario == Scenario::Two {
                    work!(clock, {
                        let both = handle.run(|tx| Ok((tx.incr(first, 1), tx.incr(second, 1))));
                        black_box(both.await.expect("two INCRs"));
                        1
                    })
                } else {
                    work!(clock, {
                        let all: tens::Replies =
                            handle.run(|tx| Ok(tens::block(tx, ten))).await.expect("ten mixed");
                        black_box(all);
                        1
                    })
                }
            })
        })
    })
}

pub fn guard(server: &Server, runtime: &Runtime, row: &Row) -> Option<Crew> {
    if row.scenario != Scenario::Two {
        return None;
    }
    let handle = sessions(server, runtime, row).transactional();
    tasks(row, |job| {
        let handle = handle.clone();
        Box::new(move |clock| {
            Box::pin(async move {
                work!(clock, {
                    let mut tx = handle.begin().await.expect("a connection");
                    let both = (tx.incr(&job.first, 1), tx.incr(&job.second, 1));
                    let replies = tx.commit().await.expect("two INCRs");
                    black_box(replies.get(both).expect("both values"));
                    1
                })
            })
        })
    })
}

pub fn watch(server: &Server, runtime: &Runtime, row: &Row) -> Option<Crew> {
    watching(row, &sessions(server, runtime, row))
}

pub fn watch_merged(server: &Server, runtime: &Runtime, row: &Row) -> Option<Crew> {
    if row.scenario != Scenario::Watch(1) {
        return None; // only blocks that watch the same key are merged
    }
    watching(row, &merging(server, runtime, row, 32))
}

fn watching(row: &Row, sessions: &SessionManager) -> Option<Crew> {
    if !matches!(row.scenario, Scenario::Watch(_)) {
        return None;
    }
    let patient = RetryPolicy::default().attempts(u32::MAX).deadline(Duration::from_secs(60));
    let handle = sessions.transactional();
    tasks(row, |job| {
        let handle = handle.clone();
        Box::new(move |clock| {
            Box::pin(async move {
                let tries = AtomicU32::new(0);
                work!(clock, {
                    let key = job.any();
                    let first = &job.first;
                    let mut watch = handle.watch([key]).retry(patient);
                    let get = redis::cmd("GET").arg(key).take();
                    let value = watch.declare::<i64>(get).expect("a read");
                    let count: i64 = watch
                        .run(async |read, tx| {
                            tries.fetch_add(1, Ordering::Relaxed);
                            let value = read.declared(value)?;
                            tx.set(key, value + 1);
                            Ok(tx.incr(first, 1))
                        })
                        .await
                        .expect("a transaction");
                    black_box(count);
                    tries.swap(0, Ordering::Relaxed)
                })
            })
        })
    })
}

pub fn pooled(server: &Server, runtime: &Runtime, row: &Row) -> Option<Crew> {
    if row.scenario != Scenario::Get {
        return None;
    }
    let handle = sessions(server, runtime, row).pooled();
    tasks(row, |job| {
        let mut handle = handle.clone();
        Box::new(move |clock| {
            Box::pin(async move {
                work!(clock, {
                    let value: i64 = handle.get(&job.first).await.expect("GET");
                    black_box(value);
                    1
                })
            })
        })
    })
}
