//! The handle that opens transactions: only this handle sends MULTI and WATCH.
//!
//! Single commands are on the pooled handle, so that a plain read cannot open a scope.

use std::panic::{Location, RefUnwindSafe, UnwindSafe};
use std::sync::Arc;

use redis::ToSingleRedisArg;

use crate::error::any::Error;
use crate::error::hint::WithError;
use crate::error::in_doubt::ResolveCommit;
use crate::lock::guard::LockGuard;
use crate::pool::router::Router;
use crate::pool::scope_origin::ScopeOrigin;
use crate::protocol::cluster::slot;
use crate::transaction::block::Block;
use crate::transaction::condition::Condition;
use crate::transaction::conditional::Conditional;
use crate::transaction::guard::Transaction;
use crate::transaction::hot_keys::HotKeys;
use crate::transaction::keys::{IntoKeys, Keys};
use crate::transaction::options::TransactionOptions;
use crate::transaction::pending::Pending;
use crate::transaction::pinned::Pinned;
use crate::transaction::resolve::Resolve;
use crate::transaction::scope_calls;
use crate::transaction::threads;
use crate::transaction::watch::Watch;

/// The handle that opens transactions: only this handle sends MULTI and WATCH.
///
/// The handle is cheap to clone, and threads can share it. It holds no connection, and dropping it
/// does nothing.
///
/// ```no_run
/// use rediscope::{SessionManager, prelude::*};
///
/// # fn main() -> Result<(), rediscope::Error> {
/// let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
/// let (alice, bob) = accounts.run(|tx| {
///     Ok((tx.decr("balance:alice", 30), tx.incr("balance:bob", 30)))
/// })?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Transactional {
    router: Router,
    options: TransactionOptions,
    resolver: Arc<dyn ResolveCommit>,
    hot_keys: Arc<HotKeys>,
}

impl UnwindSafe for Transactional {}
impl RefUnwindSafe for Transactional {}

impl Transactional {
    pub(crate) fn new(
        router: Router,
        resolver: Arc<dyn ResolveCommit>,
        hot_keys: Arc<HotKeys>,
    ) -> Self {
        Self { router, options: TransactionOptions::default(), resolver, hot_keys }
    }

    /// Returns a handle whose transactions have these options. An option that `options` does not
    /// set keeps its value.
    pub fn with(&self, options: TransactionOptions) -> Self {
        Self { options: self.options.overlaid(options), ..self.clone() }
    }

    /// Returns a handle whose transactions are applied only while `guard`'s lock is held. If the
    /// holder lost the lock and does not know it yet, nothing is applied.
    ///
    /// The first commands of each transaction watch the lock and read its owner. This costs a block
    /// one round trip, and a watching scope none. If another caller acquires the lock before EXEC,
    /// EXEC applies nothing, and the commit fails with [`LockLost`](crate::CommitError::LockLost).
    /// If the lock was only extended meanwhile, the block is sent again; a watching block may end
    /// in a conflict.
    ///
    /// The lock must be on the server and in the database of this handle.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use rediscope::{SessionManager, prelude::*};
    /// # fn main() -> Result<(), rediscope::Error> {
    /// let sessions = SessionManager::connect("redis://127.0.0.1/")?;
    /// let guard = sessions.lock("report").acquire(Duration::from_secs(2))?;
    /// let fenced = sessions.transactional().fenced_by(&guard);
    /// fenced.run(|tx| Ok(tx.set("report:state", "half done")))?;
    /// guard.release()?;
    /// # Ok(()) }
    /// ```
    ///
    /// Behind it: [`WATCH`](https://redis.io/docs/latest/commands/watch/) and
    /// [`ZSCORE`](https://redis.io/docs/latest/commands/zscore/).
    pub fn fenced_by(&self, guard: &LockGuard) -> Self {
        self.with(TransactionOptions::default().fenced_by(guard))
    }

