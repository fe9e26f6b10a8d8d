//! What the checkouts of one pool share: semaphore, blocking commands, idle connections.
//!
//! This module depends on no checkout and no scope, so that both can hold it.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use crate::connection::endpoint::Endpoint;
use crate::pool::blocking::BlockingCommands;
use crate::pool::config::PoolConfig;
use crate::pool::context::PoolContext;
use crate::pool::early_watch::EarlyRequest;
use crate::pool::group_request::{GroupAnswer, GroupJob, GroupRequest};
use crate::pool::idle::{IdleConnections, TakenConnection};
use crate::pool::rejected_shapes::RejectedShapes;
use crate::pool::semaphore::{Batchable, FairSemaphore, LeaderLimits, Membership};
use crate::pool::waiting_group::GroupLimits;
use crate::protocol::connection_state::CloseReason;
use crate::protocol::handshake::Purpose;

/// A request of a thread.
pub(crate) type ThreadRequest = GroupRequest<()>;
pub(crate) type ThreadJob = GroupJob<()>;
pub(crate) type ThreadMembership = Membership<ThreadRequest, GroupAnswer>;
/// The request of a thread that waits: WATCH and reads, or a first packet.
pub(crate) type ThreadEarlyRequest = EarlyRequest<TakenConnection>;
type ThreadSemaphore = FairSemaphore<ThreadRequest, GroupAnswer, ThreadEarlyRequest>;

impl Batchable for ThreadRequest {
    fn bytes(&self) -> usize {
        self.batch.sent_bytes().len()
    }
}

/// What the checkouts of one pool share.
pub(crate) struct PoolCore {
    context: PoolContext,
    pub(in crate::pool) semaphore: ThreadSemaphore,
    pub(in crate::pool) shapes: RejectedShapes,
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
            semaphore: semaphore(config),
            shapes: RejectedShapes::default(),
            blocking: Arc::default(),
            context,
        }
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

/// Time after which pooled reads no longer wait for others' connections while one is free, or eight times as
/// long while replies come sooner.
const LEAD_PATIENCE: Duration = Duration::from_micros(500);

fn semaphore(config: &PoolConfig) -> ThreadSemaphore {
    let settings = &config.settings;
    let (permits, requests) = (settings.max_size as usize, settings.max_group as usize);
    let patience = match config.purpose {
        Purpose::Transactional => None,
        // A slow network is not to hold up commands while connections are free.
        _ => Some(LEAD_PATIENCE),
    };
    FairSemaphore::with_groups(
        permits,
        LeaderLimits { most: settings.max_leaders as usize, patience },
        GroupLimits { requests, bytes: settings.flush_bytes },
    )
}

/// In a forked child the connections and the threads belong to the parent.
impl Drop for PoolCore {
    fn drop(&mut self) {
        if self.config.settings.is_forked_child() {
            self.idle.leak();
        }
    }
}
