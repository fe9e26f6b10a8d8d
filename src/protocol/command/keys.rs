//! Where a command keeps its keys, judged by its name, as the server's own table has it.
//!
//! Never: a guess. What is not in the table is told as unknown.

#![cfg_attr(
    not(feature = "cluster"),
    allow(dead_code, reason = "one server has all slots and sends nobody on")
)]

use crate::error::any::Error;
use crate::protocol::cluster::slot;
use crate::protocol::cluster::slot::SlotBinding;
use crate::protocol::command;
use crate::protocol::command::{Folded, Requests};

/// What a command's keys say of where it belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keyed {
    /// It has none.
    No,
    Slot(u16),
    /// Its keys are of several slots, of which these are two.
    Across(u16, u16),
    /// Nobody here knows where it keeps them.
    Unknown,
}

/// Where a command keeps its keys; positions count from the name, which is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    None,
    /// From `first` to so many before the end, every `step`th.
    Rest {
        first: usize,
        short: usize,
        step: usize,
    },
    /// These.
    At(usize, usize),
    /// How many there are stands at `at`, and they behind it.
    Counted {
        at: usize,
        step: usize,
    },
    /// The same, and one at 1.
    AndCounted {
        at: usize,
    },
    /// Half of what stands behind STREAMS.
    Streams,
    /// At 1, and behind one of these words.
    Store(&'static [&'static str]),
}

const ALL: Place = Place::Rest { first: 1, short: 0, step: 1 };

/// Which slot a command belongs to (the name included).
pub(crate) fn slot_of(args: &[&[u8]]) -> Keyed {
    let Some(place) = place(args) else { return Keyed::Unknown };
    let mut found = Keyed::No;
    each(place, args, |key| {
        let slot = slot::of_key(key);
        found = match found {
            Keyed::No => Keyed::Slot(slot),
            Keyed::Slot(first) if first != slot => Keyed::Across(first, slot),
            found => found,
        };
    });
    found
}

/// Binds to the slot of these commands' keys, or says which two are not one. What keeps its keys
/// where nobody knows is bound to nothing.
pub(crate) fn bind(binding: &mut SlotBinding, bytes: &[u8]) -> Result<(), Error> {
    if *binding == SlotBinding::None {
        return Ok(());
    }
    for args in Requests::new(bytes).flatten() {
        let (bound, other) = match slot_of(&args) {
            Keyed::No | Keyed::Unknown => continue,
            Keyed::Slot(slot) => match binding.bind(slot) {
                Ok(()) => continue,
                Err(bound) => (bound, slot),
            },
            Keyed::Across(one, other) => (one, other),
        };
        let command = command::printable(args.first().copied().unwrap_or_default());
        return Err(Error::CrossSlot { command, bound, other });
    }
    Ok(())
}

/// Whether every key of these commands is one of `watch`.
pub(crate) fn are_among(bytes: &[u8], watch: &[u8]) -> bool {
    let watched = Requests::new(watch).next().and_then(Result::ok).unwrap_or_default();
    let mut among = true;
    for args in Requests::new(bytes).flatten() {
        match place(&args) {
            Some(place) => {
                each(place, &args, |key| among &= watched.iter().skip(1).any(|k| *k == key))
            }
            None => among = false,
        }
    }
    among
}

