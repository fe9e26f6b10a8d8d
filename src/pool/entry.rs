//! The entry of one permit: the open scope that has it, and the scope's connection.
//!
//! A call takes the connection out and puts it back, so no thread waits long for the entry's lock. A
//! scope that is to be reclaimed during a call is marked, and is reclaimed when the call ends. If the
//! call is a future that is no longer polled, the scope is removed without it.
//! What leaves the entry for good is returned to the caller, which drops it without the lock: the
//! entry is free before its number is passed on.

#[cfg(all(test, rediscope_shuttle))]
#[path = "../../tests/model/entry.rs"]
mod model;

use std::sync::atomic::{AtomicU64, Ordering};

use crate::sync::shim::{Mutex, lock};

/// The part of a scope that its calls take out of the entry.
pub(crate) trait Kept {
    /// What ends a call from outside.
    type Ender: Clone;

    /// Sets what ends the next call; `None`: nothing can.
    fn set_ender(&self, ender: &mut Option<Self::Ender>);

    /// Number of uses inside the calls, if they are counted.
    fn uses(_: &Self::Ender) -> u64 {
        0
    }
}

/// The entry of one permit.
pub(crate) struct Entry<K: Kept, I> {
    state: Mutex<State<K, I>>,
    /// Number of begins and ends of calls, and of touches. From it the reaper knows that a scope is in
    /// use. Not under the mutex, which may stay locked forever in a forked child.
    uses: AtomicU64,
}

struct State<K: Kept, I> {
    /// Number of the scopes that had the entry; a scope is known by it.
    generation: u64,
    scope: Option<Scope<K, I>>,
}

struct Scope<K: Kept, I> {
    info: I,
    /// `None`: a call has it.
    kept: Option<K>,
    /// Becomes the scope's fate when the call ends.
    mark: Mark,
    /// What ends the latest call.
    ender: Option<K::Ender>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Open,
    /// The scope ends with the call.
    Last,
    /// The scope is reclaimed when the call ends.
    Expired,
}

/// The result of a take.
#[derive(Debug)]
pub(crate) enum Taken<K> {
    Kept(K),
    /// Another call of the scope is under way.
    Busy,
    /// The scope was reclaimed, or has ended.
    Gone,
}

/// The result of an expiry.
pub(crate) enum Expired<K: Kept, I> {
    Reclaimed(K, I),
    /// A call is under way. The scope is reclaimed, or ends, when it ends.
    Marked(Option<K::Ender>),
    /// The scope had ended.
    Gone,
}

/// The result of a call's end.
pub(crate) enum Left<K, I> {
    /// The scope is still open.
    Not,
    /// The scope ended during the call.
    Ended(K, Option<I>),
    /// The scope is to be reclaimed.
    Expired(K, I),
}

impl<K: Kept, I> Default for Entry<K, I> {
    fn default() -> Self {
        Self { state: Mutex::new(State { generation: 0, scope: None }), uses: AtomicU64::new(0) }
    }
}

impl<K: Kept, I> State<K, I> {
    fn scope(&mut self, generation: u64) -> Option<&mut Scope<K, I>> {
        self.scope.as_mut().filter(|_| self.generation == generation)
    }

    /// Removes the scope, unless a call has its connection.
    fn remove(&mut self) -> Option<(K, I)> {
        let kept = self.scope.as_mut()?.kept.take()?;
        self.scope.take().map(|scope| (kept, scope.info))
    }

    /// `mark`: what becomes of an open scope when the call ends.
    #[inline(always)]
    fn take(&mut self, generation: u64, mark: Mark) -> Taken<K> {
        let Some(scope) = self.scope(generation) else { return Taken::Gone };
        let Some(kept) = scope.kept.take() else { return Taken::Busy };
        kept.set_ender(&mut scope.ender);
        scope.mark = mark;
        Taken::Kept(kept)
    }
}

