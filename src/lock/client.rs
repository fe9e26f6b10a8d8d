//! Sends the locks' calls to the server and returns the replies.
//!
//! Renewals and releases have a connection of their own, one to each master. The pools may be busy
//! for a long time, and a closed session manager still releases locks on this connection. Callers
//! share it, several calls in one write. All other calls use a connection of the pooled pool, or
//! the own connection if none is free.
//!
//! If a connection dies during a call, it is replaced and the call is sent again. Every call of
//! this module may be sent twice, see [script](crate::protocol::lock::script). So a connection
//! needs no check before its use.
//!
//! Every call ends by its limit, and each reply belongs to its own call. If a call's future is
//! dropped, the call may have been sent, also several times. It may still arrive.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use redis::Value;

use crate::connection::deadline::Deadline;
use crate::error::any::Error;
use crate::error::checkout::CheckoutError;
use crate::error::connection::ConnectionError;
use crate::error::lock::LockError;
use crate::logging::deferred::LogThread;
use crate::pool::batch_request::BatchRequest;
use crate::pool::batch_response::{BatchResponse, Interrupted};
use crate::pool::line::Line;
use crate::pool::pool::Pool;
use crate::pool::redirect_pause;
use crate::pool::retry_budget::RetryBudget;
use crate::pool::router::Router;
use crate::pool::server_pool::{BatchCheckout, ServerPool};
use crate::protocol::batch::RequestKind;
use crate::protocol::cluster::redirect;
use crate::protocol::cluster::route::{Redirect, RedirectBudget, Route};
use crate::protocol::cluster::slot_map::NodeAddress;
use crate::protocol::lock::lease::{Timing, was_held};
use crate::protocol::lock::script::{By, ScriptCall};
use crate::protocol::replication::Durability;
use crate::protocol::resp::encode::{self, ASKING, words};
use crate::protocol::server_error::ServerError;
use crate::sync::boxed::boxed;

/// Maximum number of times that a call is sent on a new connection of its own.
const MAX_SENDS: u32 = 3;

/// Sends the locks' calls to the server and returns the replies.
#[derive(Clone)]
pub(crate) struct ScriptClient<P: ServerPool = Pool> {
    pooled: Router<P>,
    own: Router<P>,
    /// The session manager is closed: only renewals and releases are sent.
    closed: Arc<AtomicBool>,
}

/// The connection that a call uses.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Via<'d> {
    /// A connection of the pooled pool, or the own one if none is free.
    PooledFirst,
    /// A connection of the pooled pool, even if none is free yet: WAIT after the calls occupies it.
    Replicated(&'d Durability),
    /// The connection for renewals and releases. It outlives the close of the session manager.
    OwnConnection,
    /// The connection for renewals and releases. The call ends at its limit, without the minimum time
    /// of an exchange ([`MIN_OWN_EXCHANGE`]).
    OwnStrictly,
}

/// Minimum time of an exchange on the own connection. It carries other callers' calls too, and all
/// of them lose the connection if one exchange is given up.
const MIN_OWN_EXCHANGE: Duration = Duration::from_millis(250);

/// The replies to calls that were sent together.
#[derive(Debug)]
pub(crate) struct ScriptReplies {
    pub(crate) values: Vec<Value>,
    /// The replies describe the server's state after the last send.
    pub(crate) timing: Timing,
    /// The calls may have arrived more than once.
    pub(crate) repeated: bool,
}

impl ScriptReplies {
    /// Returns whether the owner token held the lock that was renewed or released.
    pub(crate) fn was_held(&self, during: &'static str) -> Result<bool, Error> {
        self.values.first().and_then(was_held).ok_or_else(|| unexpected_reply(during))
    }
}

/// Why there is no reply.
#[derive(Debug)]
pub(crate) enum CallError {
    /// No connection was available. If the call was sent before, on a connection that was lost, it
    /// may have arrived, or may yet arrive.
    Checkout { error: CheckoutError, sent_before: bool },
    /// The call may have arrived, or may yet arrive.
    Lost(ConnectionError),
}