/// Calls `with` for each key. Where the command is not whole there are fewer, and the server says
/// what is wrong with it.
fn each(place: Place, args: &[&[u8]], mut with: impl FnMut(&[u8])) {
    let mut at = |index: usize| args.get(index).copied().into_iter().for_each(&mut with);
    match place {
        Place::None => {}
        Place::Rest { first, short, step } => {
            (first..args.len().saturating_sub(short)).step_by(step).for_each(at);
        }
        Place::At(one, two) => {
            at(one);
            if two != one {
                at(two);
            }
        }
        Place::Counted { at: count, step } => counted(args, count, step).for_each(at),
        Place::AndCounted { at: count } => {
            at(1);
            counted(args, count, 1).for_each(at);
        }
        Place::Streams => {
            let word = args.iter().position(|arg| arg.eq_ignore_ascii_case(b"STREAMS"));
            let first = word.map_or(args.len(), |word| word + 1);
            (first..first + (args.len() - first) / 2).for_each(at);
        }
        Place::Store(words) => {
            at(1);
            let is_word =
                |arg: &&[u8]| words.iter().any(|word| arg.eq_ignore_ascii_case(word.as_bytes()));
            // The last one decides, as it does on the server.
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

fn place(args: &[&[u8]]) -> Option<Place> {
    let name = Folded::new(args.first()?)?;
    let sub = args.get(1).copied().unwrap_or_default();
    let is_help = sub.eq_ignore_ascii_case(b"HELP");
    Some(match name.as_str() {
        "ACL" | "BGREWRITEAOF" | "BGSAVE" | "CLIENT" | "CLUSTER" | "COMMAND" | "CONFIG"
        | "DBSIZE" | "ECHO" | "FLUSHALL" | "FLUSHDB" | "FUNCTION" | "INFO" | "KEYS"
        | "LASTSAVE" | "LATENCY" | "LOLWUT" | "MODULE" | "PING" | "PUBLISH" | "PUBSUB"
        | "RANDOMKEY" | "ROLE" | "SAVE" | "SCAN" | "SCRIPT" | "SLOWLOG" | "TIME" | "WAIT"
        | "WAITAOF" => Place::None,
        "OBJECT" | "XGROUP" | "XINFO" if is_help => Place::None,
        "OBJECT" | "XGROUP" | "XINFO" => Place::At(2, 2),
        "MEMORY" if sub.eq_ignore_ascii_case(b"USAGE") => Place::At(2, 2),
        "MEMORY" => Place::None,
        "DEL" | "EXISTS" | "MGET" | "PFCOUNT" | "PFMERGE" | "SDIFF" | "SDIFFSTORE" | "SINTER"
        | "SINTERSTORE" | "SUNION" | "SUNIONSTORE" | "TOUCH" | "UNLINK" | "WATCH" => ALL,
        "BLPOP" | "BRPOP" | "BZPOPMAX" | "BZPOPMIN" => Place::Rest { first: 1, short: 1, step: 1 },
        "MSET" | "MSETNX" => Place::Rest { first: 1, short: 0, step: 2 },
        "BITOP" => Place::Rest { first: 2, short: 0, step: 1 },
        "BLMOVE" | "BRPOPLPUSH" | "COPY" | "GEOSEARCHSTORE" | "LCS" | "LMOVE" | "RENAME"
        | "RENAMENX" | "RPOPLPUSH" | "SMOVE" | "ZRANGESTORE" => Place::At(1, 2),
        "LMPOP" | "SINTERCARD" | "ZDIFF" | "ZINTER" | "ZINTERCARD" | "ZMPOP" | "ZUNION" => {
            Place::Counted { at: 1, step: 1 }
        }
        "MSETEX" => Place::Counted { at: 1, step: 2 },
        "BLMPOP" | "BZMPOP" | "EVAL" | "EVALSHA" | "EVALSHA_RO" | "EVAL_RO" | "FCALL"
        | "FCALL_RO" => Place::Counted { at: 2, step: 1 },
        "ZDIFFSTORE" | "ZINTERSTORE" | "ZUNIONSTORE" => Place::AndCounted { at: 2 },
        "XREAD" | "XREADGROUP" => Place::Streams,
        "SORT" | "SORT_RO" => Place::Store(&["STORE"]),
        "JSON.MGET" => Place::Rest { first: 1, short: 1, step: 1 },
        name if is_read_of_one_key(name) => Place::At(1, 1),
        "GEORADIUS" | "GEORADIUSBYMEMBER" => Place::Store(&["STORE", "STOREDIST"]),
        name if is_first(name) => Place::At(1, 1),
        _ => return None,
    })
}

/// Whether a module's read has one key, right behind its name.
fn is_read_of_one_key(name: &str) -> bool {
    command::MODULE_READS.binary_search(&name).is_ok()
        && !name.starts_with("FT.")
        && !matches!(name, "TS.MGET" | "TS.MRANGE" | "TS.MREVRANGE" | "TS.QUERYINDEX")
}

/// Whether a command of the server's own may change something, as far as its name tells: it is in
/// the table, and neither a read nor one that can be either.
pub(crate) fn is_known_write(args: &[&[u8]]) -> bool {
    let Some(name) = args.first().copied().and_then(Folded::new) else { return false };
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
    let is_table = place(args).is_some() || matches!(name.as_str(), "MIGRATE" | "RESTORE-ASKING");
    let sub = args.get(1).copied();
    let read = args.first().is_some_and(|name| command::is_read_only(name, sub));
    is_table && !may_read && !read
}

/// Whether a command has one key, right behind its name.
fn is_first(name: &str) -> bool {
    FIRST.binary_search(&name).is_ok()
}

/// The commands with one key, right behind their name, in order.
const FIRST: &[&str] = &[
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
        each(place(&args)?, &args, |key| keys.push(String::from_utf8_lossy(key).into_owned()));
        Some(keys)
    }

    #[test]
    fn the_table_is_in_order() {
        assert!(FIRST.is_sorted());
        assert!(command::MODULE_READS.is_sorted());
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
            // Not whole: the server will say so.
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
    fn keys_of_two_slots_are_told_by_their_slots() {
        let slots = |line: &str| slot_of(&line.split(' ').map(str::as_bytes).collect::<Vec<_>>());
        assert_eq!(slots("SET a 1"), Keyed::Slot(slot::of_key(b"a")));
        assert_eq!(slots("MGET {a}1 {a}2"), Keyed::Slot(slot::of_key(b"a")));
        let (a, b) = (slot::of_key(b"a"), slot::of_key(b"b"));
        assert_eq!(slots("MGET a b c"), Keyed::Across(a, b));
        assert_eq!(slots("TIME"), Keyed::No);
        assert_eq!(slots("FT.SEARCH idx"), Keyed::Unknown);
    }
}
