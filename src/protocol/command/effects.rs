//! The effects that a failed command may have had.

use crate::protocol::command::upper_name::UpperName;

/// The effects that a failed command of the server's own may have had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureEffect {
    /// None: it works on keys or reads, and checks all arguments and keys first.
    Nothing,
    /// The command concerns the server: only a rejection before it starts proves anything.
    Settings,
    /// Any: it may fail with any error after it has written.
    Anything,
}

/// `None` for a name that is not in the table, such as a module's.
pub(crate) fn effect_of_failure(name: &[u8]) -> Option<FailureEffect> {
    if is_script(name) {
        return Some(FailureEffect::Anything);
    }
    let name = UpperName::new(name)?;
    Some(match name.as_str() {
        "MIGRATE" => FailureEffect::Anything,
        "ACL" | "ASKING" | "AUTH" | "BGREWRITEAOF" | "BGSAVE" | "CLIENT" | "CLUSTER"
        | "CLUSTERSCAN" | "COMMAND" | "COMMANDLOG" | "CONFIG" | "DEBUG" | "DISCARD" | "EXEC"
        | "FAILOVER" | "HELLO" | "HOTKEYS" | "LASTSAVE" | "LATENCY" | "LOLWUT" | "MEMORY"
        | "MODULE" | "MONITOR" | "MULTI" | "PFDEBUG" | "PFSELFTEST" | "PSUBSCRIBE" | "PSYNC"
        | "PUNSUBSCRIBE" | "QUIT" | "READONLY" | "READWRITE" | "REPLCONF" | "REPLICAOF"
        | "RESET" | "ROLE" | "SAVE" | "SELECT" | "SENTINEL" | "SHUTDOWN" | "SLAVEOF"
        | "SLOWLOG" | "SSUBSCRIBE" | "SUBSCRIBE" | "SUNSUBSCRIBE" | "SWAPDB" | "SYNC"
        | "UNSUBSCRIBE" | "UNWATCH" | "WAIT" | "WAITAOF" | "WATCH" => FailureEffect::Settings,
        "APPEND"
        | "BITCOUNT"
        | "BITFIELD"
        | "BITFIELD_RO"
        | "BITOP"
        | "BITPOS"
        | "BLMOVE"
        | "BLMPOP"
        | "BLPOP"
        | "BRPOP"
        | "BRPOPLPUSH"
        | "BZMPOP"
        | "BZPOPMAX"
        | "BZPOPMIN"
        | "COPY"
        | "DBSIZE"
        | "DECR"
        | "DECRBY"
        | "DEL"
        | "DELEX"
        | "DELIFEQ"
        | "DIGEST"
        | "DUMP"
        | "ECHO"
        | "EXISTS"
        | "EXPIRE"
        | "EXPIREAT"
        | "EXPIRETIME"
        | "FLUSHALL"
        | "FLUSHDB"
        | "GEOADD"
        | "GEODIST"
        | "GEOHASH"
        | "GEOPOS"
        | "GEORADIUS"
        | "GEORADIUSBYMEMBER"
        | "GEORADIUSBYMEMBER_RO"
        | "GEORADIUS_RO"
        | "GEOSEARCH"
        | "GEOSEARCHSTORE"
        | "GET"
        | "GETBIT"
        | "GETDEL"
        | "GETEX"
        | "GETRANGE"
        | "GETSET"
        | "HDEL"
        | "HEXISTS"
        | "HEXPIRE"
        | "HEXPIREAT"
        | "HEXPIRETIME"
        | "HGET"
        | "HGETALL"
        | "HGETDEL"
        | "HGETEX"
        | "HINCRBY"
        | "HINCRBYFLOAT"
        | "HKEYS"
        | "HLEN"
        | "HMGET"
        | "HMSET"
        | "HPERSIST"
        | "HPEXPIRE"
        | "HPEXPIREAT"
        | "HPEXPIRETIME"
        | "HPTTL"
        | "HRANDFIELD"
        | "HSCAN"
        | "HSET"
        | "HSETEX"
        | "HSETNX"
        | "HSTRLEN"
        | "HTTL"
        | "HVALS"
        | "INCR"
        | "INCRBY"
        | "INCRBYFLOAT"
        | "INCREX"
        | "INFO"
        | "KEYS"
        | "LCS"
        | "LINDEX"
        | "LINSERT"
        | "LLEN"
        | "LMOVE"
        | "LMPOP"
        | "LPOP"
        | "LPOS"
        | "LPUSH"
        | "LPUSHX"
        | "LRANGE"
        | "LREM"
        | "LSET"
        | "LTRIM"
        | "MGET"
        | "MOVE"
        | "MSET"
        | "MSETEX"
        | "MSETNX"
        | "OBJECT"
        | "PERSIST"
        | "PEXPIRE"
        | "PEXPIREAT"
        | "PEXPIRETIME"
        | "PFADD"
        | "PFCOUNT"
        | "PFMERGE"
        | "PING"
        | "PSETEX"
        | "PTTL"
        | "PUBLISH"
        | "PUBSUB"
        | "RANDOMKEY"
        | "RENAME"
        | "RENAMENX"
        | "RESTORE"
        | "RPOP"
        | "RPOPLPUSH"
        | "RPUSH"
        | "RPUSHX"
        | "SADD"
        | "SCAN"
        | "SCARD"
        | "SDIFF"
        | "SDIFFSTORE"
        | "SET"
        | "SETBIT"
        | "SETEX"
        | "SETNX"
        | "SETRANGE"
        | "SINTER"
        | "SINTERCARD"
        | "SINTERSTORE"
        | "SISMEMBER"
        | "SMEMBERS"
        | "SMISMEMBER"
        | "SMOVE"
        | "SORT"
        | "SORT_RO"
        | "SPOP"
        | "SPUBLISH"
        | "SRANDMEMBER"
        | "SREM"
        | "SSCAN"
        | "STRLEN"
        | "SUBSTR"
        | "SUNION"
        | "SUNIONSTORE"
        | "TIME"
        | "TOUCH"
        | "TTL"
        | "TYPE"
        | "UNLINK"
        | "XACK"
        | "XACKDEL"
        | "XADD"
        | "XAUTOCLAIM"
        | "XCFGSET"
        | "XCLAIM"
        | "XDEL"
        | "XDELEX"
        | "XGROUP"
        | "XINFO"
        | "XLEN"
        | "XNACK"
        | "XPENDING"
        | "XRANGE"
        | "XREAD"
        | "XREADGROUP"
        | "XREVRANGE"
        | "XSETID"
        | "XTRIM"
        | "ZADD"
        | "ZCARD"
        | "ZCOUNT"
        | "ZDIFF"
        | "ZDIFFSTORE"
        | "ZINCRBY"
        | "ZINTER"
        | "ZINTERCARD"
        | "ZINTERSTORE"
        | "ZLEXCOUNT"
        | "ZMPOP"
        | "ZMSCORE"
        | "ZPOPMAX"
        | "ZPOPMIN"
        | "ZRANDMEMBER"
        | "ZRANGE"
        | "ZRANGEBYLEX"
        | "ZRANGEBYSCORE"
        | "ZRANGESTORE"
        | "ZRANK"
        | "ZREM"
        | "ZREMRANGEBYLEX"
        | "ZREMRANGEBYRANK"
        | "ZREMRANGEBYSCORE"
        | "ZREVRANGE"
        | "ZREVRANGEBYLEX"
        | "ZREVRANGEBYSCORE"
        | "ZREVRANK"
        | "ZSCAN"
        | "ZSCORE"
        | "ZUNION"
        | "ZUNIONSTORE" => FailureEffect::Nothing,
        _ => return None,
    })
}

