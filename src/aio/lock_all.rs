//! Several locks that are acquired together, for tasks: the handle and the guard.

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::aio::closure::GuardClosure;
use crate::aio::lock::under;
use crate::aio::lock_guard::LockGuard;
use crate::error::any::Error;
use crate::error::hint::WithError;
use crate::error::lock::LockError;
use crate::lock::all::{AllTarget, HeldAll, all_released, ensure_all, release_all};
use crate::lock::held::after_release;
use crate::lock::io::LockIo;
use crate::lock::tasks::lost::LockLost;
use crate::lock::tasks::manager::TaskLockManager;
use crate::sync::lock;

/// Several locks by name, which are acquired together, for tasks: all of them or none.
///
/// [`SessionManager::lock_all`](crate::aio::SessionManager::lock_all) returns it. It is the handle of
/// [threads](crate::lock::LockAll) with futures: the names are acquired in the order of their bytes, and a
/// name that is repeated counts once. It holds no lock, and dropping it does nothing.
///
/// ```no_run
/// use std::time::Duration;
/// use rediscope::aio::SessionManager;
///
/// # async fn example() -> Result<(), rediscope::Error> {
/// let sessions = SessionManager::connect("redis://127.0.0.1/")?;
/// let accounts = sessions.lock_all(["account:7", "account:9"]).lease(Duration::from_secs(10));
/// let both = accounts.acquire(Duration::from_secs(2)).await?;
/// // … the transfer …
/// both.release().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
#[must_use = "nothing is acquired before acquire()"]
pub struct LockAll {
    target: AllTarget<TaskLockManager>,
}

impl UnwindSafe for LockAll {}
impl RefUnwindSafe for LockAll {}

impl LockAll {
    pub(crate) fn new(
        manager: &Arc<TaskLockManager>,
        names: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Self {
        Self { target: AllTarget::new(manager, names) }
    }

    /// Sets the lease of each lock: see [`Lock::lease`](crate::aio::Lock::lease). Default 30 s, 10 ms to a
    /// day.
    pub fn lease(self, lease: Duration) -> Self {
        Self { target: self.target.set(|lock| lock.set_lease(lease)) }
    }

    /// Sets the label of each lock: see [`Lock::label`](crate::lock::Lock::label). Default none, at most 256
    /// bytes.
    pub fn label(self, label: impl Into<Arc<str>>) -> Self {
        let label = label.into();
        Self { target: self.target.set(|lock| lock.set_label(Arc::clone(&label))) }
    }

    /// Serves callers of each name in the order of arrival: see [`Lock::fair`](crate::lock::Lock::fair).
    pub fn fair(self) -> Self {
        Self { target: self.target.set(|lock| lock.request.fair = true) }
    }

    /// Leaves the leases unextended: see [that of threads](crate::lock::LockAll::fixed_lease).
    pub fn fixed_lease(self) -> Self {
        Self { target: self.target.set(|lock| lock.request.renewed = false) }
    }

    /// Makes each lock count as acquired only if `replicas` replicas have it too: see
    /// [`Lock::wait_replicas`](crate::lock::Lock::wait_replicas). Default: no replicas.
    ///
    /// Behind it: [`WAIT`](https://redis.io/docs/latest/commands/wait/).
    pub fn wait_replicas(self, replicas: u32, timeout: Duration) -> Self {
        Self { target: self.target.set(|lock| lock.set_replicas(replicas, timeout)) }
    }

    /// Acquires all locks, and waits up to `wait` for all of them together: see
    /// [that of threads](crate::lock::LockAll::acquire).
    ///
    /// If the future is dropped, no lock is left behind: those that it had, and a request that was sent,
    /// are released in the background.
    ///
    /// # Errors
    /// [`LockError::Refused`] if there is no name, or an empty one: nothing was sent. The errors of
    /// [`Lock::acquire`](crate::aio::Lock::acquire): none of the locks is held, or one may be if
    /// [`applied`](Error::applied) is `Unknown`. [`LockError::Lost`] if a lock was lost while the call
    /// waited for another one.
    pub fn acquire(
        &self,
        wait: Duration,
    ) -> impl Future<Output = Result<LockAllGuard, Error>> + Send {
        async move {
            let held = self.target.acquire(wait).await?;
            Ok(LockAllGuard::new(held, Arc::clone(&self.target.manager)))
        }
    }

    /// Acquires all locks if they are free; `None`: another caller holds one of them. About a dropped
    /// future see [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// The server could not be reached within `response_timeout` for a name, or refused.
    pub fn try_acquire(&self) -> impl Future<Output = Result<Option<LockAllGuard>, Error>> + Send {
        async move {
            match self.acquire(Duration::ZERO).await {
                Ok(guard) => Ok(Some(guard)),
                Err(Error::Lock(LockError::Timeout { .. })) => Ok(None),
                Err(error) => Err(error),
            }
        }
    }

    /// Acquires all locks, runs `closure` and releases the locks, even if `closure` panics. If one of the
    /// locks is lost meanwhile, `closure` is dropped where it waits, and the call ends.
    ///
    /// If the future is dropped, so is `closure`, and the locks are released in the background.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use rediscope::aio::SessionManager;
    /// # async fn example(sessions: SessionManager) -> Result<(), rediscope::Error> {
    /// let accounts = sessions.lock_all(["account:7", "account:9"]);
    /// let moved = accounts
    ///     .hold(Duration::from_secs(2), async |both| {
    ///         both.ensure_held().await?;
    ///         Ok(30)
    ///     })
    ///     .await?;
    /// # let _: i32 = moved; Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The errors of [`acquire`](Self::acquire): the closure was not run. The closure's own error.
    /// [`LockError::Lost`]: the closure was ended, or another caller may have run at the same time.
    /// The other errors of [`LockAllGuard::release`]: the closure was run.
    pub fn hold<R, E, F>(
        &self,
        wait: Duration,
        closure: F,
    ) -> impl Future<Output = Result<R, Error>> + Send
    where
        R: WithError<E> + Send,
        E: Send,
        for<'g> F: AsyncFnOnce(&'g LockAllGuard) -> Result<R, E>
            + GuardClosure<&'g LockAllGuard, Result<R, E>, Fut: Send>
            + Send,
    {
        async move {
            let guard = self.acquire(wait).await?;
            let result = under(guard.lost(), &guard, closure).await?.map_err(R::own);
            let released = guard.release().await;
            after_release(&*self.target.manager, result, released)
        }
    }

