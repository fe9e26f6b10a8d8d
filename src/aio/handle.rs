//! The handle of tasks that opens transactions: only this handle sends MULTI and WATCH.

use std::panic::{Location, RefUnwindSafe, UnwindSafe};
use std::pin::pin;
use std::sync::Arc;

use redis::ToSingleRedisArg;

use crate::aio::block_run::{BlockRun, NoClosure, Unfinished};
use crate::aio::conditional::Conditional;
use crate::aio::guard::Transaction;
use crate::aio::lock_guard::LockGuard;
use crate::aio::submitted::Submitted;
use crate::aio::watch::Watch;
use crate::commit::plan::CommitPlan;
use crate::error::any::Error;
use crate::error::hint::WithError;
use crate::error::in_doubt::ResolveCommit;
use crate::error::token_cell::TokenCell;
use crate::pool::router::Router;
use crate::pool::scope_origin::ScopeOrigin;
use crate::pool::tasks::line::TaskKeyQueue;
use crate::pool::tasks::pool::TaskPool;
use crate::protocol::cluster::slot;
use crate::protocol::retry::RetryPolicy;
use crate::reply::replies::Replies;
use crate::sync::in_span::in_span;
use crate::transaction::block::Block;
use crate::transaction::condition::Condition;
use crate::transaction::hot_keys::HotKeys;
use crate::transaction::keys::{IntoKeys, Keys};
use crate::transaction::options::TransactionOptions;
use crate::transaction::pending::Pending;
use crate::transaction::pinned::Pinned;
use crate::transaction::resolve::Resolve;
use crate::transaction::retry_loop;

/// The handle of tasks that opens transactions: only this handle sends MULTI and WATCH.
///
/// The handle is cheap to clone, and tasks can share it. It holds no connection, and dropping it does
/// nothing. Its futures can be spawned, and their closures may borrow.
///
/// ```no_run
/// use rediscope::aio::SessionManager;
/// use rediscope::prelude::*;
///
/// # async fn example() -> Result<(), rediscope::Error> {
/// let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
/// let (alice, bob) =
///     accounts.run(|tx| Ok((tx.decr("balance:alice", 30), tx.incr("balance:bob", 30)))).await?;
/// # let _ = (alice, bob); Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Transactional {
    router: Router<TaskPool>,
    options: TransactionOptions,
    resolver: Arc<dyn ResolveCommit>,
    hot_keys: Arc<HotKeys<TaskKeyQueue>>,
}

impl UnwindSafe for Transactional {}
impl RefUnwindSafe for Transactional {}

impl Transactional {
    pub(crate) fn new(
        router: Router<TaskPool>,
        resolver: Arc<dyn ResolveCommit>,
        hot_keys: Arc<HotKeys<TaskKeyQueue>>,
    ) -> Self {
        Self { router, options: TransactionOptions::default(), resolver, hot_keys }
    }

    /// Returns a handle whose transactions have these options. An option that `options` does not
    /// set keeps its value.
    ///
    /// [`grouped`](TransactionOptions::grouped) changes nothing for tasks: small blocks always share
    /// writes.
    pub fn with(&self, options: TransactionOptions) -> Self {
        Self { options: self.options.overlaid(options), ..self.clone() }
    }

    /// Returns a handle whose transactions are applied only while `guard`'s lock is held: see
    /// [that of threads](crate::Transactional::fenced_by).
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use rediscope::{aio::SessionManager, prelude::*};
    /// # async fn example() -> Result<(), rediscope::Error> {
    /// # let sessions = SessionManager::connect("redis://127.0.0.1/")?;
    /// let guard = sessions.lock("report").acquire(Duration::from_secs(2)).await?;
    /// let fenced = sessions.transactional().fenced_by(&guard);
    /// fenced.run(|tx| Ok(tx.incr("reports", 1))).await?;
    /// # Ok(()) }
    /// ```
    pub fn fenced_by(&self, guard: &LockGuard) -> Self {
        self.with(TransactionOptions::default().fenced_by(guard))
    }

    /// Pins a connection for a transaction that the caller commits or discards.
    ///
    /// With [`Begin::Immediate`](crate::Begin::Immediate) the future is ready after the reply to MULTI.
    /// Otherwise nothing is sent before the commit or a [`flush`](Transaction::flush).
    ///
    /// If the future is dropped, no connection stays pinned. One that is being opened for it becomes idle.
    ///
    /// Behind it: [`MULTI`](https://redis.io/docs/latest/commands/multi/).
    ///
    /// # Errors
    /// [`Error::Checkout`] if no connection was free within `checkout_timeout`; [`Error::Commit`]
    /// with `Rejected` if the server refused MULTI. Nothing was applied.
    #[track_caller]
    pub fn begin(&self) -> impl Future<Output = Result<Transaction, Error>> + Send {
        self.begin_with(TransactionOptions::default())
    }

