//! What the checkouts of one pool share: semaphore, blocking commands, idle connections.
//!
//! This module depends on no checkout and no scope, so that both can hold it.

use std::ops::Deref;
use std::sync::Arc;

use crate::connection::endpoint::Endpoint;
use crate::pool::batch_request::BatchRequest;
use crate::pool::batch_response::BatchResponse;
use crate::pool::blocking::BlockingCommands;
use crate::pool::config::PoolConfig;
use crate::pool::context::PoolContext;
use crate::pool::idle::IdleConnections;
use crate::pool::semaphore::{BatchMember, FairSemaphore};
use crate::protocol::connection_state::CloseReason;

/// What the checkouts of one pool share.
pub(crate) struct PoolCore {
    context: PoolContext,
    pub(in crate::pool) semaphore: FairSemaphore<BatchRequest, BatchResponse>,
    pub(in crate::pool) blocking: Arc<BlockingCommands>,
    pub(in crate::pool) idle: IdleConnections,
}

impl Deref for PoolCore {
    type Target = PoolContext;

    fn deref(&self) -> &PoolContext {
        &self.context
    }
}

impl PoolCore {
    pub(crate) fn new(config: PoolConfig, endpoint: Endpoint) -> Self {
        let context = PoolContext::new(config, endpoint);
        let (config, endpoint) = (&context.config, context.endpoint.clone());
        Self {
            idle: IdleConnections::new(config, endpoint, &context.shared),
            semaphore: FairSemaphore::new(config.settings.max_size as usize),
            blocking: Arc::default(),
            context,
        }
    }

    /// Returns the requests at the head of the queue, as many as fit into a write that has `bytes`
    /// already.
    pub(crate) fn take_batch(
        &self,
        mut bytes: usize,
    ) -> Vec<BatchMember<BatchRequest, BatchResponse>> {
        let (mut members, most) = (1, self.config.settings.max_group);
        self.semaphore.take_batch(|request| {
            members += 1;
            bytes += request.bytes.len();
            members <= most && bytes <= self.config.settings.flush_bytes
        })
    }

    /// Number of permits that callers hold.
    pub(in crate::pool) fn in_use(&self) -> usize {
        (self.config.settings.max_size as usize).saturating_sub(self.semaphore.free())
    }

    /// Closes the idle connections of a closed pool. Returns true if only connections in use are
    /// left; those are closed when they are returned.
    pub(in crate::pool) fn sweep(&self) -> bool {
        // An opened connection is listed a moment later, so one sweep is not enough.
        while let Some(mut connection) = self.idle.take() {
            connection.taint(CloseReason::Outdated);
        }
        // A caller has at most one connection, and returns it before its permit.
        self.shared.alive() <= self.in_use()
    }
}

/// In a forked child the connections and the threads belong to the parent.
impl Drop for PoolCore {
    fn drop(&mut self) {
        if self.config.settings.is_forked_child() {
            self.idle.leak();
        }
    }
}
