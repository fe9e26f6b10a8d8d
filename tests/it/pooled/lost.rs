//! Connections that die: reads are sent again, writes are never sent twice, and what cannot be
//! known is reported as unknown.
//!
//! Guarantee: the-pooled-handle

use crate::fixture::{LONG, SOON, unhurried};
use crate::side::{BuildSide as _, Pooled, SessionManager, open_pooled_lanes};
use std::thread;
use std::time::{Duration, Instant};

use rediscope::Error;
use rediscope::error::{Applied, ConnectionErrorKind};
use rediscope::prelude::*;
use rediscope::status::CloseReason;

use super::fixture::{client_ids, lost, pool_is_whole, sized, trusting, typed};
use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Proxy, Script, Trigger};
use rediscope_testing::server::Server;

/// Opens `count` connections, which are idle when this returns, and the lanes.
fn warm(sessions: &SessionManager, count: usize) {
    open_pooled_lanes(sessions, "none");
    let open = || sessions.status().pooled.idle as usize >= count;
    while !open() {
        let start = std::sync::Barrier::new(count);
        thread::scope(|scope| {
            for _ in 0..count {
                scope.spawn(|| {
                    start.wait();
                    sessions.pooled().blpop::<_, Option<(String, String)>>("none", 0.05).unwrap();
                });
            }
        });
    }
}

#[test]
fn idle_connections_that_died_are_replaced_without_an_error() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let sessions = unhurried(sized(&proxy.url(), 4)).trust_window(Duration::ZERO);
    let sessions = sessions.build_side().unwrap();
    let deaths: [&dyn Fn(); 4] = [
        &|| assert!(server.kill_all_clients_except_me() > 0),
        &|| proxy.cut_all(),
        &|| proxy.reset_all(),
        &|| server.restart_on_same_port(),
    ];
    for death in deaths {
        let mut db = sessions.pooled();
        warm(&sessions, 4);
        death();
        assert_eq!(db.get::<_, Option<i64>>("none").unwrap(), None, "a read comes first");
        warm(&sessions, 4);
        death();
        db.set::<_, _, ()>("key", 1).unwrap();
        warm(&sessions, 4);
        death();
        redis::pipe().set("key", 2).get("key").exec(&mut db).unwrap();
        pool_is_whole(&sessions, &server);
    }
}

#[test]
fn idle_connections_that_went_silent_cost_one_timeout_and_not_one_each() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let timeout = Duration::from_millis(500);
    let sessions = sized(&proxy.url(), 4)
        .trust_window(Duration::ZERO)
        .response_timeout(timeout)
        .checkout_timeout(Duration::from_secs(10))
        .build_side()
        .unwrap();
    let mut db = sessions.pooled();
    let calls: [&dyn Fn(&mut Pooled); 4] = [
        &|db| assert_eq!(db.get::<_, Option<i64>>("key").unwrap(), None),
        &|db| db.set::<_, _, ()>("key", 1).unwrap(),
        &|db| redis::pipe().get("key").get("key").exec(db).unwrap(),
        &|db| redis::pipe().set("key", 1).get("key").exec(db).unwrap(),
    ];
    for call in calls {
        warm(&sessions, 4);
        proxy.black_hole_all();
        call(&mut db);
        let replaced = sessions.status().pooled.counts.all_replaced();
        assert!(replaced >= 1, "{replaced}");
        proxy.cut_all();
        pool_is_whole(&sessions, &server);
    }
}

#[test]
fn a_read_whose_reply_was_lost_is_sent_again() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let sessions = trusting(&proxy.url());
    let mut db = sessions.pooled();
    server.ask::<()>(&["SET", "key", "value"]);
    for trigger in [
        Trigger::BeforeCommandNamed("GET"),
        Trigger::InsideCommandNamed("GET", 9),
        Trigger::BeforeReplyTo("GET"),
        Trigger::InsideReplyTo("GET", 6),
    ] {
        for fault in [Fault::Cut, Fault::Reset] {
            let fired = proxy.fired();
            proxy.arm(Script::from((trigger, fault)).once());
            assert_eq!(db.get::<_, String>("key").unwrap(), "value");
            assert_eq!(proxy.fired(), fired + 1);
            proxy.disarm();
        }
    }
    let reads: (String, Option<i64>) = {
        proxy.arm(Script::from((Trigger::AfterReplyTo("GET"), Fault::Cut)).once());
        redis::pipe().get("key").get("none").query(&mut db).unwrap()
    };
    assert_eq!(reads, ("value".to_owned(), None));
    proxy.disarm();
    pool_is_whole(&sessions, &server);
}

