//! What a session manager reports to the `metrics` facade: names, kinds, units and labels, and the numbers
//! after events that a real server has seen.
//!
//! Guarantee: reports

pub(crate) mod recorder;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::fixture::short_timeouts::short_timeouts;
use crate::fixture::{Fixture, LONG, SOON};
use crate::side::{BuildSide as _, SessionManager};
use recorder::{Panics, Seen};
use rediscope::error::CheckoutError;
use rediscope::{Builder, CommitError, Condition, Error, TransactionOptions, prelude::*};

use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Trigger};
use rediscope_testing::sentinel::{Group, NAME};
use rediscope_testing::server::Server;

/// Each metric: its name, kind, unit, and the labels besides the pool's name.
const METRICS: &[(&str, &str, &str, &[&str])] = &[
    ("db.client.connection.count", "gauge", "count", &["db.client.connection.state"]),
    ("db.client.connection.create_time", "histogram", "seconds", &[]),
    ("db.client.connection.idle.min", "gauge", "count", &[]),
    ("db.client.connection.max", "gauge", "count", &[]),
    ("db.client.connection.pending_requests", "gauge", "count", &[]),
    ("db.client.connection.timeouts", "counter", "count", &[]),
    ("db.client.connection.use_time", "histogram", "seconds", &[]),
    ("db.client.connection.wait_time", "histogram", "seconds", &[]),
    ("rediscope.lock.acquire_time", "histogram", "seconds", &[]),
    ("rediscope.lock.held", "gauge", "count", &[]),
    ("rediscope.lock.lost", "counter", "count", &[]),
    ("rediscope.lock.waiting", "gauge", "count", &[]),
    ("rediscope.transaction.attempts", "histogram", "count", &[]),
    ("rediscope.transaction.duration", "histogram", "seconds", &[]),
    ("rediscope.transaction.outcomes", "counter", "count", &["rediscope.outcome"]),
];

const POOL: &str = "db.client.connection.pool.name";

/// One connection a pool, levels that are reported often, and the name `orders`.
fn orders(builder: Builder) -> Builder {
    let builder = short_timeouts(builder.max_size(1).trust_window(LONG));
    builder.pin_warning(Some(Duration::from_millis(20))).pool_name("orders")
}

fn start() -> (Seen, Fixture) {
    let seen = Seen::default();
    let fixture = ::metrics::with_local_recorder(&seen, || Fixture::new(orders));
    (seen, fixture)
}

#[test]
fn names_kinds_units_and_labels_are_those_that_the_documents_state() {
    let (seen, fixture) = start();
    fixture.sessions.transactional().run(|tx| Ok(tx.incr("n", 1))).unwrap();
    let mut found: Vec<_> = seen.metrics().into_iter().collect();
    found.sort();
    let labels = |own: &[&str]| {
        let mut labels: Vec<_> = own.iter().copied().chain([POOL]).map(str::to_owned).collect();
        labels.sort();
        labels
    };
    let expected: Vec<_> = METRICS
        .iter()
        .map(|(name, kind, unit, own)| {
            ((*name).to_owned(), (*kind).to_owned(), (*unit).to_owned(), labels(own))
        })
        .collect();
    assert_eq!(found, expected);
    let pools: BTreeSet<_> = seen.values_of(POOL);
    assert_eq!(
        pools,
        ["orders/locks", "orders/pooled", "orders/transactional"].map(String::from).into()
    );

    let page = std::fs::read_to_string("docs/operations.md").unwrap();
    let page: BTreeSet<_> = page.split('`').collect();
    for (name, ..) in METRICS {
        assert!(page.contains(name), "docs/operations.md does not name {name}");
    }
}

