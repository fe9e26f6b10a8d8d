//! Conditions on keys, whatever they hold. None of them reads the value.

use redis::{ToSingleRedisArg, ValueType};

use crate::transaction::condition::expected::Expected;
use crate::transaction::condition::table::conditions;

conditions! {
    /// Conditions on keys, whatever they hold.
    impl Condition {
        /// `key` exists.
        fn exists<K: ToSingleRedisArg>(key: K)
            => "EXISTS" (key), page "exists", holds Expected::There(true);

        /// `key` does not exist.
        fn not_exists<K: ToSingleRedisArg>(key: K)
            => "EXISTS" (key), page "exists", holds Expected::There(false);

        /// `key` holds a value of this type.
        ///
        /// ```
        /// use rediscope::{Condition, redis::ValueType};
        ///
        /// let cart = Condition::type_is("cart:7", ValueType::Hash);
        /// # drop(cart);
        /// ```
        fn type_is<K: ToSingleRedisArg>(key: K, kind: ValueType)
            => "TYPE" (key), page "type", holds Expected::Type(kind);
    }
}
