//! Conditions on streams. None of them reads an entry's fields.

use redis::ToSingleRedisArg;

use crate::transaction::condition::expected::{Bound, Expected};
use crate::transaction::condition::table::conditions;

conditions! {
    /// Conditions on streams.
    impl Condition {
        /// The stream `key` has the entry `id`, such as `1700000000000-0`. An identifier without
        /// a sequence number stands for any entry of its millisecond.
        fn stream_contains<K: ToSingleRedisArg, I: ToSingleRedisArg>(key: K, id: I)
            => "XRANGE" (key, &id, &id, "COUNT", 1), page "xrange", holds Expected::There(true);

        /// The stream `key` has no entry `id`, or there is no stream.
        fn stream_not_contains<K: ToSingleRedisArg, I: ToSingleRedisArg>(key: K, id: I)
            => "XRANGE" (key, &id, &id, "COUNT", 1), page "xrange", holds Expected::There(false);

        /// `key` holds a stream of exactly `len` entries.
        fn stream_len_equals<K: ToSingleRedisArg>(key: K, len: i64)
            => "XLEN" (key), page "xlen", holds Expected::Count(Bound::Exactly(len));

        /// `key` holds a stream of `least` entries or more.
        fn stream_len_at_least<K: ToSingleRedisArg>(key: K, least: i64)
            => "XLEN" (key), page "xlen", holds Expected::Count(Bound::AtLeast(least));

        /// `key` holds a stream of `most` entries or fewer.
        fn stream_len_at_most<K: ToSingleRedisArg>(key: K, most: i64)
            => "XLEN" (key), page "xlen", holds Expected::Count(Bound::AtMost(most));
    }
}
