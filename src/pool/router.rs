//! The router from a slot to its pool: the only pool, or the pool of the slot's master.
//!
//! Handles and scopes use the router and no pool. With one server it has one pool and looks nothing
//! up. A call waits for a slot that no master serves.
//!
//! A future that is dropped before its end has taken no connection. A request that another caller
//! took may still be sent.

pub(crate) mod cluster;
pub(crate) mod slot_map_refresh;

use std::any::Any;
use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use crate::connection::endpoint::Endpoint;
use crate::error::any::Error;
use crate::error::checkout::CheckoutError;
use crate::error::open_scope::OpenScope;
use crate::logging::deferred::LogThread;
use crate::logging::rate_limit::RateLimits;
use crate::pool::batch_request::BatchRequest;
use crate::pool::batch_response::BatchResponse;
use crate::pool::config::PoolConfig;
use crate::pool::early_watch::WatchOffer;
use crate::pool::first_packet::FirstPacket;
use crate::pool::line::Line;
use crate::pool::pool::Pool;
use crate::pool::router::slot_map_refresh::SlotMapCache;
use crate::pool::scope_origin::ScopeOrigin;
use crate::pool::server_pool::{BatchCheckout, ServerPool, TurnOf};
use crate::protocol::cluster::route::{RedirectBudget, Route};
use crate::protocol::cluster::slot::{SLOTS, SlotBinding};
use crate::protocol::cluster::slot_map::NodeAddress;
use crate::settings::settings::Settings;
use crate::status::counters::{Counter, Counters};
use crate::status::report::PoolStatus;
use crate::sync::boxed::boxed;
use crate::sync::lock;

/// The pools of one purpose. Clones share the pools.
pub(crate) struct Router<P: ServerPool = Pool> {
    pools: Arc<Pools<P>>,
}

impl<P: ServerPool> Clone for Router<P> {
    fn clone(&self) -> Self {
        Self { pools: Arc::clone(&self.pools) }
    }
}

impl<P: ServerPool> Drop for Router<P> {
    fn drop(&mut self) {
        // A forked child that drops the router will never use it: the sockets are closed there.
        let _: bool = self.settings().is_forked_child();
    }
}

impl<P: ServerPool> Deref for Router<P> {
    type Target = Pools<P>;

    fn deref(&self) -> &Pools<P> {
        &self.pools
    }
}

/// A scope's reference to the pools: a forgotten scope does not keep them alive.
pub(crate) struct WeakRouter<P: ServerPool = Pool> {
    pools: Weak<Pools<P>>,
}

impl<P: ServerPool> WeakRouter<P> {
    /// `None` once every handle of the pools is dropped, and no connection of theirs is pinned.
    pub(crate) fn get(&self) -> Option<Router<P>> {
        self.pools.upgrade().map(|pools| Router { pools })
    }
}

/// The servers that the pools lead to.
enum Servers<P> {
    /// One server, whose pool needs no look-up.
    One(P),
    /// The masters of a cluster. The pool of each is made at its first use.
    Masters(Arc<SlotMapCache>),
}

/// The pools of one purpose, one for each server.
pub(crate) struct Pools<P: ServerPool = Pool> {
    config: PoolConfig,
    /// The server, or the cluster's first seed node.
    endpoint: Endpoint,
    servers: Servers<P>,
    pools: RwLock<HashMap<NodeAddress, P>>,
    /// Retired pools, whose scopes may still be open.
    retired: Mutex<Vec<(NodeAddress, P::Weak)>>,
    /// Generation of the slot map by which pools were last retired.
    pruned: AtomicU64,
    turn: AtomicU64,
    redirections: Counter,
    closed: AtomicBool,
}

impl<P: ServerPool> Router<P> {
    /// The router to one server.
    pub(crate) fn one(config: PoolConfig, endpoint: Endpoint) -> Self {
        let address = || endpoint.constant_address().to_owned();
        config.counters.metrics.name(&config.settings.pool_name, address, config.name);
        let pool = P::new(config.clone(), endpoint.clone());
        Self::new(config, endpoint, Servers::One(pool))
    }

    /// The router to the masters of a cluster.
    pub(crate) fn cluster(config: PoolConfig, slot_map: Arc<SlotMapCache>) -> Self {
        let config = PoolConfig { fail_fast: true, ..config };
        let address = || slot_map.address();
        config.counters.metrics.name(&config.settings.pool_name, address, config.name);
        Self::new(config, slot_map.first_endpoint().clone(), Servers::Masters(slot_map))
    }

