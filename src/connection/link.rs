//! One connection and what the server believes about it.
//!
//! Never: reuse after anything that is not understood. Never: a wait without a deadline.

use std::time::{Duration, Instant};

use redis::Value;

use super::openings::Arrival;
use crate::error::{LinkError, LinkErrorKind, ServerError};
use crate::observe::Replaced;
use crate::wire::encode::{DISCARD, MULTI, PING};
use crate::wire::state::{Expect, Proof, State, Taint};

/// An instant by which a call must be over, and how long it had been given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    at: Instant,
    limit: Duration,
}

impl Deadline {
    pub(crate) fn after(limit: Duration) -> Self {
        Self { at: Instant::now() + limit, limit }
    }

    /// The same, but over by `other` at the latest.
    pub(crate) fn capped(self, other: Instant) -> Self {
        Self { at: self.at.min(other), limit: self.limit }
    }

    fn left(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }
}

/// So much is written between two looks at the clock: the socket's timeout begins anew whenever
/// the peer takes a little, so one that crawls would stretch a single write without end.
const STEP: usize = 16 * 1024;

/// One connection and what the server believes about it.
pub(crate) struct Link {
    connection: redis::Connection,
    state: State,
    /// When the server last answered.
    proven: Instant,
    /// When it is to be replaced for its age.
    expires: Option<Instant>,
    generation: u64,
    /// It is new, and nobody has had it yet.
    arrival: Option<Arrival>,
    /// It has written, so it would notice a server that no longer lets it.
    has_written: bool,
    /// The socket's timeouts as they are set: setting them costs a system call each.
    read_timeout: Duration,
    write_timeout: Duration,
}

impl Link {
    /// Takes over a connection that has just been opened, which has no timeouts yet.
    pub(crate) fn new(
        connection: redis::Connection,
        timeout: Duration,
        expires: Option<Instant>,
        generation: u64,
    ) -> Result<Self, LinkError> {
        let failed = |error| LinkError::of(&error);
        connection.set_read_timeout(Some(timeout)).map_err(failed)?;
        connection.set_write_timeout(Some(timeout)).map_err(failed)?;
        Ok(Self {
            connection,
            state: State::default(),
            proven: Instant::now(),
            expires,
            generation,
            arrival: None,
            has_written: false,
            read_timeout: timeout,
            write_timeout: timeout,
        })
    }

    /// It was opened for a caller, who has yet to take it.
    pub(crate) fn arrives(&mut self, arrival: Arrival) {
        self.arrival = Some(arrival);
    }