    /// Like [`hold`](Self::hold), for a closure with an error type of its own.
    ///
    /// # Errors
    /// The closure's own error, or this crate's, converted.
    pub fn hold_with<R, E, F>(
        &self,
        wait: Duration,
        closure: F,
    ) -> impl Future<Output = Result<R, E>> + Send
    where
        R: Send,
        E: From<Error> + Send,
        for<'g> F: AsyncFnOnce(&'g LockAllGuard) -> Result<R, E>
            + GuardClosure<&'g LockAllGuard, Result<R, E>, Fut: Send>
            + Send,
    {
        async move {
            let guard = self.acquire(wait).await?;
            let result = under(guard.lost(), &guard, closure).await?;
            let released = guard.release().await;
            after_release(&*self.target.manager, result, released)
        }
    }
}

/// Shows no name.
impl fmt::Debug for LockAll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockAll").field("locks", &self.target.count()).finish_non_exhaustive()
    }
}

/// Several held locks, each with its name, for tasks. The drop releases them.
///
/// It is the guard of [threads](crate::lock::LockAllGuard) with futures. Each of the locks is held as by a
/// [`LockGuard`] of its own, which [`get`](Self::get) returns, and can be lost alone;
/// [`lost`](Self::lost) is ready as soon as one of them is.
///
/// The drop waits for nothing, sends nothing and spawns nothing: the task that extends leases sends the
/// releases. [`release`](Self::release) waits for them and returns a failure.
///
/// ```no_run
/// use std::time::Duration;
/// use rediscope::aio::SessionManager;
///
/// # async fn example() -> Result<(), rediscope::Error> {
/// let sessions = SessionManager::connect("redis://127.0.0.1/")?;
/// let both = sessions.lock_all(["account:7", "account:9"]).acquire(Duration::from_secs(2)).await?;
/// for (name, token) in both.fencing_tokens() {
///     println!("{name} as number {token}");
/// }
/// both.ensure_held().await?;
/// both.release().await?;
/// # Ok(()) }
/// ```
#[must_use = "dropped, the locks are released"]
pub struct LockAllGuard {
    /// The last name is first, because it is dropped first.
    guards: Vec<(Arc<str>, LockGuard)>,
    manager: Arc<TaskLockManager>,
}

