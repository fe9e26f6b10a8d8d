//! The scripts, and their calls as bytes.
//!
//! Each script can be sent again with the same arguments: it keeps its first effect and returns the
//! same reply. All times are the server's.

use std::sync::OnceLock;

use crate::protocol::cluster::slot;
use crate::protocol::resp::encode::{self, words};

/// One script, known to the server by its hash once it has run there.
pub(crate) struct Script {
    source: &'static str,
    hash: OnceLock<String>,
}

/// Takes the lock, or returns its holder and the time left.
pub(crate) static ACQUIRE: Script =
    Script::new(concat!(include_str!("scripts/take.lua"), include_str!("scripts/acquire.lua"),));
/// Releases the lock, and gives it to a waiter or wakes one.
pub(crate) static RELEASE: Script =
    Script::new(concat!(include_str!("scripts/take.lua"), include_str!("scripts/release.lua"),));
/// Gives a hold to another token.
pub(crate) static ADOPT: Script = Script::new(include_str!("scripts/adopt.lua"));
/// Extends the lease if the token still holds the lock.
pub(crate) static RENEW: Script = Script::new(include_str!("scripts/renew.lua"));
/// Returns the lock's holder.
pub(crate) static PEEK: Script = Script::new(include_str!("scripts/peek.lua"));
/// Returns how many permits are held.
pub(crate) static AVAILABLE: Script = Script::new(include_str!("scripts/available.lua"));
/// Takes the lock away from all holders.
pub(crate) static FORCE: Script =
    Script::new(concat!(include_str!("scripts/once.lua"), include_str!("scripts/force.lua")));
/// Changes the number of permits.
pub(crate) static PERMITS: Script =
    Script::new(concat!(include_str!("scripts/once.lua"), include_str!("scripts/permits.lua")));

impl Script {
    const fn new(source: &'static str) -> Self {
        Self { source, hash: OnceLock::new() }
    }

    fn hash(&self) -> &str {
        self.hash.get_or_init(|| redis::Script::new(self.source).get_hash().to_owned())
    }
}

/// The form in which a call names its script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    Hash,
    /// The server does not know the hash, or has forgotten it.
    Source,
}

/// One call of a script, or the deletion of keys. It has no `Debug`: the keys contain names.
#[derive(Clone)]
pub(crate) struct ScriptCall {
    /// `None`: the call deletes the keys.
    script: Option<&'static Script>,
    keys: Vec<String>,
    arguments: Vec<String>,
}

impl ScriptCall {
    /// Returns the hash slot of the call's keys.
    pub(crate) fn slot(&self) -> Option<u16> {
        self.keys.first().map(|key| slot::of_key(key.as_bytes()))
    }

    pub(crate) fn new(
        script: &'static Script,
        keys: impl IntoIterator<Item = impl Into<String>>,
        arguments: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        let keys = keys.into_iter().map(Into::into).collect();
        let arguments = arguments.into_iter().map(Into::into).collect();
        Self { script: Some(script), keys, arguments }
    }

    /// Deletes `keys`, which share a slot in a cluster.
    pub(crate) fn delete(keys: impl IntoIterator<Item = String>) -> Self {
        let keys = keys.into_iter().collect();
        Self { script: None, keys, arguments: Vec::new() }
    }

    pub(crate) fn write(&self, bytes: &mut Vec<u8>, by: By) {
        let Some(script) = self.script else {
            return encode::command_with(bytes, words!("DEL"), &self.keys);
        };
        let (word, name) = match by {
            By::Hash => (words!("EVALSHA"), script.hash()),
            By::Source => (words!("EVAL"), script.source),
        };
        let args = (name, self.keys.len(), &self.keys, &self.arguments);
        encode::command_with(bytes, word, args);
    }
}
