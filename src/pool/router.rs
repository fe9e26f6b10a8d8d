//! Which pool a slot's connections come from: the one there is, or that of the slot's master.
//!
//! Handles and scopes know this and no pool. With one server nothing is looked up.
//!
//! Never: a place made up. Where nobody serves a slot, it is waited for.

#![cfg_attr(
    not(feature = "cluster"),
    allow(dead_code, unused_variables, reason = "with one server nobody is sent on")
)]

#[cfg(feature = "cluster")]
pub(crate) mod cluster;
#[cfg(feature = "cluster")]
pub(crate) mod slot_map_refresh;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::connection::endpoint::Endpoint;
use crate::error::checkout::CheckoutError;
use crate::error::open_scope::OpenScope;
use crate::logging::deferred::Herald;
use crate::logging::rate_limit::Alarms;
use crate::pool::checkout::Lease;
#[cfg(feature = "cluster")]
use crate::pool::router::cluster::Cluster;
use crate::pool::scopes::{Owner, Pin};
use crate::pool::{Joined, Pool, Voice, WeakPool};
use crate::protocol::batch::BatchRequest;
#[cfg(feature = "cluster")]
use crate::protocol::cluster::redirect::RedirectReply;
use crate::protocol::cluster::route::{Redirect, Route};
use crate::protocol::cluster::slot::SlotBinding;
use crate::settings::Settings;
use crate::settings::credentials::Provider;
use crate::status::{Counters, PoolStatus};

/// A time in which connections lead to the same server and have said the same.
pub(crate) type Term = (u64, Option<u64>);

/// The pools of one purpose. Clones are the same pools.
#[derive(Clone)]
pub(crate) struct Nodes {
    set: Set,
}

impl Drop for Nodes {
    fn drop(&mut self) {
        // A forked child that drops it will never use it: the sockets are closed there.
        let _: bool = self.settings().is_left();
    }
}

#[derive(Clone)]
enum Set {
    One(Pool),
    #[cfg(feature = "cluster")]
    Many(Arc<Cluster>),
}

/// What a scope knows of them: a scope that was forgotten keeps none of them alive.
pub(crate) struct WeakNodes {
    set: WeakSet,
}

enum WeakSet {
    One(WeakPool),
    #[cfg(feature = "cluster")]
    Many(std::sync::Weak<Cluster>),
}

impl WeakNodes {
    /// `None` once nobody can use them any more.
    pub(crate) fn get(&self) -> Option<Nodes> {
        let set = match &self.set {
            WeakSet::One(pool) => Set::One(pool.get()?),
            #[cfg(feature = "cluster")]
            WeakSet::Many(cluster) => Set::Many(cluster.upgrade()?),
        };
        Some(Nodes { set })
    }
}

impl Nodes {
    pub(crate) fn one(pool: Pool) -> Self {
        Self { set: Set::One(pool) }
    }

    #[cfg(feature = "cluster")]
    pub(crate) fn cluster(cluster: Cluster) -> Self {
        Self { set: Set::Many(Arc::new(cluster)) }
    }

    pub(crate) fn weak(&self) -> WeakNodes {
        let set = match &self.set {
            Set::One(pool) => WeakSet::One(pool.weak()),
            #[cfg(feature = "cluster")]
            Set::Many(cluster) => WeakSet::Many(Arc::downgrade(cluster)),
        };
        WeakNodes { set }
    }

