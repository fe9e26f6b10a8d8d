//! Promise: a block that shares a lane with others is as isolated as alone. Each caller gets its own replies and its own
//! refusal, and a dropped one costs no other anything.
//!
//! Guarantee: grouped, tasks

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use fastrand::Rng;
use rediscope::aio::SessionManager;
use rediscope::error::{Applied, CheckoutError, InDoubt, ReplyError, Resolution};
use rediscope::prelude::*;
use rediscope::{Block, CommitError, Error, TransactionOptions};
use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Proxy, Script, Trigger, Which};
use rediscope_testing::server::Server;
use rediscope_testing::tasks::{panicking_waker, several as runtime};
use tokio::runtime::{Builder, Runtime};

use crate::fixture::{SLACK, SOON};
use crate::random_blocks::{Step, Sums, check, server_with_user};

/// Groups of callers. The environment variable `REDISCOPE_LANE_GROUPS` overrides it.
const GROUPS: u64 = 150;

fn sessions(server: &Server, user: bool, lanes: u32) -> SessionManager {
    let url = if user { server.url_as("caller", "secret") } else { server.url() };
    let builder = rediscope::SessionManager::builder(url)
        .lanes(lanes)
        .checkout_timeout(SOON)
        .cleanup_timeout(SOON);
    builder.build_async().unwrap()
}

fn number(name: &str, default: u64) -> u64 {
    rediscope_testing::soak::number(name).unwrap_or(default)
}

/// 2 to 16 callers at once, each with a block of random commands, again and again.
fn groups_of_random_blocks(options: TransactionOptions, name: &str) {
    let seed = rediscope_testing::soak::seed();
    let mut rng = Rng::with_seed(seed);
    let (runtime, server) = (runtime(), server_with_user());
    let _: () = server.ask(&["RPUSH", "open:list", "x"]);
    let sessions = {
        let _runtime = runtime.enter();
        sessions(&server, true, 1)
    };
    let transactional = sessions.transactional().with(options);
    let (mut sums, mut refused, mut blocks) = (Sums::default(), 0, 0);
    for _ in 0..number("REDISCOPE_LANE_GROUPS", GROUPS) {
        let allows_refusal = rng.u8(..3) == 0;
        let callers = rng.u64(2..17);
        let spawned: Vec<_> = (0..callers)
            .map(|caller| {
                let count = rng.usize(1..5);
                let steps: Vec<_> =
                    (0..count).map(|_| Step::random(&mut rng, caller, allows_refusal)).collect();
                let handle = transactional.clone();
                runtime.spawn(async move {
                    let queue = |tx: &mut Block| {
                        Ok(steps.iter().map(|step| step.queue(tx)).collect::<Vec<_>>())
                    };
                    let outcome = handle.run(queue).await;
                    (steps, outcome)
                })
            })
            .collect();
        for spawned in spawned {
            let (steps, outcome) = runtime.block_on(spawned).unwrap();
            blocks += 1;
            match check(&steps, &outcome) {
                true => sums.add(&steps),
                false => refused += 1,
            }
        }
    }
    sums.assert_held_by(&server);
    assert!(server.ask::<Option<i64>>(&["GET", "closed"]).is_none());
    println!("{name}: {blocks} blocks, {refused} refused");
    let status = sessions.status().transactional;
    assert_eq!((status.counts.withdrawn, status.counts.abandoned), (0, 0));
    assert_eq!(status.counts.connects, 1, "one lane served all");
}

#[test]
fn plain_blocks_of_a_group_get_their_own_replies_and_refusals() {
    groups_of_random_blocks(TransactionOptions::new(), "plain");
}

#[test]
fn exactly_once_blocks_of_a_group_get_their_own_replies_and_refusals() {
    groups_of_random_blocks(TransactionOptions::new().exactly_once(), "exactly once");
}

/// Polls the future at most `polls` times.
async fn polled<F: Future>(future: F, polls: u64) -> Option<F::Output> {
    let (mut future, mut left) = (pin!(future), polls);
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(context) {
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => {
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Ready(output) => Poll::Ready(Some(output)),
        }
    })
    .await
}

