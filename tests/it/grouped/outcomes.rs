//! Each block of a group has its own outcome.
//!
//! Guarantee: grouped

use std::iter;
use std::time::Duration;

use crate::fixture::{Fixture, SOON};
use rediscope::error::{Applied, ReplyError};
use rediscope::prelude::*;
use rediscope::status::CloseReason;
use rediscope::{Builder, CommitError, Error, SessionManager, TransactionOptions, Transactional};

use super::fixture::{Call, push, start, start_with, timeouts};
use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Script, Trigger};
use rediscope_testing::server::Server;

#[test]
fn blocks_that_wait_travel_as_one_transaction_in_the_order_of_the_queue() {
    let fixture = start();
    let mut turns = 0;
    let reported = fixture.at_once((0..6).map(push).collect(), || turns = fixture.proxy.turns());
    assert_eq!(fixture.proxy.turns() - turns, 1, "one round trip");
    assert_eq!(
        fixture.sent(),
        ["MULTI", "RPUSH", "RPUSH", "RPUSH", "RPUSH", "RPUSH", "RPUSH", "EXEC"]
    );
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

/// A block that reads a key, and returns the length of its value.
fn length<'c>(key: &'static str, once: bool) -> Call<'c, usize> {
    Box::new(move |handle| {
        let options = TransactionOptions::new();
        let options = if once { options.exactly_once() } else { options };
        let run = handle.with(options).run(|tx| {
            tx.incr("n", 1);
            Ok(tx.get::<_, String>(key))
        });
        run.map(|text| text.len())
    })
}

#[test]
fn a_reply_that_is_too_large_is_one_blocks_own_and_the_bound_holds_for_each() {
    let fixture = start_with(|builder| builder.max_reply_bytes(100_000));
    let value = |length| "x".repeat(length);
    fixture.server.ask::<()>(&["MSET", "large", &value(300_000), "small", &value(60_000)]);
    for once in [false, true] {
        let calls = ["small", "large", "small", "small"].map(|key| length(key, once)).into();
        let reported = fixture.at_once(calls, || {});
        let execs = fixture.sent().iter().filter(|name| *name == "EXEC").count();
        assert_eq!(execs, 1, "they travelled together");
        for (nth, reported) in reported.into_iter().enumerate() {
            match reported {
                Ok(60_000) if nth != 1 => {}
                Err(error @ Error::Reply(ReplyError::Lost)) if nth == 1 => {
                    assert_eq!(error.applied(), Applied::Yes);
                }
                other => panic!("{nth}: {other:?}"),
            }
        }
    }
    assert_eq!((fixture.number("n"), fixture.proxy.accepted()), (8, 1));
}

/// If a proxy replies to EXEC with an error, the outcome of all its blocks is unknown. What travels behind it in the
/// same write keeps its own.
#[test]
fn a_reply_that_proves_nothing_is_a_doubt_for_all_blocks_of_its_group_and_for_no_other() {
    for words in ["-upstream failure\r\n", "-ERR Connection timed out\r\n", "-READONLY no\r\n"] {
        for (trigger, fault, applied) in [
            // MULTI's reply, five QUEUED, EXEC's. The group ran.
            (Trigger::BeforeReply(7), Fault::Answer(words), 6),
            // The server never received this RPUSH, and runs the other ones.
            (Trigger::BeforeCommand(3), Fault::Refuse(words), 5),
        ] {
            let fixture = as_user();
            refuse_incr(&fixture);
            fixture.server.acl(&["SETUSER", "app", "~forbidden"]);
            let before = fixture.sessions.status().transactional.counts;
            let calls = vec![push(0), push(1), incr("forbidden"), push(2), push(3), push(4)];
            let reported = fixture.at_once(calls, || {
                fixture.proxy.arm(Script::from((trigger, fault)).once());
            });
            for (nth, reported) in reported.into_iter().enumerate() {
                match reported {
                    Err(Error::Commit(error)) if nth != 2 => {
                        assert!(matches!(error, CommitError::InDoubt(_)), "{error:?}");
                    }
                    Ok(1) if nth == 2 => {}
                    reported => panic!("{nth}: {reported:?}"),
                }
            }
            let pushed = fixture.list("list").len() as i64;
            assert_eq!(pushed + fixture.number("forbidden"), applied);
            let counts = fixture.sessions.status().transactional.counts;
            assert_eq!(counts.in_doubt - before.in_doubt, 5);
            assert_eq!(counts.all_replaced() - before.all_replaced(), 1, "{counts:?}");
        }
    }
}

