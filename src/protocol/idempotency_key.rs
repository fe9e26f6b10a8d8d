//! The idempotency key of a transaction, which is applied at most once, whichever process sends it.
//!
//! The key belongs to the caller and is not shown.

use std::fmt;
use std::time::Duration;

use crate::protocol::cluster::slot;
use crate::protocol::marker::{CommitMarker, millis};
use crate::protocol::resp::encode::{self, words};

/// An idempotency key and how long it is kept.
#[derive(Clone)]
pub(crate) struct IdempotencyKey {
    prefix: Box<str>,
    key: Box<[u8]>,
    ttl: Duration,
}

impl IdempotencyKey {
    pub(crate) fn new(prefix: &str, key: &[u8], ttl: Duration) -> Self {
        Self { prefix: prefix.into(), key: key.into(), ttl }
    }

    /// The key's name. In a cluster there is one in each slot, with this hash tag.
    fn key(&self, tag: Option<u32>) -> Vec<u8> {
        let tag = tag.map(|tag| format!(":{{{tag}}}")).unwrap_or_default();
        [self.prefix.as_bytes(), tag.as_bytes(), b":once:", &self.key].concat()
    }

    /// The slot of a transaction that has no other key.
    pub(crate) fn slot(&self) -> u16 {
        slot::of_key(&self.key)
    }

    /// Appends WATCH of the key.
    pub(crate) fn watch(&self, bytes: &mut Vec<u8>, tag: Option<u32>) {
        encode::command_with(bytes, words!("WATCH"), self.key(tag));
    }

    /// Appends EXISTS of the key.
    pub(crate) fn exists(&self, bytes: &mut Vec<u8>, tag: Option<u32>) {
        encode::command_with(bytes, words!("EXISTS"), self.key(tag));
    }

    /// Appends SET of the key. Its value names the transaction's register and number, for
    /// diagnosis.
    pub(crate) fn set(&self, bytes: &mut Vec<u8>, marker: &CommitMarker) {
        let (register, number) = (marker.register(), marker.number());
        let value = format!("{register}#{number}");
        let args = (self.key(marker.tag()), value, "PX", millis(self.ttl));
        encode::command_with(bytes, words!("SET"), args);
    }
}

impl fmt::Debug for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyKey").field("ttl", &self.ttl).finish_non_exhaustive()
    }
}
