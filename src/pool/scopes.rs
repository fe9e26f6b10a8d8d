//! The open scopes of a pool, with connection, start and place of each; and the reaper.
//!
//! There is one [entry](crate::pool::entry) for each permit, with the scope's checkout. A call of the
//! scope takes the checkout out, and its end puts it back. The scope itself has only the entry's
//! number and a generation. So a scope that was forgotten, or whose thread never returns
//! from user code, keeps no connection. A known outcome is never overwritten, and the reaper never
//! waits for a call.

use std::any::Any;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::panic::Location;
use std::sync::{Arc, Weak};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use scopeguard::{ScopeGuard, guard};
use tracing::Level;

use crate::error::checkout::CheckoutError;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::error::open_scope::OpenScope;
use crate::error::pin_expired::PinExpired;
use crate::logging::deferred::LogThread;
use crate::pool::checkout::Checkout;
use crate::pool::core::PoolCore;
use crate::pool::entry::{self, Expired, Kept, Left, Taken};
use crate::pool::line::Line;
use crate::pool::scope_origin::ScopeOrigin;
use crate::pool::semaphore::IsWaiting;
use crate::pool::server_pool::PinnedLine;
use crate::process::sockets::OwnSocket;
use crate::protocol::connection_state::CloseReason;
use crate::sync::{this_thread, thread_name};

/// The open scopes of one pool. An open scope keeps them alive, and the pool with them, until it
/// ends or is reclaimed.
pub(crate) struct OpenScopes {
    core: Arc<PoolCore>,
    entries: Box<[Entry]>,
}

type Entry = entry::Entry<Checkout, ScopeRecord>;

/// The scope itself holds the pool and its router weakly; its entry keeps them alive.
struct ScopeRecord {
    info: ScopeInfo,
    _scopes: Arc<OpenScopes>,
    _router: Arc<dyn Any + Send + Sync>,
}

impl Kept for Checkout {
    fn socket(&self) -> Option<&Arc<OwnSocket>> {
        Self::socket(self)
    }
}

#[derive(Clone, Debug)]
struct ScopeInfo {
    generation: u64,
    begun: Instant,
    /// Value of the entry's `uses` when the scope began.
    uses: u64,
    thread: ThreadId,
    thread_name: Arc<str>,
    origin: ScopeOrigin,
}

impl ScopeInfo {
    fn open_scope(&self) -> OpenScope {
        OpenScope {
            name: self.origin.name.clone(),
            blocking: None,
            begun_at: self.origin.place,
            thread: Arc::clone(&self.thread_name),
            age: self.begun.elapsed(),
            is_closure: self.origin.is_closure,
        }
    }
}

impl OpenScopes {
    pub(crate) fn new(core: PoolCore) -> Self {
        let entries = (0..core.settings().max_size).map(|_| Entry::default()).collect();
        Self { core: Arc::new(core), entries }
    }

    pub(crate) fn core(&self) -> &Arc<PoolCore> {
        &self.core
    }

    /// Puts the checkout into its entry and returns the scope's access to it.
    pub(crate) fn open(
        self: &Arc<Self>,
        checkout: Checkout,
        origin: ScopeOrigin,
        router: Arc<dyn Any + Send + Sync>,
    ) -> PinnedConnection {
        let (begun, place, index) = (Instant::now(), origin.place, checkout.permit_number());
        let mut generation = 0;
        if let Some(entry) = self.entries.get(index) {
            let (thread, thread_name) = (this_thread(), thread_name());
            generation = entry.open(checkout, |generation, uses| ScopeRecord {
                info: ScopeInfo { generation, begun, uses, thread, thread_name, origin },
                _scopes: Arc::clone(self),
                _router: router,
            });
        }
        let limit = self.core.settings().max_pin_time;
        let (scopes, ends_with_call) = (Arc::downgrade(self), false);
        PinnedConnection { scopes, index, generation, begun, place, limit, ends_with_call }
    }

    /// The open scopes in the order of the entries.
    pub(crate) fn list(&self) -> Vec<OpenScope> {
        let scope = |entry: &Entry| entry.read(|record, _| record.info.open_scope());
        self.entries.iter().filter_map(scope).collect()
    }

