//! The builder of a watching scope. A list of keys must not be empty.

use std::panic::Location;
use std::pin::pin;
use std::sync::Arc;

use redis::{Cmd, FromRedisValue};

use crate::commit::plan::CommitPlan;
use crate::error::any::Error;
use crate::error::hint::WithError;
use crate::error::in_doubt::ResolveCommit;
use crate::pool::router::Router;
use crate::pool::scope_origin::ScopeOrigin;
use crate::protocol::cluster::slot::SlotBinding;
use crate::protocol::command::keys;
use crate::protocol::retry::RetryPolicy;
use crate::sync::now::now_in;
use crate::transaction::block::Block;
use crate::transaction::condition::Condition;
use crate::transaction::hot_keys::HotKeys;
use crate::transaction::keys::Keys;
use crate::transaction::options::TransactionOptions;
use crate::transaction::pinned::Pinned;
use crate::transaction::reading::{Reading, WatchTarget};
use crate::transaction::resolve::Resolve;
use crate::transaction::retry_loop::WatchRun;
use crate::transaction::threads;
use crate::transaction::watch_scope::Watching;
use crate::transaction::watched_reads::{WatchReads, WatchedRead};

/// Read, decide, write: the writes are applied only if none of the watched keys changed.
///
/// [`Transactional::watch`](crate::Transactional::watch) returns it, and so does
/// [`reading`](crate::Transactional::reading), which watches nothing. A `Watch` holds no connection
/// and can be used any number of times.
///
/// Behind it: [`WATCH`](https://redis.io/docs/latest/commands/watch/).
#[derive(Clone, Debug)]
#[must_use = "nothing is watched before run() or begin()"]
pub struct Watch {
    router: Router,
    options: TransactionOptions,
    resolver: Arc<dyn ResolveCommit>,
    hot_keys: Arc<HotKeys>,
    /// `None`: the scope reads on one connection and watches nothing.
    keys: Option<Keys>,
    reads: Arc<WatchReads>,
}

impl Watch {
    pub(crate) fn new(
        router: Router,
        options: TransactionOptions,
        resolver: Arc<dyn ResolveCommit>,
        hot_keys: Arc<HotKeys>,
        keys: Option<Keys>,
    ) -> Self {
        Self { router, options, resolver, hot_keys, keys, reads: Arc::default() }
    }

    /// Sets the retry policy of `run`, in place of the handle's own.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.options = self.options.retry(policy);
        self
    }

    /// Declares a read that is sent in the same write as WATCH, so that it costs no round trip of
    /// its own. Each attempt reads the value anew; the closure gets it from
    /// [`Watching::declared`](crate::Watching::declared).
    ///
    /// ```no_run
    /// # use rediscope::{SessionManager, prelude::*, redis};
    /// # fn main() -> Result<(), rediscope::Error> {
    /// # let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    /// let mut watch = accounts.watch(["stock"]);
    /// let stock = watch.declare::<i64>(redis::cmd("GET").arg("stock").take())?;
    /// let left = watch.run(|read, tx| {
    ///     let stock = read.declared(stock)?;
    ///     Ok(tx.decr("stock", stock.min(1)))
    /// })?;
    /// # Ok(()) }
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
    /// ```no_run
    /// # use rediscope::{Condition, SessionManager, prelude::*};
    /// # fn main() -> Result<(), rediscope::Error> {
    /// # let shop = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    /// let sold = shop
    ///     .watch(["price"])
    ///     .require(Condition::at_least("stock", 1))
    ///     .run(|read, tx| {
    ///         let price: i64 = read.get("price")?;
    ///         tx.decr("stock", 1);
    ///         Ok(tx.incr("till", price))
    ///     })?;
    /// # Ok(()) }
    /// ```
    ///
    /// On [`reading()`](crate::Transactional::reading) only the conditions' keys are watched. `run`
    /// and [`begin`](Self::begin) then fail with [`Error::ConditionFailed`] if a condition does not
    /// hold.
    pub fn require(mut self, condition: Condition) -> Self {
        condition.key(|key| self.keys.get_or_insert_default().add(key));
        Arc::make_mut(&mut self.reads).require(condition);
        self
    }

    /// Takes a connection and sends WATCH, for a loop that the caller writes.
    ///
    /// # Errors
    /// [`Error::NoKeys`]; [`Error::TooManyKeys`]; [`Error::Checkout`]; [`Error::Command`] if the server
    /// refused WATCH; [`Error::ConditionFailed`]; [`Error::Lost`]. Nothing was applied.
    #[track_caller]
    pub fn begin(&self) -> Result<Watching, Error> {
        let WatchRun { owner, plan, binding, .. } = self.run_of(Location::caller(), false)?;
        let (pinned, target) = (Pinned::new(&self.router, owner, plan), self.target(binding));
        let deadline = pinned.checkout_deadline();
        let span = pinned.span().clone();
        now_in(&span, pin!(Reading::begin(pinned, target, 1, deadline))).map(Watching::new)
    }

    /// Runs `closure` and commits the commands that it queued.
    ///
    /// If a watched key changes, or the connection is lost before EXEC was sent, the closure runs
    /// again, within the [`RetryPolicy`]: after a backoff, or in its turn. Each attempt runs the
    /// closure with the reads of that attempt. If the closure returns `Err` or panics, nothing is
    /// applied and it does not run again.
    ///
    /// If all reads are [declared](Self::declare) and [`max_merged`](crate::Builder::max_merged) is
    /// above 1, blocks of other threads on the same keys are no conflict: up to as many of them run on
    /// each other's results, and one EXEC applies them. If a closure ran on a result that was not applied,
    /// it runs again. A read that is not declared fails in such an attempt, and the block then runs alone.
    /// A panic is not held back: it reaches its caller at once, even if the values that the closure ran on
    /// are never applied. Nothing of its block is applied, and the other blocks go on.
    ///
    /// ```no_run
    /// # use rediscope::{SessionManager, prelude::*};
    /// # fn main() -> Result<(), rediscope::Error> {
    /// # let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    /// let left = accounts.watch(["stock"]).run(|read, tx| {
    ///     let stock: i64 = read.get("stock")?;
    ///     Ok(tx.decr("stock", stock.min(1)))
    /// })?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::RetriesExhausted`] if the policy allowed no further attempt,
    /// [`Error::ConditionFailed`], else as [`Transactional::run`](crate::Transactional::run).
    #[track_caller]
    pub fn run<R: Resolve + WithError<E>, E>(
        &self,
        mut closure: impl FnMut(&mut Watching, &mut Block) -> Result<R, E>,
    ) -> Result<R::Output, Error> {
        self.run_with(|read, tx| closure(read, tx).map_err(R::own))
    }

    /// Like [`run`](Self::run), for a closure with an error type of its own.
    ///
    /// # Errors
    /// The closure's own error, or this crate's, converted.
    #[track_caller]
    pub fn run_with<R: Resolve, E: From<Error>>(
        &self,
        closure: impl FnMut(&mut Watching, &mut Block) -> Result<R, E>,
    ) -> Result<R::Output, E> {
        let run = self.run_of(Location::caller(), true)?;
        let hot_keys = self.options.takes_turns().then_some(&self.hot_keys);
        let target = self.target(run.binding);
        threads::run_watch(&self.router, run, target, hot_keys, closure)
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
        Ok(WatchRun {
            owner: ScopeOrigin { name: self.options.scope_name(), place, is_closure },
            plan,
            policy: self.options.policy(),
            binding,
        })
    }
}
