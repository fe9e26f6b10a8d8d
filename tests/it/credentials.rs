//! Credentials that change while the program runs: sent again between scopes and never inside one, without a
//! lost command.
//!
//! Guarantee: passwords

use crate::fixture::{LONG, OF_ONE, SOON, add_on_each};
use crate::side::{
    BuildSide, LANES, PROVIDER_PANICS_PASS, ResolveDoubt, SessionManager, open_lanes, threads_only,
};
use std::error::Error as StdError;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rediscope::error::{CheckoutError, ConfigError, ConnectionErrorKind, Resolution};
use rediscope::prelude::*;
use rediscope::{
    Begin, Builder, CommitError, Credentials, CredentialsProvider, Error, RotatingCredentials,
    TransactionOptions, redis,
};

use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Proxy, Script, Trigger, Which};
use rediscope_testing::server::Server;

fn user(server: &Server, name: &str, password: &str) -> Credentials {
    server.acl(&["SETUSER", name, "on", &format!(">{password}"), "~*", "&*", "+@all"]);
    Credentials::new(name, password)
}

fn rotating(server: &Server, first: Credentials) -> (Arc<RotatingCredentials>, Builder) {
    let credentials = Arc::new(RotatingCredentials::new(first));
    let builder = SessionManager::builder(server.url())
        .credentials_provider(Arc::clone(&credentials))
        .trust_window(LONG);
    (credentials, builder)
}

/// The users of the server's connections, by the connections' numbers.
fn users(server: &Server) -> Vec<(String, String)> {
    let list = server.client_list();
    list.iter().map(|client| (client["id"].clone(), client["user"].clone())).collect()
}

fn reauthentications(sessions: &SessionManager) -> u64 {
    let status = sessions.status();
    status.pooled.counts.reauthentications + status.transactional.counts.reauthentications
}

#[test]
fn a_password_that_is_rotated_under_load_loses_nothing() {
    const ROTATIONS: usize = 30;
    let server = Server::start();
    let (credentials, builder) = rotating(&server, user(&server, "app", "password 0"));
    // Connections are opened all the time, so that attempts and rotations meet.
    let sessions =
        builder.max_size(4).max_lifetime(Some(Duration::from_millis(40))).build_side().unwrap();
    let over = AtomicBool::new(false);
    let reported = [const { AtomicU64::new(0) }; 4];
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let accounts = sessions.transactional();
                let once = accounts.with(TransactionOptions::new().exactly_once());
                let mut db = sessions.pooled();
                while !over.load(Ordering::Relaxed) {
                    accounts.run(|tx| Ok((tx.incr("a", 1), tx.incr("b", 1)))).unwrap();
                    reported[0].fetch_add(1, Ordering::Relaxed);
                    once.run(|tx| Ok(tx.incr("c", 1))).unwrap();
                    reported[1].fetch_add(1, Ordering::Relaxed);
                    db.incr::<_, _, ()>("d", 1).unwrap();
                    reported[2].fetch_add(1, Ordering::Relaxed);
                    let held = sessions.lock("e").acquire(SOON).unwrap();
                    let e: u64 = db.get::<_, Option<u64>>("e").unwrap().unwrap_or(0);
                    db.set::<_, _, ()>("e", e + 1).unwrap();
                    held.release().unwrap();
                    reported[3].fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for nth in 1..=ROTATIONS {
            let (next, former) = (format!("password {nth}"), format!("<password {}", nth - 1));
            credentials.rotate(user(&server, "app", &next));
            let before = reported[3].load(Ordering::Relaxed);
            // By turns: some connections have still to say it when the former password goes.
            if nth % 2 == 0 {
                eventually(SOON, "all is well", || {
                    reported[3].load(Ordering::Relaxed) > before + 16
                });
            }
            server.acl(&["SETUSER", "app", &former]);
            let before = reported[3].load(Ordering::Relaxed);
            eventually(SOON, "all is well", || reported[3].load(Ordering::Relaxed) > before + 16);
        }
        over.store(true, Ordering::Relaxed);
    });
    for (key, reported) in ["b", "c", "d", "e"].iter().zip(&reported) {
        assert_eq!(server.ask::<u64>(&["GET", key]), reported.load(Ordering::Relaxed), "{key}");
    }
    assert!(reauthentications(&sessions) > 0);
}

