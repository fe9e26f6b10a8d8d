//! Conversations with a server, held by a thread and by a task: both have the same outcome, and leave the
//! same on the server.
//!
//! Guarantee: tasks

use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use redis::{Value, cmd};

use crate::commit::batch::commit_block;
use crate::commit::commit::{commit, flush};
use crate::commit::outcome::Committed;
use crate::commit::plan::CommitPlan;
use crate::commit::prepare::{self, watch};
use crate::commit::side::Side;
use crate::error::any::{CommitError, Error};
use crate::error::applied::Applied;
use crate::error::connection::ConnectionErrorKind;
use crate::error::in_doubt::{CommitToken, Resolution, ResolveCommit};
use crate::pool::ask::{Question, ask};
use crate::pool::cleanup::clean;
use crate::pool::line::Line;
use crate::pool::pending::run;
use crate::pool::pending::stub::{Cut, StubPool, set_cut};
use crate::pool::pool::Pool;
use crate::pool::router::Router;
use crate::pool::scope_origin::ScopeOrigin;
use crate::pool::server_pool::{PinnedLine, ServerPool};
#[cfg(feature = "tokio")]
use crate::pool::tasks::pool::TaskPool;
use crate::pool::tests::{SOON, Server, config_of_one, eventually};
use crate::pooled::request::Request;
use crate::pooled::send::send;
use crate::protocol::cluster::route::Route;
use crate::protocol::connection_state::CloseReason;
use crate::protocol::idempotency_key::IdempotencyKey;
use crate::protocol::queue::{CommandQueue, Limits};
use crate::protocol::resp::encode::EncodedCommand;
use crate::protocol::retry::RetryPolicy;
use crate::sync::now::now;
use crate::transaction::keys::Keys;
use crate::transaction::pending::Pending;
use crate::transaction::pinned::Pinned;
use crate::transaction::reading::WatchTarget;
use crate::transaction::retry_loop::{self, WatchAttempts, WatchRun};

/// What a conversation found, step by step.
pub(super) type Found = Vec<String>;

/// No transaction in doubt is resolved.
#[derive(Debug)]
struct NoResolver;

impl ResolveCommit for NoResolver {
    fn default_wait(&self) -> Duration {
        Duration::ZERO
    }

    fn resolve(&self, _: &CommitToken, _: Option<Duration>) -> Resolution {
        unreachable!("no doubt is resolved here")
    }
}

pub(super) fn soon() -> Instant {
    Instant::now() + SOON
}

/// The replies of the server to `commands`, each with its words separated by spaces.
pub(super) fn on_server(server: &Server, commands: &[&str]) -> Found {
    let mut connection = server.connect().unwrap();
    let reply = |command: &&str| {
        let mut words = command.split(' ');
        let mut command = cmd(words.next().unwrap());
        format!(
            "{:?}",
            words
                .fold(&mut command, redis::Cmd::arg)
                .query(&mut connection)
                .map(|reply: Value| reply)
        )
    };
    commands.iter().map(reply).collect()
}

fn is_in_multi(server: &Server) -> bool {
    server.clients().iter().any(|flags| flags.contains('x'))
}

pub(super) fn packed(words: &[&str]) -> Vec<u8> {
    let mut command = cmd(words[0]);
    words[1..].iter().for_each(|word| _ = command.arg(word));
    command.get_packed_command()
}

/// Queues the commands.
pub(super) fn queue(commands: &[&[&str]]) -> CommandQueue {
    let mut queue = CommandQueue::new(7, Limits { commands: 100_000, bytes: 1 << 30 }, Vec::new());
    push(&mut queue, commands);
    queue
}

fn push(queue: &mut CommandQueue, commands: &[&[&str]]) {
    for words in commands {
        let mut command = cmd(words[0]);
        words[1..].iter().for_each(|word| _ = command.arg(word));
        queue.push_cmd(0, &command);
    }
}

