//! A checked-out connection, and the permit for it.
//!
//! A connection that is known to be dead, outdated or too old is not used.

use std::future::ready;
use std::sync::{Arc, Weak};
use std::thread::ThreadId;
use std::time::Instant;

use tracing::Level;
use tracing::level_filters::LevelFilter;

use crate::connection::connection::Connection;
use crate::connection::threads::login;
use crate::connection::transport::Transport;
use crate::error::checkout::CheckoutError;
use crate::logging::deferred::DeferredEvents;
use crate::pool::blocking::{BlockingCommand, EndCommand};
use crate::pool::context::PoolContext;
use crate::pool::core::{PoolCore, ThreadEarlyRequest};
use crate::pool::early_watch::EarlyWatch;
use crate::pool::entry::Kept;
use crate::pool::first_packet::{Armed, Register};
use crate::pool::idle::TakenConnection;
use crate::pool::key_turn::{KeyQueue, KeyTurn};
use crate::pool::line::Line;
use crate::pool::reauthentication::reauthenticate;
use crate::pool::scopes::{Holder, ScopeLine};
use crate::pool::semaphore::Returned;
use crate::pool::waiter::TakenRequest;
use crate::process::sockets::OwnSocket;
use crate::protocol::connection_state::CloseReason;
use crate::settings::credentials::Provider;
use crate::status::metrics::InUse;
use crate::sync::cancel;
use crate::sync::now::now;
use crate::sync::under_way::CallUnderWay;
use crate::sync::{this_thread, thread_name};

/// The permit for one connection.
pub(crate) struct Permit {
    core: Arc<PoolCore>,
    number: u32,
    events: DeferredEvents,
    /// The reaper's thread returns the connection, and must not wait for a log.
    by_reaper: bool,
    needs_asking: bool,
    /// Another caller has it.
    is_passed_on: bool,
    in_use: InUse,
    /// The caller whose WATCH was taken. It gets the permit with the connection.
    next_caller: Option<TakenRequest<ThreadEarlyRequest>>,
    /// The turn on hot keys of the scope that has the connection.
    turn: Option<Arc<ThreadKeyTurn>>,
}

/// The turn on a hot key for which threads wait.
pub(crate) type ThreadKeyQueue = KeyQueue<Checkout>;

/// A turn on hot keys, for threads.
pub(crate) type ThreadKeyTurn = KeyTurn<ThreadKeyQueue>;

impl Permit {
    pub(crate) fn new(core: Arc<PoolCore>, number: usize) -> Self {
        Self {
            core,
            number: number as u32,
            events: DeferredEvents::default(),
            by_reaper: false,
            needs_asking: false,
            is_passed_on: false,
            in_use: InUse::default(),
            next_caller: None,
            turn: None,
        }
    }

    /// Passes the permit to the caller whose WATCH was taken, with the connection in its request. Returns
    /// false if there is none.
    #[inline]
    fn pass_on(&mut self) -> bool {
        let Some(next_caller) = self.next_caller.take() else { return false };
        let passed_on = next_caller.grant(self.number as usize);
        if !passed_on {
            // It has just given up. The connection is closed before the permit is released.
            drop(next_caller.request().and_then(ThreadEarlyRequest::take));
        }
        passed_on
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.core.config.settings.is_forked_child() {
            return;
        }
        // Before code of the user's runs, which metrics and events are.
        if !self.is_passed_on && !self.pass_on() {
            self.core.semaphore.release(self.number as usize);
        }
        self.core.config.counters.metrics.returned(&mut self.in_use);
        self.events.collect();
        let name = self.core.config.name;
        self.events.add(Level::TRACE, move || tracing::trace!(pool = name, "check in"));
        match self.by_reaper {
            true => self.events.send_to(&self.core.config.logging.log_thread),
            false => self.events.write(),
        }
    }
}

/// A permit and, usually, its connection. On drop the connection is returned before the permit.
///
/// It is moved for each call of a scope, so its size matters.
pub(crate) struct Checkout {
    connection: Option<TakenConnection>,
    permit: Permit,
}

