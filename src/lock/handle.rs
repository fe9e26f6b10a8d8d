//! The handles of locks: what is to be acquired, and how. A handle holds nothing.

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use redis::Value;

use crate::error::any::Error;
use crate::error::lock::{LockError, LockHolder};
use crate::lock::acquire::{LockMode, LockRequest, Permits, acquire, holder};
use crate::lock::client::{Via, refused};
use crate::lock::guard::LockGuard;
use crate::lock::manager::{LockManager, unexpected_reply};
use crate::protocol::lock::keys::LockKeys;
use crate::protocol::lock::script::{Call, FORCE, PEEK, PERMITS};
use crate::protocol::replication::Durability;
use crate::sync::lock;

const DEFAULT_LEASE: Duration = Duration::from_secs(30);
const SHORTEST_LEASE: Duration = Duration::from_millis(10);
const LONGEST_LEASE: Duration = Duration::from_secs(24 * 60 * 60);
const LONGEST_LABEL: usize = 256;
const NO_PERMIT: (&str, &str) = ("permits", "a semaphore has at least one permit");

/// A lock by name, that any number of processes may want: how it is to be acquired.
///
/// Made by [`lock`](crate::SessionManager::lock), [`semaphore`](crate::SessionManager::semaphore)
/// and [`rw_lock`](crate::SessionManager::rw_lock). It holds nothing; cheap to clone, and shared
/// between threads as it is. Dropping it does nothing.
///
/// ```no_run
/// use std::time::Duration;
/// use rediscope::{LockError, SessionManager};
///
/// # fn main() -> Result<(), rediscope::Error> {
/// let sessions = SessionManager::connect("redis://127.0.0.1/")?;
/// let report = sessions.lock("report").lease(Duration::from_secs(10)).label("worker 7");
/// match report.acquire(Duration::from_secs(2)) {
///     Ok(guard) => {
///         println!("writing as number {}", guard.fencing_token());
///         guard.release()?;
///     }
///     Err(LockError::Timeout { holder, .. }) => println!("busy: {holder:?}"),
///     Err(error) => return Err(error.into()),
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
    manager: Arc<LockManager>,
    request: LockRequest,
    refused: Option<(&'static str, &'static str)>,
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
        let names = Arc::new(LockKeys::new(
            &manager.settings.prefix,
            family,
            name,
            manager.client.is_in_cluster(),
        ));
        let refused = match permits {
            _ if name.is_empty() => Some(("name", "a lock's name must not be empty")),
            0 => Some(NO_PERMIT),
            _ => None,
        };
        let request = LockRequest {
            names,
            mode,
            permits: Arc::new(Permits::new(permits)),
            lease: DEFAULT_LEASE,
            renewed: true,
            fair: false,
            label: None,
            replicas: None,
        };
        Self { manager, request, refused }
    }

    /// For how long the server keeps the lock for a holder it does not hear of. A holder that
    /// lives extends it every third of this; one that died keeps the others waiting for as long.
    /// Default 30 s, 10 ms to a day.
    pub fn lease(mut self, lease: Duration) -> Self {
        if !(SHORTEST_LEASE..=LONGEST_LEASE).contains(&lease) {
            self.refused.get_or_insert(("lease", "must be between 10 ms and a day"));
        }
        self.request.lease = lease;
        self
    }

    /// A label that other callers see as the holder of the lock: a host, a job, a place in
    /// the code. Every client that may read the server's data can read it. Default none, at
    /// most 256 bytes.
    pub fn label(mut self, label: impl Into<Arc<str>>) -> Self {
        let label = label.into();
        if label.len() > LONGEST_LABEL {
            self.refused.get_or_insert(("label", "must not be longer than 256 bytes"));
        }
        self.request.label = Some(label);
        self
    }

    /// First come, first served, across processes. Waiters queue on the server and send a
    /// heartbeat every second; one that misses three seconds loses its place. Each waiter
    /// costs a command a second. Use it for all callers of a lock, or for none: a caller
    /// outside the queue may overtake it.
    pub fn fair(mut self) -> Self {
        self.request.fair = true;
        self
    }

    /// The lease is not extended: the lock ends after it, also if its holder calls
    /// [`ensure_held`](LockGuard::ensure_held). Default: it is extended for as long as the
    /// guard lives.
    pub fn fixed_lease(mut self) -> Self {
        self.request.renewed = false;
        self
    }

    /// The lock counts as acquired when `replicas` replicas have it, too. If fewer have it
    /// within `timeout` (at least a millisecond, on top of `response_timeout`), it is
    /// released and the call fails with [`LockError::NotReplicated`]. A failover to one of
    /// them then does not give the lock to another caller. Leases are extended without
    /// asking the replicas. Default: none are asked.
    ///
    /// Behind it: [`WAIT`](https://redis.io/docs/latest/commands/wait/).
    pub fn wait_replicas(mut self, replicas: u32, timeout: Duration) -> Self {
        let timeout = timeout.min(LONGEST_LEASE);
        self.request.replicas = Some(Durability::Replicas { replicas, timeout });
        self
    }

    /// Acquires the lock, waiting for it for as long as `wait`; the call is over at most one
    /// `response_timeout` later (and the timeout of [`wait_replicas`](Self::wait_replicas)).
    ///
    /// An unreachable server is retried until then.
    ///
    /// # Errors
    /// [`LockError::Timeout`] with the holder; the reason the server could not be asked, if
    /// that lasted to the end. Nothing is left behind: what may have been acquired without
    /// a reply is released, in the background if need be.
    pub fn acquire(&self, wait: Duration) -> Result<LockGuard, LockError> {
        self.check()?;
        acquire(&self.manager, &self.request, wait)
    }

    /// Acquires the lock if it is free; `None`: another caller holds it.
    ///
    /// # Errors
    /// The server could not be asked within `response_timeout`, or refused.
    pub fn try_acquire(&self) -> Result<Option<LockGuard>, LockError> {
        match self.acquire(Duration::ZERO) {
            Ok(guard) => Ok(Some(guard)),
            Err(LockError::Timeout { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Acquires the lock, runs `closure` and releases the lock, also when `closure` panics.
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
    /// As [`acquire`](Self::acquire), and then `closure` was not run; the closure's own; as
    /// [`LockGuard::release`], and then it was: `Lost` means that another caller may have
    /// run at the same time.
    pub fn run<R>(
        &self,
        wait: Duration,
        closure: impl FnOnce(&LockGuard) -> Result<R, Error>,
    ) -> Result<R, Error> {
        self.run_with(wait, closure)
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
        let guard = self.acquire(wait).map_err(|error| E::from(error.into()))?;
        let result = closure(&guard);
        let released = guard.release();
        match (result, released) {
            (Ok(value), Ok(())) => Ok(value),
            (Ok(_), Err(error)) => Err(E::from(error.into())),
            (Err(error), Ok(())) => Err(error),
            // A fork's copy of the log may be locked for ever, and the lock is the parent's.
            (Err(error), Err(_)) if self.manager.settings.is_forked_child() => Err(error),
            (Err(error), Err(second)) => {
                tracing::warn!(error = %format_args!("{second:#}"), "a lock was not released in order");
                Err(error)
            }
        }
    }

    /// Whether the lock is held. It may have changed by the time this returns.
    ///
    /// # Errors
    /// The server could not be asked, or refused.
    pub fn is_locked(&self) -> Result<bool, LockError> {
        Ok(self.holder()?.is_some())
    }

    /// The holder; of several holders, the one whose lease ends first.
    ///
    /// # Errors
    /// The server could not be asked, or refused.
    pub fn holder(&self) -> Result<Option<LockHolder>, LockError> {
        let names = &self.request.names;
        let none: [&str; 0] = [];
        let call = Call::new(&PEEK, [&names.holders, &names.info], none);
        match self.ask("holder", call)? {
            Value::Array(values) => match values.as_slice() {
                [Value::Int(0), ..] => Ok(None),
                [_, remaining, label] => {
                    holder(remaining, label).map(Some).ok_or_else(|| unexpected_reply("holder"))
                }
                _ => Err(unexpected_reply("holder")),
            },
            _ => Err(unexpected_reply("holder")),
        }
    }

    /// Takes the lock away from its holder (of a semaphore and a read/write lock from all
    /// of them) and wakes the waiters. True: it was held.
    ///
    /// The holders find out at their next renewal, `ensure_held`, fenced transaction or release.
    /// Until then they go on: this is for an operator that knows the holders to be gone.
    ///
    /// # Errors
    /// The server could not be asked, or refused.
    pub fn force_release(&self) -> Result<bool, LockError> {
        let names = &self.request.names;
        let keys = [&names.holders, &names.info, &names.queue, &names.alive];
        match self.ask("force_release", Call::new(&FORCE, keys, [&*names.wake]))? {
            Value::Int(held) => {
                tracing::warn!(holders = held, "lock forced");
                Ok(held > 0)
            }
            _ => Err(unexpected_reply("force_release")),
        }
    }

    /// Changes the number of permits of a semaphore, for all processes at once: callers with another
    /// number then fail with [`LockError::OtherPermits`]. This handle and its clones have the new
    /// number from then on, also those that wait. No held permit is taken away: with fewer permits
    /// than holders, the next one is given when enough of them are released. With more, waiting
    /// callers get theirs at once.
    ///
    /// While the semaphore has neither holders nor waiters the server keeps no number; the next
    /// caller's holds then.
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
    /// [`LockError::Refused`] for 0, and for a lock that is no semaphore: nothing was sent. The server
    /// could not be asked, or refused: then this handle has the number that it had.
    pub fn set_permits(&self, permits: u32) -> Result<(), LockError> {
        let refused = |(setting, reason)| Err(LockError::Refused { setting, reason });
        if self.request.mode != LockMode::Semaphore {
            return refused(("permits", "only a semaphore has permits"));
        }
        if permits == 0 {
            return refused(NO_PERMIT);
        }
        let names = &self.request.names;
        let keys = [&names.holders, &names.info, &names.queue, &names.alive];
        let call = Call::new(&PERMITS, keys, [permits.to_string(), names.wake.to_string()]);
        let _changing = lock(&self.request.permits.changing);
        match self.ask("set_permits", call)? {
            Value::Int(_) => {
                self.request.permits.number.store(permits, Ordering::Relaxed);
                Ok(())
            }
            _ => Err(unexpected_reply("set_permits")),
        }
    }

    fn check(&self) -> Result<(), LockError> {
        match self.refused {
            Some((setting, reason)) => Err(LockError::Refused { setting, reason }),
            None => Ok(()),
        }
    }

    fn ask(&self, during: &'static str, call: Call) -> Result<Value, LockError> {
        self.manager.settings.here().map_err(LockError::Checkout)?;
        self.check()?;
        let settings = &self.manager.settings;
        let checkout = Instant::now() + settings.checkout_timeout;
        let limit = checkout + settings.response_timeout;
        let calls = std::slice::from_ref(&call);
        let asked = self.manager.client.ask_by(calls, Via::PooledFirst, checkout, limit);
        let mut answers = asked.map_err(|failed| failed.into_lock_error(during))?;
        match answers.values.pop() {
            Some(Value::ServerError(error)) => Err(refused(during, &error)),
            Some(value) => Ok(value),
            None => Err(unexpected_reply(during)),
        }
    }
}

/// Shows no name.
impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lock")
            .field("mode", &self.request.mode)
            .field("lease", &self.request.lease)
            .field("label", &self.request.label)
            .finish_non_exhaustive()
    }
}

/// A lock for many readers or one writer.
///
/// Made by [`rw_lock`](crate::SessionManager::rw_lock). Readers do not wait for a waiting
/// writer, so a writer may wait for long; with [`fair`](Lock::fair) on both sides callers are
/// admitted in the order of arrival.
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

    /// The side that is shared with other readers.
    pub fn read(&self) -> Lock {
        self.read.clone()
    }

    /// The exclusive side.
    pub fn write(&self) -> Lock {
        self.write.clone()
    }
}
