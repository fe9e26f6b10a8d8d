//! A transaction past one of its limits fails whole, before anything of it is sent.
//!
//! Guarantee: settings

use rediscope::Error;
use rediscope::prelude::*;

use super::fixture::{Quiet, unsent};

#[track_caller]
fn too_large(error: &Error) -> (&'static str, usize, &'static str) {
    match unsent(error) {
        Error::TooLarge { what, limit, setting, .. } => {
            let text = format!("{error:#}");
            assert!(text.contains(setting) && text.contains(&limit.to_string()), "{text}");
            (what, limit, setting)
        }
        error => panic!("not about size: {error:?}"),
    }
}

#[test]
fn a_transaction_may_hold_max_commands_and_not_one_more() {
    let mut quiet = Quiet::with(|builder| builder.max_commands(3));
    let expected = ("commands", 3, "max_commands");
    let accounts = quiet.sessions.transactional();
    let by_run =
        |count| accounts.run(move |tx| Ok((0..count).map(|_| tx.incr("n", 1)).collect::<Vec<_>>()));
    assert_eq!(too_large(&by_run(4).unwrap_err()), expected);
    quiet.nothing_was_sent();
    let mut tx = accounts.begin().unwrap();
    for _ in 0..3 {
        tx.incr("n", 1);
    }
    tx.check().unwrap();
    tx.incr("n", 1);
    assert_eq!(too_large(&tx.check().unwrap_err()), expected);
    tx.incr("n", 1);
    assert_eq!(too_large(&tx.commit().unwrap_err()), expected);
    quiet.nothing_was_sent();
    assert_eq!(by_run(3).unwrap(), [1, 2, 3]);
    assert_eq!(quiet.server.ask::<i64>(&["GET", "n"]), 3);
    quiet.nothing_was_lost();
}

#[test]
fn a_transaction_may_hold_max_bytes_and_not_one_command_more() {
    let mut quiet = Quiet::with(|builder| builder.max_bytes(1000).flush_bytes(10_000));
    let expected = ("bytes", 1000, "max_bytes");
    let accounts = quiet.sessions.transactional();
    let by_run = |length: usize| accounts.run(move |tx| Ok(tx.set("key", "x".repeat(length))));
    assert_eq!(too_large(&by_run(1000).unwrap_err()), expected);
    let several = accounts.run(|tx| {
        for _ in 0..10 {
            tx.append("key", "x".repeat(100));
        }
        Ok(())
    });
    assert_eq!(too_large(&several.unwrap_err()), expected);
    quiet.nothing_was_sent();
    by_run(900).unwrap();
    assert_eq!(quiet.server.ask::<i64>(&["STRLEN", "key"]), 900);
    quiet.nothing_was_lost();
}

crate::side::threads_only! {
    #[test]
    fn chunks_that_were_sent_ahead_count_and_are_discarded() {
        let mut quiet =
            Quiet::with(|builder| builder.max_bytes(1000).max_commands(20).flush_bytes(100));
        let accounts = quiet.sessions.transactional();
        let bytes = accounts.run(|tx| {
            for _ in 0..15 {
                tx.append("key", "x".repeat(100));
            }
            Ok(())
        });
        assert_eq!(too_large(&bytes.unwrap_err()).0, "bytes");
        let commands = accounts.run(|tx| {
            for _ in 0..25 {
                tx.append("key", "x");
            }
            Ok(())
        });
        assert_eq!(too_large(&commands.unwrap_err()).0, "commands");
        assert_eq!(quiet.server.calls("discard"), 3, "the hand-shake's and two");
        assert_eq!(quiet.server.ask::<i64>(&["EXISTS", "key"]), 0);
        quiet.nothing_was_lost();
    }
}

#[test]
fn a_watching_block_past_a_limit_is_not_run_again() {
    let mut quiet = Quiet::with(|builder| builder.max_commands(3));
    let mut runs = 0;
    let result = quiet.sessions.transactional().watch(["key"]).run(|_, tx| {
        runs += 1;
        Ok((0..4).map(|_| tx.incr("n", 1)).collect::<Vec<_>>())
    });
    assert_eq!((too_large(&result.unwrap_err()).0, runs), ("commands", 1));
    assert_eq!(quiet.server.calls("unwatch"), 1);
    assert_eq!(quiet.server.ask::<i64>(&["EXISTS", "n"]), 0);
    quiet.nothing_was_lost();
}
