//! Prepares a connection for a transaction's commands: it replies, MULTI is sent if needed, and its
//! register is armed if needed.
//!
//! No command of the user's is sent before all these replies.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use redis::Value;

use crate::commit::lock_check::LockCheck;
use crate::commit::outcome::MARKER_SET;
use crate::commit::plan::CommitPlan;
use crate::connection::connection::{Connection, Interruption};
use crate::connection::deadline::Deadline;
use crate::connection::wire::Wire;
use crate::error::any::{CommitError, Error};
use crate::error::applied::Applied;
use crate::error::checkout::CheckoutError;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::pool::line::Line;
use crate::protocol::cluster::redirect::RedirectReply;
use crate::protocol::cluster::slot;
use crate::protocol::command::info::{WAITAOF_INFO, is_unknown};
use crate::protocol::command::reader::CommandReader;
use crate::protocol::connection_state::{CloseReason, Expect};
use crate::protocol::lock::ownership;
use crate::protocol::queue::CommandQueue;
use crate::protocol::replication::Durability;
use crate::protocol::resp::encode::{self, ASKING, DISCARD, MULTI, UNWATCH, words};
use crate::protocol::resp::reply::Reply;
use crate::protocol::server_error::ServerError;
use crate::settings::settings::Settings;

/// Returns what has to be sent before the commands. `None`: the connection replied within the trust
/// window, and nothing has to be sent.
pub(crate) fn begin<'p, L: Line>(
    line: &mut L,
    queue: &CommandQueue,
    plan: &'p CommitPlan,
    checkout_deadline: Instant,
) -> Result<Option<Preparing<'p>>, CommitError> {
    let (must_watch, must_be_in_multi) = (plan.watched, queue.is_flushed());
    let kept = line.current().is_some_and(|connection| {
        let state = connection.state();
        (state.is_watching() || !must_watch) && (state.is_in_multi() || !must_be_in_multi)
    });
    if (must_watch || must_be_in_multi) && !kept {
        return Err(CommitError::lost_before_exec(ConnectionError::new(
            ConnectionErrorKind::Closed,
            "the connection was lost earlier in the scope",
        )));
    }
    let asks_for_waitaof = matches!(plan.durability, Some(Durability::Aof { .. }))
        && !line.context().shared().knows_waitaof.load(Ordering::Relaxed);
    let purpose = Purpose::Commit { flushed: queue.is_flushed(), asks_for_waitaof };
    let mut preparing =
        Preparing::new(line, purpose, plan, queue.binding().slot(), checkout_deadline);
    match preparing.look(line).map_err(Stopped::into_commit_error)? {
        Look::Prepared => Ok(None),
        look => {
            preparing.first = Some(look);
            Ok(Some(preparing))
        }
    }
}

/// Prepares the connection for the commands. Dropped before its end, it leaves a connection that
/// awaits replies, on which no command of the user's was sent.
pub(crate) async fn prepare<L: Line>(
    line: &mut L,
    queue: &CommandQueue,
    plan: &CommitPlan,
    checkout_deadline: Instant,
) -> Result<(), CommitError> {
    match begin(line, queue, plan, checkout_deadline)? {
        Some(preparing) => preparing.finish(line).await,
        None => Ok(()),
    }
}

/// Sends WATCH for a scope that reads before it writes, and awaits its reply. Returns the replies
/// to `reads` commands in the same write. Dropped before its end, it leaves a connection that awaits
/// replies.
pub(crate) async fn watch<L: Line>(
    line: &mut L,
    keys: Option<&[u8]>,
    reads: (&[u8], usize),
    plan: &CommitPlan,
    slot: Option<u16>,
    checkout_deadline: Instant,
) -> Result<Vec<Value>, Error> {
    let purpose = Purpose::Watch { keys, reads };
    let asked = Preparing::new(line, purpose, plan, slot, checkout_deadline).ask(line).await;
    asked.map(|found| found.reads).map_err(|stopped| match stopped {
        Stopped::Failed(error) => error.into(),
        Stopped::Refused { command, error } => {
            Error::Command { command: command.to_owned(), error }
        }
        // Nothing was applied, whether WATCH arrived or not.
        Stopped::Lost(source) => {
            Error::Lost { during: "WATCH".to_owned(), applied: Applied::No, source }
        }
    })
}

