//! What a command is, judged by its name alone: may it be sent, does it read, does it block.
//!
//! Never: the values of a command's arguments, other than a blocking command's own timeout.

pub(crate) mod fan_out;
pub(crate) mod keys;

use std::time::Duration;

use redis::Value;

/// Longest command or subcommand name this table knows, with room to spare.
const LONGEST: usize = 24;

/// A name folded to upper case on the stack.
pub(crate) struct Folded {
    bytes: [u8; LONGEST],
    len: usize,
}

impl Folded {
    /// `None` for a name longer than any in the tables.
    pub(crate) fn new(name: &[u8]) -> Option<Self> {
        let mut bytes = [0; LONGEST];
        let target = bytes.get_mut(..name.len())?;
        target.copy_from_slice(name);
        target.make_ascii_uppercase();
        Some(Self { bytes, len: name.len() })
    }

    pub(crate) fn as_str(&self) -> &str {
        self.bytes.get(..self.len).and_then(|name| std::str::from_utf8(name).ok()).unwrap_or("")
    }
}

/// Where a command is about to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Alone, on the pooled handle or as a read of a watching scope.
    Alone,
    /// Between MULTI and EXEC.
    InMulti,
}

/// Whether `name` (with the second word `sub`) would change a connection that is shared, end the
/// scope behind its guard's back, or stop the server: such a command is never sent.
pub(crate) fn is_refused(name: &[u8], sub: Option<&[u8]>, place: Place) -> bool {
    let Some(name) = Folded::new(name) else { return false };
    match name.as_str() {
        "MULTI" | "EXEC" | "DISCARD" | "WATCH" | "UNWATCH" | "RESET" | "SELECT" | "AUTH"
        | "HELLO" | "QUIT" | "MONITOR" | "SYNC" | "PSYNC" | "SUBSCRIBE" | "PSUBSCRIBE"
        | "SSUBSCRIBE" | "UNSUBSCRIBE" | "PUNSUBSCRIBE" | "SUNSUBSCRIBE" | "READONLY"
        | "READWRITE" | "ASKING" | "SWAPDB" | "REPLICAOF" | "SLAVEOF" | "FAILOVER" | "DEBUG"
        | "SHUTDOWN" => true,
        "CLIENT" => sub.and_then(Folded::new).is_some_and(|sub| {
            matches!(
                sub.as_str(),
                "REPLY"
                    | "KILL"
                    | "PAUSE"
                    | "TRACKING"
                    | "SETNAME"
                    | "NO-EVICT"
                    | "CACHING"
                    | "NO-TOUCH"
                    | "CAPA"
                    | "IMPORT-SOURCE"
            )
        }),
        // It stays on, and the next script on the connection stops in it.
        "SCRIPT" => sub.is_some_and(|sub| sub.eq_ignore_ascii_case(b"DEBUG")),
        "WAIT" | "WAITAOF" => place == Place::InMulti,
        _ => false,
    }
}

/// What to do instead of a command that is refused by name.
pub(crate) fn refusal_hint(command: &str, place: Place) -> &'static str {
    match (command, place) {
        ("MULTI" | "EXEC" | "DISCARD", Place::Alone) => {
            "use the transactional handle: run(), begin(), savepoint()"
        }
        ("MULTI" | "EXEC" | "DISCARD", Place::InMulti) => {
            "the transaction sends it by itself: commit it, or drop it; undo a part of it with \
             savepoint()"
        }
        ("WATCH" | "UNWATCH", Place::Alone) => "use the transactional handle: watch(keys).run(..)",
        ("WATCH" | "UNWATCH", Place::InMulti) => {
            "keys are watched before the transaction: watch(keys).run(..)"
        }
        ("SELECT" | "AUTH" | "HELLO", _) => {
            "choose database, user and protocol in the connection's address"
        }
        (
            "SUBSCRIBE" | "PSUBSCRIBE" | "SSUBSCRIBE" | "UNSUBSCRIBE" | "PUNSUBSCRIBE"
            | "SUNSUBSCRIBE" | "MONITOR" | "SYNC" | "PSYNC",
            _,
        ) => "open a connection of its own with redis::Client",
        ("WAIT" | "WAITAOF", Place::InMulti) => {
            "it does not wait inside a transaction; see wait_replicas and wait_aof of \
             TransactionOptions"
        }
        ("XREAD" | "XREADGROUP", Place::InMulti) => {
            "it does not block inside a transaction; leave BLOCK out"
        }
        ("SHUTDOWN" | "FAILOVER" | "REPLICAOF" | "SLAVEOF" | "SWAPDB" | "DEBUG", _) => {
            "it changes or stops the server for every client; see Pooled::with_raw"
        }
        _ => "it changes or ends a connection that others use; see Pooled::with_raw",
    }
}

