//! Which blocks join a batch, how many there are, and until when one may still leave it.
//!
//! Guarantee: grouped

use std::time::Duration;

use rediscope::error::CheckoutError;
use rediscope::prelude::*;
use rediscope::{Begin, Error, TransactionOptions};

use super::fixture::{Call, push, start, start_with};
use crate::fixture::{Fixture, LONG, SOON};

#[test]
fn no_batch_has_more_blocks_than_the_limit() {
    let fixture = start_with(|builder| builder.max_group(4));
    let mut turns = 0;
    let reported = fixture.at_once((0..12).map(push).collect(), || turns = fixture.proxy.turns());
    assert!(reported.iter().all(Result::is_ok));
    assert_eq!(fixture.proxy.turns() - turns, 3);
    assert_eq!(fixture.list("list").len(), 12);
}

#[test]
fn no_batch_has_more_bytes_than_the_limit() {
    let big = |nth: usize| -> Call<'_, i64> {
        Box::new(move |handle| handle.run(|tx| Ok(tx.rpush("list", format!("{nth:05000}")))))
    };
    let fixture = start_with(|builder| builder.flush_bytes(11_000));
    let mut turns = 0;
    let reported = fixture.at_once((0..6).map(big).collect(), || turns = fixture.proxy.turns());
    assert!(reported.iter().all(Result::is_ok), "{reported:?}");
    assert_eq!(fixture.proxy.turns() - turns, 3, "two at a time");
}

#[test]
fn a_scope_that_waits_is_not_passed_over() {
    let fixture = start();
    let scope: Call<'_, i64> = Box::new(|handle| {
        let mut tx = handle.begin()?;
        let length = tx.rpush("list", "scope");
        tx.commit()?.get(length)
    });
    let calls = vec![push(0), push(1), scope, push(3), push(4)];
    let reported = fixture.at_once(calls, || {});
    let lengths: Vec<_> = reported.into_iter().map(Result::unwrap).collect();
    assert_eq!(lengths, [1, 2, 3, 4, 5]);
    assert_eq!(fixture.list("list"), ["0", "1", "scope", "3", "4"]);
}

/// One round trip of its own each, however many wait.
#[track_caller]
fn alone(what: &str, call: fn(&Fixture) -> Call<'static, i64>) {
    let fixture = start();
    let calls = vec![push(0), push(1), call(&fixture), push(3), push(4)];
    let mut turns = 0;
    let reported = fixture.at_once(calls, || turns = fixture.proxy.turns());
    assert!(reported.iter().all(Result::is_ok), "{what}: {reported:?}");
    let groups = fixture.sent().split(|word| word == "RPUSH").count() - 1;
    assert!(groups >= 4, "{what}: {groups}");
    assert!(fixture.proxy.turns() - turns >= 3, "{what} travelled with others");
    let list = fixture.list("list");
    assert_eq!([&list[..2], &list[list.len() - 2..]].concat(), ["0", "1", "3", "4"], "{what}");
}

#[test]
fn blocks_that_might_delay_others_are_sent_alone() {
    alone("a script", |_| {
        Box::new(|handle| handle.run(|tx| Ok(tx.eval("return 1", &[] as &[&str], &[] as &[&str]))))
    });
    alone("a command of the caller's own", |_| {
        Box::new(|handle| handle.run(|tx| Ok(tx.queue(redis::cmd("INCR").arg("n").take()))))
    });
    alone("a range", |_| {
        Box::new(|handle| {
            handle.run(|tx| Ok(tx.lrange::<_, Vec<String>>("list", 0, -1)))?;
            Ok(0)
        })
    });
    alone("many commands", |_| {
        Box::new(|handle| {
            handle.run(|tx| {
                for _ in 0..70 {
                    tx.incr("n", 1);
                }
                Ok(tx.incr("n", 1))
            })
        })
    });
    alone("many bytes", |_| {
        Box::new(|handle| handle.run(|tx| Ok(tx.append("big", "x".repeat(9_000)))))
    });
    alone("exactly once by key", |_| {
        Box::new(|handle| {
            let once = TransactionOptions::new().exactly_once_as("key", Duration::from_secs(60));
            handle.with(once).run(|tx| Ok(tx.incr("n", 1)))
        })
    });
    alone("replicas", |_| {
        Box::new(|handle| {
            let replicated = TransactionOptions::new().wait_replicas(0, Duration::from_millis(10));
            handle.with(replicated).run(|tx| Ok(tx.incr("n", 1)))
        })
    });
    alone("fenced", |fixture| {
        let guard = fixture.sessions.lock("l").lease(LONG).acquire(SOON).unwrap();
        Box::new(move |handle| {
            let fenced = handle.fenced_by(&guard);
            fenced.run(|tx| Ok(tx.incr("n", 1)))
        })
    });
    alone("watched", |_| Box::new(|handle| handle.watch(["n"]).run(|_, tx| Ok(tx.incr("n", 1)))));
    alone("at once", |_| {
        Box::new(|handle| {
            let immediate = handle.with(TransactionOptions::new().begin(Begin::Immediate));
            immediate.run(|tx| Ok(tx.incr("n", 1)))
        })
    });
}

#[test]
fn a_wait_that_is_too_long_ends_before_anything_is_sent() {
    let fixture = start_with(|builder| {
        builder
            .connect_timeout(Duration::from_millis(50))
            .response_timeout(Duration::from_millis(50))
            .checkout_timeout(Duration::from_millis(200))
    });
    fixture.sessions.transactional().run(|tx| Ok(tx.exists("nothing"))).unwrap();
    let held = fixture.sessions.transactional().begin().unwrap();
    let late = fixture.grouped().run(|tx| Ok(tx.rpush("list", 1)));
    assert!(matches!(late, Err(Error::Checkout(CheckoutError::Timeout(_)))), "{late:?}");
    drop(held);
    fixture.grouped().run(|tx| Ok(tx.rpush("list", 2))).unwrap();
    assert_eq!(fixture.list("list"), ["2"]);
}
