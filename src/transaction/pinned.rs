//! A pinned connection, which is returned clean.
//!
//! Every guard owns one; a scope ends only here. A drop does not panic, does not wait past
//! `cleanup_timeout`, and keeps the first error.
//!
//! A future that is dropped before its end may leave a connection that awaits replies. That one is
//! closed when the scope ends.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use tracing::level_filters::LevelFilter;
use tracing::{Level, Span};

use crate::commit::cleanup;
use crate::commit::plan::CommitPlan;
use crate::commit::side::Side;
use crate::error::any::{CommitError, Error};
use crate::error::checkout::CheckoutError;
use crate::error::pin_expired::PinExpired;
use crate::pool::early_watch::WatchOffer;
use crate::pool::line::Line;
use crate::pool::pool::Pool;
use crate::pool::router::{Router, WeakRouter};
use crate::pool::scope_origin::ScopeOrigin;
use crate::pool::server_pool::{PinnedLine, TurnOf};
use crate::protocol::cluster::route::{Redirect, Route};
use crate::settings::settings::Settings;
use crate::status::metrics::PoolMetrics;
use crate::transaction::redirects::RedirectCause;

/// The span of a transaction that is about to begin, with OpenTelemetry's names for database clients.
/// Fields without a value are recorded when the transaction ends.
pub(crate) fn transaction_span<P: Side>(router: &Router<P>, owner: &ScopeOrigin) -> Span {
    let (host, port) = router.host_and_port();
    tracing::info_span!(
        "redis.transaction",
        otel.kind = "client",
        db.system.name = "redis",
        db.operation.name = "MULTI",
        db.namespace = router.db(),
        server.address = &*host,
        server.port = port,
        rediscope.scope = owner.name.as_deref(),
        db.operation.batch.size = tracing::field::Empty,
        rediscope.outcome = tracing::field::Empty,
        db.response.status_code = tracing::field::Empty,
        error.type = tracing::field::Empty,
    )
}

/// The word of a transaction that ended without a commit.
pub(crate) const CONFLICT: &str = "conflict";
pub(crate) const DISCARDED: &str = "discarded";

/// The word of a transaction whose condition was not met.
const CONDITION_FAILED: &str = "condition failed";

/// A pinned connection, or none yet, which is returned clean.
pub(crate) struct Pinned<P: Side = Pool> {
    router: WeakRouter<P>,
    /// The route of the pinned connection, or of the next one.
    route: Route,
    settings: Arc<Settings>,
    owner: ScopeOrigin,
    plan: CommitPlan,
    pin: Option<P::Pin>,
    span: Span,
    /// Whether its drop is not the end of the transaction: a loop records that.
    is_of_loop: bool,
}

/// A drop without a commit discards the transaction.
impl<P: Side> Drop for Pinned<P> {
    fn drop(&mut self) {
        if self.settings.is_forked_child() {
            // In a forked child the connection belongs to the parent.
            std::mem::forget(self.pin.take());
            return;
        }
        let Some(pin) = self.pin.take() else { return };
        if !self.is_of_loop {
            self.record_discard();
        }
        let _in = self.span.enter();
        self.count_discard();
        self.log_failed_cleanup(P::return_dropped(pin));
    }
}

/// The outcome of a transaction that failed with `error` before it could commit.
pub(crate) fn early_outcome(error: &Error) -> &'static str {
    match error {
        Error::Commit(error) => error.word(),
        Error::ConditionFailed { .. } => CONDITION_FAILED,
        _ => DISCARDED,
    }
}

impl<P: Side> fmt::Debug for Pinned<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pinned")
            .field("route", &self.route)
            .field("owner", &self.owner)
            .field("plan", &self.plan)
            .field("is_pinned", &self.is_pinned())
            .finish_non_exhaustive()
    }
}

impl<P: Side> Pinned<P> {
    /// Creates a scope that holds no connection until [`pin`](Self::pin).
    #[inline]
    pub(crate) fn new(router: &Router<P>, owner: ScopeOrigin, plan: CommitPlan) -> Self {
        Self::within(transaction_span(router, &owner), router, owner, plan)
    }

