//! The session manager: two pools, and the handles to them.
//!
//! A connection is opened when it is first needed. A server that is down is no error here.

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;

use crate::commit::threads::CommitResolver;
use crate::connection::deadline;
use crate::error::any::Error;
use crate::error::in_doubt::{CommitToken, Resolution, ResolveCommit as _};
use crate::error::open_scope::OpenScope;
use crate::lock::all_handle::LockAll;
use crate::lock::handle::{Lock, RwLock};
use crate::lock::manager::LockManager;
use crate::pool::router::Router;
use crate::pooled::handle::Pooled;
use crate::protocol::lock::acquire::LockMode;
use crate::status::locks::LockStatus;
use crate::status::report::{Closed, PoolStatus, Status};
use crate::transaction::handle::Transactional;
use crate::transaction::hot_keys::HotKeys;

/// Two pools to one server, one for single commands and one for transactions, so that a plain
/// read can never open a scope.
///
/// A session manager is cheap to clone, and threads can share it. When the last clone and the last
/// handle and guard are dropped, the connections are closed.
///
/// A session manager belongs to the process that made it. In a forked child every use fails with
/// [`CheckoutError::OtherProcess`](crate::error::CheckoutError::OtherProcess) at once, and every drop does
/// nothing. Make a new session manager after the fork, and best none before it: the locks of r2d2
/// (parking_lot) have one table of sleeping threads for the process, which a child inherits with the parent's
/// threads in it. Now and then a thread of the child's new manager then sleeps for ever, or panics.
///
/// ```no_run
/// use rediscope::{SessionManager, prelude::*};
///
/// # fn main() -> Result<(), rediscope::Error> {
/// let sessions = SessionManager::connect("redis://127.0.0.1/")?;
/// let mut db = sessions.pooled();
/// let _: () = db.set("greeting", "hello")?;
/// let accounts = sessions.transactional();
/// accounts.run(|tx| Ok(tx.incr("hits", 1)))?;
/// println!("{}", sessions.status());
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct SessionManager {
    pub(crate) pooled: Router,
    pub(crate) transactional: Router,
    pub(crate) resolver: Arc<CommitResolver>,
    pub(crate) hot_keys: Arc<HotKeys>,
    pub(crate) locks: Arc<LockManager>,
    /// The pool of connections to replicas, made at its first use.
    pub(crate) replicas: Arc<OnceLock<Router>>,
}

/// One line: the server, and the number of connections of each pool. See
/// [`SessionManager::status`].
impl fmt::Debug for SessionManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Status { server, pooled, transactional, .. } = self.status();
        let pool = |pool: &PoolStatus| format!("{} of {} in use", pool.in_use, pool.max_size);
        write!(
            f,
            "SessionManager {{ server: {server:?}, transactional: {}, pooled: {} }}",
            pool(&transactional),
            pool(&pooled)
        )
    }
}

impl UnwindSafe for SessionManager {}
impl RefUnwindSafe for SessionManager {}

impl SessionManager {
    /// Returns the handle for single commands. A blocking command that occupies a connection is
    /// reported with the place of this call.
    #[track_caller]
    pub fn pooled(&self) -> Pooled {
        Pooled::new(self.pooled.clone(), Arc::new(self.transactional()))
    }

    /// Returns a handle for reads from the replicas behind sentinels, on a third pool of the same
    /// size.
    ///
    /// A replica may lag behind: reads that need the latest writes belong to
    /// [`pooled`](Self::pooled). A command that is not a read is refused by name. Replicas that are
    /// down or out of step with their master are skipped. If no replica is left, or without
    /// sentinels, the handle reads from the master. In a cluster this call returns the pooled
    /// handle.
    ///
    /// ```no_run
    /// # use rediscope::{SessionManager, prelude::*};
    /// # fn main() -> Result<(), rediscope::Error> {
    /// let sessions = SessionManager::connect("redis+sentinel://10.0.0.1,10.0.0.2/mymaster")?;
    /// let name: Option<String> = sessions.replica_reads().get("user:7:name")?;
    /// # Ok(()) }
    /// ```
    #[track_caller]
    pub fn replica_reads(&self) -> Pooled {
        if self.pooled.is_cluster() {
            return self.pooled();
        }
        if self.pooled.here().is_err() {
            // Another thread may have been making the pool when this process was forked.
            return Pooled::reading(self.pooled.clone());
        }
        let replicas = self.replicas.get_or_init(|| self.pooled.of_replicas());
        // The close may not have seen the pool.
        if self.pooled.is_closed() {
            replicas.close();
        }
        Pooled::reading(replicas.clone())
    }

