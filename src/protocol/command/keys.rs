//! The positions of a command's keys, by its name, as in the server's own table.
//!
//! The keys of a command that is not in the table are unknown; they are not guessed.

use crate::protocol::cluster::slot;
use crate::protocol::cluster::slot::SlotBinding;
use crate::protocol::command::display_name::display_name;
use crate::protocol::command::read_only::MODULE_READS;
use crate::protocol::command::read_only::is_read_only;
use crate::protocol::command::reader::CommandReader;
use crate::protocol::command::upper_name::UpperName;

/// The slots of a command's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeySlots {
    None,
    One(u16),
    /// Keys of several slots, two of which are these.
    Several(u16, u16),
    /// The positions of the keys are not known.
    Unknown,
}

/// A command with a key of another slot than the bound one.
#[derive(Debug)]
pub(crate) struct CrossSlot {
    pub(crate) command: String,
    pub(crate) bound: u16,
    pub(crate) other: u16,
}

/// The positions of a command's keys; the name is at 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeyPositions {
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

const ALL: KeyPositions = KeyPositions::Range { first: 1, trailing: 0, step: 1 };

/// The slot of a command (the name included).
pub(crate) fn slot_of(args: &[&[u8]]) -> KeySlots {
    let Some(positions) = positions(args) else { return KeySlots::Unknown };
    let mut found = KeySlots::None;
    each(positions, args, |key| {
        let slot = slot::of_key(key);
        found = match found {
            KeySlots::None => KeySlots::One(slot),
            KeySlots::One(first) if first != slot => KeySlots::Several(first, slot),
            found => found,
        };
    });
    found
}

/// Binds to the slot of these commands' keys. A command with unknown key positions binds to
/// nothing.
pub(crate) fn bind(binding: &mut SlotBinding, bytes: &[u8]) -> Result<(), CrossSlot> {
    if *binding == SlotBinding::None {
        return Ok(());
    }
    for args in CommandReader::new(bytes).flatten() {
        let (bound, other) = match slot_of(&args) {
            KeySlots::None | KeySlots::Unknown => continue,
            KeySlots::One(slot) => match binding.bind(slot) {
                Ok(()) => continue,
                Err(bound) => (bound, slot),
            },
            KeySlots::Several(one, other) => (one, other),
        };
        let command = display_name(args.first().copied().unwrap_or_default());
        return Err(CrossSlot { command, bound, other });
    }
    Ok(())
}

/// Whether every key of these commands is one of `watch`.
pub(crate) fn are_among(bytes: &[u8], watch: &[u8]) -> bool {
    let watched = CommandReader::new(watch).next().and_then(Result::ok).unwrap_or_default();
    let mut among = true;
    for args in CommandReader::new(bytes).flatten() {
        match positions(&args) {
            Some(positions) => {
                each(positions, &args, |key| among &= watched.iter().skip(1).any(|k| *k == key))
            }
            None => among = false,
        }
    }
    among
}

/// Calls `with` for each key. An incomplete command has fewer, and the server rejects it.
fn each(positions: KeyPositions, args: &[&[u8]], mut with: impl FnMut(&[u8])) {
    let mut at = |index: usize| args.get(index).copied().into_iter().for_each(&mut with);
    match positions {
        KeyPositions::None => {}
        KeyPositions::Range { first, trailing, step } => {
            (first..args.len().saturating_sub(trailing)).step_by(step).for_each(at);
        }
        KeyPositions::Pair(one, two) => {
            at(one);
            if two != one {
                at(two);
            }
        }
        KeyPositions::Counted { at: count, step } => counted(args, count, step).for_each(at),
        KeyPositions::AndCounted { at: count } => {
            at(1);
            counted(args, count, 1).for_each(at);
        }
        KeyPositions::Streams => {
            let word = args.iter().position(|arg| arg.eq_ignore_ascii_case(b"STREAMS"));
            let first = word.map_or(args.len(), |word| word + 1);
            (first..first + (args.len() - first) / 2).for_each(at);
        }
        KeyPositions::Store(words) => {
            at(1);
            let is_word =
                |arg: &&[u8]| words.iter().any(|word| arg.eq_ignore_ascii_case(word.as_bytes()));
            // The last one counts, as on the server.
            let last = args.iter().skip(2).rposition(is_word);
            last.map(|word| word + 3).into_iter().for_each(at);
        }
    }
}

