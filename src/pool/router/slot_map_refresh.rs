//! The slot map of a cluster, and its refresh from the nodes.
//!
//! A caller that needs a new map refreshes it, on a connection of its own that is closed
//! afterwards; the others go on with the map they have. One refresh runs at a time, and not
//! right after another.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, TryLockError};
use std::time::{Duration, Instant};

use redis::{ConnectionAddr, ConnectionInfo, Value};
use tracing::Level;

use crate::connection::connection::Connection;
use crate::connection::deadline::Deadline;
use crate::connection::endpoint::Endpoint;
use crate::connection::handshake::OpenOptions;
use crate::connection::io::Io;
use crate::connection::threads::Threads;
use crate::connection::url::{at_address, is_tls};
use crate::error::config::ConfigError;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::logging::deferred::LogThread;
use crate::protocol::cluster::route::{Route, unserved};
use crate::protocol::cluster::slot::SLOTS;
use crate::protocol::cluster::slot_map::{NodeAddress, SlotMap};
use crate::protocol::resp::encode;
use crate::settings::settings::Settings;
use crate::sync::lock;
use crate::sync::now::now;

/// Minimum delay between refreshes.
const INTERVAL: Duration = Duration::from_millis(50);

/// The slot map of a cluster, and its refresh.
pub(crate) struct SlotMapCache {
    /// The seed nodes of the cluster. All nodes use the user, password, protocol and TLS of the
    /// first one.
    seeds: Vec<NodeAddress>,
    first_endpoint: Endpoint,
    template: ConnectionInfo,
    settings: Arc<Settings>,
    map: RwLock<Arc<SlotMap>>,
    /// Number of maps received.
    generation: AtomicU64,
    /// When the last refresh ended. Locked during a refresh, so no caller may wait for it.
    asking: Mutex<Option<Instant>>,
    /// Error of the last refresh, if it failed.
    failure: Mutex<Option<ConnectionError>>,
    log_thread: Arc<LogThread>,
}

