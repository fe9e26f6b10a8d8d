//! A transaction whose reply was lost, and how its outcome is found out.
//!
//! An `InDoubt` holds no connection, only a name and a number.

use std::error::Error;
use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
#[cfg(feature = "tokio")]
use std::pin::Pin;
use std::str::FromStr;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::error::connection::ConnectionError;
use crate::protocol::checksum::text_checksum;
use crate::protocol::marker::NoProof;
use crate::protocol::server_error::ServerError;
use crate::sync::cancel;
use crate::sync::fork_check::ForkCheck;
use crate::sync::lock;
use crate::text::display;

/// EXEC was sent, and its reply was lost or proves nothing.
///
/// The connection was closed. The transaction may have been applied, may never be, or may be
/// applied after this value was made: EXEC may still be in a socket's buffer.
///
/// A reply proves nothing if it does not fit the commands, or if it is an error that a proxy may
/// return after EXEC ran. [`cause`](Self::cause) has that error.
///
/// If the transaction was [`exactly_once`](crate::TransactionOptions::exactly_once),
/// [`resolve`](Self::resolve) finds out; otherwise read your own data. Such a value keeps the session
/// manager's pools open, also after the last handle was dropped.
#[derive(Clone)]
pub struct InDoubt {
    source: ConnectionError,
    /// If EXEC ran, it may have run without one of the commands.
    incomplete: bool,
    resolvable: Option<Box<Resolvable>>,
}

/// Minimum time that a caller needs for a query of its own, once it has waited for that of another one.
pub(crate) const MIN_QUERY_TIME: Duration = Duration::from_millis(10);

/// A token, and how it is resolved.
type Resolvable = (Arc<SharedToken>, Arc<dyn ResolveCommit>);

/// Resolves tokens: implemented by the part of the crate that has connections.
pub(crate) trait ResolveCommit:
    fmt::Debug + Send + Sync + UnwindSafe + RefUnwindSafe
{
    /// Maximum duration of a query without a time of its own.
    fn default_wait(&self) -> Duration;

    /// Asks the server; `None`: within the default timeout.
    fn resolve(&self, token: &CommitToken, within: Option<Duration>) -> Resolution;

    /// The same for a caller that is a task, within the default timeout; `None`: it blocks the thread.
    /// One query serves all callers that wait. Dropped before its end, the future may have asked.
    #[cfg(feature = "tokio")]
    fn resolve_async<'r>(
        &'r self,
        _token: &'r CommitToken,
    ) -> Option<Pin<Box<dyn Future<Output = Resolution> + Send + 'r>>> {
        None
    }
}

/// The token of the blocks that were sent as one transaction. It is resolved once for all of them.
#[derive(Debug)]
pub(crate) struct SharedToken {
    pub(crate) token: CommitToken,
    /// One caller that is a thread asks at a time.
    query: Mutex<Query>,
    changed: Condvar,
    process: ForkCheck,
}

#[derive(Debug, Default)]
struct Query {
    is_under_way: bool,
    /// The result, once it is final.
    resolved: Option<Resolution>,
    /// The result of the last query that was not final, and the time of its end.
    unknown: Option<(Instant, Resolution)>,
}

impl From<CommitToken> for Arc<SharedToken> {
    fn from(token: CommitToken) -> Self {
        let (query, changed, process) = (Mutex::default(), Condvar::new(), ForkCheck::here());
        Arc::new(SharedToken { token, query, changed, process })
    }
}

impl PartialEq for SharedToken {
    fn eq(&self, other: &Self) -> bool {
        self.token == other.token
    }
}

