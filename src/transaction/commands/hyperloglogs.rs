//! Commands on HyperLogLogs, which estimate how many different things were seen.
//!
//! Never: an exact count; for that there are [`sets`](crate::transaction::commands::sets).

use redis::{ToRedisArgs, ToSingleRedisArg};

use crate::transaction::commands::table::command_table;

command_table! {
    /// Queues commands on HyperLogLogs, which estimate how many different things were seen.
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
        /// Estimates how many different things were added to any of `keys`.
        ///
        /// The server may store the estimate in the key. Where the key is watched, that counts as
        /// a change and costs the attempt; the next one finds it stored.
        fn pfcount<K: ToRedisArgs>(keys: K) -> i64
            => "PFCOUNT" (keys), page "pfcount", replies "the estimate";
    }
    writes {
        /// Adds elements.
        fn pfadd<K: ToSingleRedisArg, E: ToRedisArgs>(key: K, elements: E) -> bool
            => "PFADD" (key, elements), page "pfadd", replies "whether the estimate may change";

        /// Adds to `dstkey` what was added to any of `srckeys`.
        fn pfmerge<D: ToSingleRedisArg, S: ToRedisArgs>(dstkey: D, srckeys: S) -> ()
            => "PFMERGE" (dstkey, srckeys), page "pfmerge", replies "`OK`";
    }
}
