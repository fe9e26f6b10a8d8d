//! The error of a condition that does not hold. Nothing of the attempt is left on the connection.
//!
//! Guarantee: condition-failed

use rediscope::error::Applied;
use rediscope::prelude::*;
use rediscope::{Condition, Error};

use super::fixture::{failed, start, start_with};

#[test]
fn a_condition_that_does_not_hold_is_reported_once_and_the_block_is_not_run() {
    let fixture = start();
    fixture.set("HSET h a 1 b 2");
    let before = fixture.sessions.status().transactional.counts;
    let reported = fixture
        .accounts()
        .require(Condition::exists("h"))
        .require(Condition::hash_len_at_most("h", 1))
        .require(Condition::exists("none"))
        .run(|_| -> Result<Ready<()>, _> { panic!("the block is not run") });
    let error = reported.unwrap_err();
    assert_eq!(
        error.to_string(),
        "condition #1 hash_len_at_most does not hold; nothing was applied"
    );
    assert_eq!((error.applied(), error.is_retryable()), (Applied::No, false));
    assert_eq!(failed::<()>(Err(error)), (1, "hash_len_at_most", None));
    assert_eq!(
        fixture.sent(),
        ["WATCH", "EXISTS", "HLEN", "EXISTS", "UNWATCH"],
        "all are read once, and not watched any more"
    );
    let counts = fixture.sessions.status().transactional.counts;
    assert_eq!(
        (counts.retries, counts.discards, counts.commits, counts.conflicts),
        (0, before.discards + 1, before.commits, 0)
    );
    fixture.is_as_it_was(&["h", "none"]);
}

#[test]
fn a_condition_that_fails_is_reported_by_its_name() {
    let fixture = start();
    let handle = fixture.accounts();
    let two = handle
        .require(Condition::not_exists("none").named("new"))
        .require(Condition::at_least("none", 1).named("in stock"));
    let error = two.run(|tx| Ok(tx.incr("n", 1))).unwrap_err();
    let text = "condition #1 at_least (in stock) does not hold; nothing was applied";
    assert_eq!(error.to_string(), text);
    assert_eq!(failed::<()>(Err(error)), (1, "at_least", Some("in stock")));
    let nameless = handle.require(Condition::exists("none"));
    assert_eq!(failed(nameless.run(|tx| Ok(tx.incr("n", 1)))).2, None);
    // Its own error names it too.
    fixture.set("SET text x");
    let wrong = handle.require(Condition::list_len_at_most("text", 1).named("short"));
    let error = wrong.run(|tx| Ok(tx.incr("n", 1))).unwrap_err();
    assert!(error.to_string().contains("#0 list_len_at_most (short)"), "{error}");
    assert_eq!(fixture.get("n"), None);
}

#[test]
fn a_failed_condition_leaves_no_watch_behind_in_any_form() {
    let fixture = start();
    let handle = fixture.accounts();
    let untrue = || Condition::exists("none");
    failed(handle.require(untrue()).run(|tx| Ok(tx.incr("n", 1))));
    failed(handle.require(untrue()).run_with(|tx| Ok::<_, Error>(tx.incr("n", 1))));
    failed(handle.require(untrue()).begin().map(drop));
    failed(handle.watch(["w"]).require(untrue()).run(|_, tx| Ok(tx.incr("n", 1))));
    failed(handle.watch(["w"]).require(untrue()).begin().map(drop));
    failed(handle.reading().require(untrue()).run(|_, tx| Ok(tx.incr("n", 1))));
    assert_eq!(fixture.server.calls("unwatch"), 6);
    assert_eq!(fixture.get("n"), None);
    fixture.is_as_it_was(&["none", "w"]);
}

#[test]
fn a_block_that_fails_or_panics_applies_nothing_and_leaves_no_watch_behind() {
    let fixture = start_with(|builder| builder);
    fixture.set("SET there 1");
    let required = fixture.accounts().require(Condition::exists("there"));
    let mut runs = 0;
    let reported = required.run_with(|tx| {
        runs += 1;
        tx.incr("n", 1);
        Err::<Queued<i64>, Error>(Error::NoKeys)
    });
    assert!(matches!(reported, Err(Error::NoKeys)) && runs == 1);
    drop(required.begin().unwrap());
    fixture.is_as_it_was(&["there"]);
    fixture.set("SET there 1");
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        required.run(|tx| -> Result<Queued<i64>, Error> {
            tx.incr("n", 1);
            std::panic::resume_unwind(Box::new("the block's own"))
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(fixture.get("n"), None);
    crate::side::settled(&fixture.sessions);
    assert_eq!(fixture.sessions.status().transactional.in_use, 0);
}

#[test]
fn a_condition_that_an_acl_forbids_is_an_error_and_the_block_is_not_run() {
    let fixture = start();
    fixture.server.acl(&["SETUSER", "default", "-hlen"]);
    let reported = fixture
        .accounts()
        .require(Condition::exists("h"))
        .require(Condition::hash_len_at_least("h", 0))
        .begin()
        .map(drop);
    // The first one does not hold; whether the second one can be read does not matter.
    failed(reported);
    let reported =
        fixture.accounts().require(Condition::hash_len_at_least("h", 0)).begin().map(drop);
    match reported {
        Err(Error::Command { error, .. }) => assert_eq!(error.code(), "NOPERM"),
        other => panic!("{other:?}"),
    }
    fixture.server.acl(&["SETUSER", "default", "+hlen"]);
    fixture.is_as_it_was(&["h"]);
}

#[test]
fn conditions_and_their_failures_show_neither_keys_nor_values() {
    let fixture = start();
    let (key, value) = ("S3CRET-key", "S3CRET-value");
    let conditions = [
        Condition::equals(key, value),
        Condition::hash_field_equals(key, "S3CRET-field", value),
        Condition::stream_contains(key, "S3CRET"),
    ];
    for condition in conditions {
        let required = fixture.accounts().require(condition.clone());
        let error = required.run(|tx| Ok(tx.set("n", 1))).unwrap_err();
        let shown =
            format!("{condition:?} {condition:#?} {required:?} {required:#?} {error} {error:?}");
        assert!(!shown.contains("S3CRET"), "{shown}");
        assert!(!shown.contains("83, 51, 67, 82"), "{shown}");
    }
    let shown = format!("{:?}", fixture.accounts().require(Condition::exists(key)));
    assert!(shown.contains("#0 exists"), "the text has the condition: {shown}");
}
