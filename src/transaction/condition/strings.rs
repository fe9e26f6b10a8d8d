//! Conditions on strings. None of them reads a part of a string.

use redis::ToSingleRedisArg;

use crate::transaction::condition::expected::{Bound, Expected};
use crate::transaction::condition::table::conditions;

conditions! {
    /// Conditions on strings: values and counters.
    impl Condition {
        /// `key` holds the string `value`, byte for byte. A missing key does not.
        fn equals<K: ToSingleRedisArg, V: ToSingleRedisArg>(key: K, value: V)
            => "GET" (key), page "get", holds Expected::value(&value);

        /// `key` holds a string other than `value`, or is missing.
        fn not_equals<K: ToSingleRedisArg, V: ToSingleRedisArg>(key: K, value: V)
            => "GET" (key), page "get", holds Expected::other_than(&value);

        /// `key` holds a counter of `least` or more. A missing counter is 0, as in `INCR`. A string
        /// that is not an integer is neither large nor small, so the condition does not hold.
        ///
        /// ```no_run
        /// use rediscope::{Condition, SessionManager, prelude::*};
        ///
        /// # fn main() -> Result<(), rediscope::Error> {
        /// # let shop = SessionManager::connect("redis://127.0.0.1/")?.transactional();
        /// let in_stock = Condition::at_least("stock", 1);
        /// let left = shop.require(in_stock).run(|tx| Ok(tx.decr("stock", 1)))?;
        /// # Ok(()) }
        /// ```
        fn at_least<K: ToSingleRedisArg>(key: K, least: i64)
            => "GET" (key), page "get", holds Expected::Number(Bound::AtLeast(least));

        /// `key` holds a counter of `most` or less; the rules of [`at_least`](Self::at_least)
        /// apply.
        fn at_most<K: ToSingleRedisArg>(key: K, most: i64)
            => "GET" (key), page "get", holds Expected::Number(Bound::AtMost(most));

        /// `key` holds a string of exactly `len` bytes.
        fn string_len_equals<K: ToSingleRedisArg>(key: K, len: i64)
            => "STRLEN" (key), page "strlen", holds Expected::Count(Bound::Exactly(len));

        /// `key` holds a string of `least` bytes or more.
        fn string_len_at_least<K: ToSingleRedisArg>(key: K, least: i64)
            => "STRLEN" (key), page "strlen", holds Expected::Count(Bound::AtLeast(least));

        /// `key` holds a string of `most` bytes or fewer.
        fn string_len_at_most<K: ToSingleRedisArg>(key: K, most: i64)
            => "STRLEN" (key), page "strlen", holds Expected::Count(Bound::AtMost(most));
    }
}
