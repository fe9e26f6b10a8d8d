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
//! Every call ends by its limit, and each reply belongs to its own call.

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
use crate::pool::batch::send_batch_within;
use crate::pool::batch_response::{BatchResponse, Interrupted};
use crate::pool::checkout::BatchCheckout;
use crate::pool::checkout::Checkout;
use crate::pool::redirect_pause;
use crate::pool::router::Router;
use crate::protocol::batch::{BatchRequest, RequestKind};
use crate::protocol::cluster::redirect;
use crate::protocol::cluster::route::{Redirect, RedirectBudget, Route};
use crate::protocol::connection_state::Expect;
use crate::protocol::lock::script::{By, Call};
use crate::protocol::replication::Durability;
use crate::protocol::resp::encode;
use crate::protocol::resp::encode::ASKING;
use crate::protocol::server_error::ServerError;
use crate::settings::settings::Settings;

/// Maximum number of times that a call is sent on a new connection of its own.
const MAX_SENDS: u32 = 3;

/// Sends the locks' calls to the server and returns the replies.
#[derive(Clone, Debug)]
pub(crate) struct ScriptClient {
    pooled: Router,
    own: Router,
    settings: Arc<Settings>,
    /// The session manager is closed: only renewals and releases are sent.
    closed: Arc<AtomicBool>,
}

/// The connection that a call uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Via {
    /// A connection of the pooled pool, or the own one if none is free.
    PooledFirst,
    /// The connection for renewals and releases. It outlives the close of the session manager.
    OwnConnection,
    /// The same connection, and never a moment past the limit.
    OwnStrictly,
}

/// Minimum time of an exchange on the own connection. It carries other callers' calls too, and all
/// of them lose the connection if one exchange is given up.
const MIN_OWN_EXCHANGE: Duration = Duration::from_millis(250);

/// The replies to calls that were sent together.
#[derive(Debug)]
pub(crate) struct ScriptReplies {
    pub(crate) values: Vec<Value>,
    /// Time of the last send. The replies describe the server's state after it.
    pub(crate) sent: Instant,
    pub(crate) took: Duration,
    /// The calls may have arrived more than once.
    pub(crate) repeated: bool,
}

impl ScriptReplies {
    /// Adds these replies after those to earlier calls.
    fn behind(self, mut before: Self) -> Self {
        before.values.extend(self.values);
        // The first of the calls was sent that long ago.
        before.took = before.sent.elapsed();
        before.repeated |= self.repeated;
        before
    }
}

/// Why there is no reply.
#[derive(Debug)]
pub(crate) enum CallError {
    /// Nothing was sent.
    Checkout(CheckoutError),
    /// The connection was lost, and no other one was available. The call may have arrived, or may
    /// yet arrive.
    Again(CheckoutError),
    /// The call may have arrived, or may yet arrive.
    Lost(ConnectionError),
}

impl CallError {
    pub(crate) fn may_arrive(&self) -> bool {
        !matches!(self, Self::Checkout(_))
    }

    /// The same error, if an earlier copy was `sent` already.
    fn after_sending(self, sent: bool) -> Self {
        match self {
            Self::Checkout(error) if sent => Self::Again(error),
            failed => failed,
        }
    }

    pub(crate) fn into_lock_error(self, during: &'static str) -> LockError {
        match self {
            Self::Checkout(error) => LockError::Checkout(error),
            Self::Again(error) => LockError::Connection {
                during,
                source: match error {
                    CheckoutError::Connect { source, .. } => source,
                    _ => ConnectionError::timed_out("no connection to send it again on"),
                },
            },
            Self::Lost(source) => LockError::Connection { during, source },
        }
    }
}

impl ScriptClient {
    /// Writes the events of the locks' threads, which must not wait for a log.
    pub(crate) fn log_thread(&self) -> &Arc<LogThread> {
        self.pooled.log_thread()
    }

    /// `own` has at most one connection to each master.
    pub(crate) fn new(pooled: Router, own: Router) -> Self {
        let settings = Arc::clone(pooled.settings());
        Self { pooled, own, settings, closed: Arc::default() }
    }

    pub(crate) fn is_in_cluster(&self) -> bool {
        self.own.is_cluster()
    }

    /// Returns the hash slot of the call's keys; none outside a cluster.
    pub(crate) fn slot_of(&self, call: &Call) -> Option<u16> {
        call.slot().filter(|_| self.is_in_cluster())
    }

