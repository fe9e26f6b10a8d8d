//! The keys of a watch. `Debug` shows only their number.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use redis::ToSingleRedisArg;

use crate::error::any::Error;
use crate::pool::own_writes::OwnWrites;
use crate::protocol::command;
use crate::protocol::command::reader::CommandReader;
use crate::protocol::resp::encode::{self, words};
use crate::settings::settings::Settings;
use crate::transaction::hot_keys;

/// The keys of a watch, encoded.
#[derive(Clone, Default)]
pub struct Keys {
    bytes: Vec<u8>,
    count: usize,
    buckets: Vec<u16>,
}

impl Keys {
    fn of<'k, K: ToSingleRedisArg + 'k>(keys: impl IntoIterator<Item = &'k K>) -> Self {
        let mut count = 0;
        let mut bytes = Vec::new();
        encode::command(&mut bytes, words!("WATCH"), |args| {
            for key in keys {
                args.arg(key);
                count += 1;
            }
        });
        let mut keys = Self { bytes, count, buckets: Vec::new() };
        keys.buckets = hot_keys::buckets(keys.list().into_iter().map(hash));
        keys
    }

    /// Watches `key` too.
    pub(crate) fn add(&mut self, key: &[u8]) {
        let mut keys = self.list();
        if !keys.contains(&key) {
            keys.push(key);
            *self = Self::of(&keys);
        }
    }

    fn list(&self) -> Vec<&[u8]> {
        let mut args =
            CommandReader::new(&self.bytes).next().and_then(Result::ok).unwrap_or_default();
        args.drain(..args.len().min(1));
        args
    }

    /// Checks the number of keys, before anything is sent.
    pub(crate) fn check(&self, settings: &Settings) -> Result<(), Error> {
        let (keys, limit) = (self.count, settings.max_watched_keys as usize);
        match keys {
            0 => Err(Error::NoKeys),
            keys if keys > limit => Err(Error::TooManyKeys { keys, limit }),
            _ => Ok(()),
        }
    }

    /// Whether one of the keys is among the `written` ones.
    pub(crate) fn are_written_by(&self, written: &OwnWrites, settings: &Settings) -> bool {
        self.list().into_iter().any(|key| written.contain(settings, key))
    }

    /// Buckets in which a block waits for its keys.
    pub(crate) fn buckets(&self) -> &[u16] {
        &self.buckets
    }

    /// Buckets of the keys that these commands change, as far as that is known; else all.
    pub(crate) fn written_buckets(&self, commands: &[u8]) -> Vec<u16> {
        let (keys, mut written) = (self.list(), Vec::new());
        for args in CommandReader::new(commands).flatten() {
            let are_known = command::keys::for_each_written(&args, |key| {
                if !keys.contains(&key) {
                    return;
                }
                let bucket = hot_keys::bucket(hash(key));
                if !written.contains(&bucket) {
                    written.push(bucket);
                }
            });
            // The next caller waits for this: usually the first command changes the only key.
            if !are_known || written.len() == self.buckets.len() {
                return self.buckets.clone();
            }
        }
        written
    }

    /// EXISTS of all the keys, as one encoded command.
    pub(crate) fn exists(&self) -> Arc<[u8]> {
        let mut bytes = Vec::with_capacity(self.bytes.len() + 4);
        encode::command(&mut bytes, words!("EXISTS"), |args| {
            for key in self.list() {
                args.arg(key);
            }
        });
        bytes.into()
    }

    /// The whole WATCH command, encoded.
    pub(crate) fn watch(&self) -> &[u8] {
        &self.bytes
    }
}

fn hash(key: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

mod sealed {
    pub trait Sealed {}
}

/// The argument of [`watch`](crate::Transactional::watch): an array, slice or `Vec` of keys.
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

/// Shows the number of keys, never a key.
impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} keys", self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_watched_once_however_often_it_is_added() {
        let mut keys = Keys::default();
        assert!(keys.count == 0 && keys.list().is_empty());
        for key in ["a", "b", "a", "", "b"] {
            keys.add(key.as_bytes());
        }
        let at_once = ["a", "b", ""].into_keys();
        assert_eq!(keys.watch(), at_once.watch());
        assert_eq!(keys.buckets(), at_once.buckets());
        assert_eq!(format!("{keys:?}"), "3 keys");
    }

    #[test]
    fn the_keys_that_commands_change_are_those_of_writes_and_all_if_unknown() {
        let (keys, bucket) =
            (["a", "b"].into_keys(), |key: &str| hot_keys::bucket(hash(key.as_bytes())));
        let written = |commands: &[&str]| {
            let mut bytes = Vec::new();
            for line in commands {
                let mut words = line.split(' ');
                let mut command = redis::cmd(words.next().unwrap());
                words.for_each(|word| _ = command.arg(word));
                bytes.extend(command.get_packed_command());
            }
            keys.written_buckets(&bytes)
        };
        assert!(written(&["GET a", "SET other 1"]).is_empty());
        assert_eq!(written(&["SET other 1", "INCR b"]), [bucket("b")]);
        assert_eq!(written(&["RENAME b a"]), keys.buckets());
        assert_eq!(written(&["INCR b", "SET b 1", "GET a"]), [bucket("b")]);
        assert_eq!(written(&["INCR b", "DEL a", "JSON.SET c $ 1"]), keys.buckets());
        assert_eq!(written(&["GET a", "JSON.SET c $ 1"]), keys.buckets());
        assert!(written(&[]).is_empty());
    }
}
