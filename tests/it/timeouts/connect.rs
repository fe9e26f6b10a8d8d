//! `CheckoutError::Connect`: the server could not be reached, or refused the connection.
//!
//! Guarantee: checkout-errors

use crate::fixture::SOON;
use crate::side::BuildSide as _;
use std::thread;
use std::time::{Duration, Instant};

use crate::side::SessionManager;
use rediscope::error::{Applied, CheckoutError, ConnectionError, ConnectionErrorKind};
use rediscope::prelude::*;
use rediscope::status::PoolStatus;
use rediscope::{Builder, Error};

use crate::fixture::proxied::{get, pool_is_whole};
use redis::io::tcp::socket2::{Domain, SockAddr, Socket, Type};
use rediscope_testing::proxy::Proxy;
use rediscope_testing::server::Server;
use rediscope_testing::unresponsive_port::UnresponsivePort;
use rediscope_testing::{eventually, in_time, try_for};

const WAIT: Duration = Duration::from_millis(1200);
/// For one connect, and for one exchange.
const TRY: Duration = Duration::from_millis(400);
/// A verdict must come long before this.
const FAR: Duration = Duration::from_secs(300);

fn within(wait: Duration, url: &str) -> SessionManager {
    builder(wait, url).build_side().unwrap()
}

fn builder(wait: Duration, url: &str) -> Builder {
    SessionManager::builder(url)
        // Five calls at once, none of which waits for another.
        .max_size(5)
        .connect_timeout(TRY)
        .response_timeout(TRY)
        .checkout_timeout(wait)
}

/// Both handles fail to connect, and neither waits for much longer than it is allowed to.
#[track_caller]
fn refused(sessions: &SessionManager, wait: Duration, retryable: bool) -> ConnectionError {
    let begun = Instant::now();
    let (accounts, watch) = (sessions.transactional(), sessions.transactional().watch(["key"]));
    let mut db = sessions.pooled();
    let ways: [&mut (dyn FnMut() -> Result<(), Error> + Send); 5] = [
        &mut || accounts.begin().map(drop),
        &mut || watch.begin().map(drop),
        &mut || accounts.run(|tx| Ok(tx.set("key", 1))),
        &mut || watch.run(|_, tx| Ok(tx.set("key", 1))),
        &mut || Ok(redis::cmd("GET").arg("key").exec(&mut db)?),
    ];
    let errors = thread::scope(|scope| {
        ways.map(|way| scope.spawn(way)).map(|call| call.join().unwrap().unwrap_err())
    });
    assert!(begun.elapsed() < wait + SOON);
    let sources = errors.map(|error| {
        assert_eq!((error.applied(), error.is_retryable()), (Applied::No, retryable), "{error}");
        let error = match error.as_commit() {
            Some(rediscope::CommitError::NotSent { source, .. }) => (**source).clone(),
            _ => error,
        };
        match error {
            Error::Checkout(CheckoutError::Connect { source, waited, .. }) => {
                // Worth another try: the whole wait, and not the last try's alone.
                let least = if retryable { wait / 2 } else { Duration::ZERO };
                assert!((least..wait + SOON).contains(&waited), "{waited:?}");
                source
            }
            error => panic!("{error:?}"),
        }
    });
    crate::side::settled(sessions);
    let pools = [sessions.status().pooled, sessions.status().transactional];
    assert!(pools.iter().all(|pool| (pool.in_use, pool.waiting) == (0, 0)), "{pools:?}");
    // Both connect on the same few threads: where each try takes its time, one may be late.
    let failed =
        |pool: &PoolStatus| pool.counts.connect_failures > 0 && pool.last_connect_error.is_some();
    assert!(pools.iter().any(failed), "{pools:?}");
    assert!(sources.iter().all(|source| source.kind() == sources[0].kind()), "{sources:?}");
    sources[0].clone()
}

#[test]
fn a_server_that_is_down_is_reported_within_the_deadline_and_found_again() {
    let server = Server::start();
    let sessions = within(WAIT, &server.url());
    server.sigkill();
    assert_eq!(refused(&sessions, WAIT, true).kind(), ConnectionErrorKind::Closed);
    server.restart_on_same_port();
    eventually(SOON, "it connects again", || sessions.transactional().begin().is_ok());
    pool_is_whole(&sessions, &server);
}

#[test]
fn an_error_about_a_connection_that_was_not_opened_names_the_address() {
    for (url, down) in [
        ("redis://app:S3CRET@127.0.0.1:1/", "127.0.0.1:1"),
        ("redis+unix:///no/such.sock?user=app&pass=S3CRET", "/no/such.sock"),
    ] {
        let sessions = within(WAIT, url);
        let mut pooled = sessions.pooled();
        let errors = [
            sessions.transactional().begin().map(drop).unwrap_err(),
            sessions.transactional().run(|tx| Ok(tx.incr("n", 1))).map(drop).unwrap_err(),
            Error::from(pooled.get::<_, i64>("n").unwrap_err()),
            sessions.ready(WAIT).unwrap_err(),
        ];
        for error in errors {
            let text = format!("{error:#}");
            assert!(text.starts_with(&format!("no connection to {down} after")), "{text}");
            assert!(!text.contains("S3CRET") && !format!("{error:?}").contains("S3CRET"), "{text}");
        }
    }
}

