//! The address of a master, as sentinels report it, and the sockets that lead there.
//!
//! A report is valid for a second, and ends at once when it is doubted. From the first connection
//! on, one thread receives failover messages and queries again each second. A socket to a replaced
//! server is not used. A report with an older epoch than another sentinel's is not accepted, unless
//! most sentinels report one. A sentinel that named a server which is no master is queried last.

#[cfg(test)]
#[path = "../../../tests/unit/sentinel.rs"]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use redis::{ConnectionInfo, RedisConnectionInfo as AuthInfo};
use scopeguard::guard;
use tracing::Level;

use crate::connection::connect::Server;
use crate::connection::sentinel::queries::{MasterConnection, SentinelQueries};
use crate::connection::sentinel::single_flight::{Flight, SingleFlight};
use crate::connection::url::{SentinelConfig, at_address};
use crate::error::config::ConfigError;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::logging::deferred::LogThread;
use crate::protocol::sentinel::{HostPort, MasterReport};
use crate::settings::settings::Settings;

/// Maximum age of a report that is used without a new query.
pub(crate) const FRESH: Duration = Duration::from_secs(1);
/// Minimum time that a sentinel gets to reply, even if no other one is left.
pub(crate) const LEAST: Duration = Duration::from_millis(50);
/// The same if the caller's time is nearly over.
const SHORTEST: Duration = Duration::from_millis(1);

/// The address of a master, as sentinels report it.
pub(crate) struct SentinelClient {
    pub(crate) name: String,
    pub(crate) sentinels: Vec<Server>,
    pub(crate) server_template: ConnectionInfo,
    /// Without a provider of credentials.
    pub(crate) settings: Settings,
    /// Maximum time of one query to all sentinels together.
    pub(crate) query_timeout: Duration,
    pub(crate) generation: AtomicU64,
    pub(crate) state: Mutex<SentinelState>,
    queries: SingleFlight,
    pub(crate) log_thread: Arc<LogThread>,
}

#[derive(Default)]
pub(crate) struct SentinelState {
    pub(crate) master: Option<Arc<Server>>,
    pub(crate) replicas: Vec<Arc<Server>>,
    pub(crate) epoch: u64,
    /// Time of the last report, unless it was doubted since.
    pub(crate) updated: Option<Instant>,
    /// Index of the sentinel that replied last.
    last_responder: usize,
    /// Index of the sentinel whose report a server last disproved.
    disproved: Option<usize>,
    /// The connections to the master.
    pub(crate) connections: Vec<Weak<dyn MasterConnection>>,
    /// The connections to replicas, with their addresses.
    of_replicas: Vec<(String, Weak<dyn MasterConnection>)>,
}

/// Ends the connections, and returns the number of those that were open.
fn end_all(connections: Vec<Weak<dyn MasterConnection>>) -> usize {
    let open = connections.into_iter().filter_map(|connection| connection.upgrade());
    open.map(|connection| usize::from(connection.end())).sum()
}

impl SentinelState {
    fn is_master(&self, server: &Server) -> bool {
        self.master.as_ref().is_some_and(|master| master.address() == server.address())
    }

    fn fresh(&self) -> Option<Arc<Server>> {
        let fresh = self.updated.is_some_and(|at| at.elapsed() < FRESH);
        self.master.clone().filter(|_| fresh)
    }

    /// Takes the connections to replicas that the sentinels do not call up and in step any more. If they call
    /// none so, as while the master is down, there is no better one to read from.
    fn take_stale(&mut self) -> Vec<Weak<dyn MasterConnection>> {
        let replicas = &self.replicas;
        if replicas.is_empty() {
            return Vec::new();
        }
        let is_stale = |at: &str| replicas.iter().all(|replica| replica.address() != at);
        let stale = self.of_replicas.extract_if(.., |(at, _)| is_stale(at));
        stale.map(|(_, connection)| connection).collect()
    }
}

