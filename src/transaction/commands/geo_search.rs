//! What GEOSEARCH searches for.

use redis::geo::Unit;
use redis::{RedisWrite, ToRedisArgs, ToSingleRedisArg};

/// A search for members around a place: where, within which shape, in which order and how many.
///
/// ```no_run
/// use rediscope::prelude::*;
/// use rediscope::redis::geo::Unit;
///
/// fn near(tx: &mut impl QueueCommands) {
///     let search = GeoSearch::around_member("taxi:7").within_radius(2.0, Unit::Kilometers);
///     let found: Queued<Vec<String>> = tx.geo_search("taxis", &search.nearest_first().count(5));
///     # let _ = found;
/// }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a search does nothing until `geo_search` or `geo_search_store` queues it"]
pub struct GeoSearch {
    words: Vec<Vec<u8>>,
}

/// Where a [`GeoSearch`] is. Its shape is next.
#[derive(Clone, Debug)]
#[must_use = "a search needs a shape: `within_radius` or `within_box`"]
pub struct GeoCenter {
    words: Vec<Vec<u8>>,
}

impl GeoSearch {
    /// Searches around a member of the same key (`FROMMEMBER`).
    pub fn around_member<M: ToSingleRedisArg>(member: M) -> GeoCenter {
        let mut words = vec![b"FROMMEMBER".to_vec()];
        words.extend(member.to_redis_args());
        GeoCenter { words }
    }

    /// Searches around a place, in degrees (`FROMLONLAT`).
    pub fn around(longitude: f64, latitude: f64) -> GeoCenter {
        let mut words = vec![b"FROMLONLAT".to_vec()];
        words.extend(longitude.to_redis_args());
        words.extend(latitude.to_redis_args());
        GeoCenter { words }
    }

    /// Orders the members by their distance, the nearest first (`ASC`). By default they have no
    /// order.
    pub fn nearest_first(self) -> Self {
        self.word("ASC")
    }

    /// Orders the members by their distance, the farthest first (`DESC`).
    pub fn farthest_first(self) -> Self {
        self.word("DESC")
    }

    /// Returns up to `count` members, those that are first in the order (`COUNT`). By default all.
    pub fn count(self, count: i64) -> Self {
        self.word("COUNT").arg(count)
    }

    /// Returns up to `count` members, those that are found first (`COUNT ANY`).
    pub fn any(self, count: i64) -> Self {
        self.count(count).word("ANY")
    }

    fn word(mut self, word: &str) -> Self {
        self.words.push(word.as_bytes().to_vec());
        self
    }

    fn arg<A: ToRedisArgs>(mut self, arg: A) -> Self {
        self.words.extend(arg.to_redis_args());
        self
    }
}

impl GeoCenter {
    /// Searches within a circle (`BYRADIUS`).
    pub fn within_radius(self, radius: f64, unit: Unit) -> GeoSearch {
        GeoSearch { words: self.words }.word("BYRADIUS").arg(radius).arg(unit)
    }

    /// Searches within a rectangle, whose sides run along the axes (`BYBOX`).
    pub fn within_box(self, width: f64, height: f64, unit: Unit) -> GeoSearch {
        GeoSearch { words: self.words }.word("BYBOX").arg(width).arg(height).arg(unit)
    }
}

impl ToRedisArgs for GeoSearch {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        self.words.iter().for_each(|word| out.write_arg(word));
    }

    fn num_of_args(&self) -> usize {
        self.words.len()
    }
}
