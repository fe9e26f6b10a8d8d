//! Promise: a task's turn on a hot key that was passed to it with a connection holds up no other task and no connection,
//! wherever its future is dropped, forgotten, moved or polled no more.
//!
//! Guarantee: turns, tasks

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rediscope::aio::{SessionManager, Transactional};
use rediscope::error::Applied;
use rediscope::prelude::*;
use rediscope::redis::cmd;
use rediscope::{Builder, Error, Outcome, RetryPolicy, TransactionOptions};
use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Proxy, Script, Trigger};
use rediscope_testing::server::Server;
use rediscope_testing::tasks::{poll_at_most, poll_once, several, single};
use tokio::runtime::Runtime;
use tokio::sync::Notify;

use crate::fixture::SOON;

type Taken = Result<(i64, u32), Error>;

struct Fixture {
    proxy: Proxy,
    server: Server,
    sessions: SessionManager,
}

/// The hot key `stock` of 10.
fn start(runtime: &Runtime, change: impl FnOnce(Builder) -> Builder) -> Fixture {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let builder = SessionManager::builder(proxy.url()).max_size(1).trust_window(SOON).lanes(0);
    let builder = builder.checkout_timeout(3 * SOON).response_timeout(SOON);
    let sessions = change(builder).build_async().unwrap();
    let fixture = Fixture { proxy, server, sessions };
    runtime.block_on(async {
        let watch = fixture.accounts().watch(["stock"]);
        let heated = watch.run(async |read, tx| {
            if read.attempt() == 1 {
                fixture.server.ask::<()>(&["SET", "stock", "0"]);
            }
            Ok(tx.set("stock", 10))
        });
        heated.await.unwrap();
    });
    fixture.proxy.take_journal();
    fixture
}

impl Fixture {
    fn accounts(&self) -> Transactional {
        let policy = RetryPolicy::default().attempts(10_000).deadline(6 * SOON);
        self.sessions.transactional().with(TransactionOptions::new().retry(policy))
    }

    fn stock(&self) -> i64 {
        self.server.ask(&["GET", "stock"])
    }

    fn in_use(&self) -> u32 {
        self.sessions.status().transactional.in_use
    }

    fn sent(&self) -> Vec<String> {
        self.proxy.take_journal().into_iter().map(|(_, name)| name.to_uppercase()).collect()
    }

    /// No connection watches or is in MULTI, no turn is lost, and the next block is applied.
    #[track_caller]
    fn is_whole(&self, runtime: &Runtime) {
        // The connections' tasks run only inside of the runtime.
        runtime.block_on(async {
            let begun = Instant::now();
            while self.in_use() > 0 {
                assert!(begun.elapsed() < SOON, "a permit is lost");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            // A watch that was left on the connection would make EXEC nil.
            self.server.ask::<()>(&["INCRBY", "stock", "0"]);
            let (begun, before) = (Instant::now(), self.stock());
            assert_eq!(take_one(&self.accounts()).await.unwrap(), (before, 1));
            assert!(begun.elapsed() < SOON, "a turn was lost");
            self.server.ask::<()>(&["INCR", "stock"]);
        });
        assert_eq!(self.sessions.status().transactional.waiting, 0);
    }
}

/// Where a block waits inside of its first attempt.
#[derive(Default)]
struct Door {
    inside: Notify,
    go: Notify,
}

/// Takes one from the stock, by a declared read. Returns what it found, and in how many attempts.
async fn take_one_at(accounts: &Transactional, door: Option<&Door>) -> Taken {
    let mut watch = accounts.watch(["stock"]);
    let read = watch.declare::<i64>(cmd("GET").arg("stock").to_owned())?;
    let mut tries = watch.tries();
    loop {
        let mut at = tries.next().await?;
        let (found, number): (i64, _) = (at.declared(read)?, at.number());
        if let (Some(door), 1) = (door, number) {
            door.inside.notify_one();
            door.go.notified().await;
        }
        at.set("stock", found - 1);
        if let Outcome::Committed(_) = at.commit().await? {
            return Ok((found, number));
        }
    }
}

async fn take_one(accounts: &Transactional) -> Taken {
    take_one_at(accounts, None).await
}

/// A block that waits inside of its attempt.
fn hold(
    accounts: &Transactional,
    door: &Arc<Door>,
) -> impl Future<Output = Taken> + Send + 'static {
    let (accounts, door) = (accounts.clone(), Arc::clone(door));
    async move { take_one_at(&accounts, Some(&door)).await }
}

