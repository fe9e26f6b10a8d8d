//! The handles of locks for tasks: which lock to acquire, and how. A handle holds no lock.

use std::fmt;
use std::future::poll_fn;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use crate::aio::closure::GuardClosure;
use crate::aio::lock_guard::LockGuard;
use crate::error::any::Error;
use crate::error::hint::WithError;
use crate::error::lock::LockError;
use crate::lock::held::after_release;
use crate::lock::target::LockTarget;
use crate::lock::tasks::lost::LockLost;
use crate::lock::tasks::manager::TaskLockManager;
use crate::protocol::lock::acquire::{LockHolder, LockMode};
use crate::protocol::lock::hold_token::HoldToken;

/// A lock by name, which any number of processes can acquire, and the options of its acquisition, for
/// tasks.
///
/// [`lock`](crate::aio::SessionManager::lock), [`semaphore`](crate::aio::SessionManager::semaphore) and
/// [`rw_lock`](crate::aio::SessionManager::rw_lock) return it. A handle is cheap to clone, and tasks can
/// share it. It holds no lock, and dropping it does nothing. Locks of threads and of tasks with the same
/// name are the same lock.
///
/// ```no_run
/// use std::time::Duration;
/// use rediscope::error::LockError;
/// use rediscope::{Error, aio::SessionManager};
///
/// # async fn example() -> Result<(), rediscope::Error> {
/// let sessions = SessionManager::connect("redis://127.0.0.1/")?;
/// let report = sessions.lock("report").lease(Duration::from_secs(10)).label("worker 7");
/// match report.acquire(Duration::from_secs(2)).await {
///     Ok(guard) => {
///         println!("writing as number {}", guard.fencing_token());
///         guard.release().await?;
///     }
///     Err(Error::Lock(LockError::Timeout { holder, .. })) => println!("busy: {holder:?}"),
///     Err(error) => return Err(error),
/// }
/// # Ok(()) }
/// ```
///
/// Behind it: scripts, through
/// [`EVALSHA`](https://redis.io/docs/latest/commands/evalsha/), and
/// [`SUBSCRIBE`](https://redis.io/docs/latest/commands/subscribe/) while a caller waits.
#[derive(Clone)]
#[must_use = "nothing is acquired before acquire()"]
pub struct Lock {
    target: LockTarget<TaskLockManager>,
}

impl UnwindSafe for Lock {}
impl RefUnwindSafe for Lock {}

impl Lock {
    pub(crate) fn new(
        manager: Arc<TaskLockManager>,
        family: &str,
        name: &str,
        mode: LockMode,
        permits: u32,
    ) -> Self {
        Self { target: LockTarget::new(manager, family, name, mode, permits) }
    }

