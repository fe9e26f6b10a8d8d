//! The options of a transaction's commit.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use crate::commit::lock_check::LockCheck;
use crate::error::any::CommitError;
use crate::error::in_doubt::ResolveCommit;
use crate::protocol::cluster::slot;
use crate::protocol::idempotency_key::IdempotencyKey;
use crate::protocol::replication::Durability;

/// The options of a transaction's commit.
#[derive(Clone, Default)]
pub(crate) struct CommitOptions {
    /// Whether MULTI's reply is awaited before any command is sent, even inside the trust window.
    pub(crate) immediate: bool,
    /// Resolves a commit in doubt, if the transaction is exactly once.
    pub(crate) resolver: Option<Arc<dyn ResolveCommit>>,
    /// At most one transaction with this key is ever applied.
    pub(crate) idempotency_key: Option<IdempotencyKey>,
    /// The lock that must be held for the transaction to be applied.
    pub(crate) lock_check: Option<LockCheck>,
    pub(crate) durability: Option<Durability>,
    /// Whether the transaction may join a batch.
    pub(crate) grouped: bool,
    /// In a cluster: the slot of its keys.
    pub(crate) cluster: ClusterKeys,
}

impl CommitOptions {
    /// Marks the lock as lost, as the server reported, and returns the error.
    pub(crate) fn lock_lost(&self) -> CommitError {
        if let Some(lock_check) = &self.lock_check {
            lock_check.mark_lost();
        }
        CommitError::LockLost
    }
}

/// The place of a transaction's keys in a cluster.
#[derive(Clone, Default)]
pub(crate) struct ClusterKeys {
    pub(crate) slot: Option<u16>,
    /// EXISTS of the watched keys. A migrating slot has two masters. If a watched key is created on
    /// one, the other does not notice. So EXEC must depend on the keys.
    pub(crate) exists: Option<Arc<[u8]>>,
}

impl ClusterKeys {
    /// Returns the hash tag for this crate's own keys, which must be in the slot of the caller's.
    pub(crate) fn tag(&self) -> Option<u32> {
        self.slot.and_then(slot::tag_of)
    }
}

impl CommitOptions {
    /// Returns whether the connection watches a key that is not the caller's.
    pub(crate) fn watches_internal_key(&self) -> bool {
        self.resolver.is_some() || self.lock_check.is_some()
    }

    /// Returns whether no option concerns the connection itself.
    pub(crate) fn is_batchable(&self) -> bool {
        let plain = !self.watches_internal_key() && self.durability.is_none();
        self.grouped && !self.immediate && plain
    }
}

/// The way in which a transaction is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CommitPlan<'t> {
    pub(crate) options: &'t CommitOptions,
    /// Whether the connection must still have its watch: a fresh connection would protect nothing.
    pub(crate) watched: bool,
    /// Deadline for the replacement of a dead connection.
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
