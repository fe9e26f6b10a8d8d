//! A connection that one task has alone, and the permit for it.
//!
//! A line does no I/O when it is dropped: a connection that is not clean is cleaned by its own task.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tracing::Level;
use tracing::level_filters::LevelFilter;

use crate::connection::connection::Connection;
use crate::connection::deadline::later;
use crate::connection::tasks::connect::{login, login_version};
use crate::connection::tasks::io::no_runtime;
use crate::connection::tasks::wire::TaskWire;
use crate::error::checkout::CheckoutError;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::logging::deferred::DeferredEvents;
use crate::pool::blocking::{BlockingCommand, EndCommand};
use crate::pool::cleanup::clean_or_log;
use crate::pool::context::PoolContext;
use crate::pool::early_watch::EarlyWatch;
use crate::pool::entry::Kept;
use crate::pool::first_packet::Armed;
use crate::pool::key_turn::KeyTurn;
use crate::pool::line::Line;
use crate::pool::reauthentication::reauthenticate;
use crate::pool::scopes::{Holder, PinnedConnection, ScopeLine};
use crate::pool::tasks::core::TaskCore;
use crate::pool::tasks::holder::HolderTask;
use crate::pool::tasks::idle::{Found, TaskConnection};
use crate::pool::tasks::key_queue::KeyQueue;
use crate::pool::tasks::right::Right;
use crate::pool::tasks::waiter::{LeftWatch, TakenWatch};
use crate::protocol::connection_state::CloseReason;
use crate::status::metrics::InUse;
use crate::sync::boxed::boxed;
use crate::sync::caught::woken_apart;
use crate::sync::timer::until;

/// A scope's access to its connection.
pub(crate) type TaskPin = PinnedConnection<TaskLine>;

/// The turn on a hot key for which tasks wait.
pub(crate) type TaskKeyQueue = KeyQueue<TaskLine>;

/// A turn on hot keys, for tasks.
pub(crate) type TaskKeyTurn = KeyTurn<TaskKeyQueue>;

/// A connection that one task has alone, and the permit for it. On drop a clean connection is idle
/// again; any other is cleaned by its own task, which then passes the permit on.
///
/// It is moved for each call of a scope, so its size matters.
pub(crate) struct TaskLine {
    connection: Option<TaskConnection>,
    core: Arc<TaskCore>,
    /// `None`: another line has taken it over.
    right: Option<Arc<Right>>,
    events: DeferredEvents,
    needs_asking: bool,
    /// The line is dropped by a thread that must not wait for a log.
    logs_elsewhere: bool,
    /// The connection's task cleans the connection, or has cleaned it.
    is_cleaned: bool,
    in_use: InUse,
    /// The caller whose WATCH was taken. It gets the permit with the connection.
    next_caller: Option<TakenWatch<TaskConnection>>,
    /// The turn on hot keys of the scope that has the line.
    turn: Option<Arc<TaskKeyTurn>>,
}

impl Drop for TaskLine {
    fn drop(&mut self) {
        let Some(right) = self.right.take() else { return };
        if self.core.settings().is_forked_child() {
            // They belong to the parent, and the mutexes may stay locked forever.
            let next = (self.next_caller.take(), self.turn.take());
            std::mem::forget((self.connection.take(), right, Arc::clone(&self.core), next));
            return;
        }
        if let Some(next_caller) = self.next_caller.take()
            && self.pass_on(next_caller, &right)
        {
            return self.log();
        }
        if let Some(turn) = self.turn.take_if(|turn| turn.has_taken())
            && self.pass_turn_on(&turn, &right)
        {
            return self.log();
        }
        let mut kept = self.connection.take();
        if !right.is_held() {
            // The pool has taken permit and connection back.
            drop(kept);
            return self.log();
        }
        if let Some(connection) = &mut kept
            && let Some(reason) = self.close_reason(connection)
        {
            if reason == CloseReason::LeftDirty && self.can_be_cleaned(connection) {
                self.clean(kept, right);
                return self.core.config.counters.metrics.returned(&mut self.in_use);
            }
            self.core.on_replaced(reason);
            drop(kept.take());
        }
        self.core.give_back(&right, kept);
        self.log();
    }
}

