//! Several locks by name at once: all of them or none, in one order, and nothing left of a part of them.
//!
//! Guarantee: locks

use crate::fixture::{Fixture, LONG, SOON};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::side::{LockAll, SessionManager};
use rediscope::error::{Applied, LockError};
use rediscope::prelude::*;
use rediscope::{CommitError, Error};

use super::fixture::{is_lost, start, start_with, timed_out};
use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Trigger};

fn all(sessions: &SessionManager, names: &[&str]) -> LockAll {
    sessions.lock_all(names).lease(LONG)
}

impl Fixture {
    /// Which of the locks `a` to `d` are held, as the server has it.
    fn held_names(&self) -> String {
        let held = |name: &&&str| {
            self.server.ask::<usize>(&["ZCARD", &format!("rediscope:lock:{{{name}}}")]) == 1
        };
        ["a", "b", "c", "d"].iter().filter(held).copied().collect()
    }
}

#[test]
fn all_names_are_held_together_and_exclude_each_of_them_alone() {
    let fixture = start();
    let other = fixture.other();
    let guard = all(&fixture.sessions, &["c", "a", "b", "a"]).label("host 7");
    let guard = guard.acquire(SOON).unwrap();
    assert_eq!((fixture.held_names().as_str(), fixture.locks().held), ("abc", 3));
    assert_eq!(other.lock("b").holder().unwrap().unwrap().label.as_deref(), Some("host 7"));
    for name in ["a", "b", "c"] {
        assert!(other.lock(name).try_acquire().unwrap().is_none());
        assert!(all(&other, &["d", name]).try_acquire().unwrap().is_none());
        timed_out(all(&other, &["d", name]).acquire(Duration::from_millis(20)));
    }
    assert_eq!(fixture.held_names(), "abc", "of the others nothing is left");
    let tokens: Vec<_> =
        guard.fencing_tokens().map(|(name, token)| (name.to_owned(), token)).collect();
    assert!(tokens.is_sorted_by_key(|(_, token)| *token), "acquired in this order: {tokens:?}");
    assert_eq!(tokens.iter().map(|(name, _)| &**name).collect::<String>(), "abc");
    assert_eq!(guard.get("b").unwrap().fencing_token(), tokens[1].1);
    assert!(guard.get("d").is_none());
    assert!(!guard.is_lost() && guard.remaining() > Duration::ZERO);
    guard.ensure_held().unwrap();
    guard.release().unwrap();
    assert_eq!((fixture.held_names().as_str(), fixture.locks().held), ("", 0));
    drop(all(&other, &["a", "b"]).try_acquire().unwrap().unwrap());
    eventually(SOON, "a dropped guard is released", || fixture.held_names().is_empty());
}

#[test]
fn no_name_and_an_empty_one_are_refused_before_anything_is_sent() {
    let fixture = start();
    drop(fixture.sessions.lock("a").acquire(SOON).unwrap());
    let calls = fixture.server.calls("evalsha");
    let refused = |all: LockAll, of: &str| match all.acquire(LONG) {
        Err(error @ Error::Lock(LockError::Refused { setting, .. })) => {
            assert_eq!((setting, error.applied()), (of, Applied::No));
        }
        other => panic!("{other:?}"),
    };
    refused(all(&fixture.sessions, &[]), "names");
    refused(all(&fixture.sessions, &["a", ""]), "name");
    refused(all(&fixture.sessions, &["a", "b"]).lease(Duration::ZERO), "lease");
    refused(all(&fixture.sessions, &["a", "b"]).label("l".repeat(300)), "label");
    assert_eq!(fixture.server.calls("evalsha"), calls);
}

#[test]
fn callers_with_the_same_names_in_another_order_never_wait_for_each_other_in_a_circle() {
    let fixture = start();
    let others = [fixture.other(), fixture.other()];
    let orders = [["a", "b", "c"], ["c", "b", "a"], ["b", "c", "a"], ["c", "a", "b"]];
    for fair in [false, true] {
        let inside = AtomicU32::new(0);
        thread::scope(|scope| {
            for (nth, names) in orders.iter().enumerate() {
                let (sessions, inside) = (&others[nth % 2], &inside);
                scope.spawn(move || {
                    let some = all(sessions, &names[..2]);
                    let every = all(sessions, names);
                    for round in 0..6 {
                        let both = if round % 2 == 0 { &some } else { &every };
                        let both = if fair { both.clone().fair() } else { both.clone() };
                        let guard = both.acquire(LONG).unwrap();
                        // Any two of the three share a name.
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                        guard.release().unwrap();
                    }
                });
            }
        });
        eventually(SOON, "nothing is left", || fixture.held_keys().is_empty());
    }
}

