//! Commands on strings. Those on the bits of a string are in
//! [`bitmaps`](crate::transaction::commands::bitmaps).

use redis::{
    Expiry, FromRedisValue, IncrexOptions, MSetOptions, NumericBehavior, SetOptions, ToRedisArgs,
    ToSingleRedisArg,
};

use crate::transaction::commands::integer::IntegerToAdd;
use crate::transaction::commands::table::command_table;

command_table! {
    /// Queues commands on strings.
    ///
    /// ```no_run
    /// use rediscope::prelude::*;
    ///
    /// fn page_view(tx: &mut impl QueueCommands) {
    ///     let views = tx.incr("views", 1);             // Queued<i64>
    ///     let last: Queued<Option<String>> = tx.getset("last", "/index.html");
    ///     tx.set_ex("seen:/index.html", true, 3600);
    ///     # let _ = (views, last);
    /// }
    /// ```
    StringCommands
    reads {
        /// Reads the string at `key`.
        fn get<K: ToSingleRedisArg, T: FromRedisValue>(key: K) -> T
            => "GET" (key), page "get", replies "the value, or nil";

        /// Reads the strings at several keys.
        fn mget<K: ToRedisArgs, T: FromRedisValue>(keys: K) -> T
            => "MGET" (keys), page "mget", replies "a value or nil for each key, in order";

        /// Reads the bytes `from` to `to` of the string at `key`; negative positions count from its
        /// end.
        fn getrange<K: ToSingleRedisArg, T: FromRedisValue>(key: K, from: isize, to: isize) -> T
            => "GETRANGE" (key, from, to), page "getrange",
                replies "the bytes, none if the key is missing";

        /// Returns the length of the string at `key`.
        fn strlen<K: ToSingleRedisArg>(key: K) -> i64
            => "STRLEN" (key), page "strlen",
                replies "its length in bytes, 0 if the key is missing";

        /// Reads the digest of the string at `key` (server 8.4).
        fn digest<K: ToSingleRedisArg>(key: K) -> Option<String>
            => "DIGEST" (key), page "digest", replies "the digest in hexadecimal, or nil";

        /// Finds the longest common subsequence of two values (server 7.0).
        fn lcs<K: ToSingleRedisArg, L: ToSingleRedisArg, T: FromRedisValue>(
            key1: K, key2: L
        ) -> T
            => "LCS" (key1, key2), page "lcs", replies "the subsequence";

        /// Measures the longest common subsequence of two values (server 7.0).
        fn lcs_len<K: ToSingleRedisArg, L: ToSingleRedisArg>(key1: K, key2: L) -> i64
            => "LCS" (key1, key2, "LEN"), page "lcs", replies "its length in bytes";

        /// Lists the common parts of two values that have at least `min_length` bytes, with their
        /// lengths (server 7.0).
        fn lcs_matches<K: ToSingleRedisArg, L: ToSingleRedisArg, T: FromRedisValue>(
            key1: K, key2: L, min_length: isize
        ) -> T
            => "LCS" (key1, key2, "IDX", "MINMATCHLEN", min_length, "WITHMATCHLEN"), page "lcs",
                replies "`matches`, each with its ranges in both values, and `len`";
    }
    writes {
        /// Sets `key` to `value`, whatever it held, and removes its time to live.
        fn set<K: ToSingleRedisArg, V: ToSingleRedisArg>(key: K, value: V) -> ()
            => "SET" (key, value), page "set", replies "`OK`";

        /// Sets `key` to `value` under the conditions, and with the time to live, of `options`.
        fn set_options<K: ToSingleRedisArg, V: ToSingleRedisArg, T: FromRedisValue>(
            key: K, value: V, options: SetOptions
        ) -> T
            => "SET" (key, value, options), page "set",
                replies "`OK`, the old value if `options` request it, or nil";

        /// Sets several keys.
        fn mset<K: ToRedisArgs, V: ToRedisArgs>(items: &[(K, V)]) -> ()
            => "MSET" (items), page "mset", replies "`OK`";

        /// Sets several keys, or none if one of them exists.
        fn mset_nx<K: ToRedisArgs, V: ToRedisArgs>(items: &[(K, V)]) -> bool
            => "MSETNX" (items), page "msetnx", replies "whether they were set";

        /// Sets several keys under one condition and with one time to live (server 8.4).
        fn mset_ex<K: ToRedisArgs, V: ToRedisArgs>(
            items: &[(K, V)], options: MSetOptions
        ) -> bool
            => "MSETEX" (items.len(), items, options), page "msetex",
                replies "whether they were set";

        /// Sets `key` to `value` for `seconds`.
        fn set_ex<K: ToSingleRedisArg, V: ToSingleRedisArg>(key: K, value: V, seconds: u64) -> ()
            => "SETEX" (key, seconds, value), page "setex", replies "`OK`";

        /// Sets `key` to `value` for `milliseconds`.
        fn pset_ex<K: ToSingleRedisArg, V: ToSingleRedisArg>(
            key: K, value: V, milliseconds: u64
        ) -> ()
            => "PSETEX" (key, milliseconds, value), page "psetex", replies "`OK`";

        /// Sets `key` to `value` if it does not exist.
        fn set_nx<K: ToSingleRedisArg, V: ToSingleRedisArg>(key: K, value: V) -> bool
            => "SETNX" (key, value), page "setnx", replies "whether it was set";

        /// Sets `key` to `value` and returns the former value.
        fn getset<K: ToSingleRedisArg, V: ToSingleRedisArg, T: FromRedisValue>(
            key: K, value: V
        ) -> T
            => "GETSET" (key, value), page "getset", replies "the old value, or nil";

        /// Reads the string at `key` and changes its time to live.
        fn get_ex<K: ToSingleRedisArg, T: FromRedisValue>(key: K, expire_at: Expiry) -> T
            => "GETEX" (key, expire_at), page "getex", replies "the value, or nil";

        /// Reads the string at `key` and deletes it.
        fn get_del<K: ToSingleRedisArg, T: FromRedisValue>(key: K) -> T
            => "GETDEL" (key), page "getdel", replies "the value, or nil";

        /// Overwrites the string at `key` from the byte `offset` on.
        fn setrange<K: ToSingleRedisArg, V: ToSingleRedisArg>(
            key: K, offset: isize, value: V
        ) -> i64
            => "SETRANGE" (key, offset, value), page "setrange", replies "the new length";

        /// Appends `value` to the string at `key`.
        fn append<K: ToSingleRedisArg, V: ToSingleRedisArg>(key: K, value: V) -> i64
            => "APPEND" (key, value), page "append", replies "the new length";

        /// Adds `by` to the integer at `key`. A float does not compile, or is refused while it is
        /// queued: use [`incr_float`](Self::incr_float) for floats.
        fn incr<K: ToSingleRedisArg, V: IntegerToAdd<T>, T: Sized>(key: K, by: V) -> i64
            => "INCRBY" (key, by), page "incrby", replies "the new value";

        /// Subtracts `by` from the integer at `key`. A float does not compile, or is refused while
        /// it is queued: add a negative float with [`incr_float`](Self::incr_float).
        fn decr<K: ToSingleRedisArg, V: IntegerToAdd<T>, T: Sized>(key: K, by: V) -> i64
            => "DECRBY" (key, by), page "decrby", replies "the new value";

        /// Adds `by` to the number at `key`.
        fn incr_float<K: ToSingleRedisArg, V: ToSingleRedisArg>(key: K, by: V) -> f64
            => "INCRBYFLOAT" (key, by), page "incrbyfloat", replies "the new value";

        /// Adds `by` to the number at `key`, within bounds and with a time to live; the type of
        /// `by` decides whether it is an integer or a fraction (server 8.8).
        fn increx<K: ToSingleRedisArg, V: ToSingleRedisArg, T: FromRedisValue>(
            key: K, by: V, options: IncrexOptions<V>
        ) -> T
            => "INCREX" (
                key,
                if by.describe_numeric_behavior() == NumericBehavior::NumberIsFloat {
                    "BYFLOAT"
                } else {
                    "BYINT"
                },
                by,
                options
            ), page "increx", replies "the new value and what was added";
    }
}
