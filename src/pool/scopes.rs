//! The open scopes of a pool, with connection, start and place of each; and the reaper.
//!
//! There is one entry for each permit. A scope's checkout is in its entry, is taken out for a call of
//! the scope, and is put back when the call ends. The scope itself has only the entry's number and a
//! generation. So a scope that was forgotten, or whose thread never returns, keeps no connection. No
//! mutex is locked while a call talks to the server. A known outcome is never overwritten.

use std::any::Any;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::panic::Location;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use scopeguard::{ScopeGuard, guard};
use tracing::Level;

use crate::error::open_scope::OpenScope;
use crate::error::pin_expired::PinExpired;
use crate::logging::deferred::LogThread;
use crate::pool::checkout::Checkout;
use crate::pool::core::PoolCore;
use crate::pool::line::Line;
use crate::pool::scope_origin::ScopeOrigin;
use crate::pool::semaphore::IsWaiting;
use crate::pool::server_pool::PinnedLine;
use crate::process::sockets::OwnSocket;
use crate::protocol::connection_state::CloseReason;
use crate::sync::{lock, this_thread, thread_name};

/// The open scopes of one pool. An open scope keeps them alive, and the pool with them, until it
/// ends or is reclaimed.
pub(crate) struct OpenScopes {
    core: Arc<PoolCore>,
    entries: Box<[Entry]>,
}

#[derive(Default)]
struct Entry {
    held: Mutex<HeldConnection>,
    info: Mutex<Option<ScopeInfo>>,
    /// Number of the scope's calls. From it the reaper knows that a scope is in use.
    uses: AtomicU64,
}

#[derive(Default)]
struct HeldConnection {
    generation: u64,
    /// `None`: there is no scope, or it is inside a call.
    checkout: Option<KeptCheckout>,
    /// The connection of the running call, so that closing the pool ends the call.
    socket: Option<Weak<OwnSocket>>,
    /// What happened to the scope during its call.
    mark: Option<Mark>,
}

/// What happened to a scope during its call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    /// The scope is to be reclaimed when its call ends.
    Expired,
    /// The scope ended.
    Ended,
}

