//! One connection and the state that the server keeps for it.
//!
//! It is not reused after an unexpected reply, and every wait has a deadline.
//!
//! A future that is dropped before its end may have sent any part of its bytes. The connection then
//! awaits replies, and is closed when it is returned, unless its wire
//! [finishes the call](Wire::FINISHES_DROPPED).

use std::time::{Duration, Instant};

use redis::Value;

use crate::connection::deadline::Deadline;
use crate::connection::login::Login;
use crate::connection::transport::Transport;
use crate::connection::wire::Wire;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::protocol::connection_state::{CloseReason, ConnectionState, Expect, ReplyCheck};
use crate::protocol::handshake;
use crate::protocol::marker::CommitMarker;
use crate::protocol::resp::encode::PING;
use crate::protocol::resp::reply::Reply;
use crate::protocol::server_error::ServerError;
use crate::sync::boxed::boxed;
use crate::sync::under_way::CallUnderWay;

/// Minimum delay between AUTH attempts after a refusal.
const REAUTH_INTERVAL: Duration = Duration::from_secs(1);

/// Maximum bytes of the write buffer that is kept for the next write.
const MAX_SCRATCH_BYTES: usize = 64 * 1024;

/// One connection and the state that the server keeps for it.
pub(crate) struct Connection<W = Transport> {
    wire: W,
    state: ConnectionState,
    /// When the server last replied.
    last_alive: Instant,
    /// When its maximum lifetime ends.
    expires: Option<Instant>,
    generation: u64,
    /// Whether a write was applied on it, so that a later READONLY shows a change of the server.
    has_written: bool,
    /// The commit marker, made when first needed.
    marker: Option<CommitMarker>,
    /// The marker's time to live on the server began at this time or later.
    marker_written_at: Option<Instant>,
    /// Version of the credentials last used to authenticate.
    auth_version: u64,
    /// When an attempt to re-authenticate last failed.
    auth_refused_at: Option<Instant>,
    /// Buffer for the batched requests of several callers.
    scratch: Vec<u8>,
    /// Whether it uses RESP3, in which the server may send pushes.
    resp3: bool,
    /// Whether the socket was checked, and nothing was sent since.
    socket_checked: bool,
    /// Whether it awaits only the replies to the WATCH and the reads of its next caller.
    early_watch_is_due: bool,
    /// The part of the next message that was sent before.
    ahead: Option<Ahead>,
}

/// The part of a message that was sent before its caller got the connection.
#[derive(Clone, Copy)]
struct Ahead {
    /// Number of bytes that the socket has accepted.
    sent: usize,
    /// Number of bytes of the whole message.
    whole: usize,
    at: Instant,
}

/// Why a write and its replies were not completed.
pub(crate) struct Interruption {
    /// Number of bytes that may have been sent; `None`: all of them were sent.
    pub(crate) left: Option<usize>,
    pub(crate) cause: ConnectionError,
}

/// The replies that an exchange still awaits.
struct Awaited<'e> {
    expected: &'e [(Expect, u32)],
    /// Number of replies of the first kind that have arrived.
    arrived: u32,
}

impl<W: Wire> Connection<W> {
    /// Takes over a connection that has just been opened.
    pub(crate) fn new(wire: W, expires: Option<Instant>, generation: u64) -> Self {
        Self {
            wire,
            state: ConnectionState::default(),
            last_alive: Instant::now(),
            expires,
            generation,
            has_written: false,
            marker: None,
            marker_written_at: None,
            auth_version: 0,
            auth_refused_at: None,
            scratch: Vec::new(),
            resp3: false,
            // A server that rejects the connection at once sends its error as the first reply.
            socket_checked: true,
            early_watch_is_due: false,
            ahead: None,
        }
    }

    /// Sets what the handshake decides: the maximum bytes of one reply, and whether the server may
    /// send pushes.
    pub(crate) fn set_protocol(&mut self, max_reply_bytes: usize, resp3: bool) {
        self.wire.limit_reply_size(max_reply_bytes);
        self.resp3 = resp3;
    }

    /// Records that the connection has authenticated with this version of the credentials.
    pub(crate) fn authenticated(&mut self, version: u64) {
        (self.auth_version, self.auth_refused_at) = (version, None);
    }