/// A transaction whose counters differ if it is applied in part.
pub(super) const BOTH: &[&[&str]] = &[&["INCR", "one"], &["INCR", "two"]];
pub(super) const READ_BOTH: &[&str] = &["GET one", "GET two"];

fn outcome(committed: Result<Committed, CommitError>) -> String {
    match committed {
        Ok(Committed::Applied(replies)) => {
            let values = (0..replies.len()).map(|at| replies.value_at(at).unwrap().clone());
            format!("applied {:?}", values.collect::<Vec<_>>())
        }
        Ok(Committed::Conflict) => "conflict".to_owned(),
        Err(CommitError::Rejected { index, code, .. }) => format!("rejected {index:?} {code}"),
        Err(CommitError::AlreadyCommitted) => "already committed".to_owned(),
        Err(CommitError::InDoubt(doubt)) => format!("in doubt, {}", doubt.token().is_some()),
        Err(error) => format!("{error:?}"),
    }
}

pub(super) async fn a_block<P: ServerPool>(router: &Router<P>, server: &Server) -> Found {
    let (route, plan, mut queue) = (Route::default(), CommitPlan::default(), queue(BOTH));
    let committed = commit_block((router, &route), &mut queue, &plan, soon(), None).await;
    [vec![outcome(committed)], on_server(server, READ_BOTH)].concat()
}

pub(super) async fn a_block_for_a_batch<P: ServerPool>(
    router: &Router<P>,
    server: &Server,
) -> Found {
    let (route, plan) = (Route::default(), CommitPlan::default());
    let mut queue = queue(&[]);
    for key in ["one", "two"] {
        queue.push(0, &EncodedCommand::new(&["INCRBY"]), |args| _ = args.arg(key).arg(1));
    }
    assert!(queue.is_batchable());
    let committed = commit_block((router, &route), &mut queue, &plan, soon(), None).await;
    [vec![outcome(committed)], on_server(server, READ_BOTH)].concat()
}

pub(super) fn exactly_once() -> CommitPlan {
    CommitPlan { resolver: Some(Arc::new(NoResolver)), ..CommitPlan::default() }
}

/// The first block arms the connection's register, the second one uses it.
pub(super) async fn exactly_once_blocks<P: ServerPool>(
    router: &Router<P>,
    server: &Server,
) -> Found {
    let (route, plan, mut found) = (Route::default(), exactly_once(), Found::new());
    for _ in 0..2 {
        let committed = commit_block((router, &route), &mut queue(BOTH), &plan, soon(), None).await;
        found.push(outcome(committed));
    }
    found.extend(on_server(server, READ_BOTH));
    found.extend(on_server(server, &["DBSIZE"]));
    found
}

/// Of two blocks with one idempotency key, the second is not applied.
pub(super) async fn blocks_with_a_key<P: ServerPool>(router: &Router<P>, server: &Server) -> Found {
    let key = IdempotencyKey::new("rediscope", b"payment 17", SOON);
    let plan = CommitPlan { idempotency_key: Some(key), ..exactly_once() };
    let (route, mut found) = (Route::default(), Found::new());
    for _ in 0..2 {
        let committed = commit_block((router, &route), &mut queue(BOTH), &plan, soon(), None).await;
        found.push(outcome(committed));
    }
    found.extend(on_server(server, READ_BOTH));
    found
}

/// In the second round another client changes the watched key.
pub(super) async fn watched_blocks<P: ServerPool>(router: &Router<P>, server: &Server) -> Found {
    let plan = CommitPlan { watched: true, ..CommitPlan::default() };
    let (keys, read) = (packed(&["WATCH", "seen"]), packed(&["GET", "seen"]));
    let mut found = Found::new();
    for changes in [false, true] {
        let mut line = router.checkout(&Route::default(), soon()).await.unwrap();
        let watched = watch(&mut line, Some(&keys), (&read, 1), &plan, None, soon()).await;
        found.push(format!("{watched:?}"));
        if changes {
            on_server(server, &["SET seen changed"]);
        }
        found.push(outcome(commit(&mut line, &mut queue(BOTH), &plan, soon()).await));
        drop(line);
        found.extend(on_server(server, READ_BOTH));
    }
    found
}

