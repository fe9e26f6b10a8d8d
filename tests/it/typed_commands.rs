//! Typed commands whose replies have a shape of their own, queued in a block and read under a watch.
//!
//! Guarantee: committed, reads

use crate::side::SessionManager;

use rediscope::prelude::*;
use rediscope::redis::geo::{Coord, RadiusSearchResult, Unit};
use rediscope_testing::not_run;
use rediscope_testing::server::Server;

fn sessions(server: &Server) -> SessionManager {
    SessionManager::connect(server.url()).unwrap()
}

#[test]
fn places_are_searched_by_circle_and_by_box_and_stored() {
    let server = Server::start();
    let shop = sessions(&server).transactional();
    let (nearest, boxed, stored) = shop
        .run(|tx| {
            tx.geo_add("sicily", (Coord::lon_lat(13.361389, 38.115556), "Palermo"));
            tx.geo_add("sicily", (Coord::lon_lat(15.087269, 37.502669), "Catania"));
            tx.geo_add("sicily", (Coord::lon_lat(12.758489, 38.788135), "edge1"));
            let around = || GeoSearch::around(15.0, 37.0);
            let circle = around().within_radius(200.0, Unit::Kilometers).nearest_first();
            let nearest: Queued<Vec<String>> = tx.geo_search("sicily", &circle);
            let rectangle = around().within_box(800.0, 800.0, Unit::Kilometers);
            let boxed: Queued<Vec<RadiusSearchResult>> =
                tx.geo_search_withcoord("sicily", &rectangle.farthest_first().count(1));
            let stored = tx.geo_search_store_dist("near", "sicily", &circle);
            Ok((nearest, boxed, stored))
        })
        .unwrap();
    assert_eq!((nearest, stored), (vec!["Catania".to_owned(), "Palermo".to_owned()], 2));
    assert_eq!(boxed[0].name, "edge1");
    assert!(boxed[0].dist.unwrap() > 200.0 && boxed[0].coord.is_some());
    let order: Vec<String> = server.ask(&["ZRANGE", "near", "0", "-1"]);
    assert_eq!(order, ["Catania", "Palermo"]);
    let found: Vec<RadiusSearchResult> = shop
        .watch(["sicily"])
        .begin()
        .unwrap()
        .geo_search_withdist(
            "sicily",
            &GeoSearch::around_member("Catania").within_radius(1.0, Unit::Meters),
        )
        .unwrap();
    assert_eq!((found[0].name.as_str(), found[0].dist), ("Catania", Some(0.0)));
}

#[test]
fn integers_in_a_string_wrap_saturate_or_fail() {
    let server = Server::start();
    let shop = sessions(&server).transactional();
    let operations = Bitfield::new()
        .set("u8", "#0", 255)
        .incr("u8", "#0", 2)
        .overflow(BitfieldOverflow::Saturate)
        .incr("u8", "#1", 300)
        .overflow(BitfieldOverflow::Fail)
        .incr("i8", "#2", 128)
        .get("u8", "#1");
    let replies: Vec<Option<i64>> = shop.run(|tx| Ok(tx.bitfield("bits", &operations))).unwrap();
    assert_eq!(replies, [Some(0), Some(1), Some(255), None, Some(255)]);
    let mut watching = shop.watch(["bits"]).begin().unwrap();
    assert_eq!(watching.bitfield_get("bits", "u8", "#1").unwrap(), [255]);
}