/// Why a connection is not prepared.
enum Stopped {
    Failed(CommitError),
    Refused { command: &'static str, error: ServerError },
    Lost(ConnectionError),
}

impl Stopped {
    fn into_commit_error(self) -> CommitError {
        match self {
            Self::Failed(error) => error,
            Self::Refused { command, error } => {
                CommitError::rejected(None, command.to_owned(), &error)
            }
            Self::Lost(cause) => CommitError::lost_before_exec(cause),
        }
    }
}

/// What a connection is prepared for.
#[derive(Clone, Copy)]
enum Purpose<'p> {
    /// Commands, of which some may have been `flushed`.
    Commit { flushed: bool, asks_for_waitaof: bool },
    /// A scope that watches these keys, and the number and bytes of its reads.
    Watch { keys: Option<&'p [u8]>, reads: (&'p [u8], usize) },
}

/// The preparation of a connection. A connection that is lost is replaced, as long as it watches no
/// keys and no commands were sent on it.
pub(crate) struct Preparing<'p> {
    settings: Arc<Settings>,
    purpose: Purpose<'p>,
    plan: &'p CommitPlan,
    slot: Option<u16>,
    checkout_deadline: Instant,
    /// The result of the first look, if there was one.
    first: Option<Look>,
}

/// What a connection needs.
enum Look {
    /// Nothing: it is prepared.
    Prepared,
    /// Another connection takes its place.
    Connect,
    /// These commands. `watching`: the connection watches the user's keys.
    Send { steps: Preflight, watching: bool },
    /// Nothing but the replies: WATCH and the reads were sent behind the EXEC of another caller.
    Receive(Preflight),
}

impl<'p> Preparing<'p> {
    fn new<L: Line>(
        line: &L,
        purpose: Purpose<'p>,
        plan: &'p CommitPlan,
        slot: Option<u16>,
        checkout_deadline: Instant,
    ) -> Self {
        let settings = Arc::clone(line.context().settings());
        Self { settings, purpose, plan, slot, checkout_deadline, first: None }
    }

