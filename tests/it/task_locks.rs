//! Promise: a lock of a task is left by no dropped future, guard or runtime, and a call under a lock ends when the lock
//! is lost.
//!
//! Guarantee: locks, tasks

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use rediscope::aio::{Lock, LockGuard, SessionManager};
use rediscope::error::LockError;
use rediscope::lock::LostReason;
use rediscope::prelude::*;
use rediscope::{Builder, Error};
use rediscope_testing::proxy::{Fault, Proxy, Trigger};
use rediscope_testing::server::Server;
use rediscope_testing::tasks::{panicking_waker, poll_at_most, several, single};
use rediscope_testing::{eventually, try_for};
use tokio::task::LocalSet;

use crate::fixture::{LONG, SOON};

type Boxed = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

fn builder(url: &str) -> Builder {
    SessionManager::builder(url).checkout_timeout(SOON).response_timeout(Duration::from_secs(2))
}

fn connect(server: &Server) -> SessionManager {
    builder(&server.url()).build_async().unwrap()
}

/// Keys of all held locks and of all places in queues.
fn left(server: &Server) -> Vec<String> {
    let keys: Vec<String> = server.ask(&["KEYS", "rediscope:*{*}"]);
    keys.into_iter().filter(|key| !key.contains("fence")).collect()
}

#[track_caller]
fn nothing_is_left(server: &Server, what: &str) {
    eventually(SOON, what, || left(server).is_empty());
}

