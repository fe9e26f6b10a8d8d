//! Commands on the bits of a string. Those on its bytes are in
//! [`strings`](crate::transaction::commands::strings).

use redis::{FromRedisValue, ToRedisArgs, ToSingleRedisArg};

use crate::transaction::commands::bitfield::Bitfield;
use crate::transaction::commands::table::command_table;

command_table! {
    /// Queues commands on the bits of a string.
    ///
    /// ```no_run
    /// use rediscope::prelude::*;
    ///
    /// fn seen_today(tx: &mut impl QueueCommands, user: usize) {
    ///     let again = tx.setbit("seen:today", user, true);   // Queued<bool>
    ///     let users = tx.bitcount("seen:today");             // Queued<i64>
    ///     # let _ = (again, users);
    /// }
    /// ```
    BitmapCommands
    reads {
        /// Reads the bit at `offset`.
        fn getbit<K: ToSingleRedisArg>(key: K, offset: usize) -> bool
            => "GETBIT" (key, offset), page "getbit", replies "the bit, 0 beyond the end";

        /// Counts the bits that are set.
        fn bitcount<K: ToSingleRedisArg>(key: K) -> i64
            => "BITCOUNT" (key), page "bitcount", replies "how many are set";

        /// Counts the bits that are set in the bytes `start` to `end`.
        fn bitcount_range<K: ToSingleRedisArg>(key: K, start: usize, end: usize) -> i64
            => "BITCOUNT" (key, start, end), page "bitcount", replies "how many are set";

        /// Reads an integer of any width: see [`Bitfield`](crate::commands::Bitfield).
        fn bitfield_get<K: ToSingleRedisArg, O: ToSingleRedisArg>(
            key: K, encoding: &str, offset: O
        ) -> Vec<i64>
            => "BITFIELD_RO" (key, "GET", encoding, offset), page "bitfield_ro",
                replies "the integer";
    }
    writes {
        /// Sets or clears the bit at `offset`.
        fn setbit<K: ToSingleRedisArg>(key: K, offset: usize, value: bool) -> bool
            => "SETBIT" (key, offset, i32::from(value)), page "setbit", replies "the old bit";

        /// Stores in `dstkey` the bits that are set in all of `srckeys`.
        fn bit_and<D: ToSingleRedisArg, S: ToRedisArgs>(dstkey: D, srckeys: S) -> i64
            => "BITOP" ("AND", dstkey, srckeys), page "bitop", replies "the length in bytes";

        /// Stores in `dstkey` the bits that are set in any of `srckeys`.
        fn bit_or<D: ToSingleRedisArg, S: ToRedisArgs>(dstkey: D, srckeys: S) -> i64
            => "BITOP" ("OR", dstkey, srckeys), page "bitop", replies "the length in bytes";

        /// Stores in `dstkey` the bits that are set in an odd number of `srckeys`.
        fn bit_xor<D: ToSingleRedisArg, S: ToRedisArgs>(dstkey: D, srckeys: S) -> i64
            => "BITOP" ("XOR", dstkey, srckeys), page "bitop", replies "the length in bytes";

        /// Stores in `dstkey` the bits that are not set in `srckey`.
        fn bit_not<D: ToSingleRedisArg, S: ToSingleRedisArg>(dstkey: D, srckey: S) -> i64
            => "BITOP" ("NOT", dstkey, srckey), page "bitop", replies "the length in bytes";

        /// Stores in `dstkey` the bits of the first of `srckeys` that no other has (server 8.2).
        fn bit_diff<D: ToSingleRedisArg, S: ToRedisArgs>(dstkey: D, srckeys: S) -> i64
            => "BITOP" ("DIFF", dstkey, srckeys), page "bitop", replies "the length in bytes";

        /// Stores in `dstkey` the bits that any other of `srckeys` has and the first has not
        /// (server 8.2).
        fn bit_diff1<D: ToSingleRedisArg, S: ToRedisArgs>(dstkey: D, srckeys: S) -> i64
            => "BITOP" ("DIFF1", dstkey, srckeys), page "bitop", replies "the length in bytes";

        /// Stores in `dstkey` the bits of the first of `srckeys` that any other has too (server
        /// 8.2).
        fn bit_and_or<D: ToSingleRedisArg, S: ToRedisArgs>(dstkey: D, srckeys: S) -> i64
            => "BITOP" ("ANDOR", dstkey, srckeys), page "bitop", replies "the length in bytes";

        /// Stores in `dstkey` the bits that are set in exactly one of `srckeys` (server 8.2).
        fn bit_one<D: ToSingleRedisArg, S: ToRedisArgs>(dstkey: D, srckeys: S) -> i64
            => "BITOP" ("ONE", dstkey, srckeys), page "bitop", replies "the length in bytes";

        /// Reads and changes integers of any width. The server treats this as a write, because
        /// `operations` may change some.
        fn bitfield<K: ToSingleRedisArg, T: FromRedisValue>(
            key: K, operations: &Bitfield
        ) -> T
            => "BITFIELD" (key, operations), page "bitfield",
                replies "an integer for each operation, or nil if it would overflow and must not";
    }
}