/// Whether the server promises that `name` changes nothing, so that it may be sent twice.
pub(crate) fn is_read_only(name: &[u8], sub: Option<&[u8]>) -> bool {
    let Some(name) = Folded::new(name) else { return false };
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

/// The commands of well-known modules that their servers call read-only, in order.
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

/// Whether `name` runs or loads a script, whose error text is the script author's and may hold values.
pub(crate) fn is_script(name: &[u8]) -> bool {
    Folded::new(name).is_some_and(|name| {
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

/// Whether the answer to COMMAND INFO of one command says that the server does not know it. (A user
/// may lack the right to ask.)
pub(crate) fn is_unknown(answer: &Value) -> bool {
    matches!(answer, Value::Array(commands) if matches!(commands.first(), None | Some(Value::Nil)))
}

/// How long a command may sit on the server before it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blocking {
    /// It answers at once.
    No,
    /// It answers within this time.
    For(Duration),
    /// It may never answer (a timeout of 0), or its timeout cannot be read.
    Forever,
}

/// Reads the timeout of a blocking command from its arguments (the name included).
pub(crate) fn blocking(args: &[&[u8]]) -> Blocking {
    let Some(name) = args.first().copied().and_then(Folded::new) else { return Blocking::No };
    match name.as_str() {
        "BLPOP" | "BRPOP" | "BRPOPLPUSH" | "BLMOVE" | "BZPOPMIN" | "BZPOPMAX" => {
            seconds(args.last().copied())
        }
        "BLMPOP" | "BZMPOP" => seconds(args.get(1).copied()),
        "WAIT" => milliseconds(args.get(2).copied()),
        "WAITAOF" => milliseconds(args.get(3).copied()),
        "XREAD" | "XREADGROUP" => match block_option(args) {
            Some(at) => milliseconds(args.get(at + 1).copied()),
            None => Blocking::No,
        },
        _ => Blocking::No,
    }
}

/// Whether a queued command would ask for BLOCK, which does nothing inside MULTI but misleads.
pub(crate) fn blocks_in_multi(args: &[&[u8]]) -> bool {
    args.first()
        .copied()
        .and_then(Folded::new)
        .is_some_and(|name| matches!(name.as_str(), "XREAD" | "XREADGROUP"))
        && block_option(args).is_some()
}

/// Whether a command adds a float to an integer, which the server refuses when it runs.
pub(crate) fn adds_a_float(args: &[&[u8]]) -> bool {
    let name = args.first().copied().and_then(Folded::new);
    name.is_some_and(|name| matches!(name.as_str(), "INCRBY" | "DECRBY" | "HINCRBY"))
        && args.len() > 2
        && args.last().copied().is_some_and(is_float)
}

/// Whether it is a number with a fraction or an exponent, or none that is finite.
pub(crate) fn is_float(arg: &[u8]) -> bool {
    let digits = arg.strip_prefix(b"-").unwrap_or(arg);
    !digits.iter().all(u8::is_ascii_digit)
        && std::str::from_utf8(arg).is_ok_and(|text| text.parse::<f64>().is_ok())
}

/// Where BLOCK stands as an option: before STREAMS, and not as the name of a group or a consumer.
fn block_option(args: &[&[u8]]) -> Option<usize> {
    let mut at = 1;
    loop {
        let option = args.get(at)?;
        let is = |name: &[u8]| option.eq_ignore_ascii_case(name);
        at += match () {
            () if is(b"BLOCK") => return Some(at),
            () if is(b"STREAMS") => return None,
            () if is(b"GROUP") => 3,
            () if is(b"COUNT") => 2,
            () => 1,
        };
    }
}

fn seconds(arg: Option<&[u8]>) -> Blocking {
    bounded(number(arg).and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()))
}

fn milliseconds(arg: Option<&[u8]>) -> Blocking {
    bounded(number(arg).and_then(|millis| Duration::try_from_secs_f64(millis / 1e3).ok()))
}

fn number(arg: Option<&[u8]>) -> Option<f64> {
    std::str::from_utf8(arg?).ok()?.parse().ok()
}

/// A year: what is longer might as well be for ever, and no clock need hold it.
const LONGEST_BLOCK: Duration = Duration::from_secs(365 * 24 * 60 * 60);

fn bounded(timeout: Option<Duration>) -> Blocking {
    match timeout {
        Some(timeout) if !timeout.is_zero() && timeout <= LONGEST_BLOCK => Blocking::For(timeout),
        _ => Blocking::Forever,
    }
}

/// The commands of an encoded request, one after the other, as their arguments.
///
/// Ends with one `Err` where the bytes are not a sequence of RESP arrays of bulk strings.
#[derive(Debug)]
pub(crate) struct Requests<'a> {
    rest: &'a [u8],
}

/// The bytes are not a request as RESP defines it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl<'a> Requests<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What has not been walked yet.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    fn length(&mut self, mark: u8) -> Option<usize> {
        let (first, rest) = self.rest.split_first()?;
        let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
        let digits = std::str::from_utf8(rest.get(..end)?).ok()?;
        self.rest = rest.get(end + 2..)?;
        (*first == mark).then(|| digits.parse().ok())?
    }

    fn command(&mut self) -> Option<Vec<&'a [u8]>> {
        let count = self.length(b'*')?;
        let mut args = Vec::with_capacity(count.min(16));
        for _ in 0..count {
            let length = self.length(b'$')?;
            args.push(self.rest.get(..length)?);
            self.rest = self.rest.get(length..)?.strip_prefix(b"\r\n")?;
        }
        Some(args)
    }
}

