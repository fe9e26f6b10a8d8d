//! What a server's error proves: the sentences with which Redis and Valkey refuse a command before
//! it has changed anything, and the commands of which such a sentence can be believed.
//!
//! Never: a proof out of a code alone. A proxy, a script or a module's command may use any code.

use crate::protocol::cluster::redirect::RedirectReply;
use crate::protocol::command;
use crate::protocol::command::Folded;

/// Stands for an argument in a sentence of the tables, and is shown in its place.
const ARGUMENT: &str = "…";

/// One sentence of the server.
#[derive(Clone, Copy, Debug)]
struct Sentence {
    code: &'static str,
    text: &'static str,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The server gives it before it starts the command, whichever command it is.
    Door,
    /// A command on keys gives it before it changes anything.
    Early,
    /// It proves nothing, and may be shown.
    Shown,
}

const fn door(code: &'static str, text: &'static str) -> Sentence {
    Sentence { code, text, kind: Kind::Door }
}

const fn early(code: &'static str, text: &'static str) -> Sentence {
    Sentence { code, text, kind: Kind::Early }
}

const fn shown(code: &'static str, text: &'static str) -> Sentence {
    Sentence { code, text, kind: Kind::Shown }
}

/// The sentences of Redis 6.2 to 8.2 and of Valkey.
const SENTENCES: &[Sentence] = &[
    door("NOAUTH", "Authentication required."),
    door("NOPERM", "this user has no permissions to run the '…' command"),
    door("NOPERM", "this user has no permissions to run the '…' command or its subcommand"),
    door("NOPERM", "this user has no permissions to access one of the keys used as arguments"),
    door("NOPERM", "this user has no permissions to access one of the channels used as arguments"),
    door("NOPERM", "User … has no permissions to run the '…' command"),
    door("NOPERM", "User … has no permissions to access the '…' key"),
    door("NOPERM", "User … has no permissions to access the '…' channel"),
    door("NOPERM", "No permissions to access a key"),
    door("NOPERM", "No permissions to access a channel"),
    door("OOM", "command not allowed when used memory > 'maxmemory'."),
    door("READONLY", "You can't write against a read only replica."),
    door("LOADING", "Redis is loading the dataset in memory"),
    door("LOADING", "Valkey is loading the dataset in memory"),
    door("MISCONF", "Errors writing to the AOF file: …"),
    door(
        "MISCONF",
        "Redis is configured to save RDB snapshots, but it is currently not able to persist on \
         disk. Commands that may modify the data set are disabled, because this instance is \
         configured to report errors during writes if RDB snapshotting fails \
         (stop-writes-on-bgsave-error option). Please check the Redis logs for details about \
         the RDB error.",
    ),
    door(
        "MISCONF",
        "Redis is configured to save RDB snapshots, but it's currently unable to persist to \
         disk. Commands that may modify the data set are disabled, because this instance is \
         configured to report errors during writes if RDB snapshotting fails \
         (stop-writes-on-bgsave-error option). Please check the Redis logs for details about \
         the RDB error.",
    ),
    door(
        "MISCONF",
        "Valkey is configured to save RDB snapshots, but it's currently unable to persist to \
         disk. Commands that may modify the data set are disabled, because this instance is \
         configured to report errors during writes if RDB snapshotting fails \
         (stop-writes-on-bgsave-error option). Please check the Valkey logs for details about \
         the RDB error.",
    ),
    door("NOREPLICAS", "Not enough good replicas to write."),
    door(
        "BUSY",
        "Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    ),
    door(
        "BUSY",
        "Redis is busy running a script. You can only call FUNCTION KILL or SHUTDOWN NOSAVE.",
    ),
    door("BUSY", "Redis is busy running a module command."),
    door(
        "BUSY",
        "Valkey is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    ),
    door(
        "BUSY",
        "Valkey is busy running a script. You can only call FUNCTION KILL or SHUTDOWN NOSAVE.",
    ),
    door("BUSY", "Valkey is busy running a module command."),
    door("MASTERDOWN", "Link with MASTER is down and replica-serve-stale-data is set to 'no'."),
    door("TRYAGAIN", "Multiple keys request during rehashing of slot"),
    door("CROSSSLOT", "Keys in request don't hash to the same slot"),
    door("CLUSTERDOWN", "Hash slot not served"),
    door("CLUSTERDOWN", "The cluster is down"),
    door("CLUSTERDOWN", "The cluster is down and only accepts read commands"),
    door("ERR", "unknown command '…', with args beginning with: …"),
    door("ERR", "unknown command `…`, with args beginning with: …"),
    door("ERR", "unknown subcommand '…'. Try … HELP."),
    door("ERR", "Unknown subcommand or wrong number of arguments for '…'. Try … HELP."),
    door("ERR", "Unknown subcommand or wrong number of arguments for '…'. Try … HELP"),
    door("ERR", "wrong number of arguments for '…' command"),
    door("ERR", "Command not allowed inside a transaction"),
    early("WRONGTYPE", "Operation against a key holding the wrong kind of value"),
    early("WRONGTYPE", "Key is not a valid HyperLogLog string value."),
    early("BUSYKEY", "Target key name already exists."),
    early("BUSYGROUP", "Consumer Group name already exists"),
    early("NOGROUP", "No such key '…' or consumer group '…' in XREADGROUP with GROUP option"),
    early("NOGROUP", "No such key '…' or consumer group '…'"),
    early("NOGROUP", "No such consumer group '…' for key name '…'"),
    early("ERR", "value is not an integer or out of range"),
    early("ERR", "value is not a valid float"),
    early("ERR", "value is out of range"),
    early("ERR", "value is out of range, must be positive"),
    early("ERR", "value is out of range, value must between … and …"),
    early("ERR", "value is NaN or Infinity"),
    early("ERR", "syntax error"),
    early("ERR", "no such key"),
    early("ERR", "index out of range"),
    early("ERR", "source and destination objects are the same"),
    early("ERR", "increment or decrement would overflow"),
    early("ERR", "decrement would overflow"),
    early("ERR", "increment would produce NaN or Infinity"),
    early("ERR", "hash value is not an integer"),
    early("ERR", "hash value is not a float"),
    early("ERR", "offset is out of range"),
    early("ERR", "bit offset is not an integer or out of range"),
    early("ERR", "bit is not an integer or out of range"),
    early("ERR", "The bit argument must be 1 or 0."),
    early("ERR", "BITOP NOT must be called with a single source key."),
    early(
        "ERR",
        "Invalid bitfield type. Use something like i16 u8. Note that u64 is not supported but \
         i64 is.",
    ),
    early("ERR", "Invalid OVERFLOW type specified"),
    early("ERR", "BITFIELD_RO only supports the GET subcommand"),
    early("ERR", "string exceeds maximum allowed size (proto-max-bulk-len)"),
    early("ERR", "string exceeds maximum allowed size (512MB)"),
    early("ERR", "The specified keys must contain string values"),
    early("ERR", "min or max is not a float"),
    early("ERR", "min or max not valid string range item"),
    early("ERR", "resulting score is not a number (NaN)"),
    early("ERR", "weight value is not a float"),
    early("ERR", "XX and NX options at the same time are not compatible"),
    early("ERR", "GT, LT, and/or NX options at the same time are not compatible"),
    early("ERR", "NX and XX, GT or LT options at the same time are not compatible"),
    early("ERR", "GT and LT options at the same time are not compatible"),
    early("ERR", "Unsupported option …"),
    early("ERR", "INCR option supports a single increment-element pair"),
    early(
        "ERR",
        "syntax error, LIMIT is only supported in combination with either BYSCORE or BYLEX",
    ),
    early("ERR", "syntax error, WITHSCORES not supported in combination with BYLEX"),
    early("ERR", "at least 1 input key is needed for '…' command"),
    early("ERR", "at least 1 input key is needed for ZUNIONSTORE/ZINTERSTORE"),
    early("ERR", "numkeys should be greater than 0"),
    early("ERR", "Number of keys can't be greater than number of args"),
    early("ERR", "LIMIT can't be negative"),
    early("ERR", "COUNT can't be negative"),
    early("ERR", "MAXLEN can't be negative"),
    early(
        "ERR",
        "RANK can't be zero: use 1 to start from the first match, 2 from the second ... or use \
         negative to start from the end of the list",
    ),
    early("ERR", "COUNT must be > 0"),
    early("ERR", "count should be greater than 0"),
    early("ERR", "timeout is not a float or out of range"),
    early("ERR", "timeout is not an integer or out of range"),
    early("ERR", "timeout is negative"),
    early("ERR", "timeout is out of range"),
    early("ERR", "invalid expire time in …"),
    early("ERR", "invalid expire time, must be >= 0"),
    early("ERR", "Mandatory argument FIELDS is missing or not at the right position"),
    early("ERR", "The `numfields` parameter must match the number of arguments"),
    early("ERR", "invalid cursor"),
    early("ERR", "DB index is out of range"),
    early("ERR", "One or more scores can't be converted into double"),
    early("ERR", "DUMP payload version or checksum are wrong"),
    early("ERR", "Bad data format"),
    early("ERR", "Invalid TTL value, must be >= 0"),
    early("ERR", "Invalid IDLETIME value, must be >= 0"),
    early("ERR", "Invalid FREQ value, must be >= 0 and <= 255"),
    early("ERR", "invalid longitude,latitude pair …"),
    early("ERR", "need numeric radius"),
    early("ERR", "need numeric width"),
    early("ERR", "need numeric height"),
    early("ERR", "radius cannot be negative"),
    early("ERR", "height or width cannot be negative"),
    early("ERR", "unsupported unit provided. please use M, KM, FT, MI"),
    early("ERR", "could not decode requested zset member"),
    early("ERR", "the ANY argument requires COUNT argument"),
    early("ERR", "Invalid stream ID specified as stream command argument"),
    early("ERR", "The ID specified in XADD must be greater than 0-0"),
    early("ERR", "The ID specified in XADD is equal or smaller than the target stream top item"),
    early(
        "ERR",
        "The XGROUP subcommand requires the key to exist. Note that for CREATE you may want to \
         use the MKSTREAM option to create an empty stream automatically.",
    ),
    early(
        "ERR",
        "Unbalanced '…' list of streams: for each stream key an ID or '…' must be specified.",
    ),
    early(
        "ERR",
        "Unbalanced XREAD list of streams: for each stream key an ID or '$' must be specified.",
    ),
    early("ERR", "Unrecognized XCLAIM option '…'"),
    early("ERR", "Missing GROUP option for XREADGROUP"),
    early("ERR", "invalid start ID for the interval"),
    early("ERR", "invalid end ID for the interval"),
    early("ERR", "syntax error, MAXLEN and MINID options at the same time are not compatible"),
    early("ERR", "syntax error, LIMIT cannot be used without specifying a trimming strategy"),
    early("ERR", "syntax error, LIMIT cannot be used without the special ~ option"),
    early("ERR", "The MAXLEN argument must be >= 0."),
    early("ERR", "The LIMIT argument must be >= 0."),
    shown("NOSCRIPT", "No matching script. Please use EVAL."),
    shown("NOSCRIPT", "No matching script."),
    shown("EXECABORT", "Transaction discarded because of previous errors."),
    shown("WRONGPASS", "invalid username-password pair or user is disabled."),
    shown("NOPROTO", "unsupported protocol version"),
    shown(
        "NOAUTH",
        "HELLO must be called with the client already authenticated, otherwise the HELLO \
         <proto> AUTH <user> <pass> option can be used to authenticate the client and select \
         the RESP protocol version at the same time",
    ),
    shown("DENIED", "Redis is running in protected mode because …"),
    shown("DENIED", "Valkey is running in protected mode because …"),
    shown("INVALIDOBJ", "Corrupted HLL object detected"),
    shown("ERR", "The user executing the script can't run this command or subcommand"),
    shown("UNBLOCKED", "client unblocked via CLIENT UNBLOCK"),
    shown("UNBLOCKED", "the stream key no longer exists"),
    shown("NOTBUSY", "No scripts in execution right now."),
    shown("ERR", "max number of clients reached"),
    shown("ERR", "max number of clients + cluster connections reached"),
    shown(
        "ERR",
        "AUTH <password> called without any password configured for the default user. Are you \
         sure your configuration is correct?",
    ),
    shown("ERR", "Client sent AUTH, but no password is set"),
    shown("ERR", "invalid DB index"),
    shown("ERR", "invalid password"),
    shown("ERR", "SELECT is not allowed in cluster mode"),
    shown("ERR", "EXEC without MULTI"),
    shown("ERR", "DISCARD without MULTI"),
    shown("ERR", "MULTI calls can not be nested"),
    shown("ERR", "WATCH inside MULTI is not allowed"),
    shown("ERR", "Elements are too large to be stored"),
    shown("ERR", "No such master with that name"),
    shown("ERR", "Function not found"),
    shown(
        "ERR",
        "WAIT cannot be used with replica instances. Please also note that since Redis 4.0 if \
         a replica is configured to be writable (which is not the default) writes to replicas \
         are just local and are not propagated.",
    ),
    shown("ERR", "WAITAOF cannot be used when numlocal is set but appendonly is disabled."),
    shown(
        "ERR",
        "WAITAOF cannot be used with replica instances. Please also note that writes to \
         replicas are just local and are not propagated.",
    ),
    shown(
        "ERR",
        "An LFU maxmemory policy is not selected, access frequency not tracked. Please note \
         that when switching between policies at runtime LRU and LFU data will take some time \
         to adjust.",
    ),
    shown(
        "ERR",
        "An LFU maxmemory policy is selected, idle time not tracked. Please note that when \
         switching between policies at runtime LRU and LFU data will take some time to adjust.",
    ),
    shown("ERR", "Invalid argument '…' for CONFIG SET '…' - …"),
    shown("ERR", "CONFIG SET failed (possibly related to argument '…') - …"),
    shown("ERR", "Unsupported CONFIG parameter: …"),
    shown("ERR", "Unknown option or number of arguments for CONFIG SET - '…'"),
    shown("ERR", "Protocol error: …"),
];

impl Sentence {
    /// Whether this is the sentence, whatever stands in the places of its arguments.
    fn is(&self, code: &str, text: &str) -> bool {
        if self.code != code {
            return false;
        }
        let Some((head, last)) = self.text.rsplit_once(ARGUMENT) else {
            return self.text == text;
        };
        let mut parts = head.split(ARGUMENT);
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = text.strip_prefix(first) else { return false };
        for part in parts {
            let Some((_, behind)) = rest.split_once(part) else { return false };
            rest = behind;
        }
        rest.ends_with(last)
    }
}

fn find(code: &str, text: &str) -> Option<&'static Sentence> {
    SENTENCES.iter().find(|sentence| sentence.is(code, text))
}

/// The sentence as it may be shown: each argument in it is replaced. `None` where it is not known.
pub(crate) fn sentence(code: &str, text: &str) -> Option<&'static str> {
    find(code, text).map(|sentence| sentence.text)
}