    /// Whether it must re-authenticate, given the current version of the credentials. This is false
    /// for a while after a refusal.
    pub(crate) fn needs_reauth(&self, version: u64) -> bool {
        self.auth_version != version
            && self.auth_refused_at.is_none_or(|at| at.elapsed() >= REAUTH_INTERVAL)
    }

    /// Re-authenticates. If the server refuses, the connection keeps its identity.
    pub(crate) async fn reauthenticate(
        &mut self,
        login: &Login,
        deadline: Deadline,
    ) -> Result<Result<(), ServerError>, ConnectionError> {
        let mut bytes = Vec::new();
        handshake::auth(&mut bytes, &login.auth);
        let answer = self.call(&bytes, deadline).await?;
        match &answer {
            Ok(()) => self.authenticated(login.version),
            Err(_) => self.auth_refused_at = Some(Instant::now()),
        }
        Ok(answer)
    }

    /// Records that the provider returned no credentials.
    pub(crate) fn auth_failed(&mut self) {
        self.auth_refused_at = Some(Instant::now());
    }

    /// Records that a caller took the connection from the pool.
    pub(crate) fn mark_taken(&mut self) {
        self.socket_checked = false;
    }

    pub(crate) fn wire(&self) -> &W {
        &self.wire
    }

    pub(crate) fn wire_mut(&mut self) -> &mut W {
        &mut self.wire
    }

    pub(crate) fn state(&self) -> &ConnectionState {
        &self.state
    }

    pub(crate) fn taint(&mut self, reason: CloseReason) {
        self.state.taint(reason);
    }

