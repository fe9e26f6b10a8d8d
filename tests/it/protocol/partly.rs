//! `PartlyApplied`: EXEC ran, at least one command failed, the others were applied.
//!
//! Guarantee: partly-applied

use crate::fixture::LONG;
use crate::side::SessionManager;
use rediscope::error::{Applied, ReplyError};
use rediscope::prelude::*;
use rediscope::{CommitError, Error, Replies, TransactionOptions};

use crate::fixture::proxied::{
    Proxied, assert_outcome, client_ids, commit_error, get, pool_is_whole,
};

/// The replies that come with it.
#[track_caller]
fn partly(error: &Error) -> &Replies {
    assert_outcome(error, Applied::Partly, false);
    match error {
        Error::Commit(CommitError::PartlyApplied { replies, .. }) => replies,
        error => panic!("not partly applied: {error:?}"),
    }
}

#[track_caller]
fn failed(error: Option<&ReplyError>) -> (usize, String, String) {
    match error {
        Some(ReplyError::Failed { index, command, error, .. }) => {
            (*index, command.clone(), error.code().to_owned())
        }
        error => panic!("not a failed command: {error:?}"),
    }
}

#[test]
fn the_others_are_applied_and_keep_their_replies() {
    let fixture = Proxied::start();
    fixture.server.ask::<()>(&["SET", "text", "hello"]);
    let sessions = fixture.trusting();
    let commits = || sessions.status().transactional.counts.commits;
    let (before, commits_before) = (client_ids(&fixture.server), commits());
    let mut tx = sessions.transactional().begin().unwrap();
    let first = tx.incr("n", 1);
    let push = tx.lpush("text", "not a list");
    let add = tx.incr("text", 1);
    let last = tx.incr("n", 1);
    let error = tx.commit().unwrap_err();
    let replies = partly(&error);
    assert_eq!((replies.len(), replies.failures()), (4, 2));
    assert_eq!(replies.get((first, last)).unwrap(), (1, 2));
    let wrong_type = (1, "LPUSH".to_owned(), "WRONGTYPE".to_owned());
    assert_eq!(failed(replies.get(push).unwrap_err().as_reply()), wrong_type);
    assert_eq!(
        failed(replies.get(add).unwrap_err().as_reply()),
        (2, "INCRBY".to_owned(), "ERR".to_owned())
    );
    let all: Vec<_> = replies.errors().map(|error| failed(Some(&error)).0).collect();
    assert_eq!(all, [1, 2]);
    assert_eq!(get(&fixture.server, "n").unwrap(), "2", "Redis does not undo");
    assert_eq!(get(&fixture.server, "text").unwrap(), "hello");
    assert_eq!(client_ids(&fixture.server), before);
    assert_eq!(commits(), commits_before + 1);
    pool_is_whole(&sessions, &fixture.server);
}

#[test]
fn run_and_a_watching_run_report_it_and_do_not_run_again() {
    let fixture = Proxied::start();
    fixture.server.ask::<()>(&["SET", "text", "hello"]);
    let sessions = fixture.trusting();
    let accounts = sessions.transactional();
    let by_run = commit_error(accounts.run(|tx| {
        tx.lpush("text", "x");
        Ok(tx.incr("n", 1))
    }));
    assert_eq!(partly(&by_run).failures(), 1);
    let mut runs = 0;
    let by_watch = commit_error(accounts.watch(["other"]).run(|_, tx| {
        runs += 1;
        tx.lpush("text", "x");
        Ok(tx.incr("n", 1))
    }));
    assert_eq!((partly(&by_watch).failures(), runs), (1, 1));
    assert_eq!(get(&fixture.server, "n").unwrap(), "2", "once each");
    pool_is_whole(&sessions, &fixture.server);
}

#[test]
fn a_failed_command_keeps_its_index_and_name_when_it_was_sent_ahead_or_a_part_was_forgotten() {
    let fixture = Proxied::start();
    fixture.server.ask::<()>(&["SET", "text", "hello"]);
    let sessions = fixture.warm(fixture.builder().trust_window(LONG).flush_bytes(200));
    let mut tx = sessions.transactional().begin().unwrap();
    let mut wrong = Vec::new();
    for n in 0..30 {
        tx.savepoint().set("forgotten", n);
        if n % 10 == 4 {
            wrong.push(tx.queue::<i64>(redis::cmd("sadd").arg("text").arg(n).take()));
        } else {
            tx.rpush("list", n);
        }
    }
    let error = tx.commit().unwrap_err();
    let replies = partly(&error);
    let reported: Vec<_> = wrong
        .into_iter()
        .map(|handle| failed(replies.get(handle).unwrap_err().as_reply()))
        .collect();
    let expected = [4, 14, 24].map(|n| (n, "SADD".to_owned(), "WRONGTYPE".to_owned()));
    assert_eq!(reported, expected);
    assert_eq!(fixture.server.ask::<i64>(&["LLEN", "list"]), 27);
    assert_eq!(get(&fixture.server, "forgotten"), None);
    let sent = fixture.journal();
    assert_eq!((sent.first().unwrap(), sent.len()), (&"MULTI".to_owned(), 32));
    pool_is_whole(&sessions, &fixture.server);
}