#[test]
fn members_that_are_dropped_at_any_poll_leave_whole_blocks_and_no_torn_reply() {
    let mut rng = Rng::with_seed(rediscope_testing::soak::seed());
    let (runtime, server) = (runtime(), Server::start());
    let sessions = {
        let _runtime = runtime.enter();
        sessions(&server, false, 2)
    };
    let (told, sent) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let plain = sessions.transactional();
    let once = plain.with(TransactionOptions::new().exactly_once());
    let workers: Vec<_> = (0..32_u64)
        .map(|worker| {
            let (plain, once, mut pooled) = (plain.clone(), once.clone(), sessions.pooled());
            let (told, sent, mut rng) = (Arc::clone(&told), Arc::clone(&sent), rng.fork());
            runtime.spawn(async move {
                for call in 0..number("REDISCOPE_LANE_CALLS", 200) {
                    let (a, b) = (format!("a:{worker}:{call}"), format!("b:{worker}:{call}"));
                    let polls = [0, 1, 2, 4, 16, u64::MAX][rng.usize(..6)];
                    let handle = if rng.bool() { &plain } else { &once };
                    let block = handle.run(|tx| {
                        let values = (tx.incr(&a, 1), tx.get::<_, Option<i64>>("none"));
                        Ok((values, tx.incr(&b, 1)))
                    });
                    sent.fetch_add(u64::from(polls > 0), Ordering::Relaxed);
                    if let Some(outcome) = polled(block, polls).await {
                        assert_eq!(outcome.unwrap(), ((1, None), 1));
                        told.fetch_add(1, Ordering::Relaxed);
                    }
                    if call % 8 == 0 {
                        let read: Option<i64> = pooled.get("none").await.unwrap();
                        assert_eq!(read, None);
                    }
                }
            })
        })
        .collect();
    for worker in workers {
        runtime.block_on(worker).unwrap();
    }
    runtime.block_on(sessions.close(SOON));
    let counts = sessions.status().transactional.counts;
    let (told, sent) = (told.load(Ordering::Relaxed), sent.load(Ordering::Relaxed));
    println!(
        "{sent} sent, {told} told, {} withdrawn, {} abandoned",
        counts.withdrawn, counts.abandoned
    );
    assert_eq!(told + counts.withdrawn + counts.abandoned, sent);
    assert!(
        counts.connects <= 2 && counts.all_replaced() <= 2,
        "a drop cost a connection: {counts}"
    );
    let applied: u64 = (0..32_u64)
        .flat_map(|worker| (0..200).map(move |call| (worker, call)))
        .map(|(worker, call)| {
            let keys = [format!("a:{worker}:{call}"), format!("b:{worker}:{call}")];
            let found: [Option<u64>; 2] = keys.map(|key| server.ask(&["GET", &key]));
            assert_eq!(found[0], found[1], "half a block was applied");
            found[0].unwrap_or_default()
        })
        .sum();
    assert!((told..=told + counts.abandoned).contains(&applied), "{applied}");
}

#[test]
fn a_block_that_is_dropped_behind_its_multi_costs_no_connection() {
    let (runtime, server) = (runtime(), Server::start());
    let proxy = Proxy::to(&server);
    let builder = rediscope::SessionManager::builder(proxy.url()).lanes(1);
    let builder = builder.trust_window(Duration::ZERO).checkout_timeout(4 * SOON);
    let builder = builder.connect_timeout(SOON).response_timeout(SOON);
    let sessions = builder.build_async().unwrap();
    let plain = sessions.transactional();
    let once = plain.with(TransactionOptions::new().exactly_once());
    for accounts in [&plain, &once, &plain] {
        let add = || runtime.block_on(accounts.run(|tx| Ok(tx.incr("n", 1))));
        add().unwrap();
        let fired = proxy.fired();
        proxy.arm(Script::from((Trigger::BeforeReplyTo("MULTI"), Fault::HoldReplies)).once());
        let handle = accounts.clone();
        let call = runtime.spawn(async move { handle.run(|tx| Ok(tx.incr("never", 1))).await });
        eventually(SOON, "MULTI was sent", || proxy.fired() > fired);
        call.abort();
        assert!(runtime.block_on(call).unwrap_err().is_cancelled());
        proxy.disarm();
        proxy.release();
        add().unwrap();
    }
    assert_eq!(server.ask::<[Option<i64>; 2]>(&["MGET", "n", "never"]), [Some(6), None]);
    let counts = sessions.status().transactional.counts;
    assert_eq!((counts.connects, counts.withdrawn, counts.all_replaced()), (1, 3, 0), "{counts}");
}

#[test]
fn a_stopped_server_ends_each_call_in_time_and_says_nothing_applied_for_what_was_not_sent() {
    let (runtime, server) = (runtime(), Server::start());
    let (timeout, waits) = (Duration::from_millis(300), Duration::from_millis(900));
    let sessions = {
        let _runtime = runtime.enter();
        rediscope::SessionManager::builder(server.url())
            .connect_timeout(timeout)
            .response_timeout(timeout)
            .checkout_timeout(waits)
            .max_in_flight(16)
            .build_async()
            .unwrap()
    };
    let tx = sessions.transactional();
    runtime.block_on(tx.run(|tx| Ok(tx.incr("before", 1)))).unwrap();
    server.sigstop();
    let calls: Vec<_> = (0..500)
        .map(|_| {
            let tx = tx.clone();
            runtime.spawn(async move {
                let begun = Instant::now();
                let outcome = tx.run(|tx| Ok(tx.incr("n", 1))).await;
                (outcome, begun.elapsed())
            })
        })
        .collect();
    let (mut in_doubt, mut nothing) = (0, 0);
    for call in calls {
        let (outcome, took) = runtime.block_on(call).unwrap();
        let error = outcome.unwrap_err();
        // A block that is sent again has a new time for its connection.
        assert!(took < 3 * waits + SLACK, "{took:?}: {error:#}");
        match error.applied() {
            Applied::No => nothing += 1,
            Applied::Unknown => in_doubt += 1,
            other => panic!("{other:?}: {error:#}"),
        }
    }
    server.sigcont();
    println!("{in_doubt} in doubt, {nothing} not sent");
    assert!(in_doubt <= 2 * 16, "{in_doubt}");
    assert!(runtime.block_on(tx.run(|tx| Ok(tx.incr("after", 1)))).is_ok());
    let n: Option<i64> = server.ask(&["GET", "n"]);
    assert!(n.unwrap_or_default() <= in_doubt, "{n:?}");
}

