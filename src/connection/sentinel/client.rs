//! The address of a master, as sentinels report it, and the sockets that lead there.
//!
//! A report is valid for a second, and ends at once when it is doubted. From the first connection
//! on, one thread receives failover messages and queries again each second. A socket to a replaced
//! server is not used. A report with an older epoch than another sentinel's is not accepted, unless
//! most sentinels report one.

use std::net::Shutdown;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use redis::{ConnectionInfo, RedisConnectionInfo as AuthInfo};
use scopeguard::defer;
use tracing::Level;

use crate::connection::connect::{Connected, Server};
use crate::connection::url::{SentinelConfig, at_address};
use crate::error::config::ConfigError;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::logging::deferred::LogThread;
use crate::process::sockets::OwnSocket;
use crate::process::worker::BackgroundWorker;
use crate::protocol::sentinel::{HostPort, MasterReport, parse};
use crate::settings::settings::Settings;

/// Maximum age of a report that is used without a new query.
pub(crate) const FRESH: Duration = Duration::from_secs(1);
/// Minimum time that a sentinel gets to reply, even if no other one is left.
const LEAST: Duration = Duration::from_millis(50);
/// The same if the caller's time is nearly over.
const SHORTEST: Duration = Duration::from_millis(1);

/// The address of a master, as sentinels report it.
pub(crate) struct SentinelClient {
    pub(crate) name: String,
    pub(crate) sentinels: Vec<Server>,
    pub(crate) server_template: ConnectionInfo,
    pub(crate) settings: Settings,
    /// Maximum time of one query to all sentinels together.
    pub(crate) query_timeout: Duration,
    pub(crate) generation: AtomicU64,
    pub(crate) watcher: BackgroundWorker<()>,
    pub(crate) state: Mutex<SentinelState>,
    pub(crate) changed: Condvar,
    pub(crate) log_thread: Arc<LogThread>,
}

#[derive(Default)]
pub(crate) struct SentinelState {
    pub(crate) master: Option<Arc<Server>>,
    pub(crate) replicas: Vec<Arc<Server>>,
    pub(crate) epoch: u64,
    /// Time of the last report, unless it was doubted since.
    pub(crate) updated: Option<Instant>,
    /// Whether a query is in progress.
    pub(crate) asking: bool,
    /// Index of the sentinel that replied last.
    pub(crate) last_responder: usize,
    pub(crate) sockets: Vec<Weak<OwnSocket>>,
}

