//! The handles of locks: which lock to acquire, and how. A handle holds no lock.

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::any::Error;
use crate::error::hint::WithError;
use crate::error::lock::LockError;
use crate::lock::guard::LockGuard;
use crate::lock::held::after_release;
use crate::lock::manager::LockManager;
use crate::lock::target::LockTarget;
use crate::protocol::lock::acquire::{LockHolder, LockMode};
use crate::protocol::lock::hold_token::HoldToken;
use crate::sync::now::now;

/// A lock by name, which any number of processes can acquire, and the options of its acquisition.
///
/// [`lock`](crate::SessionManager::lock), [`semaphore`](crate::SessionManager::semaphore) and
/// [`rw_lock`](crate::SessionManager::rw_lock) return it. A handle is cheap to clone, and threads
/// can share it. It holds no lock, and dropping it does nothing.
///
/// ```no_run
/// use std::time::Duration;
/// use rediscope::error::LockError;
/// use rediscope::{Error, SessionManager};
///
/// # fn main() -> Result<(), rediscope::Error> {
/// let sessions = SessionManager::connect("redis://127.0.0.1/")?;
/// let report = sessions.lock("report").lease(Duration::from_secs(10)).label("worker 7");
/// match report.acquire(Duration::from_secs(2)) {
///     Ok(guard) => {
///         println!("writing as number {}", guard.fencing_token());
///         guard.release()?;
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
    target: LockTarget<LockManager>,
}

impl UnwindSafe for Lock {}
impl RefUnwindSafe for Lock {}

