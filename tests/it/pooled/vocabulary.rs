//! What works on a `redis::Connection` works on the handle, and errors come back typed.
//!
//! Guarantee: the-pooled-handle

use crate::side::{BuildSide as _, SessionManager};
use std::collections::{BTreeSet, HashMap};

use redis::{Commands, ConnectionLike, pipe};
use rediscope::Error;
use rediscope::error::{Applied, ConnectionErrorKind};

use super::fixture::{lost, pool_is_whole, trusting, typed};
use rediscope_testing::server::Server;

#[test]
fn the_commands_of_redis_rs_work_and_another_connection_sees_them() {
    let server = Server::start();
    let sessions = trusting(&server.url());
    let mut db = sessions.pooled();
    db.set::<_, _, ()>("text", "hello").unwrap();
    assert_eq!(server.ask::<String>(&["GET", "text"]), "hello");
    assert_eq!(db.get::<_, Option<String>>("none").unwrap(), None);
    assert_eq!(db.append::<_, _, i64>("text", " you").unwrap(), 9);
    db.set::<_, _, ()>("bytes", &b"\x00\xff\r\n"[..]).unwrap();
    assert_eq!(db.get::<_, Vec<u8>>("bytes").unwrap(), b"\x00\xff\r\n");
    db.hset_multiple::<_, _, _, ()>("hash", &[("a", 1), ("b", 2)]).unwrap();
    let hash: HashMap<String, i64> = db.hgetall("hash").unwrap();
    assert_eq!((hash["a"], hash["b"]), (1, 2));
    assert_eq!(db.rpush::<_, _, i64>("list", &["x", "y", "z"]).unwrap(), 3);
    assert_eq!(db.lrange::<_, Vec<String>>("list", 0, -1).unwrap(), ["x", "y", "z"]);
    db.zadd::<_, _, _, ()>("board", "alice", 1.5).unwrap();
    assert_eq!(db.zscore::<_, _, f64>("board", "alice").unwrap(), 1.5);
    assert_eq!(db.mget::<_, (String, Option<i64>)>(&["text", "none"]).unwrap().0, "hello you");
    assert!(db.expire::<_, bool>("text", 1000).unwrap());
    assert_eq!(db.del::<_, i64>(&["text", "hash", "none"]).unwrap(), 2);
    let script = redis::Script::new("return redis.call('INCRBY', KEYS[1], ARGV[1])");
    assert_eq!(script.key("n").arg(4).invoke::<i64>(&mut db).unwrap(), 4);
    assert_eq!(
        redis::cmd("OBJECT").arg("ENCODING").arg("n").query::<String>(&mut db).unwrap(),
        "int"
    );
    pool_is_whole(&sessions, &server);
}

#[test]
fn a_pipeline_is_one_round_trip_on_one_connection() {
    let server = Server::start();
    let proxy = rediscope_testing::proxy::Proxy::to(&server);
    let sessions = trusting(&proxy.url());
    let mut db = sessions.pooled();
    let turns = proxy.turns();
    let (a, b): (i64, String) =
        pipe().incr("n", 3).cmd("SET").arg("k").arg("v").ignore().get("k").query(&mut db).unwrap();
    assert_eq!((a, b.as_str(), proxy.turns() - turns), (3, "v", 1));
    let many: Vec<i64> = (0..2000)
        .fold(pipe(), |mut pipe, _| {
            pipe.incr("many", 1);
            pipe
        })
        .query(&mut db)
        .unwrap();
    assert_eq!((many.len(), many[1999]), (2000, 2000));
    assert_eq!(server.ask::<i64>(&["GET", "many"]), 2000);
    // As with redis-rs, one without a command is an error; here it touches no connection.
    let (before, turns) = (super::fixture::client_ids(&server), proxy.turns());
    let empty = typed(pipe().query::<()>(&mut db));
    assert!(matches!(empty, Error::Refused { .. }), "{empty:?}");
    assert_eq!((proxy.turns(), super::fixture::client_ids(&server)), (turns, before));
    pool_is_whole(&sessions, &server);
}

#[test]
fn a_pipeline_with_a_failed_command_reports_that_the_others_were_applied() {
    let server = Server::start();
    server.ask::<()>(&["SET", "text", "hello"]);
    let sessions = trusting(&server.url());
    let mut db = sessions.pooled();
    let failing = [
        (redis::Cmd::lpush("text", "x"), "WRONGTYPE"),
        (redis::Cmd::incr("text", 1), "ERR"),
        (redis::cmd("NOSUCH"), "ERR"),
    ];
    for (nth, (fail, code)) in failing.into_iter().enumerate() {
        let mut pipeline = pipe();
        pipeline.incr("n", 1).add_command(fail.clone()).incr("n", 1).add_command(fail);
        let error = typed(pipeline.query::<Vec<i64>>(&mut db));
        assert_eq!(server.ask::<usize>(&["GET", "n"]), 2 * (nth + 1));
        assert_eq!((error.applied(), error.is_retryable()), (Applied::Partly, false));
        match error {
            Error::Pipeline { failures, index, error, .. } => {
                assert_eq!((failures, index, error.code()), (2, 1, code));
            }
            error => panic!("{error:?}"),
        }
    }
    server.ask::<()>(&["SET", "n", "2"]);

    // And redis-rs' own way of asking for each of them works.
    let mut each = pipe();
    each.incr("n", 1).lpush("text", "x").ignore_errors();
    let (n, push): (i64, redis::RedisResult<i64>) = each.query(&mut db).unwrap();
    assert_eq!((n, push.unwrap_err().code()), (3, Some("WRONGTYPE")));
    pool_is_whole(&sessions, &server);
}