#[test]
fn sorted_sets_are_combined_counted_and_stored() {
    let server = Server::start();
    if !server.knows("ZINTERCARD") {
        return not_run("the server has no ZINTERCARD; it came with Redis 7.0");
    }
    let shop = sessions(&server).transactional();
    let (both, weighted, only, count, stored) = shop
        .run(|tx| {
            tx.zadd_multiple("a", &[(1, "x"), (2, "y"), (3, "z")]);
            tx.zadd_multiple("b", &[(10, "y"), (20, "z")]);
            let both: Queued<Vec<(String, f64)>> = tx.zinter_max_withscores(&["a", "b"]);
            let weighted: Queued<Vec<(String, f64)>> =
                tx.zunion_weights_withscores(&[("a", 2), ("b", 1)]);
            let only: Queued<Vec<String>> = tx.zdiff(&["a", "b"]);
            let count = tx.zintercard_limit(&["a", "b"], 1);
            let stored = tx.zrangestore_byscore("part", "a", "(1", "+inf");
            tx.zdiffstore("rest", &["a", "b"]);
            Ok((both, weighted, only, count, stored))
        })
        .unwrap();
    assert_eq!(both, [("y".to_owned(), 10.0), ("z".to_owned(), 20.0)]);
    assert_eq!(weighted[0], ("x".to_owned(), 2.0));
    assert_eq!((only, count, stored), (vec!["x".to_owned()], 1, 2));
    assert_eq!(server.ask::<Vec<String>>(&["ZRANGE", "part", "0", "-1"]), ["y", "z"]);
    assert_eq!(server.ask::<Vec<String>>(&["ZRANGE", "rest", "0", "-1"]), ["x"]);
}

#[test]
fn members_and_fields_are_picked_several_at_once() {
    let server = Server::start();
    if !server.knows("SINTERCARD") {
        return not_run("the server has no SINTERCARD; it came with Redis 7.0");
    }
    let shop = sessions(&server).transactional();
    let (common, popped, fields, pairs) = shop
        .run(|tx| {
            tx.sadd("s", &["a", "b", "c"]);
            tx.sadd("t", &["b", "c"]);
            tx.hset("h", "f", 7);
            let common = tx.sintercard(&["s", "t"]);
            let popped: Queued<Vec<String>> = tx.spop_multiple("s", 2);
            let fields: Queued<Vec<String>> = tx.hrandfield_multiple("h", -3);
            let pairs: Queued<Vec<(String, i64)>> = tx.hrandfield_withvalues("h", 3);
            Ok((common, popped, fields, pairs))
        })
        .unwrap();
    assert_eq!((common, popped.len(), fields.len()), (2, 2, 3));
    assert_eq!(pairs, [("f".to_owned(), 7)]);
    assert_eq!(server.ask::<i64>(&["SCARD", "s"]), 1);
}

#[test]
fn a_value_is_written_out_restored_and_moved() {
    let server = Server::start();
    if !server.knows("LCS") {
        return not_run("the server has no LCS; it came with Redis 7.0");
    }
    let shop = sessions(&server).transactional();
    let (dumped, length) = shop
        .run(|tx| {
            tx.set("a", "ohmytext");
            tx.set("b", "mynewtext");
            Ok((tx.dump("a"), tx.lcs_len("a", "b")))
        })
        .unwrap();
    let dumped = dumped.unwrap();
    assert_eq!(length, 6);
    let (touched, moved, common) = shop
        .run(|tx| {
            tx.restore("copy", 0, &dumped[..]);
            tx.restore_replace("b", 0, &dumped[..]);
            let common: Queued<String> = tx.lcs("a", "b");
            Ok((tx.touch(&["a", "b", "none"]), tx.move_key("copy", 1), common))
        })
        .unwrap();
    assert_eq!((touched, moved, common.as_str()), (2, true, "ohmytext"));
    assert_eq!(server.ask::<Option<String>>(&["GET", "copy"]), None);
    // A value that exists is not overwritten, and nothing else of the block is lost.
    let error = shop.run(|tx| {
        tx.restore("a", 0, &dumped[..]);
        Ok(tx.set("after", 1))
    });
    assert_eq!(error.unwrap_err().applied(), rediscope::error::Applied::Partly);
    assert_eq!(server.ask::<i64>(&["GET", "after"]), 1);
}

#[test]
fn vectors_are_added_and_found_by_similarity() {
    let server = Server::start();
    if !server.knows("VADD") {
        return not_run("the server has no vector sets; they came with Redis 8.0");
    }
    let shop = sessions(&server).transactional();
    let (new, set) = shop
        .run(|tx| {
            tx.vadd("v", &[1.0, 0.0], "east");
            let new = tx.vadd("v", &[0.0, 1.0], "north");
            Ok((new, tx.vsetattr("v", "north", "{\"cold\":true}")))
        })
        .unwrap();
    assert_eq!((new, set), (true, true));
    let mut watching = shop.watch(["v"]).begin().unwrap();
    let like: Vec<(String, f64)> = watching.vsim_withscores("v", &[0.9, 0.1], 1).unwrap();
    assert_eq!(like[0].0, "east");
    assert_eq!(watching.vgetattr("v", "north").unwrap().unwrap(), "{\"cold\":true}");
    assert_eq!((watching.vcard("v").unwrap(), watching.vdim("v").unwrap()), (2, 2));
}