    /// Returns the handle for transactions.
    pub fn transactional(&self) -> Transactional {
        let resolver = Arc::<CommitResolver>::clone(&self.resolver);
        Transactional::new(self.transactional.clone(), resolver, Arc::clone(&self.hot_keys))
    }

    /// Returns the lock with this name: one holder at a time, in all processes. See [`Lock`].
    ///
    /// Locks, [read/write locks](Self::rw_lock) and [semaphores](Self::semaphore) have separate
    /// names. `acquire` refuses an empty name.
    pub fn lock(&self, name: impl AsRef<str>) -> Lock {
        Lock::new(Arc::clone(&self.locks), "lock", name.as_ref(), LockMode::Exclusive, 1)
    }

    /// Returns the semaphore with this name: at most `permits` holders at a time.
    ///
    /// The server keeps the number while the semaphore has holders or waiters. A call with another
    /// number then fails with [`LockError::OtherPermits`](crate::error::LockError::OtherPermits). Without
    /// holders and waiters the next caller's number applies. So a deployment can change from 3 to 5
    /// one process after the other. [`set_permits`](Lock::set_permits) changes the number at once.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use rediscope::SessionManager;
    /// # fn main() -> Result<(), rediscope::Error> {
    /// # let sessions = SessionManager::connect("redis://127.0.0.1/")?;
    /// let permit = sessions.semaphore("printers", 3).acquire(Duration::from_secs(5))?;
    /// # drop(permit);
    /// # Ok(()) }
    /// ```
    pub fn semaphore(&self, name: impl AsRef<str>, permits: u32) -> Lock {
        Lock::new(Arc::clone(&self.locks), "sem", name.as_ref(), LockMode::Semaphore, permits)
    }

    /// Returns the read/write lock with this name: many readers, or one writer. See [`RwLock`].
    pub fn rw_lock(&self, name: impl AsRef<str>) -> RwLock {
        RwLock::new(&self.locks, name.as_ref())
    }

    /// Returns the locks with these names, which are acquired together: all of them or none. See
    /// [`LockAll`]. A name that is repeated counts once; `acquire` refuses an empty list and an empty name.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use rediscope::SessionManager;
    /// # fn main() -> Result<(), rediscope::Error> {
    /// # let sessions = SessionManager::connect("redis://127.0.0.1/")?;
    /// let both = sessions.lock_all(["account:7", "account:9"]).acquire(Duration::from_secs(5))?;
    /// # drop(both);
    /// # Ok(()) }
    /// ```
    pub fn lock_all(&self, names: impl IntoIterator<Item = impl AsRef<str>>) -> LockAll {
        LockAll::new(&self.locks, names)
    }

    /// Finds out whether an exactly-once transaction of this or another process was applied: see
    /// [`InDoubt::resolve`](crate::error::InDoubt::resolve). `within` is a `Duration`, or `None` for
    /// `checkout_timeout`.
    ///
    /// ```no_run
    /// # use rediscope::error::{CommitToken, Resolution};
    /// # use rediscope::SessionManager;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let sessions = SessionManager::connect("redis://127.0.0.1/")?;
    /// let token: CommitToken = std::fs::read_to_string("in-doubt")?.parse()?;
    /// match sessions.resolve(&token, None) {
    ///     Resolution::Committed => println!("applied"),
    ///     Resolution::NotCommitted => println!("not applied, now or later"),
    ///     other => println!("{other:?}"),
    /// }
    /// # Ok(()) }
    /// ```
    pub fn resolve(&self, token: &CommitToken, within: impl Into<Option<Duration>>) -> Resolution {
        self.resolver.resolve(token, within.into())
    }