/// Whether the name is a data command, whose replies contain no errors.
pub(crate) fn is_data_command(name: &[u8]) -> bool {
    effect_of_failure(name) == Some(FailureEffect::Nothing)
}

/// Whether the name is one of the server's own commands, vector sets included.
pub(crate) fn is_server_command(name: &[u8]) -> bool {
    effect_of_failure(name).is_some()
        || UpperName::new(name).is_some_and(|name| VECTORS.contains(&name.as_str()))
}

/// The commands of vector sets, a module that comes with the server.
const VECTORS: &[&str] = &[
    "VADD",
    "VCARD",
    "VDIM",
    "VEMB",
    "VGETATTR",
    "VINFO",
    "VISMEMBER",
    "VLINKS",
    "VRANDMEMBER",
    "VRANGE",
    "VREM",
    "VSETATTR",
    "VSIM",
];

/// Whether `name` runs or loads a script, whose error texts may contain values.
pub(crate) fn is_script(name: &[u8]) -> bool {
    UpperName::new(name).is_some_and(|name| {
        matches!(
            name.as_str(),
            "EVAL"
                | "EVALSHA"
                | "EVAL_RO"
                | "EVALSHA_RO"
                | "FCALL"
                | "FCALL_RO"
                | "SCRIPT"
                | "FUNCTION"
        )
    })
}
