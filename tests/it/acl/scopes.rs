//! A right that is removed while a scope is open.
//!
//! Guarantee: rights

use crate::fixture::{LONG, SOON, add_on_each};
use crate::side::{BuildSide, SessionManager, open_lanes, send_ahead};
use std::time::Duration;

use rediscope::error::Applied;
use rediscope::redis::{self, Commands};
use rediscope::{CommitError, Error, Outcome, TransactionOptions, prelude::*};

use super::fixture::{RestrictedServer, nothing_is_held, summary};
use super::forms::{Form, N};
use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Proxy, Script, Trigger};

/// Every right is back: the next call works, on the connection there was.
#[track_caller]
fn goes_on(fixture: &RestrictedServer, sessions: &SessionManager, replaced: u64) {
    nothing_is_held(sessions);
    fixture.may_do_all();
    let before = fixture.number(N);
    for form in [Form::Single, Form::Run, Form::Watch, Form::Once] {
        form.play(sessions).unwrap();
    }
    assert_eq!(fixture.number(N) - before, 4);
    let counts = sessions.status().transactional.counts;
    assert_eq!(counts.all_replaced(), replaced, "{counts:?}");
}

#[test]
fn a_guard_whose_right_is_taken_away_before_its_commit_applies_nothing() {
    for trust in [Duration::ZERO, LONG] {
        let fixture = RestrictedServer::start();
        let sessions = fixture.sessions(trust);
        let mut tx = sessions.transactional().begin().unwrap();
        tx.set("app:s", 1);
        tx.incr(N, 1);
        fixture.operator("-incrby");
        let error = tx.commit().unwrap_err();
        assert_eq!(summary(&error), "Rejected 1 INCRBY NOPERM, applied No");
        assert_eq!((fixture.number(N), fixture.keys("app:*").len()), (0, 0));
        goes_on(&fixture, &sessions, 0);
    }
}

#[test]
fn a_command_whose_right_is_taken_away_between_its_queueing_and_exec_fails_alone() {
    let fixture = RestrictedServer::start();
    let sessions = fixture.sessions(LONG);
    let mut tx = sessions.transactional().begin().unwrap();
    let large = tx.append("app:large", "x".repeat(300));
    let sum = tx.incr(N, 1);
    // All of it was sent ahead: `check` reads no reply, and there is nothing to report.
    tx.append("app:large", "x".repeat(300));
    send_ahead(&mut tx);
    tx.check().unwrap();
    assert_eq!(fixture.number(N), 0);
    fixture.operator("-incrby");
    let error = tx.commit().unwrap_err();
    let Error::Commit(CommitError::PartlyApplied { replies, .. }) = &error else {
        panic!("{error:?}")
    };
    assert_eq!(replies.get(large).unwrap(), 300);
    assert!(replies.get(sum).is_err());
    assert_eq!(summary(&error), "PartlyApplied 1 NOPERM, applied Partly");
    assert_eq!((fixture.number(N), fixture.keys("app:*").len()), (0, 1));
    goes_on(&fixture, &sessions, 0);
}

#[test]
fn exec_taken_away_under_a_transaction_that_was_sent_ahead_applies_nothing() {
    let fixture = RestrictedServer::start();
    let sessions = fixture.sessions(LONG);
    let mut tx = sessions.transactional().begin().unwrap();
    tx.append("app:large", "x".repeat(300));
    send_ahead(&mut tx);
    tx.check().unwrap();
    fixture.operator("-exec");
    let error = tx.commit().unwrap_err();
    assert_eq!(summary(&error), "Rejected EXEC NOPERM, applied No");
    assert_eq!(fixture.keys("app:*").len(), 0);
    goes_on(&fixture, &sessions, 0);
}

