//! What a session manager tells of itself: open scopes, counters, one readable report.
//!
//! Never: a key, a value or a password. Never: a lock that a command waits for.

pub(crate) mod node;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::open_scope::OpenScope;
use crate::status::node::NodeStatus;

/// Why a connection was closed and replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseReason {
    /// The other side had closed it.
    Closed,
    /// It did not answer in time.
    TimedOut,
    /// What it answered was not the protocol, or could not stand where it came.
    Protocol,
    /// It had been left in a state that only closing is sure to end.
    LeftDirty,
    /// Its scope was forgotten, stuck or unused for `max_pin_time`.
    Reclaimed,
    /// It was handed out raw.
    Raw,
    /// It reached `max_lifetime`.
    Lifetime,
    /// It belonged to a server, or a time, that is known to be gone.
    Outdated,
}

impl CloseReason {
    const ALL: [Self; 8] = [
        Self::Closed,
        Self::TimedOut,
        Self::Protocol,
        Self::LeftDirty,
        Self::Reclaimed,
        Self::Raw,
        Self::Lifetime,
        Self::Outdated,
    ];

    /// One word for a report.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::TimedOut => "timed out",
            Self::Protocol => "protocol",
            Self::LeftDirty => "left dirty",
            Self::Reclaimed => "reclaimed",
            Self::Raw => "raw",
            Self::Lifetime => "lifetime",
            Self::Outdated => "outdated",
        }
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident: $label:literal,)+) => {
        /// Counts since the session manager was built.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)+
            replaced: [Counter; CloseReason::ALL.len()],
        }

        /// Counts since the session manager was built.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct PoolCounters {
            $($(#[$doc])* pub $name: u64,)+
            /// Connections that were closed and replaced, by reason.
            pub replaced: Vec<(CloseReason, u64)>,
        }

        impl Counters {
            pub(crate) fn counts(&self) -> PoolCounters {
                PoolCounters {
                    $($name: self.$name.get(),)+
                    replaced: CloseReason::ALL
                        .into_iter()
                        .zip(self.replaced.iter().map(Counter::get))
                        .filter(|(_, count)| *count > 0)
                        .collect(),
                }
            }
        }

        impl fmt::Display for PoolCounters {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                $(write!(f, "{} {}, ", self.$name, $label)?;)+
                write!(f, "{} replaced", self.all_replaced())?;
                for (nth, (reason, count)) in self.replaced.iter().enumerate() {
                    let before = if nth == 0 { " (" } else { ", " };
                    write!(f, "{before}{count} {}", reason.as_str())?;
                }
                if self.replaced.is_empty() { Ok(()) } else { f.write_str(")") }
            }
        }
    };
}

counters! {
    /// Connections handed out, to scopes and to single commands.
    checkouts: "checkouts",
    /// Transactions that were committed, those with a failed command included.
    commits: "commits",
    /// Transactions that a watched key's change undid.
    conflicts: "conflicts",
    /// Transactions that were dropped, discarded or abandoned.
    discards: "discards",
    /// Blocks that were sent or run again.
    retries: "retries",
    /// Transactions whose answer was lost.
    in_doubt: "in doubt",
    /// Doubts that were resolved: the transaction was applied.
    resolved_committed: "resolved as committed",
    /// Doubts that were resolved: the transaction was not applied, and never will be.
    resolved_not_committed: "resolved as not committed",
    /// Doubts that were asked about and could not be resolved.
    unresolved: "unresolved",
    /// Checkouts that were answered with an error.
    refused: "checkouts refused",
    /// Connections that were opened.
    connects: "connects",
    /// Tries to connect that failed.
    connect_failures: "failed connects",
    /// Connections that said anew who they are, because their credentials had changed.
    reauthentications: "re-authentications",
}

impl PoolCounters {
    /// All connections that were closed and replaced.
    pub fn all_replaced(&self) -> u64 {
        self.replaced.iter().map(|(_, count)| count).sum()
    }
}

impl Counters {
    pub(crate) fn replaced(&self, reason: CloseReason) {
        let at = CloseReason::ALL.iter().position(|known| *known == reason);
        if let Some(counter) = at.and_then(|at| self.replaced.get(at)) {
            counter.add();
        }
    }
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One pool: what it holds now, who holds it, and what it has done.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PoolStatus {
    /// Which pool: `pooled` or `transactional`.
    pub name: &'static str,
    /// Connections that are open.
    pub size: u32,
    /// The most there may be.
    pub max_size: u32,
    /// Connections that are checked out.
    pub in_use: u32,
    /// Connections that are open and idle.
    pub idle: u32,
    /// Calls that wait for a connection.
    pub waiting: usize,
    /// Counts since the session manager was built.
    pub counts: PoolCounters,
    /// The open scopes, oldest first.
    pub scopes: Vec<OpenScope>,
    /// The last failure to connect, until a connect succeeds.
    pub last_connect_error: Option<crate::error::connection::ConnectionError>,
    /// In a cluster: the part of each node. The rest of this is their sum.
    pub nodes: Vec<NodeStatus>,
    /// In a cluster: calls and transactions that a node sent on to another one, or asked to come
    /// back.
    pub redirections: u64,
}

impl PoolStatus {
    /// Of a pool that is not this process's.
    pub(crate) fn none(name: &'static str) -> Self {
        Self {
            name,
            size: 0,
            max_size: 0,
            in_use: 0,
            idle: 0,
            waiting: 0,
            counts: PoolCounters::default(),
            scopes: Vec::new(),
            last_connect_error: None,
            nodes: Vec::new(),
            redirections: 0,
        }
    }
}

/// The locks of a session manager: what they hold now, and what they have done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockStatus {
    /// Locks that are held.
    pub held: u64,
    /// Calls that wait for a lock.
    pub waiting: usize,
    /// Locks whose releases are listened for.
    pub subscriptions: usize,
    /// Wake-ups that a waiting call has been given and has not acted on.
    pub permits: usize,
    /// Locks that were acquired.
    pub acquired: u64,
    /// Calls that waited in vain.
    pub timeouts: u64,
    /// Leases that were extended.
    pub renewals: u64,
    /// Locks that were lost.
    pub lost: u64,
}