#[test]
fn transactions_and_locks_are_reported_for_their_own_pool_alone() {
    let (seen, _fixture) = start();
    for (name, series) in [("outcomes", 15), ("attempts", 1), ("duration", 1)] {
        let name = format!("rediscope.transaction.{name}");
        assert_eq!(seen.series(&name), vec!["orders/transactional"; series], "{name}");
    }
    for name in ["held", "waiting", "acquire_time", "lost"] {
        let name = format!("rediscope.lock.{name}");
        assert_eq!(seen.series(&name), ["orders/locks"], "{name}");
    }
}

#[test]
fn the_dashboard_uses_each_metric_and_no_other() {
    let dashboard = std::fs::read_to_string("docs/dashboard.json").unwrap();
    serde_json::from_str::<serde_json::Value>(&dashboard).unwrap();
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let used: BTreeSet<_> = dashboard
        .split(|c| !is_name(c))
        .filter(|word| word.starts_with("db_client_connection_") || word.starts_with("rediscope_"))
        .map(|word| word.trim_end_matches("_bucket").trim_end_matches("_sum"))
        .map(|word| {
            word.strip_suffix("attempts_count").map_or(word, |_| "rediscope_transaction_attempts")
        })
        .collect();
    let names =
        METRICS.iter().flat_map(|(name, _, _, own)| [*name].into_iter().chain(own.iter().copied()));
    let names: BTreeSet<_> = names.chain([POOL]).map(|name| name.replace('.', "_")).collect();
    assert_eq!(used, names.iter().map(String::as_str).collect());
}

#[test]
fn a_pool_that_is_dry_has_pending_requests_and_timeouts() {
    let (seen, fixture) = start();
    let handle = fixture.sessions.transactional();
    let level = |name| seen.level(name, "orders/transactional");
    let held = handle.begin().unwrap();
    eventually(SOON, "one connection is in use", || {
        seen.connections("used", "orders/transactional") == 1
    });
    assert_eq!(seen.values("db.client.connection.create_time", "orders/transactional").len(), 1);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let mut timeouts = 0;
            while !stop.load(Ordering::Relaxed) || timeouts == 0 {
                let refused = handle.begin().unwrap_err();
                assert!(matches!(refused, Error::Checkout(CheckoutError::Timeout(_))), "{refused}");
                timeouts += 1;
            }
            timeouts
        });
        eventually(SOON, "one call waits", || level("db.client.connection.pending_requests") == 1);
        stop.store(true, Ordering::Relaxed);
        let timeouts = waiting.join().unwrap();
        assert_eq!(seen.count("db.client.connection.timeouts", "orders/transactional"), timeouts);
    });
    assert_eq!(seen.count("db.client.connection.timeouts", "orders/pooled"), 0);
    held.discard().unwrap();
    crate::side::settled(&fixture.sessions);
    eventually(SOON, "none waits", || level("db.client.connection.pending_requests") == 0);
    eventually(SOON, "it is idle", || seen.connections("idle", "orders/transactional") == 1);
    assert_eq!(level("db.client.connection.max"), 1);
    assert_eq!(level("db.client.connection.idle.min"), 0);
    let uses = seen.values("db.client.connection.use_time", "orders/transactional");
    let waits = seen.values("db.client.connection.wait_time", "orders/transactional");
    assert_eq!((uses.len(), waits.len()), (1, 1), "{uses:?} {waits:?}");
    assert!(uses[0] > 0.0 && uses[0] < 3_600.0, "seconds: {uses:?}");
}

