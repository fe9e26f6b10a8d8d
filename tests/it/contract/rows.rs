//! The rows of the contract.
//!
//! Guarantee: committed, conflict, rejected, partly-applied, not-sent, in-doubt, not-isolated, reply-errors, pin-expired, checkout-errors

use crate::fixture::{LONG, OF_ONE, SOON, add_on_each, add_on_each_pooled, unhurried};
use crate::side::{BuildSide as _, ResolveDoubt as _, open_lanes, open_pooled_lanes};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::side::SessionManager;
use rediscope::error::{Applied, CheckoutError, ConnectionErrorKind, ReplyError, Resolution};
use rediscope::prelude::*;
use rediscope::{
    CommitError, Credentials, Error, Outcome, Queued, RetryPolicy, RotatingCredentials,
    TransactionOptions, redis,
};

use super::topologies::{Standalone, Topology};
use rediscope_testing::eventually;

macro_rules! on_every_topology {
    ($($row:ident)+) => {
        mod standalone { $(
            #[test]
            fn $row() { super::$row(&super::Standalone::start()); }
        )+ }

        #[cfg(feature = "tls-rustls")]
        mod tls { $(
            #[test]
            fn $row() { super::$row(&crate::contract::topologies::OverTls::start()); }
        )+ }

        mod sentinel { $(
            #[test]
            fn $row() { super::$row(&crate::contract::topologies::BehindSentinels::start()); }
        )+ }

        mod cluster { $(
            #[test]
            fn $row() { super::$row(&crate::contract::topologies::InCluster::start()); }
        )+ }
    };
}

on_every_topology! {
    replies_and_committed
    conflict
    rejected
    partly_applied
    not_sent
    in_doubt
    not_isolated
    reply_errors
    pin_expired
    checkout_errors
    credentials_that_change
    credentials_that_are_wrong
}

fn get(topology: &dyn Topology, key: &str) -> Option<String> {
    let mut found = None;
    topology.with(&mut |server| found = server.ask(&["GET", key]));
    found
}

fn one(topology: &dyn Topology) -> SessionManager {
    let builder = unhurried(topology.builder()).max_size(1).trust_window(LONG);
    let sessions = builder.build_side().unwrap();
    warm(&sessions, topology);
    sessions
}

fn warm(sessions: &SessionManager, topology: &dyn Topology) {
    sessions.transactional().begin_at(topology.key("any")).unwrap().discard().unwrap();
    open_lanes(sessions, &topology.key("any"));
}

/// The next one finds a clean connection, and nothing is held.
#[track_caller]
fn next(sessions: &SessionManager, topology: &dyn Topology) {
    let key = topology.key("next");
    let done = sessions.transactional().run(|tx| Ok((tx.set(&key, 1), tx.incr(&key, 1))));
    assert_eq!(done.unwrap().1, 2);
    add_on_each(&sessions.transactional(), &key);
    assert_eq!(get(topology, &key), Some((2 + OF_ONE).to_string()));
    let pool = sessions.status().transactional;
    assert_eq!((pool.in_use, pool.scopes.len()), (0, 0), "{pool}");
}

#[track_caller]
fn assert_outcome(error: &Error, applied: Applied, retryable: bool) {
    assert_eq!((error.applied(), error.is_retryable()), (applied, retryable), "{error}");
}

fn replies_and_committed(topology: &dyn Topology) {
    let sessions = one(topology);
    let (accounts, key) = (sessions.transactional(), topology.key("n"));
    assert_eq!(accounts.run(|tx| Ok((tx.incr(&key, 1), tx.incr(&key, 2)))).unwrap(), (1, 3));
    let mut watching = accounts.watch([&key]).begin().unwrap();
    let n: i64 = watching.get(&key).unwrap();
    let mut tx = watching.multi();
    let next_one = tx.incr(&key, n);
    match tx.commit().unwrap() {
        Outcome::Committed(replies) => assert_eq!(replies.get(next_one).unwrap(), 6),
        Outcome::Conflict => panic!("no other client was there"),
    }
    next(&sessions, topology);
}

