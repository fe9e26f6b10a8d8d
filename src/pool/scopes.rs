//! The open scopes of a pool: holder, age and place of each, and how its connection is
//! reclaimed.
//!
//! There is one entry for each permit, made once. A scope's connection lies in its entry, and
//! every call of the scope runs under the entry's lock; the scope itself holds the entry's
//! number and a generation. So a scope that was forgotten, or whose thread never returns, takes
//! nothing with it. A known outcome is never overwritten, and the reaper waits for no scope.

use std::fmt;
use std::panic::Location;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use tracing::Level;

use crate::error::open_scope::OpenScope;
use crate::error::pin_expired::PinExpired;
use crate::logging::deferred::LogThread;
use crate::pool::checkout::Checkout;
use crate::pool::semaphore::IsWaiting;
use crate::pool::{Pool, WeakPool};
use crate::protocol::connection_state::Taint;
use crate::sync::{lock, this_thread};

/// Where a scope comes from.
#[derive(Clone, Debug)]
pub(crate) struct ScopeOrigin {
    pub(crate) name: Option<Arc<str>>,
    pub(crate) place: &'static Location<'static>,
    /// A closure cannot leave its thread; a guard can.
    pub(crate) is_closure: bool,
}

/// The slots of one pool.
#[derive(Debug)]
pub(crate) struct OpenScopes {
    slots: Box<[Entry]>,
}

#[derive(Debug, Default)]
struct Entry {
    held: Mutex<HeldConnection>,
    /// Apart from `held`, so that a diagnosis never waits for a call.
    record: Mutex<Option<ScopeInfo>>,
    /// Number of the scope's calls: the reaper sees by it that a scope is alive.
    uses: AtomicU64,
    /// The generation of the scope that the reaper found too old while it was inside a call. By
    /// the time this is written the slot may have gone to another scope.
    expired: AtomicU64,
}

#[derive(Debug, Default)]
struct HeldConnection {
    generation: u64,
    checkout: Option<Checkout>,
}

#[derive(Clone, Debug)]
struct ScopeInfo {
    generation: u64,
    begun: Instant,
    /// The slot's `uses` when the scope was begun.
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
    pub(crate) fn new(slots: usize) -> Self {
        Self { slots: (0..slots).map(|_| Entry::default()).collect() }
    }

    /// Lays a lease into its slot and hands out the way to it.
    pub(crate) fn open(
        &self,
        pool: &Pool,
        checkout: Checkout,
        origin: ScopeOrigin,
    ) -> PinnedConnection {
        let (begun, place, index) = (Instant::now(), origin.place, checkout.slot());
        let mut generation = 0;
        if let Some(slot) = self.slots.get(index) {
            let mut held = lock(&slot.held);
            held.generation += 1;
            held.checkout = Some(checkout);
            generation = held.generation;
            let thread = this_thread();
            let thread_name = thread_name();
            let uses = slot.uses.load(Ordering::Relaxed);
            let record = ScopeInfo { generation, begun, uses, thread, thread_name, origin };
            *lock(&slot.record) = Some(record);
        }
        let limit = pool.settings().max_pin_time;
        PinnedConnection { pool: pool.weak(), index, generation, begun, place, limit }
    }

    /// The open scopes, oldest first.
    pub(crate) fn scopes(&self) -> Vec<OpenScope> {
        let mut scopes: Vec<_> = self.records().map(|record| record.open_scope()).collect();
        scopes.sort_by_key(|scope| std::cmp::Reverse(scope.age));
        scopes
    }