/// A loop of a task ends with its commit, or when it is dropped, and not with an attempt.
#[cfg(feature = "tokio")]
#[test]
fn a_loop_that_a_task_writes_has_one_outcome() {
    use std::time::Instant;

    use rediscope::{Outcome, RetryPolicy, aio};
    use rediscope_testing::tasks::{poll_once, single};

    let (seen, server) = (Seen::default(), Server::start());
    let sessions = ::metrics::with_local_recorder(&seen, || {
        orders(aio::SessionManager::builder(server.url())).build_async().unwrap()
    });
    let handle = sessions.transactional();
    let outcomes = || {
        ["committed", "conflict", "discarded"]
            .map(|outcome| seen.outcomes(outcome, "orders/transactional"))
    };
    single().block_on(async {
        let mut tries = handle.watch(["n"]).tries();
        drop(tries.next().await.unwrap());
        assert_eq!(outcomes(), [0, 0, 0], "another attempt may follow");
        let mut attempt = tries.next().await.unwrap();
        let _ = attempt.set("n", 1);
        server.ask::<()>(&["SET", "n", "5"]);
        assert!(matches!(attempt.commit().await.unwrap(), Outcome::Conflict));
        assert_eq!(outcomes(), [0, 0, 0], "another attempt may follow");
        let mut attempt = tries.next().await.unwrap();
        let _ = attempt.set("n", 1);
        assert!(matches!(attempt.commit().await.unwrap(), Outcome::Committed(_)));
        drop(tries);
        assert_eq!(outcomes(), [1, 0, 0]);

        let mut tries = handle.watch(["n"]).tries();
        let mut attempt = tries.next().await.unwrap();
        let _ = attempt.set("n", 1);
        server.ask::<()>(&["SET", "n", "5"]);
        assert!(matches!(attempt.commit().await.unwrap(), Outcome::Conflict));
        drop(tries);
        assert_eq!(outcomes(), [1, 1, 0]);

        let mut tries = handle.watch(["n"]).tries();
        drop(tries.next().await.unwrap());
        drop(tries);
        drop(handle.watch(["n"]).tries());
        assert_eq!(outcomes(), [1, 1, 1]);

        // Dropped behind EXEC, it may be applied.
        let mut tries = handle.watch(["n"]).tries();
        let mut attempt = tries.next().await.unwrap();
        let _ = attempt.set("n", 7);
        let mut commit = Box::pin(attempt.commit());
        assert!(poll_once(commit.as_mut()).is_pending());
        let begun = Instant::now();
        while server.ask::<i64>(&["GET", "n"]) != 7 {
            assert!(begun.elapsed() < SOON, "EXEC was not sent");
            tokio::task::yield_now().await;
        }
        drop(commit);
        drop(tries);
        assert_eq!(outcomes(), [1, 1, 1]);

        // What follows a commit is a run of its own.
        let policy = RetryPolicy::default().attempts(1);
        let mut tries = handle.watch(["n"]).retry(policy).tries();
        for commits in 2..4 {
            let mut attempt = tries.next().await.unwrap();
            assert_eq!(attempt.number(), 1);
            let _ = attempt.set("n", 1);
            assert!(matches!(attempt.commit().await.unwrap(), Outcome::Committed(_)));
            assert_eq!(outcomes(), [commits, 1, 1]);
        }
        let mut attempt = tries.next().await.unwrap();
        let _ = attempt.set("n", 1);
        server.ask::<()>(&["SET", "n", "5"]);
        let error = attempt.commit().await.unwrap_err();
        assert!(matches!(error, Error::RetriesExhausted { attempts: 1, .. }), "{error}");
        let error = tries.next().await.unwrap_err();
        assert!(matches!(error, Error::RetriesExhausted { .. }), "{error}");
        drop(tries);
        assert_eq!(outcomes(), [3, 2, 1]);
    });
}

