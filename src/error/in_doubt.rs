//! A transaction whose answer was lost, and what can still be found out about it.
//!
//! Never: a connection. What is kept is a name and a number.

use std::error::Error;
use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;
use std::time::Duration;

use crate::error::connection::ConnectionError;
use crate::protocol::marker::NoProof;
use crate::protocol::server_error::ServerError;
use crate::text::display;

/// EXEC was sent, and its answer was lost or proves nothing.
///
/// The connection was closed. The transaction may have been applied, may never be, or may be
/// applied after this value was made: EXEC can still stand in a socket's buffer.
///
/// An answer that proves nothing is an error that a proxy can give after EXEC ran
/// ([`cause`](Self::cause) has it), or one that does not fit what the commands were answered.
///
/// Where the transaction was [`exactly_once`](crate::TransactionOptions::exactly_once),
/// [`resolve`](Self::resolve) finds out; otherwise read your own data.
#[derive(Clone)]
pub struct InDoubt {
    source: ConnectionError,
    /// If EXEC ran, it may have run without one of the commands.
    incomplete: bool,
    resolvable: Option<Box<(CommitToken, Arc<dyn ResolveCommit>)>>,
}

/// Where a token can be resolved.
pub(crate) trait ResolveCommit:
    fmt::Debug + Send + Sync + UnwindSafe + RefUnwindSafe
{
    /// Asks the server; `None`: within the manager's own time.
    fn resolve(&self, token: &CommitToken, within: Option<Duration>) -> Resolution;
}

impl InDoubt {
    pub(crate) fn new(source: ConnectionError) -> Self {
        Self { source, incomplete: false, resolvable: None }
    }

    pub(crate) fn resolvable(
        source: ConnectionError,
        token: CommitToken,
        resolver: Arc<dyn ResolveCommit>,
    ) -> Self {
        Self { source, incomplete: false, resolvable: Some(Box::new((token, resolver))) }
    }

    /// If EXEC ran, it may have run without one of the commands.
    pub(crate) fn incomplete(mut self, incomplete: bool) -> Self {
        self.incomplete = incomplete;
        self
    }

    /// Whether EXEC, if it ran, may have run without one of the commands.
    pub(crate) fn is_incomplete(&self) -> bool {
        self.incomplete
    }

    /// How the connection failed, or what EXEC was answered: then its
    /// [`server_error`](ConnectionError::server_error) has the code.
    pub fn cause(&self) -> &ConnectionError {
        &self.source
    }

    /// Finds out what became of the transaction, within `checkout_timeout`.
    ///
    /// It asks on a connection of its own, which needs no place in a pool. The answer stands: once
    /// it was `Committed` or `NotCommitted`, an EXEC that arrives later changes nothing. It can be
    /// asked from any thread, by several at once, and again.
    ///
    /// Behind it: [`PEXPIRE`](https://redis.io/docs/latest/commands/pexpire/) and
    /// [`GET`](https://redis.io/docs/latest/commands/get/) on the connection's register.
    ///
    /// ```no_run
    /// # use rediscope::{CommitError, Resolution, SessionManager, TransactionOptions, prelude::*};
    /// # fn main() -> Result<(), rediscope::Error> {
    /// # let sessions = SessionManager::connect("redis://127.0.0.1/")?;
    /// let transfers = sessions.transactional().with(TransactionOptions::new().exactly_once());
    /// let mut tx = transfers.begin()?;
    /// tx.decr("balance:alice", 30);
    /// match tx.commit() {
    ///     Err(CommitError::InDoubt(doubt)) => match doubt.resolve() {
    ///         Resolution::Committed => println!("applied, its replies are lost"),
    ///         Resolution::NotCommitted => println!("not applied, and never will be"),
    ///         Resolution::StillUnknown { why } => println!("unknown: {why}"),
    ///     },
    ///     other => drop(other?),
    /// }
    /// # Ok(()) }
    /// ```
    pub fn resolve(&self) -> Resolution {
        self.ask(None)
    }

    /// Like [`resolve`](Self::resolve), for as long as `timeout`.
    pub fn resolve_within(&self, timeout: Duration) -> Resolution {
        self.ask(Some(timeout))
    }

    fn ask(&self, within: Option<Duration>) -> Resolution {
        match self.resolvable.as_deref() {
            Some((token, resolver)) => resolver.resolve(token, within),
            None => Resolution::StillUnknown { why: UnresolvedReason::NotExactlyOnce },
        }
    }

    /// What another thread, process or day needs to resolve it:
    /// [`SessionManager::resolve`](crate::SessionManager::resolve). `None` where the transaction
    /// was not exactly once.
    pub fn token(&self) -> Option<&CommitToken> {
        self.resolvable.as_deref().map(|(token, _)| token)
    }