/// A runtime of one thread: calls that are polled side by side are one group.
fn one_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn a_group_whose_reply_is_lost_is_resolved_once_for_all_its_blocks() {
    let (runtime, server) = (one_thread(), Server::start());
    let proxy = Proxy::to(&server);
    let sessions = {
        let _runtime = runtime.enter();
        let builder = rediscope::SessionManager::builder(proxy.url()).lanes(1);
        builder.checkout_timeout(SOON).build_async().unwrap()
    };
    let once = sessions.transactional().with(TransactionOptions::new().exactly_once());
    runtime.block_on(once.run(|tx| Ok(tx.incr("n", 1)))).unwrap();
    proxy.arm(Script::new().on(Trigger::BeforeReplyTo("EXEC"), Fault::Cut).once());
    let block = || once.run(|tx| Ok(tx.incr("n", 1)));
    let (a, b, c, d) = runtime.block_on(async { tokio::join!(block(), block(), block(), block()) });
    for outcome in [a, b, c, d] {
        assert!(matches!(outcome, Err(Error::Reply(ReplyError::Lost))), "{outcome:?}");
    }
    assert_eq!(server.ask::<i64>(&["GET", "n"]), 5);
    let counts = sessions.status().transactional.counts;
    assert_eq!((counts.resolved_committed, counts.resolved_not_committed), (1, 0), "{counts}");
}

/// Sessions with one lane, and a server that replies to no new connection once a group's reply was lost.
fn group_of_lost_reply(within: Duration) -> (Server, Proxy, SessionManager) {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let builder = rediscope::SessionManager::builder(proxy.url()).lanes(1);
    let sessions = short(builder, within).build_async().unwrap();
    (server, proxy, sessions)
}

/// Loses the reply to a group of exactly-once blocks. New connections get no reply.
async fn lost_group(sessions: &SessionManager, proxy: &Proxy, blocks: u32) -> Vec<InDoubt> {
    let once = sessions.transactional().with(TransactionOptions::new().exactly_once());
    once.run(|tx| Ok(tx.incr("n", 1))).await.unwrap();
    proxy.mute_new(true);
    proxy.arm(Script::new().on(Trigger::BeforeReplyTo("EXEC"), Fault::Cut).once());
    let calls = (0..blocks).map(|_| {
        let once = once.clone();
        tokio::spawn(async move { once.run(|tx| Ok(tx.incr("n", 1))).await })
    });
    let (calls, mut doubts) = (calls.collect::<Vec<_>>(), Vec::new());
    for call in calls {
        match call.await.unwrap() {
            Err(Error::Commit(CommitError::InDoubt(doubt))) => doubts.push(doubt),
            other => panic!("{other:?}"),
        }
    }
    proxy.disarm();
    let tokens: std::collections::HashSet<_> = doubts.iter().map(|doubt| doubt.token()).collect();
    assert_eq!(tokens.len(), 1, "the blocks were not one group");
    doubts
}

#[test]
fn a_group_in_doubt_whose_server_stays_silent_ends_in_time_for_each_block() {
    let within = Duration::from_millis(600);
    let (_server, proxy, sessions) = group_of_lost_reply(within);
    one_thread().block_on(async {
        let begun = Instant::now();
        lost_group(&sessions, &proxy, 8).await;
        let took = begun.elapsed();
        assert!(took < within + within / 3 + SLACK, "{took:?}");
    });
}

#[test]
fn a_member_that_is_polled_no_more_holds_up_no_other_resolution() {
    let within = Duration::from_millis(900);
    let (server, proxy, sessions) = group_of_lost_reply(within);
    one_thread().block_on(async {
        let doubts = lost_group(&sessions, &proxy, 2).await;
        proxy.mute_new(false);
        let fired = proxy.fired();
        proxy.arm(Script::from((Trigger::BeforeReplyTo("PEXPIRE"), Fault::HoldReplies)).once());
        let mut kept = Box::pin(doubts[0].resolve_async());
        while proxy.fired() == fired {
            assert!(polled(kept.as_mut(), 1).await.is_none(), "it has no reply");
            tokio::task::yield_now().await;
        }
        proxy.disarm();
        proxy.release();
        let other = tokio::time::timeout(within + SLACK, doubts[1].resolve_async()).await;
        assert_eq!(other.expect("it waits for the other one"), Resolution::Committed);
        assert_eq!(kept.await, Resolution::Committed);
    });
    assert_eq!(server.ask::<i64>(&["GET", "n"]), 3);
}

#[test]
fn a_group_that_never_arrived_is_sent_again_after_one_resolution() {
    let (runtime, server) = (one_thread(), Server::start());
    let proxy = Proxy::to(&server);
    let sessions = {
        let _runtime = runtime.enter();
        let builder = rediscope::SessionManager::builder(proxy.url()).lanes(1);
        let builder = builder.response_timeout(Duration::from_millis(300));
        builder.checkout_timeout(SOON).build_async().unwrap()
    };
    let once = sessions.transactional().with(TransactionOptions::new().exactly_once());
    runtime.block_on(once.run(|tx| Ok(tx.incr("n", 1)))).unwrap();
    proxy.arm(Script::new().on(Trigger::ClientBytes(40), Fault::HoldRequests).once());
    let block = || once.run(|tx| Ok(tx.incr("n", 1)));
    let (a, b, c, d) = runtime.block_on(async { tokio::join!(block(), block(), block(), block()) });
    let mut counted = [a, b, c, d].map(|outcome| outcome.unwrap());
    counted.sort_unstable();
    assert_eq!(counted, [2, 3, 4, 5]);
    // What was held arrives now, and is refused.
    proxy.release();
    assert_eq!(runtime.block_on(once.run(|tx| Ok(tx.incr("n", 1)))).unwrap(), 6);
    let counts = sessions.status().transactional.counts;
    assert_eq!((counts.resolved_committed, counts.resolved_not_committed), (0, 1), "{counts}");
    assert_eq!(server.ask::<i64>(&["GET", "n"]), 6);
}

