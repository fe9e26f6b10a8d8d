//! Commands on sets. Those on sorted sets are in
//! [`sorted_sets`](crate::transaction::commands::sorted_sets).

use redis::{FromRedisValue, ToRedisArgs, ToSingleRedisArg};

use crate::transaction::commands::table::command_table;

command_table! {
    /// Queues commands on sets.
    ///
    /// ```no_run
    /// use rediscope::prelude::*;
    ///
    /// fn join(tx: &mut impl QueueCommands) {
    ///     let moved = tx.smove("lobby", "table:3", "alice");   // Queued<bool>
    ///     let players = tx.scard("table:3");                   // Queued<i64>
    ///     # let _ = (moved, players);
    /// }
    /// ```
    SetCommands
    reads {
        /// Counts the members.
        fn scard<K: ToSingleRedisArg>(key: K) -> i64
            => "SCARD" (key), page "scard", replies "how many there are, 0 if the key is missing";

        /// Returns whether `member` is in a set.
        fn sismember<K: ToSingleRedisArg, M: ToSingleRedisArg>(key: K, member: M) -> bool
            => "SISMEMBER" (key, member), page "sismember", replies "whether it is";

        /// Returns which of `members` are in a set.
        fn smismember<K: ToSingleRedisArg, M: ToRedisArgs>(key: K, members: M) -> Vec<bool>
            => "SMISMEMBER" (key, members), page "smismember",
                replies "for each of them whether it is, in order";

        /// Lists the members.
        fn smembers<K: ToSingleRedisArg, T: FromRedisValue>(key: K) -> T
            => "SMEMBERS" (key), page "smembers", replies "the members, in no order";

        /// Picks a member at random.
        fn srandmember<K: ToSingleRedisArg, T: FromRedisValue>(key: K) -> T
            => "SRANDMEMBER" (key), page "srandmember", replies "the member, or nil";

        /// Picks up to `count` members at random; a negative count may pick one twice.
        fn srandmember_multiple<K: ToSingleRedisArg, T: FromRedisValue>(key: K, count: isize) -> T
            => "SRANDMEMBER" (key, count), page "srandmember", replies "the members";

        /// Lists the members of the first of `keys` that no other has.
        fn sdiff<K: ToRedisArgs, T: FromRedisValue>(keys: K) -> T
            => "SDIFF" (keys), page "sdiff", replies "the members, in no order";

        /// Lists the members that all of `keys` have.
        fn sinter<K: ToRedisArgs, T: FromRedisValue>(keys: K) -> T
            => "SINTER" (keys), page "sinter", replies "the members, in no order";

        /// Lists the members that any of `keys` has.
        fn sunion<K: ToRedisArgs, T: FromRedisValue>(keys: K) -> T
            => "SUNION" (keys), page "sunion", replies "the members, in no order";

        /// Counts the members that all of `keys` have (server 7.0).
        fn sintercard<K: ToRedisArgs>(keys: K) -> i64
            => "SINTERCARD" (keys.num_of_args(), keys), page "sintercard",
                replies "how many there are";

        /// Counts the members that all of `keys` have, up to `limit`; 0 is no limit (server 7.0).
        fn sintercard_limit<K: ToRedisArgs>(keys: K, limit: isize) -> i64
            => "SINTERCARD" (keys.num_of_args(), keys, "LIMIT", limit), page "sintercard",
                replies "how many there are, `limit` at most";
    }
    writes {
        /// Adds members.
        fn sadd<K: ToSingleRedisArg, M: ToRedisArgs>(key: K, members: M) -> i64
            => "SADD" (key, members), page "sadd", replies "how many are new";

        /// Removes members.
        fn srem<K: ToSingleRedisArg, M: ToRedisArgs>(key: K, members: M) -> i64
            => "SREM" (key, members), page "srem", replies "how many were in it";

        /// Moves `member` from one set to another.
        fn smove<S: ToSingleRedisArg, D: ToSingleRedisArg, M: ToSingleRedisArg>(
            srckey: S, dstkey: D, member: M
        ) -> bool
            => "SMOVE" (srckey, dstkey, member), page "smove",
                replies "whether it was in the first";

        /// Takes a member at random.
        fn spop<K: ToSingleRedisArg, T: FromRedisValue>(key: K) -> T
            => "SPOP" (key), page "spop", replies "the member, or nil";

        /// Takes up to `count` members at random.
        fn spop_multiple<K: ToSingleRedisArg, T: FromRedisValue>(key: K, count: isize) -> T
            => "SPOP" (key, count), page "spop", replies "the members";

        /// Stores in `dstkey` the members of the first of `keys` that no other has.
        fn sdiffstore<D: ToSingleRedisArg, K: ToRedisArgs>(dstkey: D, keys: K) -> i64
            => "SDIFFSTORE" (dstkey, keys), page "sdiffstore", replies "how many were stored";

        /// Stores in `dstkey` the members that all of `keys` have.
        fn sinterstore<D: ToSingleRedisArg, K: ToRedisArgs>(dstkey: D, keys: K) -> i64
            => "SINTERSTORE" (dstkey, keys), page "sinterstore", replies "how many were stored";

        /// Stores in `dstkey` the members that any of `keys` has.
        fn sunionstore<D: ToSingleRedisArg, K: ToRedisArgs>(dstkey: D, keys: K) -> i64
            => "SUNIONSTORE" (dstkey, keys), page "sunionstore", replies "how many were stored";
    }
}