#[test]
fn transactions_are_counted_by_their_last_outcome_with_their_attempts() {
    let (seen, fixture) = start();
    let handle = fixture.sessions.transactional();
    let outcomes = |outcome| seen.outcomes(outcome, "orders/transactional");
    handle.run(|tx| Ok(tx.incr("n", 1))).unwrap();
    assert_eq!(outcomes("committed"), 1);

    // The first attempt meets a conflict.
    let first = AtomicBool::new(true);
    let written = handle.watch(["n"]).run(|read, tx| {
        let n: i64 = read.get("n")?;
        if first.swap(false, Ordering::Relaxed) {
            fixture.server.ask::<i64>(&["INCR", "n"]);
        }
        Ok(tx.set("n", n + 1))
    });
    written.unwrap();
    assert_eq!((outcomes("committed"), outcomes("conflict")), (2, 0));
    let attempts = seen.values("rediscope.transaction.attempts", "orders/transactional");
    assert_eq!(attempts, [1.0, 2.0]);

    handle.begin().unwrap().discard().unwrap();
    assert_eq!(outcomes("discarded"), 1);
    let refused = handle.require(Condition::at_least("n", 1_000)).run(|tx| Ok(tx.incr("n", 1)));
    assert!(matches!(refused, Err(Error::ConditionFailed { .. })), "{refused:?}");
    assert_eq!((outcomes("condition failed"), outcomes("discarded")), (1, 1));

    // A transaction whose key was committed before, found with the commit and with WATCH.
    let once = TransactionOptions::new().exactly_once_as("once", Duration::from_secs(60));
    let once = handle.with(once);
    once.run(|tx| Ok(tx.incr("n", 1))).unwrap();
    let again = [
        once.run(|tx| Ok(tx.incr("n", 1))),
        once.watch(["n"]).run(|_, tx| Ok(tx.incr("n", 1))),
        once.require(Condition::exists("n")).run(|tx| Ok(tx.incr("n", 1))),
    ];
    for again in again {
        assert!(matches!(again, Err(Error::Commit(CommitError::AlreadyCommitted))), "{again:?}");
    }
    assert_eq!((outcomes("already committed"), outcomes("discarded")), (3, 1));

    // An attempt that is followed by another one is not the last.
    let first = AtomicBool::new(true);
    let taken = handle.watch(["n"]).run(|read, tx| {
        if first.swap(false, Ordering::Relaxed) {
            return Err(read.run_again());
        }
        Ok(tx.incr("n", 1))
    });
    taken.unwrap();
    assert_eq!((outcomes("committed"), outcomes("discarded")), (4, 1));

    let mut tx = handle.begin().unwrap();
    tx.incr("n", 1);
    fixture.arm(Trigger::BeforeReplyTo("EXEC"), Fault::Cut);
    let doubt = tx.commit();
    assert!(matches!(doubt, Err(Error::Commit(CommitError::InDoubt(_)))), "{doubt:?}");
    assert_eq!(outcomes("in doubt"), 1);
    let durations = seen.values("rediscope.transaction.duration", "orders/transactional");
    assert_eq!(durations.len(), 6, "{durations:?}");
}

#[test]
fn locks_that_are_held_waited_for_and_lost_are_reported() {
    let (seen, fixture) = start();
    let level = |name| seen.level(name, "orders/locks");
    let lock = fixture.sessions.lock("l").lease(LONG);
    let guard = lock.acquire(SOON).unwrap();
    eventually(SOON, "it is held", || level("rediscope.lock.held") == 1);
    assert_eq!(seen.values("rediscope.lock.acquire_time", "orders/locks").len(), 1);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| fixture.sessions.lock("l").acquire(SOON).unwrap());
        eventually(SOON, "a call waits", || level("rediscope.lock.waiting") == 1);
        guard.release().unwrap();
        let second = waiting.join().unwrap();
        fixture.server.ask::<i64>(&["DEL", "rediscope:lock:{l}"]);
        second.release().unwrap_err();
    });
    assert_eq!(seen.count("rediscope.lock.lost", "orders/locks"), 1);
    eventually(SOON, "none is held", || level("rediscope.lock.held") == 0);
    eventually(SOON, "none waits", || level("rediscope.lock.waiting") == 0);
    assert_eq!(seen.values("rediscope.lock.acquire_time", "orders/locks").len(), 2);
}

