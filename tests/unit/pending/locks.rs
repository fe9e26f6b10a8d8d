//! Locks on both sides; and the calls of a task, dropped after each of their polls.
//!
//! Guarantee: locks, tasks

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::error::any::Error;
use crate::error::lock::{LockError, LostReason};
use crate::lock::client::ScriptClient;
use crate::lock::held::AcquiredLock;
use crate::lock::io::{LockIo, Renewals};
use crate::lock::lease::LockLease;
use crate::lock::manager::LockManager;
use crate::lock::renewal::{Due, RenewalState};
use crate::lock::target::LockTarget;
use crate::lock::waiters::{Flags, Giving, Notifier, Registration, Waiters};
use crate::pool::config::PoolConfig;
use crate::pool::pending::conversations::Found;
use crate::pool::pending::stub::StubPool;
use crate::pool::pending::{pending_once, poll_at_most, run};
use crate::pool::router::Router;
use crate::pool::server_pool::ServerPool;
use crate::pool::tests::{SOON, Server, config_of_one, eventually};
use crate::process::worker::Next;
use crate::protocol::handshake::Purpose;
use crate::protocol::lock::acquire::{LockMode, LockRequest};
use crate::protocol::lock::script::ScriptCall;
use crate::settings::settings::Settings;
use crate::status::locks::LockCounters;
use crate::sync::now::now;
use crate::sync::{lock, shim};

/// The locks of tasks.
struct StubLocks {
    client: ScriptClient<StubPool>,
    settings: Arc<Settings>,
    counters: Arc<LockCounters>,
    renewals: StubRenewals,
    waiters: Arc<Waiters<StubNotifier>>,
    /// The work of dropped futures and guards.
    rest: Mutex<Vec<Pin<Box<dyn Future<Output = ()> + Send>>>>,
}

impl StubLocks {
    fn new(server: &Server) -> Arc<Self> {
        let [pooled, own] = routers::<StubPool>(server);
        let settings = Arc::clone(pooled.settings());
        Arc::new(Self {
            client: ScriptClient::new(pooled, own),
            settings,
            counters: Arc::default(),
            renewals: StubRenewals::default(),
            waiters: Arc::default(),
            rest: Mutex::default(),
        })
    }

    /// Does the work of dropped futures and guards.
    fn finish(&self) {
        let next = || lock(&self.rest).pop();
        while let Some(rest) = next() {
            run(rest);
        }
        eventually(SOON, "nothing is left to release", || {
            if let Some(due) = self.due(Instant::now()) {
                run(self.renew(due));
            }
            lock(&self.renewals.state).is_idle()
        });
    }

    fn due(&self, at: Instant) -> Option<Due> {
        match lock(&self.renewals.state).next(at) {
            Next::Run(due) => Some(due),
            _ => None,
        }
    }

    async fn renew(&self, due: Due) {
        let end = |releases: Vec<_>| lock(&self.renewals.state).end_releases(&releases);
        due.run(&self.client, end).await;
    }
}

impl LockIo for StubLocks {
    type Pool = StubPool;
    type Renewals = StubRenewals;
    type Waiter = Registration<StubNotifier>;
    type NextWaiter = Giving<StubNotifier>;
    type Changes = ();