    pub(crate) fn last_alive(&self) -> Instant {
        self.last_alive
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// The reason to close it instead of reusing it, if there is one.
    pub(crate) fn close_reason(&mut self, now: Instant, generation: u64) -> Option<CloseReason> {
        if let Some(reason) = self.state.tainted() {
            Some(reason)
        } else if !self.state.is_clean() {
            // Without its age it would have been passed on.
            let of_age = self.age_reason(now, generation).filter(|_| self.early_watch_is_due);
            of_age.or(Some(CloseReason::LeftDirty))
        } else if self.wire.check_unexpected(self.resp3).is_err() {
            Some(CloseReason::Protocol)
        } else {
            self.age_reason(now, generation)
        }
    }

    /// The reason to close it because of its age, if there is one.
    fn age_reason(&self, now: Instant, generation: u64) -> Option<CloseReason> {
        if self.generation < generation {
            Some(CloseReason::Outdated)
        } else if self.expires.is_some_and(|expires| expires <= now) {
            Some(CloseReason::Lifetime)
        } else {
            None
        }
    }

    /// Whether it awaits only the replies to the WATCH and the reads that were sent behind EXEC for its
    /// next caller.
    pub(crate) fn early_watch_is_due(&self) -> bool {
        self.early_watch_is_due && self.state.tainted().is_none()
    }

    /// Whether it can be passed to that caller, given what is known now.
    pub(crate) fn can_be_passed_on(&self, now: Instant, generation: u64) -> bool {
        self.early_watch_is_due() && self.age_reason(now, generation).is_none()
    }

    /// When the next message was sent before its caller got the connection, if it was. The connection
    /// awaits its replies, and [`exchange`](Self::exchange) of the same message sends what is left.
    pub(crate) fn sent_ahead(&self) -> Option<Instant> {
        self.ahead.map(|ahead| ahead.at)
    }

    /// Its commit marker, created and named if there is none yet.
    pub(crate) fn marker(&mut self, prefix: &str) -> Result<&mut CommitMarker, ConnectionError> {
        match &mut self.marker {
            Some(marker) => Ok(marker),
            none => {
                let mut random = [0; 16];
                getrandom::fill(&mut random).map_err(|_| {
                    let text = "the operating system returned no random bytes";
                    ConnectionError::new(ConnectionErrorKind::Io, text)
                })?;
                Ok(none.insert(CommitMarker::new(prefix, u128::from_ne_bytes(random))))
            }
        }
    }

    /// The commit marker with this tag and its next number, to be written outside of a transaction. Until a
    /// reply to that write is [recorded](Self::set_marker_written), the server may not have it. `is_new`: with
    /// a new name, because while a slot migrates the old one may still have its value at the source.
    pub(crate) fn begin_register(
        &mut self,
        prefix: &str,
        tag: Option<u32>,
        is_new: bool,
    ) -> Result<&mut CommitMarker, ConnectionError> {
        if is_new {
            self.marker = None;
        }
        self.marker_written_at = None;
        let marker = self.marker(prefix)?;
        marker.set_tag(tag);
        marker.advance();
        Ok(marker)
    }

    /// Leaves the register with its last number: the next exactly-once transaction has another one.
    pub(crate) fn end_register(&mut self) {
        (self.marker, self.marker_written_at) = (None, None);
    }

    /// The commit marker, if there is one.
    pub(crate) fn known_marker(&self) -> Option<&CommitMarker> {
        self.marker.as_ref()
    }

    /// Records that the server has had the commit marker since `at` at the latest; `None`: it may
    /// not have it.
    pub(crate) fn set_marker_written(&mut self, at: Option<Instant>) {
        self.marker_written_at = at;
    }

    /// Whether it watches its commit marker of this tag, and the marker was written less than `age`
    /// ago.
    pub(crate) fn is_armed_for(&self, age: Duration, tag: Option<u32>) -> bool {
        self.marker.as_ref().is_some_and(|marker| marker.tag() == tag) && self.is_armed(age)
    }

    /// The same for the tag that the marker has.
    pub(crate) fn is_armed(&self, age: Duration) -> bool {
        self.state.watches_marker() && self.marker_written_at.is_some_and(|at| at.elapsed() < age)
    }

    /// Checks the socket before a write, without waiting: fails if the peer closed it or sent
    /// unexpected bytes. Does nothing while replies are awaited, and at most one check precedes a
    /// write.
    pub(crate) fn check_socket(&mut self) -> Result<(), ConnectionError> {
        if self.socket_checked || !self.state.has_all_replies() {
            return Ok(());
        }
        self.wire.check_socket(self.resp3).map_err(|error| self.broken(error))?;
        self.socket_checked = true;
        Ok(())
    }

    /// Writes `bytes`, to which `expected` replies will come, after
    /// [`check_socket`](Self::check_socket). Dropped before its end, it may have sent any part of
    /// them, and the connection awaits their replies.
    ///
    /// An error proves that the last byte was not sent.
    pub(crate) async fn send(
        &mut self,
        bytes: &[u8],
        expected: &[(Expect, u32)],
        deadline: Deadline,
    ) -> Result<(), ConnectionError> {
        self.sending(expected)?;
        let sent = self.wire.send(bytes, self.state.awaited(), deadline).await;
        sent.map_err(|(_, error)| self.broken(error))
    }

    /// Records, before the bytes leave, which replies they will have.
    ///
    /// # Errors
    /// The connection is not usable, or awaits replies of an earlier call: its future was dropped,
    /// or it has panicked. Those replies would be taken for this call's.
    #[inline]
    fn sending(&mut self, expected: &[(Expect, u32)]) -> Result<(), ConnectionError> {
        if !self.state.has_all_replies() {
            self.state.taint(CloseReason::LeftDirty);
            return Err(ConnectionError::unexpected("an earlier call was left before its replies"));
        }
        self.check_socket()?;
        self.socket_checked = false;
        for (expect, count) in expected {
            self.state.sending(*expect, *count);
        }
        Ok(())
    }

    /// Reads the next reply, which may be a server's error. Dropped before its end, it has taken no
    /// reply; bytes that were read stay for the next call.
    pub(crate) async fn receive(&mut self, deadline: Deadline) -> Result<Reply, ConnectionError> {
        let _call = CallUnderWay::begin();
        loop {
            if let Some(reply) = self.arrived(1)? {
                return Ok(reply);
            }
            self.wire.fill(deadline).await.map_err(|error| self.broken(error))?;
        }
    }

    /// Reads the replies to a call that was dropped, or to a WATCH whose caller has given up, and throws
    /// them away.
    ///
    /// # Errors
    /// The connection is lost, or the call may have sent a part of its message.
    pub(crate) async fn receive_left(&mut self, deadline: Deadline) -> Result<(), ConnectionError> {
        let was_sent = W::FINISHES_DROPPED || self.early_watch_is_due();
        self.early_watch_is_due = false;
        while was_sent && self.state.awaited() > 0 {
            if self.arrived(u32::MAX)?.is_none() {
                self.wire.fill(deadline).await.map_err(|error| self.broken(error))?;
            }
        }
        if self.state.has_all_replies() {
            self.mark_alive();
            return Ok(());
        }
        self.state.taint(CloseReason::LeftDirty);
        Err(ConnectionError::unexpected("an earlier call was left before its replies"))
    }

    /// Returns the next reply, or up to `most` of them if each is QUEUED. `None`: more bytes must
    /// arrive first.
    #[inline(always)]
    fn arrived(&mut self, most: u32) -> Result<Option<Reply>, ConnectionError> {
        let most = most.min(self.state.max_queued());
        let next = self.wire.next(most).map_err(|error| self.broken(error))?;
        let Some(reply) = next else { return Ok(None) };
        if self.state.reply(&reply) == ReplyCheck::Unexpected {
            return Err(ConnectionError::unexpected("a reply that does not fit the command"));
        }
        Ok(Some(reply))
    }

    /// Writes `bytes`, reads the expected replies and passes each to `take`. If EXEC's array cannot
    /// be read to its end, its length is passed before the error is returned.
    ///
    /// Dropped before its end, it may have sent any part of the bytes, and the connection awaits the
    /// replies that are left.
    pub(crate) async fn exchange(
        &mut self,
        bytes: &[u8],
        expected: &[(Expect, u32)],
        deadline: Deadline,
        take: &mut (dyn FnMut(Expect, Reply) + Send),
    ) -> Result<(), Interruption> {
        self.exchange_all(bytes, expected, &[], deadline, take).await
    }

    /// The same for `bytes` that end with commands of the next caller. Their replies stay due, see
    /// [`receive_early_watch`](Self::receive_early_watch).
    pub(crate) async fn exchange_all(
        &mut self,
        bytes: &[u8],
        expected: &[(Expect, u32)],
        behind: &[(Expect, u32)],
        deadline: Deadline,
        take: &mut (dyn FnMut(Expect, Reply) + Send),
    ) -> Result<(), Interruption> {
        let _call = CallUnderWay::begin();
        // Of other replies only the caller that awaited them knows what they mean.
        if W::FINISHES_DROPPED && self.state.awaits_only_plain() {
            let received = boxed(self.receive_left(deadline)).await;
            received.map_err(|cause| Interruption { left: Some(0), cause })?;
        }
        let sent = match self.ahead.take() {
            Some(Ahead { sent, whole, .. }) => {
                if whole != bytes.len() {
                    self.state.taint(CloseReason::LeftDirty);
                    let cause = ConnectionError::unexpected("another message was sent ahead");
                    return Err(Interruption { left: None, cause });
                }
                sent
            }
            None => {
                self.sending(expected).map_err(|cause| Interruption { left: Some(0), cause })?;
                if !behind.is_empty() {
                    self.wire.split_replies(self.state.awaited());
                }
                for (expect, count) in behind {
                    self.state.sending(*expect, *count);
                }
                0
            }
        };
        let replies = self.state.awaited();
        if let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty())
            && let Err((left, error)) = self.wire.send(rest, replies, deadline).await
        {
            return Err(Interruption { left: Some(sent + left), cause: self.broken(error) });
        }
        // Usually nothing has arrived at this time.
        let may_be_complete = replies == 0 || self.wire.has_unread();
        self.read_all(expected, may_be_complete, deadline, take).await?;
        self.early_watch_is_due = !behind.is_empty();
        Ok(())
    }

