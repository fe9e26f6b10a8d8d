//! The state of one connection on the server, as far as its replies prove it.
//!
//! The state changes before the first byte is written ([`ConnectionState::sending`]). It is clean
//! again only after the reply that proves it ([`ConnectionState::reply`]). An unexpected reply
//! taints the connection for good; it is not skipped.

use std::collections::VecDeque;
use std::fmt;

use redis::Value;

use crate::protocol::known_errors;
use crate::protocol::resp::reply::Reply;

/// An awaited reply, by the command that it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    /// Any reply, errors included: a single command.
    Plain,
    Watch,
    /// WATCH of the connection's own register.
    WatchMarker,
    Unwatch,
    Multi,
    Queued,
    Exec,
    Discard,
}

/// Whether a reply fits the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReplyCheck {
    /// The expected reply, or the server's rejection of the command.
    Expected,
    /// The reply fits no awaited command: the connection is tainted.
    Unexpected,
}

/// Why a connection was closed and replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseReason {
    /// The other side had closed the connection.
    Closed,
    /// No reply arrived in time.
    TimedOut,
    /// The bytes were not the protocol, or a reply that fits no command.
    Protocol,
    /// Its scope left a state that only a close is sure to end.
    LeftDirty,
    /// Its scope was forgotten, stuck or unused for `max_pin_time`.
    Reclaimed,
    /// The connection was passed to [`with_raw`](crate::Pooled::with_raw).
    Raw,
    /// The connection reached `max_lifetime`.
    Lifetime,
    /// The connection was opened before its pool replaced all connections, such as after a
    /// failover, or before its pool was closed.
    Outdated,
}

impl CloseReason {
    pub(crate) const ALL: [Self; 8] = [
        Self::Closed,
        Self::TimedOut,
        Self::Protocol,
        Self::LeftDirty,
        Self::Reclaimed,
        Self::Raw,
        Self::Lifetime,
        Self::Outdated,
    ];

    /// Returns one word for a report.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::TimedOut => "timed out",
            Self::Protocol => "protocol",
            Self::LeftDirty => "left dirty",
            Self::Reclaimed => "reclaimed",
            Self::Raw => "raw",
            Self::Lifetime => "lifetime",
            Self::Outdated => "outdated",
        }
    }
}

/// One or two words for a report or a metric's label: `closed`, `timed out`.
impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The state of one connection on the server.
#[derive(Debug, Default)]
pub(crate) struct ConnectionState {
    awaited: VecDeque<(Expect, u32)>,
    multi: bool,
    watching: bool,
    /// The connection watches its own register.
    watches_marker: bool,
    /// The last MULTI was refused.
    refuses_multi: bool,
    taint: Option<CloseReason>,
}

impl ConnectionState {
    /// Call before bytes are written that cause `count` replies of this kind.
    pub(crate) fn sending(&mut self, expect: Expect, count: u32) {
        if count == 0 {
            return;
        }
        match self.awaited.back_mut() {
            Some((last, n)) if *last == expect => *n += count,
            _ => self.awaited.push_back((expect, count)),
        }
    }

    /// Number of awaited replies.
    pub(crate) fn awaited(&self) -> u64 {
        self.awaited.iter().map(|(_, count)| u64::from(*count)).sum()
    }

    /// Whether replies are awaited, all of them to single commands.
    pub(crate) fn awaits_only_plain(&self) -> bool {
        !self.awaited.is_empty() && self.awaited.iter().all(|(expect, _)| *expect == Expect::Plain)
    }

    /// Maximum number of QUEUED replies in a row that the parser may merge.
    pub(crate) fn max_queued(&self) -> u32 {
        match self.awaited.front() {
            Some((Expect::Queued, count)) if self.multi => *count,
            _ => 1,
        }
    }