    fn client(&self) -> &ScriptClient<StubPool> {
        &self.client
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn counters(&self) -> &Arc<LockCounters> {
        &self.counters
    }

    fn renewals(&self) -> &StubRenewals {
        &self.renewals
    }

    fn join(&self, request: &LockRequest, owner_token: &str) -> Registration<StubNotifier> {
        let next_holder = request.next_holder(owner_token);
        Waiters::join(&self.waiters, &request.names.wake, owner_token, next_holder)
    }

    fn join_live(
        &self,
        request: &LockRequest,
        owner_token: &str,
    ) -> Option<Registration<StubNotifier>> {
        let next_holder = request.next_holder(owner_token);
        Waiters::join_live(&self.waiters, &request.names.wake, owner_token, next_holder)
    }

    fn next_waiter(&self, channel: &str) -> Option<Giving<StubNotifier>> {
        self.waiters.next_holder(channel)
    }

    async fn listen(&self, _limit: Instant) {
        pending_once().await;
    }

    async fn settle((): &(), _by: Instant) -> Option<impl Send> {
        pending_once().await;
        Some(())
    }

    fn clean_up(&self, rest: impl Future<Output = ()> + Send + 'static) {
        lock(&self.rest).push(Box::pin(rest));
    }
}

/// The leases of tasks, which the test renews itself.
#[derive(Default)]
struct StubRenewals {
    state: Mutex<RenewalState>,
}

/// An acquisition in progress.
struct Begun<'r>(&'r StubRenewals);

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).end_acquisition();
    }
}

impl Renewals for StubRenewals {
    fn begin_acquisition(&self) -> Result<impl Drop + Send, Error> {
        lock(&self.state).begin_acquisition();
        Ok(Begun(self))
    }

    fn watch(&self, lock_lease: &Arc<LockLease>) {
        lock(&self.state).watch(lock_lease);
    }

    fn forget(&self, lock_lease: &Arc<LockLease>) {
        lock(&self.state).forget(lock_lease);
    }

    fn pending_release(&self, call: ScriptCall, until: Instant) {
        lock(&self.state).add_release(call, until);
    }

    fn answered(&self, key: String) {
        lock(&self.state).add_answered(key);
    }

    fn take_answered(&self, holders: &str) -> Vec<String> {
        lock(&self.state).take_answered(holders, false)
    }

    fn extends(&self) -> bool {
        lock(&self.state).extends()
    }
}

/// A waiter that looks again at each poll.
#[derive(Default)]
struct StubNotifier;

impl Notifier for StubNotifier {
    fn notify(&self) {}

