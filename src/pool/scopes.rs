//! The open scopes of a pool, with connection, start and place of each; and the reaper.
//!
//! There is one entry for each permit. A scope's checkout is in its entry, and every call of the
//! scope runs under the entry's mutex. The scope itself has only the entry's number and a
//! generation. So a scope that was forgotten, or whose thread never returns, keeps no connection. A
//! known outcome is never overwritten, and the reaper never waits for a scope.

use std::any::Any;
use std::fmt;
use std::panic::Location;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, TryLockError, Weak};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use tracing::Level;

use crate::error::open_scope::OpenScope;
use crate::error::pin_expired::PinExpired;
use crate::logging::deferred::LogThread;
use crate::pool::checkout::Checkout;
use crate::pool::core::PoolCore;
use crate::pool::line::Line;
use crate::pool::semaphore::IsWaiting;
use crate::protocol::connection_state::CloseReason;
use crate::sync::{lock, this_thread, thread_name};

/// The place that began a scope, and the kind of the scope.
#[derive(Clone, Debug)]
pub(crate) struct ScopeOrigin {
    pub(crate) name: Option<Arc<str>>,
    pub(crate) place: &'static Location<'static>,
    /// A closure cannot leave its thread; a guard can.
    pub(crate) is_closure: bool,
}

/// The open scopes of one pool. An open scope keeps them alive, and the pool with them, until it
/// ends or is reclaimed.
pub(crate) struct OpenScopes {
    core: Arc<PoolCore>,
    entries: Box<[Entry]>,
}

#[derive(Default)]
struct Entry {
    held: Mutex<HeldConnection>,
    /// Not under the mutex of `held`, so that a diagnosis never waits for a call.
    info: Mutex<Option<ScopeInfo>>,
    /// Number of the scope's calls. From it the reaper knows that a scope is in use.
    uses: AtomicU64,
    /// The generation of the scope that the reaper found too old during a call. By the time this is
    /// written, the entry may belong to another scope.
    expired: AtomicU64,
}

#[derive(Default)]
struct HeldConnection {
    generation: u64,
    checkout: Option<KeptCheckout>,
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
            held.checkout = Some(kept);
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
    fn expire(&self, info: &ScopeInfo, limit: Duration, log_thread: Option<&Arc<LogThread>>) {
        let mut held = match self.held.try_lock() {
            Ok(held) => held,
            // A call in this entry panicked once, in this scope or in an earlier one.
            Err(TryLockError::Poisoned(held)) => held.into_inner(),
            Err(TryLockError::WouldBlock) => {
                return self.expired.store(info.generation, Ordering::Relaxed);
            }
        };
        let current = held.generation == info.generation;
        let reclaimed = if current { self.take(&mut held) } else { None };
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
    /// Runs a call of the scope.
    ///
    /// # Errors
    /// The scope was reclaimed before the call. Once `call` has run, its result stands.
    pub(crate) fn with<R>(&self, call: impl FnOnce(&mut Checkout) -> R) -> Result<R, PinExpired> {
        let scopes = self.scopes.upgrade().ok_or_else(|| self.expired())?;
        let entry = scopes.entries.get(self.index).ok_or_else(|| self.expired())?;
        let mut held = lock(&entry.held);
        let mine = held.generation == self.generation;
        let kept = held.checkout.as_mut().filter(|_| mine).ok_or_else(|| self.expired())?;
        entry.uses.fetch_add(1, Ordering::Relaxed);
        let result = call(&mut kept.checkout);
        entry.uses.fetch_add(1, Ordering::Relaxed);
        let expired = entry.expired.load(Ordering::Relaxed) == self.generation;
        let reclaimed = if expired { entry.take(&mut held) } else { None };
        drop(held);
        reclaim(reclaimed, self.limit, None);
        Ok(result)
    }

    /// Runs the scope's last call, then returns the connection and the permit, in this order.
    pub(crate) fn end<R>(self, call: impl FnOnce(&mut Checkout) -> R) -> Result<R, PinExpired> {
        self.with(call)
    }

    /// Shows the reaper that the scope is in use although it sends nothing.
    pub(crate) fn touch(&self) {
        if let Some(scopes) = self.scopes.upgrade()
            && let Some(entry) = scopes.entries.get(self.index)
        {
            entry.uses.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn expired(&self) -> PinExpired {
        PinExpired::new(self.begun.elapsed(), self.limit, self.place)
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
