//! A tracing layer that sends its events through the same session manager, with one connection a pool.
//!
//! No event is written while a connection is held, so no call waits for the layer's, and none of the
//! layer's for it.
//!
//! Guarantee: reports

use crate::fixture::SOON;
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rediscope::{Begin, Builder, Error, SessionManager, TransactionOptions, prelude::*, redis};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use rediscope_testing::cluster::Cluster;
use rediscope_testing::eventually;
use rediscope_testing::server::Server;

/// Far less than `checkout_timeout`, by which a stall would end.
const PROMPT: Duration = Duration::from_secs(8);

static SHIPS: Mutex<Option<SessionManager>> = Mutex::new(None);
static SHIPPED: AtomicUsize = AtomicUsize::new(0);
static FAILED: Mutex<Vec<String>> = Mutex::new(Vec::new());

thread_local! {
    static SHIPPING: Cell<bool> = const { Cell::new(false) };
}

struct Shipper;

impl<S: Subscriber> Layer<S> for Shipper {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let ours = event.metadata().target().starts_with("rediscope");
        if !ours || SHIPPING.get() {
            return;
        }
        let Some(sessions) = SHIPS.lock().unwrap_or_else(PoisonError::into_inner).clone() else {
            return;
        };
        SHIPPING.set(true);
        let begun = Instant::now();
        let text = event.metadata().fields().to_string();
        let single = sessions.pooled().incr::<_, _, i64>("shipped", 1).map_err(Error::from);
        let block = sessions.transactional().run(|tx| Ok(tx.rpush("events", &text)));
        let took = begun.elapsed();
        let failed = single.err().or(block.err()).map(|error| error.to_string());
        if took > PROMPT || failed.is_some() {
            let metadata = event.metadata();
            let reported =
                format!("{}:{:?}: {took:?} {failed:?}", metadata.target(), metadata.line());
            FAILED.lock().unwrap_or_else(PoisonError::into_inner).push(reported);
        }
        SHIPPED.fetch_add(1, Ordering::SeqCst);
        SHIPPING.set(false);
    }
}

/// From here to its end the layer ships by this session manager.
struct Ships;

impl Ships {
    fn by(sessions: &SessionManager) -> Self {
        static LAYER: Once = Once::new();
        LAYER.call_once(|| {
            let layered = tracing_subscriber::registry().with(Shipper);
            tracing::subscriber::set_global_default(layered).expect("the only one");
        });
        *SHIPS.lock().unwrap() = Some(sessions.clone());
        Self
    }
}

impl Drop for Ships {
    fn drop(&mut self) {
        *SHIPS.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

fn prompt<R>(what: &str, call: impl FnOnce() -> R) -> R {
    let begun = Instant::now();
    let result = call();
    assert!(begun.elapsed() < PROMPT, "{what} took {:?}", begun.elapsed());
    result
}

fn calls(sessions: &SessionManager) {
    let (mut db, accounts) = (sessions.pooled(), sessions.transactional());
    let immediate = TransactionOptions::new().begin(Begin::Immediate);
    for _ in 0..2 {
        prompt("run", || accounts.run(|tx| Ok(tx.incr("a", 1)))).unwrap();
        prompt("a command", || db.get::<_, i64>("a")).unwrap();
        prompt("watch run", || {
            accounts.watch(["a"]).run(|read, tx| {
                let a: i64 = read.get("a")?;
                Ok(tx.set("a", a + 1))
            })
        })
        .unwrap();
        prompt("a guard", || {
            let mut tx = accounts.begin_at("a").unwrap();
            tx.incr("a", 1);
            tx.commit().unwrap()
        });
        prompt("a guard at once", || accounts.with(immediate.clone()).begin_at("a").map(drop))
            .unwrap();
        prompt("a watching guard", || {
            let mut tx = accounts.watch(["a"]).begin().unwrap().multi();
            tx.incr("a", 1);
            tx.discard().unwrap();
        });
        let grouped = accounts.with(TransactionOptions::new().grouped());
        prompt("grouped", || grouped.run(|tx| Ok(tx.incr("a", 1)))).unwrap();
        prompt("a refusal", || accounts.run(|tx| Ok(tx.lpush("a", 1)))).unwrap_err();
        prompt("a lock", || sessions.lock("l").acquire(SOON).unwrap().release()).unwrap();
    }
}

fn ships_nothing_late(transport: &str) {
    let failed = std::mem::take(&mut *FAILED.lock().unwrap());
    assert!(failed.is_empty(), "{transport}: {failed:#?}");
    assert!(SHIPPED.swap(0, Ordering::SeqCst) > 20, "{transport}: the layer saw nothing");
}

#[test]
fn a_layer_that_ships_events_by_the_same_session_manager_stalls_no_call() {
    rediscope_testing::own_process!();
    let server = Server::start();
    let one = |url: String| SessionManager::builder(url).max_size(1).checkout_timeout(5 * PROMPT);
    let kinds: Vec<(&str, Builder)> =
        vec![("TCP", one(server.url())), ("a unix socket", one(server.unix_url()))];
    let cluster = Cluster::start(3, 0);
    let kinds = [kinds, vec![("a cluster", one(cluster.url()))]].concat();
    for (transport, builder) in kinds {
        server.ask::<()>(&["FLUSHALL"]);
        let sessions = builder.build().unwrap();
        let ships = Ships::by(&sessions);
        calls(&sessions);
        // Connections that died, and their replacement.
        server.kill_all_clients_except_me();
        calls(&sessions);
        drop(ships);
        ships_nothing_late(transport);
        sessions.close(Duration::ZERO);
    }
}

#[test]
fn a_layer_that_ships_events_keeps_the_reaper_from_nothing() {
    rediscope_testing::own_process!();
    let server = Server::start();
    let limit = Duration::from_millis(300);
    let sessions = SessionManager::builder(server.url())
        .max_size(1)
        .pin_warning(Some(Duration::from_millis(50)))
        .max_pin_time(limit)
        .checkout_timeout(5 * PROMPT)
        .build()
        .unwrap();
    let _ships = Ships::by(&sessions);
    let begun = Instant::now();
    let immediate = TransactionOptions::new().begin(Begin::Immediate);
    std::mem::forget(sessions.transactional().begin_with(immediate).unwrap());
    // The layer waits for the one connection that the forgotten scope holds.
    eventually(SOON, "it is taken back", || sessions.open_scopes().is_empty());
    assert!(begun.elapsed() < limit + PROMPT, "{:?}", begun.elapsed());
    let run = thread::spawn({
        let accounts = sessions.transactional();
        move || accounts.run(|tx| Ok(tx.incr("a", 1)))
    });
    run.join().unwrap().unwrap();
    let _: i64 = redis::cmd("GET").arg("a").query(&mut sessions.pooled()).unwrap();
    FAILED.lock().unwrap().clear();
}
