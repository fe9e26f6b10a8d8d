//! What a transaction's replies say: which row of the contract is true.
//!
//! Never: I/O, and never: a guess. Where the replies that came prove the outcome, it is told even
//! if the rest was lost; where they do not, it is in doubt.

use redis::Value;

use super::command;
use super::reply::Reply;
use super::state::Expect;
use crate::error::{ReplyError, ServerError};

/// What one reply position refused.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Refusal {
    /// The queued command, from 0; `None` for MULTI or EXEC.
    pub(crate) index: Option<u32>,
    /// `MULTI` or `EXEC` where there is no index.
    pub(crate) word: &'static str,
    pub(crate) error: ServerError,
}

/// What a transaction's replies prove.
#[derive(Debug, PartialEq)]
pub(crate) enum Verdict {
    /// EXEC's array: all commands ran, some of them may have failed.
    Applied(Vec<Value>),
    /// EXEC's array of the right length, which could not be read to its end: all commands ran.
    Unread,
    /// EXEC's nil: a watched key had changed, nothing was applied.
    Nil,
    /// Nothing was applied.
    Rejected(Refusal),
    /// MULTI was refused and at least one command ran on its own: each one's own reply.
    Bare(Vec<Value>),
    /// The replies that came prove nothing.
    Unknown,
}

/// Collects a transaction's replies in the order they come.
#[derive(Debug)]
pub(crate) struct Collector {
    commands: u32,
    seen: u32,
    multi: Option<ServerError>,
    refused: Option<Refusal>,
    /// Replies of commands that ran on their own because MULTI was refused.
    bare: Vec<Value>,
    exec: Option<Value>,
    /// The length of EXEC's array that could not be read to its end.
    unread: Option<usize>,
}

impl Collector {
    /// For a transaction of this many commands, of which the first were queued earlier.
    pub(crate) fn new(commands: u32, queued_earlier: u32) -> Self {
        Self {
            commands,
            seen: queued_earlier,
            multi: None,
            refused: None,
            bare: Vec::new(),
            exec: None,
            unread: None,
        }
    }

    /// MULTI's reply came behind the commands in one write.
    fn multi(&mut self, reply: Reply) {
        if let Reply::Value(Value::ServerError(error)) = reply {
            self.multi = Some(ServerError::from_reply(&error, false));
        }
    }

    /// A command's reply.
    fn queued(&mut self, reply: Reply) {
        let index = self.seen;
        self.seen += reply.count();
        if self.multi.is_some() {
            self.bare.push(reply.into_value());
        } else if let Reply::Value(Value::ServerError(error)) = &reply {
            self.refused.get_or_insert_with(|| Refusal {
                index: Some(index),
                word: "",
                error: ServerError::from_reply(error, false),
            });
        } else {
            debug_assert!(
                matches!(reply, Reply::Queued(_)),
                "the link's state lets nothing else through"
            );
        }
    }

    fn exec(&mut self, reply: Reply) {
        match reply {
            Reply::Unread(length) => self.unread = Some(length),
            reply => self.exec = Some(reply.into_value()),
        }
    }

    /// The reply to what a transaction consists of; others are not its.
    pub(crate) fn take(&mut self, expect: Expect, reply: Reply) {
        match expect {
            Expect::Multi => self.multi(reply),
            Expect::Queued => self.queued(reply),
            Expect::Exec => self.exec(reply),
            _ => {}
        }
    }

    /// The first refusal so far.
    pub(crate) fn refusal(&self) -> Option<&Refusal> {
        self.refused.as_ref()
    }

    /// What the replies that came prove.
    pub(crate) fn verdict(self) -> Verdict {
        if let Some(error) = self.multi {
            // Without MULTI every command answers for itself. Only when the server was seen to
            // refuse each one before running it is it certain that nothing ran.
            let complete = self.exec.is_some();
            let all_refused = self.bare.iter().all(was_refused_unrun);
            return match (complete, all_refused) {
                (false, _) => Verdict::Unknown,
                (true, true) => Verdict::Rejected(Refusal { index: None, word: "MULTI", error }),
                (true, false) => Verdict::Bare(self.bare),
            };
        }
        if self.unread == Some(self.commands as usize) {
            return Verdict::Unread;
        }
        match (self.exec, self.refused) {
            (Some(Value::Array(values)), _) if values.len() == self.commands as usize => {
                Verdict::Applied(values)
            }
            (Some(Value::Nil), _) => Verdict::Nil,
            // The first refusal is the cause; EXECABORT only says that there was one. And with a
            // refusal on record EXEC cannot answer anything else, so its reply is not needed.
            (Some(Value::ServerError(_)) | None, Some(refusal)) => Verdict::Rejected(refusal),
            (Some(Value::ServerError(error)), None) => Verdict::Rejected(Refusal {
                index: None,
                word: "EXEC",
                error: ServerError::cause_of_abort(&error),
            }),
            _ => Verdict::Unknown,
        }
    }
}

/// Whether a command on its own was refused by the server's front door: an error of the command
/// itself, or of a script, may come after it has changed something.
fn was_refused_unrun(value: &Value) -> bool {
    let Value::ServerError(error) = value else { return false };
    matches!(
        error.code(),
        "NOPERM"
            | "NOAUTH"
            | "LOADING"
            | "MASTERDOWN"
            | "CLUSTERDOWN"
            | "READONLY"
            | "OOM"
            | "MISCONF"
            | "NOREPLICAS"
            | "MOVED"
            | "ASK"
            | "TRYAGAIN"
            | "CROSSSLOT"
    )
}

/// The commands among applied ones that failed, by index, with what the server said.
pub(crate) fn failures<'n>(
    values: &[Value],
    names: impl Iterator<Item = &'n [u8]>,
) -> Vec<ReplyError> {
    let failed = |value: &Value| matches!(value, Value::ServerError(_));
    // Nearly always; and then nobody needs the names.
    if !values.iter().any(failed) {
        return Vec::new();
    }
    let failure = |(index, (value, name)): (_, (&Value, &[u8]))| {
        let Value::ServerError(error) = value else { return None };
        let error = ServerError::from_reply(error, command::is_script(name));
        Some(ReplyError::Failed { index, command: command::printable(name), error })
    };
    let names = names.chain(std::iter::repeat(&b"?"[..]));
    values.iter().zip(names).enumerate().filter_map(failure).collect()
}
