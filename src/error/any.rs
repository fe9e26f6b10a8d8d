//! Any error of this crate, and that of a commit. Each may be the cause of the other, so they share
//! a file.

use std::fmt;

use crate::error::applied::Applied;
use crate::error::checkout::CheckoutError;
use crate::error::config::ConfigError;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::error::in_doubt::InDoubt;
use crate::error::lock::{LockError, LostReason};
use crate::error::pin_expired::PinExpired;
use crate::protocol::command::keys::CrossSlot;
use crate::protocol::command::refused::SendContext;
use crate::protocol::command::refused::refusal_hint;
use crate::protocol::replication::ReplicaAcks;
use crate::protocol::server_error::ServerError;
use crate::reply::error::{DecodeError, ReplyError};
use crate::reply::replies::Replies;
use crate::text::{condition_label, count, display, unreadable};

display!(Error);

/// Any error of this crate.
///
/// ```
/// use rediscope::error::Applied;
/// use rediscope::Error;
///
/// fn report(error: &Error) -> &'static str {
///     match error.applied() {
///         Applied::No if error.is_retryable() => "nothing happened; try again",
///         Applied::No => "nothing happened",
///         Applied::Yes => "it happened, but its replies are lost",
///         Applied::Partly => "some of it happened: repair",
///         Applied::Unknown => "it may have happened: read your own data",
///     }
/// }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Error {
    /// A setting of the session manager or of a transaction cannot work; nothing was sent.
    Config(ConfigError),
    /// No connection was available.
    Checkout(CheckoutError),
    /// A transaction was not committed as a whole, as far as is known.
    Commit(CommitError),
    /// A transaction was applied, but one of its values cannot be returned.
    Reply(ReplyError),
    /// A lock was not acquired, or is no longer held.
    Lock(LockError),
    /// The scope was not used for `max_pin_time`.
    PinExpired(PinExpired),
    /// A command that would change a shared connection, end the scope or stop the server was
    /// refused before anything was sent.
    #[non_exhaustive]
    Refused {
        /// The command's name.
        command: String,
        /// The alternative to the command.
        hint: &'static str,
    },
    /// A transaction exceeded one of its limits; nothing of it was applied.
    #[non_exhaustive]
    TooLarge {
        /// The exceeded quantity: `commands` or `bytes`.
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
        /// The slot of the first key, or the slot that the transaction was begun for.
        bound: u16,
        /// The slot of another key.
        other: u16,
    },
    /// A value has no JSON form; nothing was sent. See `Json::encode` (feature `serde`).
    #[non_exhaustive]
    NotJson {
        /// The name of its type.
        type_name: &'static str,
    },
    /// `watch` was given no key.
    NoKeys,
    /// A watch has more keys than `max_watched_keys`; nothing was sent.
    #[non_exhaustive]
    TooManyKeys {
        /// Number of keys, those of its conditions included.
        keys: usize,
        /// The limit in force.
        limit: usize,
    },
    /// A required condition does not hold: the block was not run and nothing was applied. See
    /// [`Condition`](crate::Condition).
    #[non_exhaustive]
    ConditionFailed {
        /// Index of the first such condition, from 0 in the order of `require`.
        index: usize,
        /// The name of the function of [`Condition`](crate::Condition) that made it.
        kind: &'static str,
        /// Its own name, from [`Condition::named`](crate::Condition::named).
        name: Option<&'static str>,
    },
    /// Each permitted attempt ended in a conflict, because a watched key changed, or its closure asked for
    /// [another](crate::Watching::run_again).
    #[non_exhaustive]
    RetriesExhausted {
        /// Number of attempts.
        attempts: u32,
    },
    /// The server replied to a single command with an error. [`applied`](Self::applied) is `No` if
    /// the command only reads, or if the server returns this very text before any effect. Else it
    /// is `Unknown`. A script, a function or a module's command may have written before it failed.
    /// A proxy may reply for a server that ran the command. Of a command that goes to all masters of a
    /// cluster, a master's error is not `No` if another master may have applied it.
    #[non_exhaustive]
    Command {
        /// The command's name.
        command: String,
        /// The server's error.
        error: ServerError,
    },
    /// Commands of a pooled handle's pipeline failed; the others were applied.
    #[non_exhaustive]
    Pipeline {
        /// Number of failed commands.
        failures: usize,
        /// Index of the first one, from 0.
        index: usize,
        /// Its name.
        command: String,
        /// Its error.
        error: ServerError,
        /// `Partly` if another command wrote. `No` if none did and each error proves that its
        /// command had no effect. Else `Unknown`.
        applied: Applied,
    },
    /// A single command's reply is not of the requested type. The error of a user's own
    /// `FromRedisValue` is in `source()`.
    ///
    /// On the pooled handle redis-rs decodes the reply, and its error does not name the command.
    /// This crate finds the command by the value that the error shows, among the last eight replies
    /// of this thread.
    ///
    /// If it is not found, `applied` is `Unknown`. This happens if the error was converted on
    /// another thread or after many other commands, or is of another connection. It also happens if
    /// the error shows a value of more than 512 bytes, or 64 if they are not UTF-8. `applied` is
    /// also `Unknown` if a read and a write had the same reply. Of a pipeline it is the effect of all its
    /// commands, failed ones included.
    ///
    /// An error without a value (one of a user's own `FromRedisValue`) names the last command of
    /// this thread. Its `applied` is `No` if the last eight commands were all reads, `Yes` if they
    /// were all writes, else `Unknown`. Convert the error at once, on the thread of the call.
    #[non_exhaustive]
    Decode {
        /// The command's name; "the command" if it is not known.
        command: String,
        /// The requested Rust type.
        expected: &'static str,
        /// The kind of the reply.
        found: &'static str,
        /// `No` for a read, `Yes` for a write, `Partly` for a pipeline in which a command failed and another
        /// one wrote, `Unknown` if that is not known.
        applied: Applied,
        /// The error of the type's own decoding.
        source: Option<DecodeError>,
    },
    /// The server is too old for this command; nothing was sent.
    #[non_exhaustive]
    Unsupported {
        /// The command's name.
        command: &'static str,
        /// The first version with this command.
        since: &'static str,
    },
    /// The connection failed during a single command, a begin or a cleanup.
    #[non_exhaustive]
    Lost {
        /// The failed operation.
        during: String,
        /// Whether the server may have applied the operation.
        applied: Applied,
        /// The failure of the connection.
        source: ConnectionError,
    },
}