#[test]
fn ports_that_are_silent_mute_or_closed_at_once_are_reported_within_the_deadline() {
    let deaf = UnresponsivePort::open();
    assert_eq!(
        refused(&within(WAIT, &deaf.url()), WAIT, true).kind(),
        ConnectionErrorKind::TimedOut
    );
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let sessions = within(WAIT, &proxy.url());
    proxy.mute_new(true);
    assert_eq!(refused(&sessions, WAIT, true).kind(), ConnectionErrorKind::TimedOut);
    proxy.mute_new(false);
    proxy.refuse_new(true);
    proxy.cut_all();
    let sessions = within(WAIT, &proxy.url());
    assert_eq!(refused(&sessions, WAIT, true).kind(), ConnectionErrorKind::Closed);
    proxy.refuse_new(false);
    eventually(SOON, "it connects", || sessions.transactional().begin().is_ok());
    pool_is_whole(&sessions, &server);
}

#[test]
fn a_server_that_is_full_is_retryable() {
    let server = Server::with(&["--maxclients", "2"]);
    server.ask::<()>(&["ECHO", "the harness takes the first place"]);
    let _other = server.connection();
    let sessions = within(WAIT, &server.url());
    refused(&sessions, WAIT, true);
    server.config_set("maxclients", "100");
    eventually(SOON, "there is room", || sessions.transactional().begin().is_ok());
    pool_is_whole(&sessions, &server);
}

/// The server's verdict, which comes at once however long one would wait.
#[track_caller]
fn verdict(url: &str) -> (String, String) {
    let sessions = within(FAR, url);
    let source = refused(&sessions, Duration::ZERO, false);
    assert_eq!(source.kind(), ConnectionErrorKind::Refused);
    let error = source.server_error().unwrap();
    assert!(source.to_string().contains(error.code()));
    (error.code().to_owned(), error.message().to_owned())
}

#[test]
fn a_wrong_or_missing_password_fails_at_once() {
    let server = Server::with(&["--requirepass", "open-sesame"]);
    server.acl(&["SETUSER", "app", "on", ">secret", "~*", "&*", "+@all"]);
    let (host, code) = (server.address(), |url: String| verdict(&url).0);
    assert_eq!(code(format!("redis://:wrong@{host}/")), "WRONGPASS");
    assert_eq!(code(format!("redis://app:wrong@{host}/")), "WRONGPASS");
    assert_eq!(code(format!("redis://nobody:secret@{host}/")), "WRONGPASS");
    assert_eq!(code(format!("redis://app:wrong@{host}/?protocol=resp3")), "WRONGPASS");
    assert_eq!(code(format!("redis://{host}/")), "NOAUTH");
    assert_eq!(code(format!("redis://{host}/?protocol=resp3")), "NOAUTH");
    for url in [format!("redis://:open-sesame@{host}/"), format!("redis://app:secret@{host}/")] {
        let sessions = within(WAIT, &url);
        assert_eq!(sessions.transactional().run(|tx| Ok(tx.ping())).unwrap(), "PONG");
    }
}

#[test]
fn a_database_out_of_range_fails_at_once() {
    let server = Server::start();
    let (code, message) = verdict(&server.url_db(99));
    assert_eq!(code, "ERR");
    assert!(message.contains("out of range"), "{message}");
}

#[test]
fn a_user_without_multi_gets_no_transactional_connection_and_one_without_ping_gets_both() {
    let server = Server::start();
    server.acl(&["SETUSER", "app", "on", ">secret", "~*", "&*", "+@all", "-multi"]);
    let sessions = within(FAR, &server.url_as("app", "secret"));
    let error = sessions.transactional().begin().map(drop).unwrap_err();
    assert_eq!((error.applied(), error.is_retryable()), (Applied::No, false));
    assert!(format!("{error:#}").contains("NOPERM"), "{error}");
    redis::cmd("SET").arg("key").arg(1).exec(&mut sessions.pooled()).unwrap();

    server.acl(&["SETUSER", "app", "+multi", "-ping"]);
    let sessions = within(WAIT, &server.url_as("app", "secret"));
    redis::cmd("INCR").arg("key").exec(&mut sessions.pooled()).unwrap();
    pool_is_whole(&sessions, &server);
    assert_eq!(get(&server, "key").unwrap(), "2");
}

#[test]
fn a_verdict_ends_with_its_cause() {
    let server = Server::start();
    server.acl(&["SETUSER", "app", "on", ">secret", "~*", "&*", "+@all", "-discard"]);
    let sessions = within(FAR, &server.url_as("app", "secret"));
    assert!(sessions.transactional().begin().is_err());
    server.acl(&["SETUSER", "app", "+discard"]);
    let begun = try_for(SOON, || sessions.transactional().begin().ok()).unwrap();
    begun.discard().unwrap();
    pool_is_whole(&sessions, &server);
}

/// A server that accepts nothing, and whose queue of connections is full.
#[test]
fn a_unix_socket_that_accepts_nothing_delays_no_call_past_its_time() {
    let server = Server::with(&["--tcp-backlog", "1"]);
    let sessions = within(WAIT, &server.unix_url());
    let _: Option<String> = sessions.pooled().get("k").unwrap();
    server.sigstop();
    let path = SockAddr::unix(server.unix_url().trim_start_matches("redis+unix://")).unwrap();
    let mut queued = Vec::new();
    loop {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        if socket.connect(&path).is_err() {
            break;
        }
        queued.push(socket);
    }
    for within in [Duration::ZERO, TRY] {
        let asked = sessions.clone();
        in_time(SOON, "the readiness check ends", move || asked.ready(within)).unwrap_err();
    }
    crate::side::threads_only! {
        let raw = sessions.pooled();
        let called = in_time(SOON, "the raw connection fails", move || raw.with_raw(|_| ()));
        assert!(matches!(called, Err(Error::Checkout(_))), "{called:?}");
    }
    server.sigcont();
}
