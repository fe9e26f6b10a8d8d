//! The token of a doubt, stored and resolved by a process that has nothing else.
//!
//! Guarantee: exactly-once

use crate::side::{BuildSide as _, ResolveDoubt as _};
use std::process::Command;

use crate::side::SessionManager;
use rediscope::error::{CommitToken, Resolution, UnresolvedReason};

use super::fixture::{Fate, start};

/// Variables with the server's address and the token, for the other process.
const SERVER: &str = "REDISCOPE_TOKEN_SERVER";
const TOKEN: &str = "REDISCOPE_TOKEN";

/// Is itself the other process where it finds a token.
#[test]
fn a_token_that_was_written_down_is_resolved_by_another_process() {
    if let (Ok(server), Ok(token)) = (std::env::var(SERVER), std::env::var(TOKEN)) {
        let token: CommitToken = serde_json::from_str(&token).unwrap();
        let resolution = SessionManager::connect(server).unwrap().resolve(&token, None);
        println!("resolved: {resolution:?}");
        return;
    }
    let fixture = start();
    let handle = fixture.exactly_once();
    for fate in Fate::BOTH {
        let doubt = fixture.doubted(&handle, fate);
        let token = serde_json::to_string(doubt.token().unwrap()).unwrap();
        assert!(token.len() < 256, "{token}");
        let name =
            "exactly_once::token::a_token_that_was_written_down_is_resolved_by_another_process";
        let other = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(SERVER, fixture.server.url())
            .env(TOKEN, token)
            .output()
            .unwrap();
        let output = String::from_utf8(other.stdout).unwrap();
        assert!(output.contains(&format!("resolved: {:?}", fate.truth())), "{fate:?}: {output}");
        // What it settled stands here too.
        assert_eq!(doubt.resolved(), fate.truth());
    }
    assert_eq!(fixture.number("n"), 1);
}

#[test]
fn a_token_keeps_all_its_fields_and_no_address_with_a_password() {
    let fixture = start();
    let doubt = fixture.doubted(&fixture.exactly_once(), Fate::NotApplied);
    let token = doubt.token().unwrap();
    let again: CommitToken = serde_json::from_str(&serde_json::to_string(token).unwrap()).unwrap();
    assert_eq!(&again, token);
    assert_eq!(token.address, fixture.proxy.address().to_string());
    // As one word, in a cluster too.
    for slot in [None, Some(16_383)] {
        let mut token = token.clone();
        token.slot = slot;
        let word = token.to_string();
        assert!(!word.contains(char::is_whitespace), "{word}");
        assert_eq!(word.parse(), Ok(token), "{word}");
        assert_eq!(format!(" {word}\n").parse::<CommitToken>().unwrap().to_string(), word);
    }
}

#[test]
fn a_text_that_is_no_token_is_an_error_without_the_text() {
    let fixture = start();
    let doubt = fixture.doubted(&fixture.exactly_once(), Fate::NotApplied);
    let word = doubt.token().unwrap().to_string();
    assert!(word.parse::<CommitToken>().is_ok());
    let refused = |wrong: &str| {
        let error = wrong.parse::<CommitToken>().unwrap_err();
        assert!(error.to_string().contains("number.db.slot.register.address"), "{error}");
        assert!(!format!("{error} {error:?}").contains("S3CRET"), "{wrong}");
    };
    ["", ".", "S3CRET", "17.0.-.r.h", "17.0.-.r.h.0000", "x.0.-.r.h.1"]
        .into_iter()
        .for_each(refused);
    // Another number would be another transaction: no changed character is taken.
    for at in 0..word.len() {
        for other in ["0", "1", "9", "a", "F", ".", "-", "%", ""] {
            let (before, rest) = (&word[..at], &word[at + 1..]);
            for changed in
                [format!("{before}{other}{rest}"), format!("{before}{other}{}", &word[at..])]
            {
                if changed != word {
                    refused(&changed);
                }
            }
        }
    }
    refused(&format!("1{word}"));
    for at in 1..word.len() {
        let swapped =
            [&word[..at - 1], &word[at..=at], &word[at - 1..at], &word[at + 1..]].concat();
        if swapped != word {
            refused(&swapped);
        }
    }
    // CRC-16 alone takes one of 65,536 words that have lost or gained a character.
    let taken = |at: usize, number: u64| {
        let mut token = doubt.token().unwrap().clone();
        token.number = number;
        let word = token.to_string();
        format!("{}{}", &word[..at], &word[at + 1..]).parse::<CommitToken>().is_ok()
    };
    let mut lost = (10..4_000).flat_map(|number| (0..60).map(move |at| (at, number)));
    assert_eq!(lost.find(|(at, number)| taken(*at, *number)), None);
}

