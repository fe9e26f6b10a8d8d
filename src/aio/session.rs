//! The session manager of tasks: two pools, and the handles to them.
//!
//! A connection is opened when it is first needed. A server that is down is no error here.

use std::fmt;
use std::panic::{Location, RefUnwindSafe, UnwindSafe};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::aio::handle::Transactional;
use crate::aio::lock::{Lock, RwLock};
use crate::aio::lock_all::LockAll;
use crate::aio::pooled::Pooled;
use crate::commit::tasks::TaskResolver;
use crate::connection::deadline;
use crate::connection::url::IntoAddress;
use crate::error::any::Error;
use crate::error::config::ConfigError;
use crate::error::in_doubt::{CommitToken, Resolution, UnresolvedReason};
use crate::error::open_scope::OpenScope;
use crate::error::token_cell::{TokenCell, TokenState};
use crate::lock::tasks::manager::TaskLockManager;
use crate::pool::router::Router;
use crate::pool::tasks::line::TaskKeyQueue;
use crate::pool::tasks::pool::TaskPool;
use crate::protocol::lock::acquire::LockMode;
use crate::session::builder::{Builder, Checked, routers};
use crate::status::locks::LockStatus;
use crate::status::report::{Closed, PoolStatus, Status};
use crate::transaction::hot_keys::HotKeys;