#[test]
fn a_user_and_a_password_apart_from_the_address_are_used_and_a_file_is_read_for_each_connection() {
    let server = Server::start();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("password");
    user(&server, "app", "first");
    std::fs::write(&path, "first\r\n").unwrap();
    let app = || SessionManager::builder(server.url()).username("app").max_size(1);
    let given = app().password("first").build_side().unwrap();
    let read = app().password_file(&path).build_side().unwrap();
    let uses = |sessions: &SessionManager, hits: i64| {
        assert_eq!(sessions.transactional().run(|tx| Ok(tx.incr("hits", 1))).unwrap(), hits);
    };
    uses(&given, 1);
    uses(&read, 2);
    assert!(users(&server).iter().all(|(_, user)| user == "app"));
    // The password is changed on the server, and then in the file.
    server.acl(&["SETUSER", "app", ">second", "<first"]);
    uses(&read, 3);
    assert_eq!(reauthentications(&read), 0, "open connections keep their identity");
    std::fs::write(&path, "second").unwrap();
    server.kill_all_clients_except_me();
    uses(&read, 4);
    let refused = given.transactional().run(|tx| Ok(tx.incr("hits", 1))).unwrap_err();
    assert!(
        refused.to_string().contains("WRONGPASS") || format!("{refused:#?}").contains("WRONGPASS")
    );
    let shown = format!("{refused:?} {refused:#} {given:?} {read:?}");
    assert!(!shown.contains("first") && !shown.contains("second"), "{shown}");
}

#[test]
fn every_connection_has_the_clients_name_and_a_refusal_of_it_is_no_matter() {
    let server = Server::start();
    server.acl(&["SETUSER", "app", "on", ">1", "~*", "&*", "+@all", "-client"]);
    let named = |builder: Builder| {
        builder.client_name("billing:7").max_size(1).trust_window(LONG).build_side().unwrap()
    };
    let uses = |sessions: &SessionManager| {
        let held = sessions.lock("held").acquire(SOON).unwrap();
        sessions.transactional().run(|tx| Ok(tx.incr("hits", 1))).unwrap();
        let _: () = sessions.pooled().set("key", 1).unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| sessions.lock("held").acquire(SOON).map(drop));
            eventually(SOON, "the subscriber listens", || {
                server.client_list().iter().any(|client| client["sub"] != "0")
            });
            held.release().unwrap();
            waiting.join().unwrap().unwrap();
        });
        sessions.ready(SOON).unwrap();
    };
    let sessions = named(SessionManager::builder(server.url()));
    uses(&sessions);
    let names: Vec<_> =
        server.client_list().into_iter().map(|client| client["name"].clone()).collect();
    assert!(names.len() >= 4 && names.iter().all(|name| name == "billing:7"), "{names:?}");
    assert_eq!(sessions.close(SOON).locks, 0);
    let url = format!("redis://app:1@127.0.0.1:{}/", server.port());
    uses(&named(SessionManager::builder(url)));
    uses(&named(SessionManager::builder(format!("{}?protocol=resp3", server.url()))));
}

#[test]
fn an_open_scope_keeps_its_credentials_and_the_next_one_authenticates_again() {
    let server = Server::start();
    let second = user(&server, "second", "2");
    let (credentials, builder) = rotating(&server, user(&server, "first", "1"));
    let sessions = builder.max_size(1).build_side().unwrap();
    let accounts = sessions.transactional();
    let mut tx = accounts.begin_with(TransactionOptions::new().begin(Begin::Immediate)).unwrap();
    tx.incr("n", 1);
    tx.check().unwrap();
    let before = users(&server);
    assert_eq!(before.len(), 1);
    assert_eq!(before[0].1, "first");
    credentials.rotate(second);
    tx.incr("n", 1);
    tx.check().unwrap();
    assert_eq!(users(&server), before);
    tx.commit().unwrap();
    assert_eq!((users(&server), server.calls("auth")), (before.clone(), 1));
    let mut watching = accounts.watch(["n"]).begin().unwrap();
    assert_eq!(users(&server), [(before[0].0.clone(), "second".to_owned())]);
    assert_eq!(watching.get::<_, u32>("n").unwrap(), 2);
    watching.abandon().unwrap();
    accounts.begin().unwrap().commit().unwrap();
    let counts = sessions.status().transactional.counts;
    assert_eq!((counts.reauthentications, counts.connects, counts.all_replaced()), (1, 1, 0));
    assert_eq!(server.calls("auth"), 2);
    // Another connection has the present ones from the beginning.
    accounts.run(|tx| Ok(tx.incr("n", 1))).unwrap();
    assert!(users(&server).iter().all(|(_, user)| user == "second"));
    assert_eq!(reauthentications(&sessions), 1);
}