/// A block whose commands are sent in two chunks.
pub(super) async fn a_block_in_chunks<P: ServerPool>(router: &Router<P>, server: &Server) -> Found {
    let plan = CommitPlan::default();
    let long = "x".repeat(50_000);
    let mut queue = queue(&[&["INCR", "one"], &["SET", "long", &long]]);
    let mut line = router.checkout(&Route::default(), soon()).await.unwrap();
    let mut found = Found::new();
    found.push(format!("{:?}", flush(&mut line, &mut queue, &plan, soon()).await));
    found.extend(on_server(server, READ_BOTH));
    push(&mut queue, &[&["INCR", "two"]]);
    found.push(outcome(commit(&mut line, &mut queue, &plan, soon()).await));
    drop(line);
    found.extend(on_server(server, READ_BOTH));
    found
}

/// Scopes that end without a commit, after WATCH and after MULTI.
pub(super) async fn cleaned_scopes<P: ServerPool>(router: &Router<P>, server: &Server) -> Found {
    let mut found = Found::new();
    let mut line = router.checkout(&Route::default(), soon()).await.unwrap();
    let plan = CommitPlan { watched: true, ..CommitPlan::default() };
    let keys = packed(&["WATCH", "seen"]);
    let watched = watch(&mut line, Some(&keys), (b"", 0), &plan, None, soon()).await;
    found.push(format!("{watched:?}"));
    let state = |line: &mut P::Line| format!("{:?}", line.current().unwrap().state());
    found.push(state(&mut line));
    found.push(format!("{:?}", clean(&mut line).await));
    found.push(state(&mut line));
    let plan = CommitPlan { immediate: true, ..CommitPlan::default() };
    let preparing = prepare::begin(&mut line, &queue(&[]), &plan, soon()).unwrap().unwrap();
    found.push(format!("{:?}", preparing.finish(&mut line).await));
    found.push(format!("in MULTI: {}", is_in_multi(server)));
    found.push(format!("{:?}", clean(&mut line).await));
    found.push(state(&mut line));
    drop(line);
    found.push(format!("in MULTI: {}", is_in_multi(server)));
    found
}

pub(super) async fn a_refused_block<P: ServerPool>(router: &Router<P>, server: &Server) -> Found {
    let (route, plan) = (Route::default(), CommitPlan::default());
    let mut queue = queue(&[BOTH[0], &["GET"], BOTH[1]]);
    let committed = commit_block((router, &route), &mut queue, &plan, soon(), None).await;
    let mut found = vec![outcome(committed), format!("in MULTI: {}", is_in_multi(server))];
    found.extend(on_server(server, READ_BOTH));
    found
}

/// A read on a connection that the server has closed.
pub(super) async fn a_read<P: ServerPool>(router: &Router<P>, server: &Server) -> Found {
    let mut found = Found::new();
    let bytes = packed(&["INCR", "one"]);
    for (name, read_only) in [("GET", true), ("INCR", false)] {
        let mut line = router.checkout(&Route::default(), soon()).await.unwrap();
        on_server(server, &["CLIENT KILL TYPE normal SKIPME yes"]);
        let bytes = if read_only { packed(&["GET", "one"]) } else { bytes.clone() };
        let question =
            Question { name, bytes: &bytes, replies: 1, read_only, single: true, blocking: None };
        let (mut values, budget) = (Vec::new(), line.retry_budget(soon()));
        let asked = ask(&mut line, &question, budget, &mut |_, value| values.push(value)).await;
        found.push(format!("{asked:?} {values:?}"));
    }
    found.extend(on_server(server, &["GET one"]));
    found
}

