//! Promise: a merged block of a task that is dropped at any poll, or polled no more, costs the others a bounded time and no
//! outcome.
//!
//! Guarantee: turns, tasks

use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use redis::cmd;
use rediscope::aio::{SessionManager, Transactional};
use rediscope::error::{Applied, CheckoutError};
use rediscope::prelude::*;
use rediscope::redis;
use rediscope::{Error, RetryPolicy, TransactionOptions};
use rediscope_testing::proxy::{Fault, Proxy, Script, Trigger};
use rediscope_testing::server::Server;
use rediscope_testing::tasks::several as runtime;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::instrument::WithSubscriber as _;
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{self, Layer, SubscriberExt as _};

use crate::fixture::SOON;

type Spawned = JoinHandle<Result<i64, Error>>;
type Run = Pin<Box<dyn Future<Output = Result<i64, Error>> + Send>>;

/// A server behind a proxy, and a manager that merges up to 16 blocks.
struct World {
    server: Server,
    proxy: Proxy,
    accounts: Transactional,
    /// Number of closures that have run.
    ran: Arc<AtomicUsize>,
}

/// Holds a closure up.
struct Door {
    inside: Semaphore,
    open: Semaphore,
}

impl World {
    fn new() -> Self {
        let server = Server::start();
        let proxy = Proxy::to(&server);
        let sessions = SessionManager::builder(proxy.url())
            .max_size(8)
            .max_merged(16)
            .trust_window(SOON)
            .response_timeout(SOON)
            .checkout_timeout(SOON * 4)
            .build_async()
            .unwrap();
        // Turns are waited for much longer than `soon` waits.
        let policy = RetryPolicy::default().attempts(10_000).deadline(SOON * 20);
        let accounts = sessions.transactional().with(TransactionOptions::new().retry(policy));
        Self { server, proxy, accounts, ran: Arc::default() }
    }

    /// Adds one to `hot` with what the watch has read, and one to the mark.
    fn count(&self, mark: &str) -> Run {
        self.count_behind(mark, None)
    }

    /// The same. The first run of the closure waits at the door.
    fn count_behind(&self, mark: &str, door: Option<Arc<Door>>) -> Run {
        let (accounts, ran, mark) = (self.accounts.clone(), Arc::clone(&self.ran), mark.to_owned());
        Box::pin(async move {
            let mut watch = accounts.watch(["hot"]);
            let n = watch.declare::<Option<i64>>(cmd("GET").arg("hot").take())?;
            let run = watch.run(async |read, tx| {
                ran.fetch_add(1, Ordering::SeqCst);
                let n = read.declared(n)?.unwrap_or_default();
                if let (Some(door), 1) = (&door, read.attempt()) {
                    door.inside.add_permits(1);
                    door.open.acquire().await.unwrap().forget();
                }
                tx.set("hot", n + 1);
                Ok(tx.incr(&mark, 1))
            });
            run.await
        })
    }

    /// Polls a run until its closure waits at the door.
    async fn until_inside(&self, mark: &str) -> (Run, Arc<Door>) {
        let door = Arc::new(Door { inside: Semaphore::new(0), open: Semaphore::new(0) });
        let mut run = self.count_behind(mark, Some(Arc::clone(&door)));
        let inside = async {
            tokio::select! {
                _ = run.as_mut() => panic!("it ended"),
                permit = door.inside.acquire() => permit.unwrap().forget(),
            }
        };
        soon("the closure begins", inside).await;
        (run, door)
    }

    fn spawn(&self, mark: &str) -> Spawned {
        tokio::spawn(self.count(mark))
    }

