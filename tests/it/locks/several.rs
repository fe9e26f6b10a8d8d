//! Several permits of a semaphore at once: all of them or none, in order with `fair`, and counted.
//!
//! Guarantee: locks

use crate::fixture::{Fixture, LONG, SOON};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::side::{Lock, LockGuard, SessionManager, open_pooled_lanes};
use rediscope::Error;
use rediscope::error::{Applied, LockError};

use super::fixture::{is_lost, start, start_with, timed_out};
use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Script, Trigger};

/// So many of the semaphore's permits at once.
fn several(sessions: &SessionManager, permits: u32, of: u32) -> Lock {
    sessions.semaphore("s", of).lease(LONG).permits(permits)
}

#[track_caller]
fn too_many<T: std::fmt::Debug>(result: Result<T, Error>, numbers: (u32, u32)) {
    match result {
        Err(error @ Error::Lock(LockError::TooManyPermits { asked, permits, .. })) => {
            assert_eq!((asked, permits), numbers);
            assert_eq!((error.applied(), error.is_retryable()), (Applied::No, false));
            let text = error.to_string();
            assert!(text.contains(&asked.to_string()), "{text}");
            assert!(text.contains(&permits.to_string()), "{text}");
        }
        other => panic!("not refused: {other:?}"),
    }
}

impl Fixture {
    fn free(&self, of: u32) -> u32 {
        self.sessions.semaphore("s", of).available().unwrap()
    }

    fn queued(&self) -> usize {
        self.server.ask(&["ZCARD", "rediscope:sem:{s}:queue"])
    }
}

#[test]
fn all_permits_are_acquired_or_none_and_counted() {
    let fixture = start();
    let other = fixture.other();
    assert_eq!(fixture.free(5), 5, "no holder and no number on the server");
    for fair in [false, true] {
        let of = |sessions: &SessionManager, permits| match fair {
            true => several(sessions, permits, 5).fair(),
            false => several(sessions, permits, 5),
        };
        let three = of(&fixture.sessions, 3).acquire(SOON).unwrap();
        assert_eq!(fixture.free(5), 2);
        assert_eq!(fixture.free(9), 2, "the server's number");
        assert!(of(&other, 3).try_acquire().unwrap().is_none(), "two are not enough");
        timed_out(of(&other, 3).acquire(Duration::from_millis(30)));
        assert_eq!(fixture.free(5), 2, "none of the two was taken");
        let two = of(&other, 2).try_acquire().unwrap().unwrap();
        assert_eq!(fixture.free(5), 0);
        assert!(of(&other, 1).try_acquire().unwrap().is_none());
        three.ensure_held().unwrap();
        let again = three.share();
        three.release().unwrap();
        assert_eq!(fixture.free(5), 0, "another guard has them");
        drop(again);
        assert_eq!(fixture.free(5), 3);
        let one = of(&fixture.sessions, 1).try_acquire().unwrap().unwrap();
        fixture.sessions.semaphore("s", 5).set_permits(2).unwrap();
        assert_eq!(fixture.free(5), 0, "more are held than there are");
        two.release().unwrap();
        assert_eq!(fixture.free(5), 1);
        one.release().unwrap();
        assert!(fixture.held_keys().is_empty(), "{:?}", fixture.held_keys());
    }
}

#[test]
fn more_permits_than_there_are_are_refused_before_anything_is_sent() {
    let fixture = start();
    drop(several(&fixture.sessions, 2, 2).acquire(SOON).unwrap());
    let calls = fixture.server.calls("evalsha");
    for wait in [Duration::ZERO, LONG] {
        too_many(several(&fixture.sessions, 3, 2).acquire(wait), (3, 2));
        too_many(several(&fixture.sessions, u32::MAX, 1).fair().acquire(wait), (u32::MAX, 1));
    }
    for lock in [
        several(&fixture.sessions, 0, 2),
        fixture.sessions.lock("l").permits(2),
        fixture.sessions.rw_lock("l").read().permits(2),
    ] {
        let error = lock.acquire(LONG).unwrap_err();
        assert!(
            matches!(error, Error::Lock(LockError::Refused { setting: "permits", .. })),
            "{error:?}"
        );
    }
    for lock in [fixture.sessions.lock("l"), fixture.sessions.rw_lock("l").write()] {
        let error = lock.available().unwrap_err();
        assert!(
            matches!(error, Error::Lock(LockError::Refused { setting: "permits", .. })),
            "{error:?}"
        );
    }
    assert_eq!(fixture.server.calls("evalsha"), calls);
    fixture.sessions.lock("l").permits(1).acquire(SOON).unwrap().release().unwrap();
}

