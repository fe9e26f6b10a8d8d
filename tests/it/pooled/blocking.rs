//! Blocking commands wait on their own connection, for their own time, which must have an end.
//!
//! Guarantee: the-pooled-handle

use crate::fixture::{LONG, SOON};
use crate::side::{BuildSide as _, SessionManager};
use std::thread;
use std::time::{Duration, Instant};

use redis::streams::{StreamReadOptions, StreamReadReply};
use rediscope::Error;
use rediscope::error::Applied;
use rediscope::prelude::*;

use super::fixture::{pool_is_whole, sized, typed};
use rediscope_testing::eventually;
use rediscope_testing::server::Server;

/// Far shorter than what the commands here wait for.
const RESPONSE: Duration = Duration::from_millis(500);

fn sessions(server: &Server) -> SessionManager {
    sized(&server.url(), 1).trust_window(LONG).response_timeout(RESPONSE).build_side().unwrap()
}

#[test]
fn a_blocking_pop_may_wait_for_longer_than_a_response_may_take() {
    let server = Server::start();
    let sessions = sessions(&server);
    let mut db = sessions.pooled();
    let begun = Instant::now();
    let nothing: Option<(String, String)> = db.blpop("list", 1.0).unwrap();
    assert_eq!(nothing, None);
    assert!(begun.elapsed() >= Duration::from_secs(1));
    pool_is_whole(&sessions, &server);

    thread::scope(|scope| {
        let pop = scope.spawn(|| sessions.pooled().brpop::<_, (String, String)>("list", 20.0));
        eventually(SOON, "it waits", || {
            server.client_list().iter().any(|client| client["flags"].contains('b'))
        });
        // Longer than a response may take, and it waits still.
        let begun = Instant::now();
        eventually(SOON, "time passes", || begun.elapsed() > 2 * RESPONSE);
        assert_eq!(sessions.status().pooled.in_use, 1);
        server.ask::<()>(&["RPUSH", "list", "value"]);
        assert_eq!(pop.join().unwrap().unwrap(), ("list".to_owned(), "value".to_owned()));
    });
    pool_is_whole(&sessions, &server);
}

#[test]
fn streams_are_read_with_block_and_the_next_command_has_the_short_timeout_again() {
    let server = Server::start();
    let sessions = sessions(&server);
    let mut db = sessions.pooled();
    let wait = StreamReadOptions::default().block(600);
    let begun = Instant::now();
    let nothing: Option<StreamReadReply> = db.xread_options(&["s"], &["$"], &wait).unwrap();
    assert!(nothing.is_none() && begun.elapsed() >= Duration::from_millis(600));
    let id: String = db.xadd("s", "*", &[("field", "value")]).unwrap();
    let some: StreamReadReply = db.xread_options(&["s"], &["0"], &wait).unwrap();
    assert_eq!(some.keys[0].ids[0].id, id);
    // The connection's timeouts are the pool's again.
    server.pause_clients(60_000);
    let begun = Instant::now();
    let error = typed(db.incr::<_, _, i64>("n", 1));
    assert!(begun.elapsed() < SOON);
    assert_eq!(error.applied(), Applied::Unknown, "{error:?}");
}

#[test]
fn a_wait_for_ever_is_refused_before_anything_is_sent() {
    let server = Server::start();
    let sessions = sessions(&server);
    pool_is_whole(&sessions, &server);
    let mut db = sessions.pooled();
    let stats = server.commandstats();
    let commands: [&[&str]; 14] = [
        &["BLPOP", "k", "0"],
        &["blpop", "k", "0.0"],
        &["BRPOP", "a", "b", "0"],
        &["BLMOVE", "a", "b", "LEFT", "RIGHT", "0"],
        &["BRPOPLPUSH", "a", "b", "0"],
        &["BLMPOP", "0", "1", "k", "LEFT"],
        &["BZPOPMIN", "k", "0"],
        &["BZPOPMAX", "k", "0"],
        &["BZMPOP", "0", "1", "k", "MIN"],
        &["XREAD", "BLOCK", "0", "STREAMS", "s", "$"],
        &["XREADGROUP", "GROUP", "g", "c", "block", "0", "STREAMS", "s", ">"],
        &["WAIT", "1", "0"],
        &["WAITAOF", "1", "0", "0"],
        // Not a number, or none that a clock can hold: it might as well be for ever.
        &["BLPOP", "k", "1e300"],
    ];
    for words in commands {
        let alone = typed(redis::cmd(words[0]).arg(&words[1..]).exec(&mut db));
        let mut pipe = redis::pipe();
        pipe.incr("n", 1).add_command(redis::cmd(words[0]).arg(&words[1..]).take());
        for error in [alone, typed(pipe.exec(&mut db))] {
            assert_eq!((error.applied(), error.is_retryable()), (Applied::No, false));
            match error {
                Error::Refused { command, .. } => {
                    assert_eq!(command, words[0].to_ascii_uppercase());
                }
                error => panic!("{words:?}: {error:?}"),
            }
        }
    }
    for name in ["blpop", "blmove", "xread", "wait", "incrby", "ping"] {
        let before = stats.get(name).copied().unwrap_or(0);
        assert_eq!(server.calls(name), before, "{name} was sent");
    }
    pool_is_whole(&sessions, &server);
}

#[test]
fn a_time_longer_than_any_clock_is_no_panic() {
    let server = Server::start();
    let sessions = sessions(&server);
    let mut db = sessions.pooled();
    for forever in ["1e18", "9223372036854775807", "18446744073709551615", "inf", "-1", "nan"] {
        let error = typed(redis::cmd("BLPOP").arg("k").arg(forever).exec(&mut db));
        assert_eq!(error.applied(), Applied::No, "{forever}: {error:?}");
    }
    let error = typed(
        redis::cmd("XREAD")
            .arg(&["BLOCK", "18446744073709551615", "STREAMS", "s", "$"])
            .exec(&mut db),
    );
    assert_eq!(error.applied(), Applied::No, "{error:?}");
    pool_is_whole(&sessions, &server);
}

#[test]
fn wait_adds_its_own_time() {
    let server = Server::start();
    let sessions = sessions(&server);
    let mut db = sessions.pooled();
    db.set::<_, _, ()>("n", 1).unwrap();
    let begun = Instant::now();
    let replicas: i64 = redis::cmd("WAIT").arg(1).arg(600).query(&mut db).unwrap();
    assert_eq!(replicas, 0);
    assert!(begun.elapsed() >= Duration::from_millis(600));
    pool_is_whole(&sessions, &server);
}

#[test]
fn a_blocking_command_that_reads_the_name_as_a_key_is_not_blocking() {
    let server = Server::start();
    let sessions = sessions(&server);
    let mut db = sessions.pooled();
    server.ask::<()>(&["XADD", "BLOCK", "1-0", "f", "v"]);
    let read =
        redis::cmd("XREAD").arg(&["STREAMS", "BLOCK", "0"]).query::<StreamReadReply>(&mut db);
    assert_eq!(read.unwrap().keys[0].key, "BLOCK");
    pool_is_whole(&sessions, &server);
}
