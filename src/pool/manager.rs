//! How r2d2 opens a link and judges one that comes back.
//!
//! Never: a panic into r2d2, which would lose the slot for ever. Never: a link that has not proven
//! that it can do what its pool is for.

use std::fmt;
use std::net::Shutdown;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use redis::Value;
use tracing::Level;

use crate::connection::connect::Connected;
use crate::connection::connect_attempts::ConnectAttempts;
use crate::connection::connection::Connection;
use crate::connection::deadline::Deadline;
use crate::connection::endpoint::Endpoint;
use crate::connection::login::Login;
use crate::connection::open_count::OpenCount;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::logging::deferred;
use crate::logging::deferred::LogThread;
use crate::process::sockets::OwnSocket;
use crate::protocol::command::info::EXEC_INFO;
use crate::protocol::command::info::is_unknown;
use crate::protocol::connection_state::Expect;
use crate::protocol::handshake::Handshake;
use crate::protocol::resp::encode::{DISCARD, MULTI, PING, ROLE};
use crate::protocol::resp::reply::Reply;
use crate::protocol::server_error::ServerError;
use crate::settings::settings::Settings;
use crate::status::counters::{CloseReason, Counters};
use crate::sync::lock;

/// Minimum number of tries to connect that end at MULTI in a row, and minimum time between the first
/// and the last of them, before a call is failed without another try.
const TRIES_AT_MULTI: u32 = 3;
const TIME_AT_MULTI: Duration = Duration::from_millis(300);

/// What the connections of a pool are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Single commands.
    Pooled,
    /// Transactions: the user must have the right to MULTI.
    Transactional,
}

/// What a pool and its manager both know.
#[derive(Default)]
pub(crate) struct PoolShared {
    /// Of all pools of one purpose together: in a cluster each master has one.
    pub(crate) counters: Arc<Counters>,
    /// Links of an older generation are replaced.
    pub(crate) generation: AtomicU64,
    pub(crate) attempts: Arc<ConnectAttempts>,
    /// The server has said that it knows WAITAOF.
    pub(crate) knows_waitaof: AtomicBool,
    /// No link is used any more. r2d2 would still open its `min_idle`.
    pub(crate) closed: AtomicBool,
    /// Number of connections that are open or being opened, those that r2d2 has not listed yet included.
    open: OpenCount,
    sockets: Mutex<Vec<Weak<OwnSocket>>>,
    last_connect_error: Mutex<Option<(Instant, ConnectionError)>>,
    /// The tries to connect in a row that ended at MULTI, and when the first of them did.
    closed_at_multi: Mutex<Option<(Instant, u32)>>,
    /// Runs after a link was opened and before r2d2 lists it.
    #[cfg(test)]
    pub(crate) before_listing: Mutex<Option<Box<dyn Fn() + Send>>>,
}

impl PoolShared {
    pub(crate) fn counting(counters: Arc<Counters>) -> Self {
        Self { counters, ..Self::default() }
    }

    /// Links of an older one are replaced: it rises with the pool's own and with each switch of
    /// masters.
    pub(crate) fn generation(&self, endpoint: &Endpoint) -> u64 {
        self.generation.load(Ordering::Acquire) + endpoint.generation()
    }

    /// Number of connections that are open or being opened.
    pub(crate) fn alive(&self) -> usize {
        self.open.get()
    }

