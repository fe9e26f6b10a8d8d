//! The server's error texts that prove that a command had no effect, and the commands for which
//! they do.
//!
//! These are the texts with which Redis, Valkey and Redict reject a command before any effect.
//!
//! A code alone proves nothing, because a proxy, a script or a module's command may return any
//! code.

use crate::protocol::cluster::redirect::RedirectReply;
use crate::protocol::command::table::{FailureEffect, effect_of_failure};

/// Placeholder of an argument in a text of the table. It replaces the argument when the text is
/// shown.
const ARGUMENT: &str = "…";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Strength {
    /// Returned before any command starts.
    BeforeStart,
    /// Returned by a data command before it changes anything.
    BeforeChange,
    /// Proves nothing, and may be shown.
    DisplayOnly,
}

/// The errors of Redis 6.2 to 8.2, of Valkey and of Redict, each with its code.
const KNOWN_ERRORS: [(Strength, &[&str]); 3] = [
    (Strength::BeforeStart, BEFORE_START),
    (Strength::BeforeChange, BEFORE_CHANGE),
    (Strength::DisplayOnly, DISPLAY_ONLY),
];

/// The errors of [`Strength::BeforeStart`].
const BEFORE_START: &[&str] = &[
    "NOAUTH Authentication required.",
    "NOPERM this user has no permissions to run the '…' command",
    "NOPERM this user has no permissions to run the '…' command or its subcommand",
    "NOPERM this user has no permissions to access one of the keys used as arguments",
    "NOPERM this user has no permissions to access one of the channels used as arguments",
    "NOPERM User … has no permissions to run the '…' command",
    "NOPERM User … has no permissions to access the '…' key",
    "NOPERM User … has no permissions to access the '…' channel",
    "NOPERM No permissions to access a key",
    "NOPERM No permissions to access a channel",
    "OOM command not allowed when used memory > 'maxmemory'.",
    "READONLY You can't write against a read only replica.",
    "LOADING Redis is loading the dataset in memory",
    "LOADING Valkey is loading the dataset in memory",
    "LOADING Redict is loading the dataset in memory",
    "MISCONF Errors writing to the AOF file: …",
    "MISCONF Redis is configured to save RDB snapshots, but it is currently not able to persist on \
     disk. Commands that may modify the data set are disabled, because this instance is configured \
     to report errors during writes if RDB snapshotting fails (stop-writes-on-bgsave-error \
     option). Please check the Redis logs for details about the RDB error.",
    "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to \
     disk. Commands that may modify the data set are disabled, because this instance is configured \
     to report errors during writes if RDB snapshotting fails (stop-writes-on-bgsave-error \
     option). Please check the Redis logs for details about the RDB error.",
    "MISCONF Valkey is configured to save RDB snapshots, but it's currently unable to persist to \
     disk. Commands that may modify the data set are disabled, because this instance is configured \
     to report errors during writes if RDB snapshotting fails (stop-writes-on-bgsave-error \
     option). Please check the Valkey logs for details about the RDB error.",
    "MISCONF Redict is configured to save RDB snapshots, but it's currently unable to persist to \
     disk. Commands that may modify the data set are disabled, because this instance is configured \
     to report errors during writes if RDB snapshotting fails (stop-writes-on-bgsave-error \
     option). Please check the Redict logs for details about the RDB error.",
    "NOREPLICAS Not enough good replicas to write.",
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "BUSY Redis is busy running a script. You can only call FUNCTION KILL or SHUTDOWN NOSAVE.",
    "BUSY Redis is busy running a module command.",
    "BUSY Valkey is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "BUSY Valkey is busy running a script. You can only call FUNCTION KILL or SHUTDOWN NOSAVE.",
    "BUSY Valkey is busy running a module command.",
    "BUSY Redict is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "BUSY Redict is busy running a script. You can only call FUNCTION KILL or SHUTDOWN NOSAVE.",
    "BUSY Redict is busy running a module command.",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "TRYAGAIN Slot is being trimmed",
    "CROSSSLOT Keys in request don't hash to the same slot",
    "CLUSTERDOWN Hash slot not served",
    "CLUSTERDOWN The cluster is down",
    "CLUSTERDOWN The cluster is down and only accepts read commands",
    "ERR unknown command '…', with args beginning with: …",
    "ERR unknown command `…`, with args beginning with: …",
    "ERR unknown subcommand '…'. Try … HELP.",
    "ERR Unknown subcommand or wrong number of arguments for '…'. Try … HELP.",
    "ERR Unknown subcommand or wrong number of arguments for '…'. Try … HELP",
    "ERR wrong number of arguments for '…' command",
    "ERR Command not allowed inside a transaction",
];

