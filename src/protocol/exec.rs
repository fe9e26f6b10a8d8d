//! The outcome that a transaction's replies prove.
//!
//! An error proves "nothing was applied" only if it is the server's own and was returned before any
//! effect. A proxy replies to EXEC with its own error after it lost the server, even if EXEC ran.
//! So most errors prove nothing.

use redis::Value;

use crate::protocol::connection_state::{Expect, exec_applied_nothing};
use crate::protocol::known_errors;
use crate::protocol::resp::reply::Reply;
use crate::protocol::server_error::ServerError;

/// A rejected MULTI, command or EXEC.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RejectedCommand {
    /// Index of the queued command; `None` for MULTI or EXEC.
    pub(crate) index: Option<u32>,
    /// `MULTI` or `EXEC` if there is no index.
    pub(crate) word: &'static str,
    pub(crate) error: ServerError,
}

/// The outcome that a transaction's replies prove.
#[derive(Debug, PartialEq)]
pub(crate) enum Verdict {
    /// EXEC returned an array: all commands ran, some may have failed.
    Applied(Vec<Value>),
    /// EXEC returned an array of the right length that could not be read completely: all commands
    /// ran.
    RepliesLost,
    /// EXEC returned nil: a watched key had changed, nothing was applied.
    Nil,
    /// Nothing was applied.
    Rejected(RejectedCommand),
    /// MULTI was rejected and each command has a reply of its own.
    WithoutMulti(WithoutMulti),
    /// The replies prove nothing.
    Unknown(Unproven),
}

/// The replies of commands after a rejected MULTI.
#[derive(Debug, PartialEq)]
pub(crate) struct WithoutMulti {
    multi: ServerError,
    /// One per command, in order.
    values: Vec<Value>,
}

/// The known facts of a transaction whose replies prove nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Unproven {
    /// EXEC's reply if it was an error.
    pub(crate) exec: Option<ServerError>,
    /// A command was rejected while it was queued, or EXEC returned another number of replies. If
    /// EXEC ran, it may have run without one of the commands.
    pub(crate) incomplete: bool,
    /// MULTI was rejected, so the commands ran one by one. The register, written by the last one,
    /// proves nothing about the others.
    pub(crate) bare: bool,
}

/// Collects a transaction's replies in their order.
#[derive(Debug)]
pub(crate) struct Collector {
    commands: u32,
    seen: u32,
    multi: Option<ServerError>,
    refused: Option<RejectedCommand>,
    /// Replies of commands that ran one by one because MULTI was rejected.
    bare: Vec<Value>,
    /// A command was queued although MULTI was rejected.
    queued_all_the_same: bool,
    exec: Option<Value>,
    /// Length of EXEC's array if it could not be read completely.
    unread: Option<usize>,
}

impl Collector {
    /// For a transaction of this many commands, the first of which were queued in earlier writes.
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

    /// The reply of one command, or several QUEUED.
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
                "the connection's state accepts no other reply"
            );
        }
    }

    /// Takes a reply; those of other commands than the transaction's are ignored.
    pub(crate) fn take(&mut self, expect: Expect, reply: Reply) {
        match (expect, reply) {
            (Expect::Multi, Reply::Value(Value::ServerError(error))) => {
                self.multi = Some(ServerError::from_reply(&error, false));
            }
            (Expect::Queued, reply) => self.queued(reply),
            (Expect::Exec, Reply::Truncated(length)) => self.unread = Some(length),
            (Expect::Exec, reply) => self.exec = Some(reply.into_value()),
            _ => {}
        }
    }

    /// The first rejected command so far.
    pub(crate) fn into_refusal(self) -> Option<RejectedCommand> {
        self.refused
    }

    /// Whether EXEC has returned an array, or its length.
    pub(crate) fn has_array(&self) -> bool {
        self.unread.is_some() || matches!(self.exec, Some(Value::Array(_)))
    }

    /// The outcome that the replies so far prove.
    pub(crate) fn verdict(self) -> Verdict {
        let doubt = Unproven {
            exec: match &self.exec {
                Some(Value::ServerError(error)) => Some(ServerError::from_reply(error, false)),
                _ => None,
            },
            incomplete: self.refused.is_some() || self.has_array(),
            bare: self.multi.is_some() && !self.queued_all_the_same,
        };
        match (self.multi, self.exec) {
            // Outside MULTI the server rejects EXEC.
            (Some(multi), Some(Value::ServerError(_))) if !self.queued_all_the_same => {
                Verdict::WithoutMulti(WithoutMulti { multi, values: self.bare })
            }
            (None, Some(Value::ServerError(error))) if exec_applied_nothing(&error) => {
                // The first rejected command is the cause; EXECABORT only follows from it.
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
            // After a rejected command the server replies EXECABORT and nothing else. Any other
            // reply means that the rejection was not the server's.
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

impl Verdict {
    /// What is left of it if a reply has arrived that fits no command: each one before it may be another
    /// command's. An array of the transaction's length is EXEC's; what says that nothing was applied proves
    /// nothing.
    pub(crate) fn beside_misfit(self) -> Self {
        let (incomplete, bare) = match self {
            Self::Applied(_) | Self::RepliesLost | Self::Unknown(_) => return self,
            Self::Nil => (false, false),
            Self::Rejected(rejected) => (rejected.index.is_some(), false),
            Self::WithoutMulti(_) => (true, true),
        };
        Self::Unknown(Unproven { exec: None, incomplete, bare })
    }
}

impl WithoutMulti {
    /// Cuts the replies into those of blocks with this many commands each. Every block has also the
    /// `internal` last replies, which are to this crate's own commands.
    pub(crate) fn cut(mut self, blocks: &[u32], internal: usize) -> Vec<Self> {
        let own = self.values.split_off(self.values.len().saturating_sub(internal));
        let mut values = self.values.into_iter();
        let of_block = |commands: &u32| {
            let mut of_block: Vec<_> = values.by_ref().take(*commands as usize).collect();
            of_block.extend_from_slice(&own);
            Self { multi: self.multi.clone(), values: of_block }
        };
        blocks.iter().map(of_block).collect()
    }

    /// The outcome for commands of these names; the library's own plain commands follow them. `Ok`:
    /// each command was rejected before it ran, because MULTI was. `Err`: at least one may have
    /// run; each reply is returned.
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
