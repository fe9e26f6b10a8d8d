//! Promise: an asynchronous provider of credentials delays no call past its deadline, and leaves nothing behind.
//!
//! Guarantee: passwords, tasks

use std::error::Error as StdError;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rediscope::aio::{AsyncCredentialsProvider, SessionManager};
use rediscope::error::{CheckoutError, ConnectionErrorKind};
use rediscope::prelude::*;
use rediscope::{Credentials, CredentialsProvider, Error, TransactionOptions};
use rediscope_testing::server::Server;
use rediscope_testing::tasks::several;
use rediscope_testing::{eventually, try_for};
use tokio::runtime::{Builder, Handle};

use crate::fixture::{LONG, SOON};

/// What the provider does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Returns,
    Fails,
    Panics,
    IsSilent,
}

/// A vault with one password, whose calls are counted from their first poll to their end or drop.
struct Vault {
    mood: std::sync::Mutex<Mood>,
    password: std::sync::Mutex<String>,
    version: AtomicU64,
    calls: AtomicUsize,
    running: AtomicUsize,
}

struct Running<'v>(&'v Vault);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Vault {
    fn new(password: &str) -> Arc<Self> {
        Arc::new(Self {
            mood: std::sync::Mutex::new(Mood::Returns),
            password: std::sync::Mutex::new(password.to_owned()),
            version: AtomicU64::new(0),
            calls: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
        })
    }

