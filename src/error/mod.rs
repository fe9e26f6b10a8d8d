//! What can go wrong, one enum an operation, all of them [`Into`] one [`Error`].
//!
//! Every error answers two questions: what did the server do ([`Error::applied`]), and is the
//! same call worth another try ([`Error::is_retryable`]).
//!
//! Never: a key, a value or a password. Never: a raw error of the `redis` crate, whose text
//! repeats what was sent.

pub(crate) mod checkout;
pub(crate) mod commit;
pub(crate) mod condition;
pub(crate) mod config;
pub(crate) mod connection;
pub(crate) mod in_doubt;
pub(crate) mod lock;
pub(crate) mod recent;
pub(crate) mod reply;
pub(crate) mod server;
pub(crate) mod stamp;
pub(crate) mod text;

use std::fmt;
use std::panic::Location;
use std::time::Duration;

use crate::error::checkout::CheckoutError;
use crate::error::commit::CommitError;
use crate::error::condition::FailedCondition;
use crate::error::config::ConfigError;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::error::lock::LockError;
use crate::error::reply::{DecodeError, ReplyError};
use crate::error::server::ServerError;
use crate::error::text::{brief, count, display};
use crate::protocol::command::Place;

/// What the server did with the commands of a call that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Applied {
    /// Nothing was applied, and nothing will be.
    No,
    /// Everything was applied.
    Yes,
    /// Some commands were applied and some were not. Redis does not undo the ones that were.
    Partly,
    /// Nobody here can tell: the answer was lost. It may even be applied later.
    Unknown,
}

/// The scope outlived `max_pin_time` since its last use: its connection was taken back and its
/// transaction discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PinExpired {
    /// How long the scope had been open when this was found.
    pub held: Duration,
    /// The `max_pin_time` in force.
    pub limit: Duration,
    /// Where the scope was begun.
    pub begun_at: &'static Location<'static>,
}

display!(PinExpired, Error);

impl std::error::Error for PinExpired {}

impl PinExpired {
    fn text(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { held, limit, begun_at } = self;
        write!(
            f,
            "the scope begun at {begun_at} was taken back: held for {}, and not used for \
             max_pin_time ({}); nothing was applied; shorten the scope or raise max_pin_time",
            brief(*held),
            brief(*limit)
        )
    }

    pub(crate) fn new(
        held: Duration,
        limit: Duration,
        begun_at: &'static Location<'static>,
    ) -> Self {
        Self { held, limit, begun_at }
    }
}