#[test]
fn a_connection_that_died_while_idle_is_replaced_by_one_with_the_present_credentials() {
    let server = Server::start();
    let second = user(&server, "second", "2");
    let (credentials, builder) = rotating(&server, user(&server, "first", "1"));
    let sessions = builder.max_size(1).build_side().unwrap();
    sessions.transactional().run(|tx| Ok(tx.incr("n", 1))).unwrap();
    server.kill_all_clients_except_me();
    credentials.rotate(second);
    assert_eq!(sessions.transactional().run(|tx| Ok(tx.incr("n", 1))).unwrap(), 2);
    assert_eq!(users(&server)[0].1, "second");
    assert_eq!(reauthentications(&sessions), 0);
}

#[test]
fn new_connections_wait_for_rotated_credentials() {
    let server = Server::start();
    let (credentials, builder) = rotating(&server, user(&server, "app", "former"));
    let sessions = builder.build_side().unwrap();
    server.acl(&["SETUSER", "app", ">latter", "<former"]);
    thread::scope(|scope| {
        let applied = scope.spawn(|| sessions.transactional().run(|tx| Ok(tx.incr("n", 1))));
        eventually(SOON, "it was refused", || {
            sessions.status().transactional.counts.connect_failures > 0
        });
        let refused = sessions.status().transactional.last_connect_error.unwrap();
        assert_eq!(refused.server_error().unwrap().code(), "WRONGPASS");
        credentials.rotate(Credentials::new("app", "latter"));
        assert_eq!(applied.join().unwrap().unwrap(), 1);
    });
}

#[test]
fn connections_keep_their_credentials_until_the_server_accepts_new_ones() {
    let server = Server::start();
    let (credentials, builder) = rotating(&server, user(&server, "app", "former"));
    let sessions = builder.max_size(1).build_side().unwrap();
    let accounts = sessions.transactional();
    open_lanes(&sessions, "n");
    add_on_each(&accounts, "n");
    credentials.rotate(Credentials::new("app", "latter"));
    for _ in 0..10 {
        add_on_each(&accounts, "n");
    }
    let (counts, of_one) = (sessions.status().transactional.counts, OF_ONE as u64);
    assert_eq!((counts.connects, counts.reauthentications), (of_one, 0));
    // Not at every checkout: the server writes each refusal down.
    let refused = server.calls("auth") - of_one;
    assert!((of_one..=3 * of_one).contains(&refused), "{refused}");
    server.acl(&["SETUSER", "app", ">latter", "<former"]);
    eventually(SOON, "it was sent", || {
        add_on_each(&accounts, "n");
        sessions.status().transactional.counts.reauthentications == of_one
    });
    assert_eq!(sessions.status().transactional.counts.connects, of_one);
}

/// Fails, or panics, as its fields are set.
#[derive(Default)]
struct Moody {
    fails: AtomicBool,
    panics: AtomicBool,
    /// Delay of a result, in milliseconds.
    slow: AtomicU64,
    version: AtomicU64,
    has_no_version: AtomicBool,
}

impl CredentialsProvider for Moody {
    fn credentials(&self) -> Result<Credentials, Box<dyn StdError + Send + Sync>> {
        assert!(!self.panics.load(Ordering::SeqCst), "a provider that panics");
        thread::sleep(Duration::from_millis(self.slow.load(Ordering::SeqCst)));
        match self.fails.load(Ordering::SeqCst) {
            true => Err("the vault is shut".into()),
            false => Ok(Credentials::new("app", "secret")),
        }
    }

    fn version(&self) -> u64 {
        assert!(!self.has_no_version.load(Ordering::SeqCst), "a version that panics");
        self.version.load(Ordering::SeqCst)
    }
}

fn moody(server: &Server) -> (Arc<Moody>, SessionManager) {
    moody_at(server, server.url())
}