    /// Sets the time for which the server keeps the lock without a renewal. A living holder extends
    /// the lease every third of this time; after the holder's death other callers wait for its end.
    /// Default 30 s, 10 ms to a day.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.target.set_lease(lease);
        self
    }

    /// Sets a label that other callers see as the holder of the lock: see
    /// [that of threads](crate::lock::Lock::label). Default none, at most 256 bytes.
    pub fn label(mut self, label: impl Into<Arc<str>>) -> Self {
        self.target.set_label(label.into());
        self
    }

    /// Serves callers in the order of arrival, across processes: see
    /// [that of threads](crate::lock::Lock::fair). Use this option for all callers of a lock, or for none.
    pub fn fair(mut self) -> Self {
        self.target.request.fair = true;
        self
    }

    /// Leaves the lease unextended: the lock ends after it, even if the holder calls
    /// [`ensure_held`](LockGuard::ensure_held). Default: the lease is extended while the guard
    /// lives.
    pub fn fixed_lease(mut self) -> Self {
        self.target.request.renewed = false;
        self
    }

    /// Sets the instant after which no call of this handle waits or sends a request: `acquire` waits no
    /// longer, whatever its own limit, and `holder`, `available`, `force_release`, `set_permits` and `adopt`
    /// end by then. Guards are not concerned. Default: none.
    pub fn deadline(mut self, deadline: Instant) -> Self {
        self.target.deadline = Some(deadline);
        self
    }

    /// Sets the number of permits of a semaphore that one acquisition takes, all or none: see
    /// [that of threads](crate::lock::Lock::permits). Default 1.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use rediscope::aio::SessionManager;
    /// # async fn example(sessions: SessionManager) -> Result<(), rediscope::Error> {
    /// let memory = sessions.semaphore("memory in MiB", 4096).fair();
    /// let large = memory.clone().permits(1024).acquire(Duration::from_secs(5)).await?;
    /// println!("{} MiB are free", memory.available().await?);
    /// # drop(large);
    /// # Ok(()) }
    /// ```
    pub fn permits(mut self, permits: u32) -> Self {
        self.target.set_permits_at_once(permits);
        self
    }

    /// Makes the lock count as acquired only if `replicas` replicas have it too: see
    /// [that of threads](crate::lock::Lock::wait_replicas). Default: no replicas.
    ///
    /// Behind it: [`WAIT`](https://redis.io/docs/latest/commands/wait/).
    pub fn wait_replicas(mut self, replicas: u32, timeout: Duration) -> Self {
        self.target.set_replicas(replicas, timeout);
        self
    }

    /// Acquires the lock and waits up to `wait` for it. The future is ready at most one
    /// `response_timeout` later, plus the timeout of [`wait_replicas`](Self::wait_replicas).
    ///
    /// Until then an unreachable server is retried.
    ///
    /// If the future is dropped, no lock is left behind: a request that was sent is released by its token,
    /// in the background, and a place in the queue is given up. A wakeup that it had goes to the next
    /// waiting call. Drop a future that is not polled any more: a release may have given it the lock.
    ///
    /// # Errors
    /// [`LockError::Timeout`] with the holder; the last failure to reach the server, if it lasted
    /// to the end. The call leaves nothing behind: an acquisition without a reply is released, in
    /// the background if necessary. Until then [`applied`](Error::applied) is `Unknown`: the lock may
    /// be held for as long as its lease. `No` is proven, also by the reply to that release.
    pub fn acquire(&self, wait: Duration) -> impl Future<Output = Result<LockGuard, Error>> + Send {
        async move { self.target.acquire(wait).await.map(LockGuard::new) }
    }

    /// Acquires the lock if it is free; `None`: another caller holds it. About a dropped future see
    /// [`acquire`](Self::acquire).
    ///
    /// # Errors
    /// The server could not be reached within `response_timeout`, or refused.
    pub fn try_acquire(&self) -> impl Future<Output = Result<Option<LockGuard>, Error>> + Send {
        async move {
            match self.acquire(Duration::ZERO).await {
                Ok(guard) => Ok(Some(guard)),
                Err(Error::Lock(LockError::Timeout { .. })) => Ok(None),
                Err(error) => Err(error),
            }
        }
    }

    /// Takes over a hold that another process, of threads or of tasks, has handed over by
    /// [`into_token`](LockGuard::into_token): see [that of threads](crate::lock::Lock::adopt).
    ///
    /// If the future is dropped, the lock is released if it was adopted; otherwise the token can still be
    /// adopted.
    ///
    /// ```no_run
    /// # use rediscope::aio::SessionManager;
    /// # use rediscope::lock::HoldToken;
    /// # async fn example(sessions: SessionManager, token: HoldToken) -> Result<(), rediscope::Error> {
    /// let guard = sessions.lock("report").adopt(&token).await?;
    /// assert_eq!(guard.fencing_token(), token.fencing_token());
    /// guard.release().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`LockError::Lost`]: the lease has ended, another call adopted the token, or the lock was forced.
    /// [`LockError::Refused`]: it is the token of another lock, and nothing was sent. With any other error
    /// [`applied`](Error::applied) is `No` if no request ran, and otherwise `Unknown`: a possible
    /// adoption is released in the background.
    pub fn adopt(
        &self,
        token: &HoldToken,
    ) -> impl Future<Output = Result<LockGuard, Error>> + Send {
        async move { self.target.adopt(token).await.map(LockGuard::new) }
    }

    /// Acquires the lock, runs `closure` and releases the lock, even if `closure` panics. If the lock is
    /// lost meanwhile, `closure` is dropped where it waits, and the call ends.
    ///
    /// If the future is dropped, so is `closure`, and the lock is released in the background.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use rediscope::aio::SessionManager;
    /// # async fn example(sessions: SessionManager) -> Result<(), rediscope::Error> {
    /// let steps = sessions
    ///     .lock("report")
    ///     .hold(Duration::from_secs(2), async |guard| {
    ///         guard.ensure_held().await?;
    ///         Ok(3)
    ///     })
    ///     .await?;
    /// # let _: i32 = steps; Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The errors of [`acquire`](Self::acquire): the closure was not run. The closure's own error.
    /// [`LockError::Lost`]: the closure was ended, or another caller may have run at the same time.
    /// The other errors of [`LockGuard::release`]: the closure was run.
    pub fn hold<R, E, F>(
        &self,
        wait: Duration,
        closure: F,
    ) -> impl Future<Output = Result<R, Error>> + Send
    where
        R: WithError<E> + Send,
        E: Send,
        for<'g> F: AsyncFnOnce(&'g LockGuard) -> Result<R, E>
            + GuardClosure<&'g LockGuard, Result<R, E>, Fut: Send>
            + Send,
    {
        async move {
            let guard = self.acquire(wait).await?;
            let result = under(guard.lost(), &guard, closure).await?.map_err(R::own);
            self.end(guard, result).await
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
        for<'g> F: AsyncFnOnce(&'g LockGuard) -> Result<R, E>
            + GuardClosure<&'g LockGuard, Result<R, E>, Fut: Send>
            + Send,
    {
        async move {
            let guard = self.acquire(wait).await?;
            let result = under(guard.lost(), &guard, closure).await?;
            self.end(guard, result).await
        }
    }

    /// Releases the lock of a closure that has ended.
    async fn end<R, E: From<Error>>(&self, guard: LockGuard, result: Result<R, E>) -> Result<R, E> {
        let released = guard.release().await;
        after_release(&*self.target.manager, result, released)
    }

    /// Returns whether the lock is held. The state may change before the future is ready.
    ///
    /// # Errors
    /// The server could not be reached, or refused.
    pub fn is_locked(&self) -> impl Future<Output = Result<bool, Error>> + Send {
        async move { Ok(self.holder().await?.is_some()) }
    }

    /// Returns the holder; of several holders, the one whose lease ends first.
    ///
    /// # Errors
    /// The server could not be reached, or refused.
    pub fn holder(&self) -> impl Future<Output = Result<Option<LockHolder>, Error>> + Send {
        self.target.holder()
    }

    /// Returns the number of free permits of a semaphore, as of a moment before the future is ready: see
    /// [that of threads](crate::lock::Lock::available). It costs one round trip.
    ///
    /// # Errors
    /// [`LockError::Refused`] for a lock that is not a semaphore: nothing was sent. The server could not
    /// be reached, or refused.
    pub fn available(&self) -> impl Future<Output = Result<u32, Error>> + Send {
        self.target.available()
    }

    /// Takes the lock away from its holder and wakes the waiters: see
    /// [that of threads](crate::lock::Lock::force_release). Returns true if the lock was held.
    ///
    /// If the future is dropped, that may happen or not.
    ///
    /// # Errors
    /// The server could not be reached, or refused.
    pub fn force_release(&self) -> impl Future<Output = Result<bool, Error>> + Send {
        self.target.force_release()
    }

    /// Changes the number of permits of a semaphore, for all processes at once: see
    /// [that of threads](crate::lock::Lock::set_permits).
    ///
    /// If the future is dropped, the server may have the new number, or get it later; this handle keeps
    /// its former one.
    ///
    /// # Errors
    /// [`LockError::Refused`] for 0, and for a lock that is not a semaphore: nothing was sent. If
    /// the server could not be reached, or refused, this handle keeps its former number.
    pub fn set_permits(&self, permits: u32) -> impl Future<Output = Result<(), Error>> + Send {
        self.target.set_permits(permits)
    }
}

