//! The readiness probe: whether the servers take the writes of a session manager now.
//!
//! It uses the connections of the manager's own queries, never those of a pool. It asks what the resolution
//! of a doubt asks, about a register that no connection has: the touch is a write that changes nothing.

use std::time::{Duration, Instant};

use redis::Value;

use crate::commit::own_connections::OwnConnection;
use crate::commit::resolve::{DoubtResolver, NoTurn};
use crate::connection::deadline::{self, Deadline};
use crate::connection::endpoint::Endpoint;
use crate::connection::handshake::OpenOptions;
use crate::connection::io::Io;
use crate::error::any::Error;
use crate::error::checkout::CheckoutError;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::pool::server_pool::ServerPool;
use crate::protocol::cluster::route::{Redirect, Route};
use crate::protocol::cluster::slot;
use crate::protocol::marker;
use crate::protocol::server_error::ServerError;
use crate::sync::lock;

/// Maximum number of times that the servers of a cluster are asked by one probe.
const MOST_ATTEMPTS: u32 = 5;

impl<P: ServerPool> DoubtResolver<P> {
    /// Asks each server whether it takes writes, once there is a permit. A call that has waited for the
    /// probe of another one returns its result. Dropped before its end, it closes the connection.
    ///
    /// # Errors
    /// The first reason why a server does not.
    pub(crate) async fn ready<G: Send, F: Future<Output = Result<G, NoTurn>> + Send>(
        &self,
        within: Duration,
        permit: impl Fn(Instant) -> F + Send,
    ) -> Result<(), Error> {
        self.router.here()?;
        let begun = Instant::now();
        let deadline = deadline::later(begun, within);
        self.connections.stay_open();
        let ready = match permit(deadline).await {
            Ok(_permit) => match self.result_since(begun) {
                Some(result) if !is_late(&result) => result,
                // The other call may have had less time.
                _ => self.probe_and_record(deadline).await,
            },
            Err(NoTurn::Closed) => return Err(CheckoutError::Closed.into()),
            Err(NoTurn::Cancelled) => return Err(CheckoutError::Cancelled.into()),
            Err(NoTurn::Occupied) => self.result_since(begun).unwrap_or_else(|| {
                Err(ConnectionError::timed_out("other queries occupied the connection"))
            }),
        };
        let waited = begun.elapsed();
        match ready {
            Ok(()) => {
                tracing::debug!(?waited, "ready");
                Ok(())
            }
            Err(_) if P::Io::is_cancelled() => Err(CheckoutError::Cancelled.into()),
            Err(source) => {
                tracing::debug!(?waited, error = %format_args!("{source:#}"), "not ready");
                Err(CheckoutError::Connect { waited, source }.into())
            }
        }
    }

    /// The result of a probe that has ended since then.
    fn result_since(&self, begun: Instant) -> Option<Result<(), ConnectionError>> {
        let last = lock(&self.last_probe);
        last.as_ref().filter(|(ended, _)| *ended >= begun).map(|(_, result)| result.clone())
    }

    async fn probe_and_record(&self, deadline: Instant) -> Result<(), ConnectionError> {
        let result = self.probe(deadline).await;
        *lock(&self.last_probe) = Some((Instant::now(), result.clone()));
        result
    }

    /// Asks all servers. In a cluster it asks again after a slot has moved, and once after the slot map
    /// was refreshed because a node does not reply.
    async fn probe(&self, deadline: Instant) -> Result<(), ConnectionError> {
        let (mut earlier, mut refreshes) = (None, false);
        for _ in 0..MOST_ATTEMPTS {
            let error = match (self.probe_all(refreshes, deadline).await, earlier) {
                (Ok(()), _) => return Ok(()),
                // The end of the time proves less.
                (late, Some(earlier)) if is_late(&late) => return Err(earlier),
                (Err(error), _) => error,
            };
            if !self.router.is_cluster() || !error.is_transient_failure() {
                return Err(error);
            }
            if P::Io::is_cancelled() {
                return Err(cancelled());
            }
            match error.server_error().filter(|error| error.code() == "MOVED") {
                Some(moved) => {
                    let (code, text) = (moved.code(), moved.message());
                    let _: Option<Redirect> =
                        self.router.redirect_for(&Route::default(), code, text).await;
                }
                None if refreshes => return Err(error),
                None => refreshes = true,
            }
            earlier = Some(error);
        }
        Err(earlier.unwrap_or_else(|| ConnectionError::timed_out("no attempt was made")))
    }

    async fn probe_all(&self, refreshes: bool, deadline: Instant) -> Result<(), ConnectionError> {
        let servers = self.router.every_master(refreshes, deadline).await?;
        let endpoints: Vec<_> = servers.iter().map(|(endpoint, _)| endpoint.clone()).collect();
        self.connections.retain(&endpoints);
        for (endpoint, slot) in &servers {
            if P::Io::is_cancelled() {
                return Err(cancelled());
            }
            self.probe_server(endpoint, *slot, deadline).await?;
        }
        Ok(())
    }

    async fn probe_server(
        &self,
        endpoint: &Endpoint,
        slot: Option<u16>,
        deadline: Instant,
    ) -> Result<(), ConnectionError> {
        let settings = self.router.settings();
        let limit = Deadline::after(settings.response_timeout).capped(deadline);
        let tag = slot.and_then(slot::tag_of);
        let question = marker::probe(&settings.prefix, tag, settings.register_ttl);
        let version = P::Io::login_version(endpoint, settings, deadline).await;
        if let Some(connection) = self.connections.take(endpoint, version) {
            // Its failure proves nothing about the server that the address leads to now, so half of the time
            // is for another one.
            let half = deadline.saturating_duration_since(Instant::now()) / 2;
            let limit = Deadline::after(half.min(settings.response_timeout));
            let asked = self.ask_and_keep(endpoint, connection, &question, limit).await;
            if let Ok((answers, true)) = asked {
                return self.check_replies(&answers);
            }
        }
        let options = OpenOptions::for_query(endpoint.generation(), deadline);
        let connection = P::Io::open(endpoint, settings, options).await;
        let connection = connection.map_err(|error| error.to(&endpoint.address()))?;
        let (answers, _) = self.ask_and_keep(endpoint, connection, &question, limit).await?;
        self.check_replies(&answers)
    }

    /// Returns the replies, and whether the connection was kept.
    async fn ask_and_keep(
        &self,
        endpoint: &Endpoint,
        mut connection: OwnConnection<P>,
        question: &[u8],
        limit: Deadline,
    ) -> Result<(Vec<Value>, bool), ConnectionError> {
        let answers = connection.ask_all(question, 2, limit).await?;
        let is_kept = self.connections.keep(endpoint, connection, &answers);
        Ok((answers, is_kept))
    }

    /// The first error, unless only a right is missing: then the server replies.
    fn check_replies(&self, answers: &[Value]) -> Result<(), ConnectionError> {
        for answer in answers {
            let Value::ServerError(error) = answer else { continue };
            let error = ServerError::from_reply(error, false);
            if error.code() != "NOPERM" {
                let shows_text = self.router.settings().server_messages;
                return Err(ConnectionError::refused(error.with_full_text(shows_text)));
            }
        }
        Ok(())
    }
}

/// The result of a probe whose caller was cancelled: it proves as little as the end of the time.
fn cancelled() -> ConnectionError {
    ConnectionError::timed_out("the probe was cancelled")
}

/// Whether the time was over, which the next call's may not be.
fn is_late(result: &Result<(), ConnectionError>) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == ConnectionErrorKind::TimedOut)
}