#[test]
fn a_register_taken_away_from_an_open_scope_applies_nothing() {
    let fixture = RestrictedServer::start();
    let sessions = fixture.sessions(LONG);
    let once = sessions.transactional().with(TransactionOptions::new().exactly_once());
    Form::Once.play(&sessions).unwrap();
    // Its own register may not be written any more; what the caller wants may be.
    let mut tx = once.begin().unwrap();
    tx.incr(N, 1);
    fixture.operator("resetkeys ~app:*");
    let error = tx.commit().unwrap_err();
    assert_eq!(summary(&error), "Rejected SET of the register NOPERM, applied No");
    assert_eq!(fixture.number(N), 1);
    goes_on(&fixture, &sessions, 0);
}

#[test]
fn a_register_taken_away_between_its_queueing_and_exec_costs_the_connection_and_no_truth() {
    let fixture = RestrictedServer::start();
    let proxy = Proxy::to(&fixture.server);
    let url = format!("redis://app:secret@{}/", proxy.address());
    let sessions =
        SessionManager::builder(url).max_size(1).trust_window(LONG).build_side().unwrap();
    Form::Once.play(&sessions).unwrap();
    proxy.arm(Script::from((Trigger::BeforeCommandNamed("EXEC"), Fault::HoldRequests)).once());
    let added = std::thread::scope(|scope| {
        let calling = scope.spawn(|| Form::Once.play(&sessions));
        eventually(SOON, "all but EXEC has arrived", || {
            fixture.server.client_list().iter().any(|client| client["multi"] == "2")
        });
        fixture.operator("resetkeys ~app:*");
        proxy.release();
        calling.join().unwrap()
    });
    // The register has nothing of it; the reply had.
    let error = added.unwrap_err();
    assert_eq!(summary(&error), "KeyNotKept NOPERM, applied Yes");
    assert_eq!(fixture.number(N), 2);
    goes_on(&fixture, &sessions, 1);
}

#[test]
fn rights_taken_away_from_a_watching_scope_fail_the_step_that_needs_them() {
    let fixture = RestrictedServer::start();
    let sessions = fixture.sessions(LONG);
    let watch = sessions.transactional().watch([N]);

    // A read; the scope goes on.
    let mut watching = watch.begin().unwrap();
    fixture.operator("-get");
    let error = watching.get::<_, Option<i64>>(N).unwrap_err();
    assert_eq!(summary(&error), "Command GET NOPERM, applied No");
    let mut tx = watching.multi();
    tx.incr(N, 1);
    assert!(matches!(tx.commit().unwrap(), Outcome::Committed(_)));
    assert_eq!(fixture.number(N), 1);

    // The key itself: what watches it hears of it all the same.
    let watching = watch.begin().unwrap();
    fixture.operator("resetkeys ~rediscope:*");
    fixture.server.ask::<()>(&["SET", N, "5"]);
    let mut tx = watching.multi();
    tx.ping();
    assert!(matches!(tx.commit().unwrap(), Outcome::Conflict));
    fixture.may_do_all();

    // WATCH and UNWATCH: it was watched before.
    let mut watching = watch.begin().unwrap();
    fixture.operator("-watch -unwatch");
    let _: i64 = watching.get(N).unwrap();
    let mut tx = watching.multi();
    tx.incr(N, 1);
    assert!(matches!(tx.commit().unwrap(), Outcome::Committed(_)));
    assert_eq!(fixture.number(N), 6);

    // MULTI, on a connection that replied just now.
    fixture.may_do_all();
    let watching = watch.begin().unwrap();
    fixture.operator("-multi");
    let mut tx = watching.multi();
    tx.incr(N, 1);
    let error = tx.commit().unwrap_err();
    assert_eq!(summary(&error), "NotIsolated 0 failed, applied Yes");
    assert_eq!(fixture.number(N), 7);
    goes_on(&fixture, &sessions, 1);
}