impl SharedToken {
    /// Asks the server, unless another block's caller has. Both have one time.
    fn resolve(&self, resolver: &dyn ResolveCommit) -> Resolution {
        if self.process.is_other_process() {
            return Resolution::StillUnknown { why: UnresolvedReason::OtherProcess };
        }
        let begun = Instant::now();
        let deadline = begun + resolver.default_wait();
        let mut query = lock(&self.query);
        while query.is_under_way && query.resolved.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            if cancel::is_cancelled() {
                return Resolution::StillUnknown { why: UnresolvedReason::Cancelled };
            }
            let woken = self.changed.wait_timeout(query, cancel::tick(left));
            query = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        if let Some(resolution) = &query.resolved {
            return resolution.clone();
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left < MIN_QUERY_TIME && begun.elapsed() >= MIN_QUERY_TIME {
            let unknown = query.unknown.as_ref().filter(|(ended, _)| *ended >= begun);
            return unknown.map_or_else(not_resolved_in_time, |(_, resolution)| resolution.clone());
        }
        query.is_under_way = true;
        drop(query);
        // Another caller asks if this one panics.
        let ends = scopeguard::guard((), |()| {
            lock(&self.query).is_under_way = false;
            self.changed.notify_all();
        });
        let resolution = resolver.resolve(&self.token, Some(left));
        self.record(&resolution);
        drop(ends);
        resolution
    }

    fn record(&self, resolution: &Resolution) {
        let mut query = lock(&self.query);
        match resolution {
            Resolution::StillUnknown { .. } => {
                query.unknown = Some((Instant::now(), resolution.clone()));
            }
            _ => query.resolved = Some(resolution.clone()),
        }
    }

    /// The same for a caller that is a task. Dropped before its end, the future may have asked.
    #[cfg(feature = "tokio")]
    async fn resolve_async(&self, resolver: &dyn ResolveCommit) -> Resolution {
        if self.process.is_other_process() {
            return Resolution::StillUnknown { why: UnresolvedReason::OtherProcess };
        }
        let resolved = lock(&self.query).resolved.clone();
        if let Some(resolution) = resolved {
            return resolution;
        }
        let Some(resolution) = resolver.resolve_async(&self.token) else {
            return self.resolve(resolver);
        };
        let resolution = resolution.await;
        self.record(&resolution);
        resolution
    }
}

/// The result of a call for which another one asked, without a result in time.
fn not_resolved_in_time() -> Resolution {
    let why = ConnectionError::timed_out("the query of another caller had no result in time");
    Resolution::StillUnknown { why: UnresolvedReason::Unreachable(why) }
}

impl InDoubt {
    pub(crate) fn new(source: ConnectionError) -> Self {
        Self { source, incomplete: false, resolvable: None }
    }

