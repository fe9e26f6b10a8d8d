//! The transaction guard: pins a connection, commits or discards, and returns the connection.
//!
//! However the guard ends, the connection leaves it.

use std::marker::PhantomData;

use crate::commit::outcome::Committed;
use crate::error::any::Error;
use crate::protocol::queue::CommandQueue;
use crate::reply::replies::Replies;
use crate::transaction::commands::sealed::Queue;
use crate::transaction::outcome::Outcome;
use crate::transaction::pending::Pending;
use crate::transaction::pinned::Pinned;
use crate::transaction::scope_calls;

mod sealed {
    pub trait Sealed {}
}

/// Whether a transaction watches keys: [`Plain`] or [`Watched`].
pub trait Mode: sealed::Sealed {}

/// The transaction watches nothing, so it cannot conflict.
#[derive(Debug)]
#[non_exhaustive]
pub struct Plain;

/// The transaction watches keys, so its commit returns an [`Outcome`].
#[derive(Debug)]
#[non_exhaustive]
pub struct Watched;

impl sealed::Sealed for Plain {}
impl sealed::Sealed for Watched {}
impl Mode for Plain {}
impl Mode for Watched {}

/// A transaction: one pinned connection, and the commands queued for it.
///
/// Commands queue through the [command table](crate::commands::QueueCommands).
/// [`commit`](Transaction::<Plain>::commit) sends them together with [`MULTI` and
/// `EXEC`](https://redis.io/docs/latest/develop/interact/transactions/). When more than
/// `flush_bytes` are queued, MULTI and the queued commands are sent ahead. If that fails, the guard
/// keeps the failure, and `commit` or [`check`](Self::check) returns it.
///
/// If the guard is dropped without a commit, nothing is applied. The drop sends DISCARD if MULTI
/// was sent, or UNWATCH if the transaction watches, within `cleanup_timeout`; if that fails, the
/// connection is closed and replaced. The connection is back in the pool before the drop ends.
/// While a panic unwinds, the connection is closed instead. The connection of a forgotten guard
/// (`mem::forget`), or of a guard unused for `max_pin_time`, is reclaimed.
///
/// A guard can be sent to another thread.
///
/// ```no_run
/// # use rediscope::{SessionManager, prelude::*};
/// # fn main() -> Result<(), rediscope::Error> {
/// # let cancelled = false;
/// let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
/// let mut tx = accounts.begin()?;
/// let hits = tx.incr("hits", 1);
/// tx.set("last", "now");
/// if cancelled {
///     return Ok(());                         // dropped: nothing was applied
/// }
/// let replies = tx.commit()?;
/// println!("{}", replies.get(hits)?);
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "dropped without commit() the transaction is discarded"]
pub struct Transaction<M: Mode = Plain> {
    pending: Pending,
    pinned: Pinned,
    mode: PhantomData<fn() -> M>,
}

impl Transaction<Plain> {
    /// Sends EXEC and returns the connection to the pool before it returns.
    ///
    /// # Errors
    /// [`Error::Commit`] has what the server did: `Rejected` and `NotSent` mean that nothing was
    /// applied, `PartlyApplied` that some commands were applied, `InDoubt` that the reply was lost.
    /// With [`Error::Checkout`] and [`Error::PinExpired`] nothing was applied.
    pub fn commit(mut self) -> Result<Replies, Error> {
        match scope_calls::commit(&mut self.pending, &mut self.pinned)? {
            Committed::Applied(replies) => Ok(self.pending.keep(replies)),
            // Without a watch there is no conflict: see `commit::outcome`.
            Committed::Conflict => Err(Error::RetriesExhausted { attempts: 1 }),
        }
    }
}

impl Transaction<Watched> {
    /// Sends EXEC and returns the connection to the pool before it returns.
    ///
    /// # Errors
    /// As [`Transaction::<Plain>::commit`]. A conflict is no error but an [`Outcome`].
    pub fn commit(mut self) -> Result<Outcome, Error> {
        Ok(match scope_calls::commit(&mut self.pending, &mut self.pinned)? {
            Committed::Applied(replies) => Outcome::Committed(self.pending.keep(replies)),
            Committed::Conflict => Outcome::Conflict,
        })
    }
}

impl<M: Mode> Transaction<M> {
    pub(crate) fn new(pending: Pending, pinned: Pinned) -> Self {
        Self { pending, pinned, mode: PhantomData }
    }

    /// Discards the transaction as its drop does, and returns whether that succeeded.
    ///
    /// # Errors
    /// The error of DISCARD or UNWATCH; the connection was then replaced. Nothing was applied
    /// either way.
    pub fn discard(mut self) -> Result<(), Error> {
        scope_calls::discard(&mut self.pinned)
    }

    /// Returns the failure that `commit` would already return: a refused command, a limit, or a
    /// chunk that could not be sent. This call sends nothing.
    ///
    /// # Errors
    /// That failure. After it, the transaction can only be discarded.
    pub fn check(&mut self) -> Result<(), Error> {
        self.pinned.here()?;
        self.pending.failure().map_or(Ok(()), |failure| Err(failure.into()))
    }
}

impl<M: Mode> Queue for Transaction<M> {
    fn target(&mut self) -> (&mut CommandQueue, usize) {
        (self.pending.queue(), 0)
    }

    fn queued(&mut self) {
        scope_calls::queued(&mut self.pending, &mut self.pinned);
    }
}