    /// Sends what is left, and reads every reply. Dropped before its end, it leaves a connection that
    /// awaits replies, on which no command of the user's was sent.
    pub(crate) async fn finish<L: Line>(self, line: &mut L) -> Result<(), CommitError> {
        let found = self.ask(line).await.map_err(Stopped::into_commit_error)?;
        if found.has_waitaof {
            line.context().shared().knows_waitaof.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Sends the steps and reads their replies. If the connection is lost, another one is used.
    async fn ask<L: Line>(mut self, line: &mut L) -> Result<PreflightResult, Stopped> {
        loop {
            let look = match self.first.take() {
                Some(look) => look,
                None => self.look(line)?,
            };
            let (steps, watching, was_sent) = match look {
                Look::Prepared => return Ok(PreflightResult::default()),
                Look::Connect => {
                    let connected = line.connect(self.checkout_deadline).await;
                    connected.map_err(|error| failed(error.into()))?;
                    continue;
                }
                Look::Send { steps, watching } => (steps, watching, false),
                Look::Receive(steps) => (steps, false, true),
            };
            let Some(connection) = line.current() else {
                return Err(failed(CheckoutError::Closed.into()));
            };
            let deadline = Deadline::after(self.settings.response_timeout);
            let deadline = deadline.capped(self.checkout_deadline);
            let asked = steps.exchange(connection, deadline, was_sent).await;
            if let Some(found) = self.found(line, asked, (watching, was_sent), deadline)? {
                return Ok(found);
            }
        }
    }

    /// Returns what the connection needs.
    fn look<L: Line>(&self, line: &mut L) -> Result<Look, Stopped> {
        if !line.has_connection() {
            return Ok(Look::Connect);
        }
        let (trusted, needs_asking) = (line.is_trusted_with_multi(), line.needs_asking());
        let Some(connection) = line.current() else { return Ok(Look::Connect) };
        if connection.sent_ahead().is_some() {
            return Ok(Look::Prepared);
        }
        let watching = connection.state().is_watching();
        let mut steps = Preflight::new(needs_asking, self.slot);
        if connection.early_watch_is_due()
            && let Purpose::Watch { keys: Some(_), reads: (_, count) } = self.purpose
        {
            let ttl = self.settings.register_ttl / 2;
            if self.plan.resolver.is_some() && !connection.is_armed_for(ttl, steps.tag) {
                line.close();
                return Ok(Look::Connect);
            }
            steps.push("WATCH", Expect::Watch, &[]);
            steps.push_reads(&[], count);
            return Ok(Look::Receive(steps));
        }
        match self.purpose {
            Purpose::Commit { flushed, asks_for_waitaof } => {
                let settings = &self.settings;
                steps.of_commit(connection, self.plan, settings, flushed, asks_for_waitaof, trusted)
            }
            Purpose::Watch { keys, reads } => {
                steps.of_watch(connection, self.plan, &self.settings, keys, reads)
            }
        }
        .map_err(Stopped::Lost)?;
        if !steps.is_empty() {
            return Ok(Look::Send { steps, watching });
        }
        match connection.check_socket() {
            Ok(()) => Ok(Look::Prepared),
            Err(cause) => {
                line.on_lost(&cause);
                self.replace(line, cause, watching).map(|()| Look::Connect)
            }
        }
    }

    /// Returns what the replies show. `None`: another connection is needed.
    fn found<L: Line>(
        &self,
        line: &mut L,
        asked: Result<PreflightResult, ConnectionError>,
        (watching, was_sent): (bool, bool),
        deadline: Deadline,
    ) -> Result<Option<PreflightResult>, Stopped> {
        match asked {
            // The refusal may concern the connection, whose former caller sent other commands.
            Ok(PreflightResult { refused: Some((_, error)), .. })
                if was_sent && RedirectReply::of(error.code(), error.message()).is_none() =>
            {
                line.close();
                Ok(None)
            }
            // UNWATCH was refused, so the connection still watches its register. It is closed, and
            // another one takes its place.
            Ok(PreflightResult { refused: Some((UNWATCH_NAME, _)), .. }) if !watching => {
                line.close();
                Ok(None)
            }
            Ok(PreflightResult { refused: Some((command, error)), .. }) => {
                line.on_server_error(error.code());
                let error = error.with_full_text(self.settings.server_messages);
                Err(Stopped::Refused { command, error })
            }
            Ok(PreflightResult { already_committed: true, .. }) => {
                Err(Stopped::Failed(CommitError::AlreadyCommitted))
            }
            Ok(PreflightResult { lock_lost: true, .. }) => {
                Err(Stopped::Failed(self.plan.lock_lost()))
            }
            Ok(PreflightResult { lacks_waitaof: true, .. }) => {
                Err(failed(Error::Unsupported { command: "WAITAOF", since: "7.2" }))
            }
            Ok(found) => Ok(Some(found)),
            Err(cause) => {
                line.on_no_reply(&cause, deadline);
                self.replace(line, cause, watching).map(|()| None)
            }
        }
    }

    /// Has another connection take the place of a lost one, which was closed.
    ///
    /// # Errors
    /// It cannot be replaced, or no time is left for it.
    fn replace<L: Line>(
        &self,
        line: &mut L,
        cause: ConnectionError,
        watching: bool,
    ) -> Result<(), Stopped> {
        // Commands that were sent ahead cannot be sent on another connection, and a reply that is too
        // large is as large there.
        let flushed = matches!(self.purpose, Purpose::Commit { flushed: true, .. });
        let fixed = watching || flushed || cause.kind() == ConnectionErrorKind::TooLarge;
        if fixed || Instant::now() >= self.checkout_deadline {
            return Err(Stopped::Lost(cause));
        }
        line.log_replaced(&cause);
        Ok(())
    }
}

fn failed(error: Error) -> Stopped {
    Stopped::Failed(CommitError::not_sent(error))
}

const UNWATCH_NAME: &str = "UNWATCH";

/// A command that is sent before the user's commands.
struct Step {
    /// The name of the command, for an error.
    command: &'static str,
    expect: Expect,
    kind: StepKind,
}

/// What the reply to a step shows, if it is no error.
#[derive(Clone, Copy, PartialEq, Eq)]
enum StepKind {
    Nothing,
    MarkerWritten,
    KeyExists,
    Time,
    LockScore,
    CommandInfo,
    Read,
}

/// The commands of one write before the user's commands.
struct Preflight {
    bytes: Vec<u8>,
    steps: Vec<Step>,
    /// Whether ASKING is sent before each command.
    needs_asking: bool,
    /// Hash tag of this crate's own keys, which must be in the slot of the caller's.
    tag: Option<u32>,
}

/// The results of these commands.
#[derive(Default)]
struct PreflightResult {
    /// The first refused command, and its error.
    refused: Option<(&'static str, ServerError)>,
    /// Whether a transaction with the same key was applied before.
    already_committed: bool,
    lock_lost: bool,
    has_waitaof: bool,
    lacks_waitaof: bool,
    reads: Vec<Value>,
}

impl Preflight {
    fn new(needs_asking: bool, slot: Option<u16>) -> Self {
        let tag = slot.and_then(slot::tag_of);
        Self { bytes: Vec::new(), steps: Vec::new(), needs_asking, tag }
    }

    fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    fn push(&mut self, command: &'static str, expect: Expect, bytes: &[u8]) {
        self.push_step(command, expect, StepKind::Nothing).extend_from_slice(bytes);
    }

    /// Adds a step, and returns the buffer for its bytes.
    fn push_step(&mut self, command: &'static str, expect: Expect, kind: StepKind) -> &mut Vec<u8> {
        if self.needs_asking {
            let kind = StepKind::Nothing;
            self.steps.push(Step { command: "ASKING", expect: Expect::Plain, kind });
            self.bytes.extend_from_slice(ASKING);
        }
        self.steps.push(Step { command, expect, kind });
        &mut self.bytes
    }

    /// Adds the commands that must be sent before the user's; there may be none.
    fn of_commit(
        &mut self,
        connection: &mut Connection<impl Wire>,
        plan: &CommitPlan,
        settings: &Settings,
        flushed: bool,
        asks_for_waitaof: bool,
        trusted: bool,
    ) -> Result<(), ConnectionError> {
        let state = connection.state();
        let (multi, watching, armed) =
            (state.is_in_multi(), state.is_watching(), state.watches_marker());
        if multi {
            // The connection has been in MULTI since `begin`. MULTI can be sent anew only while
            // nothing is queued and nothing is watched.
            if trusted || flushed || watching {
                return Ok(());
            }
            self.push("DISCARD", Expect::Discard, DISCARD);
            if armed || plan.resolver.is_some() {
                connection.set_marker_written(None);
            }
        }
        if plan.resolver.is_some() {
            self.arm_marker(connection, plan, settings)?;
        } else if armed
            && !multi
            && !watching
            && (plan.immediate || !trusted || plan.lock_check.is_some())
        {
            self.push(UNWATCH_NAME, Expect::Unwatch, UNWATCH);
        }
        if !watching {
            self.check_idempotency_key(plan);
            self.check_lock(plan);
        }
        if asks_for_waitaof {
            self.push_step("COMMAND INFO", Expect::Plain, StepKind::CommandInfo)
                .extend_from_slice(WAITAOF_INFO);
        }
        // ASKING for a migrating slot must come right before MULTI.
        if !trusted || plan.immediate || self.needs_asking || !self.is_empty() {
            self.push("MULTI", Expect::Multi, MULTI);
        }
        Ok(())
    }

    /// Adds WATCH and the reads of a scope.
    fn of_watch(
        &mut self,
        connection: &mut Connection<impl Wire>,
        plan: &CommitPlan,
        settings: &Settings,
        keys: Option<&[u8]>,
        (reads, count): (&[u8], usize),
    ) -> Result<(), ConnectionError> {
        if let Some(keys) = keys {
            self.arm_marker(connection, plan, settings)?;
            self.push("WATCH", Expect::Watch, keys);
            self.check_idempotency_key(plan);
            self.check_lock(plan);
        }
        self.push_reads(reads, count);
        Ok(())
    }

    /// Writes the connection's register and watches it. For a transaction that needs no register,
    /// ends an old watch, whose register may have expired.
    fn arm_marker(
        &mut self,
        connection: &mut Connection<impl Wire>,
        plan: &CommitPlan,
        settings: &Settings,
    ) -> Result<(), ConnectionError> {
        let state = connection.state();
        if plan.resolver.is_none() {
            if state.watches_marker() {
                self.push(UNWATCH_NAME, Expect::Unwatch, UNWATCH);
            }
            return Ok(());
        }
        if connection.is_armed_for(settings.register_ttl / 2, self.tag) {
            return Ok(());
        }
        let discards = self.steps.iter().any(|step| step.expect == Expect::Discard);
        // A write to a watched register would count as a change of it.
        match (state.watches_marker() && !discards, state.is_watching()) {
            // UNWATCH would also end the user's watches, so the register is not armed anew here. If
            // it has expired, EXEC returns nil and nothing is applied.
            (true, true) => return Ok(()),
            (true, false) => self.push(UNWATCH_NAME, Expect::Unwatch, UNWATCH),
            (false, _) => {}
        }
        let marker = connection.begin_register(&settings.prefix, self.tag, self.needs_asking)?;
        marker.set(
            self.push_step(MARKER_SET, Expect::Plain, StepKind::MarkerWritten),
            settings.register_ttl,
        );
        let watch = "WATCH of the register";
        marker.watch(self.push_step(watch, Expect::WatchMarker, StepKind::Nothing));
        Ok(())
    }

    /// Watches the transaction's idempotency key and reads whether it exists.
    fn check_idempotency_key(&mut self, plan: &CommitPlan) {
        let Some(key) = &plan.idempotency_key else { return };
        let (tag, watch) = (self.tag, "WATCH of the idempotency key");
        key.watch(self.push_step(watch, Expect::Watch, StepKind::Nothing), tag);
        let exists = "EXISTS of the idempotency key";
        key.exists(self.push_step(exists, Expect::Plain, StepKind::KeyExists), tag);
    }

    /// Watches the lock and reads whether it is held.
    fn check_lock(&mut self, plan: &CommitPlan) {
        let Some(LockCheck { lock, .. }) = &plan.lock_check else { return };
        lock.watch(self.push_step("WATCH of the lock", Expect::Watch, StepKind::Nothing));
        self.push_step("TIME", Expect::Plain, StepKind::Time).extend_from_slice(ownership::TIME);
        lock.score(self.push_step(LOCK_SCORE, Expect::Plain, StepKind::LockScore));
    }

    fn push_reads(&mut self, bytes: &[u8], count: usize) {
        if self.needs_asking {
            for read in CommandReader::new(bytes).flatten() {
                let buffer = self.push_step("a read", Expect::Plain, StepKind::Read);
                encode::command(buffer, words!(), |args| {
                    for arg in &read {
                        args.arg(*arg);
                    }
                });
            }
            return;
        }
        for _ in 0..count {
            self.push_step("a read", Expect::Plain, StepKind::Read);
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Sends the commands, unless they were sent, and reads every reply.
    async fn exchange<W: Wire>(
        self,
        connection: &mut Connection<W>,
        deadline: Deadline,
        was_sent: bool,
    ) -> Result<PreflightResult, ConnectionError> {
        let writes_marker = |step: &Step| step.kind == StepKind::MarkerWritten;
        let asked = self.steps.iter().any(writes_marker).then(Instant::now);
        let expected: Vec<_> = self.steps.iter().map(|step| (step.expect, 1)).collect();
        let mut found = PreflightResult::default();
        let (mut steps, mut now, mut written) = (self.steps.iter(), None, false);
        let mut is_shifted = false;
        let mut take = |_, reply: Reply| {
            let Some(Step { command, kind, .. }) = steps.next() else { return };
            let value = reply.into_value();
            match (*kind, &value) {
                (StepKind::Read, _) => {
                    // No read that travels replies so: it is the reply to WATCH, behind one too many.
                    is_shifted |= was_sent && value == Value::Okay;
                    found.reads.push(value);
                }
                // If COMMAND INFO is denied, assume WAITAOF is supported.
                (StepKind::CommandInfo, Value::ServerError(_)) => found.has_waitaof = true,
                (_, Value::ServerError(error)) => {
                    let error = ServerError::from_reply(error, false);
                    found.refused.get_or_insert((*command, error));
                }
                (StepKind::MarkerWritten, _) => written = true,
                (StepKind::KeyExists, value) => found.already_committed = *value == Value::Int(1),
                (StepKind::Time, value) => now = ownership::millis(value),
                (StepKind::LockScore, value) => found.lock_lost = !ownership::is_held(value, now),
                (StepKind::CommandInfo, value) => {
                    found.lacks_waitaof = is_unknown(value);
                    found.has_waitaof = !found.lacks_waitaof;
                }
                (StepKind::Nothing, _) => {}
            }
        };
        let exchanged = match was_sent {
            true => connection.receive_early_watch(&expected, deadline, &mut take).await,
            false => connection.exchange(&self.bytes, &expected, deadline, &mut take).await,
        };
        exchanged.map_err(|Interruption { cause, .. }| cause)?;
        if is_shifted {
            connection.taint(CloseReason::Protocol);
            return Err(ConnectionError::unexpected("a reply too many"));
        }
        connection.mark_alive();
        if written {
            connection.set_marker_written(asked);
        }
        // If the slot is being migrated, a lock that is not found may not have arrived yet.
        if self.needs_asking && found.lock_lost && found.refused.is_none() {
            let text = "the lock has not arrived at the slot's new node yet";
            found.refused = Some((LOCK_SCORE, ServerError::synthetic("TRYAGAIN", text)));
        }
        Ok(found)
    }
}

const LOCK_SCORE: &str = "ZSCORE of the lock";