    /// Waits until so many closures have run, and have been appended.
    async fn have_run(&self, closures: usize) {
        eventually(|| self.ran.load(Ordering::SeqCst) >= closures).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    fn calls(&self, command: &str) -> u64 {
        let stats: String = self.server.ask(&["INFO", "commandstats"]);
        let prefix = format!("cmdstat_{command}:calls=");
        let line = stats.lines().find_map(|line| line.strip_prefix(&prefix));
        line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
    }

    fn hold_replies_to(&self, command: &'static str) {
        self.proxy.arm(Script::from((Trigger::BeforeReplyTo(command), Fault::HoldReplies)).once());
    }

    /// A block whose EXEC is under way, with its reply held, and one that has run on its values: it leads next. So
    /// do blocks that come later.
    async fn held(&self, runtime: &Handle) -> (Spawned, Spawned) {
        let (execs, ran) = (self.calls("exec"), self.ran.load(Ordering::SeqCst));
        self.hold_replies_to("exec");
        let door = Arc::new(Door { inside: Semaphore::new(0), open: Semaphore::new(0) });
        let held = runtime.spawn(self.count_behind("held", Some(Arc::clone(&door))));
        soon("the closure begins", door.inside.acquire()).await.unwrap().forget();
        let next = runtime.spawn(self.count("leader"));
        // No count has it.
        tokio::time::sleep(Duration::from_millis(20)).await;
        door.open.add_permits(1);
        eventually(|| self.calls("exec") > execs).await;
        self.have_run(ran + 2).await;
        (held, next)
    }

    /// Lets what was held go on, until the reply to the next command of that name.
    fn release_until(&self, command: &'static str) {
        self.hold_replies_to(command);
        self.proxy.release();
    }

    fn number(&self, key: &str) -> i64 {
        self.server.ask::<Option<i64>>(&["GET", key]).unwrap_or_default()
    }
}

async fn eventually(mut is_so: impl FnMut() -> bool) {
    let polled = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    soon("a condition", polled).await;
}

/// Waits for the future, much longer than it needs.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(SOON, future).await.unwrap_or_else(|_| panic!("{what}: not in time"))
}

/// What others do while a run is in its closure: they commit, and it commits after them.
async fn others_go_on(world: &World, (run, door): (Run, Arc<Door>), others: i64) {
    let before = world.number("hot");
    let all: Vec<_> = (0..others).map(|_| world.spawn("other")).collect();
    for other in all {
        soon("a block beside it", other).await.unwrap().unwrap();
    }
    assert_eq!(world.number("hot"), before + others);
    door.open.add_permits(1);
    soon("the block itself", run).await.unwrap();
    assert_eq!(world.number("hot"), before + others + 1);
}

#[test]
fn a_leader_whose_closure_is_polled_no_more_holds_up_no_other_block() {
    runtime().block_on(async {
        let world = World::new();
        let kept = world.until_inside("kept").await;
        others_go_on(&world, kept, 10).await;
        assert_eq!((world.number("kept"), world.number("other")), (1, 10));
    });
}

#[test]
fn a_closure_on_predicted_values_that_is_polled_no_more_holds_up_no_other_block() {
    runtime().block_on(async {
        let world = World::new();
        let (held, next) = world.held(&Handle::current()).await;
        let kept = world.until_inside("kept").await;
        world.proxy.disarm();
        world.proxy.release();
        for run in [held, next] {
            soon("a block before it", run).await.unwrap().unwrap();
        }
        others_go_on(&world, kept, 10).await;
        assert_eq!((world.number("kept"), world.number("other")), (1, 10));
    });
}

#[test]
fn a_closure_that_is_dropped_or_forgotten_in_its_turn_holds_up_no_other_block() {
    runtime().block_on(async {
        let world = World::new();
        let (run, _) = world.until_inside("dropped").await;
        drop(run);
        let (held, next) = world.held(&Handle::current()).await;
        let (run, _) = world.until_inside("dropped").await;
        drop(run);
        let (run, _) = world.until_inside("forgotten").await;
        std::mem::forget(run);
        let others: Vec<_> = (0..10).map(|_| world.spawn("other")).collect();
        world.proxy.disarm();
        world.proxy.release();
        for run in others.into_iter().chain([held, next]) {
            soon("a block beside them", run).await.unwrap().unwrap();
        }
        assert_eq!(world.number("hot"), 12);
        assert_eq!((world.number("dropped"), world.number("forgotten")), (0, 0));
    });
}

#[test]
fn a_leader_that_is_polled_no_more_before_its_exec_loses_the_lead() {
    runtime().block_on(async {
        let world = World::new();
        world.hold_replies_to("watch");
        let mut leader = world.count("leader");
        tokio::select! {
            _ = leader.as_mut() => panic!("it ended"),
            () = eventually(|| world.calls("watch") == 1) => {}
        }
        world.proxy.disarm();
        world.proxy.release();
        let others: Vec<_> = (0..10).map(|_| world.spawn("other")).collect();
        for other in others {
            soon("a block beside it", other).await.unwrap().unwrap();
        }
        soon("the leader", leader).await.unwrap();
        assert_eq!((world.number("leader"), world.number("hot")), (1, 11));
    });
}