    /// Fails if no thread is left that could return a connection, given those that wait already.
    pub(crate) fn check_wait(&self, is_waiting: &IsWaiting<'_>) -> Result<(), WouldDeadlock> {
        let me = this_thread();
        let mut holders = Vec::new();
        let mut certain = true;
        for entry in &self.entries {
            let holder = entry.read(|ScopeRecord { info, .. }, _| {
                let may_end = info.thread != me && !is_waiting(info.thread);
                (!may_end).then(|| info.open_scope())
            });
            let Some(Some(holder)) = holder else { return Ok(()) };
            certain &= holder.is_closure;
            holders.push(holder);
        }
        Err(WouldDeadlock { certain, holders })
    }

    /// Reclaims every scope that was not used for `limit`, and warns of those that have been open
    /// for `warn_after`.
    pub(crate) fn reclaim_unused(
        &self,
        seen: &mut ReaperState,
        limit: Duration,
        warn_after: Option<Duration>,
        log_thread: &Arc<LogThread>,
    ) {
        let now = Instant::now();
        seen.0.resize(self.entries.len(), LastSeen::default());
        for (entry, last_seen) in self.entries.iter().zip(&mut seen.0) {
            let scope = entry.read(|record, uses| (record.info.clone(), uses));
            let Some((info, uses)) = scope else { continue };
            if last_seen.generation != info.generation {
                *last_seen = LastSeen { generation: info.generation, ..LastSeen::default() };
            }
            if last_seen.since.is_none() || last_seen.uses != uses {
                // The scope is new to the reaper, and unused since it began.
                let fresh = last_seen.since.is_none() && uses == info.uses;
                let since = if fresh { info.begun } else { now };
                (last_seen.uses, last_seen.since) = (uses, Some(since));
            }
            let idle = last_seen.since.map(|since| now.saturating_duration_since(since));
            if idle.is_some_and(|idle| idle >= limit) {
                // A scope inside a call is reclaimed when the call ends.
                if let Expired::Reclaimed(kept, info) = entry.expire(info.generation) {
                    reclaim(kept, info, limit, Some(log_thread));
                }
            } else if warn_after.is_some_and(|after| now - info.begun >= after) && !last_seen.warned
            {
                last_seen.warned = true;
                // On another thread: a subscriber may block, or wait for a connection.
                log_thread.log(Level::WARN, move || {
                    let OpenScope { name, begun_at: place, thread, age, .. } = info.open_scope();
                    let name = name.as_deref();
                    tracing::warn!(name, %place, %thread, ?age, "scope open for long");
                });
            }
        }
    }

    /// Reclaims all scopes and returns their number. One that is inside a call is reclaimed when the
    /// call ends, which fails now.
    pub(crate) fn reclaim_all(&self) -> usize {
        let generation = |entry: &Entry| entry.read(|record, _| record.info.generation);
        let open = |entry| Some((entry, generation(entry)?));
        let open: Vec<_> = self.entries.iter().filter_map(open).collect();
        for (entry, generation) in &open {
            match entry.expire(*generation) {
                Expired::Reclaimed(kept, info) => reclaim(kept, info, Duration::ZERO, None),
                Expired::Marked(socket) => {
                    socket.and_then(|socket| socket.upgrade()).map(|socket| socket.shut_down());
                }
                Expired::Gone => {}
            }
        }
        open.len()
    }
}

/// Every holder of a connection waits for another one.
pub(crate) struct WouldDeadlock {
    /// Every scope is a closure on a thread that waits. A guard may have moved to another thread.
    pub(crate) certain: bool,
    pub(crate) holders: Vec<OpenScope>,
}

/// The state that the reaper saw in its last run.
#[derive(Debug, Default)]
pub(crate) struct ReaperState(Vec<LastSeen>);

#[derive(Clone, Copy, Debug, Default)]
struct LastSeen {
    generation: u64,
    uses: u64,
    since: Option<Instant>,
    warned: bool,
}

/// Has the connection replaced, and passes the permit to the caller that has waited longest.
fn reclaim(
    mut checkout: Checkout,
    record: ScopeRecord,
    limit: Duration,
    log_thread: Option<&Arc<LogThread>>,
) {
    checkout.taint(CloseReason::Reclaimed);
    if log_thread.is_some() {
        checkout.mark_reclaimed();
    }
    drop(checkout);
    let ScopeRecord { info, .. } = record;
    let warn = move || {
        let OpenScope { name, begun_at: place, thread, age, .. } = info.open_scope();
        let name = name.as_deref();
        tracing::warn!(
            name, %place, %thread, ?age, ?limit,
            "scope reclaimed: not used for max_pin_time; its transaction was discarded"
        );
    };
    match log_thread {
        Some(log_thread) => log_thread.log(Level::WARN, warn),
        None => warn(),
    }
}