#[test]
fn a_dead_lane_moves_what_was_not_sent_and_no_caller_notices() {
    let (runtime, server) = (one_thread(), Server::start());
    let proxy = Proxy::to(&server);
    let sessions = {
        let _runtime = runtime.enter();
        rediscope::SessionManager::builder(proxy.url()).lanes(2).build_async().unwrap()
    };
    let (tx, mut pooled) = (sessions.transactional(), sessions.pooled());
    let once = tx.with(TransactionOptions::new().exactly_once());
    for round in 1..=6_i64 {
        let (plain, fenced, single) = runtime.block_on(async {
            tokio::join!(
                tx.run(|tx| Ok(tx.incr("plain", 1))),
                once.run(|tx| Ok(tx.incr("fenced", 1))),
                pooled.incr::<_, _, i64>("single", 1)
            )
        });
        assert_eq!((plain.unwrap(), fenced.unwrap(), single.unwrap()), (round, round, round));
        match round % 2 {
            0 => proxy.cut_all(),
            _ => proxy.reset_all(),
        }
        eventually(SOON, "the connections are closed", || proxy.connections() == 0);
    }
}

#[test]
fn a_value_that_cannot_be_decoded_is_its_own_callers() {
    let (runtime, server) = (runtime(), Server::start());
    let _: () = server.ask(&["SET", "text", "x"]);
    let sessions = {
        let _runtime = runtime.enter();
        sessions(&server, false, 1)
    };
    let tx = sessions.transactional();
    let (odd, even) = runtime.block_on(async {
        tokio::join!(
            tx.run(|tx| Ok(tx.get::<_, i64>("text"))),
            tx.run(|tx| Ok(tx.get::<_, String>("text")))
        )
    });
    assert!(matches!(odd, Err(Error::Reply(ReplyError::Unexpected { .. }))), "{odd:?}");
    assert_eq!(even.unwrap(), "x");
}

/// Callers whose replies are small among some whose reply is larger than `max_reply_bytes`.
async fn beside_large_replies(sessions: &SessionManager, exactly_once: bool) -> (u64, u64) {
    let options = match exactly_once {
        true => TransactionOptions::new().exactly_once(),
        false => TransactionOptions::new(),
    };
    let (mut small, mut large) = (0, 0);
    let calls = (0..60).map(|caller| {
        let (mut pooled, transactional) = (sessions.pooled(), sessions.transactional());
        let transactional = transactional.with(options.clone());
        tokio::spawn(async move {
            let is_large = caller % 10 == 0;
            match caller % 3 {
                0 => {
                    let key = if is_large { "large" } else { "small" };
                    let read: Result<String, _> = pooled.get(key).await;
                    (is_large, read.map(|_| 0).map_err(|error| error.to_string()))
                }
                1 if is_large => {
                    let run = transactional
                        .run(|tx| Ok((tx.incr("n", 1), tx.get::<_, String>("large"))))
                        .await;
                    let applied = run.as_ref().map_err(Error::applied).err();
                    assert_eq!(applied, Some(Applied::Yes), "{run:?}");
                    (is_large, run.map(|_| 1).map_err(|error| error.to_string()))
                }
                _ => {
                    let run =
                        transactional.run(|tx| Ok((tx.incr("n", 1), tx.get::<_, String>("small"))));
                    let run = run.await;
                    (false, run.map(|_| 1).map_err(|error| error.to_string()))
                }
            }
        })
    });
    let calls: Vec<_> = calls.collect();
    for call in calls {
        let (is_large, outcome) = call.await.unwrap();
        match is_large {
            true => large += u64::from(outcome.is_err()),
            false => small += u64::from(outcome.inspect_err(|error| panic!("{error}")).is_ok()),
        }
    }
    (small, large)
}

#[test]
fn a_reply_that_is_too_large_is_its_own_callers_and_the_bound_holds_for_each() {
    let server = Server::start();
    let _: () = server.ask(&["SET", "large", &"x".repeat(300_000)]);
    let _: () = server.ask(&["SET", "small", &"x".repeat(60_000)]);
    for exactly_once in [false, true] {
        let builder = rediscope::SessionManager::builder(server.url()).lanes(1);
        let sessions = builder.max_reply_bytes(100_000).build_async().unwrap();
        runtime().block_on(async {
            let (small, large) = beside_large_replies(&sessions, exactly_once).await;
            assert_eq!((small, large), (56, 4));
        });
    }
    let n: i64 = server.ask(&["GET", "n"]);
    assert_eq!(n, 2 * 40);
}