#[test]
fn a_write_whose_reply_was_lost_is_unknown_and_was_sent_once() {
    let cases = [
        (Trigger::BeforeCommandNamed("INCRBY"), Fault::Cut, 0),
        (Trigger::InsideCommandNamed("INCRBY", 12), Fault::Cut, 0),
        (Trigger::BeforeReplyTo("INCRBY"), Fault::Cut, 1),
        (Trigger::InsideReplyTo("INCRBY", 2), Fault::Reset, 1),
        (Trigger::BeforeReplyTo("INCRBY"), Fault::SwallowReply, 1),
    ];
    let server = Server::start();
    let proxy = Proxy::to(&server);
    for (trigger, fault, expected) in cases {
        // Only a reply that never comes is a matter of time.
        let timeout = if matches!(fault, Fault::SwallowReply) { SOON / 10 } else { SOON };
        let builder = unhurried(sized(&proxy.url(), 1)).response_timeout(timeout);
        let sessions = builder.trust_window(LONG).build_side().unwrap();
        let mut db = sessions.pooled();
        pool_is_whole(&sessions, &server);
        server.ask::<()>(&["DEL", "n"]);
        proxy.take_journal();
        proxy.arm((trigger, fault));
        let error = typed(db.incr::<_, _, i64>("n", 1));
        assert_eq!(lost(&error), ("INCRBY", Applied::Unknown), "{trigger:?}");
        proxy.disarm();
        assert_eq!(server.ask::<Option<i64>>(&["GET", "n"]).unwrap_or(0), expected);
        let sent = proxy.take_journal().iter().filter(|(_, name)| name == "INCRBY").count();
        assert!(sent <= 1, "{trigger:?}: it was sent {sent} times");
        pool_is_whole(&sessions, &server);
        assert_eq!(
            server.ask::<Option<i64>>(&["GET", "n"]).unwrap_or(0),
            expected,
            "none came late"
        );
    }
}

#[test]
fn a_write_to_a_connection_found_dead_before_a_byte_left_is_sent_on_another_one() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let sessions = trusting(&proxy.url());
    let mut db = sessions.pooled();
    for n in 1..=5 {
        proxy.reset_all();
        assert_eq!(db.incr::<_, _, i64>("n", 1).unwrap(), n);
    }
    assert_eq!(server.ask::<i64>(&["GET", "n"]), 5);
    pool_is_whole(&sessions, &server);
}

#[test]
fn a_pipeline_of_writes_that_broke_off_in_the_middle_is_not_sent_again() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    proxy.shrink_buffers();
    let sessions = trusting(&proxy.url());
    let mut db = sessions.pooled();
    // The first command arrives and is applied; the second is so large that its writing breaks.
    proxy.arm(Script::from((Trigger::AfterCommandNamed("INCRBY"), Fault::HoldRequests)).once());
    let error = thread::scope(|scope| {
        let write = scope.spawn(|| {
            let mut pipe = redis::pipe();
            pipe.incr("n", 1).set("large", vec![b'x'; 16 << 20]);
            typed(pipe.exec(&mut db))
        });
        eventually(SOON, "the first one is applied", || server.ask(&["EXISTS", "n"]));
        // A FIN would leave it waiting for room.
        proxy.reset_all();
        write.join().unwrap()
    });
    proxy.disarm();
    assert_eq!(server.ask::<i64>(&["GET", "n"]), 1, "never twice");
    assert_eq!(server.ask::<i64>(&["EXISTS", "large"]), 0);
    assert_eq!(lost(&error).1, Applied::Unknown);
    pool_is_whole(&sessions, &server);
}

#[test]
fn a_lost_connection_is_closed_and_never_used_again() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let builder = sized(&proxy.url(), 1).trust_window(LONG).response_timeout(SOON / 10);
    let sessions = builder.build_side().unwrap();
    let mut db = sessions.pooled();
    db.set::<_, _, ()>("a", "first").unwrap();
    db.set::<_, _, ()>("b", "second").unwrap();
    let before = client_ids(&server);
    // The reply is late, not lost: on the old connection it would be taken for the next one's.
    proxy.arm((Trigger::AfterCommandNamed("APPEND"), Fault::HoldReplies));
    let error = typed(db.append::<_, _, i64>("a", "!"));
    let Error::Lost { ref source, .. } = error else { panic!("{error:?}") };
    assert_eq!(source.kind(), ConnectionErrorKind::TimedOut);
    proxy.disarm();
    proxy.release();
    assert_eq!(db.get::<_, String>("b").unwrap(), "second");
    assert_eq!(db.get::<_, String>("a").unwrap(), "first!");
    eventually(SOON, "the old one is closed", || client_ids(&server).is_disjoint(&before));
    pool_is_whole(&sessions, &server);
}

