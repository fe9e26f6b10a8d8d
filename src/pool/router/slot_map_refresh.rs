//! The slot map of a cluster, and its refresh from the nodes.
//!
//! A caller that needs a new map refreshes it, on a connection of its own that is closed
//! afterwards; the others go on with the map they have. One refresh runs at a time, and not
//! right after another.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use redis::{ConnectionAddr, ConnectionInfo, Value};
use tracing::Level;

use crate::connection::connection::Connection;
use crate::connection::deadline::Deadline;
use crate::connection::endpoint::Endpoint;
use crate::connection::handshake::OpenOptions;
use crate::connection::io::Io;
use crate::connection::url::{at_address, is_tls};
use crate::connection::wire::Wire;
use crate::error::config::ConfigError;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::logging::deferred::LogThread;
use crate::protocol::cluster::route::{Route, unserved};
use crate::protocol::cluster::slot::SLOTS;
use crate::protocol::cluster::slot_map::{NodeAddress, SlotMap};
use crate::protocol::resp::encode::{self, EncodedCommand};
use crate::protocol::server_error::ServerError;
use crate::settings::settings::Settings;
use crate::sync::lock;
use crate::sync::own_mutex::OwnMutex;

/// Minimum delay between refreshes.
pub(super) const INTERVAL: Duration = Duration::from_millis(50);

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
    refreshes: OwnMutex<Refreshes>,
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
            refreshes: OwnMutex::default(),
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
    /// within one `connect_timeout` and one `response_timeout` in all. Dropped before its end, it
    /// keeps the map.
    pub(crate) async fn refresh<I: Io>(
        &self,
        first: Option<&NodeAddress>,
        deadline: Option<Instant>,
    ) {
        let own = Instant::now() + self.settings.connect_timeout + self.settings.response_timeout;
        let deadline = deadline.map_or(own, |deadline| deadline.min(own));
        let Some(turn) = RefreshTurn::begin(&self.refreshes, deadline) else { return };
        let known = self.map();
        let mut masters: Vec<_> = known.masters().iter().collect();
        fastrand::shuffle(&mut masters);
        for node in each_once(first.into_iter().chain(masters).chain(&self.seeds)) {
            match self.ask::<I>(node, deadline).await {
                Ok(map) => {
                    self.set(&turn, map, node);
                    break;
                }
                // A later refresh may have learned more.
                Err(_) if !turn.is_current() => break,
                Err(error) => self.on_failure(error, node, Instant::now() >= deadline),
            }
            if Instant::now() >= deadline {
                break;
            }
        }
    }

    /// Takes the map that the node has returned, unless the refresh was overtaken.
    fn set(&self, turn: &RefreshTurn<'_>, map: SlotMap, node: &NodeAddress) {
        let (masters, served) = (map.masters().len(), map.slots_served());
        let mut current = self.map.write().unwrap_or_else(PoisonError::into_inner);
        // Under the map's lock: the map of a refresh that begins now comes later.
        if !turn.is_current() {
            return;
        }
        *current = Arc::new(map);
        drop(current);
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
    }

    /// Records that the node has returned no map. `late`: the caller's time is over.
    fn on_failure(&self, error: ConnectionError, node: &NodeAddress, late: bool) {
        let (node, cause) = (node.clone(), error.clone());
        self.log_thread.log(Level::DEBUG, move || {
            tracing::debug!(
                server.address = %node.host, server.port = node.port,
                error = %format_args!("{cause:#}"), "no slot map from this node"
            );
        });
        // The end of the caller's time proves less than an earlier failure.
        let proves_less = late && error.kind() == ConnectionErrorKind::TimedOut;
        let mut failure = lock(&self.failure);
        if !proves_less || failure.is_none() {
            *failure = Some(error);
        }
    }

    async fn ask<I: Io>(
        &self,
        node: &NodeAddress,
        deadline: Instant,
    ) -> Result<SlotMap, ConnectionError> {
        let refused = |_| ConnectionError::unexpected("an address that cannot be used");
        let endpoint = self.endpoint(node).map_err(refused)?;
        let settings = Arc::clone(&self.settings);
        let (node, has_tls) = (node.clone(), is_tls(&self.template));
        let query = async move { ask::<I>(endpoint, &settings, &node, has_tls, deadline).await };
        let asked = I::apart(&self.settings, deadline, Box::pin(query)).await;
        asked.unwrap_or_else(|| Err(ConnectionError::timed_out("no slot map in time")))
    }
}