/// In a forked child nothing is returned: the pool belongs to the parent.
impl Drop for Checkout {
    fn drop(&mut self) {
        if self.permit.core.config.settings.is_forked_child() {
            if let Some(connection) = self.connection.take() {
                connection.leak();
            }
        } else if self.permit.next_caller.is_some() {
            self.end_early_watch();
        } else if self.permit.turn.as_ref().is_some_and(|turn| turn.has_taken()) {
            self.pass_turn_on();
        } else if self.permit.core.semaphore.has_request() {
            self.send_ahead();
        }
    }
}

impl Checkout {
    /// `started`: when the caller began to wait. `passed_on`: a connection that was passed to it.
    pub(crate) fn new(
        permit: Permit,
        passed_on: Option<TakenConnection>,
        started: Instant,
        deadline: Instant,
    ) -> Result<Self, CheckoutError> {
        let mut checkout = Self { connection: passed_on, permit };
        if checkout.connection.is_none() {
            checkout.take_or_wait(started, deadline)?;
        }
        let core = &checkout.permit.core;
        checkout.permit.in_use = core.config.counters.metrics.checked_out(started);
        Ok(checkout)
    }

    /// The checkout of a scope with this turn, on a connection that came with it.
    pub(in crate::pool) fn begin_turn(&mut self, started: Instant) {
        let core = &self.permit.core;
        self.permit.in_use = core.config.counters.metrics.checked_out(started);
    }

    /// Has the scope's EXEC followed by the WATCH of the caller that gets the turn next.
    pub(in crate::pool) fn set_turn(&mut self, turn: &Arc<ThreadKeyTurn>) {
        self.permit.turn = Some(Arc::clone(turn));
    }

    /// Whether a caller gets this connection next, and its WATCH was sent on it. None begins after the pool was
    /// closed.
    fn can_be_passed_on(&mut self) -> bool {
        let core = &self.permit.core;
        let Some(connection) = &mut self.connection else { return false };
        if connection.early_watch_is_due() && core.semaphore.is_closed() {
            connection.taint(CloseReason::Outdated);
        }
        connection.can_be_passed_on(Instant::now(), core.generation())
    }

    /// Passes the turn to the caller whose WATCH was sent on the connection, with the connection and the
    /// permit, or has it wait on.
    #[inline(never)]
    fn pass_turn_on(&mut self) {
        let can_be_passed_on = self.can_be_passed_on();
        let Some(turn) = self.permit.turn.take() else { return };
        let connection = self.connection.take_if(|_| can_be_passed_on);
        let Some(mut connection) = connection else {
            // It is closed, because it awaits replies, before the permit is released.
            return turn.leave_next();
        };
        connection.mark_taken();
        let number = self.permit.number as usize;
        let permit = Permit::new(Arc::clone(&self.permit.core), number);
        self.permit.is_passed_on = true;
        // If that caller has just given up, this closes the connection and releases the permit.
        drop(turn.pass_on(Self { connection: Some(connection), permit }));
    }

    /// Passes the connection to the caller whose WATCH was sent on it, or has it wait on.
    #[inline(never)]
    fn end_early_watch(&mut self) {
        let can_be_passed_on = self.can_be_passed_on();
        let Permit { core, next_caller, .. } = &mut self.permit;
        let request = next_caller.as_ref().and_then(TakenRequest::request);
        let connection = self.connection.take_if(|_| can_be_passed_on);
        if let (Some(request), Some(mut connection)) = (request, connection) {
            connection.mark_taken();
            request.put(connection);
        } else if let Some(next_caller) = next_caller.take() {
            // The connection is closed, because it awaits replies, before the permit is released.
            core.semaphore.return_request(next_caller);
        }
    }