/// A pinned connection, whose call ends before the scope does.
pub(super) async fn a_pinned_block<P: ServerPool>(router: &Router<P>, server: &Server) -> Found {
    let pin = router.pin(&Route::default(), &origin(), soon(), None).await.unwrap();
    let plan = CommitPlan::default();
    let mut found = Found::new();
    for _ in 0..2 {
        let mut call = pin.call::<Error>().unwrap();
        found.push(outcome(commit(&mut *call, &mut queue(BOTH), &plan, soon()).await));
        drop(call);
        pin.touch();
    }
    drop(pin);
    found.extend(on_server(server, READ_BOTH));
    found
}

/// Requests of the pooled handle: single commands, a pipeline with a failed command, and one whose first
/// replies are left out.
pub(super) async fn requests<P: ServerPool>(router: &Router<P>, server: &Server) -> Found {
    let requests: [&[&[&str]]; 5] = [
        &[&["SET", "seen", "one"]],
        &[&["GET", "seen"]],
        &[&["INCR", "one"], &["LPUSH", "seen", "x"], &["GET", "seen"], &["INCR", "two"]],
        &[&["INCR", "one"], &["INCR", "two"], &["GET", "seen"]],
        &[&["PING"]],
    ];
    let mut found = Found::new();
    for commands in requests {
        let bytes: Vec<u8> = commands.iter().flat_map(|words| packed(words)).collect();
        let request = Request::parse(&bytes, commands.len(), Location::caller()).unwrap();
        let call = (&*bytes, commands.len());
        let wait = crate::commit::wait_limit::WaitLimit::default();
        let sent = send(router, (&request, Location::caller()), call, wait, None).await;
        let replies = sent.map(|sent| sent.replies);
        found.push(format!("{replies:?}"));
    }
    found.extend(on_server(server, READ_BOTH));
    found
}

pub(super) fn origin() -> ScopeOrigin {
    ScopeOrigin { name: None, place: Location::caller(), is_closure: false }
}

fn pending_both<P: ServerPool>(router: &Router<P>) -> Pending {
    let mut pending = Pending::new(router.settings(), router.binding());
    push(pending.queue(), BOTH);
    pending
}

/// A block of the public side, with a scope that ends by itself, and one that is dropped in MULTI.
pub(super) async fn runs<P: Side>(router: &Router<P>, server: &Server) -> Found {
    let mut found = Found::new();
    let policy = RetryPolicy::default();
    for plan in [CommitPlan::default(), exactly_once()] {
        let mut pinned = Pinned::new(router, origin(), plan.clone());
        let mut pending = pending_both(router);
        let replies = retry_loop::commit_block(router, policy, &mut pending, &mut pinned).await;
        found.push(outcome(replies.map(Committed::Applied).map_err(not_sent)));
        found.extend(on_server(server, READ_BOTH));
    }
    let plan = CommitPlan { immediate: true, ..CommitPlan::default() };
    let mut pinned = Pinned::new(router, origin(), plan.clone());
    let mut pending = pending_both(router);
    found.push(format!("{:?}", pending.begin(&mut pinned).await));
    found.push(format!("in MULTI: {}", is_in_multi(server)));
    found.push(format!("{:?}", pinned.discard().await));
    found.push(format!("in MULTI: {}", is_in_multi(server)));
    found
}

fn not_sent(error: Error) -> CommitError {
    match error {
        Error::Commit(error) => error,
        error => CommitError::not_sent(error),
    }
}

