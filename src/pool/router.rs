//! The router from a slot to its pool: the only pool, or the pool of the slot's master.
//!
//! Handles and scopes use the router and no pool. With one server it looks nothing up. A call waits
//! for a slot that no master serves.

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

/// Number of failovers, and version of the credentials. It changes when another server serves, or when
/// connections must authenticate again.
pub(crate) type Generation = (u64, Option<u64>);

/// The pools of one purpose. Clones share the pools.
#[derive(Clone)]
pub(crate) struct Router {
    inner: Nodes,
}

impl Drop for Router {
    fn drop(&mut self) {
        // A forked child that drops the router will never use it: the sockets are closed there.
        let _: bool = self.settings().is_forked_child();
    }
}

#[derive(Clone)]
enum Nodes {
    Single(Pool),
    Cluster(Arc<Cluster>),
}

/// A scope's reference to the pools: a forgotten scope does not keep them alive.
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
            WeakInner::Single(pool) => Nodes::Single(pool.get()?),
            WeakInner::Cluster(cluster) => Nodes::Cluster(cluster.upgrade()?),
        };
        Some(Router { inner })
    }
}

impl Router {
    pub(crate) fn one(pool: Pool) -> Self {
        Self { inner: Nodes::Single(pool) }
    }

    pub(crate) fn cluster(cluster: Cluster) -> Self {
        Self { inner: Nodes::Cluster(Arc::new(cluster)) }
    }

    pub(crate) fn weak(&self) -> WeakRouter {
        let inner = match &self.inner {
            Nodes::Single(pool) => WeakInner::Single(pool.weak()),
            Nodes::Cluster(cluster) => WeakInner::Cluster(Arc::downgrade(cluster)),
        };
        WeakRouter { inner }
    }

    /// Returns the only pool, if there is one server.
    pub(crate) fn single(&self) -> Option<&Pool> {
        match &self.inner {
            Nodes::Single(pool) => Some(pool),
            Nodes::Cluster(_) => None,
        }
    }

