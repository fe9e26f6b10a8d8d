//! Sends a part of a large transaction ahead, on the caller's thread.

use std::pin::pin;

use crate::sync::now::now_in;
use crate::transaction::pending::Pending;
use crate::transaction::pinned::Pinned;

/// Sends a chunk if enough commands are queued. This is called after each command.
pub(crate) fn queued(pending: &mut Pending, pinned: &mut Pinned) {
    if pending.is_chunk_due(pinned) {
        let span = pinned.span().clone();
        now_in(&span, pin!(pending.flush(pinned)));
    }
}
