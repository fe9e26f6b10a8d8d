//! Prepares a connection for a transaction's commands: it replies, MULTI is sent if needed, and its
//! register is armed if needed.
//!
//! No command of the user's is sent before all these replies.

use std::sync::atomic::Ordering;
use std::time::Instant;

use redis::Value;

use crate::commit::options::{CommitOptions, CommitPlan};
use crate::commit::outcome::MARKER_SET;
use crate::connection::connection::Connection;
use crate::connection::deadline::Deadline;
use crate::error::any::CommitError;
use crate::error::any::Error;
use crate::error::applied::Applied;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::error::hint::CrateError;
use crate::pool::checkout::Checkout;
use crate::protocol::command::info::WAITAOF_INFO;
use crate::protocol::command::info::is_unknown;
use crate::protocol::command::reader::CommandReader;
use crate::protocol::connection_state::Expect;
use crate::protocol::lock::ownership;
use crate::protocol::queue::CommandQueue;
use crate::protocol::replication::Durability;
use crate::protocol::resp::encode;
use crate::protocol::resp::encode::{ASKING, DISCARD, MULTI, UNWATCH};
use crate::protocol::server_error::ServerError;
use crate::settings::settings::Settings;

/// Prepares the connection for the commands: it replied within the trust window, or has just
/// replied.
///
/// A dead connection is replaced as long as no command of the user's was sent on it and it watches
/// nothing.
pub(crate) fn prepare(
    checkout: &mut Checkout,
    queue: &CommandQueue,
    plan: CommitPlan<'_>,
) -> Result<(), CommitError> {
    let (must_watch, must_be_in_multi) = (plan.watched, queue.is_flushed());
    let kept = checkout.current().is_some_and(|connection| {
        let state = connection.state();
        (state.is_watching() || !must_watch) && (state.is_in_multi() || !must_be_in_multi)
    });
    if (must_watch || must_be_in_multi) && !kept {
        return Err(CommitError::lost_before_exec(ConnectionError::new(
            ConnectionErrorKind::Closed,
            "the connection was lost earlier in the scope",
        )));
    }
    loop {
        // This comes first, because it may replace the connection.
        checkout.connection(plan.checkout_deadline).map_err(CommitError::not_sent)?;
        let (trusted, needs_asking) = (checkout.is_trusted(), checkout.needs_asking());
        let shared = plan.asks_for_waitaof().then(|| checkout.pool().shared().clone());
        let settings = checkout.pool().settings().clone();
        let connection =
            checkout.connection(plan.checkout_deadline).map_err(CommitError::not_sent)?;
        let watching = connection.state().is_watching();
        let shared = shared.filter(|shared| !shared.knows_waitaof.load(Ordering::Relaxed));
        let asks_for_waitaof = shared.is_some();
        let facts = ConnectionFacts {
            trusted,
            flushed: queue.is_flushed(),
            asks_for_waitaof,
            needs_asking,
        };
        let preflight =
            preflight(connection, &settings, plan, facts).map_err(CommitError::lost_before_exec)?;
        let asked = match preflight {
            Some(preflight) => {
                let deadline =
                    Deadline::after(settings.response_timeout).capped(plan.checkout_deadline);
                preflight
                    .exchange(connection, deadline)
                    .map(|found| found.with_ask_checked(needs_asking))
            }
            None => match connection.check_socket() {
                Ok(()) => return Ok(()),
                Err(cause) => Err(cause),
            },
        };
        match asked {
            // UNWATCH was refused, so the connection still watches its register. It is closed, and
            // the loop takes another one.
            Ok(PreflightResult { refused: Some(refused), .. })
                if !watching && refused.is_of_unwatch() =>
            {
                checkout.close();
            }
            Ok(PreflightResult { refused: Some(refused), .. }) => {
                checkout.on_server_error(refused.error.code());
                let error = refused.error.with_full_text(settings.server_messages);
                return Err(CommitError::rejected(None, refused.command.to_owned(), &error));
            }
            Ok(PreflightResult { already_committed: true, .. }) => {
                return Err(CommitError::AlreadyCommitted);
            }
            Ok(PreflightResult { lock_lost: true, .. }) => return Err(plan.options.lock_lost()),
            Ok(PreflightResult { lacks_waitaof: true, .. }) => {
                let unsupported = Error::Unsupported { command: "WAITAOF", since: "7.2" };
                return Err(CommitError::not_sent(unsupported));
            }
            Ok(_) => {
                if let Some(shared) = shared {
                    shared.knows_waitaof.store(true, Ordering::Relaxed);
                }
                return Ok(());
            }
            Err(cause) => {
                checkout.on_lost(&cause);
                // Commands that were sent ahead cannot be sent on another connection.
                if watching || must_be_in_multi || Instant::now() >= plan.checkout_deadline {
                    return Err(CommitError::lost_before_exec(cause));
                }
                checkout.log_replaced(&cause);
            }
        }
    }
}

