//! Error texts of the server that repeat arguments: shown only if that is set.
//!
//! Guarantee: reports

use crate::side::BuildSide as _;
use crate::side::SessionManager;
use rediscope::prelude::*;
use rediscope::{Error, redis};

use rediscope_testing::server::Server;

const SECRET: &str = "hunter2";

fn command(words: &[&str]) -> redis::Cmd {
    let mut cmd = redis::cmd(words[0]);
    for word in &words[1..] {
        cmd.arg(*word);
    }
    cmd
}

/// Commands whose refusal repeats an argument, or whose name holds one.
const REPEATING: &[&[&str]] = &[
    &["NOSUCH", "hunter2", "hunter2"],
    &["SET hunter2 hunter2"],
    &["SET\thunter2"],
    &["hunter2"],
    &["set:hunter2"],
    &["hunter2 with args, with args hunter2", "hunter2"],
    &["GEOADD", "g", "1234.5", "999.25", "hunter2"],
    &["OBJECT", "hunter2", "hunter2"],
    &["CONFIG", "SET", "maxmemory", "hunter2"],
    &["CONFIG", "SET", "hunter2", "hunter2"],
    &["CLIENT", "hunter2"],
    &["XREADGROUP", "GROUP", "hunter2", "me", "STREAMS", "key:hunter2, with args", ">"],
    &["XGROUP", "CREATECONSUMER", "stream", "hunter2", "me"],
    &["EVAL", "return redis.error_reply('ERR hunter2')", "0"],
    &["EVAL", "return redis.error_reply('hunter2 hunter2')", "0"],
    &["EVAL", "hunter2", "0"],
    &["FCALL", "hunter2", "0"],
    &["ACL", "SETUSER", "x", "+hunter2"],
    &["CLIENT", "TRACKINGINFO", "hunter2"],
    &["SET", "hunter2", "hunter2", "EX", "hunter2"],
    &["EXPIRE", "hunter2", "10", "hunter2"],
    &["LPUSH", "hunter2", "x"],
];

fn is_clean(shown: &str) -> bool {
    !["hunter2", "HUNTER2", "1234.5", "999.25"].iter().any(|secret| shown.contains(secret))
}

fn urls(server: &Server) -> [String; 2] {
    [server.url(), server.unix_url()]
}

#[test]
fn a_server_error_that_repeats_an_argument_is_shown_only_if_that_is_set() {
    let server = Server::start();
    server.ask::<()>(&["SET", SECRET, SECRET]);
    server.ask::<String>(&["XADD", "stream", "*", "a", "1"]);
    let mut in_full = 0;
    for url in urls(&server) {
        for full in [false, true] {
            let sessions =
                SessionManager::builder(url.as_str()).server_messages(full).build_side().unwrap();
            let accounts = sessions.transactional();
            for words in REPEATING {
                let mut shown = Vec::new();
                let raw = command(words).query::<()>(&mut sessions.pooled()).unwrap_err();
                shown.push(format!("{raw} {raw:?}"));
                let error = Error::from(raw);
                shown.push(format!("{error:#} {error:?}"));
                let pipeline =
                    redis::pipe().add_command(command(words)).exec(&mut sessions.pooled());
                let raw = pipeline.unwrap_err();
                shown.push(format!("{raw} {raw:?}"));
                let error = Error::from(raw);
                shown.push(format!("{error:#} {error:?}"));
                // Inside of a transaction, refused while it is queued or when it runs.
                let error = accounts.run(|tx| {
                    tx.set("other", 1);
                    Ok(tx.queue::<()>(command(words)))
                });
                let error = error.unwrap_err();
                shown.push(format!("{error:#} {error:?}"));
                let mut tx = accounts.begin().unwrap();
                tx.queue::<()>(command(words));
                let error = tx.commit().unwrap_err();
                shown.push(format!("{error:#} {error:?}"));
                if full {
                    in_full += usize::from(!is_clean(&shown[1]));
                } else {
                    for shown in &shown {
                        assert!(is_clean(shown), "{words:?} over {url}: {shown}");
                    }
                }
            }
            // A read of a watching scope.
            let mut reading = accounts.reading().begin().unwrap();
            for words in [["LLEN", SECRET], ["OBJECT", SECRET]] {
                let error = reading.query::<()>(command(&words)).unwrap_err();
                assert!(full || is_clean(&format!("{error:#} {error:?}")), "{error:#} {error:?}");
            }
        }
    }
    assert!(in_full >= 20, "in full they are shown: {in_full}");
    // What is shown instead.
    let sessions = SessionManager::connect(server.url()).unwrap();
    let reported = |words: &[&str]| {
        let error = command(words).query::<()>(&mut sessions.pooled()).unwrap_err();
        Error::from(error).to_string()
    };
    let pair = "GEOADD was refused by the server: ERR invalid longitude,latitude pair …";
    assert_eq!(reported(&["GEOADD", "g", "200", "1", "m"]), pair);
    assert!(
        reported(&["SET key value"])
            .starts_with("an unknown command was refused by the server: ERR")
    );
}
