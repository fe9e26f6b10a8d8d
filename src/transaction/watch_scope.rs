//! A scope that reads on its pinned connection under WATCH before it writes.
//!
//! It sends no write outside MULTI: such a write would make every attempt a conflict.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use redis::{Cmd, FromRedisValue, Value};

use crate::commit::prepare;
use crate::error::any::Error;
use crate::error::applied::Applied;
use crate::error::checkout::CheckoutError;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::pool;
use crate::pool::ask::Question;
use crate::pool::checkout::Checkout;
use crate::pool::line::Line;
use crate::pool::retry_budget::RetryBudget;
use crate::protocol::cluster::redirect::{self, RedirectReply};
use crate::protocol::cluster::route::{Redirect, Route};
use crate::protocol::cluster::slot::SlotBinding;
use crate::protocol::command::keys;
use crate::protocol::resp::encode::{self, ASKING, Args};
use crate::protocol::server_error::ServerError;
use crate::sync::now::now;
use crate::text::condition_label;
use crate::transaction::block::Block;
use crate::transaction::guard::{Transaction, Watched};
use crate::transaction::keys::Keys;
use crate::transaction::pending::Pending;
use crate::transaction::pinned::Pinned;
use crate::transaction::watched_reads::{self, ReadReplies, WatchReads, WatchedRead};

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
    pinned: Pinned,
    binding: SlotBinding,
    attempt: u32,
    declared: ReadReplies,
    connection_lost: bool,
    /// The redirect of a read that reached a node which does not serve the slot.
    redirect: Option<Redirect>,
    /// The whole WATCH command, if its slot is being migrated.
    watch: Box<[u8]>,
}

/// Without keys and replies.
impl fmt::Debug for Watching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watching")
            .field("scope", &self.pinned)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

impl Watching {
    /// Takes a connection and sends WATCH on it; a dead connection is replaced first. If a required
    /// condition does not hold, the scope stops watching.
    pub(crate) fn begin(
        mut pinned: Pinned,
        target: WatchTarget<'_>,
        attempt: u32,
        deadline: Instant,
    ) -> Result<Self, Error> {
        let declared = arm(&mut pinned, target, attempt, deadline)
            .inspect_err(|error| pinned.record_failure(error))?;
        let binding = target.binding;
        let watch =
            target.keys.map(Keys::watch).filter(|_| pinned.route().ask).unwrap_or_default().into();
        let (connection_lost, redirect) = (false, None);
        Ok(Self { pinned, binding, attempt, declared, connection_lost, redirect, watch })
    }

