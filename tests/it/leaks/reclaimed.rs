//! Scopes without an end are reclaimed, and a late use fails.
//!
//! Guarantee: pin-expired

use crate::fixture::{SOON, immediate};
use crate::side::BuildSide as _;
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::side::SessionManager;
use rediscope::Error;
use rediscope::error::Applied;
use rediscope::prelude::*;
use rediscope::status::{CloseReason, OpenScope};

use rediscope_testing::eventually;
use rediscope_testing::proxy::Proxy;
use rediscope_testing::server::Server;

const MAX_PIN: Duration = Duration::from_millis(300);

fn one_connection(url: String) -> SessionManager {
    // A connection that is alive is trusted: the test is about the reaper.
    let builder = SessionManager::builder(url).max_size(1).max_pin_time(MAX_PIN);
    builder.trust_window(Duration::from_secs(3600)).build_side().unwrap()
}

/// The only connection is free again: another caller can use it within `max_pin_time` and a bit.
#[track_caller]
fn capacity_comes_back(sessions: &SessionManager, server: &Server) {
    let begun = Instant::now();
    let mut other = sessions.transactional().begin().unwrap();
    other.incr("others", 1);
    let other = other.commit();
    assert!(other.is_ok(), "{other:?} after {:?}", begun.elapsed());
    let status = sessions.status().transactional;
    assert_eq!((status.in_use, status.size, status.waiting), (0, 1, 0), "{status}");
    assert_eq!(status.counts.replaced, [(CloseReason::Reclaimed, 1)], "{status}");
    assert!(sessions.open_scopes().is_empty());
    eventually(SOON, "the old connection is closed", || server.clients() == 1);
}

fn is_expired(error: &Error) -> bool {
    match error {
        Error::PinExpired(expired) => expired.begun_at.file().ends_with("reclaimed.rs"),
        _ => false,
    }
}

#[test]
fn a_forgotten_guard_is_reclaimed() {
    type Forget = fn(&SessionManager);
    let ways: [Forget; 4] = [
        |sessions| std::mem::forget(sessions.transactional().begin().unwrap()),
        |sessions| std::mem::forget(sessions.transactional().begin_with(immediate()).unwrap()),
        |sessions| std::mem::forget(sessions.transactional().watch(["n"]).begin().unwrap()),
        |sessions| {
            let mut tx = sessions.transactional().watch(["n"]).begin().unwrap().multi();
            tx.incr("n", 1);
            std::mem::forget(tx);
        },
    ];
    for forget in ways {
        let server = Server::start();
        let sessions = one_connection(server.url());
        forget(&sessions);
        assert_eq!(sessions.status().transactional.in_use, 1);
        capacity_comes_back(&sessions, &server);
        assert!(!server.ask::<bool>(&["EXISTS", "n"]));
    }
}

#[test]
fn the_scope_of_a_thread_that_never_returns_from_user_code_is_reclaimed() {
    let server = Server::start();
    let sessions = one_connection(server.url());
    let accounts = sessions.transactional();
    let (enter, entered) = mpsc::channel();
    let (leave, never) = mpsc::channel::<()>();
    let never = Mutex::new(never);
    thread::scope(|scope| {
        let stuck = scope.spawn(move || {
            let mut runs = 0;
            let result = accounts.watch(["n"]).run(|read, tx| {
                runs += 1;
                let _: Option<i64> = read.get("n")?;
                enter.send(()).unwrap();
                // For ever, as far as other threads can see.
                let _ = never.lock().unwrap().recv();
                tx.incr("n", 1);
                Ok(())
            });
            (result, runs)
        });
        entered.recv().unwrap();
        let open: Vec<OpenScope> = sessions.open_scopes();
        assert!(matches!(&open[..], [scope] if scope.is_closure), "{open:?}");
        capacity_comes_back(&sessions, &server);
        drop(leave);
        let (result, runs) = stuck.join().unwrap();
        let error = result.unwrap_err();
        assert!(is_expired(&error) && error.applied() == Applied::No, "{error}");
        assert_eq!(runs, 1);
    });
    assert!(!server.ask::<bool>(&["EXISTS", "n"]));
}