/// MULTI is sent alone on a lane that has not replied just now: without it, commands would run one by
/// one.
#[test]
fn a_lane_whose_user_may_not_send_multi_applies_no_command() {
    let (runtime, server) = (runtime(), server_with_user());
    let trust = Duration::from_millis(5);
    let builder = rediscope::SessionManager::builder(server.url_as("caller", "secret"));
    let sessions = builder.lanes(1).trust_window(trust).build_async().unwrap();
    let (tx, mut pooled) = (sessions.transactional(), sessions.pooled());
    let once = tx.with(TransactionOptions::new().exactly_once());
    runtime.block_on(async {
        let both = |tx: &mut Block| Ok((tx.incr("open:n", 1), tx.incr("open:n", 1)));
        for (may, nth) in [("+multi", 1_i64), ("-multi", 1), ("+multi", 2), ("-multi", 2)] {
            let _: () = server.ask(&["ACL", "SETUSER", "caller", may]);
            // Both an armed lane and one that is not.
            for options in [&tx, &once] {
                tokio::time::sleep(4 * trust).await;
                let (first, second) = tokio::join!(options.run(both), options.run(both));
                for run in [first, second] {
                    match may {
                        "+multi" => _ = run.unwrap(),
                        _ => {
                            let error = run.unwrap_err();
                            assert_eq!(error.applied(), Applied::No, "{error}");
                            assert!(error.to_string().contains("MULTI"), "{error}");
                        }
                    }
                }
            }
            let n: i64 = pooled.get("open:n").await.unwrap();
            assert_eq!(n, 8 * nth, "{may}");
        }
    });
}

/// With timeouts that let a call wait `within`.
fn short(builder: rediscope::Builder, within: Duration) -> rediscope::Builder {
    let each = within / 3;
    builder.connect_timeout(each).response_timeout(each).checkout_timeout(within)
}

/// Polls a call for a short time, and keeps it.
async fn begun<F: Future>(call: F) -> std::pin::Pin<Box<F>> {
    let mut call = Box::pin(call);
    let short = tokio::time::timeout(Duration::from_millis(30), call.as_mut()).await;
    assert!(short.is_err(), "the server replies");
    call
}

/// Calls that wait for a connection and are polled no more are never sent, and their places are free
/// after their deadlines.
#[test]
fn calls_that_are_polled_no_more_do_not_keep_a_lane_from_its_server() {
    let (runtime, server) = (runtime(), Server::start());
    let within = Duration::from_millis(600);
    let builder = short(rediscope::SessionManager::builder(server.url()), within);
    let sessions = builder.lanes(1).max_in_flight(4).build_async().unwrap();
    let tx = sessions.transactional();
    let incr = |tx: &mut Block| Ok(tx.incr("n", 1));
    runtime.block_on(async {
        assert_eq!(tx.run(incr).await.unwrap(), 1);
        server.sigkill();
        let mut kept = Vec::new();
        for _ in 0..4 {
            kept.push(begun(tx.run(incr)).await);
        }
        let mut forgotten = begun(tx.run(incr)).await;
        // None of them may be sent any more, when the server is back.
        tokio::time::sleep(within + Duration::from_millis(50)).await;
        server.restart_on_same_port();
        let begins = Instant::now();
        let mut runs = 0;
        while runs == 0 {
            runs = tx.run(incr).await.unwrap_or(0);
            assert!(begins.elapsed() < within + SLACK, "the lane has no connection");
        }
        assert_eq!(runs, 1, "a call was sent after its deadline");
        for late in &mut kept {
            let error = late.as_mut().await.unwrap_err();
            assert_eq!(error.applied(), Applied::No, "{error}");
        }
        let error = forgotten.as_mut().await.unwrap_err();
        assert_eq!(error.applied(), Applied::No, "{error}");
    });
}

#[test]
fn close_waits_for_no_request_past_its_deadline() {
    let within = Duration::from_millis(600);
    // No attempt to connect has ended yet, or one has failed.
    for mutes in [true, false] {
        let (runtime, server) = (runtime(), Server::start());
        let proxy = Proxy::to(&server);
        let builder = rediscope::SessionManager::builder(proxy.url()).lanes(1);
        let sessions = short(builder, within).build_async().unwrap();
        let tx = sessions.transactional();
        runtime.block_on(async {
            match mutes {
                true => proxy.mute_new(true),
                false => proxy.refuse_new(true),
            }
            let mut kept = begun(tx.run(|tx| Ok(tx.incr("n", 1)))).await;
            let close = sessions.close(Duration::MAX);
            let closed = tokio::time::timeout(within + SLACK, close).await;
            assert!(closed.is_ok(), "it waits for a request that is polled no more");
            let error = kept.as_mut().await.unwrap_err();
            assert_eq!(error.applied(), Applied::No, "{error}");
        });
    }
}

/// A lane that cannot connect leaves its calls to the other one.
#[test]
fn one_lane_serves_the_calls_of_another_one_that_cannot_connect() {
    let (runtime, server) = (runtime(), Server::start());
    let proxy = Proxy::to(&server);
    let builder = rediscope::SessionManager::builder(proxy.url()).lanes(2);
    let sessions = short(builder, Duration::from_secs(3)).build_async().unwrap();
    let tx = sessions.transactional();
    let once = tx.with(TransactionOptions::new().exactly_once());
    runtime.block_on(async {
        assert_eq!(tx.run(|tx| Ok(tx.incr("n", 1))).await.unwrap(), 1);
        let mut pooled = sessions.pooled();
        assert_eq!(pooled.get::<_, i64>("n").await.unwrap(), 1);
        proxy.refuse_new(true);
        for n in 2..=20 {
            let by = if n % 3 == 0 { &once } else { &tx };
            assert_eq!(by.run(|tx| Ok(tx.incr("n", 1))).await.unwrap(), n);
        }
        assert_eq!(pooled.incr::<_, _, i64>("n", 1).await.unwrap(), 21);
        // Neither has a connection: both begin, and one succeeds.
        proxy.cut_all();
        eventually(SOON, "the connections are closed", || proxy.connections() == 0);
        let calls = (0..10).map(|_| {
            let tx = tx.clone();
            tokio::spawn(async move { tx.run(|tx| Ok(tx.incr("n", 1))).await })
        });
        let calls: Vec<_> = calls.collect();
        tokio::time::sleep(Duration::from_millis(50)).await;
        proxy.refuse_new(false);
        while tx.run(|tx| Ok(tx.incr("m", 1))).await.is_err() {}
        proxy.refuse_new(true);
        for call in calls {
            call.await.unwrap().unwrap();
        }
    });
}