    pub(crate) fn resolvable(
        source: ConnectionError,
        token: impl Into<Arc<SharedToken>>,
        resolver: Arc<dyn ResolveCommit>,
    ) -> Self {
        Self { source, incomplete: false, resolvable: Some(Box::new((token.into(), resolver))) }
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

    /// Returns the failure of the connection. If EXEC's reply was an error,
    /// [`server_error`](ConnectionError::server_error) has its code.
    pub fn cause(&self) -> &ConnectionError {
        &self.source
    }

    /// Finds out within `checkout_timeout` whether the transaction was applied. For another timeout
    /// give the [`token`](Self::token) to
    /// [`SessionManager::resolve`](crate::SessionManager::resolve).
    ///
    /// For a transaction of `rediscope::aio` this returns
    /// [`StillUnknown`](Resolution::StillUnknown) at once, with
    /// [`UnresolvedReason::MustBeAwaited`]: it would block the runtime. `resolve_async` asks.
    ///
    /// This uses a connection of its own, outside the pool. The result is final: after `Committed`
    /// or `NotCommitted`, an EXEC that arrives later changes nothing. It can be called from any
    /// thread, concurrently and again.
    ///
    /// Behind it: [`PEXPIRE`](https://redis.io/docs/latest/commands/pexpire/) and
    /// [`GET`](https://redis.io/docs/latest/commands/get/) on the connection's register.
    ///
    /// ```no_run
    /// # use rediscope::error::Resolution;
    /// # use rediscope::{CommitError, Error, SessionManager, TransactionOptions, prelude::*};
    /// # fn main() -> Result<(), Error> {
    /// # let sessions = SessionManager::connect("redis://127.0.0.1/")?;
    /// let transfers = sessions.transactional().with(TransactionOptions::new().exactly_once());
    /// let mut tx = transfers.begin()?;
    /// tx.decr("balance:alice", 30);
    /// match tx.commit() {
    ///     Err(Error::Commit(CommitError::InDoubt(doubt))) => match doubt.resolve() {
    ///         Resolution::Committed => println!("applied, its replies are lost"),
    ///         Resolution::NotCommitted => println!("not applied, and never will be"),
    ///         Resolution::StillUnknown { why } => println!("unknown: {why}"),
    ///     },
    ///     other => drop(other?),
    /// }
    /// # Ok(()) }
    /// ```
    pub fn resolve(&self) -> Resolution {
        match self.resolvable.as_deref() {
            Some((shared, resolver)) => shared.resolve(&**resolver),
            None => Resolution::StillUnknown { why: UnresolvedReason::NotExactlyOnce },
        }
    }

    /// As [`resolve`](Self::resolve), for a caller that is a task of tokio. If the future is dropped,
    /// the transaction can be resolved again.
    ///
    /// A value that a blocking [`SessionManager`](crate::SessionManager) returned is resolved when the
    /// future is first polled, which blocks the thread.
    ///
    /// ```no_run
    /// # use rediscope::error::{InDoubt, Resolution};
    /// # async fn example(doubt: InDoubt) {
    /// if let Resolution::NotCommitted = doubt.resolve_async().await {
    ///     println!("not applied, and never will be");
    /// }
    /// # }
    /// ```
    #[cfg(feature = "tokio")]
    pub async fn resolve_async(&self) -> Resolution {
        match self.resolvable.as_deref() {
            Some((shared, resolver)) => shared.resolve_async(&**resolver).await,
            None => Resolution::StillUnknown { why: UnresolvedReason::NotExactlyOnce },
        }
    }

    /// Returns the token with which another thread, process or a later run resolves the
    /// transaction: [`SessionManager::resolve`](crate::SessionManager::resolve). `None` if the
    /// transaction was not exactly once.
    pub fn token(&self) -> Option<&CommitToken> {
        self.resolvable.as_deref().map(|(shared, _)| &shared.token)
    }

    pub(crate) fn text(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let advice = self.advice();
        match self.source.server_error() {
            None => write!(f, "in doubt: EXEC was sent and its reply was lost; {advice}"),
            Some(_) => write!(f, "in doubt: EXEC's reply proves nothing; {advice}"),
        }
    }

    fn advice(&self) -> &'static str {
        if self.resolvable.is_some() {
            "call resolve(), in a task resolve_async()"
        } else {
            "read your own data"
        }
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

/// Names one exactly-once transaction, for
/// [`SessionManager::resolve`](crate::SessionManager::resolve).
///
/// It is written down by `Display` and read again by `FromStr`, as one word without spaces
/// (`number.db.slot.register.address.checksum`); with the feature `serde`, also by serde. White space
/// around the word is ignored. A word that was changed is an error.
///
/// A token contains no key or value of the transaction and needs no clock. A token whose key is no
/// register of the session manager's prefix is rejected before anything is sent
/// ([`UnresolvedReason::NotARegister`]): no key other than a register is ever touched. The fields are
/// not checked otherwise. Do not change them: with another `number`, the result is that of another
/// transaction of the same connection. A token can be resolved as long as the register lives
/// (`register_ttl`, an hour by default); later the result is
/// [`StillUnknown`](Resolution::StillUnknown).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct CommitToken {
    /// The connection's register on the server.
    pub register: String,
    /// The number that the transaction writes into it.
    pub number: u64,
    /// The database.
    pub db: i64,
    /// The hash slot, in a cluster.
    pub slot: Option<u16>,
    /// The server's address, for a reader.
    pub address: String,
}

impl CommitToken {
    pub(crate) fn new(register: &str, number: u64, db: i64, address: &str) -> Self {
        Self { register: register.to_owned(), number, db, slot: None, address: address.to_owned() }
    }
}

/// `number.db.slot.register.address.checksum`, with `-` for no slot. In register and address every
/// character except letters and digits is percent-encoded, so a dot only separates parts. The checksum
/// is of what is before its dot.
impl fmt::Display for CommitToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { register, number, db, slot, address } = self;
        let encoded = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
        let slot = slot.map_or_else(|| "-".to_owned(), |slot| slot.to_string());
        let fields = format!("{number}.{db}.{slot}.{}.{}", encoded(register), encoded(address));
        write!(f, "{fields}.{}", text_checksum(&fields))
    }
}

impl FromStr for CommitToken {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        parse_token(text.trim()).ok_or(InvalidToken(()))
    }
}

fn parse_token(text: &str) -> Option<CommitToken> {
    let (fields, checksum) = text.rsplit_once('.')?;
    if checksum != text_checksum(fields) {
        return None;
    }
    let parts: Vec<_> = fields.split('.').collect();
    let [number, db, slot, register, address] = parts.as_slice() else { return None };
    let decoded = |text| Some(percent_decode_str(text).decode_utf8().ok()?.into_owned());
    Some(CommitToken {
        register: decoded(register)?,
        number: number.parse().ok()?,
        db: db.parse().ok()?,
        slot: if *slot == "-" { None } else { Some(slot.parse().ok()?) },
        address: decoded(address)?,
    })
}

/// A text that is no [`CommitToken`], or was changed. The text is not repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error(
    "not a commit token, or a changed one; it has the form \
     number.db.slot.register.address.checksum, as Display writes it"
)]
pub struct InvalidToken(());