#[test]
fn what_was_acquired_before_a_name_that_is_held_is_released_and_extended_until_then() {
    let fixture = start();
    let other = fixture.other();
    let held = other.lock("b").lease(LONG).acquire(SOON).unwrap();
    assert!(all(&fixture.sessions, &["a", "b", "c"]).try_acquire().unwrap().is_none());
    assert_eq!(fixture.held_names(), "b");
    match all(&fixture.sessions, &["a", "b", "c"]).acquire(Duration::from_millis(60)) {
        Err(Error::Lock(LockError::Timeout { waited, holder, .. })) => {
            assert!(waited >= Duration::from_millis(60) && holder.is_some(), "{waited:?}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(fixture.held_names(), "b");
    // It waits for longer than the lease of the first name.
    let lease = Duration::from_millis(1500);
    let waits = fixture.sessions.lock_all(["a", "b", "c"]).lease(lease);
    let waiter = thread::spawn(move || waits.acquire(LONG).unwrap());
    eventually(SOON, "it has the first name, twice extended", || {
        fixture.held_names() == "ab" && fixture.locks().renewals >= 4
    });
    held.release().unwrap();
    let guard = waiter.join().unwrap();
    assert!(!guard.is_lost());
    assert_eq!(fixture.held_names(), "abc");
    guard.release().unwrap();
}

#[test]
fn a_lock_that_is_lost_while_another_one_is_waited_for_ends_the_call() {
    let fixture = start();
    let other = fixture.other();
    let held = other.lock("b").lease(LONG).acquire(SOON).unwrap();
    let waits = fixture.sessions.lock_all(["a", "b"]).lease(Duration::from_millis(1500));
    let waiter = thread::spawn(move || waits.acquire(LONG).map(drop));
    eventually(SOON, "it has the first name", || fixture.held_names() == "ab");
    assert!(other.lock("a").force_release().unwrap());
    eventually(SOON, "the loss is known", || fixture.locks().lost == 1);
    held.release().unwrap();
    is_lost(waiter.join().unwrap());
    eventually(SOON, "none is held", || fixture.held_names().is_empty());
}

#[test]
fn the_guard_is_lost_if_one_of_its_locks_is_and_each_release_has_its_result() {
    let fixture = start();
    let other = fixture.other();
    let guard = all(&fixture.sessions, &["a", "b", "c"]).acquire(SOON).unwrap();
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    guard.on_lost(move || {
        counted.fetch_add(1, Ordering::SeqCst);
    });
    assert!(other.lock("b").force_release().unwrap());
    is_lost(guard.ensure_held());
    assert!(guard.is_lost() && guard.get("b").unwrap().is_lost());
    assert!(!guard.get("a").unwrap().is_lost());
    assert_eq!(guard.remaining(), Duration::ZERO);
    eventually(SOON, "the callback is called", || calls.load(Ordering::SeqCst) == 1);
    assert!(other.lock("c").force_release().unwrap());
    is_lost(guard.ensure_held());
    let theirs = other.lock("b").lease(LONG).acquire(SOON).unwrap();
    let released = guard.release_each();
    let names: String = released.iter().map(|(name, _)| &**name).collect();
    assert_eq!(names, "abc");
    for (name, result) in released {
        match &*name {
            "a" => result.unwrap(),
            _ => is_lost(result),
        }
    }
    assert_eq!(fixture.held_names(), "b", "another caller's is not released");
    theirs.release().unwrap();
    let guard = all(&fixture.sessions, &["a", "b"]).acquire(SOON).unwrap();
    assert!(other.lock("a").force_release().unwrap());
    is_lost(guard.release());
    assert_eq!((fixture.held_names().as_str(), calls.load(Ordering::SeqCst)), ("", 1));
}

#[test]
fn a_closure_runs_under_all_locks_and_its_error_releases_them() {
    let fixture = start();
    let both = all(&fixture.sessions, &["a", "b"]);
    let names = both.run(SOON, |guard| {
        assert_eq!(fixture.held_names(), "ab");
        Ok(guard.fencing_tokens().count())
    });
    assert_eq!(names.unwrap(), 2);
    assert_eq!(fixture.held_names(), "");
    let failed: Result<(), Box<dyn std::error::Error + Send + Sync>> =
        both.run_with(SOON, |_| Err("its own".into()));
    assert_eq!(failed.unwrap_err().to_string(), "its own");
    assert_eq!(fixture.held_names(), "");
    let other = fixture.other();
    is_lost(both.run(SOON, |guard| {
        assert!(!guard.is_lost() && other.lock("a").force_release()?);
        Ok(())
    }));
    assert_eq!(fixture.held_names(), "");
    let held = other.lock("b").acquire(SOON).unwrap();
    timed_out(both.run(Duration::from_millis(20), |_| -> Result<(), Error> { unreachable!() }));
    held.release().unwrap();
}

#[test]
fn a_fixed_lease_of_all_ends_and_a_transaction_is_fenced_by_one_of_them() {
    let fixture = start();
    let guard = all(&fixture.sessions, &["a", "b"]).acquire(SOON).unwrap();
    let fenced = fixture.sessions.transactional().fenced_by(guard.get("b").unwrap());
    fenced.run(|tx| Ok(tx.set("n", 1))).unwrap();
    assert!(fixture.other().lock("b").force_release().unwrap());
    let late = fenced.run(|tx| Ok(tx.set("n", 2)));
    assert!(matches!(late, Err(Error::Commit(CommitError::LockLost))), "{late:?}");
    assert!(guard.is_lost());
    drop(guard);
    let short = fixture.sessions.lock_all(["a", "b"]).lease(Duration::from_millis(700));
    let guard = short.fixed_lease().acquire(SOON).unwrap();
    eventually(SOON, "it is lost", || guard.is_lost());
    is_lost(guard.release());
    assert_eq!(fixture.held_names(), "");
}

#[test]
fn a_lost_reply_leaves_no_part_of_them() {
    let fixture = start();
    let both = all(&fixture.sessions, &["a", "b", "c"]);
    both.acquire(SOON).unwrap().release().unwrap();
    fixture.arm(Trigger::BeforeReplyTo("EVALSHA"), Fault::Cut);
    let guard = both.try_acquire().unwrap().unwrap();
    assert_eq!((fixture.proxy.fired(), fixture.held_names().as_str()), (1, "abc"));
    fixture.arm(Trigger::BeforeReplyTo("EVALSHA"), Fault::Cut);
    guard.release().unwrap();
    assert_eq!((fixture.proxy.fired(), fixture.held_names().as_str()), (2, ""));
    // The server is silent once the first name is held.
    let held = fixture.other().lock("b").lease(LONG).acquire(SOON).unwrap();
    let waits = both.clone();
    let waiter = thread::spawn(move || waits.acquire(Duration::from_secs(2)).map(drop));
    eventually(SOON, "it has the first name", || fixture.held_names() == "ab");
    fixture.proxy.silence();
    assert!(waiter.join().unwrap().is_err());
    fixture.proxy.mute_new(false);
    fixture.proxy.cut_all();
    eventually(SOON, "the first name is released", || fixture.held_names() == "b");
    held.release().unwrap();
    both.acquire(SOON).unwrap().release().unwrap();
}

#[test]
fn a_silent_server_delays_calls_for_several_locks_no_longer_than_for_one() {
    let second = Duration::from_secs(1);
    let fixture = start_with(|builder| builder.cleanup_timeout(second));
    let names: Vec<_> = (0..8).map(|nth| nth.to_string()).collect();
    let every = fixture.sessions.lock_all(&names).lease(LONG);
    let guard = every.acquire(SOON).unwrap();
    fixture.proxy.silence();
    let begun = Instant::now();
    assert!(guard.ensure_held().is_err());
    assert!(begun.elapsed() < 20 * second, "{:?}: eight times what one takes", begun.elapsed());
    let begun = Instant::now();
    drop(guard);
    assert!(begun.elapsed() < 5 * second, "{:?}: eight times what one takes", begun.elapsed());
    fixture.proxy.mute_new(false);
    fixture.proxy.cut_all();
    eventually(SOON, "they are released in the background", || fixture.held_keys().is_empty());
}

#[test]
fn a_release_that_lasts_longer_than_the_leases_calls_no_callback() {
    let fixture = start();
    let every = fixture.sessions.lock_all(["a", "b", "c"]).lease(Duration::from_secs(4));
    let guard = every.acquire(SOON).unwrap();
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    guard.on_lost(move || {
        counted.fetch_add(1, Ordering::SeqCst);
    });
    fixture.proxy.silence();
    let released = guard.release();
    let is_lost = matches!(released, Err(Error::Lock(LockError::Lost { .. })));
    assert!(released.is_err() && !is_lost, "{released:?}");
    assert_eq!(calls.load(Ordering::SeqCst), 0);
    fixture.proxy.mute_new(false);
    fixture.proxy.cut_all();
    eventually(SOON, "none is held", || fixture.held_names().is_empty());
}
