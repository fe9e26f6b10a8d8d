//! What a transaction asks of its commit.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use crate::commit::lock_check::LockCheck;
use crate::error::any::CommitError;
use crate::error::in_doubt::ResolveCommit;
use crate::protocol::cluster::slot;
use crate::protocol::idempotency_key::IdempotencyKey;
use crate::protocol::replication::Durability;

/// What a transaction asks of its commit.
#[derive(Clone, Default)]
pub(crate) struct CommitOptions {
    /// MULTI is answered before any command leaves, however lately the link was heard of.
    pub(crate) immediate: bool,
    /// A lost answer can be asked for afterwards: here.
    pub(crate) resolver: Option<Arc<dyn ResolveCommit>>,
    /// At most one transaction with this key is ever applied.
    pub(crate) idempotency_key: Option<IdempotencyKey>,
    /// It is applied only while this lock is held.
    pub(crate) lock_check: Option<LockCheck>,
    pub(crate) durability: Option<Durability>,
    /// It may travel with others.
    pub(crate) grouped: bool,
    /// In a cluster: where its keys are.
    pub(crate) cluster: ClusterKeys,
}

impl CommitOptions {
    /// The server answered that the lock is lost: its guard is, from now on.
    pub(crate) fn lock_lost(&self) -> CommitError {
        if let Some(lock_check) = &self.lock_check {
            lock_check.mark_lost();
        }
        CommitError::LockLost
    }
}

/// Where a transaction's keys are, in a cluster.
#[derive(Clone, Default)]
pub(crate) struct ClusterKeys {
    pub(crate) slot: Option<u16>,
    /// EXISTS of what is watched. A slot that is on its way has two masters, and one of them does
    /// not hear of a watched key that is made on the other; so EXEC is to need it.
    pub(crate) exists: Option<Arc<[u8]>>,
}

impl ClusterKeys {
    /// The hash tag of keys of ours that must be beside the caller's.
    pub(crate) fn tag(&self) -> Option<u32> {
        self.slot.and_then(slot::tag_of)
    }
}

impl CommitOptions {
    /// Whether nothing is asked for that concerns the link as such.
    pub(crate) fn is_batchable(&self) -> bool {
        let plain =
            self.resolver.is_none() && self.lock_check.is_none() && self.durability.is_none();
        self.grouped && !self.immediate && plain
    }
}

/// How a transaction is to be sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CommitPlan<'t> {
    pub(crate) options: &'t CommitOptions,
    /// The connection must still have its watch: a fresh one would protect nothing.
    pub(crate) watched: bool,
    /// By when a dead link must have been replaced.
    pub(crate) checkout_deadline: Instant,
}

impl CommitOptions {
    pub(crate) fn immediately(&self) -> Self {
        Self { immediate: true, ..self.clone() }
    }
}

impl fmt::Debug for CommitOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommitOptions")
            .field("immediate", &self.immediate)
            .field("exactly_once", &self.resolver.is_some())
            .field("fenced", &self.lock_check.is_some())
            .field("durability", &self.durability)
            .finish_non_exhaustive()
    }
}