impl SlotMapCache {
    pub(crate) fn new(
        nodes: Vec<ConnectionInfo>,
        settings: Arc<Settings>,
    ) -> Result<Self, ConfigError> {
        let seeds: Vec<_> = nodes
            .iter()
            .filter_map(|node| match node.addr() {
                ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                    Some(NodeAddress::new(host, *port))
                }
                _ => None,
            })
            .collect();
        let template = nodes.into_iter().next().ok_or_else(|| ConfigError::Address {
            reason: "a cluster without a node".to_owned(),
        })?;
        Ok(Self {
            seeds,
            // A wrong address is an error now, not at the first use.
            first_endpoint: Endpoint::new(template.clone(), &settings)?,
            template,
            settings,
            map: RwLock::default(),
            generation: AtomicU64::new(0),
            asking: Mutex::default(),
            failure: Mutex::default(),
            log_thread: Arc::default(),
        })
    }

    /// The endpoint of the first seed node.
    pub(crate) fn first_endpoint(&self) -> &Endpoint {
        &self.first_endpoint
    }

    /// The addresses of the seed nodes.
    pub(crate) fn address(&self) -> String {
        self.seeds.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    /// The node of the route, as far as it is known.
    pub(crate) fn known(&self, route: &Route) -> Option<NodeAddress> {
        route.node.clone().or_else(|| self.map().master(route.slot?).cloned())
    }

    pub(crate) fn map(&self) -> Arc<SlotMap> {
        Arc::clone(&self.map.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the number of maps received.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Records that the slot belongs to another node: its former master replied with MOVED.
    pub(crate) fn moved(&self, slot: u16, to: &NodeAddress) {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        Arc::make_mut(&mut map).set_master(slot, to);
    }

    /// Returns the endpoint of the node at this address, with the settings of the others.
    pub(crate) fn endpoint(&self, node: &NodeAddress) -> Result<Endpoint, ConfigError> {
        Endpoint::new(at_address(&self.template, &node.host, node.port), &self.settings)
    }

    /// Error of the last slot-map refresh, if it failed.
    pub(crate) fn failure(&self) -> Option<ConnectionError> {
        lock(&self.failure).clone()
    }

    /// Refreshes the map, unless another caller does or has just done so. Queries `first`, then the
    /// known masters in any order, then the seeds, until one replies. This ends by `deadline`, and
    /// within one `connect_timeout` and one `response_timeout` in all.
    pub(crate) fn refresh(&self, first: Option<&NodeAddress>, deadline: Option<Instant>) {
        let own = Instant::now() + self.settings.connect_timeout + self.settings.response_timeout;
        let deadline = deadline.map_or(own, |deadline| deadline.min(own));
        let mut last = match self.asking.try_lock() {
            Ok(last) => last,
            // A caller panicked in here once; the mutex guards only an instant.
            Err(TryLockError::Poisoned(last)) => last.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let is_fresh = |last: Instant| last.elapsed() < INTERVAL;
        if last.is_some_and(is_fresh) {
            return;
        }
        let known = self.map();
        let mut masters: Vec<_> = known.masters().iter().collect();
        fastrand::shuffle(&mut masters);
        let mut asked: Vec<&NodeAddress> = Vec::new();
        for node in first.into_iter().chain(masters).chain(&self.seeds) {
            if asked.contains(&node) {
                continue;
            }
            asked.push(node);
            match self.ask(node, deadline) {
                Ok(map) => {
                    let (masters, served) = (map.masters().len(), map.slots_served());
                    *self.map.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(map);
                    self.generation.fetch_add(1, Ordering::Release);
                    *lock(&self.failure) = None;
                    // Logged later: a tracing subscriber may need the map.
                    let node = node.clone();
                    self.log_thread.log(Level::DEBUG, move || {
                        tracing::debug!(
                            server.address = %node.host, server.port = node.port, masters, served,
                            "slot map refreshed"
                        );
                    });
                    break;
                }
                Err(error) => {
                    let (node, cause) = (node.clone(), error.clone());
                    self.log_thread.log(Level::DEBUG, move || {
                        tracing::debug!(
                            server.address = %node.host, server.port = node.port,
                            error = %format_args!("{cause:#}"), "no slot map from this node"
                        );
                    });
                    // The end of the caller's time proves less than an earlier failure.
                    let late =
                        error.kind() == ConnectionErrorKind::TimedOut && Instant::now() >= deadline;
                    let mut failure = lock(&self.failure);
                    if !late || failure.is_none() {
                        *failure = Some(error);
                    }
                }
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        *last = Some(Instant::now());
    }

    fn ask(&self, node: &NodeAddress, deadline: Instant) -> Result<SlotMap, ConnectionError> {
        let refused = |_| ConnectionError::unexpected("an address that cannot be used");
        let endpoint = self.endpoint(node).map_err(refused)?;
        let mut connection =
            now(Threads::open(&endpoint, &self.settings, OpenOptions::for_query(0, deadline)))?;
        let limit = Deadline::after(self.settings.response_timeout).capped(deadline);
        let tls = is_tls(&self.template);
        let shards = question(&mut connection, "SHARDS", limit)?;
        let map = SlotMap::of_shards(&shards, &node.host, tls);
        if let Some(map) = &map
            && map.slots_served() == usize::from(SLOTS)
        {
            return Ok(map.clone());
        }
        // Older servers do not know SHARDS; and if slots are missing, the other reply may have
        // them.
        let slots = question(&mut connection, "SLOTS", limit)?;
        let other = SlotMap::of_slots(&slots, &node.host);
        let best = map.into_iter().chain(other).max_by_key(SlotMap::slots_served);
        best.filter(|map| map.slots_served() > 0).ok_or_else(|| match slots {
            Value::ServerError(error) => ConnectionError::refused(
                crate::protocol::server_error::ServerError::from_reply(&error, false),
            ),
            _ => ConnectionError::refused(unserved(None)),
        })
    }
}

fn question(
    connection: &mut Connection,
    word: &'static str,
    limit: Deadline,
) -> Result<Value, ConnectionError> {
    let mut bytes = Vec::with_capacity(64);
    encode::command(&mut bytes, &["CLUSTER", word], |_| {});
    let mut reply = Value::Nil;
    now(connection.ask(&bytes, 1, limit, |_, value| reply = value)).map_err(|(_, error)| error)?;
    Ok(reply)
}

impl fmt::Debug for SlotMapCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlotMapCache")
            .field("seeds", &self.seeds)
            .field("map", &self.map())
            .finish_non_exhaustive()
    }
}