/// The outcome of a transaction that was in doubt.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "it is the outcome"]
pub enum Resolution {
    /// EXEC ran. The replies are lost, and with them whether a command failed at run time while the
    /// others were applied. (If a command was rejected while it was queued, but not by the server,
    /// EXEC ran without it. `run` and `watch(..).run` return that as an [`InDoubt`].)
    Committed,
    /// Nothing was applied, and nothing will be: an EXEC that arrives now is rejected.
    NotCommitted,
    /// Not known, now or for good.
    StillUnknown {
        /// The reason.
        why: UnresolvedReason,
    },
}

/// The reason why a commit in doubt could not be resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnresolvedReason {
    /// The transaction left no register: it was not `exactly_once`.
    NotExactlyOnce,
    /// The server could not be reached in time. Retry.
    Unreachable(ConnectionError),
    /// The server refused the query. Retry if the error may pass.
    Refused(ServerError),
    /// There is no register: it expired, was evicted or flushed, did not survive a restart or a
    /// failover, or this is another server. This proves nothing.
    RegisterGone,
    /// The register holds a value that this crate does not write, or that of a later transaction.
    RegisterForeign,
    /// The token does not fit a session manager with these settings: it names a key that is no
    /// register of this prefix, or the hash tag or slot do not fit, or the number is 0. Nothing was sent.
    /// Resolve a token with the `prefix` of the session manager that made it, and with a cluster if
    /// that used one.
    #[non_exhaustive]
    NotARegister {
        /// The part that does not fit.
        reason: &'static str,
    },
    /// The block may still be sent, for the first time or again: its
    /// [`Submitted`](crate::aio::Submitted) future is alive. (Feature `tokio`.)
    #[cfg(feature = "tokio")]
    NotSentYet,
    /// The transaction was one of `rediscope::aio`, whose connections cannot be used without a wait.
    /// Await `resolve_async`, or `resolve` of its session manager. Nothing was sent.
    MustBeAwaited,
    /// The session manager was made in another process, and this one is a fork of it. Make a new
    /// one, and resolve the token with it.
    OtherProcess,
    /// The call's wait was ended by [`Cancel`](crate::Cancel). The token can be resolved again.
    Cancelled,
    /// The token is of another database than the session manager's.
    #[non_exhaustive]
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
            Self::Unreachable(_) => f.write_str("the server could not be reached"),
            Self::Refused(error) => write!(f, "the server refused the query: {error}"),
            Self::RegisterGone => f.write_str("the register is gone; read your own data"),
            Self::RegisterForeign => {
                f.write_str("the register holds another value; read your own data")
            }
            Self::NotARegister { reason, .. } => write!(
                f,
                "the token is not one of this session manager's, so nothing was sent: {reason}"
            ),
            #[cfg(feature = "tokio")]
            Self::NotSentYet => f.write_str("the block's future is alive, and may send it"),
            Self::MustBeAwaited => {
                f.write_str("a session manager of tasks asks the server: await resolve_async()")
            }
            Self::OtherProcess => f.write_str(
                "the session manager was made in another process, of which this one is a fork: \
                 resolve the token with a new one",
            ),
            Self::Cancelled => f.write_str("the wait was cancelled; resolve the token again"),
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    /// Its queries end when they may.
    #[derive(Debug, Default)]
    struct Slow {
        queries: AtomicUsize,
        may_end: (Mutex<bool>, Condvar),
    }

    impl ResolveCommit for Slow {
        fn default_wait(&self) -> Duration {
            Duration::from_millis(50)
        }

        fn resolve(&self, _: &CommitToken, _: Option<Duration>) -> Resolution {
            self.queries.fetch_add(1, Ordering::SeqCst);
            let (may_end, changed) = &self.may_end;
            let most = Duration::from_secs(20);
            drop(changed.wait_timeout_while(lock(may_end), most, |may_end| !*may_end));
            Resolution::Committed
        }
    }

    #[test]
    fn a_caller_that_has_waited_for_the_query_of_another_one_begins_none_past_its_time() {
        let token = CommitToken::new("rediscope:reg:1", 1, 0, "nowhere");
        let (shared, slow) = (Arc::<SharedToken>::from(token), Slow::default());
        thread::scope(|scope| {
            let first = scope.spawn(|| shared.resolve(&slow));
            while slow.queries.load(Ordering::SeqCst) == 0 {
                thread::yield_now();
            }
            let second = shared.resolve(&slow);
            *lock(&slow.may_end.0) = true;
            slow.may_end.1.notify_all();
            assert_eq!(second, not_resolved_in_time());
            assert_eq!(first.join().unwrap(), Resolution::Committed);
            assert_eq!(shared.resolve(&slow), Resolution::Committed);
            assert_eq!(slow.queries.load(Ordering::SeqCst), 1);
        });
    }
}