    /// Pins a connection for a transaction that the caller commits or discards.
    ///
    /// With [`Begin::Immediate`](crate::Begin::Immediate) this call returns after the reply to
    /// MULTI. Otherwise nothing is sent before the commit, or before the first chunk of a large
    /// transaction.
    ///
    /// Behind it: [`MULTI`](https://redis.io/docs/latest/commands/multi/).
    ///
    /// # Errors
    /// [`Error::Checkout`] if no connection was free within `checkout_timeout`; [`Error::Commit`]
    /// with `Rejected` if the server refused MULTI. Nothing was applied.
    #[track_caller]
    pub fn begin(&self) -> Result<Transaction, Error> {
        self.begin_with(TransactionOptions::default())
    }

    /// Like [`begin`](Self::begin), with options for this one transaction.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    #[track_caller]
    pub fn begin_with(&self, options: TransactionOptions) -> Result<Transaction, Error> {
        let options = self.options.overlaid(options);
        self.begin_transaction(&options, owner(&options, Location::caller(), false), None)
    }

    /// Like [`begin`](Self::begin), but bound at once to the slot of `key` in a cluster.
    ///
    /// In a cluster a transaction runs on one master, so all its keys have one slot. With `begin`
    /// this is the slot of the first key; here it is the slot of `key`. This call pins a connection
    /// to that master, but `begin` pins none before it knows a key. Commands whose keys this crate
    /// does not know, such as a module's commands given to [`queue`](crate::commands::QueueCommands::queue),
    /// may therefore come first. With one server this call does the same as `begin`.
    ///
    /// ```no_run
    /// # use rediscope::{SessionManager, prelude::*, redis};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    /// let mut tx = accounts.begin_at("{order:1}")?;
    /// tx.queue::<()>(redis::cmd("JSON.SET").arg("{order:1}:lines").arg("$").arg("[]").take());
    /// tx.commit()?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`begin`](Self::begin); [`Error::CrossSlot`] if the handle is [fenced](Self::fenced_by)
    /// by a lock of another slot.
    #[track_caller]
    pub fn begin_at(&self, key: impl ToSingleRedisArg) -> Result<Transaction, Error> {
        let owner = owner(&self.options, Location::caller(), false);
        let slot = key.to_redis_args().first().map(|key| slot::of_key(key));
        self.begin_transaction(&self.options, owner, slot)
    }

    fn begin_transaction(
        &self,
        options: &TransactionOptions,
        owner: ScopeOrigin,
        slot: Option<u16>,
    ) -> Result<Transaction, Error> {
        self.router.here()?;
        let plan = options.commit_plan(&self.resolver, self.router.settings())?;
        let mut binding = plan.binding(&self.router);
        if let Some(other) = slot
            && let Err(bound) = binding.bind(other)
        {
            return Err(Error::CrossSlot { command: "begin_at".to_owned(), bound, other });
        }
        let mut pinned = Pinned::new(&self.router, owner, plan);
        let mut pending = Pending::new(pinned.settings(), binding);
        let begun = scope_calls::begin(&mut pending, &mut pinned);
        begun.inspect_err(|error| pinned.record_failure(error))?;
        Ok(Transaction::new(pending, pinned))
    }

    /// Runs `closure`, commits the commands that it queued, and resolves the handles it returns
    /// into values.
    ///
    /// The closure runs once. If the connection fails before its commands were sent, they are sent
    /// again, within the handle's [`RetryPolicy`](crate::RetryPolicy). If the closure returns `Err`
    /// or panics, nothing is applied.
    ///
    /// # Errors
    /// The closure's own error; [`Error::Checkout`] and [`Error::Commit`], whose
    /// [`applied`](Error::applied) returns what the server did; [`Error::Reply`] if the transaction
    /// **was applied** and a value cannot be returned.
    #[track_caller]
    pub fn run<R: Resolve + WithError<E>, E>(
        &self,
        closure: impl FnOnce(&mut Block) -> Result<R, E>,
    ) -> Result<R::Output, Error> {
        self.run_with(|tx| closure(tx).map_err(R::own))
    }

