//! One holder at a time.
//!
//! Guarantee: locks

use crate::fixture::{LONG, SOON};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use crate::side::SessionManager;
use rediscope::Error;
use rediscope::error::{Applied, LockError};

use super::fixture::{is_lost, start, timed_out};
use rediscope_testing::{eventually, in_time};

#[test]
fn no_two_threads_hold_a_lock_at_once_and_tokens_grow_in_the_order_of_holding() {
    let fixture = start();
    let (inside, tokens) = (AtomicU32::new(0), Mutex::new(Vec::new()));
    let others = [fixture.other(), fixture.other()];
    thread::scope(|scope| {
        for nth in 0..8 {
            let sessions = &others[nth % 2];
            let (inside, tokens) = (&inside, &tokens);
            scope.spawn(move || {
                for _ in 0..25 {
                    let guard = sessions.lock("l").acquire(SOON).unwrap();
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two hold it");
                    tokens.lock().unwrap().push(guard.fencing_token());
                    assert_eq!(inside.fetch_sub(1, Ordering::SeqCst), 1);
                    guard.release().unwrap();
                }
            });
        }
    });
    let tokens = tokens.into_inner().unwrap();
    assert_eq!(tokens.len(), 200);
    assert!(tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
    assert_eq!(fixture.holders(), 0);
    for sessions in others {
        let locks = sessions.status().locks;
        assert_eq!((locks.held, locks.waiting, locks.permits, locks.lost), (0, 0, 0, 0));
    }
}

#[test]
fn a_token_is_larger_than_any_before_also_when_the_counter_is_gone() {
    let fixture = start();
    let lock = fixture.sessions.lock("l");
    let first = lock.try_acquire().unwrap().unwrap().fencing_token();
    fixture.server.ask::<i64>(&["DEL", "rediscope:fence"]);
    let second = fixture.sessions.lock("m").try_acquire().unwrap().unwrap().fencing_token();
    assert!(second > first);
    let ahead = second + 1_000_000_000_000;
    fixture.server.ask::<()>(&["SET", "rediscope:fence", &ahead.to_string()]);
    let third = lock.try_acquire().unwrap().unwrap().fencing_token();
    assert_eq!(third, ahead + 1, "though the server's clock was set back");
}

#[test]
fn a_lock_is_released_when_its_guard_is_dropped_returned_or_lost_in_a_panic() {
    let fixture = start();
    let lock = fixture.sessions.lock("l");
    let guard = lock.try_acquire().unwrap().unwrap();
    assert_eq!(fixture.holders(), 1);
    drop(guard);
    assert_eq!(fixture.holders(), 0);
    lock.try_acquire().unwrap().unwrap().release().unwrap();
    assert_eq!(fixture.holders(), 0);
    let held = lock.clone();
    let panicked = thread::spawn(move || {
        let _guard = held.try_acquire().unwrap().unwrap();
        std::panic::resume_unwind(Box::new("on purpose"));
    });
    assert!(panicked.join().is_err());
    assert_eq!(fixture.holders(), 0);
    let left: Vec<String> = fixture.server.ask(&["KEYS", "*{l}*"]);
    assert!(left.iter().all(|key| key.contains(":done:")), "{left:?}");
    for key in left {
        assert!(fixture.server.ask::<i64>(&["PTTL", &key]) > 0, "it goes by itself");
    }
}

#[test]
fn a_guard_is_released_from_any_thread() {
    let fixture = start();
    let guard = fixture.sessions.lock("l").try_acquire().unwrap().unwrap();
    thread::spawn(move || guard.release()).join().unwrap().unwrap();
    assert_eq!(fixture.holders(), 0);
}

#[test]
fn a_held_lock_is_given_to_no_other_caller_and_a_timeout_names_its_holder() {
    let fixture = start();
    let lock = fixture.sessions.lock("l").lease(LONG);
    let guard = lock.clone().label("worker 7").try_acquire().unwrap().unwrap();
    assert!(lock.try_acquire().unwrap().is_none());
    let timeout = lock.acquire(Duration::from_millis(20)).unwrap_err();
    let Error::Lock(LockError::Timeout { waited, holder: Some(holder), .. }) = &timeout else {
        panic!("{timeout:?}");
    };
    assert!(*waited >= Duration::from_millis(20));
    assert_eq!(holder.label.as_deref(), Some("worker 7"));
    assert!(holder.remaining > LONG / 2 && holder.remaining <= LONG);
    assert!(timeout.to_string().contains("held by \"worker 7\""), "{timeout}");
    assert_eq!((timeout.applied(), timeout.is_retryable()), (Applied::No, true));
    assert!(lock.is_locked().unwrap());
    assert_eq!(lock.holder().unwrap().unwrap().label.as_deref(), Some("worker 7"));
    guard.release().unwrap();
    assert!(!lock.is_locked().unwrap());
    assert!(lock.holder().unwrap().is_none());
    assert_eq!((fixture.locks().waiting, fixture.locks().permits), (0, 0));
}

#[test]
fn a_second_guard_of_a_hold_keeps_it_until_both_are_gone() {
    let fixture = start();
    let lock = fixture.sessions.lock("l");
    let guard = lock.try_acquire().unwrap().unwrap();
    let again = guard.share();
    assert_eq!(again.fencing_token(), guard.fencing_token());
    timed_out(lock.acquire(Duration::from_millis(1)));
    guard.release().unwrap();
    assert_eq!((fixture.holders(), fixture.locks().held), (1, 1));
    again.ensure_held().unwrap();
    again.release().unwrap();
    assert_eq!((fixture.holders(), fixture.locks().held), (0, 0));
}

#[test]
fn a_forced_lock_is_lost_and_its_old_guard_releases_no_other_lock() {
    let fixture = start();
    let lock = fixture.sessions.lock("l");
    let old = lock.try_acquire().unwrap().unwrap();
    assert!(lock.force_release().unwrap());
    assert!(!lock.force_release().unwrap(), "it has no holder now");
    let new = lock.try_acquire().unwrap().unwrap();
    is_lost(old.ensure_held());
    assert!(old.is_lost() && old.remaining().is_zero());
    is_lost(old.release());
    assert_eq!(fixture.holders(), 1);
    new.ensure_held().unwrap();
    let older = new;
    lock.force_release().unwrap();
    let newer = lock.try_acquire().unwrap().unwrap();
    is_lost(older.release());
    newer.release().unwrap();
    assert_eq!(fixture.locks().lost, 2);
}

#[test]
fn a_lease_ends_on_the_server_by_itself() {
    let fixture = start();
    let lock = fixture.sessions.lock("l").lease(Duration::from_millis(50)).fixed_lease();
    std::mem::forget(lock.acquire(SOON).unwrap());
    let next = fixture.sessions.lock("l").acquire(SOON).unwrap();
    next.release().unwrap();
    assert_eq!(
        fixture.server.ask::<i64>(&["EXISTS", "rediscope:lock:{l}", "rediscope:lock:{l}:info"]),
        0
    );
}

#[test]
fn arguments_that_cannot_work_are_refused_before_anything_is_sent() {
    let sessions = SessionManager::connect("redis://127.0.0.1:1/").unwrap();
    let refused = |lock: crate::side::Lock| match lock.try_acquire() {
        Err(Error::Lock(LockError::Refused { setting, .. })) => setting,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(sessions.lock("")), "name");
    assert_eq!(refused(sessions.rw_lock("").read()), "name");
    assert_eq!(refused(sessions.semaphore("s", 0)), "permits");
    assert_eq!(refused(sessions.lock("l").lease(Duration::from_millis(1))), "lease");
    assert_eq!(refused(sessions.lock("l").lease(Duration::MAX)), "lease");
    assert_eq!(refused(sessions.lock("l").label("x".repeat(257))), "label");
    assert!(matches!(sessions.lock("").is_locked(), Err(Error::Lock(LockError::Refused { .. }))));
    assert_eq!(sessions.status().pooled.counts.connect_failures, 0);
}

#[test]
fn run_releases_and_returns_the_first_error() {
    let fixture = start();
    let lock = fixture.sessions.lock("l");
    assert!(lock.run(SOON, |guard| Ok(guard.fencing_token())).unwrap() > 0);
    assert_eq!(fixture.holders(), 0);
    let own = lock.run(SOON, |_| {
        lock.force_release()?;
        Err::<(), _>(Error::NoKeys)
    });
    assert!(matches!(own, Err(Error::NoKeys)), "{own:?}");
    let lost = lock.run(SOON, |_| lock.force_release()).unwrap_err();
    assert!(matches!(lost.as_lock(), Some(LockError::Lost { .. })), "{lost:?}");
    assert_eq!((lost.applied(), lost.is_retryable()), (Applied::No, false));
}

#[test]
fn scripts_that_the_server_has_forgotten_are_sent_again() {
    let fixture = start();
    let lock = fixture.sessions.lock("l");
    for _ in 0..2 {
        fixture.server.ask::<()>(&["SCRIPT", "FLUSH"]);
        let guard = lock.try_acquire().unwrap().unwrap();
        fixture.server.ask::<()>(&["SCRIPT", "FLUSH"]);
        guard.ensure_held().unwrap();
        fixture.server.ask::<()>(&["SCRIPT", "FLUSH"]);
        guard.release().unwrap();
    }
    drop(lock.try_acquire().unwrap());
    fixture.server.reset_stats();
    lock.try_acquire().unwrap().unwrap().release().unwrap();
    assert_eq!((fixture.server.calls("eval"), fixture.server.calls("evalsha")), (0, 2));
}

#[test]
fn no_key_of_a_lock_lives_for_ever_but_the_counter() {
    let fixture = start();
    for family in 0..3 {
        for nth in 0..20 {
            let name = format!("{family}-{nth}");
            let lock = match family {
                0 => fixture.sessions.lock(name),
                1 => fixture.sessions.semaphore(name, 2).fair(),
                _ => fixture.sessions.rw_lock(name).write(),
            };
            drop(lock.try_acquire().unwrap().unwrap());
        }
    }
    let keys: Vec<String> = fixture.server.ask(&["KEYS", "rediscope:*"]);
    let eternal = |key: &&String| fixture.server.ask::<i64>(&["PTTL", key]) == -1;
    let eternal: Vec<_> = keys.iter().filter(eternal).collect();
    assert_eq!(eternal, ["rediscope:fence"]);
}

crate::side::threads_only! {
    #[test]
    fn no_thread_survives_the_last_handle_and_a_guard_works_without_the_manager() {
        rediscope_testing::own_process!();
        let fixture = start();
        let sessions = fixture.other();
        let guard = sessions.lock("l").try_acquire().unwrap().unwrap();
        let waiting = sessions.lock("l");
        let waiter = thread::spawn(move || waiting.acquire(SOON).map(drop));
        fixture.wait_for_waiters(&sessions, 1);
        eventually(SOON, "both threads are there", || {
            named_threads("rediscope-leases") >= 1 && named_threads("rediscope-lock-events") >= 1
        });
        drop(sessions);
        guard.ensure_held().unwrap();
        in_time(SOON, "the guard is released", move || guard.release()).unwrap();
        waiter.join().unwrap().unwrap();
        eventually(SOON, "its connections are closed", || fixture.server.clients() == 0);
        eventually(SOON, "no connection listens", || fixture.server.subscribers() == 0);
        eventually(SOON, "both threads are gone", || {
            named_threads("rediscope-leases") + named_threads("rediscope-lock-events") == 0
        });
    }

    /// Threads of all tests that run now: the kernel cuts names at 15 bytes.
    fn named_threads(name: &str) -> usize {
        let name = &name[..name.len().min(15)];
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let named = |path: std::path::PathBuf| std::fs::read_to_string(path.join("comm")).ok();
        tasks.flatten().filter_map(|task| named(task.path())).filter(|n| n.trim() == name).count()
    }
}