fn conflict(topology: &dyn Topology) {
    let sessions = one(topology);
    let (accounts, key) = (sessions.transactional(), topology.key("n"));
    let change = || topology.with(&mut |server| server.ask::<()>(&["SET", &key, "0"]));
    let mut runs = 0;
    let once = accounts.watch([&key]).run(|read, tx| {
        runs += 1;
        if read.attempt() == 1 {
            change();
        }
        Ok(tx.incr(&key, 1))
    });
    assert_eq!((once.unwrap(), runs), (1, 2));
    let always = accounts.watch([&key]).retry(RetryPolicy::default().attempts(3)).run(|_, tx| {
        change();
        Ok(tx.incr(&key, 1))
    });
    assert!(matches!(always, Err(Error::RetriesExhausted { attempts: 3, .. })), "{always:?}");
    assert_eq!(get(topology, &key).as_deref(), Some("0"));
    next(&sessions, topology);
}

fn rejected(topology: &dyn Topology) {
    let sessions = one(topology);
    let key = topology.key("n");
    let mut tx = sessions.transactional().begin().unwrap();
    tx.incr(&key, 1);
    tx.queue::<()>(redis::cmd("GETRANGE").arg(&key).take());
    let error = tx.commit().unwrap_err();
    assert_outcome(&error, Applied::No, false);
    assert!(
        matches!(&error, Error::Commit(CommitError::Rejected { index: Some(1), code, .. }) if code == "ERR")
    );
    assert_eq!(get(topology, &key), None);
    next(&sessions, topology);
}

fn partly_applied(topology: &dyn Topology) {
    let sessions = one(topology);
    let (key, list) = (topology.key("n"), topology.key("list"));
    let mut tx = sessions.transactional().begin().unwrap();
    tx.rpush(&list, 1);
    let failed = tx.incr(&list, 1);
    let fine = tx.incr(&key, 1);
    let error = tx.commit().unwrap_err();
    assert_outcome(&error, Applied::Partly, false);
    let Error::Commit(CommitError::PartlyApplied { replies, .. }) = error else {
        panic!("{error}")
    };
    assert_eq!(replies.get(fine).unwrap(), 1);
    assert!(matches!(replies.get(failed), Err(Error::Reply(ReplyError::Failed { index: 1, .. }))));
    assert_eq!(get(topology, &key).as_deref(), Some("1"));
    next(&sessions, topology);
}

fn not_sent(topology: &dyn Topology) {
    let sessions = one(topology);
    let (accounts, key) = (sessions.transactional(), topology.key("n"));
    let mut watching = accounts.watch([&key]).begin().unwrap();
    assert_eq!(watching.exists(&key).unwrap(), 0);
    // What watches cannot change its connection.
    topology.with(&mut |server| {
        server.kill_all_clients_except_me();
    });
    let lost = watching.exists(&key).unwrap_err();
    assert_eq!(lost.applied(), Applied::No);
    let mut tx = watching.multi();
    tx.incr(&key, 1);
    let error = tx.commit().unwrap_err();
    assert_outcome(&error, Applied::No, true);
    assert!(matches!(error, Error::Commit(CommitError::NotSent { .. })), "{error}");
    assert_eq!(get(topology, &key), None);
    next(&sessions, topology);
}

