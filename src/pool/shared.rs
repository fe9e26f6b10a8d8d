//! The state that a pool shares with the threads or tasks that open its connections.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use tracing::Level;

use crate::connection::connection::Connection;
use crate::connection::endpoint::Endpoint;
use crate::connection::handshake::OpenOptions;
use crate::connection::wire::Wire;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::logging::deferred::LogThread;
use crate::pool::connect_attempts::ConnectAttempts;
use crate::process::sockets::OwnSocket;
use crate::protocol::handshake::Purpose;
use crate::status::counters::Counters;
use crate::status::metrics::Started;
use crate::sync::lock;

/// Minimum number of consecutive connects that end at MULTI, and minimum time between the first and
/// the last. From then on calls fail without a further attempt.
const ATTEMPTS_AT_MULTI: u32 = 3;
const TIME_AT_MULTI: Duration = Duration::from_millis(300);

/// The state that a pool shares with the threads or tasks that open its connections.
#[derive(Default)]
pub(crate) struct PoolShared {
    /// Shared by all pools of one purpose: in a cluster each master has a pool.
    pub(crate) counters: Arc<Counters>,
    /// The pool's own generation; connections of an older one are replaced.
    pub(crate) generation: AtomicU64,
    pub(crate) attempts: Arc<ConnectAttempts>,
    /// Whether the server has reported that it has WAITAOF.
    pub(crate) knows_waitaof: AtomicBool,
    /// Whether the pool is closed: no connection is used any more. The idle store would still open
    /// its `min_idle`.
    pub(crate) closed: AtomicBool,
    /// Number of connections that are open or being opened, including those that the idle store does
    /// not count yet.
    alive: AtomicUsize,
    sockets: Mutex<Vec<Weak<OwnSocket>>>,
    last_connect_failure: Mutex<Option<ConnectFailure>>,
    /// When the first of the consecutive connects that ended at MULTI did so, and their number.
    closed_at_multi: Mutex<Option<(Instant, u32)>>,
    /// Runs after a connection was opened and before the idle store lists it.
    #[cfg(test)]
    pub(crate) before_listing: Mutex<Option<Box<dyn Fn() + Send>>>,
}

/// A connect that failed.
#[derive(Clone)]
pub(crate) struct ConnectFailure {
    /// When the attempt began, and when it ended.
    pub(crate) begun: Instant,
    pub(crate) ended: Instant,
    pub(crate) error: ConnectionError,
}

/// Counts one connection, from before its first byte to after its last.
pub(crate) struct CountedConnection {
    shared: Arc<PoolShared>,
    /// When the attempt to open it began.
    pub(crate) begun: Instant,
}

impl CountedConnection {
    pub(crate) fn new(shared: &Arc<PoolShared>) -> Self {
        // Counted before `closed` is read: a pool that has set it sees either this count or the
        // refusal.
        shared.alive.fetch_add(1, Ordering::SeqCst);
        Self { shared: Arc::clone(shared), begun: Instant::now() }
    }
}