    /// Takes one reply, or several QUEUED in a row.
    pub(crate) fn reply(&mut self, reply: &Reply) -> ReplyCheck {
        let Some((expect, awaited)) = self.awaited.front_mut() else {
            return self.unexpected();
        };
        let expect = *expect;
        match awaited.checked_sub(reply.count()) {
            None => return self.unexpected(),
            Some(0) => _ = self.awaited.pop_front(),
            Some(left) => *awaited = left,
        }
        let (refused, okay) = (reply.is_refused(), reply.is_okay());
        match expect {
            Expect::Plain => {}
            // A rejection by the server leaves its state unchanged. Any other error may be a
            // proxy's, and the server behind it may be in MULTI or watching.
            Expect::Watch | Expect::WatchMarker | Expect::Multi if refused => {
                let name: &[u8] = if expect == Expect::Multi { b"MULTI" } else { b"WATCH" };
                self.refuses_multi |= expect == Expect::Multi && !self.multi;
                // Inside MULTI it does not matter: EXEC or DISCARD ends it.
                if !self.multi && !is_servers_own(name, reply) {
                    self.taint(CloseReason::LeftDirty);
                }
            }
            Expect::Watch if okay => self.watching = true,
            Expect::WatchMarker if okay => self.watches_marker = true,
            Expect::Multi if okay && !self.multi => {
                (self.multi, self.refuses_multi) = (true, false);
            }
            // A rejected DISCARD or UNWATCH leaves MULTI and WATCH as they were.
            Expect::Unwatch | Expect::Discard if refused => self.taint(CloseReason::LeftDirty),
            Expect::Unwatch if okay => self.end_watch(),
            Expect::Discard if okay => self.end_multi(),
            // MULTI was rejected, so these commands ran one by one, and EXEC ended nothing.
            Expect::Queued | Expect::Exec if !self.multi => self.taint(CloseReason::LeftDirty),
            Expect::Queued if refused || matches!(reply, Reply::Queued(_)) => {}
            // The error is a proxy's, or that of a server with a renamed EXEC, which is still in
            // MULTI. A MULTI that follows in the same write is then rejected by the server.
            Expect::Exec if matches!(reply, Reply::Value(Value::ServerError(error)) if !exec_applied_nothing(error)) =>
            {
                self.taint(CloseReason::LeftDirty);
                self.multi = false;
            }
            Expect::Exec
                if refused || matches!(reply, Reply::Value(Value::Array(_) | Value::Nil)) =>
            {
                self.end_multi();
            }
            _ => return self.unexpected(),
        }
        ReplyCheck::Expected
    }

    /// Whether a MULTI has to be awaited before any command that needs it.
    pub(crate) fn refuses_multi(&self) -> bool {
        self.refuses_multi
    }

    fn end_watch(&mut self) {
        self.watching = false;
        self.watches_marker = false;
    }

    /// EXEC and DISCARD end WATCH too.
    fn end_multi(&mut self) {
        self.multi = false;
        self.end_watch();
    }

    fn unexpected(&mut self) -> ReplyCheck {
        self.taint(CloseReason::Protocol);
        ReplyCheck::Unexpected
    }

    /// The connection must not be used again. The first reason is kept.
    pub(crate) fn taint(&mut self, reason: CloseReason) {
        self.taint.get_or_insert(reason);
    }

    pub(crate) fn tainted(&self) -> Option<CloseReason> {
        self.taint
    }

    /// Whether the connection is like a new one for its next user. It may watch its own register.
    pub(crate) fn is_clean(&self) -> bool {
        self.taint.is_none() && self.awaited.is_empty() && !self.multi && !self.watching
    }

    /// Whether every awaited reply was read, so that the next reply belongs to the next request.
    pub(crate) fn has_all_replies(&self) -> bool {
        self.taint.is_none() && self.awaited.is_empty()
    }

    pub(crate) fn is_in_multi(&self) -> bool {
        self.multi
    }

    pub(crate) fn watches_marker(&self) -> bool {
        self.watches_marker
    }

    pub(crate) fn is_watching(&self) -> bool {
        self.watching
    }
}

/// Whether the error is the server's, returned before the command had an effect.
fn is_servers_own(name: &[u8], error: &Reply) -> bool {
    matches!(error, Reply::Value(Value::ServerError(error)) if known_errors::proves_no_effect(name, error))
}