/// The known outcome of a transaction that did not simply commit.
///
/// | variant | what the server did |
/// |---|---|
/// | `Rejected` | nothing: it refused a command, or EXEC |
/// | `PartlyApplied` | ran it; at least one command failed, **the others were applied** |
/// | `NotSent` | nothing: the failure came before EXEC's last byte left |
/// | `InDoubt` | unknown: EXEC was sent, and no reply that proves anything came |
/// | `NotIsolated` | ran the commands one by one, without MULTI, or on a merged block's failed change |
/// | `NotReplicated` | ran it, **it was applied here**; too few others have it |
/// | `KeyNotKept` | ran it, **it was applied**; its key or register may not hold |
/// | `AlreadyCommitted` | nothing: an earlier transaction with this key was applied |
/// | `LockLost` | nothing: the lock that it was fenced by is no longer held |
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum CommitError {
    /// Nothing was applied: the server refused a command while it was queued, or refused EXEC.
    ///
    /// EXEC's own reply proves it: `EXECABORT`, or `MOVED`, `ASK`, `TRYAGAIN`, `CROSSSLOT`,
    /// `CLUSTERDOWN`; or EXEC never left. Any other error to EXEC is
    /// [`InDoubt`](Self::InDoubt): it may be a proxy's, sent after EXEC ran.
    #[non_exhaustive]
    Rejected {
        /// Index of the queued command, from 0; `None` if MULTI or EXEC itself was refused.
        index: Option<usize>,
        /// The command's name.
        command: String,
        /// The server's own code: READONLY stays READONLY.
        code: String,
        /// The server's text without keys and values.
        message: String,
    },
    /// EXEC ran and at least one command failed at run time. **The others were applied**: Redis
    /// does not undo them. Read each reply.
    ///
    /// If every command failed and no failure can have an effect, nothing was changed, and
    /// [`applied`](Self::applied) is [`No`](Applied::No). A failed script, function, module's command or
    /// MIGRATE can have an effect. The key of [`exactly_once_as`](crate::TransactionOptions::exactly_once_as)
    /// is kept, whatever failed: then it is [`Partly`](Applied::Partly).
    #[non_exhaustive]
    PartlyApplied {
        /// Every reply, the failed ones as [`ReplyError::Failed`].
        replies: Replies,
    },
    /// Nothing was applied, and nothing will be: the failure came before EXEC's last byte was sent,
    /// or the transaction was in doubt and is resolved as not applied.
    ///
    /// Without a connection the error is [`Error::Checkout`], and of a reclaimed scope
    /// [`Error::PinExpired`].
    #[non_exhaustive]
    NotSent {
        /// The cause.
        source: Box<Error>,
    },
    /// EXEC was sent, and its reply was lost or proves nothing. The transaction may have been
    /// applied, or may be applied later.
    InDoubt(InDoubt),
    /// MULTI was refused and the commands ran one by one, with others in between. An operator must
    /// act: the user lost the right to MULTI while connections were open.
    ///
    /// With [`max_merged`](crate::Builder::max_merged) also: EXEC ran, and a change of a watched key by a block
    /// before this one failed in it. So the closure ran on a value that never was.
    ///
    /// If each command was refused too, with texts that the server uses only before any effect, the
    /// error is [`Rejected`](Self::Rejected) instead. An error of a script, a function or a
    /// module's command is no such proof.
    #[non_exhaustive]
    NotIsolated {
        /// Every reply; a refused command as [`ReplyError::Failed`].
        replies: Replies,
    },
    /// The transaction **was applied here**, but too few replicas or disks had it in time:
    /// [`wait_replicas`](crate::TransactionOptions::wait_replicas),
    /// [`wait_aof`](crate::TransactionOptions::wait_aof). This undoes nothing. It may still be
    /// replicated; it may also be lost with this server.
    #[non_exhaustive]
    NotReplicated {
        /// The requested number.
        wanted: ReplicaAcks,
        /// The number that has it, as far as is known.
        got: ReplicaAcks,
        /// The server's error if it refused to wait.
        refused: Option<ServerError>,
        /// The transaction's replies.
        replies: Replies,
    },
    /// The transaction **was applied**, but a command that the library added failed. That command
    /// keeps the key of [`exactly_once_as`](crate::TransactionOptions::exactly_once_as), or writes
    /// the connection's register. A later transaction with the same key may be applied again. Do
    /// not run this one again.
    ///
    /// This happens, for example, if a command of the block removes the user's right to the key.
    #[non_exhaustive]
    KeyNotKept {
        /// The server's error for that command.
        error: ServerError,
        /// The transaction's replies.
        replies: Replies,
    },
    /// Nothing was applied by this call: a transaction with the same key
    /// ([`exactly_once_as`](crate::TransactionOptions::exactly_once_as)) was applied before, by
    /// this process or another.
    AlreadyCommitted,
    /// Nothing was applied: the guard no longer holds the lock that the transaction was [fenced
    /// by](crate::Transactional::fenced_by).
    LockLost,
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
            Self::NotJson { type_name } => {
                write!(f, "a {type_name} has a value without a JSON form; nothing was sent")
            }
            Self::TooManyKeys { keys, limit } => write!(
                f,
                "a watch of {keys} keys is more than max_watched_keys ({limit}), and nothing was sent: \
                 watch one key that every writer changes, such as a version, or raise the setting"
            ),
            Self::ConditionFailed { index, kind, name } => {
                let condition = condition_label(*index, kind, *name);
                write!(f, "condition {condition} does not hold; nothing was applied")
            }
            Self::RetriesExhausted { attempts: 1 } => f.write_str(
                "the only attempt ended in a conflict, or its closure asked for another; nothing \
                     was applied",
            ),
            Self::RetriesExhausted { attempts } => write!(
                f,
                "each of {attempts} attempts ended in a conflict, or its closure asked for another; \
                 nothing was applied"
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
                write!(f, "{command} returned {}", unreadable(found, expected))
            }
            Self::Unsupported { command, since } => {
                write!(f, "the server has no {command}, which came with {since}; nothing was sent")
            }
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

/// An error that becomes an [`Error`] by `?`. Public in a private module: other crates cannot
/// implement it, and the compiler names `run_with` for their errors.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot become a `rediscope::Error`",
    label = "cannot become a `rediscope::Error`; a closure with an error of its own is for \
             `run_with(|tx| -> Result<_, MyError> {{ … }})`"
)]
pub trait CrateError {
    /// Converts it.
    fn into_error(self) -> Error;
}