#[test]
fn a_call_that_waits_for_more_permits_than_are_left_of_fewer_ends() {
    let fixture = start();
    let all = several(&fixture.sessions, 4, 4);
    let held = all.acquire(SOON).unwrap();
    let waits = all.clone().permits(3);
    let waiter = thread::spawn(move || waits.acquire(LONG).map(drop));
    fixture.wait_for_waiters(&fixture.sessions, 1);
    all.set_permits(2).unwrap();
    too_many(waiter.join().unwrap(), (3, 2));
    held.release().unwrap();
    assert!(fixture.held_keys().is_empty(), "{:?}", fixture.held_keys());
}

/// Sends each guard as its caller gets it.
type Guards = mpsc::Receiver<(u32, LockGuard)>;

/// Callers that wait for so many permits each, in the order of their coming.
fn waiters(fixture: &Fixture, sessions: &SessionManager, wanted: &[u32], fair: bool) -> Guards {
    let (acquired, guards) = mpsc::channel();
    let before = sessions.status().locks.waiting;
    for (nth, &permits) in wanted.iter().enumerate() {
        let lock = several(sessions, permits, 6);
        let (lock, acquired) = (if fair { lock.fair() } else { lock }, acquired.clone());
        let queued = fixture.queued();
        thread::spawn(move || drop(acquired.send((permits, lock.acquire(LONG).unwrap()))));
        fixture.wait_for_waiters(sessions, before + nth + 1);
        eventually(SOON, "it is in line", || !fair || fixture.queued() == queued + 1);
    }
    guards
}

#[test]
fn permits_that_come_free_at_once_wake_all_waiters_that_they_suffice_for() {
    let fixture = start();
    let other = fixture.other();
    let one = several(&fixture.sessions, 1, 6).acquire(SOON).unwrap();
    let five = several(&fixture.sessions, 5, 6).acquire(SOON).unwrap();
    // The first one of each process can use nothing of what comes free.
    let here = waiters(&fixture, &fixture.sessions, &[6, 1, 1], false);
    let there = waiters(&fixture, &other, &[6, 2, 1], false);
    five.release().unwrap();
    let take = |guards: &Guards| guards.recv_timeout(SOON).unwrap();
    let held: Vec<_> = (0..2).flat_map(|_| [take(&here), take(&there)]).collect();
    assert!(held.iter().all(|(permits, _)| *permits < 6), "{held:?}");
    assert_eq!((fixture.free(6), fixture.locks().waiting, other.status().locks.waiting), (0, 1, 1));
    held.into_iter().for_each(|(_, guard)| guard.release().unwrap());
    one.release().unwrap();
    // One of the two is first.
    for _ in 0..2 {
        let mut all = None;
        eventually(SOON, "one takes all", || {
            all = here.try_recv().or_else(|_| there.try_recv()).ok();
            all.is_some()
        });
        assert_eq!(fixture.free(6), 0);
        all.unwrap().1.release().unwrap();
    }
    assert!(fixture.held_keys().is_empty(), "{:?}", fixture.held_keys());
}

#[test]
fn permits_of_a_holder_that_died_come_free_together() {
    let fixture = start();
    let dead = several(&fixture.sessions, 5, 6).lease(Duration::from_secs(2)).fixed_lease();
    std::mem::forget(dead.acquire(SOON).unwrap());
    let here = waiters(&fixture, &fixture.sessions, &[2, 2, 2], false);
    let guards: Vec<_> = (0..3).map(|_| here.recv_timeout(SOON).unwrap()).collect();
    assert_eq!(fixture.free(6), 0);
    drop(guards);
    assert_eq!(fixture.free(6), 6);
}