impl CallError {
    pub(crate) fn may_arrive(&self) -> bool {
        !matches!(self, Self::Checkout { sent_before: false, .. })
    }

    pub(crate) fn into_error(self, during: &'static str) -> Error {
        let source = match self {
            Self::Checkout { error, sent_before: false } => return error.into(),
            Self::Checkout { error: CheckoutError::Connect { source, .. }, .. } => source,
            Self::Checkout { .. } => {
                ConnectionError::timed_out("no connection to send it again on")
            }
            Self::Lost(source) => source,
        };
        LockError::Connection { during, source }.into()
    }
}

impl<P: ServerPool> ScriptClient<P> {
    /// Writes the events of the locks' threads, which must not wait for a log.
    pub(crate) fn log_thread(&self) -> &Arc<LogThread> {
        self.pooled.log_thread()
    }

    /// `own` has at most one connection to each master.
    pub(crate) fn new(pooled: Router<P>, own: Router<P>) -> Self {
        Self { pooled, own, closed: Arc::default() }
    }

    /// The connections for renewals and releases.
    pub(crate) fn own(&self) -> &Router<P> {
        &self.own
    }

    pub(crate) fn is_in_cluster(&self) -> bool {
        self.own.is_cluster()
    }

    /// Returns the hash slot of the call's keys; none outside a cluster.
    pub(crate) fn slot_of(&self, call: &ScriptCall) -> Option<u16> {
        call.slot().filter(|_| self.is_in_cluster())
    }

    /// Returns the node that has the call's keys in a cluster, if it is known.
    pub(crate) fn master_of(&self, call: &ScriptCall) -> Option<NodeAddress> {
        self.own.master_of(self.slot_of(call)?)
    }

    /// From now on only renewals and releases are sent.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Returns whether only renewals and releases are sent.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Opens the own connection to the node of `slot` in the background, unless it is open.
    pub(crate) fn warm(&self, slot: u16) {
        self.own.warm(&Route::to(self.is_in_cluster().then_some(slot)));
    }

    /// Sends one call. Fails with the server's refusal, which is unknown behind a copy of the call that may
    /// have run.
    pub(crate) async fn ask_one(
        &self,
        during: &'static str,
        call: &ScriptCall,
        via: Via<'_>,
        limit: Instant,
    ) -> Result<ScriptReplies, Error> {
        let asked = self.ask(&[call], via, limit).await;
        let replies = asked.map_err(|failed| failed.into_error(during))?;
        match replies.values.first() {
            Some(Value::ServerError(error)) => Err(refused(during, error, replies.repeated)),
            _ => Ok(replies),
        }
    }

    /// Sends the calls in one write and reads every reply, by `limit` at the latest. In a cluster
    /// the calls share a slot.
    pub(crate) async fn ask(
        &self,
        calls: &[&ScriptCall],
        via: Via<'_>,
        limit: Instant,
    ) -> Result<ScriptReplies, CallError> {
        let mut route = Route::to(calls.first().and_then(|call| self.slot_of(call)));
        let (mut by, mut sent_before) = (By::Hash, false);
        let checkout_deadline = self.checkout_deadline(limit);
        let mut budget = RedirectBudget::until(checkout_deadline);
        loop {
            let mut request = self.request(&route, via, limit);
            calls.iter().for_each(|call| request.push(call, by));
            if let Via::Replicated(durability) = via {
                durability.write(&mut request.bytes);
                request.count += 1;
            }
            let mut asked = self.exchange(&request, &mut sent_before).await;
            if route.ask
                && let Ok(replies) = &mut asked
            {
                let behind = replies.values.split_off(replies.values.len().min(2 * calls.len()));
                replies.values = redirect::all_after_asking(std::mem::take(&mut replies.values));
                replies.values.extend(behind);
            }
            // Another copy follows, and a reply that is no refusal of the server's own proves nothing of this one.
            let may_have_run = asked.as_ref().is_ok_and(|replies| {
                !replies.values.iter().take(calls.len()).all(is_refused_before_start)
            });
            if self.may_be_redirected(&asked)
                && let Some(redirect) =
                    boxed(self.redirect_for(&route, &asked, checkout_deadline)).await
                && redirect_pause::try_next::<P::Io>(&mut budget, &redirect).await
            {
                route = redirect.route();
                sent_before |= may_have_run;
                continue;
            }
            let replies = asked?;
            let unknown = |value: &Value| matches!(value, Value::ServerError(error) if error.code() == "NOSCRIPT");
            if by == By::Source || !replies.values.iter().any(unknown) {
                return Ok(replies);
            }
            // Scripts that the server already knew run a second time, which changes nothing.
            by = By::Source;
            sent_before |= may_have_run;
        }
    }