#[test]
fn a_recorder_that_panics_changes_no_outcome_and_costs_no_connection() {
    let panics = Panics { _state: 0 };
    let limit = Duration::from_millis(200);
    let build = || Fixture::new(|builder| orders(builder).max_pin_time(limit));
    let fixture = ::metrics::with_local_recorder(&panics, build);
    let handle = fixture.sessions.transactional();
    for n in 1..=3 {
        assert_eq!(handle.run(|tx| Ok(tx.incr("n", 1))).unwrap(), n);
    }
    handle.watch(["n"]).run(|_, tx| Ok(tx.incr("n", 1))).unwrap();
    // A second panic would end the process.
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _guard = handle.begin().unwrap();
        panic!("the caller's own");
    }));
    panicked.unwrap_err();
    // The thread that reports levels reclaims scopes as before.
    std::mem::forget(handle.begin().unwrap());
    let timeout = handle.with(TransactionOptions::new().within(Duration::from_millis(1)));
    let refused = timeout.begin().unwrap_err();
    assert!(matches!(refused, Error::Checkout(CheckoutError::Timeout(_))), "{refused}");
    eventually(SOON, "it is reclaimed", || fixture.sessions.status().transactional.in_use == 0);
    assert_eq!(handle.run(|tx| Ok(tx.incr("n", 1))).unwrap(), 5);
    fixture.sessions.lock("l").acquire(SOON).unwrap().release().unwrap();
    crate::side::settled(&fixture.sessions);
}

#[test]
fn managers_of_one_name_add_up_and_leave_nothing() {
    let seen = Seen::default();
    let server = Server::start();
    let build = || orders(SessionManager::builder(server.url())).build_side().unwrap();
    let managers = ::metrics::with_local_recorder(&seen, || [build(), build()]);
    let max = || seen.level("db.client.connection.max", "orders/pooled");
    eventually(SOON, "both are reported", || max() == 2);
    drop(managers);
    eventually(SOON, "none is left", || max() == 0);
}

#[test]
fn without_a_name_the_address_is_it_without_user_and_password() {
    let seen = Seen::default();
    let build =
        || SessionManager::builder("redis://app:secret@127.0.0.1:1/3").build_side().unwrap();
    let sessions = ::metrics::with_local_recorder(&seen, build);
    let pools: Vec<_> = seen.values_of(POOL).into_iter().collect();
    assert_eq!(pools, ["127.0.0.1:1/locks", "127.0.0.1:1/pooled", "127.0.0.1:1/transactional"]);
    drop(sessions);
}

#[test]
fn the_pool_of_the_replicas_has_the_name_of_the_others() {
    let (seen, group) = (Seen::default(), Group::start());
    let sessions = ::metrics::with_local_recorder(&seen, || {
        let sessions = SessionManager::connect(group.url()).unwrap();
        // The master's address is known from here on.
        sessions.pooled().set::<_, _, ()>("key", 1).unwrap();
        drop(sessions.replica_reads());
        sessions
    });
    let pools = ["locks", "pooled", "replicas", "transactional"];
    assert_eq!(seen.values_of(POOL), pools.map(|pool| format!("{NAME}/{pool}")).into());
    drop(sessions);
}

/// The parent's server, in the child.
const SERVER: &str = "REDISCOPE_TEST_MEASURED";

/// In a process of its own, because a program has one recorder.
#[test]
fn a_recorder_that_is_installed_later_is_found() {
    if let Ok(server) = std::env::var(SERVER) {
        let sessions = orders(SessionManager::builder(server)).build_side().unwrap();
        sessions.transactional().run(|tx| Ok(tx.incr("n", 1))).unwrap();
        let seen = Seen::default();
        ::metrics::set_global_recorder(seen.clone()).unwrap();
        eventually(SOON, "the levels are reported", || {
            seen.level("db.client.connection.max", "orders/transactional") == 1
        });
        sessions.transactional().run(|tx| Ok(tx.incr("n", 1))).unwrap();
        println!("committed since: {}", seen.outcomes("committed", "orders/transactional"));
        return;
    }
    let server = Server::start();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "measured::a_recorder_that_is_installed_later_is_found", "--nocapture"])
        .env(SERVER, server.url())
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&child.stdout);
    assert!(output.contains("committed since: 1\n"), "{output}");
}
