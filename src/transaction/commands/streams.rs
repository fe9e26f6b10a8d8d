//! Commands on streams. BLOCK does nothing inside MULTI, so a read with BLOCK is refused.

use redis::streams::{
    StreamAddOptions, StreamAutoClaimOptions, StreamClaimOptions, StreamConfigOptions,
    StreamDeletionPolicy, StreamMaxlen, StreamNackOptions, StreamReadOptions, StreamTrimOptions,
};
use redis::{FromRedisValue, ToRedisArgs, ToSingleRedisArg};

use crate::transaction::commands::table::command_table;

command_table! {
    /// Queues commands on streams.
    ///
    /// ```no_run
    /// use rediscope::prelude::*;
    ///
    /// fn log_in(tx: &mut impl QueueCommands) {
    ///     let id: Queued<String> = tx.xadd("events", "*", &[("user", "alice"), ("did", "login")]);
    ///     let events = tx.xlen("events");   // Queued<i64>
    ///     # let _ = (id, events);
    /// }
    /// ```
    StreamCommands
    reads {
        /// Counts the messages of a stream.
        fn xlen<K: ToSingleRedisArg>(key: K) -> i64
            => "XLEN" (key), page "xlen", replies "how many there are, 0 if the key is missing";

        /// Reads the messages from `start` to `end`; `-` and `+` are the first and the last.
        fn xrange<
            K: ToSingleRedisArg, S: ToSingleRedisArg, E: ToSingleRedisArg, T: FromRedisValue
        >(key: K, start: S, end: E) -> T
            => "XRANGE" (key, start, end), page "xrange",
                replies "the messages, oldest first (see [`redis::streams::StreamRangeReply`])";

        /// Reads every message of a stream.
        fn xrange_all<K: ToSingleRedisArg, T: FromRedisValue>(key: K) -> T
            => "XRANGE" (key, "-", "+"), page "xrange",
                replies "the messages, oldest first (see [`redis::streams::StreamRangeReply`])";

        /// Reads up to `count` messages from `start` to `end`.
        fn xrange_count<
            K: ToSingleRedisArg, S: ToSingleRedisArg, E: ToSingleRedisArg, C: ToSingleRedisArg,
            T: FromRedisValue
        >(key: K, start: S, end: E, count: C) -> T
            => "XRANGE" (key, start, end, "COUNT", count), page "xrange",
                replies "the messages, oldest first (see [`redis::streams::StreamRangeReply`])";

        /// Reads the messages from `end` back to `start`.
        fn xrevrange<
            K: ToSingleRedisArg, E: ToSingleRedisArg, S: ToSingleRedisArg, T: FromRedisValue
        >(key: K, end: E, start: S) -> T
            => "XREVRANGE" (key, end, start), page "xrevrange",
                replies "the messages, newest first (see [`redis::streams::StreamRangeReply`])";

        /// Reads every message of a stream backwards.
        fn xrevrange_all<K: ToSingleRedisArg, T: FromRedisValue>(key: K) -> T
            => "XREVRANGE" (key, "+", "-"), page "xrevrange",
                replies "the messages, newest first (see [`redis::streams::StreamRangeReply`])";

        /// Reads up to `count` messages from `end` back to `start`.
        fn xrevrange_count<
            K: ToSingleRedisArg, E: ToSingleRedisArg, S: ToSingleRedisArg, C: ToSingleRedisArg,
            T: FromRedisValue
        >(key: K, end: E, start: S, count: C) -> T
            => "XREVRANGE" (key, end, start, "COUNT", count), page "xrevrange",
                replies "the messages, newest first (see [`redis::streams::StreamRangeReply`])";

        /// Reads from each of `keys` the messages after the id at the same position of `ids`.
        fn xread<K: ToRedisArgs, I: ToRedisArgs, T: FromRedisValue>(keys: &[K], ids: &[I]) -> T
            => "XREAD" ("STREAMS", keys, ids), page "xread",
                replies "the messages by stream (see [`redis::streams::StreamReadReply`]), or nil";

        /// Summarizes the messages that were delivered to `group` and not acknowledged.
        fn xpending<K: ToSingleRedisArg, G: ToSingleRedisArg, T: FromRedisValue>(
            key: K, group: G
        ) -> T
            => "XPENDING" (key, group), page "xpending",
                replies "the sums (see [`redis::streams::StreamPendingReply`])";

        /// Lists up to `count` messages from `start` to `end` that were delivered to `group` and
        /// not acknowledged.
        fn xpending_count<
            K: ToSingleRedisArg, G: ToSingleRedisArg, S: ToSingleRedisArg, E: ToSingleRedisArg,
            C: ToSingleRedisArg, T: FromRedisValue
        >(key: K, group: G, start: S, end: E, count: C) -> T
            => "XPENDING" (key, group, start, end, count), page "xpending",
                replies "their ids and more (see [`redis::streams::StreamPendingCountReply`])";

        /// Like [`xpending_count`](Self::xpending_count), for one `consumer` of the group.
        fn xpending_consumer_count<
            K: ToSingleRedisArg, G: ToSingleRedisArg, S: ToSingleRedisArg, E: ToSingleRedisArg,
            C: ToSingleRedisArg, N: ToSingleRedisArg, T: FromRedisValue
        >(key: K, group: G, start: S, end: E, count: C, consumer: N) -> T
            => "XPENDING" (key, group, start, end, count, consumer), page "xpending",
                replies "their ids and more (see [`redis::streams::StreamPendingCountReply`])";

        /// Describes a stream.
        fn xinfo_stream<K: ToSingleRedisArg, T: FromRedisValue>(key: K) -> T
            => "XINFO" "STREAM" (key), page "xinfo-stream",
                replies "its length, ids and more (see [`redis::streams::StreamInfoStreamReply`])";

        /// Describes the groups of a stream.
        fn xinfo_groups<K: ToSingleRedisArg, T: FromRedisValue>(key: K) -> T
            => "XINFO" "GROUPS" (key), page "xinfo-groups",
                replies "a list of groups (see [`redis::streams::StreamInfoGroupsReply`])";

        /// Describes the consumers of a group.
        fn xinfo_consumers<K: ToSingleRedisArg, G: ToSingleRedisArg, T: FromRedisValue>(
            key: K, group: G
        ) -> T
            => "XINFO" "CONSUMERS" (key, group), page "xinfo-consumers",
                replies "a list of consumers (see [`redis::streams::StreamInfoConsumersReply`])";
    }
    writes {
        /// Adds a message; the id `*` lets the server choose one.
        fn xadd<
            K: ToSingleRedisArg, I: ToSingleRedisArg, F: ToRedisArgs, V: ToRedisArgs
        >(key: K, id: I, items: &[(F, V)]) -> String
            => "XADD" (key, id, items), page "xadd", replies "the message's id";

        /// Adds a message whose fields and values are those of `map`.
        fn xadd_map<
            K: ToSingleRedisArg, I: ToSingleRedisArg, M: ToRedisArgs
        >(key: K, id: I, map: M) -> String
            => "XADD" (key, id, map), page "xadd", replies "the message's id";

        /// Adds a message with `options`.
        fn xadd_options<
            K: ToSingleRedisArg, I: ToSingleRedisArg, M: ToRedisArgs, T: FromRedisValue
        >(key: K, id: I, items: M, options: &StreamAddOptions) -> T
            => "XADD" (key, options, id, items), page "xadd",
                replies "the message's id, or nil if `options` forbid to create the stream";

        /// Adds a message and cuts the stream to a length.
        fn xadd_maxlen<
            K: ToSingleRedisArg, I: ToSingleRedisArg, F: ToRedisArgs, V: ToRedisArgs
        >(key: K, maxlen: StreamMaxlen, id: I, items: &[(F, V)]) -> String
            => "XADD" (key, maxlen, id, items), page "xadd", replies "the message's id";

        /// Adds a message whose fields and values are those of `map`, and cuts the stream to a
        /// length.
        fn xadd_maxlen_map<
            K: ToSingleRedisArg, I: ToSingleRedisArg, M: ToRedisArgs
        >(key: K, maxlen: StreamMaxlen, id: I, map: M) -> String
            => "XADD" (key, maxlen, id, map), page "xadd", replies "the message's id";

        /// Deletes messages.
        fn xdel<K: ToSingleRedisArg, I: ToRedisArgs>(key: K, ids: &[I]) -> i64
            => "XDEL" (key, ids), page "xdel", replies "how many existed";

        /// Deletes messages, and the groups' references to them by `policy` (server 8.2).
        fn xdel_ex<K: ToSingleRedisArg, I: ToRedisArgs>(
            key: K, ids: &[I], policy: StreamDeletionPolicy
        ) -> Vec<i64>
            => "XDELEX" (key, policy, "IDS", ids.len(), ids), page "xdelex",
                replies "for each message 1, 2 if a group still needs it, -1 if it is missing";

        /// Cuts a stream to a length.
        fn xtrim<K: ToSingleRedisArg>(key: K, maxlen: StreamMaxlen) -> i64
            => "XTRIM" (key, maxlen), page "xtrim", replies "how many messages were deleted";

        /// Cuts a stream with `options`.
        fn xtrim_options<K: ToSingleRedisArg>(key: K, options: &StreamTrimOptions) -> i64
            => "XTRIM" (key, options), page "xtrim", replies "how many messages were deleted";

        /// Sets how long, and for how many messages, a stream refuses duplicates (server 8.6).
        fn xcfgset<K: ToSingleRedisArg>(key: K, options: &StreamConfigOptions) -> ()
            => "XCFGSET" (key, options), page "xcfgset", replies "`OK`";

        /// Reads messages with `options`. If these name a group, the read changes the group's
        /// pending messages. BLOCK is refused.
        fn xread_options<K: ToRedisArgs, I: ToRedisArgs, T: FromRedisValue>(
            keys: &[K], ids: &[I], options: &StreamReadOptions
        ) -> T
            => "XREAD" [if !options.read_only() => "XREADGROUP"] (options, "STREAMS", keys, ids),
                page "xreadgroup",
                replies "the messages by stream (see [`redis::streams::StreamReadReply`]), or nil";

        /// Acknowledges messages.
        fn xack<K: ToSingleRedisArg, G: ToSingleRedisArg, I: ToRedisArgs>(
            key: K, group: G, ids: &[I]
        ) -> i64
            => "XACK" (key, group, ids), page "xack", replies "how many were pending";

        /// Acknowledges messages and deletes them by `policy` (server 8.2).
        fn xack_del<K: ToSingleRedisArg, G: ToSingleRedisArg, I: ToRedisArgs>(
            key: K, group: G, ids: &[I], policy: StreamDeletionPolicy
        ) -> Vec<i64>
            => "XACKDEL" (key, group, policy, "IDS", ids.len(), ids), page "xackdel",
                replies "for each message 1, 2 if a group still needs it, -1 if it is missing";

        /// Returns messages without acknowledgement (server 8.8).
        fn xnack<K: ToSingleRedisArg, G: ToSingleRedisArg, I: ToSingleRedisArg>(
            key: K, group: G, ids: &[I], options: &StreamNackOptions
        ) -> i64
            => "XNACK" (key, group, options, "IDS", ids.len(), ids), page "xnack",
                replies "how many were returned";

        /// Assigns pending messages that were idle for `min_idle_time` milliseconds to `consumer`.
        fn xclaim<
            K: ToSingleRedisArg, G: ToSingleRedisArg, C: ToSingleRedisArg, M: ToSingleRedisArg,
            I: ToRedisArgs, T: FromRedisValue
        >(key: K, group: G, consumer: C, min_idle_time: M, ids: &[I]) -> T
            => "XCLAIM" (key, group, consumer, min_idle_time, ids), page "xclaim",
                replies "the messages (see [`redis::streams::StreamClaimReply`])";

        /// Like [`xclaim`](Self::xclaim), with `options`.
        fn xclaim_options<
            K: ToSingleRedisArg, G: ToSingleRedisArg, C: ToSingleRedisArg, M: ToSingleRedisArg,
            I: ToRedisArgs, T: FromRedisValue
        >(
            key: K, group: G, consumer: C, min_idle_time: M, ids: &[I],
            options: StreamClaimOptions
        ) -> T
            => "XCLAIM" (key, group, consumer, min_idle_time, ids, options), page "xclaim",
                replies "the messages, or their ids alone, as `options` request";

        /// Assigns pending messages from `start` on, which were idle for `min_idle_time`
        /// milliseconds, to `consumer`, with `options`.
        fn xautoclaim_options<
            K: ToSingleRedisArg, G: ToSingleRedisArg, C: ToSingleRedisArg, M: ToSingleRedisArg,
            S: ToSingleRedisArg, T: FromRedisValue
        >(
            key: K, group: G, consumer: C, min_idle_time: M, start: S,
            options: StreamAutoClaimOptions
        ) -> T
            => "XAUTOCLAIM" (key, group, consumer, min_idle_time, start, options),
                page "xautoclaim",
                replies "where to go on, and the messages \
                    (see [`redis::streams::StreamAutoClaimReply`])";

        /// Creates a group that reads from `id` on; fails if the stream is missing.
        fn xgroup_create<K: ToSingleRedisArg, G: ToSingleRedisArg, I: ToSingleRedisArg>(
            key: K, group: G, id: I
        ) -> ()
            => "XGROUP" "CREATE" (key, group, id), page "xgroup-create", replies "`OK`";

        /// Creates a group that reads from `id` on, and the stream if it is missing.
        fn xgroup_create_mkstream<K: ToSingleRedisArg, G: ToSingleRedisArg, I: ToSingleRedisArg>(
            key: K, group: G, id: I
        ) -> ()
            => "XGROUP" "CREATE" (key, group, id, "MKSTREAM"), page "xgroup-create",
                replies "`OK`";

        /// Creates a consumer of a group.
        fn xgroup_createconsumer<K: ToSingleRedisArg, G: ToSingleRedisArg, C: ToSingleRedisArg>(
            key: K, group: G, consumer: C
        ) -> bool
            => "XGROUP" "CREATECONSUMER" (key, group, consumer), page "xgroup-createconsumer",
                replies "whether it is new";

        /// Makes a group continue from `id`.
        fn xgroup_setid<K: ToSingleRedisArg, G: ToSingleRedisArg, I: ToSingleRedisArg>(
            key: K, group: G, id: I
        ) -> ()
            => "XGROUP" "SETID" (key, group, id), page "xgroup-setid", replies "`OK`";

        /// Deletes a group.
        fn xgroup_destroy<K: ToSingleRedisArg, G: ToSingleRedisArg>(key: K, group: G) -> bool
            => "XGROUP" "DESTROY" (key, group), page "xgroup-destroy",
                replies "whether it existed";

        /// Deletes a consumer of a group.
        fn xgroup_delconsumer<K: ToSingleRedisArg, G: ToSingleRedisArg, C: ToSingleRedisArg>(
            key: K, group: G, consumer: C
        ) -> i64
            => "XGROUP" "DELCONSUMER" (key, group, consumer), page "xgroup-delconsumer",
                replies "how many messages it had pending";
    }
}