    /// Like [`run`](Self::run), for a closure with an error type of its own. A closure that only uses
    /// `?` has to write the type down: `run_with(|tx| -> Result<_, BankError> { … })`.
    ///
    /// ```no_run
    /// # use rediscope::{SessionManager, prelude::*};
    /// #[derive(Debug, thiserror::Error)]
    /// enum BankError {
    ///     #[error("the bank is closed")]
    ///     Closed,
    ///     #[error(transparent)]
    ///     Redis(#[from] rediscope::Error),
    /// }
    ///
    /// fn pay(accounts: &rediscope::Transactional, open: bool) -> Result<i64, BankError> {
    ///     accounts.run_with(|tx| {
    ///         if !open {
    ///             return Err(BankError::Closed);
    ///         }
    ///         Ok(tx.incr("balance:alice", 30))
    ///     })
    /// }
    /// ```
    ///
    /// # Errors
    /// The closure's own error, or this crate's, converted.
    #[inline]
    #[track_caller]
    pub fn run_with<R: Resolve, E: From<Error>>(
        &self,
        closure: impl FnOnce(&mut Block) -> Result<R, E>,
    ) -> Result<R::Output, E> {
        self.run_at(Location::caller(), closure)
    }

    /// Runs a block of the caller at `place`.
    #[inline]
    pub(crate) fn run_at<R: Resolve, E: From<Error>>(
        &self,
        place: &'static Location<'static>,
        closure: impl FnOnce(&mut Block) -> Result<R, E>,
    ) -> Result<R::Output, E> {
        self.router.here().map_err(Error::from)?;
        let owner = owner(&self.options, place, true);
        let plan = self.options.commit_plan(&self.resolver, self.router.settings())?;
        threads::run_block(&self.router, owner, plan, self.options.policy(), closure)
    }

    /// Read, decide, write: the writes are applied only if none of `keys` changed meanwhile.
    ///
    /// ```no_run
    /// # use rediscope::{SessionManager, prelude::*};
    /// # fn main() -> Result<(), rediscope::Error> {
    /// # let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    /// let left: i64 = accounts.watch(["stock"]).run(|read, tx| {
    ///     let stock: i64 = read.get("stock")?;
    ///     Ok(tx.decr("stock", stock.min(1)))
    /// })?;
    /// # Ok(()) }
    /// ```
    pub fn watch(&self, keys: impl IntoKeys) -> Watch {
        self.watch_of(Some(keys.into_keys()))
    }

    /// Reads and writes on one connection, without a WATCH. A value may have changed between the
    /// read and the commit.
    pub fn reading(&self) -> Watch {
        self.watch_of(None)
    }

    /// Applies a block only while `condition` holds; the caller writes no WATCH. The returned value
    /// takes further conditions.
    ///
    /// ```no_run
    /// # use rediscope::{Condition, SessionManager, prelude::*};
    /// # fn main() -> Result<(), rediscope::Error> {
    /// # let shop = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    /// let left = shop
    ///     .require(Condition::equals("shop:state", "open"))
    ///     .require(Condition::at_least("stock", 1))
    ///     .run(|tx| Ok(tx.decr("stock", 1)))?;
    /// # Ok(()) }
    /// ```
    pub fn require(&self, condition: Condition) -> Conditional {
        Conditional::new(self.watch_of(None).require(condition))
    }

    fn watch_of(&self, keys: Option<Keys>) -> Watch {
        let resolver = Arc::clone(&self.resolver);
        let hot_keys = Arc::clone(&self.hot_keys);
        Watch::new(self.router.clone(), self.options.clone(), resolver, hot_keys, keys)
    }
}

fn owner(
    options: &TransactionOptions,
    place: &'static Location<'static>,
    is_closure: bool,
) -> ScopeOrigin {
    ScopeOrigin { name: options.scope_name(), place, is_closure }
}
