//! Who is served when, and what a caller is told who is not.

use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rediscope::{
    CheckoutError, CheckoutTimeout, CommitError, ConnectionErrorKind, Error, TransactionOptions,
    Transactional, prelude::*,
};

use super::{CHECKOUT, HOUR, PATIENCE, SLACK, fail_fast, immediate, patient};
use rediscope_testing::eventually;
use rediscope_testing::server::Server;

#[test]
fn callers_are_served_in_the_order_in_which_they_came() {
    let server = Server::start();
    let sessions = patient(&server).max_size(1).build().unwrap();
    let accounts = sessions.transactional();
    let held = accounts.begin().unwrap();
    let served = Arc::new(Mutex::new(Vec::new()));
    let callers: Vec<_> = (0..12)
        .map(|nth| {
            let (accounts, served) = (accounts.clone(), Arc::clone(&served));
            let caller = thread::spawn(move || {
                let tx = accounts.begin().unwrap();
                served.lock().unwrap().push(nth);
                drop(tx);
            });
            let waiting = || sessions.status().transactional.waiting;
            eventually(PATIENCE, "the caller waits", || waiting() == nth + 1);
            caller
        })
        .collect();
    drop(held);
    callers.into_iter().for_each(|caller| caller.join().unwrap());
    assert_eq!(*served.lock().unwrap(), (0..12).collect::<Vec<_>>());
    assert_eq!(server.clients(), 1, "all of them on one connection");
}

#[test]
fn single_commands_wait_in_the_same_order() {
    let server = Server::start();
    let sessions = patient(&server).max_size(1).build().unwrap();
    let (let_go, held) = mpsc::channel::<()>();
    let db = sessions.pooled();
    let holder = thread::spawn(move || db.with_raw(|_| held.recv().unwrap_err()).unwrap());
    eventually(PATIENCE, "it is held", || sessions.status().pooled.in_use == 1);
    let callers: Vec<_> = (0..8)
        .map(|nth| {
            let mut db = sessions.pooled();
            let caller = thread::spawn(move || db.rpush::<_, _, ()>("served", nth).unwrap());
            eventually(PATIENCE, "the caller waits", || {
                sessions.status().pooled.waiting == nth + 1
            });
            caller
        })
        .collect();
    drop(let_go);
    holder.join().unwrap();
    callers.into_iter().for_each(|caller| caller.join().unwrap());
    let served: Vec<usize> = server.ask(&["LRANGE", "served", "0", "-1"]);
    assert_eq!(served, (0..8).collect::<Vec<_>>());
}

#[test]
fn a_checkout_timeout_lists_the_holders_oldest_first() {
    let server = Server::start();
    let sessions = fail_fast(&server).max_size(2).build().unwrap();
    let accounts = sessions.transactional();
    let named = accounts.with(TransactionOptions::new().name("transfer"));
    let (first, line) = (named.begin().unwrap(), line!());
    let plain = accounts.clone();
    let other = thread::Builder::new().name("other-thread".to_owned());
    let second = other.spawn(move || plain.begin().unwrap()).unwrap().join().unwrap();

    let begun = Instant::now();
    let timeout = timeout(accounts.begin().map(drop));
    assert!(begun.elapsed() >= CHECKOUT && timeout.waited >= CHECKOUT);
    assert!(begun.elapsed() < CHECKOUT + SLACK);
    let CheckoutTimeout { max_size, in_use, idle, waiters, holders, .. } = &timeout;
    assert_eq!((*max_size, *in_use, *idle, *waiters), (2, 2, 0, 1));
    assert!(timeout.last_connect_error.is_none());
    assert_eq!(holders.len(), 2);
    assert_eq!(holders[0].name.as_deref(), Some("transfer"));
    assert_eq!((holders[0].begun_at.file(), holders[0].begun_at.line()), (file!(), line));
    assert!(holders[0].age >= holders[1].age, "the oldest comes first");
    assert_eq!(&*holders[1].thread, "other-thread");
    let text = timeout.to_string();
    for part in ["2 of 2 in use", "0 idle", "1 waiting", "\"transfer\"", "\"other-thread\""] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    assert!(text.contains(&format!("{}:{line}:", file!())), "{text}");
    drop((first, second));
    accounts.begin().unwrap().commit().unwrap();
}

