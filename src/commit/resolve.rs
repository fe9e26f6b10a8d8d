//! Resolves a transaction in doubt on the server.
//!
//! This uses a connection of its own, one for the whole manager, which is open while a call needs
//! it. So the resolution does not wait for the transaction's pool. A missing register proves
//! nothing, and every call ends within the caller's time.

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use scopeguard::defer;

use crate::connection::connection::Connection;
use crate::connection::deadline::{self, Deadline};
use crate::connection::handshake::OpenOptions;
use crate::connection::io::Io;
use crate::connection::threads::Threads;
use crate::error::checkout::CheckoutError;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::error::in_doubt::{CommitToken, Resolution, ResolveCommit, UnresolvedReason};
use crate::logging::rate_limit::LimitedEvent;
use crate::pool::redirect_pause;
use crate::pool::router::Router;
use crate::pool::semaphore::{AcquireError, FairSemaphore};
use crate::protocol::cluster::redirect;
use crate::protocol::cluster::route::{Redirect, RedirectBudget, Route};
use crate::protocol::cluster::slot;
use crate::protocol::marker;
use crate::protocol::retry::Backoff;
use crate::protocol::server_error::ServerError;
use crate::sync::lock;
use crate::sync::now::now;

/// Maximum delay before the query is sent again to a server that could not be reached.
const PAUSE: Duration = Duration::from_millis(100);

/// Resolves transactions in doubt on the server.
pub(crate) struct CommitResolver {
    router: Router,
    gate: FairSemaphore<(), ()>,
    /// The connection, and the address it leads to.
    connection: Mutex<Option<(String, Connection)>>,
}

impl CommitResolver {
    pub(crate) fn new(router: Router) -> Self {
        Self { router, gate: FairSemaphore::new(1), connection: Mutex::new(None) }
    }

    /// Makes later calls fail: the session manager is closed.
    pub(crate) fn close(&self) {
        self.gate.close();
    }