/// EXEC's array holds errors only: nothing was changed, unless a command among them may fail after
/// it has written.
#[test]
fn nothing_was_changed_if_every_command_failed_and_each_is_a_core_command() {
    let fixture = Proxied::start();
    fixture.server.ask::<()>(&["SET", "text", "hello"]);
    let sessions = fixture.trusting();
    let accounts = sessions.transactional();
    let wrong = |name: &str| redis::cmd(name).arg("text").arg("x").to_owned();
    let incr = redis::cmd("INCR").arg("text").to_owned();
    let script = "redis.call('SET', KEYS[1], 'half') return redis.error_reply('WRONGTYPE no')";
    let eval = redis::cmd("EVAL").arg(script).arg(1).arg("half").to_owned();
    let migrate = "MIGRATE 127.0.0.1 1 text 0 1".split(' ').fold(redis::Cmd::new(), |mut c, w| {
        c.arg(w);
        c
    });
    let set = redis::cmd("SET").arg("set").arg(1).to_owned();
    for (commands, applied, words) in [
        (vec![incr.clone()], Applied::No, "nothing"),
        (vec![wrong("LPUSH"), wrong("sadd"), incr.clone()], Applied::No, "nothing"),
        (vec![eval.clone()], Applied::Partly, "may"),
        (vec![incr.clone(), eval], Applied::Partly, "may"),
        (vec![migrate], Applied::Partly, "may"),
        (vec![incr.clone(), set], Applied::Partly, "partly applied"),
    ] {
        for form in ["run", "watch run", "guard", "grouped", "exactly once", "exactly once as"] {
            fn queue(tx: &mut impl QueueCommands, commands: &[redis::Cmd]) -> Result<(), Error> {
                commands.iter().for_each(|cmd| _ = tx.queue::<()>(cmd.clone()));
                Ok(())
            }
            let reported = match form {
                "watch run" => accounts.watch(["w"]).run(|_, tx| queue(tx, &commands)),
                "guard" => {
                    let mut tx = accounts.begin().unwrap();
                    queue(crate::side::queue(&mut tx), &commands).unwrap();
                    tx.commit().map(drop)
                }
                form => {
                    let options = TransactionOptions::new();
                    let handle = match form {
                        "grouped" => accounts.with(options.grouped()),
                        "exactly once" => accounts.with(options.exactly_once()),
                        "exactly once as" => {
                            let key = rediscope_testing::unique("order");
                            accounts.with(options.exactly_once_as(key, LONG))
                        }
                        _ => accounts.clone(),
                    };
                    handle.run(|tx| queue(tx, &commands))
                }
            };
            let error = commit_error(reported);
            // EXEC has kept the key.
            let (applied, words) = match form {
                "exactly once as" if applied == Applied::No => (Applied::Partly, "only the key"),
                _ => (applied, words),
            };
            assert_outcome(&error, applied, false);
            let Error::Commit(CommitError::PartlyApplied { replies, .. }) = &error else {
                panic!("{error:?}")
            };
            assert_eq!(replies.len(), commands.len());
            let text = error.to_string();
            assert!(text.contains(words), "{form}: {text}");
            assert_eq!(text.contains("partly"), words == "partly applied", "{form}: {text}");
        }
    }
    assert_eq!(get(&fixture.server, "text").unwrap(), "hello");
    pool_is_whole(&sessions, &fixture.server);
}

#[test]
fn a_script_that_fails_in_the_middle_is_reported_without_its_words() {
    let fixture = Proxied::start();
    let sessions: SessionManager = fixture.trusting();
    let mut tx = sessions.transactional().begin().unwrap();
    let script = "redis.call('SET', KEYS[1], 'half'); return redis.error_reply('MINE ' .. ARGV[1])";
    let run: Queued<()> = tx.eval(script, "key", "my own words");
    let error = tx.commit().unwrap_err();
    match partly(&error).get(run) {
        Err(Error::Reply(ReplyError::Failed { index: 0, command, error, .. })) => {
            assert_eq!((command.as_str(), error.code()), ("EVAL", "MINE"));
            assert!(!error.to_string().contains("my own words"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(get(&fixture.server, "key").unwrap(), "half");
    pool_is_whole(&sessions, &fixture.server);
}

/// After `run` the handles are gone: what failed is in the error, and the replies are read by index.
#[test]
fn a_failed_command_is_named_and_the_replies_are_read_by_index() {
    let fixture = Proxied::start();
    let sessions: SessionManager = fixture.trusting();
    fixture.server.ask::<()>(&["SET", "text", "not a number"]);
    let reported = sessions.transactional().run(|tx| {
        tx.incr("hits", 1);
        tx.incr("text", 1);
        tx.lpush("text", "x");
        Ok(tx.set("done", 1))
    });
    let error = reported.unwrap_err();
    let text = error.to_string();
    assert_eq!(text, "partly applied: 2 of 4 commands failed, first INCRBY at index 1 with ERR");
    assert_eq!(error.code(), Some("ERR"));
    let source = std::error::Error::source(&error).unwrap();
    let source = source.downcast_ref::<ReplyError>().expect("the first command that failed");
    match source {
        ReplyError::Failed { index: 1, command, error, .. } => {
            assert_eq!((command.as_str(), error.code()), ("INCRBY", "ERR"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(format!("{error:#}"), format!("{text}: {source}"));
    let replies = partly(&error);
    assert_eq!(replies.at::<i64>(0).unwrap(), 1);
    assert_eq!(replies.at::<()>(1).unwrap_err().as_reply(), Some(source));
    assert!(matches!(replies.at::<()>(2), Err(Error::Reply(ReplyError::Failed { index: 2, .. }))));
    assert_eq!(replies.at::<String>(3).as_deref().unwrap(), "OK");
    let beyond = replies.at::<()>(4).unwrap_err();
    assert!(
        matches!(beyond, Error::Reply(ReplyError::OutOfRange { index: 4, commands: 4, .. })),
        "{beyond:?}"
    );
    assert_eq!(beyond.to_string(), "there is no command 4: the transaction had 4 commands");
    pool_is_whole(&sessions, &fixture.server);
}
