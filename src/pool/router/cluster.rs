//! The pools of a cluster, one for each master, made at their first use.
//!
//! The pool of a master that serves no slot any more is dropped as soon as that is known.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tracing::Level;

use crate::error::checkout::CheckoutError;
use crate::error::connection::ConnectionError;
use crate::error::open_scope::OpenScope;
use crate::pool::config::{Logging, PoolConfig};
use crate::pool::pool::{Pool, WeakPool};
use crate::pool::redirect_pause;
use crate::pool::router::slot_map_refresh::SlotMapCache;
use crate::protocol::cluster::redirect::RedirectReply;
use crate::protocol::cluster::route::{Redirect, RedirectBudget, Route, unserved};
use crate::protocol::cluster::slot_map::{NodeAddress, SlotMap};
use crate::settings::settings::Settings;
use crate::status::counters::{Counter, Counters};
use crate::status::node::NodeStatus;
use crate::status::report::PoolStatus;
use crate::sync::lock;

/// A pool for each master of a cluster.
pub(crate) struct Cluster {
    kind: PoolConfig,
    slot_map: Arc<SlotMapCache>,
    pools: RwLock<HashMap<NodeAddress, Pool>>,
    /// Retired pools, whose scopes may still be open.
    retired: Mutex<Vec<(NodeAddress, WeakPool)>>,
    /// Generation of the slot map by which pools were last retired.
    pruned: AtomicU64,
    turn: AtomicU64,
    redirections: Counter,
    closed: AtomicBool,
}

impl Cluster {
    pub(crate) fn new(kind: PoolConfig, slot_map: Arc<SlotMapCache>) -> Self {
        Self {
            kind,
            slot_map,
            pools: RwLock::default(),
            retired: Mutex::default(),
            pruned: AtomicU64::new(0),
            turn: AtomicU64::new(0),
            redirections: Counter::default(),
            closed: AtomicBool::new(false),
        }
    }

    pub(crate) fn settings(&self) -> &Arc<Settings> {
        self.slot_map.settings()
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.kind.counters
    }

    pub(crate) fn logging(&self) -> &Logging {
        &self.kind.logging
    }

    pub(crate) fn address(&self) -> String {
        let seeds: Vec<_> = self.slot_map.seeds().iter().map(ToString::to_string).collect();
        seeds.join(",")
    }

    pub(crate) fn host_and_port(&self) -> (&str, u16) {
        self.slot_map.seeds().first().map_or(("", 0), |seed| (&*seed.host, seed.port))
    }

    /// Runs `call` with the route's pool. If its server is gone and another one has taken over
    /// by `deadline`, runs it again with the other pool.
    pub(crate) fn with_pool<T>(
        &self,
        route: &Route,
        deadline: Instant,
        mut call: impl FnMut(&Pool) -> Result<T, CheckoutError>,
    ) -> Result<T, CheckoutError> {
        self.prune();
        let begun = Instant::now();
        let mut budget = RedirectBudget::until(deadline);
        loop {
            let reached = match self.node(route, deadline) {
                Some(node) => self.pool(&node).and_then(|pool| call(&pool)),
                None => {
                    let source = self
                        .slot_map
                        .failure()
                        .unwrap_or_else(|| ConnectionError::refused(unserved(route.slot)));
                    Err(CheckoutError::Connect { waited: begun.elapsed(), source })
                }
            };
            let error = match reached {
                Ok(reached) => return Ok(reached),
                Err(error) => error,
            };
            match self.on_unreachable(route, &error, deadline) {
                // Only the node that redirected the call here decides its next route.
                Some(_) if route.node.is_some() => return Err(error),
                Some(redirect) if redirect_pause::try_next(&mut budget, &redirect) => {}
                _ => {
                    return Err(match error {
                        CheckoutError::Connect { source, .. } => {
                            CheckoutError::Connect { waited: begun.elapsed(), source }
                        }
                        error => error,
                    });
                }
            }
        }
    }

    /// Returns the node of the route. Refreshes the slot map if the map has none.
    fn node(&self, route: &Route, deadline: Instant) -> Option<NodeAddress> {
        if let Some(node) = &route.node {
            return Some(node.clone());
        }
        let found = |map: &SlotMap| match route.slot {
            Some(slot) => map.master(slot).cloned(),
            None => self.any(map),
        };
        found(&self.slot_map.map()).or_else(|| {
            self.refresh(None, deadline);
            self.prune();
            found(&self.slot_map.map())
        })
    }

    /// Begins to open a connection to the route's master, if the map has one. This sends no query.
    pub(crate) fn warm(&self, route: &Route) {
        let node = route.node.clone().or_else(|| self.slot_map.map().master(route.slot?).cloned());
        if let Some(pool) = node.and_then(|node| self.pool(&node).ok()) {
            pool.warm();
        }
    }