/// Has the tasks that were spawned begin to wait.
async fn they_wait() {
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
}

/// Drops one of two futures after each of its polls, while the connection is cut at this point. A third
/// block waits behind them.
fn dropped_after_each_poll(
    fault: Option<(Trigger, Fault)>,
    drops_holder: bool,
    options: &TransactionOptions,
) {
    let runtime = single();
    let fixture = start(&runtime, |builder| builder);
    for polls in 0.. {
        fixture.server.ask::<()>(&["SET", "stock", "10"]);
        let accounts = fixture.accounts().with(options.clone());
        let [holder_polls, rider_polls] =
            if drops_holder { [polls, usize::MAX] } else { [usize::MAX, polls] };
        let (held, rode, last) = runtime.block_on(async {
            let door = Arc::<Door>::default();
            let mut holder = tokio::spawn(poll_at_most(holder_polls, hold(&accounts, &door)));
            let mut held = None;
            tokio::select! {
                ended = &mut holder => held = Some(ended.unwrap()),
                () = door.inside.notified() => {}
            }
            let (one, other) = (accounts.clone(), accounts.clone());
            let rider =
                tokio::spawn(poll_at_most(rider_polls, async move { take_one(&one).await }));
            they_wait().await;
            let last = tokio::spawn(async move { take_one(&other).await });
            they_wait().await;
            if let Some(fault) = fault {
                fixture.proxy.arm(Script::from(fault).once());
            }
            door.go.notify_one();
            let held = match held {
                Some(held) => held,
                None => holder.await.unwrap(),
            };
            (held, rider.await.unwrap(), last.await.unwrap())
        });
        fixture.proxy.disarm();
        let what = format!("after {polls} polls: {held:?}, {rode:?}, {last:?}");
        let is_last = held.is_some() && rode.is_some();
        eventually(SOON, &what, || {
            runtime.block_on(tokio::task::yield_now());
            fixture.in_use() == 0
        });
        let blocks = [held, rode, Some(last)];
        let (mut least, mut most) = (0, 0);
        for block in blocks {
            match block.map(|taken| taken.map_err(|error| error.applied())) {
                Some(Ok(_)) => (least, most) = (least + 1, most + 1),
                Some(Err(Applied::No)) => {}
                _ => most += 1,
            }
        }
        let taken = 10 - fixture.stock();
        assert!((least..=most).contains(&taken), "{what}: {taken}");
        fixture.is_whole(&runtime);
        if is_last {
            assert!(polls >= 2, "{what}");
            break;
        }
    }
}

#[test]
fn the_next_block_begins_before_the_task_that_passed_its_turn_on_goes_on() {
    let runtime = single();
    let fixture = start(&runtime, |builder| builder);
    let accounts = fixture.accounts();
    let order = Arc::<Mutex<Vec<&str>>>::default();
    runtime.block_on(async {
        let door = Arc::<Door>::default();
        let first = tokio::spawn({
            let (held, order) = (hold(&accounts, &door), Arc::clone(&order));
            async move {
                held.await.unwrap();
                order.lock().unwrap().push("the first has returned");
            }
        });
        door.inside.notified().await;
        let second = tokio::spawn({
            let (accounts, order) = (accounts.clone(), Arc::clone(&order));
            async move {
                let watch = accounts.watch(["stock"]);
                let second = watch.run(async |_, tx| {
                    order.lock().unwrap().push("the second begins");
                    Ok(tx.decr("stock", 1))
                });
                second.await.unwrap();
            }
        });
        they_wait().await;
        door.go.notify_one();
        first.await.unwrap();
        second.await.unwrap();
    });
    assert_eq!(*order.lock().unwrap(), ["the second begins", "the first has returned"]);
    assert_eq!(
        fixture.sent(),
        ["WATCH", "GET", "MULTI", "SET", "EXEC", "WATCH", "MULTI", "DECRBY", "EXEC"]
    );
    fixture.is_whole(&runtime);
}