    fn is(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    fn rotate(&self, password: &str) {
        *self.password.lock().unwrap() = password.to_owned();
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    fn running(&self) -> usize {
        self.running.load(Ordering::SeqCst)
    }
}

impl AsyncCredentialsProvider for Vault {
    async fn credentials(&self) -> Result<Credentials, Box<dyn StdError + Send + Sync>> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.running.fetch_add(1, Ordering::SeqCst);
        let _running = Running(self);
        tokio::time::sleep(Duration::from_millis(1)).await;
        let mood = *self.mood.lock().unwrap();
        match mood {
            Mood::Returns => Ok(Credentials::new("app", self.password.lock().unwrap().clone())),
            Mood::Fails => Err("the vault is shut".into()),
            Mood::Panics => panic!("a provider that panics"),
            Mood::IsSilent => pending().await,
        }
    }

    fn version(&self) -> u64 {
        self.version.load(Ordering::SeqCst)
    }
}

fn may_log_in(server: &Server, password: &str) {
    server.acl(&["SETUSER", "app", "on", &format!(">{password}"), "~*", "&*", "+@all"]);
}

fn with_short_timeouts(server: &Server, vault: &Arc<Vault>) -> SessionManager {
    SessionManager::builder(server.url())
        .async_credentials_provider(Arc::clone(vault))
        .max_size(1)
        .lanes(0)
        .trust_window(LONG)
        .connect_timeout(Duration::from_millis(200))
        .response_timeout(Duration::from_millis(400))
        .checkout_timeout(Duration::from_secs(2))
        .build_async()
        .unwrap()
}

fn connect_error(error: Error) -> (ConnectionErrorKind, String) {
    match error {
        Error::Checkout(CheckoutError::Connect { source, .. }) => {
            (source.kind(), source.to_string())
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_password_that_is_rotated_under_tasks_loses_nothing() {
    const ROTATIONS: usize = 10;
    let server = Server::start();
    may_log_in(&server, "password 0");
    let vault = Vault::new("password 0");
    let sessions = SessionManager::builder(server.url())
        .async_credentials_provider(Arc::clone(&vault))
        .max_size(4)
        .max_lifetime(Some(Duration::from_millis(40)))
        .build_async()
        .unwrap();
    let runtime = several();
    let over = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let (sessions, over) = (sessions.clone(), Arc::clone(&over));
            runtime.spawn(async move {
                let accounts = sessions.transactional();
                let once = accounts.with(TransactionOptions::new().exactly_once());
                let mut committed = 0;
                while over.load(Ordering::Relaxed) == 0 {
                    accounts.run(|tx| Ok(tx.incr("n", 1))).await.unwrap();
                    once.run(|tx| Ok(tx.incr("n", 1))).await.unwrap();
                    let mut tx = accounts.begin().await.unwrap();
                    tx.incr("n", 1);
                    tx.commit().await.unwrap();
                    committed += 3;
                }
                committed
            })
        })
        .collect();
    for nth in 1..=ROTATIONS {
        let (next, former) = (format!("password {nth}"), format!("<password {}", nth - 1));
        may_log_in(&server, &next);
        vault.rotate(&next);
        let before: i64 = server.ask::<Option<i64>>(&["GET", "n"]).unwrap_or(0);
        server.acl(&["SETUSER", "app", &former]);
        eventually(SOON, "all is well", || {
            server.ask::<Option<i64>>(&["GET", "n"]).unwrap_or(0) > before + 50
        });
    }
    over.store(1, Ordering::Relaxed);
    let committed: i64 = tasks.into_iter().map(|task| runtime.block_on(task).unwrap()).sum();
    assert_eq!(server.ask::<i64>(&["GET", "n"]), committed);
    assert!(sessions.status().transactional.counts.reauthentications > 0);
    runtime.block_on(sessions.close(SOON));
    assert_eq!(vault.running(), 0);
}

#[test]
fn a_silent_provider_ends_with_the_checkout_and_is_called_again() {
    let server = Server::start();
    may_log_in(&server, "secret");
    let vault = Vault::new("secret");
    vault.is(Mood::IsSilent);
    let sessions = with_short_timeouts(&server, &vault);
    let runtime = several();
    runtime.block_on(async {
        let accounts = sessions.transactional();
        let begun = Instant::now();
        let (kind, text) = connect_error(accounts.begin().await.unwrap_err());
        assert_eq!(kind, ConnectionErrorKind::Credentials, "{text}");
        assert!(text.contains("the provider has not returned"), "{text}");
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
        assert_eq!(server.calls("auth"), 0);
        vault.is(Mood::Returns);
        assert_eq!(accounts.run(|tx| Ok(tx.incr("n", 1))).await.unwrap(), 1);
    });
    eventually(SOON, "the silent call is dropped", || vault.running() == 0);
    // A connection that is there needs none.
    vault.is(Mood::IsSilent);
    vault.rotate("secret");
    let begun = Instant::now();
    let accounts = sessions.transactional();
    assert_eq!(runtime.block_on(accounts.run(|tx| Ok(tx.incr("n", 1)))).unwrap(), 2);
    assert!(begun.elapsed() < SOON);
    assert_eq!((vault.running(), sessions.status().transactional.counts.connects), (0, 1));
}

#[test]
fn the_error_or_panic_of_an_asynchronous_provider_is_returned_and_costs_no_place() {
    let server = Server::start();
    may_log_in(&server, "secret");
    let vault = Vault::new("secret");
    let sessions = with_short_timeouts(&server, &vault);
    let runtime = several();
    runtime.block_on(async {
        let accounts = sessions.transactional();
        vault.is(Mood::Fails);
        let (kind, text) = connect_error(accounts.begin().await.unwrap_err());
        assert_eq!(kind, ConnectionErrorKind::Credentials);
        assert!(text.contains("the vault is shut") && !text.contains("secret"), "{text}");
        vault.is(Mood::Panics);
        let (kind, text) = connect_error(accounts.begin().await.unwrap_err());
        assert_eq!(kind, ConnectionErrorKind::Panicked, "{text}");
        vault.is(Mood::Returns);
        assert_eq!(accounts.run(|tx| Ok(tx.incr("n", 1))).await.unwrap(), 1);
        // At a re-authentication the connection keeps its identity.
        for mood in [Mood::Fails, Mood::Panics] {
            vault.is(mood);
            vault.rotate("secret");
            accounts.run(|tx| Ok(tx.incr("n", 1))).await.unwrap();
        }
        vault.is(Mood::Returns);
    });
    eventually(SOON, "it authenticates again", || {
        let accounts = sessions.transactional();
        runtime.block_on(accounts.run(|tx| Ok(tx.incr("n", 1)))).unwrap();
        sessions.status().transactional.counts.reauthentications == 1
    });
    let status = sessions.status().transactional;
    assert_eq!((status.counts.connects, status.in_use), (1, 0), "{status}");
}

#[test]
fn a_caller_that_is_dropped_drops_the_providers_future_and_leaves_a_usable_connection() {
    let server = Server::start();
    may_log_in(&server, "secret");
    let vault = Vault::new("secret");
    let sessions = with_short_timeouts(&server, &vault);
    several().block_on(async {
        let accounts = sessions.transactional();
        accounts.run(|tx| Ok(tx.incr("n", 1))).await.unwrap();
        vault.is(Mood::IsSilent);
        vault.rotate("secret");
        let caller = tokio::spawn({
            let accounts = accounts.clone();
            async move { accounts.run(|tx| Ok(tx.incr("n", 1))).await }
        });
        while vault.running() == 0 {
            tokio::task::yield_now().await;
        }
        caller.abort();
        assert!(caller.await.unwrap_err().is_cancelled());
        assert_eq!(vault.running(), 0);
        vault.is(Mood::Returns);
        assert_eq!(accounts.run(|tx| Ok(tx.incr("n", 1))).await.unwrap(), 2);
        let status = sessions.status().transactional;
        assert_eq!((status.counts.connects, status.in_use), (1, 0), "{status}");
    });
}

#[test]
fn a_closed_manager_and_a_runtime_that_ends_leave_no_call_of_the_provider() {
    let server = Server::start();
    may_log_in(&server, "secret");
    for closes in [true, false] {
        let vault = Vault::new("secret");
        vault.is(Mood::IsSilent);
        let sessions = with_short_timeouts(&server, &vault);
        let runtime = several();
        runtime.block_on(async {
            let accounts = sessions.transactional();
            let caller = tokio::spawn(async move { accounts.begin().await.map(drop) });
            while vault.running() == 0 {
                tokio::task::yield_now().await;
            }
            if closes {
                sessions.close(Duration::ZERO).await;
                caller.await.unwrap().unwrap_err();
                let ended = try_for(SOON, || {
                    (Handle::current().metrics().num_alive_tasks() == 0).then_some(())
                });
                ended.expect("no task is alive");
            }
        });
        drop(runtime);
        assert_eq!(vault.running(), 0, "closed: {closes}");
    }
}

#[test]
fn an_asynchronous_provider_is_refused_for_threads_and_never_shown() {
    let vault = Vault::new("hushed");
    let builder = rediscope::SessionManager::builder("redis://127.0.0.1/")
        .async_credentials_provider(Arc::clone(&vault));
    assert!(!format!("{builder:?}").contains("hushed"));
    let refused = builder.clone().build().map(drop).unwrap_err();
    assert_eq!(refused.setting_name(), Some("async_credentials_provider"));
    assert!(builder.build_async().is_ok());
    // Each of the two settings replaces the other.
    let first = rediscope::RotatingCredentials::new(Credentials::password("hushed"));
    let builder = rediscope::SessionManager::builder("redis://127.0.0.1/")
        .async_credentials_provider(vault)
        .credentials_provider(first);
    assert!(builder.build().is_ok());
}

/// A provider of threads whose `version` waits while it is shut.
#[derive(Default)]
struct BlockingVersion {
    is_shut: std::sync::Mutex<bool>,
    panics: AtomicBool,
    panicked: AtomicUsize,
    opened: std::sync::Condvar,
    version: AtomicU64,
    calls: AtomicUsize,
    running: AtomicUsize,
    most: AtomicUsize,
}

impl BlockingVersion {
    fn shut(&self) {
        *self.is_shut.lock().unwrap() = true;
    }

    fn open(&self) {
        *self.is_shut.lock().unwrap() = false;
        self.opened.notify_all();
    }
}

impl CredentialsProvider for BlockingVersion {
    fn credentials(&self) -> Result<Credentials, Box<dyn StdError + Send + Sync>> {
        Ok(Credentials::new("app", "secret"))
    }

    fn version(&self) -> u64 {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if self.panics.load(Ordering::SeqCst) {
            self.panicked.fetch_add(1, Ordering::SeqCst);
            panic!("a version that panics");
        }
        let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(running, Ordering::SeqCst);
        let provider = self.opened.wait_while(self.is_shut.lock().unwrap(), |shut| *shut);
        drop(provider.unwrap());
        self.running.fetch_sub(1, Ordering::SeqCst);
        self.version.load(Ordering::SeqCst)
    }
}

/// A provider that is open again at the end of the test, and a session manager with it.
fn with_blocking_version(
    server: &Server,
) -> (impl std::ops::Deref<Target = Arc<BlockingVersion>>, SessionManager) {
    may_log_in(server, "secret");
    let provider =
        scopeguard::guard(Arc::new(BlockingVersion::default()), |provider| provider.open());
    let sessions = SessionManager::builder(server.url())
        .credentials_provider(Arc::clone(&provider))
        .max_size(1)
        .lanes(1)
        .trust_window(LONG)
        .connect_timeout(Duration::from_millis(200))
        .response_timeout(Duration::from_millis(400))
        .checkout_timeout(SOON)
        .build_async()
        .unwrap();
    (provider, sessions)
}

#[test]
fn a_version_that_blocks_stops_no_task_and_no_call() {
    const CALLS: i64 = 12;
    let server = Server::start();
    // Dropped after the provider is open.
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (provider, sessions) = with_blocking_version(&server);
    let call = |nth: i64| {
        let sessions = sessions.clone();
        runtime.spawn(async move {
            let accounts = sessions.transactional();
            match nth % 3 {
                0 => accounts.run(|tx| Ok(tx.incr("n", 1))).await.map(drop),
                1 => {
                    let mut tx = accounts.begin().await?;
                    tx.incr("n", 1);
                    tx.commit().await.map(drop)
                }
                _ => sessions.ready(SOON).await,
            }
        })
    };
    for nth in 0..3 {
        runtime.block_on(call(nth)).unwrap().unwrap();
    }
    let authenticated = server.calls("auth");
    provider.shut();
    let calls: Vec<_> = (0..CALLS).map(&call).collect();
    eventually(SOON, "the provider is asked", || provider.running.load(Ordering::SeqCst) > 0);
    let other = runtime.spawn(async {});
    eventually(SOON, "another task runs", || other.is_finished());
    eventually(SOON, "all calls are over", || calls.iter().all(|call| call.is_finished()));
    for call in calls {
        runtime.block_on(call).unwrap().unwrap();
    }
    assert_eq!(server.ask::<i64>(&["GET", "n"]), 2 + CALLS * 2 / 3);
    // They kept their identity, and the provider had no more threads than three.
    assert_eq!(server.calls("auth"), authenticated);
    assert!(provider.most.load(Ordering::SeqCst) <= 3);
    provider.version.fetch_add(1, Ordering::SeqCst);
    provider.open();
    eventually(SOON, "the connections authenticate again", || {
        for nth in 0..3 {
            runtime.block_on(call(nth)).unwrap().unwrap();
        }
        sessions.status().transactional.counts.reauthentications >= 2
    });
}

#[test]
fn a_version_that_blocks_stops_no_task_while_a_lock_is_waited_for() {
    let server = Server::start();
    // Dropped after the provider is open.
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (provider, sessions) = with_blocking_version(&server);
    let lock = sessions.lock("l").lease(Duration::from_secs(2));
    let guard = runtime.block_on(lock.acquire(SOON)).unwrap();
    let waiter = runtime.spawn(async move { lock.acquire(LONG).await?.release().await });
    let locks = || sessions.status().locks;
    eventually(SOON, "it waits and listens", || locks().subscriptions == 1);
    eventually(SOON, "the connection for renewals is open", || locks().renewals > 0);
    provider.shut();
    server.ask::<i64>(&["PUBLISH", "rediscope:lock:{l}:wake", ""]);
    eventually(SOON, "the provider is asked", || provider.running.load(Ordering::SeqCst) > 0);
    let other = runtime.spawn(async {});
    eventually(SOON, "another task runs", || other.is_finished());
    let renewals = locks().renewals;
    eventually(SOON, "the lease is extended", || {
        assert!(!guard.is_lost());
        locks().renewals >= renewals + 3
    });
    runtime.block_on(guard.release()).unwrap();
    eventually(SOON, "the waiter has had the lock", || waiter.is_finished());
    runtime.block_on(waiter).unwrap().unwrap();
}

#[test]
fn a_version_that_panics_ends_no_subscription_of_a_waiter() {
    let server = Server::start();
    let runtime = several();
    let (provider, sessions) = with_blocking_version(&server);
    let others = SessionManager::builder(server.url()).build_async().unwrap();
    let guard = runtime.block_on(others.lock("l").lease(LONG).acquire(SOON)).unwrap();
    let lock = sessions.lock("l").lease(LONG);
    let waiter = runtime.spawn(async move { lock.acquire(LONG).await?.release().await });
    eventually(SOON, "it waits and listens", || sessions.status().locks.subscriptions == 1);
    let listener = || {
        let mut clients = server.client_list().into_iter();
        clients.find(|client| client["flags"].contains('P')).map(|client| client["id"].clone())
    };
    let (listens, subscribed) = (listener().unwrap(), server.calls("subscribe"));
    provider.panics.store(true, Ordering::SeqCst);
    eventually(SOON, "the provider has panicked", || provider.panicked.load(Ordering::SeqCst) > 0);
    provider.panics.store(false, Ordering::SeqCst);
    // By the listener, or by those that follow on its end.
    let calls = provider.calls.load(Ordering::SeqCst);
    eventually(SOON, "it is called again", || provider.calls.load(Ordering::SeqCst) > calls);
    assert_eq!(listener(), Some(listens), "it listens on the same connection");
    assert_eq!(server.calls("subscribe"), subscribed);
    runtime.block_on(guard.release()).unwrap();
    eventually(SOON, "the waiter has had the lock", || waiter.is_finished());
    runtime.block_on(waiter).unwrap().unwrap();
}

#[test]
fn a_waiter_listens_with_new_credentials_soon_after_they_have_changed() {
    let server = Server::start();
    let runtime = several();
    let (provider, sessions) = with_blocking_version(&server);
    let lock = sessions.lock("l").lease(LONG);
    let guard = runtime.block_on(lock.acquire(SOON)).unwrap();
    let waiter = runtime.spawn(async move { lock.acquire(LONG).await?.release().await });
    eventually(SOON, "it waits and listens", || sessions.status().locks.subscriptions == 1);
    let subscribed = server.calls("subscribe");
    provider.version.fetch_add(1, Ordering::SeqCst);
    eventually(SOON, "it listens anew", || server.calls("subscribe") > subscribed);
    runtime.block_on(guard.release()).unwrap();
    runtime.block_on(waiter).unwrap().unwrap();
}

#[test]
fn a_runtime_ends_at_once_while_a_version_blocks() {
    let server = Server::start();
    let (provider, sessions) = with_blocking_version(&server);
    let runtime = several();
    let accounts = sessions.transactional();
    runtime.block_on(async {
        accounts.begin().await.unwrap().discard().await.unwrap();
        accounts.run(|tx| Ok(tx.incr("n", 1))).await.unwrap();
    });
    provider.shut();
    for nth in 0..4 {
        let accounts = accounts.clone();
        runtime.spawn(async move {
            match nth % 2 {
                0 => accounts.run(|tx| Ok(tx.incr("n", 1))).await.map(drop),
                _ => accounts.begin().await.map(drop),
            }
        });
    }
    eventually(SOON, "the provider is asked", || provider.running.load(Ordering::SeqCst) > 0);
    let ended = std::thread::spawn(move || drop(runtime));
    eventually(SOON, "the runtime has ended", || ended.is_finished());
    assert!(provider.running.load(Ordering::SeqCst) > 0);
    // Another runtime uses the session manager.
    provider.open();
    let applied = several().block_on(accounts.run(|tx| Ok(tx.incr("after", 1))));
    assert_eq!(applied.unwrap(), 1);
}