    /// No link is opened from now on; one that is being opened is closed when it is there.
    pub(crate) fn end(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// The socket of a link, by which it can be ended while a call uses it.
    fn opened(&self, connection: &Connection) {
        let Some(socket) = connection.socket() else { return };
        let mut sockets = lock(&self.sockets);
        sockets.retain(|socket| socket.strong_count() > 0);
        sockets.push(Arc::downgrade(socket));
    }

    /// Ends the connections of all connections, also of those that a call uses: the call fails.
    pub(crate) fn shut_down_sockets(&self) {
        for socket in std::mem::take(&mut *lock(&self.sockets)) {
            if let Some(socket) = socket.upgrade() {
                // It fails if the other side was first.
                let _: std::io::Result<()> = socket.shutdown(Shutdown::Both);
            }
        }
    }

    /// Notes whether a try to connect ended at MULTI. True if so many did in a row, and for so long,
    /// that it is a proxy which does not know transactions, and not a server that was ended or
    /// connections that were killed.
    fn repeats_closed_at_multi(&self, at_multi: bool) -> bool {
        let mut closed = lock(&self.closed_at_multi);
        if !at_multi {
            *closed = None;
            return false;
        }
        let (since, tries) = closed.get_or_insert((Instant::now(), 0));
        *tries += 1;
        *tries >= TRIES_AT_MULTI && since.elapsed() >= TIME_AT_MULTI
    }

    /// The last failure to connect, unless a connect has succeeded since.
    pub(crate) fn connect_error(&self) -> Option<(Instant, ConnectionError)> {
        lock(&self.last_connect_error).clone()
    }
}

impl fmt::Debug for PoolShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolShared").field("alive", &self.alive()).finish_non_exhaustive()
    }
}

/// How r2d2 opens a link and judges one that comes back.
#[derive(Debug)]
pub(crate) struct ConnectionManager {
    pub(crate) endpoint: Endpoint,
    pub(crate) settings: Arc<Settings>,
    pub(crate) purpose: Purpose,
    pub(crate) shared: Arc<PoolShared>,
    pub(crate) log_thread: Arc<LogThread>,
}

impl ConnectionManager {
    /// Both only rise: older than the last loss of trust, or than the last switch of masters.
    fn generation(&self) -> u64 {
        self.shared.generation(&self.endpoint)
    }

    fn open(&self) -> Result<Connection, ConnectionError> {
        // Before the connection exists: one that is opened to a server which is found to be gone
        // while the hand-shake runs belongs to the time before.
        let generation = self.generation();
        // After a connection that was closed under MULTI, MULTI is sent alone, so that
        // it is known to be the reason.
        let closed =
            |(_, error): (Instant, ConnectionError)| error.kind() == ConnectionErrorKind::Closed;
        let by_steps = self.shared.connect_error().is_some_and(closed);
        let purpose = (self.purpose, by_steps);
        open_by_steps(&self.endpoint, &self.settings, purpose, generation, None)
    }
}

const NO_EXEC: &str = "the server does not know EXEC: it was renamed or disabled there";

/// Opens a link that has proven that it can do what it is for, by `until` at the latest.
pub(crate) fn open(
    endpoint: &Endpoint,
    settings: &Settings,
    purpose: Purpose,
    generation: u64,
    until: Option<Instant>,
) -> Result<Connection, ConnectionError> {
    open_by_steps(endpoint, settings, (purpose, false), generation, until)
}

/// The same; MULTI may wait until all before it was answered.
fn open_by_steps(
    endpoint: &Endpoint,
    settings: &Settings,
    purpose: (Purpose, bool),
    generation: u64,
    until: Option<Instant>,
) -> Result<Connection, ConnectionError> {
    // First: how long the provider of credentials takes says nothing of the server.
    let login = endpoint.login()?;
    let now = Instant::now();
    let left = until.map_or(Duration::MAX, |until| until.saturating_duration_since(now));
    let limit = settings.connect_timeout.min(left);
    let deadline = Deadline::after(limit);
    let connected = endpoint.connect(limit)?;
    let peer = connected.socket().peer_addr().ok();
    let opened = greet(endpoint, settings, (purpose, generation), (login, connected), deadline);
    if let (Err(error), Some(peer)) = (&opened, peer)
        && matches!(error.kind(), ConnectionErrorKind::TimedOut | ConnectionErrorKind::Closed)
    {
        endpoint.failed(peer);
    }
    opened
}