impl TaskLine {
    /// The line of a new right. `passed_on`: the connection on which the caller's WATCH was sent; otherwise
    /// there is none yet.
    pub(in crate::pool) fn new(
        core: &Arc<TaskCore>,
        right: Arc<Right>,
        mut passed_on: Option<TaskConnection>,
    ) -> Self {
        if let Some(connection) = &mut passed_on {
            connection.mark_taken();
        }
        Self {
            connection: passed_on,
            core: Arc::clone(core),
            right: Some(right),
            events: DeferredEvents::default(),
            needs_asking: false,
            logs_elsewhere: false,
            is_cleaned: false,
            in_use: InUse::default(),
            next_caller: None,
            turn: None,
        }
    }

    /// Has the scope's EXEC followed by the WATCH of the caller that gets the turn next.
    pub(in crate::pool) fn set_turn(&mut self, turn: &Arc<TaskKeyTurn>) {
        self.turn = Some(Arc::clone(turn));
    }

    pub(in crate::pool) fn is_of(&self, core: &Arc<TaskCore>) -> bool {
        Arc::ptr_eq(&self.core, core)
    }

    /// Returns whether the line has a connection that was passed to it. One that the pool has taken back
    /// meanwhile is closed.
    pub(in crate::pool) fn has_passed_on(&mut self) -> bool {
        if !self.right.as_ref().is_some_and(|right| right.is_held()) {
            self.connection = None;
        }
        self.connection.is_some()
    }

    /// Takes the connection out, if it may be passed to the caller whose WATCH was sent on it.
    fn take_to_pass_on(&mut self) -> Option<TaskConnection> {
        let (generation, is_closed) = (self.core.generation(), self.core.shared.is_closed());
        self.connection.take_if(|connection| {
            let is_open = !is_closed && !connection.wire().task().is_closed();
            is_open && connection.can_be_passed_on(Instant::now(), generation)
        })
    }

    /// Passes the turn to the caller whose WATCH was sent on the connection, with the connection and the permit.
    /// Returns false if that one waits on.
    #[inline(never)]
    fn pass_turn_on(&mut self, turn: &TaskKeyTurn, right: &Right) -> bool {
        if let Some(connection) = self.take_to_pass_on() {
            if let Some(right) = self.core.permits.take_over(right) {
                // If that caller has given up, the connection's own task cleans it.
                drop(turn.pass_on(Self::new(&self.core, right, Some(connection))));
                return true;
            }
            self.connection = Some(connection);
        }
        turn.leave_next();
        false
    }

    /// Passes permit and connection to the caller whose WATCH was sent on it. Returns false if that one
    /// waits on, or has given up.
    #[inline(never)]
    fn pass_on(&mut self, next_caller: TakenWatch<TaskConnection>, right: &Right) -> bool {
        if let Some(connection) = self.take_to_pass_on() {
            match self.core.permits.pass_on(&next_caller, right, connection) {
                Ok(()) => return true,
                Err(connection) => self.connection = Some(connection),
            }
        }
        self.core.permits.return_watch(next_caller);
        false
    }

    /// Marks the server as the target of a migration: each command or MULTI needs ASKING before it.
    pub(in crate::pool) fn with_ask(mut self, needs_asking: bool) -> Self {
        self.needs_asking = needs_asking;
        self
    }

    /// Records the end of the wait that began at `started`.
    pub(in crate::pool) fn begin_use(&mut self, started: Instant) {
        self.in_use = self.core.config.counters.metrics.checked_out(started);
    }

    /// Marks the line as one that a scope has.
    pub(in crate::pool) fn set_scoped(&self) {
        if let Some(right) = &self.right {
            right.set_scoped();
        }
    }

    fn close_reason(&self, connection: &mut Connection<TaskWire>) -> Option<CloseReason> {
        let reason = connection.close_reason(Instant::now(), self.core.generation());
        let is_closed = || connection.wire().task().is_closed();
        match reason {
            None if is_closed() => Some(CloseReason::Closed),
            reason => reason,
        }
    }

    /// Returns whether the connection's task can remove what a scope has left.
    fn can_be_cleaned(&self, connection: &Connection<TaskWire>) -> bool {
        // Asked here: the connection's task never sees the panic.
        let can_be_cleaned = !self.is_cleaned && !std::thread::panicking();
        can_be_cleaned
            && connection.state().tainted().is_none()
            && !connection.wire().task().is_closed()
    }

    /// Has the connection's task clean the connection, and then pass the permit on.
    fn clean(&mut self, connection: Option<TaskConnection>, right: Arc<Right>) {
        let task = connection.as_ref().map(|connection| connection.wire().task().clone());
        right.begin_cleaning();
        let mut line = Self {
            connection,
            core: Arc::clone(&self.core),
            right: Some(right),
            events: std::mem::take(&mut self.events),
            needs_asking: false,
            logs_elsewhere: true,
            is_cleaned: true,
            in_use: InUse::default(),
            next_caller: None,
            turn: None,
        };
        let cleaning = async move { clean_or_log(&mut line, None).await };
        if let Some(task) = task
            && let Err(cleaning) = task.adopt(Box::new(cleaning))
        {
            // The task has ended. This closes the connection, and passes the permit on.
            drop(cleaning);
        }
    }

