//! A bound by which the compiler explains a closure with another error and names `run_with`.
//!
//! The trait is public in a private module, so that other crates cannot implement it.

use crate::error::any::Error;

/// The value of a `run` closure whose error is `E`, which can only be [`Error`].
///
/// If the closure does not fix `E`, this bound does, once the value's type is known. So a plain
/// block needs no annotation.
#[diagnostic::on_unimplemented(
    message = "the closure's error is `{E}`, and that of `run` is `rediscope::Error`",
    label = "a closure with an error of its own is for `run_with`",
    note = "`run_with` takes each error type that implements `From<rediscope::Error>`; if the \
            closure only uses `?`, write the type down: `|tx| -> Result<_, MyError> {{ … }}`"
)]
pub trait WithError<E> {
    /// Returns the error as this crate's.
    fn own(error: E) -> Error;
}

impl<R> WithError<Error> for R {
    fn own(error: Error) -> Error {
        error
    }
}
