//! When each condition holds.
//!
//! Guarantee: condition-failed, conditions

use super::fixture::start;
use std::collections::BTreeSet;
use std::fs;

use crate::side::SessionManager;
use rediscope::error::Applied;
use rediscope::redis::ValueType;
use rediscope::{Condition, Error, prelude::*};

use rediscope_testing::server::Server;

type Bounds = [fn(&'static str, i64) -> Condition; 3];

/// What holds and what does not, on the keys of [`fill`]; `none` is missing.
fn truths() -> Vec<(Condition, bool)> {
    use Condition as C;
    let mut truths = vec![
        (C::exists("text"), true),
        (C::exists("none"), false),
        (C::not_exists("none"), true),
        (C::not_exists("hash"), false),
        (C::type_is("text", ValueType::String), true),
        (C::type_is("hash", ValueType::Hash), true),
        (C::type_is("list", ValueType::List), true),
        (C::type_is("set", ValueType::Set), true),
        (C::type_is("sorted", ValueType::ZSet), true),
        (C::type_is("stream", ValueType::Stream), true),
        (C::type_is("none", ValueType::None), true),
        (C::type_is("text", ValueType::Hash), false),
        (C::type_is("none", ValueType::String), false),
        (C::equals("text", "hello"), true),
        (C::equals("text", "hell"), false),
        (C::equals("text", "Hello"), false),
        (C::equals("none", ""), false),
        (C::equals("empty", ""), true),
        (C::equals("number", 7), true),
        (C::equals("number", 7.5), false),
        (C::equals("bytes", b"\xff\r\n\0".as_slice()), true),
        (C::equals(b"bytes".as_slice(), vec![255_u8, 13, 10, 0]), true),
        (C::not_equals("text", "hell"), true),
        (C::not_equals("text", "hello"), false),
        (C::not_equals("none", "hello"), true),
        (C::at_least("number", 7), true),
        (C::at_least("number", 8), false),
        (C::at_least("none", 0), true),
        (C::at_least("none", 1), false),
        (C::at_least("text", i64::MIN), false),
        (C::at_most("number", 7), true),
        (C::at_most("number", 6), false),
        (C::at_most("none", -1), false),
        (C::at_most("text", i64::MAX), false),
        (C::hash_field_exists("hash", "name"), true),
        (C::hash_field_exists("hash", "nome"), false),
        (C::hash_field_exists("none", "name"), false),
        (C::hash_field_not_exists("hash", "nome"), true),
        (C::hash_field_not_exists("none", "name"), true),
        (C::hash_field_not_exists("hash", "name"), false),
        (C::hash_field_equals("hash", "name", "chair"), true),
        (C::hash_field_equals("hash", "name", "table"), false),
        (C::hash_field_equals("hash", "nome", ""), false),
        (C::hash_field_equals("none", "name", "chair"), false),
        (C::hash_field_not_equals("hash", "name", "table"), true),
        (C::hash_field_not_equals("hash", "nome", "chair"), true),
        (C::hash_field_not_equals("none", "name", "chair"), true),
        (C::hash_field_not_equals("hash", "name", "chair"), false),
        (C::hash_field_at_least("hash", "left", 3), true),
        (C::hash_field_at_least("hash", "left", 4), false),
        (C::hash_field_at_least("hash", "nome", 0), true),
        (C::hash_field_at_least("hash", "name", 0), false),
        (C::hash_field_at_most("hash", "left", 3), true),
        (C::hash_field_at_most("hash", "left", 2), false),
        (C::hash_field_at_most("none", "left", -1), false),
        (C::list_index_equals("list", 0, "a"), true),
        (C::list_index_equals("list", -1, "c"), true),
        (C::list_index_equals("list", 1, "a"), false),
        (C::list_index_equals("list", 3, ""), false),
        (C::list_index_equals("none", 0, "a"), false),
        (C::list_index_not_equals("list", 1, "a"), true),
        (C::list_index_not_equals("list", 3, "a"), true),
        (C::list_index_not_equals("none", 0, "a"), true),
        (C::list_index_not_equals("list", 0, "a"), false),
        (C::set_contains("set", "a"), true),
        (C::set_contains("set", "d"), false),
        (C::set_contains("none", "a"), false),
        (C::set_not_contains("set", "d"), true),
        (C::set_not_contains("none", "a"), true),
        (C::set_not_contains("set", "a"), false),
        (C::sorted_set_contains("sorted", "half"), true),
        (C::sorted_set_contains("sorted", "zero"), true),
        (C::sorted_set_contains("sorted", "third"), false),
        (C::sorted_set_contains("none", "half"), false),
        (C::sorted_set_not_contains("sorted", "third"), true),
        (C::sorted_set_not_contains("none", "half"), true),
        (C::sorted_set_not_contains("sorted", "zero"), false),
        (C::sorted_set_score_equals("sorted", "half", 0.5), true),
        (C::sorted_set_score_equals("sorted", "tenth", 0.1), true),
        (C::sorted_set_score_equals("sorted", "zero", 0.0), true),
        (C::sorted_set_score_equals("sorted", "zero", -0.0), true),
        (C::sorted_set_score_equals("sorted", "endless", f64::INFINITY), true),
        (C::sorted_set_score_equals("sorted", "half", 0.25), false),
        (C::sorted_set_score_equals("sorted", "half", f64::NAN), false),
        (C::sorted_set_score_equals("sorted", "third", 0.0), false),
        (C::sorted_set_score_at_least("sorted", "half", 0.5), true),
        (C::sorted_set_score_at_least("sorted", "half", 0.75), false),
        (C::sorted_set_score_at_least("sorted", "third", f64::NEG_INFINITY), false),
        (C::sorted_set_score_at_most("sorted", "half", 0.5), true),
        (C::sorted_set_score_at_most("sorted", "half", 0.25), false),
        (C::sorted_set_score_at_most("none", "half", f64::INFINITY), false),
        (C::stream_contains("stream", "5-1"), true),
        (C::stream_contains("stream", "5"), true),
        (C::stream_contains("stream", "5-3"), false),
        (C::stream_contains("stream", "6"), false),
        (C::stream_contains("none", "5-1"), false),
        (C::stream_not_contains("stream", "5-3"), true),
        (C::stream_not_contains("none", "5-1"), true),
        (C::stream_not_contains("stream", "5-2"), false),
    ];
    let lengths: [(&str, i64, Bounds); 6] = [
        ("text", 5, [C::string_len_equals, C::string_len_at_least, C::string_len_at_most]),
        ("hash", 2, [C::hash_len_equals, C::hash_len_at_least, C::hash_len_at_most]),
        ("list", 3, [C::list_len_equals, C::list_len_at_least, C::list_len_at_most]),
        ("set", 3, [C::set_len_equals, C::set_len_at_least, C::set_len_at_most]),
        (
            "sorted",
            4,
            [C::sorted_set_len_equals, C::sorted_set_len_at_least, C::sorted_set_len_at_most],
        ),
        ("stream", 2, [C::stream_len_equals, C::stream_len_at_least, C::stream_len_at_most]),
    ];
    for (key, len, [equals, at_least, at_most]) in lengths {
        for (key, len) in [(key, len), ("none", 0)] {
            truths.extend([
                (equals(key, len), true),
                (equals(key, len - 1), false),
                (equals(key, len + 1), false),
                (at_least(key, len), true),
                (at_least(key, len - 1), true),
                (at_least(key, len + 1), false),
                (at_most(key, len), true),
                (at_most(key, len + 1), true),
                (at_most(key, len - 1), false),
            ]);
        }
    }
    truths
}

fn fill(server: &Server) {
    for words in [
        "SET text hello",
        "SET number 7",
        "HSET hash name chair left 3",
        "RPUSH list a b c",
        "SADD set a b c",
        "ZADD sorted 0 zero 0.5 half 0.1 tenth inf endless",
        "XADD stream 5-1 f v",
        "XADD stream 5-2 f v",
    ] {
        server.ask::<()>(&words.split(' ').collect::<Vec<_>>());
    }
    server.ask::<()>(&["SET", "empty", ""]);
    let mut connection = server.connection();
    redis::cmd("SET").arg("bytes").arg(b"\xff\r\n\0").exec(&mut connection).unwrap();
}

/// What a condition is called.
fn kind(condition: &Condition) -> String {
    let shown = format!("{condition:?}");
    shown.strip_prefix("Condition(").unwrap().strip_suffix(')').unwrap().to_owned()
}

#[test]
fn every_condition_holds_where_it_should_and_nowhere_else() {
    let server = Server::start();
    fill(&server);
    for protocol in ["", "?protocol=resp3"] {
        let sessions = SessionManager::connect(format!("{}{protocol}", server.url())).unwrap();
        let handle = sessions.transactional();
        let mut ran = 0;
        server.ask::<()>(&["DEL", "ran"]);
        for (nth, (condition, holds)) in truths().into_iter().enumerate() {
            let kind = kind(&condition);
            let reported = handle.require(condition).run(|tx| Ok(tx.incr("ran", 1)));
            match reported {
                Ok(value) => {
                    ran += 1;
                    assert!(holds && value == ran, "{kind} (row {nth}) holds {protocol}");
                }
                Err(Error::ConditionFailed { index, kind: made_by, .. }) => {
                    assert!(!holds, "{kind} (row {nth}) does not hold {protocol}");
                    assert_eq!((index, made_by), (0, &*kind));
                }
                Err(error) => panic!("{kind} (row {nth}): {error} {protocol}"),
            }
        }
        assert_eq!(server.ask::<i64>(&["GET", "ran"]), ran);
        assert_eq!(sessions.status().transactional.counts.all_replaced(), 0);
    }
}

#[test]
fn every_condition_is_tested_both_ways() {
    let mut there: BTreeSet<String> = BTreeSet::new();
    for entry in fs::read_dir("src/transaction/condition").unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        let Some((_, family)) = text.split_once("\nconditions! {") else { continue };
        let names = family.lines().filter_map(|line| line.trim_start().strip_prefix("fn "));
        there.extend(names.map(|rest| rest.split(['<', '(']).next().unwrap().to_owned()));
    }
    assert!(there.len() > 35, "only {there:?}");
    for holds in [true, false] {
        let asked: BTreeSet<_> = truths()
            .into_iter()
            .filter(|(_, truth)| *truth == holds)
            .map(|(condition, _)| kind(&condition))
            .collect();
        assert_eq!(asked, there, "{holds}");
    }
}

#[test]
fn a_condition_on_a_key_of_another_type_is_refused_by_name_and_nothing_is_applied() {
    let fixture = start();
    fixture.set("SET text hello");
    let handle = fixture.accounts();
    let refused = handle
        .require(Condition::exists("text"))
        .require(Condition::hash_len_at_most("text", 5))
        .run(|_| -> Result<Ready<()>, _> { panic!("the block is not run") })
        .unwrap_err();
    assert_eq!((refused.applied(), refused.is_retryable()), (Applied::No, false));
    match &refused {
        Error::Command { command, error, .. } => {
            assert_eq!(command, "HLEN of condition #1 hash_len_at_most");
            assert_eq!(error.code(), "WRONGTYPE");
        }
        other => panic!("{other:?}"),
    }
    // What decides is the order in which they were required.
    let typed = handle
        .require(Condition::type_is("text", ValueType::Hash))
        .require(Condition::hash_len_at_most("text", 5))
        .run(|tx| Ok(tx.incr("ran", 1)));
    assert_eq!(super::fixture::failed(typed), (0, "type_is", None));
    let bad_id = handle.require(Condition::stream_contains("s", "no id")).begin().map(drop);
    assert!(matches!(bad_id, Err(Error::Command { .. })), "{bad_id:?}");
    fixture.is_as_it_was(&["text"]);
}
