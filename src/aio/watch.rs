//! The builder of a watching scope of tasks. A list of keys must not be empty.

use std::panic::Location;
use std::pin::pin;
use std::sync::Arc;

use redis::{Cmd, FromRedisValue};

use crate::aio::closure::WatchClosure;
use crate::commit::plan::CommitPlan;
use crate::error::any::Error;
use crate::error::hint::WithError;
use crate::error::in_doubt::ResolveCommit;
use crate::pool::router::Router;
use crate::pool::scope_origin::ScopeOrigin;
use crate::pool::tasks::line::TaskKeyQueue;
use crate::pool::tasks::pool::TaskPool;
use crate::protocol::cluster::slot::SlotBinding;
use crate::protocol::command::keys;
use crate::protocol::retry::RetryPolicy;
use crate::reply::replies::Replies;
use crate::sync::in_span::in_span;
use crate::transaction::block::Block;
use crate::transaction::condition::Condition;
use crate::transaction::hot_keys::HotKeys;
use crate::transaction::keys::Keys;
use crate::transaction::merged_run::{Closed, Ran, run_merged};
use crate::transaction::options::TransactionOptions;
use crate::transaction::pending::Pending;
use crate::transaction::pinned::Pinned;
use crate::transaction::reading::{Reading, WatchTarget};
use crate::transaction::resolve::Resolve;
use crate::transaction::retry_loop::{WatchAttempts, WatchRun};
use crate::transaction::tasks::turns;
use crate::transaction::tasks::watching::Watching;
use crate::transaction::watched_reads::{WatchReads, WatchedRead};

/// Read, decide, write, for tasks: the writes are applied only if none of the watched keys changed.
///
/// [`Transactional::watch`](crate::aio::Transactional::watch) returns it, and so does
/// [`reading`](crate::aio::Transactional::reading), which watches nothing. A `Watch` holds no connection
/// and can be used any number of times. Its drop does nothing.
///
/// Behind it: [`WATCH`](https://redis.io/docs/latest/commands/watch/).
#[derive(Clone, Debug)]
#[must_use = "nothing is watched before run(), begin() or tries()"]
pub struct Watch {
    router: Router<TaskPool>,
    options: TransactionOptions,
    resolver: Arc<dyn ResolveCommit>,
    hot_keys: Arc<HotKeys<TaskKeyQueue>>,
    /// `None`: the scope reads on one connection and watches nothing.
    keys: Option<Keys>,
    reads: Arc<WatchReads>,
}

impl Watch {
    pub(crate) fn new(
        router: Router<TaskPool>,
        options: TransactionOptions,
        resolver: Arc<dyn ResolveCommit>,
        hot_keys: Arc<HotKeys<TaskKeyQueue>>,
        keys: Option<Keys>,
    ) -> Self {
        Self { router, options, resolver, hot_keys, keys, reads: Arc::default() }
    }

