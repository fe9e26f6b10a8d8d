//! A block that is applied only while its conditions hold. Its closure does not read; for that
//! there is [`Watch`].

use crate::error::any::Error;
use crate::error::hint::WithError;
use crate::protocol::retry::RetryPolicy;
use crate::transaction::block::Block;
use crate::transaction::condition::Condition;
use crate::transaction::guard::{Transaction, Watched};
use crate::transaction::resolve::Resolve;
use crate::transaction::watch::Watch;

/// A block that is applied only while conditions hold.
///
/// [`Transactional::require`](crate::Transactional::require) returns it. The keys of all conditions
/// are watched and read in one packet; then the block is run and committed. That is two round
/// trips. A `Conditional` holds no connection until then, can be used any number of times, and its
/// drop does nothing.
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
#[must_use = "nothing is sent before run() or begin()"]
pub struct Conditional {
    watch: Watch,
}

impl Conditional {
    pub(crate) fn new(watch: Watch) -> Self {
        Self { watch }
    }

    /// Adds a condition. All conditions are checked. If several do not hold, the error names the
    /// first of them, in the order of `require`.
    pub fn require(self, condition: Condition) -> Self {
        Self { watch: self.watch.require(condition) }
    }

    /// Sets the retry policy of `run`, in place of the handle's own.
    pub fn retry(self, policy: RetryPolicy) -> Self {
        Self { watch: self.watch.retry(policy) }
    }

    /// Takes a connection, watches the keys and checks the conditions. If they hold, the queued
    /// commands are applied only if none of the keys changes before the commit. If a key changed,
    /// `commit` returns [`Conflict`](crate::Outcome::Conflict).
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
    /// [`Error::ConditionFailed`]; [`Error::Command`] if the server refused a condition's read,
    /// such as with `WRONGTYPE`, or WATCH; [`Error::Checkout`], [`Error::Lost`]. Nothing was
    /// applied, and no key is watched any more.
    #[track_caller]
    pub fn begin(&self) -> Result<Transaction<Watched>, Error> {
        Ok(self.watch.begin()?.multi())
    }

    /// Runs `closure` if all conditions hold, and commits the commands that it queued.
    ///
    /// If a condition's key changes, or the connection is lost before EXEC was sent, there is
    /// another attempt. It follows after a backoff, within the [`RetryPolicy`], and checks the
    /// conditions anew. If a condition does not hold, `run` ends without running the closure again.
    /// Blocks that change a condition's key [take turns](crate::TransactionOptions::take_turns), as those
    /// of `watch` do.
    /// If the closure returns `Err` or panics, nothing is applied and it does not run again.
    ///
    /// # Errors
    /// [`Error::ConditionFailed`], after UNWATCH; [`Error::Command`] if the server refused a
    /// condition's read, such as with `WRONGTYPE`, or WATCH; [`Error::RetriesExhausted`] if the
    /// policy allowed no further attempt; else as
    /// [`Transactional::run`](crate::Transactional::run).
    #[track_caller]
    pub fn run<R: Resolve + WithError<E>, E>(
        &self,
        mut closure: impl FnMut(&mut Block) -> Result<R, E>,
    ) -> Result<R::Output, Error> {
        self.run_with(|tx| closure(tx).map_err(R::own))
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
