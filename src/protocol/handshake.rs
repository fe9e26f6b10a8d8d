//! The first bytes of a new connection, and the judgement of their replies.
//!
//! Protocol version, credentials, database and client name come first; then a proof that the server
//! can do what the connection is for. The bytes hold a password, so they have no `Debug`.

use redis::RedisConnectionInfo;

use crate::protocol::command::info::{EXEC_INFO, is_unknown};
use crate::protocol::connection_state::Expect;
use crate::protocol::resp::encode::{
    DISCARD, EncodedCommand, MULTI, PING, ROLE, command_with, words,
};
use crate::protocol::resp::reply::Reply;
use crate::protocol::server_error::ServerError;

/// The purpose of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Single commands.
    Pooled,
    /// Transactions: the user must have the right to MULTI.
    Transactional,
}

/// The first bytes of a new connection.
pub(crate) struct Handshake {
    bytes: Vec<u8>,
    expected: Vec<(Expect, u32)>,
    /// Names of the commands in their order.
    commands: Vec<&'static str>,
    /// Number of replies that must not be errors.
    required: u32,
    /// Number of further replies that may be errors: the server may not have the command, or refuse it.
    optional: u32,
    /// Number of bytes before MULTI.
    before_multi: usize,
    purpose: Purpose,
}

/// One write of a handshake. An empty one is not sent.
pub(crate) struct HandshakeWrite<'h> {
    pub(crate) bytes: &'h [u8],
    pub(crate) expected: &'h [(Expect, u32)],
}

impl HandshakeWrite<'_> {
    /// Number of its replies.
    pub(crate) fn replies(&self) -> u32 {
        self.expected.iter().map(|(_, count)| count).sum()
    }
}

impl Handshake {
    /// `client_name`: empty for none.
    pub(crate) fn new(
        info: &RedisConnectionInfo,
        purpose: Purpose,
        asks_role: bool,
        client_name: &str,
    ) -> Self {
        let mut handshake = Self {
            bytes: Vec::new(),
            expected: Vec::new(),
            commands: Vec::new(),
            required: 0,
            optional: 0,
            before_multi: 0,
            purpose,
        };
        handshake.greet(info);
        handshake.introduce(info, client_name);
        let greeting = (Expect::Plain, handshake.required + handshake.optional);
        let (proofs, names, expected): (&[&[u8]], &[_], _) = match purpose {
            Purpose::Pooled => (&[PING], &["PING"], [(Expect::Plain, 1), (Expect::Multi, 0)]),
            Purpose::Transactional => (
                &[EXEC_INFO, MULTI, DISCARD],
                &["COMMAND INFO", "MULTI", "DISCARD"],
                [(Expect::Plain, 1), (Expect::Multi, 1)],
            ),
        };
        handshake.before_multi = handshake.bytes.len() + EXEC_INFO.len();
        proofs.iter().for_each(|proof| handshake.bytes.extend_from_slice(proof));
        handshake.commands.extend_from_slice(names);
        handshake.expected.push(greeting);
        handshake.expected.extend(expected);
        if purpose == Purpose::Transactional {
            handshake.expected.push((Expect::Discard, 1));
        }
        if asks_role {
            handshake.bytes.extend_from_slice(ROLE);
            handshake.commands.push("ROLE");
            handshake.expected.push((Expect::Plain, 1));
        }
        handshake
    }

    fn greet(&mut self, info: &RedisConnectionInfo) {
        let bytes = &mut self.bytes;
        let (user, password) = (info.username(), info.password());
        if info.protocol().supports_resp3() {
            self.required += 1;
            self.commands.push("HELLO");
            let auth = password.map(|password| ("AUTH", user.unwrap_or("default"), password));
            command_with(bytes, words!("HELLO", "3"), auth);
        } else if password.is_some() {
            self.required += 1;
            self.commands.push("AUTH");
            auth(bytes, info);
        }
        if info.db() != 0 {
            self.required += 1;
            self.commands.push("SELECT");
            command_with(bytes, words!("SELECT"), info.db());
        }
    }

