//! Resolves a transaction in doubt on the server.
//!
//! This uses a connection of its own, one to each server for the whole manager, which is open while a
//! call needs it. So the resolution does not wait for the transaction's pool. A missing register proves
//! nothing, and every call ends within the caller's time.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::commit::own_connections::{OwnConnection, OwnConnections};
use crate::connection::deadline::{self, Deadline};
use crate::connection::endpoint::Endpoint;
use crate::connection::handshake::OpenOptions;
use crate::connection::io::Io;
use crate::error::checkout::CheckoutError;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::error::in_doubt::{CommitToken, Resolution, UnresolvedReason};
use crate::logging::rate_limit::LimitedEvent;
use crate::pool::redirect_pause;
use crate::pool::router::Router;
use crate::pool::server_pool::ServerPool;
use crate::protocol::cluster::redirect;
use crate::protocol::cluster::route::{Redirect, RedirectBudget, Route};
use crate::protocol::cluster::slot;
use crate::protocol::marker;
use crate::protocol::retry::Backoff;
use crate::protocol::server_error::ServerError;

/// Maximum delay before the query is sent again to a server that could not be reached.
const PAUSE: Duration = Duration::from_millis(100);

/// The result of the last probe of readiness, and the time of its end.
pub(super) type LastProbe = Option<(Instant, Result<(), ConnectionError>)>;

/// Why a call did not get the permit to query.
#[derive(Clone, Copy, Debug)]
pub(crate) enum NoTurn {
    /// The session manager is closed.
    Closed,
    /// Other calls had the permit for the whole time.
    Occupied,
    /// The caller's wait was cancelled.
    Cancelled,
}

/// Resolves transactions in doubt on the server. One call queries at a time: each side has a permit
/// for that.
pub(crate) struct DoubtResolver<P: ServerPool> {
    pub(super) router: Router<P>,
    /// The call that uses one of them has it alone.
    pub(super) connections: OwnConnections<P>,
    pub(super) last_probe: Mutex<LastProbe>,
}

impl<P: ServerPool> DoubtResolver<P> {
    pub(crate) fn new(router: Router<P>) -> Self {
        Self { router, connections: OwnConnections::default(), last_probe: Mutex::default() }
    }

    /// No other call waits for the connections: they are closed, unless readiness was probed.
    pub(crate) fn rest(&self) {
        self.connections.rest();
    }

    /// Returns the connections that no call uses, to be dropped. Each other one is closed after its call.
    pub(crate) fn close(&self) -> Vec<OwnConnection<P>> {
        self.connections.close()
    }

    /// Asks the server whether the transaction was applied, once there is a permit. Dropped before
    /// its end, it closes the connection.
    pub(crate) async fn resolve<G: Send, F: Future<Output = Result<G, NoTurn>> + Send>(
        &self,
        token: &CommitToken,
        within: Option<Duration>,
        permit: impl Fn(Instant) -> F + Send,
    ) -> Resolution {
        if self.router.here().is_err() {
            // Without a count or a log, whose mutexes may stay locked forever.
            return Resolution::StillUnknown { why: UnresolvedReason::OtherProcess };
        }
        let within = within.unwrap_or(self.router.settings().checkout_timeout);
        let begun = Instant::now();
        let deadline = deadline::later(begun, within);
        let resolution = self.record(self.resolve_on_server(token, deadline, permit).await);
        tracing::debug!(?resolution, waited = ?begun.elapsed(), "resolve");
        resolution
    }