fn greet(
    endpoint: &Endpoint,
    settings: &Settings,
    ((purpose, by_steps), generation): ((Purpose, bool), u64),
    (login, connected): (Login, Connected),
    deadline: Deadline,
) -> Result<Connection, ConnectionError> {
    let handshake = Handshake::new(&login.auth);
    let in_clear = matches!(connected, Connected::Socket(_)) && endpoint.host_and_port().1 != 0;
    let expires = settings.max_lifetime.map(|lifetime| Instant::now() + jittered(lifetime));
    let mut connection = Connection::new(connected, expires, generation);
    connection.authenticated(login.version);
    connection.limit_reply_size(settings.max_reply_bytes);
    if login.auth.protocol().supports_resp3() {
        connection.set_resp3();
    }
    let (proof, expected) = match purpose {
        Purpose::Pooled => {
            (vec![PING], [(Expect::Plain, 1), (Expect::Multi, 0), (Expect::Discard, 0)])
        }
        Purpose::Transactional => (
            vec![EXEC_INFO, MULTI, DISCARD],
            [(Expect::Plain, 1), (Expect::Multi, 1), (Expect::Discard, 1)],
        ),
    };
    let greeting = (Expect::Plain, handshake.required + handshake.optional);
    let role = endpoint.may_switch();
    let expected = [&[greeting][..], &expected, &[(Expect::Plain, u32::from(role))]].concat();
    let question: &[u8] = if role { ROLE } else { &[] };
    let bytes = [&[&handshake.bytes[..]], &proof[..], &[question]].concat().concat();
    let proofs: &[_] = match purpose {
        Purpose::Pooled => &["PING"],
        Purpose::Transactional => &["COMMAND INFO", "MULTI", "DISCARD"],
    };
    let names = [&handshake.commands[..], proofs, &["ROLE"]].concat();
    let name = |nth: u32| names.get(nth as usize).copied().unwrap_or_default();
    let first = handshake.required + handshake.optional;
    let by_steps = by_steps && purpose == Purpose::Transactional;
    let (now, later) = match bytes.split_at_checked(handshake.bytes.len() + EXEC_INFO.len()) {
        Some(steps) if by_steps => steps,
        _ => (&*bytes, &[][..]),
    };
    let (expected_now, expected_later) =
        expected.split_at(if by_steps { 2 } else { expected.len() });
    if let Err(error) = connection.send(now, expected_now, deadline) {
        let closed = error.kind() == ConnectionErrorKind::Closed;
        let said = if closed { connection.read_rejection(deadline) } else { None };
        return Err(said.map_or(error, ConnectionError::rejected_on_connect));
    }
    let (mut refused, mut last, mut first_word) = (None, None, None);
    for nth in 0..expected.iter().map(|(_, count)| count).sum() {
        if by_steps && nth == first + 1 {
            connection
                .send(later, expected_later, deadline)
                .map_err(|error| error.at(name(nth)))?;
        }
        let reply = connection.receive(deadline).map_err(|error| match first_word.take() {
            // It has sent one error and closed: that was not about the command.
            Some(said) if nth == 1 && error.kind() == ConnectionErrorKind::Closed => {
                ConnectionError::rejected_on_connect(said)
            }
            _ if nth == 0 && in_clear => error.at(name(nth)).closed_before_first_byte(),
            _ => error.at(name(nth)),
        })?;
        let Reply::Value(Value::ServerError(error)) = reply else {
            let asked = nth == first && purpose == Purpose::Transactional;
            if asked && matches!(&reply, Reply::Value(answer) if is_unknown(answer)) {
                refused.get_or_insert_with(|| {
                    (ServerError::synthetic("ERR", NO_EXEC), "COMMAND INFO")
                });
            }
            last = Some(reply);
            continue;
        };
        let error = ServerError::from_reply(&error, false).with_full_text(settings.server_messages);
        if nth == 0 {
            first_word = Some(error.clone());
        }
        let is_answer = (handshake.required..first).contains(&nth)
            || nth == first
                && match purpose {
                    // A user without the right to PING has been answered, which is all that is asked.
                    Purpose::Pooled => error.code() == "NOPERM",
                    // One without the right to COMMAND INFO is taken to know EXEC.
                    Purpose::Transactional => true,
                };
        if !is_answer {
            refused.get_or_insert((error, name(nth)));
        }
    }
    connection.mark_alive();
    if let Some((error, command)) = refused {
        let error = ConnectionError::refused(error).at(command);
        let may_change = settings.credentials.is_some();
        return Err(if may_change { error.with_changing_credentials() } else { error });
    }
    if let Some(answer) = last.filter(|_| role) {
        endpoint.judge_role(&answer.into_value())?;
    }
    Ok(connection)
}

