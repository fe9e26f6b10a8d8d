//! Promise: a task's watch that travels behind the EXEC of another task holds up no connection, wherever its future
//! is dropped, forgotten or moved.
//!
//! Guarantee: pools, tasks

use std::time::Duration;

use rediscope::aio::{SessionManager, Transaction, Transactional};
use rediscope::error::Applied;
use rediscope::prelude::*;
use rediscope::redis::cmd;
use rediscope::{Builder, Error, TransactionOptions};
use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Proxy, Script, Trigger};
use rediscope_testing::server::Server;
use rediscope_testing::tasks::{poll_at_most, poll_once, several, single};
use tokio::runtime::Runtime;

use crate::fixture::SOON;

struct Fixture {
    proxy: Proxy,
    server: Server,
    sessions: SessionManager,
}

fn start(change: impl FnOnce(Builder) -> Builder) -> Fixture {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let builder = SessionManager::builder(proxy.url()).max_size(1).trust_window(SOON).lanes(0);
    let builder = builder.checkout_timeout(3 * SOON).response_timeout(SOON);
    let sessions = change(builder).build_async().unwrap();
    server.ask::<()>(&["SET", "stock", "10"]);
    Fixture { proxy, server, sessions }
}

impl Fixture {
    fn accounts(&self) -> Transactional {
        self.sessions.transactional()
    }

    fn stock(&self) -> i64 {
        self.server.ask(&["GET", "stock"])
    }

    fn waiting(&self) -> usize {
        self.sessions.status().transactional.waiting
    }

    async fn holder(&self) -> Transaction {
        let mut tx = self.accounts().begin().await.unwrap();
        tx.incr("stock", 1);
        tx
    }

