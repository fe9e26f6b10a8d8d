//! Deadlines against a server that never replies.
//!
//! Guarantee: deadlines

use crate::fixture::short_timeouts::{CHECKOUT, CLEANUP, RESPONSE, short_timeouts};
use crate::fixture::{LARGE_SLACK, SOON, immediate};
use crate::side::BuildSide as _;
use std::time::{Duration, Instant};

use crate::side::{SessionManager, Transaction, Watching};
use rediscope::error::CheckoutError;
use rediscope::{Error, prelude::*, redis};

use rediscope_testing::proxy::Proxy;
use rediscope_testing::server::Server;
use rediscope_testing::{eventually, in_time, try_for};

#[test]
fn no_call_waits_past_its_deadline_for_a_server_that_accepts_and_never_replies() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let sessions = short_timeouts(SessionManager::builder(proxy.url())).build_side().unwrap();
    proxy.mute_new(true);
    silence(&sessions);
    proxy.mute_new(false);
    proxy.cut_all();
    works_again(&sessions);
}

/// A later read of the attempt fails in another way, because no connection can be opened.
#[test]
fn a_closure_that_lost_its_connection_runs_again_whatever_its_last_read_failed_with() {
    let server = Server::start();
    let builder = SessionManager::builder(server.url()).trust_window(SOON);
    let builder = builder.connect_timeout(SOON).checkout_timeout(2 * SOON);
    // The only time that passes: of a server that is stopped.
    let sessions = builder.response_timeout(SOON / 8).build_side().unwrap();
    let policy = rediscope::RetryPolicy::default().attempts(8).deadline(2 * SOON);
    // The connections that are open stay.
    let mut admin = server.connection();
    let mut set_password = |password: &str| {
        let set = redis::cmd("CONFIG").arg(&["SET", "requirepass", password]).exec(&mut admin);
        set.unwrap();
    };
    let mut runs = 0;
    let ended = sessions.transactional().reading().retry(policy).run(|read, _| {
        runs += 1;
        read.get::<_, Option<String>>("a")?;
        if runs > 1 {
            return Ok(());
        }
        set_password("another");
        server.sigstop();
        let first = read.get::<_, Option<String>>("a");
        server.sigcont();
        assert!(matches!(first, Err(Error::Lost { .. })), "{first:?}");
        let second = read.get::<_, Option<String>>("b");
        assert!(
            matches!(second, Err(Error::Checkout(CheckoutError::Connect { .. }))),
            "{second:?}"
        );
        set_password("");
        second.map(drop)
    });
    ended.unwrap();
    assert_eq!(runs, 2);
}

#[test]
fn no_call_waits_past_its_deadline_for_a_network_that_drops_everything() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let sessions = short_timeouts(SessionManager::builder(proxy.url())).build_side().unwrap();
    let open = OpenScopes::new(&sessions);
    proxy.silence();
    open.end_within_their_deadlines();
    silence(&sessions);
    proxy.mute_new(false);
    proxy.release();
    proxy.cut_all();
    works_again(&sessions);
}

#[test]
fn no_call_waits_past_its_deadline_for_a_stopped_server() {
    let server = Server::start();
    let sessions = short_timeouts(SessionManager::builder(server.url())).build_side().unwrap();
    let open = OpenScopes::new(&sessions);
    server.sigstop();
    open.end_within_their_deadlines();
    silence(&sessions);
    server.sigcont();
    works_again(&sessions);
}

#[test]
fn a_silent_server_does_not_keep_the_session_from_closing() {
    let server = Server::start();
    let sessions = short_timeouts(SessionManager::builder(server.url())).build_side().unwrap();
    let open = OpenScopes::new(&sessions);
    server.sigstop();
    let limit = Duration::from_millis(100);
    let closing = sessions.clone();
    within("close", limit, move || closing.close(limit));
    within("drop", 4 * CLEANUP, move || drop(open));
    within("drop", CLEANUP, move || drop(sessions));
    server.sigcont();
    eventually(SOON, "no connection is left", || server.clients() == 0);
}

/// One scope of every kind, each with a connection that works.
struct OpenScopes {
    plain: Transaction,
    in_multi: Transaction,
    reading: Watching,
    watching: Watching,
}

impl OpenScopes {
    fn new(sessions: &SessionManager) -> Self {
        let accounts = sessions.transactional();
        let mut plain = accounts.begin().unwrap();
        plain.set("a", 1);
        Self {
            plain,
            in_multi: accounts.begin_with(immediate()).unwrap(),
            reading: accounts.watch(["a"]).begin().unwrap(),
            watching: accounts.watch(["a"]).begin().unwrap(),
        }
    }

    fn end_within_their_deadlines(self) {
        let Self { plain, in_multi, mut reading, watching } = self;
        let reading = within("a read", RESPONSE, move || {
            reading.get::<_, Option<i64>>("a").unwrap_err();
            reading
        });
        within("dropping what failed", CLEANUP, move || drop(reading));
        within("dropping what watches", CLEANUP, move || drop(watching));
        within("dropping what is in MULTI", CLEANUP, move || drop(in_multi));
        within("a commit", CHECKOUT + RESPONSE, move || plain.commit().unwrap_err());
    }
}

/// Everything that begins while the server is silent.
fn silence(sessions: &SessionManager) {
    type Call = fn(&SessionManager) -> bool;
    let calls: [(&str, Call); 5] = [
        ("begin", |sessions| sessions.transactional().begin_with(immediate()).is_err()),
        ("watch", |sessions| sessions.transactional().watch(["a"]).begin().is_err()),
        ("run", |sessions| sessions.transactional().run(|tx| Ok(tx.incr("a", 1))).is_err()),
        ("a read", |sessions| sessions.pooled().get::<_, Option<i64>>("a").is_err()),
        ("a write", |sessions| sessions.pooled().set::<_, _, ()>("a", 1).is_err()),
    ];
    for (what, call) in calls {
        let sessions = sessions.clone();
        assert!(within(what, CHECKOUT + RESPONSE, move || call(&sessions)), "{what}");
    }
    crate::side::settled(sessions);
    let asked = sessions.clone();
    let status = within("status", Duration::ZERO, move || asked.status());
    assert_eq!((status.pooled.in_use, status.transactional.in_use), (0, 0), "{status}");
}

/// The threads that connect may still wait for the silent one.
fn works_again(sessions: &SessionManager) {
    let (mut db, accounts) = (sessions.pooled(), sessions.transactional());
    let worked = try_for(SOON, || accounts.run(|tx| Ok(tx.incr("works", 1))).ok());
    assert!(worked.is_some(), "{}", sessions.status());
    let worked = try_for(SOON, || db.incr::<_, _, i64>("works", 1).ok());
    assert!(worked.is_some(), "{}", sessions.status());
}

#[track_caller]
fn within<R: Send + 'static>(
    what: &str,
    deadline: Duration,
    call: impl FnOnce() -> R + Send + 'static,
) -> R {
    let begun = Instant::now();
    let result = in_time(SOON, what, call);
    let took = begun.elapsed();
    assert!(took < deadline + LARGE_SLACK, "{what} took {took:?}, its deadline was {deadline:?}");
    result
}
