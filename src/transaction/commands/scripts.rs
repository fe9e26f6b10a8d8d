//! Commands that run scripts and functions on the server.
//!
//! A script that is not loaded fails its command, and is not retried; see [`ScriptCommands`].

use redis::{FromRedisValue, ToRedisArgs, ToSingleRedisArg};

use crate::transaction::commands::table::command_table;

command_table! {
    /// Queues scripts and functions, which run on the server.
    ///
    /// No reply is read before EXEC. So a script that is not loaded cannot be loaded and retried,
    /// as [`redis::Script::invoke`] does. Queue [`script_load`](Self::script_load) before
    /// [`evalsha`](Self::evalsha), or send the whole text with [`eval`](Self::eval). A
    /// [`redis::Script`] is queued with `queue(redis::Cmd::invoke_script(&script.key("k")))`.
    ///
    /// If there are no keys or no arguments, pass `None::<&str>`.
    ///
    /// ```no_run
    /// use rediscope::prelude::*;
    ///
    /// fn take(tx: &mut impl QueueCommands) {
    ///     const TAKE: &str = "return redis.call('DECRBY', KEYS[1], ARGV[1])";
    ///     let left: Queued<i64> = tx.eval(TAKE, "stock", 1);
    ///     # let _ = left;
    /// }
    /// ```
    ScriptCommands
    reads {
        /// Runs the Lua text `script`, which may only read.
        fn eval_ro<S: ToSingleRedisArg, K: ToRedisArgs, A: ToRedisArgs, T: FromRedisValue>(
            script: S, keys: K, args: A
        ) -> T
            => "EVAL_RO" (script, keys.num_of_args(), keys, args), page "eval_ro",
                replies "what the script returns";

        /// Runs the loaded script with this SHA-1 in hexadecimal, which may only read.
        fn evalsha_ro<S: ToSingleRedisArg, K: ToRedisArgs, A: ToRedisArgs, T: FromRedisValue>(
            sha1: S, keys: K, args: A
        ) -> T
            => "EVALSHA_RO" (sha1, keys.num_of_args(), keys, args), page "evalsha_ro",
                replies "what the script returns";

        /// Runs a loaded function, which may only read.
        fn fcall_ro<F: ToSingleRedisArg, K: ToRedisArgs, A: ToRedisArgs, T: FromRedisValue>(
            function: F, keys: K, args: A
        ) -> T
            => "FCALL_RO" (function, keys.num_of_args(), keys, args), page "fcall_ro",
                replies "what the function returns";
    }
    writes {
        /// Runs the Lua text `script`.
        fn eval<S: ToSingleRedisArg, K: ToRedisArgs, A: ToRedisArgs, T: FromRedisValue>(
            script: S, keys: K, args: A
        ) -> T
            => "EVAL" (script, keys.num_of_args(), keys, args), page "eval",
                replies "what the script returns";

        /// Runs the loaded script with this SHA-1 in hexadecimal.
        fn evalsha<S: ToSingleRedisArg, K: ToRedisArgs, A: ToRedisArgs, T: FromRedisValue>(
            sha1: S, keys: K, args: A
        ) -> T
            => "EVALSHA" (sha1, keys.num_of_args(), keys, args), page "evalsha",
                replies "what the script returns";

        /// Runs a loaded function.
        fn fcall<F: ToSingleRedisArg, K: ToRedisArgs, A: ToRedisArgs, T: FromRedisValue>(
            function: F, keys: K, args: A
        ) -> T
            => "FCALL" (function, keys.num_of_args(), keys, args), page "fcall",
                replies "what the function returns";

        /// Loads the Lua text `script` without running it.
        fn script_load<S: ToSingleRedisArg>(script: S) -> String
            => "SCRIPT" "LOAD" (script), page "script-load", replies "its SHA-1 in hexadecimal";
    }
}
