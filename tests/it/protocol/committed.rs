//! `Replies` or `Committed`: every command was applied, in order, with no other client in between.
//!
//! Guarantee: committed, reply-errors

use std::collections::HashMap;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rediscope::error::{Applied, ReplyError};
use rediscope::prelude::*;
use rediscope::{Block, Error, Outcome, Replies, Resolve};

use crate::fixture::proxied::{Proxied, get, pool_is_whole};
use crate::side::{SessionManager, Transactional};
use rediscope_testing::server::Server;

#[test]
fn committed_means_applied_in_the_order_of_queueing() {
    let fixture = Proxied::start();
    let sessions = fixture.trusting();
    let accounts = sessions.transactional();
    let commits = || sessions.status().transactional.counts.commits;
    let (words, before) = (["one", "two", "three", "four"], commits());
    let lengths = accounts
        .run(|tx| Ok(words.iter().map(|word| tx.rpush("list", *word)).collect::<Vec<_>>()))
        .unwrap();
    assert_eq!(lengths, [1, 2, 3, 4]);
    assert_eq!(fixture.server.ask::<Vec<String>>(&["LRANGE", "list", "0", "-1"]), words);
    assert_eq!(fixture.journal(), ["MULTI", "RPUSH", "RPUSH", "RPUSH", "RPUSH", "EXEC"]);
    assert_eq!(commits(), before + 1);
    pool_is_whole(&sessions, &fixture.server);
}

#[test]
fn no_other_block_comes_in_between() {
    let server = Server::start();
    let sessions = SessionManager::connect(server.url()).unwrap();
    let accounts = sessions.transactional();
    let stop = AtomicBool::new(false);
    let results: Vec<Result<[i64; 3], Error>> = thread::scope(|scope| {
        let (stop, mut other) = (&stop, server.connection());
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let _: Result<(), _> =
                    redis::cmd("RPUSH").arg("list").arg("other").exec(&mut other);
            }
        });
        let transaction =
            |_| accounts.run(|tx| Ok(["one", "two", "three"].map(|word| tx.rpush("list", word))));
        let results = (0..200).map(transaction).collect();
        stop.store(true, Ordering::Relaxed);
        results
    });
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    let list: Vec<String> = server.ask(&["LRANGE", "list", "0", "-1"]);
    assert!(list.iter().any(|word| word == "other"), "no client tried to come in between");
    let starts: Vec<usize> = (0..list.len()).filter(|at| list[*at] == "one").collect();
    assert_eq!(starts.len(), 200);
    assert!(starts.iter().all(|at| list[*at..at + 3] == ["one", "two", "three"]));
    pool_is_whole(&sessions, &server);
}

#[test]
fn replies_come_back_typed_in_the_shape_the_block_returned() {
    let fixture = Proxied::start();
    fixture.server.ask::<()>(&["MSET", "text", "hello", "number", "7"]);
    let sessions = fixture.trusting();
    let accounts = sessions.transactional();
    let (sum, text, missing, many): (i64, String, Option<String>, Vec<Option<i64>>) = accounts
        .run(|tx| {
            Ok((tx.incr("number", 5), tx.get("text"), tx.get("none"), tx.mget(&["number", "none"])))
        })
        .unwrap();
    assert_eq!((sum, text, missing, many), (12, "hello".into(), None, vec![Some(12), None]));

    let shapes = accounts.run(|tx| {
        let array = [tx.incr("number", 1), tx.incr("number", 1)];
        let vec = vec![tx.incr("number", 1)];
        let some = Some(tx.incr("number", 1));
        let nested = (tx.set("text", "bye"), (Ready("mine"), tx.get::<_, String>("text")));
        Ok((array, vec, some, None::<Queued<i64>>, nested, ()))
    });
    let expected = ([13, 14], vec![15], Some(16), None, ((), ("mine", "bye".to_owned())), ());
    assert_eq!(shapes.unwrap(), expected);
    accounts.run(|tx| Ok(tx.set("text", "nothing is asked for"))).unwrap();
    assert_eq!(get(&fixture.server, "text").unwrap(), "nothing is asked for");
    pool_is_whole(&sessions, &fixture.server);
}

