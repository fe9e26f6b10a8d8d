//! The trait that combines the command families.

use std::borrow::Borrow;

use redis::{Cmd, FromRedisValue};

use crate::reply::queued::Queued;
use crate::transaction::commands::bitmaps::BitmapCommands;
use crate::transaction::commands::geo::GeoCommands;
use crate::transaction::commands::hashes::HashCommands;
use crate::transaction::commands::hyperloglogs::HyperLogLogCommands;
use crate::transaction::commands::keys::KeyCommands;
use crate::transaction::commands::lists::ListCommands;
use crate::transaction::commands::publish::PublishCommands;
use crate::transaction::commands::scripts::ScriptCommands;
use crate::transaction::commands::sealed::Queue;
use crate::transaction::commands::server::ServerCommands;
use crate::transaction::commands::sets::SetCommands;
use crate::transaction::commands::sorted_sets::SortedSetCommands;
use crate::transaction::commands::streams::StreamCommands;
use crate::transaction::commands::strings::StringCommands;
use crate::transaction::savepoint::Savepoint;

/// Everything that can be queued on a block, a transaction or a savepoint.
///
/// The commands themselves are in one trait for each family ([`StringCommands`], [`HashCommands`],
/// …). This trait combines them, and the [`prelude`](crate::prelude) imports them all. They have
/// the names and arguments of [`redis::Commands`], but return a [`Queued`] at once.
/// [`Replies::get`](crate::Replies::get) returns its value after the commit. Counts are `i64`; the
/// caller chooses the type of a key's value.
///
/// A command without a method of its own is queued with [`queue`](Self::queue).
///
/// This trait is sealed: it is implemented by [`Block`](crate::Block),
/// [`Transaction`](crate::Transaction), [`Savepoint`] and mutable references to them.
///
/// ```no_run
/// use rediscope::prelude::*;
/// use rediscope::redis;
///
/// fn check_in(tx: &mut impl QueueCommands, guest: &str) -> (Queued<i64>, Queued<Vec<String>>) {
///     let count = tx.incr("guests", 1);             // this reply is always an i64
///     tx.hset(guest, "room", 12);                   // this reply is not read
///     let bags = tx.lrange("bags", 0, -1);          // the type comes from the signature
///     let _: Queued<()> = tx.lpop("keys", None);    // any reply is welcome
///
///     tx.queue::<()>(redis::cmd("SETRANGE").arg("door").arg(3).arg("open").take());
///     (count, bags)
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let accounts = rediscope::SessionManager::connect("redis://127.0.0.1/")?.transactional();
/// let mut tx = accounts.begin()?;
/// let (count, bags) = check_in(&mut tx, "guest:alice");
/// let replies = tx.commit()?;
/// println!("guest {} with {:?}", replies.get(count)?, replies.get(bags)?);
/// # Ok(()) }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot queue commands",
    label = "not a block, a transaction or a savepoint",
    note = "commands are queued on the `Block` of `run`, on a `Transaction` from `begin()` or on a `Savepoint`; the pooled handle runs each command at once, through `redis::Commands`"
)]
pub trait QueueCommands:
    StringCommands
    + KeyCommands
    + HashCommands
    + ListCommands
    + SetCommands
    + SortedSetCommands
    + StreamCommands
    + BitmapCommands
    + HyperLogLogCommands
    + GeoCommands
    + ScriptCommands
    + PublishCommands
    + ServerCommands
{
    /// Queues a command that has no method of its own.
    ///
    /// Its reply is decoded as `T`; `()` accepts any reply.
    ///
    /// A command is never sent if it would end the transaction without its guard, or change the
    /// connection. These are MULTI, EXEC, WATCH, SELECT, SUBSCRIBE and similar, WAIT, and a read
    /// with BLOCK. The commit then fails with the command's name, and nothing is applied.
    ///
    /// ```no_run
    /// use rediscope::prelude::*;
    /// use rediscope::redis;
    ///
    /// fn touch(tx: &mut impl QueueCommands) -> Queued<i64> {
    ///     tx.queue(redis::cmd("TOUCH").arg("a").arg("b"))
    /// }
    /// ```
    fn queue<T: FromRedisValue>(&mut self, cmd: impl Borrow<Cmd>) -> Queued<T> {
        self.put_cmd(cmd.borrow())
    }

    /// Opens a part that can be forgotten alone. Savepoints nest.
    ///
    /// [`release`](Savepoint::release) keeps the commands that were queued on it; its drop forgets
    /// them. Neither sends anything: a forgotten command is never sent.
    ///
    /// ```no_run
    /// use rediscope::prelude::*;
    ///
    /// fn order(tx: &mut impl QueueCommands, gift: bool) {
    ///     tx.incr("orders", 1);
    ///     let mut wrapping = tx.savepoint();
    ///     wrapping.decr("paper", 1);
    ///     if gift {
    ///         wrapping.release();
    ///     }
    /// }
    /// ```
    fn savepoint(&mut self) -> Savepoint<'_> {
        let (queue, depth) = self.target();
        Savepoint::new(queue, depth)
    }

    /// Queues a part by a closure. The part is kept if the closure returns `Ok`, and forgotten if
    /// it returns `Err` or panics.
    ///
    /// ```no_run
    /// use rediscope::prelude::*;
    ///
    /// fn order(tx: &mut impl QueueCommands, code: &str) {
    ///     tx.incr("orders", 1);
    ///     let discount = tx.part(|part| {
    ///         part.decr("vouchers", 1);
    ///         code.parse::<u8>()              // not a number: the voucher is not taken
    ///     });
    ///     tx.set("discount", discount.unwrap_or(0));
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// The error that `f` returns. The transaction continues without the part.
    fn part<R, E>(&mut self, f: impl FnOnce(&mut Savepoint<'_>) -> Result<R, E>) -> Result<R, E> {
        let mut part = self.savepoint();
        let kept = f(&mut part)?;
        part.release();
        Ok(kept)
    }
}

impl<Q: Queue> QueueCommands for Q {}
