//! A checked-out connection, and the permit for it.
//!
//! A connection that is found dead is replaced under its checkout, and the idle connections of its
//! pool are probed. A connection that is known to be dead, outdated or too old is not used.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Instant;

use tracing::Level;
use tracing::level_filters::LevelFilter;

use crate::connection::connection::Connection;
use crate::connection::deadline::Deadline;
use crate::connection::endpoint::Endpoint;
use crate::connection::login::Login;
use crate::error::any::Error;
use crate::error::applied::Applied;
use crate::error::checkout::CheckoutError;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::logging::deferred::DeferredEvents;
use crate::pool::batch_response::BatchResponse;
use crate::pool::blocking::{BlockingCommand, BlockingGuard};
use crate::pool::core::PoolCore;
use crate::pool::idle::TakenConnection;
use crate::pool::retry_budget::RetryBudget;
use crate::protocol::batch::BatchRequest;
use crate::protocol::connection_state::CloseReason;
use crate::settings::settings::Settings;
use crate::text::brief;

/// The permit for one connection.
pub(crate) struct Permit {
    core: Arc<PoolCore>,
    number: usize,
    events: DeferredEvents,
    /// The reaper's thread returns the connection, and must not wait for a log.
    by_reaper: bool,
}

impl Permit {
    pub(crate) fn new(core: Arc<PoolCore>, number: usize) -> Self {
        Self { core, number, events: DeferredEvents::default(), by_reaper: false }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.core.config.settings.is_forked_child() {
            return;
        }
        self.core.semaphore.release(self.number);
        self.events.collect();
        let name = self.core.config.name;
        self.events.add(Level::TRACE, move || tracing::trace!(pool = name, "check in"));
        match self.by_reaper {
            true => self.events.send_to(&self.core.config.logging.log_thread),
            false => self.events.write(),
        }
    }
}

/// A permit and, usually, its connection. On drop the connection is returned before the permit.
pub(crate) struct Checkout {
    connection: Option<TakenConnection>,
    permit: Permit,
    needs_asking: bool,
}

/// The result of a checkout whose request another caller's write may carry.
pub(crate) enum BatchCheckout {
    /// A connection that was free, while no caller waited.
    Alone(Checkout),
    /// A connection and the caller's request, to be sent together with those of waiting callers.
    Lead(Checkout, BatchRequest),
    /// Another caller has sent the request.
    Response(BatchResponse),
}

/// In a forked child nothing is returned: the pool belongs to the parent.
impl Drop for Checkout {
    fn drop(&mut self) {
        if self.permit.core.config.settings.is_forked_child()
            && let Some(connection) = self.connection.take()
        {
            connection.leak();
        }
    }
}

impl Checkout {
    /// `started`: when the caller began to wait.
    pub(crate) fn new(
        permit: Permit,
        started: Instant,
        deadline: Instant,
    ) -> Result<Self, CheckoutError> {
        let mut checkout = Self { connection: None, permit, needs_asking: false };
        checkout.connect(started, deadline)?;
        Ok(checkout)
    }

    /// The number of the permit.
    pub(crate) fn permit_number(&self) -> usize {
        self.permit.number
    }

    pub(crate) fn pool(&self) -> &Arc<PoolCore> {
        &self.permit.core
    }

    /// Marks the server as the target of a migration: each command or MULTI needs ASKING before it.
    pub(crate) fn with_ask(mut self, needs_asking: bool) -> Self {
        self.needs_asking = needs_asking;
        self
    }

    /// Logs an event when the connection is returned: a subscriber may use the pool itself.
    pub(crate) fn log_later(&mut self, level: Level, event: impl FnOnce() + Send + 'static) {
        if level <= LevelFilter::current() {
            self.permit.events.collect();
            self.permit.events.add(level, event);
        }
    }

    /// Marks the connection as returned by the reaper.
    pub(crate) fn mark_reclaimed(&mut self) {
        self.permit.by_reaper = true;
    }

    pub(crate) fn needs_asking(&self) -> bool {
        self.needs_asking
    }

    /// The connection, taken from the pool or opened if there is none yet. One without a scope's
    /// state is checked first, and replaced if the peer closed it or sent unexpected bytes.
    pub(crate) fn connection(&mut self, deadline: Instant) -> Result<&mut Connection, Error> {
        loop {
            if self.connection.is_none() {
                self.connect(Instant::now(), deadline)?;
            }
            let checked = match &mut self.connection {
                Some(connection) if connection.state().is_clean() => connection.check_socket(),
                _ => break,
            };
            match checked {
                Ok(()) => break,
                Err(cause) => {
                    self.on_lost(&cause);
                    self.log_replaced(&cause);
                }
            }
        }
        match &mut self.connection {
            Some(connection) => Ok(connection),
            None => Err(CheckoutError::Closed.into()),
        }
    }

