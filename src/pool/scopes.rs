//! The open scopes of a pool, with connection, start and place of each; and the reaper.
//!
//! There is one [entry](crate::pool::entry) for each permit, with the scope's checkout. A call of the
//! scope takes the checkout out, and its end puts it back. The scope itself has only the entry's
//! number and a generation. So a scope that was forgotten, or whose thread never returns
//! from user code, keeps no connection. A known outcome is never overwritten, and the reaper never
//! waits for a call. A call of a task may be forgotten as well; its right to the checkout is then
//! revoked.

use std::any::Any;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::panic::Location;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use scopeguard::{ScopeGuard, guard};
use tracing::Level;

use crate::error::checkout::CheckoutError;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::error::open_scope::OpenScope;
use crate::error::pin_expired::PinExpired;
use crate::logging::deferred::LogThread;
use crate::pool::context::PoolContext;
use crate::pool::entry::{self, Expired, Kept, Left, Taken};
use crate::pool::line::Line;
use crate::pool::scope_origin::ScopeOrigin;
use crate::pool::server_pool::PinnedLine;
use crate::protocol::connection_state::CloseReason;

/// A checked-out connection that a scope keeps in its entry.
pub(crate) trait ScopeLine: Line + Kept<Ender: Send> + 'static {
    /// What the lines of one pool share.
    type Core: Deref<Target = PoolContext> + Send + Sync;
    /// The thread or task that began a scope.
    type Holder: Holder;

    /// The number of the permit.
    fn permit_number(&self) -> usize;

    /// Marks the connection as returned by the reaper, whose thread must not wait for a log.
    fn mark_reclaimed(&mut self);

    /// Ends the turn on hot keys that the scope has with the line.
    fn end_turn(&mut self) {}

    /// Makes the call that has the line fail.
    fn end_call(ender: &Self::Ender);

    /// Returns whether the call that has the line may have been forgotten, since its scope has not
    /// been used for long.
    fn may_be_forgotten(ender: &Self::Ender) -> bool;

    /// Takes connection and permit from the call that has the line. A call that goes on fails.
    fn revoke(ender: &Self::Ender);
}

/// The thread or task that began a scope.
pub(crate) trait Holder: Clone + PartialEq + fmt::Debug + Send + Sync {
    /// The current one.
    fn current() -> Self;

    fn name(&self) -> Arc<str>;
}

/// The open scopes of one pool. An open scope keeps them alive, and the pool with them, until it
/// ends or is reclaimed.
pub(crate) struct OpenScopes<L: ScopeLine> {
    core: Arc<L::Core>,
    entries: Box<[Entry<L>]>,
}

type Entry<L> = entry::Entry<L, ScopeRecord<L>>;

/// The scope itself holds the pool and its router weakly; its entry keeps them alive.
struct ScopeRecord<L: ScopeLine> {
    info: ScopeInfo<L::Holder>,
    _scopes: Arc<OpenScopes<L>>,
    _router: Arc<dyn Any + Send + Sync>,
}

#[derive(Clone, Debug)]
struct ScopeInfo<H> {
    generation: u64,
    begun: Instant,
    /// Value of the entry's `uses` when the scope began.
    uses: u64,
    holder: H,
    origin: ScopeOrigin,
}

impl<H: Holder> ScopeInfo<H> {
    fn open_scope(&self) -> OpenScope {
        OpenScope {
            name: self.origin.name.clone(),
            blocking: None,
            begun_at: self.origin.place,
            thread: self.holder.name(),
            age: self.begun.elapsed(),
            is_closure: self.origin.is_closure,
        }
    }
}

impl<L: ScopeLine> OpenScopes<L> {
    pub(crate) fn new(core: Arc<L::Core>) -> Self {
        let entries = (0..core.settings().max_size).map(|_| Entry::<L>::default()).collect();
        Self { core, entries }
    }

    pub(crate) fn core(&self) -> &Arc<L::Core> {
        &self.core
    }