/// Sends WATCH for a scope that reads before it writes, and awaits its reply. Returns the replies
/// to `reads` commands in the same write.
pub(crate) fn watch(
    checkout: &mut Checkout,
    keys: Option<&[u8]>,
    (reads, count): (&[u8], usize),
    plan: CommitPlan<'_>,
) -> Result<Vec<Value>, Error> {
    loop {
        let (settings, needs_asking) =
            (checkout.pool().settings().clone(), checkout.needs_asking());
        let deadline = checkout.response_deadline().capped(plan.checkout_deadline);
        let connection = checkout.connection(plan.checkout_deadline)?;
        let mut steps = Preflight { needs_asking, ..Preflight::default() };
        if let Some(keys) = keys {
            steps.arm_marker(connection, &settings, plan.options).map_err(lost_watch)?;
            steps.push(Step::Watch, Expect::Watch, keys);
            steps.check_idempotency_key(plan.options);
            steps.check_lock(plan.options);
        }
        steps.push_reads(reads, count);
        match steps.exchange(connection, deadline).map(|found| found.with_ask_checked(needs_asking))
        {
            Ok(PreflightResult { refused: Some(refused), .. }) if refused.is_of_unwatch() => {
                checkout.close()
            }
            Ok(PreflightResult { refused: Some(refused), .. }) => {
                checkout.on_server_error(refused.error.code());
                return Err(Error::from(refused).with_full_text(settings.server_messages));
            }
            Ok(PreflightResult { already_committed: true, .. }) => {
                return Err(CommitError::AlreadyCommitted.into());
            }
            Ok(PreflightResult { lock_lost: true, .. }) => {
                return Err(plan.options.lock_lost().into());
            }
            Ok(found) => return Ok(found.reads),
            Err(cause) => {
                checkout.on_lost(&cause);
                // A reply that is too large is as large on another connection.
                let too_large = cause.kind() == ConnectionErrorKind::TooLarge;
                if too_large || Instant::now() >= plan.checkout_deadline {
                    return Err(lost_watch(cause));
                }
                checkout.log_replaced(&cause);
            }
        }
    }
}

/// Nothing was applied, whether WATCH arrived or not.
fn lost_watch(source: ConnectionError) -> Error {
    Error::Lost { during: "WATCH".to_owned(), applied: Applied::No, source }
}

/// The state of the connection before anything is sent.
#[derive(Clone, Copy)]
struct ConnectionFacts {
    trusted: bool,
    flushed: bool,
    asks_for_waitaof: bool,
    needs_asking: bool,
}

/// Returns the commands that must be sent before the user's; `None`: there are none.
fn preflight(
    connection: &mut Connection,
    settings: &Settings,
    plan: CommitPlan<'_>,
    ConnectionFacts { trusted, flushed, asks_for_waitaof, needs_asking }: ConnectionFacts,
) -> Result<Option<Preflight>, ConnectionError> {
    let (options, state) = (plan.options, connection.state());
    let (multi, watching, armed) =
        (state.is_in_multi(), state.is_watching(), state.watches_marker());
    let mut steps = Preflight { needs_asking, ..Preflight::default() };
    if multi {
        // The connection has been in MULTI since `begin`. MULTI can be sent anew only while nothing
        // is queued and nothing is watched.
        if trusted || flushed || watching {
            return Ok(None);
        }
        steps.push(Step::Discard, Expect::Discard, DISCARD);
        if armed || options.resolver.is_some() {
            connection.set_marker_written(None);
        }
    }
    if options.resolver.is_some() {
        steps.arm_marker(connection, settings, options)?;
    } else if armed
        && !multi
        && !watching
        && (options.immediate || !trusted || options.lock_check.is_some())
    {
        steps.push(Step::Unwatch, Expect::Unwatch, UNWATCH);
    }
    if !watching {
        steps.check_idempotency_key(options);
        steps.check_lock(options);
    }
    if asks_for_waitaof {
        steps.push(Step::CommandInfo, Expect::Plain, WAITAOF_INFO);
    }
    // ASKING for a migrating slot must come right before MULTI.
    if trusted && !options.immediate && !needs_asking && steps.is_empty() {
        return Ok(None);
    }
    steps.push(Step::Multi, Expect::Multi, MULTI);
    Ok(Some(steps))
}

