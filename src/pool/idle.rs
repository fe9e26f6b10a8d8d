//! The idle connections of a pool, and the opening of further ones.
//!
//! r2d2 opens connections on its threads with back-off, keeps the idle ones, and retires them. The
//! fair semaphore in front of it decides which caller gets one. A panic must not reach r2d2, which
//! would lose the connection's place forever. Every call needs a permit, so that no call of r2d2
//! waits for another caller's connection.

use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::Level;

use crate::connection::connection::Connection;
use crate::connection::endpoint::Endpoint;
use crate::connection::threads;
use crate::error::connection::ConnectionError;
use crate::logging::deferred;
use crate::logging::deferred::LogThread;
use crate::pool::config::PoolConfig;
use crate::pool::connect_attempts::{NewConnection, Requester};
use crate::pool::shared::{CountedConnection, PoolShared};
use crate::protocol::connection_state::CloseReason;
use crate::protocol::handshake::Purpose;
use crate::settings::settings::Settings;
use crate::status::metrics::Started;
#[cfg(test)]
use crate::sync::lock;

/// The `connection_timeout` of r2d2, which waits at most half of it between two attempts to connect.
const CONNECT_BACKOFF: Duration = Duration::from_millis(500);

/// The idle connections of a pool.
pub(crate) struct IdleConnections {
    connections: r2d2::Pool<Opener>,
}

impl IdleConnections {
    pub(crate) fn new(config: &PoolConfig, endpoint: Endpoint, shared: &Arc<PoolShared>) -> Self {
        let settings = &config.settings;
        let connections = r2d2::Pool::builder()
            .max_size(settings.max_size)
            .min_idle(Some(settings.min_idle))
            .idle_timeout(settings.idle_timeout)
            .max_lifetime(None)
            .test_on_check_out(false)
            .connection_timeout(CONNECT_BACKOFF)
            .error_handler(Box::new(r2d2::NopErrorHandler))
            .thread_pool(Arc::clone(&config.threads))
            // Unchecked: a pool can be built while its server is down.
            .build_unchecked(Opener {
                endpoint,
                settings: Arc::clone(settings),
                purpose: config.purpose,
                shared: Arc::clone(shared),
                log_thread: Arc::clone(&config.logging.log_thread),
            });
        Self { connections }
    }

    /// Takes an idle connection, if there is one.
    pub(crate) fn take(&self) -> Option<TakenConnection> {
        self.connections.try_get().map(TakenConnection)
    }

    /// Begins to open a connection, without waiting for it.
    pub(crate) fn open_one(&self) -> Option<TakenConnection> {
        self.connections.get_timeout(Duration::ZERO).ok().map(TakenConnection)
    }

    /// Takes an idle connection for a caller. If there is none, has one opened, unless enough are
    /// being opened.
    pub(crate) fn take_for(&self, requester: &mut Requester<'_>) -> Option<TakenConnection> {
        let mut taken = requester.take(|| self.take(), || self.open_one())?;
        let opened: &mut Opened = &mut taken.0;
        opened.attempt = None;
        opened.connection.mark_taken();
        Some(taken)
    }

    /// Number of connections, idle or in use.
    pub(crate) fn size(&self) -> u32 {
        self.connections.state().connections
    }

    /// Number of idle connections.
    pub(crate) fn idle(&self) -> u32 {
        self.connections.state().idle_connections
    }

    /// In a forked child: the connections and the threads belong to the parent, and the mutexes
    /// that they share may stay locked forever.
    pub(crate) fn leak(&self) {
        std::mem::forget(self.connections.clone());
    }
}

/// A connection that a caller has taken. On drop it becomes idle again. If its state forbids that,
/// it is closed and another one is opened in its place.
pub(crate) struct TakenConnection(r2d2::PooledConnection<Opener>);

impl TakenConnection {
    /// In a forked child: the connection belongs to the parent.
    pub(crate) fn leak(self) {
        std::mem::forget(self.0);
    }
}

impl Deref for TakenConnection {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.0.connection
    }
}

impl DerefMut for TakenConnection {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.0.connection
    }
}

/// A connection as r2d2 keeps it. The connection is the first field: it is closed before it is no
/// longer counted.
pub(crate) struct Opened {
    connection: Connection,
    /// The attempt that opened the connection, until the first caller has taken it.
    attempt: Option<NewConnection>,
    _counted: CountedConnection,
}

/// The opener of connections, which also decides whether a returned one is reused.
pub(crate) struct Opener {
    endpoint: Endpoint,
    settings: Arc<Settings>,
    purpose: Purpose,
    shared: Arc<PoolShared>,
    log_thread: Arc<LogThread>,
}

impl Opener {
    fn generation(&self) -> u64 {
        self.shared.generation(&self.endpoint)
    }

    fn open(&self) -> Result<Connection, ConnectionError> {
        let options = self.shared.open_options(self.purpose, &self.endpoint);
        threads::open(&self.endpoint, &self.settings, options)
    }
}

impl r2d2::ManageConnection for Opener {
    /// Boxed, because it is moved with every checkout.
    type Connection = Box<Opened>;
    type Error = ConnectionError;

    fn connect(&self) -> Result<Box<Opened>, ConnectionError> {
        let counted = CountedConnection::new(&self.shared);
        self.shared.ensure_open()?;
        let begun = Started::now();
        let opened = catch_unwind(AssertUnwindSafe(|| self.open()))
            .unwrap_or_else(|_| Err(ConnectionError::panicked()));
        let since = counted.begun;
        let opened = self.shared.opened(opened, since, &self.endpoint, &self.log_thread, begun);
        let opened = match opened {
            Ok(connection) => {
                self.shared.register_socket(&connection);
                let attempt = Some(self.shared.attempts.connection_opened());
                Ok(Box::new(Opened { connection, attempt, _counted: counted }))
            }
            Err(error) => {
                drop(counted);
                Err(error)
            }
        };
        #[cfg(test)]
        if let Some(pause) = &*lock(&self.shared.before_listing) {
            pause();
        }
        opened
    }

    /// r2d2 does not call this, because `test_on_check_out` is false. The checkout reads the socket
    /// without waiting, and checks a connection that is not trusted by MULTI, WATCH or PING.
    fn is_valid(&self, _: &mut Box<Opened>) -> Result<(), ConnectionError> {
        Ok(())
    }

    fn has_broken(&self, opened: &mut Box<Opened>) -> bool {
        let generation = self.generation();
        let close_reason = || opened.connection.close_reason(Instant::now(), generation);
        let reason =
            catch_unwind(AssertUnwindSafe(close_reason)).unwrap_or(Some(CloseReason::LeftDirty));
        if let Some(reason) = reason {
            self.shared.counters.replaced(reason);
            let address = self.endpoint.address().into_owned();
            deferred::defer(Level::DEBUG, move || {
                let reason = reason.as_str();
                tracing::debug!(server.address = &*address, reason, "connection replaced");
            });
        }
        reason.is_some()
    }
}
