//! `CheckoutError::Connect`, with the reason that was read: a server that is full or protected, and
//! what is not a Redis server at all. A permanent failure is returned at once.
//!
//! Guarantee: checkout-errors

use crate::fixture::SOON;
use crate::side::{BuildSide as _, ResolveDoubt as _, SessionManager, settled};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rediscope::error::{Applied, CheckoutError, ConnectionError, ConnectionErrorKind, Resolution};
use rediscope::prelude::*;
use rediscope::{
    Builder, CommitError, Credentials, CredentialsProvider, Error, TransactionOptions,
};

use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Proxy, Script, Trigger, Which};
use rediscope_testing::server::Server;

/// A call waits for so long where the reason may pass; a verdict must come long before.
const WAIT: Duration = Duration::from_millis(1500);
const FAR: Duration = Duration::from_secs(30);
const TRY: Duration = Duration::from_millis(500);

fn builder(url: &str, wait: Duration) -> Builder {
    SessionManager::builder(url).connect_timeout(TRY).response_timeout(TRY).checkout_timeout(wait)
}

/// What each form is refused with, which is the same for all.
#[track_caller]
fn refused(what: &str, builder: &Builder, verdict: bool) -> ConnectionError {
    let mut sources = Vec::new();
    for form in 0..4 {
        let sessions = builder.clone().build_side().unwrap();
        let (accounts, mut db) = (sessions.transactional(), sessions.pooled());
        let begun = Instant::now();
        let error = match form {
            0 => accounts.run(|tx| Ok(tx.set("key", 1))).unwrap_err(),
            1 => accounts.begin().map(drop).unwrap_err(),
            2 => accounts.watch(["key"]).run(|_, tx| Ok(tx.set("key", 1))).unwrap_err(),
            _ => Error::from(db.set::<_, _, ()>("key", 1).unwrap_err()),
        };
        let took = begun.elapsed();
        assert_eq!(
            (error.applied(), error.is_retryable()),
            (Applied::No, !verdict),
            "{what}: {error:#}"
        );
        if verdict {
            assert!(took < SOON, "{what}, form {form}: a verdict after {took:?}");
        }
        let Error::Checkout(CheckoutError::Connect { source, .. }) = error else {
            panic!("{what}, form {form}: {error:?}");
        };
        assert!(!source.to_string().contains("it is closed"), "{source}");
        assert!(format!("{:#}", Error::from(CheckoutError::Closed)).len() > 3);
        sources.push(source);
        if !verdict {
            // Each of the others would wait as long.
            break;
        }
    }
    sources.remove(0)
}

/// Answers every connection with these bytes, after it has read or before, and closes it.
fn answering(bytes: &'static [u8], reads: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}/", listener.local_addr().unwrap());
    let answer = move |mut peer: TcpStream| {
        if reads {
            let _: std::io::Result<usize> = peer.read(&mut [0; 4096]);
        }
        let _: std::io::Result<()> = peer.write_all(bytes);
    };
    // It ends with the process: nothing ends it when the test is over.
    thread::spawn(move || listener.incoming().filter_map(Result::ok).for_each(answer));
    url
}

#[test]
fn a_full_server_is_waited_for_and_its_own_words_are_in_the_error() {
    let server = Server::with(&["--maxclients", "2"]);
    server.ask::<()>(&["ECHO", "the harness takes the first place"]);
    let _other = server.connection();
    for url in [server.url(), server.unix_url()] {
        for query in ["", "protocol=resp3"] {
            let sign = if url.contains('?') { '&' } else { '?' };
            let url = format!("{url}{sign}{query}");
            let source = refused(&url, &builder(&url, WAIT), false);
            assert_eq!(source.kind(), ConnectionErrorKind::Refused, "{source}");
            assert!(source.to_string().contains("max number of clients"), "{source}");
            assert_eq!(source.server_error().unwrap().code(), "ERR");
        }
    }
    let sessions = builder(&server.url(), FAR).build_side().unwrap();
    thread::scope(|scope| {
        let waits = scope.spawn(|| sessions.transactional().run(|tx| Ok(tx.incr("n", 1))));
        eventually(SOON, "it was turned away", || {
            sessions.status().transactional.counts.connect_failures > 0
        });
        server.config_set("maxclients", "100");
        assert_eq!(waits.join().unwrap().unwrap(), 1);
    });
}

#[test]
fn a_protected_server_is_named_at_once() {
    let denied = b"-DENIED Redis is running in protected mode because protected mode is enabled \
                   and no password is set for the default user. In this mode connections are only \
                   accepted from the loopback interface.\r\n";
    for reads in [true, false] {
        let source = refused("DENIED", &builder(&answering(denied, reads), FAR), true);
        assert_eq!(source.kind(), ConnectionErrorKind::Refused, "{source}");
        assert!(source.to_string().contains("DENIED"), "{source}");
    }
}