    /// Somebody has it in hand.
    pub(crate) fn taken(&mut self) {
        self.arrival = None;
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    pub(crate) fn taint(&mut self, reason: Taint) {
        self.state.taint(reason);
    }

    pub(crate) fn proven(&self) -> Instant {
        self.proven
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Why it must be replaced, if it must.
    pub(crate) fn verdict(&self, now: Instant, generation: u64) -> Option<Replaced> {
        if let Some(taint) = self.state.tainted() {
            return Some(match taint {
                Taint::Closed => Replaced::Closed,
                Taint::TimedOut => Replaced::TimedOut,
                Taint::Protocol => Replaced::Protocol,
                Taint::LeftDirty => Replaced::LeftDirty,
                Taint::Reclaimed => Replaced::Reclaimed,
                Taint::Raw => Replaced::Raw,
                Taint::Outdated => Replaced::Outdated,
                Taint::Lifetime => Replaced::Lifetime,
            });
        }
        if !self.state.is_clean() {
            Some(Replaced::LeftDirty)
        } else if self.generation < generation {
            Some(Replaced::Outdated)
        } else if self.expires.is_some_and(|expires| expires <= now) {
            Some(Replaced::Lifetime)
        } else {
            None
        }
    }

    /// Writes `bytes`, which `expected` replies will answer.
    ///
    /// An error proves that the last byte did not leave.
    pub(crate) fn send(
        &mut self,
        bytes: &[u8],
        expected: &[(Expect, u32)],
        deadline: Deadline,
    ) -> Result<(), LinkError> {
        for (expect, count) in expected {
            self.state.sending(*expect, *count);
        }
        for step in bytes.chunks(STEP) {
            let left = deadline.left();
            if left.is_zero() {
                return Err(self.broken(LinkError::timed_out("no time left to send")));
            }
            let timeout = timeout(left, deadline.limit);
            if timeout != self.write_timeout {
                self.write_timeout = timeout;
                let set = self.connection.set_write_timeout(Some(timeout));
                set.map_err(|error| self.broken(LinkError::of(&error)))?;
            }
            let sent = self.connection.send_packed_command(step);
            sent.map_err(|error| self.broken(LinkError::of(&error)))?;
        }
        Ok(())
    }

    /// Reads the next reply. A server's error is a reply like any other.
    pub(crate) fn receive(&mut self, deadline: Deadline) -> Result<Value, LinkError> {
        loop {
            let left = deadline.left();
            if left.is_zero() {
                return Err(self.broken(LinkError::timed_out("no answer in time")));
            }
            let timeout = timeout(left, deadline.limit);
            if timeout != self.read_timeout {
                self.read_timeout = timeout;
                let set = self.connection.set_read_timeout(Some(timeout));
                set.map_err(|error| self.broken(LinkError::of(&error)))?;
            }
            let value = match self.connection.recv_response() {
                Ok(Value::Push { .. }) => continue,
                Ok(Value::Attribute { data, .. }) => *data,
                Ok(value) => value,
                Err(error) => return Err(self.broken(LinkError::of(&error))),
            };
            if self.state.reply(&value) == Proof::Surprise {
                return Err(LinkError::unexpected("a reply that cannot stand where it came"));
            }
            return Ok(value);
        }
    }

    /// The server has just answered all it was asked.
    pub(crate) fn has_answered(&mut self) {
        self.proven = Instant::now();
    }

    /// The server has just applied a write.
    pub(crate) fn wrote(&mut self) {
        self.has_written = true;
    }

    pub(crate) fn has_written(&self) -> bool {
        self.has_written
    }

    /// MULTI on its own, awaited. `Err` of the outer result: the link is dead.
    pub(crate) fn multi(
        &mut self,
        deadline: Deadline,
    ) -> Result<Result<(), ServerError>, LinkError> {
        self.send(MULTI, &[(Expect::Multi, 1)], deadline)?;
        self.settled(deadline)
    }

    /// DISCARD and MULTI anew: proves that a link which has waited in MULTI is still alive.
    pub(crate) fn multi_again(
        &mut self,
        deadline: Deadline,
    ) -> Result<Result<(), ServerError>, LinkError> {
        self.send(
            &[DISCARD, MULTI].concat(),
            &[(Expect::Discard, 1), (Expect::Multi, 1)],
            deadline,
        )?;
        if let Err(refused) = self.settled(deadline)? {
            return Ok(Err(refused));
        }
        self.settled(deadline)
    }

    /// Proves that the server answers.
    pub(crate) fn ping(
        &mut self,
        deadline: Deadline,
    ) -> Result<Result<(), ServerError>, LinkError> {
        self.call(PING, Expect::Plain, deadline)
    }

    /// One command of ours and its answer.
    pub(crate) fn call(
        &mut self,
        bytes: &[u8],
        expect: Expect,
        deadline: Deadline,
    ) -> Result<Result<(), ServerError>, LinkError> {
        self.send(bytes, &[(expect, 1)], deadline)?;
        self.settled(deadline)
    }

    fn settled(&mut self, deadline: Deadline) -> Result<Result<(), ServerError>, LinkError> {
        let value = self.receive(deadline)?;
        self.has_answered();
        Ok(match value {
            Value::ServerError(error) => Err(ServerError::from_reply(&error, false)),
            _ => Ok(()),
        })
    }

    /// The redis connection itself. What is done with it is not known here, so it taints.
    pub(crate) fn raw(&mut self) -> &mut redis::Connection {
        self.state.taint(Taint::Raw);
        &mut self.connection
    }

    fn broken(&mut self, error: LinkError) -> LinkError {
        self.state.taint(match error.kind() {
            LinkErrorKind::TimedOut => Taint::TimedOut,
            LinkErrorKind::Closed | LinkErrorKind::Io => Taint::Closed,
            _ => Taint::Protocol,
        });
        error
    }
}

/// The socket's timeout for a call with this much time left: the call's whole limit, which stays
/// set from call to call, unless a good part of it is gone.
fn timeout(left: Duration, limit: Duration) -> Duration {
    if left > limit - limit / 8 { limit } else { left.max(Duration::from_millis(1)) }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("state", &self.state)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}