impl r2d2::ManageConnection for ConnectionManager {
    /// Apart, since it is moved from hand to hand with every borrower.
    type Connection = Box<Connection>;
    type Error = ConnectionError;

    fn connect(&self) -> Result<Box<Connection>, ConnectionError> {
        // Before `closed` is read: a pool that has set it sees either this connection or its refusal.
        let counted = self.shared.open.count();
        let over = || self.shared.closed.load(Ordering::SeqCst);
        let refused =
            || ConnectionError::new(ConnectionErrorKind::Closed, "the session manager is closed");
        if over() {
            return Err(refused());
        }
        let mut opened = catch_unwind(AssertUnwindSafe(|| self.open()))
            .unwrap_or_else(|_| Err(ConnectionError::panicked()));
        if over() {
            return Err(refused());
        }
        let at_multi = matches!(&opened, Err(error) if error.is_closed_at_multi());
        if self.shared.repeats_closed_at_multi(at_multi) {
            opened = opened.map_err(ConnectionError::permanent);
        }
        let failure = opened.as_ref().err().map(|error| (Instant::now(), error.clone()));
        *lock(&self.shared.last_connect_error) = failure;
        match &mut opened {
            Ok(connection) => {
                connection.counts(counted);
                self.shared.opened(connection);
                self.shared.counters.connects.add();
                connection.arrives(self.shared.attempts.connection_opened());
                // Not here: the link is handed over when this returns.
                let address = self.endpoint.address().into_owned();
                self.log_thread.log(Level::DEBUG, move || {
                    tracing::debug!(server.address = &*address, "connected");
                });
            }
            Err(error) => {
                self.shared.counters.connect_failures.add();
                let (address, error) = (self.endpoint.address().into_owned(), error.clone());
                self.log_thread.log(Level::DEBUG, move || {
                    tracing::debug!(server.address = &*address, error = %format_args!("{error:#}"), "connect failed");
                });
            }
        }
        #[cfg(test)]
        if let Some(pause) = &*lock(&self.shared.before_listing) {
            pause();
        }
        opened.map(Box::new)
    }

    /// Not used: the first command of every borrower is the check.
    fn is_valid(&self, _: &mut Box<Connection>) -> Result<(), ConnectionError> {
        Ok(())
    }

    fn has_broken(&self, connection: &mut Box<Connection>) -> bool {
        let generation = self.generation();
        let reason =
            catch_unwind(AssertUnwindSafe(|| connection.close_reason(Instant::now(), generation)))
                .unwrap_or(Some(CloseReason::LeftDirty));
        if let Some(reason) = reason {
            self.shared.counters.replaced(reason);
            let address = self.endpoint.address().into_owned();
            deferred::defer(Level::DEBUG, move || {
                let reason = reason.as_str();
                tracing::debug!(server.address = &*address, reason, "connection replaced");
            });
        }
        reason.is_some()
    }
}

/// Up to a tenth less, so that connections opened together are not replaced together.
fn jittered(lifetime: Duration) -> Duration {
    lifetime.mul_f64(1.0 - fastrand::f64() / 10.0)
}
