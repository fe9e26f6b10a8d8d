//! The first packet of a caller that waits is sent by the caller that returns the connection, and is sent
//! once, whatever fails between.
//!
//! Guarantee: pools

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use redis::Commands;

use super::tests::{SOON, Server, config_of_one, eventually};
use crate::commit::commit::commit;
use crate::commit::outcome::Committed;
use crate::commit::plan::CommitPlan;
use crate::connection::transport::MOST_NOW;
use crate::error::any::{CommitError, Error};
use crate::error::applied::Applied;
use crate::error::in_doubt::{CommitToken, Resolution, ResolveCommit};
use crate::pool::ask::{Question, ask};
use crate::pool::checkout::Checkout;
use crate::pool::early_watch::WatchOffer;
use crate::pool::first_packet::FirstPacket;
use crate::pool::line::Line;
use crate::pool::pool::Pool;
use crate::pool::scope_origin::ScopeOrigin;
use crate::pool::server_pool::{PinnedLine, ServerPool};
use crate::protocol::queue::{CommandQueue, Limits};
use crate::protocol::resp::encode::{self, EncodedCommand};
use crate::settings::settings::Settings;
use crate::sync::now::now;

#[derive(Debug)]
struct NoResolver;

impl ResolveCommit for NoResolver {
    fn default_wait(&self) -> Duration {
        SOON
    }

    fn resolve(&self, _: &CommitToken, _: Option<Duration>) -> Resolution {
        Resolution::NotCommitted
    }
}

fn start() -> (Server, Pool) {
    start_with(|settings| settings.trust_window = SOON)
}

fn start_with(change: impl FnOnce(&mut Settings)) -> (Server, Pool) {
    let server = Server::start();
    let (mut config, endpoint) = config_of_one(&server, 2 * SOON);
    change(Arc::get_mut(&mut config.settings).unwrap());
    (server, Pool::new(config, endpoint))
}

fn deadline() -> Instant {
    Instant::now() + SOON
}

fn checkout(pool: &Pool) -> Checkout {
    let mut line = now(pool.checkout(deadline())).unwrap();
    assert!(line.has_connection());
    line
}

/// Two INCRs of `n`.
fn block() -> CommandQueue {
    let mut queue = CommandQueue::new(1, Limits { commands: 9, bytes: 9999 }, Vec::new());
    for _ in 0..2 {
        queue.push(0, &EncodedCommand::new(&["INCR"]), |args| _ = args.arg("n"));
    }
    queue
}

fn exactly_once() -> CommitPlan {
    CommitPlan { resolver: Some(Arc::new(NoResolver)), ..CommitPlan::default() }
}

/// A caller waits for the connection with this packet, and gets it.
fn passed_on(
    pool: &Pool,
    held: Checkout,
    packet: &(impl Fn() -> Option<FirstPacket> + Sync),
) -> Checkout {
    thread::scope(|scope| {
        let waits = scope.spawn(|| now(pool.checkout_with(deadline(), packet)).unwrap());
        eventually(SOON, "the caller waits", || pool.semaphore.waiting() == 1);
        drop(held);
        waits.join().unwrap()
    })
}

fn passed_on_block(pool: &Pool, held: Checkout, plan: &CommitPlan) -> (Checkout, CommandQueue) {
    let queue = block();
    (passed_on(pool, held, &|| plan.first_packet(&queue)), queue)
}

fn was_sent(line: &mut Checkout) -> bool {
    line.current().is_some_and(|connection| connection.sent_ahead().is_some())
}

fn commit_of(
    line: &mut Checkout,
    queue: &mut CommandQueue,
    plan: &CommitPlan,
) -> Result<Committed, CommitError> {
    now(commit(line, queue, plan, deadline()))
}

#[track_caller]
fn is_applied(line: &mut Checkout, queue: &mut CommandQueue, plan: &CommitPlan) {
    let committed = commit_of(line, queue, plan);
    assert!(matches!(committed, Ok(Committed::Applied(_))), "{committed:?}");
    assert!(line.current().unwrap().state().is_clean());
}