#[test]
fn scans_walk_the_whole_keyspace_though_each_step_borrows_again() {
    let server = Server::start();
    let sessions = trusting(&server.url());
    let mut db = sessions.pooled();
    let all: BTreeSet<String> = (0..500).map(|nth| format!("key:{nth}")).collect();
    for key in &all {
        db.set::<_, _, ()>(key, 1).unwrap();
    }
    // The handle is free between the steps: a clone of it works inside the loop, on a pool of 1.
    let mut inside = db.clone();
    let found = db.scan_match::<_, String>("key:*").unwrap().map(|key| {
        let key = key.unwrap();
        assert_eq!(inside.get::<_, i64>(&key).unwrap(), 1);
        key
    });
    assert_eq!(found.collect::<BTreeSet<_>>(), all);
    db.sadd::<_, _, ()>("set", all.iter().collect::<Vec<_>>()).unwrap();
    let members = db.sscan::<_, String>("set").unwrap().map(Result::unwrap);
    assert_eq!(members.collect::<BTreeSet<_>>(), all);
    pool_is_whole(&sessions, &server);
}

#[test]
fn a_servers_error_comes_back_typed_and_the_connection_stays() {
    let server = Server::start();
    server.ask::<()>(&["SET", "text", "hello"]);
    let sessions = trusting(&server.url());
    let mut db = sessions.pooled();
    let before = super::fixture::client_ids(&server);
    let raw = db.lpush::<_, _, i64>("text", "x").unwrap_err();
    assert_eq!(raw.code(), Some("WRONGTYPE"), "as redis-rs has it");
    let reported = |error: Error| match error {
        Error::Command { ref error, .. } => error.code().to_owned(),
        error => panic!("{error:?}"),
    };
    let error = Error::from(raw);
    assert_eq!((error.applied(), error.is_retryable()), (Applied::No, false));
    assert_eq!(reported(error), "WRONGTYPE");
    let unknown = redis::cmd("NOSUCH").arg("x").query::<()>(&mut db);
    assert_eq!(reported(typed(unknown)), "ERR");
    server.config_set("maxmemory", "1");
    let full = typed(db.set::<_, _, ()>("text", "x"));
    server.config_set("maxmemory", "0");
    assert!(full.is_retryable());
    assert_eq!(reported(full), "OOM");
    assert_eq!(super::fixture::client_ids(&server), before);
    pool_is_whole(&sessions, &server);
}

#[test]
fn a_script_that_fails_in_the_middle_is_not_reported_as_not_applied() {
    let server = Server::start();
    server.ask::<()>(&["SET", "text", "hello"]);
    let sessions = trusting(&server.url());
    let mut db = sessions.pooled();
    for end in ["error('mine')", "redis.call('INCR', 'text')", "return redis.error_reply('MINE x')"]
    {
        server.ask::<()>(&["DEL", "half"]);
        let script = redis::Script::new(&format!("redis.call('SET', KEYS[1], 1); {end}"));
        let error = typed(script.key("half").invoke::<()>(&mut db));
        assert_eq!(server.ask::<i64>(&["GET", "half"]), 1);
        assert_eq!((error.applied(), error.is_retryable()), (Applied::Unknown, false), "{end}");
    }
    // Any script may say so of another one.
    let missing = redis::cmd("EVALSHA").arg("0".repeat(40)).arg(0).exec(&mut db);
    assert_eq!(typed(missing).applied(), Applied::Unknown);
    let mut reading = sessions.transactional().reading().begin().unwrap();
    let script = redis::cmd("EVAL_RO").arg("error('mine')").arg(0).take();
    assert_eq!(reading.query::<()>(script).unwrap_err().applied(), Applied::No);
    drop(reading);
    pool_is_whole(&sessions, &server);
}

#[test]
fn a_reply_of_another_type_comes_back_typed_and_was_applied() {
    let server = Server::start();
    let sessions = trusting(&server.url());
    let mut db = sessions.pooled();
    let error = typed(db.append::<_, _, Vec<(i64, i64)>>("text", "x"));
    assert!(matches!(error, Error::Decode { .. }), "{error:?}");
    assert_eq!((error.applied(), error.is_retryable()), (Applied::Yes, false));
    assert_eq!(server.ask::<String>(&["GET", "text"]), "x");
    pool_is_whole(&sessions, &server);
}