#[test]
fn a_refusal_with_a_reply_too_many_behind_it_is_a_doubt_for_all_blocks_of_its_group() {
    for words in [
        "-EXECABORT Transaction discarded because of previous errors.\r\n*1\r\n:1\r\n",
        "-CLUSTERDOWN no\r\n*1\r\n:1\r\n",
        "-CROSSSLOT no\r\n*1\r\n:1\r\n",
        "*-1\r\n*1\r\n:1\r\n",
    ] {
        let fixture = start();
        let reported = fixture.at_once((0..5).map(push).collect(), || {
            let script = Script::from((Trigger::BeforeReplyTo("EXEC"), Fault::Answer(words)));
            fixture.proxy.arm(script.once());
        });
        for reported in reported {
            assert!(
                matches!(reported, Err(Error::Commit(CommitError::InDoubt(_)))),
                "{words:?}: {reported:?}"
            );
        }
        assert_eq!(fixture.list("list").len(), 5, "{words:?}");
    }
}

/// A block that increments a key.
fn incr<'c>(key: &'static str) -> Call<'c, i64> {
    Box::new(move |handle| handle.run(|tx| Ok(tx.incr(key, 1))))
}

/// Has the server refuse an INCR of a group.
#[track_caller]
fn refuse_incr(fixture: &Fixture) {
    let refused = fixture.at_once(vec![incr("forbidden"), incr("forbidden")], || {});
    for refused in refused {
        assert!(matches!(refused, Err(Error::Commit(CommitError::Rejected { .. }))), "{refused:?}");
    }
}

fn as_user() -> Fixture {
    as_user_with(timeouts)
}