fn in_doubt(topology: &dyn Topology) {
    let sessions = one(topology);
    let (accounts, key) = (sessions.transactional(), topology.key("n"));
    let once = accounts.with(TransactionOptions::new().exactly_once());
    for (handle, resolvable) in [(&accounts, false), (&once, true)] {
        // Not by `run`, which may use another connection than a guard.
        let mut tx = handle.begin_at(&key).unwrap();
        tx.set(&key, 0);
        tx.commit().unwrap();
        let mut tx = handle.begin_at(&key).unwrap();
        tx.incr(&key, 1);
        topology.with(&mut |server| server.pause_writes(LONG.as_millis() as u64));
        let lose = || {
            topology.with(&mut |server| {
                let waits = || server.client_list().iter().any(|it| it["flags"].contains('b'));
                eventually(SOON, "EXEC waits on the server", waits);
                server.kill_all_clients_except_me();
                server.unpause();
            });
        };
        let error = thread::scope(|scope| {
            scope.spawn(lose);
            tx.commit().unwrap_err()
        });
        assert_outcome(&error, Applied::Unknown, false);
        let Error::Commit(CommitError::InDoubt(doubt)) = error else { panic!("{error}") };
        // It was applied in the end, or never: `resolve` decides it.
        match doubt.resolved() {
            Resolution::Committed if resolvable => {
                assert_eq!(get(topology, &key).as_deref(), Some("1"));
            }
            Resolution::NotCommitted if resolvable => {
                assert_eq!(get(topology, &key).as_deref(), Some("0"));
            }
            Resolution::StillUnknown { .. } if !resolvable => {}
            other => panic!("{other:?}"),
        }
    }
    next(&sessions, topology);
}

fn not_isolated(topology: &dyn Topology) {
    let sessions = one(topology);
    let (accounts, key) = (sessions.transactional(), topology.key("n"));
    // A connection that is opened later would be refused.
    assert_eq!(accounts.run(|tx| Ok(tx.exists(&key))).unwrap(), 0);
    topology.with(&mut |server| drop(server.acl(&["SETUSER", "default", "-multi"])));
    let error = accounts.run(|tx| Ok(tx.incr(&key, 1))).unwrap_err();
    topology.with(&mut |server| drop(server.acl(&["SETUSER", "default", "+multi"])));
    assert_outcome(&error, Applied::Yes, false);
    assert!(matches!(error, Error::Commit(CommitError::NotIsolated { .. })), "{error}");
    assert_eq!(get(topology, &key).as_deref(), Some("1"));
    next(&sessions, topology);
}

fn reply_errors(topology: &dyn Topology) {
    let sessions = one(topology);
    let (accounts, key) = (sessions.transactional(), topology.key("n"));
    let mut tx = accounts.begin().unwrap();
    let mut part = tx.savepoint();
    let forgotten: Queued<i64> = part.incr(&key, 5);
    drop(part);
    let number = tx.incr(&key, 1);
    let replies = tx.commit().unwrap();
    assert_eq!(replies.get(forgotten).unwrap_err().as_reply(), Some(&ReplyError::Forgotten));
    let other: Queued<Vec<String>> = number.cast();
    assert!(matches!(replies.get(other), Err(Error::Reply(ReplyError::Unexpected { .. }))));
    let mut foreign = accounts.begin().unwrap();
    let of_another = foreign.incr(&key, 1);
    assert_eq!(replies.get(of_another).unwrap_err().as_reply(), Some(&ReplyError::Foreign));
    foreign.discard().unwrap();
    assert_eq!(get(topology, &key).as_deref(), Some("1"));
    next(&sessions, topology);
}

fn pin_expired(topology: &dyn Topology) {
    let sessions = topology.builder().max_pin_time(Duration::from_millis(50)).build_side().unwrap();
    let key = topology.key("n");
    let mut tx = sessions.transactional().begin_at(&key).unwrap();
    tx.incr(&key, 1);
    eventually(SOON, "it is taken back", || sessions.open_scopes().is_empty());
    let error = tx.commit().unwrap_err();
    assert_outcome(&error, Applied::No, false);
    assert!(matches!(error, Error::PinExpired(_)), "{error}");
    assert_eq!(get(topology, &key), None);
}

