//! Commands on HyperLogLogs, which estimate the number of different elements. For an exact count
//! use [`sets`](crate::transaction::commands::sets).

use redis::{ToRedisArgs, ToSingleRedisArg};

use crate::transaction::commands::table::command_table;

command_table! {
    /// Queues commands on HyperLogLogs, which estimate the number of different elements.
    ///
    /// ```no_run
    /// use rediscope::prelude::*;
    ///
    /// fn visit(tx: &mut impl QueueCommands) {
    ///     tx.pfadd("visitors:today", "alice");
    ///     let visitors = tx.pfcount(&["visitors:today", "visitors:yesterday"]);   // Queued<i64>
    ///     # let _ = visitors;
    /// }
    /// ```
    HyperLogLogCommands
    reads {
        /// Estimates the number of different elements added to any of `keys`.
        ///
        /// The server may store the estimate in the key. If the key is watched, that counts as a
        /// change and ends the attempt in a conflict; the next attempt finds the estimate stored.
        fn pfcount<K: ToRedisArgs>(keys: K) -> i64
            => "PFCOUNT" (keys), page "pfcount", replies "the estimate";
    }
    writes {
        /// Adds elements.
        fn pfadd<K: ToSingleRedisArg, E: ToRedisArgs>(key: K, elements: E) -> bool
            => "PFADD" (key, elements), page "pfadd", replies "whether the estimate may change";

        /// Adds to `dstkey` the elements that were added to any of `srckeys`.
        fn pfmerge<D: ToSingleRedisArg, S: ToRedisArgs>(dstkey: D, srckeys: S) -> ()
            => "PFMERGE" (dstkey, srckeys), page "pfmerge", replies "`OK`";
    }
}
