//! The side of the library that the shared suites run on: tasks.
//!
//! Each handle is the handle of `rediscope::aio` of the same name, with calls that return when they are over. The
//! calls are polled on the thread of the test, which is no task; the connections are tasks of one runtime.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use redis::{Cmd, FromRedisValue, RedisResult, ToRedisArgs, ToSingleRedisArg, Value};
use rediscope::commands::{KeyCommands as _, QueueCommands};
use rediscope::error::{CommitToken, ConfigError, InDoubt, Resolution};
use rediscope::lock::{HoldToken, LockHolder};
use rediscope::status::{Closed, OpenScope, PoolStatus, Status};
use rediscope::{
    Block, Builder, Condition, Error, IntoAddress, IntoKeys, Mode, Outcome, Plain, Replies,
    Resolve, RetryPolicy, TransactionOptions, Watched, WatchedRead, aio,
};
use rediscope_testing::eventually;
use tokio::runtime::Runtime;

use super::fixture::SOON;

/// Whether a large transaction sends commands ahead of its commit.
pub(crate) const SENDS_CHUNKS: bool = false;

/// Whether a provider's panic at a re-authentication is a panic of the caller.
pub(crate) const PROVIDER_PANICS_PASS: bool = false;

/// Items that the tasks do not have yet.
macro_rules! threads_only {
    ($($item:tt)*) => {};
}
pub(crate) use threads_only;

/// Time within which every call is over. A call that lasts longer hangs.
const HANGS: Duration = Duration::from_secs(180);

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).thread_name("side-of-tasks").enable_all().build().unwrap()
});

/// Number of connections that a pool has in addition to `max_size`: the library's default number of lanes.
pub(crate) const LANES: usize = 2;

struct Unpark {
    thread: Thread,
    /// A call inside of this one may use up the thread's token.
    woken: AtomicBool,
}

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

/// Polls `future` on this thread until it is ready. Calls may be nested: the closure of a call makes calls.
#[track_caller]
pub(crate) fn wait<F: Future>(future: F) -> F::Output {
    let started = Instant::now();
    let unpark = Arc::new(Unpark { thread: thread::current(), woken: AtomicBool::new(true) });
    let waker = Waker::from(Arc::clone(&unpark));
    let mut future = pin!(future);
    loop {
        while !unpark.woken.swap(false, Ordering::Acquire) {
            assert!(started.elapsed() < HANGS, "a call is not over after {HANGS:?}");
            thread::park_timeout(HANGS / 100);
        }
        let _runtime = RUNTIME.enter();
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
    }
}

/// Waits until the connections of dropped scopes are idle or closed: their tasks clean them after the drop.
#[track_caller]
pub(crate) fn settled(sessions: &SessionManager) {
    eventually(SOON, "the connections of dropped scopes are clean or closed", || {
        let status = sessions.status();
        [status.pooled, status.transactional].iter().all(|pool| pool.in_use == 0)
    });
}

/// Opens each lane of the transactional handle, in the slot of `key`, if there are lanes.
#[track_caller]
pub(crate) fn open_lanes(sessions: &SessionManager, key: &str) {
    let block = || wait(sessions.inner.transactional().run(|tx| Ok(tx.exists(key)))).map(drop);
    open_each(block, || sessions.status().transactional);
}

/// The same for the pooled handle.
#[track_caller]
pub(crate) fn open_pooled_lanes(sessions: &SessionManager, key: &str) {
    let read = || {
        let exists = redis::cmd("EXISTS").arg(key).take();
        exists.query::<i64>(&mut sessions.pooled()).map(drop).map_err(Error::from)
    };
    open_each(read, || sessions.status().pooled);
}

/// The calls use the lanes in turn. One whose turn it is has a connection opened, if it has none.
#[track_caller]
fn open_each(call: impl Fn() -> Result<(), Error>, status: impl Fn() -> PoolStatus) {
    // So a lane whose connection is dead has noticed it.
    (0..LANES).for_each(|_| drop(call()));
    eventually(SOON, "each lane is open", || {
        let open = call().is_ok();
        // In a cluster, each node has all of its lanes, or none yet.
        open && status().lanes.open.is_multiple_of(LANES)
    });
}

/// Sends what `tx` has queued, which stays until the commit otherwise.
#[track_caller]
pub(crate) fn send_ahead<M: Mode>(tx: &mut Transaction<M>) {
    // Its error is the commit's too.
    drop(wait(tx.0.flush()));
}