/// The same token, but for what `change` makes of it: once by the fields, once through serde.
fn changed(token: &CommitToken, change: impl Fn(&mut CommitToken)) -> [CommitToken; 2] {
    let mut built = token.clone();
    change(&mut built);
    let read = serde_json::from_str(&serde_json::to_string(&built).unwrap()).unwrap();
    [built, read]
}

#[track_caller]
fn refused(resolution: &Resolution) -> &'static str {
    match resolution {
        Resolution::StillUnknown { why: UnresolvedReason::NotARegister { reason, .. } } => reason,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_token_that_names_any_other_key_is_refused_before_anything_is_sent() {
    let fixture = start();
    let doubt = fixture.doubted(&fixture.exactly_once(), Fate::Applied);
    let token = doubt.token().unwrap();
    let digits = token.register.strip_prefix("rediscope:reg:").unwrap().to_owned();
    let keys = [
        "balance:alice".to_owned(),
        String::new(),
        "rediscope:once:order".into(),
        "rediscope:lock:name".into(),
        "rediscope:fence".into(),
        "rediscope:reg:".into(),
        format!("{}0", token.register),
        format!(" {}", token.register),
        format!("rediscope:reg:{}", digits.to_uppercase() + "A").replace("AA", "A"),
        format!("rediscope:reg:+{}", &digits[1..]),
        format!("rediscope:{{7}}:reg:{digits}"),
        format!("other:reg:{digits}"),
        format!("x{}", token.register),
    ];
    let asked = |name: &str| fixture.server.calls(name);
    let before = ["pexpire", "get", "hello", "ping"].map(asked);
    let connections = fixture.proxy.connections();
    for key in &keys {
        for value in [token.number.to_string(), "1".into()] {
            fixture.server.ask::<()>(&["SET", key, &value]);
        }
        for token in changed(token, |token| token.register.clone_from(key)) {
            assert!(
                refused(&fixture.sessions.resolve(&token, None)).contains("no register"),
                "{key:?}"
            );
        }
        assert_eq!(fixture.server.ask::<i64>(&["PTTL", key]), -1, "{key:?} was touched");
    }
    for token in changed(token, |token| token.number = 0) {
        assert!(refused(&fixture.sessions.resolve(&token, None)).contains("number"));
    }
    for token in changed(token, |token| token.slot = Some(7)) {
        assert!(refused(&fixture.sessions.resolve(&token, None)).contains("slot"));
    }
    for token in changed(token, |token| token.db = 5) {
        let resolved = fixture.sessions.resolve(&token, None);
        let Resolution::StillUnknown { why: UnresolvedReason::OtherDatabase { token, here, .. } } =
            resolved
        else {
            panic!("{resolved:?}");
        };
        assert_eq!((token, here), (5, 0));
    }
    assert_eq!(fixture.proxy.connections(), connections, "nothing was connected");
    assert_eq!(["pexpire", "get", "hello", "ping"].map(asked), before, "nothing was sent");
    assert_eq!(doubt.resolved(), Resolution::Committed);
}

#[test]
fn a_token_is_of_the_prefix_that_its_session_manager_has() {
    let fixture = start();
    let doubt = fixture.doubted(&fixture.exactly_once(), Fate::Applied);
    let of = |prefix: &str| {
        let builder = SessionManager::builder(fixture.server.url());
        builder.prefix(prefix).build_side().unwrap()
    };
    for prefix in ["other", "rediscop", "rediscope:reg", "r", ":"] {
        refused(&of(prefix).resolve(doubt.token().unwrap(), None));
    }
    assert_eq!(of("rediscope").resolve(doubt.token().unwrap(), None), Resolution::Committed);
}