    /// Number of this attempt of `watch(..).run`, counted from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Returns the value of a read that was [declared](crate::Watch::declare) on the watch, as this
    /// attempt read it.
    ///
    /// # Errors
    /// [`Error::Command`] if the server refused the read; [`Error::Decode`] if the value is of
    /// another type; [`Error::Refused`] if another watch declared it.
    pub fn declared<T: FromRedisValue>(&self, read: WatchedRead<T>) -> Result<T, Error> {
        let full = self.pinned.settings().server_messages;
        self.declared.get(read).map_err(|error| error.with_full_text(full))
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
        words: &[&'static str],
        args: impl FnOnce(&mut Args<'_>),
    ) -> Result<T, Error> {
        let mut bytes = Vec::with_capacity(64);
        encode::command(&mut bytes, words, args);
        self.fetch(words.first().copied().unwrap_or_default(), &bytes)
    }

    fn fetch<T: FromRedisValue>(&mut self, name: &str, bytes: &[u8]) -> Result<T, Error> {
        let full = self.pinned.settings().server_messages;
        let value = self.reply_to(name, bytes);
        value
            .and_then(|value| watched_reads::value_of(name, &value))
            .map_err(|error| error.with_full_text(full))
    }

    fn reply_to(&mut self, name: &str, bytes: &[u8]) -> Result<Value, Error> {
        self.pinned.here()?;
        let span = self.pinned.span().clone();
        let _in = span.enter();
        let (watched, deadline) = (self.pinned.plan().watched, self.pinned.checkout_deadline());
        keys::bind(&mut self.binding, bytes)?;
        if !self.pinned.is_pinned() && self.binding == SlotBinding::Pending {
            let router = self.pinned.router().ok_or(CheckoutError::Closed)?;
            let mut checkout = now(router.checkout(&Route::default(), deadline))?;
            return ask(&mut checkout, name, bytes, RetryBudget::never(deadline));
        }
        // In a cluster, the first key of a scope that watches nothing has the slot.
        self.pinned.pin(self.binding.slot(), deadline)?;
        if let Err(error) = has_arrived(&self.pinned, &self.watch, bytes, name) {
            self.record_redirect("TRYAGAIN", "");
            return Err(error);
        }
        let connection_lost = &mut self.connection_lost;
        let value = self.pinned.call(|checkout, _| {
            if watched
                && !checkout.current().is_some_and(|connection| connection.state().is_watching())
            {
                *connection_lost = true;
                let gone =
                    ConnectionError::unexpected("the connection was lost earlier in the scope");
                return Err(lost(name, gone));
            }
            // A scope that watches nothing may read on another connection.
            let budget = match watched {
                true => RetryBudget::never(deadline),
                false => checkout.retry_budget(deadline),
            };
            ask(checkout, name, bytes, budget).inspect_err(|error| {
                // A reply that is too large is as large on another connection.
                *connection_lost |= matches!(error, Error::Lost { source, .. }
                    if source.kind() != ConnectionErrorKind::TooLarge);
            })
        })?;
        if let Value::ServerError(error) = &value {
            let text = error.details().unwrap_or_default();
            self.record_redirect(error.code(), text);
            // A read without a WATCH may be sent to another node; the scope's own binding stays.
            if let (false, Some(Redirect::Immediately(route))) = (watched, &self.redirect)
                && route.ask
                && let Some(router) = self.pinned.router()
            {
                let mut checkout = now(router.checkout(route, deadline))?;
                self.redirect = None;
                return ask(&mut checkout, name, bytes, RetryBudget::never(deadline));
            }
        }
        Ok(value)
    }

    /// Records the redirect in a refused read's error: the node that serves the scope's slot.
    fn record_redirect(&mut self, code: &str, text: &str) {
        if let Some(router) = self.pinned.router() {
            self.redirect = now(router.redirect_for(self.pinned.route(), code, text));
        }
    }

    /// Changes from reading to writing. The commands queued from here on are applied only if no
    /// watched key changes before the commit.
    pub fn multi(self) -> Transaction<Watched> {
        Transaction::new(
            Pending::new(self.pinned.settings(), self.pinned.plan(), self.binding),
            self.pinned,
        )
    }

    /// Returns the scope, and the slot that its keys are bound to.
    pub(crate) fn into_pinned(self) -> (Pinned, SlotBinding) {
        (self.pinned, self.binding)
    }

    /// Stops watching, as the drop does, and returns whether that succeeded.
    ///
    /// # Errors
    /// The error of UNWATCH; the connection was then replaced.
    pub fn abandon(mut self) -> Result<(), Error> {
        self.pinned.discard()
    }

    /// Returns a queue for the writes of this attempt.
    pub(crate) fn block(&self) -> Block {
        Block {
            pending: Pending::new(self.pinned.settings(), self.pinned.plan(), self.binding),
            pinned: None,
        }
    }

    /// Returns the redirect of a read, if there was one.
    pub(crate) fn take_redirect(&mut self) -> Option<Redirect> {
        self.redirect.take()
    }

    /// Returns whether the scope's connection failed. Nothing of this attempt can then be committed,
    /// and the whole attempt may be repeated.
    pub(crate) fn is_connection_lost(&self) -> bool {
        self.connection_lost
    }
}

/// What a scope watches, and the reads that it sends along.
#[derive(Clone, Copy)]
pub(crate) struct WatchTarget<'w> {
    /// `None`: it watches nothing.
    pub(crate) keys: Option<&'w Keys>,
    /// The slot of the keys.
    pub(crate) binding: SlotBinding,
    pub(crate) reads: &'w Arc<WatchReads>,
}

/// Takes a connection and waits for the replies to WATCH, the declared reads and the conditions'
/// reads.
fn arm(
    pinned: &mut Pinned,
    WatchTarget { keys, binding, reads }: WatchTarget<'_>,
    attempt: u32,
    deadline: Instant,
) -> Result<ReadReplies, Error> {
    if binding == SlotBinding::Pending {
        // The first key will have the slot.
        return Ok(ReadReplies::default());
    }
    let watch = keys.map(Keys::watch);
    let span = pinned.span().clone();
    let _in = span.enter();
    pinned.pin(binding.slot(), deadline)?;
    pinned.log_on_return(tracing::Level::DEBUG, move || tracing::debug!(attempt, "begin"));
    if watch.is_none() && reads.len() == 0 {
        return Ok(ReadReplies::default());
    }
    has_arrived(pinned, watch.unwrap_or_default(), reads.bytes(), "a read")?;
    let (sent, slot) = ((reads.bytes(), reads.len()), binding.slot());
    let values = pinned
        .call(|checkout, plan| now(prepare::watch(checkout, watch, sent, plan, slot, deadline)))?;
    if let (Some(_), Some(error)) = (slot, values.iter().find_map(refused)) {
        return Err(Error::Command { command: "a read".to_owned(), error });
    }
    let full = pinned.settings().server_messages;
    let answers =
        ReadReplies::of(Arc::clone(reads), values).map_err(|error| error.with_full_text(full));
    answers.inspect_err(|error| {
        if let Error::ConditionFailed { index, kind, name } = error {
            let which = condition_label(*index, kind, *name);
            pinned.log_on_return(tracing::Level::DEBUG, move || {
                tracing::debug!(attempt, which, "condition failed")
            });
        }
    })
}

/// Error of a node that does not serve the slot.
fn refused(answer: &Value) -> Option<ServerError> {
    let Value::ServerError(error) = answer else { return None };
    RedirectReply::of(error.code(), error.details().unwrap_or_default())
        .map(|_| ServerError::from_reply(error, false))
}

/// Fails if a watched key may not have arrived yet while its slot is being migrated. This is known
/// only for watched keys: the old master replied with a redirect, or the key was found.
fn has_arrived(pinned: &Pinned, watch: &[u8], reads: &[u8], name: &str) -> Result<(), Error> {
    if !pinned.route().ask || keys::are_among(reads, watch) {
        return Ok(());
    }
    let error = ServerError::synthetic(
        "TRYAGAIN",
        "the key may not have arrived at the slot's new node yet",
    );
    Err(Error::Command { command: name.to_owned(), error })
}

/// Sends one read, on other connections while `budget` allows it.
fn ask(
    checkout: &mut Checkout,
    name: &str,
    bytes: &[u8],
    budget: RetryBudget,
) -> Result<Value, Error> {
    let (bytes, replies) = match checkout.needs_asking() {
        true => (Cow::Owned([ASKING, bytes].concat()), 2),
        false => (Cow::Borrowed(bytes), 1),
    };
    let (bytes, read_only) = (&*bytes, true);
    let question = Question { name, bytes, replies, read_only, single: true, blocking: None };
    let (mut asked, mut answer) = (Value::Nil, Value::Nil);
    let take = |_, reply| asked = std::mem::replace(&mut answer, reply);
    now(pool::ask::ask(checkout, &question, budget, take))?;
    Ok(redirect::after_asking(asked, answer))
}

/// Reads and WATCH change nothing, so a lost command was not applied.
fn lost(during: &str, source: ConnectionError) -> Error {
    Error::Lost { during: during.to_owned(), applied: Applied::No, source }
}