/// Whether the error proves that `name` changed nothing: the command is one of the server's own, and
/// the server refuses it in these words before it changes anything.
///
/// False for a script, a function, a module's command and MIGRATE, which may give any error after
/// they have written.
pub(crate) fn proves_unrun(name: &[u8], error: &redis::ServerError) -> bool {
    proves(name, error.code(), error.details().unwrap_or_default())
}

/// Whether the server refused, in these words, to start a script of which it is known that it does
/// not give them itself: the user may not, there is no such command, or another node is to be asked.
/// What is about the server's state proves nothing here.
pub(crate) fn refuses_to_start(code: &str, text: &str) -> bool {
    match code {
        "MOVED" | "ASK" => RedirectReply::of(code, text).is_some(),
        "NOPERM" | "ERR" | "TRYAGAIN" | "CROSSSLOT" | "CLUSTERDOWN" => {
            find(code, text).is_some_and(|sentence| sentence.kind == Kind::Door)
        }
        _ => false,
    }
}

/// [`proves_unrun`], of an error's code and its text.
pub(crate) fn proves(name: &[u8], code: &str, text: &str) -> bool {
    let changes = match changes(name) {
        Some(Changes::Anything) => return false,
        Some(changes) => changes,
        None => return is_unknown_command(name, code, text),
    };
    if matches!(code, "MOVED" | "ASK") {
        return RedirectReply::of(code, text).is_some();
    }
    find(code, text).is_some_and(|sentence| match sentence.kind {
        Kind::Door => !is_about_another(name, text),
        Kind::Early => changes == Changes::NothingOnFailure && !is_about_another(name, text),
        Kind::Shown => false,
    })
}

