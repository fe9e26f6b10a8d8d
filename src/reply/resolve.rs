//! The return types of a block, from handles to values.

use redis::FromRedisValue;

use crate::reply::error::ReplyError;
use crate::reply::queued::{Queued, Ready};
use crate::reply::replies::Replies;

mod sealed {
    pub trait Sealed {}
}

/// The return type of a block: handles of queued commands and [`Ready`] values, alone or in tuples,
/// arrays, `Vec` and `Option`. After the commit each handle becomes its value.
#[diagnostic::on_unimplemented(
    message = "a block cannot return a plain `{Self}`",
    label = "not the handle of a queued command",
    note = "return the `Queued` handles that the queueing methods gave (alone, in tuples up to 12, \
            arrays, `Vec` or `Option`); they become values after the commit",
    note = "a value you already have is returned as `Ready(value)`, and nothing as `()`"
)]
pub trait Resolve: sealed::Sealed {
    /// The type of its value.
    type Output;

    /// Reads the values out of `replies`.
    ///
    /// # Errors
    /// As [`Replies::get`].
    fn resolve(self, replies: &Replies) -> Result<Self::Output, ReplyError>;
}

impl<T> sealed::Sealed for Queued<T> {}

impl<T: FromRedisValue> Resolve for Queued<T> {
    type Output = T;

    fn resolve(self, replies: &Replies) -> Result<T, ReplyError> {
        if self.transaction != replies.transaction() {
            return Err(ReplyError::Foreign);
        }
        let (index, value) = replies.value(self.id)?;
        replies.read(index, value)
    }
}

impl Replies {
    /// Reads one reply, or several at once: `get(a)?`, `get((a, b))?`, `get(vec_of_handles)?`.
    ///
    /// # Errors
    /// See [`ReplyError`]. The transaction **was applied** in any case.
    pub fn get<R: Resolve>(&self, handles: R) -> Result<R::Output, ReplyError> {
        handles.resolve(self)
    }
}

impl<T> sealed::Sealed for Ready<T> {}

impl<T> Resolve for Ready<T> {
    type Output = T;

    fn resolve(self, _: &Replies) -> Result<T, ReplyError> {
        Ok(self.0)
    }
}

impl<R: Resolve, const N: usize> sealed::Sealed for [R; N] {}

impl<R: Resolve, const N: usize> Resolve for [R; N] {
    type Output = [R::Output; N];

    fn resolve(self, replies: &Replies) -> Result<Self::Output, ReplyError> {
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

impl<R: Resolve> sealed::Sealed for Vec<R> {}

impl<R: Resolve> Resolve for Vec<R> {
    type Output = Vec<R::Output>;

    fn resolve(self, replies: &Replies) -> Result<Self::Output, ReplyError> {
        self.into_iter().map(|handle| handle.resolve(replies)).collect()
    }
}

impl<R: Resolve> sealed::Sealed for Option<R> {}

impl<R: Resolve> Resolve for Option<R> {
    type Output = Option<R::Output>;

    fn resolve(self, replies: &Replies) -> Result<Self::Output, ReplyError> {
        self.map(|handle| handle.resolve(replies)).transpose()
    }
}

macro_rules! resolve_tuples {
    ($($($name:ident)*;)+) => {$(
        impl<$($name: Resolve),*> sealed::Sealed for ($($name,)*) {}

        impl<$($name: Resolve),*> Resolve for ($($name,)*) {
            type Output = ($($name::Output,)*);

            #[expect(non_snake_case, reason = "type parameters name the fields")]
            fn resolve(self, replies: &Replies) -> Result<Self::Output, ReplyError> {
                let ($($name,)*) = self;
                Ok(($($name.resolve(replies)?,)*))
            }
        }
    )+};
}

impl sealed::Sealed for () {}

impl Resolve for () {
    type Output = ();

    fn resolve(self, _: &Replies) -> Result<(), ReplyError> {
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