/// Any error of this crate.
///
/// ```
/// use rediscope::{Applied, Error};
///
/// fn report(error: &Error) -> &'static str {
///     match error.applied() {
///         Applied::No if error.is_retryable() => "nothing happened; try again",
///         Applied::No => "nothing happened",
///         Applied::Yes => "it happened, but its replies are not to be had",
///         Applied::Partly => "some of it happened: repair",
///         Applied::Unknown => "it may have happened: read your own data",
///     }
/// }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Error {
    /// A setting, of the session manager or of a transaction, cannot work; nothing was sent.
    Config(ConfigError),
    /// No connection was given.
    Checkout(CheckoutError),
    /// A transaction was not (known to be) committed as a whole.
    Commit(Box<CommitError>),
    /// A transaction was applied, but this value of it cannot be handed out.
    Reply(ReplyError),
    /// A lock was not acquired, or is no longer held.
    Lock(Box<LockError>),
    /// The scope was open for too long.
    PinExpired(PinExpired),
    /// A command that would change a shared connection, end the scope or stop the server was
    /// refused before anything was sent.
    Refused {
        /// The command's name.
        command: String,
        /// What to do instead.
        hint: &'static str,
    },
    /// A transaction grew past one of its limits; nothing of it was applied.
    TooLarge {
        /// What there was too much of: `commands` or `bytes`.
        what: &'static str,
        /// The limit in force.
        limit: usize,
        /// The setting that raises it.
        setting: &'static str,
    },
    /// Keys of different slots of a cluster cannot be in one transaction, watch or command; nothing
    /// was sent. Keys that belong together share a hash tag: `{order:1}:lines`, `{order:1}:total`.
    #[non_exhaustive]
    CrossSlot {
        /// The command's name.
        command: String,
        /// The slot of the first key, or the one that the transaction was begun at.
        bound: u16,
        /// Another key's.
        other: u16,
    },
    /// `watch` was given no key.
    NoKeys,
    /// A condition that the transaction requires does not hold: the block was not run and nothing
    /// was applied. See [`Condition`](crate::Condition).
    ConditionFailed {
        /// The first one that does not.
        which: FailedCondition,
    },
    /// A watched key changed on every attempt that the policy allows.
    RetriesExhausted {
        /// How often the block was run.
        attempts: u32,
    },
    /// A single command was answered with an error. [`applied`](Self::applied) is `No` where the
    /// command only reads, or where the server refuses it in these very words before it changes
    /// anything; else `Unknown`: a script, a function or a module's command may have written before it
    /// failed, and a proxy may answer for a server that ran the command.
    Command {
        /// The command's name.
        command: String,
        /// What the server said.
        error: ServerError,
    },
    /// Commands of a pooled handle's pipeline were answered with errors; the others were applied.
    #[non_exhaustive]
    Pipeline {
        /// How many were answered with an error.
        failures: usize,
        /// The first of them, from 0.
        index: usize,
        /// That one's name.
        command: String,
        /// What the server said to that one.
        error: ServerError,
        /// `Partly` where another command of it wrote; `No` where none did and each error proves
        /// that its command changed nothing; else `Unknown`.
        applied: Applied,
    },
    /// A single command's reply is not of the type that was asked for. A user's own
    /// `FromRedisValue` that failed in its own words has them in `source()`.
    ///
    /// On the pooled handle it is redis-rs that decodes, and its error names no command. The command
    /// is the one of the last eight answers of this thread in which the value is that the error
    /// shows. `applied` is `Unknown` where there is none: the error was converted on another thread or
    /// after many other commands, is of another connection, or shows a value of more than 512 bytes,
    /// 64 where they are not UTF-8. It is `Unknown` too where a read and a write were answered alike.
    /// An error that shows no value (one of a user's own `FromRedisValue`) has the name of the command
    /// that this thread was answered last, and is `No` or `Yes` only where the last eight were all
    /// reads or all writes. Convert the error at once, on the thread of the call.
    #[non_exhaustive]
    Decode {
        /// The command's name; "the command" where it is not known.
        command: String,
        /// The Rust type that was asked for.
        expected: &'static str,
        /// The kind of reply that came.
        found: &'static str,
        /// `No` for a read, `Yes` for a write, `Unknown` where it is not known which it was.
        applied: Applied,
        /// What the type's own decoding said.
        source: Option<DecodeError>,
    },
    /// The server is too old for what was asked of it; nothing was sent.
    #[non_exhaustive]
    Unsupported {
        /// The command's name.
        command: &'static str,
        /// The first version that has it.
        since: &'static str,
    },
    /// The connection failed under a single command, a begin or a clean-up.
    Lost {
        /// What was being done.
        during: String,
        /// What the server may have done with it.
        applied: Applied,
        /// How the connection failed.
        source: ConnectionError,
    },
}

