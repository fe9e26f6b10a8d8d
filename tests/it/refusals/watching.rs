//! A watching scope has at least one key, and only reads.
//!
//! Guarantee: refused

use rediscope::prelude::*;
use rediscope::{Condition, Error};

use super::fixture::{Quiet, refused, unsent};

#[test]
fn watching_nothing_is_refused_whatever_the_list_is_made_of() {
    let mut quiet = Quiet::start();
    let accounts = quiet.sessions.transactional();
    let (none, keys): (Vec<String>, &[&str; 0]) = (Vec::new(), &[]);
    let watches = [
        accounts.watch([""; 0]),
        accounts.watch(keys),
        accounts.watch(&keys[..]),
        accounts.watch(&none),
        accounts.watch(none),
    ];
    for watch in watches {
        let mut runs = 0;
        let by_run = watch.run(|_, tx| {
            runs += 1;
            Ok(tx.set("key", 1))
        });
        let by_try = watch.run_with(|_, tx| -> Result<_, Error> {
            runs += 1;
            Ok(tx.set("key", 1))
        });
        for error in
            [by_run.unwrap_err(), by_try.unwrap_err(), watch.begin().map(drop).unwrap_err()]
        {
            assert!(matches!(unsent(&error), Error::NoKeys), "{error:?}");
            assert!(error.to_string().contains("reading()"), "the text names it: {error}");
        }
        assert_eq!(runs, 0);
        quiet.nothing_was_sent();
    }
    quiet.nothing_was_lost();
}

#[test]
fn a_watch_of_too_many_keys_is_refused_before_anything_is_sent() {
    let mut quiet = Quiet::with(|builder| builder.max_watched_keys(3));
    let accounts = quiet.sessions.transactional();
    let keys = ["a", "b", "c"];
    let of_conditions = accounts.watch(keys).require(Condition::exists("d"));
    for watch in [accounts.watch(["a", "b", "c", "d"]), of_conditions] {
        let mut runs = 0;
        let by_run = watch.run(|_, tx| {
            runs += 1;
            Ok(tx.set("key", 1))
        });
        for error in [by_run.unwrap_err(), watch.begin().map(drop).unwrap_err()] {
            let error = unsent(&error);
            assert!(matches!(error, Error::TooManyKeys { keys: 4, limit: 3, .. }), "{error:?}");
            let text = error.to_string();
            assert!(text.contains("4 keys is more than max_watched_keys (3)"), "{text}");
        }
        assert_eq!(runs, 0);
        quiet.nothing_was_sent();
    }
    let watch = accounts.watch(keys).require(Condition::not_exists("a"));
    assert_eq!(watch.run(|_, tx| Ok(tx.incr("d", 1))).unwrap(), 1);
    quiet.nothing_was_lost();
}

#[test]
fn a_watching_scope_refuses_what_writes_what_blocks_and_what_it_does_not_know() {
    let mut quiet = Quiet::start();
    let mut watching = quiet.sessions.transactional().watch(["key"]).begin().unwrap();
    let (calls, watched) = (quiet.server.commandstats(), quiet.server.calls("watch"));
    for words in [
        "SET key 1",
        "set key 1",
        "INCR key",
        "GETDEL key",
        "EVAL x 0",
        "XREADGROUP GROUP g c STREAMS s >",
        "XREAD BLOCK 100 STREAMS s $",
        "XREAD BLOCK 0 STREAMS s $",
        "MULTI",
        "UNWATCH",
        "EXEC",
        "SELECT 1",
        "PUBLISH channel message",
        "SORT key STORE other",
        "MEMORY PURGE",
        "NOSUCH",
        "WAIT 0 1",
        "CLIENT KILL TYPE normal",
    ] {
        let mut cmd = redis::Cmd::new();
        cmd.arg(words.split(' ').collect::<Vec<_>>());
        let error = watching.query::<redis::Value>(cmd).unwrap_err();
        let name = words.split(' ').next().unwrap().to_ascii_uppercase();
        assert_eq!(refused(&error), name);
    }
    refused(&watching.query::<redis::Value>(redis::Cmd::new()).unwrap_err());
    for name in ["set", "incr", "eval", "xread", "multi", "unwatch", "publish", "nosuch"] {
        assert_eq!(quiet.server.calls(name), calls.get(name).copied().unwrap_or(0), "{name}");
    }
    // The watch stands, and reads go on.
    let length: i64 = watching.query(redis::cmd("STRLEN").arg("key").take()).unwrap();
    assert_eq!((length, quiet.server.calls("watch")), (0, watched));
    quiet.server.ask::<()>(&["SET", "key", "changed"]);
    let mut tx = watching.multi();
    tx.set("key", "mine");
    assert!(tx.commit().unwrap().is_conflict());
    quiet.nothing_was_lost();
}

