//! `CheckoutError`: no connection was given, and the error has the reason and the scopes that hold
//! the connections.
//!
//! Guarantee: checkout-errors

use crate::fixture::{LONG, SOON, immediate};
use crate::side::{BuildSide as _, SessionManager, Transactional};
use std::thread;
use std::time::Duration;

use rediscope::TransactionOptions;
use rediscope::error::{Applied, CheckoutError, CheckoutTimeout, ConnectionErrorKind};
use rediscope::prelude::*;
use rediscope::{Builder, Error};

use crate::fixture::proxied::{exists, get, pool_is_whole};
use rediscope_testing::eventually;
use rediscope_testing::server::Server;

/// What a checkout may take in these tests.
const CHECKOUT: Duration = Duration::from_millis(1500);

fn fail_fast(server: &Server, max_size: u32) -> Builder {
    SessionManager::builder(server.url())
        .max_size(max_size)
        .trust_window(LONG)
        .connect_timeout(CHECKOUT / 3)
        .response_timeout(CHECKOUT / 3)
        .checkout_timeout(CHECKOUT)
}

fn patient(server: &Server, max_size: u32) -> SessionManager {
    SessionManager::builder(server.url())
        .max_size(max_size)
        .checkout_timeout(Duration::from_secs(600))
        .build_side()
        .unwrap()
}

#[track_caller]
fn checkout<T>(result: Result<T, Error>, retryable: bool) -> CheckoutError {
    match result {
        Ok(_) => panic!("a connection was given"),
        Err(error) => {
            assert_eq!((error.applied(), error.is_retryable()), (Applied::No, retryable));
            match error {
                Error::Checkout(error) => error,
                error => panic!("{error:?}"),
            }
        }
    }
}

/// A block needs its connection when it commits: why it was not sent.
fn not_sent<T>(result: Result<T, Error>) -> Result<T, Error> {
    result.map_err(|error| match error.as_commit() {
        Some(rediscope::CommitError::NotSent { source, .. }) => (**source).clone(),
        _ => error,
    })
}

#[track_caller]
fn timeout<T>(result: Result<T, Error>) -> CheckoutTimeout {
    match checkout(result, true) {
        CheckoutError::Timeout(timeout) => *timeout,
        error => panic!("{error:?}"),
    }
}

#[test]
fn a_timeout_names_the_holders_their_places_threads_and_ages() {
    let server = Server::start();
    let sessions = fail_fast(&server, 2).build_side().unwrap();
    let accounts = sessions.transactional();
    let named = accounts.with(TransactionOptions::new().name("nightly"));
    let (mut first, line) = (accounts.begin().unwrap(), line!());
    first.set("key", 1);
    let second = thread::Builder::new().name("worker-7".to_owned());
    let (second, second_line) =
        second.spawn(move || (named.begin().unwrap(), line!())).unwrap().join().unwrap();

    let timeout = timeout(accounts.begin());
    assert!((CHECKOUT..CHECKOUT + SOON).contains(&timeout.waited), "{timeout:?}");
    assert_eq!((timeout.max_size, timeout.in_use, timeout.idle, timeout.waiters), (2, 2, 0, 1));
    assert!(timeout.last_connect_error.is_none());
    let [oldest, youngest] = &timeout.holders[..] else { panic!("{:?}", timeout.holders) };
    assert_eq!((oldest.name.as_deref(), oldest.is_closure), (None, false));
    assert_eq!((oldest.begun_at.file(), oldest.begun_at.line()), (file!(), line));
    assert_eq!(&*oldest.thread, thread::current().name().unwrap());
    assert_eq!((youngest.name.as_deref(), &*youngest.thread), (Some("nightly"), "worker-7"));
    assert_eq!(youngest.begun_at.line(), second_line);
    assert!(oldest.age >= youngest.age && youngest.age >= CHECKOUT);

    let text = timeout.to_string();
    for word in ["2 of 2 in use", "0 idle", "1 waiting", "\"nightly\"", "\"worker-7\"", file!()] {
        assert!(text.contains(word), "no {word} in: {text}");
    }
    assert!(text.contains(&format!("{}:{line}:", file!())), "{text}");
    drop(second);
    first.commit().unwrap();
    assert_eq!(get(&server, "key").unwrap(), "1");
    pool_is_whole(&sessions, &server);
}