/// Blocks that have been appended while an EXEC is under way: the one that leads next, and others.
async fn group(world: &World) -> (Spawned, Vec<Spawned>) {
    let (held, leader) = world.held(&Handle::current()).await;
    let mut members = Vec::new();
    for nth in 0..4 {
        members.push(world.spawn(&format!("member:{nth}")));
        world.have_run(3 + nth).await;
    }
    members.push(held);
    (leader, members)
}

/// Drops the leader while the reply to its command is held, and awaits the others, which are applied.
async fn abort_behind(
    command: &'static str,
    world: &World,
    leader: Spawned,
    members: Vec<Spawned>,
) {
    world.release_until(command);
    eventually(|| world.calls(command) == 2).await;
    leader.abort();
    assert!(leader.await.unwrap_err().is_cancelled());
    world.proxy.disarm();
    world.proxy.release();
    for member in members {
        assert_eq!(soon("a member", member).await.unwrap().unwrap(), 1);
    }
}

#[test]
fn a_leader_that_is_dropped_after_its_exec_leaves_the_others_their_outcomes() {
    runtime().block_on(async {
        let world = World::new();
        let (leader, members) = group(&world).await;
        abort_behind("exec", &world, leader, members).await;
        assert_eq!((world.number("leader"), world.number("hot"), world.calls("exec")), (1, 6, 2));
    });
}

#[test]
fn a_leader_that_is_dropped_before_its_exec_leaves_the_lead_to_the_next() {
    runtime().block_on(async {
        let world = World::new();
        let (leader, members) = group(&world).await;
        abort_behind("watch", &world, leader, members).await;
        assert_eq!((world.number("leader"), world.number("hot")), (0, 5));
    });
}

#[test]
fn a_member_that_is_dropped_is_withdrawn_before_its_exec_and_counts_after_it() {
    runtime().block_on(async {
        for is_sent in [false, true] {
            let world = World::new();
            let (leader, mut members) = group(&world).await;
            if is_sent {
                world.release_until("exec");
                eventually(|| world.calls("exec") == 2).await;
            }
            let dropped = members.remove(1);
            dropped.abort();
            assert!(dropped.await.unwrap_err().is_cancelled());
            world.proxy.disarm();
            world.proxy.release();
            for run in members.into_iter().chain([leader]) {
                assert_eq!(soon("a member", run).await.unwrap().unwrap(), 1);
            }
            let applied = i64::from(is_sent);
            assert_eq!((world.number("member:1"), world.number("hot")), (applied, 5 + applied));
        }
    });
}

#[test]
fn a_member_that_is_polled_no_more_holds_up_no_other_block() {
    runtime().block_on(async {
        let world = World::new();
        let (held, next) = world.held(&Handle::current()).await;
        let mut kept = world.count("kept");
        tokio::select! {
            _ = kept.as_mut() => panic!("it ended"),
            () = world.have_run(3) => {}
        }
        let others: Vec<_> = (0..4).map(|_| world.spawn("other")).collect();
        world.proxy.disarm();
        world.proxy.release();
        for run in others.into_iter().chain([held, next]) {
            soon("a block beside it", run).await.unwrap().unwrap();
        }
        assert_eq!(world.number("other"), 4);
        soon("the block itself", kept).await.unwrap();
        assert_eq!((world.number("kept"), world.number("hot")), (1, 7));
    });
}

#[test]
fn the_end_of_the_leaders_runtime_is_a_doubt_for_blocks_of_another_one() {
    let (of_leader, runtime) = (runtime(), runtime());
    let world = World::new();
    let (leader, members) = runtime.block_on(async {
        let (_, leader) = world.held(of_leader.handle()).await;
        let members: Vec<_> = (0..3).map(|_| world.spawn("member")).collect();
        world.have_run(5).await;
        world.release_until("exec");
        eventually(|| world.calls("exec") == 2).await;
        (leader, members)
    });
    of_leader.shutdown_background();
    runtime.block_on(async {
        assert!(leader.await.unwrap_err().is_cancelled());
        for member in members {
            let error = soon("a member", member).await.unwrap().unwrap_err();
            assert_eq!(error.applied(), Applied::Unknown, "{error}");
        }
        world.proxy.disarm();
        world.proxy.release();
        soon("a later block", world.count("later")).await.unwrap();
    });
    assert_eq!((world.number("member"), world.number("hot")), (3, 6));
}