/// Whether EXEC's error proves that the transaction has ended and nothing was applied. Redis since
/// 6.2 and Valkey reject EXEC with EXECABORT, apart from errors of a cluster. Any other error may
/// be a proxy's, returned after EXEC ran.
pub(crate) fn exec_applied_nothing(exec: &redis::ServerError) -> bool {
    matches!(exec.code(), "EXECABORT" | "MOVED" | "ASK" | "TRYAGAIN" | "CROSSSLOT" | "CLUSTERDOWN")
}

#[cfg(test)]
#[path = "../../tests/unit/connection_state_walk.rs"]
mod walk;

#[cfg(test)]
mod tests {
    use super::*;

    fn after(replies: &[(Expect, Value)]) -> ConnectionState {
        let mut state = ConnectionState::default();
        for (expect, _) in replies {
            state.sending(*expect, 1);
        }
        for (_, value) in replies {
            state.reply(&Reply::from(value.clone()));
        }
        state
    }

    fn queued() -> Value {
        Value::SimpleString("QUEUED".into())
    }

    #[test]
    fn the_state_is_dirty_before_the_first_byte_and_clean_after_the_proof() {
        let mut state = ConnectionState::default();
        assert!(state.is_clean());
        state.sending(Expect::Multi, 1);
        state.sending(Expect::Queued, 2);
        state.sending(Expect::Exec, 1);
        for value in [Value::Okay, queued(), queued()] {
            assert!(!state.is_clean());
            assert_eq!(state.reply(&Reply::from(value)), ReplyCheck::Expected);
        }
        assert!(!state.is_clean());
        state.reply(&Reply::Value(Value::Array(vec![Value::Okay, Value::Okay])));
        assert!(state.is_clean());
    }

    #[test]
    fn exec_and_discard_end_a_watch_and_unwatch_does_not_end_multi() {
        assert!(after(&[(Expect::Watch, Value::Okay)]).is_watching());
        let ended = [
            (Expect::Watch, Value::Okay),
            (Expect::Multi, Value::Okay),
            (Expect::Exec, Value::Nil),
        ];
        assert!(after(&ended).is_clean());
        let ended = [
            (Expect::Watch, Value::Okay),
            (Expect::Multi, Value::Okay),
            (Expect::Discard, Value::Okay),
        ];
        assert!(after(&ended).is_clean());
        assert!(after(&[(Expect::Watch, Value::Okay), (Expect::Unwatch, Value::Okay)]).is_clean());
    }

    #[test]
    fn an_unexpected_reply_taints() {
        for (expect, value) in [
            (Expect::Multi, queued()),
            (Expect::Watch, Value::Int(1)),
            (Expect::Unwatch, queued()),
            (Expect::Discard, Value::Nil),
        ] {
            assert_eq!(
                after(&[(expect, value)]).tainted(),
                Some(CloseReason::Protocol),
                "{expect:?}"
            );
        }
        let bare = [(Expect::Multi, Value::Okay), (Expect::Queued, Value::Okay)];
        assert_eq!(after(&bare).tainted(), Some(CloseReason::Protocol));
        let mut state = ConnectionState::default();
        assert_eq!(state.reply(&Reply::Value(Value::Okay)), ReplyCheck::Unexpected);
    }

    #[test]
    fn queued_replies_are_merged_only_while_awaited_in_multi() {
        let mut state = ConnectionState::default();
        state.sending(Expect::Multi, 1);
        state.sending(Expect::Queued, 5);
        state.sending(Expect::Exec, 1);
        assert_eq!(state.max_queued(), 1);
        state.reply(&Reply::Value(Value::Okay));
        assert_eq!(state.max_queued(), 5);
        assert_eq!(state.reply(&Reply::Queued(3)), ReplyCheck::Expected);
        assert_eq!(state.max_queued(), 2);
        assert_eq!(state.reply(&Reply::Queued(3)), ReplyCheck::Unexpected);
        // MULTI was rejected: each command has a reply of its own.
        let mut state = ConnectionState::default();
        state.sending(Expect::Multi, 1);
        state.sending(Expect::Queued, 5);
        let refusal = redis::parse_redis_value(b"-NOPERM no\r\n").unwrap();
        state.reply(&Reply::Value(refusal));
        assert_eq!(state.max_queued(), 1);
    }
}
