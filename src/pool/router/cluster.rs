//! The pools of a cluster, one for each master, made at their first use.
//!
//! The pool of a node that is no master of the cluster any more is dropped as soon as that is known.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tracing::Level;

use crate::connection::endpoint::Endpoint;
use crate::connection::io::Io;
use crate::error::checkout::CheckoutError;
use crate::error::connection::ConnectionError;
use crate::pool::redirect_pause;
use crate::pool::router::slot_map_refresh::{INTERVAL, SlotMapCache};
use crate::pool::router::{PoolSearch, Pools, Servers};
use crate::pool::server_pool::ServerPool;
use crate::protocol::cluster::redirect::RedirectReply;
use crate::protocol::cluster::route::{Redirect, RedirectBudget, Route, unserved};
use crate::protocol::cluster::slot_map::{NodeAddress, SlotMap};
use crate::sync::boxed::boxed;
use crate::sync::lock;

/// Maximum number of refreshes of the slot map for one probe of readiness.
const MOST_REFRESHES: u32 = 3;

impl<P: ServerPool> Pools<P> {
    /// Notes the begin of a search, unless it has begun.
    pub(super) fn begin_search<'s>(
        &self,
        slot_map: &SlotMapCache,
        deadline: Instant,
        PoolSearch(search): &'s mut PoolSearch,
    ) -> &'s mut (Instant, RedirectBudget) {
        search.get_or_insert_with(|| {
            self.prune(slot_map);
            (Instant::now(), RedirectBudget::until(deadline))
        })
    }

    /// Returns the pool of the route's master, if the slot map has that master.
    pub(super) fn known_master(&self, slot_map: &SlotMapCache, route: &Route) -> Option<P> {
        self.pool(slot_map, &slot_map.known(route)?).ok()
    }

    /// Returns the pool of the route's master. `failed`: the last one could not be used. If its server
    /// is gone and another one takes over by `deadline`, this returns the other's pool.
    pub(super) async fn master(
        &self,
        slot_map: &SlotMapCache,
        route: &Route,
        deadline: Instant,
        search: &mut PoolSearch,
        mut failed: Option<CheckoutError>,
    ) -> Result<P, CheckoutError> {
        let (begun, budget) = self.begin_search(slot_map, deadline, search);
        loop {
            if let Some(error) = failed {
                match self.on_unreachable(route, &error, deadline).await {
                    // Only the node that redirected the call here decides its next route.
                    Some(_) if route.node.is_some() => return Err(error),
                    Some(redirect)
                        if redirect_pause::try_next::<P::Io>(budget, &redirect).await => {}
                    _ if P::Io::is_cancelled() => return Err(CheckoutError::Cancelled),
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
            failed = Some(match self.node(slot_map, route, deadline).await {
                Some(node) => match self.pool(slot_map, &node) {
                    Ok(pool) => return Ok(pool),
                    Err(error) => error,
                },
                None => {
                    let source = slot_map
                        .failure()
                        .unwrap_or_else(|| ConnectionError::refused(unserved(route.slot)));
                    CheckoutError::Connect { waited: begun.elapsed(), source }
                }
            });
        }
    }

    /// Returns the node of the route. Refreshes the slot map if the map has none.
    async fn node(
        &self,
        slot_map: &SlotMapCache,
        route: &Route,
        deadline: Instant,
    ) -> Option<NodeAddress> {
        if let Some(node) = &route.node {
            return Some(node.clone());
        }
        let found = |map: &SlotMap| match route.slot {
            Some(slot) => map.master(slot).cloned(),
            None => self.any(map),
        };
        if let Some(node) = found(&slot_map.map()) {
            return Some(node);
        }
        boxed(slot_map.refresh::<P::Io>(None, Some(deadline))).await;
        self.prune(slot_map);
        found(&slot_map.map())
    }

    /// Begins to open a connection for the route, unless there is one. This sends no query: the
    /// slot map may have no master for it.
    pub(crate) fn warm(&self, route: &Route) {
        let pool = match &self.servers {
            Servers::One(pool) => Some(pool.clone()),
            Servers::Masters(slot_map) => self.known_master(slot_map, route),
        };
        if let Some(pool) = pool {
            pool.warm();
        }
    }

    /// Returns any master, each in its turn.
    fn any(&self, map: &SlotMap) -> Option<NodeAddress> {
        let masters = map.masters();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) as usize;
        masters.get(turn.checked_rem(masters.len())?).cloned()
    }

    /// Retires the pools of former masters.
    pub(super) fn prune(&self, slot_map: &SlotMapCache) {
        let generation = slot_map.generation();
        if self.pruned.load(Ordering::Acquire) == generation
            || self.pruned.swap(generation, Ordering::AcqRel) == generation
        {
            return;
        }
        let map = slot_map.map();
        let mut pools = self.pools.write().unwrap_or_else(PoisonError::into_inner);
        let mut retired = lock(&self.retired);
        retired.retain(|(_, pool)| P::upgrade(pool).is_some());
        pools.retain(|node, pool| {
            let serves = map.masters().contains(node);
            if !serves {
                let (gone, name) = (node.clone(), self.config.name);
                self.log_thread().log(Level::INFO, move || {
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

    fn pool(&self, slot_map: &SlotMapCache, node: &NodeAddress) -> Result<P, CheckoutError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(CheckoutError::Closed);
        }
        let pools = self.pools.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(node) {
            return Ok(pool.clone());
        }
        drop(pools);
        let endpoint = slot_map.endpoint(node).map_err(|_| CheckoutError::Connect {
            waited: Duration::ZERO,
            source: ConnectionError::unexpected("an address that cannot be used"),
        })?;
        let mut pools = self.pools.write().unwrap_or_else(PoisonError::into_inner);
        // If a caller has closed all pools meanwhile, it has not closed this one.
        if self.closed.load(Ordering::Acquire) {
            return Err(CheckoutError::Closed);
        }
        let pool =
            pools.entry(node.clone()).or_insert_with(|| P::new(self.config.clone(), endpoint));
        Ok(pool.clone())
    }

    /// Returns the routes to all masters, for a command that goes to each of them.
    pub(crate) async fn all_masters(&self, deadline: Instant) -> Result<Vec<Route>, CheckoutError> {
        self.pool_of(&Route::default(), deadline, &mut PoolSearch::default(), None).await?;
        let Some(slot_map) = self.slot_map() else { return Ok(vec![Route::default()]) };
        let map = slot_map.map();
        Ok(map.masters_with_slots().map(|node| Route::to_node(node.clone())).collect())
    }

    /// Returns the endpoint of each server that takes writes, in a cluster with one of its slots.
    /// `refreshes`: the slot map is refreshed first; it also is while a slot has no master.
    ///
    /// # Errors
    /// A slot has no master.
    pub(crate) async fn every_master(
        &self,
        mut refreshes: bool,
        deadline: Instant,
    ) -> Result<Vec<(Endpoint, Option<u16>)>, ConnectionError> {
        let Some(slot_map) = self.slot_map() else {
            return Ok(vec![(self.endpoint.clone(), None)]);
        };
        let mut refreshed = 0;
        loop {
            let map = slot_map.map();
            let unserved_slot = map.first_unserved();
            let left = deadline.saturating_duration_since(Instant::now());
            let is_last = refreshed == MOST_REFRESHES || left.is_zero();
            if unserved_slot.is_none() && (!refreshes || is_last) {
                let masters = map.masters_with_a_slot().into_iter();
                let endpoints = masters.map(|(node, slot)| {
                    let endpoint = slot_map.endpoint(&node);
                    endpoint.map(|endpoint| (endpoint, Some(slot)))
                });
                let unusable = "an address that cannot be used";
                let endpoints = endpoints.collect::<Result<_, _>>();
                return endpoints.map_err(|_| ConnectionError::unexpected(unusable));
            }
            if is_last {
                let unserved = || ConnectionError::refused(unserved(unserved_slot));
                return Err(slot_map.failure().unwrap_or_else(unserved));
            }
            if refreshed > 0 {
                // Another call refreshes it now, or has just done so.
                P::Io::pause(INTERVAL.min(left)).await;
            }
            boxed(slot_map.refresh::<P::Io>(None, Some(deadline))).await;
            self.prune(slot_map);
            (refreshes, refreshed) = (false, refreshed + 1);
        }
    }

    /// Returns how a call is sent again after a server rejected it with this error. `None`: the
    /// error is the call's result.
    pub(crate) async fn redirect_for(
        &self,
        route: &Route,
        code: &str,
        text: &str,
    ) -> Option<Redirect> {
        let slot_map = self.slot_map()?;
        let reply = RedirectReply::of(code, text)?;
        let here = slot_map.known(route);
        let from =
            here.as_ref().map_or_else(|| self.host_and_port().0, |node| (&*node.host).into());
        let redirect = route.redirected(&reply, &from)?;
        match &reply {
            RedirectReply::Moved { slot, to } => {
                let to = NodeAddress::of(to, &from);
                if slot_map.map().master(*slot) != Some(&to) {
                    // The new owner's map is newer than the map of any other node.
                    boxed(slot_map.refresh::<P::Io>(Some(&to), None)).await;
                    slot_map.moved(*slot, &to);
                }
            }
            RedirectReply::Ask { .. } => {}
            RedirectReply::TryAgain => boxed(slot_map.refresh::<P::Io>(None, None)).await,
        }
        self.redirections.add();
        tracing::debug!(slot = route.slot, to = ?redirect, "redirected");
        Some(redirect)
    }

    /// The same after no connection to the server was available, by `deadline` at the latest.
    pub(crate) async fn on_unreachable(
        &self,
        route: &Route,
        error: &CheckoutError,
        deadline: Instant,
    ) -> Option<Redirect> {
        let slot_map = self.slot_map()?;
        match error {
            CheckoutError::Connect { source, .. } if source.is_transient_failure() => {}
            // Only this pool is closed, because its server is no longer a master.
            CheckoutError::Closed if !self.closed.load(Ordering::Acquire) => {}
            _ => return None,
        }
        boxed(slot_map.refresh::<P::Io>(None, Some(deadline))).await;
        self.prune(slot_map);
        Some(Redirect::Unreachable(Route::to(route.slot)))
    }
}
