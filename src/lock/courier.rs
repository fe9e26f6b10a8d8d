//! Brings calls to the server and their answers back, on the connections of the pooled pool.
//!
//! A connection that dies under a call is replaced and the call sent again: every call of this room
//! may be, see [script](super::script). So a connection need not be asked whether it is alive.
//!
//! Never: a wait past its limit. Never: an answer of one call taken for another's.

use std::time::{Duration, Instant};

use redis::Value;

use super::script::{By, Call};
use crate::connection::deadline::Deadline;
use crate::connection::nodes::{Nodes, Onward, Patience, Route};
use crate::connection::pool::Lease;
use crate::error::{CheckoutError, Error, LinkError, LockError, ServerError};
use crate::wire::durability::Durability;
use crate::wire::encode::{self, ASKING};
use crate::wire::redirect;
use crate::wire::state::Expect;

/// Brings calls to the server and their answers back.
#[derive(Clone, Debug)]
pub(crate) struct Courier {
    nodes: Nodes,
}

/// The answers to calls that were sent together.
#[derive(Debug)]
pub(crate) struct Answers {
    pub(crate) values: Vec<Value>,
    /// When they were sent the last time: what they say was not yet true before.
    pub(crate) sent: Instant,
    pub(crate) took: Duration,
    /// They may have arrived more than once.
    pub(crate) repeated: bool,
}

