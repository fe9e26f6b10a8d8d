//! Commands that would change a connection others use are refused by name, before they are sent.
//!
//! Guarantee: refused

use crate::fixture::LONG;
use crate::side::BuildSide as _;
use crate::side::{Pooled, Transactional};
use redis::Cmd;
use rediscope::Error;
use rediscope::prelude::*;

use super::fixture::{Quiet, refused};

/// Refused on both handles.
const EVERYWHERE: &[&str] = &[
    "MULTI",
    "EXEC",
    "DISCARD",
    "WATCH key",
    "UNWATCH",
    "RESET",
    "SELECT 1",
    "AUTH user password",
    "HELLO 3",
    "QUIT",
    "MONITOR",
    "SYNC",
    "PSYNC ? -1",
    "REPLCONF ACK 1",
    "SUBSCRIBE channel",
    "PSUBSCRIBE pattern",
    "SSUBSCRIBE channel",
    "UNSUBSCRIBE",
    "PUNSUBSCRIBE",
    "SUNSUBSCRIBE",
    "CLIENT REPLY OFF",
    "CLIENT KILL TYPE normal",
    "CLIENT PAUSE 1",
    "CLIENT TRACKING ON",
    "CLIENT SETNAME name",
    "CLIENT NO-EVICT ON",
    "CLIENT CACHING YES",
    "READONLY",
    "READWRITE",
    "ASKING",
    "SWAPDB 0 1",
    "REPLICAOF NO ONE",
    "SLAVEOF NO ONE",
    "FAILOVER ABORT",
    "DEBUG SLEEP 0",
    "SHUTDOWN NOSAVE",
];

/// Refused between MULTI and EXEC, where they would not do what they are for.
const IN_MULTI: &[&str] = &[
    "WAIT 1 100",
    "WAITAOF 1 0 100",
    "XREAD BLOCK 100 STREAMS s $",
    "XREAD COUNT 5 BLOCK 100 STREAMS s $",
    "XREADGROUP GROUP g c BLOCK 100 STREAMS s >",
];

fn name(words: &str) -> String {
    words.split(' ').next().unwrap().to_owned()
}

/// As it stands here, in lower case, and in an unusual case.
fn spellings(words: &str) -> [Cmd; 3] {
    let mixed = |(at, letter): (usize, char)| {
        if at % 2 == 0 { letter.to_ascii_lowercase() } else { letter.to_ascii_uppercase() }
    };
    let mixed: String = words.char_indices().map(mixed).collect();
    [words.to_owned(), words.to_ascii_lowercase(), mixed].map(|words| {
        let mut cmd = Cmd::new();
        cmd.arg(words.split(' ').collect::<Vec<_>>());
        cmd
    })
}

fn on_pooled(db: &mut Pooled, cmd: &Cmd) -> [Error; 2] {
    let mut pipe = redis::pipe();
    pipe.set("key", 1).add_command(cmd.clone()).get("key");
    [cmd.exec(db), pipe.exec(db)].map(|result| result.unwrap_err().into())
}

/// In every place of a transaction where a command can be given.
fn on_transactional(accounts: &Transactional, cmd: &Cmd) -> Vec<Error> {
    let mut errors = Vec::new();
    let mut guard = accounts.begin().unwrap();
    guard.set("key", 1);
    guard.queue::<()>(cmd.clone());
    errors.push(guard.check().unwrap_err());
    guard.set("key", 2);
    errors.push(guard.commit().unwrap_err());
    let mut guard = accounts.begin().unwrap();
    let mut part = guard.savepoint();
    part.queue::<()>(cmd.clone());
    part.release();
    errors.push(guard.commit().unwrap_err());
    let by_run = accounts.run(|tx| {
        tx.set("key", 1);
        Ok(tx.queue::<()>(cmd.clone()))
    });
    errors.push(by_run.unwrap_err());
    errors
}

#[test]
fn a_refused_name_is_refused_on_both_handles_in_any_case_and_nothing_is_sent() {
    let mut quiet = Quiet::start();
    let (mut db, accounts) = (quiet.sessions.pooled(), quiet.sessions.transactional());
    for words in EVERYWHERE {
        for cmd in spellings(words) {
            let mut errors = on_transactional(&accounts, &cmd);
            errors.extend(on_pooled(&mut db, &cmd));
            for error in errors {
                assert_eq!(refused(&error), name(words));
            }
        }
        quiet.nothing_was_sent();
    }
    quiet.nothing_was_lost();
    assert_eq!(quiet.server.ask::<i64>(&["EXISTS", "key"]), 0);
}

