//! A pool of tasks against a real server: permits and connections under dropped, forgotten and revoked
//! futures.

use std::panic::Location;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};

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
use crate::settings::settings::Settings;

const WATCH: &[u8] = b"*2\r\n$5\r\nWATCH\r\n$1\r\nk\r\n";
const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";
const BLPOP: &[u8] = b"*3\r\n$5\r\nBLPOP\r\n$1\r\na\r\n$1\r\n0\r\n";

fn one_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn threads() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn pool(server: &Server, change: impl FnOnce(&mut Settings)) -> TaskPool {
    let (mut config, endpoint) = config_of_one(server, SOON);
    let mut settings = Settings { lanes: 0, ..(*config.settings).clone() };
    change(&mut settings);
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

/// Polls the future once, without a wake-up.
fn poll_once<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
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
    let (server, runtime) = (Server::start(), one_thread());
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
    let (server, runtime) = (Server::start(), threads());
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
