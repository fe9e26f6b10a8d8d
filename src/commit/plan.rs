//! The way in which a transaction is committed.

use std::fmt;
use std::sync::Arc;

use crate::commit::lock_check::LockCheck;
use crate::commit::wait_limit::WaitLimit;
use crate::error::any::CommitError;
use crate::error::in_doubt::ResolveCommit;
use crate::error::token_cell::TokenCell;
use crate::pool::first_packet::{Armed, FirstPacket};
use crate::pool::router::Router;
use crate::pool::server_pool::ServerPool;
use crate::protocol::cluster::slot::{self, SlotBinding};
use crate::protocol::exec::Unproven;
use crate::protocol::idempotency_key::IdempotencyKey;
use crate::protocol::queue::CommandQueue;
use crate::protocol::replication::Durability;

/// The way in which a transaction is committed.
#[derive(Clone, Default)]
pub(crate) struct CommitPlan {
    /// Whether MULTI's reply is awaited before any command is sent, even inside the trust window.
    pub(crate) immediate: bool,
    /// Resolves a commit in doubt, if the transaction is exactly once.
    pub(crate) resolver: Option<Arc<dyn ResolveCommit>>,
    /// At most one transaction with this key is ever applied.
    pub(crate) idempotency_key: Option<IdempotencyKey>,
    /// The lock that must be held for the transaction to be applied.
    pub(crate) lock_check: Option<LockCheck>,
    pub(crate) durability: Option<Durability>,
    /// Set when the number of an exactly-once transaction is drawn.
    pub(crate) token: Option<Box<TokenCell>>,
    /// Whether the transaction may join a batch.
    pub(crate) grouped: bool,
    /// Whether the connection must still have its watch: a fresh connection would protect nothing.
    pub(crate) watched: bool,
    /// How long its calls wait for connections.
    pub(crate) wait: WaitLimit,
    /// In a cluster: EXISTS of the watched keys. A migrating slot has two masters. If a watched key
    /// is created on one, the other does not notice. So EXEC must depend on the keys.
    pub(crate) exists: Option<Arc<[u8]>>,
}

impl CommitPlan {
    /// Returns the slot binding of a transaction that has no key yet: a lock's key is one.
    pub(crate) fn binding<P: ServerPool>(&self, router: &Router<P>) -> SlotBinding {
        match (router.binding(), &self.lock_check) {
            (SlotBinding::Pending, Some(lock_check)) => SlotBinding::Slot(lock_check.lock.slot()),
            (binding, _) => binding,
        }
    }

    /// Returns the slot of an exactly-once transaction of a cluster whose commands have no key: its register
    /// is in a slot of the same node. `None`: it needs none.
    pub(crate) fn slot_without_keys<P: ServerPool>(&self, router: &Router<P>) -> Option<u16> {
        self.resolver.as_ref().filter(|_| router.is_cluster())?;
        // Each process has to look for the key in the same slot.
        let of_key = self.idempotency_key.as_ref().map(IdempotencyKey::slot);
        Some(of_key.unwrap_or_else(|| router.any_slot()))
    }

    /// Marks the lock as lost, as the server reported, and returns the error.
    pub(crate) fn lock_lost(&self) -> CommitError {
        if let Some(lock_check) = &self.lock_check {
            lock_check.probe.mark_lost();
        }
        CommitError::LockLost
    }

    /// Returns whether the connection watches a key that is not the caller's.
    pub(crate) fn watches_internal_key(&self) -> bool {
        self.resolver.is_some() || self.lock_check.is_some()
    }

    /// Whether the transaction, which was proven not applied, may be sent again, with another token.
    pub(crate) fn may_send_again(&self) -> bool {
        self.token.as_ref().is_none_or(|cell| cell.take_back())
    }

    /// Returns whether the WATCH of another caller may travel behind EXEC.
    pub(crate) fn can_carry(&self) -> bool {
        self.durability.is_none()
            && self.lock_check.is_none()
            && self.idempotency_key.is_none()
            && self.token.is_none()
    }

    /// Returns the transaction's one packet, if another caller may send it: nothing is asked before it, and
    /// it is not long.
    pub(crate) fn first_packet(&self, queue: &CommandQueue) -> Option<FirstPacket> {
        let is_alone =
            self.can_carry() && !self.immediate && !self.watched && self.exists.is_none();
        if !is_alone || queue.is_flushed() {
            return None;
        }
        FirstPacket::block(queue.with_prefix(), queue.commands(), self.armed(queue.binding()))
    }

    /// The register that the connection of an exactly-once transaction with this binding watches.
    pub(crate) fn armed(&self, binding: SlotBinding) -> Option<Armed> {
        self.resolver.as_ref().map(|_| binding.slot().and_then(slot::tag_of))
    }

    /// What resolves a doubt, if it can be resolved. The register is written last: it proves nothing about
    /// commands that ran one by one.
    pub(crate) fn resolver_of(&self, doubt: &Unproven) -> Option<&Arc<dyn ResolveCommit>> {
        self.resolver.as_ref().filter(|_| !doubt.bare)
    }

    /// Returns whether the transaction may be sent with others on one connection. Lanes carry it
    /// unasked.
    pub(crate) fn is_batchable<P: ServerPool>(&self) -> bool {
        let own_connection = self.immediate
            || self.watched
            || self.lock_check.is_some()
            || self.idempotency_key.is_some()
            || self.durability.is_some()
            || self.exists.is_some();
        match P::HAS_LANES {
            true => !own_connection,
            false => !own_connection && self.grouped,
        }
    }
}

impl fmt::Debug for CommitPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommitPlan")
            .field("immediate", &self.immediate)
            .field("exactly_once", &self.resolver.is_some())
            .field("fenced", &self.lock_check.is_some())
            .field("durability", &self.durability)
            .field("watched", &self.watched)
            .finish_non_exhaustive()
    }
}