impl<K: Kept, I> Entry<K, I> {
    /// Opens the scope of a caller that has the permit, and returns the scope's generation. `info`
    /// receives the generation and the number of uses so far.
    #[inline]
    pub(crate) fn open(&self, kept: K, info: impl FnOnce(u64, u64) -> I) -> u64 {
        let mut state = lock(&self.state);
        state.generation += 1;
        let mut ender = None;
        kept.set_ender(&mut ender);
        let info = info(state.generation, self.uses(ender.as_ref()));
        state.scope = Some(Scope { info, kept: Some(kept), mark: Mark::Open, ender });
        state.generation
    }

    /// Reads the open scope, also while a call is under way.
    pub(crate) fn read<R>(&self, read: impl FnOnce(&I, u64) -> R) -> Option<R> {
        let state = lock(&self.state);
        state.scope.as_ref().map(|scope| read(&scope.info, self.uses(scope.ender.as_ref())))
    }

    /// Takes the connection out for a call.
    #[inline(always)]
    pub(crate) fn take(&self, generation: u64) -> Taken<K> {
        self.touch();
        lock(&self.state).take(generation, Mark::Open)
    }

    /// Takes the connection out for the scope's last call: the scope ends with it.
    #[inline(always)]
    pub(crate) fn take_last(&self, generation: u64) -> Taken<K> {
        self.touch();
        lock(&self.state).take(generation, Mark::Last)
    }

    /// Ends a call. The scope leaves the entry if it was marked during the call.
    #[must_use = "dropped without the entry's lock"]
    #[inline(always)]
    pub(crate) fn put_back(&self, generation: u64, kept: K) -> Left<K, I> {
        self.touch();
        let mut state = lock(&self.state);
        match state.scope(generation) {
            Some(scope) if scope.mark == Mark::Open => {
                scope.kept = Some(kept);
                Left::Not
            }
            Some(scope) => {
                let expired = scope.mark == Mark::Expired;
                match state.scope.take().map(|scope| scope.info) {
                    Some(info) if expired => Left::Expired(kept, info),
                    info => Left::Ended(kept, info),
                }
            }
            // The scope was removed during the call, or has ended.
            None => Left::Ended(kept, None),
        }
    }

    /// Ends the scope, or has it end with the call that is under way.
    #[must_use = "dropped without the entry's lock"]
    #[inline]
    pub(crate) fn end(&self, generation: u64) -> Option<(K, I)> {
        let mut state = lock(&self.state);
        let scope = state.scope(generation)?;
        if scope.mark == Mark::Open {
            scope.mark = Mark::Last;
        }
        state.remove()
    }

    /// Removes the scope, or has it reclaimed when the call that is under way ends. The scope's last call
    /// ends it anyway, and its outcome is known then.
    #[must_use = "dropped without the entry's lock"]
    pub(crate) fn expire(&self, generation: u64) -> Expired<K, I> {
        let mut state = lock(&self.state);
        let Some(scope) = state.scope(generation) else { return Expired::Gone };
        if scope.mark == Mark::Open {
            scope.mark = Mark::Expired;
        }
        let ender = scope.ender.clone();
        match state.remove() {
            Some((kept, info)) => Expired::Reclaimed(kept, info),
            None => Expired::Marked(ender),
        }
    }

    /// Removes the scope also during a call. Its connection and its permit stay with the call, so
    /// the entry is free before the permit is taken from there.
    #[must_use = "dropped without the entry's lock"]
    pub(crate) fn revoke(&self, generation: u64) -> Option<(Option<K>, I)> {
        let mut state = lock(&self.state);
        state.scope(generation)?;
        state.scope.take().map(|scope| (scope.kept, scope.info))
    }

    /// Counts as a use of the scope.
    pub(crate) fn touch(&self) {
        self.uses.fetch_add(1, Ordering::Relaxed);
    }

    fn uses(&self, ender: Option<&K::Ender>) -> u64 {
        self.uses.load(Ordering::Relaxed) + ender.map_or(0, K::uses)
    }
}