/// A command that is sent before the user's commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Asking,
    Discard,
    Unwatch,
    WriteMarker,
    WatchMarker,
    Watch,
    WatchIdempotencyKey,
    ExistsIdempotencyKey,
    WatchLock,
    Time,
    Lock,
    CommandInfo,
    Read,
    Multi,
}

impl Step {
    /// Returns the name of the command, for an error.
    fn command(self) -> &'static str {
        match self {
            Self::Asking => "ASKING",
            Self::Discard => "DISCARD",
            Self::Unwatch => UNWATCH_NAME,
            Self::WriteMarker => MARKER_SET,
            Self::WatchMarker => "WATCH of the register",
            Self::Watch => "WATCH",
            Self::WatchIdempotencyKey => "WATCH of the idempotency key",
            Self::ExistsIdempotencyKey => "EXISTS of the idempotency key",
            Self::WatchLock => "WATCH of the lock",
            Self::Time => "TIME",
            Self::Lock => "ZSCORE of the lock",
            Self::CommandInfo => "COMMAND INFO",
            Self::Read => "a read",
            Self::Multi => "MULTI",
        }
    }
}

const UNWATCH_NAME: &str = "UNWATCH";

/// A refusal before any of the user's commands was sent.
#[derive(Debug)]
struct RefusedStep {
    command: &'static str,
    error: ServerError,
}

impl CrateError for RefusedStep {
    fn into_error(self) -> Error {
        Error::Command { command: self.command.to_owned(), error: self.error }
    }
}

impl RefusedStep {
    /// The refusal taints the connection: see
    /// [`ConnectionState::reply`](crate::protocol::connection_state::ConnectionState::reply).
    fn is_of_unwatch(&self) -> bool {
        self.command == UNWATCH_NAME
    }
}

/// The commands of one write before the user's commands.
#[derive(Debug, Default)]
struct Preflight {
    bytes: Vec<u8>,
    steps: Vec<(Step, Expect)>,
    /// Whether ASKING is sent before each command.
    needs_asking: bool,
}

/// The results of these commands.
#[derive(Debug, Default)]
struct PreflightResult {
    refused: Option<RefusedStep>,
    /// Whether a transaction with the same key was applied before.
    already_committed: bool,
    lock_lost: bool,
    lacks_waitaof: bool,
    reads: Vec<Value>,
}

impl PreflightResult {
    /// If the slot is being migrated, a lock that is not found may not have arrived yet.
    fn with_ask_checked(mut self, needs_asking: bool) -> Self {
        if needs_asking && self.lock_lost && self.refused.is_none() {
            let error = ServerError::synthetic(
                "TRYAGAIN",
                "the lock has not arrived at the slot's new node yet",
            );
            self.refused = Some(RefusedStep { command: Step::Lock.command(), error });
        }
        self
    }
}

impl Preflight {
    fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    fn push(&mut self, step: Step, expect: Expect, bytes: &[u8]) {
        self.push_step(step, expect).extend_from_slice(bytes);
    }

    /// Adds a step, and returns the buffer for its bytes.
    fn push_step(&mut self, step: Step, expect: Expect) -> &mut Vec<u8> {
        if self.needs_asking {
            self.steps.push((Step::Asking, Expect::Plain));
            self.bytes.extend_from_slice(ASKING);
        }
        self.steps.push((step, expect));
        &mut self.bytes
    }

