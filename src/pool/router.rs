//! The router from a slot to its pool: the only pool, or the pool of the slot's master.
//!
//! Handles and scopes use the router and no pool. With one server it has one pool and looks nothing
//! up. A call waits for a slot that no master serves.

pub(crate) mod cluster;
pub(crate) mod slot_map_refresh;

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use crate::connection::endpoint::Endpoint;
use crate::error::checkout::CheckoutError;
use crate::error::open_scope::OpenScope;
use crate::logging::deferred::LogThread;
use crate::logging::rate_limit::RateLimits;
use crate::pool::checkout::BatchCheckout;
use crate::pool::checkout::Checkout;
use crate::pool::config::PoolConfig;
use crate::pool::pool::{Pool, WeakPool};
use crate::pool::router::slot_map_refresh::SlotMapCache;
use crate::pool::scopes::{PinnedConnection, ScopeOrigin};
use crate::protocol::batch::BatchRequest;
use crate::protocol::cluster::route::Route;
use crate::protocol::cluster::slot::SlotBinding;
use crate::protocol::cluster::slot_map::NodeAddress;
use crate::settings::credentials::Provider;
use crate::settings::settings::Settings;
use crate::status::counters::{Counter, Counters};
use crate::status::report::PoolStatus;
use crate::sync::lock;

/// Number of failovers, and version of the credentials. It changes when another server serves, or when
/// connections must authenticate again.
pub(crate) type Generation = (u64, Option<u64>);

/// The pools of one purpose. Clones share the pools.
#[derive(Clone)]
pub(crate) struct Router {
    pools: Arc<Pools>,
}

impl Drop for Router {
    fn drop(&mut self) {
        // A forked child that drops the router will never use it: the sockets are closed there.
        let _: bool = self.settings().is_forked_child();
    }
}

impl Deref for Router {
    type Target = Pools;

    fn deref(&self) -> &Pools {
        &self.pools
    }
}

/// A scope's reference to the pools: a forgotten scope does not keep them alive.
#[derive(Debug)]
pub(crate) struct WeakRouter {
    pools: Weak<Pools>,
}

impl WeakRouter {
    /// `None` once every handle of the pools is dropped, and no connection of theirs is pinned.
    pub(crate) fn get(&self) -> Option<Router> {
        self.pools.upgrade().map(|pools| Router { pools })
    }
}

/// The servers that the pools lead to.
enum Servers {
    /// One server, whose pool needs no look-up.
    One(Pool),
    /// The masters of a cluster. The pool of each is made at its first use.
    Masters(Arc<SlotMapCache>),
}

/// The pools of one purpose, one for each server.
pub(crate) struct Pools {
    config: PoolConfig,
    /// The server, or the cluster's first seed node.
    endpoint: Endpoint,
    servers: Servers,
    pools: RwLock<HashMap<NodeAddress, Pool>>,
    /// Retired pools, whose scopes may still be open.
    retired: Mutex<Vec<(NodeAddress, WeakPool)>>,
    /// Generation of the slot map by which pools were last retired.
    pruned: AtomicU64,
    turn: AtomicU64,
    redirections: Counter,
    closed: AtomicBool,
}

impl Router {
    /// The router to one server.
    pub(crate) fn one(config: PoolConfig, endpoint: Endpoint) -> Self {
        let pool = Pool::new(config.clone(), endpoint.clone());
        Self::new(config, endpoint, Servers::One(pool))
    }

    /// The router to the masters of a cluster.
    pub(crate) fn cluster(config: PoolConfig, slot_map: Arc<SlotMapCache>) -> Self {
        let config = PoolConfig { fail_fast: true, ..config };
        Self::new(config, slot_map.first_endpoint().clone(), Servers::Masters(slot_map))
    }

    fn new(config: PoolConfig, endpoint: Endpoint, servers: Servers) -> Self {
        let mut pools = HashMap::new();
        if let Servers::One(pool) = &servers {
            let (host, port) = endpoint.host_and_port();
            pools.insert(NodeAddress::new(&host, port), pool.clone());
        }
        let pools = Pools {
            config,
            endpoint,
            servers,
            pools: RwLock::new(pools),
            retired: Mutex::default(),
            pruned: AtomicU64::new(0),
            turn: AtomicU64::new(0),
            redirections: Counter::default(),
            closed: AtomicBool::new(false),
        };
        Self { pools: Arc::new(pools) }
    }

    pub(crate) fn weak(&self) -> WeakRouter {
        WeakRouter { pools: Arc::downgrade(&self.pools) }
    }

    /// Takes a connection for a scope. Until the scope ends, it keeps the pools alive.
    pub(crate) fn pin(
        &self,
        route: &Route,
        origin: &ScopeOrigin,
        deadline: Instant,
    ) -> Result<PinnedConnection, CheckoutError> {
        self.with_pool(route, deadline, |pool| {
            pool.pin(origin.clone(), deadline, route.ask, Arc::<Pools>::clone(&self.pools))
        })
    }
}

impl Pools {
    /// Returns the slot binding of a new transaction.
    pub(crate) fn binding(&self) -> SlotBinding {
        if self.is_cluster() { SlotBinding::Pending } else { SlotBinding::None }
    }