    /// As [`new`](Self::new), for another attempt at the transaction of `span`.
    #[inline]
    pub(crate) fn within(
        span: Span,
        router: &Router<P>,
        owner: ScopeOrigin,
        plan: CommitPlan,
    ) -> Self {
        let (settings, route) = (Arc::clone(router.settings()), Route::default());
        Self {
            router: router.weak(),
            route,
            settings,
            owner,
            plan,
            pin: None,
            span,
            is_of_loop: false,
        }
    }

    /// The scope is one attempt of a loop, which records how it ends.
    pub(crate) fn of_loop(mut self, is_of_loop: bool) -> Self {
        self.is_of_loop = is_of_loop;
        self
    }

    /// Sets the route of the scope's next connection.
    pub(crate) fn set_route(&mut self, route: Route) {
        self.route = route;
    }

    pub(crate) fn route(&self) -> &Route {
        &self.route
    }

    /// Sets the slot of the scope's next connection. A route of this slot stays.
    pub(crate) fn set_slot(&mut self, slot: Option<u16>) {
        if self.route.slot != slot {
            self.route = Route::to(slot);
        }
    }

    pub(crate) fn plan(&self) -> &CommitPlan {
        &self.plan
    }

    /// Returns the next step after a server rejected the slot; `None`: there is none.
    pub(crate) async fn redirect_for(
        &self,
        error: &CommitError,
        deadline: Instant,
    ) -> Option<Redirect> {
        let cause = RedirectCause::of_commit(error)?;
        cause.redirect(&self.router.get()?, &self.route, deadline).await
    }

    pub(crate) fn owner(&self) -> &ScopeOrigin {
        &self.owner
    }

