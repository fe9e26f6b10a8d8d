//! The bounds of asynchronous closures inside a spawned task: one that is run again after a conflict, and
//! one that is run under a lock.
//!
//! The traits are public in a private module, so that other crates cannot implement it.

/// An `async` closure of two arguments, with the type of its future, which a bound can require to be
/// `Send`.
///
/// With `AsyncFnMut` alone, the future of a call inside `tokio::spawn` is "not general enough" for the
/// compiler.
pub trait WatchClosure<A, B, O>:
    AsyncFnOnce(A, B) -> O + FnOnce(A, B) -> <Self as WatchClosure<A, B, O>>::Fut
{
    /// The future of one call.
    type Fut: Future<Output = O>;
}

impl<F, A, B, Fut, O> WatchClosure<A, B, O> for F
where
    F: AsyncFnOnce(A, B) -> O + FnOnce(A, B) -> Fut,
    Fut: Future<Output = O>,
{
    type Fut = Fut;
}

/// The same of one argument.
pub trait GuardClosure<A, O>:
    AsyncFnOnce(A) -> O + FnOnce(A) -> <Self as GuardClosure<A, O>>::Fut
{
    /// The future of one call.
    type Fut: Future<Output = O>;
}

impl<F, A, Fut, O> GuardClosure<A, O> for F
where
    F: AsyncFnOnce(A) -> O + FnOnce(A) -> Fut,
    Fut: Future<Output = O>,
{
    type Fut = Fut;
}