/// Returns once the server has nothing of a lock any more, long before a lease would end.
async fn is_free_soon(server: &Server, what: &str, begun: Instant) {
    while !left(server).is_empty() {
        assert!(begun.elapsed() < SOON / 2, "{what}: {:?}", left(server));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn is_lost<T>(result: Result<T, Error>) -> bool {
    matches!(result, Err(Error::Lock(LockError::Lost { .. })))
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.unwrap_or_else(|_| panic!("{what}: not in time"))
}

/// Each public call that waits, with captures that it borrows.
fn calls(sessions: &SessionManager) -> Vec<(&'static str, Boxed)> {
    let mut calls = Vec::new();
    let mut add = |name, call: Boxed| calls.push((name, call));
    let lock = |name: &str| sessions.lock(name).lease(LONG);
    let of = lock("acquire");
    add(
        "acquire",
        Box::pin(async move {
            let guard = of.acquire(SOON).await?;
            guard.ensure_held().await?;
            assert!(guard.fencing_token() > 0 && !guard.is_lost());
            guard.share().release().await?;
            guard.release().await
        }),
    );
    let of = lock("try").fair();
    add(
        "try_acquire",
        Box::pin(async move {
            let guard = of.try_acquire().await?;
            assert!(of.holder().await?.is_some());
            drop(guard);
            of.is_locked().await.map(drop)
        }),
    );
    let of = lock("hold");
    add(
        "hold",
        Box::pin(async move {
            let (text, values) = (String::from("under"), vec![1, 2]);
            let sum = of
                .hold(SOON, async |guard| {
                    guard.ensure_held().await?;
                    tokio::task::yield_now().await;
                    Ok(text.len() + values.iter().sum::<usize>())
                })
                .await?;
            assert_eq!(sum, 8);
            Ok(())
        }),
    );
    let of = lock("hold_with");
    add(
        "hold_with",
        Box::pin(async move {
            let text = String::from("own");
            let result: Result<(), Box<dyn std::error::Error + Send + Sync>> =
                of.hold_with(SOON, async |_| Err(text.as_str().into())).await;
            assert_eq!(result.unwrap_err().to_string(), "own");
            assert!(!of.is_locked().await?);
            Ok(())
        }),
    );
    let of = lock("select");
    add(
        "lost",
        Box::pin(async move {
            let guard = of.acquire(SOON).await?;
            let lost = guard.lost();
            tokio::select! {
                why = lost.clone() => panic!("{why}"),
                held = guard.ensure_held() => held?,
            }
            guard.release().await
        }),
    );
    let printers = sessions.semaphore("printers", 2).lease(LONG);
    add(
        "semaphore",
        Box::pin(async move {
            let permit = printers.acquire(SOON).await?;
            printers.set_permits(3).await?;
            let both = printers.clone().permits(2).try_acquire().await?;
            assert_eq!(printers.available().await?, 0);
            drop((permit, both));
            printers.force_release().await.map(drop)
        }),
    );
    let of = lock("handed over");
    add(
        "into_token and adopt",
        Box::pin(async move {
            let token = of.acquire(SOON).await?.into_token()?;
            let guard = of.adopt(&token).await?;
            assert_eq!(guard.fencing_token(), token.fencing_token());
            assert!(is_lost(of.adopt(&token).await));
            guard.release().await
        }),
    );
    let (of, status) = (lock("given"), sessions.clone());
    add(
        "a release that gives the lock to a waiter",
        Box::pin(async move {
            let guard = of.acquire(SOON).await?;
            let release = async {
                while status.status().locks.waiting == 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                guard.release().await
            };
            let (next, released) = tokio::join!(of.acquire(SOON), release);
            released?;
            next?.release().await
        }),
    );
    let both = sessions.lock_all(["all 1", "all 2"]).lease(LONG);
    add(
        "lock_all",
        Box::pin(async move {
            let guard = both.acquire(SOON).await?;
            tokio::select! {
                why = guard.lost() => panic!("{why}"),
                held = guard.ensure_held() => held?,
            }
            assert!(both.try_acquire().await?.is_none());
            guard.release().await?;
            let text = String::from("under");
            let under = both.hold(SOON, async |both| {
                both.ensure_held().await?;
                Ok(text.len())
            });
            assert_eq!(under.await?, 5);
            let own: Result<(), Box<dyn std::error::Error + Send + Sync>> =
                both.hold_with(SOON, async |_| Err(text.as_str().into())).await;
            assert_eq!(own.unwrap_err().to_string(), "under");
            drop(both.acquire(SOON).await?.release_each());
            Ok(())
        }),
    );
    let (catalogue, accounts) = (sessions.rw_lock("catalogue"), sessions.transactional());
    add(
        "rw_lock and fenced_by",
        Box::pin(async move {
            let reading = catalogue.read().acquire(SOON).await?;
            accounts.fenced_by(&reading).run(|tx| Ok(tx.incr("fenced", 1))).await?;
            drop(reading);
            catalogue.write().acquire(SOON).await?.release().await
        }),
    );
    calls
}

async fn spawn_all(sessions: &SessionManager) {
    for (name, call) in calls(sessions) {
        let done = soon(name, tokio::spawn(call)).await.unwrap();
        done.unwrap_or_else(|error| panic!("{name}: {error:?}"));
    }
}

#[test]
fn every_call_of_a_lock_is_spawned_on_each_kind_of_runtime() {
    let server = Server::start();
    for runtime in [single(), several()] {
        runtime.block_on(async {
            let sessions = connect(&server);
            spawn_all(&sessions).await;
            assert_eq!(sessions.close(SOON).await.locks, 0);
        });
        eventually(SOON, "no task is alive", || runtime.metrics().num_alive_tasks() == 0);
    }
    let runtime = single();
    LocalSet::new().block_on(&runtime, async {
        let sessions = connect(&server);
        for (name, call) in calls(&sessions) {
            let local = std::rc::Rc::new(name);
            let done = tokio::task::spawn_local(async move {
                let done = call.await;
                drop(local);
                done
            });
            done.await.unwrap().unwrap_or_else(|error| panic!("{name}: {error:?}"));
        }
    });
    nothing_is_left(&server, "all locks are released");
}

#[test]
fn a_call_under_a_lock_ends_where_it_waits_when_the_lock_is_lost() {
    let server = Server::start();
    several().block_on(async {
        let (sessions, other) = (connect(&server), connect(&server));
        let lock = sessions.lock("l").lease(Duration::from_millis(600));
        let ended = Arc::new(AtomicBool::new(false));
        let flag = scopeguard(Arc::clone(&ended));
        let held = lock.hold(SOON, async |guard| {
            let _ended = &flag;
            assert!(other.lock("l").force_release().await?);
            let lost = guard.lost();
            std::future::pending::<()>().await;
            drop(lost);
            Ok(())
        });
        assert!(is_lost(soon("the call ends", held).await));
        drop(flag);
        assert!(ended.load(Ordering::SeqCst));
        // By the clock alone too.
        let guard = lock.clone().fixed_lease().acquire(SOON).await.unwrap();
        let (lost, clone) = (guard.lost(), guard.lost());
        let task = tokio::spawn(clone);
        assert_eq!(soon("it is lost", lost.clone()).await, LostReason::Expired);
        assert_eq!(task.await.unwrap(), LostReason::Expired);
        assert_eq!(lost.await, LostReason::Expired);
        assert!(is_lost(guard.release().await));
        // A released lock is not lost.
        let guard = lock.acquire(SOON).await.unwrap();
        let lost = guard.lost();
        guard.release().await.unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(50), lost).await.is_err());
    });
}