impl Lock {
    pub(crate) fn new(
        manager: Arc<LockManager>,
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

    /// Sets a label that other callers see as the holder of the lock: a host, a job, a place in the
    /// code. Every client with read access to the server's data can read it. Default none, at most
    /// 256 bytes.
    pub fn label(mut self, label: impl Into<Arc<str>>) -> Self {
        self.target.set_label(label.into());
        self
    }

    /// Serves callers in the order of arrival, across processes. Waiters queue on the server and
    /// send a heartbeat every second; a waiter without a heartbeat for three seconds loses its
    /// place. Each waiter costs a command a second. Use this option for all callers of a lock, or
    /// for none: a caller outside the queue may overtake it.
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

    /// Sets the number of permits of a semaphore that one acquisition takes: all of them at once, or
    /// none. The guard holds all of them, and releases them together. So two callers that each need
    /// several never wait for each other with half of theirs. Default 1.
    ///
    /// Without [`fair`](Self::fair), callers that take few permits may overtake a caller that takes many
    /// for as long as they come. With it, a caller that takes many keeps its turn: later callers get
    /// permits only if enough are left for all that came before.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use rediscope::SessionManager;
    /// # fn main() -> Result<(), rediscope::Error> {
    /// # let sessions = SessionManager::connect("redis://127.0.0.1/")?;
    /// let memory = sessions.semaphore("memory in MiB", 4096).fair();
    /// let large = memory.clone().permits(1024).acquire(Duration::from_secs(5))?;
    /// println!("{} MiB are free", memory.available()?);
    /// # drop(large);
    /// # Ok(()) }
    /// ```
    ///
    /// `acquire` refuses 0, more than 1 of a lock that is no semaphore, and, with
    /// [`LockError::TooManyPermits`], more than the semaphore has.
    pub fn permits(mut self, permits: u32) -> Self {
        self.target.set_permits_at_once(permits);
        self
    }

    /// Makes the lock count as acquired only if `replicas` replicas have it too. `timeout` is at
    /// least a millisecond, and adds to `response_timeout`. If fewer replicas have the lock within
    /// it, the lock is released and the call fails with [`LockError::NotReplicated`]. A failover to
    /// one of these replicas then does not give the lock to another caller. Renewals do not wait
    /// for replicas. Default: no replicas.
    ///
    /// Behind it: [`WAIT`](https://redis.io/docs/latest/commands/wait/).
    pub fn wait_replicas(mut self, replicas: u32, timeout: Duration) -> Self {
        self.target.set_replicas(replicas, timeout);
        self
    }

    /// Acquires the lock and waits up to `wait` for it. The call returns at most one
    /// `response_timeout` later, plus the timeout of [`wait_replicas`](Self::wait_replicas).
    ///
    /// Until then an unreachable server is retried.
    ///
    /// # Errors
    /// [`LockError::Timeout`] with the holder; the last failure to reach the server, if it lasted
    /// to the end. The call leaves nothing behind: an acquisition without a reply is released, in
    /// the background if necessary. Until then [`applied`](Error::applied) is `Unknown`: the lock may
    /// be held for as long as its lease. `No` is proven, also by the reply to that release.
    pub fn acquire(&self, wait: Duration) -> Result<LockGuard, Error> {
        now(self.target.acquire(wait)).map(LockGuard::new)
    }

    /// Acquires the lock if it is free, and returns `None` if another caller holds it.
    ///
    /// # Errors
    /// The server could not be reached within `response_timeout`, or refused.
    pub fn try_acquire(&self) -> Result<Option<LockGuard>, Error> {
        match self.acquire(Duration::ZERO) {
            Ok(guard) => Ok(Some(guard)),
            Err(Error::Lock(LockError::Timeout { .. })) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes over a hold that another process has handed over by
    /// [`into_token`](LockGuard::into_token). The lock was held all the time, and keeps its fencing token.
    /// This handle is of the same lock: same kind, name and prefix. Its `lease`, `label` and
    /// `fixed_lease` apply from now on; a semaphore's hold keeps its number of permits. The call does not
    /// wait for the lock, nor for replicas.
    ///
    /// The server gives the hold another owner and extends its lease in one step, and the reply proves it.
    /// So of several adoptions of one token, one succeeds. A reply that is lost is asked for again, on
    /// another connection, for `checkout_timeout`.
    ///
    /// See [`HoldToken`] for an example.
    ///
    /// # Errors
    /// [`LockError::Lost`]: the lease has ended, another call adopted the token, or the lock was forced.
    /// [`LockError::Refused`]: it is the token of another lock, and nothing was sent. With any other error
    /// [`applied`](Error::applied) is `No` if no request ran, and otherwise `Unknown`: a possible
    /// adoption is released, in the background if necessary, so that the lock is free for other callers.
    /// If the request had not arrived, the token can still be adopted.
    pub fn adopt(&self, token: &HoldToken) -> Result<LockGuard, Error> {
        now(self.target.adopt(token)).map(LockGuard::new)
    }

    /// Acquires the lock, runs `closure` and releases the lock, even if `closure` panics.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use rediscope::SessionManager;
    /// # fn main() -> Result<(), rediscope::Error> {
    /// # let sessions = SessionManager::connect("redis://127.0.0.1/")?;
    /// let steps = sessions.lock("report").run(Duration::from_secs(2), |guard| {
    ///     guard.ensure_held()?;
    ///     Ok(3)
    /// })?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The errors of [`acquire`](Self::acquire): the closure was not run. The closure's own error.
    /// The errors of [`LockGuard::release`]: the closure was run, and `Lost` means that another
    /// caller may have run at the same time.
    pub fn run<R: WithError<E>, E>(
        &self,
        wait: Duration,
        closure: impl FnOnce(&LockGuard) -> Result<R, E>,
    ) -> Result<R, Error> {
        self.run_with(wait, |guard| closure(guard).map_err(R::own))
    }

    /// Like [`run`](Self::run), for a closure with an error type of its own.
    ///
    /// # Errors
    /// The closure's own error, or this crate's, converted.
    pub fn run_with<R, E: From<Error>>(
        &self,
        wait: Duration,
        closure: impl FnOnce(&LockGuard) -> Result<R, E>,
    ) -> Result<R, E> {
        let guard = self.acquire(wait)?;
        let result = closure(&guard);
        let released = guard.release();
        after_release(&*self.target.manager, result, released)
    }

    /// Returns whether the lock is held. The state may change before the call returns.
    ///
    /// # Errors
    /// The server could not be reached, or refused.
    pub fn is_locked(&self) -> Result<bool, Error> {
        Ok(self.holder()?.is_some())
    }

    /// Returns the holder; of several holders, the one whose lease ends first.
    ///
    /// # Errors
    /// The server could not be reached, or refused.
    pub fn holder(&self) -> Result<Option<LockHolder>, Error> {
        now(self.target.holder())
    }

    /// Returns the number of free permits of a semaphore: the number that the server keeps, or this
    /// handle's if it keeps none, less the permits that are held. It is 0 if more are held than there
    /// are, after [`set_permits`](Self::set_permits).
    ///
    /// The number was true at one moment between the call and its return: it is good for a display or a
    /// metric. Another caller may take the permits before an `acquire` arrives, and callers that wait
    /// with [`fair`](Self::fair) come first; [`try_acquire`](Self::try_acquire) finds out and takes them.
    /// A call costs one round trip. On the server its cost grows with the number of holders only while
    /// one of them may have [several permits](Self::permits).
    ///
    /// # Errors
    /// [`LockError::Refused`] for a lock that is not a semaphore: nothing was sent. The server could not
    /// be reached, or refused.
    pub fn available(&self) -> Result<u32, Error> {
        now(self.target.available())
    }

    /// Takes the lock away from its holder and wakes the waiters. For a semaphore and a read/write
    /// lock this applies to all holders. Returns true if the lock was held.
    ///
    /// The holders notice it at their next renewal, `ensure_held`, fenced transaction or release,
    /// and continue until then. Use this call only if the holders are known to be gone.
    ///
    /// # Errors
    /// The server could not be reached, or refused.
    pub fn force_release(&self) -> Result<bool, Error> {
        now(self.target.force_release())
    }

    /// Changes the number of permits of a semaphore, for all processes at once. Callers with
    /// another number then fail with [`LockError::OtherPermits`]. This handle and its clones use
    /// the new number from then on, including calls that wait. No held permit is taken away: if
    /// there are fewer permits than holders, the next permit becomes free after enough of them are
    /// released. If there are more permits, waiting callers get theirs at once.
    ///
    /// While the semaphore has neither holders nor waiters, the server keeps no number, and the
    /// next caller's number applies.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use rediscope::SessionManager;
    /// # fn main() -> Result<(), rediscope::Error> {
    /// # let sessions = SessionManager::connect("redis://127.0.0.1/")?;
    /// let printers = sessions.semaphore("printers", 3);
    /// let permit = printers.acquire(Duration::from_secs(5))?;
    /// printers.set_permits(5)?;
    /// let another = sessions.semaphore("printers", 5).try_acquire()?;
    /// # drop((permit, another));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`LockError::Refused`] for 0, and for a lock that is not a semaphore; [`LockError::Timeout`] or
    /// [`LockError::Cancelled`] if the call awaits another change for too long: nothing was sent. If
    /// the server could not be reached, or refused, this handle keeps its former number.
    pub fn set_permits(&self, permits: u32) -> Result<(), Error> {
        now(self.target.set_permits(permits))
    }
}

/// Shows no name.
impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.target.show("Lock", f)
    }
}

/// A lock for many readers or one writer.
///
/// [`rw_lock`](crate::SessionManager::rw_lock) returns it. Readers do not wait for a waiting
/// writer, so a writer may wait for a long time. If both sides use [`fair`](Lock::fair), callers
/// are admitted in the order of arrival.
///
/// ```no_run
/// # use std::time::Duration;
/// # use rediscope::SessionManager;
/// # fn main() -> Result<(), rediscope::Error> {
/// # let sessions = SessionManager::connect("redis://127.0.0.1/")?;
/// let catalogue = sessions.rw_lock("catalogue");
/// let reading = catalogue.read().acquire(Duration::from_secs(1))?;
/// drop(reading);
/// let writing = catalogue.write().fair().acquire(Duration::from_secs(1))?;
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
    pub(crate) fn new(manager: &Arc<LockManager>, name: &str) -> Self {
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
