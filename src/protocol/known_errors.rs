//! The server's error texts that prove that a command had no effect, and the commands for which
//! they do.
//!
//! These are the texts with which Redis and Valkey reject a command before any effect.
//!
//! A code alone proves nothing, because a proxy, a script or a module's command may return any
//! code.

use crate::protocol::cluster::redirect::RedirectReply;
use crate::protocol::command::table::{FailureEffect, effect_of_failure};

/// Placeholder of an argument in a text of the table. It replaces the argument when the text is
/// shown.
const ARGUMENT: &str = "…";

/// One error text of the server.
#[derive(Clone, Copy, Debug)]
struct KnownError {
    code: &'static str,
    text: &'static str,
    strength: Strength,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Strength {
    /// Returned before any command starts.
    BeforeStart,
    /// Returned by a data command before it changes anything.
    BeforeChange,
    /// Proves nothing, and may be shown.
    DisplayOnly,
}

const fn before_start(code: &'static str, text: &'static str) -> KnownError {
    KnownError { code, text, strength: Strength::BeforeStart }
}

const fn before_change(code: &'static str, text: &'static str) -> KnownError {
    KnownError { code, text, strength: Strength::BeforeChange }
}

const fn display_only(code: &'static str, text: &'static str) -> KnownError {
    KnownError { code, text, strength: Strength::DisplayOnly }
}

/// The error texts of Redis 6.2 to 8.2 and of Valkey.
const KNOWN_ERRORS: &[KnownError] = &[
    before_start("NOAUTH", "Authentication required."),
    before_start("NOPERM", "this user has no permissions to run the '…' command"),
    before_start("NOPERM", "this user has no permissions to run the '…' command or its subcommand"),
    before_start(
        "NOPERM",
        "this user has no permissions to access one of the keys used as arguments",
    ),
    before_start(
        "NOPERM",
        "this user has no permissions to access one of the channels used as arguments",
    ),
    before_start("NOPERM", "User … has no permissions to run the '…' command"),
    before_start("NOPERM", "User … has no permissions to access the '…' key"),
    before_start("NOPERM", "User … has no permissions to access the '…' channel"),
    before_start("NOPERM", "No permissions to access a key"),
    before_start("NOPERM", "No permissions to access a channel"),
    before_start("OOM", "command not allowed when used memory > 'maxmemory'."),
    before_start("READONLY", "You can't write against a read only replica."),
    before_start("LOADING", "Redis is loading the dataset in memory"),
    before_start("LOADING", "Valkey is loading the dataset in memory"),
    before_start("MISCONF", "Errors writing to the AOF file: …"),
    before_start(
        "MISCONF",
        "Redis is configured to save RDB snapshots, but it is currently not able to persist on \
         disk. Commands that may modify the data set are disabled, because this instance is \
         configured to report errors during writes if RDB snapshotting fails \
         (stop-writes-on-bgsave-error option). Please check the Redis logs for details about \
         the RDB error.",
    ),
    before_start(
        "MISCONF",
        "Redis is configured to save RDB snapshots, but it's currently unable to persist to \
         disk. Commands that may modify the data set are disabled, because this instance is \
         configured to report errors during writes if RDB snapshotting fails \
         (stop-writes-on-bgsave-error option). Please check the Redis logs for details about \
         the RDB error.",
    ),
    before_start(
        "MISCONF",
        "Valkey is configured to save RDB snapshots, but it's currently unable to persist to \
         disk. Commands that may modify the data set are disabled, because this instance is \
         configured to report errors during writes if RDB snapshotting fails \
         (stop-writes-on-bgsave-error option). Please check the Valkey logs for details about \
         the RDB error.",
    ),
    before_start("NOREPLICAS", "Not enough good replicas to write."),
    before_start(
        "BUSY",
        "Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    ),
    before_start(
        "BUSY",
        "Redis is busy running a script. You can only call FUNCTION KILL or SHUTDOWN NOSAVE.",
    ),
    before_start("BUSY", "Redis is busy running a module command."),
    before_start(
        "BUSY",
        "Valkey is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    ),
    before_start(
        "BUSY",
        "Valkey is busy running a script. You can only call FUNCTION KILL or SHUTDOWN NOSAVE.",
    ),
    before_start("BUSY", "Valkey is busy running a module command."),
    before_start(
        "MASTERDOWN",
        "Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    ),
    before_start("TRYAGAIN", "Multiple keys request during rehashing of slot"),
    before_start("CROSSSLOT", "Keys in request don't hash to the same slot"),
    before_start("CLUSTERDOWN", "Hash slot not served"),
    before_start("CLUSTERDOWN", "The cluster is down"),
    before_start("CLUSTERDOWN", "The cluster is down and only accepts read commands"),
    before_start("ERR", "unknown command '…', with args beginning with: …"),
    before_start("ERR", "unknown command `…`, with args beginning with: …"),
    before_start("ERR", "unknown subcommand '…'. Try … HELP."),
    before_start("ERR", "Unknown subcommand or wrong number of arguments for '…'. Try … HELP."),
    before_start("ERR", "Unknown subcommand or wrong number of arguments for '…'. Try … HELP"),
    before_start("ERR", "wrong number of arguments for '…' command"),
    before_start("ERR", "Command not allowed inside a transaction"),
    before_change("WRONGTYPE", "Operation against a key holding the wrong kind of value"),
    before_change("WRONGTYPE", "Key is not a valid HyperLogLog string value."),
    before_change("BUSYKEY", "Target key name already exists."),
    before_change("BUSYGROUP", "Consumer Group name already exists"),
    before_change(
        "NOGROUP",
        "No such key '…' or consumer group '…' in XREADGROUP with GROUP option",
    ),
    before_change("NOGROUP", "No such key '…' or consumer group '…'"),
    before_change("NOGROUP", "No such consumer group '…' for key name '…'"),
    before_change("ERR", "value is not an integer or out of range"),
    before_change("ERR", "value is not a valid float"),
    before_change("ERR", "value is out of range"),
    before_change("ERR", "value is out of range, must be positive"),
    before_change("ERR", "value is out of range, value must between … and …"),
    before_change("ERR", "value is NaN or Infinity"),
    before_change("ERR", "syntax error"),
    before_change("ERR", "no such key"),
    before_change("ERR", "index out of range"),
    before_change("ERR", "source and destination objects are the same"),
    before_change("ERR", "increment or decrement would overflow"),
    before_change("ERR", "decrement would overflow"),
    before_change("ERR", "increment would produce NaN or Infinity"),
    before_change("ERR", "hash value is not an integer"),
    before_change("ERR", "hash value is not a float"),
    before_change("ERR", "offset is out of range"),
    before_change("ERR", "bit offset is not an integer or out of range"),
    before_change("ERR", "bit is not an integer or out of range"),
    before_change("ERR", "The bit argument must be 1 or 0."),
    before_change("ERR", "BITOP NOT must be called with a single source key."),
    before_change(
        "ERR",
        "Invalid bitfield type. Use something like i16 u8. Note that u64 is not supported but \
         i64 is.",
    ),
    before_change("ERR", "Invalid OVERFLOW type specified"),
    before_change("ERR", "BITFIELD_RO only supports the GET subcommand"),
    before_change("ERR", "string exceeds maximum allowed size (proto-max-bulk-len)"),
    before_change("ERR", "string exceeds maximum allowed size (512MB)"),
    before_change("ERR", "The specified keys must contain string values"),
    before_change("ERR", "min or max is not a float"),
    before_change("ERR", "min or max not valid string range item"),
    before_change("ERR", "resulting score is not a number (NaN)"),
    before_change("ERR", "weight value is not a float"),
    before_change("ERR", "XX and NX options at the same time are not compatible"),
    before_change("ERR", "GT, LT, and/or NX options at the same time are not compatible"),
    before_change("ERR", "NX and XX, GT or LT options at the same time are not compatible"),
    before_change("ERR", "GT and LT options at the same time are not compatible"),
    before_change("ERR", "Unsupported option …"),
    before_change("ERR", "INCR option supports a single increment-element pair"),
    before_change(
        "ERR",
        "syntax error, LIMIT is only supported in combination with either BYSCORE or BYLEX",
    ),
    before_change("ERR", "syntax error, WITHSCORES not supported in combination with BYLEX"),
    before_change("ERR", "at least 1 input key is needed for '…' command"),
    before_change("ERR", "at least 1 input key is needed for ZUNIONSTORE/ZINTERSTORE"),
    before_change("ERR", "numkeys should be greater than 0"),
    before_change("ERR", "Number of keys can't be greater than number of args"),
    before_change("ERR", "LIMIT can't be negative"),
    before_change("ERR", "COUNT can't be negative"),
    before_change("ERR", "MAXLEN can't be negative"),
    before_change(
        "ERR",
        "RANK can't be zero: use 1 to start from the first match, 2 from the second ... or use \
         negative to start from the end of the list",
    ),
    before_change("ERR", "COUNT must be > 0"),
    before_change("ERR", "count should be greater than 0"),
    before_change("ERR", "timeout is not a float or out of range"),
    before_change("ERR", "timeout is not an integer or out of range"),
    before_change("ERR", "timeout is negative"),
    before_change("ERR", "timeout is out of range"),
    before_change("ERR", "invalid expire time in …"),
    before_change("ERR", "invalid expire time, must be >= 0"),
    before_change("ERR", "Mandatory argument FIELDS is missing or not at the right position"),
    before_change("ERR", "The `numfields` parameter must match the number of arguments"),
    before_change("ERR", "invalid cursor"),
    before_change("ERR", "DB index is out of range"),
    before_change("ERR", "One or more scores can't be converted into double"),
    before_change("ERR", "DUMP payload version or checksum are wrong"),
    before_change("ERR", "Bad data format"),
    before_change("ERR", "Invalid TTL value, must be >= 0"),
    before_change("ERR", "Invalid IDLETIME value, must be >= 0"),
    before_change("ERR", "Invalid FREQ value, must be >= 0 and <= 255"),
    before_change("ERR", "invalid longitude,latitude pair …"),
    before_change("ERR", "need numeric radius"),
    before_change("ERR", "need numeric width"),
    before_change("ERR", "need numeric height"),
    before_change("ERR", "radius cannot be negative"),
    before_change("ERR", "height or width cannot be negative"),
    before_change("ERR", "unsupported unit provided. please use M, KM, FT, MI"),
    before_change("ERR", "could not decode requested zset member"),
    before_change("ERR", "the ANY argument requires COUNT argument"),
    before_change("ERR", "Invalid stream ID specified as stream command argument"),
    before_change("ERR", "The ID specified in XADD must be greater than 0-0"),
    before_change(
        "ERR",
        "The ID specified in XADD is equal or smaller than the target stream top item",
    ),
    before_change(
        "ERR",
        "The XGROUP subcommand requires the key to exist. Note that for CREATE you may want to \
         use the MKSTREAM option to create an empty stream automatically.",
    ),
    before_change(
        "ERR",
        "Unbalanced '…' list of streams: for each stream key an ID or '…' must be specified.",
    ),
    before_change(
        "ERR",
        "Unbalanced XREAD list of streams: for each stream key an ID or '$' must be specified.",
    ),
    before_change("ERR", "Unrecognized XCLAIM option '…'"),
    before_change("ERR", "Missing GROUP option for XREADGROUP"),
    before_change("ERR", "invalid start ID for the interval"),
    before_change("ERR", "invalid end ID for the interval"),
    before_change(
        "ERR",
        "syntax error, MAXLEN and MINID options at the same time are not compatible",
    ),
    before_change(
        "ERR",
        "syntax error, LIMIT cannot be used without specifying a trimming strategy",
    ),
    before_change("ERR", "syntax error, LIMIT cannot be used without the special ~ option"),
    before_change("ERR", "The MAXLEN argument must be >= 0."),
    before_change("ERR", "The LIMIT argument must be >= 0."),
    display_only("NOSCRIPT", "No matching script. Please use EVAL."),
    display_only("NOSCRIPT", "No matching script."),
    display_only("EXECABORT", "Transaction discarded because of previous errors."),
    display_only("WRONGPASS", "invalid username-password pair or user is disabled."),
    display_only("NOPROTO", "unsupported protocol version"),
    display_only(
        "NOAUTH",
        "HELLO must be called with the client already authenticated, otherwise the HELLO \
         <proto> AUTH <user> <pass> option can be used to authenticate the client and select \
         the RESP protocol version at the same time",
    ),
    display_only("DENIED", "Redis is running in protected mode because …"),
    display_only("DENIED", "Valkey is running in protected mode because …"),
    display_only("INVALIDOBJ", "Corrupted HLL object detected"),
    display_only("ERR", "The user executing the script can't run this command or subcommand"),
    display_only("UNBLOCKED", "client unblocked via CLIENT UNBLOCK"),
    display_only("UNBLOCKED", "the stream key no longer exists"),
    display_only("NOTBUSY", "No scripts in execution right now."),
    display_only("ERR", "max number of clients reached"),
    display_only("ERR", "max number of clients + cluster connections reached"),
    display_only(
        "ERR",
        "AUTH <password> called without any password configured for the default user. Are you \
         sure your configuration is correct?",
    ),
    display_only("ERR", "Client sent AUTH, but no password is set"),
    display_only("ERR", "invalid DB index"),
    display_only("ERR", "invalid password"),
    display_only("ERR", "SELECT is not allowed in cluster mode"),
    display_only("ERR", "EXEC without MULTI"),
    display_only("ERR", "DISCARD without MULTI"),
    display_only("ERR", "MULTI calls can not be nested"),
    display_only("ERR", "WATCH inside MULTI is not allowed"),
    display_only("ERR", "Elements are too large to be stored"),
    display_only("ERR", "No such master with that name"),
    display_only("ERR", "Function not found"),
    display_only(
        "ERR",
        "WAIT cannot be used with replica instances. Please also note that since Redis 4.0 if \
         a replica is configured to be writable (which is not the default) writes to replicas \
         are just local and are not propagated.",
    ),
    display_only("ERR", "WAITAOF cannot be used when numlocal is set but appendonly is disabled."),
    display_only(
        "ERR",
        "WAITAOF cannot be used with replica instances. Please also note that writes to \
         replicas are just local and are not propagated.",
    ),
    display_only(
        "ERR",
        "An LFU maxmemory policy is not selected, access frequency not tracked. Please note \
         that when switching between policies at runtime LRU and LFU data will take some time \
         to adjust.",
    ),
    display_only(
        "ERR",
        "An LFU maxmemory policy is selected, idle time not tracked. Please note that when \
         switching between policies at runtime LRU and LFU data will take some time to adjust.",
    ),
    display_only("ERR", "Invalid argument '…' for CONFIG SET '…' - …"),
    display_only("ERR", "CONFIG SET failed (possibly related to argument '…') - …"),
    display_only("ERR", "Unsupported CONFIG parameter: …"),
    display_only("ERR", "Unknown option or number of arguments for CONFIG SET - '…'"),
    display_only("ERR", "Protocol error: …"),
];

impl KnownError {
    /// Whether this is the text, with any arguments.
    fn matches(&self, code: &str, text: &str) -> bool {
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

fn find(code: &str, text: &str) -> Option<&'static KnownError> {
    KNOWN_ERRORS.iter().find(|known| known.matches(code, text))
}

/// The text with each argument replaced, so that it may be shown. `None` if it is not in the table.
pub(crate) fn redacted(code: &str, text: &str) -> Option<&'static str> {
    find(code, text).map(|known| known.text)
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
/// itself. Texts about permissions, an unknown command or another node do; texts about the server's
/// state do not.
pub(crate) fn rejects_before_start(code: &str, text: &str) -> bool {
    match code {
        "MOVED" | "ASK" => RedirectReply::of(code, text).is_some(),
        "NOPERM" | "ERR" | "TRYAGAIN" | "CROSSSLOT" | "CLUSTERDOWN" => {
            find(code, text).is_some_and(|known| known.strength == Strength::BeforeStart)
        }
        _ => false,
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
    find(code, text).is_some_and(|known| match known.strength {
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