    /// Publishes an empty message on `channel`.
    pub(crate) async fn publish(&self, channel: &str, limit: Instant) -> Result<(), CallError> {
        let route = Route::default();
        let mut request = self.request(&route, Via::PooledFirst, limit);
        encode::command_with(&mut request.bytes, words!("PUBLISH"), (channel, ""));
        request.count = 1;
        self.exchange(&request, &mut false).await.map(drop)
    }

    /// Returns whether another node may have to run the calls.
    fn may_be_redirected(&self, asked: &Result<ScriptReplies, CallError>) -> bool {
        self.is_in_cluster()
            && match asked {
                Ok(replies) => {
                    replies.values.iter().any(|value| matches!(value, Value::ServerError(_)))
                }
                Err(CallError::Checkout { .. }) => true,
                Err(CallError::Lost(_)) => false,
            }
    }

    /// Returns the redirect to follow, if the node does not serve the slot. All calls can be sent
    /// again.
    async fn redirect_for(
        &self,
        route: &Route,
        asked: &Result<ScriptReplies, CallError>,
        deadline: Instant,
    ) -> Option<Redirect> {
        match asked {
            Ok(replies) => {
                for value in &replies.values {
                    let Value::ServerError(error) = value else { continue };
                    let text = error.details().unwrap_or_default();
                    let redirect = self.own.redirect_for(route, error.code(), text).await;
                    if redirect.is_some() {
                        return redirect;
                    }
                }
                None
            }
            Err(CallError::Checkout { error, .. }) => {
                self.own.on_unreachable(route, error, deadline).await
            }
            Err(CallError::Lost(_)) => None,
        }
    }

    /// Returns the instant until which an exchange waits for a connection.
    fn checkout_deadline(&self, limit: Instant) -> Instant {
        limit.min(Instant::now() + self.own.settings().checkout_timeout)
    }

    /// Returns a request without calls.
    fn request<'r>(&self, route: &'r Route, via: Via<'r>, limit: Instant) -> ScriptRequest<'r> {
        let checkout_deadline = self.checkout_deadline(limit);
        ScriptRequest { route, via, bytes: Vec::new(), count: 0, checkout_deadline, limit }
    }

    /// Sends on a connection, and again on another one if that one is lost. Sets `sent_before` if
    /// a copy may be in flight that has no reply.
    async fn exchange(
        &self,
        request: &ScriptRequest<'_>,
        sent_before: &mut bool,
    ) -> Result<ScriptReplies, CallError> {
        let failed = |error, sent_before| CallError::Checkout { error, sent_before };
        let mut pooled = self.pooled(request).await.map_err(|error| failed(error, *sent_before))?;
        let mut budget = match &pooled {
            Some(line) => line.retry_budget(request.checkout_deadline),
            None => RetryBudget::new(MAX_SENDS - 1, request.checkout_deadline),
        };
        loop {
            let sent = match &mut pooled {
                Some(line) => self.send_pooled(line, request).await,
                None => self.send_own(request).await,
            };
            let Sent { at, trusted, values } = sent.map_err(|error| failed(error, *sent_before))?;
            let cause = match values {
                Ok(values) => {
                    let timing = Timing { sent: at, took: at.elapsed() };
                    return Ok(ScriptReplies { values, timing, repeated: *sent_before });
                }
                Err(cause) => cause,
            };
            *sent_before = true;
            if !budget.allow(trusted, &cause) {
                return Err(CallError::Lost(cause));
            }
            match &mut pooled {
                Some(line) => line.log_retry(&cause),
                None => tracing::debug!(%cause, "sent again on a new connection"),
            }
        }
    }

