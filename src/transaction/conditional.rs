//! A block that is applied only while conditions hold.
//!
//! Never: without a condition. Never: a read; that is [`Watch`]'s.

use crate::error::any::Error;
use crate::protocol::retry::RetryPolicy;
use crate::reply::resolve::Resolve;
use crate::transaction::block::Block;
use crate::transaction::condition::Condition;
use crate::transaction::guard::{Transaction, Watched};
use crate::transaction::watch::Watch;

/// A block that is applied only while conditions hold.
///
/// Made by [`Transactional::require`](crate::Transactional::require). The keys of all conditions
/// are watched and asked about in one packet; then the block is run and committed: two round trips.
/// It holds no connection until then and can be used any number of times; dropping it does nothing.
///
/// ```no_run
/// use rediscope::{Condition, SessionManager, prelude::*};
///
/// # fn main() -> Result<(), rediscope::Error> {
/// let seats = SessionManager::connect("redis://127.0.0.1/")?.transactional();
/// let booked = seats
///     .require(Condition::set_not_contains("seats:taken", "12A"))
///     .require(Condition::set_len_at_most("seats:taken", 179))
///     .run(|tx| Ok(tx.sadd("seats:taken", "12A")))?;
/// # Ok(()) }
/// ```
///
/// Behind it: [`WATCH`](https://redis.io/docs/latest/commands/watch/), and the read that each
/// [`Condition`] names.
#[derive(Clone, Debug)]
#[must_use = "nothing is asked before run() or begin()"]
pub struct Conditional {
    watch: Watch,
}

impl Conditional {
    pub(crate) fn new(watch: Watch) -> Self {
        Self { watch }
    }

    /// Adds a condition. All are asked about; if several do not hold, the error names the
    /// one that was required first.
    pub fn require(self, condition: Condition) -> Self {
        Self { watch: self.watch.require(condition) }
    }

    /// How often `run` tries, instead of the handle's own policy.
    pub fn retry(self, policy: RetryPolicy) -> Self {
        Self { watch: self.watch.retry(policy) }
    }

    /// Takes a connection, watches and asks. Where the conditions hold, what is queued on the
    /// transaction is applied only if none of their keys changes before its commit, which says
    /// [`Conflict`](crate::Outcome::Conflict) otherwise.
    ///
    /// ```no_run
    /// # use rediscope::{Condition, Outcome, SessionManager, prelude::*};
    /// # fn main() -> Result<(), rediscope::Error> {
    /// # let shop = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    /// let mut tx = shop.require(Condition::at_least("stock", 1)).begin()?;
    /// tx.decr("stock", 1);
    /// match tx.commit()? {
    ///     Outcome::Committed(_) => println!("sold"),
    ///     Outcome::Conflict => println!("the stock changed: ask again"),
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::ConditionFailed`]; [`Error::Command`] where a question or WATCH was refused, such
    /// as `WRONGTYPE`; [`Error::Checkout`], [`Error::Lost`]. Nothing was applied, and nothing is
    /// watched any more.
    #[track_caller]
    pub fn begin(&self) -> Result<Transaction<Watched>, Error> {
        Ok(self.watch.begin()?.multi())
    }

    /// Runs `closure` where all conditions hold, and commits what it queued; again, after a
    /// backoff, while a condition's key changes before EXEC or the connection is lost before EXEC
    /// was sent, within the [`RetryPolicy`]. Each attempt asks anew.
    ///
    /// A condition that does not hold ends it: the closure is not run (again). When the closure
    /// returns `Err` or panics, nothing is applied and it is not run again.
    ///
    /// # Errors
    /// [`Error::ConditionFailed`], after UNWATCH; [`Error::Command`] where a question or WATCH was
    /// refused, such as `WRONGTYPE`; [`Error::RetriesExhausted`] when the policy ended it; else as
    /// [`Transactional::run`](crate::Transactional::run).
    #[track_caller]
    pub fn run<R: Resolve>(
        &self,
        closure: impl FnMut(&mut Block) -> Result<R, Error>,
    ) -> Result<R::Output, Error> {
        self.run_with(closure)
    }

    /// Like [`run`](Self::run), for a closure with an error type of its own.
    ///
    /// # Errors
    /// The closure's own error, or this crate's, converted.
    #[track_caller]
    pub fn run_with<R: Resolve, E: From<Error>>(
        &self,
        mut closure: impl FnMut(&mut Block) -> Result<R, E>,
    ) -> Result<R::Output, E> {
        self.watch.run_with(|_, tx| closure(tx))
    }
}
