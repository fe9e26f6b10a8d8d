//! One connection and what the server believes about it.
//!
//! Never: reuse after anything that is not understood. Never: a wait without a deadline.

use std::time::{Duration, Instant};

use redis::Value;

use super::openings::Arrival;
use crate::error::{LinkError, LinkErrorKind, ServerError};
use crate::observe::Replaced;
use crate::wire::encode::PING;
use crate::wire::fence::Fence;
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
    /// Apart, since a link is moved from hand to hand with every borrower.
    connection: Box<redis::Connection>,
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
    /// Its register, once it has needed one, and since when the server has had that at least.
    fence: Option<Fence>,
    registered: Option<Instant>,
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
            connection: Box::new(connection),
            state: State::default(),
            proven: Instant::now(),
            expires,
            generation,
            arrival: None,
            has_written: false,
            fence: None,
            registered: None,
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

    /// Its register, which gets its name now where it has none yet.
    pub(crate) fn fence(&mut self, prefix: &str) -> Result<&mut Fence, LinkError> {
        if self.fence.is_none() {
            let mut random = [0; 16];
            getrandom::fill(&mut random).map_err(|_| {
                LinkError::new(LinkErrorKind::Io, "the system has no random bits to give")
            })?;
            self.fence = Some(Fence::new(prefix, u128::from_ne_bytes(random)));
        }
        self.fence.as_mut().ok_or_else(|| LinkError::unexpected("there is no register"))
    }

    /// The register as it is.
    pub(crate) fn known_fence(&self) -> Option<&Fence> {
        self.fence.as_ref()
    }

    /// The server has the register, and has had it at least since `at`; or it may not have it.
    pub(crate) fn registered(&mut self, at: Option<Instant>) {
        self.registered = at;
    }

    /// Whether it watches its own register, and that lives for as long again as `age` at least.
    pub(crate) fn is_armed_for(&self, age: Duration) -> bool {
        self.state.is_armed() && self.registered.is_some_and(|at| at.elapsed() < age)
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
        self.send_counted(bytes, expected, deadline).map_err(|(_, error)| error)
    }

    /// The same; an error says how many bytes may have left.
    pub(crate) fn send_counted(
        &mut self,
        bytes: &[u8],
        expected: &[(Expect, u32)],
        deadline: Deadline,
    ) -> Result<(), (usize, LinkError)> {
        for (expect, count) in expected {
            self.state.sending(*expect, *count);
        }
        let mut left = 0;
        for step in bytes.chunks(STEP) {
            self.ready_to_write(deadline).map_err(|error| (left, error))?;
            left += step.len();
            let sent = self.connection.send_packed_command(step);
            sent.map_err(|error| (left, self.broken(LinkError::of(&error))))?;
        }
        Ok(())
    }

    fn ready_to_write(&mut self, deadline: Deadline) -> Result<(), LinkError> {
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

    /// Reads the answer to a command of ours.
    pub(crate) fn settled(
        &mut self,
        deadline: Deadline,
    ) -> Result<Result<(), ServerError>, LinkError> {
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