/// As the library's own bound, which is private: a closure whose error is not fixed has the library's.
pub(crate) trait WithError<E> {
    fn own(error: E) -> Error;
}

impl<R> WithError<Error> for R {
    fn own(error: Error) -> Error {
        error
    }
}

/// `doubt.resolve()` of this side.
pub(crate) trait ResolveDoubt {
    fn resolved(&self) -> Resolution;
}

impl ResolveDoubt for InDoubt {
    #[track_caller]
    fn resolved(&self) -> Resolution {
        wait(self.resolve_async())
    }
}

/// `builder.build()` on this side.
pub(crate) trait BuildSide {
    fn build_side(self) -> Result<SessionManager, ConfigError>;

    /// Each block and each command has a connection of the pool, which the test is about.
    fn without_lanes(self) -> Self;
}

impl BuildSide for Builder {
    fn build_side(self) -> Result<SessionManager, ConfigError> {
        Ok(SessionManager { inner: self.build_async()? })
    }

    fn without_lanes(self) -> Self {
        self.lanes(0)
    }
}

#[derive(Clone)]
pub(crate) struct SessionManager {
    inner: aio::SessionManager,
}

impl fmt::Debug for SessionManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl SessionManager {
    pub(crate) fn builder(to: impl IntoAddress) -> Builder {
        rediscope::SessionManager::builder(to)
    }

    pub(crate) fn cluster<T: IntoAddress>(nodes: impl IntoIterator<Item = T>) -> Builder {
        rediscope::SessionManager::cluster(nodes)
    }

    pub(crate) fn sentinel<T: IntoAddress>(
        name: &str,
        sentinels: impl IntoIterator<Item = T>,
    ) -> Builder {
        rediscope::SessionManager::sentinel(name, sentinels)
    }

    pub(crate) fn connect(to: impl IntoAddress) -> Result<Self, ConfigError> {
        Self::builder(to).build_side()
    }

    pub(crate) fn transactional(&self) -> Transactional {
        Transactional(self.inner.transactional())
    }

    #[track_caller]
    pub(crate) fn pooled(&self) -> Pooled {
        Pooled(self.inner.pooled())
    }

    #[track_caller]
    pub(crate) fn replica_reads(&self) -> Pooled {
        Pooled(self.inner.replica_reads())
    }

    #[track_caller]
    pub(crate) fn resolve(
        &self,
        token: &CommitToken,
        within: impl Into<Option<Duration>>,
    ) -> Resolution {
        wait(self.inner.resolve(token, within))
    }

    #[track_caller]
    pub(crate) fn ready(&self, within: Duration) -> Result<(), Error> {
        wait(self.inner.ready(within))
    }

    pub(crate) fn open_scopes(&self) -> Vec<OpenScope> {
        self.inner.open_scopes()
    }

    #[track_caller]
    pub(crate) fn close(&self, timeout: Duration) -> Closed {
        wait(self.inner.close(timeout))
    }

    pub(crate) fn status(&self) -> Status {
        self.inner.status()
    }

    pub(crate) fn lock(&self, name: impl AsRef<str>) -> Lock {
        Lock(self.inner.lock(name), self.inner.clone())
    }

    pub(crate) fn semaphore(&self, name: impl AsRef<str>, permits: u32) -> Lock {
        Lock(self.inner.semaphore(name, permits), self.inner.clone())
    }

    pub(crate) fn lock_all(&self, names: impl IntoIterator<Item = impl AsRef<str>>) -> LockAll {
        LockAll(self.inner.lock_all(names), self.inner.clone())
    }