impl SentinelState {
    fn fresh(&self) -> Option<Arc<Server>> {
        let fresh = self.updated.is_some_and(|at| at.elapsed() < FRESH);
        self.master.clone().filter(|_| fresh)
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
            settings: settings.clone(),
            query_timeout: settings.connect_timeout / 2,
            generation: AtomicU64::new(0),
            watcher: BackgroundWorker::new("rediscope-sentinel", ()),
            state: Mutex::default(),
            changed: Condvar::new(),
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

    pub(crate) fn close(&self) {
        self.watcher.close();
    }

    /// Has the connection ended when another server takes the master's place.
    ///
    /// # Errors
    /// That has happened already.
    pub(crate) fn register(
        &self,
        master: &Server,
        connected: &Connected,
    ) -> Result<(), ConnectionError> {
        let mut state = self.state();
        if state.master.as_ref().is_none_or(|now| now.address() != master.address()) {
            let text = "another server became the master while this one was connected to";
            return Err(ConnectionError::new(ConnectionErrorKind::Closed, text));
        }
        state.sockets.retain(|socket| socket.strong_count() > 0);
        state.sockets.push(Arc::downgrade(connected.socket()));
        Ok(())
    }

    /// Returns the master, and the time left to connect to it.
    pub(crate) fn master_within(
        self: &Arc<Self>,
        timeout: Duration,
    ) -> Result<(Arc<Server>, Duration), ConnectionError> {
        let until = Instant::now() + timeout;
        let master = self.master(until)?;
        Ok((master, until.saturating_duration_since(Instant::now()).max(LEAST.min(timeout))))
    }

    /// The same for any replica that is in step; for the master if there is none.
    pub(crate) fn replica_within(
        self: &Arc<Self>,
        timeout: Duration,
    ) -> Result<(Arc<Server>, Duration), ConnectionError> {
        let (master, left) = self.master_within(timeout)?;
        let state = self.state();
        let one = fastrand::usize(..state.replicas.len().max(1));
        Ok((state.replicas.get(one).cloned().unwrap_or(master), left))
    }

    /// Returns the known master, or queries the sentinels; the caller waits until `latest` at most.
    pub(crate) fn master(
        self: &Arc<Self>,
        latest: Instant,
    ) -> Result<Arc<Server>, ConnectionError> {
        self.watch();
        let until = latest.min(Instant::now() + self.query_timeout);
        let mut state = self.state();
        loop {
            if let Some(master) = state.fresh() {
                return Ok(master);
            }
            if !state.asking {
                break;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ConnectionError::timed_out(
                    "other queries to the sentinels took the whole time",
                ));
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.asking = true;
        let (epoch, first) = (state.epoch, state.last_responder);
        drop(state);
        defer! {
            self.state().asking = false;
            self.changed.notify_all();
        }
        let (nth, answer) = self.ask(epoch, first, (until, latest))?;
        let mut state = self.state();
        state.last_responder = nth;
        self.apply(&mut state, answer)
    }

    /// Applies a sentinel's report.
    fn apply(
        &self,
        state: &mut SentinelState,
        answer: MasterReport,
    ) -> Result<Arc<Server>, ConnectionError> {
        state.updated = Some(Instant::now());
        state.epoch = answer.epoch;
        state.replicas = answer.replicas.iter().filter_map(|at| self.server(at).ok()).collect();
        let named = self.server(&answer.master)?;
        let before = state.master.clone();
        if let Some(same) = before.as_ref().filter(|before| before.address() == named.address()) {
            return Ok(Arc::clone(same));
        }
        state.master = Some(Arc::clone(&named));
        let Some(before) = before else { return Ok(named) };
        // From here on no older connection is used, and those in use end.
        self.generation.fetch_add(1, Ordering::AcqRel);
        let mut ended = 0;
        for socket in std::mem::take(&mut state.sockets) {
            if let Some(socket) = socket.upgrade() {
                // The shutdown fails if the other side was faster.
                ended += usize::from(socket.shutdown(Shutdown::Both).is_ok());
            }
        }
        // Logged later: the state is locked, and a tracing subscriber may need it.
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
    fn ask(
        &self,
        epoch: u64,
        first: usize,
        (until, latest): (Instant, Instant),
    ) -> Result<(usize, MasterReport), ConnectionError> {
        let count = self.sentinels.len();
        let (mut outdated, mut failed) = (Vec::new(), None::<ConnectionError>);
        for tried in 0..count {
            let nth = (first + tried) % count;
            let Some(sentinel) = self.sentinels.get(nth) else { continue };
            let now = Instant::now();
            let share = |end: Instant| end.saturating_duration_since(now) / (count - tried) as u32;
            let share = share(until).max(LEAST.min(share(latest))).max(SHORTEST);
            match self.question(sentinel, share) {
                Ok(answer) if answer.epoch >= epoch => return Ok((nth, answer)),
                Ok(answer) => outdated.push((nth, answer)),
                Err(error) => {
                    let (sentinel, cause) = (sentinel.address().to_owned(), error.clone());
                    self.log_thread.log(Level::DEBUG, move || {
                        tracing::debug!(sentinel, error = %format_args!("{cause:#}"), "no reply from a sentinel");
                    });
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

    fn question(
        &self,
        sentinel: &Server,
        timeout: Duration,
    ) -> Result<MasterReport, ConnectionError> {
        let until = Instant::now() + timeout;
        let mut connection = sentinel.client(sentinel.auth_info(), timeout)?;
        let mut bytes = Vec::new();
        // The epoch comes first: an address may be newer than it, never older.
        for what in ["MASTER", "GET-MASTER-ADDR-BY-NAME", "REPLICAS"] {
            bytes.extend(redis::cmd("SENTINEL").arg(what).arg(&self.name).get_packed_command());
        }
        let mut asked = || {
            let least = LEAST.min(timeout);
            let left = || until.saturating_duration_since(Instant::now()).max(least);
            connection.set_write_timeout(Some(left()))?;
            connection.send_packed_command(&bytes)?;
            let mut answers = Vec::with_capacity(3);
            for _ in 0..3 {
                connection.set_read_timeout(Some(left()))?;
                answers.push(connection.recv_response()?);
            }
            Ok(answers)
        };
        let answers = asked().map_err(|error: redis::RedisError| ConnectionError::of(&error))?;
        Ok(parse(&answers)?)
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