const CUTS: [Trigger; 6] = [
    Trigger::BeforeCommandNamed("EXEC"),
    Trigger::BeforeReplyTo("EXEC"),
    Trigger::AfterReplyTo("EXEC"),
    Trigger::InsideReplyTo("WATCH", 2),
    Trigger::BeforeReplyTo("GET"),
    Trigger::InsideReplyTo("GET", 3),
];

#[test]
fn a_block_that_is_dropped_after_any_poll_leaves_its_turn_and_nothing_on_the_connection() {
    for options in [TransactionOptions::new(), TransactionOptions::new().exactly_once()] {
        dropped_after_each_poll(None, false, &options);
        for trigger in CUTS {
            dropped_after_each_poll(Some((trigger, Fault::Cut)), false, &options);
        }
    }
}

#[test]
fn a_holder_that_is_dropped_after_any_poll_leaves_its_turn_to_the_block_behind_it() {
    for options in [TransactionOptions::new(), TransactionOptions::new().exactly_once()] {
        dropped_after_each_poll(None, true, &options);
        for trigger in CUTS {
            dropped_after_each_poll(Some((trigger, Fault::Cut)), true, &options);
        }
    }
}

/// A block is inside of its attempt, and another one waits behind it; then the first one commits.
async fn passed_on(
    accounts: &Transactional,
    waits: Pin<&mut (impl Future<Output = Taken> + Send)>,
) -> (i64, u32) {
    let door = Arc::<Door>::default();
    let holder = tokio::spawn(hold(accounts, &door));
    door.inside.notified().await;
    assert!(poll_once(waits).is_pending());
    door.go.notify_one();
    holder.await.unwrap().unwrap()
}

#[test]
fn a_dropped_block_that_has_travelled_costs_no_connection() {
    let runtime = single();
    let fixture = start(&runtime, |builder| builder);
    let accounts = fixture.accounts();
    runtime.block_on(async {
        let mut rider = Box::pin(take_one(&accounts));
        assert_eq!(passed_on(&accounts, rider.as_mut()).await, (10, 1));
        // It has turn and connection now, and was not polled since.
        assert_eq!(fixture.in_use(), 1);
        assert_eq!(fixture.sent().last().unwrap(), "GET");
        drop(rider);
    });
    fixture.is_whole(&runtime);
    let sent = fixture.sent();
    assert_eq!(sent[0], "UNWATCH", "{sent:?}");
    assert_eq!(fixture.proxy.accepted(), 1);
}

#[test]
fn a_block_that_is_polled_no_more_holds_up_none_of_those_behind_it() {
    let runtime = several();
    let fixture = start(&runtime, |builder| builder.max_size(2));
    let accounts = fixture.accounts();
    let mut rider = Box::pin(take_one(&accounts));
    runtime.block_on(async {
        assert_eq!(passed_on(&accounts, rider.as_mut()).await, (10, 1));
        let begun = Instant::now();
        for found in [9, 8, 7] {
            assert_eq!(take_one(&accounts).await.unwrap(), (found, 1));
        }
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
        // It goes on after that, and reads again: what was read for it was changed.
        assert_eq!(rider.await.unwrap(), (6, 1));
    });
    assert_eq!(fixture.stock(), 5);
    fixture.is_whole(&runtime);
}

#[test]
fn a_forgotten_block_that_has_travelled_loses_its_connection_after_max_pin_time() {
    let (limit, runtime) = (Duration::from_millis(100), several());
    let fixture = start(&runtime, |builder| builder.max_pin_time(limit));
    let accounts = fixture.accounts();
    let mut rider = Box::pin(take_one(&accounts));
    runtime.block_on(passed_on(&accounts, rider.as_mut()));
    assert_eq!(fixture.in_use(), 1);
    eventually(SOON, "the permit is back", || fixture.in_use() == 0);
    fixture.is_whole(&runtime);
    // It goes on with another connection, and what it reads is of this one.
    let stock = fixture.stock();
    assert_eq!(runtime.block_on(rider).unwrap(), (stock, 1));
    fixture.is_whole(&runtime);
}

