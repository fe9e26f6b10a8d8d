//! Commands on vector sets (server 8.0).

use redis::{FromRedisValue, ToSingleRedisArg};

use crate::transaction::commands::table::command_table;

/// The components as the server reads them in one argument: 32 bits each, the lowest byte first.
fn blob(vector: &[f32]) -> Vec<u8> {
    vector.iter().flat_map(|component| component.to_le_bytes()).collect()
}

command_table! {
    /// Queues commands on vector sets (server 8.0).
    ///
    /// ```no_run
    /// use rediscope::prelude::*;
    ///
    /// fn remember(tx: &mut impl QueueCommands, vector: &[f32]) {
    ///     let new = tx.vadd("pictures", vector, "picture:7");                      // Queued<bool>
    ///     let like: Queued<Vec<String>> = tx.vsim("pictures", vector, 10);
    ///     # let _ = (new, like);
    /// }
    /// ```
    VectorCommands
    reads {
        /// Counts the elements.
        fn vcard<K: ToSingleRedisArg>(key: K) -> i64
            => "VCARD" (key), page "vcard", replies "how many there are, 0 if the key is missing";

        /// Returns the number of components of each vector.
        fn vdim<K: ToSingleRedisArg>(key: K) -> i64
            => "VDIM" (key), page "vdim", replies "the number";

        /// Reads the vector of an element.
        fn vemb<K: ToSingleRedisArg, E: ToSingleRedisArg, T: FromRedisValue>(
            key: K, element: E
        ) -> T
            => "VEMB" (key, element), page "vemb",
                replies "its components, about as they were given, or nil";

        /// Reads the attributes of an element.
        fn vgetattr<K: ToSingleRedisArg, E: ToSingleRedisArg>(
            key: K, element: E
        ) -> Option<String>
            => "VGETATTR" (key, element), page "vgetattr", replies "a text in JSON, or nil";

        /// Describes a vector set.
        fn vinfo<K: ToSingleRedisArg, T: FromRedisValue>(key: K) -> T
            => "VINFO" (key), page "vinfo", replies "its facts by name, or nil";

        /// Lists the neighbours of an element, layer by layer.
        fn vlinks<K: ToSingleRedisArg, E: ToSingleRedisArg, T: FromRedisValue>(
            key: K, element: E
        ) -> T
            => "VLINKS" (key, element), page "vlinks", replies "the neighbours of each layer, or nil";

        /// Picks an element at random.
        fn vrandmember<K: ToSingleRedisArg, T: FromRedisValue>(key: K) -> T
            => "VRANDMEMBER" (key), page "vrandmember", replies "the element, or nil";

        /// Picks up to `count` elements at random; a negative count may pick one twice.
        fn vrandmember_multiple<K: ToSingleRedisArg, T: FromRedisValue>(
            key: K, count: isize
        ) -> T
            => "VRANDMEMBER" (key, count), page "vrandmember", replies "the elements";

        /// Finds up to `count` elements whose vectors are most similar to `vector`.
        fn vsim<K: ToSingleRedisArg, T: FromRedisValue>(
            key: K, vector: &[f32], count: isize
        ) -> T
            => "VSIM" (key, "FP32", blob(vector), "COUNT", count), page "vsim",
                replies "the elements, the most similar first";

        /// Like [`vsim`](Self::vsim), with the similarity of each, from 0 to 1.
        fn vsim_withscores<K: ToSingleRedisArg, T: FromRedisValue>(
            key: K, vector: &[f32], count: isize
        ) -> T
            => "VSIM" (key, "FP32", blob(vector), "WITHSCORES", "COUNT", count), page "vsim",
                replies "elements and similarities, the most similar first";

        /// Finds up to `count` elements whose vectors are most similar to that of `element`.
        fn vsim_element<K: ToSingleRedisArg, E: ToSingleRedisArg, T: FromRedisValue>(
            key: K, element: E, count: isize
        ) -> T
            => "VSIM" (key, "ELE", element, "COUNT", count), page "vsim",
                replies "the elements, the most similar first";

        /// Like [`vsim_element`](Self::vsim_element), with the similarity of each, from 0 to 1.
        fn vsim_element_withscores<K: ToSingleRedisArg, E: ToSingleRedisArg, T: FromRedisValue>(
            key: K, element: E, count: isize
        ) -> T
            => "VSIM" (key, "ELE", element, "WITHSCORES", "COUNT", count), page "vsim",
                replies "elements and similarities, the most similar first";
    }
    writes {
        /// Adds an element, or replaces its vector.
        fn vadd<K: ToSingleRedisArg, E: ToSingleRedisArg>(
            key: K, vector: &[f32], element: E
        ) -> bool
            => "VADD" (key, "FP32", blob(vector), element), page "vadd",
                replies "whether it is new";

        /// Removes an element.
        fn vrem<K: ToSingleRedisArg, E: ToSingleRedisArg>(key: K, element: E) -> bool
            => "VREM" (key, element), page "vrem", replies "whether it was in it";

        /// Sets the attributes of an element, a text in JSON; an empty text removes them.
        fn vsetattr<K: ToSingleRedisArg, E: ToSingleRedisArg, A: ToSingleRedisArg>(
            key: K, element: E, attributes: A
        ) -> bool
            => "VSETATTR" (key, element, attributes), page "vsetattr",
                replies "whether the element is in it";
    }
}
