//! The table of commands: for each one its keys, whether it writes, and whether it may be sent.
//!
//! There is one row for each command, in order. The rows agree with the server's own table.
//!
//! A command without a row, such as an unknown module's, is handled with the most caution.

use crate::protocol::command::upper_name::UpperName;

/// One command of the server or of a well-known module.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) name: &'static str,
    /// `None`: not known, and not guessed.
    pub(crate) keys: Option<KeyPositions>,
    flags: u16,
}

/// The positions of a command's keys; the name is at 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyPositions {
    None,
    /// Every `step`th from `first` to `trailing` before the end.
    Range {
        first: usize,
        trailing: usize,
        step: usize,
    },
    /// These two, which may be equal.
    Pair(usize, usize),
    /// The count is at `at`, and the keys follow it.
    Counted {
        at: usize,
        step: usize,
    },
    /// The same, and one key at 1.
    AndCounted {
        at: usize,
    },
    /// The first half of the arguments after STREAMS.
    Streams,
    /// At 1, and after one of these words.
    Store(&'static [&'static str]),
}

/// The effects that a failed command of the server's own may have had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureEffect {
    /// None: it works on keys or reads, and checks all arguments and keys first.
    Nothing,
    /// It is about the server: only a rejection before it starts proves anything.
    Settings,
    /// Any: it may fail with any error after it has written.
    Anything,
}

/// Works on keys or reads; a failure had no effect, and its replies contain no errors.
const DATA: u16 = 1;
/// Is about the server or the connection.
const SERVER: u16 = 1 << 1;
/// May fail after it has written.
const ANY_EFFECT: u16 = 1 << 2;
/// Runs or loads a script, whose error texts may contain values.
const SCRIPT: u16 = 1 << 3;
/// The server documents that it has no effect, so that it may be sent twice.
pub(crate) const READ: u16 = 1 << 4;
/// May write. A command that is neither this nor [`READ`] depends on its arguments.
pub(crate) const WRITE: u16 = 1 << 5;
/// Would change a shared connection, end a transaction behind its guard's back, or stop the server.
pub(crate) const REFUSED: u16 = 1 << 6;
/// Does not wait between MULTI and EXEC.
pub(crate) const REFUSED_IN_MULTI: u16 = 1 << 7;
/// Works on all keys of a server, so that in a cluster each node has a part of them.
pub(crate) const ALL_NODES: u16 = 1 << 8;
/// May be part of a block that another caller sends: its work does not grow with the size of a
/// value, and it does not block.
pub(crate) const BATCH: u16 = 1 << 9;
/// May be sent by another caller as a single read, as its reply is short.
pub(crate) const BATCH_READ: u16 = 1 << 10;

const UNKNOWN: Option<KeyPositions> = None;
const NO_KEY: Option<KeyPositions> = Some(KeyPositions::None);
const FIRST: Option<KeyPositions> = Some(KeyPositions::Pair(1, 1));
const SECOND: Option<KeyPositions> = Some(KeyPositions::Pair(2, 2));
const FIRST_TWO: Option<KeyPositions> = Some(KeyPositions::Pair(1, 2));
const ALL: Option<KeyPositions> = range(1, 0, 1);
const ALL_BUT_LAST: Option<KeyPositions> = range(1, 1, 1);
const ALL_AFTER_FIRST: Option<KeyPositions> = range(2, 0, 1);
const EVERY_SECOND: Option<KeyPositions> = range(1, 0, 2);
const COUNTED: Option<KeyPositions> = Some(KeyPositions::Counted { at: 1, step: 1 });
const COUNTED_PAIRS: Option<KeyPositions> = Some(KeyPositions::Counted { at: 1, step: 2 });
const COUNTED_SECOND: Option<KeyPositions> = Some(KeyPositions::Counted { at: 2, step: 1 });
const FIRST_AND_COUNTED: Option<KeyPositions> = Some(KeyPositions::AndCounted { at: 2 });
const STREAMS: Option<KeyPositions> = Some(KeyPositions::Streams);
const STORE: Option<KeyPositions> = Some(KeyPositions::Store(&["STORE"]));
const STORE_OR_DIST: Option<KeyPositions> = Some(KeyPositions::Store(&["STORE", "STOREDIST"]));