impl<'a> Iterator for Requests<'a> {
    type Item = Result<Vec<&'a [u8]>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let command = self.command();
        if command.is_none() {
            self.rest = &[];
        }
        Some(command.filter(|args| !args.is_empty()).ok_or(Malformed))
    }
}

/// How a command is called in errors and logs where its name may be the caller's data.
pub(crate) const UNKNOWN: &str = "an unknown command";

/// How a command is called in errors and logs: its name in upper case, where it is one of the server's
/// own, has a module's form (`JSON.SET`) or is one word of letters. Any other may be a caller's data: a
/// whole command that was given as a name holds its key and value.
pub(crate) fn printable(name: &[u8]) -> String {
    let is_word = |part: &[u8]| {
        !part.is_empty() && part.iter().all(|byte| byte.is_ascii_alphabetic() || *byte == b'_')
    };
    let mut parts = name.split(|byte| *byte == b'.');
    let is_name = parts.all(is_word);
    match Folded::new(name) {
        Some(folded) if is_name || crate::protocol::refusal::is_core(name) => {
            folded.as_str().to_owned()
        }
        _ => UNKNOWN.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_refused_in_any_case() {
        for name in ["MULTI", "multi", "Exec", "sElEcT", "reset", "psubscribe", "shutdown"] {
            assert!(is_refused(name.as_bytes(), None, Place::Alone), "{name}");
        }
        assert!(is_refused(b"client", Some(b"reply"), Place::Alone));
        assert!(is_refused(b"CLIENT", Some(b"No-Evict"), Place::Alone));
        assert!(!is_refused(b"CLIENT", Some(b"ID"), Place::Alone));
        assert!(!is_refused(b"CLIENT", None, Place::Alone));
        assert!(is_refused(b"wait", None, Place::InMulti));
        assert!(!is_refused(b"wait", None, Place::Alone));
        assert!(!is_refused(b"a-name-that-is-longer-than-any-in-the-table", None, Place::Alone));
    }

    #[test]
    fn a_name_that_may_be_data_is_not_shown() {
        for (name, shown) in [
            ("get", "GET"),
            ("EvalSha", "EVALSHA"),
            ("migrate", "MIGRATE"),
            ("multi", "MULTI"),
            ("json.set", "JSON.SET"),
            ("FT._LIST", "FT._LIST"),
            ("vadd", "VADD"),
            ("nosuch", "NOSUCH"),
        ] {
            assert_eq!(printable(name.as_bytes()), shown);
        }
        for name in [
            "SET key value",
            "SET\tkey",
            "user:17",
            "hunter2",
            "",
            ".",
            "a.",
            "GET.s3cret",
            "a.name.that.is.longer.than.any.in.a.table",
        ] {
            assert_eq!(printable(name.as_bytes()), UNKNOWN, "{name}");
        }
        assert_eq!(printable(b"\xff\xfe"), UNKNOWN);
    }

    #[test]
    fn a_blocking_timeout_is_found_where_the_command_keeps_it() {
        let blocks =
            |args: &[&str]| blocking(&args.iter().map(|arg| arg.as_bytes()).collect::<Vec<_>>());
        assert_eq!(blocks(&["BLPOP", "k", "1.5"]), Blocking::For(Duration::from_millis(1500)));
        assert_eq!(
            blocks(&["blmpop", "2", "1", "k", "LEFT"]),
            Blocking::For(Duration::from_secs(2))
        );
        assert_eq!(blocks(&["BLPOP", "k", "0"]), Blocking::Forever);
        assert_eq!(blocks(&["BLPOP", "k", "soon"]), Blocking::Forever);
        assert_eq!(blocks(&["XREAD", "BLOCK", "0", "STREAMS", "s", "$"]), Blocking::Forever);
        assert_eq!(blocks(&["XREAD", "STREAMS", "BLOCK", "$"]), Blocking::No);
        let group = ["XREADGROUP", "GROUP", "block", "streams", "COUNT", "1"];
        assert_eq!(blocks(&[&group[..], &["STREAMS", "s", ">"]].concat()), Blocking::No);
        let blocking = blocks(&[&group[..], &["BLOCK", "5", "STREAMS", "s", ">"]].concat());
        assert_eq!(blocking, Blocking::For(Duration::from_millis(5)));
        assert_eq!(blocks(&["WAIT", "1", "250"]), Blocking::For(Duration::from_millis(250)));
        assert_eq!(blocks(&["GET", "k"]), Blocking::No);
    }

    #[test]
    fn requests_are_walked_command_by_command() {
        let bytes = b"*1\r\n$4\r\nPING\r\n*2\r\n$3\r\nGET\r\n$4\r\na\r\nb\r\n";
        let commands: Vec<_> = Requests::new(bytes).map(Result::unwrap).collect();
        assert_eq!(commands, [vec![&b"PING"[..]], vec![&b"GET"[..], &b"a\r\nb"[..]]]);
        for bad in ["PING\r\n", "*1\r\n$4\r\nPIN", "*0\r\n", "*1\r\n$-1\r\n", "*x\r\n"] {
            assert_eq!(Requests::new(bad.as_bytes()).next(), Some(Err(Malformed)), "{bad:?}");
        }
    }
}