#[test]
fn a_caller_that_takes_many_keeps_its_turn_before_later_ones_that_take_few() {
    let fixture = start();
    let other = fixture.other();
    let mut held: Vec<_> =
        (0..4).map(|_| several(&fixture.sessions, 1, 6).fair().acquire(SOON).unwrap()).collect();
    let many = waiters(&fixture, &fixture.sessions, &[4], true);
    let few = waiters(&fixture, &other, &[1, 1, 2], true);
    assert_eq!(fixture.free(6), 2);
    assert!(several(&other, 1, 6).fair().try_acquire().unwrap().is_none(), "they are spoken for");
    held.pop().unwrap().release().unwrap();
    eventually(SOON, "three are free", || fixture.free(6) == 3);
    assert!(few.try_recv().is_err() && many.try_recv().is_err());
    held.pop().unwrap().release().unwrap();
    let (_, large) = many.recv_timeout(SOON).unwrap();
    assert_eq!(fixture.free(6), 0);
    assert!(few.try_recv().is_err(), "it came first");
    // What the first one leaves is enough for all of the others.
    large.release().unwrap();
    let small: Vec<_> = (0..3).map(|_| few.recv_timeout(SOON).unwrap()).collect();
    assert_eq!((fixture.free(6), fixture.queued()), (0, 0));
    drop((small, held));
    assert!(fixture.held_keys().is_empty(), "{:?}", fixture.held_keys());
}

#[test]
fn a_caller_that_takes_many_and_gives_up_lets_the_later_ones_in() {
    let fixture = start();
    let other = fixture.other();
    let held = several(&fixture.sessions, 3, 6).fair().acquire(SOON).unwrap();
    let large = several(&fixture.sessions, 4, 6).fair();
    let large = thread::spawn(move || large.acquire(Duration::from_secs(2)).map(drop));
    eventually(SOON, "it is in line", || fixture.queued() == 1);
    let few = waiters(&fixture, &other, &[2, 1], true);
    timed_out(large.join().unwrap());
    let guards: Vec<_> = (0..2).map(|_| few.recv_timeout(SOON).unwrap()).collect();
    assert_eq!((fixture.free(6), fixture.queued()), (0, 0));
    drop((guards, held));
    assert!(fixture.held_keys().is_empty(), "{:?}", fixture.held_keys());
}

#[test]
fn callers_that_take_several_neither_block_each_other_nor_get_more_than_there_are() {
    const PERMITS: u32 = 4;
    let fixture = start();
    let others = [fixture.other(), fixture.other()];
    for fair in [false, true] {
        let (inside, most) = (AtomicU32::new(0), AtomicU32::new(0));
        thread::scope(|scope| {
            for nth in 0..6_u32 {
                let (sessions, inside, most) = (&others[nth as usize % 2], &inside, &most);
                scope.spawn(move || {
                    for round in 0..8 {
                        let permits = 1 + (nth + round) % 3;
                        let lock = several(sessions, permits, PERMITS);
                        let lock = if fair { lock.fair() } else { lock };
                        let guard = lock.acquire(LONG).unwrap();
                        let now = inside.fetch_add(permits, Ordering::SeqCst) + permits;
                        most.fetch_max(now, Ordering::SeqCst);
                        thread::yield_now();
                        inside.fetch_sub(permits, Ordering::SeqCst);
                        guard.release().unwrap();
                    }
                });
            }
        });
        let most = most.into_inner();
        assert!((3..=PERMITS).contains(&most), "{most} at once");
        eventually(SOON, "nothing is left", || fixture.held_keys().is_empty());
    }
}