    /// Asks whether the servers take writes now, as a readiness probe does. It returns as soon as that is
    /// known, within `within`, and does not wait until they do.
    ///
    /// The probe has a connection of its own, which stays open between probes. It takes no connection of
    /// a pool: a pool whose connections are all in use is ready. A call during another call's probe
    /// returns that probe's result. The probe and the resolution of doubts query one after the other.
    ///
    /// With sentinels it asks the master that they report. In a cluster every slot must have a master,
    /// and each master must reply; a slot map that is out of date is refreshed once.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use rediscope::SessionManager;
    /// # fn main() -> Result<(), rediscope::Error> {
    /// # let sessions = SessionManager::connect("redis://127.0.0.1/")?;
    /// let status = match sessions.ready(Duration::from_secs(1)) {
    ///     Ok(()) => "200 OK".to_owned(),
    ///     Err(error) => format!("503 {error:#}"),
    /// };
    /// # let _ = status;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Checkout`], with [`Connect`](crate::error::CheckoutError::Connect), whose `source` has the
    /// reason: a name that is not found, a refused connection, TLS, a timeout
    /// ([`kind`](crate::error::ConnectionError::kind)), or the server's error
    /// ([`server_error`](crate::error::ConnectionError::server_error)), as `WRONGPASS`, `NOAUTH`, `LOADING`,
    /// `READONLY` of a replica, `MASTERDOWN`, `CLUSTERDOWN`, `MISCONF`, `NOREPLICAS`.
    /// [`Closed`](crate::error::CheckoutError::Closed) after [`close`](Self::close). A user without the
    /// right to `PEXPIRE`, or to keys of the prefix, is no error: exactly-once alone needs it. For such a user
    /// `Ok` says only that the server replies. A server without memory (`OOM`) is ready: `PEXPIRE` needs none.
    ///
    /// Behind it: [`PEXPIRE`](https://redis.io/docs/latest/commands/pexpire/) and
    /// [`GET`](https://redis.io/docs/latest/commands/get/) of a key that does not exist.
    pub fn ready(&self, within: Duration) -> Result<(), Error> {
        self.resolver.ready(within)
    }

    /// Returns the open scopes of both pools and the blocking commands of pooled handles, oldest
    /// first: age, place, name, thread.
    pub fn open_scopes(&self) -> Vec<OpenScope> {
        if self.pooled.here().is_err() {
            return Vec::new();
        }
        let mut scopes = self.transactional.scopes();
        scopes.extend(self.pooled.scopes());
        scopes.sort_by_key(|scope| std::cmp::Reverse(scope.age));
        scopes
    }

    /// Closes the session. From now on every new use fails with
    /// [`CheckoutError::Closed`](crate::error::CheckoutError::Closed).
    ///
    /// Open scopes have `timeout` to end. Then their connections are closed and reclaimed: a call
    /// in progress fails, and later calls fail with [`PinExpired`](crate::error::PinExpired). A command
    /// that waits on the server (`BLPOP` and similar) ends at once, with
    /// [`Error::Lost`](crate::Error::Lost). The return value counts what was still open after
    /// `timeout`.
    ///
    /// `timeout` may be zero, which waits for no scope, or `Duration::MAX`, which waits for all of
    /// them. Connections that are being opened have up to 100 ms more, and are closed in any case.
    ///
    /// Held locks are extended until `timeout` is over. They can be released before and after it,
    /// and are never taken from a living guard: see [`Closed::locks`].
    ///
    /// This also closes all clones and handles of the manager.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use rediscope::SessionManager;
    /// # fn main() -> Result<(), rediscope::Error> {
    /// # let sessions = SessionManager::connect("redis://127.0.0.1/")?;
    /// let left = sessions.close(Duration::from_secs(5));
    /// if left.scopes + left.locks > 0 {
    ///     eprintln!("closed with work in hand: {left}");
    /// }
    /// # Ok(()) }
    /// ```
    pub fn close(&self, timeout: Duration) -> Closed {
        if self.pooled.here().is_err() {
            return Closed::default();
        }
        let deadline = deadline::after(timeout);
        self.pooled.close();
        self.transactional.close();
        self.hot_keys.close();
        self.resolver.close();
        self.locks.close();
        if let Some(replicas) = self.replicas.get() {
            replicas.close();
        }
        let scopes = self.pooled.drain(deadline)
            + self.transactional.drain(deadline)
            + self.replicas.get().map_or(0, |replicas| replicas.drain(deadline));
        // The locks end last, because a scope may run under a lock.
        let locks = self.locks.renewer.end_renewals(deadline);
        Closed { scopes, locks }
    }

    /// Returns the connections of both pools, their open scopes and their counters. This call sends
    /// nothing and waits for no scope.
    pub fn status(&self) -> Status {
        if self.pooled.here().is_err() {
            return Status {
                server: "of another process".to_owned(),
                pooled: PoolStatus::none("pooled"),
                transactional: PoolStatus::none("transactional"),
                replicas: None,
                locks: LockStatus::default(),
            };
        }
        Status {
            server: self.transactional.address(),
            pooled: self.pooled.status(),
            transactional: self.transactional.status(),
            replicas: self.replicas.get().map(|replicas| replicas.status()),
            locks: self.locks.status(),
        }
    }
}