#[test]
fn a_waker_that_panics_takes_no_other_task_and_no_callback_the_loss_of_its_lock() {
    let server = Server::start();
    several().block_on(async {
        let (sessions, other) = (connect(&server), connect(&server));
        let guard =
            sessions.lock("l").lease(Duration::from_millis(600)).acquire(SOON).await.unwrap();
        let called = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&called);
        guard.on_lost(move || flag.store(true, Ordering::SeqCst));
        let mut first = Box::pin(guard.lost());
        let panics = panicking_waker();
        assert!(first.as_mut().poll(&mut Context::from_waker(&panics)).is_pending());
        let second = tokio::spawn(guard.lost());
        tokio::task::yield_now().await;
        assert!(other.lock("l").force_release().await.unwrap());
        soon("the other task is woken", second).await.unwrap();
        eventually(SOON, "the callback is called", || called.load(Ordering::SeqCst));
    });
}

#[test]
fn a_call_under_several_locks_ends_when_one_of_them_is_lost() {
    let server = Server::start();
    several().block_on(async {
        let (sessions, other) = (connect(&server), connect(&server));
        let all = sessions.lock_all(["a", "b", "c"]).lease(Duration::from_millis(600));
        let held = all.hold(SOON, async |guard| {
            assert!(other.lock("b").force_release().await?);
            let lost = guard.lost();
            std::future::pending::<()>().await;
            drop(lost);
            Ok(())
        });
        assert!(is_lost(soon("the call ends", held).await));
        // By the clock alone too, and in each clone.
        let guard = all.clone().fixed_lease().acquire(SOON).await.unwrap();
        let (lost, task) = (guard.lost(), tokio::spawn(guard.lost()));
        assert_eq!(soon("it is lost", lost.clone()).await, LostReason::Expired);
        assert_eq!(task.await.unwrap(), LostReason::Expired);
        assert_eq!(lost.await, LostReason::Expired);
        let released = guard.release_each().await;
        // The lease of the first name began first.
        assert!(released.len() == 3 && released.into_iter().any(|(_, one)| is_lost(one)));
        // Released locks are not lost, and one that another guard still has is.
        let guard = all.lease(LONG).acquire(SOON).await.unwrap();
        let (second, lost) = (guard.get("c").unwrap().share(), guard.lost());
        guard.release().await.unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(50), lost.clone()).await.is_err());
        assert!(other.lock("c").force_release().await.unwrap());
        assert!(is_lost(second.ensure_held().await));
        assert_eq!(soon("the last one is lost", lost).await, LostReason::Gone);
    });
    nothing_is_left(&server, "all locks are released");
}

