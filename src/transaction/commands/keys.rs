//! Commands on keys, whatever they hold. Those on values are in the other families.

use redis::{CopyOptions, FromRedisValue, ToRedisArgs, ToSingleRedisArg, ValueComparison};

use crate::transaction::commands::table::command_table;

command_table! {
    /// Queues commands on keys, whatever they hold.
    ///
    /// ```no_run
    /// use rediscope::prelude::*;
    ///
    /// fn publish_draft(tx: &mut impl QueueCommands) {
    ///     tx.rename("draft:7", "article:7");
    ///     tx.persist("article:7");
    ///     let dropped = tx.del(&["draft:7:lock", "draft:7:notes"]);   // Queued<i64>
    ///     # let _ = dropped;
    /// }
    /// ```
    KeyCommands
    reads {
        /// Lists the keys that match the glob `pattern`; slow on a large database.
        fn keys<P: ToSingleRedisArg, T: FromRedisValue>(pattern: P) -> T
            => "KEYS" (pattern), page "keys", replies "the names, in no order";

        /// Counts the keys that exist; a key given twice counts twice.
        fn exists<K: ToRedisArgs>(keys: K) -> i64
            => "EXISTS" (keys), page "exists", replies "how many exist";

        /// Returns what kind of value `key` holds.
        fn key_type<K: ToSingleRedisArg, T: FromRedisValue>(key: K) -> T
            => "TYPE" (key), page "type",
                replies "the type (see [`redis::ValueType`]), `none` if the key is missing";

        /// Returns when `key` expires, in seconds since 1970.
        fn expire_time<K: ToSingleRedisArg>(key: K) -> i64
            => "EXPIRETIME" (key), page "expiretime",
                replies "the time, -1 if it never expires, -2 if the key is missing";

        /// Returns when `key` expires, in milliseconds since 1970.
        fn pexpire_time<K: ToSingleRedisArg>(key: K) -> i64
            => "PEXPIRETIME" (key), page "pexpiretime",
                replies "the time, -1 if it never expires, -2 if the key is missing";

        /// Returns the time to live of `key`, in seconds.
        fn ttl<K: ToSingleRedisArg>(key: K) -> i64
            => "TTL" (key), page "ttl",
                replies "the seconds, -1 if it never expires, -2 if the key is missing";

        /// Returns the time to live of `key`, in milliseconds.
        fn pttl<K: ToSingleRedisArg>(key: K) -> i64
            => "PTTL" (key), page "pttl",
                replies "the milliseconds, -1 if it never expires, -2 if the key is missing";

        /// Returns how the server stores the value of `key`.
        fn object_encoding<K: ToSingleRedisArg>(key: K) -> Option<String>
            => "OBJECT" "ENCODING" (key), page "object-encoding",
                replies "the name of the encoding, or nil";

        /// Returns the time since the last use of `key`, in seconds.
        fn object_idletime<K: ToSingleRedisArg>(key: K) -> Option<i64>
            => "OBJECT" "IDLETIME" (key), page "object-idletime", replies "the seconds, or nil";

        /// Returns how often `key` is used, if the server evicts by frequency.
        fn object_freq<K: ToSingleRedisArg>(key: K) -> Option<i64>
            => "OBJECT" "FREQ" (key), page "object-freq",
                replies "a logarithmic counter, or nil";

        /// Returns the number of references that the server holds to the value of `key`.
        fn object_refcount<K: ToSingleRedisArg>(key: K) -> Option<i64>
            => "OBJECT" "REFCOUNT" (key), page "object-refcount", replies "the count, or nil";

        /// Writes a value out in the server's own form, for
        /// [`restore`](crate::commands::KeyCommands::restore).
        fn dump<K: ToSingleRedisArg>(key: K) -> Option<Vec<u8>>
            => "DUMP" (key), page "dump", replies "the value's bytes, or nil";
    }
    writes {
        /// Deletes keys.
        fn del<K: ToRedisArgs>(keys: K) -> i64
            => "DEL" (keys), page "del", replies "how many existed";

        /// Deletes `key` if its value passes the comparison (server 8.4).
        fn del_ex<K: ToSingleRedisArg>(key: K, value_comparison: ValueComparison) -> i64
            => "DELEX" (key, value_comparison), page "delex", replies "1, or 0 if the key was kept";

        /// Deletes keys, and frees their memory in the background.
        fn unlink<K: ToRedisArgs>(keys: K) -> i64
            => "UNLINK" (keys), page "unlink", replies "how many existed";

        /// Lets `key` expire in `seconds`.
        fn expire<K: ToSingleRedisArg>(key: K, seconds: i64) -> bool
            => "EXPIRE" (key, seconds), page "expire", replies "whether the key exists";

        /// Lets `key` expire at `timestamp`, in seconds since 1970.
        fn expire_at<K: ToSingleRedisArg>(key: K, timestamp: i64) -> bool
            => "EXPIREAT" (key, timestamp), page "expireat", replies "whether the key exists";

        /// Lets `key` expire in `milliseconds`.
        fn pexpire<K: ToSingleRedisArg>(key: K, milliseconds: i64) -> bool
            => "PEXPIRE" (key, milliseconds), page "pexpire", replies "whether the key exists";

        /// Lets `key` expire at `timestamp`, in milliseconds since 1970.
        fn pexpire_at<K: ToSingleRedisArg>(key: K, timestamp: i64) -> bool
            => "PEXPIREAT" (key, timestamp), page "pexpireat", replies "whether the key exists";

        /// Removes the time to live of `key`.
        fn persist<K: ToSingleRedisArg>(key: K) -> bool
            => "PERSIST" (key), page "persist", replies "whether it had one";

        /// Copies `source` to `destination`. `options` can choose another database, and whether an
        /// existing key is replaced.
        fn copy<S: ToSingleRedisArg, D: ToSingleRedisArg, Db: ToString>(
            source: S, destination: D, options: CopyOptions<Db>
        ) -> bool
            => "COPY" (source, destination, options), page "copy", replies "whether it was copied";

        /// Renames `key`, and replaces an existing `new_key`; fails if `key` is missing.
        fn rename<K: ToSingleRedisArg, N: ToSingleRedisArg>(key: K, new_key: N) -> ()
            => "RENAME" (key, new_key), page "rename", replies "`OK`";

        /// Renames `key` if `new_key` does not exist; fails if `key` is missing.
        fn rename_nx<K: ToSingleRedisArg, N: ToSingleRedisArg>(key: K, new_key: N) -> bool
            => "RENAMENX" (key, new_key), page "renamenx", replies "whether it was renamed";

        /// Makes keys count as used just now, for the eviction of keys that are not used.
        fn touch<K: ToRedisArgs>(keys: K) -> i64
            => "TOUCH" (keys), page "touch", replies "how many exist";

        /// Moves `key` to another database, unless that has it.
        fn move_key<K: ToSingleRedisArg>(key: K, db: i64) -> bool
            => "MOVE" (key, db), page "move", replies "whether it was moved";

        /// Sets `key` to a value that DUMP wrote out, with a time to live in milliseconds or 0 for
        /// none. It fails if `key` exists.
        fn restore<K: ToSingleRedisArg, V: ToSingleRedisArg>(key: K, ttl: i64, value: V) -> ()
            => "RESTORE" (key, ttl, value), page "restore", replies "`OK`";

        /// Like [`restore`](Self::restore), whether `key` exists or not.
        fn restore_replace<K: ToSingleRedisArg, V: ToSingleRedisArg>(
            key: K, ttl: i64, value: V
        ) -> ()
            => "RESTORE" (key, ttl, value, "REPLACE"), page "restore", replies "`OK`";
    }
}