#[test]
fn a_timeout_names_the_last_failure_to_connect() {
    let server = Server::start();
    let sessions = fail_fast(&server).max_size(1).trust_window(Duration::ZERO).build().unwrap();
    let accounts = sessions.transactional();
    let mut tx = accounts.begin().unwrap();
    tx.set("a", 1);
    let waiter = thread::spawn({
        let accounts = accounts.clone();
        move || accounts.begin().map(drop)
    });
    eventually(PATIENCE, "it waits", || sessions.status().transactional.waiting == 1);
    // The holder now tries in vain to replace its connection, and the waiter's time ends first.
    server.sigkill();
    let lost = tx.commit().unwrap_err();
    assert!(matches!(lost, CommitError::NotSent { .. }), "{lost}");
    match waiter.join().unwrap() {
        Err(Error::Checkout(CheckoutError::Timeout(timeout))) => {
            let error = timeout.last_connect_error.as_ref().expect("why there is no connection");
            assert_eq!(error.kind(), ConnectionErrorKind::Closed);
            assert!(format!("{timeout:#}").contains("failure to connect: connection closed"));
        }
        // The holder gave up in the same moment, and the waiter got its place too late.
        Err(Error::Checkout(CheckoutError::Connect { waited, source, .. })) => {
            assert_eq!(source.kind(), ConnectionErrorKind::Closed);
            assert!(waited > Duration::from_millis(100), "the whole wait: {waited:?}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_waiting_caller_is_served_however_the_holder_ends() {
    let server = Server::start();
    let sessions =
        patient(&server).max_size(1).max_pin_time(Duration::from_millis(300)).build().unwrap();
    let accounts = sessions.transactional();
    type End = fn(Transactional, mpsc::Receiver<()>);
    let ends: [(&str, End); 6] = [
        ("dropped", |accounts, go| {
            let _tx = accounts.begin().unwrap();
            go.recv().unwrap();
        }),
        ("committed", |accounts, go| {
            let mut tx = accounts.begin().unwrap();
            tx.set("a", 1);
            go.recv().unwrap();
            tx.commit().unwrap();
        }),
        ("in MULTI and dropped", |accounts, go| {
            let _tx = accounts.begin_with(immediate()).unwrap();
            go.recv().unwrap();
        }),
        ("forgotten", |accounts, go| {
            std::mem::forget(accounts.begin().unwrap());
            go.recv().unwrap();
        }),
        ("forgotten in MULTI by a thread that died", |accounts, go| {
            std::mem::forget(accounts.begin_with(immediate()).unwrap());
            go.recv().unwrap();
            panic!("on purpose");
        }),
        ("held by a thread that died", |accounts, go| {
            let _tx = accounts.watch(["a"]).begin().unwrap().multi();
            go.recv().unwrap();
            panic!("on purpose");
        }),
    ];
    for (how, end) in ends {
        let (go, told) = mpsc::channel();
        let holder = thread::spawn({
            let accounts = accounts.clone();
            move || end(accounts, told)
        });
        eventually(PATIENCE, how, || sessions.status().transactional.in_use == 1);
        let waiter = thread::spawn({
            let accounts = accounts.clone();
            move || accounts.run(|tx| Ok(tx.incr("served", 1)))
        });
        eventually(PATIENCE, how, || sessions.status().transactional.waiting == 1);
        go.send(()).unwrap();
        let _ = holder.join();
        waiter.join().unwrap().unwrap_or_else(|error| panic!("{how}: {error}"));
        eventually(PATIENCE, how, || sessions.status().transactional.in_use == 0);
        assert!(server.clients() <= 1, "{how}: a connection too much");
    }
}

#[test]
fn a_guard_that_waits_for_its_own_thread_times_out_and_a_closure_fails_at_once() {
    let server = Server::start();
    let sessions = fail_fast(&server).max_size(1).build().unwrap();
    let accounts = sessions.transactional();
    let tx = accounts.begin().unwrap();
    assert_eq!(timeout(accounts.begin().map(drop)).holders.len(), 1);
    drop(tx);

    // This one waits for an hour, if it waits.
    let sessions = patient(&server).max_size(1).checkout_timeout(HOUR).build().unwrap();
    let accounts = sessions.transactional();
    let inner = accounts.watch(["a"]).run(|_, _| {
        accounts.run(|tx| Ok(tx.incr("a", 1)))?;
        Ok(())
    });
    match inner {
        Err(error) => {
            let Some(CheckoutError::WouldDeadlock { holders }) = checkout_error(&error) else {
                panic!("{error}");
            };
            assert_eq!(holders.len(), 1);
            assert!(holders[0].is_closure && holders[0].begun_at.file() == file!());
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(accounts.run(|tx| Ok(tx.incr("a", 1))).unwrap(), 1, "and the pool is whole");
}

/// Why no connection was given. A block needs its connection when it commits.
fn checkout_error(error: &Error) -> Option<&CheckoutError> {
    match error {
        Error::Checkout(error) => Some(error),
        Error::Commit(error) => match &**error {
            CommitError::NotSent { source, .. } => checkout_error(source),
            _ => None,
        },
        _ => None,
    }
}

#[track_caller]
fn timeout(result: Result<(), Error>) -> CheckoutTimeout {
    match result {
        Err(Error::Checkout(CheckoutError::Timeout(timeout))) => *timeout,
        other => panic!("{other:?}"),
    }
}
