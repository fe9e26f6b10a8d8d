//! Lanes: connections that carry the requests of many tasks, each as isolated as alone.

use std::sync::Arc;
use std::time::Instant;

use crate::error::checkout::CheckoutError;
use crate::pool::batch_request::BatchRequest;
use crate::pool::batch_response::BatchResponse;
use crate::pool::context::PoolContext;

/// The lanes of one pool, a set for each runtime that uses them. They are opened when first used. Its
/// drop closes them, and does not wait.
pub(crate) struct Lanes {
    context: Arc<PoolContext>,
}

impl Lanes {
    pub(crate) fn new(context: Arc<PoolContext>) -> Self {
        Self { context }
    }

    /// Sends a request on a lane, with the requests of other tasks.
    ///
    /// Dropped before its end, the future withdraws a request that was not sent. The replies to one
    /// that was sent are read and dropped.
    pub(crate) async fn submit(
        &self,
        _deadline: Instant,
        _request: &(impl Fn() -> BatchRequest + Sync),
    ) -> Result<BatchResponse, CheckoutError> {
        let _ = &self.context;
        todo!()
    }

    /// Refuses new requests. Those that wait or were sent are served.
    pub(crate) fn close(&self) {
        todo!()
    }

    /// Number of requests that wait or were sent.
    pub(crate) fn in_flight(&self) -> usize {
        todo!()
    }

    /// Closes the lanes at once. Requests that were not sent fail with
    /// [`CheckoutError::Closed`].
    pub(crate) fn shut_down(&self) {
        todo!()
    }
}