/// A value that is JSON text, in blocks, watching reads and single commands.
#[cfg(feature = "serde")]
#[test]
fn json_is_written_and_read_and_no_error_shows_the_text() {
    use rediscope::error::{Applied, ReplyError};
    use rediscope::{Error, Json};
    use std::collections::BTreeMap;

    #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct User {
        name: String,
        logins: u32,
    }

    let server = rediscope_testing::server::Server::start();
    let sessions = crate::side::SessionManager::connect(server.url()).unwrap();
    let (accounts, mut db) = (sessions.transactional(), sessions.pooled());
    let user = User { name: "S3CRET \u{e4}\n".to_owned(), logins: 1 };
    let text = Json::encode(&user).unwrap();
    assert!(!format!("{text:?}").contains("S3CRET"));
    let (read, none, all) = accounts
        .run(|tx| {
            tx.set("user", &text);
            tx.rpush("users", &text);
            let read: rediscope::Queued<Json<User>> = tx.get("user");
            let none: rediscope::Queued<Option<Json<User>>> = tx.get("none");
            let all: rediscope::Queued<Vec<Json<User>>> = tx.lrange("users", 0, -1);
            Ok((read, none, all))
        })
        .unwrap();
    assert_eq!((read, none, all), (Json(user.clone()), None, vec![Json(user.clone())]));
    accounts
        .watch(["user"])
        .run(|read, tx| {
            let Json(mut user): Json<User> = read.get("user")?;
            user.logins += 1;
            Ok(tx.set("user", Json::encode(&user)?))
        })
        .unwrap();
    let stored: serde_json::Value =
        serde_json::from_str(&server.ask::<String>(&["GET", "user"])).unwrap();
    assert_eq!(stored, serde_json::json!({"name": user.name, "logins": 2}));
    let Json(read): Json<User> = redis::Commands::get(&mut db, "user").unwrap();
    assert_eq!(read.logins, 2);

    for wrong in
        ["{\"name\": \"S3CRET\", \"logins\": \"S3CRET\"}", "S3CRET", "{\"name\": \"S3CRET", ""]
    {
        server.ask::<()>(&["SET", "user", wrong]);
        let in_block = accounts.run(|tx| {
            tx.incr("runs", 1);
            Ok::<_, Error>(tx.get::<_, Json<User>>("user"))
        });
        let in_block = in_block.unwrap_err();
        assert!(matches!(in_block.as_reply(), Some(ReplyError::Unexpected { .. })), "{in_block:?}");
        let by_read = accounts.watch(["user"]).run(|read, tx| {
            let Json(user): Json<User> = read.get("user")?;
            Ok(tx.set("user", user.logins))
        });
        let by_read = by_read.unwrap_err();
        assert!(matches!(by_read, Error::Decode { applied: Applied::No, .. }), "{by_read:?}");
        let single: redis::RedisResult<Json<User>> = redis::Commands::get(&mut db, "user");
        let single = Error::from(single.map(|Json(user)| user.name).unwrap_err());
        assert!(matches!(single, Error::Decode { .. }), "{single:?}");
        for error in [in_block, by_read, single] {
            let mut shown = format!("{error} {error:?} {error:#}");
            let mut cause = std::error::Error::source(&error);
            while let Some(error) = cause {
                shown += &format!(" {error} {error:?}");
                cause = error.source();
            }
            assert!(!shown.contains("S3CRET") && shown.contains("line"), "{shown}");
        }
    }
    let keys: BTreeMap<Vec<u8>, u8> = [(vec![1], 1)].into();
    let refused = Json::encode(&keys).unwrap_err();
    assert!(matches!(refused, Error::NotJson { .. }), "{refused:?}");
    assert_eq!((refused.applied(), refused.is_retryable()), (Applied::No, false));
}
