//! A request that is sent with those of other callers, and what each side keeps with it.

use std::time::Instant;

use crate::error::checkout::CheckoutError;
use crate::pool::batch_request::BatchRequest;
use crate::pool::batch_response::BatchResponse;
use crate::pool::job::{Job, Submitter};

/// A request that waits for a write, until it has its response.
#[derive(Debug)]
pub(crate) struct GroupRequest<S> {
    pub(crate) batch: BatchRequest,
    /// Number of times that it was sent in a group of which nothing was applied.
    pub(crate) rejected_groups: u8,
    /// What the caller's side keeps with it.
    pub(crate) stay: S,
}

/// What a side keeps with a request.
pub(crate) trait Stay: Sized {
    /// Returns whether the request is not to be sent any more.
    fn is_late(&self, now: Instant) -> bool;

    /// Gives back the places of several requests in one step. Returns their number.
    fn give_back<'s>(all: impl Iterator<Item = &'s mut Self>) -> usize
    where
        Self: 's;
}

/// A thread has no place. It withdraws its request itself when it is late.
impl Stay for () {
    fn is_late(&self, _: Instant) -> bool {
        false
    }

    fn give_back<'s>(_: impl Iterator<Item = &'s mut Self>) -> usize {
        0
    }
}

pub(crate) type GroupJob<S> = Job<GroupRequest<S>, GroupAnswer>;

/// The response to a request, and the request's bytes, which the caller may need again.
pub(crate) type GroupAnswer = (Result<BatchResponse, CheckoutError>, Vec<u8>);

impl<S> GroupRequest<S> {
    pub(crate) fn new(batch: BatchRequest, stay: S) -> Self {
        Self { batch, rejected_groups: 0, stay }
    }
}

/// Ends a request that was taken. Its place is free before the caller runs.
pub(crate) fn settle<S>(
    job: &GroupJob<S>,
    request: GroupRequest<S>,
    response: Result<BatchResponse, CheckoutError>,
) -> Submitter {
    let GroupRequest { batch, stay, .. } = request;
    drop(stay);
    job.settle((response, batch.bytes))
}
