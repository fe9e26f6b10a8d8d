//! Every decision's future moves between threads, for each side that there may be.
//!
//! These functions are compiled and never called: a future that is not `Send` fails the build, and the
//! error names the value that it holds over an await.
//!
//! Guarantee: tasks

use std::panic::Location;
use std::time::Instant;

use redis::Value;

use crate::commit::batch::commit_block;
use crate::commit::cleanup::end_scope;
use crate::commit::commit::{commit, flush};
use crate::commit::plan::CommitPlan;
use crate::commit::prepare::{self, Preparing};
use crate::commit::resolve::DoubtResolver;
use crate::commit::side::Side;
use crate::commit::wait_limit::WaitLimit;
use crate::connection::connection::Connection;
use crate::connection::deadline::Deadline;
use crate::connection::endpoint::Endpoint;
use crate::connection::handshake::{OpenOptions, shake_hands};
use crate::connection::io::Io;
use crate::connection::login::Login;
use crate::connection::sentinel::blocking_queries::BlockingQueries;
use crate::connection::sentinel::client::SentinelClient;
use crate::connection::sentinel::queries::SentinelQueries;
#[cfg(feature = "tokio")]
use crate::connection::tasks::{io::Tasks, master::TaskQueries, wire::TaskWire};
use crate::connection::wire::Wire;
use crate::error::any::CommitError;
use crate::error::checkout::CheckoutError;
use crate::error::in_doubt::CommitToken;
use crate::pool::ask::{Question, ask};
use crate::pool::batch_request::BatchRequest;
use crate::pool::cleanup::{clean, clean_or_log};
use crate::pool::line::{Line, ensure_alive};
use crate::pool::pending::stub::StubPool;
use crate::pool::pool::Pool;
use crate::pool::redirect_pause;
use crate::pool::retry_budget::RetryBudget;
use crate::pool::router::Router;
use crate::pool::router::slot_map_refresh::SlotMapCache;
use crate::pool::scope_origin::ScopeOrigin;
use crate::pool::server_pool::ServerPool;
#[cfg(feature = "tokio")]
use crate::pool::tasks::pool::TaskPool;
use crate::pooled::{fan_out, request::Request, send as pooled};
use crate::protocol::cluster::route::{Redirect, RedirectBudget, Route};
use crate::protocol::connection_state::Expect;
use crate::protocol::queue::CommandQueue;
use crate::settings::settings::Settings;
use crate::transaction::pending::Pending;
use crate::transaction::pinned::Pinned;
use crate::transaction::reading::Reading;
use crate::transaction::retry_loop::{self, WatchAttempts};

fn is_send<T: Send>(_: T) {}

/// An argument of a function that is never called.
fn any<T>() -> T {
    unreachable!("these functions are compiled only")
}

fn a_connection<W: Wire>(mut connection: Connection<W>, login: &Login) {
    let (deadline, expected): (Deadline, &[(Expect, u32)]) = any();
    is_send(connection.send(b"", expected, deadline));
    is_send(connection.receive(deadline));
    is_send(connection.exchange(b"", expected, deadline, &mut |_, _| {}));
    is_send(connection.ask(b"", 1, deadline, &mut |_, _| {}));
    is_send(connection.ask_all(b"", 1, deadline));
    is_send(connection.read_rejection(deadline));
    is_send(connection.ping(deadline));
    is_send(connection.reauthenticate(login, deadline));
}

fn a_side<I: Io>(endpoint: &Endpoint, settings: &Settings, options: OpenOptions) {
    let (login, wire): (Login, I::Wire) = any();
    is_send(shake_hands(endpoint, settings, options, (login, wire, false), any()));
    is_send(I::open(endpoint, settings, options));
    let slot_map: SlotMapCache = any();
    is_send(slot_map.refresh::<I>(None, None));
    let (mut budget, redirect): (RedirectBudget, Redirect) = any();
    is_send(redirect_pause::try_next::<I>(&mut budget, &redirect));
}

