//! A scope that reads before it writes, for callers that are threads.

use std::fmt;

use redis::{Cmd, FromRedisValue};

use crate::error::any::Error;
use crate::protocol::resp::encode::{self, Args, EncodedCommand};
use crate::transaction::block::Block;
use crate::transaction::guard::{Transaction, Watched};
use crate::transaction::pending::Pending;
use crate::transaction::reading::Reading;
use crate::transaction::scope_calls;
use crate::transaction::watched_reads::{self, WatchedRead};

/// A scope that reads on its pinned connection under WATCH before it writes.
///
/// It has the read methods of the command table, each with its reply at once, and
/// [`query`](Self::query) for other commands. It is not a `redis::ConnectionLike`: a write through
/// that trait would run outside MULTI.
///
/// Its drop sends UNWATCH within `cleanup_timeout`; if that fails, the connection is closed and
/// replaced.
///
/// ```no_run
/// # use rediscope::{Outcome, SessionManager, prelude::*};
/// # fn main() -> Result<(), rediscope::Error> {
/// # let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
/// let mut watching = accounts.watch(["stock"]).begin()?;
/// let stock: i64 = watching.get("stock")?;
/// let mut tx = watching.multi();
/// tx.set("stock", stock - 1);
/// match tx.commit()? {
///     Outcome::Committed(_) => println!("sold"),
///     Outcome::Conflict => println!("another client was faster"),
/// }
/// # Ok(()) }
/// ```
#[must_use = "dropped, it stops watching"]
pub struct Watching {
    reading: Reading,
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
    pub(crate) fn new(reading: Reading) -> Self {
        Self { reading }
    }

    pub(crate) fn reading(&mut self) -> &mut Reading {
        &mut self.reading
    }

    pub(crate) fn into_reading(self) -> Reading {
        self.reading
    }

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
    /// # use rediscope::{SessionManager, prelude::*};
    /// # fn main() -> Result<(), rediscope::Error> {
    /// # let jobs = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    /// let taken = jobs.watch(["job:7"]).run(|read, tx| {
    ///     let state: String = read.get("job:7")?;
    ///     if state == "being written" {
    ///         return Err(read.run_again());
    ///     }
    ///     Ok(tx.set("job:7", "taken"))
    /// })?;
    /// # Ok(()) }
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

    /// Returns the value of a read that was [declared](crate::Watch::declare) on the watch, as this
    /// attempt read it.
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
    /// # Errors
    /// [`Error::Refused`], before the command is sent, if it is not known to be read-only;
    /// [`Error::Command`] if the server refused it; [`Error::Lost`] if the connection failed;
    /// [`Error::PinExpired`].
    pub fn query<T: FromRedisValue>(&mut self, cmd: Cmd) -> Result<T, Error> {
        let bytes = cmd.get_packed_command();
        self.fetch(&watched_reads::name_of_read(&bytes)?, &bytes)
    }

    /// Sends one command that the caller knows to be read-only: a command of a module that this
    /// crate does not know, or a script that does not write.
    ///
    /// The caller is responsible for that. A command that writes runs outside MULTI:
    ///
    /// * The server applies it at once, whatever the transaction's outcome.
    /// * On a watched key it makes every attempt a conflict.
    /// * If the connection fails during it in a scope that watches nothing, it is sent a second
    ///   time and reported as not applied.
    ///
    /// The server's own write commands are refused by name. So are the commands that
    /// [`query`](Self::query) refuses because they block or change the connection.
    ///
    /// ```no_run
    /// # use rediscope::{SessionManager, prelude::*, redis};
    /// # fn main() -> Result<(), rediscope::Error> {
    /// # let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    /// let degree = accounts.watch(["social"]).run(|read, tx| {
    ///     let query = "MATCH (:User {name: 'alice'})-[f]->() RETURN count(f)";
    ///     let cmd = redis::cmd("GRAPH.RO_QUERY").arg("social").arg(query).take();
    ///     let found: Vec<redis::Value> = read.query_as_read(cmd)?;
    ///     Ok(tx.set("parts", found.len()))
    /// });
    /// # degree }
    /// ```
    ///
    /// # Errors
    /// [`Error::Refused`], before the command is sent, if it is one of the server's own that
    /// writes, blocks or changes the connection; [`Error::Command`] if the server refused it;
    /// [`Error::Lost`] if the connection failed; [`Error::PinExpired`].
    pub fn query_as_read<T: FromRedisValue>(&mut self, cmd: Cmd) -> Result<T, Error> {
        let bytes = cmd.get_packed_command();
        self.fetch(&watched_reads::name_of_assumed_read(&bytes)?, &bytes)
    }

    /// Sends one read of the command table.
    pub(crate) fn read<T: FromRedisValue>(
        &mut self,
        name: &'static str,
        words: &EncodedCommand,
        args: impl FnOnce(&mut Args<'_>),
    ) -> Result<T, Error> {
        let mut bytes = Vec::new();
        encode::command(&mut bytes, words, args);
        self.fetch(name, &bytes)
    }

    fn fetch<T: FromRedisValue>(&mut self, name: &str, bytes: &[u8]) -> Result<T, Error> {
        let full = self.reading.pinned.settings().server_messages;
        let value = scope_calls::reply_to(&mut self.reading, name, bytes);
        value
            .and_then(|value| watched_reads::value_of(name, &value))
            .map_err(|error| error.with_full_text(full))
    }

    /// Changes from reading to writing. The commands queued from here on are applied only if no
    /// watched key changes before the commit.
    pub fn multi(self) -> Transaction<Watched> {
        let pending = self.pending();
        Transaction::new(pending, self.reading.pinned)
    }

    /// Stops watching, as the drop does, and returns whether that succeeded.
    ///
    /// # Errors
    /// The error of UNWATCH; the connection was then replaced.
    pub fn abandon(mut self) -> Result<(), Error> {
        scope_calls::discard(&mut self.reading.pinned)
    }

    /// Returns a queue for the writes of this attempt.
    pub(crate) fn block(&self) -> Block {
        Block { pending: self.pending(), pinned: None }
    }

    fn pending(&self) -> Pending {
        let Reading { pinned, binding, .. } = &self.reading;
        Pending::new(pinned.settings(), *binding)
    }
}