/// Sets the flag when it is dropped.
fn scopeguard(flag: Arc<AtomicBool>) -> impl Drop + Send + Sync {
    struct Flag(Arc<AtomicBool>);
    impl Drop for Flag {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    Flag(flag)
}

#[test]
fn a_guard_that_is_dropped_outside_of_a_runtime_or_after_its_end_leaves_no_lock() {
    let server = Server::start();
    let sessions = connect(&server);
    let runtime = several();
    let guard = runtime.block_on(sessions.lock("l").lease(LONG).acquire(SOON)).unwrap();
    drop(guard);
    nothing_is_left(&server, "the runtime's task releases it");
    let guard = runtime.block_on(sessions.lock("l").lease(LONG).acquire(SOON)).unwrap();
    let lost = guard.lost();
    let waiting = sessions.lock("l");
    runtime.spawn(async move { drop(waiting.acquire(LONG).await) });
    eventually(SOON, "it waits", || sessions.status().locks.waiting == 1);
    runtime.shutdown_timeout(SOON);
    assert_eq!(sessions.status().locks.waiting, 0);
    drop(guard);
    drop(lost);
    // The next runtime sends what is left.
    let next = several();
    next.block_on(async {
        let guard = soon("it is free", sessions.lock("l").acquire(SOON)).await.unwrap();
        guard.release().await.unwrap();
        assert_eq!(sessions.close(SOON).await.locks, 0);
    });
    nothing_is_left(&server, "nothing is left");
    eventually(SOON, "no task is alive", || next.metrics().num_alive_tasks() == 0);
}

#[test]
fn two_runtimes_extend_and_wait_for_locks_of_one_manager() {
    let server = Server::start();
    let sessions = connect(&server);
    let (one, other) = (several(), several());
    let lease = Duration::from_secs(1);
    let first = one.block_on(sessions.lock("one").lease(lease).acquire(SOON)).unwrap();
    let second = other.block_on(sessions.lock("two").lease(lease).acquire(SOON)).unwrap();
    let waiting = sessions.lock("one");
    let waiter = other.spawn(async move { waiting.acquire(SOON).await });
    eventually(SOON, "it waits and listens", || {
        let locks = sessions.status().locks;
        locks.waiting == 1 && locks.subscriptions == 1
    });
    one.block_on(first.release()).unwrap();
    let first = other.block_on(waiter).unwrap().unwrap();
    // The lease of a guard outlives the runtime that acquired it, while another one runs.
    let moved = one.block_on(sessions.lock("moved").lease(lease).acquire(SOON)).unwrap();
    one.shutdown_timeout(SOON);
    let begun = Instant::now();
    while begun.elapsed() < 2 * lease {
        assert!(!moved.is_lost() && !first.is_lost() && !second.is_lost());
        std::thread::sleep(Duration::from_millis(20));
    }
    other.block_on(async {
        for guard in [moved, first, second] {
            guard.release().await.unwrap();
        }
        assert_eq!(sessions.close(SOON).await.locks, 0);
    });
    eventually(SOON, "no task is alive", || other.metrics().num_alive_tasks() == 0);
}

#[test]
fn no_task_is_alive_after_the_last_handle_and_a_guard_works_without_the_manager() {
    let server = Server::start();
    let runtime = several();
    let (guard, waiter) = runtime.block_on(async {
        let sessions = connect(&server);
        let guard = sessions.lock("l").lease(LONG).acquire(SOON).await.unwrap();
        let waiting = sessions.lock("l");
        let waiter = tokio::spawn(async move { waiting.acquire(SOON).await.map(drop) });
        while sessions.status().locks.subscriptions == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        guard.ensure_held().await.unwrap();
        (guard, waiter)
    });
    drop(guard);
    runtime.block_on(waiter).unwrap().unwrap();
    nothing_is_left(&server, "all is released");
    eventually(SOON, "no task is alive", || runtime.metrics().num_alive_tasks() == 0);
    eventually(SOON, "no connection is left", || server.clients() == 0);
}

#[test]
fn a_close_waits_for_guards_and_releases_what_was_dropped() {
    let server = Server::start();
    let runtime = several();
    runtime.block_on(async {
        let sessions = connect(&server);
        let kept = sessions.lock("kept").lease(LONG).acquire(SOON).await.unwrap();
        for nth in 0..50 {
            drop(sessions.lock(format!("{nth}")).lease(LONG).acquire(SOON).await.unwrap());
        }
        let waiting = sessions.lock("kept");
        let waiter = tokio::spawn(async move { waiting.acquire(SOON).await });
        eventually(SOON, "it waits", || sessions.status().locks.waiting == 1);
        let closed = soon("close", sessions.close(Duration::from_millis(300))).await;
        assert_eq!(closed.locks, 1);
        assert!(waiter.await.unwrap().is_err());
        assert!(sessions.lock("new").acquire(SOON).await.is_err());
        kept.release().await.unwrap();
    });
    nothing_is_left(&server, "all is released");
    eventually(SOON, "no task is alive", || runtime.metrics().num_alive_tasks() == 0);
}

/// A session manager whose releases soon continue in the background.
fn fails_soon(proxy: &Proxy) -> SessionManager {
    builder(&proxy.url())
        .connect_timeout(Duration::from_millis(100))
        .response_timeout(Duration::from_millis(150))
        .checkout_timeout(Duration::from_millis(500))
        .build_async()
        .unwrap()
}

#[test]
fn a_close_waits_for_a_release_that_is_being_repeated_in_two_runtimes() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let sessions = fails_soon(&proxy);
    let (one, other) = (several(), several());
    let lock = |name: &str| sessions.lock(name).lease(LONG);
    let guard = one.block_on(lock("l").acquire(SOON)).unwrap();
    // The other runtime has a task that extends leases, and no lock any more.
    other.block_on(async { lock("m").acquire(SOON).await?.release().await }).unwrap();
    proxy.close_listener();
    proxy.cut_all();
    // Without a runtime, the release is left to the tasks.
    let releasing = one.block_on(async { guard.release().await });
    assert!(releasing.is_err(), "{releasing:?}");
    assert_eq!(sessions.status().locks.releasing, 1);
    let closing = one.spawn({
        let sessions = sessions.clone();
        async move { sessions.close(SOON).await }
    });
    let ended = try_for(Duration::from_secs(1), || closing.is_finished().then_some(()));
    assert_eq!(ended, None, "the close waits for the release");
    proxy.reopen_listener();
    nothing_is_left(&server, "the lock is released");
    assert_eq!(one.block_on(closing).unwrap().locks, 0);
}