    pub(crate) fn rw_lock(&self, name: impl AsRef<str>) -> RwLock {
        RwLock(self.inner.rw_lock(name), self.inner.clone())
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Lock(aio::Lock, aio::SessionManager);

/// The drop of a guard of threads, and the end of their calls, wait so long for the release.
const CLEANED_WITHIN: Duration = Duration::from_millis(500);

/// Waits until the locks of dropped guards and ended calls are released: their tasks do it after the drop.
fn released(sessions: &aio::SessionManager) {
    let by = Instant::now() + CLEANED_WITHIN;
    while sessions.status().locks.releasing > 0 && Instant::now() < by {
        thread::sleep(Duration::from_micros(200));
    }
}

impl Lock {
    pub(crate) fn lease(self, lease: Duration) -> Self {
        Self(self.0.lease(lease), self.1)
    }

    pub(crate) fn label(self, label: impl Into<Arc<str>>) -> Self {
        Self(self.0.label(label), self.1)
    }

    pub(crate) fn fair(self) -> Self {
        Self(self.0.fair(), self.1)
    }

    pub(crate) fn fixed_lease(self) -> Self {
        Self(self.0.fixed_lease(), self.1)
    }

    pub(crate) fn deadline(self, deadline: Instant) -> Self {
        Self(self.0.deadline(deadline), self.1)
    }

    pub(crate) fn wait_replicas(self, replicas: u32, timeout: Duration) -> Self {
        Self(self.0.wait_replicas(replicas, timeout), self.1)
    }

    pub(crate) fn permits(self, permits: u32) -> Self {
        Self(self.0.permits(permits), self.1)
    }

    #[track_caller]
    pub(crate) fn adopt(&self, token: &HoldToken) -> Result<LockGuard, Error> {
        let adopted = wait(self.0.adopt(token)).map(|guard| self.guard(guard));
        if adopted.is_err() {
            released(&self.1);
        }
        adopted
    }

    #[track_caller]
    pub(crate) fn available(&self) -> Result<u32, Error> {
        wait(self.0.available())
    }

    #[track_caller]
    pub(crate) fn acquire(&self, time: Duration) -> Result<LockGuard, Error> {
        let acquired = wait(self.0.acquire(time)).map(|guard| self.guard(guard));
        if acquired.is_err() {
            released(&self.1);
        }
        acquired
    }

    #[track_caller]
    pub(crate) fn try_acquire(&self) -> Result<Option<LockGuard>, Error> {
        let acquired = wait(self.0.try_acquire()).map(|guard| guard.map(|guard| self.guard(guard)));
        if acquired.is_err() {
            released(&self.1);
        }
        acquired
    }

    fn guard(&self, guard: aio::LockGuard) -> LockGuard {
        LockGuard { guard: Some(guard), sessions: self.1.clone() }
    }

    #[track_caller]
    pub(crate) fn run<R: WithError<E> + Send, E: Send>(
        &self,
        time: Duration,
        closure: impl FnOnce(&LockGuard) -> Result<R, E> + Send,
    ) -> Result<R, Error> {
        self.run_with(time, |guard| closure(guard).map_err(R::own))
    }

    #[track_caller]
    pub(crate) fn run_with<R: Send, E: From<Error> + Send>(
        &self,
        time: Duration,
        closure: impl FnOnce(&LockGuard) -> Result<R, E> + Send,
    ) -> Result<R, E> {
        wait(
            self.0.hold_with(time, async |guard: &aio::LockGuard| {
                closure(&self.guard(guard.share()))
            }),
        )
    }

    #[track_caller]
    pub(crate) fn is_locked(&self) -> Result<bool, Error> {
        wait(self.0.is_locked())
    }

    #[track_caller]
    pub(crate) fn holder(&self) -> Result<Option<LockHolder>, Error> {
        wait(self.0.holder())
    }

    #[track_caller]
    pub(crate) fn force_release(&self) -> Result<bool, Error> {
        wait(self.0.force_release())
    }

    #[track_caller]
    pub(crate) fn set_permits(&self, permits: u32) -> Result<(), Error> {
        wait(self.0.set_permits(permits))
    }
}

#[derive(Clone, Debug)]
pub(crate) struct RwLock(aio::RwLock, aio::SessionManager);

impl RwLock {
    pub(crate) fn read(&self) -> Lock {
        Lock(self.0.read(), self.1.clone())
    }

    pub(crate) fn write(&self) -> Lock {
        Lock(self.0.write(), self.1.clone())
    }
}

#[derive(Debug)]
#[must_use = "dropped, the lock is released"]
pub(crate) struct LockGuard {
    guard: Option<aio::LockGuard>,
    sessions: aio::SessionManager,
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        if let Some(guard) = self.guard.take() {
            drop(guard);
            released(&self.sessions);
        }
    }
}

impl LockGuard {
    fn inner(&self) -> &aio::LockGuard {
        self.guard.as_ref().expect("a guard that was not released")
    }

    pub(crate) fn fencing_token(&self) -> u64 {
        self.inner().fencing_token()
    }