#[test]
fn an_armed_connection_that_may_not_unwatch_its_register_is_replaced_without_an_error() {
    for trust in [Duration::ZERO, LONG] {
        let fixture = RestrictedServer::start();
        let sessions = fixture.sessions(trust);
        let once = sessions.transactional().with(TransactionOptions::new().exactly_once());
        let plain = [Form::Run, Form::Guard, Form::Immediate, Form::Watch, Form::Grouped];
        for (nth, form) in plain.into_iter().enumerate() {
            fixture.may_do_all();
            open_lanes(&sessions, N);
            // Each connection that the form may take is armed.
            add_on_each(&once, N);
            fixture.operator("-unwatch");
            let before = fixture.number(N);
            form.play(&sessions).unwrap_or_else(|error| panic!("{form:?}: {error}"));
            assert_eq!(fixture.number(N), before + 1, "{form:?}");
            // A task closes its connection a moment after the reply.
            eventually(SOON, &format!("{form:?}: the connection is replaced"), || {
                sessions.status().transactional.counts.all_replaced() == nth as u64 + 1
            });
        }
        goes_on(&fixture, &sessions, plain.len() as u64);
    }
}

#[test]
fn a_pipeline_applies_what_it_may_and_names_the_first_refusal() {
    let fixture = RestrictedServer::start();
    let sessions = fixture.sessions(LONG);
    fixture.operator("-incrby");
    let mut pipeline = redis::pipe();
    pipeline.set("app:a", 1).ignore().incr(N, 1).ignore().set("app:b", 1).ignore();
    let refused = pipeline.exec(&mut sessions.pooled()).unwrap_err();
    let error = Error::from(refused);
    assert_eq!(summary(&error), "Pipeline 1 from 1 NOPERM, applied Partly");
    assert_eq!((fixture.number("app:a"), fixture.number(N), fixture.number("app:b")), (1, 0, 1));
    // A replaced connection would be counted: the pool has had one.
    let first: i64 = redis::cmd("CLIENT").arg("ID").query(&mut sessions.pooled()).unwrap();
    fixture.operator("+incrby");
    let _: i64 = sessions.pooled().incr(N, 1).unwrap();
    let second: i64 = redis::cmd("CLIENT").arg("ID").query(&mut sessions.pooled()).unwrap();
    assert_eq!(first, second);
    fixture.operator("-client");
    let error = redis::cmd("CLIENT").arg("ID").query::<i64>(&mut sessions.pooled()).unwrap_err();
    assert_eq!(summary(&Error::from(error)), "Command CLIENT NOPERM, applied No");
    goes_on(&fixture, &sessions, 0);
}

#[test]
fn commands_that_a_script_may_have_run_are_reported_as_unknown() {
    let fixture = RestrictedServer::start();
    let sessions = fixture.sessions(LONG);
    fixture.operator("-lpush");
    let half = "redis.call('SET', KEYS[1], 1) redis.call('LPUSH', KEYS[2], 1)";
    let mut eval = redis::cmd("EVAL");
    eval.arg(half).arg(2).arg("app:a").arg("app:l");
    let error = Error::from(eval.exec(&mut sessions.pooled()).unwrap_err());
    assert_eq!((error.applied(), fixture.number("app:a")), (Applied::Unknown, 1), "{error}");
    fixture.operator("-eval");
    let error = Error::from(eval.exec(&mut sessions.pooled()).unwrap_err());
    // Alone, the script may send even this.
    assert_eq!(summary(&error), "Command EVAL NOPERM, applied Unknown");
    // In a transaction, a script that was stopped half way is one command that failed.
    fixture.operator("+eval");
    let block = sessions.transactional().run(|tx| Ok(tx.queue::<()>(eval.clone())));
    assert_eq!(summary(&block.unwrap_err()), "PartlyApplied 0 ERR, applied Partly");
    fixture.operator("-eval");
    let block = sessions.transactional().run(|tx| Ok(tx.queue::<()>(eval.clone())));
    assert_eq!(summary(&block.unwrap_err()), "Rejected 0 EVAL NOPERM, applied No");
    goes_on(&fixture, &sessions, 0);
}
