//! Compares, for every command of the table, the bytes that are queued with the bytes that
//! redis-rs sends for it.
//!
//! Guarantee: committed

use std::collections::{BTreeMap, HashSet};
use std::num::NonZeroUsize;

use redis::Cmd;
use redis::geo::{Coord, RadiusOptions, RadiusOrder, Unit};
use redis::streams::*;
use redis::{
    CopyOptions, Direction, ExistenceCheck, ExpireOption, Expiry, FieldExistenceCheck,
    FlushAllOptions, HashFieldExpirationOptions, IncrexOptions, LposOptions, MSetOptions, Script,
    SetExpiry, SetOptions, SortedSetAddOptions, UpdateCheck, Value, ValueComparison, cmd,
};

use crate::protocol::command::reader::CommandReader;
use crate::protocol::command::table::is_read_only;
use crate::reply::queued::Queued;
use crate::transaction::commands::tests::Probe;
use crate::transaction::commands::*;

/// What may be a read or a write, and is in the table as a write.
const EITHER: [&str; 1] = ["xread_options"];

/// Two components as the server reads them.
const ONE_AND_MINUS_TWO: &[u8] = &[0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0];

fn compare(name: &str, reads: &[&str], probe: &Probe, theirs: Cmd) {
    let ours = String::from_utf8_lossy(probe.0.body());
    let theirs = theirs.get_packed_command();
    assert_eq!(ours, String::from_utf8_lossy(&theirs), "{name}");
    let args = CommandReader::new(probe.0.body()).next().unwrap().unwrap();
    let known = is_read_only(args[0], args.get(1).copied());
    if !EITHER.contains(&name) {
        assert_eq!(reads.contains(&name), known, "{name}: is it read-only?");
    }
}

fn covered(mut compared: Vec<&str>, reads: &[&str], writes: &[&str]) {
    let mut table = [reads, writes].concat();
    table.sort_unstable();
    compared.sort_unstable();
    compared.dedup();
    assert_eq!(table, compared);
}

macro_rules! theirs {
    (; $default:expr) => {
        $default
    };
    ($given:expr; $default:expr) => {
        $given
    };
}

/// A line is a call of ours, the type of its reply and, where it is not redis-rs's own call of
/// that name with the same arguments, what it has to be equal to.
macro_rules! queued_as_redis_rs_sends_it {
    ($($family:ident { $($name:ident ($($arg:expr),*) -> $reply:ty $(= $theirs:expr)?;)* })*) => {$(
        #[test]
        fn $family() {
            let reads = crate::transaction::commands::$family::READS;
            $(
                let mut probe = Probe::new();
                let _: Queued<$reply> = probe.$name($($arg),*);
                let theirs = theirs!($($theirs)?; Cmd::$name($($arg),*));
                compare(stringify!($name), reads, &probe, theirs);
            )*
            covered(vec![$(stringify!($name)),*], reads, crate::transaction::commands::$family::WRITES);
        }
    )*};
}

