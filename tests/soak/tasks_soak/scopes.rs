//! Scopes of every form, a fifth of them dropped at a random poll. The connections and tasks stay bounded, the memory stays
//! flat, and the counters on the server equal the outcomes.
//!
//! Guarantee: tasks

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rediscope::aio::{SessionManager, Transactional};
use rediscope::prelude::*;
use rediscope::{CommitError, Condition, Error, Outcome, TransactionOptions};

use super::dropped::DropAfter;
use super::{LANES, MAX_SIZE, number, runtime};
use crate::SOON;
use rediscope_testing::server::Server;
use rediscope_testing::{eventually, rss_bytes};

const WORKERS: u64 = 64;
/// Number of polls after which a future is dropped at the latest.
const MOST_POLLS: u32 = 4;
/// The allocator and the counters of the test have a share in it.
const GROWTH: u64 = 16 << 20;
/// Number of connections, and of their tasks, of both pools.
const CONNECTIONS: usize = 2 * (MAX_SIZE + LANES) as usize;

/// The outcomes of all scopes that would change the counter of a worker.
#[derive(Default)]
struct Ledger {
    committed: AtomicU64,
    nothing: AtomicU64,
    in_doubt: AtomicU64,
    dropped: AtomicU64,
}

/// What a call's result says about its two counters.
enum Came {
    Committed,
    Nothing,
    InDoubt,
}

fn came<T>(result: Result<T, Error>) -> Came {
    match result {
        Ok(_) => Came::Committed,
        Err(Error::Commit(CommitError::InDoubt(_))) => Came::InDoubt,
        Err(error) => {
            assert!(
                error.is_retryable() || matches!(error, Error::RetriesExhausted { .. }),
                "{error}"
            );
            Came::Nothing
        }
    }
}

/// One scope, which adds 1 to both counters or to none.
async fn scope(form: u8, accounts: &Transactional, keys: &[String; 3]) -> Came {
    let [one, two, watched] = keys;
    let both = |tx: &mut rediscope::Block| Ok((tx.incr(one, 1), tx.incr(two, 1)));
    match form {
        0..=2 => came(accounts.run(both).await),
        3 => {
            let once = accounts.with(TransactionOptions::new().exactly_once());
            came(once.run(both).await)
        }
        4 => {
            let begun = async {
                let mut tx = accounts.begin().await?;
                tx.incr(one, 1);
                tx.incr(two, 1);
                tx.commit().await
            };
            came(begun.await)
        }
        5 => {
            let watch = accounts.watch([watched]);
            let run = watch.run(async |read, tx| {
                let _: Option<i64> = read.get(watched).await?;
                Ok((tx.incr(one, 1), tx.incr(two, 1)))
            });
            came(run.await)
        }
        6 => {
            let by_hand = async {
                let mut watching = accounts.watch([watched]).begin().await?;
                let _: Option<i64> = watching.get(watched).await?;
                let mut tx = watching.multi();
                tx.incr(one, 1);
                tx.incr(two, 1);
                tx.commit().await
            };
            match by_hand.await {
                Ok(Outcome::Conflict) => Came::Nothing,
                other => came(other),
            }
        }
        7 => came(accounts.require(Condition::not_exists("none")).run(both).await),
        // Given up.
        8 => match accounts.begin().await {
            Ok(mut tx) => {
                tx.incr(one, 1);
                drop(tx);
                Came::Nothing
            }
            Err(error) => came(Err::<(), _>(error)),
        },
        9 => {
            let immediate = TransactionOptions::new().begin(rediscope::Begin::Immediate);
            match accounts.begin_with(immediate).await {
                Ok(mut tx) => {
                    tx.incr(one, 1);
                    drop(tx);
                    Came::Nothing
                }
                Err(error) => came(Err::<(), _>(error)),
            }
        }
        _ => match accounts.watch([watched]).begin().await {
            Ok(watching) => {
                drop(watching);
                Came::Nothing
            }
            Err(error) => came(Err::<(), _>(error)),
        },
    }
}

const FORMS: u8 = 11;

