//! Each block of a batch has its own outcome.

use crate::fixture::{Fixture, SOON};
use rediscope::prelude::*;
use rediscope::status::CloseReason;
use rediscope::{CommitError, Error, SessionManager};

use super::fixture::{Call, push, start, timeouts};
use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Script, Trigger};
use rediscope_testing::server::Server;

#[test]
fn blocks_that_wait_travel_in_one_write_in_the_order_of_the_queue() {
    let fixture = start();
    let mut turns = 0;
    let reported = fixture.at_once((0..6).map(push).collect(), || turns = fixture.proxy.turns());
    assert_eq!(fixture.proxy.turns() - turns, 1, "one round trip");
    assert_eq!(fixture.sent(), ["MULTI", "RPUSH", "EXEC"].repeat(6));
    let lengths: Vec<_> = reported.into_iter().map(Result::unwrap).collect();
    assert_eq!(lengths, [1, 2, 3, 4, 5, 6], "each its own reply");
    assert_eq!(fixture.list("list"), ["0", "1", "2", "3", "4", "5"]);
    let counts = fixture.sessions.status().transactional.counts;
    assert_eq!((counts.commits, counts.in_doubt), (7, 0));
}

#[test]
fn a_command_that_fails_at_run_time_is_one_blocks_own() {
    let fixture = start();
    let wrong: Call<'_, i64> = Box::new(|handle| {
        handle.run(|tx| {
            tx.set("beside", 1);
            Ok(tx.incr("list", 1))
        })
    });
    let reported = fixture.at_once(vec![push(0), wrong, push(2)], || {});
    assert_eq!(reported[0].as_ref().unwrap(), &1);
    match &reported[1] {
        Err(Error::Commit(error)) => {
            assert!(matches!(error, CommitError::PartlyApplied { .. }), "{error:?}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(reported[2].as_ref().unwrap(), &2);
    assert_eq!(fixture.server.ask::<i64>(&["GET", "beside"]), 1);
}

/// If a proxy replies to the EXEC of a block with an error, the outcome of this block is unknown; the
/// others have their own replies.
#[test]
fn a_reply_that_proves_nothing_affects_one_block_only() {
    for words in ["-upstream failure\r\n", "-ERR Connection timed out\r\n", "-READONLY no\r\n"] {
        for (trigger, fault, ran) in [
            // The third reply of each block is EXEC's. Whichever is lost, its block ran.
            (Trigger::BeforeReply(3), Fault::Answer(words), true),
            (Trigger::BeforeReply(6), Fault::Answer(words), true),
            (Trigger::BeforeReply(18), Fault::Answer(words), true),
            // The server never received this RPUSH, and replies with an empty array.
            (Trigger::BeforeCommand(5), Fault::Refuse(words), false),
        ] {
            let fixture = start();
            let before = fixture.sessions.status().transactional.counts;
            let reported = fixture.at_once((0..6).map(push).collect(), || {
                fixture.proxy.arm(Script::from((trigger, fault)).once());
            });
            let at = match trigger {
                Trigger::BeforeReply(nth) => nth as usize / 3 - 1,
                _ => 1,
            };
            for (nth, reported) in reported.into_iter().enumerate() {
                match reported {
                    Err(Error::Commit(error)) if nth == at => {
                        assert!(matches!(error, CommitError::InDoubt(_)), "{error:?}");
                    }
                    Ok(length) if nth != at => {
                        let missing = usize::from(!ran && nth > at);
                        assert_eq!(length as usize, nth + 1 - missing);
                    }
                    reported => panic!("{nth}: {reported:?}"),
                }
            }
            assert_eq!(fixture.list("list").len(), if ran { 6 } else { 5 });
            let counts = fixture.sessions.status().transactional.counts;
            assert_eq!(counts.in_doubt - before.in_doubt, 1);
            assert_eq!(counts.all_replaced() - before.all_replaced(), 1, "{counts:?}");
        }
    }
}

fn as_user() -> Fixture {
    let server = Server::start();
    server.acl(&["SETUSER", "app", "on", ">secret", "~list", "~nothing", "+@all"]);
    Fixture::as_user(server, "secret", timeouts)
}

#[test]
fn a_command_that_is_refused_is_one_blocks_own() {
    let fixture = as_user();
    let refused: Call<'_, i64> = Box::new(|handle| {
        handle.run(|tx| {
            tx.rpush("list", "never");
            tx.rpush("list", "never either");
            Ok(tx.incr("forbidden", 1))
        })
    });
    let reported = fixture.at_once(vec![push(0), refused, push(2)], || {});
    assert!(reported[0].is_ok() && reported[2].is_ok());
    match &reported[1] {
        Err(Error::Commit(error)) => assert!(
            matches!(error, CommitError::Rejected { index: Some(2), code, .. } if code == "NOPERM"),
            "{error:?}"
        ),
        other => panic!("{other:?}"),
    }
    assert_eq!(fixture.list("list"), ["0", "2"]);
}

#[test]
fn if_multi_is_refused_from_one_block_on_the_others_keep_their_outcomes() {
    let fixture = as_user();
    // The second block's MULTI waits on its way until the right to it is gone.
    let held = Script::from((Trigger::BeforeCommand(4), Fault::HoldRequests)).once();
    let reported = std::thread::scope(|scope| {
        let calling =
            scope.spawn(|| fixture.at_once((0..4).map(push).collect(), || fixture.proxy.arm(held)));
        eventually(SOON, "the first block is applied", || !fixture.list("list").is_empty());
        fixture.server.acl(&["SETUSER", "app", "-multi"]);
        fixture.proxy.release();
        calling.join().unwrap()
    });
    assert_eq!(reported[0].as_ref().unwrap(), &1);
    for reported in &reported[1..] {
        match reported {
            Err(Error::Commit(error)) => {
                assert!(matches!(error, CommitError::NotIsolated { .. }), "{error:?}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(fixture.list("list"), ["0", "1", "2", "3"], "they ran, one by one");
}

#[test]
fn a_group_that_a_replica_refuses_has_the_connection_replaced() {
    let (fixture, other) = (start(), Server::start());
    let port = other.port().to_string();
    let reported = fixture.at_once((0..3).map(push).collect(), || {
        fixture.server.ask::<()>(&["REPLICAOF", "127.0.0.1", &port]);
    });
    for reported in &reported {
        match reported {
            Err(Error::Commit(error)) => assert!(
                matches!(error, CommitError::Rejected { code, .. } if code == "READONLY"),
                "{error:?}"
            ),
            other => panic!("{other:?}"),
        }
    }
    let counts = fixture.sessions.status().transactional.counts;
    assert_eq!(counts.replaced, [(CloseReason::Outdated, 1)]);
}

#[test]
fn a_session_of_its_own_sees_each_block_whole() {
    let fixture = start();
    let pair = |nth: i64| -> Call<'_, i64> {
        Box::new(move |handle| {
            handle.run(|tx| {
                tx.set("left", nth);
                tx.set("right", nth);
                Ok(tx.exists("left"))
            })
        })
    };
    let watcher = SessionManager::connect(fixture.server.url()).unwrap().transactional();
    let reported = fixture.at_once((0..8).map(pair).collect(), || {
        let (left, right) =
            watcher.run(|tx| Ok((tx.get::<_, Option<i64>>("left"), tx.get("right")))).unwrap();
        assert_eq!(left, right);
    });
    assert!(reported.iter().all(Result::is_ok));
    let torn: Vec<Option<i64>> = fixture.server.ask(&["MGET", "left", "right"]);
    assert_eq!(torn, [Some(7), Some(7)]);
}