    fn records(&self) -> impl Iterator<Item = ScopeInfo> + '_ {
        self.slots.iter().filter_map(|slot| lock(&slot.record).clone())
    }

    /// Judges a wait before it begins, given the callers that wait already.
    pub(crate) fn check_wait(&self, waits: &IsWaiting<'_>) -> WaitCheck {
        let me = this_thread();
        let mut holders = Vec::new();
        let mut closures_only = true;
        for slot in &self.slots {
            let record = lock(&slot.record);
            let Some(record) = &*record else { return WaitCheck::Ok };
            if record.thread != me && !waits(record.thread) {
                return WaitCheck::Ok;
            }
            closures_only &= record.origin.is_closure;
            holders.push(record.open_scope());
        }
        if closures_only { WaitCheck::Deadlock(holders) } else { WaitCheck::MayDeadlock(holders) }
    }

    /// Takes back every scope that has not been used for `limit`, and warns of the ones that have
    /// been open for `warn_after`.
    pub(crate) fn reclaim_unused(
        &self,
        seen: &mut ReaperState,
        limit: Duration,
        warn_after: Option<Duration>,
        log_thread: &Arc<LogThread>,
    ) {
        let now = Instant::now();
        seen.0.resize(self.slots.len(), LastSeen::default());
        for (slot, sighting) in self.slots.iter().zip(&mut seen.0) {
            let Some(record) = lock(&slot.record).clone() else { continue };
            let uses = slot.uses.load(Ordering::Relaxed);
            if sighting.generation != record.generation {
                *sighting = LastSeen { generation: record.generation, ..LastSeen::default() };
            }
            if sighting.since.is_none() || sighting.uses != uses {
                // Seen for the first time, and not used since it was begun.
                let fresh = sighting.since.is_none() && uses == record.uses;
                let since = if fresh { record.begun } else { now };
                (sighting.uses, sighting.since) = (uses, Some(since));
            }
            let idle = sighting.since.map(|since| now.saturating_duration_since(since));
            if idle.is_some_and(|idle| idle >= limit) {
                slot.expire(&record, limit, Some(log_thread));
            } else if warn_after.is_some_and(|after| now - record.begun >= after)
                && !sighting.warned
            {
                sighting.warned = true;
                // Not here: a tracing subscriber may take long, and need a
                // connection.
                log_thread.log(Level::WARN, move || {
                    let OpenScope { name, begun_at: place, thread, age, .. } = record.open_scope();
                    let name = name.as_deref();
                    tracing::warn!(name, %place, %thread, ?age, "scope open for long");
                });
            }
        }
    }
}

impl OpenScopes {
    /// Takes back every scope there is, and says how many that were.
    pub(crate) fn reclaim_all(&self) -> usize {
        let open: Vec<_> = self
            .slots
            .iter()
            .filter_map(|slot| lock(&slot.record).clone().map(|record| (slot, record)))
            .collect();
        open.iter().for_each(|(slot, record)| slot.expire(record, Duration::ZERO, None));
        open.len()
    }
}

/// What a caller that is about to wait has to expect.
#[derive(Debug)]
pub(crate) enum WaitCheck {
    /// At least one holder does not wait itself.
    Ok,
    /// Every holder began on a thread that waits; but a guard may have moved to another.
    MayDeadlock(Vec<OpenScope>),
    /// Every holder is a closure on a thread that waits.
    Deadlock(Vec<OpenScope>),
}

/// What the reaper saw the last time it came by.
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
    fn expire(&self, record: &ScopeInfo, limit: Duration, log_thread: Option<&Arc<LogThread>>) {
        let mut held = match self.held.try_lock() {
            Ok(held) => held,
            // A call panicked in this slot once, in this scope or in one before.
            Err(TryLockError::Poisoned(held)) => held.into_inner(),
            Err(TryLockError::WouldBlock) => {
                return self.expired.store(record.generation, Ordering::Relaxed);
            }
        };
        let taken = if held.generation == record.generation { self.take(&mut held) } else { None };
        drop(held);
        if let Some(taken) = taken {
            taken.reclaim(limit, log_thread);
        }
    }

    fn take(&self, held: &mut HeldConnection) -> Option<Reclaimed> {
        let record = lock(&self.record).take();
        held.checkout.take().map(|checkout| Reclaimed { checkout, record })
    }
}

