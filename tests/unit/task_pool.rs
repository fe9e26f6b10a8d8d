//! A pool of tasks against a real server: permits and connections under dropped, forgotten and revoked
//! futures.
//!
//! Guarantee: tasks

use std::io::Write;
use std::panic::Location;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rediscope_testing::tasks::{poll_at_most, poll_once, several, single};
use tokio::runtime::Runtime;

use crate::connection::endpoint::Endpoint;
use crate::connection::url::one as parse;
use crate::error::any::Error;
use crate::error::checkout::CheckoutError;
use crate::pool::line::Line;
use crate::pool::scope_origin::ScopeOrigin;
use crate::pool::server_pool::{PinnedLine, ServerPool};
use crate::pool::tasks::line::{TaskLine, TaskPin};
use crate::pool::tasks::pool::TaskPool;
use crate::pool::tests::{SOON, Server, config_of_one, eventually};
use crate::protocol::connection_state::Expect;
use crate::protocol::resp::encode::MULTI;
use crate::settings::credentials::{Credentials, Provider, RotatingCredentials};
use crate::settings::settings::Settings;
use crate::sync::lock;

const WATCH: &[u8] = b"*2\r\n$5\r\nWATCH\r\n$1\r\nk\r\n";
const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";
const BLPOP: &[u8] = b"*3\r\n$5\r\nBLPOP\r\n$1\r\na\r\n$1\r\n0\r\n";

fn pool(server: &Server, change: impl FnOnce(&mut Settings)) -> TaskPool {
    let (mut config, _) = config_of_one(server, SOON);
    let mut settings = Settings { lanes: 0, ..(*config.settings).clone() };
    change(&mut settings);
    let endpoint = Endpoint::new(parse(server.url()).unwrap(), &settings).unwrap();
    config.settings = Arc::new(settings);
    TaskPool::new(config, endpoint)
}

fn origin() -> ScopeOrigin {
    ScopeOrigin { name: None, place: Location::caller(), is_closure: false }
}

async fn checkout(pool: &TaskPool) -> TaskLine {
    pool.checkout(Instant::now() + SOON).await.unwrap()
}

async fn pinned(pool: &TaskPool) -> TaskPin {
    pool.pin(origin(), Instant::now() + SOON, false, Arc::new(())).await.unwrap()
}

/// Sends a command whose reply is not an error.
async fn send(line: &mut TaskLine, bytes: &[u8], expect: Expect) {
    let deadline = line.response_deadline();
    let connection = line.current().unwrap();
    let sent = connection.exchange(bytes, &[(expect, 1)], deadline, &mut |_, _| {}).await;
    assert!(sent.is_ok());
}

async fn ping(line: &mut TaskLine) {
    send(line, PING, Expect::Plain).await;
}

/// The server has no client in MULTI or under WATCH, and the pool has all its permits.
#[track_caller]
fn is_clean(server: &Server, pool: &TaskPool, clients: usize) {
    eventually(SOON, "the permits are back", || pool.in_use() == 0);
    eventually(SOON, "the connections are clean and idle", || {
        let flags = server.clients();
        let [size, idle] = pool.idle.sizes();
        flags.iter().all(|flags| flags == "U")
            && flags.len() == clients
            && (size, idle) == (clients as u32, clients as u32)
    });
}