    fn resolve_on_server(
        &self,
        token: &CommitToken,
        deadline: Instant,
    ) -> Result<bool, UnresolvedReason> {
        let here = self.router.db();
        if token.db != here {
            return Err(UnresolvedReason::OtherDatabase { token: token.db, here });
        }
        let key_slot = self.check(token)?;
        let permit = self.gate.acquire(deadline, |_| Ok::<(), ()>(())).map_err(not_asked)?;
        defer! {
            // No other call waits for the connection, so it is not kept.
            if self.gate.waiting() == 0 {
                drop(lock(&self.connection).take());
            }
            self.gate.release(permit);
        }
        let mut pauses = Backoff::new(PAUSE / 16, PAUSE);
        // The register's name has its slot, whatever server made the token.
        let mut route = Route::to(key_slot);
        let mut budget = RedirectBudget::until(deadline);
        loop {
            let kept = lock(&self.connection).take();
            let was_kept = kept.is_some();
            let asked = self.ask_server(kept, &route, token, deadline);
            if let Err(UnresolvedReason::Refused(error)) = &asked
                && let Some(redirect) =
                    now(self.router.redirect_for(&route, error.code(), error.message()))
                && now(redirect_pause::try_next::<Threads>(&mut budget, &redirect))
            {
                route = redirect.route();
                continue;
            }
            if route.ask {
                route = Route::to(key_slot);
            }
            let passing = match &asked {
                Err(UnresolvedReason::Unreachable(error)) => error.is_transient_failure(),
                Err(UnresolvedReason::Refused(error)) => is_transient(error),
                _ => false,
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if !passing || left.is_zero() {
                return asked;
            }
            // The failure of a kept connection proves nothing about the server.
            if !was_kept {
                std::thread::sleep(pauses.wait().min(left));
            }
        }
    }

    /// Checks that the token fits a connection with these settings: the query would set an expiry
    /// on any other key. Returns the slot to query, in a cluster.
    fn check(&self, token: &CommitToken) -> Result<Option<u16>, UnresolvedReason> {
        let wrong = |reason| Err(UnresolvedReason::NotARegister { reason });
        if token.number == 0 {
            return wrong("it has a number that no transaction is given");
        }
        let slot = slot::of_key(token.register.as_bytes());
        let (slot, tag) = match self.router.is_cluster() {
            false if token.slot.is_some() => {
                return wrong("it has a slot, and this session manager is not one of a cluster");
            }
            false => (None, None),
            // A transaction without a key was bound to no slot, and its register has no hash tag.
            true if token.slot.is_none() => (Some(slot), None),
            true if token.slot != Some(slot) => return wrong("the register is of another slot"),
            true => (Some(slot), slot::tag_of(slot)),
        };
        match marker::is_register(&token.register, &self.router.settings().prefix, tag) {
            true => Ok(slot),
            false => wrong("it names a key that is no register of this prefix"),
        }
    }

    fn ask_server(
        &self,
        kept: Option<(String, Connection)>,
        route: &Route,
        token: &CommitToken,
        deadline: Instant,
    ) -> Result<bool, UnresolvedReason> {
        let unreachable = UnresolvedReason::Unreachable;
        let settings = self.router.settings();
        let endpoint = now(self.router.endpoint(route, deadline)).map_err(not_connected)?;
        let generation = endpoint.generation();
        // A connection to a former master would read that server's register.
        let same = |(address, connection): &(String, Connection)| {
            *address == endpoint.address() && connection.generation() == generation
        };
        let mut connection = match kept.filter(same) {
            Some((_, connection)) => connection,
            None => {
                let options = OpenOptions::for_query(generation, deadline);
                now(Threads::open(&endpoint, settings, options)).map_err(|source| {
                    // Another node may serve the slot by now.
                    let error = CheckoutError::Connect { waited: Duration::ZERO, source };
                    let _: Option<Redirect> =
                        now(self.router.on_unreachable(route, &error, deadline));
                    not_connected(error)
                })?
            }
        };
        let limit = Deadline::after(settings.response_timeout).capped(deadline);
        let question = marker::question(&token.register, settings.register_ttl, route.ask);
        let count = if route.ask { 4 } else { 2 };
        let mut answers = now(connection.ask_all(&question, count, limit)).map_err(unreachable)?;
        if route.ask {
            answers = redirect::all_after_asking(answers);
        }
        let [touched, found] = answers.as_slice() else {
            return Err(unreachable(ConnectionError::unexpected("too few replies")));
        };
        if endpoint.generation() != generation {
            let text = "another server became the master during the query";
            return Err(unreachable(ConnectionError::new(ConnectionErrorKind::Closed, text)));
        }
        *lock(&self.connection) = Some((endpoint.address().into_owned(), connection));
        Ok(marker::applied(token.number, touched, found)?)
    }
}

// After a panic each part is checked by its own state, whichever mutexes it is built with.
impl UnwindSafe for CommitResolver {}
impl RefUnwindSafe for CommitResolver {}

impl ResolveCommit for CommitResolver {
    fn resolve(&self, token: &CommitToken, within: Option<Duration>) -> Resolution {
        let within = within.unwrap_or(self.router.settings().checkout_timeout);
        if self.router.here().is_err() {
            // Without a count or a log, whose mutexes may stay locked forever.
            return Resolution::StillUnknown { why: UnresolvedReason::OtherProcess };
        }
        let now = Instant::now();
        let deadline = deadline::later(now, within);
        let counters = self.router.counters();
        let resolution = match self.resolve_on_server(token, deadline) {
            Ok(true) => {
                counters.resolved_committed.add();
                Resolution::Committed
            }
            Ok(false) => {
                counters.resolved_not_committed.add();
                Resolution::NotCommitted
            }
            Err(why) => {
                counters.unresolved.add();
                let limits = self.router.rate_limits();
                if let Some(suppressed) = limits.allow(LimitedEvent::UnresolvedDoubt) {
                    tracing::warn!(error = %format_args!("{why:#}"), suppressed, "a commit in doubt was not resolved");
                }
                Resolution::StillUnknown { why }
            }
        };
        tracing::debug!(?resolution, waited = ?now.elapsed(), "resolve");
        resolution
    }
}

/// Returns whether the server's error may pass in a moment.
fn is_transient(error: &ServerError) -> bool {
    matches!(error.code(), "LOADING" | "BUSY" | "TRYAGAIN" | "CLUSTERDOWN" | "MASTERDOWN")
}

fn not_connected(error: CheckoutError) -> UnresolvedReason {
    match error {
        CheckoutError::Connect { source, .. } => UnresolvedReason::Unreachable(source),
        _ => not_asked(AcquireError::Closed),
    }
}

fn not_asked(refused: AcquireError<()>) -> UnresolvedReason {
    UnresolvedReason::Unreachable(match refused {
        AcquireError::Closed => {
            ConnectionError::new(ConnectionErrorKind::Closed, "the session manager is closed")
        }
        _ => ConnectionError::timed_out("other queries occupied the connection"),
    })
}

impl fmt::Debug for CommitResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommitResolver").field("router", &self.router).finish_non_exhaustive()
    }
}
