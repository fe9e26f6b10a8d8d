//! The trait that unites the command families.

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
/// The commands themselves are in one trait a family ([`StringCommands`], [`HashCommands`], …),
/// which this one unites; the [`prelude`](crate::prelude) brings them all. They are called as in
/// [`redis::Commands`], but return at once with a [`Queued`], for which
/// [`Replies::get`](crate::Replies::get) has the value after the commit. Counts are `i64`, and
/// what a key holds is of the type that you ask for.
///
/// Whatever has no method of its own is queued with [`queue`](Self::queue).
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
    /// Its reply is read as `T`; `()` takes any. A command that would end the transaction behind
    /// its guard's back, or change the connection (MULTI, EXEC, WATCH, SELECT, SUBSCRIBE and
    /// their like, WAIT, a read with BLOCK), is never sent: the commit fails with its name and
    /// nothing is applied.
    ///
    /// ```no_run
    /// use rediscope::prelude::*;
    /// use rediscope::redis;
    ///
    /// fn touch(tx: &mut impl QueueCommands) -> Queued<i64> {
    ///     tx.queue(redis::cmd("TOUCH").arg("a").arg("b").take())
    /// }
    /// ```
    fn queue<T: FromRedisValue>(&mut self, cmd: Cmd) -> Queued<T> {
        self.put_cmd(&cmd)
    }

    /// Opens a part that can be forgotten alone. Savepoints nest.
    ///
    /// [`release`](Savepoint::release) keeps what was queued on it; dropping it forgets that. The
    /// server sees nothing of either: what is forgotten is never sent.
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

    /// Queues a part by a closure: kept when it returns `Ok`, forgotten when it returns `Err` or
    /// panics.
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
    /// Whatever `f` returns. The transaction goes on without the part.
    fn part<R, E>(&mut self, f: impl FnOnce(&mut Savepoint<'_>) -> Result<R, E>) -> Result<R, E> {
        let mut part = self.savepoint();
        let kept = f(&mut part)?;
        part.release();
        Ok(kept)
    }
}

impl<Q: Queue> QueueCommands for Q {}