/// Neither the lane's task nor the connection's is run.
#[test]
fn a_call_that_moves_to_another_runtime_ends_in_time() {
    let server = Server::start();
    let here = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let within = Duration::from_millis(600);
    let builder = short(rediscope::SessionManager::builder(server.url()), within);
    let sessions = builder.lanes(1).max_size(2).build_async().unwrap();
    let (tx, mut pooled) = (sessions.transactional(), sessions.pooled());
    let once = tx.with(TransactionOptions::new().exactly_once());
    let (guard, mut guards_commit, token);
    {
        token = here.block_on(async {
            let sent = once.submit(|tx| Ok(tx.incr("n", 1))).unwrap();
            let token = sent.token();
            sent.await.unwrap();
            token.get().unwrap()
        });
        guard = here.block_on(async {
            let mut guard = tx.begin().await.unwrap();
            guard.incr("n", 1);
            guard.flush().await.unwrap();
            guard
        });
    }
    let mut run = Box::pin(tx.run(|tx| Ok(tx.incr("n", 1))));
    let mut get = Box::pin(pooled.get::<_, i64>("n"));
    guards_commit = Box::pin(guard.commit());
    let mut ready = Box::pin(sessions.ready(within));
    let mut resolution = Box::pin(sessions.resolve(&token, None));
    {
        let _here = here.enter();
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(run.as_mut().poll(&mut context).is_pending());
        assert!(get.as_mut().poll(&mut context).is_pending());
        assert!(guards_commit.as_mut().poll(&mut context).is_pending());
        assert!(ready.as_mut().poll(&mut context).is_pending());
        assert!(resolution.as_mut().poll(&mut context).is_pending());
    }
    runtime().block_on(async {
        let most = 3 * within + SLACK;
        let run = tokio::time::timeout(most, run).await.expect("it hangs");
        assert!(run.is_err(), "{run:?}");
        let get = tokio::time::timeout(most, get).await.expect("it hangs");
        assert!(get.is_err(), "{get:?}");
        let commit = tokio::time::timeout(most, guards_commit).await.expect("it hangs");
        assert!(commit.is_err(), "{commit:?}");
        let ready = tokio::time::timeout(most, ready).await.expect("it hangs");
        assert!(ready.is_err(), "{ready:?}");
        let resolution = tokio::time::timeout(most, resolution).await.expect("it hangs");
        assert!(matches!(resolution, Resolution::StillUnknown { .. }), "{resolution:?}");
        // The other runtime's connections and queries are not this one's.
        sessions.ready(within).await.unwrap();
        assert_eq!(sessions.resolve(&token, within).await, Resolution::Committed);
        assert!(tx.run(|tx| Ok(tx.incr("m", 1))).await.is_ok());
    });
}

#[test]
fn a_refusal_of_an_older_attempt_to_connect_ends_no_later_block() {
    let server = Server::start();
    let may_log_in = |password| {
        server.acl(&["SETUSER", "app", "on", "resetpass", &format!(">{password}"), "~*", "+@all"]);
    };
    may_log_in("other");
    let proxy = Proxy::to(&server);
    proxy.script(Which::All, (Trigger::BeforeReplyTo("AUTH"), Fault::HoldReplies));
    let url = proxy.url().replace("redis://", "redis://app:secret@");
    let builder = rediscope::SessionManager::builder(url).lanes(1).checkout_timeout(4 * SOON);
    let builder = builder.connect_timeout(SOON).response_timeout(SOON);
    let (sessions, runtime) = (builder.build_async().unwrap(), runtime());
    let accounts = sessions.transactional();
    let incr = || {
        let accounts = accounts.clone();
        async move { accounts.run(|tx| Ok(tx.incr("n", 1))).await }
    };
    let first = runtime.spawn(incr());
    eventually(SOON, "it was refused", || server.calls("auth") == 1);
    may_log_in("secret");
    proxy.disarm();
    let (refused, applied) = runtime.block_on(async {
        let mut second = pin!(incr());
        let polled = poll_fn(|context| Poll::Ready(second.as_mut().poll(context))).await;
        assert!(polled.is_pending(), "{polled:?}");
        proxy.release();
        (first.await.unwrap(), second.await)
    });
    let Err(Error::Checkout(CheckoutError::Connect { source, .. })) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(source.server_error().unwrap().code(), "WRONGPASS");
    assert_eq!(applied.unwrap(), 1);
}