/// A block that reads before it writes. Another client changes its key during the first attempt.
pub(super) async fn a_watching_run<P: Side>(router: &Router<P>, server: &Server) -> Found {
    let mut keys = Keys::default();
    keys.add(b"seen");
    let reads = Arc::default();
    let target = WatchTarget { keys: Some(&keys), binding: router.binding(), reads: &reads };
    let plan = CommitPlan { watched: true, ..CommitPlan::default() };
    let policy = RetryPolicy::default();
    let binding = router.binding();
    let run = WatchRun { owner: origin(), plan: plan.clone(), policy, binding };
    let mut attempts: WatchAttempts<P::Turns> = WatchAttempts::new(router, run);
    let mut found = Found::new();
    loop {
        let mut reading = attempts.next(router, target).await.unwrap();
        let seen = reading.reply_to("GET", &packed(&["GET", "seen"])).await;
        found.push(format!("{seen:?}"));
        if matches!(seen, Ok(Value::Nil)) {
            on_server(server, &["SET seen changed"]);
        }
        let mut pending = pending_both(router);
        let committed =
            attempts.commit(router, None, &mut reading, &mut pending).await.map_err(not_sent);
        match committed.transpose() {
            None => found.extend(on_server(server, READ_BOTH)),
            Some(replies) => {
                found.push(outcome(replies.map(Committed::Applied)));
                found.extend(on_server(server, READ_BOTH));
                return found;
            }
        }
    }
}

/// Holds a conversation on both sides. Returns what both have found.
macro_rules! on_both_sides {
    ($conversation:path) => {{
        let server = Server::start();
        let (config, endpoint) = config_of_one(&server, 2 * SOON);
        let by_thread = {
            let router = Router::<Pool>::one(config.clone(), endpoint.clone());
            let found = now($conversation(&router, &server));
            router.close();
            router.drain(Instant::now());
            found
        };
        eventually(SOON, "the thread's connections are closed", || server.clients().is_empty());
        on_server(&server, &["FLUSHALL"]);
        let by_task = {
            let router = Router::<StubPool>::one(config.clone(), endpoint.clone());
            run($conversation(&router, &server))
        };
        assert_eq!(by_thread, by_task);
        eventually(SOON, "the task's connections are closed", || server.clients().is_empty());
        #[cfg(feature = "tokio")]
        {
            on_server(&server, &["FLUSHALL"]);
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let router = Router::<TaskPool>::one(config, endpoint);
            assert_eq!(by_thread, runtime.block_on($conversation(&router, &server)));
        }
        by_task
    }};
}

#[test]
fn both_sides_commit_a_block() {
    let found = on_both_sides!(a_block);
    assert_eq!(found[0], "applied [int(1), int(1)]");
    assert_eq!(on_both_sides!(a_block_for_a_batch), found);
}

#[test]
fn both_sides_commit_exactly_once() {
    let found = on_both_sides!(exactly_once_blocks);
    // The third key is the register.
    let ok = ["applied [int(1), int(1)]", "applied [int(2), int(2)]"];
    assert_eq!(found[..2], ok);
    assert_eq!(found[2..], [read("2"), read("2"), "Ok(int(3))".to_owned()]);
    let found = on_both_sides!(blocks_with_a_key);
    assert_eq!(found[..2], [ok[0], "already committed"]);
    assert_eq!(found[2..], [read("1"), read("1")]);
}

#[test]
fn both_sides_notice_that_a_watched_key_has_changed() {
    let found = on_both_sides!(watched_blocks);
    assert_eq!(found[1], "applied [int(1), int(1)]");
    assert_eq!(found[5], "conflict");
    assert_eq!(found[6..], [read("1"), read("1")]);
}

#[test]
fn both_sides_send_a_large_block_in_chunks() {
    let found = on_both_sides!(a_block_in_chunks);
    assert_eq!(found[..3], ["Ok(())", "Ok(nil)", "Ok(nil)"]);
    assert_eq!(found[3], "applied [int(1), ok, int(1)]");
    assert_eq!(found[4..], [read("1"), read("1")]);
}

#[test]
fn both_sides_clean_the_connection_of_a_scope() {
    let found = on_both_sides!(cleaned_scopes);
    assert_eq!(found[5], "in MULTI: true");
    assert_eq!(found.last().unwrap(), "in MULTI: false");
}

