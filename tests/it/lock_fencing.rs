//! A transaction that is fenced by a lock is applied only while the lock is its guard's.
//!
//! Guarantee: locks

use crate::fixture::{Fixture, LONG, SOON};
use crate::locks::fixture::start;
use std::thread;
use std::time::Duration;

use crate::side::{LockGuard, SessionManager, Transactional};
use rediscope::error::Applied;
use rediscope::{Begin, CommitError, Error, TransactionOptions, prelude::*};

/// Handles fenced by the lock, whose guard has a long lease: plain, exactly once, grouped.
fn fenced(fixture: &Fixture, guard: &LockGuard) -> [Transactional; 3] {
    let once = TransactionOptions::new().exactly_once();
    let grouped = TransactionOptions::new().grouped();
    let fenced = fixture.sessions.transactional().fenced_by(guard);
    [fenced.clone(), fenced.with(once), fenced.with(grouped)]
}

fn acquire(sessions: &SessionManager) -> LockGuard {
    sessions.lock("l").lease(LONG).acquire(SOON).unwrap()
}

#[track_caller]
fn lock_lost<T: std::fmt::Debug>(result: Result<T, Error>) {
    match result {
        Err(Error::Commit(error)) if matches!(error, CommitError::LockLost) => {
            assert_eq!((error.applied(), error.is_retryable()), (Applied::No, false));
        }
        other => panic!("the lock is not lost: {other:?}"),
    }
}

impl Fixture {
    fn written(&self) -> i64 {
        self.server.ask::<Option<i64>>(&["GET", "n"]).unwrap_or_default()
    }

    /// The lock is given to another client, and its holder is not notified.
    fn taken_by(&self, other: &SessionManager) -> LockGuard {
        other.lock("l").force_release().unwrap();
        acquire(other)
    }
}

#[test]
fn while_the_lock_is_held_everything_is_applied() {
    let fixture = start();
    let guard = acquire(&fixture.sessions);
    for handle in fenced(&fixture, &guard) {
        let before = fixture.written();
        handle.run(|tx| Ok(tx.incr("n", 1))).unwrap();
        let mut tx = handle.begin().unwrap();
        tx.incr("n", 1);
        tx.commit().unwrap();
        handle.watch(["w"]).run(|_, tx| Ok(tx.incr("n", 1))).unwrap();
        let large = "x".repeat(100_000);
        handle
            .run(|tx| {
                tx.set("large", &large);
                Ok(tx.incr("n", 1))
            })
            .unwrap();
        assert_eq!(fixture.written() - before, 4);
    }
    guard.release().unwrap();
    assert_eq!(fixture.sessions.status().transactional.in_use, 0);
}

#[test]
fn of_a_lost_lock_nothing_is_applied() {
    let fixture = start();
    let other = fixture.other();
    for nth in 0..3 {
        let guard = acquire(&fixture.sessions);
        let handle = &fenced(&fixture, &guard)[nth];
        let theirs = fixture.taken_by(&other);
        let mut tx = handle.begin().unwrap();
        tx.incr("n", 1);
        assert!(!guard.is_lost(), "nothing has been heard of it yet");
        assert!(matches!(tx.commit(), Err(Error::Commit(CommitError::LockLost))));
        lock_lost(handle.run(|tx| Ok(tx.incr("n", 1))));
        lock_lost(handle.begin().map(drop));
        let mut ran = false;
        let watched = handle.watch(["w"]).run(|_, tx| {
            ran = true;
            Ok(tx.incr("n", 1))
        });
        lock_lost(watched);
        assert!(!ran, "its closure had nothing to decide");
        assert_eq!(fixture.written(), 0);
        // And by the clock, or a release, without a question.
        let _ = guard.release();
        theirs.release().unwrap();
        lock_lost(handle.run(|tx| Ok(tx.incr("n", 1))));
        assert_eq!(fixture.written(), 0);
        let handles = fixture.sessions.transactional();
        handles.run(|tx| Ok(tx.exists("n"))).unwrap();
    }
}

/// Every form of a commit that can find the lock lost.
type Form = fn(&Transactional) -> Result<(), Error>;

const FORMS: [(&str, Form); 6] = [
    ("run", |handle| handle.run(|tx| Ok(tx.incr("n", 1))).map(drop)),
    ("guard", |handle| {
        let mut tx = handle.begin()?;
        tx.incr("n", 1);
        tx.commit()?;
        Ok(())
    }),
    ("large", |handle| {
        handle.run(|tx| {
            tx.set("large", "x".repeat(100_000));
            Ok(tx.incr("n", 1))
        })?;
        Ok(())
    }),
    ("watch run", |handle| handle.watch(["w"]).run(|_, tx| Ok(tx.incr("n", 1))).map(drop)),
    ("watch guard", |handle| {
        let mut tx = handle.watch(["w"]).begin()?.multi();
        tx.incr("n", 1);
        assert!(!tx.commit()?.is_conflict());
        Ok(())
    }),
    ("immediate", |handle| {
        let immediate = handle.with(TransactionOptions::new().begin(Begin::Immediate));
        immediate.run(|tx| Ok(tx.incr("n", 1))).map(drop)
    }),
];

