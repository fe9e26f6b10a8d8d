//! Commands on places.
//!
//! The server keeps places in a sorted set, whose commands are in
//! [`sorted_sets`](crate::transaction::commands::sorted_sets).

use redis::geo::{RadiusOptions, Unit};
use redis::{FromRedisValue, ToRedisArgs, ToSingleRedisArg};

use crate::transaction::commands::geo_search::GeoSearch;
use crate::transaction::commands::table::command_table;

command_table! {
    /// Queues commands on places.
    ///
    /// ```no_run
    /// use rediscope::prelude::*;
    /// use rediscope::redis::geo::{Coord, Unit};
    ///
    /// fn arrive(tx: &mut impl QueueCommands) {
    ///     tx.geo_add("taxis", (Coord::lon_lat(13.361389, 38.115556), "taxi:7"));
    ///     let away = tx.geo_dist("taxis", "taxi:7", "taxi:8", Unit::Meters);   // Option<f64>
    ///     # let _ = away;
    /// }
    /// ```
    GeoCommands
    reads {
        /// Measures the distance between two members.
        fn geo_dist<K: ToSingleRedisArg, M: ToSingleRedisArg, N: ToSingleRedisArg>(
            key: K, member1: M, member2: N, unit: Unit
        ) -> Option<f64>
            => "GEODIST" (key, member1, member2, unit), page "geodist",
                replies "the distance, or nil";

        /// Reads the geohashes of members.
        fn geo_hash<K: ToSingleRedisArg, M: ToRedisArgs, T: FromRedisValue>(
            key: K, members: M
        ) -> T
            => "GEOHASH" (key, members), page "geohash",
                replies "a geohash or nil for each member, in order";

        /// Reads the places of members.
        fn geo_pos<K: ToSingleRedisArg, M: ToRedisArgs, T: FromRedisValue>(
            key: K, members: M
        ) -> T
            => "GEOPOS" (key, members), page "geopos",
                replies "a place (see [`redis::geo::Coord`]) or nil for each member, in order";

        /// Searches for members around a place or a member.
        fn geo_search<K: ToSingleRedisArg, T: FromRedisValue>(key: K, search: &GeoSearch) -> T
            => "GEOSEARCH" (key, search), page "geosearch", replies "the names of the members";

        /// Like [`geo_search`](Self::geo_search), with the distance of each in the search's unit.
        fn geo_search_withdist<K: ToSingleRedisArg, T: FromRedisValue>(
            key: K, search: &GeoSearch
        ) -> T
            => "GEOSEARCH" (key, search, "WITHDIST"), page "geosearch",
                replies "the members (see [`redis::geo::RadiusSearchResult`])";

        /// Like [`geo_search`](Self::geo_search), with the distance and the place of each.
        fn geo_search_withcoord<K: ToSingleRedisArg, T: FromRedisValue>(
            key: K, search: &GeoSearch
        ) -> T
            => "GEOSEARCH" (key, search, "WITHDIST", "WITHCOORD"), page "geosearch",
                replies "the members (see [`redis::geo::RadiusSearchResult`])";
    }
    writes {
        /// Puts members at places: each a longitude, a latitude and a name.
        fn geo_add<K: ToSingleRedisArg, M: ToRedisArgs>(key: K, members: M) -> i64
            => "GEOADD" (key, members), page "geoadd", replies "how many are new";

        /// Searches for members around a place. The server treats this as a write, because
        /// `options` may store the result.
        fn geo_radius<K: ToSingleRedisArg, T: FromRedisValue>(
            key: K, longitude: f64, latitude: f64, radius: f64, unit: Unit, options: RadiusOptions
        ) -> T
            => "GEORADIUS" (key, longitude, latitude, radius, unit, options), page "georadius",
                replies "the members (see [`redis::geo::RadiusSearchResult`]), or how many were \
                    stored";

        /// Searches for members around another member. The server treats this as a write, because
        /// `options` may store the result.
        fn geo_radius_by_member<K: ToSingleRedisArg, M: ToSingleRedisArg, T: FromRedisValue>(
            key: K, member: M, radius: f64, unit: Unit, options: RadiusOptions
        ) -> T
            => "GEORADIUSBYMEMBER" (key, member, radius, unit, options), page "georadiusbymember",
                replies "the members (see [`redis::geo::RadiusSearchResult`]), or how many were \
                    stored";

        /// Stores in `dstkey` the members around a place or a member, with their places.
        fn geo_search_store<D: ToSingleRedisArg, K: ToSingleRedisArg>(
            dstkey: D, key: K, search: &GeoSearch
        ) -> i64
            => "GEOSEARCHSTORE" (dstkey, key, search), page "geosearchstore",
                replies "how many were stored";

        /// Stores in `dstkey` the members around a place or a member, with their distances as
        /// scores.
        fn geo_search_store_dist<D: ToSingleRedisArg, K: ToSingleRedisArg>(
            dstkey: D, key: K, search: &GeoSearch
        ) -> i64
            => "GEOSEARCHSTORE" (dstkey, key, search, "STOREDIST"), page "geosearchstore",
                replies "how many were stored";
    }
}