impl SentinelClient {
    pub(crate) fn new(config: SentinelConfig, settings: &Settings) -> Result<Self, ConfigError> {
        let SentinelConfig { name, sentinels, server_template, .. } = config;
        // Refuses a wrong template before the first connect.
        Server::new(server_template.clone(), settings)?;
        let sentinel = |info: ConnectionInfo| Server::new(info, settings);
        Ok(Self {
            name,
            sentinels: sentinels.into_iter().map(sentinel).collect::<Result<_, _>>()?,
            server_template,
            // The provider's credentials are those of the servers.
            settings: Settings { credentials: None, ..settings.clone() },
            query_timeout: settings.connect_timeout / 2,
            generation: AtomicU64::new(0),
            state: Mutex::default(),
            queries: SingleFlight::default(),
            log_thread: Arc::default(),
        })
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(crate) fn auth_info(&self) -> &AuthInfo {
        self.server_template.redis_settings()
    }

    pub(crate) fn address(&self) -> String {
        match &self.state().master {
            Some(master) => format!("{} at {}", self.name, master.address()),
            None => self.name.clone(),
        }
    }

    pub(crate) fn host_and_port(&self) -> (String, u16) {
        match &self.state().master {
            Some(master) => {
                let (host, port) = master.host_and_port();
                (host.to_owned(), port)
            }
            None => (self.name.clone(), 0),
        }
    }

    pub(crate) fn invalidate(&self) {
        self.state().updated = None;
    }

    /// Records that the server is no master that the sentinels named in this generation: the next search
    /// begins with the other sentinels.
    pub(crate) fn disprove(&self, generation: u64) {
        let mut state = self.state();
        state.updated = None;
        if generation == self.generation() {
            state.disproved = Some(state.last_responder);
        }
    }

    /// Has the connection ended when another server takes the master's place.
    ///
    /// # Errors
    /// That has happened already.
    pub(crate) fn register(
        &self,
        master: &Server,
        connection: Weak<dyn MasterConnection>,
    ) -> Result<(), ConnectionError> {
        let mut state = self.state();
        if state.is_master(master) {
            state.connections.retain(|connection| connection.strong_count() > 0);
            state.connections.push(connection);
            return Ok(());
        }
        let text = "another server became the master while this one was connected to";
        Err(ConnectionError::new(ConnectionErrorKind::Closed, text))
    }

    /// The same for a server that may be a replica: its connection is ended when the sentinels do not call
    /// it up and in step any more.
    pub(crate) fn register_replica(&self, server: &Server, connection: Weak<dyn MasterConnection>) {
        if self.state().is_master(server) {
            // A failover meanwhile is found by the generation.
            let _: Result<(), ConnectionError> = self.register(server, connection);
            return;
        }
        let mut state = self.state();
        state.of_replicas.retain(|(_, connection)| connection.strong_count() > 0);
        state.of_replicas.push((server.address().to_owned(), connection));
    }

    /// Returns the master, and the time left to connect to it.
    pub(crate) async fn master_within<Q: SentinelQueries>(
        &self,
        timeout: Duration,
    ) -> Result<(Arc<Server>, Duration), ConnectionError> {
        let until = Instant::now() + timeout;
        let master = self.master::<Q>(until).await?;
        Ok((master, until.saturating_duration_since(Instant::now()).max(LEAST.min(timeout))))
    }

    /// The same for any replica that is in step; for the master if there is none.
    pub(crate) async fn replica_within<Q: SentinelQueries>(
        &self,
        timeout: Duration,
    ) -> Result<(Arc<Server>, Duration), ConnectionError> {
        let (master, left) = self.master_within::<Q>(timeout).await?;
        let state = self.state();
        let one = fastrand::usize(..state.replicas.len().max(1));
        Ok((state.replicas.get(one).cloned().unwrap_or(master), left))
    }

    /// Returns the known master, or queries the sentinels; the caller waits until `latest` at most.
    /// Dropped before its end, it has learned nothing, and another caller may query.
    pub(crate) async fn master<Q: SentinelQueries>(
        &self,
        latest: Instant,
    ) -> Result<Arc<Server>, ConnectionError> {
        let until = latest.min(Instant::now() + self.query_timeout);
        let flight = loop {
            match self.next_step(until) {
                Step::Known(master) => return Ok(master),
                Step::Query(flight) => break flight,
                Step::Wait if Instant::now() < until => {
                    Q::wait_for_query(&self.queries, until).await;
                }
                Step::Wait => {
                    return Err(ConnectionError::timed_out(
                        "other queries to the sentinels took the whole time",
                    ));
                }
            }
        };
        let (nth, answer) = self.ask::<Q>((until, latest)).await?;
        self.apply(&flight, nth, answer)
    }

    /// Returns what a caller does that needs the master by `until`.
    fn next_step(&self, until: Instant) -> Step<'_> {
        // Locked throughout: a query that ends meanwhile has a fresh report first.
        let state = self.state();
        match state.fresh() {
            Some(master) => Step::Known(master),
            None => self.queries.begin(until).map_or(Step::Wait, Step::Query),
        }
    }