/// Asks one node for its slot map, on a connection of its own.
async fn ask<I: Io>(
    endpoint: Endpoint,
    settings: &Settings,
    node: &NodeAddress,
    has_tls: bool,
    deadline: Instant,
) -> Result<SlotMap, ConnectionError> {
    let options = OpenOptions::for_query(0, deadline);
    let mut connection = I::open(&endpoint, settings, options).await?;
    let limit = Deadline::after(settings.response_timeout).capped(deadline);
    let shards = question(&mut connection, "SHARDS", limit).await?;
    let map = SlotMap::of_shards(&shards, &node.host, has_tls);
    if let Some(map) = &map
        && map.slots_served() == usize::from(SLOTS)
    {
        return Ok(map.clone());
    }
    let slots = question(&mut connection, "SLOTS", limit).await?;
    better(map, slots, node)
}

/// Returns each node once, at its first place.
fn each_once<'n>(nodes: impl Iterator<Item = &'n NodeAddress>) -> Vec<&'n NodeAddress> {
    let mut once = Vec::new();
    for node in nodes {
        if !once.contains(&node) {
            once.push(node);
        }
    }
    once
}

/// Returns the map that serves more slots: the one of SHARDS, or the one of the reply to SLOTS. Older
/// servers do not know SHARDS; and if slots are missing, the other reply may have them.
fn better(
    map: Option<SlotMap>,
    slots: Value,
    node: &NodeAddress,
) -> Result<SlotMap, ConnectionError> {
    let other = SlotMap::of_slots(&slots, &node.host);
    let best = map.into_iter().chain(other).max_by_key(SlotMap::slots_served);
    best.filter(|map| map.slots_served() > 0).ok_or_else(|| match slots {
        Value::ServerError(error) => {
            ConnectionError::refused(ServerError::from_reply(&error, false))
        }
        _ => ConnectionError::refused(unserved(None)),
    })
}

async fn question<W: Wire>(
    connection: &mut Connection<W>,
    word: &'static str,
    limit: Deadline,
) -> Result<Value, ConnectionError> {
    let mut bytes = Vec::new();
    encode::command(&mut bytes, &EncodedCommand::new(&["CLUSTER", word]), |_| {});
    let mut reply = Value::Nil;
    let asked = connection.ask(&bytes, 1, limit, &mut |_, value| reply = value).await;
    asked.map(|()| reply).map_err(|(_, error)| error)
}

/// The refresh that runs, and when the last one ended.
#[derive(Debug, Default)]
struct Refreshes {
    /// Number and deadline of the refresh. One that is not over by then belongs to a task that is
    /// polled no more, and another one may begin.
    running: Option<(u64, Instant)>,
    last: u64,
    ended: Option<Instant>,
}

/// The only refresh that runs. Its drop ends the refresh, also while a panic unwinds.
struct RefreshTurn<'c> {
    refreshes: &'c OwnMutex<Refreshes>,
    number: u64,
}

impl Drop for RefreshTurn<'_> {
    fn drop(&mut self) {
        let Some(mut state) = self.refreshes.lock_in_drop() else { return };
        if state.running.is_some_and(|(number, _)| number == self.number) {
            (state.running, state.ended) = (None, Some(Instant::now()));
        }
    }
}

impl<'c> RefreshTurn<'c> {
    /// Returns whether no other refresh has begun since.
    fn is_current(&self) -> bool {
        self.refreshes.lock().running.is_some_and(|(number, _)| number == self.number)
    }

    /// `None`: a refresh runs, or has just ended.
    fn begin(refreshes: &'c OwnMutex<Refreshes>, deadline: Instant) -> Option<Self> {
        let mut state = refreshes.lock();
        let is_running = state.running.is_some_and(|(_, until)| until > Instant::now());
        if is_running || state.ended.is_some_and(|ended| ended.elapsed() < INTERVAL) {
            return None;
        }
        state.last += 1;
        state.running = Some((state.last, deadline));
        Some(Self { refreshes, number: state.last })
    }
}

