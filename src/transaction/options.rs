//! How a handle's transactions behave.
//!
//! Never: settings of the pool, which are the session manager's.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::commit::lock_check::LockCheck;
use crate::commit::options::{ClusterKeys, CommitOptions};
use crate::error::any::CommitError;
use crate::error::any::Error;
use crate::error::config::ConfigError;
use crate::error::in_doubt::ResolveCommit;
use crate::lock::guard::LockGuard;
use crate::protocol::idempotency_key::IdempotencyKey;
use crate::protocol::replication::Durability;
use crate::protocol::retry::RetryPolicy;
use crate::settings::settings::Settings;

/// When MULTI is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Begin {
    /// With the commands: one round trip on a connection that answered within `trust_window`, two
    /// on an older one. If a connection dies inside the window, the commit fails with
    /// [`NotSent`](crate::CommitError::NotSent) or
    /// [`InDoubt`](crate::CommitError::InDoubt).
    #[default]
    Deferred,
    /// At once, and answered before any command leaves. There is no window; it costs a round
    /// trip. A guard that then waits for longer than `trust_window` has MULTI answered anew when
    /// it commits, unless it watches or has sent a chunk ahead: then there is nothing left to ask
    /// with.
    Immediate,
}

/// How a handle's transactions behave. What is not set stays as it was on the handle.
///
/// ```no_run
/// use rediscope::{Begin, RetryPolicy, SessionManager, TransactionOptions};
///
/// # fn main() -> Result<(), rediscope::ConfigError> {
/// let sessions = SessionManager::connect("redis://127.0.0.1/")?;
/// let transfers = sessions.transactional().with(
///     TransactionOptions::new()
///         .name("transfer")
///         .begin(Begin::Immediate)
///         .retry(RetryPolicy::default().attempts(5)),
/// );
/// # Ok(()) }
/// ```
#[derive(Clone, Default)]
pub struct TransactionOptions {
    name: Option<Arc<str>>,
    begin: Option<Begin>,
    retry: Option<RetryPolicy>,
    exactly_once: Option<ExactlyOnce>,
    durability: Option<Durability>,
    lock_check: Option<LockCheck>,
    grouped: Option<bool>,
    take_turns: Option<bool>,
}

/// Upper bound of a timeout, so that `Instant + timeout` cannot overflow.
const MAX_REPLICATION_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// What a lost answer is made good by.
#[derive(Clone)]
enum ExactlyOnce {
    Marker,
    Keyed { key: Arc<[u8]>, ttl: Duration },
}

impl TransactionOptions {
    /// Nothing set: everything as the handle has it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Name of the scope in reports, warnings and spans. Default: none; it is identified by
    /// its place in the code.
    pub fn name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// When MULTI is sent. Default: [`Begin::Deferred`].
    pub fn begin(mut self, begin: Begin) -> Self {
        self.begin = Some(begin);
        self
    }

