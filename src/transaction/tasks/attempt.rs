//! One attempt of a loop that a task writes: its reads, and the queue of its writes.

use std::fmt;

use redis::{Cmd, FromRedisValue};

use crate::error::any::Error;
use crate::pool::router::Router;
use crate::pool::tasks::line::TaskKeyQueue;
use crate::pool::tasks::pool::TaskPool;
use crate::protocol::queue::CommandQueue;
use crate::transaction::commands::sealed::Queue;
use crate::transaction::keys::Keys;
use crate::transaction::pending::Pending;
use crate::transaction::retry_loop::WatchAttempts;
use crate::transaction::tasks::turns::InLoop;
use crate::transaction::tasks::watching::{EncodedRead, Watching};
use crate::transaction::watched_reads::WatchedRead;

/// One attempt of [`Tries`](crate::aio::Tries): its reads, and the queue of its writes.
///
/// A method of the command table that reads, such as [`get`](Self::get), sends the read at once and
/// is a future of its reply. Every other method of the table queues a write. A read is queued with
/// [`queue`](crate::commands::QueueCommands::queue).
///
/// If it is dropped without [`commit`](Self::commit), nothing is applied. The drop waits for nothing:
/// the connection's own task sends UNWATCH.
///
/// ```no_run
/// # use rediscope::{Outcome, aio::SessionManager, prelude::*};
/// # async fn example() -> Result<(), rediscope::Error> {
/// # let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
/// let mut tries = accounts.watch(["stock"]).tries();
/// let left: i64 = loop {
///     let mut at = tries.next().await?;
///     let stock: i64 = at.get("stock").await?;
///     let left = at.decr("stock", stock.min(1));
///     if let Outcome::Committed(replies) = at.commit().await? {
///         break replies.get(left)?;
///     }
/// };
/// # let _ = left; Ok(()) }
/// ```
#[must_use = "dropped without commit() the attempt applies nothing"]
pub struct Attempt<'t> {
    pub(crate) router: &'t Router<TaskPool>,
    pub(crate) current: InAttempt<'t>,
    /// The keys of the watch.
    pub(crate) keys: Option<&'t Keys>,
    pub(crate) end: &'t mut AttemptEnd,
    pub(crate) watching: Watching,
    pub(crate) pending: Pending,
    /// Blocks that the task runs meanwhile do not wait for turns.
    pub(crate) in_loop: InLoop,
}

/// How the last attempt of a loop has ended.
pub(crate) struct AttemptEnd {
    /// Whether the attempt was counted.
    pub(crate) counted: bool,
    /// The outcome of the run if no attempt follows. `None`: it is recorded.
    pub(crate) outcome: Option<&'static str>,
    /// Whether the run has ended with a commit.
    pub(crate) is_over: bool,
}

/// A loop that is in an attempt. Its drop ends the turn on hot keys: another attempt may never follow.
pub(crate) struct InAttempt<'t> {
    pub(crate) attempts: &'t mut WatchAttempts<TaskKeyQueue>,
    pub(crate) keeps_turn: bool,
}

impl Drop for InAttempt<'_> {
    fn drop(&mut self) {
        if !self.keeps_turn {
            self.attempts.end_turn();
        }
    }
}

impl fmt::Debug for Attempt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attempt").field("watching", &self.watching).finish_non_exhaustive()
    }
}

impl Attempt<'_> {
    /// Number of this attempt, counted from 1.
    pub fn number(&self) -> u32 {
        self.watching.attempt()
    }

    /// Like [`Watching::declared`](crate::aio::Watching::declared).
    ///
    /// # Errors
    /// As [`Watching::declared`](crate::aio::Watching::declared).
    pub fn declared<T: FromRedisValue>(&self, read: WatchedRead<T>) -> Result<T, Error> {
        self.watching.declared(read)
    }

    /// Like [`Watching::query`](crate::aio::Watching::query).
    ///
    /// # Errors
    /// As [`Watching::query`](crate::aio::Watching::query).
    pub fn query<T: FromRedisValue>(
        &mut self,
        cmd: Cmd,
    ) -> impl Future<Output = Result<T, Error>> + Send {
        self.watching.query(cmd)
    }

    /// Like [`Watching::query_as_read`](crate::aio::Watching::query_as_read).
    ///
    /// # Errors
    /// As [`Watching::query_as_read`](crate::aio::Watching::query_as_read).
    pub fn query_as_read<T: FromRedisValue>(
        &mut self,
        cmd: Cmd,
    ) -> impl Future<Output = Result<T, Error>> + Send {
        self.watching.query_as_read(cmd)
    }

    pub(crate) fn fetch<T: FromRedisValue>(
        &mut self,
        read: EncodedRead,
    ) -> impl Future<Output = Result<T, Error>> + Send {
        self.watching.fetch(read)
    }
}

impl Queue for Attempt<'_> {
    fn target(&mut self) -> (&mut CommandQueue, usize) {
        (self.pending.queue(), 0)
    }

    fn queued(&mut self) {
        self.watching.reading.pinned.touch();
    }
}