    /// From now on only renewals and releases are sent.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Closes the own connections; nothing is sent any more.
    pub(crate) fn finish(&self) {
        self.own.close();
        self.own.drain(Instant::now());
        self.own.stop_connecting();
    }

    /// Opens the own connection to the node of `slot` in the background, unless it is open.
    pub(crate) fn warm(&self, slot: Option<u16>) {
        let slot = slot.filter(|_| self.is_in_cluster());
        self.own.warm(&Route::to(slot));
    }

    /// Sends the calls in one write and reads every reply, by `limit` at the latest.
    ///
    /// In a cluster there is one write for each slot.
    pub(crate) fn ask(
        &self,
        calls: &[Call],
        via: Via,
        limit: Instant,
    ) -> Result<ScriptReplies, CallError> {
        self.ask_each(calls, (via, None), (limit, limit))
    }

    /// The same, but waits for a connection only until `checkout`.
    pub(crate) fn ask_by(
        &self,
        calls: &[Call],
        via: Via,
        checkout: Instant,
        limit: Instant,
    ) -> Result<ScriptReplies, CallError> {
        self.ask_each(calls, (via, None), (checkout.min(limit), limit))
    }

    /// The same with WAIT after the calls. WAIT occupies the connection, so this uses a connection
    /// of the pooled pool, even if none is free yet.
    pub(crate) fn ask_replicated(
        &self,
        calls: &[Call],
        behind: &Durability,
        limit: Instant,
    ) -> Result<ScriptReplies, CallError> {
        self.ask_each(calls, (Via::PooledFirst, Some(behind)), (limit, limit))
    }

    fn ask_each(
        &self,
        calls: &[Call],
        behind: (Via, Option<&Durability>),
        limits: (Instant, Instant),
    ) -> Result<ScriptReplies, CallError> {
        let mut first = None;
        for calls in calls.chunk_by(|one, other| self.slot_of(one) == self.slot_of(other)) {
            let route = Route::to(calls.first().and_then(|call| self.slot_of(call)));
            let next = self.ask_at(route, calls, behind, limits)?;
            first = Some(match first {
                None => next,
                Some(answers) => next.behind(answers),
            });
        }
        first.ok_or_else(|| CallError::Lost(ConnectionError::unexpected("no call was given")))
    }

    fn ask_at(
        &self,
        mut route: Route,
        calls: &[Call],
        (via, behind): (Via, Option<&Durability>),
        (checkout, limit): (Instant, Instant),
    ) -> Result<ScriptReplies, CallError> {
        let mut by = By::Hash;
        let mut repeated = false;
        let mut budget = RedirectBudget::until(checkout);
        loop {
            // Each call is one command, and ASKING applies to one command.
            let asks = route.ask;
            let mut bytes = Vec::with_capacity(512 * calls.len());
            for call in calls {
                if asks {
                    bytes.extend_from_slice(ASKING);
                }
                call.write(&mut bytes, by);
            }
            if let Some(durability) = behind {
                durability.write(&mut bytes);
            }
            let count = calls.len() * if asks { 2 } else { 1 } + usize::from(behind.is_some());
            let grace = if via == Via::OwnStrictly { Duration::ZERO } else { MIN_OWN_EXCHANGE };
            let request = Request { route: &route, bytes: &bytes, count, checkout, limit, grace };
            let mut asked = match (via, behind) {
                (Via::OwnConnection | Via::OwnStrictly, _) => self.exchange_own(request),
                (Via::PooledFirst, None) => self.exchange_any(request),
                (Via::PooledFirst, Some(behind)) => self.exchange_pooled(request, behind.timeout()),
            };
            if let (true, Ok(answers)) = (asks, &mut asked) {
                let behind = answers.values.split_off(answers.values.len().min(2 * calls.len()));
                let values = std::mem::take(&mut answers.values);
                answers.values = redirect::all_after_asking(values);
                answers.values.extend(behind);
            }
            repeated |= match &asked {
                Ok(answers) => answers.repeated,
                Err(failed) => failed.may_arrive(),
            };
            if let Some(redirect) = self.redirect_for(&route, &asked, checkout)
                && redirect_pause::try_next(&mut budget, &redirect)
            {
                route = redirect.route();
                continue;
            }
            let mut answers = asked.map_err(|failed| failed.after_sending(repeated))?;
            answers.repeated |= repeated;
            let unknown = |value: &Value| matches!(value, Value::ServerError(error) if error.code() == "NOSCRIPT");
            if by == By::Source || !answers.values.iter().any(unknown) {
                return Ok(answers);
            }
            // Scripts that the server already knew run a second time, which changes nothing.
            by = By::Source;
        }
    }

