//! The key of a transaction that is applied at most once, whoever sends it.
//!
//! Never: shown. The key is the caller's own.

use std::fmt;
use std::time::Duration;

use crate::protocol::marker::{CommitMarker, millis};
use crate::protocol::resp::encode;

/// The key of a transaction that is applied at most once, and how long that is remembered.
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

    /// In a cluster there is one for each slot, in the slot: here is its hash tag.
    fn key(&self, tag: Option<u32>) -> Vec<u8> {
        let tag = tag.map(|tag| format!(":{{{tag}}}")).unwrap_or_default();
        [self.prefix.as_bytes(), tag.as_bytes(), b":once:", &self.key].concat()
    }

    /// Watches the key.
    pub(crate) fn watch(&self, bytes: &mut Vec<u8>, tag: Option<u32>) {
        encode::command(bytes, &["WATCH"], |args| {
            args.arg(self.key(tag));
        });
    }

    /// Asks whether the key is there.
    pub(crate) fn exists(&self, bytes: &mut Vec<u8>, tag: Option<u32>) {
        encode::command(bytes, &["EXISTS"], |args| {
            args.arg(self.key(tag));
        });
    }

    /// Leaves the key behind, with the transaction's register and number for whoever looks.
    pub(crate) fn set(&self, bytes: &mut Vec<u8>, marker: &CommitMarker) {
        let (register, number) = (marker.register(), marker.number());
        encode::command(bytes, &["SET"], |args| {
            args.arg(self.key(marker.tag())).arg(format!("{register}#{number}"));
            args.arg("PX").arg(millis(self.ttl));
        });
    }
}

impl fmt::Debug for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Once").field("ttl", &self.ttl).finish_non_exhaustive()
    }
}