    /// The transaction's span: one span for all its commands and attempts.
    pub(crate) fn span(&self) -> &Span {
        &self.span
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Returns the checkout deadline of a call that begins now.
    pub(crate) fn checkout_deadline(&self) -> Instant {
        self.plan.wait.deadline(&self.settings)
    }

    /// Records in the span why the transaction did not begin.
    pub(crate) fn record_failure(&self, error: &Error) {
        let kind = match error {
            Error::Checkout(_) => "checkout",
            Error::ConditionFailed { .. } => CONDITION_FAILED,
            Error::Commit(error) => error.word(),
            Error::Command { .. } => "rejected",
            Error::PinExpired(_) => "pin expired",
            _ => "lost",
        };
        self.span.record("error.type", kind);
        if let Some(code) = error.code() {
            self.span.record("db.response.status_code", code);
        }
    }

    /// Records the end of a transaction that failed with `error` before it could commit. Its connection was
    /// returned before.
    pub(crate) fn record_early_failure(&self, error: &Error) {
        if !self.is_of_loop {
            self.record_end(early_outcome(error));
        }
    }

    /// Records the end of a transaction that ends without a commit.
    pub(crate) fn record_discard(&self) {
        self.record_end(DISCARDED);
    }

    /// Records the outcome of a transaction of which no attempt follows.
    pub(crate) fn record_end(&self, outcome: &'static str) {
        self.span.record("rediscope.outcome", outcome);
        self.metrics(|metrics| metrics.ended_early(outcome));
    }

    /// Checks the process. Every public call does this first, before it locks or logs.
    ///
    /// # Errors
    /// This process is a fork of the one that began the scope.
    pub(crate) fn here(&self) -> Result<(), CheckoutError> {
        self.settings.here()
    }

    /// Takes a connection to the node of the slot, if the scope has none.
    pub(crate) async fn pin(
        &mut self,
        slot: Option<u16>,
        deadline: Instant,
    ) -> Result<(), CheckoutError> {
        self.pin_watching(slot, deadline, None).await
    }

    /// The same for a scope that begins with the WATCH and the reads of `offer`.
    pub(crate) async fn pin_watching(
        &mut self,
        slot: Option<u16>,
        deadline: Instant,
        offer: Option<WatchOffer<'_, TurnOf<P>>>,
    ) -> Result<(), CheckoutError> {
        self.here()?;
        if self.pin.is_none() {
            let router = self.router.get().ok_or(CheckoutError::Closed)?;
            self.set_slot(slot);
            self.pin = Some(match router.only_pool()? {
                Some(pool) => {
                    let (owner, router) = (self.owner.clone(), router.keep_alive());
                    pool.pin_watching(owner, deadline, false, router, offer).await?
                }
                None => router.pin(&self.route, &self.owner, deadline, offer).await?,
            });
        }
        Ok(())
    }

    /// Logs an event when the connection is returned: a log belongs to the user and may use the
    /// pool.
    pub(crate) fn log_on_return(&self, level: Level, event: impl FnOnce() + Send + 'static) {
        if level > LevelFilter::current() {
            return;
        }
        let Some(pin) = &self.pin else { return event() };
        // A reclaimed scope needs no further event.
        if let Ok(mut line) = pin.call::<Error>() {
            line.log_later(level, event);
        }
    }

    /// `None` once the session manager and all handles are dropped.
    pub(crate) fn router(&self) -> Option<Router<P>> {
        self.router.get()
    }

    pub(crate) fn is_pinned(&self) -> bool {
        self.pin.is_some()
    }

    /// Excludes this scope from deadlock detection, because its closure has returned.
    pub(crate) fn closure_returned(&mut self) {
        self.owner.is_closure = false;
    }

    /// Begins a call on the pinned connection, which ends when the connection is dropped.
    pub(crate) fn line<E: From<PinExpired> + From<CheckoutError>>(
        &self,
    ) -> Result<<P::Pin as PinnedLine>::Call, E> {
        self.here()?;
        match &self.pin {
            Some(pin) => pin.call(),
            None => Err(CheckoutError::Closed.into()),
        }
    }

    /// Begins the scope's last call. The connection and the permit are returned when it is dropped.
    pub(crate) fn last_call<E: From<PinExpired> + From<CheckoutError>>(
        &mut self,
    ) -> Result<<P::Pin as PinnedLine>::Call, E> {
        self.here()?;
        match self.pin.take() {
            Some(pin) => pin.last_call(),
            None => Err(CheckoutError::Closed.into()),
        }
    }

    /// Returns the connection with nothing of the scope left on it.
    ///
    /// # Errors
    /// The error of the cleanup; the connection is then replaced.
    pub(crate) fn release(&mut self) -> impl Future<Output = Result<(), Error>> {
        self.end(true)
    }

    async fn end(&mut self, is_discard: bool) -> Result<(), Error> {
        self.here()?;
        let Some(pin) = self.pin.take() else { return Ok(()) };
        if is_discard {
            self.count_discard();
        }
        cleanup::end_scope::<P>(pin).await
    }

    /// The same; the error of the cleanup is logged.
    /// Returns true if there was a connection to return.
    pub(crate) fn release_or_log(&mut self) -> impl Future<Output = bool> {
        self.end_or_log(true)
    }

    /// The same for a scope that ends with `error`: a block that was committed before is no discard.
    pub(crate) fn release_after(
        &mut self,
        error: &Error,
    ) -> impl Future<Output = bool> + use<'_, P> {
        self.end_or_log(!matches!(error, Error::Commit(CommitError::AlreadyCommitted)))
    }

    async fn end_or_log(&mut self, is_discard: bool) -> bool {
        if !self.is_pinned() {
            return false;
        }
        let ended = self.end(is_discard).await;
        self.log_failed_cleanup(ended);
        self.here().is_ok()
    }

    /// As [`release`](Self::release), if the transaction ends by this.
    ///
    /// # Errors
    /// As [`release`](Self::release).
    pub(crate) async fn discard(&mut self) -> Result<(), Error> {
        self.here()?;
        if self.is_pinned() {
            self.record_discard();
        }
        self.release().await
    }

    /// Reports to the metrics of the transaction's pool.
    #[inline]
    pub(crate) fn metrics(&self, report: impl FnOnce(&PoolMetrics)) {
        if PoolMetrics::ARE_REPORTED
            && let Some(router) = self.router.get()
        {
            report(&router.counters().metrics);
        }
    }

    fn count_discard(&self) {
        if let Some(router) = self.router.get() {
            router.counters().discards.add();
        }
    }

    fn log_failed_cleanup(&self, released: Result<(), Error>) {
        if let Err(error) = released {
            tracing::debug!(error = %format_args!("{error:#}"), begun_at = %self.owner.place, "cleaning failed, connection replaced");
        }
    }

    /// Shows the reaper that the scope is in use although it sends nothing.
    pub(crate) fn touch(&self) {
        if let Some(pin) = &self.pin {
            pin.touch();
        }
    }
}
