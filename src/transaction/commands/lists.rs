//! Commands on lists.
//!
//! BLPOP and similar commands have no method, because they do not block inside MULTI.
//! [`queue`](crate::transaction::commands::queue_commands::QueueCommands::queue) takes them.

use std::num::NonZeroUsize;

use redis::{Direction, FromRedisValue, LposOptions, ToRedisArgs, ToSingleRedisArg};

use crate::transaction::commands::table::command_table;

command_table! {
    /// Queues commands on lists.
    ///
    /// ```no_run
    /// use rediscope::prelude::*;
    ///
    /// fn hand_over(tx: &mut impl QueueCommands) {
    ///     let job: Queued<Option<String>> = tx.rpoplpush("jobs", "jobs:running");
    ///     let waiting = tx.llen("jobs");   // Queued<i64>
    ///     # let _ = (job, waiting);
    /// }
    /// ```
    ListCommands
    reads {
        /// Reads the element at `index`; a negative index counts from the end.
        fn lindex<K: ToSingleRedisArg, T: FromRedisValue>(key: K, index: isize) -> T
            => "LINDEX" (key, index), page "lindex", replies "the element, or nil";

        /// Counts the elements.
        fn llen<K: ToSingleRedisArg>(key: K) -> i64
            => "LLEN" (key), page "llen", replies "how many there are, 0 if the key is missing";

        /// Looks for `value` in a list.
        fn lpos<K: ToSingleRedisArg, V: ToSingleRedisArg, T: FromRedisValue>(
            key: K, value: V, options: LposOptions
        ) -> T
            => "LPOS" (key, value, options), page "lpos",
                replies "its index or nil, a list of them if `options` have a count";

        /// Reads the elements `start` to `stop`; negative indexes count from the end.
        fn lrange<K: ToSingleRedisArg, T: FromRedisValue>(key: K, start: isize, stop: isize) -> T
            => "LRANGE" (key, start, stop), page "lrange", replies "the elements, in order";
    }
    writes {
        /// Puts values before the first element, one after the other.
        fn lpush<K: ToSingleRedisArg, V: ToRedisArgs>(key: K, values: V) -> i64
            => "LPUSH" (key, values), page "lpush", replies "the new length";

        /// Puts values before the first element of a list that exists.
        fn lpush_exists<K: ToSingleRedisArg, V: ToRedisArgs>(key: K, values: V) -> i64
            => "LPUSHX" (key, values), page "lpushx",
                replies "the new length, 0 if the key is missing";

        /// Puts values after the last element.
        fn rpush<K: ToSingleRedisArg, V: ToRedisArgs>(key: K, values: V) -> i64
            => "RPUSH" (key, values), page "rpush", replies "the new length";

        /// Puts values after the last element of a list that exists.
        fn rpush_exists<K: ToSingleRedisArg, V: ToRedisArgs>(key: K, values: V) -> i64
            => "RPUSHX" (key, values), page "rpushx",
                replies "the new length, 0 if the key is missing";

        /// Takes the first element, or up to `count` of them.
        fn lpop<K: ToSingleRedisArg, T: FromRedisValue>(key: K, count: Option<NonZeroUsize>) -> T
            => "LPOP" (key, count), page "lpop",
                replies "the element, a list of them if `count` is given, or nil";

        /// Takes the last element, or up to `count` of them.
        fn rpop<K: ToSingleRedisArg, T: FromRedisValue>(key: K, count: Option<NonZeroUsize>) -> T
            => "RPOP" (key, count), page "rpop",
                replies "the element, a list of them if `count` is given, or nil";

        /// Takes up to `count` elements from one end of the first of `keys` that has any.
        fn lmpop<K: ToRedisArgs, T: FromRedisValue>(keys: K, dir: Direction, count: usize) -> T
            => "LMPOP" (keys.num_of_args(), keys, dir, "COUNT", count), page "lmpop",
                replies "the key and its elements, or nil";

        /// Takes an element from one end of a list and puts it at one end of another.
        fn lmove<S: ToSingleRedisArg, D: ToSingleRedisArg, T: FromRedisValue>(
            srckey: S, dstkey: D, src_dir: Direction, dst_dir: Direction
        ) -> T
            => "LMOVE" (srckey, dstkey, src_dir, dst_dir), page "lmove",
                replies "the element, or nil";

        /// Takes the last element of a list and puts it before the first of another.
        fn rpoplpush<K: ToSingleRedisArg, D: ToSingleRedisArg, T: FromRedisValue>(
            key: K, dstkey: D
        ) -> T
            => "RPOPLPUSH" (key, dstkey), page "rpoplpush", replies "the element, or nil";

        /// Puts `value` before the first element that equals `pivot`.
        fn linsert_before<K: ToSingleRedisArg, P: ToSingleRedisArg, V: ToSingleRedisArg>(
            key: K, pivot: P, value: V
        ) -> i64
            => "LINSERT" (key, "BEFORE", pivot, value), page "linsert",
                replies "the new length, 0 if the key is missing, -1 without such an element";

        /// Puts `value` after the first element that equals `pivot`.
        fn linsert_after<K: ToSingleRedisArg, P: ToSingleRedisArg, V: ToSingleRedisArg>(
            key: K, pivot: P, value: V
        ) -> i64
            => "LINSERT" (key, "AFTER", pivot, value), page "linsert",
                replies "the new length, 0 if the key is missing, -1 without such an element";

        /// Overwrites the element at `index`; fails if there is none.
        fn lset<K: ToSingleRedisArg, V: ToSingleRedisArg>(key: K, index: isize, value: V) -> ()
            => "LSET" (key, index, value), page "lset", replies "`OK`";

        /// Removes `count` elements that equal `value`: from the start, from the end if `count` is
        /// negative, all of them if it is 0.
        fn lrem<K: ToSingleRedisArg, V: ToSingleRedisArg>(key: K, count: isize, value: V) -> i64
            => "LREM" (key, count, value), page "lrem", replies "how many were removed";

        /// Keeps the elements `start` to `stop` and removes the others.
        fn ltrim<K: ToSingleRedisArg>(key: K, start: isize, stop: isize) -> ()
            => "LTRIM" (key, start, stop), page "ltrim", replies "`OK`";
    }
}