/// A scope's access to its connection.
pub(crate) struct PinnedConnection {
    scopes: Weak<OpenScopes>,
    index: usize,
    generation: u64,
    begun: Instant,
    place: &'static Location<'static>,
    limit: Duration,
    /// The last call has begun, and ends the scope.
    ends_with_call: bool,
}

impl PinnedConnection {
    #[inline(always)]
    fn begin_call<E: From<PinExpired> + From<CheckoutError>>(
        &self,
        take: impl FnOnce(&Entry, u64) -> Taken<Checkout>,
    ) -> Result<ScopeCall, E> {
        let scopes = self.scopes.upgrade().ok_or_else(|| self.expired())?;
        let generation = self.generation;
        match scopes.entries.get(self.index).map(|entry| take(entry, generation)) {
            Some(Taken::Kept(checkout)) => {
                let taken = TakenCheckout { scopes, generation, checkout };
                Ok(ScopeCall(guard(taken, TakenCheckout::put_back)))
            }
            Some(Taken::Busy) => {
                let text = "another call of the scope has its connection";
                let source = ConnectionError::new(ConnectionErrorKind::Io, text).permanent();
                Err(CheckoutError::Connect { waited: Duration::ZERO, source }.into())
            }
            Some(Taken::Gone) | None => Err(self.expired().into()),
        }
    }

    fn expired(&self) -> PinExpired {
        PinExpired::new(self.begun.elapsed(), self.limit, self.place)
    }
}

impl PinnedLine for PinnedConnection {
    type Line = Checkout;
    type Call = ScopeCall;

    fn call<E: From<PinExpired> + From<CheckoutError>>(&self) -> Result<ScopeCall, E> {
        self.begin_call(Entry::take)
    }

    fn last_call<E: From<PinExpired> + From<CheckoutError>>(mut self) -> Result<ScopeCall, E> {
        let call = self.begin_call::<E>(Entry::take_last)?;
        self.ends_with_call = true;
        Ok(call)
    }

    fn touch(&self) {
        if let Some(scopes) = self.scopes.upgrade()
            && let Some(entry) = scopes.entries.get(self.index)
        {
            entry.touch();
        }
    }
}

impl Drop for PinnedConnection {
    fn drop(&mut self) {
        if self.ends_with_call {
            return;
        }
        let Some(scopes) = self.scopes.upgrade() else { return };
        if scopes.core.settings().is_forked_child() {
            return;
        }
        let Some(entry) = scopes.entries.get(self.index) else { return };
        // If a call is under way, its end returns the connection.
        drop(entry.end(self.generation));
    }
}

impl fmt::Debug for PinnedConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedConnection")
            .field("entry", &self.index)
            .field("begun_at", &format_args!("{}", self.place))
            .finish_non_exhaustive()
    }
}

/// The connection of a scope, taken out of its entry for one call. On drop it is put back. If the
/// scope was reclaimed or ended meanwhile, connection and permit are returned instead.
pub(crate) struct ScopeCall(ScopeGuard<TakenCheckout, fn(TakenCheckout)>);

struct TakenCheckout {
    scopes: Arc<OpenScopes>,
    generation: u64,
    checkout: Checkout,
}

impl TakenCheckout {
    #[inline]
    fn put_back(self) {
        let Self { scopes, generation, checkout } = self;
        if scopes.core.settings().is_forked_child() {
            // The connection belongs to the parent, and the mutex may stay locked forever.
            return std::mem::forget((scopes, checkout));
        }
        let Some(entry) = scopes.entries.get(checkout.permit_number()) else { return };
        match entry.put_back(generation, checkout) {
            Left::Expired(checkout, record) => {
                let limit = scopes.core.settings().max_pin_time;
                // A log belongs to the user, and a second panic would end the process.
                let log_thread = &scopes.core.config.logging.log_thread;
                let log_thread = std::thread::panicking().then_some(log_thread);
                reclaim(checkout, record, limit, log_thread)
            }
            // Dropped here, without the entry's lock.
            Left::Ended(..) | Left::Not => {}
        }
    }
}

impl Deref for ScopeCall {
    type Target = Checkout;

    fn deref(&self) -> &Checkout {
        &self.0.checkout
    }
}

impl DerefMut for ScopeCall {
    fn deref_mut(&mut self) -> &mut Checkout {
        &mut self.0.checkout
    }
}