/// Two pools to one server, one for single commands and one for transactions, for tasks of tokio.
///
/// A session manager is cheap to clone, and tasks can share it. It may be made outside of a runtime, also
/// in a `static`. When the last clone and the last handle, guard and future are dropped, the connections
/// are closed and their tasks end.
///
/// A session manager belongs to the process that made it, as
/// [that of threads](crate::SessionManager) does.
///
/// ```no_run
/// use rediscope::aio::SessionManager;
/// use rediscope::prelude::*;
///
/// # async fn example() -> Result<(), rediscope::Error> {
/// let sessions = SessionManager::connect("redis://127.0.0.1/")?;
/// let mut db = sessions.pooled();
/// let _: () = db.set("greeting", "hello").await?;
/// let accounts = sessions.transactional();
/// accounts.run(|tx| Ok(tx.incr("hits", 1))).await?;
/// println!("{}", sessions.status());
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct SessionManager {
    pooled: Router<TaskPool>,
    transactional: Router<TaskPool>,
    resolver: Arc<TaskResolver>,
    hot_keys: Arc<HotKeys<TaskKeyQueue>>,
    /// The pool of connections to replicas, made at its first use.
    replicas: Arc<OnceLock<Router<TaskPool>>>,
    locks: Arc<TaskLockManager>,
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

impl Builder {
    /// Checks the settings and makes the two pools of a session manager for tasks. This opens no
    /// connection and needs no runtime. (Feature `tokio`.)
    ///
    /// ```no_run
    /// # fn main() -> Result<(), rediscope::error::ConfigError> {
    /// let sessions = rediscope::SessionManager::builder("redis://127.0.0.1/")
    ///     .max_size(16)
    ///     .build_async()?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`build`](Self::build).
    pub fn build_async(self) -> Result<SessionManager, ConfigError> {
        let Checked { address, settings, kinds } = self.checked()?;
        let threads = Arc::clone(&kinds.pooled.threads);
        let kinds = [kinds.locks(), kinds.transactional, kinds.pooled];
        let [own, transactional, pooled] = routers(address, &settings, kinds)?;
        let resolver = Arc::new(TaskResolver::new(transactional.clone()));
        let hot_keys = Arc::new(HotKeys::new());
        let locks = Arc::new(TaskLockManager::new(pooled.clone(), own));
        let reported = Arc::downgrade(&locks);
        locks
            .metrics()
            .report(&threads, move || reported.upgrade().map(|locks| locks.status().levels()));
        let replicas = Arc::default();
        Ok(SessionManager { pooled, transactional, resolver, hot_keys, replicas, locks })
    }
}

impl SessionManager {
    /// Like [`SessionManager::builder`](crate::SessionManager::builder) of threads. It ends with
    /// [`build_async`](crate::Builder::build_async), and so do
    /// [`SessionManager::cluster`](crate::SessionManager::cluster) and
    /// [`SessionManager::sentinel`](crate::SessionManager::sentinel) of threads.
    pub fn builder(to: impl IntoAddress) -> Builder {
        Builder::new(to.into_address())
    }

    /// Creates a session manager for tasks with every setting at its default. This opens no connection
    /// and needs no runtime.
    ///
    /// For other settings see [`Builder::build_async`](crate::Builder::build_async).
    ///
    /// # Errors
    /// As [`Builder::build_async`](crate::Builder::build_async).
    pub fn connect(to: impl IntoAddress) -> Result<Self, ConfigError> {
        Builder::new(to.into_address()).build_async()
    }

    /// Returns the handle for single commands. A blocking command that occupies a connection is
    /// reported with the place of this call.
    #[track_caller]
    pub fn pooled(&self) -> Pooled {
        Pooled::new(self.pooled.clone(), Location::caller(), Arc::new(self.transactional()))
    }

    /// Returns a handle for reads from the replicas behind sentinels, on a third pool of the same size.
    ///
    /// What it reads, refuses and falls back to is as with
    /// [the handle of threads](crate::SessionManager::replica_reads): without a replica that is in step,
    /// the master; in a cluster, [`pooled`](Self::pooled).
    ///
    /// ```no_run
    /// # use rediscope::{aio::SessionManager, prelude::*};
    /// # async fn example() -> Result<(), rediscope::Error> {
    /// let sessions = SessionManager::connect("redis+sentinel://10.0.0.1,10.0.0.2/mymaster")?;
    /// let name: Option<String> = sessions.replica_reads().get("user:7:name").await?;
    /// # let _ = name; Ok(()) }
    /// ```
    #[track_caller]
    pub fn replica_reads(&self) -> Pooled {
        if self.pooled.is_cluster() {
            return self.pooled();
        }
        if self.pooled.here().is_err() {
            // Another thread may have been making the pool when this process was forked.
            return Pooled::reading(self.pooled.clone(), Location::caller());
        }
        let replicas = self.replicas.get_or_init(|| self.pooled.of_replicas());
        // The close may not have seen the pool.
        if self.pooled.is_closed() {
            replicas.close();
        }
        Pooled::reading(replicas.clone(), Location::caller())
    }

    /// Returns the handle for transactions.
    pub fn transactional(&self) -> Transactional {
        let resolver = Arc::<TaskResolver>::clone(&self.resolver);
        Transactional::new(self.transactional.clone(), resolver, Arc::clone(&self.hot_keys))
    }

    /// Returns the lock with this name: one holder at a time, in all processes. See [`Lock`]. It excludes
    /// the locks of [threads](crate::SessionManager::lock) with the same name, too.
    ///
    /// Locks, [read/write locks](Self::rw_lock) and [semaphores](Self::semaphore) have separate
    /// names. `acquire` refuses an empty name.
    pub fn lock(&self, name: impl AsRef<str>) -> Lock {
        Lock::new(Arc::clone(&self.locks), "lock", name.as_ref(), LockMode::Exclusive, 1)
    }

    /// Returns the semaphore with this name: at most `permits` holders at a time. About the number of
    /// permits see [that of threads](crate::SessionManager::semaphore).
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use rediscope::aio::SessionManager;
    /// # async fn example(sessions: SessionManager) -> Result<(), rediscope::Error> {
    /// let permit = sessions.semaphore("printers", 3).acquire(Duration::from_secs(5)).await?;
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
    /// # use rediscope::aio::SessionManager;
    /// # async fn example(sessions: SessionManager) -> Result<(), rediscope::Error> {
    /// let both = sessions.lock_all(["account:7", "account:9"]).acquire(Duration::from_secs(5)).await?;
    /// # drop(both);
    /// # Ok(()) }
    /// ```
    pub fn lock_all(&self, names: impl IntoIterator<Item = impl AsRef<str>>) -> LockAll {
        LockAll::new(&self.locks, names)
    }

    /// Finds out whether an exactly-once transaction of this or another process was applied. `token` is a
    /// [`CommitToken`], or the [`TokenCell`] of a [submitted](Transactional::submit) block. `within` is a
    /// `Duration`, or `None` for `checkout_timeout`.
    ///
    /// If the future is dropped, the query may have been sent. It may be asked again at any time.
    ///
    /// If a cell is empty and the block's future is gone, nothing was applied: the output is
    /// [`NotCommitted`](Resolution::NotCommitted), without a query. While the future is alive, the block
    /// may still be sent, or sent again with another token if its token was not read. Then the output is
    /// [`Committed`](Resolution::Committed) or unknown
    /// ([`NotSentYet`](UnresolvedReason::NotSentYet)).
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use rediscope::{TransactionOptions, aio::SessionManager, error::Resolution, prelude::*};
    /// # async fn example() -> Result<(), rediscope::Error> {
    /// let sessions = SessionManager::connect("redis://127.0.0.1/")?;
    /// let transfers = sessions.transactional().with(TransactionOptions::new().exactly_once());
    /// let sent = transfers.submit(|tx| Ok(tx.incr("n", 1)))?;
    /// let token = sent.token();
    /// match tokio::time::timeout(Duration::from_millis(50), sent).await {
    ///     Ok(done) => println!("{}", done?),
    ///     Err(_) => match sessions.resolve(&token, None).await {
    ///         Resolution::Committed => println!("applied"),
    ///         Resolution::NotCommitted => println!("not applied, now or later"),
    ///         other => println!("{other:?}"),
    ///     },
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// Behind it: [`PEXPIRE`](https://redis.io/docs/latest/commands/pexpire/) and
    /// [`GET`](https://redis.io/docs/latest/commands/get/) on the connection's register.
    pub fn resolve<T: ResolveToken, D: Into<Option<Duration>>>(
        &self,
        token: &T,
        within: D,
    ) -> impl Future<Output = Resolution> + Send + use<T, D> {
        let (Proven { mut state, cell }, within) = (token.proven(), within.into());
        let resolver = Arc::clone(&self.resolver);
        async move {
            loop {
                let why = match state {
                    TokenState::Drawn(token) => {
                        let resolution = resolver.resolve(&token, within).await;
                        match &cell {
                            // The block of this number is not applied. Its future may send it again.
                            Some(cell) if resolution == Resolution::NotCommitted => {
                                if cell.is_waiting() {
                                    UnresolvedReason::NotSentYet
                                } else if cell.last().as_ref() == Some(&token) {
                                    return resolution;
                                } else {
                                    state = cell.state();
                                    continue;
                                }
                            }
                            _ => return resolution,
                        }
                    }
                    TokenState::NeverSent => return Resolution::NotCommitted,
                    TokenState::Waiting => UnresolvedReason::NotSentYet,
                    TokenState::NotExactlyOnce => UnresolvedReason::NotExactlyOnce,
                };
                return Resolution::StillUnknown { why };
            }
        }
    }

    /// Asks whether the servers take writes now. See
    /// [`SessionManager::ready`](crate::SessionManager::ready) of threads for what is asked and for the
    /// errors.
    ///
    /// The future has a result within `within`. Dropped before its end, it closes the connection of its
    /// query; other calls go on.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use rediscope::aio::SessionManager;
    /// # async fn example(sessions: &SessionManager) {
    /// let status = match sessions.ready(Duration::from_secs(1)).await {
    ///     Ok(()) => "200 OK".to_owned(),
    ///     Err(error) => format!("503 {error:#}"),
    /// };
    /// # let _ = status; }
    /// ```
    ///
    /// # Errors
    /// [`Error::Checkout`] with the reason.
    pub fn ready(
        &self,
        within: Duration,
    ) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        let resolver = Arc::clone(&self.resolver);
        async move { resolver.ready(within).await }
    }

    /// Returns the open scopes of both pools and the blocking commands of pooled handles, oldest
    /// first: age, place, name, task.
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
    /// [`CheckoutError::Closed`](crate::error::CheckoutError::Closed), also if the future is not polled or
    /// is dropped.
    ///
    /// Open scopes have `timeout` to end. Then their connections are closed and reclaimed: a call in
    /// progress fails, and later calls fail with [`PinExpired`](crate::error::PinExpired). A command that
    /// waits on the server (`BLPOP` and similar) ends at once, with [`Error::Lost`](crate::Error::Lost).
    /// The output counts what was still open after `timeout`. When the future is ready, no task of the
    /// manager is alive, unless a lock is held. If the program blocks the runtime's threads, their end is
    /// awaited for 5 seconds at most.
    ///
    /// Held locks are extended until `timeout` is over. They can be released before and after it,
    /// and are never taken from a living guard: see [`Closed::locks`]. The tasks that release them end
    /// with the last guard, or with its lease.
    ///
    /// If the future is dropped before its end, scopes stay open until they end; then their connections
    /// are closed. Leases are extended while their guards live.
    ///
    /// `timeout` may be zero, which waits for no scope, or `Duration::MAX`, which waits for all of them.
    /// This also closes all clones and handles of the manager.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use rediscope::aio::SessionManager;
    /// # async fn example() -> Result<(), rediscope::Error> {
    /// # let sessions = SessionManager::connect("redis://127.0.0.1/")?;
    /// let left = sessions.close(Duration::from_secs(5)).await;
    /// if left.scopes + left.locks > 0 {
    ///     eprintln!("closed with work in hand: {left}");
    /// }
    /// # Ok(()) }
    /// ```
    pub fn close(&self, timeout: Duration) -> impl Future<Output = Closed> + Send + use<> {
        let (pooled, transactional) = (self.pooled.clone(), self.transactional.clone());
        let replicas = Arc::clone(&self.replicas);
        let is_here = pooled.here().is_ok();
        let deadline = deadline::after(timeout);
        let queries = is_here.then(|| self.resolver.close());
        if is_here {
            pooled.close();
            transactional.close();
            self.hot_keys.close();
            if let Some(replicas) = replicas.get() {
                replicas.close();
            }
            self.locks.close();
        }
        let locks = Arc::clone(&self.locks);
        let tasks = self.transactional.settings().tasks.clone();
        async move {
            if !is_here {
                return Closed::default();
            }
            let mut scopes = pooled.drain(deadline).await + transactional.drain(deadline).await;
            if let Some(replicas) = replicas.get() {
                scopes += replicas.drain(deadline).await;
            }
            // The locks end last, because a scope may run under a lock.
            let held = locks.end_renewals(deadline).await;
            if let Some(queries) = queries {
                queries.await;
            }
            // No connection is left for which a failover would be watched.
            transactional.stop_connecting();
            tasks.end().await;
            locks.end_tasks().await;
            Closed { scopes, locks: held }
        }
    }

    /// Returns the connections of both pools, their open scopes and their counters. This call sends
    /// nothing and waits for no scope.
    pub fn status(&self) -> Status {
        let is_here = self.pooled.here().is_ok();
        let pool = |router: &Router<TaskPool>, name| match is_here {
            true => router.status(),
            false => PoolStatus::none(name),
        };
        Status {
            server: match is_here {
                true => self.transactional.address(),
                false => "of another process".to_owned(),
            },
            pooled: pool(&self.pooled, "pooled"),
            transactional: pool(&self.transactional, "transactional"),
            replicas: self.replicas.get().filter(|_| is_here).map(|replicas| replicas.status()),
            locks: match is_here {
                true => self.locks.status(),
                false => LockStatus::default(),
            },
        }
    }
}

mod sealed {
    pub trait Sealed {}
}

/// The argument of [`SessionManager::resolve`]: a [`CommitToken`], or a [`TokenCell`].
pub trait ResolveToken: sealed::Sealed {
    #[doc(hidden)]
    fn proven(&self) -> Proven;
}

/// What a token or a cell proves without a query.
#[derive(Debug)]
#[doc(hidden)]
pub struct Proven {
    state: TokenState,
    /// Where a later token of the block would be.
    cell: Option<TokenCell>,
}

impl sealed::Sealed for CommitToken {}
impl sealed::Sealed for TokenCell {}

impl ResolveToken for CommitToken {
    fn proven(&self) -> Proven {
        Proven { state: TokenState::Drawn(self.clone()), cell: None }
    }
}

impl ResolveToken for TokenCell {
    fn proven(&self) -> Proven {
        Proven { state: self.state(), cell: Some(self.clone()) }
    }
}