const fn range(first: usize, trailing: usize, step: usize) -> Option<KeyPositions> {
    Some(KeyPositions::Range { first, trailing, step })
}

impl Command {
    pub(crate) const fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Whether the command may be part of another caller's batch: a data command that neither blocks nor
    /// is refused.
    pub(crate) const fn is_small(&self) -> bool {
        self.has(BATCH | BATCH_READ)
    }

    /// Whether the server documents that it has no effect, so that it may be sent twice.
    pub(crate) fn is_read_only(&self, sub: Option<&[u8]>) -> bool {
        self.has(READ) || self.is_memory_usage(sub)
    }

    /// Whether it is MEMORY USAGE, which is about a key unlike the other subcommands.
    pub(crate) fn is_memory_usage(&self, sub: Option<&[u8]>) -> bool {
        self.name == "MEMORY" && sub.is_some_and(|sub| sub.eq_ignore_ascii_case(b"USAGE"))
    }

    fn effect_of_failure(&self) -> Option<FailureEffect> {
        Some(match self.flags & (DATA | SERVER | ANY_EFFECT | SCRIPT) {
            DATA => FailureEffect::Nothing,
            SERVER => FailureEffect::Settings,
            ANY_EFFECT | SCRIPT => FailureEffect::Anything,
            _ => return None,
        })
    }
}

/// The row of a command, by its name in any case.
pub(crate) fn find(name: &[u8]) -> Option<&'static Command> {
    let name = UpperName::new(name)?;
    let prefix = name.prefix();
    let first = PREFIXES.partition_point(|other| *other < prefix);
    let same = PREFIXES.iter().zip(COMMANDS).skip(first).take_while(|(other, _)| **other == prefix);
    same.map(|(_, row)| row).find(|row| row.name.as_bytes() == name.as_bytes())
}

/// The first eight bytes of each row's name, as [`UpperName::prefix`] has them. Numbers are compared
/// faster than names.
static PREFIXES: [u64; COMMANDS.len()] = prefixes();

#[expect(clippy::indexing_slicing, reason = "at < the length, which is that of the table")]
const fn prefixes<const N: usize>() -> [u64; N] {
    let mut prefixes = [0; N];
    let mut at = 0;
    while at < N {
        prefixes[at] = prefix(COMMANDS[at].name.as_bytes());
        at += 1;
    }
    prefixes
}

#[expect(clippy::indexing_slicing, reason = "at < the length")]
const fn prefix(name: &[u8]) -> u64 {
    let (mut prefix, mut at) = (0, 0);
    while at < 8 {
        let byte = if at < name.len() { name[at] } else { 0 };
        prefix = prefix << 8 | byte as u64;
        at += 1;
    }
    prefix
}

/// The row of a command, by its name in upper case.
pub(crate) const fn find_upper(name: &str) -> Option<&'static Command> {
    let (mut low, mut high) = (0, COMMANDS.len());
    while low < high {
        let middle = low.midpoint(high);
        #[expect(clippy::indexing_slicing, reason = "middle < high <= the length")]
        let row = &COMMANDS[middle];
        match compare(row.name.as_bytes(), name.as_bytes()) {
            0 => return Some(row),
            1 => high = middle,
            _ => low = middle + 1,
        }
    }
    None
}

/// 0: equal, 1: `left` is after `right`, -1: before. (`Ord` is not const.)
#[expect(clippy::indexing_slicing, reason = "at < both lengths")]
const fn compare(left: &[u8], right: &[u8]) -> i8 {
    let mut at = 0;
    while at < left.len() && at < right.len() {
        if left[at] != right[at] {
            return if left[at] > right[at] { 1 } else { -1 };
        }
        at += 1;
    }
    (left.len() > right.len()) as i8 - (left.len() < right.len()) as i8
}

/// `None` for a name that is not in the table, and for a module's.
pub(crate) fn effect_of_failure(name: &[u8]) -> Option<FailureEffect> {
    find(name)?.effect_of_failure()
}

