//! The options of a handle's transactions. The pool's settings belong to the session manager.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::commit::lock_check::LockCheck;
use crate::commit::plan::CommitPlan;
use crate::commit::wait_limit::WaitLimit;
use crate::error::any::{CommitError, Error};
use crate::error::config::ConfigError;
use crate::error::in_doubt::ResolveCommit;
use crate::lock::fencing::{FencingGuard, FencingLock};
use crate::protocol::idempotency_key::IdempotencyKey;
use crate::protocol::replication::Durability;
use crate::protocol::retry::RetryPolicy;
use crate::settings::settings::Settings;

/// When MULTI is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Begin {
    /// MULTI is sent together with the commands. A commit takes one round trip on a connection that
    /// replied within `trust_window`, and two on an older one. If a connection dies inside the
    /// window, the commit fails with [`NotSent`](crate::CommitError::NotSent) or
    /// [`InDoubt`](crate::CommitError::InDoubt).
    #[default]
    Deferred,
    /// MULTI is sent at once, and its reply is awaited before any command is sent. This costs a
    /// round trip, and there is no such window. If a guard then waits for longer than
    /// `trust_window`, its commit awaits a new reply to MULTI. A guard that watches, or that has
    /// sent a chunk ahead, cannot do this.
    Immediate,
}

/// The options of a handle's transactions. An option that is not set keeps the handle's value.
///
/// ```no_run
/// use rediscope::{Begin, RetryPolicy, SessionManager, TransactionOptions};
///
/// # fn main() -> Result<(), rediscope::error::ConfigError> {
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
    wait: WaitLimit,
}

/// Maximum of a timeout, so that `Instant + timeout` cannot overflow.
const MAX_REPLICATION_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// The way to resolve a commit in doubt.
#[derive(Clone)]
enum ExactlyOnce {
    Marker,
    Keyed { key: Arc<[u8]>, ttl: Duration },
}

impl TransactionOptions {
    /// Sets no option: each one keeps the handle's value.
    pub fn new() -> Self {
        Self::default()
    }

    /// Name of the scope in reports, warnings and spans. Default: none; the scope is identified by
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