/// The errors of [`Strength::BeforeChange`].
const BEFORE_CHANGE: &[&str] = &[
    "WRONGTYPE Operation against a key holding the wrong kind of value",
    "WRONGTYPE Key is not a valid HyperLogLog string value.",
    "BUSYKEY Target key name already exists.",
    "BUSYGROUP Consumer Group name already exists",
    "NOGROUP No such key '…' or consumer group '…' in XREADGROUP with GROUP option",
    "NOGROUP No such key '…' or consumer group '…'",
    "NOGROUP No such consumer group '…' for key name '…'",
    "ERR value is not an integer or out of range",
    "ERR value is not a valid float",
    "ERR value is out of range",
    "ERR value is out of range, must be positive",
    "ERR value is out of range, value must between … and …",
    "ERR value is NaN or Infinity",
    "ERR syntax error",
    "ERR no such key",
    "ERR index out of range",
    "ERR source and destination objects are the same",
    "ERR increment or decrement would overflow",
    "ERR decrement would overflow",
    "ERR increment would produce NaN or Infinity",
    "ERR hash value is not an integer",
    "ERR hash value is not a float",
    "ERR offset is out of range",
    "ERR bit offset is not an integer or out of range",
    "ERR bit is not an integer or out of range",
    "ERR The bit argument must be 1 or 0.",
    "ERR BITOP NOT must be called with a single source key.",
    "ERR Invalid bitfield type. Use something like i16 u8. Note that u64 is not supported but i64 \
     is.",
    "ERR Invalid OVERFLOW type specified",
    "ERR BITFIELD_RO only supports the GET subcommand",
    "ERR string exceeds maximum allowed size (proto-max-bulk-len)",
    "ERR string exceeds maximum allowed size (512MB)",
    "ERR The specified keys must contain string values",
    "ERR min or max is not a float",
    "ERR min or max not valid string range item",
    "ERR resulting score is not a number (NaN)",
    "ERR weight value is not a float",
    "ERR XX and NX options at the same time are not compatible",
    "ERR GT, LT, and/or NX options at the same time are not compatible",
    "ERR NX and XX, GT or LT options at the same time are not compatible",
    "ERR GT and LT options at the same time are not compatible",
    "ERR Unsupported option …",
    "ERR INCR option supports a single increment-element pair",
    "ERR syntax error, LIMIT is only supported in combination with either BYSCORE or BYLEX",
    "ERR syntax error, WITHSCORES not supported in combination with BYLEX",
    "ERR at least 1 input key is needed for '…' command",
    "ERR at least 1 input key is needed for ZUNIONSTORE/ZINTERSTORE",
    "ERR numkeys should be greater than 0",
    "ERR Number of keys can't be greater than number of args",
    "ERR LIMIT can't be negative",
    "ERR COUNT can't be negative",
    "ERR MAXLEN can't be negative",
    "ERR RANK can't be zero: use 1 to start from the first match, 2 from the second ... or use \
     negative to start from the end of the list",
    "ERR COUNT must be > 0",
    "ERR count should be greater than 0",
    "ERR timeout is not a float or out of range",
    "ERR timeout is not an integer or out of range",
    "ERR timeout is negative",
    "ERR timeout is out of range",
    "ERR invalid expire time in …",
    "ERR invalid expire time, must be >= 0",
    "ERR Mandatory argument FIELDS is missing or not at the right position",
    "ERR The `numfields` parameter must match the number of arguments",
    "ERR invalid cursor",
    "ERR DB index is out of range",
    "ERR One or more scores can't be converted into double",
    "ERR DUMP payload version or checksum are wrong",
    "ERR Bad data format",
    "ERR Invalid TTL value, must be >= 0",
    "ERR Invalid IDLETIME value, must be >= 0",
    "ERR Invalid FREQ value, must be >= 0 and <= 255",
    "ERR invalid longitude,latitude pair …",
    "ERR need numeric radius",
    "ERR need numeric width",
    "ERR need numeric height",
    "ERR radius cannot be negative",
    "ERR height or width cannot be negative",
    "ERR unsupported unit provided. please use M, KM, FT, MI",
    "ERR could not decode requested zset member",
    "ERR the ANY argument requires COUNT argument",
    "ERR Invalid stream ID specified as stream command argument",
    "ERR The ID specified in XADD must be greater than 0-0",
    "ERR The ID specified in XADD is equal or smaller than the target stream top item",
    "ERR The XGROUP subcommand requires the key to exist. Note that for CREATE you may want to use \
     the MKSTREAM option to create an empty stream automatically.",
    "ERR Unbalanced '…' list of streams: for each stream key an ID or '…' must be specified.",
    "ERR Unbalanced XREAD list of streams: for each stream key an ID or '$' must be specified.",
    "ERR Unrecognized XCLAIM option '…'",
    "ERR Missing GROUP option for XREADGROUP",
    "ERR invalid start ID for the interval",
    "ERR invalid end ID for the interval",
    "ERR syntax error, MAXLEN and MINID options at the same time are not compatible",
    "ERR syntax error, LIMIT cannot be used without specifying a trimming strategy",
    "ERR syntax error, LIMIT cannot be used without the special ~ option",
    "ERR The MAXLEN argument must be >= 0.",
    "ERR The LIMIT argument must be >= 0.",
];