    /// Waits for the reply to the WATCH that was sent behind EXEC, which stays due.
    ///
    /// # Errors
    /// Something else has come, so EXEC's reply may be another command's; or the connection is lost.
    pub(crate) async fn wait_for_early_watch(
        &mut self,
        deadline: Deadline,
    ) -> Result<(), Interruption> {
        let cause = loop {
            match self.wire.may_be_watch() {
                Some(true) => return Ok(()),
                Some(false) => break ConnectionError::unexpected("a reply too many"),
                None => {
                    if let Err(error) = self.wire.fill(deadline).await {
                        break error;
                    }
                }
            }
        };
        Err(Interruption { left: None, cause: self.broken(cause) })
    }

    /// Reads the replies to the WATCH and the reads that were sent behind EXEC for this caller, and
    /// passes each to `take`. Dropped before its end, it leaves a connection that awaits replies.
    pub(crate) async fn receive_early_watch(
        &mut self,
        expected: &[(Expect, u32)],
        deadline: Deadline,
        take: &mut (dyn FnMut(Expect, Reply) + Send),
    ) -> Result<(), Interruption> {
        let _call = CallUnderWay::begin();
        self.early_watch_is_due = false;
        let has_unread = self.wire.has_unread();
        self.read_all(expected, has_unread, deadline, take).await
    }