impl Error {
    fn text(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => write!(f, "{error}"),
            Self::Checkout(error) => error.text(f),
            Self::Commit(error) => error.text(f),
            Self::Reply(error) => error.text(f),
            Self::Lock(error) => error.text(f),
            Self::PinExpired(error) => error.text(f),
            Self::Refused { command, hint } => {
                write!(f, "{command} is refused here and nothing was sent: {hint}")
            }
            Self::TooLarge { what, limit, setting } => {
                write!(
                    f,
                    "the transaction holds more than {limit} {what}; split it or raise {setting}"
                )
            }
            Self::CrossSlot { command, bound, other } => write!(
                f,
                "{command} has a key of slot {other} where slot {bound} is; nothing was sent: give \
                 keys that belong together the same hash tag"
            ),
            Self::NoKeys => {
                f.write_str("watch needs at least one key; to read without watching, use reading()")
            }
            Self::ConditionFailed { which } => {
                write!(f, "condition {which} does not hold; nothing was applied")
            }
            Self::RetriesExhausted { attempts: 1 } => {
                f.write_str("a watched key changed on the only attempt; nothing was applied")
            }
            Self::RetriesExhausted { attempts } => write!(
                f,
                "a watched key changed on each of {attempts} attempts; nothing was applied"
            ),
            Self::Command { command, error } => {
                write!(f, "{command} was refused by the server: {error}")
            }
            Self::Pipeline { failures, index, command, error, .. } => {
                let first = if *failures == 1 { "" } else { "first " };
                let failures = count(*failures, "command");
                write!(
                    f,
                    "{failures} of a pipeline failed, {first}{command} (command {index}): {error}"
                )
            }
            Self::Decode { command, expected, found, .. } => {
                write!(f, "{command} answered {found}, which could not be read as {expected}")
            }
            Self::Unsupported { command, since } => write!(
                f,
                "the server does not know {command}, which came with {since}; nothing was sent"
            ),
            Self::Lost { during, .. } => write!(f, "{during} failed"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Config(error) => error.source(),
            Self::Checkout(error) => error.source(),
            Self::Commit(error) => error.source(),
            Self::Reply(error) => error.source(),
            Self::Lock(error) => error.source(),
            Self::PinExpired(error) => error.source(),
            Self::Lost { source, .. } => Some(source),
            Self::Decode { source, .. } => source.as_ref().map(|source| source as _),
            _ => None,
        }
    }
}

macro_rules! from {
    ($($variant:ident($error:ty)),+) => {$(
        impl From<$error> for Error {
            fn from(error: $error) -> Self {
                Self::$variant(error)
            }
        }
    )+};
}

from!(Config(ConfigError), Checkout(CheckoutError), Reply(ReplyError), PinExpired(PinExpired));

impl Error {
    /// What the server did with the commands of the call that gave this error.
    pub fn applied(&self) -> Applied {
        match self {
            Self::Config(_)
            | Self::Checkout(_)
            | Self::PinExpired(_)
            | Self::Refused { .. }
            | Self::TooLarge { .. }
            | Self::NoKeys
            | Self::ConditionFailed { .. }
            | Self::CrossSlot { .. }
            | Self::Unsupported { .. }
            | Self::RetriesExhausted { .. } => Applied::No,
            Self::Command { error, .. } if error.is_unrun() => Applied::No,
            Self::Command { .. } => Applied::Unknown,
            Self::Commit(error) => error.applied(),
            Self::Lock(error) => error.applied(),
            Self::Reply(_) => Applied::Yes,
            Self::Pipeline { applied, .. }
            | Self::Decode { applied, .. }
            | Self::Lost { applied, .. } => *applied,
        }
    }

    /// Whether the same call, unchanged, may succeed and cannot apply anything twice.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Checkout(error) => error.is_retryable(),
            Self::Commit(error) => error.is_retryable(),
            Self::Lock(error) => error.is_retryable(),
            Self::RetriesExhausted { .. } => true,
            Self::Command { error, .. } => {
                error.is_transient() && error.is_unrun() && !error.is_from_script()
            }
            Self::Config(_)
            | Self::PinExpired(_)
            | Self::Reply(_)
            | Self::Refused { .. }
            | Self::TooLarge { .. }
            | Self::NoKeys
            | Self::ConditionFailed { .. }
            | Self::CrossSlot { .. }
            | Self::Unsupported { .. }
            | Self::Pipeline { .. }
            | Self::Decode { .. } => false,
            // A reply that is too large is as large the next time.
            Self::Lost { applied, source, .. } => {
                *applied == Applied::No && source.kind() != ConnectionErrorKind::TooLarge
            }
        }
    }

    /// The commit's own error, where this is one.
    pub fn as_commit(&self) -> Option<&CommitError> {
        match self {
            Self::Commit(error) => Some(error),
            _ => None,
        }
    }

    /// The lock's own error, where this is one.
    pub fn as_lock(&self) -> Option<&LockError> {
        match self {
            Self::Lock(error) => Some(error),
            _ => None,
        }
    }

    /// With the server's sentence as it came, where `full` asks for it.
    pub(crate) fn in_full(self, full: bool) -> Self {
        match self {
            Self::Command { command, error } => {
                Self::Command { command, error: error.in_full(full) }
            }
            error => error,
        }
    }

    /// A command that was refused by name, where it was to be sent.
    pub(crate) fn refused(command: String, place: Place) -> Self {
        let hint = match (command.as_str(), place) {
            ("MULTI" | "EXEC" | "DISCARD", Place::Alone) => {
                "use the transactional handle: run(), begin(), savepoint()"
            }
            ("MULTI" | "EXEC" | "DISCARD", Place::InMulti) => {
                "the transaction sends it by itself: commit it, or drop it; undo a part of it with \
                 savepoint()"
            }
            ("WATCH" | "UNWATCH", Place::Alone) => {
                "use the transactional handle: watch(keys).run(..)"
            }
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
        };
        Self::Refused { command, hint }
    }
}