fn n(server: &Server) -> Option<i64> {
    server.connect().unwrap().get("n").unwrap()
}

fn kill_connections(server: &Server) {
    let mut connection = server.connect().unwrap();
    redis::cmd("CLIENT").arg(&["KILL", "TYPE", "normal"]).exec(&mut connection).unwrap();
}

/// What the sender's socket accepts at once, for the calls of this thread.
fn accepting<T>(bytes: usize, calls: impl FnOnce() -> T) -> T {
    MOST_NOW.set(bytes);
    let result = calls();
    MOST_NOW.set(usize::MAX);
    result
}

#[test]
fn a_block_is_sent_before_its_caller_has_the_connection_and_is_not_sent_again() {
    for plan in [CommitPlan::default(), exactly_once()] {
        let (server, pool) = start();
        let mut held = checkout(&pool);
        let before = i64::from(plan.resolver.is_some()) * 2;
        if plan.resolver.is_some() {
            is_applied(&mut held, &mut block(), &plan);
        }
        let (mut line, mut queue) = passed_on_block(&pool, held, &plan);
        assert!(was_sent(&mut line));
        eventually(SOON, "the block was applied", || n(&server) == Some(before + 2));
        is_applied(&mut line, &mut queue, &plan);
        is_applied(&mut line, &mut block(), &plan);
        assert_eq!((n(&server), pool.in_use()), (Some(before + 4), 1));
        drop(line);
        assert_eq!((pool.in_use(), pool.idle.idle()), (0, 1));
    }
}

/// The register may have expired on the server before its caller reads the replies.
#[test]
fn the_age_of_a_register_begins_when_the_block_was_sent_ahead() {
    let ((server, pool), plan) = (start(), exactly_once());
    let mut held = checkout(&pool);
    is_applied(&mut held, &mut block(), &plan);
    let (mut line, mut queue) = passed_on_block(&pool, held, &plan);
    assert!(was_sent(&mut line));
    eventually(SOON, "the block was applied", || n(&server) == Some(4));
    let applied = Instant::now();
    is_applied(&mut line, &mut queue, &plan);
    let connection = line.current().unwrap();
    assert!(connection.is_armed(SOON));
    assert!(!connection.is_armed(applied.elapsed()), "it is older than that");
}

/// UNWATCH is sent first, because the register does not concern the block.
#[test]
fn a_plain_block_is_sent_on_a_connection_that_watches_its_register() {
    let (server, pool) = start();
    let mut held = checkout(&pool);
    is_applied(&mut held, &mut block(), &exactly_once());
    let plan = CommitPlan::default();
    let (mut line, mut queue) = passed_on_block(&pool, held, &plan);
    assert!(was_sent(&mut line));
    is_applied(&mut line, &mut queue, &plan);
    assert!(!line.current().unwrap().state().watches_marker());
    // The register is armed first.
    let (mut line, mut queue) = passed_on_block(&pool, line, &exactly_once());
    assert!(!was_sent(&mut line));
    is_applied(&mut line, &mut queue, &exactly_once());
    assert_eq!(n(&server), Some(6));
}

#[test]
fn what_the_socket_did_not_accept_is_sent_by_the_caller_that_waited() {
    for plan in [CommitPlan::default(), exactly_once()] {
        for accepted in [0, 1, 20, 50] {
            let (server, pool) = start();
            let mut held = checkout(&pool);
            is_applied(&mut held, &mut block(), &plan);
            let (mut line, mut queue) = accepting(accepted, || passed_on_block(&pool, held, &plan));
            assert!(was_sent(&mut line));
            assert_eq!(n(&server), Some(2));
            is_applied(&mut line, &mut queue, &plan);
            assert_eq!(n(&server), Some(4));
        }
    }
}