/// The holder is forgotten between its write and its replies.
#[test]
fn a_block_goes_on_if_the_one_that_took_its_watch_is_polled_no_more() {
    let (limit, runtime) = (Duration::from_millis(500), several());
    let fixture = start(&runtime, |builder| {
        builder.max_size(2).response_timeout(SOON / 4).max_pin_time(limit)
    });
    let accounts = fixture.accounts();
    let door = Arc::<Door>::default();
    let mut forgotten = Box::pin(hold(&accounts, &door));
    let taken = runtime.block_on(async {
        tokio::select! {
            _ = forgotten.as_mut() => panic!("it ended"),
            () = door.inside.notified() => {}
        }
        let accounts = accounts.clone();
        let waits = tokio::spawn(async move { take_one(&accounts).await });
        tokio::time::sleep(Duration::from_millis(20)).await;
        fixture
            .proxy
            .arm(Script::from((Trigger::BeforeReplyTo("EXEC"), Fault::HoldReplies)).once());
        door.go.notify_one();
        assert!(poll_once(forgotten.as_mut()).is_pending());
        let taken = waits.await.unwrap();
        fixture.proxy.release();
        taken
    });
    // Its connection answers late, and EXEC was applied.
    assert_eq!(taken.unwrap(), (9, 1));
    let ended = runtime.block_on(forgotten);
    assert!(ended.is_ok() || ended.is_err_and(|error| error.applied() != Applied::No));
    assert_eq!(fixture.stock(), 8);
    fixture.is_whole(&runtime);
}

#[test]
fn a_block_of_another_runtime_gets_the_turn_without_the_connection() {
    let (one, other) = (several(), several());
    let fixture = start(&one, |builder| builder.max_size(2));
    let accounts = fixture.accounts();
    let door = Arc::<Door>::default();
    let holder = one.spawn(hold(&accounts, &door));
    one.block_on(door.inside.notified());
    let mut waits = Box::pin(take_one(&accounts));
    other.block_on(async { assert!(poll_once(waits.as_mut()).is_pending()) });
    door.go.notify_one();
    assert_eq!(one.block_on(holder).unwrap().unwrap(), (10, 1));
    assert_eq!(other.block_on(waits).unwrap(), (9, 1));
    assert_eq!(fixture.proxy.accepted(), 2, "a connection of its own runtime");
    fixture.is_whole(&other);
}

#[test]
fn a_block_that_moves_to_another_runtime_goes_on() {
    let (one, other) = (several(), several());
    let fixture = start(&one, |builder| builder);
    let accounts = fixture.accounts();
    let mut rider = Box::pin(take_one(&accounts));
    one.block_on(passed_on(&accounts, rider.as_mut()));
    assert_eq!(other.block_on(rider).unwrap(), (9, 1));
    fixture.is_whole(&one);
}

#[test]
fn a_block_goes_on_if_the_runtime_of_the_block_before_it_ends() {
    let one = single();
    let fixture = start(&one, |builder| builder);
    let accounts = fixture.accounts();
    let mut rider = Box::pin(take_one(&accounts));
    one.block_on(passed_on(&accounts, rider.as_mut()));
    drop(one);
    let other = several();
    assert_eq!(other.block_on(rider).unwrap().0, 9);
    assert_eq!(fixture.stock(), 8);
    fixture.is_whole(&other);
}

#[test]
fn a_block_that_has_travelled_ends_in_time_when_the_manager_closes() {
    let runtime = several();
    let fixture = start(&runtime, |builder| builder);
    let accounts = fixture.accounts();
    runtime.block_on(async {
        let mut rider = Box::pin(take_one(&accounts));
        passed_on(&accounts, rider.as_mut()).await;
        fixture.sessions.close(Duration::from_millis(50)).await;
        eventually(SOON, "no connection", || fixture.proxy.connections() == 0);
        let late = rider.await.unwrap_err();
        assert_eq!(late.applied(), Applied::No, "{late:?}");
    });
    assert_eq!(fixture.stock(), 9);
}