    /// Publishes an empty message on `channel`.
    pub(crate) fn publish(&self, channel: &str, limit: Instant) -> Result<(), CallError> {
        let mut bytes = Vec::new();
        encode::command(&mut bytes, &["PUBLISH"], |args| {
            args.arg(channel).arg("");
        });
        let route = Route::default();
        let (checkout, grace) = (limit, MIN_OWN_EXCHANGE);
        let request = Request { route: &route, bytes: &bytes, count: 1, checkout, limit, grace };
        self.exchange_any(request).map(drop)
    }

    /// Returns the redirect to follow, if the node does not serve the slot. All calls can be sent
    /// again.
    fn redirect_for(
        &self,
        route: &Route,
        asked: &Result<ScriptReplies, CallError>,
        deadline: Instant,
    ) -> Option<Redirect> {
        let refused = |value: &Value| match value {
            Value::ServerError(error) => {
                self.own.redirect_for(route, error.code(), error.details().unwrap_or_default())
            }
            _ => None,
        };
        match asked {
            Ok(answers) => answers.values.iter().find_map(refused),
            Err(CallError::Checkout(error) | CallError::Again(error)) => {
                self.own.on_unreachable(route, error, deadline)
            }
            Err(CallError::Lost(_)) => None,
        }
    }

    /// Sends on a pooled connection if one is free, else on the own one.
    fn exchange_any(&self, request: Request<'_>) -> Result<ScriptReplies, CallError> {
        let checkout = self.open_until(request.checkout)?;
        let leased =
            self.pooled.try_checkout(request.route, checkout).map_err(CallError::Checkout)?;
        match leased {
            Some(lease) => self.exchange_on(lease, request, Duration::ZERO, checkout),
            // The pool may have been closed meanwhile.
            None => self.open_until(request.checkout).and_then(|_| self.exchange_own(request)),
        }
    }

    /// Waits for a pooled connection and sends on it; the server may take `extra` time for its
    /// reply.
    fn exchange_pooled(
        &self,
        request: Request<'_>,
        extra: Duration,
    ) -> Result<ScriptReplies, CallError> {
        let checkout = self.open_until(request.checkout)?;
        let lease = self.pooled.checkout(request.route, checkout).map_err(CallError::Checkout)?;
        self.exchange_on(lease, request, extra, checkout)
    }

    /// Returns the instant until which the call waits for a connection.
    fn open_until(&self, limit: Instant) -> Result<Instant, CallError> {
        match self.closed.load(Ordering::Acquire) {
            true => Err(CallError::Checkout(CheckoutError::Closed)),
            false => Ok(limit.min(Instant::now() + self.settings.checkout_timeout)),
        }
    }

    fn exchange_on(
        &self,
        mut lease: Checkout,
        Request { bytes, count, limit, .. }: Request<'_>,
        extra: Duration,
        checkout: Instant,
    ) -> Result<ScriptReplies, CallError> {
        let mut repeats = lease.retry_budget();
        let mut repeated = false;
        loop {
            lease.connection(checkout).map_err(|error| {
                let error = match error {
                    Error::Checkout(error) => error,
                    _ => CheckoutError::Closed,
                };
                CallError::Checkout(error).after_sending(repeated)
            })?;
            let trusted = lease.is_trusted();
            let sent = Instant::now();
            let deadline = self.deadline(limit, extra);
            match once(&mut lease, bytes, count, deadline) {
                Ok(values) => {
                    concluded(&mut lease, &values);
                    return Ok(ScriptReplies { values, sent, took: sent.elapsed(), repeated });
                }
                Err(cause) => {
                    lease.on_lost(&cause);
                    if Instant::now() >= checkout || !repeats.allow(trusted, &cause) {
                        return Err(CallError::Lost(cause));
                    }
                    repeated = true;
                    lease.log_retry(&cause);
                }
            }
        }
    }