#[test]
fn a_block_that_left_in_part_is_proven_not_sent_and_a_whole_one_is_in_doubt() {
    for plan in [CommitPlan::default(), exactly_once()] {
        for (accepted, found) in [(0, 2), (20, 2), (usize::MAX, 4)] {
            let (server, pool) = start();
            let mut held = checkout(&pool);
            is_applied(&mut held, &mut block(), &plan);
            let (mut line, mut queue) = accepting(accepted, || passed_on_block(&pool, held, &plan));
            eventually(SOON, "what was sent is applied", || n(&server) == Some(found));
            kill_connections(&server);
            // The kernel keeps the replies that came before.
            let committed = commit_of(&mut line, &mut queue, &plan);
            match found {
                2 => assert!(
                    matches!(committed, Err(CommitError::NotSent { .. })),
                    "{accepted}: {committed:?}"
                ),
                _ => assert!(
                    matches!(committed, Ok(_) | Err(CommitError::InDoubt(_))),
                    "{accepted}: {committed:?}"
                ),
            }
            assert_eq!(n(&server), Some(found));
        }
    }
}

#[test]
fn a_connection_that_is_found_dead_is_replaced_and_the_caller_stays_first() {
    let (server, pool) = start();
    let held = checkout(&pool);
    kill_connections(&server);
    eventually(SOON, "the connection is closed", || server.clients().is_empty());
    let plan = CommitPlan::default();
    let (mut line, mut queue) = passed_on_block(&pool, held, &plan);
    assert!(!was_sent(&mut line));
    is_applied(&mut line, &mut queue, &plan);
    assert_eq!(n(&server), Some(2));
    drop(line);
    assert_eq!(pool.in_use(), 0);
}

#[track_caller]
fn is_not_sent((server, pool): (Server, Pool), change: impl FnOnce(&Pool, &mut Checkout)) {
    let mut held = checkout(&pool);
    change(&pool, &mut held);
    let plan = CommitPlan::default();
    let (mut line, mut queue) = passed_on_block(&pool, held, &plan);
    assert!(!was_sent(&mut line));
    is_applied(&mut line, &mut queue, &plan);
    assert_eq!(n(&server), Some(2));
}

#[test]
fn no_packet_is_sent_on_a_connection_that_is_not_trusted_outdated_too_old_or_left_in_a_scope() {
    is_not_sent(start_with(|settings| settings.trust_window = Duration::ZERO), |_, _| {});
    is_not_sent(start(), |pool, _| assert!(pool.replace_all()));
    is_not_sent(start(), |pool, _| _ = pool.probe_idle());
    let lifetime = Duration::from_millis(20);
    let aged = start_with(|settings| {
        settings.trust_window = SOON;
        settings.max_lifetime = Some(lifetime);
    });
    is_not_sent(aged, |_, _| thread::sleep(3 * lifetime));
    is_not_sent(start(), |_, held| {
        held.taint(crate::protocol::connection_state::CloseReason::LeftDirty);
    });
}

#[test]
fn only_a_block_of_one_short_packet_leaves_it() {
    let default = CommitPlan::default;
    let left = |plan: &CommitPlan, queue: &CommandQueue| plan.first_packet(queue).is_some();
    assert!(left(&default(), &block()) && left(&exactly_once(), &block()));
    let others = [
        CommitPlan { immediate: true, ..default() },
        CommitPlan { watched: true, ..default() },
        CommitPlan { exists: Some(Arc::from(*b"")), ..default() },
    ];
    assert!(others.iter().all(|plan| !left(plan, &block())));
    let mut long = block();
    long.push(0, &EncodedCommand::new(&["SET"]), |args| _ = args.arg("k").arg("v".repeat(4096)));
    assert!(!left(&default(), &long));
    let mut flushed = block();
    flushed.flushed();
    assert!(!left(&default(), &flushed));
}

/// A caller whose time is over is either still in the queue, or has the connection with its bytes.
#[test]
fn a_caller_that_gives_up_has_sent_nothing() {
    let (server, pool) = start();
    let (held, plan, queue) = (checkout(&pool), CommitPlan::default(), block());
    let late = Instant::now() + Duration::from_millis(20);
    let packet = || plan.first_packet(&queue);
    let waits = || now(pool.checkout_with(late, &packet)).is_err();
    assert!(thread::scope(|scope| scope.spawn(waits).join().unwrap()));
    let (mut line, mut queue) = passed_on_block(&pool, held, &plan);
    is_applied(&mut line, &mut queue, &plan);
    assert_eq!(n(&server), Some(2));
}

