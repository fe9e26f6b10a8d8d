//! Which pool a slot's connections come from: the one there is, or that of the slot's master.
//!
//! Handles and scopes know this and no pool. With one server nothing is looked up. An unserved
//! slot is waited for.

pub(crate) mod cluster;
pub(crate) mod slot_map_refresh;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::connection::endpoint::Endpoint;
use crate::error::checkout::CheckoutError;
use crate::error::open_scope::OpenScope;
use crate::logging::deferred::LogThread;
use crate::logging::rate_limit::RateLimits;
use crate::pool::checkout::BatchCheckout;
use crate::pool::checkout::Checkout;
use crate::pool::config::Logging;
use crate::pool::pool::{Pool, WeakPool};
use crate::pool::router::cluster::Cluster;
use crate::pool::scopes::{PinnedConnection, ScopeOrigin};
use crate::protocol::batch::BatchRequest;
use crate::protocol::cluster::redirect::RedirectReply;
use crate::protocol::cluster::route::{Redirect, Route};
use crate::protocol::cluster::slot::SlotBinding;
use crate::settings::credentials::Provider;
use crate::settings::settings::Settings;
use crate::status::counters::Counters;
use crate::status::report::PoolStatus;

/// A time in which connections lead to the same server and have said the same.
pub(crate) type Generation = (u64, Option<u64>);

/// The pools of one purpose. Clones are the same pools.
#[derive(Clone)]
pub(crate) struct Router {
    inner: Inner,
}

impl Drop for Router {
    fn drop(&mut self) {
        // A forked child that drops it will never use it: the sockets are closed there.
        let _: bool = self.settings().is_forked_child();
    }
}

#[derive(Clone)]
enum Inner {
    Single(Pool),
    Cluster(Arc<Cluster>),
}

/// What a scope knows of them: a scope that was forgotten keeps none of them alive.
pub(crate) struct WeakRouter {
    inner: WeakInner,
}

enum WeakInner {
    Single(WeakPool),
    Cluster(std::sync::Weak<Cluster>),
}

impl WeakRouter {
    /// `None` once every handle of the pools is dropped.
    pub(crate) fn get(&self) -> Option<Router> {
        let inner = match &self.inner {
            WeakInner::Single(pool) => Inner::Single(pool.get()?),
            WeakInner::Cluster(cluster) => Inner::Cluster(cluster.upgrade()?),
        };
        Some(Router { inner })
    }
}

impl Router {
    pub(crate) fn one(pool: Pool) -> Self {
        Self { inner: Inner::Single(pool) }
    }

    pub(crate) fn cluster(cluster: Cluster) -> Self {
        Self { inner: Inner::Cluster(Arc::new(cluster)) }
    }

    pub(crate) fn weak(&self) -> WeakRouter {
        let inner = match &self.inner {
            Inner::Single(pool) => WeakInner::Single(pool.weak()),
            Inner::Cluster(cluster) => WeakInner::Cluster(Arc::downgrade(cluster)),
        };
        WeakRouter { inner }
    }

    /// The one pool, where there is one server.
    pub(crate) fn single(&self) -> Option<&Pool> {
        match &self.inner {
            Inner::Single(pool) => Some(pool),
            Inner::Cluster(_) => None,
        }
    }

    /// What a new transaction's keys are bound to.
    pub(crate) fn binding(&self) -> SlotBinding {
        match self.single() {
            Some(_) => SlotBinding::None,
            None => SlotBinding::Pending,
        }
    }

    pub(crate) fn is_cluster(&self) -> bool {
        self.single().is_none()
    }

    pub(crate) fn settings(&self) -> &Arc<Settings> {
        match &self.inner {
            Inner::Single(pool) => pool.settings(),
            Inner::Cluster(cluster) => cluster.settings(),
        }
    }

