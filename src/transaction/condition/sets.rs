//! Conditions on sets. Those on sorted sets are in
//! [`sorted_sets`](crate::transaction::condition::sorted_sets).

use redis::ToSingleRedisArg;

use crate::transaction::condition::expected::{Bound, Expected};
use crate::transaction::condition::table::conditions;

conditions! {
    /// Conditions on sets.
    impl Condition {
        /// `member` is in the set `key`.
        fn set_contains<K: ToSingleRedisArg, M: ToSingleRedisArg>(key: K, member: M)
            => "SISMEMBER" (key, member), page "sismember", holds Expected::There(true);

        /// `member` is not in the set `key`, or there is no set.
        fn set_not_contains<K: ToSingleRedisArg, M: ToSingleRedisArg>(key: K, member: M)
            => "SISMEMBER" (key, member), page "sismember", holds Expected::There(false);

        /// `key` holds a set of exactly `len` members.
        fn set_len_equals<K: ToSingleRedisArg>(key: K, len: i64)
            => "SCARD" (key), page "scard", holds Expected::Count(Bound::Exactly(len));

        /// `key` holds a set of `least` members or more.
        fn set_len_at_least<K: ToSingleRedisArg>(key: K, least: i64)
            => "SCARD" (key), page "scard", holds Expected::Count(Bound::AtLeast(least));

        /// `key` holds a set of `most` members or fewer.
        fn set_len_at_most<K: ToSingleRedisArg>(key: K, most: i64)
            => "SCARD" (key), page "scard", holds Expected::Count(Bound::AtMost(most));
    }
}