#[test]
fn a_server_that_is_not_redis_is_named_at_once() {
    let http = tiny_http::Server::http("127.0.0.1:0").unwrap();
    let port = http.server_addr().to_ip().unwrap().port();
    let alert: &[u8] = &[0x15, 3, 1, 0, 2, 2, 0x46];
    for (what, url, word) in [
        ("HTTP", format!("redis://127.0.0.1:{port}/"), "HTTP"),
        (
            "HTTP/1.0",
            answering(b"HTTP/1.0 400 Bad Request\r\nConnection: close\r\n\r\n", true),
            "HTTP",
        ),
        ("TLS", answering(alert, true), "rediss://"),
        ("SSH", answering(b"SSH-2.0-OpenSSH_9.2\r\n", false), "SSH"),
    ] {
        let source = refused(what, &builder(&url, FAR), true);
        assert_eq!(source.kind(), ConnectionErrorKind::Protocol, "{what}: {source}");
        assert!(source.to_string().contains(word), "{what}: {source}");
    }
}

#[cfg(feature = "tls-rustls")]
#[test]
fn a_redis_server_with_tls_is_named_if_it_is_reached_in_clear() {
    let tls = rediscope_testing::tls::TlsServer::start();
    if !tls.is_of_the_server() {
        return rediscope_testing::not_run("the server was built without TLS");
    }
    let url = format!("redis://localhost:{}/", tls.port);
    // It closes without a word, which a server that is going down does too.
    let source = refused("TLS", &builder(&url, WAIT), false);
    assert!(source.to_string().contains("rediss://"), "{source}");
}

#[test]
fn a_proxy_that_closes_at_multi_is_reported_soon_and_the_pooled_handle_works() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    proxy.script(Which::All, Script::from((Trigger::BeforeCommandNamed("MULTI"), Fault::Cut)));
    let sessions = builder(&proxy.url(), FAR).build_side().unwrap();
    let begun = Instant::now();
    let error = sessions.transactional().run(|tx| Ok(tx.set("key", 1))).unwrap_err();
    assert!(begun.elapsed() < SOON, "{error}");
    assert_eq!((error.applied(), error.is_retryable()), (Applied::No, false));
    let text = format!("{error:#}");
    assert!(text.contains("at MULTI") && text.contains("proxy"), "{text}");
    sessions.pooled().set::<_, _, ()>("key", 2).unwrap();
}

#[test]
fn a_refusal_in_the_handshake_names_its_command() {
    let server = Server::with(&["--requirepass", "open-sesame"]);
    server.acl(&["SETUSER", "app", "on", ">secret", "~*", "&*", "+@all", "-multi"]);
    let host = server.address();
    for (url, words) in [
        (format!("redis://:wrong@{host}/"), "AUTH: WRONGPASS"),
        (format!("redis://:wrong@{host}/?protocol=resp3"), "HELLO: WRONGPASS"),
        (format!("redis://:open-sesame@{host}/99"), "SELECT: ERR"),
    ] {
        let source = refused(words, &builder(&url, FAR), true);
        assert!(source.to_string().contains(words), "{source}");
    }
    let sessions = builder(&server.url_as("app", "secret"), FAR).build_side().unwrap();
    let error = sessions.transactional().begin().map(drop).unwrap_err();
    assert!(format!("{error:#}").contains("MULTI: NOPERM"), "{error:#}");
}

/// Replies to the first `answers` commands, and to none after that.
struct Hanging {
    answers: AtomicU32,
    version: AtomicU64,
    /// Number of calls that hang.
    hangs: AtomicU32,
}

impl CredentialsProvider for Hanging {
    fn credentials(&self) -> Result<Credentials, Box<dyn std::error::Error + Send + Sync>> {
        const RELAXED: Ordering = Ordering::Relaxed;
        let left = self.answers.fetch_update(RELAXED, RELAXED, |left| left.checked_sub(1));
        if left.is_err() {
            self.hangs.fetch_add(1, RELAXED);
            loop {
                thread::park();
            }
        }
        Ok(Credentials::password("open-sesame"))
    }

    fn version(&self) -> u64 {
        self.version.load(Ordering::Relaxed)
    }
}

fn hanging(answers: u32) -> Arc<Hanging> {
    Arc::new(Hanging { answers: answers.into(), version: 0.into(), hangs: 0.into() })
}

/// Makes calls on a thread of their own, which must be over long before [`FAR`] is.
#[track_caller]
fn ends<T: Send + 'static>(calls: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, result) = mpsc::channel();
    thread::spawn(move || sender.send(calls()));
    result.recv_timeout(SOON).expect("the calls have not returned")
}

