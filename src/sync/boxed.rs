//! Futures of rare branches, kept out of the futures that they interrupt.

use std::pin::Pin;

/// Boxes the future of a rare branch, so that the common path is neither larger nor slower for it.
#[cold]
#[inline(never)]
pub(crate) fn boxed<'f, T>(
    future: impl Future<Output = T> + Send + 'f,
) -> Pin<Box<dyn Future<Output = T> + Send + 'f>> {
    Box::pin(future)
}