    pub(crate) fn remaining(&self) -> Duration {
        self.inner().remaining()
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.inner().is_lost()
    }

    #[track_caller]
    pub(crate) fn ensure_held(&self) -> Result<(), Error> {
        wait(self.inner().ensure_held())
    }

    pub(crate) fn on_lost(&self, callback: impl FnOnce() + Send + 'static) {
        self.inner().on_lost(callback);
    }

    pub(crate) fn share(&self) -> Self {
        Self { guard: Some(self.inner().share()), sessions: self.sessions.clone() }
    }

    pub(crate) fn into_token(mut self) -> Result<HoldToken, Error> {
        self.guard.take().expect("a guard that was not released").into_token()
    }

    #[track_caller]
    pub(crate) fn release(mut self) -> Result<(), Error> {
        wait(self.guard.take().expect("a guard that was not released").release())
    }
}

#[derive(Clone, Debug)]
pub(crate) struct LockAll(aio::LockAll, aio::SessionManager);

impl LockAll {
    pub(crate) fn lease(self, lease: Duration) -> Self {
        Self(self.0.lease(lease), self.1)
    }

    pub(crate) fn label(self, label: impl Into<Arc<str>>) -> Self {
        Self(self.0.label(label), self.1)
    }

    pub(crate) fn fair(self) -> Self {
        Self(self.0.fair(), self.1)
    }

    pub(crate) fn fixed_lease(self) -> Self {
        Self(self.0.fixed_lease(), self.1)
    }

    pub(crate) fn wait_replicas(self, replicas: u32, timeout: Duration) -> Self {
        Self(self.0.wait_replicas(replicas, timeout), self.1)
    }

    #[track_caller]
    pub(crate) fn acquire(&self, time: Duration) -> Result<LockAllGuard, Error> {
        let acquired = wait(self.0.acquire(time));
        released(&self.1);
        acquired.map(|guard| LockAllGuard::new(guard, &self.1))
    }

    #[track_caller]
    pub(crate) fn try_acquire(&self) -> Result<Option<LockAllGuard>, Error> {
        let acquired = wait(self.0.try_acquire());
        released(&self.1);
        acquired.map(|guard| guard.map(|guard| LockAllGuard::new(guard, &self.1)))
    }

    #[track_caller]
    pub(crate) fn run<R: WithError<E> + Send, E: Send>(
        &self,
        time: Duration,
        closure: impl FnOnce(&aio::LockAllGuard) -> Result<R, E> + Send,
    ) -> Result<R, Error> {
        self.run_with(time, |guard| closure(guard).map_err(R::own))
    }

    #[track_caller]
    pub(crate) fn run_with<R: Send, E: From<Error> + Send>(
        &self,
        time: Duration,
        closure: impl FnOnce(&aio::LockAllGuard) -> Result<R, E> + Send,
    ) -> Result<R, E> {
        wait(self.0.hold_with(time, async |guard: &aio::LockAllGuard| closure(guard)))
    }
}

#[must_use = "dropped, the locks are released"]
pub(crate) struct LockAllGuard {
    guard: Option<aio::LockAllGuard>,
    /// A second guard of each lock, which the drop of this one does not outlive.
    each: Vec<(String, LockGuard)>,
    sessions: aio::SessionManager,
}

impl fmt::Debug for LockAllGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.guard.fmt(f)
    }
}

impl Drop for LockAllGuard {
    fn drop(&mut self) {
        self.each.clear();
        drop(self.guard.take());
        released(&self.sessions);
    }
}

impl LockAllGuard {
    fn new(guard: aio::LockAllGuard, sessions: &aio::SessionManager) -> Self {
        let names: Vec<_> = guard.fencing_tokens().map(|(name, _)| name.to_owned()).collect();
        let share = |name: String| {
            let guard = Some(guard.get(&name).expect("one of its names").share());
            (name, LockGuard { guard, sessions: sessions.clone() })
        };
        let each = names.into_iter().map(share).collect();
        Self { guard: Some(guard), each, sessions: sessions.clone() }
    }

    fn inner(&self) -> &aio::LockAllGuard {
        self.guard.as_ref().expect("a guard that was not released")
    }

    fn into_inner(mut self) -> aio::LockAllGuard {
        self.each.clear();
        self.guard.take().expect("a guard that was not released")
    }

