//! The transaction guard of tasks: pins a connection, commits or discards, and gives the connection
//! back.

use std::marker::PhantomData;
use std::pin::pin;

use crate::commit::outcome::Committed;
use crate::error::any::{CommitError, Error};
use crate::pool::tasks::pool::TaskPool;
use crate::protocol::queue::CommandQueue;
use crate::reply::replies::Replies;
use crate::sync::in_span::in_span;
use crate::transaction::commands::sealed::Queue;
use crate::transaction::guard::{Mode, Plain, Watched};
use crate::transaction::outcome::Outcome;
use crate::transaction::pending::Pending;
use crate::transaction::pinned::Pinned;
use crate::transaction::tasks::watching::Watching;

/// A transaction of a task: one pinned connection, and the commands queued for it.
///
/// Commands queue through the [command table](crate::commands::QueueCommands). Queueing waits for
/// nothing, so all commands are kept until [`commit`](Transaction::<Plain>::commit) sends them together
/// with [`MULTI` and `EXEC`](https://redis.io/docs/latest/develop/interact/transactions/), within
/// [`max_bytes`](crate::Builder::max_bytes) and [`max_commands`](crate::Builder::max_commands). A large
/// transaction can send ahead with [`flush`](Self::flush).
///
/// If the guard is dropped without a commit, nothing is applied. The drop waits for nothing, and works
/// outside of a runtime too. If MULTI or WATCH was sent, the connection's own task sends DISCARD or
/// UNWATCH within `cleanup_timeout`; if that fails, the connection is closed and replaced. Then the next
/// waiting caller has the place. While a panic unwinds, the connection is closed instead. The connection
/// of a forgotten guard (`mem::forget`), or of a guard unused for `max_pin_time`, is reclaimed.
///
/// A guard can be sent to another task.
///
/// ```no_run
/// # use rediscope::{aio::SessionManager, prelude::*};
/// # async fn example(cancelled: bool) -> Result<(), rediscope::Error> {
/// let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
/// let mut tx = accounts.begin().await?;
/// let hits = tx.incr("hits", 1);
/// tx.set("last", "now");
/// if cancelled {
///     return Ok(());                         // dropped: nothing was applied
/// }
/// let replies = tx.commit().await?;
/// println!("{}", replies.get(hits)?);
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "dropped without commit() the transaction is discarded"]
pub struct Transaction<M: Mode = Plain> {
    pending: Pending,
    pinned: Pinned<TaskPool>,
    mode: PhantomData<fn() -> M>,
}

impl Transaction<Plain> {
    /// Sends EXEC. The connection is free again before the future is ready.
    ///
    /// If the future is dropped before EXEC was sent, nothing is applied, and the connection is cleaned.
    /// If it is dropped later, the transaction may be applied; its replies are read and thrown away.
    ///
    /// # Errors
    /// [`Error::Commit`] has what the server did: `Rejected` and `NotSent` mean that nothing was
    /// applied, `PartlyApplied` that some commands were applied, `InDoubt` that the reply was lost.
    /// With [`Error::Checkout`] and [`Error::PinExpired`] nothing was applied.
    pub fn commit(mut self) -> impl Future<Output = Result<Replies, Error>> + Send {
        async move {
            match self.send_exec().await? {
                Committed::Applied(replies) => Ok(self.pending.keep(replies)),
                // Without a watch there is no conflict: see `commit::outcome`.
                Committed::Conflict => Err(Error::RetriesExhausted { attempts: 1 }),
            }
        }
    }
}

impl Transaction<Watched> {
    /// Sends EXEC. The connection is free again before the future is ready.
    ///
    /// What dropping the future does is as in [`Transaction::<Plain>::commit`].
    ///
    /// # Errors
    /// As [`Transaction::<Plain>::commit`]. A conflict is no error but an [`Outcome`].
    pub fn commit(mut self) -> impl Future<Output = Result<Outcome, Error>> + Send {
        async move {
            Ok(match self.send_exec().await? {
                Committed::Applied(replies) => Outcome::Committed(self.pending.keep(replies)),
                Committed::Conflict => Outcome::Conflict,
            })
        }
    }
}