    /// Appends the names that the server shows in CLIENT LIST. Each may be refused.
    fn introduce(&mut self, info: &RedisConnectionInfo, client_name: &str) {
        let mut optional = |command, words: &EncodedCommand, text: &str| {
            self.optional += 1;
            self.commands.push(command);
            command_with(&mut self.bytes, words, text);
        };
        if !client_name.is_empty() {
            optional("CLIENT SETNAME", words!("CLIENT", "SETNAME"), client_name);
        }
        let name = info.lib_name().unwrap_or(env!("CARGO_PKG_NAME"));
        let version = info.lib_ver().unwrap_or(env!("CARGO_PKG_VERSION"));
        if !info.skip_set_lib_name() {
            optional("CLIENT SETINFO", words!("CLIENT", "SETINFO", "LIB-NAME"), name);
            optional("CLIENT SETINFO", words!("CLIENT", "SETINFO", "LIB-VER"), version);
        }
    }

    /// Its writes, the second of which may be empty. `multi_apart`: MULTI and what follows it are
    /// the second one, sent after the replies to the first.
    pub(crate) fn writes(&self, multi_apart: bool) -> [HandshakeWrite<'_>; 2] {
        let apart = multi_apart && self.purpose == Purpose::Transactional;
        let (bytes, expected) = match apart {
            true => (self.before_multi, 2),
            false => (self.bytes.len(), self.expected.len()),
        };
        let (bytes, later_bytes) = self.bytes.split_at(bytes);
        let (expected, later_expected) = self.expected.split_at(expected);
        [
            HandshakeWrite { bytes, expected },
            HandshakeWrite { bytes: later_bytes, expected: later_expected },
        ]
    }

    /// The name of the command that the reply with this number is to.
    pub(crate) fn command(&self, nth: u32) -> &'static str {
        self.commands.get(nth as usize).copied().unwrap_or_default()
    }

    /// The number of the reply to PING or COMMAND INFO.
    fn proof(&self) -> u32 {
        self.required + self.optional
    }
}

const NO_EXEC: &str = "the server does not know EXEC: it was renamed or disabled there";

/// Judges the replies to a handshake.
pub(crate) struct HandshakeReplies<'h> {
    handshake: &'h Handshake,
    /// The first error that the handshake failed with, and the command it was a reply to.
    pub(crate) rejected: Option<(ServerError, &'static str)>,
}

impl<'h> HandshakeReplies<'h> {
    pub(crate) fn new(handshake: &'h Handshake) -> Self {
        Self { handshake, rejected: None }
    }

    pub(crate) fn on_reply(&mut self, nth: u32, reply: &Reply) {
        let Handshake { purpose, .. } = self.handshake;
        let is_info = nth == self.handshake.proof() && *purpose == Purpose::Transactional;
        if is_info && matches!(reply, Reply::Value(info) if is_unknown(info)) {
            let error = || (ServerError::synthetic("ERR", NO_EXEC), "COMMAND INFO");
            self.rejected.get_or_insert_with(error);
        }
    }

    pub(crate) fn on_error(&mut self, nth: u32, error: ServerError) {
        let (required, proof) = (self.handshake.required, self.handshake.proof());
        let is_allowed = (required..proof).contains(&nth)
            || nth == proof
                && match self.handshake.purpose {
                    // A rejection for lack of rights proves a live server as well as PONG does.
                    Purpose::Pooled => error.code() == "NOPERM",
                    // If COMMAND INFO is denied, the server is assumed to know EXEC.
                    Purpose::Transactional => true,
                };
        if !is_allowed {
            self.rejected.get_or_insert((error, self.handshake.command(nth)));
        }
    }
}

/// Appends AUTH.
pub(crate) fn auth(bytes: &mut Vec<u8>, info: &RedisConnectionInfo) {
    command_with(bytes, words!("AUTH"), (info.username(), info.password()));
}