    fn new(config: PoolConfig, endpoint: Endpoint, servers: Servers<P>) -> Self {
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

    /// The router to the replicas behind sentinels; without sentinels, to the server.
    pub(crate) fn of_replicas(&self) -> Self {
        let config =
            PoolConfig { name: "replicas", counters: Arc::default(), ..self.config.clone() };
        Self::one(config, self.endpoint.replicas())
    }

    pub(crate) fn weak(&self) -> WeakRouter<P> {
        WeakRouter { pools: Arc::downgrade(&self.pools) }
    }

    /// Returns a reference that keeps the pools alive.
    pub(crate) fn keep_alive(&self) -> Arc<dyn Any + Send + Sync> {
        Arc::<Pools<P>>::clone(&self.pools)
    }

    /// Takes a connection for a scope. Until the scope ends, it keeps the pools alive.
    pub(crate) async fn pin(
        &self,
        route: &Route,
        origin: &ScopeOrigin,
        deadline: Instant,
        offer: Option<WatchOffer<'_, TurnOf<P>>>,
    ) -> Result<P::Pin, CheckoutError> {
        let (mut search, mut failed) = (PoolSearch::default(), None);
        loop {
            let pool = match self.known_pool(route, deadline, &mut search, &mut failed)? {
                Some(pool) => pool,
                None => {
                    // Others may use the connection meanwhile.
                    if let Some(turn) = offer.and_then(|offer| offer.turn) {
                        drop(turn.take_connection());
                    }
                    self.pool_of(route, deadline, &mut search, failed).await?
                }
            };
            let (origin, router) = (origin.clone(), self.keep_alive());
            match pool.pin_watching(origin, deadline, route.ask, router, offer).await {
                Ok(pin) => return Ok(pin),
                Err(error) => failed = Some(error),
            }
        }
    }
}

impl<P: ServerPool> Pools<P> {
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

    /// Stops the opening of connections.
    pub(crate) fn stop_connecting(&self) {
        self.endpoint.close();
    }

    /// Returns the pool of the only server; `None`: the pool depends on the route.
    ///
    /// # Errors
    /// This process is not the one that made the session manager.
    pub(crate) fn only_pool(&self) -> Result<Option<&P>, CheckoutError> {
        self.here()?;
        Ok(match &self.servers {
            Servers::One(pool) => Some(pool),
            Servers::Masters(_) => None,
        })
    }

    /// Returns a slot of any master in a cluster.
    pub(crate) fn any_slot(&self) -> u16 {
        let served = self.slot_map().map(|map| map.map().masters_with_a_slot());
        let any = fastrand::choice(served.unwrap_or_default());
        any.map_or_else(|| fastrand::u16(..SLOTS), |(_, slot)| slot)
    }

    /// Returns the slot's master in a cluster, if it is known.
    pub(crate) fn master_of(&self, slot: u16) -> Option<NodeAddress> {
        self.slot_map()?.map().master(slot).cloned()
    }

    /// Returns the pool of the slot's master in a cluster, if it is known and in use already.
    #[cfg(feature = "tokio")]
    pub(crate) fn open_pool(&self, slot: u16) -> Option<P> {
        let slot_map = self.slot_map()?;
        self.prune(slot_map);
        let map = slot_map.map();
        let pools = self.pools.read().unwrap_or_else(PoisonError::into_inner);
        let pool = pools.get(map.master(slot)?)?.clone();
        (!self.closed.load(Ordering::Acquire)).then_some(pool)
    }

    /// Takes a connection for one round trip.
    pub(crate) async fn checkout(
        &self,
        route: &Route,
        deadline: Instant,
    ) -> Result<P::Line, CheckoutError> {
        self.checkout_with(route, deadline, &|| None).await
    }

    /// See [`ServerPool::checkout_with`]. A packet that needs ASKING is not sent by another caller.
    pub(crate) async fn checkout_with(
        &self,
        route: &Route,
        deadline: Instant,
        packet: &(impl Fn() -> Option<FirstPacket> + Sync),
    ) -> Result<P::Line, CheckoutError> {
        let packet = || if route.ask { None } else { packet() };
        let (mut search, mut failed) = (PoolSearch::default(), None);
        loop {
            let pool = self.pool_of(route, deadline, &mut search, failed).await?;
            match pool.checkout_with(deadline, &packet).await {
                Ok(line) => return Ok(P::with_ask(line, route.ask)),
                Err(error) => failed = Some(error),
            }
        }
    }

    /// The same if a connection is free; `None`: no connection is free.
    pub(crate) async fn try_checkout(
        &self,
        route: &Route,
        deadline: Instant,
    ) -> Result<Option<P::Line>, CheckoutError> {
        let (mut search, mut failed) = (PoolSearch::default(), None);
        loop {
            let pool = self.pool_of(route, deadline, &mut search, failed).await?;
            match pool.try_checkout(deadline).await {
                Ok(line) => return Ok(line.map(|line| P::with_ask(line, route.ask))),
                Err(error) => failed = Some(error),
            }
        }
    }

    /// See [`ServerPool::checkout_batched`].
    pub(crate) async fn checkout_batched(
        &self,
        route: &Route,
        deadline: Instant,
        response_wait: Duration,
        request: impl Fn() -> BatchRequest + Send + Sync,
    ) -> Result<BatchCheckout<P>, CheckoutError> {
        let (mut search, mut failed) = (PoolSearch::default(), None);
        loop {
            let pool = self.pool_of(route, deadline, &mut search, failed).await?;
            match pool.checkout_batched(deadline, response_wait, &request).await {
                Ok(checkout) => return Ok(checkout),
                Err(error) => failed = Some(error),
            }
        }
    }