#[test]
fn a_scope_in_use_is_not_reclaimed() {
    let server = Server::start();
    let sessions = one_connection(server.url());
    let begun = Instant::now();
    let mut watching = sessions.transactional().watch(["n"]).begin().unwrap();
    eventually(SOON, "it has read for long", || {
        let _: Option<i64> = watching.get("n").unwrap();
        begun.elapsed() > 4 * MAX_PIN
    });
    let mut tx = watching.multi();
    eventually(SOON, "it has queued for long", || {
        tx.incr("n", 1);
        begun.elapsed() > 8 * MAX_PIN
    });
    assert!(tx.commit().unwrap().committed().is_some());

    // Queueing is use, though nothing of it is sent.
    let (begun, mut count) = (Instant::now(), 0);
    let mut tx = sessions.transactional().begin().unwrap();
    eventually(SOON, "it has queued for long", || {
        tx.incr("m", 1);
        count += 1;
        begun.elapsed() > 3 * MAX_PIN
    });
    assert_eq!(tx.commit().unwrap().len(), count);
    assert_eq!(server.ask::<usize>(&["GET", "m"]), count);
    assert_eq!(sessions.status().transactional.counts.replaced, []);
}

#[test]
fn a_scope_whose_time_ends_inside_a_call_is_reclaimed_when_the_call_ends() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    server.ask::<()>(&["SET", "n", "7"]);
    let sessions = one_connection(proxy.url());
    let mut watching = sessions.transactional().watch(["n"]).begin().unwrap();
    proxy.set_delays(Duration::ZERO, 3 * MAX_PIN);
    let n: i64 = watching.get("n").unwrap();
    let in_use = sessions.status().transactional.in_use;
    proxy.set_delays(Duration::ZERO, Duration::ZERO);
    assert_eq!((n, in_use), (7, 0), "the answer stands, and the connection is not held on to");
    let error = watching.get::<_, Option<i64>>("n").unwrap_err();
    assert!(is_expired(&error) && error.applied() == Applied::No, "{error}");
    capacity_comes_back(&sessions, &server);
    let mut tx = watching.multi();
    tx.incr("n", 1);
    assert!(matches!(tx.commit(), Err(Error::PinExpired(_))));
    assert_eq!(server.ask::<i64>(&["GET", "n"]), 7);
}

#[test]
fn a_call_that_waits_for_a_slow_connect_is_not_reclaimed() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let sessions = one_connection(proxy.url());
    // Each reply of the handshake takes longer than a scope may be unused.
    proxy.set_delays(Duration::ZERO, 2 * MAX_PIN);
    let mut tx = sessions.transactional().begin().unwrap();
    proxy.set_delays(Duration::ZERO, Duration::ZERO);
    let n = tx.incr("n", 1);
    assert_eq!(tx.commit().unwrap().get(n).unwrap(), 1);
    let counts = sessions.status().transactional.counts;
    assert_eq!((counts.connects, counts.all_replaced(), counts.refused), (1, 0, 0));
}

#[test]
fn a_known_outcome_is_returned_however_long_it_took() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let sessions = one_connection(proxy.url());
    let accounts = sessions.transactional();
    accounts.run(|tx| Ok(tx.incr("n", 1))).unwrap();
    let mut tx = accounts.begin().unwrap();
    let n = tx.incr("n", 1);
    proxy.set_delays(Duration::ZERO, 3 * MAX_PIN);
    let replies = tx.commit().unwrap();
    proxy.set_delays(Duration::ZERO, Duration::ZERO);
    assert_eq!(replies.get(n).unwrap(), 2);
    crate::side::settled(&sessions);
    let status = sessions.status().transactional;
    assert_eq!(status.in_use, 0);
    assert_eq!(status.counts.replaced, [], "its connection is kept");
    // The reaper had run in vain; its request is done now, without an effect.
    assert_eq!(accounts.run(|tx| Ok(tx.incr("n", 1))).unwrap(), 3);
}