    pub(crate) fn get(&self, name: impl AsRef<str>) -> Option<&LockGuard> {
        let found = self.each.iter().find(|(of, _)| of == name.as_ref());
        assert_eq!(found.is_some(), self.inner().get(name).is_some());
        found.map(|(_, guard)| guard)
    }

    pub(crate) fn fencing_tokens(&self) -> impl Iterator<Item = (&str, u64)> {
        self.inner().fencing_tokens()
    }

    pub(crate) fn remaining(&self) -> Duration {
        self.inner().remaining()
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.inner().is_lost()
    }

    pub(crate) fn on_lost(&self, callback: impl FnOnce() + Send + 'static) {
        self.inner().on_lost(callback);
    }

    #[track_caller]
    pub(crate) fn ensure_held(&self) -> Result<(), Error> {
        wait(self.inner().ensure_held())
    }

    #[track_caller]
    pub(crate) fn release(self) -> Result<(), Error> {
        wait(self.into_inner().release())
    }

    #[track_caller]
    pub(crate) fn release_each(self) -> Vec<(Arc<str>, Result<(), Error>)> {
        wait(self.into_inner().release_each())
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Transactional(aio::Transactional);

impl Transactional {
    pub(crate) fn with(&self, options: TransactionOptions) -> Self {
        Self(self.0.with(options))
    }

    pub(crate) fn fenced_by(&self, guard: &LockGuard) -> Self {
        self.with(TransactionOptions::new().fenced_by(guard.inner()))
    }

    #[track_caller]
    pub(crate) fn begin(&self) -> Result<Transaction, Error> {
        wait(self.0.begin()).map(Transaction)
    }

    #[track_caller]
    pub(crate) fn begin_with(&self, options: TransactionOptions) -> Result<Transaction, Error> {
        wait(self.0.begin_with(options)).map(Transaction)
    }

    #[track_caller]
    pub(crate) fn begin_at(&self, key: impl ToSingleRedisArg) -> Result<Transaction, Error> {
        wait(self.0.begin_at(key)).map(Transaction)
    }

    #[track_caller]
    pub(crate) fn run<R: Resolve + WithError<E> + Send, E>(
        &self,
        closure: impl FnOnce(&mut Block) -> Result<R, E> + Send,
    ) -> Result<R::Output, Error> {
        wait(self.0.run_with(|tx| closure(tx).map_err(R::own)))
    }

    #[track_caller]
    pub(crate) fn run_with<R: Resolve + Send, E: From<Error> + Send>(
        &self,
        closure: impl FnOnce(&mut Block) -> Result<R, E> + Send,
    ) -> Result<R::Output, E> {
        wait(self.0.run_with(closure))
    }

    pub(crate) fn watch(&self, keys: impl IntoKeys) -> Watch {
        Watch(self.0.watch(keys))
    }

    pub(crate) fn reading(&self) -> Watch {
        Watch(self.0.reading())
    }

    pub(crate) fn require(&self, condition: Condition) -> Conditional {
        Conditional(self.0.require(condition))
    }
}

#[derive(Debug)]
pub(crate) struct Transaction<M: Mode = Plain>(aio::Transaction<M>);

/// The commands of the table.
impl<M: Mode> Deref for Transaction<M> {
    type Target = aio::Transaction<M>;

    fn deref(&self) -> &aio::Transaction<M> {
        &self.0
    }
}

impl<M: Mode> DerefMut for Transaction<M> {
    fn deref_mut(&mut self) -> &mut aio::Transaction<M> {
        &mut self.0
    }
}

/// The guard, where a target of commands of any kind is wanted.
pub(crate) fn queue<M: Mode>(tx: &mut Transaction<M>) -> &mut impl QueueCommands {
    &mut tx.0
}

impl Transaction<Plain> {
    #[track_caller]
    pub(crate) fn commit(self) -> Result<Replies, Error> {
        wait(self.0.commit())
    }
}

impl Transaction<Watched> {
    #[track_caller]
    pub(crate) fn commit(self) -> Result<Outcome, Error> {
        wait(self.0.commit())
    }
}

impl<M: Mode> Transaction<M> {
    #[track_caller]
    pub(crate) fn discard(self) -> Result<(), Error> {
        wait(self.0.discard())
    }

    pub(crate) fn check(&mut self) -> Result<(), Error> {
        self.0.check()
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Watch(aio::Watch);

impl Watch {
    pub(crate) fn retry(self, policy: RetryPolicy) -> Self {
        Self(self.0.retry(policy))
    }

    pub(crate) fn declare<T: FromRedisValue>(
        &mut self,
        read: Cmd,
    ) -> Result<WatchedRead<T>, Error> {
        self.0.declare(read)
    }

    pub(crate) fn require(self, condition: Condition) -> Self {
        Self(self.0.require(condition))
    }

    #[track_caller]
    pub(crate) fn begin(&self) -> Result<Watching, Error> {
        wait(self.0.begin()).map(|watching| WatchingOf(Scope::Own(Box::new(watching))))
    }

    #[track_caller]
    pub(crate) fn run<R: Resolve + WithError<E> + Send, E>(
        &self,
        mut closure: impl FnMut(&mut WatchingOf<'_>, &mut Block) -> Result<R, E> + Send,
    ) -> Result<R::Output, Error> {
        self.run_with(|read: &mut WatchingOf<'_>, tx: &mut Block| closure(read, tx).map_err(R::own))
    }

    #[track_caller]
    pub(crate) fn run_with<R: Resolve + Send, E: From<Error> + Send>(
        &self,
        mut closure: impl FnMut(&mut WatchingOf<'_>, &mut Block) -> Result<R, E> + Send,
    ) -> Result<R::Output, E> {
        let closure = Mutex::new(&mut closure);
        wait(self.0.run_with(async |read: &mut aio::Watching, tx: &mut Block| {
            let mut closure = closure.lock().unwrap_or_else(|panicked| panicked.into_inner());
            closure(&mut WatchingOf(Scope::Lent(read)), tx)
        }))
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Conditional(aio::Conditional);

impl Conditional {
    pub(crate) fn require(self, condition: Condition) -> Self {
        Self(self.0.require(condition))
    }

    pub(crate) fn retry(self, policy: RetryPolicy) -> Self {
        Self(self.0.retry(policy))
    }

    #[track_caller]
    pub(crate) fn begin(&self) -> Result<Transaction<Watched>, Error> {
        wait(self.0.begin()).map(Transaction)
    }

    #[track_caller]
    pub(crate) fn run<R: Resolve + WithError<E> + Send, E>(
        &self,
        mut closure: impl FnMut(&mut Block) -> Result<R, E> + Send,
    ) -> Result<R::Output, Error> {
        wait(self.0.run_with(|tx| closure(tx).map_err(R::own)))
    }

    #[track_caller]
    pub(crate) fn run_with<R: Resolve + Send, E: From<Error> + Send>(
        &self,
        closure: impl FnMut(&mut Block) -> Result<R, E> + Send,
    ) -> Result<R::Output, E> {
        wait(self.0.run_with(closure))
    }
}

/// A watching scope of the test, or one that a closure is given.
#[derive(Debug)]
enum Scope<'w> {
    Own(Box<aio::Watching>),
    Lent(&'w mut aio::Watching),
}

#[derive(Debug)]
pub(crate) struct WatchingOf<'w>(Scope<'w>);

pub(crate) type Watching = WatchingOf<'static>;

macro_rules! reads {
    ($($name:ident<$($generic:ident: $bound:ident),+>($($arg:ident: $type:ty),*) -> $reply:ty;)*) => {
        impl WatchingOf<'_> {
            $(
                #[track_caller]
                pub(crate) fn $name<$($generic: $bound),+>(
                    &mut self,
                    $($arg: $type),*
                ) -> Result<$reply, Error> {
                    wait(self.inner().$name($($arg),*))
                }
            )*
        }
    };
}

reads! {
    get<K: ToSingleRedisArg, T: FromRedisValue>(key: K) -> T;
    exists<K: ToRedisArgs>(key: K) -> i64;
    hgetall<K: ToSingleRedisArg, T: FromRedisValue>(key: K) -> T;
    llen<K: ToSingleRedisArg>(key: K) -> i64;
    bitfield_get<K: ToSingleRedisArg, O: ToSingleRedisArg>(
        key: K, encoding: &str, offset: O
    ) -> Vec<i64>;
    geo_search_withdist<K: ToSingleRedisArg, T: FromRedisValue>(
        key: K, search: &rediscope::commands::GeoSearch
    ) -> T;
    vcard<K: ToSingleRedisArg>(key: K) -> i64;
    vdim<K: ToSingleRedisArg>(key: K) -> i64;
    vgetattr<K: ToSingleRedisArg, E: ToSingleRedisArg>(key: K, element: E) -> Option<String>;
    vsim_withscores<K: ToSingleRedisArg, T: FromRedisValue>(
        key: K, vector: &[f32], count: isize
    ) -> T;
    strlen<K: ToSingleRedisArg>(key: K) -> i64;
}

impl WatchingOf<'_> {
    fn inner(&mut self) -> &mut aio::Watching {
        match &mut self.0 {
            Scope::Own(watching) => watching,
            Scope::Lent(watching) => watching,
        }
    }

    pub(crate) fn attempt(&self) -> u32 {
        match &self.0 {
            Scope::Own(watching) => watching.attempt(),
            Scope::Lent(watching) => watching.attempt(),
        }
    }

    pub(crate) fn run_again(&mut self) -> Error {
        self.inner().run_again()
    }

    pub(crate) fn declared<T: FromRedisValue>(&self, read: WatchedRead<T>) -> Result<T, Error> {
        match &self.0 {
            Scope::Own(watching) => watching.declared(read),
            Scope::Lent(watching) => watching.declared(read),
        }
    }

    #[track_caller]
    pub(crate) fn query<T: FromRedisValue>(&mut self, cmd: Cmd) -> Result<T, Error> {
        wait(self.inner().query(cmd))
    }

    #[track_caller]
    pub(crate) fn query_as_read<T: FromRedisValue>(&mut self, cmd: Cmd) -> Result<T, Error> {
        wait(self.inner().query_as_read(cmd))
    }
}

impl WatchingOf<'static> {
    fn own(self) -> aio::Watching {
        match self.0 {
            Scope::Own(watching) => *watching,
            Scope::Lent(_) => unreachable!("a closure's scope lives as long as the closure"),
        }
    }

    pub(crate) fn multi(self) -> Transaction<Watched> {
        Transaction(self.own().multi())
    }

    #[track_caller]
    pub(crate) fn abandon(self) -> Result<(), Error> {
        wait(self.own().abandon())
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Pooled(aio::Pooled);

/// Commands as the asynchronous trait of redis-rs takes them.
fn unpacked(mut bytes: &[u8]) -> redis::Pipeline {
    fn number<'b>(bytes: &mut &'b [u8], mark: u8) -> usize {
        let end = bytes.windows(2).position(|pair| pair == b"\r\n").expect("a line");
        let (line, rest): (&'b [u8], _) = bytes.split_at(end);
        *bytes = &rest[2..];
        assert_eq!(line[0], mark);
        std::str::from_utf8(&line[1..]).unwrap().parse().unwrap()
    }
    let mut pipeline = redis::Pipeline::new();
    while !bytes.is_empty() {
        let mut cmd = Cmd::new();
        for _ in 0..number(&mut bytes, b'*') {
            let length = number(&mut bytes, b'$');
            cmd.arg(&bytes[..length]);
            bytes = &bytes[length + 2..];
        }
        pipeline.add_command(cmd);
    }
    pipeline
}

impl Pooled {
    pub(crate) fn within(&self, wait: Duration) -> Self {
        Self(self.0.within(wait))
    }

    pub(crate) fn deadline(&self, deadline: Instant) -> Self {
        Self(self.0.deadline(deadline))
    }
}

/// By the asynchronous trait of redis-rs, one call after the other.
impl redis::ConnectionLike for Pooled {
    fn req_packed_command(&mut self, bytes: &[u8]) -> RedisResult<Value> {
        let pipeline = unpacked(bytes);
        let cmd = pipeline.cmd_iter().next().expect("a command");
        self.req_command(cmd)
    }

    fn req_packed_commands(
        &mut self,
        bytes: &[u8],
        offset: usize,
        count: usize,
    ) -> RedisResult<Vec<Value>> {
        let pipeline = unpacked(bytes);
        wait(redis::aio::ConnectionLike::req_packed_commands(&mut self.0, &pipeline, offset, count))
    }

    fn req_command(&mut self, cmd: &Cmd) -> RedisResult<Value> {
        wait(redis::aio::ConnectionLike::req_packed_command(&mut self.0, cmd))
    }

    fn get_db(&self) -> i64 {
        redis::aio::ConnectionLike::get_db(&self.0)
    }

    fn check_connection(&mut self) -> bool {
        redis::cmd("PING").query::<String>(self).is_ok()
    }

    fn is_open(&self) -> bool {
        true
    }
}
