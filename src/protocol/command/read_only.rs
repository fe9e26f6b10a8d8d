//! Commands that have no effect and may be sent twice.

use crate::protocol::command::upper_name::UpperName;

/// Whether the server documents that `name` has no effect, so that it may be sent twice.
pub(crate) fn is_read_only(name: &[u8], sub: Option<&[u8]>) -> bool {
    let Some(name) = UpperName::new(name) else { return false };
    match name.as_str() {
        "BITCOUNT"
        | "BITFIELD_RO"
        | "BITPOS"
        | "DBSIZE"
        | "DIGEST"
        | "DUMP"
        | "ECHO"
        | "EVALSHA_RO"
        | "EVAL_RO"
        | "EXISTS"
        | "EXPIRETIME"
        | "FCALL_RO"
        | "GEODIST"
        | "GEOHASH"
        | "GEOPOS"
        | "GEORADIUSBYMEMBER_RO"
        | "GEORADIUS_RO"
        | "GEOSEARCH"
        | "GET"
        | "GETBIT"
        | "GETRANGE"
        | "HEXISTS"
        | "HEXPIRETIME"
        | "HGET"
        | "HGETALL"
        | "HKEYS"
        | "HLEN"
        | "HMGET"
        | "HPEXPIRETIME"
        | "HPTTL"
        | "HRANDFIELD"
        | "HSCAN"
        | "HSTRLEN"
        | "HTTL"
        | "HVALS"
        | "INFO"
        | "KEYS"
        | "LCS"
        | "LINDEX"
        | "LLEN"
        | "LPOS"
        | "LRANGE"
        | "MGET"
        | "PEXPIRETIME"
        | "PFCOUNT"
        | "PING"
        | "PTTL"
        | "RANDOMKEY"
        | "SCAN"
        | "SCARD"
        | "SDIFF"
        | "SINTER"
        | "SINTERCARD"
        | "SISMEMBER"
        | "SMEMBERS"
        | "SMISMEMBER"
        | "SORT_RO"
        | "SRANDMEMBER"
        | "SSCAN"
        | "STRLEN"
        | "SUBSTR"
        | "SUNION"
        | "TIME"
        | "TTL"
        | "TYPE"
        | "XLEN"
        | "XPENDING"
        | "XRANGE"
        | "XREAD"
        | "XREVRANGE"
        | "ZCARD"
        | "ZCOUNT"
        | "ZDIFF"
        | "ZINTER"
        | "ZINTERCARD"
        | "ZLEXCOUNT"
        | "ZMSCORE"
        | "ZRANDMEMBER"
        | "ZRANGE"
        | "ZRANGEBYLEX"
        | "ZRANGEBYSCORE"
        | "ZRANK"
        | "ZREVRANGE"
        | "ZREVRANGEBYLEX"
        | "ZREVRANGEBYSCORE"
        | "ZREVRANK"
        | "ZSCAN"
        | "ZSCORE"
        | "ZUNION" => true,
        "VCARD" | "VDIM" | "VEMB" | "VGETATTR" | "VINFO" | "VISMEMBER" | "VLINKS"
        | "VRANDMEMBER" | "VRANGE" | "VSIM" => true,
        "OBJECT" | "XINFO" => true,
        "MEMORY" => sub.is_some_and(|sub| sub.eq_ignore_ascii_case(b"USAGE")),
        name => MODULE_READS.binary_search(&name).is_ok(),
    }
}

/// Commands of well-known modules that their servers mark as read-only, in order.
pub(crate) const MODULE_READS: &[&str] = &[
    "BF.CARD",
    "BF.EXISTS",
    "BF.INFO",
    "BF.MEXISTS",
    "BF.SCANDUMP",
    "CF.COUNT",
    "CF.EXISTS",
    "CF.INFO",
    "CF.MEXISTS",
    "CF.SCANDUMP",
    "CMS.INFO",
    "CMS.QUERY",
    "FT.AGGREGATE",
    "FT.DICTDUMP",
    "FT.EXPLAIN",
    "FT.EXPLAINCLI",
    "FT.HYBRID",
    "FT.INFO",
    "FT.PROFILE",
    "FT.SEARCH",
    "FT.SPELLCHECK",
    "FT.SUGGET",
    "FT.SUGLEN",
    "FT.SYNDUMP",
    "FT.TAGVALS",
    "FT._LIST",
    "JSON.ARRINDEX",
    "JSON.ARRLEN",
    "JSON.GET",
    "JSON.MGET",
    "JSON.OBJKEYS",
    "JSON.OBJLEN",
    "JSON.RESP",
    "JSON.STRLEN",
    "JSON.TYPE",
    "TDIGEST.BYRANK",
    "TDIGEST.BYREVRANK",
    "TDIGEST.CDF",
    "TDIGEST.INFO",
    "TDIGEST.MAX",
    "TDIGEST.MIN",
    "TDIGEST.QUANTILE",
    "TDIGEST.RANK",
    "TDIGEST.REVRANK",
    "TDIGEST.TRIMMED_MEAN",
    "TOPK.COUNT",
    "TOPK.INFO",
    "TOPK.LIST",
    "TOPK.QUERY",
    "TS.GET",
    "TS.INFO",
    "TS.MGET",
    "TS.MRANGE",
    "TS.MREVRANGE",
    "TS.QUERYINDEX",
    "TS.RANGE",
    "TS.REVRANGE",
];