fn moody_at(server: &Server, url: String) -> (Arc<Moody>, SessionManager) {
    user(server, "app", "secret");
    let provider = Arc::new(Moody::default());
    let sessions = SessionManager::builder(url)
        .credentials_provider(Arc::clone(&provider))
        .max_size(1)
        .connect_timeout(Duration::from_millis(500))
        .response_timeout(Duration::from_millis(500))
        // A panic of the provider's is printed first, which takes its time.
        .checkout_timeout(Duration::from_secs(3))
        .build_side()
        .unwrap();
    (provider, sessions)
}

#[test]
fn a_providers_error_is_returned_and_the_next_call_tries_it_again() {
    let server = Server::start();
    let (provider, sessions) = moody(&server);
    let accounts = sessions.transactional();
    provider.fails.store(true, Ordering::SeqCst);
    match accounts.begin() {
        Err(Error::Checkout(CheckoutError::Connect { source, .. })) => {
            assert_eq!(source.kind(), ConnectionErrorKind::Credentials);
            assert!(source.to_string().contains("the vault is shut"), "{source}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(server.calls("auth"), 0);
    provider.fails.store(false, Ordering::SeqCst);
    assert_eq!(accounts.run(|tx| Ok(tx.incr("n", 1))).unwrap(), 1);
    // A connection that is there needs none, as long as its server lets it.
    provider.fails.store(true, Ordering::SeqCst);
    provider.version.fetch_add(1, Ordering::SeqCst);
    assert_eq!(accounts.run(|tx| Ok(tx.incr("n", 1))).unwrap(), 2);
    assert_eq!(sessions.status().transactional.counts.connects, 1);
}

#[test]
fn a_provider_that_is_slow_is_not_taken_for_a_server_that_is_silent() {
    let server = Server::start();
    user(&server, "app", "secret");
    let provider = Arc::new(Moody::default());
    let sessions = SessionManager::builder(server.url())
        .credentials_provider(Arc::clone(&provider))
        .connect_timeout(Duration::from_millis(500))
        .response_timeout(Duration::from_millis(500))
        .checkout_timeout(SOON)
        .build_side()
        .unwrap();
    let accounts = sessions.transactional();
    // Longer than an exchange may take, and than opening a connection.
    provider.slow.store(800, Ordering::SeqCst);
    let both = (accounts.begin().unwrap(), accounts.begin().unwrap());
    drop(both);
    let opened = sessions.status().transactional.counts.connects;
    provider.version.fetch_add(1, Ordering::SeqCst);
    let both = (accounts.begin().unwrap(), accounts.begin().unwrap());
    drop(both);
    let counts = sessions.status().transactional.counts;
    assert_eq!((counts.connects, counts.reauthentications), (opened, 2));
    assert_eq!((counts.connect_failures, counts.all_replaced()), (0, 0));
}

#[test]
fn a_connection_keeps_its_identity_if_the_provider_panics_instead_of_a_version() {
    let server = Server::start();
    let (provider, sessions) = moody(&server);
    let once = sessions.transactional().with(TransactionOptions::new().exactly_once());
    assert_eq!(once.watch(["n"]).run(|_, tx| Ok(tx.incr("n", 1))).unwrap(), 1);
    provider.has_no_version.store(true, Ordering::SeqCst);
    assert_eq!(once.watch(["n"]).run(|_, tx| Ok(tx.incr("n", 1))).unwrap(), 2);
    assert_eq!(sessions.status().transactional.in_use, 0);
}

#[test]
fn a_doubt_stays_one_if_the_provider_panics_during_its_query() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let (provider, sessions) = moody_at(&server, proxy.url());
    let once = sessions.transactional().with(TransactionOptions::new().exactly_once());
    once.run(|tx| Ok(tx.incr("n", 1))).unwrap();
    provider.panics.store(true, Ordering::SeqCst);
    proxy.arm(Script::from((Trigger::BeforeReplyTo("EXEC"), Fault::Cut)).once());
    match once.run(|tx| Ok(tx.incr("n", 1))) {
        Err(Error::Commit(CommitError::InDoubt(doubt))) => {
            provider.panics.store(false, Ordering::SeqCst);
            assert_eq!(doubt.resolved(), Resolution::Committed);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_provider_that_panics_takes_no_place_with_it() {
    let server = Server::start();
    let (provider, sessions) = moody(&server);
    let accounts = sessions.transactional();
    provider.panics.store(true, Ordering::SeqCst);
    match accounts.begin() {
        Err(Error::Checkout(CheckoutError::Connect { source, .. })) => {
            assert_eq!(source.kind(), ConnectionErrorKind::Panicked, "{source}");
        }
        other => panic!("{other:?}"),
    }
    provider.panics.store(false, Ordering::SeqCst);
    assert_eq!(accounts.run(|tx| Ok(tx.incr("n", 1))).unwrap(), 1);
    open_lanes(&sessions, "n");
    add_on_each(&accounts, "n");
    // On the caller's thread it is the caller's panic.
    provider.panics.store(true, Ordering::SeqCst);
    provider.version.fetch_add(1, Ordering::SeqCst);
    let called = catch_unwind(AssertUnwindSafe(|| accounts.begin().map(drop)));
    assert_eq!(called.is_err(), PROVIDER_PANICS_PASS);
    // A lane's connection goes on without it.
    (0..LANES).for_each(|_| _ = accounts.run(|tx| Ok(tx.incr("n", 1))).unwrap());
    assert_eq!(sessions.status().transactional.in_use, 0);
    provider.panics.store(false, Ordering::SeqCst);
    let of_one = OF_ONE as u64;
    eventually(SOON, "each authenticates again", || {
        add_on_each(&accounts, "n");
        sessions.status().transactional.counts.reauthentications == of_one
    });
    let counts = sessions.status().transactional.counts;
    assert_eq!((counts.connects, counts.reauthentications), (of_one, of_one));
}

#[test]
fn a_doubt_is_resolved_as_soon_as_the_credentials_are_rotated() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let credentials = Arc::new(RotatingCredentials::new(user(&server, "app", "former")));
    let sessions = SessionManager::builder(proxy.url())
        .credentials_provider(Arc::clone(&credentials))
        .build_side()
        .unwrap();
    proxy.script(Which::All, Script::from((Trigger::BeforeReplyTo("EXEC"), Fault::Cut)).once());
    let options = TransactionOptions::new().exactly_once();
    let mut tx = sessions.transactional().begin_with(options).unwrap();
    tx.incr("n", 1);
    let Err(Error::Commit(CommitError::InDoubt(doubt))) = tx.commit() else { panic!("no doubt") };
    server.acl(&["SETUSER", "app", ">latter", "<former"]);
    let refused = server.calls("auth");
    thread::scope(|scope| {
        let resolution = scope.spawn(|| doubt.resolved());
        eventually(SOON, "it was refused", || server.calls("auth") > refused);
        credentials.rotate(Credentials::new("app", "latter"));
        assert_eq!(resolution.join().unwrap(), Resolution::Committed);
    });
}

#[test]
fn waits_for_locks_use_the_present_credentials() {
    let server = Server::start();
    let second = user(&server, "second", "2");
    let (credentials, builder) = rotating(&server, user(&server, "first", "1"));
    let sessions = builder.build_side().unwrap();
    let held = sessions.lock("name").acquire(SOON).unwrap();
    let subscriber = || {
        let subscribed =
            |client: &&std::collections::HashMap<String, String>| client["flags"].contains('P');
        server.client_list().iter().find(subscribed).map(|client| client["user"].clone())
    };
    thread::scope(|scope| {
        let waiter = scope.spawn(|| sessions.lock("name").acquire(SOON).map(drop));
        eventually(SOON, "it listens", || subscriber().as_deref() == Some("first"));
        credentials.rotate(second);
        eventually(SOON, "it listens anew", || subscriber().as_deref() == Some("second"));
        held.release().unwrap();
        waiter.join().unwrap().unwrap();
    });
}

#[test]
fn an_address_with_a_user_logs_in_as_that_user_or_is_refused() {
    let server = Server::start();
    user(&server, "app", "secret");
    let address = |login: &str| server.url().replace("redis://", &format!("redis://{login}@"));
    for protocol in ["resp2", "resp3"] {
        let url = |login| format!("{}?protocol={protocol}", address(login));
        let sessions = SessionManager::builder(url("app:secret")).build_side().unwrap();
        let whoami = || redis::cmd("ACL").arg("WHOAMI").take();
        assert_eq!(whoami().query::<String>(&mut sessions.pooled()).unwrap(), "app");
        let queued = sessions.transactional().run(|tx| Ok(tx.queue::<String>(whoami())));
        assert_eq!(queued.unwrap(), "app");
        // It would be the user `default`, with its rights.
        let refused = SessionManager::builder(url("app")).build_side().map(drop).unwrap_err();
        assert!(matches!(refused, ConfigError::Address { .. }), "{refused:?}");
    }
}

#[test]
fn an_address_with_a_login_and_a_provider_are_refused_together() {
    let provider = || RotatingCredentials::new(Credentials::password("secret"));
    for url in ["redis://user@localhost/", "redis://:hushed@localhost/"] {
        let refused = SessionManager::builder(url).credentials_provider(provider()).build_side();
        let error = refused.unwrap_err();
        assert_eq!(error.setting_name(), Some("credentials_provider"));
        assert!(!error.to_string().contains("hushed"), "{error}");
    }
}

#[test]
fn the_password_of_the_default_user_may_change_too_and_is_never_shown() {
    let server = Server::start();
    server.acl(&["SETUSER", "default", ">hushed"]);
    let credentials = Arc::new(RotatingCredentials::new(Credentials::password("hushed")));
    // In RESP3 the handshake sends it with another command.
    let builder = SessionManager::builder(format!("{}?protocol=resp3", server.url()))
        .credentials_provider(Arc::clone(&credentials));
    let shown = format!("{credentials:?} {builder:?} {:?}", Credentials::new("hushed", "hushed"));
    assert!(!shown.contains("hushed"), "{shown}");
    let sessions = builder.build_side().unwrap();
    let n: i64 = sessions.transactional().run(|tx| Ok(tx.incr("n", 1))).unwrap();
    assert_eq!((n, sessions.pooled().get::<_, i64>("n").unwrap()), (1, 1));
}

/// A user whose password the server does not know yet, and a proxy that holds the refusals of the next
/// attempts to connect.
fn refused_late(server: &Server) -> (Proxy, Builder) {
    user(server, "app", "other");
    let proxy = Proxy::to(server);
    proxy.script(Which::All, (Trigger::BeforeReplyTo("AUTH"), Fault::HoldReplies));
    let url = proxy.url().replace("redis://", "redis://app:secret@");
    let builder = SessionManager::builder(url)
        .max_size(1)
        .connect_timeout(SOON)
        .response_timeout(SOON)
        .checkout_timeout(4 * SOON);
    (proxy, builder)
}

// Tasks open connections for `min_idle` once a runtime is known, which is at the first call.
threads_only! {
    #[test]
    fn a_refusal_of_an_attempt_for_min_idle_ends_no_later_call() {
        let server = Server::start();
        let (proxy, builder) = refused_late(&server);
        let sessions = builder.min_idle(1).build_side().unwrap();
        // One for each pool.
        eventually(SOON, "they were refused", || server.calls("auth") == 2);
        user(&server, "app", "secret");
        proxy.disarm();
        thread::scope(|scope| {
            let begun = scope.spawn(|| {
                let mut tx = sessions.transactional().begin()?;
                tx.incr("n", 1);
                tx.commit()
            });
            eventually(SOON, "it waits", || sessions.status().transactional.in_use == 1);
            proxy.release();
            begun.join().unwrap().unwrap();
        });
        assert_eq!(server.ask::<u64>(&["GET", "n"]), 1);
        assert_eq!(sessions.status().transactional.counts.connect_failures, 1);
    }
}

#[test]
fn a_refusal_of_an_attempt_for_one_call_ends_no_later_call() {
    let server = Server::start();
    let (proxy, builder) = refused_late(&server);
    // Each lane would have an attempt of its own.
    let sessions = builder.without_lanes().build_side().unwrap();
    let accounts = sessions.transactional();
    let incr = || accounts.run(|tx| Ok(tx.incr("n", 1)));
    thread::scope(|scope| {
        let first = scope.spawn(incr);
        eventually(SOON, "it was refused", || server.calls("auth") == 1);
        user(&server, "app", "secret");
        proxy.disarm();
        let second = scope.spawn(incr);
        eventually(SOON, "it waits", || sessions.status().transactional.waiting == 1);
        proxy.release();
        match first.join().unwrap() {
            Err(Error::Checkout(CheckoutError::Connect { source, .. })) => {
                assert_eq!(source.server_error().unwrap().code(), "WRONGPASS");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(second.join().unwrap().unwrap(), 1);
    });
}