impl UnwindSafe for LockAllGuard {}
impl RefUnwindSafe for LockAllGuard {}

impl LockAllGuard {
    fn new(held: HeldAll<TaskLockManager>, manager: Arc<TaskLockManager>) -> Self {
        let guards = held.into_iter().rev().map(|(name, held)| (name, LockGuard::new(held)));
        Self { guards: guards.collect(), manager }
    }

    /// The guards, in the order of the names.
    fn guards(&self) -> impl Iterator<Item = &LockGuard> + Send {
        self.guards.iter().rev().map(|(_, guard)| guard)
    }

    /// Returns the guard of one of the locks, for `fenced_by` or [`share`](LockGuard::share). `None`: the
    /// lock is none of these.
    pub fn get(&self, name: impl AsRef<str>) -> Option<&LockGuard> {
        let name = name.as_ref();
        self.guards.iter().find_map(|(of, guard)| (&**of == name).then_some(guard))
    }

    /// Returns the [fencing token](LockGuard::fencing_token) of each lock with its name, in the order of
    /// the names.
    pub fn fencing_tokens(&self) -> impl Iterator<Item = (&str, u64)> {
        self.guards.iter().rev().map(|(name, guard)| (&**name, guard.fencing_token()))
    }

    /// Returns the time for which all locks are surely held without a renewal. This call sends nothing.
    pub fn remaining(&self) -> Duration {
        self.guards().map(LockGuard::remaining).min().unwrap_or_default()
    }

    /// Returns whether one of the locks is lost, or may be. This call reads the clock and sends nothing.
    pub fn is_lost(&self) -> bool {
        self.guards().any(LockGuard::is_lost)
    }

    /// Returns the loss of the first of the locks that is lost, as a future: see [`LockGuard::lost`]. After
    /// a release of all it is never ready.
    pub fn lost(&self) -> LockLost {
        let leases = self.guards().map(|guard| Arc::clone(guard.held().lock_lease()));
        LockLost::new(leases, &self.manager.settings().process)
    }

    /// Registers `callback`, which is called once when the first of the locks is lost: see
    /// [`LockGuard::on_lost`].
    pub fn on_lost(&self, callback: impl FnOnce() + Send + 'static) {
        let callback = Arc::new(Mutex::new(Some(callback)));
        for guard in self.guards() {
            let callback = Arc::clone(&callback);
            guard.on_lost(move || {
                let callback = lock(&callback).take();
                callback.into_iter().for_each(|callback| callback());
            });
        }
    }

    /// Checks on the server that all locks are still held, and extends their leases, one after another: see
    /// [`LockGuard::ensure_held`].
    ///
    /// If the future is dropped, some leases may be extended.
    ///
    /// # Errors
    /// [`LockError::Lost`] if any of them is lost. With any other error the server could not be reached or
    /// refused, and the locks are held for [`remaining`](Self::remaining).
    pub fn ensure_held(&self) -> impl Future<Output = Result<(), Error>> + Send {
        ensure_all(self.guards().map(LockGuard::held))
    }

    /// Releases all locks, and returns whether that succeeded.
    ///
    /// If the future is dropped, the locks are released as the drop of the guard does, also if the future
    /// was never polled.
    ///
    /// # Errors
    /// [`LockError::Lost`] if one of the locks was no longer held; otherwise the first failure, in the order
    /// of the names, as [`LockGuard::release`] returns it. The other locks are released all the same.
    pub fn release(self) -> impl Future<Output = Result<(), Error>> + Send {
        let released = self.release_each();
        async move { all_released(released.await) }
    }

    /// Releases all locks, and returns the result for each name, in the order of the names. About a dropped
    /// future see [`release`](Self::release).
    pub fn release_each(self) -> impl Future<Output = Vec<(Arc<str>, Result<(), Error>)>> + Send {
        let Self { guards, manager } = self;
        let held = guards.into_iter().rev().map(|(name, guard)| (name, guard.into_held()));
        let held: HeldAll<_> = held.collect();
        async move { release_all(held, manager.call_deadline()).await }
    }
}

/// Shows no name and no token.
impl fmt::Debug for LockAllGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockAllGuard")
            .field("locks", &self.guards.len())
            .field("is_lost", &self.is_lost())
            .finish_non_exhaustive()
    }
}
