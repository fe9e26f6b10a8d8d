//! The handles of queued commands, and values that need no reply.

use std::any::type_name;
use std::fmt;
use std::marker::PhantomData;

/// A command that was queued, and the type its reply will have.
///
/// It is [`Copy`] and belongs to one transaction. It has a value only after the commit: from
/// [`Replies::get`](crate::Replies::get), or by being returned from
/// [`run`](crate::Transactional::run).
///
/// ```no_run
/// # use rediscope::{SessionManager, prelude::*};
/// # fn main() -> Result<(), rediscope::Error> {
/// # let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
/// let mut tx = accounts.begin()?;
/// let hits = tx.incr("hits", 1);             // Queued<i64>
/// let text = hits.cast::<String>();          // the same reply, as text
/// let replies = tx.commit()?;
/// println!("{} or {}", replies.get(hits)?, replies.get(text)?);
/// # Ok(()) }
/// ```
pub struct Queued<T> {
    pub(crate) transaction: u64,
    pub(crate) id: u32,
    reply: PhantomData<fn() -> T>,
}

impl<T> Queued<T> {
    pub(crate) fn new(transaction: u64, id: u32) -> Self {
        Self { transaction, id, reply: PhantomData }
    }

    /// The same reply as another type.
    pub fn cast<U>(self) -> Queued<U> {
        Queued::new(self.transaction, self.id)
    }
}

/// Implements for a handle what a `derive` would, but without asking the same of `T`. Two handles are
/// equal if their fields are.
macro_rules! handle_traits {
    ($handle:ident: $($field:ident),+) => {
        impl<T> Clone for $handle<T> {
            fn clone(&self) -> Self {
                *self
            }
        }

        impl<T> Copy for $handle<T> {}

        impl<T> PartialEq for $handle<T> {
            fn eq(&self, other: &Self) -> bool {
                $(self.$field == other.$field)&&+
            }
        }

        impl<T> Eq for $handle<T> {}

        impl<T> std::hash::Hash for $handle<T> {
            fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
                $(self.$field.hash(state);)+
            }
        }
    };
}
pub(crate) use handle_traits;

handle_traits!(Queued: transaction, id);

impl<T> fmt::Debug for Queued<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Queued<{}>({} of {})", type_name::<T>(), self.id, self.transaction)
    }
}

/// A value that needs no reply, for a block that returns something besides replies.
///
/// ```no_run
/// # use rediscope::{Ready, SessionManager, prelude::*};
/// # fn main() -> Result<(), rediscope::Error> {
/// # let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
/// let (order, stock) = accounts.run(|tx| {
///     let order = 4711;
///     Ok((Ready(order), tx.decr("stock", 1)))
/// })?;
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ready<T>(
    /// The value.
    pub T,
);
