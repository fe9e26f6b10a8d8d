//! Commands on the server and its databases. A command that changes the connection or stops the
//! server is refused by name.

use redis::{FlushAllOptions, FlushDbOptions, FromRedisValue, ToSingleRedisArg};

use crate::transaction::commands::table::command_table;

command_table! {
    /// Queues commands on the server and its databases.
    ///
    /// ```no_run
    /// use rediscope::prelude::*;
    ///
    /// fn start_over(tx: &mut impl QueueCommands) {
    ///     tx.flushdb();
    ///     tx.set("generation", 1);
    /// }
    /// ```
    ServerCommands
    reads {
        /// Sends PING.
        fn ping() -> String
            => "PING" (), page "ping", replies "`PONG`";

        /// Sends PING with `message`, which the server returns.
        fn ping_message<M: ToSingleRedisArg, T: FromRedisValue>(message: M) -> T
            => "PING" (message), page "ping", replies "the message";
    }
    writes {
        /// Deletes every key of every database.
        fn flushall() -> ()
            => "FLUSHALL" (), page "flushall", replies "`OK`";

        /// Deletes every key of every database, in the foreground or in the background.
        fn flushall_options(options: &FlushAllOptions) -> ()
            => "FLUSHALL" (options), page "flushall", replies "`OK`";

        /// Deletes every key of this database.
        fn flushdb() -> ()
            => "FLUSHDB" (), page "flushdb", replies "`OK`";

        /// Deletes every key of this database, in the foreground or in the background.
        fn flushdb_options(options: &FlushDbOptions) -> ()
            => "FLUSHDB" (options), page "flushdb", replies "`OK`";
    }
}
