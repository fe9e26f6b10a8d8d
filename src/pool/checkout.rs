//! The right to one link, and the link.
//!
//! A link that is found dead is replaced under its lease, and what its death says of the others is
//! noted in the pool.
//!
//! Never: a link handed out that is known to be dead, outdated or too old.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

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
use crate::pool::Pool;
use crate::pool::blocking::{BlockingCommand, BlockingGuard};
use crate::pool::manager::ConnectionManager;
use crate::protocol::connection_state::Taint;
use crate::settings::settings::Settings;
use crate::text::brief;

/// The right to one link.
pub(crate) struct Permit {
    pub(crate) pool: Pool,
    pub(crate) slot: usize,
    later: DeferredEvents,
    /// It is given back by a thread that must not wait for a log.
    by_reaper: bool,
}

impl Permit {
    pub(crate) fn new(pool: Pool, slot: usize) -> Self {
        Self { pool, slot, later: DeferredEvents::default(), by_reaper: false }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.pool.settings().is_forked_child() {
            return;
        }
        let inner = &self.pool.inner;
        inner.semaphore.release(self.slot);
        self.later.collect();
        let name = inner.name;
        self.later.add(Level::TRACE, move || tracing::trace!(pool = name, "check in"));
        match self.by_reaper {
            true => self.later.send_to(&inner.logging.log_thread),
            false => self.later.write(),
        }
    }
}

/// The right to one link, and the link where there is one. Dropped, the link goes back first.
pub(crate) struct Checkout {
    connection: Option<r2d2::PooledConnection<ConnectionManager>>,
    permit: Permit,
    asks: bool,
}

/// In a forked child nothing is given back: the pool is the parent's.
impl Drop for Checkout {
    fn drop(&mut self) {
        if self.permit.pool.settings().is_forked_child() {
            std::mem::forget(self.connection.take());
        }
    }
}

impl Checkout {
    /// `started`: since when the caller waits.
    pub(crate) fn new(
        permit: Permit,
        started: Instant,
        deadline: Instant,
    ) -> Result<Self, CheckoutError> {
        let mut checkout = Self { connection: None, permit, asks: false };
        checkout.connect(started, deadline)?;
        Ok(checkout)
    }

    pub(crate) fn slot(&self) -> usize {
        self.permit.slot
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.permit.pool
    }

    /// Its server does not serve the slot yet, so each request needs ASKING.
    pub(crate) fn with_ask(mut self, asks: bool) -> Self {
        self.asks = asks;
        self
    }

    /// Has an event written when the connection is given back: a log is the user's, and may want one.
    pub(crate) fn log_later(&mut self, level: Level, event: impl FnOnce() + Send + 'static) {
        if level <= LevelFilter::current() {
            self.permit.later.collect();
            self.permit.later.add(level, event);
        }
    }

    /// It is given back by the reaper.
    pub(crate) fn mark_reclaimed(&mut self) {
        self.permit.by_reaper = true;
    }

    pub(crate) fn asks(&self) -> bool {
        self.asks
    }

