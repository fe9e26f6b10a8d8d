//! The keys of one lock, and the channel of its releases. They contain the lock's name, so they have
//! no `Debug`.

use std::sync::Arc;

use crate::protocol::cluster::slot;

/// The keys of one lock. All but the counter share the name's hash tag.
pub(crate) struct LockKeys {
    /// Owner tokens, sorted by the end of their leases in the server's milliseconds.
    pub(crate) holders: String,
    /// Fencing token and label of each holder that has a label.
    pub(crate) info: String,
    /// Waiters in fair mode, by arrival, and until when each of them counts as alive.
    pub(crate) queue: String,
    pub(crate) alive: String,
    pub(crate) wake: Arc<str>,
    done: String,
    /// Whether the lock has a number of permits.
    pub(crate) is_semaphore: bool,
    /// One counter for all locks of a server.
    pub(crate) fencing: String,
}

impl LockKeys {
    /// `family` separates locks, read/write locks and semaphores with the same name. In a `cluster`
    /// there is one counter for each slot, in the slot.
    pub(crate) fn new(prefix: &str, family: &str, name: &str, cluster: bool) -> Self {
        let base = format!("{prefix}:{family}:{{{}}}", tagged(name));
        let slot = slot::of_key(base.as_bytes());
        Self {
            info: format!("{base}:info"),
            queue: format!("{base}:queue"),
            alive: format!("{base}:alive"),
            wake: format!("{base}:wake").into(),
            done: format!("{base}:done:"),
            fencing: match cluster.then(|| slot::tag_of(slot)).flatten() {
                Some(tag) => format!("{prefix}:fence:{{{tag}}}"),
                None => format!("{prefix}:fence"),
            },
            is_semaphore: family == "sem",
            holders: base,
        }
    }

    /// The keys of the lock's state.
    pub(crate) fn state(&self) -> [&String; 4] {
        [&self.holders, &self.info, &self.queue, &self.alive]
    }

    /// The key by which the server remembers for a while that this holder has released the lock.
    pub(crate) fn done(&self, owner_token: &str) -> String {
        format!("{}{owner_token}", self.done)
    }
}

/// Encodes a name with braces, which would end the hash tag early, or form none.
fn tagged(name: &str) -> String {
    name.replace('%', "%25").replace('{', "%7B").replace('}', "%7D")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_keys_of_a_name_share_its_hash_tag_and_no_two_names_share_keys() {
        let names = LockKeys::new("app", "lock", "a", false);
        assert_eq!(names.holders, "app:lock:{a}");
        for key in [&names.info, &names.queue, &names.alive, &names.done("x1")] {
            assert!(key.starts_with("app:lock:{a}:"), "{key}");
        }
        let holders = |name| LockKeys::new("app", "lock", name, false).holders;
        assert_eq!(holders("a}b"), "app:lock:{a%7Db}");
        assert_ne!(holders("a}b"), holders("a%7Db"));
        let there = LockKeys::new("app", "lock", "a", true).fencing;
        assert_eq!(slot::of_key(there.as_bytes()), slot::of_key(b"a"));
        assert_ne!(LockKeys::new("app", "sem", "a", false).holders, names.holders);
    }
}