#[test]
fn the_report_shows_the_lanes_and_where_each_call_is() {
    const MOST: usize = 4;
    let (runtime, server) = (runtime(), Server::start());
    let proxy = Proxy::to(&server);
    let builder =
        rediscope::SessionManager::builder(proxy.url()).lanes(2).checkout_timeout(4 * SOON);
    let builder = builder.max_in_flight(MOST as u32).connect_timeout(SOON).response_timeout(SOON);
    let sessions = builder.build_async().unwrap();
    let accounts = sessions.transactional();
    let lanes = || sessions.status().transactional.lanes;
    assert_eq!((lanes().lanes, lanes().open), (0, 0));
    assert!(!sessions.status().to_string().contains("lanes"));
    let call = || {
        let accounts = accounts.clone();
        runtime.spawn(async move { accounts.run(|tx| Ok(tx.incr("n", 1))).await })
    };
    eventually(SOON, "both lanes are open", || {
        runtime.block_on(call()).unwrap().unwrap();
        lanes().open == 2
    });
    proxy.arm((Trigger::Now, Fault::HoldReplies));
    let calls: Vec<_> = (0..3 * MOST).map(|_| call()).collect();
    // Of each lane, all places are taken, and the rest waits for one.
    eventually(SOON, "all calls are in their places", || {
        let lanes = lanes();
        lanes.sent >= 2 && lanes.sent + lanes.queued == 2 * MOST && lanes.waiting == MOST
    });
    let status = sessions.status();
    let shown = status.transactional.lanes;
    assert_eq!((shown.lanes, shown.open), (2, 2));
    let line =
        format!("lanes: 2 of 2 open, {} sent, {} queued, {MOST} waiting", shown.sent, shown.queued);
    assert!(status.to_string().contains(&line), "{status}");
    assert!(format!("{status:?}").contains("LaneStatus"));
    assert_eq!(status.pooled.lanes.lanes, 0);
    proxy.disarm();
    proxy.release();
    for call in calls {
        runtime.block_on(call).unwrap().unwrap();
    }
    eventually(SOON, "no call is left", || {
        let lanes = lanes();
        (lanes.sent, lanes.queued, lanes.waiting) == (0, 0, 0)
    });
}

#[cfg(feature = "metrics")]
#[test]
fn a_block_on_a_lane_is_reported_as_a_transaction_and_the_lane_as_a_connection() {
    let (server, runtime) = (Server::start(), runtime());
    let (seen, proxy) = (crate::measured::recorder::Seen::default(), Proxy::to(&server));
    let builder = rediscope::SessionManager::builder(proxy.url()).lanes(1).max_in_flight(1);
    // The levels are reported often.
    let builder = builder.pool_name("orders").pin_warning(Some(Duration::from_millis(20)));
    let builder = builder.connect_timeout(SOON).response_timeout(SOON).checkout_timeout(4 * SOON);
    let sessions = ::metrics::with_local_recorder(&seen, || builder.build_async()).unwrap();
    let handle = sessions.transactional();
    for n in 1..=3 {
        assert_eq!(runtime.block_on(handle.run(|tx| Ok(tx.incr("n", 1)))).unwrap(), n);
    }
    let pool = "orders/transactional";
    assert_eq!(seen.outcomes("committed", pool), 3);
    assert_eq!(seen.values("rediscope.transaction.duration", pool).len(), 3);
    assert_eq!(seen.values("db.client.connection.create_time", pool).len(), 1);
    eventually(SOON, "the lane is reported", || seen.connections("lane", pool) == 1);
    assert_eq!((seen.connections("used", pool), seen.connections("idle", pool)), (0, 0));
    let pending = || seen.level("db.client.connection.pending_requests", pool);
    assert_eq!(pending(), 0);
    proxy.arm((Trigger::Now, Fault::HoldReplies));
    let calls = [(); 2].map(|()| {
        let handle = handle.clone();
        runtime.spawn(async move { handle.run(|tx| Ok(tx.incr("n", 1))).await })
    });
    eventually(SOON, "one call waits for a place in the lane", || pending() == 1);
    proxy.disarm();
    proxy.release();
    for call in calls {
        runtime.block_on(call).unwrap().unwrap();
    }
    eventually(SOON, "none waits", || pending() == 0);
    runtime.block_on(sessions.close(SOON));
    eventually(SOON, "none is left", || seen.connections("lane", pool) == 0);
}

/// Two replies come before the connection is ready for it, each just in time.
#[test]
fn a_block_whose_lane_is_being_prepared_ends_at_its_deadline() {
    let (server, runtime) = (Server::start(), runtime());
    let proxy = Proxy::to(&server);
    let response = Duration::from_secs(2);
    let (connect, checkout) = (response / 10, response * 21 / 10);
    let builder = rediscope::SessionManager::builder(proxy.url()).lanes(1).connect_timeout(connect);
    let builder = builder.response_timeout(response).checkout_timeout(checkout);
    let sessions = builder.trust_window(Duration::ZERO).build_async().unwrap();
    let plain = sessions.transactional();
    let once = plain.with(TransactionOptions::new().exactly_once());
    runtime.block_on(plain.run(|tx| Ok(tx.incr("n", 1)))).unwrap();
    proxy.set_delays(Duration::ZERO, response * 19 / 20);
    let first = runtime.spawn(async move { plain.run(|tx| Ok(tx.incr("n", 1))).await });
    eventually(SOON, "it is sent", || server.ask::<i64>(&["GET", "n"]) == 2);
    let begun = Instant::now();
    let late = runtime.block_on(once.run(|tx| Ok(tx.incr("late", 1)))).unwrap_err();
    let took = begun.elapsed();
    assert_eq!((late.applied(), late.is_retryable()), (Applied::No, true), "{late:?}");
    assert!(took < checkout + response / 3, "{took:?}");
    assert_eq!(runtime.block_on(first).unwrap().unwrap(), 2);
    assert_eq!(server.ask::<Option<i64>>(&["GET", "late"]), None);
}