#[test]
fn a_lost_reply_makes_no_permit_more_or_less() {
    let fixture = start();
    let lock = several(&fixture.sessions, 3, 6);
    drop(lock.try_acquire().unwrap().unwrap());
    fixture.arm(Trigger::BeforeReplyTo("EVALSHA"), Fault::Cut);
    let guard = lock.try_acquire().unwrap().unwrap();
    assert_eq!((fixture.proxy.fired(), fixture.free(6)), (1, 3));
    fixture.arm(Trigger::BeforeReplyTo("EVALSHA"), Fault::Cut);
    guard.release().unwrap();
    assert_eq!((fixture.proxy.fired(), fixture.free(6)), (2, 6));
    // Taken from them, they are not released a second time.
    let guard = lock.try_acquire().unwrap().unwrap();
    lock.force_release().unwrap();
    let all = several(&fixture.other(), 6, 6).try_acquire().unwrap().unwrap();
    is_lost(guard.release());
    assert_eq!(fixture.free(6), 0);
    all.release().unwrap();
    // Given up without a reply.
    fixture.proxy.mute_new(true);
    fixture.arm(Trigger::BeforeReplyTo("EVALSHA"), Fault::HoldReplies);
    let error = lock.try_acquire().unwrap_err();
    assert_eq!((error.applied(), error.is_retryable()), (Applied::Unknown, true));
    fixture.proxy.mute_new(false);
    fixture.proxy.cut_all();
    eventually(SOON, "all are released", || fixture.free(6) == 6);
}

#[test]
fn a_count_without_a_reply_changed_nothing() {
    let fixture = start();
    let semaphore = several(&fixture.sessions, 1, 6);
    assert_eq!(semaphore.available().unwrap(), 6);
    fixture.arm(Trigger::BeforeReplyTo("EVALSHA"), Fault::Cut);
    assert_eq!(semaphore.available().unwrap(), 6, "it is sent again");
    // Else the call may wait for a lane, and was not sent.
    open_pooled_lanes(&fixture.sessions, "any");
    fixture.proxy.silence();
    let error = semaphore.available().unwrap_err();
    assert!(matches!(error, Error::Lock(LockError::Connection { during: "available", .. })));
    assert_eq!(error.applied(), Applied::No);
}

// Tasks send both calls on one lane.
crate::side::threads_only! {
#[test]
fn a_call_that_awaits_a_change_of_the_number_ends_in_its_own_time() {
    let fixture = start_with(|builder| {
        builder.checkout_timeout(LONG).response_timeout(Duration::from_secs(2))
    });
    let _kept = fixture.other().semaphore("s", 5).acquire(SOON).unwrap();
    let semaphore = several(&fixture.sessions, 1, 3);
    let other = |result: Result<_, Error>| match result {
        Err(Error::Lock(LockError::OtherPermits { asked: 3, kept: 5, .. })) => {}
        other => panic!("{other:?}"),
    };
    other(semaphore.try_acquire().map(drop));
    // Each copy of the change is held back, and the call beside it is not.
    let held = (Trigger::BeforeCommandNamed("EVALSHA"), Fault::HoldRequests);
    let passes = (Trigger::AfterReplyTo("EVALSHA"), Fault::Delay(Duration::ZERO));
    let script = Script::from(held).on(passes.0, passes.1);
    let script = (0..100).fold(script, |script, _| script.on(held.0, held.1));
    let fired = fixture.proxy.fired();
    fixture.proxy.arm(script.in_turn());
    thread::scope(|scope| {
        let (ended, end) = mpsc::channel();
        let changing = semaphore.clone();
        scope.spawn(move || ended.send(changing.set_permits(5)).unwrap());
        eventually(SOON, "the change is under way", || fixture.proxy.fired() > fired);
        let (cancel, acquiring, changing) =
            (rediscope::Cancel::new(), semaphore.clone(), semaphore.clone());
        let (cancels, also_cancels) = (cancel.clone(), cancel.clone());
        let acquired = scope.spawn(move || cancels.run(|| acquiring.try_acquire().map(drop)));
        eventually(SOON, "it is refused", || fixture.proxy.fired() > fired + 1);
        let changed = scope.spawn(move || also_cancels.run(|| changing.set_permits(7)));
        let late = semaphore.clone().deadline(Instant::now() + Duration::from_millis(20));
        timed_out(late.set_permits(8));
        cancel.cancel();
        for cancelled in [acquired, changed] {
            let error = cancelled.join().unwrap().unwrap_err();
            assert!(matches!(error, Error::Lock(LockError::Cancelled)), "{error:?}");
        }
        assert!(end.try_recv().is_err(), "the change has ended before");
        fixture.proxy.disarm();
        fixture.proxy.release();
        end.recv().unwrap().unwrap();
    });
    let permits: u32 = fixture.server.ask(&["HGET", "rediscope:sem:{s}:info", "permits"]);
    assert_eq!(permits, 5);
}
}