fn counted(args: &[&[u8]], at: usize, step: usize) -> impl Iterator<Item = usize> + use<> {
    let digits = args.get(at).and_then(|digits| std::str::from_utf8(digits).ok());
    let count: usize = digits.and_then(|digits| digits.parse().ok()).unwrap_or(0);
    let most = args.len().saturating_sub(at + 1).div_ceil(step);
    (0..count.min(most)).map(move |nth| at + 1 + nth * step)
}

fn positions(args: &[&[u8]]) -> Option<KeyPositions> {
    let name = UpperName::new(args.first()?)?;
    let sub = args.get(1).copied().unwrap_or_default();
    let is_help = sub.eq_ignore_ascii_case(b"HELP");
    Some(match name.as_str() {
        "ACL" | "BGREWRITEAOF" | "BGSAVE" | "CLIENT" | "CLUSTER" | "COMMAND" | "CONFIG"
        | "DBSIZE" | "ECHO" | "FLUSHALL" | "FLUSHDB" | "FUNCTION" | "INFO" | "KEYS"
        | "LASTSAVE" | "LATENCY" | "LOLWUT" | "MODULE" | "PING" | "PUBLISH" | "PUBSUB"
        | "RANDOMKEY" | "ROLE" | "SAVE" | "SCAN" | "SCRIPT" | "SLOWLOG" | "TIME" | "WAIT"
        | "WAITAOF" => KeyPositions::None,
        "OBJECT" | "XGROUP" | "XINFO" if is_help => KeyPositions::None,
        "OBJECT" | "XGROUP" | "XINFO" => KeyPositions::Pair(2, 2),
        "MEMORY" if sub.eq_ignore_ascii_case(b"USAGE") => KeyPositions::Pair(2, 2),
        "MEMORY" => KeyPositions::None,
        "DEL" | "EXISTS" | "MGET" | "PFCOUNT" | "PFMERGE" | "SDIFF" | "SDIFFSTORE" | "SINTER"
        | "SINTERSTORE" | "SUNION" | "SUNIONSTORE" | "TOUCH" | "UNLINK" | "WATCH" => ALL,
        "BLPOP" | "BRPOP" | "BZPOPMAX" | "BZPOPMIN" => {
            KeyPositions::Range { first: 1, trailing: 1, step: 1 }
        }
        "MSET" | "MSETNX" => KeyPositions::Range { first: 1, trailing: 0, step: 2 },
        "BITOP" => KeyPositions::Range { first: 2, trailing: 0, step: 1 },
        "BLMOVE" | "BRPOPLPUSH" | "COPY" | "GEOSEARCHSTORE" | "LCS" | "LMOVE" | "RENAME"
        | "RENAMENX" | "RPOPLPUSH" | "SMOVE" | "ZRANGESTORE" => KeyPositions::Pair(1, 2),
        "LMPOP" | "SINTERCARD" | "ZDIFF" | "ZINTER" | "ZINTERCARD" | "ZMPOP" | "ZUNION" => {
            KeyPositions::Counted { at: 1, step: 1 }
        }
        "MSETEX" => KeyPositions::Counted { at: 1, step: 2 },
        "BLMPOP" | "BZMPOP" | "EVAL" | "EVALSHA" | "EVALSHA_RO" | "EVAL_RO" | "FCALL"
        | "FCALL_RO" => KeyPositions::Counted { at: 2, step: 1 },
        "ZDIFFSTORE" | "ZINTERSTORE" | "ZUNIONSTORE" => KeyPositions::AndCounted { at: 2 },
        "XREAD" | "XREADGROUP" => KeyPositions::Streams,
        "SORT" | "SORT_RO" => KeyPositions::Store(&["STORE"]),
        "JSON.MGET" => KeyPositions::Range { first: 1, trailing: 1, step: 1 },
        name if is_read_of_one_key(name) => KeyPositions::Pair(1, 1),
        "GEORADIUS" | "GEORADIUSBYMEMBER" => KeyPositions::Store(&["STORE", "STOREDIST"]),
        name if has_one_key(name) => KeyPositions::Pair(1, 1),
        _ => return None,
    })
}