    /// Runs code of the user's, so the connection was returned before.
    fn log(&mut self) {
        self.core.config.counters.metrics.returned(&mut self.in_use);
        let name = self.core.config.name;
        self.events.add(Level::TRACE, move || tracing::trace!(pool = name, "check in"));
        match self.logs_elsewhere {
            true => self.events.send_to(&self.core.config.logging.log_thread),
            false => self.events.write(),
        }
    }

    /// Takes an idle connection, or opens one and waits for it. A connection that is known to be dead,
    /// outdated or too old is not used. If the future is dropped, its connection becomes idle.
    pub(in crate::pool) async fn take_or_wait(
        &mut self,
        started: Instant,
        deadline: Instant,
    ) -> Result<(), CheckoutError> {
        let core = Arc::clone(&self.core);
        let mut requester = core.idle.requester();
        let mut now = started;
        loop {
            if core.shared.is_closed() {
                return Err(CheckoutError::Closed);
            }
            if !self.right.as_ref().is_some_and(|right| right.is_held()) {
                return Err(revoked(started));
            }
            let connect_failed =
                |source| CheckoutError::Connect { waited: started.elapsed(), source };
            let runtime = Handle::try_current().map_err(|_| connect_failed(no_runtime()))?;
            let changed = core.idle.changed();
            let retry_at = match requester.take(&runtime) {
                Found::Idle(connection) => {
                    if self.attach(connection, now) && self.reauthenticate(deadline).await {
                        return Ok(());
                    }
                    continue;
                }
                Found::Open(number) => {
                    core.open(number, &runtime);
                    None
                }
                Found::Wait(retry_at) => retry_at,
            };
            now = Instant::now();
            core.check_connect(started, now, deadline)?;
            // A caller that waits for a slow connect is polled, and its permit is in use.
            let limit = core.settings().max_pin_time / 2;
            let soon = later(now, limit.max(Duration::from_millis(1)));
            let by = [Some(deadline), retry_at].into_iter().flatten().fold(soon, Instant::min);
            until(by, woken_apart(changed)).await;
            if let Some(right) = &self.right {
                right.on_use();
            }
            now = Instant::now();
        }
    }

    /// Takes an idle connection over, if it can be used.
    fn attach(&mut self, mut connection: TaskConnection, now: Instant) -> bool {
        if let Some(reason) = self.core.why_unusable(&mut connection, now) {
            self.core.on_replaced(reason);
            drop(connection);
            self.core.idle.closed_one();
            return false;
        }
        connection.mark_taken();
        let task = connection.wire().task().clone();
        if !self.right.as_ref().is_some_and(|right| right.attach(task)) {
            drop(self.core.idle.give_back(connection));
            return false;
        }
        self.connection = Some(connection);
        true
    }

    /// Re-authenticates if the credentials changed. Returns false if the connection was lost.
    async fn reauthenticate(&mut self, deadline: Instant) -> bool {
        if self.core.endpoint.provider().is_none() {
            return true;
        }
        let core = Arc::clone(&self.core);
        let (endpoint, settings) = (&core.endpoint, core.settings());
        let reauthentication = async {
            let Some(version) = login_version(endpoint, settings, deadline).await else {
                return true;
            };
            let login = || login(endpoint, settings, Some(deadline));
            reauthenticate(self, version, deadline, login).await
        };
        boxed(reauthentication).await
    }
}

/// The error of a line whose permit was taken back.
fn revoked(started: Instant) -> CheckoutError {
    let text = "the call was not polled for max_pin_time, and its connection was reclaimed";
    let source = ConnectionError::new(ConnectionErrorKind::Closed, text).permanent();
    CheckoutError::Connect { waited: started.elapsed(), source }
}

impl Line for TaskLine {
    type Wire = TaskWire;

    fn context(&self) -> &PoolContext {
        &self.core
    }

    fn needs_asking(&self) -> bool {
        self.needs_asking
    }

    fn current(&mut self) -> Option<&mut Connection<TaskWire>> {
        if let Some(right) = &self.right {
            right.on_use();
        }
        self.connection.as_deref_mut()
    }