    /// The connection as it is, unchecked.
    pub(crate) fn current(&mut self) -> Option<&mut Connection> {
        self.connection.as_deref_mut()
    }

    pub(crate) fn taint(&mut self, reason: CloseReason) {
        if let Some(connection) = &mut self.connection {
            connection.taint(reason);
        }
    }

    /// Whether the connection replied so recently that it needs no probe.
    pub(crate) fn is_trusted(&self) -> bool {
        let connection = self.connection.as_ref();
        connection.is_some_and(|connection| self.permit.core.trusts(connection.last_alive()))
    }

    /// Closes the connection, which was found dead, and has the idle ones probed.
    pub(crate) fn on_lost(&mut self, cause: &ConnectionError) {
        self.distrust_idle(cause);
        // The connection's state has the reason with which the pool closes it.
        self.connection = None;
    }

    /// Has the idle connections probed. Nothing is logged here.
    pub(crate) fn distrust_idle(&self, cause: &ConnectionError) {
        self.permit.core.distrust_idle(cause);
    }

    /// Closes a connection whose state forbids its reuse.
    pub(crate) fn close(&mut self) {
        self.connection = None;
    }

    /// Replaces older connections if the error shows that the server's role has changed.
    pub(crate) fn on_server_error(&mut self, code: &str) {
        if self.on_server_error_quiet(code) {
            self.log_server_change();
        }
    }

    /// The same without a log. Returns true if the server's role has changed, so that the caller
    /// logs it.
    pub(crate) fn on_server_error_quiet(&mut self, code: &str) -> bool {
        let shows_change = matches!(code, "READONLY" | "MASTERDOWN");
        let changed = shows_change && self.server_changed();
        if shows_change && self.permit.core.endpoint.may_switch() {
            self.taint(CloseReason::Outdated);
        }
        changed
    }

    pub(crate) fn log_server_change(&mut self) {
        let address = self.permit.core.endpoint.address().into_owned();
        self.log_later(Level::WARN, move || {
            tracing::warn!(
                server.address = &*address,
                "the server is read-only or without a master: all older connections are replaced"
            );
        });
    }

    /// Logs that a read is retried on another connection.
    pub(crate) fn log_retry(&mut self, cause: &ConnectionError) {
        self.log_lost(cause, "read sent again on another connection");
    }

    /// Logs that the connection was found dead before anything was sent on it.
    pub(crate) fn log_replaced(&mut self, cause: &ConnectionError) {
        self.log_lost(cause, "dead connection replaced before use");
    }

    fn log_lost(&mut self, cause: &ConnectionError, text: &'static str) {
        let cause = cause.clone();
        self.log_later(Level::DEBUG, move || {
            tracing::debug!(cause = %format_args!("{cause:#}"), "{text}");
        });
    }

    /// Replaces all older connections after the server rejected a write, at most once a second. A
    /// connection from before the last replacement proves nothing new. A newer one does only if it
    /// has written: a server that was read-only all along has not changed.
    fn server_changed(&self) -> bool {
        let Some(connection) = &self.connection else { return false };
        let core = &self.permit.core;
        core.endpoint.invalidate();
        let generation = core.generation();
        let unchanged = generation > 0 && !connection.has_written();
        connection.generation() >= generation && !unchanged && core.replace_all()
    }

    fn connect(&mut self, started: Instant, deadline: Instant) -> Result<(), CheckoutError> {
        let core = Arc::clone(&self.permit.core);
        let mut requester = core.shared.attempts.requester();
        let mut now = started;
        loop {
            if core.shared.is_closed() {
                return Err(CheckoutError::Closed);
            }
            if let Some(mut connection) = core.idle.take_for(&mut requester) {
                let generation = core.generation();
                if core.is_silent_since(connection.last_alive()) {
                    connection.taint(CloseReason::TimedOut);
                } else if connection.generation() < generation {
                    connection.taint(CloseReason::Outdated);
                } else if connection.close_reason(now, generation).is_some() {
                    connection.taint(CloseReason::Lifetime);
                } else {
                    self.connection = Some(connection);
                    if self.reauthenticate(deadline) {
                        return Ok(());
                    }
                }
                continue;
            }
            now = Instant::now();
            let failure = core.shared.connect_error().filter(|(at, _)| *at >= started);
            match failure {
                Some((_, source))
                    if !source.is_transient_failure()
                        || now >= deadline
                        || core.config.fail_fast =>
                {
                    return Err(CheckoutError::Connect { waited: started.elapsed(), source });
                }
                None if now >= deadline => {
                    // A connect is still in progress.
                    let source = match core.endpoint.provider_is_silent_for() {
                        Some(silent) => ConnectionError::new(
                            ConnectionErrorKind::Credentials,
                            format!("the provider has not returned for {}", brief(silent)),
                        ),
                        None => ConnectionError::timed_out("no connection was established in time"),
                    };
                    return Err(CheckoutError::Connect { waited: started.elapsed(), source });
                }
                _ => requester.pause(),
            }
        }
    }