impl Answers {
    /// With those to calls that went before.
    fn behind(self, mut before: Self) -> Self {
        before.values.extend(self.values);
        // The first of them was sent that long ago.
        before.took = before.sent.elapsed();
        before.repeated |= self.repeated;
        before
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Failed {
    /// Nothing was sent.
    Checkout(CheckoutError),
    /// It may have arrived, and may yet.
    Lost(LinkError),
}

impl Failed {
    pub(crate) fn may_arrive(&self) -> bool {
        matches!(self, Self::Lost(_))
    }

    pub(crate) fn told(self, during: &'static str) -> LockError {
        match self {
            Self::Checkout(error) => LockError::Checkout(error),
            Self::Lost(source) => LockError::Connection { during, source },
        }
    }
}

impl Courier {
    pub(crate) fn new(nodes: Nodes) -> Self {
        Self { nodes }
    }

    pub(crate) fn is_in_cluster(&self) -> bool {
        self.nodes.is_cluster()
    }

    /// Sends the calls in one write, with WAIT behind them where that is asked for, and reads every
    /// answer, by `limit` at the latest.
    ///
    /// In a cluster there is one write for each slot.
    pub(crate) fn ask(
        &self,
        calls: &[Call],
        behind: Option<&Durability>,
        limit: Instant,
    ) -> Result<Answers, Failed> {
        let slot = |call: &Call| self.nodes.is_cluster().then(|| call.slot()).flatten();
        let mut first = None;
        for calls in calls.chunk_by(|one, other| slot(one) == slot(other)) {
            let route = Route::to(calls.first().and_then(slot));
            let next = self.ask_at(route, calls, behind, limit)?;
            first = Some(match first {
                None => next,
                Some(answers) => next.behind(answers),
            });
        }
        first.ok_or_else(|| Failed::Lost(LinkError::unexpected("nothing was asked")))
    }

    fn ask_at(
        &self,
        mut route: Route,
        calls: &[Call],
        behind: Option<&Durability>,
        limit: Instant,
    ) -> Result<Answers, Failed> {
        let mut by = By::Hash;
        let mut repeated = false;
        let mut patience = Patience::until(limit);
        loop {
            // Each is one command, and each is told for itself that its slot is on its way.
            let asks = route.asks();
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
            let extra = behind.map(Durability::timeout).unwrap_or_default();
            let count = calls.len() * if asks { 2 } else { 1 } + usize::from(behind.is_some());
            let mut asked = self.exchange(&route, &bytes, count, extra, limit);
            if let (true, Ok(answers)) = (asks, &mut asked) {
                let behind = answers.values.split_off(answers.values.len().min(2 * calls.len()));
                let values = std::mem::take(&mut answers.values);
                answers.values = redirect::all_behind_asking(values);
                answers.values.extend(behind);
            }
            if let Some(onward) = self.onward(&route, &asked)
                && patience.allows(&onward)
            {
                route = onward.route();
                continue;
            }
            let mut answers = asked?;
            answers.repeated |= repeated;
            let unknown = |value: &Value| matches!(value, Value::ServerError(error) if error.code() == "NOSCRIPT");
            if by == By::Source || !answers.values.iter().any(unknown) {
                return Ok(answers);
            }
            // Those that were known are run a second time, which changes nothing.
            by = By::Source;
            repeated = answers.repeated;
        }
    }

    /// Tells whoever listens on `channel`.
    pub(crate) fn publish(&self, channel: &str, limit: Instant) -> Result<(), Failed> {
        let mut bytes = Vec::new();
        encode::command(&mut bytes, &["PUBLISH"], |args| {
            args.arg(channel).arg("");
        });
        self.exchange(&Route::default(), &bytes, 1, Duration::ZERO, limit).map(drop)
    }

    /// What is to be done where a node is not the one to ask. All calls can be sent again.
    fn onward(&self, route: &Route, asked: &Result<Answers, Failed>) -> Option<Onward> {
        let refused = |value: &Value| match value {
            Value::ServerError(error) => {
                self.nodes.onward(route, error.code(), error.details().unwrap_or_default())
            }
            _ => None,
        };
        match asked {
            Ok(answers) => answers.values.iter().find_map(refused),
            Err(Failed::Checkout(error)) => self.nodes.unreached(route, error),
            Err(Failed::Lost(_)) => None,
        }
    }

    fn exchange(
        &self,
        route: &Route,
        bytes: &[u8],
        count: usize,
        extra: Duration,
        limit: Instant,
    ) -> Result<Answers, Failed> {
        let settings = self.nodes.settings();
        let checkout = limit.min(Instant::now() + settings.checkout_timeout);
        let mut lease = self.nodes.lease(route, checkout).map_err(Failed::Checkout)?;
        let mut repeats = lease.repeats();
        let mut repeated = false;
        loop {
            lease.link(checkout).map_err(|error| match error {
                Error::Checkout(error) => Failed::Checkout(error),
                _ => Failed::Checkout(CheckoutError::Closed),
            })?;
            let trusted = lease.is_trusted();
            let sent = Instant::now();
            let deadline = Deadline::after(settings.response_timeout + extra).capped(limit + extra);
            match once(&mut lease, bytes, count, deadline) {
                Ok(values) => {
                    concluded(&mut lease, &values);
                    return Ok(Answers { values, sent, took: sent.elapsed(), repeated });
                }
                Err(cause) => {
                    lease.found_dead(&cause);
                    if Instant::now() >= checkout || !repeats.allow(trusted, &cause) {
                        return Err(Failed::Lost(cause));
                    }
                    repeated = true;
                    tracing::debug!(%cause, "asked again on another connection");
                }
            }
        }
    }
}

fn once(
    lease: &mut Lease,
    bytes: &[u8],
    count: usize,
    deadline: Deadline,
) -> Result<Vec<Value>, LinkError> {
    let Some(link) = lease.current() else {
        return Err(LinkError::unexpected("there is no connection"));
    };
    link.send(bytes, &[(Expect::Plain, count as u32)], deadline)?;
    let values = (0..count).map(|_| link.value(deadline)).collect::<Result<_, _>>()?;
    link.has_answered();
    Ok(values)
}

fn concluded(lease: &mut Lease, values: &[Value]) {
    let mut wrote = false;
    for value in values {
        match value {
            Value::ServerError(error) => lease.heed(error.code()),
            _ => wrote = true,
        }
    }
    if let Some(link) = lease.current()
        && wrote
    {
        link.wrote();
    }
}

/// What the server refused.
pub(crate) fn refused(during: &'static str, error: &redis::ServerError) -> LockError {
    LockError::Command { during, error: ServerError::of_own_script(error) }
}