/// The errors of [`Strength::DisplayOnly`].
const DISPLAY_ONLY: &[&str] = &[
    "NOSCRIPT No matching script. Please use EVAL.",
    "NOSCRIPT No matching script.",
    "EXECABORT Transaction discarded because of previous errors.",
    "WRONGPASS invalid username-password pair or user is disabled.",
    "NOPROTO unsupported protocol version",
    "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO \
     <proto> AUTH <user> <pass> option can be used to authenticate the client and select the RESP \
     protocol version at the same time",
    "DENIED Redis is running in protected mode because …",
    "DENIED Valkey is running in protected mode because …",
    "DENIED Redict is running in protected mode because …",
    "DENIED Running in protected mode because …",
    "INVALIDOBJ Corrupted HLL object detected",
    "ERR The user executing the script can't run this command or subcommand",
    "UNBLOCKED client unblocked via CLIENT UNBLOCK",
    "UNBLOCKED the stream key no longer exists",
    "NOTBUSY No scripts in execution right now.",
    "ERR max number of clients reached",
    "ERR max number of clients + cluster connections reached",
    "ERR AUTH <password> called without any password configured for the default user. Are you sure \
     your configuration is correct?",
    "ERR Client sent AUTH, but no password is set",
    "ERR invalid DB index",
    "ERR invalid password",
    "ERR SELECT is not allowed in cluster mode",
    "ERR This instance has cluster support disabled",
    "ERR EXEC without MULTI",
    "ERR DISCARD without MULTI",
    "ERR MULTI calls can not be nested",
    "ERR WATCH inside MULTI is not allowed",
    "ERR Elements are too large to be stored",
    "ERR No such master with that name",
    "ERR Function not found",
    "ERR WAIT cannot be used with replica instances. Please also note that since Redis 4.0 if a \
     replica is configured to be writable (which is not the default) writes to replicas are just \
     local and are not propagated.",
    "ERR WAITAOF cannot be used when numlocal is set but appendonly is disabled.",
    "ERR WAITAOF cannot be used with replica instances. Please also note that writes to replicas \
     are just local and are not propagated.",
    "ERR An LFU maxmemory policy is not selected, access frequency not tracked. Please note that \
     when switching between policies at runtime LRU and LFU data will take some time to adjust.",
    "ERR An LFU maxmemory policy is selected, idle time not tracked. Please note that when \
     switching between policies at runtime LRU and LFU data will take some time to adjust.",
    "ERR Invalid argument '…' for CONFIG SET '…' - …",
    "ERR CONFIG SET failed (possibly related to argument '…') - …",
    "ERR Unsupported CONFIG parameter: …",
    "ERR Unknown option or number of arguments for CONFIG SET - '…'",
    "ERR Protocol error: …",
];

/// Returns what an error proves, and its text with each argument replaced. `None` if it is not in
/// the table.
fn find(code: &str, text: &str) -> Option<(Strength, &'static str)> {
    KNOWN_ERRORS.into_iter().find_map(|(strength, lines)| {
        let known = lines.iter().filter_map(|line| line.split_once(' '));
        let mut known = known.filter(|(known, _)| *known == code).map(|(_, known)| known);
        Some((strength, known.find(|known| matches(known, text))?))
    })
}

/// Whether `text` is the `known` one, with any arguments.
fn matches(known: &str, text: &str) -> bool {
    let Some((head, last)) = known.rsplit_once(ARGUMENT) else { return known == text };
    let mut parts = head.split(ARGUMENT);
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    for part in parts {
        let Some((_, behind)) = rest.split_once(part) else { return false };
        rest = behind;
    }
    rest.ends_with(last)
}