/// Runs `closure` until it ends.
///
/// # Errors
/// The lock was lost before.
pub(crate) async fn under<G: Sync, O, F>(lost: LockLost, guard: &G, closure: F) -> Result<O, Error>
where
    for<'g> F: GuardClosure<&'g G, O, Fut: Send> + Send,
{
    let mut lost = pin!(lost);
    let mut running = pin!(closure(guard));
    poll_fn(|context| {
        if let Poll::Ready(why) = lost.as_mut().poll(context) {
            return Poll::Ready(Err(Error::lock_lost(why)));
        }
        running.as_mut().poll(context).map(Ok)
    })
    .await
}

/// Shows no name.
impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.target.show("Lock", f)
    }
}

/// A lock for many readers or one writer, for tasks.
///
/// [`rw_lock`](crate::aio::SessionManager::rw_lock) returns it. Readers do not wait for a waiting
/// writer, so a writer may wait for a long time. If both sides use [`fair`](Lock::fair), callers
/// are admitted in the order of arrival.
///
/// ```no_run
/// # use std::time::Duration;
/// # use rediscope::aio::SessionManager;
/// # async fn example(sessions: SessionManager) -> Result<(), rediscope::Error> {
/// let catalogue = sessions.rw_lock("catalogue");
/// let reading = catalogue.read().acquire(Duration::from_secs(1)).await?;
/// drop(reading);
/// let writing = catalogue.write().fair().acquire(Duration::from_secs(1)).await?;
/// # drop(writing);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing is acquired before read() or write()"]
pub struct RwLock {
    read: Lock,
    write: Lock,
}

impl RwLock {
    pub(crate) fn new(manager: &Arc<TaskLockManager>, name: &str) -> Self {
        let of = |mode| Lock::new(Arc::clone(manager), "rw", name, mode, 1);
        Self { read: of(LockMode::Read), write: of(LockMode::Write) }
    }

    /// Returns the side that is shared with other readers.
    pub fn read(&self) -> Lock {
        self.read.clone()
    }

    /// Returns the exclusive side.
    pub fn write(&self) -> Lock {
        self.write.clone()
    }
}