fn as_user_with(change: impl FnOnce(Builder) -> Builder) -> Fixture {
    let server = Server::start();
    server.acl(&["SETUSER", "app", "on", ">secret", "~list", "~nothing", "+@all"]);
    Fixture::as_user(server, "secret", change)
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

/// The words of the two refused transactions, and of the one without a refused member.
#[test]
fn after_a_refusal_the_others_go_again_as_one_group() {
    let fixture = as_user();
    let reported = fixture.at_once(
        vec![push(0), incr("forbidden"), push(2), incr("forbidden"), push(3), push(4)],
        || {},
    );
    for (nth, reported) in reported.iter().enumerate() {
        match reported {
            Ok(_) if nth != 1 && nth != 3 => {}
            Err(Error::Commit(CommitError::Rejected { index: Some(0), code, .. }))
                if (nth == 1 || nth == 3) && code == "NOPERM" => {}
            other => panic!("{nth}: {other:?}"),
        }
    }
    let all = ["MULTI", "RPUSH", "INCRBY", "RPUSH", "INCRBY", "RPUSH", "RPUSH", "EXEC"];
    let others = ["MULTI", "RPUSH", "RPUSH", "RPUSH", "RPUSH", "EXEC"];
    assert_eq!(fixture.sent(), [&all[..], &others[..]].concat());
    assert_eq!(fixture.list("list"), ["0", "2", "3", "4"]);
}

#[test]
fn blocks_like_one_that_was_refused_go_alone_for_a_second() {
    let fixture = as_user();
    refuse_incr(&fixture);
    fixture.server.acl(&["SETUSER", "app", "~forbidden"]);
    let calls = || vec![push(0), incr("forbidden"), push(1), incr("forbidden")];
    let mut turns = 0;
    let reported = fixture.at_once(calls(), || turns = fixture.proxy.turns());
    assert!(reported.iter().all(Result::is_ok), "{reported:?}");
    assert_eq!(fixture.proxy.turns() - turns, 1, "one round trip");
    let alone = ["MULTI", "INCRBY", "EXEC"];
    let expected = [&["MULTI", "RPUSH", "RPUSH", "EXEC"][..], &alone, &alone].concat();
    assert_eq!(fixture.sent(), expected);
    eventually(SOON, "they are merged again", || {
        let reported = fixture.at_once(calls(), || {});
        assert!(reported.iter().all(Result::is_ok), "{reported:?}");
        fixture.sent() == ["MULTI", "RPUSH", "INCRBY", "RPUSH", "INCRBY", "EXEC"]
    });
}

/// Each exactly-once block that goes alone has a write of its own. The caller that leads has its own outcome
/// after the first one.
#[test]
fn a_caller_with_its_own_outcome_does_not_send_for_others_past_its_time() {
    let server = Server::start();
    server.acl(&["SETUSER", "app", "on", ">secret", "~list", "~nothing", "~rediscope:*", "+@all"]);
    let fixture = Fixture::as_user(server, "secret", timeouts);
    let once = |handle: &Transactional| handle.with(TransactionOptions::new().exactly_once());
    let execs = || fixture.sent().iter().filter(|name| *name == "EXEC").count();
    let leader = || -> Call<'_, i64> {
        Box::new(|handle| {
            let pushed = once(handle).run(|tx| Ok(tx.rpush("list", 0)));
            // What was sent until now does not count.
            execs();
            pushed
        })
    };
    let other = || -> Call<'_, i64> {
        Box::new(|handle| once(handle).run(|tx| Ok(tx.incr("forbidden", 1))))
    };
    let sent_by_others = |_| {
        fixture.server.acl(&["SETUSER", "app", "resetkeys", "~list", "~nothing", "~rediscope:*"]);
        refuse_incr(&fixture);
        fixture.server.acl(&["SETUSER", "app", "~forbidden"]);
        let calls = iter::once(leader()).chain((0..8).map(|_| other())).collect();
        let reported = fixture.at_once(calls, || {
            fixture.proxy.set_delays(Duration::ZERO, Duration::from_millis(300));
        });
        fixture.proxy.set_delays(Duration::ZERO, Duration::ZERO);
        let others = execs();
        reported.iter().all(Result::is_ok) && others > 0
    };
    // On a busy machine they are merged again before they are sent.
    assert!((0..5).any(sent_by_others), "the others are sent by one of them");
}

#[test]
fn if_multi_is_refused_no_block_of_the_group_was_isolated() {
    let fixture = as_user();
    // The group's MULTI waits on its way until the right to it is gone.
    let held = Script::from((Trigger::BeforeCommand(1), Fault::HoldRequests)).once();
    let reported = std::thread::scope(|scope| {
        let fired = fixture.proxy.fired();
        let calling =
            scope.spawn(|| fixture.at_once((0..4).map(push).collect(), || fixture.proxy.arm(held)));
        eventually(SOON, "the group is on its way", || fixture.proxy.fired() > fired);
        fixture.server.acl(&["SETUSER", "app", "-multi"]);
        fixture.proxy.release();
        calling.join().unwrap()
    });
    for (nth, reported) in reported.iter().enumerate() {
        match reported {
            Err(Error::Commit(CommitError::NotIsolated { replies, .. })) => {
                assert_eq!(replies.at::<i64>(0).unwrap() as usize, nth + 1, "its own reply");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(fixture.list("list"), ["0", "1", "2", "3"], "they ran, one by one");
}

/// On a connection that has not replied lately MULTI is sent alone.
#[test]
fn if_multi_is_refused_on_an_old_connection_no_command_is_sent() {
    let fixture = as_user_with(|builder| timeouts(builder).trust_window(Duration::ZERO));
    let reported = fixture.at_once((0..4).map(push).collect(), || {
        fixture.server.acl(&["SETUSER", "app", "-multi"]);
    });
    for reported in &reported {
        match reported {
            Err(Error::Commit(error @ CommitError::Rejected { code, .. })) => {
                assert!(code == "NOPERM" && error.to_string().contains("MULTI"), "{error:?}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(fixture.list("list"), [""; 0]);
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