    /// The one pool, where there is one server.
    pub(crate) fn single(&self) -> Option<&Pool> {
        match &self.set {
            Set::One(pool) => Some(pool),
            #[cfg(feature = "cluster")]
            Set::Many(_) => None,
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
        match &self.set {
            Set::One(pool) => pool.settings(),
            #[cfg(feature = "cluster")]
            Set::Many(cluster) => cluster.settings(),
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
        match &self.set {
            Set::One(pool) => pool.counters(),
            #[cfg(feature = "cluster")]
            Set::Many(cluster) => cluster.counters(),
        }
    }

    pub(crate) fn alarms(&self) -> &Alarms {
        &self.voice().alarms
    }

    /// Writes the events of threads that must not wait for a log.
    pub(crate) fn herald(&self) -> &Arc<Herald> {
        &self.voice().herald
    }

    fn voice(&self) -> &Voice {
        match &self.set {
            Set::One(pool) => pool.voice(),
            #[cfg(feature = "cluster")]
            Set::Many(cluster) => cluster.voice(),
        }
    }

    /// A cluster has one database.
    pub(crate) fn db(&self) -> i64 {
        self.single().map_or(0, |pool| pool.endpoint().db())
    }

    /// Of the server, or of the nodes that the cluster was named by.
    pub(crate) fn address(&self) -> String {
        match &self.set {
            Set::One(pool) => pool.endpoint().address().into_owned(),
            #[cfg(feature = "cluster")]
            Set::Many(cluster) => cluster.address(),
        }
    }

    /// For spans: of the server, or of the first node that the cluster was named by.
    pub(crate) fn host_and_port(&self) -> (Cow<'_, str>, u16) {
        match &self.set {
            Set::One(pool) => pool.endpoint().host_and_port(),
            #[cfg(feature = "cluster")]
            Set::Many(cluster) => {
                let (host, port) = cluster.host_and_port();
                (host.into(), port)
            }
        }
    }

    /// Whether another server may take the place of the one there is.
    pub(crate) fn may_switch(&self) -> bool {
        self.single().is_some_and(|pool| pool.endpoint().may_switch())
    }

    /// Differs each time that another one has, or that connections are to say anew who they are.
    pub(crate) fn term(&self) -> Term {
        let switches = self.single().map_or(0, |pool| pool.endpoint().term());
        (switches, self.settings().credentials.as_ref().map(Provider::version))
    }

    /// Nobody connects any more.
    pub(crate) fn cease(&self) {
        if let Some(pool) = self.single() {
            pool.endpoint().close();
        }
    }

    /// A link for one round trip.
    pub(crate) fn lease(&self, route: &Route, deadline: Instant) -> Result<Lease, CheckoutError> {
        self.reach(route, deadline, |pool| pool.lease(deadline))
            .map(|lease| lease.asking(route.ask))
    }

    /// The same where one is free; `None`: none is.
    pub(crate) fn try_lease(
        &self,
        route: &Route,
        deadline: Instant,
    ) -> Result<Option<Lease>, CheckoutError> {
        self.reach(route, deadline, |pool| pool.try_lease(deadline))
            .map(|lease| lease.map(|lease| lease.asking(route.ask)))
    }

    /// Begins to open a connection to where the route leads, unless there is one.
    pub(crate) fn warm(&self, route: &Route) {
        match &self.set {
            Set::One(pool) => pool.warm(),
            #[cfg(feature = "cluster")]
            Set::Many(cluster) => cluster.warm(route),
        }
    }

    /// A link for calls that may all be sent again, or their answers, where another caller sends
    /// them along. What was sent along is not waited for past the deadline.
    pub(crate) fn join_calls(
        &self,
        route: &Route,
        deadline: Instant,
        mut job: impl FnMut() -> BatchRequest,
    ) -> Result<Joined, CheckoutError> {
        self.reach(route, deadline, |pool| pool.join_for(deadline, Duration::ZERO, &mut job))
    }

    /// A link for a scope.
    pub(crate) fn pin(
        &self,
        route: &Route,
        owner: &Owner,
        deadline: Instant,
    ) -> Result<Pin, CheckoutError> {
        self.reach(route, deadline, |pool| pool.pin(owner.clone(), deadline, route.ask))
    }

    /// See [`Pool::join`]. Whoever is to be asked for leave each time goes alone.
    pub(crate) fn join(
        &self,
        route: &Route,
        deadline: Instant,
        mut job: impl FnMut() -> BatchRequest,
    ) -> Result<Joined, CheckoutError> {
        if route.ask {
            return self.lease(route, deadline).map(Joined::Alone);
        }
        self.reach(route, deadline, |pool| pool.join(deadline, &mut job))
    }

    /// Does something with the pool of the route, and with another one where its server is gone and
    /// another one has taken over by `deadline`.
    fn reach<T>(
        &self,
        route: &Route,
        deadline: Instant,
        mut call: impl FnMut(&Pool) -> Result<T, CheckoutError>,
    ) -> Result<T, CheckoutError> {
        self.here()?;
        match &self.set {
            Set::One(pool) => call(pool),
            #[cfg(feature = "cluster")]
            Set::Many(cluster) => cluster.reach(route, deadline, call),
        }
    }

    /// A connection of its own is to be opened for a slot's questions, or for any.
    pub(crate) fn endpoint(
        &self,
        route: &Route,
        deadline: Instant,
    ) -> Result<Endpoint, CheckoutError> {
        self.reach(route, deadline, |pool| Ok(pool.endpoint().clone()))
    }

    /// The ways to all masters, to ask each of them the same.
    pub(crate) fn everybody(&self, deadline: Instant) -> Result<Vec<Route>, CheckoutError> {
        match &self.set {
            Set::One(_) => Ok(vec![Route::default()]),
            #[cfg(feature = "cluster")]
            Set::Many(cluster) => cluster.everybody(deadline),
        }
    }

    /// How a call is sent again after a server rejected it with this error. `None`: the error is the
    /// call's result.
    pub(crate) fn redirect_for(&self, route: &Route, code: &str, text: &str) -> Option<Redirect> {
        match &self.set {
            Set::One(_) => None,
            #[cfg(feature = "cluster")]
            Set::Many(cluster) => cluster.redirect_for(route, &RedirectReply::of(code, text)?),
        }
    }

    /// The same after no connection to the server could be had, by `deadline` at the latest.
    pub(crate) fn on_unreachable(
        &self,
        route: &Route,
        error: &CheckoutError,
        deadline: Instant,
    ) -> Option<Redirect> {
        match &self.set {
            Set::One(_) => None,
            #[cfg(feature = "cluster")]
            Set::Many(cluster) => cluster.on_unreachable(route, error, deadline),
        }
    }

    pub(crate) fn scopes(&self) -> Vec<OpenScope> {
        match &self.set {
            Set::One(pool) => pool.scopes(),
            #[cfg(feature = "cluster")]
            Set::Many(cluster) => cluster.scopes(),
        }
    }

    pub(crate) fn status(&self) -> PoolStatus {
        match &self.set {
            Set::One(pool) => pool.status(),
            #[cfg(feature = "cluster")]
            Set::Many(cluster) => cluster.status(),
        }
    }

    pub(crate) fn close(&self) {
        match &self.set {
            Set::One(pool) => pool.close(),
            #[cfg(feature = "cluster")]
            Set::Many(cluster) => cluster.close(),
        }
    }

    pub(crate) fn drain(&self, deadline: Instant) -> usize {
        match &self.set {
            Set::One(pool) => pool.drain(deadline),
            #[cfg(feature = "cluster")]
            Set::Many(cluster) => cluster.drain(deadline),
        }
    }
}

impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.settings().is_left() {
            return f.write_str("Nodes of another process");
        }
        match &self.set {
            Set::One(pool) => fmt::Debug::fmt(pool, f),
            #[cfg(feature = "cluster")]
            Set::Many(cluster) => fmt::Debug::fmt(cluster, f),
        }
    }
}

impl fmt::Debug for WeakNodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WeakNodes")
    }
}