/// Whether the sentence names a command, and another one than `name`: then it is not the server's
/// answer to this command.
fn is_about_another(name: &[u8], text: &str) -> bool {
    // What stands before the quotation is the same in all sentences that name a command.
    const BEFORE: [(&str, &[char]); 6] = [
        ("Try ", &[' ']),
        (" to run the '", &['\'']),
        ("wrong number of arguments for '", &['\'']),
        ("key is needed for '", &['\'']),
        ("unknown command '", &['\'']),
        ("unknown command `", &['`']),
    ];
    let named = BEFORE.iter().find_map(|(before, end)| {
        let (_, rest) = text.split_once(before)?;
        rest.split(*end).next()
    });
    // A subcommand stands behind its command.
    let Some(command) = named.and_then(|named| named.split(['|', ' ']).next()) else {
        return false;
    };
    // ASKING is sent before the command. Its refusal stands for the command's answer only where that
    // was MOVED: see `redirect::after_asking`.
    !command.as_bytes().eq_ignore_ascii_case(name) && !command.eq_ignore_ascii_case("asking")
}

/// Whether a command that failed inside a transaction that ran, by EXEC's own array, has changed
/// nothing.
pub(crate) fn left_all_as_it_was(name: &[u8], error: &redis::ServerError) -> bool {
    // PFADD and PFMERGE find a damaged value half way; XADD creates the stream first.
    let late = error.code() == "INVALIDOBJ"
        || error.details() == Some("Elements are too large to be stored");
    changes(name) == Some(Changes::NothingOnFailure) && !late || proves_unrun(name, error)
}