impl fmt::Display for LockStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "locks: {} held, {} waiting, {} subscriptions, {} permits out\n  {} acquired, \
             {} timeouts, {} renewals, {} lost",
            self.held,
            self.waiting,
            self.subscriptions,
            self.permits,
            self.acquired,
            self.timeouts,
            self.renewals,
            self.lost
        )
    }
}

/// What is counted of locks.
#[derive(Debug, Default)]
pub(crate) struct LockCounters {
    pub(crate) held: Gauge,
    pub(crate) acquired: Counter,
    pub(crate) timeouts: Counter,
    pub(crate) renewals: Counter,
    pub(crate) lost: Counter,
}

impl LockCounters {
    pub(crate) fn status(
        &self,
        waiting: usize,
        subscriptions: usize,
        permits: usize,
    ) -> LockStatus {
        LockStatus {
            held: self.held.0.load(Ordering::Relaxed),
            waiting,
            subscriptions,
            permits,
            acquired: self.acquired.get(),
            timeouts: self.timeouts.get(),
            renewals: self.renewals.get(),
            lost: self.lost.get(),
        }
    }
}

/// How many there are of something.
#[derive(Debug, Default)]
pub(crate) struct Gauge(AtomicU64);

impl Gauge {
    pub(crate) fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn decrement(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A session manager's state. Its `Display` is one report for an incident.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Status {
    /// The server's address, without user and password.
    pub server: String,
    /// The pool behind the pooled handles.
    pub pooled: PoolStatus,
    /// The pool behind the transactional handles.
    pub transactional: PoolStatus,
    /// The pool behind the handles that read from replicas, once there is one (feature `sentinel`).
    pub replicas: Option<PoolStatus>,
    /// The locks.
    pub locks: LockStatus,
}

/// What was still open when [`SessionManager::close`](crate::SessionManager::close) returned.
///
/// ```
/// use rediscope::Closed;
///
/// assert_eq!(Closed::default().to_string(), "0 scopes, 0 locks");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Closed {
    /// Scopes that were open when the timeout was over, and whose connections were taken back.
    pub scopes: usize,
    /// Locks whose guards were alive when the timeout was over. None of them was released: the
    /// holder may be at work. They are not extended any more, their guards are lost
    /// ([`on_lost`](crate::LockGuard::on_lost)) before their leases end, and until then a guard that
    /// is dropped or released gives its lock back as before.
    pub locks: usize,
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ending = |count: usize| if count == 1 { "" } else { "s" };
        let Self { scopes, locks } = self;
        write!(f, "{scopes} scope{}, {locks} lock{}", ending(*scopes), ending(*locks))
    }
}

impl fmt::Display for PoolStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {} of {} open, {} in use, {} idle, {} waiting",
            self.name, self.size, self.max_size, self.in_use, self.idle, self.waiting
        )?;
        write!(f, "  {}", self.counts)?;
        if let Some(error) = &self.last_connect_error {
            write!(f, "\n  last failure to connect: {error}")?;
        }
        if !self.nodes.is_empty() {
            write!(f, "\n  {} redirections", self.redirections)?;
        }
        for node in &self.nodes {
            write!(f, "\n  {node}")?;
        }
        for scope in &self.scopes {
            write!(f, "\n  held by {scope}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "redis {}\n{}\n{}", self.server, self.pooled, self.transactional)?;
        if let Some(replicas) = &self.replicas {
            write!(f, "\n{replicas}")?;
        }
        match self.locks == LockStatus::default() {
            true => Ok(()),
            false => write!(f, "\n{}", self.locks),
        }
    }
}

/// The span of one transaction, with OpenTelemetry's names for database clients. What is not
/// known yet is recorded when the transaction ends.
pub(crate) fn transaction_span(
    address: &str,
    port: u16,
    db: i64,
    name: Option<&str>,
) -> tracing::Span {
    tracing::info_span!(
        "redis.transaction",
        otel.kind = "client",
        db.system.name = "redis",
        db.operation.name = "MULTI",
        db.namespace = db,
        server.address = address,
        server.port = port,
        rediscope.scope = name,
        db.operation.batch.size = tracing::field::Empty,
        rediscope.outcome = tracing::field::Empty,
        db.response.status_code = tracing::field::Empty,
        error.type = tracing::field::Empty,
    )
}
