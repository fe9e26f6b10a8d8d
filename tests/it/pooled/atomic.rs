//! `pipe().atomic()` of redis-rs on the pooled handle: a block of the transactional pool, with its outcomes.
//!
//! Guarantee: the-pooled-handle, committed, in-doubt

use rediscope::error::Applied;
use rediscope::redis::{self, Pipeline, RedisResult};
use rediscope::{CommitError, Error};

use super::fixture::{pool_is_whole, typed};
use crate::fixture::proxied::{Proxied, get};
use rediscope_testing::proxy::{Fault, Trigger};

fn atomic() -> Pipeline {
    let mut pipe = redis::pipe();
    pipe.atomic();
    pipe
}

#[test]
fn an_atomic_pipeline_is_a_block_of_the_transactional_pool_with_the_replies_of_redis_rs() {
    let fixture = Proxied::start();
    let (sessions, server) = (fixture.trusting(), &fixture.server);
    let mut db = sessions.pooled();
    let before = sessions.status();
    let (n, all, none): (i64, Vec<String>, Option<String>) = atomic()
        .set("key", "\r\n*1\r\n$4\r\nEXEC\r\n")
        .ignore()
        .incr("n", 5)
        .rpush("list", &["a", "b"])
        .ignore()
        .lrange("list", 0, -1)
        .get("none")
        .query(&mut db)
        .unwrap();
    assert_eq!((n, all, none), (5, vec!["a".to_owned(), "b".to_owned()], None));
    let sent: Vec<_> = fixture.journal().iter().map(|name| name.to_uppercase()).collect();
    assert_eq!(sent, ["MULTI", "SET", "INCRBY", "RPUSH", "LRANGE", "GET", "EXEC"]);
    atomic().incr("n", 1).exec(&mut db).unwrap();
    // The same, written as commands.
    let mut pipe = redis::pipe();
    pipe.cmd("multi").cmd("INCR").arg("n").cmd("Exec");
    let (ok, queued, (n,)): (String, String, (i64,)) = pipe.query(&mut db).unwrap();
    assert_eq!((ok.as_str(), queued.as_str(), n), ("OK", "QUEUED", 7));
    assert_eq!(get(server, "key").unwrap(), "\r\n*1\r\n$4\r\nEXEC\r\n");
    let status = sessions.status();
    let commits = status.transactional.counts.commits - before.transactional.counts.commits;
    let checkouts = status.pooled.counts.checkouts - before.pooled.counts.checkouts;
    assert_eq!((commits, checkouts), (3, 0));
    pool_is_whole(&sessions, server);
}

#[test]
fn commands_that_fail_are_told_one_by_one_and_the_others_are_applied() {
    let fixture = Proxied::start();
    let (sessions, server) = (fixture.trusting(), &fixture.server);
    let mut db = sessions.pooled();
    server.ask::<()>(&["SET", "text", "S3CRET"]);
    let mut pipe = atomic();
    pipe.incr("n", 1).incr("text", 1).incr("n", 1);
    let error = typed(pipe.query::<Vec<i64>>(&mut db));
    assert!(
        matches!(&error, Error::Pipeline { index: 1, failures: 1, command, .. } if command == "INCRBY")
    );
    assert_eq!((error.applied(), error.is_retryable()), (Applied::Partly, false), "{error}");
    assert_eq!(get(server, "n").unwrap(), "2");
    let each: Vec<RedisResult<i64>> = pipe.ignore_errors().query(&mut db).unwrap();
    assert_eq!(each.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
    assert_eq!(get(server, "n").unwrap(), "4");
    let nothing = typed(atomic().incr("text", 1).query::<(i64,)>(&mut db));
    assert_eq!(nothing.applied(), Applied::No, "{nothing}");
    pool_is_whole(&sessions, server);
}

#[test]
fn the_outcomes_of_a_block_are_carried_through_the_error_of_redis_rs() {
    let fixture = Proxied::start();
    let (sessions, server) = (fixture.trusting(), &fixture.server);
    let mut db = sessions.pooled();
    let rejected = typed(atomic().incr("n", 1).cmd("NOSUCH").exec(&mut db));
    let rejected = rejected.as_commit();
    assert!(
        matches!(rejected, Some(CommitError::Rejected { code, .. }) if code == "ERR"),
        "{rejected:?}"
    );
    fixture.proxy.arm((Trigger::BeforeReplyTo("EXEC"), Fault::Cut));
    let doubt = typed(atomic().incr("n", 1).exec(&mut db));
    assert!(doubt.as_in_doubt().is_some(), "{doubt:?}");
    assert_eq!((doubt.applied(), doubt.is_retryable()), (Applied::Unknown, false));
    fixture.proxy.disarm();
    // Not sent: it is sent again.
    fixture.proxy.cut_all();
    let before: i64 = get(server, "n").unwrap().parse().unwrap();
    let (n,): (i64,) = atomic().incr("n", 1).query(&mut db).unwrap();
    assert_eq!(n, before + 1);
    for pipe in [atomic().incr("n", 1).cmd("SELECT").arg(1), atomic().cmd("MULTI").incr("n", 1)] {
        let refused = typed(pipe.exec(&mut db));
        let Some(CommitError::NotSent { source, .. }) = refused.as_commit() else {
            panic!("{refused:?}")
        };
        assert!(matches!(**source, Error::Refused { .. }), "{refused:?}");
    }
    let refused = typed(atomic().get("n").exec(&mut sessions.replica_reads()));
    assert!(
        matches!(&refused, Error::Refused { command, .. } if command == "MULTI"),
        "{refused:?}"
    );
    assert_eq!(get(server, "n").unwrap(), n.to_string());
    pool_is_whole(&sessions, server);
}