    async fn resolve_on_server<G: Send, F: Future<Output = Result<G, NoTurn>> + Send>(
        &self,
        token: &CommitToken,
        deadline: Instant,
        permit: impl Fn(Instant) -> F + Send,
    ) -> Result<bool, UnresolvedReason> {
        let key_slot = self.check(token)?;
        let mut pauses = Backoff::new(PAUSE / 16, PAUSE);
        // The register's name has its slot, whatever server made the token.
        let mut route = Route::to(key_slot);
        let mut budget = RedirectBudget::until(deadline);
        loop {
            // Other calls may query during a pause.
            let turn = permit(deadline).await?;
            let mut was_kept = false;
            let asked = self.ask_server(&mut was_kept, &route, token, deadline).await;
            drop(turn);
            if let Err(UnresolvedReason::Refused(error)) = &asked
                && let Some(redirect) =
                    self.router.redirect_for(&route, error.code(), error.message()).await
                && redirect_pause::try_next::<P::Io>(&mut budget, &redirect).await
            {
                route = redirect.route();
                continue;
            }
            if route.ask {
                route = Route::to(key_slot);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let (is_lost, is_of_replica) = match &asked {
                Err(UnresolvedReason::Unreachable(_)) => (true, false),
                Err(UnresolvedReason::Refused(error)) => {
                    (false, ServerError::is_of_replica(error.code()))
                }
                _ => (false, false),
            };
            // A kept connection that is lost, or leads to a former master, proves nothing about the server that
            // the address leads to now.
            let at_once = was_kept && (is_lost || is_of_replica);
            let other_follows = is_of_replica && (was_kept || self.router.may_switch());
            let goes_on = other_follows || asked.as_ref().is_err_and(may_pass);
            if !goes_on || left.is_zero() {
                return asked;
            }
            if !at_once {
                P::Io::pause(pauses.wait().min(left)).await;
            }
        }
    }

    /// Counts and logs the result of a query.
    fn record(&self, asked: Result<bool, UnresolvedReason>) -> Resolution {
        let counters = self.router.counters();
        match asked {
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
        }
    }

    /// Checks that the token fits a connection with these settings: the query would set an expiry
    /// on any other key. Returns the slot to query, in a cluster.
    fn check(&self, token: &CommitToken) -> Result<Option<u16>, UnresolvedReason> {
        let here = self.router.db();
        if token.db != here {
            return Err(UnresolvedReason::OtherDatabase { token: token.db, here });
        }
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

    /// Queries the register on the kept connection, or on a new one.
    async fn ask_server(
        &self,
        was_kept: &mut bool,
        route: &Route,
        token: &CommitToken,
        deadline: Instant,
    ) -> Result<bool, UnresolvedReason> {
        let unreachable = UnresolvedReason::Unreachable;
        let settings = self.router.settings();
        let endpoint = self.router.endpoint(route, deadline).await.map_err(not_connected)?;
        let generation = endpoint.generation();
        // A connection to a former master would read that server's register.
        let version = P::Io::login_version(&endpoint, settings, deadline).await;
        let mut connection = match self.connections.take(&endpoint, version) {
            Some(connection) => {
                *was_kept = true;
                connection
            }
            None => self.connect(&endpoint, generation, route, deadline).await?,
        };
        let limit = Deadline::after(settings.response_timeout).capped(deadline);
        let question = marker::question(&token.register, settings.register_ttl, route.ask);
        let count = if route.ask { 4 } else { 2 };
        let mut answers = connection.ask_all(&question, count, limit).await.map_err(unreachable)?;
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
        self.connections.keep(&endpoint, connection, &answers);
        Ok(marker::applied(token.number, touched, found)?)
    }

    async fn connect(
        &self,
        endpoint: &Endpoint,
        generation: u64,
        route: &Route,
        deadline: Instant,
    ) -> Result<OwnConnection<P>, UnresolvedReason> {
        let options = OpenOptions::for_query(generation, deadline);
        let source = match P::Io::open(endpoint, self.router.settings(), options).await {
            Ok(connection) => return Ok(connection),
            Err(source) => source,
        };
        // Another node may serve the slot by now.
        let error = CheckoutError::Connect { waited: Duration::ZERO, source };
        let _: Option<Redirect> = self.router.on_unreachable(route, &error, deadline).await;
        Err(not_connected(error))
    }
}

/// Returns whether the query may succeed in a moment.
pub(super) fn may_pass(why: &UnresolvedReason) -> bool {
    match why {
        UnresolvedReason::Unreachable(error) => error.is_transient_failure(),
        UnresolvedReason::Refused(error) => is_transient(error),
        _ => false,
    }
}

/// Returns whether the server's error may pass in a moment.
fn is_transient(error: &ServerError) -> bool {
    matches!(error.code(), "LOADING" | "BUSY" | "TRYAGAIN" | "CLUSTERDOWN" | "MASTERDOWN")
}

fn not_connected(error: CheckoutError) -> UnresolvedReason {
    match error {
        CheckoutError::Connect { source, .. } => UnresolvedReason::Unreachable(source),
        CheckoutError::Cancelled => UnresolvedReason::Cancelled,
        _ => closed(),
    }
}

fn closed() -> UnresolvedReason {
    let text = "the session manager is closed";
    UnresolvedReason::Unreachable(ConnectionError::new(ConnectionErrorKind::Closed, text))
}

impl From<NoTurn> for UnresolvedReason {
    fn from(why: NoTurn) -> Self {
        match why {
            NoTurn::Closed => closed(),
            NoTurn::Cancelled => Self::Cancelled,
            NoTurn::Occupied => {
                let text = "other queries occupied the connection";
                Self::Unreachable(ConnectionError::timed_out(text))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use super::*;
    use crate::pool::pool::Pool;

    #[test]
    fn a_resolution_may_move_between_threads_on_each_side() {
        fn is_send<T: Send>(_: &T) {}
        fn resolution_is_send<P: ServerPool>(resolver: &DoubtResolver<P>, token: &CommitToken) {
            is_send(&resolver.resolve(token, None, |_| ready(Ok(()))));
        }
        let _: fn(&DoubtResolver<Pool>, &CommitToken) = resolution_is_send;
    }
}
