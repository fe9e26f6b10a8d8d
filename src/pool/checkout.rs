//! A checked-out connection, and the permit for it.
//!
//! A connection that is known to be dead, outdated or too old is not used.

use std::future::ready;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Instant;

use tracing::Level;
use tracing::level_filters::LevelFilter;

use crate::connection::connection::Connection;
use crate::connection::deadline::Deadline;
use crate::connection::endpoint::Endpoint;
use crate::connection::login::Login;
use crate::connection::transport::Transport;
use crate::error::checkout::CheckoutError;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::logging::deferred::DeferredEvents;
use crate::pool::blocking::BlockingCommand;
use crate::pool::context::PoolContext;
use crate::pool::core::PoolCore;
use crate::pool::idle::TakenConnection;
use crate::pool::line::Line;
use crate::process::sockets::OwnSocket;
use crate::protocol::connection_state::CloseReason;
use crate::settings::settings::Settings;
use crate::sync::now::now;
use crate::text::brief;

/// The permit for one connection.
pub(crate) struct Permit {
    core: Arc<PoolCore>,
    number: u32,
    events: DeferredEvents,
    /// The reaper's thread returns the connection, and must not wait for a log.
    by_reaper: bool,
    needs_asking: bool,
}

impl Permit {
    pub(crate) fn new(core: Arc<PoolCore>, number: usize) -> Self {
        let (number, events) = (number as u32, DeferredEvents::default());
        Self { core, number, events, by_reaper: false, needs_asking: false }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.core.config.settings.is_forked_child() {
            return;
        }
        self.core.semaphore.release(self.number as usize);
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
///
/// It is moved for each call of a scope, so its size matters.
pub(crate) struct Checkout {
    connection: Option<TakenConnection>,
    permit: Permit,
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
        let mut checkout = Self { connection: None, permit };
        checkout.take_or_wait(started, deadline)?;
        Ok(checkout)
    }

    /// The number of the permit.
    pub(crate) fn permit_number(&self) -> usize {
        self.permit.number as usize
    }

    /// The connection's socket, if there is a connection.
    pub(crate) fn socket(&self) -> Option<&Arc<OwnSocket>> {
        self.connection.as_ref()?.socket()
    }

    pub(crate) fn pool(&self) -> &Arc<PoolCore> {
        &self.permit.core
    }

    /// Marks the server as the target of a migration: each command or MULTI needs ASKING before it.
    pub(crate) fn with_ask(mut self, needs_asking: bool) -> Self {
        self.permit.needs_asking = needs_asking;
        self
    }

    /// Marks the connection as returned by the reaper.
    pub(crate) fn mark_reclaimed(&mut self) {
        self.permit.by_reaper = true;
    }

    #[inline(never)]
    fn take_or_wait(&mut self, started: Instant, deadline: Instant) -> Result<(), CheckoutError> {
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
        match now(connection.reauthenticate(&login, deadline)) {
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
}

impl Line for Checkout {
    type Wire = Transport;

    fn context(&self) -> &PoolContext {
        &self.permit.core
    }

    fn needs_asking(&self) -> bool {
        self.permit.needs_asking
    }

    fn current(&mut self) -> Option<&mut Connection> {
        self.connection.as_deref_mut()
    }

    fn connect(
        &mut self,
        deadline: Instant,
    ) -> impl Future<Output = Result<(), CheckoutError>> + Send {
        ready(self.take_or_wait(Instant::now(), deadline))
    }

    fn close(&mut self) {
        self.connection = None;
    }

    fn is_unwinding(&self) -> bool {
        std::thread::panicking()
    }

    fn log_later(&mut self, level: Level, event: impl FnOnce() + Send + 'static) {
        if level <= LevelFilter::current() {
            self.permit.events.collect();
            self.permit.events.add(level, event);
        }
    }

    fn begin_blocking(
        &self,
        command: &BlockingCommand,
    ) -> Result<impl Send + use<>, CheckoutError> {
        self.permit.core.blocking.begin(command, self.socket()).ok_or(CheckoutError::Closed)
    }

    fn is_closed(&self) -> bool {
        self.permit.core.blocking.is_closed()
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