fn checkout_errors(topology: &dyn Topology) {
    let sessions = topology
        .builder()
        .max_size(1)
        .connect_timeout(Duration::from_millis(300))
        .response_timeout(Duration::from_millis(300))
        .checkout_timeout(Duration::from_millis(900))
        .build_side()
        .unwrap();
    let (accounts, key) = (sessions.transactional(), topology.key("n"));
    let held = accounts.begin_at(&key).unwrap();
    let full = accounts.begin_at(&key).map(drop).unwrap_err();
    assert_eq!((full.applied(), full.is_retryable()), (Applied::No, true));
    match &full {
        Error::Checkout(CheckoutError::Timeout(timeout)) => {
            assert_eq!((timeout.in_use, timeout.holders.len()), (1, 1), "{timeout}");
            assert!(full.to_string().contains("rows.rs"), "{full}");
        }
        other => panic!("{other}"),
    }
    held.discard().unwrap();
    sessions.close(SOON);
    let closed = accounts.run(|tx| Ok(tx.incr(&key, 1))).unwrap_err();
    assert!(matches!(closed, Error::Checkout(CheckoutError::Closed)), "{closed}");
    assert_eq!(get(topology, &key), None);
}

fn credentials_that_change(topology: &dyn Topology) {
    let user = |name: &str| {
        let rules = ["SETUSER", name, "on", ">secret", "~*", "&*", "+@all"];
        topology.each(&mut |server| drop(server.acl(&rules)));
        Credentials::new(name, "secret")
    };
    let credentials = Arc::new(RotatingCredentials::new(user("former")));
    let sessions = topology
        .builder()
        .credentials_provider(Arc::clone(&credentials))
        .max_size(1)
        .build_side()
        .unwrap();
    let (accounts, mut db) = (sessions.transactional(), sessions.pooled());
    let key = topology.key("n");
    open_lanes(&sessions, &key);
    open_pooled_lanes(&sessions, &key);
    let mut each = || {
        add_on_each(&accounts, &key);
        add_on_each_pooled(&mut db, &key);
    };
    each();
    credentials.rotate(user("latter"));
    each();
    topology.with(&mut |server| {
        let list = server.client_list();
        let of = |name| list.iter().filter(|client| client["user"] == name).count();
        assert_eq!((of("former"), of("latter")), (0, 2 * OF_ONE), "{list:?}");
    });
    let status = sessions.status();
    for counts in [status.pooled.counts, status.transactional.counts] {
        let of_one = OF_ONE as u64;
        assert_eq!((counts.connects, counts.reauthentications), (of_one, of_one));
    }
    assert_eq!(get(topology, &key), Some((4 * OF_ONE).to_string()));
}

fn credentials_that_are_wrong(topology: &dyn Topology) {
    let rules = ["SETUSER", "app", "on", ">secret", "~*", "&*", "+@all"];
    topology.each(&mut |server| drop(server.acl(&rules)));
    let key = topology.key("n");
    let sessions = topology.builder_as("app", "guess").checkout_timeout(SOON).build_side().unwrap();
    let reported = [
        sessions.transactional().run(|tx| Ok(tx.incr(&key, 1))).map(drop),
        sessions.pooled().incr::<_, _, ()>(&key, 1).map_err(Error::from),
    ];
    for reported in reported {
        let Err(Error::Checkout(CheckoutError::Connect { source, waited, .. })) = &reported else {
            panic!("{reported:?}");
        };
        let code = source.server_error().map(|error| error.code());
        assert_eq!(
            (source.kind(), code),
            (ConnectionErrorKind::Refused, Some("WRONGPASS")),
            "{source}"
        );
        assert!(*waited < SOON / 2, "a verdict is no matter of time: {waited:?}");
    }
    let sessions = topology.builder_as("app", "secret").build_side().unwrap();
    assert_eq!(sessions.transactional().run(|tx| Ok(tx.incr(&key, 1))).unwrap(), 1);
}