#[test]
fn commands_that_wait_or_block_are_refused_inside_multi_only() {
    let mut quiet = Quiet::start();
    let accounts = quiet.sessions.transactional();
    for words in IN_MULTI {
        for cmd in spellings(words) {
            for error in on_transactional(&accounts, &cmd) {
                assert_eq!(refused(&error), name(words));
            }
        }
        quiet.nothing_was_sent();
    }
    let options = redis::streams::StreamReadOptions::default().block(100);
    let by_table = accounts.run(|tx| Ok(tx.xread_options::<_, _, ()>(&["s"], &["$"], &options)));
    assert_eq!(refused(&by_table.unwrap_err()), "XREAD");
    quiet.nothing_was_sent();
    // Without BLOCK, and where BLOCK is only a key's name, it is a read like any other.
    let options = redis::streams::StreamReadOptions::default().count(5);
    accounts
        .run(|tx| {
            let read = tx.xread_options::<_, _, ()>(&["s"], &["0"], &options);
            let named = tx.xread::<_, _, ()>(&["BLOCK"], &["0"]);
            // The other blocking commands do not block inside MULTI, so they are let through.
            let pop = tx.queue::<Option<String>>(redis::cmd("BLPOP").arg("none").arg(0).take());
            Ok((read, named, pop))
        })
        .unwrap();
    let mut db = quiet.sessions.pooled();
    redis::cmd("WAIT").arg(0).arg(100).exec(&mut db).unwrap();
    quiet.nothing_was_lost();
}

#[test]
fn a_refused_command_of_a_watching_block_ends_it_without_a_retry() {
    let mut quiet = Quiet::start();
    let accounts = quiet.sessions.transactional();
    let mut runs = 0;
    let result = accounts.watch(["key"]).run(|_, tx| {
        runs += 1;
        tx.set("key", 1);
        tx.queue::<()>(redis::cmd("Select").arg(1).take());
        Ok(tx.flushall())
    });
    assert_eq!((refused(&result.unwrap_err()).as_str(), runs), ("SELECT", 1));
    assert_eq!(quiet.server.calls("watch"), quiet.server.calls("unwatch"));
    assert_eq!((quiet.server.calls("flushall"), quiet.server.calls("set")), (0, 0));
    quiet.nothing_was_lost();
}

#[test]
fn a_refused_command_behind_a_chunk_discards_what_was_sent_ahead() {
    let mut quiet = Quiet::with(|builder| builder.flush_bytes(1));
    let accounts = quiet.sessions.transactional();
    let mut tx = accounts.begin().unwrap();
    tx.set("key", 1);
    crate::side::send_ahead(&mut tx);
    assert!(quiet.server.client_list().iter().any(|client| client["multi"] == "1"));
    tx.queue::<()>(redis::cmd("exec").take());
    tx.set("key", 2);
    assert_eq!(refused(&tx.check().unwrap_err()), "EXEC");
    assert_eq!(refused(&tx.commit().unwrap_err()), "EXEC");
    assert_eq!(quiet.server.ask::<i64>(&["EXISTS", "key"]), 0);
    quiet.nothing_was_lost();
}

#[test]
fn a_watch_and_half_a_transaction_of_redis_rs_are_refused_on_the_pooled_handle() {
    let mut quiet = Quiet::start();
    let mut db = quiet.sessions.pooled();
    for half in [["MULTI", "PING", "DISCARD"], ["MULTI", "PING", "PING"], ["PING", "PING", "EXEC"]]
    {
        let mut pipe = redis::pipe();
        half.iter().for_each(|name| {
            pipe.cmd(name);
        });
        let error = Error::from(pipe.exec(&mut db).unwrap_err());
        assert!(half.contains(&&*refused(&error)));
    }
    let mut runs = 0;
    let result: redis::RedisResult<()> = redis::transaction(&mut db, &["key"], |db, pipe| {
        runs += 1;
        pipe.set("key", 1).query(db)
    });
    assert_eq!((refused(&result.unwrap_err().into()).as_str(), runs), ("WATCH", 0));
    quiet.nothing_was_sent();
    quiet.nothing_was_lost();
}

crate::side::threads_only! {
    #[test]
    fn requests_that_are_none_are_refused() {
        use redis::ConnectionLike;
        let mut quiet = Quiet::start();
        let mut db = quiet.sessions.pooled();
        let mut errors: Vec<Error> = Vec::new();
        for bytes in
            ["PING\r\n", "*1\r\n$4\r\nPI", "*0\r\n", "*1\r\n$-1\r\n", "*2\r\n$3\r\nGET\r\n", ""]
        {
            errors.push(db.req_packed_command(bytes.as_bytes()).unwrap_err().into());
            errors.push(db.req_packed_commands(bytes.as_bytes(), 0, 1).unwrap_err().into());
        }
        errors.push(Cmd::new().exec(&mut db).unwrap_err().into());
        errors.push(redis::pipe().exec(&mut db).unwrap_err().into());
        for error in errors {
            refused(&error);
        }
        quiet.nothing_was_sent();
        let nameless = quiet.sessions.transactional().run(|tx| Ok(tx.queue::<()>(Cmd::new())));
        refused(&nameless.unwrap_err());
        let empty = quiet.sessions.transactional().run(|tx| Ok(tx.queue::<()>(redis::cmd(""))));
        refused(&empty.unwrap_err());
        quiet.nothing_was_sent();
        quiet.nothing_was_lost();
    }
}

#[test]
fn a_refusal_by_name_needs_no_connection() {
    let sessions = crate::side::SessionManager::builder("redis://127.0.0.1:1/")
        .max_pin_time(LONG)
        .build_side()
        .unwrap();
    let by_run = sessions.transactional().run(|tx| Ok(tx.queue::<()>(redis::cmd("QUIT").take())));
    assert_eq!(refused(&by_run.unwrap_err()), "QUIT");
    let by_handle = redis::cmd("QUIT").exec(&mut sessions.pooled());
    assert_eq!(refused(&by_handle.unwrap_err().into()), "QUIT");
}