    async fn wait(&self, flags: &shim::Mutex<Flags>, until: Instant) -> bool {
        loop {
            pending_once().await;
            if shim::lock(flags).take_reason() {
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
        }
    }
}

/// The pools of the locks: the pooled one, and their own.
fn routers<P: ServerPool>(server: &Server) -> [Router<P>; 2] {
    let (config, endpoint) = config_of_one(server, 2 * SOON);
    let config = PoolConfig { purpose: Purpose::Pooled, ..config };
    [Router::one(config.clone(), endpoint.clone()), Router::one(config, endpoint)]
}

fn target<M: LockIo>(manager: &Arc<M>, name: &str, mode: LockMode) -> LockTarget<M> {
    LockTarget::new(Arc::clone(manager), "test", name, mode, 1)
}

fn outcome<T>(result: Result<T, Error>) -> String {
    match result {
        Ok(_) => "ok".to_owned(),
        Err(Error::Lock(LockError::Timeout { holder, .. })) => {
            format!("timeout, holder known: {}", holder.is_some())
        }
        Err(Error::Lock(LockError::Lost { why })) => format!("lost: {why}"),
        Err(error) => format!("{error:?}"),
    }
}

async fn locks<M: LockIo>(manager: &Arc<M>) -> Found {
    let one = target(manager, "one", LockMode::Exclusive);
    let held = one.acquire(Duration::ZERO).await.unwrap();
    let mut found = vec![
        outcome(one.acquire(Duration::ZERO).await),
        outcome(held.ensure_held().await),
        format!("held: {}", one.holder().await.unwrap().is_some()),
        outcome(held.release(Instant::now() + SOON).await),
        format!("held: {}", one.holder().await.unwrap().is_some()),
    ];
    // The second caller waits until the first lease ends.
    let mut short = one.clone();
    short.set_lease(Duration::from_millis(50));
    short.request.renewed = false;
    let first = short.acquire(Duration::ZERO).await.unwrap();
    let second = one.acquire(SOON).await.unwrap();
    found.push(outcome(first.ensure_held().await));
    found.push(format!("forced: {}", one.force_release().await.unwrap()));
    found.push(outcome(second.ensure_held().await));
    found.push(outcome(second.release(Instant::now() + SOON).await));
    let two = target(manager, "two", LockMode::Semaphore);
    let permit = two.acquire(Duration::ZERO).await.unwrap();
    found.push(outcome(two.acquire(Duration::ZERO).await));
    found.push(outcome(two.set_permits(2).await));
    found.push(outcome(two.acquire(SOON).await));
    drop(permit);
    found
}

#[test]
fn both_sides_acquire_check_and_release_locks() {
    let server = Server::start();
    let [pooled, own] = routers(&server);
    let by_thread = Arc::new(LockManager::new(pooled, own));
    let found = now(locks(&by_thread));
    by_thread.close();
    assert_eq!(by_thread.renewer.end_renewals(Instant::now() + SOON), 0);
    let by_task = StubLocks::new(&server);
    assert_eq!(run(locks(&by_task)), found);
    by_task.finish();
    let lost = |why: LostReason| format!("lost: {why}");
    let busy = "timeout, holder known: true";
    assert_eq!(found[..5], [busy, "ok", "held: true", "ok", "held: false"]);
    assert_eq!(found[5], lost(LostReason::Expired));
    assert_eq!(found[6], "forced: true");
    assert_eq!(found[7..9], [lost(LostReason::Gone), lost(LostReason::Gone)]);
    assert_eq!(found[10..], ["ok", "ok"]);
}

/// Drops a call after no poll, after one, and so on, until it ends. Then the lock is free.
fn drop_after_each_poll(
    mut call: impl FnMut(&Arc<StubLocks>, &LockTarget<StubLocks>, usize) -> bool,
) {
    let server = Server::start();
    for polls in 0.. {
        let manager = StubLocks::new(&server);
        let name = polls.to_string();
        let ended = call(&manager, &target(&manager, &name, LockMode::Exclusive), polls);
        manager.finish();
        assert_eq!(manager.counters.status().held, 0);
        drop(manager);
        eventually(SOON, "the connections are closed", || server.clients().is_empty());
        let manager = StubLocks::new(&server);
        let free = run(target(&manager, &name, LockMode::Exclusive).acquire(Duration::ZERO));
        assert_eq!(outcome(free), "ok", "after {polls} polls");
        manager.finish();
        if ended {
            assert!(polls > 3, "the call was pending {polls} times");
            break;
        }
    }
}

fn acquired(target: &LockTarget<StubLocks>) -> AcquiredLock<StubLocks> {
    run(target.acquire(Duration::ZERO)).unwrap()
}

#[test]
fn a_dropped_acquisition_leaves_no_lock() {
    drop_after_each_poll(|_, target, polls| {
        poll_at_most(polls, target.acquire(Duration::ZERO)).is_some()
    });
}

#[test]
fn a_lock_whose_release_is_dropped_is_released() {
    drop_after_each_poll(|_, target, polls| {
        let held = acquired(target);
        poll_at_most(polls, held.release(Instant::now() + SOON)).is_some()
    });
}

#[test]
fn a_lock_whose_check_or_renewal_is_dropped_is_still_held() {
    drop_after_each_poll(|_, target, polls| {
        let held = acquired(target);
        let ended = poll_at_most(polls, held.ensure_held()).is_some();
        assert_eq!(outcome(run(held.ensure_held())), "ok");
        ended
    });
    drop_after_each_poll(|manager, target, polls| {
        let held = acquired(target);
        let due = manager.due(Instant::now() + held.lock_lease().lease / 2).unwrap();
        let ended = poll_at_most(polls, manager.renew(due)).is_some();
        assert_eq!(manager.counters.status().renewals, u64::from(ended));
        assert_eq!(outcome(run(held.ensure_held())), "ok");
        ended
    });
}
