//! Conditions on lists. None of them searches for an element.

use redis::ToSingleRedisArg;

use crate::transaction::condition::expected::{Bound, Expected};
use crate::transaction::condition::table::conditions;

conditions! {
    /// Conditions on lists.
    impl Condition {
        /// The element at `index` of the list `key` is `value`, byte for byte; -1 is the last one.
        /// A missing element does not match.
        fn list_index_equals<K: ToSingleRedisArg, V: ToSingleRedisArg>(key: K, index: i64, value: V)
            => "LINDEX" (key, index), page "lindex", holds Expected::value(&value);

        /// The element at `index` of the list `key` is not `value`, or is missing.
        fn list_index_not_equals<K: ToSingleRedisArg, V: ToSingleRedisArg>(
            key: K, index: i64, value: V
        )
            => "LINDEX" (key, index), page "lindex", holds Expected::other_than(&value);

        /// `key` holds a list of exactly `len` elements.
        fn list_len_equals<K: ToSingleRedisArg>(key: K, len: i64)
            => "LLEN" (key), page "llen", holds Expected::Count(Bound::Exactly(len));

        /// `key` holds a list of `least` elements or more.
        fn list_len_at_least<K: ToSingleRedisArg>(key: K, least: i64)
            => "LLEN" (key), page "llen", holds Expected::Count(Bound::AtLeast(least));

        /// `key` holds a list of `most` elements or fewer.
        fn list_len_at_most<K: ToSingleRedisArg>(key: K, most: i64)
            => "LLEN" (key), page "llen", holds Expected::Count(Bound::AtMost(most));
    }
}