#[test]
fn a_connection_is_reused_and_its_task_ends_with_the_pool() {
    let (server, runtime) = (Server::start(), single());
    runtime.block_on(async {
        let pool = pool(&server, |settings| settings.max_size = 3);
        for _ in 0..5 {
            let mut line = checkout(&pool).await;
            ping(&mut line).await;
        }
        is_clean(&server, &pool, 1);
        let lines = (checkout(&pool).await, checkout(&pool).await, checkout(&pool).await);
        assert_eq!(pool.idle.sizes(), [3, 0]);
        drop(lines);
        is_clean(&server, &pool, 3);
    });
    runtime.block_on(async {
        let alive = || runtime.metrics().num_alive_tasks();
        let begun = Instant::now();
        while alive() > 0 {
            assert!(begun.elapsed() < SOON, "{} tasks", alive());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    eventually(SOON, "no connection", || server.clients().is_empty());
}

#[test]
fn a_dropped_scope_in_multi_or_under_watch_is_cleaned_by_its_connections_task() {
    let (server, runtime) = (Server::start(), several());
    let pool = pool(&server, |settings| settings.max_size = 1);
    for (bytes, expect) in [(MULTI, Expect::Multi), (WATCH, Expect::Watch)] {
        let pin = runtime.block_on(async {
            let pin = pinned(&pool).await;
            let mut call = pin.call::<Error>().unwrap();
            send(&mut call, bytes, expect).await;
            drop(call);
            pin
        });
        assert_eq!(pool.scopes.list().len(), 1);
        // Outside of the runtime.
        drop(pin);
        is_clean(&server, &pool, 1);
    }
    assert_eq!(pool.config.counters.counts().all_replaced(), 0);
    assert_eq!(pool.config.counters.counts().connects, 1);
}

/// A scope with two calls, whose transaction is not ended.
async fn scope(pool: &TaskPool) {
    let pin = pinned(pool).await;
    let mut call = pin.call::<Error>().unwrap();
    send(&mut call, WATCH, Expect::Watch).await;
    ping(&mut call).await;
    drop(call);
    let mut call = pin.last_call::<Error>().unwrap();
    send(&mut call, MULTI, Expect::Multi).await;
    tokio::task::yield_now().await;
}

#[test]
fn a_future_dropped_after_any_poll_loses_no_permit_and_no_connection() {
    for runtime in [single(), several()] {
        let server = Server::start();
        let pool = pool(&server, |settings| settings.max_size = 2);
        let ended = runtime.block_on(async {
            let mut ended = 0;
            for most in 0..24 {
                // The second one waits for a permit, or for the first one's connection.
                let first = pinned(&pool).await;
                let second = checkout(&pool).await;
                let waiting = poll_at_most(most, scope(&pool));
                drop(second);
                let done = waiting.await;
                ended += usize::from(done.is_some());
                drop(first);
                let done = poll_at_most(most, async {
                    ping(&mut checkout(&pool).await).await;
                    scope(&pool).await;
                });
                ended += usize::from(done.await.is_some());
                let begun = Instant::now();
                while pool.in_use() > 0 {
                    assert!(begun.elapsed() < SOON, "a permit is lost after {most} polls");
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                let (one, other) = (checkout(&pool).await, checkout(&pool).await);
                assert_eq!(pool.idle.sizes(), [2, 0], "after {most} polls");
                drop((one, other));
            }
            ended
        });
        assert!((8..48).contains(&ended), "{ended} futures ended");
        is_clean(&server, &pool, 2);
        assert_eq!(pool.config.counters.counts().all_replaced(), 0);
    }
}

#[test]
fn a_forgotten_scope_and_a_forgotten_call_are_reclaimed() {
    let (server, runtime) = (Server::start(), several());
    let limit = Duration::from_millis(100);
    let pool = pool(&server, |settings| (settings.max_size, settings.max_pin_time) = (1, limit));
    let reclaimed = || {
        eventually(SOON, "the permit is back", || pool.in_use() == 0);
        eventually(SOON, "the connection is closed", || server.clients().is_empty());
        assert!(pool.scopes.list().is_empty());
    };
    std::mem::forget(runtime.block_on(pinned(&pool)));
    assert_eq!(pool.scopes.list().len(), 1);
    reclaimed();
    // A call whose reply has come, and which is polled no more.
    let pin = runtime.block_on(pinned(&pool));
    let call = pin.call::<Error>().unwrap();
    assert_eq!(pool.scopes.list().len(), 1);
    reclaimed();
    drop(call);
    assert!(matches!(pin.call::<Error>().err(), Some(Error::PinExpired(_))));
    // The same without a scope, in the middle of an exchange.
    let _in = runtime.enter();
    let mut forgotten = Box::pin(async {
        let mut line = checkout(&pool).await;
        send(&mut line, MULTI, Expect::Multi).await;
        std::future::pending::<()>().await;
    });
    eventually(SOON, "a client is in MULTI", || {
        assert!(poll_once(forgotten.as_mut()).is_pending());
        server.clients().iter().any(|flags| flags.contains('x'))
    });
    reclaimed();
    drop(forgotten);
    drop(pin);
    let mut line = runtime.block_on(checkout(&pool));
    runtime.block_on(ping(&mut line));
    drop(line);
    is_clean(&server, &pool, 1);
}

#[test]
fn a_caller_that_is_forgotten_while_it_waits_keeps_no_permit() {
    let (server, runtime) = (Server::start(), several());
    let limit = Duration::from_millis(60);
    let pool = pool(&server, |settings| (settings.max_size, settings.max_pin_time) = (1, limit));
    let held = runtime.block_on(checkout(&pool));
    let _in = runtime.enter();
    let mut forgotten = Box::pin(checkout(&pool));
    assert!(poll_once(forgotten.as_mut()).is_pending());
    assert_eq!(pool.permits.waiting(), 1);
    // The permit is passed on to the forgotten one.
    drop(held);
    assert_eq!((pool.permits.waiting(), pool.in_use()), (0, 1));
    let mut line = runtime.block_on(checkout(&pool));
    runtime.block_on(ping(&mut line));
    std::mem::forget(forgotten);
    drop(line);
    is_clean(&server, &pool, 1);
}

#[test]
fn a_revoked_line_that_goes_on_gets_an_error_and_no_connection() {
    let (server, runtime) = (Server::start(), several());
    let limit = Duration::from_millis(60);
    let pool = pool(&server, |settings| (settings.max_size, settings.max_pin_time) = (1, limit));
    let mut line = runtime.block_on(checkout(&pool));
    eventually(SOON, "the permit is back", || pool.in_use() == 0);
    let next = runtime.block_on(checkout(&pool));
    assert!(!line.has_connection());
    let connected = runtime.block_on(line.connect(Instant::now() + SOON));
    let Err(CheckoutError::Connect { source, .. }) = connected else { panic!("{connected:?}") };
    assert!(source.to_string().contains("max_pin_time"), "{source}");
    drop(line);
    assert_eq!(pool.in_use(), 1);
    drop(next);
    is_clean(&server, &pool, 1);
}

#[test]
fn a_call_that_awaits_its_reply_is_not_revoked_and_its_reply_arrives() {
    let (server, runtime) = (Server::start(), several());
    let pool = pool(&server, |settings| {
        settings.max_pin_time = Duration::from_millis(20);
        (settings.max_size, settings.response_timeout) = (1, SOON);
    });
    let pin = runtime.block_on(pinned(&pool));
    let mut call = pin.call::<Error>().unwrap();
    let waiting = runtime.spawn(async move { send(&mut call, BLPOP, Expect::Plain).await });
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(pool.in_use(), 1);
    let pushed: redis::RedisResult<i64> =
        redis::cmd("RPUSH").arg("a").arg("b").query(&mut server.connect().unwrap());
    pushed.unwrap();
    runtime.block_on(waiting).unwrap();
    // The scope was marked, and has ended with the call.
    eventually(SOON, "the permit is back", || pool.in_use() == 0);
    assert!(matches!(pin.call::<Error>().err(), Some(Error::PinExpired(_))));
}

#[test]
fn a_guard_of_a_runtime_that_has_ended_gives_its_permit_back() {
    let server = Server::start();
    let pool = pool(&server, |settings| settings.max_size = 1);
    for _ in 0..3 {
        let runtime = single();
        let pin = runtime.block_on(async {
            let pin = pinned(&pool).await;
            send(&mut pin.call::<Error>().unwrap(), MULTI, Expect::Multi).await;
            pin
        });
        drop(runtime);
        eventually(SOON, "the connection is closed", || server.clients().is_empty());
        drop(pin);
        assert_eq!(pool.in_use(), 0);
        assert_eq!(pool.idle.sizes(), [0, 0]);
    }
}

#[test]
fn a_guard_in_multi_of_a_runtime_that_is_not_run_is_taken_back() {
    let (server, stopped, runtime) = (Server::start(), single(), single());
    let pool = pool(&server, |settings| {
        settings.max_size = 1;
        settings.cleanup_timeout = Duration::from_millis(10);
        settings.pin_warning = Some(Duration::from_millis(20));
    });
    let pin = stopped.block_on(async {
        let pin = pinned(&pool).await;
        send(&mut pin.call::<Error>().unwrap(), MULTI, Expect::Multi).await;
        pin
    });
    drop(pin);
    runtime.block_on(async { ping(&mut checkout(&pool).await).await });
    is_clean(&server, &pool, 1);
    drop(stopped);
    is_clean(&server, &pool, 1);
}

#[test]
fn a_runtime_uses_its_own_connections_and_closes_anothers_if_it_needs_the_place() {
    let (server, one, other) = (Server::start(), single(), single());
    let pool = pool(&server, |settings| settings.max_size = 2);
    let used = || pool.config.counters.counts().connects;
    one.block_on(async { ping(&mut checkout(&pool).await).await });
    other.block_on(async { ping(&mut checkout(&pool).await).await });
    assert_eq!(used(), 2);
    for runtime in [&one, &other, &one, &other] {
        runtime.block_on(async { ping(&mut checkout(&pool).await).await });
    }
    assert_eq!(used(), 2);
    other.block_on(async {
        let mut lines = (checkout(&pool).await, checkout(&pool).await);
        ping(&mut lines.0).await;
        ping(&mut lines.1).await;
    });
    is_clean(&server, &pool, 2);
    assert_eq!(used(), 3);
    drop(other);
    one.block_on(async { ping(&mut checkout(&pool).await).await });
    is_clean(&server, &pool, 1);
    // The other one's tasks may use a connection of this one.
    let mut line = one.block_on(checkout(&pool));
    let running = several();
    let pinging = running.spawn(async move {
        ping(&mut line).await;
    });
    one.block_on(pinging).unwrap();
    is_clean(&server, &pool, 1);
}

#[test]
fn a_panic_that_drops_a_guard_closes_its_connection() {
    let (server, runtime) = (Server::start(), several());
    let pool = pool(&server, |settings| settings.max_size = 1);
    let begun = pool.clone();
    let ended = runtime.block_on(runtime.spawn(async move {
        let pin = pinned(&begun).await;
        send(&mut pin.call::<Error>().unwrap(), MULTI, Expect::Multi).await;
        std::panic::resume_unwind(Box::new("of the caller"))
    }));
    let ended: Result<(), _> = ended;
    assert!(ended.unwrap_err().is_panic());
    eventually(SOON, "no client is in MULTI", || server.clients().is_empty());
    assert_eq!(pool.in_use(), 0);
    let counts = pool.config.counters.counts();
    assert_eq!(counts.replaced, [(crate::protocol::connection_state::CloseReason::LeftDirty, 1)]);
}

#[test]
fn a_timeout_names_the_tasks_that_hold_the_connections() {
    let (server, runtime) = (Server::start(), several());
    let pool = pool(&server, |settings| settings.max_size = 1);
    let begun = pool.clone();
    let (pin, task) = runtime.block_on(async move {
        tokio::spawn(async move { (pinned(&begun).await, tokio::task::id()) }).await.unwrap()
    });
    let refused = runtime
        .block_on(async { pool.checkout(Instant::now() + Duration::from_millis(30)).await.err() });
    let Some(CheckoutError::Timeout(timeout)) = refused else { panic!("{refused:?}") };
    assert_eq!((timeout.in_use, timeout.waiters, timeout.holders.len()), (1, 1, 1));
    assert_eq!(*timeout.holders[0].thread, format!("task {task}"));
    assert!(timeout.to_string().contains(&format!("in task {task} for")), "{timeout}");
    assert_eq!(pool.permits.waiting(), 0);
    drop(pin);
    is_clean(&server, &pool, 1);
}

#[test]
fn closing_ends_all_tasks_and_fails_running_calls() {
    let (server, runtime) = (Server::start(), several());
    let pool = pool(&server, |settings| settings.max_size = 3);
    runtime.block_on(async {
        let idle = pinned(&pool).await;
        let held = pinned(&pool).await;
        let called = pinned(&pool).await;
        drop(idle);
        let mut call = called.call::<Error>().unwrap();
        let blocked = tokio::spawn(async move {
            let deadline = crate::connection::deadline::Deadline::after(SOON);
            let connection = call.current().unwrap();
            connection
                .exchange(BLPOP, &[(Expect::Plain, 1)], deadline, &mut |_, _| {})
                .await
                .is_err()
        });
        while !server.clients().iter().any(|flags| flags.contains('b')) {
            tokio::task::yield_now().await;
        }
        pool.close();
        let refused = pool.checkout(Instant::now() + SOON).await.err();
        assert!(matches!(refused, Some(CheckoutError::Closed)), "{refused:?}");
        assert_eq!(pool.drain(Instant::now() + Duration::from_millis(20)).await, 2);
        assert!(blocked.await.unwrap());
        assert!(matches!(held.call::<Error>().err(), Some(Error::PinExpired(_))));
    });
    eventually(SOON, "no task", || runtime.metrics().num_alive_tasks() == 0);
    eventually(SOON, "no client", || server.clients().is_empty());
}

#[test]
fn the_last_handle_closes_the_connections_also_with_a_guard_alive() {
    let (server, runtime) = (Server::start(), several());
    let pool = pool(&server, |settings| settings.max_size = 2);
    let pin = runtime.block_on(async {
        let pins = (pinned(&pool).await, pinned(&pool).await);
        send(&mut pins.1.call::<Error>().unwrap(), MULTI, Expect::Multi).await;
        pins.1
    });
    drop(pool);
    // The scope keeps the pool.
    assert!(pin.call::<Error>().is_ok());
    drop(pin);
    eventually(SOON, "no task", || runtime.metrics().num_alive_tasks() == 0);
    eventually(SOON, "no client", || server.clients().is_empty());
}

#[test]
fn idle_connections_are_opened_kept_and_closed_by_the_settings() {
    let (server, runtime) = (Server::start(), several());
    let _in = runtime.enter();
    let kept = pool(&server, |settings| {
        (settings.max_size, settings.min_idle) = (4, 2);
        settings.idle_timeout = Some(Duration::from_millis(100));
    });
    eventually(SOON, "two idle connections", || kept.idle.sizes() == [2, 2]);
    let opened = kept.config.counters.counts().connects;
    eventually(SOON, "others after idle_timeout", || {
        kept.idle.sizes() == [2, 2] && kept.config.counters.counts().connects >= opened + 2
    });
    drop(kept);
    eventually(SOON, "no client", || server.clients().is_empty());
    let young = pool(&server, |settings| settings.max_lifetime = Some(Duration::from_millis(50)));
    for connects in 1..3 {
        runtime.block_on(async { ping(&mut checkout(&young).await).await });
        assert_eq!(young.config.counters.counts().connects, connects);
        std::thread::sleep(Duration::from_millis(60));
    }
}

/// Many tasks, a part of which is dropped at random polls.
#[test]
fn two_hundred_tasks_with_random_drops_never_have_more_connections_than_allowed() {
    let (server, runtime) = (Server::start(), several());
    let pool = pool(&server, |settings| settings.max_size = 5);
    let server = Arc::new(server);
    let most = runtime.block_on(async {
        let tasks: Vec<_> = (0..200)
            .map(|_| {
                let pool = pool.clone();
                tokio::spawn(async move {
                    for _ in 0..20 {
                        let most = fastrand::usize(1..12);
                        match fastrand::u8(0..4) {
                            0 => drop(poll_at_most(most, scope(&pool)).await),
                            1 => drop(
                                poll_at_most(most, async {
                                    ping(&mut checkout(&pool).await).await
                                })
                                .await,
                            ),
                            2 => scope(&pool).await,
                            _ => ping(&mut checkout(&pool).await).await,
                        }
                    }
                })
            })
            .collect();
        let watched = tokio::task::spawn_blocking({
            let (server, pool) = (Arc::clone(&server), pool.clone());
            move || {
                // One connection: a former one may still be listed.
                let (mut connection, mut most) = (server.connect().unwrap(), 0);
                while pool.config.counters.counts().checkouts < 1_500 {
                    let list = redis::cmd("CLIENT").arg("LIST").query::<String>(&mut connection);
                    most = most.max(list.unwrap().lines().count() - 1);
                }
                most
            }
        });
        for task in tasks {
            task.await.unwrap();
        }
        watched.await.unwrap()
    });
    assert!(most <= 5, "{most} connections");
    is_clean(&server, &pool, pool.idle.sizes()[0] as usize);
    assert_eq!(pool.config.counters.counts().all_replaced(), 0);
    assert!(runtime.metrics().num_alive_tasks() <= 5);
}

#[test]
fn a_connection_authenticates_again_with_new_credentials_also_if_a_caller_is_dropped() {
    let server = Server::start();
    let acl = |words: &[&str]| {
        let done: redis::RedisResult<()> =
            redis::cmd("ACL").arg(words).query(&mut server.connect().unwrap());
        done.unwrap();
    };
    acl(&["SETUSER", "app", "on", ">first", "~*", "+@all"]);
    let credentials = Arc::new(RotatingCredentials::new(Credentials::new("app", "first")));
    let provider = Provider::new(Arc::clone(&credentials));
    let runtime = several();
    let pool = pool(&server, |settings| {
        (settings.max_size, settings.credentials) = (1, Some(provider));
    });
    runtime.block_on(async { ping(&mut checkout(&pool).await).await });
    acl(&["SETUSER", "app", ">second"]);
    let counts = || pool.config.counters.counts();
    for most in 1..6 {
        credentials.rotate(Credentials::new("app", "second"));
        runtime.block_on(poll_at_most(most, async { ping(&mut checkout(&pool).await).await }));
        is_clean(&server, &pool, 1);
        runtime.block_on(async { ping(&mut checkout(&pool).await).await });
    }
    assert!(counts().reauthentications >= 5, "{counts:?}", counts = counts());
    assert_eq!((counts().connects, counts().all_replaced()), (1, 0));
    credentials.rotate(Credentials::new("app", "wrong"));
    runtime.block_on(async { ping(&mut checkout(&pool).await).await });
    assert_eq!((counts().connects, counts().all_replaced()), (1, 0));
}

#[test]
fn a_refusal_of_the_server_ends_the_wait_for_a_connection_at_once() {
    let server = Server::start_with(&["--port", "0", "--requirepass", "secret"]);
    let runtime = several();
    let pool = pool(&server, |_| {});
    let begun = Instant::now();
    let refused = runtime.block_on(pool.checkout(begun + SOON)).err();
    let Some(CheckoutError::Connect { source, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(source.server_error().map(|error| error.code()), Some("NOAUTH"));
    assert!(begun.elapsed() < SOON / 2);
    assert_eq!((pool.in_use(), pool.idle.sizes()), (0, [0, 0]));
}

#[test]
fn a_call_waits_for_a_server_that_comes_up_within_its_time() {
    let (mut server, runtime) = (Server::start(), several());
    let pool = pool(&server, |settings| settings.max_size = 2);
    server.stop();
    let waiting = {
        let pool = pool.clone();
        runtime.spawn(async move { ping(&mut checkout(&pool).await).await })
    };
    eventually(SOON, "connects fail", || pool.config.counters.counts().connect_failures > 2);
    let late = pool.checkout(Instant::now() + Duration::from_millis(20));
    let late = runtime.block_on(late).err();
    assert!(matches!(late, Some(CheckoutError::Connect { .. })), "{late:?}");
    server.start_again();
    runtime.block_on(waiting).unwrap();
    is_clean(&server, &pool, 1);
}

#[test]
fn a_wait_of_every_holder_is_logged() {
    let server = Server::start();
    let written = Arc::new(Mutex::new(Vec::new()));
    let writer = {
        let written = Arc::clone(&written);
        move || Written(Arc::clone(&written))
    };
    let subscriber = tracing_subscriber::fmt().with_writer(writer).with_ansi(false).finish();
    let _default = tracing::subscriber::set_default(subscriber);
    let runtime = single();
    let pool = pool(&server, |settings| settings.max_size = 1);
    let waited = runtime.block_on(async {
        let waits = async {
            let _pin = pinned(&pool).await;
            pool.checkout(Instant::now() + Duration::from_millis(10)).await.err()
        };
        waits.await
    });
    assert!(matches!(waited, Some(CheckoutError::Timeout(_))), "{waited:?}");
    let text = String::from_utf8(lock(&written).clone()).unwrap();
    let warning = "every task that began a scope waits for a connection";
    assert_eq!(text.matches(warning).count(), 1, "{text}");
    assert!(text.contains("task_pool.rs"), "{text}");
}

/// A log in memory.
struct Written(Arc<Mutex<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        lock(&self.0).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Sends a command, which may fail.
async fn try_send(line: &mut TaskLine, bytes: &[u8], expect: Expect) -> Option<()> {
    let deadline = line.response_deadline();
    let connection = line.current()?;
    let sent = connection.exchange(bytes, &[(expect, 1)], deadline, &mut |_, _| {}).await;
    if let Err(interruption) = sent {
        line.on_lost(&interruption.cause);
        return None;
    }
    Some(())
}

/// A scope whose connection may be lost at any time, and is then replaced.
async fn unlucky_scope(pool: &TaskPool) -> Option<()> {
    let deadline = Instant::now() + SOON;
    let pin = pool.pin(origin(), deadline, false, Arc::new(())).await.ok()?;
    let mut call = pin.call::<Error>().ok()?;
    while try_send(&mut call, WATCH, Expect::Watch).await.is_none() {
        call.connect(deadline).await.ok()?;
    }
    drop(call);
    let mut call = pin.last_call::<Error>().ok()?;
    try_send(&mut call, MULTI, Expect::Multi).await
}

#[test]
fn permits_and_connections_are_counted_right_under_drops_losses_and_forgotten_futures() {
    let server = Server::start();
    let (one, other) = (several(), several());
    let pool = pool(&server, |settings| {
        (settings.max_size, settings.max_pin_time) = (4, Duration::from_millis(40));
        settings.checkout_timeout = SOON;
    });
    let run = |runtime: &Runtime| {
        let tasks = (0..40).map(|nth| {
            let pool = pool.clone();
            runtime.spawn(async move {
                for round in 0..25 {
                    let most = fastrand::usize(1..10);
                    match fastrand::u8(0..3) {
                        0 if nth == 0 && round % 5 == 0 => {
                            let mut forgotten = Box::pin(unlucky_scope(&pool));
                            poll_at_most(most, forgotten.as_mut()).await;
                            std::mem::forget(forgotten);
                        }
                        0 | 1 => drop(poll_at_most(most, unlucky_scope(&pool)).await),
                        _ => drop(unlucky_scope(&pool).await),
                    }
                }
            })
        });
        tasks.collect::<Vec<_>>()
    };
    let (tasks, others) = (run(&one), run(&other));
    let mut killer = server.connect().unwrap();
    while !tasks.iter().chain(&others).all(|task| task.is_finished()) {
        let killed = redis::cmd("CLIENT").arg(&["KILL", "TYPE", "normal"]).query(&mut killer);
        let _: i64 = killed.unwrap();
        std::thread::sleep(Duration::from_millis(fastrand::u64(1..8)));
        let [size, _] = pool.idle.sizes();
        assert!(size <= 4 && pool.in_use() <= 4, "{size} connections");
    }
    one.block_on(async {
        for task in tasks {
            task.await.unwrap()
        }
    });
    other.block_on(async {
        for task in others {
            task.await.unwrap()
        }
    });
    drop(killer);
    // The forgotten ones are taken back.
    eventually(SOON, "the permits are back", || pool.in_use() == 0);
    eventually(SOON, "what was killed is noticed", || {
        server.clients().len() == pool.idle.sizes()[0] as usize
    });
    let lines = one.block_on(async {
        [checkout(&pool).await, checkout(&pool).await, checkout(&pool).await, checkout(&pool).await]
    });
    assert_eq!(pool.idle.sizes(), [4, 0]);
    drop(lines);
    is_clean(&server, &pool, 4);
    // A forgotten call keeps the pool, so it is closed.
    pool.close();
    one.block_on(pool.drain(Instant::now() + SOON));
    eventually(SOON, "no task", || {
        [&one, &other].iter().all(|runtime| runtime.metrics().num_alive_tasks() == 0)
    });
}
