//! Commands that publish messages. SUBSCRIBE is refused, because it would change the connection.

use redis::ToSingleRedisArg;

use crate::transaction::commands::table::command_table;

command_table! {
    /// Queues messages, which are published when the transaction is applied.
    ///
    /// ```no_run
    /// use rediscope::prelude::*;
    ///
    /// fn announce(tx: &mut impl QueueCommands) {
    ///     tx.set("price", 42);
    ///     let heard_by = tx.publish("prices", 42);   // Queued<i64>
    ///     # let _ = heard_by;
    /// }
    /// ```
    PublishCommands
    reads {}
    writes {
        /// Publishes `message` on `channel`.
        fn publish<C: ToSingleRedisArg, M: ToSingleRedisArg>(channel: C, message: M) -> i64
            => "PUBLISH" (channel, message), page "publish",
                replies "how many subscribers received it";

        /// Publishes `message` on the sharded `channel` of a cluster.
        fn spublish<C: ToSingleRedisArg, M: ToSingleRedisArg>(channel: C, message: M) -> i64
            => "SPUBLISH" (channel, message), page "spublish",
                replies "how many subscribers received it";
    }
}
