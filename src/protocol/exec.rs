//! What a transaction's replies prove: which row of the contract is true.
//!
//! An error is a proof of "nothing was applied" only where the server alone can have given it, and
//! only before it changed anything. A proxy answers EXEC with an error of its own for an upstream
//! that it lost after EXEC ran, so most errors prove nothing.
//!
//! Never: I/O, and never: a guess.

use redis::Value;

use crate::protocol::connection_state::{Expect, exec_applied_nothing};
use crate::protocol::known_errors;
use crate::protocol::resp::reply::Reply;
use crate::protocol::server_error::ServerError;

/// What one reply position refused.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RejectedCommand {
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
    RepliesLost,
    /// EXEC's nil: a watched key had changed, nothing was applied.
    Nil,
    /// Nothing was applied.
    Rejected(RejectedCommand),
    /// MULTI was refused and each command was answered by itself.
    WithoutMulti(WithoutMulti),
    /// The replies that came prove nothing.
    Unknown(Unproven),
}

/// What came of commands that were sent behind a MULTI that was refused.
#[derive(Debug, PartialEq)]
pub(crate) struct WithoutMulti {
    multi: ServerError,
    /// One for each command, in order.
    values: Vec<Value>,
}

/// What is known of a transaction whose replies prove nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Unproven {
    /// EXEC's own answer, where it was an error.
    pub(crate) exec: Option<ServerError>,
    /// A command was refused while it was queued, or EXEC answered another number of commands: if
    /// EXEC ran, it may have run without one of them.
    pub(crate) incomplete: bool,
    /// MULTI was refused, so commands ran one by one and what the last one left behind proves
    /// nothing of the others.
    pub(crate) bare: bool,
}

/// Collects a transaction's replies in the order they come.
#[derive(Debug)]
pub(crate) struct Collector {
    commands: u32,
    seen: u32,
    multi: Option<ServerError>,
    refused: Option<RejectedCommand>,
    /// Replies of commands that ran on their own because MULTI was refused.
    bare: Vec<Value>,
    /// A command was queued although MULTI was answered with an error.
    queued_all_the_same: bool,
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
            queued_all_the_same: false,
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
            self.queued_all_the_same |= matches!(reply, Reply::Queued(_));
            self.bare.push(reply.into_value());
        } else if let Reply::Value(Value::ServerError(error)) = &reply {
            self.refused.get_or_insert_with(|| RejectedCommand {
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
            Reply::Truncated(length) => self.unread = Some(length),
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
    pub(crate) fn refusal(&self) -> Option<&RejectedCommand> {
        self.refused.as_ref()
    }

    /// What the replies that came prove.
    pub(crate) fn verdict(self) -> Verdict {
        let doubt = Unproven {
            exec: match &self.exec {
                Some(Value::ServerError(error)) => Some(ServerError::from_reply(error, false)),
                _ => None,
            },
            incomplete: self.refused.is_some()
                || matches!(self.exec, Some(Value::Array(_)))
                || self.unread.is_some(),
            bare: self.multi.is_some() && !self.queued_all_the_same,
        };
        match (self.multi, self.exec) {
            // Outside MULTI the server knows no EXEC.
            (Some(multi), Some(Value::ServerError(_))) if !self.queued_all_the_same => {
                Verdict::WithoutMulti(WithoutMulti { multi, values: self.bare })
            }
            (None, Some(Value::ServerError(error))) if exec_applied_nothing(&error) => {
                // The first refusal is the cause; EXECABORT only repeats that there was one.
                Verdict::Rejected(self.refused.unwrap_or_else(|| RejectedCommand {
                    index: None,
                    word: "EXEC",
                    error: ServerError::cause_of_abort(&error),
                }))
            }
            (None, None)
                if self.refused.is_none() && self.unread == Some(self.commands as usize) =>
            {
                Verdict::RepliesLost
            }
            // Behind a refusal the server answers EXECABORT and nothing else, so these mean that
            // the refusal was not the server's.
            (None, Some(Value::Array(values)))
                if self.refused.is_none() && values.len() == self.commands as usize =>
            {
                Verdict::Applied(values)
            }
            (None, Some(Value::Nil)) if self.refused.is_none() => Verdict::Nil,
            _ => Verdict::Unknown(doubt),
        }
    }
}

impl WithoutMulti {
    /// What these replies prove of commands of these names; behind those stand commands of this
    /// crate's own, which are plain ones. `Ok`: each was refused before it ran, because of MULTI's
    /// refusal. `Err`: at least one may have run, with each one's own reply.
    pub(crate) fn outcome<'n>(
        self,
        names: impl Iterator<Item = &'n [u8]>,
    ) -> Result<RejectedCommand, Vec<Value>> {
        let names = names.chain(std::iter::repeat(&b"SET"[..]));
        let all_refused = self.values.iter().zip(names).all(|(value, name)| match value {
            Value::ServerError(error) => known_errors::proves_no_effect(name, error),
            _ => false,
        });
        if all_refused {
            Ok(RejectedCommand { index: None, word: "MULTI", error: self.multi })
        } else {
            Err(self.values)
        }
    }
}