    pub(crate) fn is_cluster(&self) -> bool {
        self.slot_map().is_some()
    }

    /// The slot map, in a cluster.
    fn slot_map(&self) -> Option<&SlotMapCache> {
        match &self.servers {
            Servers::One(_) => None,
            Servers::Masters(slot_map) => Some(slot_map),
        }
    }

    pub(crate) fn config(&self) -> &PoolConfig {
        &self.config
    }

    pub(crate) fn settings(&self) -> &Arc<Settings> {
        &self.config.settings
    }

    /// Checks the process. Every public call does this first, before it locks or logs.
    ///
    /// # Errors
    /// This process is not the one that made the session manager.
    pub(crate) fn here(&self) -> Result<(), CheckoutError> {
        self.settings().here()
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.config.counters
    }

    pub(crate) fn rate_limits(&self) -> &RateLimits {
        &self.config.logging.rate_limits
    }

    /// The thread that writes events of threads which must not wait for a log.
    pub(crate) fn log_thread(&self) -> &Arc<LogThread> {
        &self.config.logging.log_thread
    }

    /// The endpoint of the server, or of the cluster's first seed node.
    pub(crate) fn first_endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Returns the database. A cluster has only database 0.
    pub(crate) fn db(&self) -> i64 {
        self.endpoint.db()
    }

    /// Returns the address of the server, or of the cluster's seed nodes.
    pub(crate) fn address(&self) -> String {
        match self.slot_map() {
            Some(slot_map) => slot_map.address(),
            None => self.endpoint.address().into_owned(),
        }
    }

    /// For spans: the host and port of the server, or of the cluster's first seed node.
    pub(crate) fn host_and_port(&self) -> (Cow<'_, str>, u16) {
        self.endpoint.host_and_port()
    }

    /// Returns whether another server may take the place of the current one.
    pub(crate) fn may_switch(&self) -> bool {
        self.endpoint.may_switch()
    }

    /// Returns a value that rises when another server serves, or when connections must
    /// re-authenticate.
    pub(crate) fn generation(&self) -> Generation {
        let version = self.settings().credentials.as_ref().map(Provider::version);
        (self.endpoint.generation(), version)
    }

    /// Stops the opening of connections.
    pub(crate) fn stop_connecting(&self) {
        self.endpoint.close();
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
        match &self.servers {
            Servers::One(pool) => call(pool),
            Servers::Masters(slot_map) => self.with_master(slot_map, route, deadline, call),
        }
    }

    /// Returns the endpoint for a separate connection to a slot's node, or to any node.
    pub(crate) fn endpoint(
        &self,
        route: &Route,
        deadline: Instant,
    ) -> Result<Endpoint, CheckoutError> {
        self.with_pool(route, deadline, |pool| Ok(pool.endpoint.clone()))
    }

    /// All pools, also the retired ones that still have an open scope.
    fn all(&self) -> Vec<(NodeAddress, Pool)> {
        let pools = self.pools.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> =
            pools.iter().map(|(node, pool)| (node.clone(), pool.clone())).collect();
        drop(pools);
        let retired = lock(&self.retired);
        all.extend(retired.iter().filter_map(|(node, pool)| Some((node.clone(), pool.get()?))));
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        all
    }

    pub(crate) fn scopes(&self) -> Vec<OpenScope> {
        self.all().iter().flat_map(|(_, pool)| pool.open_scopes()).collect()
    }

    pub(crate) fn status(&self) -> PoolStatus {
        let mut sum = PoolStatus {
            counts: self.counters().counts(),
            redirections: self.redirections.get(),
            ..PoolStatus::none(self.config.name)
        };
        let map = self.slot_map().map(SlotMapCache::map);
        for (node, pool) in self.all() {
            let slots = map.as_ref().map_or(0, |map| map.slot_count(&node));
            let part = pool.status(node.to_string(), slots);
            sum.size += part.size;
            sum.max_size += self.settings().max_size;
            sum.in_use += part.in_use;
            sum.idle += part.idle;
            sum.waiting += part.waiting;
            sum.scopes.extend(pool.open_scopes());
            match self.is_cluster() {
                true => sum.nodes.push(part),
                false => sum.last_connect_error = part.last_connect_error,
            }
        }
        if let Some(slot_map) = self.slot_map() {
            sum.last_connect_error = slot_map.failure();
        }
        sum.scopes.sort_by_key(|scope| std::cmp::Reverse(scope.age));
        sum
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.all().iter().for_each(|(_, pool)| pool.close());
    }

    pub(crate) fn drain(&self, deadline: Instant) -> usize {
        self.all().iter().map(|(_, pool)| pool.drain(deadline)).sum()
    }
}

/// In a forked child the threads belong to the parent.
impl Drop for Pools {
    fn drop(&mut self) {
        if self.settings().is_forked_child() {
            std::mem::forget(Arc::clone(&self.config.threads));
        }
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.settings().is_forked_child() {
            return f.write_str("Router of another process");
        }
        f.debug_struct("Router")
            .field("name", &self.config.name)
            .field("endpoint", &self.endpoint)
            .field("slot_map", &self.slot_map())
            .finish_non_exhaustive()
    }
}
