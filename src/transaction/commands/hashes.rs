//! Commands on hashes, including the times to live of their fields.
//!
//! The commands on a hash as a whole are in [`keys`](crate::transaction::commands::keys).

use redis::{
    ExpireOption, Expiry, FromRedisValue, HashFieldExpirationOptions, ToRedisArgs, ToSingleRedisArg,
};

use crate::transaction::commands::integer::IntegerToAdd;
use crate::transaction::commands::table::command_table;

command_table! {
    /// Queues commands on hashes.
    ///
    /// ```no_run
    /// use rediscope::prelude::*;
    ///
    /// fn restock(tx: &mut impl QueueCommands) {
    ///     tx.hset_multiple("item:7", &[("name", "lamp"), ("shelf", "b4")]);
    ///     let stock = tx.hincr("item:7", "stock", 12);   // Queued<i64>
    ///     # let _ = stock;
    /// }
    /// ```
    HashCommands
    reads {
        /// Reads one field.
        fn hget<K: ToSingleRedisArg, F: ToSingleRedisArg, T: FromRedisValue>(
            key: K, field: F
        ) -> T
            => "HGET" (key, field), page "hget", replies "the value, or nil";

        /// Reads several fields.
        fn hmget<K: ToSingleRedisArg, F: ToRedisArgs, T: FromRedisValue>(
            key: K, fields: F
        ) -> T
            => "HMGET" (key, fields), page "hmget",
                replies "a value or nil for each field, in order";

        /// Reads every field and its value.
        fn hgetall<K: ToSingleRedisArg, T: FromRedisValue>(key: K) -> T
            => "HGETALL" (key), page "hgetall", replies "a map, empty if the key is missing";

        /// Lists the fields.
        fn hkeys<K: ToSingleRedisArg, T: FromRedisValue>(key: K) -> T
            => "HKEYS" (key), page "hkeys", replies "the names, in no order";

        /// Lists the values.
        fn hvals<K: ToSingleRedisArg, T: FromRedisValue>(key: K) -> T
            => "HVALS" (key), page "hvals", replies "the values, in no order";

        /// Counts the fields.
        fn hlen<K: ToSingleRedisArg>(key: K) -> i64
            => "HLEN" (key), page "hlen", replies "how many there are, 0 if the key is missing";

        /// Returns whether a field exists.
        fn hexists<K: ToSingleRedisArg, F: ToSingleRedisArg>(key: K, field: F) -> bool
            => "HEXISTS" (key, field), page "hexists", replies "whether it does";

        /// Returns the time to live of fields, in seconds (server 7.4).
        fn httl<K: ToSingleRedisArg, F: ToRedisArgs>(key: K, fields: F) -> Vec<i64>
            => "HTTL" (key, "FIELDS", fields.num_of_args(), fields), page "httl",
                replies "for each field the seconds, -1 if it never expires, -2 if it is missing";

        /// Returns the time to live of fields, in milliseconds (server 7.4).
        fn hpttl<K: ToSingleRedisArg, F: ToRedisArgs>(key: K, fields: F) -> Vec<i64>
            => "HPTTL" (key, "FIELDS", fields.num_of_args(), fields), page "hpttl",
                replies "for each field the milliseconds, -1 if it never expires, -2 if missing";

        /// Returns when fields expire, in seconds since 1970 (server 7.4).
        fn hexpire_time<K: ToSingleRedisArg, F: ToRedisArgs>(key: K, fields: F) -> Vec<i64>
            => "HEXPIRETIME" (key, "FIELDS", fields.num_of_args(), fields), page "hexpiretime",
                replies "for each field the time, -1 if it never expires, -2 if it is missing";

        /// Returns when fields expire, in milliseconds since 1970 (server 7.4).
        fn hpexpire_time<K: ToSingleRedisArg, F: ToRedisArgs>(key: K, fields: F) -> Vec<i64>
            => "HPEXPIRETIME" (key, "FIELDS", fields.num_of_args(), fields), page "hpexpiretime",
                replies "for each field the time, -1 if it never expires, -2 if it is missing";

        /// Picks a field at random.
        fn hrandfield<K: ToSingleRedisArg, T: FromRedisValue>(key: K) -> T
            => "HRANDFIELD" (key), page "hrandfield", replies "the field, or nil";

        /// Picks up to `count` fields at random; a negative count may pick one twice.
        fn hrandfield_multiple<K: ToSingleRedisArg, T: FromRedisValue>(key: K, count: isize) -> T
            => "HRANDFIELD" (key, count), page "hrandfield", replies "the fields";

        /// Like [`hrandfield_multiple`](Self::hrandfield_multiple), with the value of each.
        fn hrandfield_withvalues<K: ToSingleRedisArg, T: FromRedisValue>(
            key: K, count: isize
        ) -> T
            => "HRANDFIELD" (key, count, "WITHVALUES"), page "hrandfield",
                replies "fields and values";
    }
    writes {
        /// Sets one field.
        fn hset<K: ToSingleRedisArg, F: ToSingleRedisArg, V: ToSingleRedisArg>(
            key: K, field: F, value: V
        ) -> i64
            => "HSET" (key, field, value), page "hset", replies "how many fields are new";

        /// Sets several fields.
        fn hset_multiple<K: ToSingleRedisArg, F: ToRedisArgs, V: ToRedisArgs>(
            key: K, items: &[(F, V)]
        ) -> i64
            => "HSET" (key, items), page "hset", replies "how many fields are new";

        /// Sets one field if it does not exist.
        fn hset_nx<K: ToSingleRedisArg, F: ToSingleRedisArg, V: ToSingleRedisArg>(
            key: K, field: F, value: V
        ) -> bool
            => "HSETNX" (key, field, value), page "hsetnx", replies "whether it was set";

        /// Sets several fields under one condition and with one time to live (server 8.0).
        fn hset_ex<K: ToSingleRedisArg, F: ToRedisArgs, V: ToRedisArgs>(
            key: K, options: &HashFieldExpirationOptions, items: &[(F, V)]
        ) -> bool
            => "HSETEX" (key, options, "FIELDS", items.len(), items), page "hsetex",
                replies "whether they were set";

        /// Reads several fields and changes their time to live (server 8.0).
        fn hget_ex<K: ToSingleRedisArg, F: ToRedisArgs, T: FromRedisValue>(
            key: K, fields: F, expire_at: Expiry
        ) -> T
            => "HGETEX" (key, expire_at, "FIELDS", fields.num_of_args(), fields), page "hgetex",
                replies "a value or nil for each field, in order";

        /// Reads several fields and deletes them (server 8.0).
        fn hget_del<K: ToSingleRedisArg, F: ToRedisArgs, T: FromRedisValue>(
            key: K, fields: F
        ) -> T
            => "HGETDEL" (key, "FIELDS", fields.num_of_args(), fields), page "hgetdel",
                replies "a value or nil for each field, in order";

        /// Deletes fields.
        fn hdel<K: ToSingleRedisArg, F: ToRedisArgs>(key: K, fields: F) -> i64
            => "HDEL" (key, fields), page "hdel", replies "how many existed";

        /// Adds `by` to the integer in a field. A float does not compile, or is refused while it is
        /// queued: use [`hincr_float`](Self::hincr_float) for floats.
        fn hincr<K: ToSingleRedisArg, F: ToSingleRedisArg, V: IntegerToAdd<T>, T: Sized>(
            key: K, field: F, by: V
        ) -> i64
            => "HINCRBY" (key, field, by), page "hincrby", replies "the new value";

        /// Adds `by` to the number in a field.
        fn hincr_float<K: ToSingleRedisArg, F: ToSingleRedisArg, V: ToSingleRedisArg>(
            key: K, field: F, by: V
        ) -> f64
            => "HINCRBYFLOAT" (key, field, by), page "hincrbyfloat", replies "the new value";

        /// Lets fields expire in `seconds` (server 7.4).
        fn hexpire<K: ToSingleRedisArg, F: ToRedisArgs>(
            key: K, seconds: i64, condition: ExpireOption, fields: F
        ) -> Vec<i64>
            => "HEXPIRE" (key, seconds, condition, "FIELDS", fields.num_of_args(), fields),
                page "hexpire",
                replies "for each field 1, 0 where the condition fails, 2 where it was deleted, \
                    -2 while missing";

        /// Lets fields expire at `timestamp`, in seconds since 1970 (server 7.4).
        fn hexpire_at<K: ToSingleRedisArg, F: ToRedisArgs>(
            key: K, timestamp: i64, condition: ExpireOption, fields: F
        ) -> Vec<i64>
            => "HEXPIREAT" (key, timestamp, condition, "FIELDS", fields.num_of_args(), fields),
                page "hexpireat",
                replies "for each field 1, 0 where the condition fails, 2 where it was deleted, \
                    -2 while missing";

        /// Lets fields expire in `milliseconds` (server 7.4).
        fn hpexpire<K: ToSingleRedisArg, F: ToRedisArgs>(
            key: K, milliseconds: i64, condition: ExpireOption, fields: F
        ) -> Vec<i64>
            => "HPEXPIRE" (key, milliseconds, condition, "FIELDS", fields.num_of_args(), fields),
                page "hpexpire",
                replies "for each field 1, 0 where the condition fails, 2 where it was deleted, \
                    -2 while missing";

        /// Lets fields expire at `timestamp`, in milliseconds since 1970 (server 7.4).
        fn hpexpire_at<K: ToSingleRedisArg, F: ToRedisArgs>(
            key: K, timestamp: i64, condition: ExpireOption, fields: F
        ) -> Vec<i64>
            => "HPEXPIREAT" (key, timestamp, condition, "FIELDS", fields.num_of_args(), fields),
                page "hpexpireat",
                replies "for each field 1, 0 where the condition fails, 2 where it was deleted, \
                    -2 while missing";

        /// Removes the time to live of fields (server 7.4).
        fn hpersist<K: ToSingleRedisArg, F: ToRedisArgs>(key: K, fields: F) -> Vec<i64>
            => "HPERSIST" (key, "FIELDS", fields.num_of_args(), fields), page "hpersist",
                replies "for each field 1, -1 if it had none, -2 if it is missing";
    }
}