    /// Applies the report of the `nth` sentinel, and returns the master. A report to a query that was overtaken
    /// is dropped: the later query may have learned more.
    fn apply(
        &self,
        flight: &Flight<'_>,
        nth: usize,
        answer: MasterReport,
    ) -> Result<Arc<Server>, ConnectionError> {
        // Dropped after the lock.
        let mut stale = guard(Vec::new(), |stale| _ = end_all(stale));
        let mut state = self.state();
        if !flight.is_current() {
            let overtaken = || ConnectionError::timed_out("another query has begun meanwhile");
            return state.fresh().ok_or_else(overtaken);
        }
        state.last_responder = nth;
        state.updated = Some(Instant::now());
        state.epoch = answer.epoch;
        state.replicas = answer.replicas.iter().filter_map(|at| self.server(at).ok()).collect();
        *stale = state.take_stale();
        let named = self.server(&answer.master)?;
        let before = state.master.clone();
        if let Some(same) = before.as_ref().filter(|before| before.address() == named.address()) {
            return Ok(Arc::clone(same));
        }
        state.master = Some(Arc::clone(&named));
        let Some(before) = before else { return Ok(named) };
        // From here on no older connection is used, and those in use end.
        self.generation.fetch_add(1, Ordering::AcqRel);
        let connections = std::mem::take(&mut state.connections);
        drop(state);
        let ended = end_all(connections);
        // Logged later: a caller waits for the master.
        let (master, from) = (self.name.clone(), before.address().to_owned());
        let to = named.address().to_owned();
        self.log_thread.log(Level::WARN, move || {
            tracing::warn!(
                master,
                from,
                to,
                ended,
                "another server is the master now: the connections to the former one were ended"
            );
        });
        Ok(named)
    }

    /// Queries one sentinel after the other, until one knows at least as much as was known.
    ///
    /// The time until `until` is divided among the sentinels. A share is at least [`LEAST`], unless
    /// `latest` leaves less.
    async fn ask<Q: SentinelQueries>(
        &self,
        (until, latest): (Instant, Instant),
    ) -> Result<(usize, MasterReport), ConnectionError> {
        let (epoch, first, disproved) = self.last_report();
        let count = self.sentinels.len();
        let (mut outdated, mut failed) = (Vec::new(), None::<ConnectionError>);
        let in_turn = (0..count).map(|tried| (first + tried) % count);
        let order = in_turn.filter(|nth| Some(*nth) != disproved).chain(disproved);
        for (tried, nth) in order.enumerate() {
            // Its report has been wrong, so the others decide if they can.
            if Some(nth) == disproved && outdated.len() > count / 2 {
                break;
            }
            let Some(sentinel) = self.sentinels.get(nth) else { continue };
            let now = Instant::now();
            let left = |end: Instant| end.saturating_duration_since(now);
            let share = share((left(until), left(latest)), count - tried);
            match Q::query(sentinel, &self.settings, &self.name, share).await {
                Ok(answer) if answer.epoch >= epoch => return Ok((nth, answer)),
                Ok(answer) => outdated.push((nth, answer)),
                Err(error) => {
                    self.log_failure(sentinel, &error);
                    // A refusal explains more than silence.
                    if failed.as_ref().is_none_or(ConnectionError::is_transient_failure) {
                        failed = Some(error);
                    }
                }
            }
        }
        // Most sentinels report an older epoch: the sentinels were reset.
        if outdated.len() > count / 2
            && let Some(best) = outdated.into_iter().max_by_key(|(_, answer)| answer.epoch)
        {
            return Ok(best);
        }
        let why = failed
            .unwrap_or_else(|| ConnectionError::unexpected("most of them report an older epoch"));
        Err(why.of_sentinels(&self.name))
    }

    /// Returns the epoch that is known, and the indexes of the sentinel that replied last and of the one whose
    /// report was disproved.
    fn last_report(&self) -> (u64, usize, Option<usize>) {
        let state = self.state();
        (state.epoch, state.last_responder, state.disproved)
    }

    fn log_failure(&self, sentinel: &Server, error: &ConnectionError) {
        let (sentinel, cause) = (sentinel.address().to_owned(), error.clone());
        self.log_thread.log(Level::DEBUG, move || {
            tracing::debug!(sentinel, error = %format_args!("{cause:#}"), "no reply from a sentinel");
        });
    }

    /// Returns the server at this address, with the settings of all of them.
    fn server(&self, (host, port): &HostPort) -> Result<Arc<Server>, ConnectionError> {
        let info = at_address(&self.server_template, host, *port);
        let server = Server::new(info, &self.settings);
        server.map(Arc::new).map_err(|_| ConnectionError::unexpected("no address to connect to"))
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, SentinelState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a caller does that needs the master.
enum Step<'c> {
    /// The last report is fresh.
    Known(Arc<Server>),
    /// The caller queries the sentinels.
    Query(Flight<'c>),
    /// Another caller's query runs.
    Wait,
}

/// Returns the time of one of `sentinels`, which share the time that is left; `latest`: the time that
/// the caller has left.
fn share((left, latest): (Duration, Duration), sentinels: usize) -> Duration {
    let share = |time: Duration| time / sentinels as u32;
    share(left).max(LEAST.min(share(latest))).max(SHORTEST)
}