    /// Puts the checkout into its entry and returns the scope's access to it.
    pub(crate) fn open(
        self: &Arc<Self>,
        checkout: L,
        origin: ScopeOrigin,
        router: Arc<dyn Any + Send + Sync>,
    ) -> PinnedConnection<L> {
        let (begun, place, index) = (Instant::now(), origin.place, checkout.permit_number());
        let mut generation = 0;
        if let Some(entry) = self.entries.get(index) {
            let holder = L::Holder::current();
            generation = entry.open(checkout, |generation, uses| ScopeRecord {
                info: ScopeInfo { generation, begun, uses, holder, origin },
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
        let scope = |entry: &Entry<L>| entry.read(|record, _| record.info.open_scope());
        self.entries.iter().filter_map(scope).collect()
    }

    /// Whether one of the open scopes has such a holder and origin.
    pub(crate) fn is_held_by(&self, is_this: impl Fn(&L::Holder, &ScopeOrigin) -> bool) -> bool {
        let is_this = |info: &ScopeInfo<L::Holder>| is_this(&info.holder, &info.origin);
        let is_held = |entry: &Entry<L>| entry.read(|record, _| is_this(&record.info));
        self.entries.iter().filter_map(is_held).any(|is_held| is_held)
    }

    /// Fails if no thread or task is left that could return a connection, given those that wait
    /// already.
    pub(crate) fn check_wait(
        &self,
        is_waiting: impl Fn(&L::Holder) -> bool,
    ) -> Result<(), WouldDeadlock> {
        let me = L::Holder::current();
        let mut holders = Vec::new();
        let mut certain = true;
        for entry in &self.entries {
            let holder = entry.read(|ScopeRecord { info, .. }, _| {
                let may_end = info.holder != me && !is_waiting(&info.holder);
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
                match entry.expire(info.generation) {
                    Expired::Reclaimed(kept, record) => {
                        reclaim(kept, record, UNUSED, Some(log_thread));
                    }
                    // A scope inside a call is reclaimed when the call ends.
                    Expired::Marked(Some(ender)) if L::may_be_forgotten(&ender) => {
                        revoke(entry, info.generation, &ender, limit, log_thread);
                    }
                    Expired::Marked(_) | Expired::Gone => {}
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
        let generation = |entry: &Entry<L>| entry.read(|record, _| record.info.generation);
        let open = |entry| Some((entry, generation(entry)?));
        let open: Vec<_> = self.entries.iter().filter_map(open).collect();
        for (entry, generation) in &open {
            match entry.expire(*generation) {
                Expired::Reclaimed(kept, info) => reclaim(kept, info, CLOSED, None),
                Expired::Marked(Some(ender)) => L::end_call(&ender),
                Expired::Marked(None) | Expired::Gone => {}
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

/// Why a scope is reclaimed between two calls.
const UNUSED: &str = "not used for max_pin_time; its transaction was discarded";
/// The same at the end of a call.
const LONG_CALL: &str = "a call of it lasted longer than max_pin_time";
/// The same by `close`.
const CLOSED: &str = "it was open when its pool was closed";

/// Has the connection replaced, and passes the permit to the caller that has waited longest, as the turn.
fn reclaim<L: ScopeLine>(
    mut checkout: L,
    record: ScopeRecord<L>,
    why: &'static str,
    log_thread: Option<&Arc<LogThread>>,
) {
    let limit = checkout.context().settings().max_pin_time;
    checkout.taint(CloseReason::Reclaimed);
    checkout.end_turn();
    if log_thread.is_some() {
        checkout.mark_reclaimed();
    }
    drop(checkout);
    let ScopeRecord { info, .. } = record;
    let warn = move || {
        let OpenScope { name, begun_at: place, thread, age, .. } = info.open_scope();
        let name = name.as_deref();
        tracing::warn!(name, %place, %thread, ?age, ?limit, "scope reclaimed: {why}");
    };
    match log_thread {
        Some(log_thread) => log_thread.log(Level::WARN, warn),
        None => warn(),
    }
}

/// Takes connection and permit from a scope whose call is no longer polled.
#[cold]
fn revoke<L: ScopeLine>(
    entry: &Entry<L>,
    generation: u64,
    ender: &L::Ender,
    limit: Duration,
    log_thread: &Arc<LogThread>,
) {
    let info = match entry.revoke(generation) {
        // The call has just ended.
        Some((Some(kept), record)) => return reclaim(kept, record, UNUSED, Some(log_thread)),
        Some((None, ScopeRecord { info, .. })) => info,
        None => return,
    };
    L::revoke(ender);
    log_thread.log(Level::WARN, move || {
        let OpenScope { name, begun_at: place, thread, age, .. } = info.open_scope();
        let name = name.as_deref();
        tracing::warn!(
            name, %place, %thread, ?age, ?limit,
            "scope reclaimed during a call that was not polled for max_pin_time"
        );
    });
}

/// A scope's access to its connection.
pub(crate) struct PinnedConnection<L: ScopeLine> {
    scopes: Weak<OpenScopes<L>>,
    index: usize,
    generation: u64,
    begun: Instant,
    place: &'static Location<'static>,
    limit: Duration,
    /// The last call has begun, and ends the scope.
    ends_with_call: bool,
}

impl<L: ScopeLine> PinnedConnection<L> {
    #[inline(always)]
    fn begin_call<E: From<PinExpired> + From<CheckoutError>>(
        &self,
        take: impl FnOnce(&Entry<L>, u64) -> Taken<L>,
    ) -> Result<ScopeCall<L>, E> {
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

impl<L: ScopeLine> PinnedLine for PinnedConnection<L> {
    type Line = L;
    type Call = ScopeCall<L>;

    fn call<E: From<PinExpired> + From<CheckoutError>>(&self) -> Result<ScopeCall<L>, E> {
        self.begin_call(Entry::take)
    }

    fn last_call<E: From<PinExpired> + From<CheckoutError>>(mut self) -> Result<ScopeCall<L>, E> {
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

impl<L: ScopeLine> Drop for PinnedConnection<L> {
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

impl<L: ScopeLine> fmt::Debug for PinnedConnection<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedConnection")
            .field("entry", &self.index)
            .field("begun_at", &format_args!("{}", self.place))
            .finish_non_exhaustive()
    }
}

/// The connection of a scope, taken out of its entry for one call. On drop it is put back. If the
/// scope was reclaimed or ended meanwhile, connection and permit are returned instead.
pub(crate) struct ScopeCall<L: ScopeLine>(ScopeGuard<TakenCheckout<L>, fn(TakenCheckout<L>)>);

struct TakenCheckout<L: ScopeLine> {
    scopes: Arc<OpenScopes<L>>,
    generation: u64,
    checkout: L,
}

impl<L: ScopeLine> TakenCheckout<L> {
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
                let why = if scopes.core.shared.is_closed() { CLOSED } else { LONG_CALL };
                // A log belongs to the user, and a second panic would end the process.
                let log_thread = &scopes.core.config.logging.log_thread;
                let log_thread = std::thread::panicking().then_some(log_thread);
                reclaim(checkout, record, why, log_thread)
            }
            // Dropped here, without the entry's lock.
            Left::Ended(..) | Left::Not => {}
        }
    }
}

impl<L: ScopeLine> Deref for ScopeCall<L> {
    type Target = L;

    fn deref(&self) -> &L {
        &self.0.checkout
    }
}

impl<L: ScopeLine> DerefMut for ScopeCall<L> {
    fn deref_mut(&mut self) -> &mut L {
        &mut self.0.checkout
    }
}
