//! The right to a permit and its connection, which the pool can take back from the caller.
//!
//! A future that is forgotten, or no longer polled, keeps its line forever. So permit and connection
//! are counted by the right: it ends once, by the line's return or by the pool.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crate::connection::tasks::wire::ConnectionTask;
use crate::sync::lock;

/// The right to a permit and its connection.
pub(crate) struct Right {
    /// The number of the permit.
    number: usize,
    /// Number of uses of the connection. From it the reaper knows that the line is in use.
    uses: AtomicU64,
    /// The uses by callers that had it before.
    unused_at: AtomicU64,
    /// Whether a scope has the line, which then decides when it is reclaimed.
    scoped: AtomicBool,
    state: Mutex<RightState>,
}

struct RightState {
    /// Whether the line still has the permit.
    held: bool,
    /// The task of the line's connection, which counts in the pool.
    task: Option<ConnectionTask>,
    /// When the connection's task began to clean the connection.
    cleaned_since: Option<Instant>,
}

/// What a right had when it ended.
pub(in crate::pool) struct Ended {
    /// The task of a connection, which counts in the pool.
    pub(in crate::pool) task: Option<ConnectionTask>,
}

impl Right {
    pub(in crate::pool) fn new(number: usize) -> Self {
        Self {
            number,
            uses: AtomicU64::new(0),
            unused_at: AtomicU64::new(0),
            scoped: AtomicBool::new(false),
            state: Mutex::new(RightState { held: true, task: None, cleaned_since: None }),
        }
    }

    pub(in crate::pool) fn number(&self) -> usize {
        self.number
    }

    pub(in crate::pool) fn uses(&self) -> u64 {
        self.uses.load(Ordering::Relaxed)
    }

    pub(in crate::pool) fn on_use(&self) {
        self.uses.fetch_add(1, Ordering::Relaxed);
    }

    /// Records that another caller has the right, and has not used it.
    pub(in crate::pool) fn on_passed(&self) {
        let uses = self.uses.fetch_add(1, Ordering::Relaxed) + 1;
        self.unused_at.store(uses, Ordering::Relaxed);
    }

    /// Returns whether its caller has used it.
    pub(in crate::pool) fn is_used(&self) -> bool {
        self.uses() > self.unused_at.load(Ordering::Relaxed)
    }

    pub(in crate::pool) fn set_scoped(&self) {
        self.scoped.store(true, Ordering::Relaxed);
    }

    pub(in crate::pool) fn is_scoped(&self) -> bool {
        self.scoped.load(Ordering::Relaxed)
    }

    pub(in crate::pool) fn is_held(&self) -> bool {
        lock(&self.state).held
    }

    /// Records the line's connection. Returns false if the right has ended.
    pub(in crate::pool) fn attach(&self, task: ConnectionTask) -> bool {
        let mut state = lock(&self.state);
        if state.held {
            state.task = Some(task);
        }
        state.held
    }

    /// Records that the line has no connection any more. Returns whether one counted.
    pub(in crate::pool) fn detach(&self) -> bool {
        lock(&self.state).task.take().is_some()
    }

    /// Records that the connection's task begins to clean the connection.
    pub(in crate::pool) fn begin_cleaning(&self) {
        lock(&self.state).cleaned_since = Some(Instant::now());
    }

    pub(in crate::pool) fn cleaned_since(&self) -> Option<Instant> {
        lock(&self.state).cleaned_since
    }

    /// Ends the right. `None`: it has ended before.
    pub(in crate::pool) fn end(&self) -> Option<Ended> {
        let mut state = lock(&self.state);
        let task = state.task.take();
        std::mem::replace(&mut state.held, false).then_some(Ended { task })
    }

    /// Closes the connection. A call that uses it fails.
    pub(in crate::pool) fn shut_down(&self) {
        let task = lock(&self.state).task.clone();
        if let Some(task) = task {
            task.shut_down();
        }
    }

    /// Returns whether the connection awaits a reply, by a deadline.
    pub(in crate::pool) fn awaits_reply(&self) -> bool {
        let task = lock(&self.state).task.clone();
        task.is_some_and(|task| task.awaits_reply())
    }
}
