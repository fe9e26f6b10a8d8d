//! The conditions of a block: each is a read, and the reply that it expects.
//!
//! Neither the key nor the values are shown.

pub(crate) mod expected;
pub(crate) mod hashes;
pub(crate) mod keys;
pub(crate) mod lists;
pub(crate) mod sets;
pub(crate) mod sorted_sets;
pub(crate) mod streams;
pub(crate) mod strings;
pub(crate) mod table;

use std::fmt;

use redis::Value;

use crate::error::any::Error;
use crate::error::applied::Applied;
use crate::error::connection::ConnectionError;
use crate::protocol::command::reader::CommandReader;
use crate::protocol::resp::encode::{self, Args, EncodedCommand};
use crate::protocol::server_error::ServerError;
use crate::text::condition_label;
use crate::transaction::condition::expected::Expected;

/// A condition that must hold for a block to be applied, from before its first command until EXEC.
///
/// [`Transactional::require`](crate::Transactional::require) and
/// [`Watch::require`](crate::Watch::require) take it. Its key is watched and read in one packet
/// with all others. If the condition does not hold, the block is not run, nothing is applied, and
/// the call fails with [`Error::ConditionFailed`](crate::Error::ConditionFailed).
///
/// ```no_run
/// use rediscope::{Condition, Error, SessionManager, prelude::*};
///
/// # fn main() -> Result<(), Error> {
/// let carts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
/// let added = carts
///     .require(Condition::exists("customer:7"))
///     .require(Condition::equals("shop:state", "open"))
///     .require(Condition::hash_len_at_most("cart:7", 99))
///     .run(|tx| Ok(tx.hset("cart:7", "chair", 2)));
/// match added {
///     Ok(_) => println!("in the cart"),
///     Err(Error::ConditionFailed { index: 1, .. }) => println!("we are closed"),
///     Err(error) => return Err(error),
/// }
/// # Ok(()) }
/// ```
///
/// For a missing key a condition sees what the server returns: a missing list, set, hash, sorted
/// set or stream is empty, and a missing string has length 0 and equals nothing.
///
/// If the key holds a value of another type, the condition neither holds nor fails. The server's
/// refusal (`WRONGTYPE`) is an [`Error::Command`](crate::Error::Command) that names the condition.
/// To make the type a condition too, require [`type_is`](Self::type_is) before.
///
/// `Debug` shows the kind of condition, and neither key nor values. A condition is a plain value,
/// and dropping it does nothing.
#[derive(Clone)]
#[must_use = "a condition does nothing until it is required"]
pub struct Condition {
    kind: &'static str,
    name: Option<&'static str>,
    command: &'static str,
    read: Vec<u8>,
    expected: Expected,
}

impl Condition {
    fn new(
        kind: &'static str,
        command: &'static str,
        args: impl FnOnce(&mut Args<'_>),
        expected: Expected,
    ) -> Self {
        let mut read = Vec::new();
        encode::command(&mut read, &EncodedCommand::new(&[command]), args);
        Self { kind, name: None, command, read, expected }
    }

    /// Gives the condition a name. [`Error::ConditionFailed`] and its text contain it, so that a
    /// program with several conditions of a kind need not count them. A name is the program's own
    /// text: keys and values are never shown.
    ///
    /// ```no_run
    /// # use rediscope::{Condition, Error, SessionManager, prelude::*};
    /// # fn main() -> Result<(), rediscope::Error> {
    /// # let shop = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    /// let in_stock = Condition::at_least("stock", 1).named("in stock");
    /// match shop.require(in_stock).run(|tx| Ok(tx.decr("stock", 1))) {
    ///     Ok(left) => println!("{left} left"),
    ///     Err(Error::ConditionFailed { name: Some("in stock"), .. }) => println!("sold out"),
    ///     Err(error) => return Err(error),
    /// }
    /// # Ok(()) }
    /// ```
    pub fn named(mut self, name: &'static str) -> Self {
        self.name = Some(name);
        self
    }

    /// The encoded read of the condition; its first argument is the key.
    pub(crate) fn read(&self) -> &[u8] {
        &self.read
    }

    /// Passes the key, which is to be watched, to `watch`.
    pub(crate) fn key<R>(&self, watch: impl FnOnce(&[u8]) -> R) -> Option<R> {
        let args = CommandReader::new(&self.read).next()?.ok()?;
        args.get(1).map(|key| watch(key))
    }

    /// Returns its description, with its number among the conditions of a watch.
    pub(crate) fn label(&self, index: usize) -> String {
        condition_label(index, self.kind, self.name)
    }

    /// Returns an error unless the condition of this number holds by the server's reply.
    pub(crate) fn check(&self, index: usize, answer: &Value) -> Result<(), Error> {
        let Self { command, expected, kind, name, .. } = self;
        let read = || format!("{command} of condition {}", self.label(index));
        if let Value::ServerError(error) = answer {
            let command = read();
            return Err(Error::Command { command, error: ServerError::from_reply(error, false) });
        }
        match expected.holds(answer) {
            Some(true) => Ok(()),
            Some(false) => Err(Error::ConditionFailed { index, kind, name: *name }),
            None => Err(Error::Lost {
                during: read(),
                applied: Applied::No,
                source: ConnectionError::unexpected("a reply of another type than the read's"),
            }),
        }
    }
}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Condition({})", self.kind)
    }
}
