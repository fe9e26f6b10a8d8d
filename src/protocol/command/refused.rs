//! Commands that are refused by their name, and what to do instead.

use crate::protocol::command::table;

/// The context in which a command would be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SendContext {
    /// As a single command: on the pooled handle, or as a read of a watching scope.
    Alone,
    /// Between MULTI and EXEC.
    InMulti,
}

/// Returns whether `name` (with the second word `sub`) would change a shared connection, end the
/// scope without its guard, or stop the server. Such a command is never sent.
pub(crate) fn is_refused(name: &[u8], sub: Option<&[u8]>, context: SendContext) -> bool {
    let Some(command) = table::find(name) else { return false };
    let sub_is = |refused: &[&str]| {
        sub.is_some_and(|sub| refused.iter().any(|name| sub.eq_ignore_ascii_case(name.as_bytes())))
    };
    command.has(table::REFUSED)
        || context == SendContext::InMulti && command.has(table::REFUSED_IN_MULTI)
        || name.eq_ignore_ascii_case(b"CLIENT") && sub_is(CLIENT_REFUSED)
        // The debug mode would stay on, and the next script on the connection would stop in it.
        || name.eq_ignore_ascii_case(b"SCRIPT") && sub_is(&["DEBUG"])
}

/// Subcommands of CLIENT that change the connection or end others.
const CLIENT_REFUSED: &[&str] = &[
    "REPLY",
    "KILL",
    "PAUSE",
    "TRACKING",
    "SETNAME",
    "NO-EVICT",
    "CACHING",
    "NO-TOUCH",
    "CAPA",
    "IMPORT-SOURCE",
];

/// Returns the alternative to a command that is refused by name.
pub(crate) fn refusal_hint(command: &str, place: SendContext) -> &'static str {
    match (command, place) {
        ("MULTI" | "EXEC" | "DISCARD", SendContext::Alone) => {
            "use the transactional handle: run(), begin(), savepoint()"
        }
        ("MULTI" | "EXEC" | "DISCARD", SendContext::InMulti) => {
            "the transaction sends it by itself: commit it, or drop it; undo a part of it with \
             savepoint()"
        }
        ("WATCH" | "UNWATCH", SendContext::Alone) => {
            "use the transactional handle: watch(keys).run(..)"
        }
        ("WATCH" | "UNWATCH", SendContext::InMulti) => {
            "keys are watched before the transaction: watch(keys).run(..)"
        }
        ("SELECT" | "AUTH" | "HELLO", _) => {
            "choose database, user and protocol in the connection's address"
        }
        (
            "SUBSCRIBE" | "PSUBSCRIBE" | "SSUBSCRIBE" | "UNSUBSCRIBE" | "PUNSUBSCRIBE"
            | "SUNSUBSCRIBE" | "MONITOR" | "SYNC" | "PSYNC" | "REPLCONF",
            _,
        ) => "open a connection of its own with redis::Client",
        ("WAIT" | "WAITAOF", SendContext::InMulti) => {
            "it does not wait inside a transaction; see wait_replicas and wait_aof of \
             TransactionOptions"
        }
        ("XREAD" | "XREADGROUP", SendContext::InMulti) => {
            "it does not block inside a transaction; leave BLOCK out"
        }
        ("SHUTDOWN" | "FAILOVER" | "REPLICAOF" | "SLAVEOF" | "SWAPDB" | "DEBUG", _) => {
            "it changes or stops the server for every client; send it on a connection of its own, by \
             redis::Client"
        }
        _ => {
            "it changes or ends a connection that others use; send it on a connection of its own, by \
             redis::Client"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_refused_in_any_case() {
        for name in ["MULTI", "multi", "Exec", "sElEcT", "reset", "psubscribe", "shutdown"] {
            assert!(is_refused(name.as_bytes(), None, SendContext::Alone), "{name}");
        }
        assert!(is_refused(b"client", Some(b"reply"), SendContext::Alone));
        assert!(is_refused(b"CLIENT", Some(b"No-Evict"), SendContext::Alone));
        assert!(!is_refused(b"CLIENT", Some(b"ID"), SendContext::Alone));
        assert!(!is_refused(b"CLIENT", None, SendContext::Alone));
        assert!(is_refused(b"wait", None, SendContext::InMulti));
        assert!(!is_refused(b"wait", None, SendContext::Alone));
        assert!(!is_refused(
            b"a-name-that-is-longer-than-any-in-the-table",
            None,
            SendContext::Alone
        ));
    }
}