impl Drop for CountedConnection {
    fn drop(&mut self) {
        self.shared.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

impl PoolShared {
    pub(crate) fn new(counters: Arc<Counters>) -> Self {
        Self { counters, ..Self::default() }
    }

    /// Returns a number that rises with the pool's own generation and with each failover.
    pub(crate) fn generation(&self, endpoint: &Endpoint) -> u64 {
        self.generation.load(Ordering::Acquire) + endpoint.generation()
    }

    /// Number of connections that are open or being opened.
    pub(crate) fn alive(&self) -> usize {
        self.alive.load(Ordering::SeqCst)
    }

    /// Closes the pool for new connections; one that is being opened is closed on arrival.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Keeps the socket with which the connection can be closed while a call uses it.
    pub(crate) fn register_socket(&self, connection: &Connection) {
        let Some(socket) = connection.socket() else { return };
        let mut sockets = lock(&self.sockets);
        sockets.retain(|socket| socket.strong_count() > 0);
        sockets.push(Arc::downgrade(socket));
    }

    /// Shuts down the sockets of all connections. Calls that use one fail.
    pub(crate) fn shut_down_sockets(&self) {
        for socket in std::mem::take(&mut *lock(&self.sockets)) {
            if let Some(socket) = socket.upgrade() {
                socket.shut_down();
            }
        }
    }

    /// Records whether a connect ended at MULTI. Returns true if enough consecutive connects did,
    /// for long enough. The cause is then a proxy without transactions, and not a server that
    /// stopped or killed connections.
    pub(crate) fn repeats_closed_at_multi(&self, at_multi: bool) -> bool {
        let mut closed = lock(&self.closed_at_multi);
        if !at_multi {
            *closed = None;
            return false;
        }
        let (since, attempts) = closed.get_or_insert((Instant::now(), 0));
        *attempts += 1;
        *attempts >= ATTEMPTS_AT_MULTI && since.elapsed() >= TIME_AT_MULTI
    }

    /// Returns the options of a connection that is opened now.
    pub(crate) fn open_options(&self, purpose: Purpose, endpoint: &Endpoint) -> OpenOptions {
        // Read before the connection exists: if its server is found to be gone during the
        // handshake, the connection belongs to the former generation.
        let generation = self.generation(endpoint);
        // After a connect that the peer closed, MULTI is sent alone, so that the next error shows
        // whether MULTI is the reason.
        let last = self.connect_error();
        let multi_apart = last.is_some_and(|error| error.kind() == ConnectionErrorKind::Closed);
        OpenOptions { purpose, multi_apart, generation, deadline: None }
    }

    /// Records the outcome of a connect that began at `since`, and returns it.
    ///
    /// # Errors
    /// The connect failed, or the pool was closed meanwhile.
    pub(crate) fn opened<W: Wire>(
        &self,
        mut opened: Result<Connection<W>, ConnectionError>,
        since: Instant,
        endpoint: &Endpoint,
        log_thread: &Arc<LogThread>,
        begun: Started,
    ) -> Result<Connection<W>, ConnectionError> {
        self.ensure_open()?;
        let at_multi = matches!(&opened, Err(error) if error.is_closed_at_multi());
        if self.repeats_closed_at_multi(at_multi) {
            opened = opened.map_err(ConnectionError::permanent);
        }
        let address = endpoint.address().into_owned();
        opened = opened.map_err(|error| error.to(&address));
        let error = opened.as_ref().err().cloned();
        self.set_connect_failure(since, error.clone());
        // Logged later: the connection is passed on when this returns.
        match error {
            None => {
                self.counters.connects.add();
                self.counters.metrics.created(begun);
                log_thread.log(Level::DEBUG, move || {
                    tracing::debug!(server.address = &*address, "connected");
                });
            }
            Some(cause) => {
                self.counters.connect_failures.add();
                log_thread.log(Level::DEBUG, move || {
                    let error = format!("{cause:#}");
                    tracing::debug!(server.address = &*address, %error, "connect failed");
                });
            }
        }
        opened
    }

    /// # Errors
    /// The pool is closed for new connections.
    pub(crate) fn ensure_open(&self) -> Result<(), ConnectionError> {
        match self.is_closed() {
            true => {
                let text = "the session manager is closed";
                Err(ConnectionError::new(ConnectionErrorKind::Closed, text))
            }
            false => Ok(()),
        }
    }

    /// The last connect error, unless a connect has succeeded since.
    pub(crate) fn connect_error(&self) -> Option<ConnectionError> {
        self.connect_failure().map(|failure| failure.error)
    }

    /// The last connect that failed, unless one has succeeded since.
    pub(crate) fn connect_failure(&self) -> Option<ConnectFailure> {
        lock(&self.last_connect_failure).clone()
    }

    /// Records the outcome of a connect. Of several failures, the one of the latest attempt is kept.
    fn set_connect_failure(&self, begun: Instant, error: Option<ConnectionError>) {
        let mut last = lock(&self.last_connect_failure);
        let Some(error) = error else {
            *last = None;
            return;
        };
        if last.as_ref().is_none_or(|last| last.begun <= begun) {
            *last = Some(ConnectFailure { begun, ended: Instant::now(), error });
        }
    }
}
