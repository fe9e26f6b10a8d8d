//! The token of a doubt, written down and resolved by a process that knows nothing else.

use std::process::Command;

use rediscope::{CommitToken, Resolution, SessionManager, Unresolved};

use super::stage::{Fate, Stage};

/// Where the other process finds the server's address and the token.
const SERVER: &str = "REDISCOPE_TOKEN_SERVER";
const TOKEN: &str = "REDISCOPE_TOKEN";

/// Is itself the other process where it finds a token.
#[test]
fn a_token_that_was_written_down_is_resolved_by_another_process() {
    if let (Ok(server), Ok(token)) = (std::env::var(SERVER), std::env::var(TOKEN)) {
        let token: CommitToken = serde_json::from_str(&token).unwrap();
        let resolution = SessionManager::connect(server).unwrap().resolve(&token);
        println!("resolved: {resolution:?}");
        return;
    }
    let stage = Stage::new();
    let handle = stage.exactly_once();
    for fate in Fate::BOTH {
        let doubt = stage.doubted(&handle, fate);
        let token = serde_json::to_string(doubt.token().unwrap()).unwrap();
        assert!(token.len() < 256, "{token}");
        let name =
            "exactly_once::token::a_token_that_was_written_down_is_resolved_by_another_process";
        let other = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(SERVER, stage.server.url())
            .env(TOKEN, token)
            .output()
            .unwrap();
        let said = String::from_utf8(other.stdout).unwrap();
        assert!(said.contains(&format!("resolved: {:?}", fate.truth())), "{fate:?}: {said}");
        // What it settled stands here too.
        assert_eq!(doubt.resolve(), fate.truth());
    }
    assert_eq!(stage.number("n"), 1);
}

#[test]
fn a_token_keeps_all_it_says_and_no_address_with_a_password() {
    let stage = Stage::new();
    let doubt = stage.doubted(&stage.exactly_once(), Fate::NotApplied);
    let token = doubt.token().unwrap();
    let again: CommitToken = serde_json::from_str(&serde_json::to_string(token).unwrap()).unwrap();
    assert_eq!(&again, token);
    assert_eq!(token.address, stage.proxy.address().to_string());
    let mut foreign = again;
    foreign.register.push('0');
    let unknown = Resolution::StillUnknown { why: Unresolved::RegisterGone };
    assert_eq!(stage.sessions.resolve(&foreign), unknown, "a token that was tampered with");
}