#[test]
fn a_release_that_a_stalled_runtime_has_taken_is_sent_by_another_one() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let sessions = fails_soon(&proxy);
    let (one, other) = (single(), several());
    let lock = |name: &str| sessions.lock(name).lease(LONG);
    let guard = one.block_on(lock("l").acquire(SOON)).unwrap();
    proxy.close_listener();
    proxy.cut_all();
    // The task of this runtime takes the release while it fails, and stands still from then on.
    one.block_on(guard.release()).unwrap_err();
    one.block_on(async {
        while sessions.status().locks.releasing == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    });
    proxy.reopen_listener();
    drop(other.block_on(lock("m").acquire(SOON)).unwrap());
    nothing_is_left(&server, "the other runtime has released the lock");
    drop(one);
}

#[test]
fn a_dropped_guard_whose_runtime_stands_still_is_released_by_another_one() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let sessions = fails_soon(&proxy);
    let (one, other) = (single(), several());
    let lock = |name: &str| sessions.lock(name).lease(LONG);
    let guard = one.block_on(lock("l").acquire(SOON)).unwrap();
    // The connection is lost, so that the release is under way for a while.
    proxy.close_listener();
    proxy.cut_all();
    drop(guard);
    // The task of this runtime takes the release, and stands still from then on.
    one.block_on(async {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    });
    proxy.reopen_listener();
    drop(other.block_on(lock("m").acquire(SOON)).unwrap());
    nothing_is_left(&server, "the other runtime has released the lock");
    assert_eq!(sessions.status().locks.releasing, 0);
    drop(one);
}