    /// The link, opened or taken from the pool if there is none yet. One that holds nothing of a
    /// scope's is looked into, and replaced if it was closed or holds a reply too many.
    pub(crate) fn connection(&mut self, deadline: Instant) -> Result<&mut Connection, Error> {
        loop {
            if self.connection.is_none() {
                self.connect(Instant::now(), deadline)?;
            }
            let looked = match &mut self.connection {
                Some(connection) if connection.state().is_clean() => connection.check_socket(),
                _ => break,
            };
            match looked {
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

    /// The link as it is.
    pub(crate) fn current(&mut self) -> Option<&mut Connection> {
        self.connection.as_deref_mut().map(|connection| &mut **connection)
    }

    pub(crate) fn taint(&mut self, reason: Taint) {
        if let Some(connection) = &mut self.connection {
            connection.taint(reason);
        }
    }

    /// Whether the link answered so lately that it need not be asked again.
    pub(crate) fn is_trusted(&self) -> bool {
        let inner = &self.permit.pool.inner;
        self.connection.as_ref().is_some_and(|connection| {
            connection.last_alive().elapsed() <= inner.settings.trust_window
                && inner.stamp(connection.last_alive())
                    >= inner.distrusted_before.load(Ordering::Acquire)
        })
    }

    /// The link was found dead: closes it, and draws the conclusions for the others.
    pub(crate) fn on_lost(&mut self, cause: &ConnectionError) {
        self.distrust_idle(cause);
        // Its state says why, and has_broken reads it.
        self.connection = None;
    }

    /// What its death says of the others. Nothing of the user's runs here.
    pub(crate) fn distrust_idle(&self, cause: &ConnectionError) {
        let inner = &self.permit.pool.inner;
        let now = inner.stamp(Instant::now());
        inner.distrusted_before.fetch_max(now, Ordering::AcqRel);
        if cause.kind() == ConnectionErrorKind::TimedOut {
            inner.silent_before.fetch_max(now, Ordering::AcqRel);
        }
        // Where sentinels know the master, they are asked before the next one is opened.
        inner.endpoint.invalidate();
    }

    /// The link is alive and can be used no more, as its state says: closes it.
    pub(crate) fn close(&mut self) {
        self.connection = None;
    }

    /// Draws the conclusion from an error's code, where it says that the server has changed.
    pub(crate) fn on_server_error(&mut self, code: &str) {
        if self.on_server_error_quiet(code) {
            self.log_server_change();
        }
    }

    /// The same without a log: no code of the user's runs here. True: the server has
    /// changed, which is to be logged.
    pub(crate) fn on_server_error_quiet(&mut self, code: &str) -> bool {
        let says_so = matches!(code, "READONLY" | "MASTERDOWN");
        let changed = says_so && self.server_changed();
        if says_so && self.permit.pool.inner.endpoint.may_switch() {
            self.taint(Taint::Outdated);
        }
        changed
    }

    pub(crate) fn log_server_change(&mut self) {
        let address = self.permit.pool.inner.endpoint.address().into_owned();
        self.log_later(Level::WARN, move || {
            tracing::warn!(
                server.address = &*address,
                "the server is read-only or without a master: all older connections are replaced"
            );
        });
    }

    /// What was asked on it is asked again.
    pub(crate) fn log_retry(&mut self, cause: &ConnectionError) {
        let cause = cause.clone();
        self.log_later(Level::DEBUG, move || {
            tracing::debug!(cause = %format_args!("{cause:#}"), "asked again on another connection");
        });
    }

    /// It was found dead before anything was sent on it.
    pub(crate) fn log_replaced(&mut self, cause: &ConnectionError) {
        let cause = cause.clone();
        self.log_later(Level::DEBUG, move || {
            tracing::debug!(cause = %format_args!("{cause:#}"), "dead connection replaced before use");
        });
    }

    /// The server said that it is no longer the one to write to: all older connections go, at most once
    /// a second. A link from before the last time this happened adds nothing new; one from after
    /// it does, if it could write once: a server that was read-only all along has not changed.
    fn server_changed(&self) -> bool {
        let Some(connection) = &self.connection else { return false };
        let inner = &self.permit.pool.inner;
        inner.endpoint.invalidate();
        let generation = inner.generation();
        let now = inner.stamp(Instant::now()).max(1);
        let last = inner.last_bump.load(Ordering::Acquire);
        let too_soon = last != 0 && now - last.min(now) < Duration::from_secs(1).as_nanos() as u64;
        let unchanged = generation > 0 && !connection.has_written();
        if connection.generation() < generation || unchanged || too_soon {
            return false;
        }
        let mine = inner.last_bump.compare_exchange(last, now, Ordering::AcqRel, Ordering::Acquire);
        if mine.is_ok() {
            inner.shared.generation.fetch_add(1, Ordering::AcqRel);
        }
        mine.is_ok()
    }

    fn connect(&mut self, started: Instant, deadline: Instant) -> Result<(), CheckoutError> {
        let inner = Arc::clone(&self.permit.pool.inner);
        let mut caller = inner.shared.attempts.requester();
        let mut now = started;
        loop {
            if inner.shared.closed.load(Ordering::Acquire) {
                return Err(CheckoutError::Closed);
            }
            let begin = || inner.connections.get_timeout(Duration::ZERO).ok();
            let found = caller.take(|| inner.connections.try_get(), begin);
            if let Some(mut connection) = found {
                connection.taken();
                let silent = inner.silent_before.load(Ordering::Acquire);
                let generation = inner.generation();
                if inner.stamp(connection.last_alive()) < silent {
                    connection.taint(Taint::TimedOut);
                } else if connection.generation() < generation {
                    connection.taint(Taint::Outdated);
                } else if connection.close_reason(now, generation).is_some() {
                    connection.taint(Taint::Lifetime);
                } else {
                    self.connection = Some(connection);
                    if self.reauthenticate(deadline) {
                        return Ok(());
                    }
                }
                continue;
            }
            now = Instant::now();
            let failure = inner.shared.connect_error().filter(|(at, _)| *at >= started);
            match failure {
                Some((_, source))
                    if !source.is_transient_failure() || now >= deadline || inner.fail_fast =>
                {
                    return Err(CheckoutError::Connect { waited: started.elapsed(), source });
                }
                None if now >= deadline => {
                    // A try to connect is still under way.
                    let source = match inner.endpoint.provider_is_silent_for() {
                        Some(silent) => ConnectionError::new(
                            ConnectionErrorKind::Credentials,
                            format!("the provider has not answered for {}", brief(silent)),
                        ),
                        None => ConnectionError::timed_out("no connection was established in time"),
                    };
                    return Err(CheckoutError::Connect { waited: started.elapsed(), source });
                }
                _ => caller.pause(),
            }
        }
    }

    /// Re-authenticates between scopes if the credentials changed. Returns false if the
    /// connection was lost.
    fn reauthenticate(&mut self, checkout: Instant) -> bool {
        let inner = Arc::clone(&self.permit.pool.inner);
        let Some(version) = inner.endpoint.login_version() else { return true };
        let Some(connection) =
            self.connection.as_mut().filter(|connection| connection.needs_reauth(version))
        else {
            return true;
        };
        let address = inner.endpoint.address();
        // How long the provider takes says nothing of the server.
        let login = new_login(&inner.endpoint, &inner.settings, checkout);
        let login = match login {
            Ok(login) => login,
            Err(error) => {
                connection.auth_failed();
                let address = address.into_owned();
                self.log_later(Level::WARN, move || {
                    tracing::warn!(
                        server.address = &*address, error = %format_args!("{error:#}"),
                        "no new credentials; the connection stays who it was"
                    );
                });
                return true;
            }
        };
        let deadline = Deadline::after(inner.settings.response_timeout).capped(checkout);
        let address = address.into_owned();
        match connection.reauthenticate(&login, deadline) {
            Ok(Ok(())) => {
                inner.shared.counters.reauthentications.add();
                self.log_later(Level::DEBUG, move || {
                    tracing::debug!(server.address = &*address, "re-authenticated");
                });
            }
            Ok(Err(error)) => self.log_later(Level::WARN, move || {
                tracing::warn!(
                    server.address = &*address, error = %format_args!("{error:#}"),
                    "the new credentials were refused; the connection stays who it was"
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

    /// Makes sure that the link is alive before a write is sent on it: it was heard of within the
    /// trust window, or it answers PING, or it is replaced.
    pub(crate) fn ensure_alive(&mut self, checkout: Instant) -> Result<(), Error> {
        loop {
            self.connection(checkout)?;
            if self.is_trusted() {
                return Ok(());
            }
            let deadline = self.response_deadline().capped(checkout);
            match self.connection(checkout)?.ping(deadline) {
                Ok(_) => return Ok(()),
                Err(cause) => {
                    self.on_lost(&cause);
                    if Instant::now() >= checkout {
                        let during = "PING".to_owned();
                        return Err(Error::Lost { during, applied: Applied::No, source: cause });
                    }
                    self.log_replaced(&cause);
                }
            }
        }
    }

    /// A command that waits on the server is about to be sent: until what is returned is dropped, a
    /// close of the pool ends it.
    ///
    /// # Errors
    /// The pool is closed.
    pub(crate) fn begin_blocking<'p>(
        &self,
        pool: &'p Pool,
        waiting: &BlockingCommand,
    ) -> Result<BlockingGuard<'p>, CheckoutError> {
        let socket = self.connection.as_ref().and_then(|connection| connection.socket());
        pool.inner.blocking.begin(waiting, socket).ok_or(CheckoutError::Closed)
    }

    /// The pool was closed, and with it the connections of commands that wait on the server.
    pub(crate) fn is_pool_closed(&self) -> bool {
        self.permit.pool.inner.blocking.is_closed()
    }

    pub(crate) fn retry_budget(&self) -> RetryBudget {
        RetryBudget::new(self.permit.pool.inner.settings.max_size)
    }

    /// A deadline for one exchange with the server, by the pool's setting.
    pub(crate) fn response_deadline(&self) -> Deadline {
        Deadline::after(self.permit.pool.inner.settings.response_timeout)
    }
}

/// What a link is to say anew, by `checkout` at the latest: the provider is not waited for any longer.
fn new_login(
    endpoint: &Endpoint,
    settings: &Settings,
    checkout: Instant,
) -> Result<Login, ConnectionError> {
    let late = |text: String| ConnectionError::new(ConnectionErrorKind::Credentials, text);
    // It hangs, and each further question would take a thread.
    if let Some(silent) = endpoint.provider_is_silent_for()
        && silent > settings.response_timeout
    {
        return Err(late(format!("the provider has not answered for {}", brief(silent))));
    }
    let asked = endpoint.clone();
    let ask = move || catch_unwind(AssertUnwindSafe(|| asked.login()));
    match settings.resolver.run(checkout, ask) {
        Ok(Ok(login)) => login,
        // It is the caller's panic, as if the provider had been asked here.
        Ok(Err(panic)) => resume_unwind(panic),
        Err(_) => Err(late("the provider has not answered in time".to_owned())),
    }
}

/// How often a read is asked again after its connection was lost under it.
///
/// Every idle connection may have died. One that had just answered was most likely lost over what
/// it was asked: by an answer that takes too long, or one too big for the server's limit. The
/// first is not asked for again, the second once. A reply that is too large is not asked for again.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    left: u32,
    idle: u32,
}

impl RetryBudget {
    /// As many idle connections as there may be.
    pub(crate) fn new(idle: u32) -> Self {
        Self { left: idle + 1, idle }
    }

    pub(crate) fn allow(&mut self, trusted: bool, cause: &ConnectionError) -> bool {
        match cause.kind() {
            ConnectionErrorKind::TooLarge => return false,
            ConnectionErrorKind::TimedOut if trusted => return false,
            _ => {}
        }
        self.left = self.left.saturating_sub(if trusted { self.idle } else { 1 });
        self.left > 0
    }
}

impl fmt::Debug for Checkout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkout").field("slot", &self.permit.slot).finish_non_exhaustive()
    }
}