/// Whether a module's read has one key, right after its name.
fn is_read_of_one_key(name: &str) -> bool {
    MODULE_READS.binary_search(&name).is_ok()
        && !name.starts_with("FT.")
        && !matches!(name, "TS.MGET" | "TS.MRANGE" | "TS.MREVRANGE" | "TS.QUERYINDEX")
}

/// Whether a command of the server's own may write: it is in the table, and is neither a read nor
/// one that can be either.
pub(crate) fn is_known_write(args: &[&[u8]]) -> bool {
    let Some(name) = args.first().copied().and_then(UpperName::new) else { return false };
    let may_read = matches!(
        name.as_str(),
        "ACL"
            | "BITFIELD"
            | "CLIENT"
            | "CLUSTER"
            | "COMMAND"
            | "CONFIG"
            | "EVAL"
            | "EVALSHA"
            | "FCALL"
            | "FUNCTION"
            | "GEORADIUS"
            | "GEORADIUSBYMEMBER"
            | "LASTSAVE"
            | "LATENCY"
            | "LOLWUT"
            | "MEMORY"
            | "MODULE"
            | "PUBSUB"
            | "ROLE"
            | "SCRIPT"
            | "SLOWLOG"
            | "SORT"
    );
    let is_table =
        positions(args).is_some() || matches!(name.as_str(), "MIGRATE" | "RESTORE-ASKING");
    let sub = args.get(1).copied();
    let read = args.first().is_some_and(|name| is_read_only(name, sub));
    is_table && !may_read && !read
}

/// Whether a command has one key, right after its name.
fn has_one_key(name: &str) -> bool {
    ONE_KEY.binary_search(&name).is_ok()
}