impl<E: CrateError> From<E> for Error {
    fn from(error: E) -> Self {
        error.into_error()
    }
}

macro_rules! crate_errors {
    ($($variant:ident($error:ty)),+) => {$(
        impl CrateError for $error {
            fn into_error(self) -> Error {
                Error::$variant(self)
            }
        }
    )+};
}

crate_errors! {
    Config(ConfigError), Checkout(CheckoutError), Reply(ReplyError), Lock(LockError),
    PinExpired(PinExpired)
}

/// The cause of a transaction that had no connection stays an error of its own.
impl CrateError for CommitError {
    fn into_error(self) -> Error {
        match self {
            Self::NotSent { source }
                if matches!(*source, Error::Checkout(_) | Error::PinExpired(_)) =>
            {
                *source
            }
            error => Error::Commit(error),
        }
    }
}

impl CrateError for CrossSlot {
    fn into_error(self) -> Error {
        let Self { command, bound, other } = self;
        Error::CrossSlot { command, bound, other }
    }
}

macro_rules! accessors {
    ($($(#[$doc:meta])* $name:ident: $variant:ident($error:ty);)+) => {
        impl Error {$(
            $(#[$doc])*
            pub fn $name(&self) -> Option<&$error> {
                match self {
                    Self::$variant(error) => Some(error),
                    _ => None,
                }
            }
        )+}
    };
}

accessors! {
    /// Returns the error of a commit, which has what the server did with the transaction.
    as_commit: Commit(CommitError);
    /// Returns the reason why a value of an **applied** transaction cannot be returned.
    as_reply: Reply(ReplyError);
    /// Returns the reason why no connection was available, with the holders of the others.
    as_checkout: Checkout(CheckoutError);
    /// Returns the reason why a lock was not acquired, or is no longer held.
    as_lock: Lock(LockError);
    /// Returns the setting that cannot work.
    as_config: Config(ConfigError);
}

impl Error {
    /// Returns what the server did with the commands of the failed call.
    pub fn applied(&self) -> Applied {
        match self {
            Self::Config(_)
            | Self::Checkout(_)
            | Self::PinExpired(_)
            | Self::Refused { .. }
            | Self::TooLarge { .. }
            | Self::NoKeys
            | Self::TooManyKeys { .. }
            | Self::NotJson { .. }
            | Self::ConditionFailed { .. }
            | Self::CrossSlot { .. }
            | Self::Unsupported { .. }
            | Self::RetriesExhausted { .. } => Applied::No,
            Self::Command { error, .. } if error.changed_nothing() => Applied::No,
            Self::Command { .. } => Applied::Unknown,
            Self::Commit(error) => error.applied(),
            Self::Lock(error) => error.applied(),
            Self::Reply(_) => Applied::Yes,
            Self::Pipeline { applied, .. }
            | Self::Decode { applied, .. }
            | Self::Lost { applied, .. } => *applied,
        }
    }

    /// Returns whether the same call, unchanged, may succeed and cannot apply anything twice.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Checkout(error) => error.is_retryable(),
            Self::Commit(error) => error.is_retryable(),
            Self::Lock(error) => error.is_retryable(),
            Self::RetriesExhausted { .. } => true,
            Self::Command { error, .. } => {
                error.is_transient() && error.changed_nothing() && !error.is_from_script()
            }
            Self::Config(_)
            | Self::PinExpired(_)
            | Self::Reply(_)
            | Self::Refused { .. }
            | Self::TooLarge { .. }
            | Self::NoKeys
            | Self::TooManyKeys { .. }
            | Self::NotJson { .. }
            | Self::ConditionFailed { .. }
            | Self::CrossSlot { .. }
            | Self::Unsupported { .. }
            | Self::Pipeline { .. }
            | Self::Decode { .. } => false,
            // The next reply would be as large.
            Self::Lost { applied, source, .. } => {
                *applied == Applied::No && source.kind() != ConnectionErrorKind::TooLarge
            }
        }
    }

    /// Returns the doubt of a commit whose reply was lost, to resolve it or to keep its token.
    ///
    /// ```no_run
    /// # use rediscope::error::Resolution;
    /// # use rediscope::{SessionManager, TransactionOptions, prelude::*};
    /// # fn main() -> Result<(), rediscope::Error> {
    /// # let sessions = SessionManager::connect("redis://127.0.0.1/")?;
    /// let transfers = sessions.transactional().with(TransactionOptions::new().exactly_once());
    /// if let Err(error) = transfers.run(|tx| Ok(tx.decr("balance:alice", 30))) {
    ///     match error.as_in_doubt().map(|doubt| doubt.resolve()) {
    ///         Some(Resolution::Committed) => println!("applied, its replies are lost"),
    ///         _ => return Err(error),
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    pub fn as_in_doubt(&self) -> Option<&InDoubt> {
        match self.as_commit()? {
            CommitError::InDoubt(doubt) => Some(doubt),
            _ => None,
        }
    }

    /// Returns the replies of a commit that was applied, at least in part: of `PartlyApplied`,
    /// `NotIsolated`, `NotReplicated` and `KeyNotKept`. They show what there is to repair.
    pub fn replies(&self) -> Option<&Replies> {
        match self.as_commit()? {
            CommitError::PartlyApplied { replies }
            | CommitError::NotIsolated { replies }
            | CommitError::NotReplicated { replies, .. }
            | CommitError::KeyNotKept { replies, .. } => Some(replies),
            _ => None,
        }
    }

    /// Returns the server's code (`WRONGTYPE`, `OOM`, `NOPERM`) if the server refused a command: the
    /// first one of several.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Commit(CommitError::NotSent { source }) => source.code(),
            Self::Commit(error) => error.code(),
            Self::Command { error, .. }
            | Self::Pipeline { error, .. }
            | Self::Reply(ReplyError::Failed { error, .. })
            | Self::Lock(LockError::Command { error, .. }) => Some(error.code()),
            _ => None,
        }
    }

    /// A lock's request that cannot work.
    pub(crate) fn lock_refused(setting: &'static str, reason: &'static str) -> Self {
        Self::Lock(LockError::Refused { setting, reason })
    }

    pub(crate) fn lock_lost(why: LostReason) -> Self {
        Self::Lock(LockError::Lost { why })
    }

    /// A command that is refused by its name.
    pub(crate) fn refused(command: String, place: SendContext) -> Self {
        let hint = refusal_hint(&command, place);
        Self::Refused { command, hint }
    }

    /// Shows the server's text as it was sent if `full`.
    pub(crate) fn with_full_text(self, full: bool) -> Self {
        match self {
            Self::Command { command, error } => {
                Self::Command { command, error: error.with_full_text(full) }
            }
            error => error,
        }
    }
}