#[test]
fn a_closure_that_reads_more_and_a_block_inside_it_go_alone() {
    runtime().block_on(async {
        let world = World::new();
        let runs: Vec<_> = (0..24)
            .map(|nth| {
                let (accounts, plain) = (world.accounts.clone(), world.count("plain"));
                tokio::spawn(async move {
                    if nth % 3 > 0 {
                        return plain.await.map(drop);
                    }
                    let mut watch = accounts.watch(["hot"]);
                    let n = watch.declare::<Option<i64>>(cmd("GET").arg("hot").take())?;
                    let run = watch.run(async |read, tx| {
                        let n = read.declared(n)?.unwrap_or_default();
                        let more: Option<i64> = read.get("more").await?;
                        if nth % 2 == 0 && read.attempt() < 10 {
                            // On the same key, so that this attempt is a conflict.
                            let mut inner = accounts.watch(["hot"]);
                            let n = inner.declare::<Option<i64>>(cmd("GET").arg("hot").take())?;
                            let add = inner.run(async |read, tx| {
                                tx.incr("inner", 1);
                                Ok(tx.set("hot", read.declared(n)?.unwrap_or_default() + 1))
                            });
                            add.await?;
                        }
                        tx.set("hot", n + 1);
                        Ok(tx.set("more", more.unwrap_or_default() + 1))
                    });
                    run.await
                })
            })
            .collect();
        for run in runs {
            soon("a run", run).await.unwrap().unwrap();
        }
        let of = |key| world.number(key);
        assert_eq!((of("plain"), of("hot")), (16, 24 + of("inner")));
    });
}

#[test]
fn blocks_that_are_dropped_at_any_time_are_applied_whole_or_not_at_all() {
    const TASKS: usize = 24;
    const BLOCKS: usize = 60;
    runtime().block_on(async {
        let world = Arc::new(World::new());
        world.proxy.set_delay(Duration::from_micros(300));
        let tasks: Vec<_> = (0..TASKS)
            .map(|task| {
                let world = Arc::clone(&world);
                tokio::spawn(async move {
                    let mut ends = Vec::new();
                    for block in 0..BLOCKS {
                        let mark = format!("mark:{task}:{block}");
                        let run = world.count(&mark);
                        let limit = match fastrand::u8(..3) {
                            0 => SOON,
                            _ => Duration::from_micros(fastrand::u64(..4_000)),
                        };
                        let end = timeout(limit, run).await.ok();
                        assert!(end.is_some() || limit < SOON, "a block that hangs");
                        ends.push((mark, end));
                    }
                    ends
                })
            })
            .collect();
        let mut ends = Vec::new();
        for task in tasks {
            ends.extend(soon("a task", task).await.unwrap());
        }
        let last = soon("a last block", world.count("last")).await;
        last.unwrap();
        let (mut applied, mut dropped) = (1, 0);
        for (mark, end) in ends {
            let found = world.number(&mark);
            applied += found;
            match end {
                Some(end) => assert_eq!((end.unwrap(), found), (1, 1), "{mark}"),
                None => {
                    dropped += 1;
                    assert!(found <= 1, "{mark}: {found}");
                }
            }
        }
        assert_eq!(world.number("hot"), applied);
        assert!(dropped > TASKS && applied > TASKS as i64, "{dropped} dropped, {applied} applied");
    });
}

/// Runs the future on this thread, which has no runtime.
fn outside<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(thread::current())).into();
    let (mut future, begun) = (pin!(future), Instant::now());
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        assert!(begun.elapsed() < SOON, "not in time");
        thread::park_timeout(SOON);
    }
}

#[test]
fn a_block_that_is_polled_outside_of_a_runtime_fails_and_holds_up_no_other_one() {
    let (runtime, world) = (runtime(), World::new());
    let (run, door) = runtime.block_on(world.until_inside("inside"));
    let error = outside(world.count("outside")).unwrap_err();
    assert!(matches!(error, Error::Checkout(CheckoutError::Connect { .. })), "{error:?}");
    runtime.block_on(others_go_on(&world, (run, door), 3));
    assert_eq!(world.number("outside"), 0);
}

#[test]
fn a_block_that_is_sent_by_another_one_ends_also_outside_of_a_runtime() {
    let (runtime, world) = (runtime(), World::new());
    let (mut run, held, leader) = runtime.block_on(async {
        let (held, leader) = world.held(&Handle::current()).await;
        let mut run = world.count("outside");
        tokio::select! {
            _ = run.as_mut() => panic!("it ended"),
            () = world.have_run(3) => {}
        }
        world.release_until("exec");
        eventually(|| world.calls("exec") == 2).await;
        (run, held, leader)
    });
    let is_polled = run.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending();
    assert!(is_polled, "its EXEC is under way");
    world.proxy.disarm();
    world.proxy.release();
    outside(run).unwrap();
    for block in [held, leader] {
        runtime.block_on(block).unwrap().unwrap();
    }
    assert_eq!((world.number("outside"), world.number("hot")), (1, 3));
}

