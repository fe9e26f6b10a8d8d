//! Unit tests of `src/protocol/known_errors.rs`.
//!
//! Guarantee: which-reply-proves-what

use super::*;

fn error(line: &str) -> redis::ServerError {
    match redis::parse_redis_value(format!("-{line}\r\n").as_bytes()) {
        Ok(redis::Value::ServerError(error)) => error,
        other => unreachable!("{other:?}"),
    }
}

fn proves(name: &str, line: &str) -> bool {
    proves_no_effect(name.as_bytes(), &error(line))
}

/// What stands in the table is found in it, whatever its arguments are.
#[test]
fn every_sentence_is_recognised_with_arguments_of_any_kind() {
    let all = KNOWN_ERRORS.into_iter();
    for (strength, line) in
        all.flat_map(|(strength, all)| all.iter().map(move |line| (strength, line)))
    {
        let (code, known) = line.split_once(' ').unwrap();
        for argument in ["set", "it's `quoted`, with args", "Ünï", ""] {
            let text = known.replace(ARGUMENT, argument);
            let (_, shown) = find(code, &text).unwrap_or_else(|| panic!("{text}"));
            assert!(matches(shown, &text), "{text}");
            let line = format!("{code} {text}");
            let other = is_about_another(b"set", &text);
            assert!(!other || argument != "set", "{text}");
            assert_eq!(proves("SET", &line), strength != Strength::DisplayOnly && !other, "{text}");
            let other = is_about_another(b"config", &text);
            assert_eq!(
                proves("config", &line),
                strength == Strength::BeforeStart && !other,
                "{text}"
            );
            for name in ["EVAL", "fcall", "EVALSHA_RO", "MIGRATE", "JSON.SET", "VADD", ""] {
                assert!(!proves(name, &line), "{name}: {text}");
            }
        }
    }
}

#[test]
fn a_code_with_words_of_another_proves_nothing() {
    for line in [
        "OOM no",
        "READONLY no",
        "READONLY",
        "LOADING please wait",
        "BUSY upstream is busy",
        "NOAUTH proxy credentials are wrong",
        "NOPERM denied by the proxy",
        "MISCONF no",
        "NOREPLICAS no",
        "MASTERDOWN no",
        "CLUSTERDOWN no",
        "TRYAGAIN no",
        "CROSSSLOT no",
        "MOVED elsewhere",
        "ASK me later",
        "WRONGTYPE no",
        "ERR upstream timed out",
        "ERR Connection timed out",
        "ERR Server closed the connection",
        "ERR value is not an integer or out of range, says the proxy",
        "ERR syntax error near the end",
        "UNAVAILABLE upstream failure",
        "NOSCRIPT No matching script. Please use EVAL.",
        "EXECABORT Transaction discarded because of previous errors.",
        "ERR",
    ] {
        assert!(!proves("INCR", line), "{line}");
    }
    for line in ["MOVED 3999 127.0.0.1:6381", "ASK 3999 [::1]:6381", "MOVED 1 :7000"] {
        assert!(proves("INCR", line), "{line}");
        assert!(!proves("EVAL", line), "{line}");
    }
}

#[test]
fn a_sentence_about_another_command_proves_nothing() {
    for line in [
        "ERR unknown command 'INCRB', with args beginning with: 'k' ",
        "ERR unknown command `GET`, with args beginning with: ",
        "ERR wrong number of arguments for 'get' command",
        "ERR unknown subcommand 'x'. Try CONFIG HELP.",
        "ERR Unknown subcommand or wrong number of arguments for 'INCR'. Try CONFIG HELP.",
        "NOPERM this user has no permissions to run the 'get' command",
        "NOPERM User app has no permissions to run the 'client|list' command",
        "ERR at least 1 input key is needed for 'zunion' command",
    ] {
        assert!(!proves("INCR", line), "{line}");
    }
    for (name, line) in [
        ("INCR", "ERR wrong number of arguments for 'incr' command"),
        ("config", "ERR wrong number of arguments for 'config|get' command"),
        ("CONFIG", "ERR unknown subcommand 'INCR'. Try CONFIG HELP."),
        ("INCR", "NOPERM User app has no permissions to run the 'incr' command"),
        ("xgroup", "NOPERM User app has no permissions to run the 'xgroup|create' command"),
    ] {
        assert!(proves(name, line), "{line}");
    }
}

#[test]
fn a_command_that_the_server_does_not_know_by_this_name_did_not_run() {
    assert!(proves("GTE", "ERR unknown command 'GTE', with args beginning with: 'k' "));
    assert!(proves("gte", "ERR unknown command `gte`, with args beginning with: "));
    assert!(proves("M.SET", "ERR unknown command 'M.SET', with args beginning with: "));
    assert!(!proves("M.SET", "ERR unknown command 'GTE', with args beginning with: "));
    assert!(!proves("EVAL", "ERR unknown command 'EVAL', with args beginning with: "));
}

#[test]
fn in_a_transaction_that_ran_a_command_on_keys_leaves_all_as_it_was() {
    let left = |name: &str, line: &str| queued_without_effect(name.as_bytes(), &error(line));
    assert!(left("lpush", "WRONGTYPE Operation against a key holding the wrong kind of value"));
    assert!(left("INCR", "ERR a sentence of a later version"));
    assert!(!left("EVAL", "ERR value is not an integer or out of range"));
    assert!(!left("PFADD", "INVALIDOBJ Corrupted HLL object detected"));
    assert!(!left("XADD", "ERR Elements are too large to be stored"));
    assert!(!left("CONFIG", "ERR CONFIG SET failed"));
    assert!(!left("MIGRATE", "IOERR error or timeout"));
    assert!(!left("JSON.SET", "WRONGTYPE no"));
}

#[test]
fn the_shown_part_of_a_server_error_has_none_of_its_arguments() {
    let shown = redacted("ERR", "invalid longitude,latitude pair 200.000000,100.000000");
    assert_eq!(shown, Some("invalid longitude,latitude pair …"));
    assert_eq!(redacted("ERR", "secret"), None);
}