#[test]
fn a_release_that_is_polled_once_gives_the_lock() {
    let server = Server::start();
    let sessions = connect(&server);
    let runtime = several();
    let lock = sessions.lock("l").lease(LONG);
    let guard = runtime.block_on(lock.acquire(SOON)).unwrap();
    let waiter = runtime.spawn(async move { lock.acquire(LONG).await?.release().await });
    eventually(SOON, "it waits and listens", || {
        let locks = sessions.status().locks;
        locks.waiting == 1 && locks.subscriptions == 1
    });
    let token = || server.ask::<u64>(&["GET", "rediscope:fence"]);
    let before = token();
    let _runtime = runtime.enter();
    let mut release = pin!(guard.release());
    let mut context = Context::from_waker(Waker::noop());
    // More than one poll only if the connection was not ready.
    let given = || try_for(Duration::from_millis(100), || (token() > before).then_some(()));
    while given().is_none() {
        assert!(release.as_mut().poll(&mut context).is_pending());
    }
    eventually(SOON, "the waiter has noticed", || waiter.is_finished());
    runtime.block_on(waiter).unwrap().unwrap();
    nothing_is_left(&server, "it has released the lock");
}

/// After as many polls, a call whose requests are all cut repeats what it did before.
const POLLS: usize = 20;

/// What happens to the connection while the call is under way.
const FAULTS: [Option<(Trigger, Fault)>; 3] = [
    None,
    Some((Trigger::BeforeReplyTo("EVALSHA"), Fault::Cut)),
    Some((Trigger::BeforeReplyTo("SUBSCRIBE"), Fault::Cut)),
];

/// Drops a call for `lock` after each of its polls, with the lock free and held. No lock is left, and the next waiter
/// gets it.
async fn dropped_after_each_poll(server: &Server, proxy: &Proxy, lock: &Lock, next: &Lock) {
    for fault in FAULTS {
        for held in [false, true] {
            for polls in 0..POLLS {
                let what = format!("{fault:?}, held: {held}, {polls} polls");
                let holder = match held {
                    true => Some(next.acquire(SOON).await.unwrap()),
                    false => None,
                };
                if let Some((trigger, fault)) = fault {
                    proxy.arm((trigger, fault));
                }
                let release = async {
                    if let Some(holder) = holder {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                        holder.release().await.unwrap();
                    }
                };
                let (ended, ()) = tokio::join!(poll_at_most(polls, lock.acquire(LONG)), release);
                proxy.disarm();
                let has_ended = ended.is_some();
                drop(ended.map(Result::unwrap));
                let begun = Instant::now();
                let guard: LockGuard = soon(&what, next.acquire(SOON)).await.unwrap();
                assert!(begun.elapsed() < SOON / 2, "{what}: it waited for the lease");
                guard.release().await.unwrap();
                is_free_soon(server, &what, begun).await;
                if has_ended {
                    break;
                }
            }
        }
    }
}

#[test]
fn a_call_that_is_dropped_at_any_poll_leaves_no_lock_and_the_next_waiter_gets_it() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    several().block_on(async {
        let (sessions, other) = (builder(&proxy.url()).build_async().unwrap(), connect(&server));
        let locks = |sessions: &SessionManager| {
            [
                sessions.lock("l"),
                sessions.lock("f").fair(),
                sessions.semaphore("s", 1),
                sessions.semaphore("several", 3).permits(2).fair(),
                sessions.rw_lock("w").write(),
            ]
            .map(|lock| lock.lease(LONG))
        };
        for (lock, next) in locks(&sessions).iter().zip(&locks(&other)) {
            dropped_after_each_poll(&server, &proxy, lock, next).await;
        }
        sessions.close(SOON).await;
        other.close(SOON).await;
    });
}

