//! The advice in a refusal fits the place in which the command was refused.
//!
//! Guarantee: refused

use crate::side::SessionManager;
use rediscope::prelude::*;
use rediscope::{Error, redis};

use rediscope_testing::server::Server;

fn command(words: &[&str]) -> redis::Cmd {
    let mut cmd = redis::cmd(words[0]);
    for word in &words[1..] {
        cmd.arg(*word);
    }
    cmd
}

/// The refusal in an error, or behind it.
#[track_caller]
fn hint(error: Error) -> (String, &'static str) {
    let source =
        std::error::Error::source(&error).and_then(|source| source.downcast_ref::<Error>());
    match source.cloned().unwrap_or(error) {
        Error::Refused { command, hint, .. } => (command, hint),
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_refusal_has_a_hint_that_fits_its_place() {
    let server = Server::start();
    let sessions = SessionManager::connect(server.url()).unwrap();
    let accounts = sessions.transactional();
    let pooled = |words: &[&str]| {
        let error = command(words).query::<()>(&mut sessions.pooled()).unwrap_err();
        hint(error.into())
    };
    let queued =
        |words: &[&str]| hint(accounts.run(|tx| Ok(tx.queue::<()>(command(words)))).unwrap_err());
    let read = |words: &[&str]| {
        let mut watching = accounts.watch(["k"]).begin().unwrap();
        hint(watching.query::<()>(command(words)).unwrap_err())
    };
    let declared = |cmd: redis::Cmd| hint(accounts.watch(["k"]).declare::<()>(cmd).unwrap_err());
    for (reported, name, words, not) in [
        (pooled(&["MULTI"]), "MULTI", "transactional handle", "drop it"),
        (queued(&["MULTI"]), "MULTI", "by itself", "transactional handle"),
        (queued(&["EXEC"]), "EXEC", "by itself", "transactional handle"),
        (read(&["MULTI"]), "MULTI", "transactional handle", "only reads"),
        (pooled(&["WATCH", "k"]), "WATCH", "watch(keys)", "before the transaction"),
        (queued(&["WATCH", "k"]), "WATCH", "before the transaction", "transactional handle"),
        (pooled(&["SELECT", "1"]), "SELECT", "address", "with_raw"),
        (pooled(&["SUBSCRIBE", "c"]), "SUBSCRIBE", "redis::Client", "with_raw"),
        (pooled(&["SHUTDOWN"]), "SHUTDOWN", "stops the server", "connection that others use"),
        (pooled(&["CLIENT", "REPLY", "OFF"]), "CLIENT", "redis::Client", "with_raw"),
        (pooled(&["BLPOP", "k", "0"]), "BLPOP", "give it a timeout", "with_raw"),
        (queued(&["WAIT", "1", "0"]), "WAIT", "wait_replicas", "with_raw"),
        (
            queued(&["XREAD", "BLOCK", "1", "STREAMS", "s", "$"]),
            "XREAD",
            "leave BLOCK out",
            "with_raw",
        ),
        (
            read(&["XREAD", "BLOCK", "1", "STREAMS", "s", "$"]),
            "XREAD",
            "leave BLOCK out",
            "only reads",
        ),
        (read(&["SET", "k", "v"]), "SET", "queue writes", "query_as_read"),
        (read(&["MINE.GET", "k"]), "MINE.GET", "query_as_read", "queue writes"),
        (declared(command(&["FT.MYSEARCH", "k"])), "FT.MYSEARCH", "query_as_read", "only reads"),
        (declared(redis::Cmd::new()), "a command without a name", "redis::cmd(name)", "with_raw"),
        (declared(command(&["INCR", "k"])), "INCR", "queue writes", "with_raw"),
    ] {
        let (command, hint) = reported;
        assert_eq!(command, name);
        assert!(hint.contains(words) && !hint.contains(not), "{command}: {hint}");
    }
    let empty = hint(accounts.run(|tx| Ok(tx.queue::<()>(redis::Cmd::new()))).unwrap_err());
    assert_eq!(empty, ("a command without a name".to_owned(), "build it with redis::cmd(name)"));
    let empty = redis::pipe().query::<()>(&mut sessions.pooled()).unwrap_err();
    assert_eq!(hint(empty.into()).1, "add one to the pipeline");
    assert_eq!(server.ask::<i64>(&["DBSIZE"]), 0, "nothing was sent");
}
