//! What the server believes about one connection, as far as its replies prove it.
//!
//! The state is changed before the first byte leaves ([`State::sending`]) and is clean again only
//! on the reply that proves it ([`State::reply`]). What is not understood taints, for good.
//!
//! Never: optimism. A reply that cannot stand where it came is not skipped.

use std::collections::VecDeque;

use redis::Value;

use crate::protocol::known_errors;
use crate::protocol::resp::reply::Reply;

/// A reply that is awaited, by the command that will give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    /// Any reply, errors included: a command on its own.
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

/// What a reply proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReplyCheck {
    /// It is what was asked for, or the server's refusal of it.
    Expected,
    /// It cannot stand where it came: the connection is tainted.
    Unexpected,
}

/// Why a connection may never be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taint {
    Closed,
    TimedOut,
    Protocol,
    /// A refusal left it in MULTI or watching, or its scope ended without cleaning it.
    LeftDirty,
    Reclaimed,
    Raw,
    Outdated,
    Lifetime,
}

/// What the server believes about one connection.
#[derive(Debug, Default)]
pub(crate) struct ConnectionState {
    awaited: VecDeque<(Expect, u32)>,
    multi: bool,
    watching: bool,
    /// It watches its own register.
    watches_marker: bool,
    taint: Option<Taint>,
}

impl ConnectionState {
    /// Bytes that will be answered by `count` replies of this kind are about to leave.
    pub(crate) fn sending(&mut self, expect: Expect, count: u32) {
        if count == 0 {
            return;
        }
        match self.awaited.back_mut() {
            Some((last, n)) if *last == expect => *n += count,
            _ => self.awaited.push_back((expect, count)),
        }
    }

    /// How many replies are awaited.
    pub(crate) fn awaited(&self) -> u64 {
        self.awaited.iter().map(|(_, count)| u64::from(*count)).sum()
    }

    /// How many of the next replies may say QUEUED in a row and be taken for one.
    pub(crate) fn max_queued(&self) -> u32 {
        match self.awaited.front() {
            Some((Expect::Queued, count)) if self.multi => *count,
            _ => 1,
        }
    }

    /// A reply came, or several of which each says QUEUED.
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
            Expect::Plain => ReplyCheck::Expected,
            // The server's own refusal leaves it in the state it was in. Another one may be a
            // proxy's, behind which the server is in MULTI or watches.
            Expect::Watch | Expect::WatchMarker | Expect::Multi if refused => {
                let name: &[u8] = if expect == Expect::Multi { b"MULTI" } else { b"WATCH" };
                // Inside MULTI there is nothing to get wrong: EXEC or DISCARD ends it.
                if !self.multi && !is_servers_own(name, reply) {
                    self.taint(Taint::LeftDirty);
                }
                ReplyCheck::Expected
            }
            Expect::Watch if okay => {
                self.watching = true;
                ReplyCheck::Expected
            }
            Expect::WatchMarker if okay => {
                self.watches_marker = true;
                ReplyCheck::Expected
            }
            Expect::Multi if okay && !self.multi => {
                self.multi = true;
                ReplyCheck::Expected
            }
            // Refused DISCARD and UNWATCH leave MULTI and WATCH as they were.
            Expect::Unwatch | Expect::Discard if refused => {
                self.taint(Taint::LeftDirty);
                ReplyCheck::Expected
            }
            Expect::Unwatch if okay => {
                self.watching = false;
                self.watches_marker = false;
                ReplyCheck::Expected
            }
            Expect::Discard if okay => {
                self.multi = false;
                self.watching = false;
                self.watches_marker = false;
                ReplyCheck::Expected
            }
            // MULTI was refused, so these ran one by one, each with a reply of its own, and what
            // EXEC said did not end anything.
            Expect::Queued | Expect::Exec if !self.multi => {
                self.taint(Taint::LeftDirty);
                ReplyCheck::Expected
            }
            Expect::Queued if refused || matches!(reply, Reply::Queued(_)) => ReplyCheck::Expected,
            // A proxy's error, or a server's that knows EXEC by another name and is still in
            // MULTI. What follows in the same write answers for itself: to a MULTI inside a MULTI
            // the server answers an error.
            Expect::Exec if matches!(reply, Reply::Value(Value::ServerError(error)) if !exec_applied_nothing(error)) =>
            {
                self.taint(Taint::LeftDirty);
                self.multi = false;
                ReplyCheck::Expected
            }
            Expect::Exec
                if refused || matches!(reply, Reply::Value(Value::Array(_) | Value::Nil)) =>
            {
                self.multi = false;
                self.watching = false;
                self.watches_marker = false;
                ReplyCheck::Expected
            }
            _ => self.unexpected(),
        }
    }

    fn unexpected(&mut self) -> ReplyCheck {
        self.taint(Taint::Protocol);
        ReplyCheck::Unexpected
    }

    /// Never to be used again. The first reason stands.
    pub(crate) fn taint(&mut self, reason: Taint) {
        self.taint.get_or_insert(reason);
    }

    pub(crate) fn tainted(&self) -> Option<Taint> {
        self.taint
    }

    /// Whether the next borrower would find a connection like a fresh one, or one that watches
    /// nothing but its own register.
    pub(crate) fn is_clean(&self) -> bool {
        self.taint.is_none() && self.awaited.is_empty() && !self.multi && !self.watching
    }

    /// Whether every reply that was asked for has come, so that the next one will be ours.
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

/// Whether an error is the server's, given before it did what the command asks for.
fn is_servers_own(name: &[u8], error: &Reply) -> bool {
    matches!(error, Reply::Value(Value::ServerError(error)) if known_errors::proves_no_effect(name, error))
}

/// Whether EXEC's own answer proves that the transaction is over and that nothing of it was
/// applied. Redis from 6.2 on and Valkey answer every refusal of EXEC but a cluster's with
/// EXECABORT; any other error may be a proxy's, sent after EXEC ran.
pub(crate) fn exec_applied_nothing(exec: &redis::ServerError) -> bool {
    matches!(exec.code(), "EXECABORT" | "MOVED" | "ASK" | "TRYAGAIN" | "CROSSSLOT" | "CLUSTERDOWN")
}

#[cfg(test)]
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
    fn dirty_before_the_first_byte_and_clean_on_the_proof() {
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
    fn a_reply_that_cannot_stand_there_taints() {
        for (expect, value) in [
            (Expect::Multi, queued()),
            (Expect::Watch, Value::Int(1)),
            (Expect::Unwatch, queued()),
            (Expect::Discard, Value::Nil),
        ] {
            assert_eq!(after(&[(expect, value)]).tainted(), Some(Taint::Protocol), "{expect:?}");
        }
        let bare = [(Expect::Multi, Value::Okay), (Expect::Queued, Value::Okay)];
        assert_eq!(after(&bare).tainted(), Some(Taint::Protocol));
        let mut state = ConnectionState::default();
        assert_eq!(state.reply(&Reply::Value(Value::Okay)), ReplyCheck::Unexpected);
    }

    #[test]
    fn several_are_taken_for_one_only_as_far_as_they_are_awaited_in_multi() {
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
        // MULTI was refused: each command answers for itself.
        let mut state = ConnectionState::default();
        state.sending(Expect::Multi, 1);
        state.sending(Expect::Queued, 5);
        let refusal = redis::parse_redis_value(b"-NOPERM no\r\n").unwrap();
        state.reply(&Reply::Value(refusal));
        assert_eq!(state.max_queued(), 1);
    }
}