    pub(crate) fn text(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let advice = self.advice();
        match self.source.server_error() {
            None => write!(f, "in doubt: EXEC was sent and its answer was lost; {advice}"),
            Some(_) => write!(f, "in doubt: EXEC's answer does not prove anything; {advice}"),
        }
    }

    fn advice(&self) -> &'static str {
        if self.resolvable.is_some() { "resolve() can tell" } else { "read your own data" }
    }
}

impl Error for InDoubt {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.source)
    }
}

display!(InDoubt, UnresolvedReason);

impl fmt::Debug for InDoubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InDoubt")
            .field("cause", &self.source)
            .field("token", &self.token())
            .finish_non_exhaustive()
    }
}

/// Names one exactly-once transaction, for [`SessionManager::resolve`](crate::SessionManager::resolve).
///
/// It holds no key or value of the transaction and needs no clock. A token that was changed, or made by
/// hand, is refused before anything is sent ([`UnresolvedReason::NotARegister`]): no other key than a
/// register is ever touched. It is worth asking for as long
/// as the register lives (`register_ttl`, an hour by default); later the answer is
/// [`StillUnknown`](Resolution::StillUnknown).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct CommitToken {
    /// The connection's register on the server.
    pub register: String,
    /// What the transaction writes into it.
    pub number: u64,
    /// The database.
    pub db: i64,
    /// The hash slot, in a cluster.
    pub slot: Option<u16>,
    /// The server that was asked, for a reader's eye.
    pub address: String,
}

impl CommitToken {
    pub(crate) fn new(register: &str, number: u64, db: i64, address: &str) -> Self {
        Self { register: register.to_owned(), number, db, slot: None, address: address.to_owned() }
    }
}

/// What became of a transaction that was in doubt.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "this is the answer"]
pub enum Resolution {
    /// EXEC was run. The replies are lost, and with them whether a command failed at run time
    /// while the others were applied. (If a command was refused while it was queued, but not by
    /// the server, EXEC ran without it. `run` and `watch(..).run` keep that an
    /// [`InDoubt`].)
    Committed,
    /// Nothing was applied, and nothing will be: an EXEC that arrives now is refused.
    NotCommitted,
    /// It cannot be told, now or for good.
    StillUnknown {
        /// Why not.
        why: UnresolvedReason,
    },
}

/// Why a doubt could not be resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnresolvedReason {
    /// The transaction left no register: it was not `exactly_once`.
    NotExactlyOnce,
    /// The server could not be asked in time. Ask again.
    Unreachable(ConnectionError),
    /// The server refused to answer. Ask again where this may pass.
    Refused(ServerError),
    /// There is no register: it expired, was evicted or flushed, did not survive a restart or a
    /// failover, or this is another server. That proves nothing.
    RegisterGone,
    /// The register holds what no connection of this crate's wrote, or what a later transaction
    /// did.
    RegisterForeign,
    /// The token cannot be one that a session manager with these settings has made: it names a key that
    /// is no register of this prefix, or the number, hash tag or slot do not fit. Nothing was sent. A token
    /// is to be resolved by a session manager with the `prefix` of the one that made it, of a
    /// cluster if that one was.
    #[non_exhaustive]
    NotARegister {
        /// What does not fit.
        reason: &'static str,
    },
    /// The session manager was made in another process, of which this one is a fork. Make a new one, and
    /// have it resolve the token.
    OtherProcess,
    /// The token is of another database than the session manager's.
    OtherDatabase {
        /// The token's.
        token: i64,
        /// The session manager's.
        here: i64,
    },
}

impl From<NoProof> for UnresolvedReason {
    fn from(reason: NoProof) -> Self {
        match reason {
            NoProof::Refused(error) => Self::Refused(error),
            NoProof::RegisterGone => Self::RegisterGone,
            NoProof::RegisterForeign => Self::RegisterForeign,
        }
    }
}

impl UnresolvedReason {
    fn text(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotExactlyOnce => {
                f.write_str("the transaction was not exactly once; read your own data")
            }
            Self::Unreachable(_) => f.write_str("the server could not be asked"),
            Self::Refused(error) => write!(f, "the server refused to answer: {error}"),
            Self::RegisterGone => f.write_str("the register is gone; read your own data"),
            Self::RegisterForeign => {
                f.write_str("the register holds something else; read your own data")
            }
            Self::NotARegister { reason, .. } => write!(
                f,
                "the token is not one of this session manager's, so nothing was sent: {reason}"
            ),
            Self::OtherProcess => f.write_str(
                "the session manager was made in another process, of which this one is a fork: \
                 resolve the token with a new one",
            ),
            Self::OtherDatabase { token, here } => {
                write!(f, "the token is of database {token}, and this session manager's is {here}")
            }
        }
    }
}

impl Error for UnresolvedReason {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Unreachable(error) => Some(error),
            _ => None,
        }
    }
}