queued_as_redis_rs_sends_it! {
    strings {
        get("k") -> Value;
        get(b"\r\n\xff") -> Vec<u8>;
        get(String::new()) -> Option<String>;
        mget(&["a", "b"]) -> Vec<Option<String>>;
        mget(vec![1, 2, 3]) -> Value;
        getrange("k", 0, -1) -> Vec<u8>;
        strlen("k") -> i64;
        digest("k") -> Option<String>;
        set("k", 4.5) -> ();
        set("k", vec![0_u8; 1000]) -> ();
        set_options("k", true, SetOptions::default()
            .conditional_set(ExistenceCheck::NX)
            .get(true)
            .with_expiration(SetExpiry::PX(20))) -> Option<String>;
        set_options("k", "v", SetOptions::default()
            .value_comparison(ValueComparison::ifeq("w"))
            .with_expiration(SetExpiry::KEEPTTL)) -> bool;
        mset(&[("a", 1), ("b", 2)]) -> ();
        mset(&[(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6)]) -> ();
        mset_nx(&[("a", "b")]) -> bool;
        mset_ex(&[("a", 1), ("b", 2)], MSetOptions::default()
            .conditional_set(ExistenceCheck::XX)
            .with_expiration(SetExpiry::EX(9))) -> bool;
        set_ex("k", "v", 7) -> ();
        pset_ex("k", "v", 7) -> ();
        set_nx("k", "v") -> bool;
        getset("k", "v") -> Value;
        get_ex("k", Expiry::EXAT(99)) -> Value;
        get_ex("k", Expiry::PERSIST) -> Value;
        get_del("k") -> Value;
        setrange("k", 3, "v") -> i64;
        append("k", "v") -> i64;
        incr("k", -3) -> i64;
        decr("k", 3_u8) -> i64;
        incr_float("k", 0.5) -> f64 = Cmd::incr("k", 0.5);
        // An integer is still added to a fraction: the method decides, not the argument.
        incr_float("k", 2) -> f64 = cmd("INCRBYFLOAT").arg("k").arg(2).take();
        increx("k", 5, IncrexOptions::default().lower_bound(1).saturate()) -> Value;
        increx("k", 0.5, IncrexOptions::default()
            .upper_bound(2.0)
            .with_expiration(Expiry::EX(3))
            .enx()) -> Value;
        lcs("a", "b") -> String = cmd("LCS").arg("a").arg("b").take();
        lcs_len("a", "b") -> i64 = cmd("LCS").arg("a").arg("b").arg("LEN").take();
        lcs_matches("a", "b", 4) -> Value =
            cmd("LCS").arg(&["a", "b", "IDX", "MINMATCHLEN", "4", "WITHMATCHLEN"]).take();
    }
    keys {
        keys("a*") -> Vec<String>;
        exists("a") -> i64;
        exists(&["a", "b"]) -> i64;
        key_type("k") -> redis::ValueType;
        expire_time("k") -> i64;
        pexpire_time("k") -> i64;
        ttl("k") -> i64;
        pttl("k") -> i64;
        object_encoding("k") -> Option<String>;
        object_idletime("k") -> Option<i64>;
        object_freq("k") -> Option<i64>;
        object_refcount("k") -> Option<i64>;
        del("k") -> i64;
        del(vec!["a", "b", "c", "d", "e", "f", "g", "h", "i"]) -> i64;
        del_ex("k", ValueComparison::ifdne("00ff")) -> i64;
        unlink(&["a", "b"]) -> i64;
        expire("k", -1) -> bool;
        expire_at("k", 1) -> bool;
        pexpire("k", 1) -> bool;
        pexpire_at("k", 1) -> bool;
        persist("k") -> bool;
        copy("a", "b", CopyOptions::default()) -> bool;
        copy("a", "b", CopyOptions::default().db(3).replace(true)) -> bool;
        rename("a", "b") -> ();
        rename_nx("a", "b") -> bool;
        dump("k") -> Option<Vec<u8>> = cmd("DUMP").arg("k").take();
        touch(&["a", "b"]) -> i64 = cmd("TOUCH").arg(&["a", "b"]).take();
        move_key("k", 3) -> bool = cmd("MOVE").arg("k").arg(3).take();
        restore("k", 0, b"\0\xff") -> () = cmd("RESTORE").arg("k").arg(0).arg(b"\0\xff").take();
        restore_replace("k", 9, "v") -> () =
            cmd("RESTORE").arg(&["k", "9", "v", "REPLACE"]).take();
    }
    server {
        ping() -> String;
        ping_message("hello") -> String;
        flushall() -> ();
        flushall_options(&FlushAllOptions::default().blocking(true)) -> ();
        flushdb() -> ();
        flushdb_options(&FlushAllOptions::default()) -> ();
    }
    bitmaps {
        getbit("k", 7) -> bool;
        bitcount("k") -> i64;
        bitcount_range("k", 1, 2) -> i64;
        setbit("k", 7, true) -> bool;
        bit_and("d", &["a", "b"]) -> i64;
        bit_or("d", &["a", "b"]) -> i64;
        bit_xor("d", &["a", "b"]) -> i64;
        bit_not("d", "a") -> i64;
        bit_diff("d", &["a", "b"]) -> i64;
        bit_diff1("d", &["a", "b"]) -> i64;
        bit_and_or("d", &["a", "b"]) -> i64;
        bit_one("d", &["a", "b"]) -> i64;
        bitfield("k", &Bitfield::new().get("u8", 0).set("i5", "#1", -3)) -> Vec<i64> =
            cmd("BITFIELD").arg(&["k", "GET", "u8", "0", "SET", "i5", "#1", "-3"]).take();
        bitfield("k", &Bitfield::new()
            .overflow(BitfieldOverflow::Saturate).incr("u2", 100, 1)
            .overflow(BitfieldOverflow::Fail).incr("u2", 102, 2)
            .overflow(BitfieldOverflow::Wrap).incr("u2", 104, 3)) -> Vec<Option<i64>> =
            cmd("BITFIELD").arg(&[
                "k", "OVERFLOW", "SAT", "INCRBY", "u2", "100", "1", "OVERFLOW", "FAIL", "INCRBY",
                "u2", "102", "2", "OVERFLOW", "WRAP", "INCRBY", "u2", "104", "3",
            ]).take();
        bitfield_get("k", "u8", "#2") -> Vec<i64> =
            cmd("BITFIELD_RO").arg(&["k", "GET", "u8", "#2"]).take();
    }
    hashes {
        hget("k", "f") -> Value;
        hmget("k", &["f", "g"]) -> Vec<Option<String>>;
        hgetall("k") -> BTreeMap<String, i64>;
        hkeys("k") -> Vec<String>;
        hvals("k") -> Vec<String>;
        hlen("k") -> i64;
        hexists("k", 3) -> bool;
        httl("k", &["f", "g"]) -> Vec<i64>;
        hpttl("k", "f") -> Vec<i64>;
        hexpire_time("k", &["f", "g"]) -> Vec<i64>;
        hpexpire_time("k", &["f"]) -> Vec<i64>;
        hset("k", "f", "v") -> i64;
        // HMSET is deprecated and does not count; HSET is the same since server 4.0.
        hset_multiple("k", &[("f", 1), ("g", 2)]) -> i64
            = cmd("HSET").arg("k").arg("f").arg(1).arg("g").arg(2).take();
        hset_nx("k", "f", "v") -> bool;
        hset_ex("k", &HashFieldExpirationOptions::default()
            .set_existence_check(FieldExistenceCheck::FNX)
            .set_expiration(SetExpiry::EXAT(9)), &[("f", 1), ("g", 2)]) -> bool;
        hget_ex("k", &["f", "g"], Expiry::PX(5)) -> Vec<Option<String>>;
        hget_del("k", &["f", "g"]) -> Vec<Option<String>>;
        hdel("k", &["f", "g"]) -> i64;
        hincr("k", "f", 3) -> i64;
        hincr_float("k", "f", 0.5) -> f64 = Cmd::hincr("k", "f", 0.5);
        hexpire("k", 1, ExpireOption::NONE, &["f", "g"]) -> Vec<i64>;
        hexpire_at("k", 1, ExpireOption::GT, &["f", "g"]) -> Vec<i64>;
        hpexpire("k", 1, ExpireOption::LT, "f") -> Vec<i64>;
        hpexpire_at("k", 1, ExpireOption::NX, &["f", "g"]) -> Vec<i64>;
        hpersist("k", &["f", "g"]) -> Vec<i64>;
        hrandfield("k") -> Option<String> = cmd("HRANDFIELD").arg("k").take();
        hrandfield_multiple("k", -2) -> Vec<String> = cmd("HRANDFIELD").arg("k").arg(-2).take();
        hrandfield_withvalues("k", 2) -> Vec<(String, i64)> =
            cmd("HRANDFIELD").arg(&["k", "2", "WITHVALUES"]).take();
    }
    lists {
        lindex("k", -1) -> Value;
        llen("k") -> i64;
        lpos("k", "v", LposOptions::default()) -> Option<i64>;
        lpos("k", "v", LposOptions::default().count(1).rank(-2).maxlen(3)) -> Vec<i64>;
        lrange("k", 0, -1) -> Vec<String>;
        lpush("k", "v") -> i64;
        lpush_exists("k", &["v", "w"]) -> i64;
        rpush("k", &[1, 2]) -> i64;
        rpush_exists("k", "v") -> i64;
        lpop("k", None) -> Option<String>;
        lpop("k", NonZeroUsize::new(2)) -> Vec<String>;
        rpop("k", None) -> Option<String>;
        rpop("k", NonZeroUsize::new(2)) -> Vec<String>;
        // The number of keys is counted here, as redis-rs 2.0 does.
        lmpop(&["a", "b"], Direction::Left, 3) -> Value
            = Cmd::lmpop(2, &["a", "b"], Direction::Left, 3);
        lmove("a", "b", Direction::Left, Direction::Right) -> Value;
        rpoplpush("a", "b") -> Value;
        linsert_before("k", "p", "v") -> i64;
        linsert_after("k", "p", "v") -> i64;
        lset("k", -1, "v") -> ();
        lrem("k", -2, "v") -> i64;
        ltrim("k", 1, -2) -> ();
    }
    sets {
        scard("k") -> i64;
        sismember("k", "m") -> bool;
        smismember("k", &["m", "n"]) -> Vec<bool>;
        smembers("k") -> HashSet<String>;
        srandmember("k") -> Option<String>;
        srandmember_multiple("k", -3) -> Vec<String>;
        sdiff(&["a", "b"]) -> HashSet<String>;
        sinter(&["a", "b"]) -> HashSet<String>;
        sunion(&["a", "b"]) -> HashSet<String>;
        sadd("k", &["m", "n"]) -> i64;
        srem("k", "m") -> i64;
        smove("a", "b", "m") -> bool;
        spop("k") -> Option<String>;
        sdiffstore("d", &["a", "b"]) -> i64;
        sinterstore("d", &["a", "b"]) -> i64;
        sunionstore("d", &["a", "b"]) -> i64;
        sintercard(&["a", "b"]) -> i64 = cmd("SINTERCARD").arg(&["2", "a", "b"]).take();
        sintercard_limit("a", 5) -> i64 = cmd("SINTERCARD").arg(&["1", "a", "LIMIT", "5"]).take();
        spop_multiple("k", 3) -> Vec<String> = cmd("SPOP").arg("k").arg(3).take();
    }
    sorted_sets {
        zcard("k") -> i64;
        zcount("k", "-inf", 5) -> i64;
        zlexcount("k", "[a", "+") -> i64;
        zscore("k", "m") -> Option<f64>;
        zscore_multiple("k", &["m", "n"]) -> Vec<Option<f64>>;
        zrank("k", "m") -> Option<i64>;
        zrevrank("k", "m") -> Option<i64>;
        zrandmember("k", None) -> Option<String>;
        zrandmember("k", Some(-2)) -> Vec<String>;
        zrandmember_withscores("k", 2) -> Vec<(String, f64)>;
        zrange("k", 0, -1) -> Vec<String>;
        zrange_withscores("k", 0, -1) -> Vec<(String, f64)>;
        zrangebylex("k", "[a", "(b") -> Vec<String>;
        zrangebylex_limit("k", "[a", "(b", 1, 2) -> Vec<String>;
        zrevrangebylex("k", "(b", "[a") -> Vec<String>;
        zrevrangebylex_limit("k", "(b", "[a", 1, 2) -> Vec<String>;
        zrangebyscore("k", 1, "(2") -> Vec<String>;
        zrangebyscore_withscores("k", 1, "(2") -> Vec<(String, f64)>;
        zrangebyscore_limit("k", 1, "(2", 3, 4) -> Vec<String>;
        zrangebyscore_limit_withscores("k", 1, "(2", 3, 4) -> Vec<(String, f64)>;
        zrevrange("k", 0, -1) -> Vec<String>;
        zrevrange_withscores("k", 0, -1) -> Vec<(String, f64)>;
        zrevrangebyscore("k", "(2", 1) -> Vec<String>;
        zrevrangebyscore_withscores("k", "(2", 1) -> Vec<(String, f64)>;
        zrevrangebyscore_limit("k", "(2", 1, 3, 4) -> Vec<String>;
        zrevrangebyscore_limit_withscores("k", "(2", 1, 3, 4) -> Vec<(String, f64)>;
        zadd("k", "m", 1.5) -> i64;
        zadd_multiple("k", &[(1, "m"), (2, "n")]) -> i64;
        zadd_options("k", "m", 1, &SortedSetAddOptions::add_only()) -> i64;
        zadd_multiple_options("k", &[(1, "m"), (2, "n")],
            &SortedSetAddOptions::update_only(Some(UpdateCheck::GT))
                .include_changed_count()
                .increment_score()) -> Option<f64>;
        zincr("k", "m", 0.5) -> f64;
        zrem("k", &["m", "n"]) -> i64;
        zrembylex("k", "[a", "(b") -> i64;
        zremrangebyrank("k", 0, -2) -> i64;
        zrembyscore("k", 1, "(2") -> i64;
        zpopmax("k", 2) -> Vec<(String, f64)>;
        zpopmin("k", 2) -> Vec<(String, f64)>;
        zmpop_max(&["a", "b"], 2) -> Value;
        zmpop_min("a", 2) -> Value;
        zinterstore("d", &["a", "b"]) -> i64;
        zinterstore_min("d", &["a", "b"]) -> i64;
        zinterstore_max("d", "a") -> i64;
        zinterstore_weights("d", &[("a", 1), ("b", 2)]) -> i64;
        zinterstore_min_weights("d", &[("a", 1), ("b", 2)]) -> i64;
        zinterstore_max_weights("d", &[("a", 1)]) -> i64;
        zunionstore("d", &["a", "b"]) -> i64;
        zunionstore_min("d", &["a", "b"]) -> i64;
        zunionstore_max("d", "a") -> i64;
        zunionstore_weights("d", &[("a", 1), ("b", 2)]) -> i64;
        zunionstore_min_weights("d", &[("a", 1), ("b", 2)]) -> i64;
        zunionstore_max_weights("d", &[("a", 1)]) -> i64;
        zunion(&["a", "b"]) -> Vec<String> = cmd("ZUNION").arg(&["2", "a", "b"]).take();
        zunion_withscores("a") -> Vec<(String, f64)> = cmd("ZUNION").arg(&["1", "a", "WITHSCORES"]).take();
        zunion_min_withscores("a") -> Vec<(String, f64)> =
            cmd("ZUNION").arg(&["1", "a", "AGGREGATE", "MIN", "WITHSCORES"]).take();
        zunion_max_withscores("a") -> Vec<(String, f64)> =
            cmd("ZUNION").arg(&["1", "a", "AGGREGATE", "MAX", "WITHSCORES"]).take();
        zunion_weights_withscores(&[("a", 1), ("b", 2)]) -> Vec<(String, f64)> =
            cmd("ZUNION").arg(&["2", "a", "b", "WEIGHTS", "1", "2", "WITHSCORES"]).take();
        zinter(&["a", "b"]) -> Vec<String> = cmd("ZINTER").arg(&["2", "a", "b"]).take();
        zinter_withscores("a") -> Vec<(String, f64)> = cmd("ZINTER").arg(&["1", "a", "WITHSCORES"]).take();
        zinter_min_withscores("a") -> Vec<(String, f64)> =
            cmd("ZINTER").arg(&["1", "a", "AGGREGATE", "MIN", "WITHSCORES"]).take();
        zinter_max_withscores("a") -> Vec<(String, f64)> =
            cmd("ZINTER").arg(&["1", "a", "AGGREGATE", "MAX", "WITHSCORES"]).take();
        zinter_weights_withscores(&[("a", 1), ("b", 2)]) -> Vec<(String, f64)> =
            cmd("ZINTER").arg(&["2", "a", "b", "WEIGHTS", "1", "2", "WITHSCORES"]).take();
        zdiff(&["a", "b"]) -> Vec<String> = cmd("ZDIFF").arg(&["2", "a", "b"]).take();
        zdiff_withscores("a") -> Vec<(String, f64)> =
            cmd("ZDIFF").arg(&["1", "a", "WITHSCORES"]).take();
        zdiffstore("d", &["a", "b"]) -> i64 = cmd("ZDIFFSTORE").arg(&["d", "2", "a", "b"]).take();
        zintercard(&["a", "b"]) -> i64 = cmd("ZINTERCARD").arg(&["2", "a", "b"]).take();
        zintercard_limit("a", 5) -> i64 = cmd("ZINTERCARD").arg(&["1", "a", "LIMIT", "5"]).take();
        zrangestore("d", "s", 0, -1) -> i64 =
            cmd("ZRANGESTORE").arg(&["d", "s", "0", "-1"]).take();
        zrangestore_byscore("d", "s", "(1", 5) -> i64 =
            cmd("ZRANGESTORE").arg(&["d", "s", "(1", "5", "BYSCORE"]).take();
        zrangestore_bylex("d", "s", "[a", "+") -> i64 =
            cmd("ZRANGESTORE").arg(&["d", "s", "[a", "+", "BYLEX"]).take();
    }
    streams {
        xlen("k") -> i64;
        xrange("k", "-", "5-0") -> StreamRangeReply;
        xrange_all("k") -> StreamRangeReply;
        xrange_count("k", "-", "+", 3) -> StreamRangeReply;
        xrevrange("k", "+", "5-0") -> StreamRangeReply;
        xrevrange_all("k") -> StreamRangeReply;
        xrevrange_count("k", "+", "-", 3) -> StreamRangeReply;
        xread(&["a", "b"], &["0", "$"]) -> Option<StreamReadReply>;
        xpending("k", "g") -> StreamPendingReply;
        xpending_count("k", "g", "-", "+", 3) -> StreamPendingCountReply;
        xpending_consumer_count("k", "g", "-", "+", 3, "c") -> StreamPendingCountReply;
        xinfo_stream("k") -> StreamInfoStreamReply;
        xinfo_groups("k") -> StreamInfoGroupsReply;
        xinfo_consumers("k", "g") -> StreamInfoConsumersReply;
        xadd("k", "*", &[("f", 1), ("g", 2)]) -> String;
        xadd_map("k", "*", BTreeMap::from([("f", 1), ("g", 2)])) -> String;
        xadd_options("k", "*", &[("f", 1)], &StreamAddOptions::default()
            .nomkstream()
            .trim(StreamTrimStrategy::minid(StreamTrimmingMode::Approx, "5-0"))
            .set_deletion_policy(StreamDeletionPolicy::DelRef)) -> Option<String>;
        xadd_maxlen("k", StreamMaxlen::Approx(9), "*", &[("f", 1), ("g", 2)]) -> String;
        xadd_maxlen_map("k", StreamMaxlen::Equals(9), "*", BTreeMap::from([("f", 1)])) -> String;
        xdel("k", &["1-0", "2-0"]) -> i64;
        xdel_ex("k", &["1-0", "2-0"], StreamDeletionPolicy::KeepRef) -> Vec<i64>;
        xtrim("k", StreamMaxlen::Equals(9)) -> i64;
        xtrim_options("k", &StreamTrimOptions::maxlen(StreamTrimmingMode::Exact, 9)) -> i64;
        xcfgset("k", &StreamConfigOptions::with_idempotency_seconds(300).unwrap()) -> ();
        xread_options(&["a"], &["0"], &StreamReadOptions::default().count(3)) -> Value;
        xread_options(&["a", "b"], &[">", ">"], &StreamReadOptions::default()
            .group("g", "c")
            .noack()) -> Value;
        xack("k", "g", &["1-0", "2-0"]) -> i64;
        xack_del("k", "g", &["1-0"], StreamDeletionPolicy::Acked) -> Vec<i64>;
        xnack("k", "g", &["1-0", "2-0"], &StreamNackOptions::new(StreamNackMode::Fail)) -> i64;
        xclaim("k", "g", "c", 5, &["1-0", "2-0"]) -> StreamClaimReply;
        xclaim_options("k", "g", "c", 5, &["1-0"], StreamClaimOptions::default()
            .with_force()
            .retry(2)
            .with_justid()) -> Vec<String>;
        xautoclaim_options("k", "g", "c", 5, "0-0", StreamAutoClaimOptions::default()
            .count(3)
            .with_justid()) -> Value;
        xgroup_create("k", "g", "$") -> ();
        xgroup_create_mkstream("k", "g", "$") -> ();
        xgroup_createconsumer("k", "g", "c") -> bool;
        xgroup_setid("k", "g", "0") -> ();
        xgroup_destroy("k", "g") -> bool;
        xgroup_delconsumer("k", "g", "c") -> i64;
    }
    hyperloglogs {
        pfcount(&["a", "b"]) -> i64;
        pfadd("k", &["e", "f"]) -> bool;
        pfmerge("d", &["a", "b"]) -> ();
    }
    geo {
        geo_dist("k", "m", "n", Unit::Kilometers) -> Option<f64>;
        geo_hash("k", &["m", "n"]) -> Vec<Option<String>>;
        geo_pos("k", "m") -> Vec<Option<Coord<f64>>>;
        geo_add("k", (Coord::lon_lat(1.5, 2.5), "m")) -> i64;
        geo_add("k", &[("1.5", "2.5", "m"), ("3", "4", "n")]) -> i64;
        geo_radius("k", 1.5, 2.5, 9.0, Unit::Miles, RadiusOptions::default()
            .with_dist()
            .order(RadiusOrder::Asc)
            .limit(3)) -> Value;
        geo_radius_by_member("k", "m", 9.0, Unit::Feet, RadiusOptions::default()
            .store("d")) -> i64;
        geo_search("k", &GeoSearch::around_member("m").within_radius(9.5, Unit::Miles))
            -> Vec<String> =
            cmd("GEOSEARCH").arg(&["k", "FROMMEMBER", "m", "BYRADIUS", "9.5", "mi"]).take();
        geo_search("k", &GeoSearch::around(13.5, 38.25).within_box(4.5, 2.5, Unit::Kilometers)
            .nearest_first().any(7)) -> Vec<String> =
            cmd("GEOSEARCH").arg(&[
                "k", "FROMLONLAT", "13.5", "38.25", "BYBOX", "4.5", "2.5", "km", "ASC", "COUNT", "7",
                "ANY",
            ]).take();
        geo_search_withdist("k", &GeoSearch::around_member("m").within_radius(9.5, Unit::Feet)
            .farthest_first().count(2)) -> Value =
            cmd("GEOSEARCH").arg(&[
                "k", "FROMMEMBER", "m", "BYRADIUS", "9.5", "ft", "DESC", "COUNT", "2", "WITHDIST",
            ]).take();
        geo_search_withcoord("k", &GeoSearch::around_member("m").within_radius(9.5, Unit::Feet))
            -> Value =
            cmd("GEOSEARCH").arg(&[
                "k", "FROMMEMBER", "m", "BYRADIUS", "9.5", "ft", "WITHDIST", "WITHCOORD",
            ]).take();
        geo_search_store("d", "k", &GeoSearch::around_member("m").within_radius(9.5, Unit::Feet))
            -> i64 =
            cmd("GEOSEARCHSTORE").arg(&["d", "k", "FROMMEMBER", "m", "BYRADIUS", "9.5", "ft"]).take();
        geo_search_store_dist("d", "k",
            &GeoSearch::around_member("m").within_radius(9.5, Unit::Feet)) -> i64 =
            cmd("GEOSEARCHSTORE").arg(&[
                "d", "k", "FROMMEMBER", "m", "BYRADIUS", "9.5", "ft", "STOREDIST",
            ]).take();
    }
    vectors {
        vcard("k") -> i64 = cmd("VCARD").arg("k").take();
        vdim("k") -> i64 = cmd("VDIM").arg("k").take();
        vemb("k", "e") -> Vec<f64> = cmd("VEMB").arg("k").arg("e").take();
        vgetattr("k", "e") -> Option<String> = cmd("VGETATTR").arg("k").arg("e").take();
        vinfo("k") -> Value = cmd("VINFO").arg("k").take();
        vlinks("k", "e") -> Value = cmd("VLINKS").arg("k").arg("e").take();
        vrandmember("k") -> Option<String> = cmd("VRANDMEMBER").arg("k").take();
        vrandmember_multiple("k", -2) -> Vec<String> = cmd("VRANDMEMBER").arg("k").arg(-2).take();
        vsim("k", &[1.0, -2.0], 3) -> Vec<String> =
            cmd("VSIM").arg("k").arg("FP32").arg(ONE_AND_MINUS_TWO).arg("COUNT").arg(3).take();
        vsim_withscores("k", &[1.0, -2.0], 3) -> Vec<(String, f64)> =
            cmd("VSIM").arg("k").arg("FP32").arg(ONE_AND_MINUS_TWO).arg("WITHSCORES")
                .arg("COUNT").arg(3).take();
        vsim_element("k", "e", 3) -> Vec<String> =
            cmd("VSIM").arg(&["k", "ELE", "e", "COUNT", "3"]).take();
        vsim_element_withscores("k", "e", 3) -> Vec<(String, f64)> =
            cmd("VSIM").arg(&["k", "ELE", "e", "WITHSCORES", "COUNT", "3"]).take();
        vadd("k", &[1.0, -2.0], "e") -> bool =
            cmd("VADD").arg("k").arg("FP32").arg(ONE_AND_MINUS_TWO).arg("e").take();
        vrem("k", "e") -> bool = cmd("VREM").arg("k").arg("e").take();
        vsetattr("k", "e", "{}") -> bool = cmd("VSETATTR").arg("k").arg("e").arg("{}").take();
    }
    scripts {
        eval_ro("return 1", None::<&str>, None::<&str>) -> i64
            = cmd("EVAL_RO").arg("return 1").arg(0).take();
        evalsha_ro("00ff", "k", &[1, 2]) -> Value
            = cmd("EVALSHA_RO").arg("00ff").arg(1).arg("k").arg(1).arg(2).take();
        fcall_ro("f", &["k", "l"], "x") -> Value
            = cmd("FCALL_RO").arg("f").arg(2).arg("k").arg("l").arg("x").take();
        eval("return 1", &["k", "l"], &[1, 2]) -> Value
            = cmd("EVAL").arg("return 1").arg(2).arg("k").arg("l").arg(1).arg(2).take();
        evalsha(Script::new("return 1").get_hash(), &["k", "l"], &[1, 2]) -> Value
            = Cmd::invoke_script(Script::new("return 1").key("k").key("l").arg(1).arg(2));
        fcall("f", "k", None::<&str>) -> Value = cmd("FCALL").arg("f").arg(1).arg("k").take();
        script_load("return 1") -> String = Cmd::load_script(&Script::new("return 1"));
    }
    publish {
        publish("c", "m") -> i64;
        spublish("c", "m") -> i64;
    }
}