    /// Takes a connection, or has another caller send the request in its batch. Requests that need
    /// ASKING are not batched.
    pub(crate) async fn join(
        &self,
        route: &Route,
        deadline: Instant,
        request: impl Fn() -> BatchRequest + Send + Sync,
    ) -> Result<Joined<P::Line>, Error> {
        if route.ask {
            return Ok(Joined::Alone(self.checkout(route, deadline).await?));
        }
        // The leader needs one round trip. Allow four: a tracing subscriber may delay it.
        let response_wait = 4 * self.settings().response_timeout;
        let checkout = match self.only_pool()? {
            Some(pool) => pool.checkout_batched(deadline, response_wait, &request).await?,
            None => boxed(self.checkout_batched(route, deadline, response_wait, request)).await?,
        };
        Ok(match checkout {
            BatchCheckout::Alone(line) => Joined::Alone(line),
            BatchCheckout::Lead(mut line, mut group) => {
                P::prepare_batch(&mut line, &mut group, deadline).await?;
                let within = line.response_deadline();
                Joined::Response(P::send_batch(line, group, within).await?)
            }
            BatchCheckout::Response(response) => Joined::Response(response),
        })
    }

    /// Returns the pool of the route. `failed`: the last one could not be used. If its server is gone
    /// and another one takes over by `deadline`, this returns the other's pool, else the error.
    async fn pool_of(
        &self,
        route: &Route,
        deadline: Instant,
        search: &mut PoolSearch,
        mut failed: Option<CheckoutError>,
    ) -> Result<P, CheckoutError> {
        match (self.known_pool(route, deadline, search, &mut failed)?, &self.servers) {
            (Some(pool), _) => Ok(pool),
            (None, Servers::One(pool)) => Ok(pool.clone()),
            (None, Servers::Masters(slot_map)) => {
                boxed(self.master(slot_map, route, deadline, search, failed)).await
            }
        }
    }

    /// The same without a wait. `None`: the slot map has no master, or that one `failed`.
    fn known_pool(
        &self,
        route: &Route,
        deadline: Instant,
        search: &mut PoolSearch,
        failed: &mut Option<CheckoutError>,
    ) -> Result<Option<P>, CheckoutError> {
        self.here()?;
        match &self.servers {
            Servers::One(pool) => failed.take().map_or_else(|| Ok(Some(pool.clone())), Err),
            Servers::Masters(slot_map) => {
                self.begin_search(slot_map, deadline, search);
                Ok(self.known_master(slot_map, route).filter(|_| failed.is_none()))
            }
        }
    }

    /// Returns the endpoint for a separate connection to a slot's node, or to any node.
    pub(crate) async fn endpoint(
        &self,
        route: &Route,
        deadline: Instant,
    ) -> Result<Endpoint, CheckoutError> {
        let pool = self.pool_of(route, deadline, &mut PoolSearch::default(), None).await?;
        Ok(pool.context().endpoint().clone())
    }

    /// All pools, also the retired ones that still have an open scope.
    pub(in crate::pool) fn all(&self) -> Vec<(NodeAddress, P)> {
        let pools = self.pools.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> =
            pools.iter().map(|(node, pool)| (node.clone(), pool.clone())).collect();
        drop(pools);
        let retired = lock(&self.retired);
        all.extend(
            retired.iter().filter_map(|(node, pool)| Some((node.clone(), P::upgrade(pool)?))),
        );
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        all
    }

    /// Whether one of the pools is so.
    pub(in crate::pool) fn is_any(&self, is_so: impl Fn(&P) -> bool) -> bool {
        match &self.servers {
            Servers::One(pool) => is_so(pool),
            Servers::Masters(_) => self.all().iter().any(|(_, pool)| is_so(pool)),
        }
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
            sum.lanes += part.lanes;
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

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.all().iter().for_each(|(_, pool)| pool.close());
    }
}

/// The search for a pool that can be used: its begin and its redirects, once it has begun.
#[derive(Default)]
struct PoolSearch(Option<(Instant, RedirectBudget)>);

/// The result of joining a batch.
pub(crate) enum Joined<L> {
    /// A connection for the caller alone.
    Alone(L),
    /// The request was sent.
    Response(BatchResponse),
}

/// In a forked child the threads belong to the parent.
impl Pools<Pool> {
    /// Whether this thread has an open scope.
    pub(crate) fn is_held_by_this_thread(&self) -> bool {
        self.is_any(Pool::is_held_by_this_thread)
    }
}

impl<P: ServerPool> Drop for Pools<P> {
    fn drop(&mut self) {
        if self.settings().is_forked_child() {
            std::mem::forget(Arc::clone(&self.config.threads));
        }
    }
}

impl<P: ServerPool> fmt::Debug for WeakRouter<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WeakRouter").finish_non_exhaustive()
    }
}

impl<P: ServerPool> fmt::Debug for Router<P> {
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
