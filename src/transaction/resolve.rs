//! The return types of a block, from handles to values, and how a caller reads these from the
//! replies.

use redis::FromRedisValue;

use crate::error::any::Error;
use crate::reply::error::ReplyError;
use crate::reply::queued::{Queued, Ready};
use crate::reply::replies::Replies;

/// The return type of a block: handles of queued commands and [`Ready`] values, alone or in tuples,
/// arrays, `Vec` and `Option`. After the commit each handle becomes its value.
///
/// A struct of handles implements it by reading its fields:
///
/// ```no_run
/// use rediscope::{Error, Queued, Replies, Resolve, SessionManager, prelude::*};
///
/// struct Handles {
///     hits: Queued<i64>,
///     name: Queued<String>,
/// }
///
/// struct Page {
///     hits: i64,
///     name: String,
/// }
///
/// impl Resolve for Handles {
///     type Output = Page;
///
///     fn resolve(self, replies: &Replies) -> Result<Page, Error> {
///         Ok(Page { hits: replies.get(self.hits)?, name: replies.get(self.name)? })
///     }
/// }
///
/// # fn main() -> Result<(), rediscope::Error> {
/// # let pages = SessionManager::connect("redis://127.0.0.1/")?.transactional();
/// let page = pages.run(|tx| Ok(Handles { hits: tx.incr("hits", 1), name: tx.get("name") }))?;
/// println!("{}: {}", page.name, page.hits);
/// # Ok(()) }
/// ```
#[diagnostic::on_unimplemented(
    message = "a block cannot return a plain `{Self}`",
    label = "not the handle of a queued command",
    note = "return the `Queued` handles that the queueing methods gave (alone, in tuples up to 12, \
            arrays, `Vec` or `Option`); they become values after the commit",
    note = "a value you already have is returned as `Ready(value)`, and nothing as `()`"
)]
pub trait Resolve {
    /// The type of its value.
    type Output;

    /// Reads the values out of `replies`. The transaction was applied, whatever this returns.
    ///
    /// # Errors
    /// As [`Replies::get`].
    fn resolve(self, replies: &Replies) -> Result<Self::Output, Error>;
}

impl<T: FromRedisValue> Resolve for Queued<T> {
    type Output = T;

    fn resolve(self, replies: &Replies) -> Result<T, Error> {
        if self.transaction != replies.transaction() {
            return Err(ReplyError::Foreign.into());
        }
        let (index, value) = replies.value(self.id)?;
        Ok(replies.read(index, value)?)
    }
}

impl Replies {
    /// Reads one reply, or several at once: `get(a)?`, `get((a, b))?`, `get(vec_of_handles)?`.
    ///
    /// # Errors
    /// [`Error::Reply`], with a [`ReplyError`]. The transaction **was applied** in any case.
    pub fn get<R: Resolve>(&self, handles: R) -> Result<R::Output, Error> {
        handles.resolve(self)
    }

    /// Reads the reply of the command at `index`, from 0 in the order in which the commands were
    /// sent. Commands of a forgotten savepoint are not counted: they were not sent.
    ///
    /// This is for a caller without a handle. After a failed [`run`](crate::Transactional::run) the
    /// handles are gone with its closure. [`ReplyError::Failed`] has the index.
    ///
    /// ```no_run
    /// # use rediscope::{SessionManager, prelude::*};
    /// # fn main() -> Result<(), rediscope::Error> {
    /// # let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    /// let result = accounts.run(|tx| Ok((tx.incr("hits", 1), tx.lpush("log", "hit"))));
    /// if let Err(error) = &result
    ///     && let Some(replies) = error.replies()
    /// {
    ///     let hits: i64 = replies.at(0)?;
    ///     println!("{error:#}; but the {hits}th hit was counted");
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`get`](Self::get); [`ReplyError::OutOfRange`] if there was no such command.
    pub fn at<T: FromRedisValue>(&self, index: usize) -> Result<T, Error> {
        Ok(self.read(index, self.value_at(index)?)?)
    }
}

impl<T> Resolve for Ready<T> {
    type Output = T;

    fn resolve(self, _: &Replies) -> Result<T, Error> {
        Ok(self.0)
    }
}

impl<R: Resolve, const N: usize> Resolve for [R; N] {
    type Output = [R::Output; N];

    fn resolve(self, replies: &Replies) -> Result<Self::Output, Error> {
        let mut failed = None;
        let values = self.map(|handle| match handle.resolve(replies) {
            Ok(value) => Some(value),
            Err(error) => {
                failed.get_or_insert(error);
                None
            }
        });
        match failed {
            Some(error) => Err(error),
            #[expect(clippy::unreachable, reason = "each one resolved or `failed` is set")]
            None => Ok(values.map(|value| value.unwrap_or_else(|| unreachable!()))),
        }
    }
}

impl<R: Resolve> Resolve for Vec<R> {
    type Output = Vec<R::Output>;

    fn resolve(self, replies: &Replies) -> Result<Self::Output, Error> {
        self.into_iter().map(|handle| handle.resolve(replies)).collect()
    }
}

impl<R: Resolve> Resolve for Option<R> {
    type Output = Option<R::Output>;

    fn resolve(self, replies: &Replies) -> Result<Self::Output, Error> {
        self.map(|handle| handle.resolve(replies)).transpose()
    }
}

macro_rules! resolve_tuples {
    ($($($name:ident)*;)+) => {$(
                impl<$($name: Resolve),*> Resolve for ($($name,)*) {
            type Output = ($($name::Output,)*);

            #[expect(non_snake_case, reason = "type parameters name the fields")]
            fn resolve(self, replies: &Replies) -> Result<Self::Output, Error> {
                let ($($name,)*) = self;
                Ok(($($name.resolve(replies)?,)*))
            }
        }
    )+};
}

impl Resolve for () {
    type Output = ();

    fn resolve(self, _: &Replies) -> Result<(), Error> {
        Ok(())
    }
}

resolve_tuples! {
    A;
    A B;
    A B C;
    A B C D;
    A B C D E;
    A B C D E F;
    A B C D E F G;
    A B C D E F G H;
    A B C D E F G H I;
    A B C D E F G H I J;
    A B C D E F G H I J K;
    A B C D E F G H I J K L;
}