/// The scope itself holds the pool and its router weakly; this entry keeps them alive.
struct KeptCheckout {
    checkout: Checkout,
    _scopes: Arc<OpenScopes>,
    _router: Arc<dyn Any + Send + Sync>,
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
            let mut held = lock(&entry.held);
            held.generation += 1;
            let kept = KeptCheckout { checkout, _scopes: Arc::clone(self), _router: router };
            (held.checkout, held.mark) = (Some(kept), None);
            generation = held.generation;
            let thread = this_thread();
            let thread_name = thread_name();
            let uses = entry.uses.load(Ordering::Relaxed);
            let info = ScopeInfo { generation, begun, uses, thread, thread_name, origin };
            *lock(&entry.info) = Some(info);
        }
        let limit = self.core.settings().max_pin_time;
        PinnedConnection { scopes: Arc::downgrade(self), index, generation, begun, place, limit }
    }

    /// The open scopes in the order of the entries.
    pub(crate) fn list(&self) -> Vec<OpenScope> {
        let info = |entry: &Entry| lock(&entry.info).clone();
        self.entries.iter().filter_map(info).map(|info| info.open_scope()).collect()
    }

    /// Fails if no thread is left that could return a connection, given those that wait already.
    pub(crate) fn check_wait(&self, is_waiting: &IsWaiting<'_>) -> Result<(), WouldDeadlock> {
        let me = this_thread();
        let mut holders = Vec::new();
        let mut certain = true;
        for entry in &self.entries {
            let info = lock(&entry.info);
            let Some(info) = &*info else { return Ok(()) };
            if info.thread != me && !is_waiting(info.thread) {
                return Ok(());
            }
            certain &= info.origin.is_closure;
            holders.push(info.open_scope());
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
            let Some(info) = lock(&entry.info).clone() else { continue };
            let uses = entry.uses.load(Ordering::Relaxed);
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
                entry.expire(&info, limit, Some(log_thread));
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

    /// Reclaims all scopes and returns their number.
    pub(crate) fn reclaim_all(&self) -> usize {
        let open: Vec<_> = self
            .entries
            .iter()
            .filter_map(|entry| lock(&entry.info).clone().map(|info| (entry, info)))
            .collect();
        open.iter().for_each(|(entry, info)| entry.expire(info, Duration::ZERO, None));
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

impl Entry {
    /// Reclaims the scope. One that is inside a call is marked, and reclaimed when the call ends;
    /// without `log_thread` the pool is closed, and the call fails now.
    fn expire(&self, info: &ScopeInfo, limit: Duration, log_thread: Option<&Arc<LogThread>>) {
        let mut held = lock(&self.held);
        if held.generation != info.generation {
            return;
        }
        if held.checkout.is_none() {
            held.mark.get_or_insert(Mark::Expired);
            let socket = held.socket.as_ref().and_then(Weak::upgrade);
            drop(held);
            if let (Some(socket), None) = (socket, log_thread) {
                socket.shut_down();
            }
            return;
        }
        let reclaimed = self.take(&mut held);
        drop(held);
        reclaim(reclaimed, limit, log_thread);
    }

    /// Takes the checkout out. It is dropped after the entry's mutex, so that logging cannot block
    /// other scopes.
    fn take(&self, held: &mut HeldConnection) -> Option<(KeptCheckout, Option<ScopeInfo>)> {
        let info = lock(&self.info).take();
        held.checkout.take().map(|kept| (kept, info))
    }
}

/// Has the connection replaced, and passes the permit to the caller that has waited longest.
fn reclaim(
    taken: Option<(KeptCheckout, Option<ScopeInfo>)>,
    limit: Duration,
    log_thread: Option<&Arc<LogThread>>,
) {
    let Some((mut kept, info)) = taken else { return };
    kept.checkout.taint(CloseReason::Reclaimed);
    if log_thread.is_some() {
        kept.checkout.mark_reclaimed();
    }
    drop(kept);
    let Some(info) = info else { return };
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
}

impl PinnedConnection {
    fn expired(&self) -> PinExpired {
        PinExpired::new(self.begun.elapsed(), self.limit, self.place)
    }
}

impl PinnedLine for PinnedConnection {
    type Line = Checkout;
    type Call = ScopeCall;

    /// A second call during the first one fails as if the scope were reclaimed.
    fn call(&self) -> Result<ScopeCall, PinExpired> {
        let scopes = self.scopes.upgrade().ok_or_else(|| self.expired())?;
        let entry = scopes.entries.get(self.index).ok_or_else(|| self.expired())?;
        let mut held = lock(&entry.held);
        let mine = held.generation == self.generation;
        let kept = if mine { held.checkout.take() } else { None };
        let kept = kept.ok_or_else(|| self.expired())?;
        held.socket = kept.checkout.socket().map(Arc::downgrade);
        drop(held);
        entry.uses.fetch_add(1, Ordering::Relaxed);
        let (index, limit) = (self.index, self.limit);
        let taken = TakenCheckout { scopes, index, limit, kept };
        Ok(ScopeCall(guard(taken, TakenCheckout::put_back)))
    }

    fn touch(&self) {
        if let Some(scopes) = self.scopes.upgrade()
            && let Some(entry) = scopes.entries.get(self.index)
        {
            entry.uses.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for PinnedConnection {
    fn drop(&mut self) {
        let Some(scopes) = self.scopes.upgrade() else { return };
        if scopes.core.settings().is_forked_child() {
            return;
        }
        let Some(entry) = scopes.entries.get(self.index) else { return };
        let mut held = lock(&entry.held);
        if held.generation != self.generation {
            return;
        }
        if held.checkout.is_none() {
            held.mark = Some(Mark::Ended);
            return;
        }
        let reclaimed = entry.take(&mut held);
        // The entry is free before its number is passed on with the permit.
        drop(held);
        drop(reclaimed);
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
    index: usize,
    limit: Duration,
    kept: KeptCheckout,
}

impl TakenCheckout {
    fn put_back(self) {
        if self.scopes.core.settings().is_forked_child() {
            // The connection belongs to the parent, and the mutex may stay locked forever.
            return std::mem::forget(self);
        }
        let Some(entry) = self.scopes.entries.get(self.index) else { return };
        entry.uses.fetch_add(1, Ordering::Relaxed);
        let mut held = lock(&entry.held);
        held.checkout = Some(self.kept);
        held.socket = None;
        let mark = held.mark.take();
        let taken = mark.and_then(|_| entry.take(&mut held));
        drop(held);
        match mark {
            Some(Mark::Expired) => reclaim(taken, self.limit, None),
            Some(Mark::Ended) | None => drop(taken),
        }
    }
}

impl Deref for ScopeCall {
    type Target = Checkout;

    fn deref(&self) -> &Checkout {
        &self.0.kept.checkout
    }
}

impl DerefMut for ScopeCall {
    fn deref_mut(&mut self) -> &mut Checkout {
        &mut self.0.kept.checkout
    }
}
