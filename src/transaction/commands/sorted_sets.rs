//! Commands on sorted sets.
//!
//! BZPOPMIN and similar commands have no method, because they do not block inside MULTI.
//! [`queue`](crate::transaction::commands::queue_commands::QueueCommands::queue) takes them.

use redis::{FromRedisValue, SortedSetAddOptions, ToRedisArgs, ToSingleRedisArg};

use crate::transaction::commands::table::command_table;

/// The keys of a weighted operation.
fn keys<K, W>(weighted: &[(K, W)]) -> Vec<&K> {
    weighted.iter().map(|(key, _)| key).collect()
}

/// The weights of a weighted operation, in the order of its keys.
fn weights<K, W>(weighted: &[(K, W)]) -> Vec<&W> {
    weighted.iter().map(|(_, weight)| weight).collect()
}

command_table! {
    /// Queues commands on sorted sets.
    ///
    /// A `min` or `max` of scores is a number, `"(5"` to exclude the number itself, `"-inf"` or
    /// `"+inf"`. A `min` or `max` of names is `"[a"`, `"(a"`, `"-"` or `"+"`.
    ///
    /// ```no_run
    /// use rediscope::prelude::*;
    ///
    /// fn score(tx: &mut impl QueueCommands) {
    ///     let points = tx.zincr("ranking", "alice", 5);        // Queued<f64>
    ///     let place = tx.zrevrank("ranking", "alice");         // Queued<Option<i64>>
    ///     let best: Queued<Vec<(String, f64)>> = tx.zrevrange_withscores("ranking", 0, 9);
    ///     # let _ = (points, place, best);
    /// }
    /// ```
    SortedSetCommands
    reads {
        /// Counts the members.
        fn zcard<K: ToSingleRedisArg>(key: K) -> i64
            => "ZCARD" (key), page "zcard", replies "how many there are, 0 if the key is missing";

        /// Counts the members with scores from `min` to `max`.
        fn zcount<K: ToSingleRedisArg, M: ToSingleRedisArg, N: ToSingleRedisArg>(
            key: K, min: M, max: N
        ) -> i64
            => "ZCOUNT" (key, min, max), page "zcount", replies "how many there are";

        /// Counts the members with names from `min` to `max`.
        fn zlexcount<K: ToSingleRedisArg, M: ToSingleRedisArg, N: ToSingleRedisArg>(
            key: K, min: M, max: N
        ) -> i64
            => "ZLEXCOUNT" (key, min, max), page "zlexcount", replies "how many there are";

        /// Reads the score of `member`.
        fn zscore<K: ToSingleRedisArg, M: ToSingleRedisArg>(key: K, member: M) -> Option<f64>
            => "ZSCORE" (key, member), page "zscore", replies "the score, or nil";

        /// Reads the scores of several members.
        fn zscore_multiple<K: ToSingleRedisArg, M: ToRedisArgs>(
            key: K, members: &[M]
        ) -> Vec<Option<f64>>
            => "ZMSCORE" (key, members), page "zmscore",
                replies "a score or nil for each member, in order";

        /// Returns the number of members before `member`, counted from the lowest score.
        fn zrank<K: ToSingleRedisArg, M: ToSingleRedisArg>(key: K, member: M) -> Option<i64>
            => "ZRANK" (key, member), page "zrank", replies "its index from 0, or nil";

        /// Returns the number of members before `member`, counted from the highest score.
        fn zrevrank<K: ToSingleRedisArg, M: ToSingleRedisArg>(key: K, member: M) -> Option<i64>
            => "ZREVRANK" (key, member), page "zrevrank", replies "its index from 0, or nil";

        /// Picks a member at random, or up to `count`; a negative count may pick one twice.
        fn zrandmember<K: ToSingleRedisArg, T: FromRedisValue>(key: K, count: Option<isize>) -> T
            => "ZRANDMEMBER" (key, count), page "zrandmember",
                replies "the member or nil, a list of them if `count` is given";

        /// Picks up to `count` members at random, with their scores.
        fn zrandmember_withscores<K: ToSingleRedisArg, T: FromRedisValue>(
            key: K, count: isize
        ) -> T
            => "ZRANDMEMBER" (key, count, "WITHSCORES"), page "zrandmember",
                replies "members and scores";

        /// Reads the members `start` to `stop`; negative ranks count from the end.
        fn zrange<K: ToSingleRedisArg, T: FromRedisValue>(key: K, start: isize, stop: isize) -> T
            => "ZRANGE" (key, start, stop), page "zrange", replies "members, lowest first";

        /// Reads the members `start` to `stop`, with their scores.
        fn zrange_withscores<K: ToSingleRedisArg, T: FromRedisValue>(
            key: K, start: isize, stop: isize
        ) -> T
            => "ZRANGE" (key, start, stop, "WITHSCORES"), page "zrange",
                replies "members and scores, lowest first";

        /// Reads the members with names from `min` to `max`.
        fn zrangebylex<
            K: ToSingleRedisArg, M: ToSingleRedisArg, N: ToSingleRedisArg, T: FromRedisValue
        >(key: K, min: M, max: N) -> T
            => "ZRANGEBYLEX" (key, min, max), page "zrangebylex",
                replies "members, in order of their names";

        /// Reads up to `count` of the members with names from `min` to `max`, from `offset` on.
        fn zrangebylex_limit<
            K: ToSingleRedisArg, M: ToSingleRedisArg, N: ToSingleRedisArg, T: FromRedisValue
        >(key: K, min: M, max: N, offset: isize, count: isize) -> T
            => "ZRANGEBYLEX" (key, min, max, "LIMIT", offset, count), page "zrangebylex",
                replies "members, in order of their names";

        /// Reads the members with names from `max` down to `min`.
        fn zrevrangebylex<
            K: ToSingleRedisArg, N: ToSingleRedisArg, M: ToSingleRedisArg, T: FromRedisValue
        >(key: K, max: N, min: M) -> T
            => "ZREVRANGEBYLEX" (key, max, min), page "zrevrangebylex",
                replies "members, in falling order of their names";

        /// Reads up to `count` of the members with names from `max` down to `min`, from `offset`
        /// on.
        fn zrevrangebylex_limit<
            K: ToSingleRedisArg, N: ToSingleRedisArg, M: ToSingleRedisArg, T: FromRedisValue
        >(key: K, max: N, min: M, offset: isize, count: isize) -> T
            => "ZREVRANGEBYLEX" (key, max, min, "LIMIT", offset, count), page "zrevrangebylex",
                replies "members, in falling order of their names";

        /// Reads the members with scores from `min` to `max`.
        fn zrangebyscore<
            K: ToSingleRedisArg, M: ToSingleRedisArg, N: ToSingleRedisArg, T: FromRedisValue
        >(key: K, min: M, max: N) -> T
            => "ZRANGEBYSCORE" (key, min, max), page "zrangebyscore",
                replies "members, lowest first";

        /// Reads the members with scores from `min` to `max`, with their scores.
        fn zrangebyscore_withscores<
            K: ToSingleRedisArg, M: ToSingleRedisArg, N: ToSingleRedisArg, T: FromRedisValue
        >(key: K, min: M, max: N) -> T
            => "ZRANGEBYSCORE" (key, min, max, "WITHSCORES"), page "zrangebyscore",
                replies "members and scores, lowest first";

        /// Reads up to `count` of the members with scores from `min` to `max`, from `offset` on.
        fn zrangebyscore_limit<
            K: ToSingleRedisArg, M: ToSingleRedisArg, N: ToSingleRedisArg, T: FromRedisValue
        >(key: K, min: M, max: N, offset: isize, count: isize) -> T
            => "ZRANGEBYSCORE" (key, min, max, "LIMIT", offset, count), page "zrangebyscore",
                replies "members, lowest first";

        /// Reads up to `count` of the members with scores from `min` to `max`, from `offset` on,
        /// with their scores.
        fn zrangebyscore_limit_withscores<
            K: ToSingleRedisArg, M: ToSingleRedisArg, N: ToSingleRedisArg, T: FromRedisValue
        >(key: K, min: M, max: N, offset: isize, count: isize) -> T
            => "ZRANGEBYSCORE" (key, min, max, "WITHSCORES", "LIMIT", offset, count),
                page "zrangebyscore", replies "members and scores, lowest first";

        /// Reads the members `start` to `stop`, counting from the highest score.
        fn zrevrange<K: ToSingleRedisArg, T: FromRedisValue>(
            key: K, start: isize, stop: isize
        ) -> T
            => "ZREVRANGE" (key, start, stop), page "zrevrange", replies "members, highest first";

        /// Reads the members `start` to `stop`, counting from the highest score, with their
        /// scores.
        fn zrevrange_withscores<K: ToSingleRedisArg, T: FromRedisValue>(
            key: K, start: isize, stop: isize
        ) -> T
            => "ZREVRANGE" (key, start, stop, "WITHSCORES"), page "zrevrange",
                replies "members and scores, highest first";

        /// Reads the members with scores from `max` down to `min`.
        fn zrevrangebyscore<
            K: ToSingleRedisArg, N: ToSingleRedisArg, M: ToSingleRedisArg, T: FromRedisValue
        >(key: K, max: N, min: M) -> T
            => "ZREVRANGEBYSCORE" (key, max, min), page "zrevrangebyscore",
                replies "members, highest first";

        /// Reads the members with scores from `max` down to `min`, with their scores.
        fn zrevrangebyscore_withscores<
            K: ToSingleRedisArg, N: ToSingleRedisArg, M: ToSingleRedisArg, T: FromRedisValue
        >(key: K, max: N, min: M) -> T
            => "ZREVRANGEBYSCORE" (key, max, min, "WITHSCORES"), page "zrevrangebyscore",
                replies "members and scores, highest first";

        /// Reads up to `count` of the members with scores from `max` down to `min`, from `offset`
        /// on.
        fn zrevrangebyscore_limit<
            K: ToSingleRedisArg, N: ToSingleRedisArg, M: ToSingleRedisArg, T: FromRedisValue
        >(key: K, max: N, min: M, offset: isize, count: isize) -> T
            => "ZREVRANGEBYSCORE" (key, max, min, "LIMIT", offset, count),
                page "zrevrangebyscore", replies "members, highest first";

        /// Reads up to `count` of the members with scores from `max` down to `min`, from `offset`
        /// on, with their scores.
        fn zrevrangebyscore_limit_withscores<
            K: ToSingleRedisArg, N: ToSingleRedisArg, M: ToSingleRedisArg, T: FromRedisValue
        >(key: K, max: N, min: M, offset: isize, count: isize) -> T
            => "ZREVRANGEBYSCORE" (key, max, min, "WITHSCORES", "LIMIT", offset, count),
                page "zrevrangebyscore", replies "members and scores, highest first";

        /// Lists the members that any of `keys` has, in the order of the sums of their scores.
        fn zunion<K: ToRedisArgs, T: FromRedisValue>(keys: K) -> T
            => "ZUNION" (keys.num_of_args(), keys), page "zunion", replies "the members, lowest first";

        /// Like [`zunion`](Self::zunion), with the sum of the scores of each.
        fn zunion_withscores<K: ToRedisArgs, T: FromRedisValue>(keys: K) -> T
            => "ZUNION" (keys.num_of_args(), keys, "WITHSCORES"), page "zunion",
                replies "members and scores, lowest first";

        /// Like [`zunion_withscores`](Self::zunion_withscores), with the lowest score of each.
        fn zunion_min_withscores<K: ToRedisArgs, T: FromRedisValue>(keys: K) -> T
            => "ZUNION" (keys.num_of_args(), keys, "AGGREGATE", "MIN", "WITHSCORES"), page "zunion",
                replies "members and scores, lowest first";

        /// Like [`zunion_withscores`](Self::zunion_withscores), with the highest score of each.
        fn zunion_max_withscores<K: ToRedisArgs, T: FromRedisValue>(keys: K) -> T
            => "ZUNION" (keys.num_of_args(), keys, "AGGREGATE", "MAX", "WITHSCORES"), page "zunion",
                replies "members and scores, lowest first";

        /// Like [`zunion_withscores`](Self::zunion_withscores), with a factor for the scores after
        /// each key.
        fn zunion_weights_withscores<
            K: ToSingleRedisArg, W: ToSingleRedisArg, T: FromRedisValue
        >(items: &[(K, W)]) -> T
            => "ZUNION" (items.len(), keys(items), "WEIGHTS", weights(items), "WITHSCORES"),
                page "zunion", replies "members and scores, lowest first";

        /// Lists the members that all of `keys` have, in the order of the sums of their scores.
        fn zinter<K: ToRedisArgs, T: FromRedisValue>(keys: K) -> T
            => "ZINTER" (keys.num_of_args(), keys), page "zinter", replies "the members, lowest first";

        /// Like [`zinter`](Self::zinter), with the sum of the scores of each.
        fn zinter_withscores<K: ToRedisArgs, T: FromRedisValue>(keys: K) -> T
            => "ZINTER" (keys.num_of_args(), keys, "WITHSCORES"), page "zinter",
                replies "members and scores, lowest first";

        /// Like [`zinter_withscores`](Self::zinter_withscores), with the lowest score of each.
        fn zinter_min_withscores<K: ToRedisArgs, T: FromRedisValue>(keys: K) -> T
            => "ZINTER" (keys.num_of_args(), keys, "AGGREGATE", "MIN", "WITHSCORES"), page "zinter",
                replies "members and scores, lowest first";

        /// Like [`zinter_withscores`](Self::zinter_withscores), with the highest score of each.
        fn zinter_max_withscores<K: ToRedisArgs, T: FromRedisValue>(keys: K) -> T
            => "ZINTER" (keys.num_of_args(), keys, "AGGREGATE", "MAX", "WITHSCORES"), page "zinter",
                replies "members and scores, lowest first";

        /// Like [`zinter_withscores`](Self::zinter_withscores), with a factor for the scores after
        /// each key.
        fn zinter_weights_withscores<
            K: ToSingleRedisArg, W: ToSingleRedisArg, T: FromRedisValue
        >(items: &[(K, W)]) -> T
            => "ZINTER" (items.len(), keys(items), "WEIGHTS", weights(items), "WITHSCORES"),
                page "zinter", replies "members and scores, lowest first";

        /// Lists the members of the first of `keys` that no other has.
        fn zdiff<K: ToRedisArgs, T: FromRedisValue>(keys: K) -> T
            => "ZDIFF" (keys.num_of_args(), keys), page "zdiff", replies "the members, lowest first";

        /// Like [`zdiff`](Self::zdiff), with the score of each.
        fn zdiff_withscores<K: ToRedisArgs, T: FromRedisValue>(keys: K) -> T
            => "ZDIFF" (keys.num_of_args(), keys, "WITHSCORES"), page "zdiff",
                replies "members and scores, lowest first";

        /// Counts the members that all of `keys` have (server 7.0).
        fn zintercard<K: ToRedisArgs>(keys: K) -> i64
            => "ZINTERCARD" (keys.num_of_args(), keys), page "zintercard",
                replies "how many there are";

        /// Counts the members that all of `keys` have, up to `limit`; 0 is no limit (server 7.0).
        fn zintercard_limit<K: ToRedisArgs>(keys: K, limit: isize) -> i64
            => "ZINTERCARD" (keys.num_of_args(), keys, "LIMIT", limit), page "zintercard",
                replies "how many there are, `limit` at most";
    }
    writes {
        /// Adds `member`, or changes its score.
        fn zadd<K: ToSingleRedisArg, S: ToSingleRedisArg, M: ToSingleRedisArg>(
            key: K, member: M, score: S
        ) -> i64
            => "ZADD" (key, score, member), page "zadd", replies "how many are new";

        /// Adds members, each given after its score, or changes the scores.
        fn zadd_multiple<K: ToSingleRedisArg, S: ToRedisArgs, M: ToRedisArgs>(
            key: K, items: &[(S, M)]
        ) -> i64
            => "ZADD" (key, items), page "zadd", replies "how many are new";

        /// Adds `member`, or changes its score, with `options`.
        fn zadd_options<
            K: ToSingleRedisArg, S: ToSingleRedisArg, M: ToSingleRedisArg, T: FromRedisValue
        >(key: K, member: M, score: S, options: &SortedSetAddOptions) -> T
            => "ZADD" (key, options, score, member), page "zadd",
                replies "how many are new or changed; with `increment_score` the new score or nil";

        /// Adds members, each given after its score, or changes the scores, with `options`.
        fn zadd_multiple_options<
            K: ToSingleRedisArg, S: ToRedisArgs, M: ToRedisArgs, T: FromRedisValue
        >(key: K, items: &[(S, M)], options: &SortedSetAddOptions) -> T
            => "ZADD" (key, options, items), page "zadd",
                replies "how many are new or changed; with `increment_score` the new score or nil";

        /// Adds `by` to the score of `member`; the score of a missing member is 0.
        fn zincr<K: ToSingleRedisArg, M: ToSingleRedisArg, V: ToSingleRedisArg>(
            key: K, member: M, by: V
        ) -> f64
            => "ZINCRBY" (key, by, member), page "zincrby", replies "the new score";

        /// Removes members.
        fn zrem<K: ToSingleRedisArg, M: ToRedisArgs>(key: K, members: M) -> i64
            => "ZREM" (key, members), page "zrem", replies "how many were in it";

        /// Removes the members with names from `min` to `max`.
        fn zrembylex<K: ToSingleRedisArg, M: ToSingleRedisArg, N: ToSingleRedisArg>(
            key: K, min: M, max: N
        ) -> i64
            => "ZREMRANGEBYLEX" (key, min, max), page "zremrangebylex",
                replies "how many were removed";

        /// Removes the members `start` to `stop`; negative ranks count from the end.
        fn zremrangebyrank<K: ToSingleRedisArg>(key: K, start: isize, stop: isize) -> i64
            => "ZREMRANGEBYRANK" (key, start, stop), page "zremrangebyrank",
                replies "how many were removed";

        /// Removes the members with scores from `min` to `max`.
        fn zrembyscore<K: ToSingleRedisArg, M: ToSingleRedisArg, N: ToSingleRedisArg>(
            key: K, min: M, max: N
        ) -> i64
            => "ZREMRANGEBYSCORE" (key, min, max), page "zremrangebyscore",
                replies "how many were removed";

        /// Takes up to `count` members with the highest scores.
        fn zpopmax<K: ToSingleRedisArg, T: FromRedisValue>(key: K, count: isize) -> T
            => "ZPOPMAX" (key, count), page "zpopmax",
                replies "members and scores, highest first";

        /// Takes up to `count` members with the lowest scores.
        fn zpopmin<K: ToSingleRedisArg, T: FromRedisValue>(key: K, count: isize) -> T
            => "ZPOPMIN" (key, count), page "zpopmin", replies "members and scores, lowest first";

        /// Takes up to `count` members with the highest scores from the first of `keys` that has
        /// any.
        fn zmpop_max<K: ToRedisArgs, T: FromRedisValue>(keys: K, count: isize) -> T
            => "ZMPOP" (keys.num_of_args(), keys, "MAX", "COUNT", count), page "zmpop",
                replies "the key and its members and scores, or nil";

        /// Takes up to `count` members with the lowest scores from the first of `keys` that has
        /// any.
        fn zmpop_min<K: ToRedisArgs, T: FromRedisValue>(keys: K, count: isize) -> T
            => "ZMPOP" (keys.num_of_args(), keys, "MIN", "COUNT", count), page "zmpop",
                replies "the key and its members and scores, or nil";

        /// Stores in `dstkey` the members that all of `keys` have, with the sum of their scores.
        fn zinterstore<D: ToSingleRedisArg, K: ToRedisArgs>(dstkey: D, keys: K) -> i64
            => "ZINTERSTORE" (dstkey, keys.num_of_args(), keys), page "zinterstore",
                replies "how many were stored";

        /// Like [`zinterstore`](Self::zinterstore), with the lowest of the scores.
        fn zinterstore_min<D: ToSingleRedisArg, K: ToRedisArgs>(dstkey: D, keys: K) -> i64
            => "ZINTERSTORE" (dstkey, keys.num_of_args(), keys, "AGGREGATE", "MIN"),
                page "zinterstore", replies "how many were stored";

        /// Like [`zinterstore`](Self::zinterstore), with the highest of the scores.
        fn zinterstore_max<D: ToSingleRedisArg, K: ToRedisArgs>(dstkey: D, keys: K) -> i64
            => "ZINTERSTORE" (dstkey, keys.num_of_args(), keys, "AGGREGATE", "MAX"),
                page "zinterstore", replies "how many were stored";

        /// Like [`zinterstore`](Self::zinterstore), with a factor for the scores after each key.
        fn zinterstore_weights<
            D: ToSingleRedisArg, K: ToSingleRedisArg, W: ToSingleRedisArg
        >(dstkey: D, items: &[(K, W)]) -> i64
            => "ZINTERSTORE" (dstkey, items.len(), keys(items), "WEIGHTS", weights(items)),
                page "zinterstore", replies "how many were stored";

        /// Like [`zinterstore_min`](Self::zinterstore_min), with a factor for the scores after each
        /// key.
        fn zinterstore_min_weights<
            D: ToSingleRedisArg, K: ToSingleRedisArg, W: ToSingleRedisArg
        >(dstkey: D, items: &[(K, W)]) -> i64
            => "ZINTERSTORE" (
                dstkey, items.len(), keys(items), "AGGREGATE", "MIN", "WEIGHTS", weights(items)
            ), page "zinterstore", replies "how many were stored";

        /// Like [`zinterstore_max`](Self::zinterstore_max), with a factor for the scores after each
        /// key.
        fn zinterstore_max_weights<
            D: ToSingleRedisArg, K: ToSingleRedisArg, W: ToSingleRedisArg
        >(dstkey: D, items: &[(K, W)]) -> i64
            => "ZINTERSTORE" (
                dstkey, items.len(), keys(items), "AGGREGATE", "MAX", "WEIGHTS", weights(items)
            ), page "zinterstore", replies "how many were stored";

        /// Stores in `dstkey` the members that any of `keys` has, with the sum of their scores.
        fn zunionstore<D: ToSingleRedisArg, K: ToRedisArgs>(dstkey: D, keys: K) -> i64
            => "ZUNIONSTORE" (dstkey, keys.num_of_args(), keys), page "zunionstore",
                replies "how many were stored";

        /// Like [`zunionstore`](Self::zunionstore), with the lowest of the scores.
        fn zunionstore_min<D: ToSingleRedisArg, K: ToRedisArgs>(dstkey: D, keys: K) -> i64
            => "ZUNIONSTORE" (dstkey, keys.num_of_args(), keys, "AGGREGATE", "MIN"),
                page "zunionstore", replies "how many were stored";

        /// Like [`zunionstore`](Self::zunionstore), with the highest of the scores.
        fn zunionstore_max<D: ToSingleRedisArg, K: ToRedisArgs>(dstkey: D, keys: K) -> i64
            => "ZUNIONSTORE" (dstkey, keys.num_of_args(), keys, "AGGREGATE", "MAX"),
                page "zunionstore", replies "how many were stored";

        /// Like [`zunionstore`](Self::zunionstore), with a factor for the scores after each key.
        fn zunionstore_weights<
            D: ToSingleRedisArg, K: ToSingleRedisArg, W: ToSingleRedisArg
        >(dstkey: D, items: &[(K, W)]) -> i64
            => "ZUNIONSTORE" (dstkey, items.len(), keys(items), "WEIGHTS", weights(items)),
                page "zunionstore", replies "how many were stored";

        /// Like [`zunionstore_min`](Self::zunionstore_min), with a factor for the scores after each
        /// key.
        fn zunionstore_min_weights<
            D: ToSingleRedisArg, K: ToSingleRedisArg, W: ToSingleRedisArg
        >(dstkey: D, items: &[(K, W)]) -> i64
            => "ZUNIONSTORE" (
                dstkey, items.len(), keys(items), "AGGREGATE", "MIN", "WEIGHTS", weights(items)
            ), page "zunionstore", replies "how many were stored";

        /// Like [`zunionstore_max`](Self::zunionstore_max), with a factor for the scores after each
        /// key.
        fn zunionstore_max_weights<
            D: ToSingleRedisArg, K: ToSingleRedisArg, W: ToSingleRedisArg
        >(dstkey: D, items: &[(K, W)]) -> i64
            => "ZUNIONSTORE" (
                dstkey, items.len(), keys(items), "AGGREGATE", "MAX", "WEIGHTS", weights(items)
            ), page "zunionstore", replies "how many were stored";

        /// Stores in `dstkey` the members of the first of `keys` that no other has.
        fn zdiffstore<D: ToSingleRedisArg, K: ToRedisArgs>(dstkey: D, keys: K) -> i64
            => "ZDIFFSTORE" (dstkey, keys.num_of_args(), keys), page "zdiffstore",
                replies "how many were stored";

        /// Stores in `dstkey` the members `start` to `stop`; negative ranks count from the end.
        fn zrangestore<D: ToSingleRedisArg, S: ToSingleRedisArg>(
            dstkey: D, srckey: S, start: isize, stop: isize
        ) -> i64
            => "ZRANGESTORE" (dstkey, srckey, start, stop), page "zrangestore",
                replies "how many were stored";

        /// Stores in `dstkey` the members with scores from `min` to `max`.
        fn zrangestore_byscore<
            D: ToSingleRedisArg, S: ToSingleRedisArg, M: ToSingleRedisArg, N: ToSingleRedisArg
        >(dstkey: D, srckey: S, min: M, max: N) -> i64
            => "ZRANGESTORE" (dstkey, srckey, min, max, "BYSCORE"), page "zrangestore",
                replies "how many were stored";

        /// Stores in `dstkey` the members with names from `min` to `max`.
        fn zrangestore_bylex<
            D: ToSingleRedisArg, S: ToSingleRedisArg, M: ToSingleRedisArg, N: ToSingleRedisArg
        >(dstkey: D, srckey: S, min: M, max: N) -> i64
            => "ZRANGESTORE" (dstkey, srckey, min, max, "BYLEX"), page "zrangestore",
                replies "how many were stored";
    }
}