    /// Comes first in every call of the caller's, before anything is locked or logged.
    ///
    /// # Errors
    /// This process is not the one that made the session manager.
    pub(crate) fn here(&self) -> Result<(), CheckoutError> {
        self.settings().here()
    }

    pub(crate) fn counters(&self) -> &Counters {
        match &self.inner {
            Inner::Single(pool) => pool.counters(),
            Inner::Cluster(cluster) => cluster.counters(),
        }
    }

    pub(crate) fn rate_limits(&self) -> &RateLimits {
        &self.logging().rate_limits
    }

    /// Writes the events of threads that must not wait for a log.
    pub(crate) fn log_thread(&self) -> &Arc<LogThread> {
        &self.logging().log_thread
    }

    fn logging(&self) -> &Logging {
        match &self.inner {
            Inner::Single(pool) => pool.logging(),
            Inner::Cluster(cluster) => cluster.logging(),
        }
    }

    /// A cluster has one database.
    pub(crate) fn db(&self) -> i64 {
        self.single().map_or(0, |pool| pool.endpoint().db())
    }

    /// Of the server, or of the nodes that the cluster was named by.
    pub(crate) fn address(&self) -> String {
        match &self.inner {
            Inner::Single(pool) => pool.endpoint().address().into_owned(),
            Inner::Cluster(cluster) => cluster.address(),
        }
    }

    /// For spans: of the server, or of the first node that the cluster was named by.
    pub(crate) fn host_and_port(&self) -> (Cow<'_, str>, u16) {
        match &self.inner {
            Inner::Single(pool) => pool.endpoint().host_and_port(),
            Inner::Cluster(cluster) => {
                let (host, port) = cluster.host_and_port();
                (host.into(), port)
            }
        }
    }

    /// Whether another server may take the place of the one there is.
    pub(crate) fn may_switch(&self) -> bool {
        self.single().is_some_and(|pool| pool.endpoint().may_switch())
    }

    /// Rises when another server serves, or connections are to re-authenticate.
    pub(crate) fn generation(&self) -> Generation {
        let switches = self.single().map_or(0, |pool| pool.endpoint().generation());
        (switches, self.settings().credentials.as_ref().map(Provider::version))
    }

    /// No connection is opened any more.
    pub(crate) fn stop_connecting(&self) {
        if let Some(pool) = self.single() {
            pool.endpoint().close();
        }
    }

    /// A link for one round trip.
    pub(crate) fn checkout(
        &self,
        route: &Route,
        deadline: Instant,
    ) -> Result<Checkout, CheckoutError> {
        self.with_pool(route, deadline, |pool| pool.checkout(deadline))
            .map(|checkout| checkout.with_ask(route.ask))
    }

    /// The same where one is free; `None`: none is.
    pub(crate) fn try_checkout(
        &self,
        route: &Route,
        deadline: Instant,
    ) -> Result<Option<Checkout>, CheckoutError> {
        self.with_pool(route, deadline, |pool| pool.try_checkout(deadline))
            .map(|checkout| checkout.map(|checkout| checkout.with_ask(route.ask)))
    }

    /// Begins to open a connection to where the route leads, unless there is one.
    pub(crate) fn warm(&self, route: &Route) {
        match &self.inner {
            Inner::Single(pool) => pool.warm(),
            Inner::Cluster(cluster) => cluster.warm(route),
        }
    }

    /// A link for calls that may all be sent again, or their answers, where another caller sends
    /// them along. What was sent along is not waited for past the deadline.
    pub(crate) fn checkout_batched_calls(
        &self,
        route: &Route,
        deadline: Instant,
        mut request: impl FnMut() -> BatchRequest,
    ) -> Result<BatchCheckout, CheckoutError> {
        self.with_pool(route, deadline, |pool| {
            pool.checkout_batched_within(deadline, Duration::ZERO, &mut request)
        })
    }