    /// Returns whether the call travels on a lane of the pooled pool.
    fn on_lanes(&self, via: Via<'_>) -> bool {
        P::HAS_LANES && self.pooled.settings().lanes > 0 && matches!(via, Via::PooledFirst)
    }

    /// Takes a pooled connection. `None`: the call is sent together with other callers' calls.
    async fn pooled(&self, request: &ScriptRequest<'_>) -> Result<Option<P::Line>, CheckoutError> {
        let ScriptRequest { route, via, checkout_deadline, .. } = *request;
        if matches!(via, Via::OwnConnection | Via::OwnStrictly) {
            return Ok(None);
        }
        let open = || match self.is_closed() {
            true => Err(CheckoutError::Closed),
            false => Ok(()),
        };
        open()?;
        if self.on_lanes(via) {
            return Ok(None);
        }
        if let Via::Replicated(_) = via {
            return self.pooled.checkout(route, checkout_deadline).await.map(Some);
        }
        let free = self.pooled.try_checkout(route, checkout_deadline).await?;
        // The pool may have been closed meanwhile.
        if free.is_none() {
            open()?;
        }
        Ok(free)
    }

    async fn send_pooled(
        &self,
        line: &mut P::Line,
        request: &ScriptRequest<'_>,
    ) -> Result<Sent, CheckoutError> {
        while !line.has_connection() {
            line.connect(request.checkout_deadline).await?;
        }
        // The server waits before it replies to WAIT.
        let waits = match request.via {
            Via::Replicated(durability) => durability.timeout(),
            _ => Duration::ZERO,
        };
        let (trusted, at) = (line.is_trusted(), Instant::now());
        let deadline = self.deadline(request.limit, waits);
        Ok(Sent { at, trusted, values: send(line, request, deadline).await })
    }

    /// Sends on the own connection or on a lane, together with other callers' calls.
    async fn send_own(&self, request: &ScriptRequest<'_>) -> Result<Sent, CheckoutError> {
        let ScriptRequest { route, via, ref bytes, count, checkout_deadline, limit } = *request;
        let strict = matches!(via, Via::OwnStrictly);
        let least = MIN_OWN_EXCHANGE.min(self.own.settings().response_timeout);
        let grace = if strict { Duration::ZERO } else { least };
        let deadline = || self.deadline(limit.max(Instant::now() + grace), Duration::ZERO);
        let job = || BatchRequest::new(bytes.clone(), RequestKind::Calls { count });
        let mut at = Instant::now();
        // The response to a call that another thread sends is not awaited past the deadline.
        let wait = match P::HAS_LANES {
            true => limit.max(at + grace).saturating_duration_since(checkout_deadline),
            false => Duration::ZERO,
        };
        let router = if self.on_lanes(via) { &self.pooled } else { &self.own };
        let joined = router.checkout_batched(route, checkout_deadline, wait, job).await;
        let is_sent = matches!(joined, Ok(BatchCheckout::Response(_)));
        if strict && !is_sent && Instant::now() >= limit {
            // The connection is passed on unchanged: other callers may have time left.
            let source = ConnectionError::timed_out("no time left to send");
            return Err(CheckoutError::Connect { waited: Duration::ZERO, source });
        }
        let values = match joined? {
            BatchCheckout::Alone(mut line) => {
                at = Instant::now();
                send(&mut line, request, deadline()).await
            }
            BatchCheckout::Lead(line, group) => {
                at = Instant::now();
                calls_of(P::send_batch(line, group, deadline()).await?)
            }
            // The bytes were sent at some time after this caller began to wait.
            BatchCheckout::Response(response) => calls_of(response),
        };
        Ok(Sent { at, trusted: false, values })
    }

