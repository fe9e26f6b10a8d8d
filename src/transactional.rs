//! The transactional handle: the only door to MULTI and WATCH.
//!
//! Never: a single command. Those are the pooled handle's, so that a plain read cannot open a
//! scope.

use std::panic::{Location, RefUnwindSafe, UnwindSafe};
use std::sync::Arc;

use crate::connection::pool::Pool;
use crate::connection::registry::Owner;
use crate::error::{Error, Resolver};
use crate::lock::guard::LockGuard;
use crate::reply::Resolve;
use crate::transaction::admission::Admission;
use crate::transaction::block::Block;
use crate::transaction::body::Body;
use crate::transaction::condition::Condition;
use crate::transaction::conditional::Conditional;
use crate::transaction::guard::Transaction;
use crate::transaction::keys::{IntoKeys, Keys};
use crate::transaction::options::TransactionOptions;
use crate::transaction::run;
use crate::transaction::watch::Watch;

/// The transactional handle: the only door to MULTI and WATCH.
///
/// Cheap to clone, and shared between threads as it is. It holds no connection; dropping it does
/// nothing.
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
    pool: Pool,
    options: TransactionOptions,
    resolver: Arc<dyn Resolver>,
    admission: Arc<Admission>,
}

impl UnwindSafe for Transactional {}
impl RefUnwindSafe for Transactional {}

impl Transactional {
    pub(crate) fn new(pool: Pool, resolver: Arc<dyn Resolver>, admission: Arc<Admission>) -> Self {
        Self { pool, options: TransactionOptions::default(), resolver, admission }
    }

    /// A handle whose transactions have these options; what `options` does not set stays.
    pub fn with(&self, options: TransactionOptions) -> Self {
        Self { options: self.options.overlaid(options), ..self.clone() }
    }

    /// A handle whose transactions are applied only while `guard`'s lock is held: of a holder who
    /// lost the lock and does not know it yet, nothing is ever applied.
    ///
    /// The lock is watched and asked for with the first words of each transaction (a round trip
    /// for a block, none more for a watching one), so whoever acquires it before EXEC makes EXEC
    /// apply nothing. The answer is [`LockLost`](crate::CommitError::LockLost) then. Where the lock
    /// was only extended meanwhile the block is sent again; a watching block may be told of a
    /// conflict by it.
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

    /// Pins a connection for a transaction that is committed or discarded by hand.
    ///
    /// With [`Begin::Immediate`](crate::Begin::Immediate) MULTI is sent and answered before this
    /// returns; else nothing is sent before the commit (or a large transaction's first chunk).
    ///
    /// Behind it: [`MULTI`](https://redis.io/docs/latest/commands/multi/).
    ///
    /// # Errors
    /// [`Error::Checkout`] where no connection was to be had within `checkout_timeout`;
    /// [`Error::Commit`] with `Rejected` where the server refused MULTI. Nothing was applied.
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
        let owner = owner(&options, Location::caller(), false);
        let terms = options.terms(&self.resolver, self.pool.settings())?;
        let mut body = Body::new(&self.pool, owner, terms);
        body.begin()?;
        Ok(Transaction::new(body))
    }

    /// Runs `closure`, commits what it queued and turns the handles it returns into values.
    ///
    /// The closure runs once. What it queued is sent again as long as it was not sent, within the
    /// handle's [`RetryPolicy`](crate::RetryPolicy). When the closure returns `Err` or panics,
    /// nothing is applied.
    ///
    /// # Errors
    /// The closure's own; [`Error::Checkout`] and [`Error::Commit`], whose
    /// [`applied`](Error::applied) says what the server did; [`Error::Reply`] where the
    /// transaction **was applied** and a value cannot be handed out.
    #[track_caller]
    pub fn run<R: Resolve>(
        &self,
        closure: impl FnOnce(&mut Block) -> Result<R, Error>,
    ) -> Result<R::Output, Error> {
        self.try_run(closure)
    }

    /// Like [`run`](Self::run), for a closure with an error type of its own.
    ///
    /// ```no_run
    /// # use rediscope::{SessionManager, prelude::*};
    /// #[derive(Debug)]
    /// enum BankError { Closed, Redis(rediscope::Error) }
    ///
    /// impl From<rediscope::Error> for BankError {
    ///     fn from(error: rediscope::Error) -> Self { Self::Redis(error) }
    /// }
    ///
    /// fn pay(accounts: &rediscope::Transactional, open: bool) -> Result<i64, BankError> {
    ///     accounts.try_run(|tx| {
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
    #[track_caller]
    pub fn try_run<R: Resolve, E: From<Error>>(
        &self,
        closure: impl FnOnce(&mut Block) -> Result<R, E>,
    ) -> Result<R::Output, E> {
        let owner = owner(&self.options, Location::caller(), true);
        let terms = self.options.terms(&self.resolver, self.pool.settings())?;
        run::plain(&self.pool, owner, terms, self.options.policy(), closure)
    }

    /// Read, decide, write: what is written is applied only if none of `keys` changed meanwhile.
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

    /// Reads and writes on one connection, watching nothing: what is read may have changed by the
    /// time of the commit.
    pub fn reading(&self) -> Watch {
        self.watch_of(None)
    }

    /// Applies a block only while `condition` holds, without a WATCH written by hand. More of them
    /// are required on what this returns.
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
        let admission = Arc::clone(&self.admission);
        Watch::new(self.pool.clone(), self.options.clone(), resolver, admission, keys)
    }
}

fn owner(
    options: &TransactionOptions,
    place: &'static Location<'static>,
    is_closure: bool,
) -> Owner {
    Owner { name: options.scope_name(), place, is_closure }
}