#[test]
fn a_provider_that_hangs_is_named_and_delays_no_call_past_its_deadline() {
    let server = Server::with(&["--requirepass", "open-sesame"]);
    let url = format!("redis://{}/", server.address());
    let source = refused("hangs", &builder(&url, WAIT).credentials_provider(hanging(0)), false);
    assert_eq!(source.kind(), ConnectionErrorKind::Credentials, "{source}");
    assert!(source.to_string().contains("has not returned"), "{source}");

    let provider = hanging(1);
    let sessions = builder(&url, WAIT).max_size(1).credentials_provider(Arc::clone(&provider));
    let sessions = sessions.build_side().unwrap();
    let mut db = sessions.pooled();
    db.set::<_, _, ()>("key", 1).unwrap();
    provider.version.store(1, Ordering::Relaxed);
    for _ in 0..2 {
        let begun = Instant::now();
        assert_eq!(db.get::<_, i64>("key").unwrap(), 1, "the connection stays the same");
        assert!(begun.elapsed() < WAIT + TRY + Duration::from_secs(10), "{:?}", begun.elapsed());
    }
}

#[test]
fn a_provider_that_hangs_delays_no_query_past_its_deadline() {
    let server = Server::with(&["--requirepass", "open-sesame"]);
    let url = format!("redis://{}/", server.address());
    let sessions = builder(&url, WAIT).credentials_provider(hanging(0)).build_side().unwrap();
    match ends(move || sessions.ready(Duration::from_secs(1))) {
        Err(Error::Checkout(CheckoutError::Connect { source, .. })) => {
            assert_eq!(source.kind(), ConnectionErrorKind::Credentials, "{source}");
        }
        other => panic!("{other:?}"),
    }

    let proxy = Proxy::to(&server);
    let (url, provider) = (format!("redis://{}/", proxy.address()), hanging(u32::MAX));
    let sessions = builder(&url, WAIT).max_size(1).trust_window(FAR);
    let sessions = sessions.credentials_provider(Arc::clone(&provider)).build_side().unwrap();
    let once = sessions.transactional().with(TransactionOptions::new().exactly_once());
    once.run(|tx| Ok(tx.incr("n", 1))).unwrap();
    provider.answers.store(0, Ordering::Relaxed);
    proxy.arm(Script::from((Trigger::BeforeReplyTo("EXEC"), Fault::Cut)).once());
    let resolved = ends(move || match once.run(|tx| Ok(tx.incr("n", 1))) {
        Err(Error::Commit(CommitError::InDoubt(doubt))) => [doubt.resolved(), doubt.resolved()],
        other => panic!("{other:?}"),
    });
    for resolved in resolved {
        assert!(matches!(resolved, Resolution::StillUnknown { .. }), "{resolved:?}");
    }
}

#[test]
fn a_provider_that_hangs_keeps_no_forgotten_scope_open() {
    let server = Server::with(&["--requirepass", "open-sesame"]);
    let (url, provider) = (format!("redis://{}/", server.address()), hanging(u32::MAX));
    let sessions = builder(&url, WAIT).max_pin_time(Duration::from_secs(1));
    let sessions = sessions.credentials_provider(Arc::clone(&provider)).build_side().unwrap();
    drop(sessions.transactional().begin().unwrap());
    settled(&sessions);
    provider.answers.store(0, Ordering::Relaxed);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let end = scopeguard::guard((), |()| over.store(true, Ordering::Relaxed));
        for _ in 0..3 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let _: Result<(), _> = sessions.pooled().set("key", 1);
                }
            });
        }
        eventually(SOON, "they wait", || provider.hangs.load(Ordering::Relaxed) > 0);
        std::mem::forget(sessions.transactional().begin().unwrap());
        assert_eq!(sessions.status().transactional.in_use, 1);
        eventually(SOON, "it is reclaimed", || sessions.status().transactional.in_use == 0);
        drop(end);
    });
}

crate::side::threads_only! {
    #[test]
    fn a_provider_that_hangs_delays_no_raw_connection_past_its_deadline() {
        let server = Server::with(&["--requirepass", "open-sesame"]);
        let (url, provider) = (format!("redis://{}/", server.address()), hanging(1));
        let sessions = builder(&url, WAIT).max_size(1).credentials_provider(provider);
        let sessions = sessions.build_side().unwrap();
        sessions.pooled().set::<_, _, ()>("key", 1).unwrap();
        let error = ends(move || sessions.pooled().with_raw(|_| ()).unwrap_err());
        let text = format!("{error:#}");
        assert!(text.contains("has not returned"), "{text}");
    }
}
