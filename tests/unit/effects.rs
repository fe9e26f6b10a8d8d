//! The predicted effects of commands, row by row: what is known, and what must stay unknown.
//!
//! Guarantee: turns

use super::*;

fn encoded(command: &str) -> Vec<u8> {
    let words: Vec<_> = command.split_whitespace().collect();
    let mut cmd = redis::cmd(words[0]);
    words[1..].iter().for_each(|word| _ = cmd.arg(*word));
    cmd.get_packed_command()
}

fn text(value: &str) -> Value {
    match value {
        "nil" => Value::Nil,
        text => Value::BulkString(text.into()),
    }
}

/// What GET of `k` replies after the command, if it replied `before`; `None`: it is unknown.
fn after(before: &str, command: &str) -> Option<Value> {
    let reads = encoded("GET k");
    let mut values = ReadValues::of(&reads, &[text(before)]).unwrap();
    values.apply(&encoded(command))?;
    values.replies(&reads).pop()
}

#[test]
fn known_effects_are_exact() {
    for (before, command, expected) in [
        ("nil", "SET k v", "v"),
        ("old", "SET k v", "v"),
        ("old", "SET k v EX 10", "v"),
        ("old", "SET k v px 10", "v"),
        ("old", "SET k v NX", "old"),
        ("nil", "SET k v NX", "v"),
        ("old", "SET k v XX", "v"),
        ("nil", "SET k v XX", "nil"),
        ("old", "SETEX k 10 v", "v"),
        ("old", "PSETEX k 10 v", "v"),
        ("old", "DEL k", "nil"),
        ("old", "UNLINK other k", "nil"),
        ("nil", "INCR k", "1"),
        ("41", "INCR k", "42"),
        ("0", "DECR k", "-1"),
        ("10", "INCRBY k -20", "-10"),
        ("-9223372036854775807", "DECRBY k 1", "-9223372036854775808"),
        ("old", "GET k", "old"),
        ("old", "STRLEN k", "old"),
        ("old", "APPEND other v", "old"),
        ("old", "SET other v GET", "old"),
        ("old", "LPUSH list v", "old"),
    ] {
        assert_eq!(after(before, command), Some(text(expected)), "{before}: {command}");
    }
}

#[test]
fn an_effect_that_is_not_certain_is_unknown() {
    for (before, command) in [
        ("old", "INCR k"),
        ("1.5", "INCR k"),
        ("+1", "INCR k"),
        ("01", "INCR k"),
        ("-0", "INCR k"),
        ("9223372036854775807", "INCR k"),
        ("-9223372036854775808", "DECR k"),
        ("1", "INCRBY k x"),
        ("1", "INCRBY k 9223372036854775808"),
        ("0", "DECRBY k -9223372036854775808"),
        ("old", "SET k v GET"),
        ("old", "SET k v KEEPTTL"),
        ("old", "SET k v NX GET"),
        ("old", "SET k v EX 0"),
        ("old", "SET k v EX -1"),
        ("old", "SET k v EX 99999999999999999"),
        ("old", "SET k v EXAT 1"),
        ("old", "SET k v PX"),
        ("old", "SETEX k 0 v"),
        ("old", "APPEND k v"),
        ("old", "GETSET k v"),
        ("old", "EXPIRE k 10"),
        ("old", "GETDEL k"),
        ("old", "RENAME k other"),
        ("old", "RENAME other k"),
        ("old", "SET k"),
    ] {
        assert_eq!(after(before, command), None, "{before}: {command}");
    }
}

#[test]
fn a_nil_of_mget_may_be_a_key_of_another_type() {
    let reads = encoded("MGET a b");
    let found = |values: [&str; 2]| {
        ReadValues::of(&reads, &[Value::Array(values.map(text).to_vec())]).unwrap()
    };
    let unsure = found(["nil", "1"]);
    for command in ["INCR a", "SET a v NX", "SET a v XX"] {
        assert_eq!(unsure.clone().apply(&encoded(command)), None, "{command}");
    }
    let mut values = unsure.clone();
    let commands = ["GET other", "DEL a", "INCR a", "SET b x"].map(encoded).concat();
    assert_eq!(values.apply(&commands), Some(vec![1, 2, 3]), "those that change a value");
    assert_eq!(values.replies(&reads), [Value::Array(vec![text("1"), text("x")])]);
    // After its DEL a key is absent for certain, which a later MGET does not prove.
    let mut deleted = unsure.clone();
    deleted.apply(&encoded("DEL a")).unwrap();
    assert_eq!(deleted.replies(&reads), unsure.replies(&reads));
    assert_ne!(deleted, unsure);
}

#[test]
fn only_whole_replies_of_moderate_size_are_known() {
    let reads = [encoded("GET k"), encoded("MGET k j")].concat();
    assert!(are_predictable(&reads) && !are_predictable(b""));
    assert!(!are_predictable(&encoded("HGET k f")));
    let of = |first: Value, second: [&str; 2]| {
        ReadValues::of(&reads, &[first, Value::Array(second.map(text).to_vec())])
    };
    assert!(of(text("v"), ["v", "nil"]).is_some());
    assert_eq!(of(text("v"), ["w", "nil"]), None, "it changed between the two reads");
    assert_eq!(of(Value::Int(1), ["1", "nil"]), None);
    let large = "v".repeat(MAX_BYTES);
    assert_eq!(of(text(&large), [&large, "nil"]), None);
}