    /// Writes the connection's register and watches it. For a transaction that needs no register,
    /// ends an old watch, whose register may have expired.
    fn arm_marker(
        &mut self,
        connection: &mut Connection,
        settings: &Settings,
        options: &CommitOptions,
    ) -> Result<(), ConnectionError> {
        if options.resolver.is_none() {
            if connection.state().watches_marker() {
                self.push(Step::Unwatch, Expect::Unwatch, UNWATCH);
            }
            return Ok(());
        }
        let state = connection.state();
        let tag = options.cluster.tag();
        if connection.is_armed_for(settings.register_ttl / 2, tag) {
            return Ok(());
        }
        // A write to a watched register would count as a change of it.
        match (state.watches_marker() && !self.discards(), state.is_watching()) {
            // UNWATCH would also end the user's watches, so the register is not armed anew here. If
            // it has expired, EXEC returns nil and nothing is applied.
            (true, true) => return Ok(()),
            (true, false) => self.push(Step::Unwatch, Expect::Unwatch, UNWATCH),
            (false, _) => {}
        }
        let marker = match self.needs_asking {
            true => connection.new_marker(&settings.prefix)?,
            false => connection.marker(&settings.prefix)?,
        };
        marker.set_tag(tag);
        marker.advance();
        marker.set(self.push_step(Step::WriteMarker, Expect::Plain), settings.register_ttl);
        marker.watch(self.push_step(Step::WatchMarker, Expect::WatchMarker));
        Ok(())
    }

    fn discards(&self) -> bool {
        self.steps.iter().any(|(step, _)| *step == Step::Discard)
    }

    /// Watches the transaction's idempotency key and reads whether it exists.
    fn check_idempotency_key(&mut self, options: &CommitOptions) {
        if let Some(key) = &options.idempotency_key {
            let tag = options.cluster.tag();
            key.watch(self.push_step(Step::WatchIdempotencyKey, Expect::Watch), tag);
            key.exists(self.push_step(Step::ExistsIdempotencyKey, Expect::Plain), tag);
        }
    }

    /// Watches the lock and reads whether it is held.
    fn check_lock(&mut self, options: &CommitOptions) {
        if let Some(lock_check) = &options.lock_check {
            lock_check.lock.watch(self.push_step(Step::WatchLock, Expect::Watch));
            self.push(Step::Time, Expect::Plain, ownership::TIME);
            lock_check.lock.score(self.push_step(Step::Lock, Expect::Plain));
        }
    }

    fn push_reads(&mut self, bytes: &[u8], count: usize) {
        if self.needs_asking {
            for read in CommandReader::new(bytes).flatten() {
                encode::command(self.push_step(Step::Read, Expect::Plain), &[], |args| {
                    for arg in &read {
                        args.arg(*arg);
                    }
                });
            }
            return;
        }
        self.steps.extend(std::iter::repeat_n((Step::Read, Expect::Plain), count));
        self.bytes.extend_from_slice(bytes);
    }

    /// Sends the commands, and reads every reply.
    fn exchange(
        self,
        connection: &mut Connection,
        deadline: Deadline,
    ) -> Result<PreflightResult, ConnectionError> {
        let asked = Instant::now();
        let expected: Vec<_> = self.steps.iter().map(|(_, expect)| (*expect, 1)).collect();
        connection.send(&self.bytes, &expected, deadline)?;
        let mut found = PreflightResult::default();
        let mut now = None;
        for (step, _) in self.steps {
            let value = connection.value(deadline)?;
            if step == Step::Read {
                found.reads.push(value);
                continue;
            }
            if let Value::ServerError(error) = &value {
                // If COMMAND INFO is denied, assume WAITAOF is supported.
                if step != Step::CommandInfo {
                    let error = ServerError::from_reply(error, false);
                    found.refused.get_or_insert(RefusedStep { command: step.command(), error });
                }
                continue;
            }
            match step {
                Step::WriteMarker => connection.set_marker_written(Some(asked)),
                Step::ExistsIdempotencyKey => found.already_committed = value == Value::Int(1),
                Step::Time => now = ownership::millis(&value),
                Step::Lock => found.lock_lost = !ownership::is_held(&value, now),
                Step::CommandInfo => found.lacks_waitaof = is_unknown(&value),
                _ => {}
            }
        }
        connection.mark_alive();
        Ok(found)
    }
}

impl CommitPlan<'_> {
    fn asks_for_waitaof(&self) -> bool {
        matches!(self.options.durability, Some(Durability::Aof { .. }))
    }
}