#[test]
fn a_guards_replies_are_read_by_handle_in_any_order_and_as_often_as_wanted() {
    let fixture = Proxied::start();
    let sessions = fixture.trusting();
    let mut tx = sessions.transactional().begin().unwrap();
    let (first, second) = (tx.incr("n", 1), tx.incr("n", 10));
    let members: Queued<i64> = tx.queue(redis::cmd("SADD").arg("set").arg("a").arg("b").take());
    let replies = tx.commit().unwrap();
    assert_eq!((replies.len(), replies.is_empty(), replies.failures()), (3, false, 0));
    assert_eq!(replies.get((second, members, first)).unwrap(), (11, 2, 1));
    assert_eq!(replies.get(second.cast::<String>()).unwrap(), "11".to_owned());
    assert_eq!((replies.get(second).unwrap(), replies.errors().count()), (11, 0));
    assert_eq!(fixture.server.ask::<i64>(&["SCARD", "set"]), 2);
    pool_is_whole(&sessions, &fixture.server);
}

#[test]
fn a_watching_commit_returns_an_outcome() {
    let fixture = Proxied::start();
    let sessions = fixture.trusting();
    let mut watching = sessions.transactional().watch(["stock"]).begin().unwrap();
    assert_eq!(watching.get::<_, Option<i64>>("stock").unwrap(), None);
    let mut tx = watching.multi();
    let stock = tx.incr("stock", 4);
    let Outcome::Committed(replies) = tx.commit().unwrap() else { panic!("no client touched it") };
    assert_eq!(replies.get(stock).unwrap(), 4);
    assert_eq!(get(&fixture.server, "stock").unwrap(), "4");
    let left = sessions.transactional().watch(["stock"]).run(|read, tx| {
        let stock: i64 = read.get("stock")?;
        Ok((Ready(stock), tx.decr("stock", stock - 1)))
    });
    assert_eq!(left.unwrap(), (4, 1));
    pool_is_whole(&sessions, &fixture.server);
}

// What follows was applied as well; only one value of it cannot be handed out.

/// A transaction whose handle gives `expected`, though it was applied.
#[track_caller]
pub(crate) fn applied_all_the_same(
    result: Result<impl std::fmt::Debug, Error>,
    server: &Server,
    key: &str,
) -> ReplyError {
    let error = result.expect_err("the value cannot be handed out");
    assert_eq!((error.applied(), error.is_retryable()), (Applied::Yes, false), "{error}");
    assert_eq!(get(server, key).as_deref(), Some("done"));
    match error {
        Error::Reply(error) => error,
        error => panic!("not about a reply: {error}"),
    }
}

#[test]
fn a_handle_of_another_transaction_is_foreign_and_the_block_was_applied() {
    let fixture = Proxied::start();
    let sessions = fixture.trusting();
    let accounts = sessions.transactional();
    let mut other = accounts.begin().unwrap();
    let foreign = other.incr("other", 1);
    other.discard().unwrap();
    let result = accounts.run(|tx| {
        tx.set("key", "done");
        Ok(foreign)
    });
    assert_eq!(applied_all_the_same(result, &fixture.server, "key"), ReplyError::Foreign);
    let mut tx = accounts.begin().unwrap();
    let own = tx.incr("n", 1);
    let replies = tx.commit().unwrap();
    assert_eq!(replies.get((own, foreign)).unwrap_err().as_reply(), Some(&ReplyError::Foreign));
    assert_eq!(replies.get(own).unwrap(), 1);
    pool_is_whole(&sessions, &fixture.server);
}

#[test]
fn handles_are_compared_and_hashed_and_a_command_is_queued_by_reference() {
    let fixture = Proxied::start();
    let sessions = fixture.trusting();
    let accounts = sessions.transactional();
    let mut tx = accounts.begin().unwrap();
    let incr = redis::cmd("INCR").arg("n").take();
    let (first, second) = (tx.queue::<i64>(&incr), tx.queue::<i64>(redis::cmd("INCR").arg("n")));
    assert_eq!(first, first.cast::<i64>());
    assert_ne!(first, second);
    let names = HashMap::from([(first, "first"), (second, "second")]);
    assert_eq!((names[&first], names[&second]), ("first", "second"));
    let replies = tx.commit().unwrap();
    assert_eq!(replies.get((first, second)).unwrap(), (1, 2));
    let mut other = accounts.begin().unwrap();
    assert!(!names.contains_key(&other.incr("n", 1)), "a handle of another transaction");
    other.discard().unwrap();
}

