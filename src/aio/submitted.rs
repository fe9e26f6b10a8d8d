//! The future of a submitted block, and its token.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::error::any::Error;
use crate::error::token_cell::TokenCell;
use crate::transaction::resolve::Resolve;

type Done<R> = Pin<Box<dyn Future<Output = Result<<R as Resolve>::Output, Error>> + Send>>;

/// The future of a block that [`submit`](crate::aio::Transactional::submit) has queued.
///
/// Nothing is sent before it is polled. If it is dropped before its block was taken for sending, nothing
/// is applied. After that the block may be applied; its [`token`](Self::token) then has the proof.
///
/// Its output and its errors are those of [`run`](crate::aio::Transactional::run).
#[must_use = "nothing is sent before it is awaited"]
pub struct Submitted<R: Resolve> {
    done: Done<R>,
    token: TokenCell,
}

impl<R: Resolve> Submitted<R> {
    pub(crate) fn new(done: Done<R>, token: TokenCell) -> Self {
        Self { done, token }
    }

    /// Returns the cell that will have the block's token.
    ///
    /// The cell of a block that is not [`exactly_once`](crate::TransactionOptions::exactly_once) stays
    /// empty.
    pub fn token(&self) -> TokenCell {
        self.token.clone()
    }
}

impl<R: Resolve> Future for Submitted<R> {
    type Output = Result<R::Output, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.done.as_mut().poll(context)
    }
}

impl<R: Resolve> fmt::Debug for Submitted<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Submitted").field("token", &self.token).finish_non_exhaustive()
    }
}
