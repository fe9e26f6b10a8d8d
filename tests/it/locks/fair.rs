//! First come, first served, across processes.
//!
//! Guarantee: locks

use crate::fixture::{Fixture, LONG, SOON};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::side::{Lock, SessionManager};

use super::fixture::{start, timed_out};
use rediscope_testing::eventually;

fn fair(sessions: &SessionManager) -> Lock {
    sessions.lock("l").lease(LONG).fair()
}

impl Fixture {
    fn in_line(&self) -> usize {
        self.server.ask(&["ZCARD", "rediscope:lock:{l}:queue"])
    }

    /// A waiter that stands in line and sends nothing more.
    fn silent_waiter(&self, for_millis: u64) {
        let now: Vec<u64> = self.server.ask(&["TIME"]);
        let ends = now[0] * 1000 + now[1] / 1000 + for_millis;
        let key = |part| format!("rediscope:lock:{{l}}:{part}");
        self.server.ask::<i64>(&["ZADD", &key("queue"), "1", "xdead"]);
        self.server.ask::<i64>(&["ZADD", &key("alive"), &ends.to_string(), "xdead"]);
    }
}

#[test]
fn the_lock_passes_in_the_order_of_arrival_however_it_is_released() {
    let fixture = start();
    let other = fixture.other();
    let guard = fair(&other).try_acquire().unwrap().unwrap();
    let (order, served) = mpsc::channel();
    thread::scope(|scope| {
        for nth in 0..8 {
            let lock = fair(if nth % 3 == 0 { &fixture.sessions } else { &other });
            let order = order.clone();
            scope.spawn(move || {
                let guard = lock.acquire(SOON).unwrap();
                order.send(nth).unwrap();
                guard.release().unwrap();
            });
            eventually(SOON, "it stands in line", || fixture.in_line() == nth + 1);
        }
        guard.release().unwrap();
    });
    drop(order);
    assert_eq!(served.iter().collect::<Vec<_>>(), (0..8).collect::<Vec<_>>());
    assert_eq!((fixture.in_line(), fixture.holders()), (0, 0));
}

#[test]
fn a_waiter_that_died_is_passed_over() {
    let fixture = start();
    fixture.silent_waiter(2_000);
    assert!(
        fair(&fixture.sessions).try_acquire().unwrap().is_none(),
        "its turn, while it may be alive"
    );
    let guard = fair(&fixture.sessions).acquire(SOON).unwrap();
    guard.release().unwrap();
    assert_eq!(fixture.in_line(), 0);
}

#[test]
fn fair_callers_of_a_semaphore_and_others_leave_each_other_their_time() {
    let fixture = start();
    let server = &fixture.server;
    let [queue, alive] = ["queue", "alive"].map(|part| format!("rediscope:sem:{{s}}:{part}"));
    let semaphore = fixture.sessions.semaphore("s", 1).lease(LONG);
    let guard = semaphore.acquire(SOON).unwrap();
    // What a fair caller leaves that dies, with less time.
    let now: Vec<u64> = server.ask(&["TIME"]);
    let ends = now[0] * 1000 + now[1] / 1000 + 1_000;
    server.ask::<i64>(&["ZADD", &queue, "1", "xdead"]);
    server.ask::<i64>(&["ZADD", &alive, &ends.to_string(), "xdead"]);
    for key in [&queue, &alive] {
        server.ask::<i64>(&["PEXPIRE", key, "60000"]);
    }
    timed_out(semaphore.acquire(Duration::from_millis(50)));
    eventually(SOON, "its time is over", || server.ask::<i64>(&["EXISTS", &alive]) == 0);
    guard.release().unwrap();
    let guard = semaphore.clone().fair().acquire(SOON).unwrap();
    // A caller that waits for long counts as waiting for as long.
    let waits = semaphore.clone();
    let waiter = thread::spawn(move || waits.acquire(LONG).unwrap());
    eventually(SOON, "it waits", || server.ask::<i64>(&["ZCARD", &alive]) == 1);
    timed_out(semaphore.fair().acquire(Duration::from_millis(30)));
    assert!(server.ask::<i64>(&["PTTL", &alive]) > 10_000, "its number of permits is forgotten");
    guard.release().unwrap();
    waiter.join().unwrap().release().unwrap();
}

#[test]
fn a_waiter_that_gives_up_leaves_the_queue_and_the_next_one_is_served() {
    let fixture = start();
    let other = fixture.other();
    let guard = fair(&other).try_acquire().unwrap().unwrap();
    timed_out(fair(&fixture.sessions).acquire(Duration::from_millis(50)));
    assert_eq!(fixture.in_line(), 0);
    thread::scope(|scope| {
        let lock = fair(&fixture.sessions);
        let fail_fast = scope.spawn(move || lock.acquire(Duration::from_secs(3)).map(drop));
        eventually(SOON, "the fail_fast one stands in line", || fixture.in_line() == 1);
        let lock = fair(&other);
        let patient = scope.spawn(move || lock.acquire(SOON).map(drop));
        eventually(SOON, "and the patient one", || fixture.in_line() == 2);
        timed_out(fail_fast.join().unwrap());
        guard.release().unwrap();
        patient.join().unwrap().unwrap();
    });
    assert_eq!(fixture.in_line(), 0);
}

#[test]
fn a_waiter_renews_its_place_for_as_long_as_it_waits() {
    let fixture = start();
    let guard = fair(&fixture.sessions).try_acquire().unwrap().unwrap();
    let lock = fair(&fixture.other());
    let waiter = thread::spawn(move || lock.acquire(SOON).map(drop));
    eventually(SOON, "it stands in line", || fixture.in_line() == 1);
    let alive = || -> f64 {
        let ends: Vec<(String, f64)> =
            fixture.server.ask(&["ZRANGE", "rediscope:lock:{l}:alive", "0", "0", "WITHSCORES"]);
        ends.first().map_or(0.0, |(_, ends)| *ends)
    };
    let first = alive();
    eventually(SOON, "it is extended", || alive() > first);
    guard.release().unwrap();
    waiter.join().unwrap().unwrap();
}

#[test]
fn readers_and_writers_are_let_in_as_they_came() {
    let fixture = start();
    let lock = fixture.sessions.rw_lock("l");
    let side = |write| if write { lock.write() } else { lock.read() }.lease(LONG).fair();
    let guard = side(false).try_acquire().unwrap().unwrap();
    let in_line = || fixture.server.ask::<usize>(&["ZCARD", "rediscope:rw:{l}:queue"]);
    let (order, served) = mpsc::channel();
    thread::scope(|scope| {
        for (nth, write) in [true, false, false, true].into_iter().enumerate() {
            let (lock, order) = (side(write), order.clone());
            scope.spawn(move || {
                let guard = lock.acquire(SOON).unwrap();
                order.send(if write { nth } else { 1 }).unwrap();
                thread::sleep(Duration::from_millis(20));
                guard.release().unwrap();
            });
            eventually(SOON, "it stands in line", || in_line() == nth + 1);
        }
        assert!(side(false).try_acquire().unwrap().is_none(), "a writer waits before this reader");
        guard.release().unwrap();
    });
    drop(order);
    assert_eq!(served.iter().collect::<Vec<_>>(), [0, 1, 1, 3]);
}