#[test]
fn callers_that_wait_are_served_in_turn_with_and_without_a_packet() {
    let (_server, pool) = start();
    let held = checkout(&pool);
    let (order, plan, queue) = (std::sync::Mutex::new(Vec::new()), CommitPlan::default(), block());
    thread::scope(|scope| {
        for nth in 0..6 {
            let (pool, order, plan, queue) = (&pool, &order, &plan, &queue);
            scope.spawn(move || {
                let packet = || plan.first_packet(queue).filter(|_| nth % 3 != 1);
                let mut line = now(pool.checkout_with(deadline(), &packet)).unwrap();
                order.lock().unwrap().push((nth, was_sent(&mut line)));
                is_applied(&mut line, &mut block(), plan);
            });
            eventually(SOON, "it waits", || pool.semaphore.waiting() == nth + 1);
        }
        drop(held);
    });
    let expected: Vec<_> = (0..6).map(|nth| (nth, nth % 3 != 1)).collect();
    assert_eq!(*order.lock().unwrap(), expected);
}

fn calls(words: &[&'static str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode::command(&mut bytes, &EncodedCommand::new(words), |_| {});
    bytes
}

fn asked(line: &mut Checkout, bytes: &[u8], read_only: bool) -> Result<(), Error> {
    let question =
        Question { name: "INCR", bytes, replies: 1, read_only, single: true, blocking: None };
    let budget = line.retry_budget(deadline());
    now(ask(line, &question, budget, &mut |_, _| {}))
}

#[test]
fn a_write_that_was_sent_is_not_sent_again_and_one_that_left_in_part_is() {
    let bytes = calls(&["INCR", "n"]);
    for (accepted, killed) in [(usize::MAX, false), (5, false), (5, true), (usize::MAX, true)] {
        let (server, pool) = start();
        let held = checkout(&pool);
        let packet = || FirstPacket::calls(&bytes, 1);
        let mut line = accepting(accepted, || passed_on(&pool, held, &packet));
        assert!(was_sent(&mut line));
        let found = (accepted == usize::MAX).then_some(1);
        eventually(SOON, "what was sent is applied", || n(&server) == found);
        if killed {
            kill_connections(&server);
        }
        match asked(&mut line, &bytes, false) {
            Ok(()) => {}
            Err(error) => {
                assert_eq!((error.applied(), found), (Applied::Unknown, Some(1)), "{error:?}");
            }
        }
        assert_eq!(n(&server), Some(1));
    }
}

#[test]
fn watch_and_its_reads_are_sent_on_a_free_connection() {
    for accepted in [usize::MAX, 20] {
        let (_server, pool) = start();
        let held = checkout(&pool);
        let (watch, read) = (calls(&["WATCH", "n"]), calls(&["GET", "n"]));
        let offer =
            WatchOffer { watch: &watch, travels: true, reads: (&read, 1), needs: None, turn: None };
        let origin =
            ScopeOrigin { name: None, place: std::panic::Location::caller(), is_closure: false };
        let pin = thread::scope(|scope| {
            let pinned = || pool.pin_watching(origin, deadline(), false, Arc::new(()), Some(offer));
            let waits = scope.spawn(|| now(pinned()).unwrap());
            eventually(SOON, "the caller waits", || pool.semaphore.waiting() == 1);
            accepting(accepted, || drop(held));
            waits.join().unwrap()
        });
        let mut line = pin.call::<Error>().unwrap();
        let is_due = line.current().is_some_and(|connection| connection.early_watch_is_due());
        // Sent in part, it begins on another connection.
        assert_eq!(is_due, accepted == usize::MAX);
        let plan = CommitPlan::default();
        let reads = (read.as_slice(), 1);
        let values =
            crate::commit::prepare::watch(&mut *line, Some(&watch), reads, &plan, None, deadline());
        assert_eq!(now(values).unwrap(), [redis::Value::Nil]);
        assert!(line.current().unwrap().state().is_watching());
    }
}