#[test]
fn a_request_that_announces_fewer_replies_than_it_has_disturbs_no_other_call() {
    use redis::ConnectionLike;
    let server = Server::start();
    let sessions = trusting(&server.url());
    let mut db = sessions.pooled();
    server.ask::<()>(&["SET", "key", "value"]);
    let two = [
        redis::cmd("ECHO").arg("one").get_packed_command(),
        redis::cmd("ECHO").arg("two").get_packed_command(),
    ]
    .concat();
    let huge = usize::MAX;
    for (offset, count) in [(0, 1), (0, 0), (1, 0), (0, 3), (huge, 1), (0, huge), (huge, huge)] {
        let _ = db.req_packed_commands(&two, offset, count);
        assert_eq!(db.get::<_, String>("key").unwrap(), "value", "{offset} {count}");
    }
    let _ = db.req_packed_command(&two);
    assert_eq!(db.get::<_, String>("key").unwrap(), "value");
    assert_eq!(db.req_packed_commands(&two, 1, 1).unwrap().len(), 1);
    pool_is_whole(&sessions, &server);
}

#[test]
fn all_older_connections_to_a_demoted_server_are_closed() {
    let server = Server::start();
    let sessions = trusting(&server.url());
    let mut db = sessions.pooled();
    let before = super::fixture::id(&mut db);
    server.ask::<()>(&["REPLICAOF", "127.0.0.1", "1"]);
    let error = typed(db.set::<_, _, ()>("key", 1));
    assert_eq!((error.applied(), error.is_retryable()), (Applied::No, true));
    assert!(error.to_string().contains("READONLY"), "{error}");
    server.ask::<()>(&["REPLICAOF", "NO", "ONE"]);
    db.set::<_, _, ()>("key", 1).unwrap();
    assert_ne!(super::fixture::id(&mut db), before);
    pool_is_whole(&sessions, &server);
}

/// A connection that has written nothing before: the first reply of the pipeline shows that the
/// server took writes until then.
#[test]
fn readonly_after_an_applied_write_of_the_same_pipeline_closes_the_older_connections() {
    const READONLY: &str = "return redis.error_reply('READONLY You can\\'t write')";
    let server = Server::start();
    let sessions = sized(&server.url(), 4).trust_window(Duration::ZERO).build_side().unwrap();
    let readonly = || redis::cmd("EVAL").arg(READONLY).arg(0).take();
    let mut db = sessions.pooled();
    db.set::<_, _, ()>("key", 1).unwrap();
    readonly().exec(&mut db).unwrap_err();
    let outdated = || {
        let replaced = sessions.status().pooled.counts.replaced;
        replaced
            .iter()
            .find(|(why, _)| *why == CloseReason::Outdated)
            .map_or(0, |(_, count)| *count)
    };
    let before = outdated();
    // READONLY is taken for a change of role at most once in a while.
    eventually(SOON, "its connections are closed", || {
        server.ask::<()>(&["CLIENT", "KILL", "TYPE", "normal"]);
        let mut pipe = redis::pipe();
        pipe.set("key", 1).ignore().add_command(readonly()).ignore();
        pipe.exec(&mut db).unwrap_err();
        db.exists::<_, bool>("key").unwrap();
        outdated() > before
    });
}

/// The reply to the read proves no write.
#[test]
fn a_pipeline_with_a_read_on_a_replica_closes_no_connection_again_and_again() {
    let server = Server::start();
    server.ask::<()>(&["REPLICAOF", "127.0.0.1", "1"]);
    let sessions = sized(&server.url(), 1).build_side().unwrap();
    let mut db = sessions.pooled();
    let begun = Instant::now();
    eventually(SOON, "several limits of READONLY are over", || {
        let mut pipe = redis::pipe();
        pipe.set("key", 1).ignore().exists("key").ignore();
        pipe.exec(&mut db).unwrap_err();
        begun.elapsed() > Duration::from_millis(2_500)
    });
    let counts = sessions.status().pooled.counts;
    assert!(counts.all_replaced() <= 1, "{counts}");
}