/// Whether the server itself replies with this code, unless a script does.
pub(crate) fn has_code(code: &str) -> bool {
    let begins = |line: &str| line.split(' ').next() == Some(code);
    matches!(code, "MOVED" | "ASK")
        || KNOWN_ERRORS.iter().any(|(_, lines)| lines.iter().any(|line| begins(line)))
}

/// The text with each argument replaced, so that it may be shown. `None` if it is not in the table.
pub(crate) fn redacted(code: &str, text: &str) -> Option<&'static str> {
    find(code, text).map(|(_, known)| known)
}

/// Whether the error proves that `name` had no effect: the command is one of the server's own, and
/// the server returns this text before any effect.
///
/// False for a script, a function, a module's command and MIGRATE, which may return any error after
/// they have written.
pub(crate) fn proves_no_effect(name: &[u8], error: &redis::ServerError) -> bool {
    proves(name, error.code(), error.details().unwrap_or_default())
}

/// Whether the text proves that the server did not start a script which does not return this text
/// itself. Texts about permissions, an unknown command or script, or another node do; texts about the
/// server's state do not.
pub(crate) fn rejects_before_start(code: &str, text: &str) -> bool {
    const CODES: [&str; 7] =
        ["MOVED", "ASK", "NOPERM", "ERR", "TRYAGAIN", "CROSSSLOT", "CLUSTERDOWN"];
    CODES.contains(&code) && is_before_start(code, text)
        || code == "NOSCRIPT" && find(code, text).is_some()
}

/// Whether the server returns this text before any command starts. A script, a module's command or MIGRATE may
/// return it too.
pub(crate) fn is_before_start(code: &str, text: &str) -> bool {
    match code {
        "MOVED" | "ASK" => RedirectReply::of(code, text).is_some(),
        _ => find(code, text).is_some_and(|(strength, _)| strength == Strength::BeforeStart),
    }
}

/// [`proves_no_effect`] for a code and a text.
pub(crate) fn proves(name: &[u8], code: &str, text: &str) -> bool {
    let effect = match effect_of_failure(name) {
        Some(FailureEffect::Anything) => return false,
        Some(effect) => effect,
        None => return is_unknown_command(name, code, text),
    };
    if matches!(code, "MOVED" | "ASK") {
        return RedirectReply::of(code, text).is_some();
    }
    find(code, text).is_some_and(|(strength, _)| match strength {
        Strength::BeforeStart => !is_about_another(name, text),
        Strength::BeforeChange => effect == FailureEffect::Nothing && !is_about_another(name, text),
        Strength::DisplayOnly => false,
    })
}

/// Whether the text names another command than `name`, so that it is not the reply to this command.
fn is_about_another(name: &[u8], text: &str) -> bool {
    // These words precede the quoted name in all texts that name a command.
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
    // A subcommand follows its command.
    let Some(command) = named.and_then(|named| named.split(['|', ' ']).next()) else {
        return false;
    };
    // ASKING precedes the command. Its error replaces that of the command only if that was MOVED:
    // see `redirect::after_asking`.
    !command.as_bytes().eq_ignore_ascii_case(name) && !command.eq_ignore_ascii_case("asking")
}

/// Whether a command that failed inside a transaction that ran, by EXEC's array, had no effect.
pub(crate) fn queued_without_effect(name: &[u8], error: &redis::ServerError) -> bool {
    // PFADD and PFMERGE may find a damaged value after a first write; XADD creates the stream
    // first.
    let late = error.code() == "INVALIDOBJ"
        || error.details() == Some("Elements are too large to be stored");
    effect_of_failure(name) == Some(FailureEffect::Nothing) && !late
        || proves_no_effect(name, error)
}

/// Whether the server does not have this command, by its text with this very name.
fn is_unknown_command(name: &[u8], code: &str, text: &str) -> bool {
    let Ok(name) = std::str::from_utf8(name) else { return false };
    let rest = text.strip_prefix("unknown command ").filter(|_| code == "ERR");
    let quoted = |quote: char| {
        let rest = rest?.strip_prefix(quote)?.strip_prefix(name)?.strip_prefix(quote)?;
        rest.strip_prefix(", with args beginning with: ")
    };
    !name.is_empty() && (quoted('\'').is_some() || quoted('`').is_some())
}

#[cfg(test)]
#[path = "../../tests/unit/known_errors.rs"]
mod tests;