    /// Reads the expected replies. `may_be_complete`: they may have arrived.
    #[inline(always)]
    async fn read_all(
        &mut self,
        expected: &[(Expect, u32)],
        mut may_be_complete: bool,
        deadline: Deadline,
        take: &mut (dyn FnMut(Expect, Reply) + Send),
    ) -> Result<(), Interruption> {
        let mut awaited = Awaited { expected, arrived: 0 };
        loop {
            if may_be_complete {
                match self.read_arrived(&mut awaited, take) {
                    Ok(true) => match self.check_last() {
                        Ok(()) => return Ok(()),
                        Err(cause) => return Err(Interruption { left: None, cause }),
                    },
                    Ok(false) => {}
                    Err(cause) => return Err(Interruption { left: self.wire.unsent(), cause }),
                }
            }
            if let Err(error) = self.wire.fill(deadline).await {
                return Err(Interruption { left: self.wire.unsent(), cause: self.broken(error) });
            }
            may_be_complete = true;
        }
    }

    /// Fails if more has arrived than the awaited replies: each of them may be another one's.
    #[inline(always)]
    fn check_last(&mut self) -> Result<(), ConnectionError> {
        if self.state.awaited() > 0 || self.wire.check_unexpected(self.resp3).is_ok() {
            return Ok(());
        }
        Err(self.broken(ConnectionError::unexpected("a reply too many")))
    }

    /// Passes the replies that have arrived to `take`. Returns whether they were the last ones.
    fn read_arrived(
        &mut self,
        awaited: &mut Awaited<'_>,
        take: &mut (dyn FnMut(Expect, Reply) + Send),
    ) -> Result<bool, ConnectionError> {
        while let [(expect, count), rest @ ..] = awaited.expected {
            if awaited.arrived >= *count {
                *awaited = Awaited { expected: rest, arrived: 0 };
                continue;
            }
            match self.arrived(*count - awaited.arrived) {
                Ok(Some(reply)) => {
                    awaited.arrived += reply.count();
                    take(*expect, reply);
                }
                Ok(None) => return Ok(false),
                Err(cause) => {
                    self.pass_truncated(*expect, take);
                    return Err(cause);
                }
            }
        }
        Ok(true)
    }

    /// Passes the length of EXEC's array, if its end could not be read.
    #[cold]
    fn pass_truncated(&self, expect: Expect, take: &mut (dyn FnMut(Expect, Reply) + Send)) {
        if let Some(length) = self.wire.unread()
            && expect == Expect::Exec
            && self.state.is_in_multi()
        {
            take(expect, Reply::Truncated(length));
        }
    }

    /// The error that a server sent before it closed the connection, after a write has failed.
    pub(crate) async fn read_rejection(&mut self, deadline: Deadline) -> Option<ServerError> {
        loop {
            match self.wire.next(1).ok()? {
                Some(Reply::Value(Value::ServerError(error))) => {
                    return Some(ServerError::from_reply(&error, false));
                }
                Some(_) => return None,
                None => self.wire.fill(deadline).await.ok()?,
            }
        }
    }