    /// How often `run`, `watch(..).run` and `require(..).run` try. Default: [`RetryPolicy::default`].
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = Some(policy);
        self
    }

    /// A lost answer can be asked for afterwards, and is: `run` and `watch(..).run` send the same
    /// block again where nothing was applied, and tell that it was where it was; a guard's
    /// [`InDoubt`](crate::InDoubt) can be [resolved](crate::InDoubt::resolve).
    ///
    /// Each connection keeps a register on the server for it
    /// ([`prefix`](crate::Builder::prefix),
    /// [`register_ttl`](crate::Builder::register_ttl)), which it watches and which each
    /// transaction writes. A connection that has no armed register arms it first, in one round
    /// trip more; from then on there is none more. Transactions that are not exactly once disarm
    /// the connection they use: keep the two kinds to session managers of their own where that
    /// matters.
    ///
    /// It is about a lost answer, not about lost data: see
    /// [`wait_replicas`](Self::wait_replicas). What it cannot tell is
    /// [`StillUnknown`](crate::Resolution::StillUnknown), which comes out as `InDoubt`.
    ///
    /// ```no_run
    /// # use rediscope::{SessionManager, TransactionOptions, prelude::*};
    /// # fn main() -> Result<(), rediscope::Error> {
    /// # let sessions = SessionManager::connect("redis://127.0.0.1/")?;
    /// let payments = sessions.transactional().with(TransactionOptions::new().exactly_once());
    /// let () = payments.run(|tx| {
    ///     tx.decr("balance:alice", 30);
    ///     tx.incr("balance:bob", 30);
    ///     Ok(())
    /// })?;
    /// # Ok(()) }
    /// ```
    pub fn exactly_once(mut self) -> Self {
        self.exactly_once = Some(ExactlyOnce::Marker);
        self
    }

    /// [`exactly_once`](Self::exactly_once) across calls and processes: of all transactions with
    /// this `key`, one is applied. The others commit nothing and answer
    /// [`AlreadyCommitted`](crate::CommitError::AlreadyCommitted). That is remembered for `ttl`, a
    /// hundred years at most: a longer one, up to [`Duration::MAX`], is taken for a hundred years.
    ///
    /// The key is written in the transaction, behind the caller's commands. If that fails, the
    /// transaction was applied and the error is
    /// [`KeyNotKept`](crate::CommitError::KeyNotKept).
    ///
    /// It costs a round trip, in which the key is watched and asked for. `key` is the caller's
    /// own name for the deed, such as a payment's number; an empty one, and a `ttl` under a
    /// millisecond, are refused as [`Error::Config`](crate::Error::Config) before anything is
    /// sent.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use rediscope::{CommitError, SessionManager, TransactionOptions, prelude::*};
    /// # fn main() -> Result<(), rediscope::Error> {
    /// # let sessions = SessionManager::connect("redis://127.0.0.1/")?;
    /// let day = Duration::from_secs(24 * 60 * 60);
    /// let once = TransactionOptions::new().exactly_once_as("payment:4711", day);
    /// let paid = sessions.transactional().with(once).run(|tx| Ok(tx.decr("balance:alice", 30)));
    /// match paid {
    ///     Ok(balance) => println!("paid, {balance} left"),
    ///     Err(error) if matches!(error.as_commit(), Some(CommitError::AlreadyCommitted)) => {
    ///         println!("was paid before");
    ///     }
    ///     Err(error) => return Err(error),
    /// }
    /// # Ok(()) }
    /// ```
    pub fn exactly_once_as(mut self, key: impl AsRef<[u8]>, ttl: Duration) -> Self {
        self.exactly_once = Some(ExactlyOnce::Keyed { key: key.as_ref().into(), ttl });
        self
    }

    /// The commit returns when `replicas` replicas have the transaction in memory, or after
    /// `timeout` (at least a millisecond) with
    /// [`NotReplicated`](crate::CommitError::NotReplicated), which says that it **was applied
    /// here**. The count is in [`Replies::acknowledged`](crate::Replies::acknowledged).
    ///
    /// Sent in the same write, behind EXEC; `timeout` is on top of `response_timeout`.
    ///
    /// Behind it: [`WAIT`](https://redis.io/docs/latest/commands/wait/).
    pub fn wait_replicas(mut self, replicas: u32, timeout: Duration) -> Self {
        self.durability =
            Some(Durability::Replicas { replicas, timeout: timeout.min(MAX_REPLICATION_TIMEOUT) });
        self
    }

    /// Like [`wait_replicas`](Self::wait_replicas), for disks: the server's own append-only file
    /// where `local` says so, and those of `replicas` replicas.
    ///
    /// Needs Redis 7.2 or Valkey; an older server is refused with
    /// [`Error::Unsupported`](crate::Error::Unsupported) before anything is sent. A server without
    /// an append-only file refuses `local` after it has applied the transaction: that is
    /// `NotReplicated` with the server's words.
    ///
    /// Behind it: [`WAITAOF`](https://redis.io/docs/latest/commands/waitaof/).
    pub fn wait_aof(mut self, local: bool, replicas: u32, timeout: Duration) -> Self {
        let timeout = timeout.min(MAX_REPLICATION_TIMEOUT);
        self.durability = Some(Durability::Aof { local, replicas, timeout });
        self
    }

    /// The transaction is applied only while `guard`'s lock is held; otherwise nothing is applied
    /// and the answer is [`LockLost`](crate::CommitError::LockLost). See
    /// [`Transactional::fenced_by`](crate::Transactional::fenced_by).
    pub fn fenced_by(mut self, guard: &LockGuard) -> Self {
        self.lock_check = Some(guard.lock_check());
        self
    }

    /// Blocks of `run` that find no free connection join a group: one of them leads, gets the next
    /// connection and sends the blocks that wait with him in one write, each its own MULTI…EXEC,
    /// as isolated as alone. It pays where many threads share few connections.
    ///
    /// Not the default, because one dead connection then puts all blocks of a group in doubt, up
    /// to [`max_group`](crate::Builder::max_group), instead of one.
    ///
    /// Blocks of small commands with small replies join; a block with a script, a range, a command
    /// given to `queue`, or more than 64 commands or 8 KiB goes alone, and so does every block
    /// that is exactly once, waits for replicas or begins at once.
    pub fn grouped(mut self) -> Self {
        self.grouped = Some(true);
        self
    }

    /// Whether blocks of `watch(..).run` take turns. Default: `true`.
    ///
    /// The blocks of one session manager that watch the same key are admitted a few at a time, first
    /// come first served. They wait without a connection, at most until the policy's deadline. With
    /// `false` all of them try at once: on a key that many blocks change, nearly all tries then end
    /// in a conflict. WATCH protects them either way.
    pub fn take_turns(mut self, take_turns: bool) -> Self {
        self.take_turns = Some(take_turns);
        self
    }

    /// These, overlaid by what `over` sets.
    pub(crate) fn overlaid(&self, over: Self) -> Self {
        Self {
            name: over.name.or_else(|| self.name.clone()),
            begin: over.begin.or(self.begin),
            retry: over.retry.or(self.retry),
            exactly_once: over.exactly_once.or_else(|| self.exactly_once.clone()),
            durability: over.durability.or(self.durability),
            lock_check: over.lock_check.or_else(|| self.lock_check.clone()),
            grouped: over.grouped.or(self.grouped),
            take_turns: over.take_turns.or(self.take_turns),
        }
    }

    pub(crate) fn scope_name(&self) -> Option<Arc<str>> {
        self.name.clone()
    }

    /// What they ask of a commit.
    pub(crate) fn commit_options(
        &self,
        resolver: &Arc<dyn ResolveCommit>,
        settings: &Settings,
    ) -> Result<CommitOptions, Error> {
        let idempotency_key = match &self.exactly_once {
            Some(ExactlyOnce::Keyed { key, .. }) if key.is_empty() => {
                return Err(
                    ConfigError::setting("exactly_once_as", "the key must not be empty").into()
                );
            }
            Some(ExactlyOnce::Keyed { ttl, .. }) if *ttl < Duration::from_millis(1) => {
                return Err(ConfigError::setting(
                    "exactly_once_as",
                    "ttl must be at least a millisecond",
                )
                .into());
            }
            Some(ExactlyOnce::Keyed { key, ttl }) => {
                Some(IdempotencyKey::new(&settings.prefix, key, *ttl))
            }
            Some(ExactlyOnce::Marker) | None => None,
        };
        if self.lock_check.as_ref().is_some_and(LockCheck::is_lost) {
            return Err(CommitError::LockLost.into());
        }
        Ok(CommitOptions {
            lock_check: self.lock_check.as_ref().map(LockCheck::with_renewal_paused),
            immediate: self.begin == Some(Begin::Immediate),
            resolver: self.exactly_once.as_ref().map(|_| Arc::clone(resolver)),
            idempotency_key,
            durability: self.durability,
            grouped: self.grouped == Some(true),
            cluster: ClusterKeys::default(),
        })
    }

    /// Where a cluster keeps the lock that it is fenced by.
    pub(crate) fn lock_slot(&self) -> Option<u16> {
        self.lock_check.as_ref().map(|lock_check| lock_check.lock.slot())
    }

    pub(crate) fn takes_turns(&self) -> bool {
        self.take_turns != Some(false)
    }

    pub(crate) fn policy(&self) -> RetryPolicy {
        self.retry.unwrap_or_default()
    }
}

impl fmt::Debug for TransactionOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransactionOptions")
            .field("name", &self.name)
            .field("begin", &self.begin)
            .field("retry", &self.retry)
            .field("exactly_once", &self.exactly_once.is_some())
            .field("fenced", &self.lock_check.is_some())
            .field("durability", &self.durability)
            .field("grouped", &self.grouped)
            .field("take_turns", &self.take_turns)
            .finish()
    }
}