fn a_line<L: Line>(mut line: L, mut queue: CommandQueue, plan: &CommitPlan, deadline: Instant) {
    let (question, budget, preparing): (Question<'_>, RetryBudget, Preparing<'_>) = any();
    is_send(ensure_alive(&mut line, deadline));
    is_send(ask(&mut line, &question, budget, &mut |_, _: Value| {}));
    is_send(preparing.finish(&mut line));
    is_send(prepare::watch(&mut line, Some(b""), (b"", 0), plan, None, deadline));
    is_send(commit(&mut line, &mut queue, plan, deadline));
    is_send(flush(&mut line, &mut queue, plan, deadline));
    is_send(clean(&mut line));
    is_send(clean_or_log(&mut line, None));
}

fn a_router<P: ServerPool>(router: &Router<P>, route: &Route, deadline: Instant) {
    let (error, origin): (CheckoutError, ScopeOrigin) = any();
    let request = || -> BatchRequest { any() };
    is_send(router.checkout(route, deadline));
    is_send(router.try_checkout(route, deadline));
    is_send(router.checkout_batched(route, deadline, any(), request));
    is_send(router.join(route, deadline, request));
    is_send(router.pin(route, &origin, deadline, None));
    is_send(router.endpoint(route, deadline));
    is_send(router.all_masters(deadline));
    is_send(router.redirect_for(route, "", ""));
    is_send(router.on_unreachable(route, &error, deadline));
    let (mut queue, plan): (CommandQueue, CommitPlan) = any();
    is_send(commit_block((router, route), &mut queue, &plan, deadline, None));
    let (request, place): (Request, &'static Location<'static>) = any();
    is_send(request.ask(router, route, (b"", 1), deadline, None));
    is_send(fan_out::request(router, place, b"", Instant::now()));
    is_send(pooled::send(router, (&request, place), (b"", 1), WaitLimit::default(), None));
}

fn a_resolver<P: ServerPool>(resolver: &DoubtResolver<P>, token: &CommitToken) {
    is_send(resolver.resolve(token, None, |_| async { Ok(()) }));
}

fn a_sentinel_client<Q: SentinelQueries>(client: &SentinelClient, deadline: Instant) {
    is_send(client.master::<Q>(deadline));
    is_send(client.master_within::<Q>(any()));
    is_send(client.replica_within::<Q>(any()));
}

fn a_transaction<P: Side>(router: &Router<P>, mut pinned: Pinned<P>, deadline: Instant) {
    let (mut pending, error): (Pending, CommitError) = any();
    is_send(pending.begin(&mut pinned));
    is_send(pending.flush(&mut pinned));
    is_send(pending.commit(&mut pinned));
    is_send(pending.attempt(&mut pinned, deadline));
    is_send(pinned.pin(None, deadline));
    is_send(pinned.redirect_for(&error, deadline));
    is_send(pinned.release());
    is_send(pinned.discard());
    is_send(retry_loop::commit_block(router, any(), &mut pending, &mut pinned));
    is_send(end_scope::<P>(any()));
    is_send(Reading::begin(pinned, any(), 1, deadline));
    let mut reading: Reading<P> = any();
    is_send(reading.reply_to("GET", b""));
    let mut attempts: WatchAttempts<P::Turns> = any();
    is_send(attempts.next(router, any()));
    is_send(attempts.failed(router, &mut reading));
    is_send(attempts.commit(router, None, &mut reading, &mut pending));
}

#[test]
fn the_futures_of_all_decisions_are_send() {
    // Named for one side each, so that the compiler keeps them.
    let _ = (a_router::<Pool>, a_router::<StubPool>);
    let _ = a_transaction::<Pool>;
    let _ = a_resolver::<StubPool>;
    let _ = a_sentinel_client::<BlockingQueries>;
    let _ = a_line::<<StubPool as ServerPool>::Line>;
    let _ = a_side::<<StubPool as ServerPool>::Io>;
    let _ = a_connection::<<<StubPool as ServerPool>::Io as Io>::Wire>;
    #[cfg(feature = "tokio")]
    {
        let _ = a_sentinel_client::<TaskQueries>;
        let _ = (a_router::<TaskPool>, a_transaction::<TaskPool>, a_resolver::<TaskPool>);
        let _ = a_line::<<TaskPool as ServerPool>::Line>;
        let _ = (a_side::<Tasks>, a_connection::<TaskWire>);
    }
}