struct Handles {
    hits: Queued<i64>,
    names: Vec<Queued<String>>,
}

impl Resolve for Handles {
    type Output = (i64, Vec<String>);

    fn resolve(self, replies: &Replies) -> Result<Self::Output, Error> {
        Ok((replies.get(self.hits)?, replies.get(self.names)?))
    }
}

#[test]
fn a_struct_of_handles_is_resolved_by_its_own_implementation() {
    let fixture = Proxied::start();
    fixture.server.ask::<()>(&["SET", "name", "ada"]);
    let sessions = fixture.trusting();
    let accounts = sessions.transactional();
    let queue = |tx: &mut Block, key| {
        Ok(Handles { hits: tx.incr("hits", 1), names: vec![tx.get("name"), tx.get(key)] })
    };
    let page = accounts.run(|tx| queue(tx, "name")).unwrap();
    assert_eq!(page, (1, vec!["ada".to_owned(), "ada".to_owned()]));
    // It was applied even if a value cannot be returned.
    let error = accounts.run(|tx| queue(tx, "none")).unwrap_err();
    assert_eq!(
        (error.applied(), get(&fixture.server, "hits").unwrap()),
        (Applied::Yes, "2".into())
    );
    // In a tuple, and under a watch.
    let watched = accounts.watch(["hits"]).run(|_, tx| Ok((Ready(7), queue(tx, "name")?)));
    assert_eq!(watched.unwrap().1.0, 3);
}

/// Reads one value by another transaction on the only connection, then panics.
struct Panicking(Queued<i64>, Transactional);

impl Resolve for Panicking {
    type Output = ();

    fn resolve(self, replies: &Replies) -> Result<(), Error> {
        let hits = replies.get(self.0)?;
        self.1.run(|tx| Ok(tx.set("seen", hits)))?;
        panic!("an implementation that panics");
    }
}

#[test]
fn a_struct_of_handles_that_panics_holds_no_connection() {
    let fixture = Proxied::start();
    let sessions = fixture.trusting();
    let accounts = sessions.transactional();
    let watch = accounts.watch(["hits"]);
    let resolved = |tx: &mut Block| Ok(Panicking(tx.incr("hits", 1), accounts.clone()));
    for (times, run) in [
        (1, &(|| accounts.run(resolved)) as &dyn Fn() -> Result<(), Error>),
        (2, &|| watch.run(|_, tx| resolved(tx))),
    ] {
        let ended = catch_unwind(AssertUnwindSafe(run));
        assert!(ended.is_err(), "{ended:?}");
        assert_eq!(get(&fixture.server, "seen"), Some(times.to_string()));
        pool_is_whole(&sessions, &fixture.server);
    }
}

#[test]
fn a_reply_of_another_type_is_unexpected_and_can_be_read_again() {
    let fixture = Proxied::start();
    fixture.server.ask::<()>(&["SET", "text", "hello"]);
    let sessions = fixture.trusting();
    let accounts = sessions.transactional();
    let result = accounts.run(|tx| {
        tx.set("key", "done");
        Ok(tx.get::<_, i64>("text"))
    });
    match applied_all_the_same(result, &fixture.server, "key") {
        ReplyError::Unexpected { index: 1, expected: "i64", found: "a bulk string", .. } => {}
        error => panic!("{error:?}"),
    }
    let mut tx = accounts.begin().unwrap();
    let wrong: Queued<i64> = tx.get("text");
    let replies = tx.commit().unwrap();
    assert!(matches!(
        replies.get(wrong),
        Err(Error::Reply(ReplyError::Unexpected { index: 0, .. }))
    ));
    assert_eq!(replies.get(wrong.cast::<String>()).unwrap(), "hello".to_owned());
    pool_is_whole(&sessions, &fixture.server);
}