/// Whether it is a data command, whose replies contain no errors.
pub(crate) fn is_data_command(name: &[u8]) -> bool {
    find(name).is_some_and(|command| command.has(DATA))
}

/// Whether the name is one of the server's own commands, vector sets included.
pub(crate) fn is_server_command(name: &[u8]) -> bool {
    find(name).is_some() && !name.contains(&b'.')
}

/// Whether `name` runs or loads a script, whose error texts may contain values.
pub(crate) fn is_script(name: &[u8]) -> bool {
    find(name).is_some_and(|command| command.has(SCRIPT))
}

/// Whether the server documents that `name` has no effect, so that it may be sent twice.
pub(crate) fn is_read_only(name: &[u8], sub: Option<&[u8]>) -> bool {
    find(name).is_some_and(|command| command.is_read_only(sub))
}

/// Returns whether the table marks the command as a write. A command that reads or writes by its
/// arguments has no mark.
pub(crate) fn is_known_write(name: &[u8]) -> bool {
    find(name).is_some_and(|command| command.has(WRITE))
}

const fn row(name: &'static str, keys: Option<KeyPositions>, flags: u16) -> Command {
    Command { name, keys, flags }
}

static COMMANDS: &[Command] = &[
    row("ACL", NO_KEY, SERVER),
    row("APPEND", FIRST, DATA | WRITE | BATCH),
    row("ASKING", UNKNOWN, SERVER | REFUSED),
    row("AUTH", UNKNOWN, SERVER | REFUSED),
    row("BF.CARD", FIRST, READ),
    row("BF.EXISTS", FIRST, READ),
    row("BF.INFO", FIRST, READ),
    row("BF.MEXISTS", FIRST, READ),
    row("BF.SCANDUMP", FIRST, READ),
    row("BGREWRITEAOF", NO_KEY, SERVER | WRITE),
    row("BGSAVE", NO_KEY, SERVER | WRITE),
    row("BITCOUNT", FIRST, DATA | READ),
    row("BITFIELD", FIRST, DATA),
    row("BITFIELD_RO", FIRST, DATA | READ),
    row("BITOP", ALL_AFTER_FIRST, DATA | WRITE),
    row("BITPOS", FIRST, DATA | READ),
    row("BLMOVE", FIRST_TWO, DATA | WRITE),
    row("BLMPOP", COUNTED_SECOND, DATA | WRITE),
    row("BLPOP", ALL_BUT_LAST, DATA | WRITE),
    row("BRPOP", ALL_BUT_LAST, DATA | WRITE),
    row("BRPOPLPUSH", FIRST_TWO, DATA | WRITE),
    row("BZMPOP", COUNTED_SECOND, DATA | WRITE),
    row("BZPOPMAX", ALL_BUT_LAST, DATA | WRITE),
    row("BZPOPMIN", ALL_BUT_LAST, DATA | WRITE),
    row("CF.COUNT", FIRST, READ),
    row("CF.EXISTS", FIRST, READ),
    row("CF.INFO", FIRST, READ),
    row("CF.MEXISTS", FIRST, READ),
    row("CF.SCANDUMP", FIRST, READ),
    row("CLIENT", NO_KEY, SERVER),
    row("CLUSTER", NO_KEY, SERVER),
    row("CLUSTERSCAN", UNKNOWN, SERVER),
    row("CMS.INFO", FIRST, READ),
    row("CMS.QUERY", FIRST, READ),
    row("COMMAND", NO_KEY, SERVER),
    row("COMMANDLOG", UNKNOWN, SERVER),
    row("CONFIG", NO_KEY, SERVER),
    row("COPY", FIRST_TWO, DATA | WRITE),
    row("DBSIZE", NO_KEY, DATA | READ | ALL_NODES),
    row("DEBUG", UNKNOWN, SERVER | REFUSED),
    row("DECR", FIRST, DATA | WRITE),
    row("DECRBY", FIRST, DATA | WRITE | BATCH),
    row("DEL", ALL, DATA | WRITE | BATCH),
    row("DELEX", FIRST, DATA | WRITE),
    row("DELIFEQ", FIRST, DATA | WRITE),
    row("DIGEST", FIRST, DATA | READ),
    row("DISCARD", UNKNOWN, SERVER | REFUSED),
    row("DUMP", FIRST, DATA | READ),
    row("ECHO", NO_KEY, DATA | READ),
    row("EVAL", COUNTED_SECOND, SCRIPT),
    row("EVALSHA", COUNTED_SECOND, SCRIPT),
    row("EVALSHA_RO", COUNTED_SECOND, SCRIPT | READ),
    row("EVAL_RO", COUNTED_SECOND, SCRIPT | READ),
    row("EXEC", UNKNOWN, SERVER | REFUSED),
    row("EXISTS", ALL, DATA | READ | BATCH | BATCH_READ),
    row("EXPIRE", FIRST, DATA | WRITE | BATCH),
    row("EXPIREAT", FIRST, DATA | WRITE | BATCH),
    row("EXPIRETIME", FIRST, DATA | READ),
    row("FAILOVER", UNKNOWN, SERVER | REFUSED),
    row("FCALL", COUNTED_SECOND, SCRIPT),
    row("FCALL_RO", COUNTED_SECOND, SCRIPT | READ),
    row("FLUSHALL", NO_KEY, DATA | WRITE | ALL_NODES),
    row("FLUSHDB", NO_KEY, DATA | WRITE | ALL_NODES),
    row("FT.AGGREGATE", UNKNOWN, READ),
    row("FT.DICTDUMP", UNKNOWN, READ),
    row("FT.EXPLAIN", UNKNOWN, READ),
    row("FT.EXPLAINCLI", UNKNOWN, READ),
    row("FT.HYBRID", UNKNOWN, READ),
    row("FT.INFO", UNKNOWN, READ),
    row("FT.PROFILE", UNKNOWN, READ),
    row("FT.SEARCH", UNKNOWN, READ),
    row("FT.SPELLCHECK", UNKNOWN, READ),
    row("FT.SUGGET", UNKNOWN, READ),
    row("FT.SUGLEN", UNKNOWN, READ),
    row("FT.SYNDUMP", UNKNOWN, READ),
    row("FT.TAGVALS", UNKNOWN, READ),
    row("FT._LIST", UNKNOWN, READ),
    row("FUNCTION", NO_KEY, SCRIPT),
    row("GEOADD", FIRST, DATA | WRITE),
    row("GEODIST", FIRST, DATA | READ),
    row("GEOHASH", FIRST, DATA | READ),
    row("GEOPOS", FIRST, DATA | READ),
    row("GEORADIUS", STORE_OR_DIST, DATA),
    row("GEORADIUSBYMEMBER", STORE_OR_DIST, DATA),
    row("GEORADIUSBYMEMBER_RO", FIRST, DATA | READ),
    row("GEORADIUS_RO", FIRST, DATA | READ),
    row("GEOSEARCH", FIRST, DATA | READ),
    row("GEOSEARCHSTORE", FIRST_TWO, DATA | WRITE),
    row("GET", FIRST, DATA | READ | BATCH | BATCH_READ),
    row("GETBIT", FIRST, DATA | READ | BATCH | BATCH_READ),
    row("GETDEL", FIRST, DATA | WRITE | BATCH),
    row("GETEX", FIRST, DATA | WRITE | BATCH),
    row("GETRANGE", FIRST, DATA | READ),
    row("GETSET", FIRST, DATA | WRITE | BATCH),
    row("HDEL", FIRST, DATA | WRITE | BATCH),
    row("HELLO", UNKNOWN, SERVER | REFUSED),
    row("HEXISTS", FIRST, DATA | READ | BATCH | BATCH_READ),
    row("HEXPIRE", FIRST, DATA | WRITE),
    row("HEXPIREAT", FIRST, DATA | WRITE),
    row("HEXPIRETIME", FIRST, DATA | READ),
    row("HGET", FIRST, DATA | READ | BATCH | BATCH_READ),
    row("HGETALL", FIRST, DATA | READ),
    row("HGETDEL", FIRST, DATA | WRITE),
    row("HGETEX", FIRST, DATA | WRITE),
    row("HINCRBY", FIRST, DATA | WRITE | BATCH),
    row("HINCRBYFLOAT", FIRST, DATA | WRITE | BATCH),
    row("HKEYS", FIRST, DATA | READ),
    row("HLEN", FIRST, DATA | READ | BATCH | BATCH_READ),
    row("HMGET", FIRST, DATA | READ | BATCH),
    row("HMSET", FIRST, DATA | WRITE),
    row("HOTKEYS", UNKNOWN, SERVER),
    row("HPERSIST", FIRST, DATA | WRITE),
    row("HPEXPIRE", FIRST, DATA | WRITE),
    row("HPEXPIREAT", FIRST, DATA | WRITE),
    row("HPEXPIRETIME", FIRST, DATA | READ),
    row("HPTTL", FIRST, DATA | READ),
    row("HRANDFIELD", FIRST, DATA | READ),
    row("HSCAN", FIRST, DATA | READ),
    row("HSET", FIRST, DATA | WRITE | BATCH),
    row("HSETEX", FIRST, DATA | WRITE),
    row("HSETNX", FIRST, DATA | WRITE | BATCH),
    row("HSTRLEN", FIRST, DATA | READ | BATCH | BATCH_READ),
    row("HTTL", FIRST, DATA | READ),
    row("HVALS", FIRST, DATA | READ),
    row("INCR", FIRST, DATA | WRITE),
    row("INCRBY", FIRST, DATA | WRITE | BATCH),
    row("INCRBYFLOAT", FIRST, DATA | WRITE | BATCH),
    row("INCREX", FIRST, DATA | WRITE),
    row("INFO", NO_KEY, DATA | READ),
    row("JSON.ARRINDEX", FIRST, READ),
    row("JSON.ARRLEN", FIRST, READ),
    row("JSON.GET", FIRST, READ),
    row("JSON.MGET", ALL_BUT_LAST, READ),
    row("JSON.OBJKEYS", FIRST, READ),
    row("JSON.OBJLEN", FIRST, READ),
    row("JSON.RESP", FIRST, READ),
    row("JSON.STRLEN", FIRST, READ),
    row("JSON.TYPE", FIRST, READ),
    row("KEYS", NO_KEY, DATA | READ | ALL_NODES),
    row("LASTSAVE", NO_KEY, SERVER),
    row("LATENCY", NO_KEY, SERVER),
    row("LCS", FIRST_TWO, DATA | READ),
    row("LINDEX", FIRST, DATA | READ),
    row("LINSERT", FIRST, DATA | WRITE),
    row("LLEN", FIRST, DATA | READ | BATCH | BATCH_READ),
    row("LMOVE", FIRST_TWO, DATA | WRITE),
    row("LMPOP", COUNTED, DATA | WRITE),
    row("LOLWUT", NO_KEY, SERVER),
    row("LPOP", FIRST, DATA | WRITE | BATCH),
    row("LPOS", FIRST, DATA | READ),
    row("LPUSH", FIRST, DATA | WRITE | BATCH),
    row("LPUSHX", FIRST, DATA | WRITE | BATCH),
    row("LRANGE", FIRST, DATA | READ),
    row("LREM", FIRST, DATA | WRITE),
    row("LSET", FIRST, DATA | WRITE),
    row("LTRIM", FIRST, DATA | WRITE),
    row("MEMORY", NO_KEY, SERVER),
    row("MGET", ALL, DATA | READ | BATCH),
    row("MIGRATE", UNKNOWN, ANY_EFFECT | WRITE),
    row("MODULE", NO_KEY, SERVER),
    row("MONITOR", UNKNOWN, SERVER | REFUSED),
    row("MOVE", FIRST, DATA | WRITE),
    row("MSET", EVERY_SECOND, DATA | WRITE | BATCH),
    row("MSETEX", COUNTED_PAIRS, DATA | WRITE),
    row("MSETNX", EVERY_SECOND, DATA | WRITE),
    row("MULTI", UNKNOWN, SERVER | REFUSED),
    row("OBJECT", SECOND, DATA | READ),
    row("PERSIST", FIRST, DATA | WRITE | BATCH),
    row("PEXPIRE", FIRST, DATA | WRITE | BATCH),
    row("PEXPIREAT", FIRST, DATA | WRITE | BATCH),
    row("PEXPIRETIME", FIRST, DATA | READ),
    row("PFADD", FIRST, DATA | WRITE | BATCH),
    row("PFCOUNT", ALL, DATA | READ),
    row("PFDEBUG", UNKNOWN, SERVER),
    row("PFMERGE", ALL, DATA | WRITE),
    row("PFSELFTEST", UNKNOWN, SERVER),
    row("PING", NO_KEY, DATA | READ),
    row("PSETEX", FIRST, DATA | WRITE | BATCH),
    row("PSUBSCRIBE", UNKNOWN, SERVER | REFUSED),
    row("PSYNC", UNKNOWN, SERVER | REFUSED),
    row("PTTL", FIRST, DATA | READ | BATCH | BATCH_READ),
    row("PUBLISH", NO_KEY, DATA | WRITE),
    row("PUBSUB", NO_KEY, DATA),
    row("PUNSUBSCRIBE", UNKNOWN, SERVER | REFUSED),
    row("QUIT", UNKNOWN, SERVER | REFUSED),
    row("RANDOMKEY", NO_KEY, DATA | READ | ALL_NODES),
    row("READONLY", UNKNOWN, SERVER | REFUSED),
    row("READWRITE", UNKNOWN, SERVER | REFUSED),
    row("RENAME", FIRST_TWO, DATA | WRITE),
    row("RENAMENX", FIRST_TWO, DATA | WRITE),
    row("REPLCONF", UNKNOWN, SERVER | REFUSED),
    row("REPLICAOF", UNKNOWN, SERVER | REFUSED),
    row("RESET", UNKNOWN, SERVER | REFUSED),
    row("RESTORE", FIRST, DATA | WRITE),
    row("RESTORE-ASKING", UNKNOWN, WRITE),
    row("ROLE", NO_KEY, SERVER),
    row("RPOP", FIRST, DATA | WRITE | BATCH),
    row("RPOPLPUSH", FIRST_TWO, DATA | WRITE),
    row("RPUSH", FIRST, DATA | WRITE | BATCH),
    row("RPUSHX", FIRST, DATA | WRITE | BATCH),
    row("SADD", FIRST, DATA | WRITE | BATCH),
    row("SAVE", NO_KEY, SERVER | WRITE),
    row("SCAN", NO_KEY, DATA | READ | ALL_NODES),
    row("SCARD", FIRST, DATA | READ | BATCH | BATCH_READ),
    row("SCRIPT", NO_KEY, SCRIPT),
    row("SDIFF", ALL, DATA | READ),
    row("SDIFFSTORE", ALL, DATA | WRITE),
    row("SELECT", UNKNOWN, SERVER | REFUSED),
    row("SENTINEL", UNKNOWN, SERVER),
    row("SET", FIRST, DATA | WRITE | BATCH),
    row("SETBIT", FIRST, DATA | WRITE | BATCH),
    row("SETEX", FIRST, DATA | WRITE | BATCH),
    row("SETNX", FIRST, DATA | WRITE | BATCH),
    row("SETRANGE", FIRST, DATA | WRITE),
    row("SHUTDOWN", UNKNOWN, SERVER | REFUSED),
    row("SINTER", ALL, DATA | READ),
    row("SINTERCARD", COUNTED, DATA | READ),
    row("SINTERSTORE", ALL, DATA | WRITE),
    row("SISMEMBER", FIRST, DATA | READ | BATCH | BATCH_READ),
    row("SLAVEOF", UNKNOWN, SERVER | REFUSED),
    row("SLOWLOG", NO_KEY, SERVER),
    row("SMEMBERS", FIRST, DATA | READ),
    row("SMISMEMBER", FIRST, DATA | READ | BATCH),
    row("SMOVE", FIRST_TWO, DATA | WRITE),
    row("SORT", STORE, DATA),
    row("SORT_RO", STORE, DATA | READ),
    row("SPOP", FIRST, DATA | WRITE),
    row("SPUBLISH", FIRST, DATA | WRITE),
    row("SRANDMEMBER", FIRST, DATA | READ),
    row("SREM", FIRST, DATA | WRITE | BATCH),
    row("SSCAN", FIRST, DATA | READ),
    row("SSUBSCRIBE", UNKNOWN, SERVER | REFUSED),
    row("STRLEN", FIRST, DATA | READ | BATCH | BATCH_READ),
    row("SUBSCRIBE", UNKNOWN, SERVER | REFUSED),
    row("SUBSTR", FIRST, DATA | READ),
    row("SUNION", ALL, DATA | READ),
    row("SUNIONSTORE", ALL, DATA | WRITE),
    row("SUNSUBSCRIBE", UNKNOWN, SERVER | REFUSED),
    row("SWAPDB", UNKNOWN, SERVER | REFUSED),
    row("SYNC", UNKNOWN, SERVER | REFUSED),
    row("TDIGEST.BYRANK", FIRST, READ),
    row("TDIGEST.BYREVRANK", FIRST, READ),
    row("TDIGEST.CDF", FIRST, READ),
    row("TDIGEST.INFO", FIRST, READ),
    row("TDIGEST.MAX", FIRST, READ),
    row("TDIGEST.MIN", FIRST, READ),
    row("TDIGEST.QUANTILE", FIRST, READ),
    row("TDIGEST.RANK", FIRST, READ),
    row("TDIGEST.REVRANK", FIRST, READ),
    row("TDIGEST.TRIMMED_MEAN", FIRST, READ),
    row("TIME", NO_KEY, DATA | READ),
    row("TOPK.COUNT", FIRST, READ),
    row("TOPK.INFO", FIRST, READ),
    row("TOPK.LIST", FIRST, READ),
    row("TOPK.QUERY", FIRST, READ),
    row("TOUCH", ALL, DATA | WRITE),
    row("TS.GET", FIRST, READ),
    row("TS.INFO", FIRST, READ),
    row("TS.MGET", UNKNOWN, READ),
    row("TS.MRANGE", UNKNOWN, READ),
    row("TS.MREVRANGE", UNKNOWN, READ),
    row("TS.QUERYINDEX", UNKNOWN, READ),
    row("TS.RANGE", FIRST, READ),
    row("TS.REVRANGE", FIRST, READ),
    row("TTL", FIRST, DATA | READ | BATCH | BATCH_READ),
    row("TYPE", FIRST, DATA | READ | BATCH | BATCH_READ),
    row("UNLINK", ALL, DATA | WRITE | BATCH),
    row("UNSUBSCRIBE", UNKNOWN, SERVER | REFUSED),
    row("UNWATCH", UNKNOWN, SERVER | REFUSED),
    row("VADD", FIRST, WRITE),
    row("VCARD", FIRST, READ),
    row("VDIM", FIRST, READ),
    row("VEMB", FIRST, READ),
    row("VGETATTR", FIRST, READ),
    row("VINFO", FIRST, READ),
    row("VISMEMBER", FIRST, READ),
    row("VLINKS", FIRST, READ),
    row("VRANDMEMBER", FIRST, READ),
    row("VRANGE", FIRST, READ),
    row("VREM", FIRST, WRITE),
    row("VSETATTR", FIRST, WRITE),
    row("VSIM", FIRST, READ),
    row("WAIT", NO_KEY, SERVER | WRITE | REFUSED_IN_MULTI),
    row("WAITAOF", NO_KEY, SERVER | WRITE | REFUSED_IN_MULTI),
    row("WATCH", ALL, SERVER | WRITE | REFUSED),
    row("XACK", FIRST, DATA | WRITE),
    row("XACKDEL", FIRST, DATA | WRITE),
    row("XADD", FIRST, DATA | WRITE | BATCH),
    row("XAUTOCLAIM", FIRST, DATA | WRITE),
    row("XCFGSET", FIRST, DATA | WRITE),
    row("XCLAIM", FIRST, DATA | WRITE),
    row("XDEL", FIRST, DATA | WRITE),
    row("XDELEX", FIRST, DATA | WRITE),
    row("XGROUP", SECOND, DATA | WRITE),
    row("XINFO", SECOND, DATA | READ),
    row("XLEN", FIRST, DATA | READ | BATCH | BATCH_READ),
    row("XNACK", FIRST, DATA | WRITE),
    row("XPENDING", FIRST, DATA | READ),
    row("XRANGE", FIRST, DATA | READ),
    row("XREAD", STREAMS, DATA | READ),
    row("XREADGROUP", STREAMS, DATA | WRITE),
    row("XREVRANGE", FIRST, DATA | READ),
    row("XSETID", FIRST, DATA | WRITE),
    row("XTRIM", FIRST, DATA | WRITE),
    row("ZADD", FIRST, DATA | WRITE | BATCH),
    row("ZCARD", FIRST, DATA | READ | BATCH | BATCH_READ),
    row("ZCOUNT", FIRST, DATA | READ),
    row("ZDIFF", COUNTED, DATA | READ),
    row("ZDIFFSTORE", FIRST_AND_COUNTED, DATA | WRITE),
    row("ZINCRBY", FIRST, DATA | WRITE | BATCH),
    row("ZINTER", COUNTED, DATA | READ),
    row("ZINTERCARD", COUNTED, DATA | READ),
    row("ZINTERSTORE", FIRST_AND_COUNTED, DATA | WRITE),
    row("ZLEXCOUNT", FIRST, DATA | READ),
    row("ZMPOP", COUNTED, DATA | WRITE),
    row("ZMSCORE", FIRST, DATA | READ),
    row("ZPOPMAX", FIRST, DATA | WRITE),
    row("ZPOPMIN", FIRST, DATA | WRITE),
    row("ZRANDMEMBER", FIRST, DATA | READ),
    row("ZRANGE", FIRST, DATA | READ),
    row("ZRANGEBYLEX", FIRST, DATA | READ),
    row("ZRANGEBYSCORE", FIRST, DATA | READ),
    row("ZRANGESTORE", FIRST_TWO, DATA | WRITE),
    row("ZRANK", FIRST, DATA | READ | BATCH | BATCH_READ),
    row("ZREM", FIRST, DATA | WRITE | BATCH),
    row("ZREMRANGEBYLEX", FIRST, DATA | WRITE),
    row("ZREMRANGEBYRANK", FIRST, DATA | WRITE),
    row("ZREMRANGEBYSCORE", FIRST, DATA | WRITE),
    row("ZREVRANGE", FIRST, DATA | READ),
    row("ZREVRANGEBYLEX", FIRST, DATA | READ),
    row("ZREVRANGEBYSCORE", FIRST, DATA | READ),
    row("ZREVRANK", FIRST, DATA | READ | BATCH),
    row("ZSCAN", FIRST, DATA | READ),
    row("ZSCORE", FIRST, DATA | READ | BATCH | BATCH_READ),
    row("ZUNION", COUNTED, DATA | READ),
    row("ZUNIONSTORE", FIRST_AND_COUNTED, DATA | WRITE),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::command::blocking::{Blocking, blocking};

    #[test]
    fn the_table_is_in_order_and_every_row_is_found() {
        assert!(COMMANDS.is_sorted_by(|one, next| one.name < next.name));
        for command in COMMANDS {
            assert!(std::ptr::eq(find(command.name.to_lowercase().as_bytes()).unwrap(), command));
            assert!(!(command.has(READ) && command.has(WRITE)), "{}", command.name);
            assert!(!command.has(BATCH_READ) || command.has(READ), "{}", command.name);
            assert!(!command.is_small() || command.has(DATA), "{}", command.name);
            assert!(!command.is_small() || !command.has(REFUSED), "{}", command.name);
            let blocks = blocking(&[command.name.as_bytes()]) != Blocking::No;
            assert!(!command.is_small() || !blocks, "{}", command.name);
        }
        assert!(find(b"").is_none() && find(b"GETT").is_none() && find(b"GE").is_none());
    }
}