    /// Sets the retry policy of `run` and [`tries`](Self::tries), in place of the handle's own.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.options = self.options.retry(policy);
        self
    }

    /// Declares a read that is sent in the same write as WATCH, so that it costs no round trip of
    /// its own. Each attempt reads the value anew; the closure gets it from
    /// [`Watching::declared`](crate::aio::Watching::declared).
    ///
    /// ```no_run
    /// # use rediscope::{aio::SessionManager, prelude::*, redis};
    /// # async fn example() -> Result<(), rediscope::Error> {
    /// # let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    /// let mut watch = accounts.watch(["stock"]);
    /// let stock = watch.declare::<i64>(redis::cmd("GET").arg("stock").take())?;
    /// let left = watch
    ///     .run(async |read, tx| {
    ///         let stock = read.declared(stock)?;
    ///         Ok(tx.decr("stock", stock.min(1)))
    ///     })
    ///     .await?;
    /// # let _ = left; Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Refused`] if the command blocks, or is not known to be read-only.
    pub fn declare<T: FromRedisValue>(&mut self, read: Cmd) -> Result<WatchedRead<T>, Error> {
        Arc::make_mut(&mut self.reads).declare(&read)
    }

    /// Watches the condition's key too, and reads it in the same write as WATCH. Each attempt
    /// checks the condition anew; the closure runs only if all conditions hold.
    ///
    /// On [`reading()`](crate::aio::Transactional::reading) only the conditions' keys are watched. `run`
    /// and [`begin`](Self::begin) then fail with [`Error::ConditionFailed`] if a condition does not
    /// hold.
    pub fn require(mut self, condition: Condition) -> Self {
        condition.key(|key| self.keys.get_or_insert_default().add(key));
        Arc::make_mut(&mut self.reads).require(condition);
        self
    }

    /// Takes a connection and sends WATCH, for a caller that commits once, without retries.
    ///
    /// If the future is dropped, the connection's own task reads what is due and sends UNWATCH. Nothing
    /// was applied.
    ///
    /// # Errors
    /// [`Error::NoKeys`]; [`Error::TooManyKeys`]; [`Error::Checkout`]; [`Error::Command`] if the server
    /// refused WATCH; [`Error::ConditionFailed`]; [`Error::Lost`]. Nothing was applied.
    #[track_caller]
    pub fn begin(&self) -> impl Future<Output = Result<Watching, Error>> + Send {
        let place = Location::caller();
        async move {
            let WatchRun { owner, plan, binding, .. } = self.run_of(place, false)?;
            let pinned = Pinned::new(&self.router, owner, plan);
            let (deadline, span) = (pinned.checkout_deadline(), pinned.span().clone());
            let begun = Reading::begin(pinned, self.target(binding), 1, deadline);
            in_span(&span, pin!(begun)).await.map(|reading| Watching { reading })
        }
    }

    /// Runs `closure` and commits the commands that it queued.
    ///
    /// If a watched key changes, or the connection is lost before EXEC was sent, a clone of the closure
    /// runs again, within the [`RetryPolicy`]: after a backoff, or in its turn. Each attempt runs the
    /// closure with the reads of that attempt. If the closure returns `Err` or panics, nothing is
    /// applied and it does not run again.
    ///
    /// If all reads are [declared](Self::declare) and [`max_merged`](crate::Builder::max_merged) is
    /// above 1, blocks of other tasks on the same keys are no conflict: up to as many of them run on
    /// each other's results, and one EXEC applies them. If a closure ran on a result that was not applied,
    /// a clone of it runs again. A read that is not declared fails in such an attempt, and the block then
    /// runs alone. A panic is not held back: it reaches its caller at once, even if the values that the
    /// closure ran on are never applied. Nothing of its block is applied, and the other blocks go on.
    ///
    /// The closure may borrow, and the future may be spawned. A closure that has to change what it
    /// captures cannot be cloned; [`tries`](Self::tries) is the loop for it.
    ///
    /// If the future is dropped before EXEC was sent, nothing is applied, and the connection's own task
    /// sends UNWATCH. If it is dropped later, the block may be applied.
    ///
    /// ```no_run
    /// # use rediscope::{aio::SessionManager, prelude::*};
    /// # async fn example() -> Result<(), rediscope::Error> {
    /// # let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    /// let left = accounts
    ///     .watch(["stock"])
    ///     .run(async |read, tx| {
    ///         let stock: i64 = read.get("stock").await?;
    ///         Ok(tx.decr("stock", stock.min(1)))
    ///     })
    ///     .await?;
    /// # let _ = left; Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::RetriesExhausted`] if the policy allowed no further attempt,
    /// [`Error::ConditionFailed`], else as
    /// [`Transactional::run`](crate::aio::Transactional::run).
    #[track_caller]
    pub fn run<'s, R, E, F>(
        &'s self,
        closure: F,
    ) -> impl Future<Output = Result<R::Output, Error>> + Send + use<'s, R, E, F>
    where
        R: Resolve + WithError<E> + Send + 's,
        E: Send + 's,
        for<'r, 'b> F: AsyncFnOnce(&'r mut Watching, &'b mut Block) -> Result<R, E>
            + WatchClosure<&'r mut Watching, &'b mut Block, Result<R, E>, Fut: Send>
            + Clone
            + Send
            + 's,
    {
        self.run_attempts(Location::caller(), closure, R::own)
    }

    /// Like [`run`](Self::run), for a closure with an error type of its own.
    ///
    /// ```no_run
    /// # use rediscope::{aio::SessionManager, prelude::*};
    /// #[derive(Debug, thiserror::Error)]
    /// enum ShopError {
    ///     #[error("sold out")]
    ///     SoldOut,
    ///     #[error(transparent)]
    ///     Redis(#[from] rediscope::Error),
    /// }
    ///
    /// async fn buy(shop: &rediscope::aio::Transactional, item: &str) -> Result<i64, ShopError> {
    ///     shop.watch([item])
    ///         .run_with(async |read, tx| {
    ///             let stock: i64 = read.get(item).await?;
    ///             if stock == 0 {
    ///                 return Err(ShopError::SoldOut);
    ///             }
    ///             Ok(tx.decr(item, 1))
    ///         })
    ///         .await
    /// }
    /// ```
    ///
    /// # Errors
    /// The closure's own error, or this crate's, converted.
    #[track_caller]
    pub fn run_with<'s, R, E, F>(
        &'s self,
        closure: F,
    ) -> impl Future<Output = Result<R::Output, E>> + Send + use<'s, R, E, F>
    where
        R: Resolve + Send + 's,
        E: From<Error> + Send + 's,
        for<'r, 'b> F: AsyncFnOnce(&'r mut Watching, &'b mut Block) -> Result<R, E>
            + WatchClosure<&'r mut Watching, &'b mut Block, Result<R, E>, Fut: Send>
            + Clone
            + Send
            + 's,
    {
        self.run_attempts(Location::caller(), closure, |error| error)
    }

    /// `own` converts the closure's error.
    fn run_attempts<'s, R, C, E, F>(
        &'s self,
        place: &'static Location<'static>,
        closure: F,
        own: fn(C) -> E,
    ) -> impl Future<Output = Result<R::Output, E>> + Send + use<'s, R, C, E, F>
    where
        R: Resolve + Send + 's,
        C: Send + 's,
        E: From<Error> + Send + 's,
        for<'r, 'b> F: AsyncFnOnce(&'r mut Watching, &'b mut Block) -> Result<R, C>
            + WatchClosure<&'r mut Watching, &'b mut Block, Result<R, C>, Fut: Send>
            + Clone
            + Send
            + 's,
    {
        async move {
            let mut attempts = self.attempts(place)?;
            let has_turn = self.limited_keys().is_some();
            let target = self.target(attempts.binding());
            if let Some(keys) = self.limited_keys()
                && attempts.can_be_merged(&self.router, target)
                // Its leader might wait for the connection of this task.
                && turns::may_wait(&self.router)
            {
                let enter = |wait| self.hot_keys.enter(keys.buckets(), false, wait, None);
                let closure = closure.clone();
                let run = move |reading, writes| {
                    let closure = closure.clone();
                    async move {
                        let (mut watching, mut writes) = (Watching { reading }, writes);
                        let mut block = watching.block();
                        let running = closure(&mut watching, &mut block);
                        let result = turns::run_closure(true, &mut writes, pin!(running)).await;
                        let ran = Ran { result: result.map_err(own), block };
                        Closed { reading: watching.reading, ran, writes }
                    }
                };
                let (router, hot_keys) = (&self.router, &self.hot_keys);
                let merged = run_merged(&mut attempts, router, target, hot_keys, enter, run);
                if let Some(output) = Box::pin(merged).await? {
                    return Ok(output);
                }
            }
            loop {
                let mut watching = self.next(&mut attempts).await?;
                let mut block = watching.block();
                let begun = attempts.closure_begins(&self.router);
                let running = (closure.clone())(&mut watching, &mut block);
                let result =
                    turns::run_closure(has_turn, attempts.own_writes(), pin!(running)).await;
                attempts.closure_ran(begun);
                match result.map_err(own).and_then(|handles| watching.unless_again(handles)) {
                    Ok(handles) => {
                        let pending = &mut block.pending;
                        if let Some(replies) =
                            self.commit(&mut attempts, &mut watching, pending).await?
                        {
                            let resolved = handles.resolve(&replies);
                            return Ok(resolved.map_err(|error| block.pending.named(error))?);
                        }
                    }
                    Err(error) => {
                        if !self.failed(&mut attempts, &mut watching).await {
                            return Err(error);
                        }
                    }
                }
            }
        }
    }

    /// As [`run_attempts`](Self::run_attempts), for a closure that does not read.
    pub(crate) async fn run_blocks<R: Resolve + Send, E: From<Error> + Send>(
        &self,
        place: &'static Location<'static>,
        mut closure: impl FnMut(&mut Block) -> Result<R, E> + Send,
    ) -> Result<R::Output, E> {
        let mut attempts = self.attempts(place)?;
        loop {
            let mut watching = self.next(&mut attempts).await?;
            let mut block = watching.block();
            match closure(&mut block) {
                Ok(handles) => {
                    let pending = &mut block.pending;
                    if let Some(replies) =
                        self.commit(&mut attempts, &mut watching, pending).await?
                    {
                        let resolved = handles.resolve(&replies);
                        return Ok(resolved.map_err(|error| block.pending.named(error))?);
                    }
                }
                Err(error) => {
                    if !self.failed(&mut attempts, &mut watching).await {
                        return Err(error);
                    }
                }
            }
        }
    }

    pub(crate) fn router(&self) -> &Router<TaskPool> {
        &self.router
    }

    /// Begins a run.
    pub(crate) fn attempts(
        &self,
        place: &'static Location<'static>,
    ) -> Result<WatchAttempts<TaskKeyQueue>, Error> {
        Ok(WatchAttempts::new(&self.router, self.run_of(place, true)?))
    }

    pub(crate) fn keys(&self) -> Option<&Keys> {
        self.keys.as_ref()
    }

    /// The keys on which a run waits for its turn.
    pub(crate) fn limited_keys(&self) -> Option<&Keys> {
        self.keys.as_ref().filter(|_| self.options.takes_turns())
    }

    pub(crate) async fn next(
        &self,
        attempts: &mut WatchAttempts<TaskKeyQueue>,
    ) -> Result<Watching, Error> {
        self.router.here()?;
        if let Some(keys) = self.limited_keys()
            && let Some(wait) = attempts.turn_wait(&self.router)
        {
            let offer = attempts.offer(self.target(attempts.binding()));
            let is_nested = !turns::may_take_turn(&self.router, &self.hot_keys, keys);
            let turn = self.hot_keys.enter(keys.buckets(), is_nested, wait, offer).await;
            attempts.set_turn(turn);
        }
        let (span, target) = (attempts.span().clone(), self.target(attempts.binding()));
        let next = attempts.next(&self.router, target);
        in_span(&span, pin!(next)).await.map(|reading| Watching { reading })
    }

    async fn failed(
        &self,
        attempts: &mut WatchAttempts<TaskKeyQueue>,
        watching: &mut Watching,
    ) -> bool {
        let span = attempts.span().clone();
        in_span(&span, pin!(attempts.failed(&self.router, &mut watching.reading))).await
    }

    async fn commit(
        &self,
        attempts: &mut WatchAttempts<TaskKeyQueue>,
        watching: &mut Watching,
        pending: &mut Pending,
    ) -> Result<Option<Replies>, Error> {
        // The closure may have forked.
        self.router.here()?;
        let span = attempts.span().clone();
        let (keys, reading) = (self.keys.as_ref(), &mut watching.reading);
        let committed = attempts.commit(&self.router, keys, reading, pending);
        let replies = in_span(&span, pin!(committed)).await?;
        if attempts.was_passed_on {
            turns::let_next_run().await;
        }
        Ok(replies)
    }

    fn target(&self, binding: SlotBinding) -> WatchTarget<'_> {
        WatchTarget { keys: self.keys.as_ref(), binding, reads: &self.reads }
    }

    /// Returns the parts of one run.
    fn run_of(
        &self,
        place: &'static Location<'static>,
        is_closure: bool,
    ) -> Result<WatchRun, Error> {
        self.router.here()?;
        let keys = self.keys.as_ref();
        keys.map_or(Ok(()), |keys| keys.check(self.router.settings()))?;
        let plan = self.options.commit_plan(&self.resolver, self.router.settings())?;
        let exists = keys.filter(|_| self.router.is_cluster()).map(Keys::exists);
        let plan = CommitPlan { watched: keys.is_some(), exists, ..plan };
        let mut binding = plan.binding(&self.router);
        keys::bind(&mut binding, keys.map(Keys::watch).unwrap_or_default())?;
        keys::bind(&mut binding, self.reads.bytes())?;
        let owner = ScopeOrigin { name: self.options.scope_name(), place, is_closure };
        Ok(WatchRun { owner, plan, policy: self.options.policy(), binding })
    }
}