    /// Re-authenticates between scopes if the credentials changed. Returns false if the connection
    /// was lost.
    fn reauthenticate(&mut self, checkout_deadline: Instant) -> bool {
        let core = Arc::clone(&self.permit.core);
        let Some(version) = core.endpoint.login_version() else { return true };
        let connection = self.connection.as_deref_mut();
        let Some(connection) = connection.filter(|connection| connection.needs_reauth(version))
        else {
            return true;
        };
        let address = core.endpoint.address().into_owned();
        // Before the timer starts: the provider's latency does not count against the server.
        let login = match new_login(&core.endpoint, core.settings(), checkout_deadline) {
            Ok(login) => login,
            Err(error) => {
                connection.auth_failed();
                self.log_later(Level::WARN, move || {
                    tracing::warn!(
                        server.address = &*address, error = %format_args!("{error:#}"),
                        "no new credentials; the connection keeps its identity"
                    );
                });
                return true;
            }
        };
        let deadline = Deadline::after(core.settings().response_timeout).capped(checkout_deadline);
        match connection.reauthenticate(&login, deadline) {
            Ok(Ok(())) => {
                core.shared.counters.reauthentications.add();
                self.log_later(Level::DEBUG, move || {
                    tracing::debug!(server.address = &*address, "re-authenticated");
                });
            }
            Ok(Err(error)) => self.log_later(Level::WARN, move || {
                tracing::warn!(
                    server.address = &*address, error = %format_args!("{error:#}"),
                    "the new credentials were refused; the connection keeps its identity"
                );
            }),
            Err(cause) => {
                self.on_lost(&cause);
                self.log_replaced(&cause);
                return false;
            }
        }
        true
    }

    /// Makes sure that the connection is alive before a write is sent on it. It replied within the
    /// trust window, or it replies to PING, or it is replaced.
    pub(crate) fn ensure_alive(&mut self, checkout_deadline: Instant) -> Result<(), Error> {
        loop {
            self.connection(checkout_deadline)?;
            if self.is_trusted() {
                return Ok(());
            }
            let deadline = self.response_deadline().capped(checkout_deadline);
            match self.connection(checkout_deadline)?.ping(deadline) {
                Ok(_) => return Ok(()),
                Err(cause) => {
                    self.on_lost(&cause);
                    if Instant::now() >= checkout_deadline {
                        let during = "PING".to_owned();
                        return Err(Error::Lost { during, applied: Applied::No, source: cause });
                    }
                    self.log_replaced(&cause);
                }
            }
        }
    }

    /// Registers a blocking command that is about to be sent. Until the guard is dropped, closing
    /// the pool ends the command.
    ///
    /// # Errors
    /// The pool is closed.
    pub(crate) fn begin_blocking(
        &self,
        command: &BlockingCommand,
    ) -> Result<BlockingGuard, CheckoutError> {
        let socket = self.connection.as_ref().and_then(|connection| connection.socket());
        self.permit.core.blocking.begin(command, socket).ok_or(CheckoutError::Closed)
    }

    pub(crate) fn retry_budget(&self, deadline: Instant) -> RetryBudget {
        RetryBudget::new(self.permit.core.config.settings.max_size, deadline)
    }

    /// Returns the deadline of one exchange with the server, by the pool's `response_timeout`.
    pub(crate) fn response_deadline(&self) -> Deadline {
        Deadline::after(self.permit.core.config.settings.response_timeout)
    }
}

/// Gets new credentials for a connection, and does not wait for the provider past
/// `checkout_deadline`.
fn new_login(
    endpoint: &Endpoint,
    settings: &Settings,
    checkout_deadline: Instant,
) -> Result<Login, ConnectionError> {
    let late = |text: String| ConnectionError::new(ConnectionErrorKind::Credentials, text);
    // The provider hangs, and each further call would occupy a thread.
    if let Some(silent) = endpoint.provider_is_silent_for()
        && silent > settings.response_timeout
    {
        return Err(late(format!("the provider has not returned for {}", brief(silent))));
    }
    let called = endpoint.clone();
    let call = move || catch_unwind(AssertUnwindSafe(|| called.login()));
    match settings.resolver.run(checkout_deadline, call) {
        Ok(Ok(login)) => login,
        // The provider's panic continues here, as if it had been called on this thread.
        Ok(Err(panic)) => resume_unwind(panic),
        Err(_) => Err(late("the provider has not returned in time".to_owned())),
    }
}
