//! Conditions on hashes. WATCH does not notice the end of a field's own time to live.

use redis::ToSingleRedisArg;

use crate::transaction::condition::expected::{Bound, Expected};
use crate::transaction::condition::table::conditions;

conditions! {
    /// Conditions on hashes and their fields.
    ///
    /// WATCH watches the key, not a field's own time to live (`HEXPIRE`, server 7.4). Such a field
    /// may expire between the read and EXEC. If that matters, let the key expire instead.
    impl Condition {
        /// The hash `key` has `field`.
        fn hash_field_exists<K: ToSingleRedisArg, F: ToSingleRedisArg>(key: K, field: F)
            => "HEXISTS" (key, field), page "hexists", holds Expected::There(true);

        /// The hash `key` has no `field`, or is missing.
        fn hash_field_not_exists<K: ToSingleRedisArg, F: ToSingleRedisArg>(key: K, field: F)
            => "HEXISTS" (key, field), page "hexists", holds Expected::There(false);

        /// `field` of the hash `key` is `value`, byte for byte. A missing field does not match.
        fn hash_field_equals<K: ToSingleRedisArg, F: ToSingleRedisArg, V: ToSingleRedisArg>(
            key: K, field: F, value: V
        )
            => "HGET" (key, field), page "hget", holds Expected::value(&value);

        /// `field` of the hash `key` is not `value`, or is missing.
        fn hash_field_not_equals<K: ToSingleRedisArg, F: ToSingleRedisArg, V: ToSingleRedisArg>(
            key: K, field: F, value: V
        )
            => "HGET" (key, field), page "hget", holds Expected::other_than(&value);

        /// `field` of the hash `key` is a counter of `least` or more. A missing field is 0, as in
        /// `HINCRBY`. See [`at_least`](Self::at_least).
        fn hash_field_at_least<K: ToSingleRedisArg, F: ToSingleRedisArg>(
            key: K, field: F, least: i64
        )
            => "HGET" (key, field), page "hget", holds Expected::Number(Bound::AtLeast(least));

        /// `field` of the hash `key` is a counter of `most` or less; the rules of
        /// [`hash_field_at_least`](Self::hash_field_at_least) apply.
        fn hash_field_at_most<K: ToSingleRedisArg, F: ToSingleRedisArg>(key: K, field: F, most: i64)
            => "HGET" (key, field), page "hget", holds Expected::Number(Bound::AtMost(most));

        /// `key` holds a hash of exactly `len` fields.
        fn hash_len_equals<K: ToSingleRedisArg>(key: K, len: i64)
            => "HLEN" (key), page "hlen", holds Expected::Count(Bound::Exactly(len));

        /// `key` holds a hash of `least` fields or more.
        fn hash_len_at_least<K: ToSingleRedisArg>(key: K, least: i64)
            => "HLEN" (key), page "hlen", holds Expected::Count(Bound::AtLeast(least));

        /// `key` holds a hash of `most` fields or fewer.
        fn hash_len_at_most<K: ToSingleRedisArg>(key: K, most: i64)
            => "HLEN" (key), page "hlen", holds Expected::Count(Bound::AtMost(most));
    }
}