#[test]
fn both_sides_apply_nothing_of_a_refused_block() {
    let found = on_both_sides!(a_refused_block);
    assert_eq!(found, ["rejected Some(1) ERR", "in MULTI: false", "Ok(nil)", "Ok(nil)"]);
}

#[test]
fn both_sides_replace_a_connection_that_the_server_has_closed() {
    let found = on_both_sides!(a_read);
    assert_eq!(found, ["Ok(()) [nil]".to_owned(), "Ok(()) [int(1)]".to_owned(), read("1")]);
}

#[test]
fn both_sides_commit_on_a_pinned_connection() {
    let found = on_both_sides!(a_pinned_block);
    assert_eq!(found[1], "applied [int(2), int(2)]");
    assert_eq!(found[2..], [read("2"), read("2")]);
}

#[test]
fn both_sides_send_the_requests_of_the_pooled_handle() {
    let found = on_both_sides!(requests);
    assert_eq!(found[3], "Ok([int(2), int(2), bulk-string('\"one\"')])");
    assert_eq!(found[5..], [read("2"), read("2")]);
}

#[test]
fn both_sides_run_a_block() {
    let found = on_both_sides!(runs);
    assert_eq!(found[0], "applied [int(1), int(1)]");
    assert_eq!(found[3], "applied [int(2), int(2)]");
    assert_eq!(found[6..], ["Ok(())", "in MULTI: true", "Ok(())", "in MULTI: false"]);
}

#[test]
fn both_sides_run_a_watching_block_again_after_a_conflict() {
    let found = on_both_sides!(a_watching_run);
    assert_eq!(found[..3], ["Ok(nil)", "Ok(nil)", "Ok(nil)"]);
    assert_eq!(found[4..], ["applied [int(1), int(1)]".to_owned(), read("1"), read("1")]);
}

/// The reply to GET.
fn read(value: &str) -> String {
    format!("Ok(bulk-string('\"{value}\"'))")
}

/// The router of a task, whose next checkout takes an idle connection.
pub(super) fn tasks(server: &Server) -> (Router<StubPool>, StubPool) {
    let (config, endpoint) = config_of_one(server, 2 * SOON);
    let router = Router::<StubPool>::one(config, endpoint);
    let line = run(router.checkout(&Route::default(), soon())).unwrap();
    let pool = line.pool.clone();
    drop(line);
    (router, pool)
}

#[test]
fn a_leader_sends_the_block_and_the_request_of_a_task() {
    let server = Server::start();
    let (router, pool) = tasks(&server);
    pool.leads.store(true, Ordering::Relaxed);
    assert_eq!(run(a_block_for_a_batch(&router, &server))[0], "applied [int(1), int(1)]");
    on_server(&server, &["FLUSHALL"]);
    assert_eq!(run(requests(&router, &server))[3], "Ok([int(2), int(2), bulk-string('\"one\"')])");
}

/// Commits a block on a connection that fails at each place in turn. Returns what was committed before
/// and after the cut, each with the server's reading of both counters. `carries`: a WATCH and a read of
/// another caller follow EXEC.
fn cut_everywhere(plan: &CommitPlan, carries: bool) -> Vec<(Cut, String, Found)> {
    let server = Server::start();
    let route = Route::default();
    let mut found = Vec::new();
    let cuts = (0..).map(Cut::Sent).take(10_000).chain([Cut::Reads(0)]);
    let mut sent = true;
    for cut in cuts {
        if matches!(cut, Cut::Sent(_)) && !sent {
            continue;
        }
        on_server(&server, &["FLUSHALL"]);
        let (router, pool) = tasks(&server);
        // The connection is armed before, if it has to be.
        run(commit_block((&router, &route), &mut queue(BOTH), plan, soon(), None)).unwrap();
        pool.carries.store(carries, Ordering::Relaxed);
        set_cut(Some(cut));
        let committed = run(commit_block((&router, &route), &mut queue(BOTH), plan, soon(), None));
        sent = set_cut(None).is_none();
        drop((router, pool));
        eventually(SOON, "the server sees the cut", || server.clients().is_empty());
        found.push((cut, outcome(committed), on_server(&server, READ_BOTH)));
    }
    found
}

