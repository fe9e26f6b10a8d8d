//! Conditions on sorted sets. A missing member has no score.

use redis::ToSingleRedisArg;

use crate::transaction::condition::expected::{Bound, Expected};
use crate::transaction::condition::table::conditions;

conditions! {
    /// Conditions on sorted sets, their members and scores.
    impl Condition {
        /// `member` is in the sorted set `key`.
        fn sorted_set_contains<K: ToSingleRedisArg, M: ToSingleRedisArg>(key: K, member: M)
            => "ZSCORE" (key, member), page "zscore", holds Expected::There(true);

        /// `member` is not in the sorted set `key`, or there is no sorted set.
        fn sorted_set_not_contains<K: ToSingleRedisArg, M: ToSingleRedisArg>(key: K, member: M)
            => "ZSCORE" (key, member), page "zscore", holds Expected::There(false);

        /// `member` has exactly this score in the sorted set `key`. A missing member has no score.
        fn sorted_set_score_equals<K: ToSingleRedisArg, M: ToSingleRedisArg>(
            key: K, member: M, score: f64
        )
            => "ZSCORE" (key, member), page "zscore", holds Expected::Score(Bound::Exactly(score));

        /// `member` has a score of `least` or more in the sorted set `key`. A missing member has no
        /// score.
        fn sorted_set_score_at_least<K: ToSingleRedisArg, M: ToSingleRedisArg>(
            key: K, member: M, least: f64
        )
            => "ZSCORE" (key, member), page "zscore", holds Expected::Score(Bound::AtLeast(least));

        /// `member` has a score of `most` or less in the sorted set `key`. A missing member has no
        /// score.
        fn sorted_set_score_at_most<K: ToSingleRedisArg, M: ToSingleRedisArg>(
            key: K, member: M, most: f64
        )
            => "ZSCORE" (key, member), page "zscore", holds Expected::Score(Bound::AtMost(most));

        /// `key` holds a sorted set of exactly `len` members.
        fn sorted_set_len_equals<K: ToSingleRedisArg>(key: K, len: i64)
            => "ZCARD" (key), page "zcard", holds Expected::Count(Bound::Exactly(len));

        /// `key` holds a sorted set of `least` members or more.
        fn sorted_set_len_at_least<K: ToSingleRedisArg>(key: K, least: i64)
            => "ZCARD" (key), page "zcard", holds Expected::Count(Bound::AtLeast(least));

        /// `key` holds a sorted set of `most` members or fewer.
        fn sorted_set_len_at_most<K: ToSingleRedisArg>(key: K, most: i64)
            => "ZCARD" (key), page "zcard", holds Expected::Count(Bound::AtMost(most));
    }
}