    /// Sends on the own connection, together with other callers' calls.
    fn exchange_own(
        &self,
        Request { route, bytes, count, checkout, limit, grace }: Request<'_>,
    ) -> Result<ScriptReplies, CallError> {
        let grace = grace.min(self.settings.response_timeout);
        let deadline = || self.deadline(limit.max(Instant::now() + grace), Duration::ZERO);
        let job = || BatchRequest {
            bytes: bytes.to_vec(),
            kind: RequestKind::Calls { count: count as u32 },
        };
        let checkout = checkout.min(Instant::now() + self.settings.checkout_timeout);
        let mut tries = 0;
        loop {
            let repeated = tries > 0;
            let mut sent = Instant::now();
            let joined = self.own.checkout_batched_calls(route, checkout, job);
            if grace.is_zero()
                && Instant::now() >= limit
                && !matches!(joined, Ok(BatchCheckout::Response(_)))
            {
                // The connection is passed on unchanged: other callers may have time left.
                let source = ConnectionError::timed_out("no time left to send");
                let error = CheckoutError::Connect { waited: Duration::ZERO, source };
                return Err(CallError::Checkout(error).after_sending(repeated));
            }
            let settled = match joined {
                Ok(BatchCheckout::Alone(mut lease)) => {
                    sent = Instant::now();
                    match once(&mut lease, bytes, count, deadline()) {
                        Ok(values) => {
                            concluded(&mut lease, &values);
                            Ok(values)
                        }
                        Err(cause) => {
                            lease.on_lost(&cause);
                            Err(cause)
                        }
                    }
                }
                Ok(BatchCheckout::Lead(lease, own)) => {
                    sent = Instant::now();
                    answers(send_batch_within(lease, &own, deadline()))
                }
                // The bytes were sent at some time after this caller began to wait.
                Ok(BatchCheckout::Response(settled)) => answers(settled),
                Err(error) => return Err(CallError::Checkout(error).after_sending(repeated)),
            };
            match settled {
                Ok(values) => {
                    return Ok(ScriptReplies { values, sent, took: sent.elapsed(), repeated });
                }
                Err(cause) => {
                    tries += 1;
                    if tries >= MAX_SENDS || Instant::now() >= checkout {
                        return Err(CallError::Lost(cause));
                    }
                    tracing::debug!(%cause, "sent again on a new connection");
                }
            }
        }
    }

    fn deadline(&self, limit: Instant, extra: Duration) -> Deadline {
        Deadline::after(self.settings.response_timeout + extra).capped(limit + extra)
    }
}

/// The calls to send, and the deadline of their replies.
#[derive(Clone, Copy)]
struct Request<'r> {
    route: &'r Route,
    bytes: &'r [u8],
    count: usize,
    /// Deadline of the checkout.
    checkout: Instant,
    limit: Instant,
    /// Minimum time of the exchange, once it has a connection.
    grace: Duration,
}

fn answers(settled: BatchResponse) -> Result<Vec<Value>, ConnectionError> {
    match settled {
        BatchResponse::Calls(values) => Ok(values),
        BatchResponse::Interrupted(Interrupted { cause, .. }) => Err(cause),
        BatchResponse::Block(_) | BatchResponse::Read(_) => {
            Err(ConnectionError::unexpected("another request's replies for a call"))
        }
    }
}

fn once(
    lease: &mut Checkout,
    bytes: &[u8],
    count: usize,
    deadline: Deadline,
) -> Result<Vec<Value>, ConnectionError> {
    let Some(link) = lease.current() else {
        return Err(ConnectionError::unexpected("there is no connection"));
    };
    link.send(bytes, &[(Expect::Plain, count as u32)], deadline)?;
    let values = (0..count).map(|_| link.value(deadline)).collect::<Result<_, _>>()?;
    link.mark_alive();
    Ok(values)
}

fn concluded(lease: &mut Checkout, values: &[Value]) {
    let mut wrote = false;
    for value in values {
        match value {
            Value::ServerError(error) => lease.on_server_error(error.code()),
            _ => wrote = true,
        }
    }
    if let Some(link) = lease.current()
        && wrote
    {
        link.mark_written();
    }
}

/// The server's refusal as an error.
pub(crate) fn refused(during: &'static str, error: &redis::ServerError) -> LockError {
    LockError::Command { during, error: ServerError::of_own_script(error) }
}
