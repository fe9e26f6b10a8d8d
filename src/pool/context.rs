//! The state of one pool that every checkout reads: settings, counters, endpoint, and the trust in its
//! connections.
//!
//! Nothing here waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::connection::connection::Connection;
use crate::connection::endpoint::Endpoint;
use crate::connection::wire::Wire;
use crate::error::checkout::CheckoutError;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::logging::rate_limit::LimitedEvent;
use crate::pool::config::PoolConfig;
use crate::pool::shared::{ConnectFailure, PoolShared};
use crate::protocol::connection_state::CloseReason;
use crate::settings::settings::Settings;

/// Minimum time between two replacements of all connections.
const REPLACE_INTERVAL: Duration = Duration::from_secs(1);

/// The state of one pool that every checkout reads.
pub(crate) struct PoolContext {
    pub(in crate::pool) config: PoolConfig,
    pub(in crate::pool) endpoint: Endpoint,
    pub(in crate::pool) shared: Arc<PoolShared>,
    created: Instant,
    /// Nanoseconds since `created`. Connections last alive before this are probed: another one was
    /// found dead then.
    distrusted_before: AtomicU64,
    /// Connections last alive before this are closed without a probe: another one timed out then,
    /// and each probe would cost a timeout.
    silent_before: AtomicU64,
    /// Time of the last replacement of all connections; 0: never.
    replaced_at: AtomicU64,
}

impl PoolContext {
    pub(crate) fn new(config: PoolConfig, endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            shared: Arc::new(PoolShared::new(Arc::clone(&config.counters))),
            config,
            created: Instant::now(),
            distrusted_before: AtomicU64::new(0),
            silent_before: AtomicU64::new(0),
            replaced_at: AtomicU64::new(0),
        }
    }

    pub(crate) fn settings(&self) -> &Arc<Settings> {
        &self.config.settings
    }

    pub(crate) fn shared(&self) -> &Arc<PoolShared> {
        &self.shared
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Returns the pool's generation; connections of an older one are replaced.
    pub(in crate::pool) fn generation(&self) -> u64 {
        self.shared.generation(&self.endpoint)
    }

    /// Returns whether a connection with that last reply can be used without a probe.
    pub(in crate::pool) fn trusts(&self, last_alive: Instant) -> bool {
        last_alive.elapsed() <= self.config.settings.trust_window
            && self.stamp(last_alive) >= self.distrusted_before.load(Ordering::Acquire)
    }

    /// Returns whether another connection timed out since then.
    pub(in crate::pool) fn is_silent_since(&self, last_alive: Instant) -> bool {
        self.stamp(last_alive) < self.silent_before.load(Ordering::Acquire)
    }

    /// Records that a connection was lost. The idle ones are probed before their next use, or
    /// closed if this one timed out. This logs nothing.
    pub(in crate::pool) fn distrust_idle(&self, cause: &ConnectionError) {
        let now = self.probe_idle();
        if cause.kind() == ConnectionErrorKind::TimedOut {
            self.silent_before.fetch_max(now, Ordering::AcqRel);
        }
        // The sentinels, if there are any, are queried before the next connect.
        self.endpoint.invalidate();
    }

    /// Has the idle connections probed before their next use. Returns the time of this.
    pub(in crate::pool) fn probe_idle(&self) -> u64 {
        let now = self.stamp(Instant::now());
        self.distrusted_before.fetch_max(now, Ordering::AcqRel);
        now
    }

    /// Returns the reason to close an idle connection instead of using it.
    pub(in crate::pool) fn why_unusable<W: Wire>(
        &self,
        connection: &mut Connection<W>,
        now: Instant,
    ) -> Option<CloseReason> {
        let generation = self.generation();
        if self.is_silent_since(connection.last_alive()) {
            Some(CloseReason::TimedOut)
        } else if connection.generation() < generation {
            Some(CloseReason::Outdated)
        } else {
            connection.close_reason(now, generation).map(|_| CloseReason::Lifetime)
        }
    }

    /// Decides whether a caller that began to wait at `started` waits on for a connection that is
    /// being opened.
    ///
    /// An attempt that began before the caller does not end its wait: what the server refuses for good
    /// may have been granted since.
    ///
    /// # Errors
    /// The server refuses for good, or the time is over.
    pub(in crate::pool) fn check_connect(
        &self,
        started: Instant,
        now: Instant,
        deadline: Instant,
    ) -> Result<(), CheckoutError> {
        let failure = self.shared.connect_failure().filter(|failure| failure.ended >= started);
        let ends_wait = |failure: &ConnectFailure| match failure.error.is_transient_failure() {
            true => self.config.fail_fast,
            false => failure.begun >= started,
        };
        let source = match failure {
            Some(failure) if now >= deadline || ends_wait(&failure) => failure.error,
            None if now >= deadline => self.not_connected_in_time(),
            _ => return Ok(()),
        };
        Err(CheckoutError::Connect { waited: started.elapsed(), source })
    }

    /// The error of a call whose time is over while a connect is still in progress.
    pub(in crate::pool) fn not_connected_in_time(&self) -> ConnectionError {
        let late = || ConnectionError::timed_out("no connection was established in time");
        let silent = self.endpoint.silent_provider(Duration::ZERO);
        silent.unwrap_or_else(late).to(&self.endpoint.address())
    }

    /// Counts and logs a checkout that failed.
    pub(in crate::pool) fn on_refused(&self, error: &CheckoutError) {
        self.config.counters.on_refused(error);
        let (name, error) = (self.config.name, format!("{error:#}"));
        match self.config.logging.rate_limits.allow(LimitedEvent::CheckoutRefused) {
            Some(suppressed) => tracing::warn!(pool = name, %error, suppressed, "checkout refused"),
            None => tracing::debug!(pool = name, %error, "checkout refused"),
        }
    }

    /// Begins a new generation, at most once a second. Returns true if this call has begun it.
    pub(in crate::pool) fn replace_all(&self) -> bool {
        let now = self.stamp(Instant::now()).max(1);
        let last = self.replaced_at.load(Ordering::Acquire);
        if last != 0 && now - last.min(now) < REPLACE_INTERVAL.as_nanos() as u64 {
            return false;
        }
        let replaced = &self.replaced_at;
        let won = replaced.compare_exchange(last, now, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if won {
            self.shared.generation.fetch_add(1, Ordering::AcqRel);
        }
        won
    }

    /// Converts to nanoseconds since the pool was created; 64 bits last for 584 years.
    fn stamp(&self, instant: Instant) -> u64 {
        instant.saturating_duration_since(self.created).as_nanos() as u64
    }
}
