//! The key of a transaction that is applied at most once, whoever sends it.
//!
//! Never: shown. The key is the caller's own.

use std::fmt;
use std::time::Duration;

use super::encode;
use super::fence::millis;

/// The key of a transaction that is applied at most once, and how long that is remembered.
#[derive(Clone)]
pub(crate) struct Once {
    key: Box<[u8]>,
    ttl: Duration,
}

impl Once {
    pub(crate) fn new(prefix: &str, key: &[u8], ttl: Duration) -> Self {
        Self { key: [prefix.as_bytes(), b":once:", key].concat().into(), ttl }
    }

    /// Watches the key.
    pub(crate) fn watch(&self, bytes: &mut Vec<u8>) {
        encode::command(bytes, &["WATCH"], |args| {
            args.arg(&*self.key);
        });
    }

    /// Asks whether the key is there.
    pub(crate) fn exists(&self, bytes: &mut Vec<u8>) {
        encode::command(bytes, &["EXISTS"], |args| {
            args.arg(&*self.key);
        });
    }

    /// Leaves the key behind, with the transaction's register and number for whoever looks.
    pub(crate) fn set(&self, bytes: &mut Vec<u8>, register: &str, number: u64) {
        encode::command(bytes, &["SET"], |args| {
            args.arg(&*self.key).arg(format!("{register}#{number}"));
            args.arg("PX").arg(millis(self.ttl));
        });
    }
}

impl fmt::Debug for Once {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Once").field("ttl", &self.ttl).finish_non_exhaustive()
    }
}