    /// A link for a scope.
    pub(crate) fn pin(
        &self,
        route: &Route,
        origin: &ScopeOrigin,
        deadline: Instant,
    ) -> Result<PinnedConnection, CheckoutError> {
        self.with_pool(route, deadline, |pool| pool.pin(origin.clone(), deadline, route.ask))
    }

    /// See [`Pool::checkout_batched`]. Requests that need ASKING are not batched.
    pub(crate) fn checkout_batched(
        &self,
        route: &Route,
        deadline: Instant,
        mut request: impl FnMut() -> BatchRequest,
    ) -> Result<BatchCheckout, CheckoutError> {
        if route.ask {
            return self.checkout(route, deadline).map(BatchCheckout::Alone);
        }
        self.with_pool(route, deadline, |pool| pool.checkout_batched(deadline, &mut request))
    }

    /// Does something with the pool of the route, and with another one where its server is gone and
    /// another one has taken over by `deadline`.
    fn with_pool<T>(
        &self,
        route: &Route,
        deadline: Instant,
        mut call: impl FnMut(&Pool) -> Result<T, CheckoutError>,
    ) -> Result<T, CheckoutError> {
        self.here()?;
        match &self.inner {
            Inner::Single(pool) => call(pool),
            Inner::Cluster(cluster) => cluster.with_pool(route, deadline, call),
        }
    }

    /// A connection of its own is to be opened for a slot's questions, or for any.
    pub(crate) fn endpoint(
        &self,
        route: &Route,
        deadline: Instant,
    ) -> Result<Endpoint, CheckoutError> {
        self.with_pool(route, deadline, |pool| Ok(pool.endpoint().clone()))
    }

    /// The ways to all masters, to ask each of them the same.
    pub(crate) fn all_masters(&self, deadline: Instant) -> Result<Vec<Route>, CheckoutError> {
        match &self.inner {
            Inner::Single(_) => Ok(vec![Route::default()]),
            Inner::Cluster(cluster) => cluster.all_masters(deadline),
        }
    }

    /// How a call is sent again after a server rejected it with this error. `None`: the error is the
    /// call's result.
    pub(crate) fn redirect_for(&self, route: &Route, code: &str, text: &str) -> Option<Redirect> {
        match &self.inner {
            Inner::Single(_) => None,
            Inner::Cluster(cluster) => cluster.redirect_for(route, &RedirectReply::of(code, text)?),
        }
    }

    /// The same after no connection to the server could be had, by `deadline` at the latest.
    pub(crate) fn on_unreachable(
        &self,
        route: &Route,
        error: &CheckoutError,
        deadline: Instant,
    ) -> Option<Redirect> {
        match &self.inner {
            Inner::Single(_) => None,
            Inner::Cluster(cluster) => cluster.on_unreachable(route, error, deadline),
        }
    }

    pub(crate) fn scopes(&self) -> Vec<OpenScope> {
        match &self.inner {
            Inner::Single(pool) => pool.open_scopes(),
            Inner::Cluster(cluster) => cluster.scopes(),
        }
    }

    pub(crate) fn status(&self) -> PoolStatus {
        match &self.inner {
            Inner::Single(pool) => pool.status(),
            Inner::Cluster(cluster) => cluster.status(),
        }
    }

    pub(crate) fn close(&self) {
        match &self.inner {
            Inner::Single(pool) => pool.close(),
            Inner::Cluster(cluster) => cluster.close(),
        }
    }

    pub(crate) fn drain(&self, deadline: Instant) -> usize {
        match &self.inner {
            Inner::Single(pool) => pool.drain(deadline),
            Inner::Cluster(cluster) => cluster.drain(deadline),
        }
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.settings().is_forked_child() {
            return f.write_str("Router of another process");
        }
        match &self.inner {
            Inner::Single(pool) => fmt::Debug::fmt(pool, f),
            Inner::Cluster(cluster) => fmt::Debug::fmt(cluster, f),
        }
    }
}

impl fmt::Debug for WeakRouter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WeakRouter")
    }
}