/// Whether the server does not know this command, by its own words about this very name.
fn is_unknown_command(name: &[u8], code: &str, text: &str) -> bool {
    let Ok(name) = std::str::from_utf8(name) else { return false };
    let rest = text.strip_prefix("unknown command ").filter(|_| code == "ERR");
    let quoted = |quote: char| {
        let rest = rest?.strip_prefix(quote)?.strip_prefix(name)?.strip_prefix(quote)?;
        rest.strip_prefix(", with args beginning with: ")
    };
    !name.is_empty() && (quoted('\'').is_some() || quoted('`').is_some())
}

/// What a command of the server's own may have changed when it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Changes {
    /// It works on keys or reads, and checks all of its arguments and keys first.
    NothingOnFailure,
    /// It is about the server: only a refusal before it starts proves anything.
    Settings,
    /// It may fail after it has written, with any error.
    Anything,
}

/// `None` for what is not in the table: a module's command, for all that is known.
fn changes(name: &[u8]) -> Option<Changes> {
    if command::is_script(name) {
        return Some(Changes::Anything);
    }
    let name = Folded::new(name)?;
    Some(match name.as_str() {
        "MIGRATE" => Changes::Anything,
        "ACL" | "ASKING" | "AUTH" | "BGREWRITEAOF" | "BGSAVE" | "CLIENT" | "CLUSTER"
        | "CLUSTERSCAN" | "COMMAND" | "COMMANDLOG" | "CONFIG" | "DEBUG" | "DISCARD" | "EXEC"
        | "FAILOVER" | "HELLO" | "HOTKEYS" | "LASTSAVE" | "LATENCY" | "LOLWUT" | "MEMORY"
        | "MODULE" | "MONITOR" | "MULTI" | "PFDEBUG" | "PFSELFTEST" | "PSUBSCRIBE" | "PSYNC"
        | "PUNSUBSCRIBE" | "QUIT" | "READONLY" | "READWRITE" | "REPLCONF" | "REPLICAOF"
        | "RESET" | "ROLE" | "SAVE" | "SELECT" | "SENTINEL" | "SHUTDOWN" | "SLAVEOF"
        | "SLOWLOG" | "SSUBSCRIBE" | "SUBSCRIBE" | "SUNSUBSCRIBE" | "SWAPDB" | "SYNC"
        | "UNSUBSCRIBE" | "UNWATCH" | "WAIT" | "WAITAOF" | "WATCH" => Changes::Settings,
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
        | "ZUNIONSTORE" => Changes::NothingOnFailure,
        _ => return None,
    })
}

/// Whether it is a command on keys, whose replies hold no errors.
pub(crate) fn is_plain(name: &[u8]) -> bool {
    changes(name) == Some(Changes::NothingOnFailure)
}

/// Whether the name is one of the server's own commands, a vector set's included.
pub(crate) fn is_core(name: &[u8]) -> bool {
    changes(name).is_some()
        || Folded::new(name).is_some_and(|name| VECTORS.contains(&name.as_str()))
}

/// The commands of vector sets, which are a module's that comes with the server.
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

#[cfg(test)]
#[path = "../../tests/unit/refusal.rs"]
mod tests;