/// A connection and permit taken out of an entry. Returned after the entry's lock is released,
/// so that logging cannot block other scopes.
struct Reclaimed {
    checkout: Checkout,
    record: Option<ScopeInfo>,
}

impl Reclaimed {
    /// The link is replaced, the permit goes to the next one waiting.
    fn reclaim(mut self, limit: Duration, log_thread: Option<&Arc<LogThread>>) {
        self.checkout.taint(Taint::Reclaimed);
        if log_thread.is_some() {
            self.checkout.mark_reclaimed();
        }
        drop(self.checkout);
        let Some(record) = self.record else { return };
        let warn = move || {
            let OpenScope { name, begun_at: place, thread, age, .. } = record.open_scope();
            let name = name.as_deref();
            tracing::warn!(
                name, %place, %thread, ?age, ?limit,
                "scope taken back: not used for max_pin_time; its transaction was discarded"
            );
        };
        match log_thread {
            Some(log_thread) => log_thread.log(Level::WARN, warn),
            None => warn(),
        }
    }
}

/// A scope's way to its link. It holds nothing itself.
pub(crate) struct PinnedConnection {
    pool: WeakPool,
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
    /// The scope was taken back before the call. Once `call` has run its result stands.
    pub(crate) fn with<R>(&self, call: impl FnOnce(&mut Checkout) -> R) -> Result<R, PinExpired> {
        let pool = self.pool.get().ok_or_else(|| self.expired())?;
        let slot = pool.open_scopes().slots.get(self.index).ok_or_else(|| self.expired())?;
        let mut held = lock(&slot.held);
        let mine = held.generation == self.generation;
        let checkout = held.checkout.as_mut().filter(|_| mine).ok_or_else(|| self.expired())?;
        slot.uses.fetch_add(1, Ordering::Relaxed);
        let result = call(checkout);
        slot.uses.fetch_add(1, Ordering::Relaxed);
        let expired = slot.expired.load(Ordering::Relaxed) == self.generation;
        let taken = if expired { slot.take(&mut held) } else { None };
        drop(held);
        if let Some(taken) = taken {
            taken.reclaim(self.limit, None);
        }
        Ok(result)
    }

    /// Runs the scope's last call and gives link and permit back, in this order.
    pub(crate) fn end<R>(self, call: impl FnOnce(&mut Checkout) -> R) -> Result<R, PinExpired> {
        self.with(call)
    }

    /// The scope is alive, though it asks nothing of the server.
    pub(crate) fn touch(&self) {
        if let Some(pool) = self.pool.get()
            && let Some(slot) = pool.open_scopes().slots.get(self.index)
        {
            slot.uses.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn expired(&self) -> PinExpired {
        PinExpired::new(self.begun.elapsed(), self.limit, self.place)
    }
}

impl Drop for PinnedConnection {
    fn drop(&mut self) {
        let Some(pool) = self.pool.get() else { return };
        if pool.settings().is_forked_child() {
            return;
        }
        let Some(slot) = pool.open_scopes().slots.get(self.index) else { return };
        let mut held = lock(&slot.held);
        if held.generation != self.generation {
            return;
        }
        let taken = slot.take(&mut held);
        // The slot is free before its number is handed on with the permit.
        drop(held);
        drop(taken);
    }
}

impl fmt::Debug for PinnedConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedConnection")
            .field("slot", &self.index)
            .field("begun_at", &format_args!("{}", self.place))
            .finish_non_exhaustive()
    }
}

/// The thread's name, made once a thread.
pub(crate) fn thread_name() -> Arc<str> {
    thread_local! {
        static NAME: Arc<str> = {
            let thread = std::thread::current();
            match thread.name() {
                Some(name) => Arc::from(name),
                None => Arc::from(format!("{:?}", thread.id())),
            }
        };
    }
    NAME.try_with(Arc::clone).unwrap_or_else(|_| Arc::from("a thread that ends"))
}