    /// Returns the slot binding of a new transaction.
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
            Nodes::Single(pool) => pool.settings(),
            Nodes::Cluster(cluster) => cluster.settings(),
        }
    }

    /// Checks the process. Every public call does this first, before it locks or logs.
    ///
    /// # Errors
    /// This process is not the one that made the session manager.
    pub(crate) fn here(&self) -> Result<(), CheckoutError> {
        self.settings().here()
    }

    pub(crate) fn counters(&self) -> &Counters {
        match &self.inner {
            Nodes::Single(pool) => pool.counters(),
            Nodes::Cluster(cluster) => cluster.counters(),
        }
    }

    pub(crate) fn rate_limits(&self) -> &RateLimits {
        &self.logging().rate_limits
    }

    /// The thread that writes events of threads which must not wait for a log.
    pub(crate) fn log_thread(&self) -> &Arc<LogThread> {
        &self.logging().log_thread
    }

    fn logging(&self) -> &Logging {
        match &self.inner {
            Nodes::Single(pool) => pool.logging(),
            Nodes::Cluster(cluster) => cluster.logging(),
        }
    }

    /// Returns the database. A cluster has only database 0.
    pub(crate) fn db(&self) -> i64 {
        self.single().map_or(0, |pool| pool.endpoint().db())
    }

    /// Returns the address of the server, or of the cluster's seed nodes.
    pub(crate) fn address(&self) -> String {
        match &self.inner {
            Nodes::Single(pool) => pool.endpoint().address().into_owned(),
            Nodes::Cluster(cluster) => cluster.address(),
        }
    }

    /// For spans: the host and port of the server, or of the cluster's first seed node.
    pub(crate) fn host_and_port(&self) -> (Cow<'_, str>, u16) {
        match &self.inner {
            Nodes::Single(pool) => pool.endpoint().host_and_port(),
            Nodes::Cluster(cluster) => {
                let (host, port) = cluster.host_and_port();
                (host.into(), port)
            }
        }
    }

    /// Returns whether another server may take the place of the current one.
    pub(crate) fn may_switch(&self) -> bool {
        self.single().is_some_and(|pool| pool.endpoint().may_switch())
    }

    /// Returns a value that rises when another server serves, or when connections must
    /// re-authenticate.
    pub(crate) fn generation(&self) -> Generation {
        let switches = self.single().map_or(0, |pool| pool.endpoint().generation());
        (switches, self.settings().credentials.as_ref().map(Provider::version))
    }

    /// Stops the opening of connections.
    pub(crate) fn stop_connecting(&self) {
        if let Some(pool) = self.single() {
            pool.endpoint().close();
        }
    }

    /// Takes a connection for one round trip.
    pub(crate) fn checkout(
        &self,
        route: &Route,
        deadline: Instant,
    ) -> Result<Checkout, CheckoutError> {
        self.with_pool(route, deadline, |pool| pool.checkout(deadline))
            .map(|checkout| checkout.with_ask(route.ask))
    }

    /// The same if a connection is free; `None`: no connection is free.
    pub(crate) fn try_checkout(
        &self,
        route: &Route,
        deadline: Instant,
    ) -> Result<Option<Checkout>, CheckoutError> {
        self.with_pool(route, deadline, |pool| pool.try_checkout(deadline))
            .map(|checkout| checkout.map(|checkout| checkout.with_ask(route.ask)))
    }

    /// Begins to open a connection for the route, unless there is one.
    pub(crate) fn warm(&self, route: &Route) {
        match &self.inner {
            Nodes::Single(pool) => pool.warm(),
            Nodes::Cluster(cluster) => cluster.warm(route),
        }
    }

    /// Takes a connection for calls that may all be sent again. If another caller sends them in its
    /// batch, returns their replies. A batched call is not awaited past the deadline.
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

    /// Takes a connection for a scope.
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

    /// Runs `call` with the pool of the route. If its server is gone and another one has taken
    /// over by `deadline`, runs it again with the other pool.
    fn with_pool<T>(
        &self,
        route: &Route,
        deadline: Instant,
        mut call: impl FnMut(&Pool) -> Result<T, CheckoutError>,
    ) -> Result<T, CheckoutError> {
        self.here()?;
        match &self.inner {
            Nodes::Single(pool) => call(pool),
            Nodes::Cluster(cluster) => cluster.with_pool(route, deadline, call),
        }
    }

    /// Returns the endpoint for a separate connection to a slot's node, or to any node.
    pub(crate) fn endpoint(
        &self,
        route: &Route,
        deadline: Instant,
    ) -> Result<Endpoint, CheckoutError> {
        self.with_pool(route, deadline, |pool| Ok(pool.endpoint().clone()))
    }

    /// Returns the routes to all masters, for a command that goes to each of them.
    pub(crate) fn all_masters(&self, deadline: Instant) -> Result<Vec<Route>, CheckoutError> {
        match &self.inner {
            Nodes::Single(_) => Ok(vec![Route::default()]),
            Nodes::Cluster(cluster) => cluster.all_masters(deadline),
        }
    }

    /// Returns how a call is sent again after a server rejected it with this error. `None`: the
    /// error is the call's result.
    pub(crate) fn redirect_for(&self, route: &Route, code: &str, text: &str) -> Option<Redirect> {
        match &self.inner {
            Nodes::Single(_) => None,
            Nodes::Cluster(cluster) => cluster.redirect_for(route, &RedirectReply::of(code, text)?),
        }
    }

    /// The same after no connection to the server was available, by `deadline` at the latest.
    pub(crate) fn on_unreachable(
        &self,
        route: &Route,
        error: &CheckoutError,
        deadline: Instant,
    ) -> Option<Redirect> {
        match &self.inner {
            Nodes::Single(_) => None,
            Nodes::Cluster(cluster) => cluster.on_unreachable(route, error, deadline),
        }
    }

    pub(crate) fn scopes(&self) -> Vec<OpenScope> {
        match &self.inner {
            Nodes::Single(pool) => pool.open_scopes(),
            Nodes::Cluster(cluster) => cluster.scopes(),
        }
    }

    pub(crate) fn status(&self) -> PoolStatus {
        match &self.inner {
            Nodes::Single(pool) => pool.status(),
            Nodes::Cluster(cluster) => cluster.status(),
        }
    }

    pub(crate) fn close(&self) {
        match &self.inner {
            Nodes::Single(pool) => pool.close(),
            Nodes::Cluster(cluster) => cluster.close(),
        }
    }

    pub(crate) fn drain(&self, deadline: Instant) -> usize {
        match &self.inner {
            Nodes::Single(pool) => pool.drain(deadline),
            Nodes::Cluster(cluster) => cluster.drain(deadline),
        }
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.settings().is_forked_child() {
            return f.write_str("Router of another process");
        }
        match &self.inner {
            Nodes::Single(pool) => fmt::Debug::fmt(pool, f),
            Nodes::Cluster(cluster) => fmt::Debug::fmt(cluster, f),
        }
    }
}

impl fmt::Debug for WeakRouter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WeakRouter")
    }
}
