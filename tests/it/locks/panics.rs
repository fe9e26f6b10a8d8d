//! A log that panics, at every event of a call: each lock is released all the same.
//!
//! Guarantee: locks

use crate::fixture::{Fixture, LONG, SOON};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::side::Lock;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

use super::fixture::{every_kind, start};
use rediscope_testing::proxy::{Fault, Trigger};
use rediscope_testing::{eventually, under_log};

/// Panics at the n-th event of a thread, or at each from there on.
struct Panics {
    left: Arc<AtomicU32>,
    each: bool,
}

impl<S: tracing::Subscriber> Layer<S> for Panics {
    fn on_event(&self, _: &tracing::Event<'_>, _: Context<'_, S>) {
        let left = self.left.load(Ordering::SeqCst);
        if left > 0 {
            self.left.store(left - 1, Ordering::SeqCst);
        }
        if left == 1 || (left == 0 && self.each) {
            // Without the hook, which would print it.
            std::panic::resume_unwind(Box::new("a log that panics"));
        }
    }
}

/// Runs `call` under a log that panics at its n-th event: whether there were so many.
fn under(nth: u32, each: bool, call: impl FnOnce()) -> bool {
    let left = Arc::new(AtomicU32::new(nth));
    let layer = Panics { left: Arc::clone(&left), each };
    let subscriber = tracing_subscriber::registry().with(layer);
    under_log(subscriber, || {
        drop(catch_unwind(AssertUnwindSafe(call)));
    });
    left.load(Ordering::SeqCst) == 0
}

/// What is done with a lock under the log.
type Step = fn(&Fixture, &Lock, u32, bool) -> bool;

const STEPS: [(&str, Step); 5] = [
    ("acquired and released", |_, lock, nth, each| {
        under(nth, each, || lock.acquire(SOON).unwrap().release().unwrap())
    }),
    ("acquired and dropped", |_, lock, nth, each| {
        under(nth, each, || drop(lock.try_acquire().unwrap()))
    }),
    ("released", |_, lock, nth, each| {
        let guard = lock.acquire(SOON).unwrap();
        under(nth, each, || guard.release().unwrap())
    }),
    ("acquired without an answer", |fixture, lock, nth, each| {
        fixture.arm(Trigger::BeforeReplyTo("EVALSHA"), Fault::Cut);
        under(nth, each, || drop(lock.try_acquire().unwrap()))
    }),
    ("released without an answer", |fixture, lock, nth, each| {
        let guard = lock.acquire(SOON).unwrap();
        fixture.arm(Trigger::BeforeReplyTo("EVALSHA"), Fault::Cut);
        under(nth, each, || guard.release().unwrap())
    }),
];

#[test]
fn a_log_that_panics_strands_no_lock() {
    let fixture = start();
    for (kind, lock) in every_kind(&fixture.sessions) {
        let lock = lock.lease(LONG);
        for (what, step) in STEPS {
            for each in [false, true] {
                let mut nth = 1;
                while step(&fixture, &lock, nth, each) {
                    fixture.proxy.disarm();
                    eventually(SOON, &format!("{kind} is free: {what}, event {nth}"), || {
                        fixture.held_keys().is_empty()
                    });
                    nth += 1;
                }
                fixture.proxy.disarm();
                assert!(nth > 1, "{kind}, {what}: there was no event");
                lock.acquire(SOON).unwrap().release().unwrap();
            }
        }
    }
    assert_eq!((fixture.locks().held, fixture.locks().waiting), (0, 0));
    assert_eq!(fixture.sessions.status().pooled.in_use, 0);
}

/// A part of a callback.
struct PanicsInDrop;

impl Drop for PanicsInDrop {
    fn drop(&mut self) {
        std::panic::resume_unwind(Box::new("a drop that panics"));
    }
}

#[test]
fn a_callback_whose_drop_panics_strands_no_lock() {
    let fixture = start();
    for (kind, lock) in every_kind(&fixture.sessions) {
        let lock = lock.lease(LONG);
        for releases in [false, true] {
            let guard = lock.acquire(SOON).unwrap();
            for _ in 0..2 {
                let part = PanicsInDrop;
                guard.on_lost(move || std::mem::forget(part));
            }
            let end = || match releases {
                true => guard.release().unwrap(),
                false => drop(guard),
            };
            assert!(catch_unwind(AssertUnwindSafe(end)).is_ok(), "{kind}, {releases}");
            eventually(SOON, &format!("{kind} is free"), || fixture.held_keys().is_empty());
        }
    }
    assert_eq!(fixture.locks().held, 0);
    assert_eq!(fixture.sessions.close(LONG), rediscope::status::Closed::default());
}

#[test]
fn a_log_that_panics_when_a_lock_is_lost_keeps_no_callback_from_being_called() {
    let fixture = start();
    let guard = fixture.sessions.lock("l").lease(LONG).acquire(SOON).unwrap();
    let (lost, heard) = std::sync::mpsc::channel();
    guard.on_lost(move || lost.send(()).unwrap());
    fixture.other().lock("l").force_release().unwrap();
    under(1, true, || drop(guard.ensure_held()));
    let mut nth = 2;
    while !guard.is_lost() {
        under(nth, true, || drop(guard.ensure_held()));
        nth += 1;
    }
    heard.recv_timeout(SOON).unwrap();
    drop(guard);
    assert_eq!(fixture.locks().held, 0);
}