    fn deadline(&self, limit: Instant, extra: Duration) -> Deadline {
        Deadline::after(self.own.settings().response_timeout + extra).capped(limit + extra)
    }
}

/// The calls to send, and the deadlines.
struct ScriptRequest<'r> {
    route: &'r Route,
    via: Via<'r>,
    bytes: Vec<u8>,
    /// Number of replies.
    count: u32,
    checkout_deadline: Instant,
    limit: Instant,
}

impl ScriptRequest<'_> {
    fn push(&mut self, call: &ScriptCall, by: By) {
        // Each call is one command, and ASKING applies to one command.
        if self.route.ask {
            self.bytes.extend_from_slice(ASKING);
            self.count += 1;
        }
        call.write(&mut self.bytes, by);
        self.count += 1;
    }
}

/// One send of a request.
struct Sent {
    at: Instant,
    /// The connection had replied a moment before.
    trusted: bool,
    values: Result<Vec<Value>, ConnectionError>,
}

fn calls_of(response: BatchResponse) -> Result<Vec<Value>, ConnectionError> {
    match response {
        BatchResponse::Calls(values) => Ok(values),
        BatchResponse::Interrupted(Interrupted { cause, .. }) => Err(cause),
        BatchResponse::Block(_) | BatchResponse::Read(_) | BatchResponse::InDoubt(_) => {
            Err(ConnectionError::unexpected("another request's replies for a call"))
        }
    }
}

/// Sends once and reads every reply. A connection that fails is closed.
async fn send<L: Line>(
    line: &mut L,
    request: &ScriptRequest<'_>,
    deadline: Deadline,
) -> Result<Vec<Value>, ConnectionError> {
    let asked = match line.current() {
        Some(connection) => {
            connection.ask_all(&request.bytes, request.count as usize, deadline).await
        }
        None => Err(ConnectionError::unexpected("there is no connection")),
    };
    let values = asked.inspect_err(|cause| line.on_no_reply(cause, deadline))?;
    line.on_replies(&values, &values);
    Ok(values)
}

fn is_refused_before_start(reply: &Value) -> bool {
    matches!(reply, Value::ServerError(error) if !ServerError::of_own_script(error).is_from_script())
}

/// The server's refusal as an error. `may_have_run`: another copy of the call may have run, of which the
/// refusal proves nothing.
pub(crate) fn refused(
    during: &'static str,
    error: &redis::ServerError,
    may_have_run: bool,
) -> Error {
    let error = ServerError::of_own_script(error);
    let error = if may_have_run { error.behind_a_copy() } else { error };
    LockError::Command { during, error }.into()
}

/// The error for a reply that no script of this crate returns.
pub(crate) fn unexpected_reply(during: &'static str) -> Error {
    let source = ConnectionError::unexpected("a reply of another type");
    LockError::Connection { during, source }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_send<T: Send>(_: T) {}

    /// This compiles only if the futures can move between threads on every side.
    fn futures_are_send<P: ServerPool>(
        client: &ScriptClient<P>,
        call: &ScriptCall,
        via: Via<'_>,
        limit: Instant,
    ) {
        assert_send(client.ask(&[call], via, limit));
        assert_send(client.ask_one("", call, via, limit));
        assert_send(client.publish("", limit));
    }

    #[test]
    fn a_calls_future_can_move_between_threads() {
        let _: fn(&ScriptClient, &ScriptCall, Via<'_>, Instant) = futures_are_send;
    }
}