/// The commands with one key, right after their name, in order.
const ONE_KEY: &[&str] = &[
    "APPEND",
    "BITCOUNT",
    "BITFIELD",
    "BITFIELD_RO",
    "BITPOS",
    "DECR",
    "DECRBY",
    "DELEX",
    "DELIFEQ",
    "DIGEST",
    "DUMP",
    "EXPIRE",
    "EXPIREAT",
    "EXPIRETIME",
    "GEOADD",
    "GEODIST",
    "GEOHASH",
    "GEOPOS",
    "GEORADIUSBYMEMBER_RO",
    "GEORADIUS_RO",
    "GEOSEARCH",
    "GET",
    "GETBIT",
    "GETDEL",
    "GETEX",
    "GETRANGE",
    "GETSET",
    "HDEL",
    "HEXISTS",
    "HEXPIRE",
    "HEXPIREAT",
    "HEXPIRETIME",
    "HGET",
    "HGETALL",
    "HGETDEL",
    "HGETEX",
    "HINCRBY",
    "HINCRBYFLOAT",
    "HKEYS",
    "HLEN",
    "HMGET",
    "HMSET",
    "HPERSIST",
    "HPEXPIRE",
    "HPEXPIREAT",
    "HPEXPIRETIME",
    "HPTTL",
    "HRANDFIELD",
    "HSCAN",
    "HSET",
    "HSETEX",
    "HSETNX",
    "HSTRLEN",
    "HTTL",
    "HVALS",
    "INCR",
    "INCRBY",
    "INCRBYFLOAT",
    "INCREX",
    "LINDEX",
    "LINSERT",
    "LLEN",
    "LPOP",
    "LPOS",
    "LPUSH",
    "LPUSHX",
    "LRANGE",
    "LREM",
    "LSET",
    "LTRIM",
    "MOVE",
    "PERSIST",
    "PEXPIRE",
    "PEXPIREAT",
    "PEXPIRETIME",
    "PFADD",
    "PSETEX",
    "PTTL",
    "RESTORE",
    "RPOP",
    "RPUSH",
    "RPUSHX",
    "SADD",
    "SCARD",
    "SET",
    "SETBIT",
    "SETEX",
    "SETNX",
    "SETRANGE",
    "SISMEMBER",
    "SMEMBERS",
    "SMISMEMBER",
    "SPOP",
    "SPUBLISH",
    "SRANDMEMBER",
    "SREM",
    "SSCAN",
    "STRLEN",
    "SUBSTR",
    "TTL",
    "TYPE",
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
    "XACK",
    "XACKDEL",
    "XADD",
    "XAUTOCLAIM",
    "XCFGSET",
    "XCLAIM",
    "XDEL",
    "XDELEX",
    "XLEN",
    "XNACK",
    "XPENDING",
    "XRANGE",
    "XREVRANGE",
    "XSETID",
    "XTRIM",
    "ZADD",
    "ZCARD",
    "ZCOUNT",
    "ZINCRBY",
    "ZLEXCOUNT",
    "ZMSCORE",
    "ZPOPMAX",
    "ZPOPMIN",
    "ZRANDMEMBER",
    "ZRANGE",
    "ZRANGEBYLEX",
    "ZRANGEBYSCORE",
    "ZRANK",
    "ZREM",
    "ZREMRANGEBYLEX",
    "ZREMRANGEBYRANK",
    "ZREMRANGEBYSCORE",
    "ZREVRANGE",
    "ZREVRANGEBYLEX",
    "ZREVRANGEBYSCORE",
    "ZREVRANK",
    "ZSCAN",
    "ZSCORE",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(line: &str) -> Option<Vec<String>> {
        let args: Vec<_> = line.split(' ').map(str::as_bytes).collect();
        let mut keys = Vec::new();
        each(positions(&args)?, &args, |key| keys.push(String::from_utf8_lossy(key).into_owned()));
        Some(keys)
    }

    #[test]
    fn the_table_is_in_order() {
        assert!(ONE_KEY.is_sorted());
        assert!(MODULE_READS.is_sorted());
    }

    #[test]
    fn a_commands_keys_are_where_the_server_says() {
        for (line, expected) in [
            ("get k", "k"),
            ("PING", ""),
            ("MSET a 1 b 2", "a b"),
            ("BLPOP a b 0", "a b"),
            ("BITOP AND d a b", "d a b"),
            ("OBJECT ENCODING k", "k"),
            ("OBJECT HELP", ""),
            ("MEMORY USAGE k", "k"),
            ("EVAL return 2 a b c", "a b"),
            ("EVAL return 0 c", ""),
            ("ZUNIONSTORE d 2 a b WEIGHTS 1 2", "d a b"),
            ("ZMPOP 2 a b MIN", "a b"),
            ("MSETEX 2 a 1 b 2 EX 5", "a b"),
            ("XREAD COUNT 5 STREAMS a b 0 0", "a b"),
            ("XREADGROUP GROUP g c STREAMS a >", "a"),
            ("SORT a BY x STORE d", "a d"),
            ("SORT a", "a"),
            ("GEORADIUS a 1 1 1 m STOREDIST d", "a d"),
            ("RENAME a b", "a b"),
            ("VSIM a ELE b", "a"),
            ("vadd a VALUES 1 1 b", "a"),
            ("JSON.GET a $", "a"),
            ("JSON.MGET a b $", "a b"),
            ("TDIGEST.QUANTILE a 0.5", "a"),
            // Incomplete: the server rejects it.
            ("GET", ""),
            ("EVAL return 9 a", "a"),
            ("EVAL return x a", ""),
            ("XREAD STREAMS", ""),
            ("ZUNIONSTORE d", "d"),
            ("SORT a STORE", "a"),
        ] {
            let keys = keys(line).map(|keys| keys.join(" "));
            assert_eq!(keys.as_deref(), Some(expected), "{line}");
        }
        assert_eq!(keys("JSON.SET a $ 1"), None);
        assert_eq!(keys("TS.MRANGE - + FILTER a=b"), None);
        assert_eq!(keys("MIGRATE host 1 k 0 1"), None);
    }

    #[test]
    fn keys_of_two_slots_are_reported_with_both_slots() {
        let slots = |line: &str| slot_of(&line.split(' ').map(str::as_bytes).collect::<Vec<_>>());
        assert_eq!(slots("SET a 1"), KeySlots::One(slot::of_key(b"a")));
        assert_eq!(slots("MGET {a}1 {a}2"), KeySlots::One(slot::of_key(b"a")));
        let (a, b) = (slot::of_key(b"a"), slot::of_key(b"b"));
        assert_eq!(slots("MGET a b c"), KeySlots::Several(a, b));
        assert_eq!(slots("TIME"), KeySlots::None);
        assert_eq!(slots("FT.SEARCH idx"), KeySlots::Unknown);
    }
}