/// A checkout that failed under a commit stays what it is: no connection was given.
impl From<CommitError> for Error {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::NotSent { source } if matches!(*source, Self::Checkout(_)) => *source,
            error => Self::Commit(Box::new(error)),
        }
    }
}

/// No connection is no connection, whatever it was for.
impl From<LockError> for Error {
    fn from(error: LockError) -> Self {
        match error {
            LockError::Checkout(error) => Self::Checkout(error),
            error => Self::Lock(Box::new(error)),
        }
    }
}

/// How this crate's errors travel through `redis::Commands` on the pooled handle.
impl From<Error> for redis::RedisError {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Lost { source, .. } if source.kind() == ConnectionErrorKind::TimedOut => {
                std::io::ErrorKind::TimedOut
            }
            Error::Checkout(CheckoutError::Timeout(_)) => std::io::ErrorKind::TimedOut,
            _ => std::io::ErrorKind::Other,
        };
        std::io::Error::new(kind, error).into()
    }
}

/// And how they come back: our own as they were, the server's as [`Error::Command`] and
/// [`Error::Pipeline`].
impl From<redis::RedisError> for Error {
    fn from(error: redis::RedisError) -> Self {
        if let Some(own) = own_error(&error) {
            return own;
        }
        // A single command's error has a source, an aborted transaction's has a kind of its own.
        let aborted = redis::ErrorKind::Server(redis::ServerErrorKind::ExecAbort);
        if std::error::Error::source(&error).is_none()
            && error.kind() != aborted
            && let Some(failures) = error.clone().into_server_errors()
            && let Some((index, first)) = failures.first()
        {
            let (command, error, whole) =
                stamp::read(first.code(), first.details().unwrap_or_default());
            return Self::Pipeline {
                failures: failures.len(),
                index: *index,
                command: command.unwrap_or_else(|| "a command".to_owned()),
                error,
                applied: whole.unwrap_or(Applied::Unknown),
            };
        }
        let unnamed = || "the command".to_owned();
        if let Some(code) = error.code() {
            let (command, error, _) = stamp::read(code, error.detail().unwrap_or_default());
            return Self::Command { command: command.unwrap_or_else(unnamed), error };
        }
        if let Some(error) = ServerError::of(&error) {
            return Self::Command { command: unnamed(), error };
        }
        match error.kind() {
            redis::ErrorKind::UnexpectedReturnType | redis::ErrorKind::Parse => {
                let text = error.to_string();
                let (command, found, applied) =
                    recent::find(&text).unwrap_or((None, "a reply", Applied::Unknown));
                let command = command.unwrap_or_else(unnamed);
                let (expected, source) = ("the type that was asked for", DecodeError::of(&text));
                Self::Decode { command, expected, found, applied, source }
            }
            _ => Self::Lost {
                during: unnamed(),
                applied: Applied::Unknown,
                source: ConnectionError::of(&error),
            },
        }
    }
}

fn own_error(error: &redis::RedisError) -> Option<Error> {
    connection::io_of(error)?.get_ref()?.downcast_ref::<Error>().cloned()
}