#[test]
fn errors_of_our_own_come_back_as_they_were_through_clones_and_boxes() {
    let server = Server::start();
    let sessions = trusting(&server.url());
    let mut db = sessions.pooled();
    let raw = redis::cmd("MULTI").query::<()>(&mut db).unwrap_err();
    assert!(raw.is_io_error() && !raw.is_timeout() && !raw.is_connection_dropped());
    for error in [Error::from(raw.clone()), Error::from(raw)] {
        assert!(matches!(error, Error::Refused { ref command, .. } if command == "MULTI"));
        assert_eq!((error.applied(), error.is_retryable()), (Applied::No, false));
    }
    let through: Result<(), Error> = (|| {
        db.get::<_, i64>("n").map(drop).or_else(|_| redis::cmd("EXEC").exec(&mut db))?;
        redis::cmd("EXEC").exec(&mut db)?;
        Ok(())
    })();
    assert!(matches!(through, Err(Error::Refused { ref command, .. }) if command == "EXEC"));
    pool_is_whole(&sessions, &server);
}

#[test]
fn a_timeout_is_one_for_redis_rs_too() {
    let server = Server::start();
    let timeout = std::time::Duration::from_millis(500);
    let sessions = super::fixture::sized(&server.url(), 1)
        .trust_window(crate::fixture::LONG)
        .response_timeout(timeout)
        .build_side()
        .unwrap();
    let mut db = sessions.pooled();
    db.set::<_, _, ()>("n", 1).unwrap();
    server.pause_writes(60_000);
    let raw = db.incr::<_, _, i64>("n", 1).unwrap_err();
    assert!(raw.is_timeout(), "{raw}");
    let error = Error::from(raw);
    assert_eq!(lost(&error), ("INCRBY", Applied::Unknown));
    let Error::Lost { source, .. } = &error else { panic!("{error:?}") };
    assert_eq!(source.kind(), ConnectionErrorKind::TimedOut);
    server.unpause();
    // It was in doubt: the server applies it when the pause is over, or drops it with its client.
    pool_is_whole(&sessions, &server);
}

#[test]
fn the_rest_of_connection_like_is_true() {
    let server = Server::start();
    let sessions = SessionManager::connect(server.url_db(5)).unwrap();
    let mut db = sessions.pooled();
    assert_eq!((db.get_db(), db.is_open(), db.supports_pipelining()), (5, true, true));
    assert!(db.check_connection());
    db.set::<_, _, ()>("key", 1).unwrap();
    assert_eq!(server.ask::<i64>(&["EXISTS", "key"]), 0);
    let mut other = rediscope_testing::connect(&server.url_db(5));
    assert_eq!(other.get::<_, i64>("key").unwrap(), 1);
    drop(other);
    server.sigkill();
    let sessions = super::fixture::sized(&server.url(), 1)
        .connect_timeout(std::time::Duration::from_millis(100))
        .response_timeout(std::time::Duration::from_millis(100))
        .checkout_timeout(std::time::Duration::from_millis(300))
        .build_side()
        .unwrap();
    let mut db = sessions.pooled();
    assert!(!db.check_connection());
    assert!(db.is_open(), "it has no connection that could be closed");
    server.restart_on_same_port();
    rediscope_testing::eventually(crate::fixture::SOON, "it is back", || db.check_connection());
}

crate::side::threads_only! {
    #[test]
    fn the_table_of_reads_and_writes_is_the_servers() {
        let server = Server::start();
        let sessions = SessionManager::builder(server.url()).build_side().unwrap();
        let table: Vec<redis::Value> = server.ask(&["COMMAND"]);
        let (mut reads, mut writes, mut careful) = (0, 0, Vec::new());
        for entry in table {
            let redis::Value::Array(entry) = entry else { panic!("{entry:?}") };
            let name: String = redis::from_redis_value_ref(&entry[0]).unwrap();
            let flags: Vec<String> = redis::from_redis_value_ref(&entry[2]).unwrap();
            let is = |flag: &str| flags.iter().any(|each| each == flag);
            let mut reading = sessions.replica_reads();
            let sent = redis::cmd(&name).arg("k").arg("1").query::<redis::Value>(&mut reading);
            let refused = matches!(
                sent.map_err(Error::from),
                Err(Error::Refused { .. } | Error::Pipeline { .. })
            );
            if is("write") {
                assert!(refused, "{name} writes, and was sent to a replica");
                writes += 1;
            } else if is("readonly") {
                reads += 1;
                if refused {
                    careful.push(name);
                }
            }
        }
        assert!(reads > 70 && writes > 90, "{reads} reads, {writes} writes");
        // Reads by the server's table that this crate does not send twice.
        careful.sort_unstable();
        assert_eq!(careful, ["lolwut", "touch"]);
    }
}