impl fmt::Debug for SlotMapCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlotMapCache")
            .field("seeds", &self.seeds)
            .field("map", &self.map())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Future, pending};
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;
    use crate::connection::io::Io;
    use crate::connection::transport::Transport;
    use crate::sync::now::now;
    #[cfg(unix)]
    use crate::sync::own_mutex::tests::is_dropped_in_a_child;

    /// No connection is ever opened.
    struct Silent;

    impl Io for Silent {
        type Wire = Transport;

        async fn login_version(_: &Endpoint, _: &Settings, _: Instant) -> Option<u64> {
            pending().await
        }

        async fn pause(_: Duration) {
            pending().await
        }

        async fn open(
            _: &Endpoint,
            _: &Settings,
            _: OpenOptions,
        ) -> Result<Connection, ConnectionError> {
            pending().await
        }
    }

    fn cache() -> SlotMapCache {
        let node = redis::IntoConnectionInfo::into_connection_info("redis://127.0.0.1:1").unwrap();
        SlotMapCache::new(vec![node], Arc::new(Settings::default())).unwrap()
    }

    /// Returns whether the refresh sends a query to a node.
    fn asks(refresh: impl Future<Output = ()>) -> bool {
        pin!(refresh).poll(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    #[test]
    fn a_refresh_may_move_between_threads_on_each_side() {
        fn is_send<T: Send>(_: &T) {}
        fn refresh_is_send<I: Io>(cache: &SlotMapCache) {
            is_send(&cache.refresh::<I>(None, None));
        }
        refresh_is_send::<Silent>(&cache());
    }

    #[test]
    fn one_refresh_runs_at_a_time_and_a_dropped_one_lets_the_next_begin() {
        let cache = cache();
        let mut first = Box::pin(cache.refresh::<Silent>(None, None));
        assert!(first.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        now(cache.refresh::<Silent>(None, None));
        drop(first);
        let ended = cache.refreshes.lock().ended.unwrap();
        while !asks(cache.refresh::<Silent>(None, None)) {
            assert!(ended.elapsed() < Duration::from_secs(20), "no refresh begins again");
        }
        assert!(ended.elapsed() >= INTERVAL, "right after another one");
    }

    #[test]
    fn a_panic_ends_the_refresh() {
        let refreshes = OwnMutex::default();
        let panicked = std::panic::catch_unwind(|| {
            let _turn = RefreshTurn::begin(&refreshes, later()).unwrap();
            panic!("planted");
        });
        assert!(panicked.is_err());
        let state = refreshes.lock();
        assert!(state.running.is_none() && state.ended.is_some());
    }

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn a_refresh_that_is_polled_no_more_holds_up_others_until_its_deadline_only() {
        let refreshes = OwnMutex::default();
        let left = RefreshTurn::begin(&refreshes, Instant::now()).unwrap();
        let next = RefreshTurn::begin(&refreshes, later()).unwrap();
        drop(left);
        assert!(refreshes.lock().running.is_some(), "the former refresh ends no other one");
        drop(next);
        assert!(refreshes.lock().running.is_none());
    }

    #[cfg(unix)]
    #[test]
    fn a_refresh_ends_in_a_forked_child() {
        let refreshes = OwnMutex::default();
        is_dropped_in_a_child(&refreshes, RefreshTurn::begin(&refreshes, later()));
        assert!(refreshes.lock().running.is_none());
    }

    #[test]
    fn a_refresh_that_was_overtaken_sets_no_map() {
        let (cache, node) = (cache(), NodeAddress::new("node", 1));
        let left = RefreshTurn::begin(&cache.refreshes, Instant::now()).unwrap();
        let next = RefreshTurn::begin(&cache.refreshes, later()).unwrap();
        cache.set(&left, SlotMap::default(), &node);
        assert_eq!(cache.generation(), 0);
        cache.set(&next, SlotMap::default(), &node);
        assert_eq!(cache.generation(), 1);
        drop(next);
        cache.set(&left, SlotMap::default(), &node);
        assert_eq!(cache.generation(), 1);
    }

    #[test]
    fn each_node_is_asked_once_the_named_one_first() {
        let node = |port| NodeAddress::new("node", port);
        let (moved, masters, seeds) = (node(2), [node(1), node(2), node(3)], [node(3), node(4)]);
        let asked = each_once([&moved].into_iter().chain(&masters).chain(&seeds));
        assert_eq!(asked, [&node(2), &node(1), &node(3), &node(4)]);
    }

    #[test]
    fn the_end_of_the_time_does_not_hide_an_earlier_failure() {
        let cache = cache();
        let node = NodeAddress::new("node", 1);
        let timed_out = || ConnectionError::timed_out("no reply");
        let kind = || cache.failure().unwrap().kind();
        cache.on_failure(timed_out(), &node, true);
        assert_eq!(kind(), ConnectionErrorKind::TimedOut);
        cache.on_failure(ConnectionError::unexpected("a refusal"), &node, true);
        let refusal = kind();
        cache.on_failure(timed_out(), &node, true);
        assert_eq!(kind(), refusal);
        cache.on_failure(timed_out(), &node, false);
        assert_eq!(kind(), ConnectionErrorKind::TimedOut);
    }
}