    /// Retry policy of `run`, `watch(..).run` and `require(..).run`. Default:
    /// [`RetryPolicy::default`].
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = Some(policy);
        self
    }

    /// Resolves a commit in doubt: after a lost reply, the server has the proof whether the
    /// transaction was applied.
    ///
    /// If the block was not applied, `run` and `watch(..).run` send it again; if it was applied
    /// and the block returns values, they fail with [`Error::Reply`](crate::Error::Reply). A guard's [`InDoubt`](crate::error::InDoubt) can be
    /// [resolved](crate::error::InDoubt::resolve).
    ///
    /// Each connection keeps a register on the server for this ([`prefix`](crate::Builder::prefix),
    /// [`register_ttl`](crate::Builder::register_ttl)). The connection watches its register, and
    /// each transaction writes it. A connection without an armed register arms it first, in one
    /// additional round trip; later transactions need none. A transaction that is not exactly once
    /// disarms the connection that it uses. If that cost matters, use a session manager of its own
    /// for each kind.
    ///
    /// This option covers a lost reply, not lost data: see [`wait_replicas`](Self::wait_replicas).
    /// If the server has no proof, the resolution is
    /// [`StillUnknown`](crate::error::Resolution::StillUnknown), and the error is `InDoubt`.
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

    /// Like [`exactly_once`](Self::exactly_once), but across calls and processes: of all
    /// transactions with this `key`, one is applied. The others commit nothing and fail with
    /// [`AlreadyCommitted`](crate::CommitError::AlreadyCommitted). The server remembers the key for
    /// `ttl`, at most for a hundred years; a longer `ttl`, up to [`Duration::MAX`], counts as a
    /// hundred years.
    ///
    /// The key is written in the transaction, after the caller's commands. If that write fails, the
    /// transaction was applied and the error is [`KeyNotKept`](crate::CommitError::KeyNotKept). After
    /// [`PartlyApplied`](crate::CommitError::PartlyApplied) the key counts as used, also if every command
    /// failed: to run the block again, take another key.
    ///
    /// After [`InDoubt`](crate::CommitError::InDoubt), run the transaction again with the same key: it is
    /// applied once, or fails with `AlreadyCommitted`. With `require(..)` the key is looked at first, so a
    /// repeated call fails with `AlreadyCommitted` also if a condition no longer holds. The replies are not
    /// kept: to return them again, write a receipt in the same block and read it at `AlreadyCommitted`.
    ///
    /// The option costs a round trip, in which the key is watched and read. `key` is the caller's
    /// own name for the transaction, such as a payment's number. An empty key, or a `ttl` under a
    /// millisecond, fails with [`Error::Config`](crate::Error::Config) before anything is sent.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use rediscope::{CommitError, Error, SessionManager, TransactionOptions, prelude::*};
    /// # fn main() -> Result<(), Error> {
    /// # let sessions = SessionManager::connect("redis://127.0.0.1/")?;
    /// let day = Duration::from_secs(24 * 60 * 60);
    /// let once = TransactionOptions::new().exactly_once_as("payment:4711", day);
    /// let paid = sessions.transactional().with(once).run(|tx| Ok(tx.decr("balance:alice", 30)));
    /// match paid {
    ///     Ok(balance) => println!("paid, {balance} left"),
    ///     Err(Error::Commit(CommitError::AlreadyCommitted)) => println!("was paid before"),
    ///     Err(error) => return Err(error),
    /// }
    /// # Ok(()) }
    /// ```
    pub fn exactly_once_as(mut self, key: impl AsRef<[u8]>, ttl: Duration) -> Self {
        self.exactly_once = Some(ExactlyOnce::Keyed { key: key.as_ref().into(), ttl });
        self
    }

    /// Makes the commit wait until `replicas` replicas have the transaction in memory. After
    /// `timeout` (at least a millisecond) the commit fails with
    /// [`NotReplicated`](crate::CommitError::NotReplicated); the transaction **was applied** on the
    /// master. The count is in [`Replies::acknowledged`](crate::Replies::acknowledged).
    ///
    /// WAIT is sent in the same write, after EXEC; `timeout` adds to `response_timeout`.
    ///
    /// Behind it: [`WAIT`](https://redis.io/docs/latest/commands/wait/).
    pub fn wait_replicas(mut self, replicas: u32, timeout: Duration) -> Self {
        self.durability =
            Some(Durability::Replicas { replicas, timeout: timeout.min(MAX_REPLICATION_TIMEOUT) });
        self
    }

    /// Like [`wait_replicas`](Self::wait_replicas), but waits for disks: the server's own
    /// append-only file if `local` is true, and the append-only files of `replicas` replicas.
    ///
    /// This needs Redis 7.2 or Valkey; with an older server the commit fails with
    /// [`Error::Unsupported`](crate::Error::Unsupported) before anything is sent. A server without
    /// an append-only file refuses `local` after it has applied the transaction. The error is then
    /// `NotReplicated` with the server's text.
    ///
    /// Behind it: [`WAITAOF`](https://redis.io/docs/latest/commands/waitaof/).
    pub fn wait_aof(mut self, local: bool, replicas: u32, timeout: Duration) -> Self {
        let timeout = timeout.min(MAX_REPLICATION_TIMEOUT);
        self.durability = Some(Durability::Aof { local, replicas, timeout });
        self
    }

    /// Applies the transaction only while `guard`'s lock is held. Otherwise nothing is applied, and
    /// the commit fails with [`LockLost`](crate::CommitError::LockLost). See
    /// [`Transactional::fenced_by`](crate::Transactional::fenced_by). The guard may be one of threads
    /// or of tasks.
    pub fn fenced_by(mut self, guard: &impl FencingGuard) -> Self {
        let FencingLock(lock_check) = guard.fencing_lock();
        self.lock_check = Some(lock_check);
        self
    }

    /// Lets blocks of `run` that have to wait share a connection. One caller takes the connection and
    /// sends the waiting blocks with its own, as one MULTI…EXEC. Each block is as isolated as alone and
    /// has its own replies. A command that fails at run time concerns its own block. If the server
    /// rejects a command while it is queued, nothing is applied: its own block gets the rejection, and
    /// the others are sent again. This pays if many threads share few connections.
    ///
    /// At most [`max_leaders`](crate::Builder::max_leaders) connections carry groups at once, and
    /// blocks wait although another connection is free: fuller groups are faster.
    ///
    /// This is not the default: one dead connection then puts all blocks of a group in doubt, up to
    /// [`max_group`](crate::Builder::max_group), instead of one. Blocks that are
    /// [`exactly_once`](Self::exactly_once) share one write of the register, and their doubt is resolved
    /// once for all of them.
    ///
    /// Blocks of small commands with small replies join. A block goes alone if it has a script, a
    /// range or a command given to `queue`. So does a block of more than 64 commands or more than 8
    /// KiB, and every block that is fenced, exactly once by a key, waits for replicas or begins at
    /// once. In a cluster a group has the blocks of one slot.
    pub fn grouped(mut self) -> Self {
        self.grouped = Some(true);
        self
    }

    /// Whether blocks of `watch(..).run` take turns. Default: `true`.
    ///
    /// Once blocks of one session manager that change a watched key have met a conflict, those that watch
    /// it attempt one after another, in the order of arrival; one that another process has undone goes first
    /// again, eight times. They wait without a connection, for seven eighths of their policy's time or
    /// [`within`](Self::within), and then attempt without a turn. The turn of a closure that does nothing for
    /// `max_pin_time` ends, on tokio that of an attempt that takes longer. Turns end when a run of commits has not changed the key.
    ///
    /// A closure with its turn must not wait for a thread or task whose block waits for that turn. No turn is
    /// taken by a block of more than 8 keys, by `begin`, inside another block, or by a thread or task that has
    /// an open scope: beside many that take turns they may meet a conflict each time. So may blocks of another
    /// manager or process, because turns are one manager's. A closure's scope on tokio is known inside the
    /// closure, and not in a task that it spawns.
    ///
    /// With `false` no block is [merged](crate::Builder::max_merged), and all attempt at once: on a key that
    /// many blocks change, nearly all attempts then end in a conflict. WATCH protects them either way.
    pub fn take_turns(mut self, take_turns: bool) -> Self {
        self.take_turns = Some(take_turns);
        self
    }

    /// Options with this wait alone.
    pub(crate) fn waiting(wait: WaitLimit) -> Self {
        Self { wait, ..Self::default() }
    }

    /// Time that a call of these transactions waits for a connection, in place of
    /// [`checkout_timeout`](crate::Builder::checkout_timeout): longer or shorter. The check of a connection
    /// that was idle counts too, so a call with less time than a round trip may fail. A wait for a turn lasts no
    /// longer either.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use rediscope::{SessionManager, TransactionOptions, prelude::*};
    /// # fn main() -> Result<(), rediscope::Error> {
    /// # let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    /// let soon = TransactionOptions::new().within(Duration::from_millis(50));
    /// let hits = accounts.with(soon).run(|tx| Ok(tx.incr("hits", 1)))?;
    /// # Ok(()) }
    /// ```
    pub fn within(mut self, wait: Duration) -> Self {
        self.wait.within = Some(wait);
        self
    }

    /// Instant after which no call of these transactions waits for a connection or for its turn, and no
    /// further attempt begins. What was sent is not interrupted: a commit ends with its outcome, after
    /// `response_timeout` at the latest; a doubt of [`exactly_once`](Self::exactly_once) is looked up for
    /// at most `checkout_timeout` more. Default: none.
    pub fn deadline(mut self, deadline: Instant) -> Self {
        self.wait.until = Some(deadline);
        self
    }

    /// Returns these options, overlaid by those that `over` sets.
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
            wait: WaitLimit {
                within: over.wait.within.or(self.wait.within),
                until: over.wait.until.or(self.wait.until),
            },
        }
    }

    pub(crate) fn scope_name(&self) -> Option<Arc<str>> {
        self.name.clone()
    }

    /// Returns the plan of a commit that watches nothing of the caller's.
    pub(crate) fn commit_plan(
        &self,
        resolver: &Arc<dyn ResolveCommit>,
        settings: &Settings,
    ) -> Result<CommitPlan, Error> {
        let wrong = |reason| Err(ConfigError::setting("exactly_once_as", reason).into());
        let idempotency_key = match &self.exactly_once {
            Some(ExactlyOnce::Keyed { key, .. }) if key.is_empty() => {
                return wrong("the key must not be empty");
            }
            Some(ExactlyOnce::Keyed { ttl, .. }) if *ttl < Duration::from_millis(1) => {
                return wrong("ttl must be at least a millisecond");
            }
            Some(ExactlyOnce::Keyed { key, ttl }) => {
                Some(IdempotencyKey::new(&settings.prefix, key, *ttl))
            }
            Some(ExactlyOnce::Marker) | None => None,
        };
        if self.lock_check.as_ref().is_some_and(|lock_check| lock_check.probe.is_lost()) {
            return Err(CommitError::LockLost.into());
        }
        Ok(CommitPlan {
            lock_check: self.lock_check.as_ref().map(LockCheck::with_renewal_paused),
            immediate: self.begin == Some(Begin::Immediate),
            resolver: self.exactly_once.as_ref().map(|_| Arc::clone(resolver)),
            idempotency_key,
            durability: self.durability,
            grouped: self.grouped == Some(true),
            wait: self.wait,
            ..CommitPlan::default()
        })
    }

    /// Returns whether a block with these options is exactly once; `None`: the options are not for a
    /// block that shares a connection.
    #[cfg(feature = "tokio")]
    pub(crate) fn lane_block(&self) -> Option<bool> {
        let exactly_once = match self.exactly_once {
            Some(ExactlyOnce::Keyed { .. }) => return None,
            Some(ExactlyOnce::Marker) => true,
            None => false,
        };
        let own_connection = self.begin == Some(Begin::Immediate)
            || self.durability.is_some()
            || self.lock_check.is_some()
            || !self.wait.is_none();
        (!own_connection).then_some(exactly_once)
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
            .field("within", &self.wait.within)
            .field("deadline", &self.wait.until)
            .finish()
    }
}