    /// Returns any master, each in its turn.
    fn any(&self, map: &SlotMap) -> Option<NodeAddress> {
        let masters = map.masters();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) as usize;
        masters.get(turn.checked_rem(masters.len())?).cloned()
    }

    fn refresh(&self, first: Option<&NodeAddress>, deadline: Instant) {
        self.slot_map.refresh(first, deadline.min(self.refreshed_by()));
    }

    /// Returns the deadline of a refresh: one exchange with a node that replies, and one connect
    /// for each node that does not.
    fn refreshed_by(&self) -> Instant {
        Instant::now() + self.settings().connect_timeout + self.settings().response_timeout
    }

    /// Retires the pools of former masters.
    fn prune(&self) {
        let generation = self.slot_map.generation();
        if self.pruned.swap(generation, Ordering::AcqRel) == generation {
            return;
        }
        let map = self.slot_map.map();
        let mut pools = self.pools.write().unwrap_or_else(PoisonError::into_inner);
        let mut retired = lock(&self.retired);
        retired.retain(|(_, pool)| pool.get().is_some());
        pools.retain(|node, pool| {
            let serves = map.masters().contains(node);
            if !serves {
                let (gone, name) = (node.clone(), self.kind.name);
                self.kind.logging.log_thread.log(Level::INFO, move || {
                    tracing::info!(
                        server.address = %gone.host, server.port = gone.port,
                        pool = name, "the node is no longer a master"
                    );
                });
                pool.retire();
                retired.push((node.clone(), pool.weak()));
            }
            serves
        });
    }

    fn pool(&self, node: &NodeAddress) -> Result<Pool, CheckoutError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(CheckoutError::Closed);
        }
        let pools = self.pools.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(node) {
            return Ok(pool.clone());
        }
        drop(pools);
        let endpoint = self.slot_map.endpoint(node).map_err(|_| CheckoutError::Connect {
            waited: Duration::ZERO,
            source: ConnectionError::unexpected("an address that cannot be used"),
        })?;
        let mut pools = self.pools.write().unwrap_or_else(PoisonError::into_inner);
        // If a caller has closed all pools meanwhile, it has not closed this one.
        if self.closed.load(Ordering::Acquire) {
            return Err(CheckoutError::Closed);
        }
        let pool = pools.entry(node.clone()).or_insert_with(|| {
            Pool::new(PoolConfig { fail_fast: true, ..self.kind.clone() }, endpoint)
        });
        Ok(pool.clone())
    }

    /// Returns the routes to all masters that serve a slot.
    pub(crate) fn all_masters(&self, deadline: Instant) -> Result<Vec<Route>, CheckoutError> {
        self.with_pool(&Route::default(), deadline, |_| Ok(()))?;
        let map = self.slot_map.map();
        Ok(map.masters_with_slots().map(|node| Route::to_node(node.clone())).collect())
    }

    pub(crate) fn redirect_for(&self, route: &Route, reply: &RedirectReply) -> Option<Redirect> {
        let here = route.node.clone().or_else(|| self.slot_map.map().master(route.slot?).cloned());
        let from = here.as_ref().map_or_else(|| self.host_and_port().0, |node| &node.host);
        let redirect = route.redirected(reply, from)?;
        match reply {
            RedirectReply::Moved { slot, to } => {
                let to = NodeAddress::of(to, from);
                if self.slot_map.map().master(*slot) != Some(&to) {
                    // The new owner's map is newer than the map of any other node.
                    self.refresh(Some(&to), self.refreshed_by());
                    self.slot_map.moved(*slot, &to);
                }
            }
            RedirectReply::Ask { .. } => {}
            RedirectReply::TryAgain => self.refresh(None, self.refreshed_by()),
        }
        self.redirections.add();
        tracing::debug!(slot = route.slot, to = ?redirect, "redirected");
        Some(redirect)
    }

    pub(crate) fn on_unreachable(
        &self,
        route: &Route,
        error: &CheckoutError,
        deadline: Instant,
    ) -> Option<Redirect> {
        match error {
            CheckoutError::Connect { source, .. } if source.is_transient_failure() => {}
            // Only this pool is closed, because its server is no longer a master.
            CheckoutError::Closed if !self.closed.load(Ordering::Acquire) => {}
            _ => return None,
        }
        self.refresh(None, deadline);
        self.prune();
        Some(Redirect::Unreachable(Route::to(route.slot)))
    }

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
        let map = self.slot_map.map();
        let mut sum = PoolStatus {
            name: self.kind.name,
            size: 0,
            max_size: 0,
            in_use: 0,
            idle: 0,
            waiting: 0,
            counts: self.counters().counts(),
            scopes: Vec::new(),
            last_connect_error: self.slot_map.failure(),
            nodes: Vec::new(),
            redirections: self.redirections.get(),
        };
        for (node, pool) in self.all() {
            let part = pool.status();
            sum.size += part.size;
            sum.max_size += part.max_size;
            sum.in_use += part.in_use;
            sum.idle += part.idle;
            sum.waiting += part.waiting;
            sum.scopes.extend(part.scopes);
            sum.nodes.push(NodeStatus {
                address: node.to_string(),
                slots: map.slot_count(&node),
                size: part.size,
                in_use: part.in_use,
                idle: part.idle,
                waiting: part.waiting,
                last_connect_error: part.last_connect_error,
            });
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
impl Drop for Cluster {
    fn drop(&mut self) {
        if self.settings().is_forked_child() {
            std::mem::forget(Arc::clone(&self.kind.threads));
        }
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("name", &self.kind.name)
            .field("slot_map", &self.slot_map)
            .finish_non_exhaustive()
    }
}
