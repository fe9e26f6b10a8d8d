//! The calls of a scope on the caller's thread. None has a type parameter, so that no protocol code is
//! compiled in the user's crate.
//!
//! Each checks the process first: in a forked child a span or a mutex may stay locked forever.

use std::pin::pin;

use redis::Value;

use crate::commit::outcome::Committed;
use crate::error::any::{CommitError, Error};
use crate::sync::now::now_in;
use crate::transaction::pending::Pending;
use crate::transaction::pinned::Pinned;
use crate::transaction::reading::Reading;

/// Sends a chunk if enough commands are queued. This is called after each command.
pub(crate) fn queued(pending: &mut Pending, pinned: &mut Pinned) {
    if pending.is_chunk_due(pinned) {
        if let Err(error) = pinned.here() {
            return pending.fail(error.into());
        }
        let span = pinned.span().clone();
        now_in(&span, pin!(pending.flush(pinned)));
    }
}

pub(crate) fn begin(pending: &mut Pending, pinned: &mut Pinned) -> Result<(), Error> {
    pinned.here()?;
    let span = pinned.span().clone();
    now_in(&span, pin!(pending.begin(pinned)))
}

pub(crate) fn commit(pending: &mut Pending, pinned: &mut Pinned) -> Result<Committed, CommitError> {
    pinned.here()?;
    let span = pinned.span().clone();
    now_in(&span, pin!(pending.commit(pinned)))
}

pub(crate) fn discard(pinned: &mut Pinned) -> Result<(), Error> {
    pinned.here()?;
    let span = pinned.span().clone();
    now_in(&span, pin!(pinned.discard()))
}

pub(crate) fn reply_to(reading: &mut Reading, name: &str, bytes: &[u8]) -> Result<Value, Error> {
    reading.pinned.here()?;
    let span = reading.pinned.span().clone();
    now_in(&span, pin!(reading.reply_to(name, bytes)))
}