impl<M: Mode> Transaction<M> {
    pub(crate) fn new(pending: Pending, pinned: Pinned<TaskPool>) -> Self {
        Self { pending, pinned, mode: PhantomData }
    }

    async fn send_exec(&mut self) -> Result<Committed, CommitError> {
        let Self { pending, pinned, .. } = self;
        pinned.here()?;
        let span = pinned.span().clone();
        in_span(&span, pin!(pending.commit(pinned))).await
    }

    /// Sends MULTI and the queued commands ahead of the commit, and waits until the server has queued
    /// them. So a large transaction needs less memory here, and a command that the server refuses is
    /// known early.
    ///
    /// Commands of savepoints that were forgotten with `mem::forget` are dropped, as at the commit.
    ///
    /// If the future is dropped after its first poll, nothing is applied: the transaction can only be
    /// discarded, and `check` and `commit` return an error. The connection is cleaned and used again.
    ///
    /// ```no_run
    /// # use rediscope::{aio::SessionManager, prelude::*};
    /// # async fn example(lines: Vec<String>) -> Result<(), rediscope::Error> {
    /// # let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    /// let mut tx = accounts.begin().await?;
    /// for chunk in lines.chunks(1000) {
    ///     for line in chunk {
    ///         tx.rpush("log", line);
    ///     }
    ///     tx.flush().await?;
    /// }
    /// tx.commit().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The failure that [`check`](Self::check) returns from then on. Nothing was applied.
    pub fn flush(&mut self) -> impl Future<Output = Result<(), Error>> + Send {
        async move {
            let Self { pending, pinned, .. } = self;
            pinned.here()?;
            if pending.is_flush_due(pinned) {
                let span = pinned.span().clone();
                in_span(&span, pin!(pending.flush(pinned))).await;
            }
            self.check()
        }
    }

    /// Discards the transaction as its drop does, and returns whether that succeeded.
    ///
    /// If the future is dropped, the transaction is discarded as by the guard's own drop.
    ///
    /// # Errors
    /// The error of DISCARD or UNWATCH; the connection was then replaced. Nothing was applied
    /// either way.
    pub fn discard(mut self) -> impl Future<Output = Result<(), Error>> + Send {
        async move { discard(&mut self.pinned).await }
    }

    /// Returns the failure that `commit` would already return: a refused command, a limit, or a
    /// failed [`flush`](Self::flush). This call sends nothing.
    ///
    /// # Errors
    /// That failure. After it, the transaction can only be discarded.
    pub fn check(&mut self) -> Result<(), Error> {
        self.pinned.here()?;
        self.pending.failure().map_or(Ok(()), |failure| Err(failure.into()))
    }
}

/// Ends a scope without a commit.
async fn discard(pinned: &mut Pinned<TaskPool>) -> Result<(), Error> {
    pinned.here()?;
    let span = pinned.span().clone();
    in_span(&span, pin!(pinned.discard())).await
}

impl Watching {
    /// Changes from reading to writing. The commands queued from here on are applied only if no
    /// watched key changes before the commit.
    pub fn multi(self) -> Transaction<Watched> {
        let pending = self.pending();
        Transaction::new(pending, self.reading.pinned)
    }

    /// Stops watching, as the drop does, and returns whether that succeeded.
    ///
    /// If the future is dropped, the scope ends as by its own drop.
    ///
    /// # Errors
    /// The error of UNWATCH; the connection was then replaced.
    pub fn abandon(mut self) -> impl Future<Output = Result<(), Error>> + Send {
        async move { discard(&mut self.reading.pinned).await }
    }
}

impl<M: Mode> Queue for Transaction<M> {
    fn target(&mut self) -> (&mut CommandQueue, usize) {
        (self.pending.queue(), 0)
    }

    /// All commands are kept until the commit or a flush: queueing waits for nothing.
    fn queued(&mut self) {
        let _: bool = self.pending.is_chunk_due(&self.pinned);
    }
}