#[test]
fn a_timeout_counts_every_waiting_caller() {
    let server = Server::start();
    let sessions = fail_fast(&server, 1).build_side().unwrap();
    let accounts = sessions.transactional();
    let held = accounts.begin().unwrap();
    let mut waiters: Vec<usize> = thread::scope(|scope| {
        let threads: Vec<_> =
            (0..3).map(|_| scope.spawn(|| timeout(accounts.begin()).waiters)).collect();
        eventually(SOON, "three wait", || sessions.status().transactional.waiting == 3);
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    waiters.sort_unstable();
    assert_eq!(waiters, [1, 2, 3]);
    drop(held);
    pool_is_whole(&sessions, &server);
}

#[test]
fn a_run_that_finds_no_connection_is_not_sent_and_its_closure_ran_once() {
    let server = Server::start();
    let sessions = fail_fast(&server, 1).build_side().unwrap();
    let accounts = sessions.transactional();
    let held = accounts.begin().unwrap();
    let mut runs = 0;
    // A block that no lane carries.
    let error = accounts.with(immediate()).run(|tx| {
        runs += 1;
        Ok(tx.set("key", 1))
    });
    let error = error.unwrap_err();
    assert_eq!((error.applied(), error.is_retryable(), runs), (Applied::No, true, 1));
    assert_eq!(timeout(not_sent::<()>(Err(error))).in_use, 1);
    drop(held);
    assert!(!exists(&server, "key"));
    pool_is_whole(&sessions, &server);
}

#[test]
fn a_timeout_names_the_holders_connect_error() {
    let server = Server::start();
    let sessions = fail_fast(&server, 1).build_side().unwrap();
    let accounts = sessions.transactional();
    let mut reading = accounts.reading().begin().unwrap();
    assert_eq!(reading.get::<_, Option<i64>>("n").unwrap(), None);
    server.sigkill();
    assert!(reading.get::<_, Option<i64>>("n").is_err());
    let timeout = timeout(accounts.begin());
    assert_eq!((timeout.in_use, timeout.idle, timeout.holders.len()), (1, 0, 1));
    let last = timeout.last_connect_error.as_ref().unwrap();
    assert_eq!(last.kind(), ConnectionErrorKind::Closed);
    let chain = format!("{timeout:#}");
    assert!(chain.ends_with(&format!("failure to connect: {last}")), "{chain}");
    assert!(!timeout.to_string().contains(&last.to_string()), "{timeout}");
    server.restart_on_same_port();
    drop(reading);
    pool_is_whole(&sessions, &server);
}

crate::side::threads_only! {
    #[test]
    fn a_closure_that_waits_for_its_own_connection_fails_at_once() {
        let server = Server::start();
        // Were it to wait, the test would.
        let sessions = patient(&server, 1);
        let accounts = sessions.transactional();
        let mut line = 0;
        let result = accounts.watch(["key"]).run(|_, outer| {
            outer.set("outer", 1);
            line = line!() + 1;
            accounts.watch(["key"]).run(|_, inner| Ok(inner.set("inner", 1)))?;
            Ok(())
        });
        match checkout(result, false) {
            CheckoutError::WouldDeadlock { holders, .. } => {
                assert_eq!(holders.len(), 1);
                assert!(holders[0].is_closure && holders[0].begun_at.file() == file!());
                assert!(holders[0].begun_at.line() < line);
            }
            error => panic!("{error:?}"),
        }
        assert!(!exists(&server, "outer") && !exists(&server, "inner"));
        type Inner = fn(&Transactional) -> Result<(), Error>;
        let inner: [Inner; 2] = [
            |accounts| accounts.begin().map(drop),
            |accounts| accounts.run(|tx| Ok(tx.set("inner", 1))),
        ];
        for inner in inner {
            let result = accounts.watch(["key"]).run(|_, tx| {
                tx.set("outer", 1);
                inner(&accounts)
            });
            assert!(matches!(checkout(not_sent(result), false), CheckoutError::WouldDeadlock { .. }));
        }
        assert!(!exists(&server, "outer") && !exists(&server, "inner"));
        pool_is_whole(&sessions, &server);
    }
}

crate::side::threads_only! {
    #[test]
    fn two_closures_that_wait_for_each_other_are_parted_at_once() {
        let server = Server::start();
        let sessions = patient(&server, 2);
        let accounts = sessions.transactional();
        let both_in = std::sync::Barrier::new(2);
        let greedy = || {
            accounts.watch(["key"]).run(|_, outer| {
                both_in.wait();
                outer.incr("outer", 1);
                let inner = accounts.begin()?;
                inner.discard()
            })
        };
        let results = thread::scope(|scope| {
            let other = scope.spawn(greedy);
            [greedy(), other.join().unwrap()]
        });
        // The second scope fails; its connection goes to the other one.
        let reported: Vec<_> = results.into_iter().filter_map(Result::err).collect();
        let [Error::Checkout(CheckoutError::WouldDeadlock { holders, .. })] = &reported[..] else {
            panic!("{reported:?}");
        };
        assert_eq!(holders.len(), 2);
        assert_eq!(get(&server, "outer").unwrap(), "1");
        pool_is_whole(&sessions, &server);
    }
}

#[test]
fn a_run_closure_holds_no_connection_so_that_blocks_may_nest() {
    let server = Server::start();
    let sessions = patient(&server, 1);
    let accounts = sessions.transactional();
    let (outer, inner) = accounts
        .run(|tx| {
            let inner = accounts.run(|tx| Ok(tx.incr("inner", 1)))?;
            Ok((tx.incr("outer", 1), Ready(inner)))
        })
        .unwrap();
    assert_eq!((outer, inner), (1, 1));
    assert_eq!(get(&server, "inner").unwrap(), "1");
    pool_is_whole(&sessions, &server);
}

crate::side::threads_only! {
    #[test]
    fn a_run_closure_that_was_sent_ahead_holds_a_connection_and_gets_the_deadlock_error() {
        let server = Server::start();
        let sessions = SessionManager::builder(server.url())
            .max_size(1)
            .flush_bytes(1)
            .checkout_timeout(Duration::from_secs(600))
            .build_side()
            .unwrap();
        let accounts = sessions.transactional();
        let result = accounts.run(|tx| {
            tx.set("outer", 1);
            accounts.begin().map(drop)
        });
        assert!(matches!(checkout(result, false), CheckoutError::WouldDeadlock { .. }));
        assert!(!exists(&server, "outer"));
        pool_is_whole(&sessions, &server);
    }
}

#[test]
fn a_guard_may_be_ended_by_another_thread_and_is_never_taken_for_a_deadlock() {
    let server = Server::start();
    let sessions = patient(&server, 1);
    let accounts = sessions.transactional();
    let mut guard = accounts.begin().unwrap();
    guard.set("key", "from elsewhere");
    thread::scope(|scope| {
        let elsewhere = scope.spawn(|| {
            eventually(SOON, "the other thread waits", || {
                sessions.status().transactional.waiting == 1
            });
            guard.commit().unwrap();
        });
        accounts.begin().unwrap().discard().unwrap();
        elsewhere.join().unwrap();
    });
    assert_eq!(get(&server, "key").unwrap(), "from elsewhere");

    let sessions = fail_fast(&server, 1).build_side().unwrap();
    let held = sessions.transactional().begin().unwrap();
    assert_eq!(timeout(sessions.transactional().begin()).holders.len(), 1, "its own, but a guard");
    drop(held);
    pool_is_whole(&sessions, &server);
}