#[test]
fn a_commit_that_finds_the_lock_lost_makes_its_guard_lost_at_once() {
    let fixture = start();
    let other = fixture.other();
    for (name, form) in FORMS {
        for nth in 0..3 {
            let guard = acquire(&fixture.sessions);
            let handle = fenced(&fixture, &guard)[nth].clone();
            let (lost, heard) = std::sync::mpsc::channel();
            guard.on_lost(move || lost.send(()).unwrap());
            form(&handle).unwrap();
            let before = fixture.written();
            let theirs = fixture.taken_by(&other);
            assert!(!guard.is_lost(), "{name}: nothing has been heard of it yet");
            let reported = form(&handle);
            assert!(guard.is_lost(), "{name}");
            assert_eq!(guard.remaining(), Duration::ZERO, "{name}");
            heard.recv_timeout(SOON).unwrap();
            lock_lost(reported);
            assert_eq!(fixture.written(), before, "{name}");
            crate::locks::fixture::is_lost(guard.release());
            theirs.release().unwrap();
        }
    }
    assert_eq!(fixture.locks().held, 0);
}

#[test]
fn a_lock_that_is_lost_after_its_check_is_noticed_by_exec() {
    let fixture = start();
    let other = fixture.other();
    let immediate = TransactionOptions::new().begin(Begin::Immediate);
    for nth in 0..3 {
        let guard = acquire(&fixture.sessions);
        let handle = &fenced(&fixture, &guard)[nth];
        let mut tx = handle.begin_with(immediate.clone()).unwrap();
        tx.incr("n", 1);
        let theirs = fixture.taken_by(&other);
        assert!(matches!(tx.commit(), Err(Error::Commit(CommitError::LockLost))));
        theirs.release().unwrap();

        let guard = acquire(&fixture.sessions);
        let handle = &fenced(&fixture, &guard)[nth];
        let mut theirs = None;
        let watched = handle.watch(["w"]).run(|_, tx| {
            theirs.get_or_insert_with(|| fixture.taken_by(&other));
            Ok(tx.incr("n", 1))
        });
        lock_lost(watched);
        assert_eq!(fixture.written(), 0);
    }
}

#[test]
fn an_extension_in_between_is_no_conflict() {
    let fixture = start();
    let guard = acquire(&fixture.sessions);
    let immediate = TransactionOptions::new().begin(Begin::Immediate);
    for handle in fenced(&fixture, &guard) {
        let mut tx = handle.begin_with(immediate.clone()).unwrap();
        let n = tx.incr("n", 1);
        guard.ensure_held().unwrap();
        let replies = tx.commit().unwrap();
        assert_eq!(replies.get(n).unwrap(), fixture.written());
    }
    assert_eq!(fixture.written(), 3);
}

#[test]
fn renewal_waits_for_a_watching_transaction() {
    let fixture = start();
    let lease = Duration::from_secs(3);
    let guard = fixture.sessions.lock("l").lease(lease).acquire(SOON).unwrap();
    let handle = fixture.sessions.transactional().fenced_by(&guard);
    let mut watching = handle.watch(["w"]).begin().unwrap();
    let _: Option<i64> = watching.get("w").unwrap();
    thread::sleep(lease / 2);
    assert_eq!(fixture.locks().renewals, 0);
    let mut tx = watching.multi();
    tx.incr("n", 1);
    assert!(!tx.commit().unwrap().is_conflict());
    rediscope_testing::eventually(SOON, "then it is extended", || fixture.locks().renewals > 0);
    assert!(!guard.is_lost());
}

#[test]
fn no_write_of_an_old_holder_lands_behind_one_of_a_new_holder() {
    let fixture = start();
    let others = [fixture.other(), fixture.other(), fixture.other(), fixture.other()];
    let refused: usize = thread::scope(|scope| {
        let spawn = |sessions| {
            scope.spawn(move || {
                let sessions: &SessionManager = sessions;
                let lock = sessions.lock("l").lease(Duration::from_millis(20)).fixed_lease();
                let mut refused = 0;
                for _ in 0..40 {
                    let guard = lock.acquire(SOON).unwrap();
                    // About half of them are late.
                    thread::sleep(Duration::from_millis(fastrand::u64(5..30)));
                    let fenced = sessions.transactional().fenced_by(&guard);
                    let token = guard.fencing_token();
                    match fenced.run(|tx| Ok(tx.rpush("tokens", token))) {
                        Ok(_) => {}
                        Err(error) => {
                            assert_eq!(error.applied(), Applied::No, "{error}");
                            refused += 1;
                        }
                    }
                }
                refused
            })
        };
        let threads: Vec<_> = others.iter().map(spawn).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    let tokens: Vec<u64> = fixture.server.ask(&["LRANGE", "tokens", "0", "-1"]);
    assert!(tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
    assert_eq!(tokens.len() + refused, 160);
    assert!(refused > 0, "no write was late");
}
