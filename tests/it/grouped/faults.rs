//! A connection that dies under a group: only blocks that are proven applied return that.
//!
//! Guarantee: grouped

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::fixture::SOON;
use rediscope::error::Applied;
use rediscope::prelude::*;
use rediscope::{CommitError, Error, SessionManager, TransactionOptions};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry;

use super::fixture::{Call, push, start, start_with};
use rediscope_testing::proxy::{Fault, Script, Trigger};
use rediscope_testing::server::Server;
use rediscope_testing::{try_for, under_log};

/// One word for what a call returned.
fn word(reported: &Result<i64, Error>) -> &'static str {
    match reported {
        Ok(_) => "applied",
        Err(Error::Commit(CommitError::InDoubt(_))) => "in doubt",
        Err(Error::Commit(CommitError::NotSent { .. })) => "not sent",
        Err(_) => "something else",
    }
}

/// Four blocks under a fault: what each returned, and how many were applied.
fn four(trigger: Trigger, fault: Fault) -> ([&'static str; 4], usize) {
    let fixture = start();
    let reported = fixture.at_once((0..4).map(push).collect(), || {
        fixture.proxy.arm(Script::from((trigger, fault)).once());
    });
    let words = [word(&reported[0]), word(&reported[1]), word(&reported[2]), word(&reported[3])];
    let doubts = words.iter().filter(|word| **word == "in doubt").count() as u64;
    let counts = fixture.sessions.status().transactional.counts;
    assert_eq!(counts.in_doubt, doubts);
    // The pool is whole.
    fixture.proxy.release();
    let applied = fixture.list("list").len();
    // The end of a connection that was cut behind all replies may arrive behind the next block.
    let after = || fixture.sessions.transactional().run(|tx| Ok(tx.incr("after", 1))).ok();
    assert!(try_for(SOON, after).is_some());
    assert_eq!(fixture.sessions.status().transactional.in_use, 0);
    (words, applied)
}

#[test]
fn a_group_whose_connection_dies_before_the_end_of_execs_reply_is_in_doubt() {
    // MULTI's reply, four QUEUED, EXEC's.
    for trigger in [Trigger::BeforeReply(1), Trigger::BeforeReply(4), Trigger::BeforeReply(6)] {
        assert_eq!(four(trigger, Fault::Cut), (["in doubt"; 4], 4), "{trigger:?}");
    }
    assert_eq!(four(Trigger::InsideReply(6, 9), Fault::Cut), (["in doubt"; 4], 4));
    assert_eq!(four(Trigger::AfterReply(6), Fault::Cut), (["applied"; 4], 4));
}

/// The leader's log: an event about a connection delays it until three others have their outcomes.
struct Slow {
    reported: Arc<AtomicUsize>,
    found: Arc<AtomicUsize>,
}

impl<S: Subscriber> Layer<S> for Slow {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target().ends_with("::pool::idle") {
            // Before they give up on their leader, which is 4 × `response_timeout`.
            let all = || (self.reported.load(Ordering::SeqCst) == 3).then_some(());
            let _: Option<()> = try_for(Duration::from_secs(2), all);
            self.found.store(self.reported.load(Ordering::SeqCst), Ordering::SeqCst);
        }
    }
}

#[test]
fn a_leader_that_is_delayed_by_its_log_has_served_the_others() {
    let fixture = start();
    let (reported, found) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let slow = Slow { reported: Arc::clone(&reported), found: Arc::clone(&found) };
    let leads: Call<'_, i64> =
        Box::new(move |handle| under_log(registry().with(slow), || push(0)(handle)));
    let follows = |number| -> Call<'_, i64> {
        let reported = Arc::clone(&reported);
        Box::new(move |handle| {
            let came = push(number)(handle);
            reported.fetch_add(1, Ordering::SeqCst);
            came
        })
    };
    let all = fixture.at_once(vec![leads, follows(1), follows(2), follows(3)], || {
        fixture.proxy.arm(Script::from((Trigger::BeforeReply(4), Fault::Cut)).once());
    });
    let words: Vec<_> = all.iter().map(word).collect();
    assert_eq!(words, ["in doubt"; 4]);
    assert_eq!(found.load(Ordering::SeqCst), 3, "returned while the leader was held up");
}

#[test]
fn a_group_that_is_cut_on_its_way_is_in_doubt_and_applied_as_a_whole_or_not_at_all() {
    // EXEC never arrives, or not the whole of it.
    assert_eq!(four(Trigger::BeforeCommand(6), Fault::CutServerSide), (["in doubt"; 4], 0));
    assert_eq!(four(Trigger::InsideCommand(6, 9), Fault::DropRequestTail), (["in doubt"; 4], 0));
    assert_eq!(four(Trigger::AfterCommand(6), Fault::CutServerSide), (["in doubt"; 4], 4));
}

#[test]
fn one_deadline_ends_a_whole_group() {
    let reported = ["in doubt"; 4];
    // Four deadlines take longer; a busy machine may need more than one try.
    let in_time = (0..3).any(|_| {
        let begun = Instant::now();
        assert_eq!(four(Trigger::BeforeReply(1), Fault::HoldReplies), (reported, 4));
        begun.elapsed() < Duration::from_secs(3)
    });
    assert!(in_time);
}

#[test]
fn a_group_whose_connection_is_dead_before_the_write_is_sent_on_another_one() {
    let fixture = start_with(|builder| builder.trust_window(Duration::ZERO));
    let reported = fixture.at_once((0..4).map(push).collect(), || fixture.proxy.cut_all());
    assert!(reported.iter().all(Result::is_ok), "{reported:?}");
    assert_eq!(fixture.list("list").len(), 4);
}

#[test]
fn under_kills_every_block_is_applied_once_or_reported_otherwise() {
    let server = Server::start();
    let sessions = SessionManager::builder(server.url()).max_size(4).build().unwrap();
    let grouped = sessions.transactional().with(TransactionOptions::new().grouped());
    let (applied, doubts, over) = (AtomicI64::new(0), AtomicI64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                server.kill_all_clients_except_me();
                thread::sleep(Duration::from_millis(3));
            }
        });
        let callers: Vec<_> = (0..32)
            .map(|caller| {
                let (grouped, applied, doubts) = (&grouped, &applied, &doubts);
                let others = [0, 7][caller % 2];
                scope.spawn(move || {
                    for _ in 0..150 {
                        let block = grouped.run(|tx| {
                            (0..others).for_each(|nth| {
                                tx.hincr("beside", nth, 1);
                            });
                            Ok(tx.incr("n", 1))
                        });
                        match block {
                            Ok(_) => applied.fetch_add(1, Ordering::Relaxed),
                            Err(error) => match error.applied() {
                                Applied::Unknown => doubts.fetch_add(1, Ordering::Relaxed),
                                Applied::No => 0,
                                other => panic!("{other:?}: {error}"),
                            },
                        };
                    }
                })
            })
            .collect();
        callers.into_iter().for_each(|caller| caller.join().unwrap());
        over.store(true, Ordering::Relaxed);
    });
    let (applied, doubts) = (applied.into_inner(), doubts.into_inner());
    let there: i64 = server.ask(&["GET", "n"]);
    assert!(
        (applied..=applied + doubts).contains(&there),
        "{there} are there, {applied} were returned, {doubts} are in doubt"
    );
    assert!(applied > 2_000, "{applied}");
    let beside: Vec<i64> = server.ask(&["HVALS", "beside"]);
    assert!(beside.len() == 7 && beside.iter().all(|count| *count == beside[0]), "{beside:?}");
    let status = sessions.status().transactional;
    assert_eq!((status.in_use, status.waiting), (0, 0));
}