#[test]
fn a_waker_that_panics_takes_no_other_caller_of_the_group_its_outcome() {
    let (runtime, server) = (runtime(), Server::start());
    let proxy = Proxy::to(&server);
    let builder = rediscope::SessionManager::builder(proxy.url()).lanes(1).trust_window(SOON);
    let builder = builder.connect_timeout(SOON).response_timeout(SOON);
    let sessions = builder.checkout_timeout(4 * SOON).build_async().unwrap();
    let accounts = &sessions.transactional();
    let add = |key: &'static str| Box::pin(accounts.run(move |tx| Ok(tx.incr(key, 1))));
    let read = |key| server.ask::<Option<i64>>(&["GET", key]);
    runtime.block_on(add("before")).unwrap();
    proxy.arm(Script::from((Trigger::BeforeReplyTo("EXEC"), Fault::HoldReplies)).once());
    let first = {
        let accounts = accounts.clone();
        runtime.spawn(async move { accounts.run(|tx| Ok(tx.incr("first", 1))).await })
    };
    eventually(SOON, "its EXEC has run", || read("first") == Some(1));
    let mut members = [add("one"), add("two"), add("three")];
    {
        let _runtime = runtime.enter();
        let panics = panicking_waker();
        for (member, waker) in members.iter_mut().zip([Waker::noop(), &panics, Waker::noop()]) {
            assert!(member.as_mut().poll(&mut Context::from_waker(waker)).is_pending());
        }
    }
    proxy.disarm();
    proxy.release();
    eventually(SOON, "they were applied", || read("three") == Some(1));
    runtime.block_on(first).unwrap().unwrap();
    for member in members {
        let ended = runtime.block_on(async { tokio::time::timeout(SOON, member).await });
        assert_eq!(ended.expect("it ends").unwrap(), 1);
    }
    runtime.block_on(add("behind")).unwrap();
    assert_eq!(sessions.status().transactional.counts.connects, 1, "the lane goes on");
}

/// The exactly-once group of 3 commands and a register, which is refused, and the plain group of two blocks behind it
/// in the same write have the same number of replies.
#[test]
fn a_large_reply_behind_a_group_that_was_refused_is_its_own_blocks() {
    let (runtime, server) = (runtime(), Server::start());
    server.ask::<()>(&["ACL", "SETUSER", "limited", "on", ">secret", "~*", "+@all", "-append"]);
    server.ask::<()>(&["SET", "large", &"x".repeat(300_000)]);
    server.ask::<()>(&["SET", "small", "x"]);
    let proxy = Proxy::to(&server);
    let url = proxy.url().replace("redis://", "redis://limited:secret@");
    let builder = rediscope::SessionManager::builder(url).lanes(1).trust_window(SOON);
    let builder = builder.connect_timeout(SOON).response_timeout(SOON).checkout_timeout(4 * SOON);
    let sessions = builder.max_reply_bytes(100_000).build_async().unwrap();
    let plain = sessions.transactional();
    let once = plain.with(TransactionOptions::new().exactly_once());
    runtime.block_on(once.run(|tx| Ok(tx.incr("n", 1)))).unwrap();
    proxy.arm(Script::from((Trigger::BeforeReplyTo("EXEC"), Fault::HoldReplies)).once());
    let first = {
        let once = once.clone();
        runtime.spawn(async move { once.run(|tx| Ok(tx.incr("n", 1))).await })
    };
    eventually(SOON, "its EXEC has run", || server.ask::<i64>(&["GET", "n"]) == 2);
    let get = |tx: &mut Block, key: &str| tx.get::<_, String>(key);
    let mut refused = Box::pin(once.run(|tx| {
        tx.incr("n", 1);
        tx.append("n", "1");
        Ok(tx.incr("n", 1))
    }));
    let mut large = Box::pin(plain.run(|tx| Ok(get(tx, "large"))));
    let three = |tx: &mut Block| Ok((get(tx, "small"), get(tx, "small"), get(tx, "small")));
    let mut small = Box::pin(plain.run(three));
    {
        let _runtime = runtime.enter();
        let mut context = Context::from_waker(Waker::noop());
        assert!(refused.as_mut().poll(&mut context).is_pending());
        assert!(large.as_mut().poll(&mut context).is_pending());
        assert!(small.as_mut().poll(&mut context).is_pending());
    }
    proxy.disarm();
    proxy.release();
    runtime.block_on(first).unwrap().unwrap();
    let refused = runtime.block_on(refused).unwrap_err();
    assert!(matches!(refused, Error::Commit(CommitError::Rejected { .. })), "{refused:?}");
    let large = runtime.block_on(large).unwrap_err();
    assert!(matches!(large, Error::Reply(ReplyError::Lost)), "{large:?}");
    let one = || "x".to_owned();
    assert_eq!(runtime.block_on(small).unwrap(), (one(), one(), one()));
}