    /// No connection watches or is in MULTI, and the next block is applied.
    #[track_caller]
    fn is_whole(&self, runtime: &Runtime) {
        // The connections' tasks run only inside of the runtime.
        runtime.block_on(async {
            let in_use = || self.sessions.status().transactional.in_use;
            let begun = std::time::Instant::now();
            while in_use() > 0 {
                assert!(begun.elapsed() < SOON, "a permit is lost");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            // A watch that was left on the connection would make EXEC nil.
            self.server.ask::<()>(&["INCRBY", "stock", "0"]);
            assert_eq!(take_one(&self.accounts()).await.unwrap().1, 1);
            self.server.ask::<()>(&["INCR", "stock"]);
        });
        assert_eq!(self.waiting(), 0);
    }
}

/// Takes one from the stock, by a declared read. Returns what it found, and in how many attempts.
async fn take_one(accounts: &Transactional) -> Result<(i64, u32), Error> {
    let mut watch = accounts.watch(["stock"]);
    let read = watch.declare::<i64>(cmd("GET").arg("stock").to_owned())?;
    let mut tries = watch.tries();
    loop {
        let mut at = tries.next().await?;
        let found: i64 = at.declared(read)?;
        let number = at.number();
        at.set("stock", found - 1);
        if let rediscope::Outcome::Committed(_) = at.commit().await? {
            return Ok((found, number));
        }
    }
}

/// Drops one future after each of its polls, while the connection is cut at this point.
fn dropped_after_each_poll(fault: Option<(Trigger, Fault)>, drops_holder: bool) {
    let (fixture, runtime) = (start(|builder| builder), single());
    for polls in 0.. {
        fixture.server.ask::<()>(&["SET", "stock", "10"]);
        let accounts = fixture.accounts();
        let (committed, taken) = runtime.block_on(async {
            let tx = fixture.holder().await;
            if let Some(fault) = fault {
                fixture.proxy.arm(Script::from(fault).once());
            }
            let [holder_polls, rider_polls] =
                if drops_holder { [polls, usize::MAX] } else { [usize::MAX, polls] };
            let rider = async move { poll_at_most(rider_polls, take_one(&accounts)).await };
            let rider = tokio::spawn(rider);
            // It waits now, or has been dropped.
            tokio::task::yield_now().await;
            let holder = tokio::spawn(async move { poll_at_most(holder_polls, tx.commit()).await });
            (holder.await.unwrap(), rider.await.unwrap())
        });
        fixture.proxy.disarm();
        let what = format!("after {polls} polls: {committed:?}, {taken:?}");
        let is_last = committed.is_some() && taken.is_some();
        // A block whose future was dropped goes on to its end on its connection.
        eventually(SOON, &what, || {
            runtime.block_on(tokio::task::yield_now());
            fixture.sessions.status().transactional.in_use == 0
        });
        let added = match committed.map(|committed| committed.map_err(|error| error.applied())) {
            Some(Ok(_)) => 1..=1,
            Some(Err(Applied::No)) => 0..=0,
            _ => 0..=1,
        };
        let removed = match taken.map(|taken| taken.map_err(|error| error.applied())) {
            Some(Ok(_)) => 1..=1,
            Some(Err(Applied::No)) => 0..=0,
            _ => 0..=1,
        };
        let found = fixture.stock() - 10;
        let possible = added.start() - removed.end()..=added.end() - removed.start();
        assert!(possible.contains(&found), "{what}: {found}");
        fixture.is_whole(&runtime);
        if is_last {
            assert!(polls >= 2, "{what}");
            break;
        }
    }
}

#[test]
fn a_watch_that_is_dropped_after_any_poll_leaves_nothing_on_the_connection() {
    dropped_after_each_poll(None, false);
    for trigger in [
        Trigger::BeforeCommandNamed("EXEC"),
        Trigger::BeforeReplyTo("EXEC"),
        Trigger::AfterReplyTo("EXEC"),
        Trigger::InsideReplyTo("WATCH", 2),
        Trigger::BeforeReplyTo("GET"),
        Trigger::InsideReplyTo("GET", 3),
    ] {
        dropped_after_each_poll(Some((trigger, Fault::Cut)), false);
    }
}

#[test]
fn a_block_that_is_dropped_after_any_poll_leaves_the_watch_behind_it_to_another_connection() {
    dropped_after_each_poll(None, true);
    for trigger in [
        Trigger::BeforeCommandNamed("EXEC"),
        Trigger::BeforeReplyTo("EXEC"),
        Trigger::AfterReplyTo("EXEC"),
        Trigger::BeforeReplyTo("GET"),
    ] {
        dropped_after_each_poll(Some((trigger, Fault::Cut)), true);
    }
}

#[test]
fn a_dropped_watch_that_has_travelled_costs_no_connection() {
    let (fixture, runtime) = (start(|builder| builder), single());
    let accounts = fixture.accounts();
    runtime.block_on(async {
        let tx = fixture.holder().await;
        let mut rider = Box::pin(take_one(&accounts));
        assert!(poll_once(rider.as_mut()).is_pending());
        assert_eq!(fixture.waiting(), 1);
        tx.commit().await.unwrap();
        // It has the connection now, and was not polled since.
        assert_eq!((fixture.waiting(), fixture.sessions.status().transactional.in_use), (0, 1));
        drop(rider);
    });
    fixture.is_whole(&runtime);
    let sent: Vec<_> = fixture.proxy.take_journal().into_iter().map(|(_, name)| name).collect();
    assert!(sent.iter().any(|name| name.eq_ignore_ascii_case("UNWATCH")), "{sent:?}");
    assert_eq!(fixture.proxy.accepted(), 1);
}

#[test]
fn a_forgotten_watch_that_has_travelled_loses_its_connection_after_max_pin_time() {
    let limit = Duration::from_millis(100);
    let (fixture, runtime) = (start(|builder| builder.max_pin_time(limit)), several());
    let accounts = fixture.accounts();
    let mut rider = Box::pin(take_one(&accounts));
    runtime.block_on(async {
        let tx = fixture.holder().await;
        assert!(poll_once(rider.as_mut()).is_pending());
        tx.commit().await.unwrap();
        assert_eq!(fixture.sessions.status().transactional.in_use, 1);
    });
    eventually(SOON, "the permit is back", || fixture.sessions.status().transactional.in_use == 0);
    fixture.is_whole(&runtime);
    // It goes on after that, and finds neither permit nor connection.
    let late = runtime.block_on(rider).unwrap_err();
    assert_eq!(late.applied(), Applied::No, "{late:?}");
    assert!(
        late.to_string().contains("max_pin_time") || format!("{late:#}").contains("max_pin_time"),
        "{late:#}"
    );
    fixture.is_whole(&runtime);
}

/// The holder is forgotten between its write and its replies.
#[test]
fn a_watch_waits_on_if_the_block_that_took_it_is_polled_no_more() {
    let (fixture, runtime) =
        (start(|builder| builder.max_size(2).response_timeout(SOON / 4)), several());
    let accounts = fixture.accounts();
    let (mut forgotten, taken) = runtime.block_on(async {
        let (tx, other) = (fixture.holder().await, fixture.holder().await);
        let waits = tokio::spawn(async move { take_one(&accounts).await });
        while fixture.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        let mut commit = Box::pin(async move { tx.commit().await });
        let hold = (Trigger::BeforeReplyTo("EXEC"), Fault::HoldReplies);
        fixture.proxy.arm(Script::from(hold).once());
        assert!(poll_once(commit.as_mut()).is_pending());
        assert_eq!(fixture.waiting(), 1, "its WATCH was taken, and it waits");
        other.discard().await.unwrap();
        (commit, waits.await.unwrap())
    });
    assert_eq!(taken.unwrap().1, 1);
    fixture.proxy.release();
    let committed = runtime.block_on(forgotten.as_mut());
    committed.unwrap();
    assert_eq!(fixture.stock(), 10);
    assert_eq!(fixture.proxy.accepted(), 2, "the connection was cleaned");
    drop(forgotten);
    fixture.is_whole(&runtime);
}

#[test]
fn a_watch_of_another_runtime_does_not_travel() {
    let (fixture, one, other) = (start(|builder| builder), several(), several());
    let accounts = fixture.accounts();
    let tx = one.block_on(fixture.holder());
    let waits = other.spawn(async move { take_one(&accounts).await });
    eventually(SOON, "it waits", || fixture.waiting() == 1);
    one.block_on(tx.commit()).unwrap();
    assert_eq!(other.block_on(waits).unwrap().unwrap(), (11, 1));
    assert_eq!(fixture.proxy.accepted(), 2, "a connection of its own runtime");
    let sent: Vec<_> = fixture.proxy.take_journal();
    let watch = sent.iter().find(|(_, name)| name.eq_ignore_ascii_case("WATCH")).unwrap();
    assert_eq!(watch.0, 2, "{sent:?}");
    fixture.is_whole(&other);
}

#[test]
fn a_watch_that_moves_to_another_runtime_goes_on() {
    let (fixture, one, other) = (start(|builder| builder), several(), several());
    let accounts = fixture.accounts();
    for moves_before in [true, false] {
        let tx = one.block_on(fixture.holder());
        let stock = fixture.stock();
        let mut waits = Box::pin(take_one(&accounts));
        one.block_on(async { assert!(poll_once(waits.as_mut()).is_pending()) });
        if moves_before {
            let polled = async { poll_at_most(1, waits.as_mut()).await };
            assert!(other.block_on(polled).is_none());
        }
        one.block_on(tx.commit()).unwrap();
        assert_eq!(other.block_on(waits).unwrap(), (stock + 1, 1));
        fixture.is_whole(&one);
    }
}

#[test]
fn a_watch_goes_on_if_the_runtime_of_the_block_before_it_ends() {
    let (fixture, one) = (start(|builder| builder), single());
    let accounts = fixture.accounts();
    // Both its block and its watch are of this runtime, whose connection ends with it.
    let mut waits = Box::pin(take_one(&accounts));
    one.block_on(async {
        let tx = fixture.holder().await;
        assert!(poll_once(waits.as_mut()).is_pending());
        tx.commit().await.unwrap();
    });
    drop(one);
    let other = several();
    // In one attempt, or in two: what it has read stays valid only on that connection.
    assert_eq!(other.block_on(waits).unwrap().0, 11);
    assert_eq!(fixture.stock(), 10);
    fixture.is_whole(&other);
}

#[test]
fn a_watch_that_has_travelled_ends_in_time_when_the_manager_closes() {
    let (fixture, runtime) = (start(|builder| builder), several());
    let accounts = fixture.accounts();
    // One that is polled is awaited.
    runtime.block_on(async {
        let tx = fixture.holder().await;
        let mut waits = Box::pin(take_one(&accounts));
        assert!(poll_once(waits.as_mut()).is_pending());
        tx.commit().await.unwrap();
        let sessions = fixture.sessions.clone();
        let closes = tokio::spawn(async move { sessions.close(SOON).await });
        assert_eq!(waits.await.unwrap(), (11, 1));
        closes.await.unwrap();
    });
    let (fixture, short) = (start(|builder| builder), Duration::from_millis(50));
    let accounts = fixture.accounts().with(TransactionOptions::new());
    // One that is polled no more is ended.
    runtime.block_on(async {
        let tx = fixture.holder().await;
        let mut waits = Box::pin(take_one(&accounts));
        assert!(poll_once(waits.as_mut()).is_pending());
        tx.commit().await.unwrap();
        fixture.sessions.close(short).await;
        eventually(SOON, "no connection", || fixture.proxy.connections() == 0);
        let late = waits.await.unwrap_err();
        assert_eq!(late.applied(), Applied::No, "{late:?}");
    });
    assert_eq!(fixture.stock(), 11);
}