    /// Like [`begin`](Self::begin), with options for this one transaction.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    #[track_caller]
    pub fn begin_with(
        &self,
        options: TransactionOptions,
    ) -> impl Future<Output = Result<Transaction, Error>> + Send {
        let options = self.options.overlaid(options);
        let owner = owner(&options, Location::caller(), false);
        async move { self.begin_transaction(&options, owner, None).await }
    }

    /// Like [`begin`](Self::begin), but bound at once to the slot of `key` in a cluster. With one server
    /// this does the same as `begin`.
    ///
    /// ```no_run
    /// # use rediscope::{aio::SessionManager, prelude::*, redis};
    /// # async fn example() -> Result<(), rediscope::Error> {
    /// # let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    /// let mut tx = accounts.begin_at("{order:1}").await?;
    /// tx.queue::<()>(redis::cmd("JSON.SET").arg("{order:1}:lines").arg("$").arg("[]").take());
    /// tx.commit().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`begin`](Self::begin); [`Error::CrossSlot`] if the handle is [fenced](Self::fenced_by)
    /// by a lock of another slot.
    #[track_caller]
    pub fn begin_at<K: ToSingleRedisArg>(
        &self,
        key: K,
    ) -> impl Future<Output = Result<Transaction, Error>> + Send + use<'_, K> {
        let owner = owner(&self.options, Location::caller(), false);
        let slot = key.to_redis_args().first().map(|key| slot::of_key(key));
        async move { self.begin_transaction(&self.options, owner, slot).await }
    }

    async fn begin_transaction(
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
        let span = pinned.span().clone();
        let begun = in_span(&span, pin!(pending.begin(&mut pinned))).await;
        begun.inspect_err(|error| pinned.record_failure(error))?;
        Ok(Transaction::new(pending, pinned))
    }

    /// Runs `closure`, commits the commands that it queued, and resolves the handles it returns
    /// into values.
    ///
    /// The closure waits for nothing, so it is an ordinary one. It runs once, when the future is first
    /// polled. If the connection fails before its commands were sent, they are sent again, within the
    /// handle's [`RetryPolicy`]. If the closure returns `Err` or panics, nothing is applied.
    ///
    /// A small block shares a connection, and often its `MULTI` and `EXEC`, with blocks of other tasks. A
    /// block's outcome is its own.
    ///
    /// If the future is dropped before its block was taken for sending, nothing is applied. After that, the
    /// block may be applied: use [`submit`](Self::submit) to find out.
    ///
    /// # Errors
    /// The closure's own error; [`Error::Checkout`] and [`Error::Commit`], whose
    /// [`applied`](Error::applied) returns what the server did; [`Error::Reply`] if the transaction
    /// **was applied** and a value cannot be returned.
    #[track_caller]
    pub fn run<R, E>(
        &self,
        closure: impl FnOnce(&mut Block) -> Result<R, E> + Send,
    ) -> impl Future<Output = Result<R::Output, Error>> + Send
    where
        R: Resolve + WithError<E> + Send,
    {
        self.run_with(|tx| closure(tx).map_err(R::own))
    }

    /// Like [`run`](Self::run), for a closure with an error type of its own. A closure that only uses
    /// `?` has to write the type down: `run_with(|tx| -> Result<_, BankError> { … })`.
    ///
    /// ```no_run
    /// # use rediscope::prelude::*;
    /// #[derive(Debug, thiserror::Error)]
    /// enum BankError {
    ///     #[error("the bank is closed")]
    ///     Closed,
    ///     #[error(transparent)]
    ///     Redis(#[from] rediscope::Error),
    /// }
    ///
    /// async fn pay(accounts: &rediscope::aio::Transactional, open: bool) -> Result<i64, BankError> {
    ///     accounts
    ///         .run_with(|tx| {
    ///             if !open {
    ///                 return Err(BankError::Closed);
    ///             }
    ///             Ok(tx.incr("balance:alice", 30))
    ///         })
    ///         .await
    /// }
    /// ```
    ///
    /// # Errors
    /// The closure's own error, or this crate's, converted.
    #[track_caller]
    pub fn run_with<R, E>(
        &self,
        closure: impl FnOnce(&mut Block) -> Result<R, E> + Send,
    ) -> impl Future<Output = Result<R::Output, E>> + Send
    where
        R: Resolve + Send,
        E: From<Error>,
    {
        self.run_at(Location::caller(), closure)
    }

    /// Runs a block of the caller at `place`.
    pub(crate) fn run_at<R, E>(
        &self,
        place: &'static Location<'static>,
        closure: impl FnOnce(&mut Block) -> Result<R, E> + Send,
    ) -> impl Future<Output = Result<R::Output, E>> + Send
    where
        R: Resolve + Send,
        E: From<Error>,
    {
        let general = move |unfinished| self.run_alone(place, unfinished);
        BlockRun::new(&self.router, self.options.lane_block(), closure, general)
    }

    /// Runs a block that no lane has carried to its end.
    async fn run_alone<R, E>(
        &self,
        place: &'static Location<'static>,
        unfinished: Unfinished<impl FnOnce(&mut Block) -> Result<R, E>, R>,
    ) -> Result<R::Output, E>
    where
        R: Resolve,
        E: From<Error>,
    {
        self.router.here().map_err(Error::from)?;
        let plan = self.options.commit_plan(&self.resolver, self.router.settings())?;
        let mut pinned = Pinned::new(&self.router, owner(&self.options, place, true), plan);
        let (handles, mut pending) = unfinished.queued(&self.router, &pinned)?;
        let replies =
            commit(&self.router, self.options.policy(), &mut pending, &mut pinned).await?;
        Ok(handles.resolve(&replies).map_err(|error| pending.named(error))?)
    }

    /// Runs `closure` now, and returns a future that commits the commands that it queued, as
    /// [`run`](Self::run) does. Nothing is sent before the future is polled.
    ///
    /// The future has a name and owns all it needs. With [`exactly_once`](TransactionOptions::exactly_once)
    /// it has a [token](Submitted::token), by which the outcome is found out if the future is dropped.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use rediscope::{TransactionOptions, aio::SessionManager, prelude::*};
    /// # async fn example() -> Result<(), rediscope::Error> {
    /// # let sessions = SessionManager::connect("redis://127.0.0.1/")?;
    /// let transfers = sessions.transactional().with(TransactionOptions::new().exactly_once());
    /// let sent = transfers.submit(|tx| Ok(tx.incr("n", 1)))?;
    /// let token = sent.token();
    /// if tokio::time::timeout(Duration::from_millis(50), sent).await.is_err() {
    ///     println!("{:?}", sessions.resolve(&token, None).await);
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The closure's own error, or an option that cannot work. Nothing was sent.
    #[track_caller]
    pub fn submit<R, E>(
        &self,
        closure: impl FnOnce(&mut Block) -> Result<R, E>,
    ) -> Result<Submitted<R>, Error>
    where
        R: Resolve + WithError<E> + Send + 'static,
    {
        let owner = owner(&self.options, Location::caller(), true);
        self.router.here()?;
        let plan = self.options.commit_plan(&self.resolver, self.router.settings())?;
        let (alive, exactly_once) = (Arc::new(()), plan.resolver.is_some());
        let token = TokenCell::new(&alive, exactly_once);
        let cell = exactly_once.then(|| token.clone());
        let plan = CommitPlan { token: cell.clone().map(Box::new), ..plan };
        let mut pinned = Pinned::new(&self.router, owner, plan);
        let closure = |tx: &mut Block| closure(tx).map_err(R::own);
        let queued = Unfinished::New(closure).queued(&self.router, &pinned)?;
        let (router, policy) = (self.router.clone(), self.options.policy());
        let general = move |unfinished: Unfinished<NoClosure<R>, R>| async move {
            let (handles, mut pending) = unfinished.queued(&router, &pinned)?;
            let replies = commit(&router, policy, &mut pending, &mut pinned).await?;
            let resolved = handles.resolve(&replies).map_err(|error| pending.named(error));
            drop(alive);
            resolved
        };
        let (router, lane_block) = (self.router.clone(), self.options.lane_block());
        let done = BlockRun::queued(router, lane_block, cell, queued, general);
        Ok(Submitted::new(Box::pin(done), token))
    }

    /// Read, decide, write: the writes are applied only if none of `keys` changed meanwhile.
    ///
    /// ```no_run
    /// # use rediscope::{aio::SessionManager, prelude::*};
    /// # async fn example() -> Result<(), rediscope::Error> {
    /// # let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    /// let left: i64 = accounts
    ///     .watch(["stock"])
    ///     .run(async |read, tx| {
    ///         let stock: i64 = read.get("stock").await?;
    ///         Ok(tx.decr("stock", stock.min(1)))
    ///     })
    ///     .await?;
    /// # let _ = left; Ok(()) }
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
    /// # use rediscope::{Condition, aio::SessionManager, prelude::*};
    /// # async fn example() -> Result<(), rediscope::Error> {
    /// # let shop = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    /// let left = shop
    ///     .require(Condition::equals("shop:state", "open"))
    ///     .require(Condition::at_least("stock", 1))
    ///     .run(|tx| Ok(tx.decr("stock", 1)))
    ///     .await?;
    /// # let _ = left; Ok(()) }
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

/// Commits a block whose closure has returned. Dropped before its end, it may have sent EXEC.
async fn commit(
    router: &Router<TaskPool>,
    policy: RetryPolicy,
    pending: &mut Pending,
    pinned: &mut Pinned<TaskPool>,
) -> Result<Replies, Error> {
    // The closure may have forked.
    router.here()?;
    let span = pinned.span().clone();
    in_span(&span, pin!(retry_loop::commit_block(router, policy, pending, pinned))).await
}

fn owner(
    options: &TransactionOptions,
    place: &'static Location<'static>,
    is_closure: bool,
) -> ScopeOrigin {
    ScopeOrigin { name: options.scope_name(), place, is_closure }
}
