//! A gate before every operation, so that the injector can wait until none is running.

use crate::SOON;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Instant;

/// The way every operation goes through.
#[derive(Debug, Default)]
pub(crate) struct Barrier {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    inside: usize,
    closed: bool,
    over: bool,
    lawless: bool,
}

/// One operation on its way.
#[derive(Debug)]
pub(crate) struct Pass<'s> {
    barrier: &'s Barrier,
    /// Rights may be taken away from the user while this operation is done.
    pub(crate) lawless: bool,
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.barrier.state().inside -= 1;
        self.barrier.changed.notify_all();
    }
}

impl Barrier {
    /// `None` when it is all over.
    pub(crate) fn enter(&self) -> Option<Pass<'_>> {
        let mut state = self.state();
        while state.closed && !state.over {
            state = self.changed.wait(state).unwrap();
        }
        if state.over {
            return None;
        }
        state.inside += 1;
        Some(Pass { barrier: self, lawless: state.lawless })
    }

    /// Runs `meanwhile` while no thread is inside.
    pub(crate) fn emptied<R>(&self, meanwhile: impl FnOnce() -> R) -> R {
        self.state().closed = true;
        self.wait_until_empty();
        let result = meanwhile();
        self.state().closed = false;
        self.changed.notify_all();
        result
    }

    /// Whether rights may be missing, for the operations to come.
    pub(crate) fn set_lawless(&self, lawless: bool) {
        self.state().lawless = lawless;
    }

    /// No thread enters any more, and the last one has left.
    pub(crate) fn end(&self) {
        self.state().over = true;
        self.changed.notify_all();
        self.wait_until_empty();
    }

    fn wait_until_empty(&self) {
        let deadline = Instant::now() + SOON;
        let mut state = self.state();
        while state.inside > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            let stuck = state.inside;
            assert!(!left.is_zero(), "{stuck} calls did not end within {SOON:?}");
            state = self.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}