async fn worker(
    nth: u64,
    scopes: u64,
    sessions: SessionManager,
    ledger: Arc<Ledger>,
    mut random: fastrand::Rng,
) {
    let (accounts, mut db) = (sessions.transactional(), sessions.pooled());
    let keys = ["one", "two", "watched"].map(|name| format!("{name}:{nth}"));
    for _ in 0..scopes {
        let polls = if random.u8(..5) == 0 { random.u32(..MOST_POLLS) } else { u32::MAX };
        if random.u8(..8) == 0 {
            // Commands of the pooled handle are dropped as well.
            let read = async { db.get::<_, Option<u64>>(&keys[0]).await };
            if let Some(read) = DropAfter::new(polls, read).await {
                read.unwrap();
            }
            continue;
        }
        let came = DropAfter::new(polls, scope(random.u8(..FORMS), &accounts, &keys)).await;
        let count = match came {
            Some(Came::Committed) => &ledger.committed,
            Some(Came::Nothing) => &ledger.nothing,
            Some(Came::InDoubt) => &ledger.in_doubt,
            None => &ledger.dropped,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// The sums of both counters of all workers.
fn sums(server: &Server) -> [u64; 2] {
    ["one", "two"].map(|name| {
        let of = |nth| server.ask::<Option<u64>>(&["GET", &format!("{name}:{nth}")]);
        (0..WORKERS).filter_map(of).sum()
    })
}

fn scopes_of(count: u64, closes: bool) {
    let seed = rediscope_testing::soak::seed();
    let (runtime, server) = (runtime(), Server::start());
    let sessions = {
        let _runtime = runtime.enter();
        let builder = rediscope::SessionManager::builder(server.url()).max_size(MAX_SIZE);
        builder.lanes(LANES).checkout_timeout(SOON).build_async().unwrap()
    };
    let (ledger, over) = (Arc::new(Ledger::default()), AtomicBool::new(false));
    let metrics = runtime.metrics();
    let mut most = (0, 0);
    let mut memory = Vec::new();
    for round in 0..2_u64 {
        let mut random = fastrand::Rng::with_seed(seed + round);
        let spawn = |nth| {
            let each = count / 2 / WORKERS;
            let worker = worker(nth, each, sessions.clone(), Arc::clone(&ledger), random.fork());
            runtime.spawn(worker)
        };
        let workers: Vec<_> = (0..WORKERS).map(spawn).collect();
        std::thread::scope(|scope| {
            let (most, over, server, metrics) = (&mut most, &over, &server, &metrics);
            over.store(false, Ordering::Relaxed);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let tasks = metrics.num_alive_tasks().saturating_sub(WORKERS as usize);
                    *most = (most.0.max(server.clients()), most.1.max(tasks));
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
            for worker in workers {
                runtime.block_on(worker).unwrap();
            }
            over.store(true, Ordering::Relaxed);
        });
        memory.push(rss_bytes().unwrap());
    }
    let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let (committed, nothing) = (of(&ledger.committed), of(&ledger.nothing));
    let (in_doubt, dropped) = (of(&ledger.in_doubt), of(&ledger.dropped));
    println!("{committed} committed, {nothing} not, {in_doubt} in doubt, {dropped} dropped");
    println!("at most {} connections and {} tasks, memory {memory:?}", most.0, most.1);
    let status = sessions.status();
    eventually(SOON, "no connection is in use", || sessions.status().transactional.in_use == 0);
    assert!(most.0 <= CONNECTIONS && most.1 <= CONNECTIONS, "{most:?}: {status}");
    assert!(memory[1] < memory[0] + GROWTH, "{memory:?}");
    if closes {
        runtime.block_on(sessions.close(SOON));
        assert_eq!(metrics.num_alive_tasks(), 0, "after close()");
    } else {
        drop(sessions);
        eventually(SOON, "no task is left", || metrics.num_alive_tasks() == 0);
    }
    eventually(SOON, "no connection is left", || server.clients() == 0);
    let [one, two] = sums(&server);
    assert_eq!(one, two, "a transaction was applied in part");
    let possible = committed..=committed + in_doubt + dropped;
    assert!(possible.contains(&one), "{one} of {possible:?}");
}

#[test]
fn scopes_that_are_dropped_at_any_poll_leave_no_connection_and_no_task_after_close() {
    rediscope_testing::own_process!(alone);
    scopes_of(number("REDISCOPE_TASK_SCOPES", 8_000), true);
}

#[test]
fn scopes_that_are_dropped_at_any_poll_leave_no_task_after_the_last_handle() {
    rediscope_testing::own_process!(alone);
    scopes_of(number("REDISCOPE_TASK_SCOPES", 8_000), false);
}