    /// Sends plain commands, and passes each of their replies with its number to `take`. The error
    /// has whether the last byte may have been sent.
    pub(crate) async fn ask(
        &mut self,
        bytes: &[u8],
        replies: usize,
        deadline: Deadline,
        take: &mut (dyn FnMut(usize, Value) + Send),
    ) -> Result<(), (bool, ConnectionError)> {
        let expected = [(Expect::Plain, replies as u32)];
        let mut nth = 0;
        let mut take = |_, reply: Reply| {
            take(nth, reply.into_value());
            nth += 1;
        };
        let asked = self.exchange(bytes, &expected, deadline, &mut take).await;
        asked.map_err(|Interruption { left, cause }| (left.is_none(), cause))?;
        self.mark_alive();
        Ok(())
    }

    /// Sends plain commands and returns their replies.
    pub(crate) async fn ask_all(
        &mut self,
        bytes: &[u8],
        replies: usize,
        deadline: Deadline,
    ) -> Result<Vec<Value>, ConnectionError> {
        let mut values = Vec::with_capacity(replies);
        let asked = self.ask(bytes, replies, deadline, &mut |_, value| values.push(value)).await;
        asked.map(|()| values).map_err(|(_, error)| error)
    }

    /// Records that all awaited replies have just arrived.
    pub(crate) fn mark_alive(&mut self) {
        self.last_alive = Instant::now();
    }

    /// An empty buffer, to be returned by [`keep_scratch`](Self::keep_scratch).
    pub(crate) fn take_scratch(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.scratch)
    }

    pub(crate) fn keep_scratch(&mut self, mut bytes: Vec<u8>) {
        if bytes.capacity() <= MAX_SCRATCH_BYTES {
            bytes.clear();
            self.scratch = bytes;
        }
    }

    /// Records that the server has applied a write.
    pub(crate) fn mark_written(&mut self) {
        self.has_written = true;
    }

    pub(crate) fn has_written(&self) -> bool {
        self.has_written
    }

    /// Sends PING: proves that the server replies.
    pub(crate) async fn ping(
        &mut self,
        deadline: Deadline,
    ) -> Result<Result<(), ServerError>, ConnectionError> {
        self.call(PING, deadline).await
    }

    /// Sends one plain command and reads its reply.
    async fn call(
        &mut self,
        bytes: &[u8],
        deadline: Deadline,
    ) -> Result<Result<(), ServerError>, ConnectionError> {
        let mut answer = Ok(());
        let mut take = |_, value| {
            if let Value::ServerError(error) = value {
                answer = Err(ServerError::from_reply(&error, false));
            }
        };
        let asked = self.ask(bytes, 1, deadline, &mut take).await;
        asked.map_err(|(_, error)| error)?;
        Ok(answer)
    }

    fn broken(&mut self, error: ConnectionError) -> ConnectionError {
        self.state.taint(match error.kind() {
            ConnectionErrorKind::TimedOut => CloseReason::TimedOut,
            ConnectionErrorKind::Closed | ConnectionErrorKind::Io => CloseReason::Closed,
            _ => CloseReason::Protocol,
        });
        error
    }
}

impl Connection {
    /// Sends what the socket accepts at once of the message with which its next caller begins. That
    /// caller's [`exchange`](Self::exchange) of the same message sends the rest and reads the replies.
    ///
    /// # Errors
    /// The connection is lost, and nothing was sent.
    pub(crate) fn send_ahead(
        &mut self,
        bytes: &[u8],
        expected: &[(Expect, u32)],
    ) -> Result<(), ConnectionError> {
        let at = Instant::now();
        self.sending(expected)?;
        let sent = self.wire.send_now(bytes).map_err(|error| self.broken(error))?;
        self.ahead = Some(Ahead { sent, whole: bytes.len(), at });
        Ok(())
    }

    /// Sends the WATCH and the reads of its next caller, whose replies are then
    /// [due](Self::early_watch_is_due).
    ///
    /// # Errors
    /// They were not sent as a whole, and the connection cannot be used any more.
    pub(crate) fn send_early_watch(
        &mut self,
        bytes: &[u8],
        expected: &[(Expect, u32)],
    ) -> Result<(), ConnectionError> {
        self.send_ahead(bytes, expected)?;
        self.early_watch_is_due = self.ahead.take().is_some_and(|ahead| ahead.sent == ahead.whole);
        if self.early_watch_is_due {
            return Ok(());
        }
        self.state.taint(CloseReason::LeftDirty);
        Err(ConnectionError::unexpected("WATCH was not sent as a whole"))
    }
}
