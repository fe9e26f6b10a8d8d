//! The keys of a watch.
//!
//! Never: shown. `Debug` tells how many there are.

use redis::ToSingleRedisArg;

use std::hash::{DefaultHasher, Hash, Hasher};

use crate::transaction::admission::Admission;
use crate::wire::command::Requests;
use crate::wire::encode;

/// The keys of a watch, encoded.
#[derive(Clone, Default)]
pub struct Keys {
    bytes: Vec<u8>,
    count: usize,
    lanes: Vec<u16>,
}

impl Keys {
    fn of<'k, K: ToSingleRedisArg + 'k>(keys: impl IntoIterator<Item = &'k K>) -> Self {
        let mut count = 0;
        let mut bytes = Vec::new();
        encode::command(&mut bytes, &["WATCH"], |args| {
            for key in keys {
                args.arg(key);
                count += 1;
            }
        });
        let lanes = Admission::lanes(hashes(&bytes).into_iter());
        Self { bytes, count, lanes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Where its keys are waited for.
    pub(crate) fn lanes(&self) -> &[u16] {
        &self.lanes
    }

    /// The whole WATCH command.
    pub(crate) fn watch(&self) -> &[u8] {
        &self.bytes
    }
}

fn hashes(watch: &[u8]) -> Vec<u64> {
    let args = Requests::new(watch).next().and_then(Result::ok).unwrap_or_default();
    let hash = |key: &&[u8]| {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        hasher.finish()
    };
    args.iter().skip(1).map(hash).collect()
}

mod sealed {
    pub trait Sealed {}
}

/// What [`watch`](crate::Transactional::watch) takes: an array, slice or `Vec` of keys.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a list of keys",
    label = "not an array, a slice or a `Vec` of keys",
    note = "a single key is watched as `watch([key])`"
)]
pub trait IntoKeys: sealed::Sealed {
    #[doc(hidden)]
    fn into_keys(self) -> Keys;
}

macro_rules! into_keys {
    ($([$($generics:tt)*] $list:ty;)+) => {$(
        impl<K: ToSingleRedisArg, $($generics)*> sealed::Sealed for $list {}

        impl<K: ToSingleRedisArg, $($generics)*> IntoKeys for $list {
            fn into_keys(self) -> Keys {
                Keys::of(self.iter())
            }
        }
    )+};
}

into_keys! {
    [const N: usize] [K; N];
    [const N: usize] &[K; N];
    [] &[K];
    [] Vec<K>;
    [] &Vec<K>;
}

/// Shows how many, never which.
impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} keys", self.count)
    }
}
