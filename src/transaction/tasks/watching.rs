//! A scope that reads before it writes, for callers that are tasks.

use std::borrow::Cow;
use std::fmt;
use std::pin::pin;

use redis::{Cmd, FromRedisValue, Value};

use crate::error::any::Error;
use crate::pool::tasks::pool::TaskPool;
use crate::protocol::resp::encode::{self, Args, EncodedCommand};
use crate::sync::in_span::in_span;
use crate::transaction::block::Block;
use crate::transaction::pending::Pending;
use crate::transaction::reading::Reading;
use crate::transaction::watched_reads::{self, WatchedRead};

/// A scope that reads on its pinned connection under WATCH before it writes, for tasks.
///
/// It has the read methods of the command table, each a future of its reply, and
/// [`query`](Self::query) for other commands. It is not a `redis::aio::ConnectionLike`: a write
/// through that trait would run outside MULTI.
///
/// Its drop waits for nothing. The connection's own task reads replies that are still due and sends
/// UNWATCH within `cleanup_timeout`; if that fails, the connection is closed and replaced.
///
/// If the future of a read is dropped, its reply is read and thrown away. The scope may read on
/// afterwards; if it cannot, the next read or the commit fails, and nothing is applied.
///
/// ```no_run
/// # use rediscope::{Outcome, aio::SessionManager, prelude::*};
/// # async fn example() -> Result<(), rediscope::Error> {
/// # let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
/// let mut watching = accounts.watch(["stock"]).begin().await?;
/// let stock: i64 = watching.get("stock").await?;
/// let mut tx = watching.multi();
/// tx.set("stock", stock - 1);
/// match tx.commit().await? {
///     Outcome::Committed(_) => println!("sold"),
///     Outcome::Conflict => println!("another client was faster"),
/// }
/// # Ok(()) }
/// ```
#[must_use = "dropped, it stops watching"]
pub struct Watching {
    pub(crate) reading: Reading<TaskPool>,
}

/// Without keys and replies.
impl fmt::Debug for Watching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watching")
            .field("scope", &self.reading.pinned)
            .field("attempt", &self.reading.attempt)
            .finish_non_exhaustive()
    }
}

impl Watching {
    /// Number of this attempt of `watch(..).run`, counted from 1.
    pub fn attempt(&self) -> u32 {
        self.reading.attempt
    }

    /// Asks for another attempt of `watch(..).run`: the closure returns this error, and runs again after a
    /// backoff, with new reads. The [`RetryPolicy`](crate::RetryPolicy) counts the attempt like a
    /// conflict. Nothing of it is committed, even if the closure returns `Ok`.
    ///
    /// The error is [`Error::RetriesExhausted`], which `run` returns if the policy allows no further
    /// attempt. In a scope of `begin`, which has one attempt, it does nothing else.
    ///
    /// ```no_run
    /// # use rediscope::{aio::SessionManager, prelude::*};
    /// # async fn example() -> Result<(), rediscope::Error> {
    /// # let jobs = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    /// let taken = jobs
    ///     .watch(["job:7"])
    ///     .run(async |read, tx| {
    ///         let state: String = read.get("job:7").await?;
    ///         if state == "being written" {
    ///             return Err(read.run_again());
    ///         }
    ///         Ok(tx.set("job:7", "taken"))
    ///     })
    ///     .await?;
    /// # let _ = taken; Ok(()) }
    /// ```
    ///
    /// A closure with an error type of its own returns `Err(read.run_again().into())`.
    pub fn run_again(&mut self) -> Error {
        self.reading.run_again()
    }

    /// Returns `handles`, unless the closure has asked for another attempt.
    pub(crate) fn unless_again<R, E: From<Error>>(&self, handles: R) -> Result<R, E> {
        self.reading.wants_again().map_or(Ok(handles), |error| Err(error.into()))
    }