#[test]
fn a_read_of_another_type_is_an_error_and_the_scope_continues() {
    let mut quiet = Quiet::start();
    quiet.server.ask::<()>(&["SET", "text", "hello"]);
    let mut watching = quiet.sessions.transactional().watch(["text"]).begin().unwrap();
    match watching.get::<_, i64>("text").unwrap_err() {
        Error::Decode { command, expected, found, .. } => {
            assert_eq!((command.as_str(), expected, found), ("GET", "i64", "a bulk string"));
        }
        error => panic!("{error:?}"),
    }
    match watching.llen("text").unwrap_err() {
        Error::Command { command, error, .. } => {
            assert_eq!((command.as_str(), error.code()), ("LLEN", "WRONGTYPE"));
        }
        error => panic!("{error:?}"),
    }
    let text: String = watching.get("text").unwrap();
    let mut tx = watching.multi();
    tx.set("text", text + "!");
    assert!(!tx.commit().unwrap().is_conflict());
    assert_eq!(quiet.server.ask::<String>(&["GET", "text"]), "hello!");
    quiet.nothing_was_lost();
}

/// A server without them replies with its own error; nothing is refused before it is sent.
#[test]
fn reads_of_modules_and_vector_sets_are_sent() {
    let mut quiet = Quiet::start();
    let mut watching = quiet.sessions.transactional().watch(["key"]).begin().unwrap();
    let reads = [
        "VSIM key ELE a",
        "vcard key",
        "VDIM key",
        "VEMB key a",
        "VGETATTR key a",
        "VINFO key",
        "VISMEMBER key a",
        "VLINKS key a",
        "VRANDMEMBER key",
        "VRANGE key - + 10",
        "JSON.GET key",
        "json.mget key $",
        "JSON.TYPE key",
        "FT.SEARCH idx *",
        "FT.AGGREGATE idx *",
        "BF.EXISTS key a",
        "CF.EXISTS key a",
        "TS.GET key",
        "TS.RANGE key - +",
        "TOPK.QUERY key a",
        "CMS.QUERY key a",
        "TDIGEST.QUANTILE key 0.5",
    ];
    for words in reads {
        let mut cmd = redis::Cmd::new();
        cmd.arg(words.split(' ').collect::<Vec<_>>());
        let answer = watching.query::<redis::Value>(cmd);
        assert!(matches!(answer, Ok(_) | Err(Error::Command { .. })), "{words}: {answer:?}");
    }
    for words in [
        "VADD key VALUES 1 1 a",
        "VREM key a",
        "JSON.SET key $ 1",
        "BF.ADD key a",
        "TS.ADD key 1 1",
    ] {
        let mut cmd = redis::Cmd::new();
        cmd.arg(words.split(' ').collect::<Vec<_>>());
        refused(&watching.query::<redis::Value>(cmd).unwrap_err());
    }
    watching.abandon().unwrap();
    quiet.nothing_was_lost();
}

#[test]
fn a_read_that_the_caller_vouches_for_is_sent_and_known_writes_are_refused() {
    let mut quiet = Quiet::start();
    quiet.server.ask::<()>(&["SET", "key", "1"]);
    let mut watching = quiet.sessions.transactional().watch(["key"]).begin().unwrap();
    let command = |words: &str| {
        let mut cmd = redis::Cmd::new();
        cmd.arg(words.split(' ').collect::<Vec<_>>());
        cmd
    };
    let script =
        redis::cmd("EVAL").arg("return redis.call('GET', KEYS[1])").arg(1).arg("key").take();
    assert_eq!(refused(&watching.query::<i64>(script.clone()).unwrap_err()), "EVAL");
    assert_eq!(watching.query_as_read::<i64>(script).unwrap(), 1);
    assert_eq!(watching.query_as_read::<i64>(command("GET key")).unwrap(), 1);
    assert!(watching.query_as_read::<Vec<i64>>(command("SORT list")).unwrap().is_empty());
    for words in ["GRAPH.RO_QUERY g q", "NOSUCH", "MINE.READ key"] {
        let unknown = watching.query_as_read::<redis::Value>(command(words)).unwrap_err();
        assert!(matches!(unknown, Error::Command { .. }), "{words} was not sent: {unknown}");
    }
    let calls = quiet.server.commandstats();
    for words in [
        "SET key 1",
        "set key 1",
        "INCR key",
        "GETDEL key",
        "FLUSHALL",
        "PUBLISH c m",
        "XADD s * a b",
        "XREADGROUP GROUP g c STREAMS s >",
        "MIGRATE h 1 key 0 1",
        "VADD key VALUES 1 1 a",
        "BLPOP l 1",
        "XREAD BLOCK 100 STREAMS s $",
        "WAIT 0 1",
        "MULTI",
        "EXEC",
        "WATCH a",
        "unwatch",
        "SELECT 1",
        "HELLO 3",
        "SUBSCRIBE c",
        "CLIENT KILL TYPE normal",
        "MONITOR",
        "QUIT",
        "RESET",
    ] {
        let error = watching.query_as_read::<redis::Value>(command(words)).unwrap_err();
        let name = words.split(' ').next().unwrap().to_ascii_uppercase();
        assert_eq!(refused(&error), name);
    }
    refused(&watching.query_as_read::<redis::Value>(redis::Cmd::new()).unwrap_err());
    for name in ["set", "incr", "flushall", "publish", "xadd", "multi", "blpop"] {
        assert_eq!(quiet.server.calls(name), calls.get(name).copied().unwrap_or(0), "{name}");
    }
    let mut tx = watching.multi();
    tx.set("key", "mine");
    assert!(!tx.commit().unwrap().is_conflict(), "the reads changed nothing");
    quiet.nothing_was_lost();
}