    async fn connect(&mut self, deadline: Instant) -> Result<(), CheckoutError> {
        self.take_or_wait(Instant::now(), deadline).await
    }

    fn close(&mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        let reason = self.close_reason(&mut connection);
        drop(connection);
        // Without one, the pool has taken the connection back.
        if self.right.as_ref().is_some_and(|right| right.detach()) {
            self.core.on_replaced(reason.unwrap_or(CloseReason::Closed));
            self.core.idle.closed_one();
        }
    }

    fn is_unwinding(&self) -> bool {
        // The connection's task is not unwound by its caller's panic.
        !self.is_cleaned && std::thread::panicking()
    }

    fn log_later(&mut self, level: Level, event: impl FnOnce() + Send + 'static) {
        if level <= LevelFilter::current() {
            self.events.add(level, event);
        }
    }

    fn begin_blocking(
        &self,
        command: &BlockingCommand,
    ) -> Result<impl Send + use<>, CheckoutError> {
        let right = self.right.clone();
        let end: Option<Arc<EndCommand>> =
            right.map(|right| Arc::new(move || right.shut_down()) as _);
        let begun = self.core.blocking.begin(command, HolderTask::here().name(), end);
        begun.ok_or(CheckoutError::Closed)
    }

    fn is_closed(&self) -> bool {
        self.core.blocking.is_closed()
    }

    fn take_early_watch(&mut self, armed: Option<Armed>) -> Option<Arc<EarlyWatch>> {
        let connection = self.connection.as_ref()?;
        // Credentials are renewed by a checkout, which may have to wait for their version.
        if let Some(provider) = self.core.endpoint.provider()
            && connection.needs_reauth(provider.version_at_once()?)
        {
            return None;
        }
        let runtime = connection.wire().task().runtime();
        if let Some(turn) = &self.turn
            && !(turn.is_kept_long() && self.core.permits.queued() > 0)
            && !self.core.permits.is_closed()
            && let Some(watch) = turn.take_next(runtime, armed)
        {
            return Some(watch);
        }
        let fits = |left: &LeftWatch, of| of == Some(runtime) && left.watch.fits(armed);
        let taken = self.core.permits.take_watch(fits)?;
        let watch = taken.watch();
        self.next_caller = Some(taken);
        watch
    }

    fn has_early_watch(&self) -> bool {
        let Self { next_caller, turn, .. } = self;
        next_caller.as_ref().is_some_and(TakenWatch::is_awaited)
            || turn.as_ref().is_some_and(|turn| turn.has_next())
    }

    #[cold]
    fn leave_early_watch(&mut self) {
        let next_caller = self.next_caller.take();
        let turn = self.turn.take().filter(|turn| turn.has_taken());
        if next_caller.is_none() && turn.is_none() {
            return;
        }
        self.taint(CloseReason::LeftDirty);
        self.close();
        if let Some(next_caller) = next_caller {
            self.core.permits.return_watch(next_caller);
        }
        if let Some(turn) = turn {
            turn.leave_next();
        }
    }
}

/// What takes a line's permit and connection away from a call.
#[derive(Clone)]
pub(crate) struct LineRevoker {
    core: Weak<TaskCore>,
    right: Arc<Right>,
}

impl Kept for TaskLine {
    type Ender = LineRevoker;

    fn set_ender(&self, ender: &mut Option<LineRevoker>) {
        if let (None, Some(right)) = (&ender, &self.right) {
            let (core, right) = (Arc::downgrade(&self.core), Arc::clone(right));
            *ender = Some(LineRevoker { core, right });
        }
    }

    fn uses(ender: &LineRevoker) -> u64 {
        ender.right.uses()
    }
}

impl ScopeLine for TaskLine {
    type Core = TaskCore;
    type Holder = HolderTask;

    fn permit_number(&self) -> usize {
        self.right.as_ref().map_or(usize::MAX, |right| right.number())
    }

    fn mark_reclaimed(&mut self) {
        self.logs_elsewhere = true;
    }

    fn end_turn(&mut self) {
        if let Some(turn) = self.turn.take() {
            turn.give_back();
        }
    }

    fn end_call(ender: &LineRevoker) {
        ender.right.shut_down();
    }

    /// A call that awaits a reply ends by its deadline at the latest, if it is polled.
    fn may_be_forgotten(ender: &LineRevoker) -> bool {
        !ender.right.awaits_reply()
    }

    fn revoke(ender: &LineRevoker) {
        if let Some(core) = ender.core.upgrade() {
            core.revoke(&ender.right);
        }
    }
}