    /// Returns the value of a read that was [declared](crate::aio::Watch::declare) on the watch, as
    /// this attempt read it.
    ///
    /// # Errors
    /// [`Error::Command`] if the server refused the read; [`Error::Decode`] if the value is of
    /// another type; [`Error::Refused`] if another watch declared it.
    pub fn declared<T: FromRedisValue>(&self, read: WatchedRead<T>) -> Result<T, Error> {
        let full = self.reading.pinned.settings().server_messages;
        self.reading.declared.get(read).map_err(|error| error.with_full_text(full))
    }

    /// Sends one read command that has no method of its own. The server's own read-only commands,
    /// and those of well-known modules (`JSON.GET`, `FT.SEARCH`, `BF.EXISTS`, `TS.RANGE`, …), are
    /// known by name. [`query_as_read`](Self::query_as_read) takes the others.
    ///
    /// If the future is dropped, the command may have been sent; it changes nothing.
    ///
    /// # Errors
    /// [`Error::Refused`], before the command is sent, if it is not known to be read-only;
    /// [`Error::Command`] if the server refused it; [`Error::Lost`] if the connection failed;
    /// [`Error::PinExpired`].
    pub fn query<T: FromRedisValue>(
        &mut self,
        cmd: Cmd,
    ) -> impl Future<Output = Result<T, Error>> + Send {
        self.send(cmd, watched_reads::name_of_read)
    }

    /// Sends one command that the caller knows to be read-only: a command of a module that this
    /// crate does not know, or a script that does not write.
    ///
    /// The caller is responsible for that, as [the same method of threads](crate::Watching::query_as_read)
    /// describes. If the future is dropped, the command may have been sent.
    ///
    /// # Errors
    /// [`Error::Refused`], before the command is sent, if it is one of the server's own that
    /// writes, blocks or changes the connection; [`Error::Command`] if the server refused it;
    /// [`Error::Lost`] if the connection failed; [`Error::PinExpired`].
    pub fn query_as_read<T: FromRedisValue>(
        &mut self,
        cmd: Cmd,
    ) -> impl Future<Output = Result<T, Error>> + Send {
        self.send(cmd, watched_reads::name_of_assumed_read)
    }

    async fn send<T: FromRedisValue>(
        &mut self,
        cmd: Cmd,
        name: fn(&[u8]) -> Result<String, Error>,
    ) -> Result<T, Error> {
        let bytes = cmd.get_packed_command();
        self.fetch(EncodedRead { name: name(&bytes)?.into(), bytes }).await
    }

    /// Sends one read, and returns its value.
    pub(crate) async fn fetch<T: FromRedisValue>(&mut self, read: EncodedRead) -> Result<T, Error> {
        let full = self.reading.pinned.settings().server_messages;
        let value = self.reply_to(&read).await;
        value
            .and_then(|value| watched_reads::value_of(&read.name, &value))
            .map_err(|error| error.with_full_text(full))
    }

    async fn reply_to(&mut self, read: &EncodedRead) -> Result<Value, Error> {
        self.reading.pinned.here()?;
        let span = self.reading.pinned.span().clone();
        in_span(&span, pin!(self.reading.reply_to(&read.name, &read.bytes))).await
    }

    /// Returns a queue for the writes of this attempt.
    pub(crate) fn block(&self) -> Block {
        Block { pending: self.pending(), pinned: None }
    }

    pub(crate) fn pending(&self) -> Pending {
        let Reading { pinned, binding, .. } = &self.reading;
        Pending::new(pinned.settings(), *binding)
    }
}

/// A read as it is sent, and its name for errors.
pub(crate) struct EncodedRead {
    name: Cow<'static, str>,
    bytes: Vec<u8>,
}

impl EncodedRead {
    /// A read of the command table.
    pub(crate) fn new(
        name: &'static str,
        words: &EncodedCommand,
        args: impl FnOnce(&mut Args<'_>),
    ) -> Self {
        let mut bytes = Vec::new();
        encode::command(&mut bytes, words, args);
        Self { name: name.into(), bytes }
    }
}