    /// Sends the packet of the caller that gets the connection next, and passes both on. A connection that
    /// this caller would look into first is not used.
    #[inline(never)]
    fn send_ahead(&mut self) {
        let Permit { core, number, .. } = &mut self.permit;
        let Some(connection) = &mut self.connection else { return };
        // The user's own provider may wait, and this is a drop.
        let has_its_login = |provider: &Provider| {
            provider.version_at_once().is_some_and(|version| !connection.needs_reauth(version))
        };
        let is_usable = !core.shared.is_closed()
            && connection.state().is_clean()
            && !connection.state().refuses_multi()
            && core.trusts(connection.last_alive())
            && core.endpoint.provider().is_none_or(has_its_login)
            && core.why_unusable(connection, Instant::now()).is_none();
        if !is_usable {
            return;
        }
        let settings = core.settings();
        let register = Register::of(connection, settings);
        let (current, mut lost) = (&mut self.connection, None);
        let send = |request: &ThreadEarlyRequest| {
            let Some(mut connection) = current.take() else { return false };
            lost = request.send(&mut connection, settings).err();
            match lost {
                None => request.put(connection),
                Some(_) => *current = Some(connection),
            }
            lost.is_none()
        };
        let fits = |request: &ThreadEarlyRequest| request.fits(register);
        match core.semaphore.pass_on(*number as usize, fits, send) {
            Returned::PassedOn => self.permit.is_passed_on = true,
            Returned::Unsent(request) => {
                if let Some(cause) = &lost {
                    core.distrust_idle(cause);
                }
                // It is closed before the permit is released.
                self.connection = None;
                core.semaphore.return_request(request);
            }
            Returned::Kept => {}
        }
    }

    /// The connection's socket, if there is a connection.
    fn socket(&self) -> Option<&Arc<OwnSocket>> {
        self.connection.as_ref()?.socket()
    }

    pub(crate) fn pool(&self) -> &Arc<PoolCore> {
        &self.permit.core
    }

    /// Marks the server as the target of a migration: each command or MULTI needs ASKING before it.
    pub(crate) fn with_ask(mut self, needs_asking: bool) -> Self {
        self.permit.needs_asking = needs_asking;
        self
    }

    #[inline(never)]
    fn take_or_wait(&mut self, started: Instant, deadline: Instant) -> Result<(), CheckoutError> {
        let core = Arc::clone(&self.permit.core);
        let mut requester = core.shared.attempts.requester();
        let mut now = started;
        loop {
            if core.shared.is_closed() {
                return Err(CheckoutError::Closed);
            }
            if let Some(mut connection) = core.idle.take_for(&mut requester) {
                match core.why_unusable(&mut connection, now) {
                    Some(reason) => connection.taint(reason),
                    None => {
                        self.connection = Some(connection);
                        let is_usable = match core.endpoint.login_version() {
                            None => true,
                            Some(version) => self.reauthenticate(version, deadline),
                        };
                        if is_usable {
                            return Ok(());
                        }
                    }
                }
                continue;
            }
            now = Instant::now();
            if cancel::is_cancelled() {
                return Err(CheckoutError::Cancelled);
            }
            core.check_connect(started, now, deadline)?;
            let _call = CallUnderWay::begin();
            requester.pause();
        }
    }

    /// Re-authenticates if the credentials changed. Returns false if the connection was lost.
    #[cold]
    fn reauthenticate(&mut self, version: u64, deadline: Instant) -> bool {
        let core = Arc::clone(&self.permit.core);
        let login = || ready(login(&core.endpoint, deadline));
        now(reauthenticate(self, version, deadline, login))
    }
}

impl Line for Checkout {
    type Wire = Transport;

    fn context(&self) -> &PoolContext {
        &self.permit.core
    }

    fn needs_asking(&self) -> bool {
        self.permit.needs_asking
    }

    fn current(&mut self) -> Option<&mut Connection> {
        self.connection.as_deref_mut()
    }

    fn connect(
        &mut self,
        deadline: Instant,
    ) -> impl Future<Output = Result<(), CheckoutError>> + Send {
        ready(self.take_or_wait(Instant::now(), deadline))
    }

    fn close(&mut self) {
        self.connection = None;
    }

    fn is_unwinding(&self) -> bool {
        std::thread::panicking()
    }

    fn log_later(&mut self, level: Level, event: impl FnOnce() + Send + 'static) {
        if level <= LevelFilter::current() {
            self.permit.events.collect();
            self.permit.events.add(level, event);
        }
    }