#[test]
fn a_block_is_not_applied_if_its_connection_fails_before_its_last_byte() {
    let found = cut_everywhere(&CommitPlan::default(), false);
    let [cuts @ .., (Cut::Sent(all), whole, _), (Cut::Reads(0), unread, applied)] = &*found else {
        panic!("{found:?}");
    };
    assert!(*all > 50, "{all}");
    assert_eq!(whole, "applied [int(2), int(2)]");
    for (cut, committed, read_both) in cuts {
        assert!(committed.starts_with("NotSent"), "{cut:?}: {committed}");
        assert_eq!(read_both[..], [read("1"), read("1")], "{cut:?}");
    }
    assert_eq!(unread, "in doubt, false");
    assert_eq!(applied[..], [read("2"), read("2")]);
}

#[test]
fn an_exactly_once_block_is_in_doubt_only_after_exec_was_sent() {
    // WATCH of the register follows EXEC.
    in_doubt_only_after_exec(&exactly_once(), false, "in doubt, true");
}

#[test]
fn a_block_that_carries_a_watch_is_in_doubt_only_after_exec_was_sent() {
    in_doubt_only_after_exec(&CommitPlan::default(), true, "in doubt, false");
    in_doubt_only_after_exec(&exactly_once(), true, "in doubt, true");
}

fn in_doubt_only_after_exec(plan: &CommitPlan, carries: bool, doubt: &str) {
    let found = cut_everywhere(plan, carries);
    let mut in_doubt = 0;
    for (cut, committed, read_both) in &found {
        let applied = if committed.starts_with("NotSent") { "1" } else { "2" };
        assert_eq!(read_both[..], [read(applied), read(applied)], "{cut:?}: {committed}");
        in_doubt += usize::from(committed == doubt);
    }
    assert!(in_doubt > 20, "{in_doubt}");
}

#[test]
fn a_read_is_sent_again_if_its_connection_fails_and_a_write_only_if_its_last_byte_was_not_sent() {
    let server = Server::start();
    let (router, pool) = tasks(&server);
    let ask_with = |name: &str, read_only, cut| {
        let mut line = run(router.checkout(&Route::default(), soon())).unwrap();
        let bytes = packed(&[name, "one"]);
        let (mut values, budget) = (Vec::new(), line.retry_budget(soon()));
        let question =
            Question { name, bytes: &bytes, replies: 1, read_only, single: true, blocking: None };
        set_cut(Some(cut));
        let asked = run(ask(&mut line, &question, budget, &mut |_, value| values.push(value)));
        assert_eq!(set_cut(None), None, "{cut:?}");
        asked.map(|()| format!("{values:?}"))
    };
    let length = packed(&["INCR", "one"]).len();
    for left in 0..length {
        let written = ask_with("INCR", false, Cut::Sent(left)).unwrap();
        assert_eq!(written, format!("[int({})]", left + 1));
        let one = format!("[bulk-string('\"{}\"')]", left + 1);
        assert_eq!(ask_with("GET", true, Cut::Sent(left.min(length - 2))).unwrap(), one);
        assert_eq!(ask_with("GET", true, Cut::Reads(0)).unwrap(), one);
    }
    let lost = ask_with("INCR", false, Cut::Reads(0)).unwrap_err();
    let Error::Lost { during, applied: Applied::Unknown, source } = lost else {
        panic!("{lost:?}");
    };
    assert_eq!((&*during, source.kind()), ("INCR", ConnectionErrorKind::Closed));
    let closed = crate::sync::lock(&pool.closed);
    assert!(closed.iter().all(|reason| *reason == CloseReason::Closed), "{closed:?}");
    assert_eq!(closed.len(), 3 * length + 1);
}