#[test]
fn an_adoption_that_is_dropped_at_any_poll_leaves_the_token_or_no_lock() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    several().block_on(async {
        let (sessions, other) = (builder(&proxy.url()).build_async().unwrap(), connect(&server));
        let (here, there) = (sessions.lock("l").lease(LONG), other.lock("l").lease(LONG));
        for fault in FAULTS {
            for polls in 0..POLLS {
                let what = format!("{fault:?}, {polls} polls");
                let token = there.acquire(SOON).await.unwrap().into_token().unwrap();
                if let Some((trigger, fault)) = fault {
                    proxy.arm((trigger, fault));
                }
                let ended = poll_at_most(polls, here.adopt(&token)).await;
                proxy.disarm();
                let has_ended = ended.is_some();
                drop(ended);
                // A request that is still under way is overtaken by this one, or the other way round.
                match there.adopt(&token).await {
                    Ok(guard) => guard.release().await.unwrap(),
                    Err(error) => assert!(is_lost(Err::<(), _>(error)), "{what}"),
                }
                let begun = Instant::now();
                let guard = soon(&what, there.acquire(SOON)).await.unwrap();
                assert!(begun.elapsed() < SOON / 2, "{what}: it waited for the lease");
                guard.release().await.unwrap();
                is_free_soon(&server, &what, begun).await;
                if has_ended {
                    break;
                }
            }
        }
        sessions.close(SOON).await;
        other.close(SOON).await;
    });
}

#[test]
fn a_call_for_several_locks_that_is_dropped_at_any_poll_leaves_none() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    several().block_on(async {
        let (sessions, other) = (builder(&proxy.url()).build_async().unwrap(), connect(&server));
        let names = ["a", "b"];
        let here = sessions.lock_all(names).lease(LONG);
        let there = other.lock_all(names).lease(LONG);
        for fault in FAULTS {
            for held in [None, Some("b")] {
                for polls in 0..POLLS {
                    let what = format!("{fault:?}, held: {held:?}, {polls} polls");
                    let holder = match held {
                        Some(name) => Some(other.lock(name).acquire(SOON).await.unwrap()),
                        None => None,
                    };
                    if let Some((trigger, fault)) = fault {
                        proxy.arm((trigger, fault));
                    }
                    let release = async {
                        if let Some(holder) = holder {
                            tokio::time::sleep(Duration::from_millis(5)).await;
                            holder.release().await.unwrap();
                        }
                    };
                    let (ended, ()) =
                        tokio::join!(poll_at_most(polls, here.acquire(LONG)), release);
                    proxy.disarm();
                    let has_ended = ended.is_some();
                    drop(ended.map(Result::unwrap));
                    let begun = Instant::now();
                    let guard = soon(&what, there.acquire(SOON)).await.unwrap();
                    assert!(begun.elapsed() < SOON / 2, "{what}: it waited for the lease");
                    guard.release().await.unwrap();
                    is_free_soon(&server, &what, begun).await;
                    if has_ended {
                        break;
                    }
                }
            }
        }
        sessions.close(SOON).await;
        other.close(SOON).await;
    });
}

#[test]
fn a_waiter_that_is_dropped_after_its_wakeup_gives_it_to_the_next_one() {
    let server = Server::start();
    single().block_on(async {
        let (sessions, other) = (connect(&server), connect(&server));
        let lock = sessions.lock("l").lease(LONG);
        for round in 0..20 {
            let guard = other.lock("l").lease(LONG).acquire(SOON).await.unwrap();
            let mut first = Box::pin(lock.acquire(SOON));
            assert!(poll_at_most(1, &mut first).await.is_none());
            while sessions.status().locks.subscriptions == 0 || sessions.status().locks.waiting == 0
            {
                assert!(poll_at_most(1, &mut first).await.is_none());
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let second = tokio::spawn({
                let lock = lock.clone();
                async move { lock.acquire(SOON).await }
            });
            while sessions.status().locks.waiting < 2 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            guard.release().await.unwrap();
            let begun = Instant::now();
            while round % 2 == 0 && sessions.status().locks.permits == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            drop(first);
            let guard = soon("the second one gets it", second).await.unwrap().unwrap();
            assert!(begun.elapsed() < SOON / 2, "round {round}: {:?}", begun.elapsed());
            guard.release().await.unwrap();
        }
    });
    nothing_is_left(&server, "all is released");
}