    fn begin_blocking(
        &self,
        command: &BlockingCommand,
    ) -> Result<impl Send + use<>, CheckoutError> {
        let end = self.socket().map(Arc::downgrade).map(|socket| -> Arc<EndCommand> {
            Arc::new(move || {
                socket.upgrade().map(|socket| socket.shut_down());
            })
        });
        let begun = self.permit.core.blocking.begin(command, thread_name(), end);
        begun.ok_or(CheckoutError::Closed)
    }

    fn is_closed(&self) -> bool {
        self.permit.core.blocking.is_closed()
    }

    fn take_early_watch(&mut self, armed: Option<Armed>) -> Option<Arc<EarlyWatch>> {
        let connection = self.connection.as_ref()?;
        let core = &self.permit.core;
        // Credentials are renewed by a checkout. The user's own provider may wait, and this is a commit.
        if let Some(provider) = core.endpoint.provider()
            && connection.needs_reauth(provider.version_at_once()?)
        {
            return None;
        }
        if let Some(turn) = &self.permit.turn
            && !(turn.is_kept_long() && core.semaphore.queued() > 0)
            && !core.semaphore.is_closed()
            && let Some(watch) = turn.take_next((), armed)
        {
            return Some(watch);
        }
        let rides =
            |request: &ThreadEarlyRequest| request.watch().is_some_and(|watch| watch.fits(armed));
        let taken = core.semaphore.take_request(self.permit.number as usize, rides)?;
        let watch = taken.request().and_then(ThreadEarlyRequest::watch).map(Arc::clone);
        self.permit.next_caller = Some(taken);
        watch
    }

    fn has_early_watch(&self) -> bool {
        let Permit { next_caller, turn, .. } = &self.permit;
        next_caller.as_ref().is_some_and(TakenRequest::is_awaited)
            || turn.as_ref().is_some_and(|turn| turn.has_next())
    }

    #[cold]
    fn leave_early_watch(&mut self) {
        let next_caller = self.permit.next_caller.take();
        let turn = self.permit.turn.take().filter(|turn| turn.has_taken());
        if next_caller.is_none() && turn.is_none() {
            return;
        }
        self.taint(CloseReason::LeftDirty);
        self.close();
        if let Some(next_caller) = next_caller {
            self.permit.core.semaphore.return_request(next_caller);
        }
        if let Some(turn) = turn {
            turn.leave_next();
        }
    }
}

impl Kept for Checkout {
    type Ender = Weak<OwnSocket>;

    #[inline(always)]
    fn set_ender(&self, ender: &mut Option<Weak<OwnSocket>>) {
        // Another one only if a call has replaced the connection.
        let (known, current) = (ender.as_ref().map(Weak::as_ptr), self.socket());
        if known != current.map(Arc::as_ptr) {
            *ender = current.map(Arc::downgrade);
        }
    }
}

impl ScopeLine for Checkout {
    type Core = PoolCore;
    type Holder = HolderThread;

    #[inline(always)]
    fn permit_number(&self) -> usize {
        self.permit.number as usize
    }

    fn mark_reclaimed(&mut self) {
        self.permit.by_reaper = true;
    }

    fn end_turn(&mut self) {
        if let Some(turn) = self.permit.turn.take() {
            turn.give_back();
        }
    }

    fn end_call(socket: &Weak<OwnSocket>) {
        socket.upgrade().map(|socket| socket.shut_down());
    }

    /// A call of a thread ends.
    fn may_be_forgotten(_: &Weak<OwnSocket>) -> bool {
        false
    }

    fn revoke(socket: &Weak<OwnSocket>) {
        Self::end_call(socket);
    }
}

/// A thread that began a scope.
#[derive(Clone, Debug)]
pub(crate) struct HolderThread {
    pub(crate) id: ThreadId,
    name: Arc<str>,
}

impl PartialEq for HolderThread {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Holder for HolderThread {
    fn current() -> Self {
        Self { id: this_thread(), name: thread_name() }
    }

    fn name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }
}