/// A subscriber that panics at each end of a commit.
struct Panics;

impl<S: Subscriber> Layer<S> for Panics {
    fn on_event(&self, event: &Event<'_>, _: layer::Context<'_, S>) {
        let is_commit = event.metadata().target().ends_with("transaction::pending");
        assert!(!is_commit, "of the subscriber");
    }
}

#[test]
fn a_subscriber_that_panics_takes_no_leader_its_outcome() {
    runtime().block_on(async {
        let world = World::new();
        let (held, next) = world.held(&Handle::current()).await;
        world.release_until("exec");
        eventually(|| world.calls("exec") == 2).await;
        let subscriber = tracing_subscriber::registry().with(Panics);
        let leader = tokio::spawn(world.count("leader").with_subscriber(subscriber));
        world.have_run(3).await;
        let mut members = vec![held, next, leader];
        for nth in 0..3 {
            members.push(world.spawn("member"));
            world.have_run(4 + nth).await;
        }
        world.proxy.disarm();
        world.proxy.release();
        for member in members {
            soon("a member", member).await.unwrap().unwrap();
        }
        assert_eq!((world.number("hot"), world.calls("exec")), (6, 3));
    });
}

/// A run that is polled by the thread that wakes it.
struct PolledAtOnce {
    run: Mutex<Option<Run>>,
    is_woken: AtomicBool,
    runtime: Handle,
}

impl Wake for PolledAtOnce {
    fn wake(self: Arc<Self>) {
        self.is_woken.store(true, Ordering::SeqCst);
        let _in = self.runtime.enter();
        let waker = Arc::clone(&self).into();
        while self.is_woken.load(Ordering::SeqCst) {
            let mut slot = match self.run.try_lock() {
                Ok(slot) => slot,
                // The poll that is under way looks again.
                Err(TryLockError::WouldBlock) => return,
                Err(TryLockError::Poisoned(error)) => panic!("{error}"),
            };
            self.is_woken.store(false, Ordering::SeqCst);
            if let Some(run) = &mut *slot
                && let Poll::Ready(ended) = run.as_mut().poll(&mut Context::from_waker(&waker))
            {
                ended.unwrap();
                *slot = None;
            }
        }
    }
}

/// Its EXEC is sent on the connection of the other scope, which does not watch the key.
#[test]
fn a_leader_whose_scope_was_swapped_out_sends_no_other_block() {
    runtime().block_on(async {
        let world = World::new();
        world.server.ask::<()>(&["SET", "hot", "0"]);
        let other = Mutex::new(Some(world.accounts.watch(["another"]).begin().await.unwrap()));
        let door = Door { inside: Semaphore::new(0), open: Semaphore::new(0) };
        let mut watch = world.accounts.watch(["hot"]);
        let n = watch.declare::<i64>(cmd("GET").arg("hot").take()).unwrap();
        let mut leader = pin!(watch.run(async |read, tx| {
            read.declared(n)?;
            let other = other.lock().unwrap().take();
            if let Some(mut other) = other {
                std::mem::swap(read, &mut other);
                door.inside.add_permits(1);
                door.open.acquire().await.unwrap().forget();
            }
            Ok(tx.incr("hot", 1))
        }));
        let inside = async {
            tokio::select! {
                _ = leader.as_mut() => panic!("it ended"),
                permit = door.inside.acquire() => permit.unwrap().forget(),
            }
        };
        soon("the closure begins", inside).await;
        let follower = Arc::new(PolledAtOnce {
            run: Mutex::new(Some(world.count("follower"))),
            is_woken: AtomicBool::new(false),
            runtime: Handle::current(),
        });
        Arc::clone(&follower).wake();
        // Another process changes the key that the leader's scope does not watch any more.
        world.server.ask::<()>(&["SET", "hot", "100"]);
        door.open.add_permits(1);
        soon("the leader", leader).await.unwrap();
        eventually(|| follower.run.try_lock().is_ok_and(|run| run.is_none())).await;
        assert_eq!((world.number("hot"), world.number("follower")), (102, 1));
    });
}
