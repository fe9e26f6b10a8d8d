//! The lock that a transaction is fenced by.
//!
//! Never: a lock's state kept here. The server has it, and the guard's clock.

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;

use crate::protocol::lock::ownership::LockOwnership;

/// What knows the lock on this side.
pub(crate) trait LockProbe: fmt::Debug + Send + Sync + UnwindSafe + RefUnwindSafe {
    /// Whether it is known to be lost, without a question.
    fn is_lost(&self) -> bool;
    /// The server answered that it is lost.
    fn mark_lost(&self);
    /// A transaction begins to watch the lock: what touches it had better wait.
    fn pause_renewal(&self);
    /// And ends.
    fn resume_renewal(&self);
}

/// The lock that a transaction is fenced by.
#[derive(Clone, Debug)]
pub(crate) struct LockCheck {
    pub(crate) lock: LockOwnership,
    probe: Arc<dyn LockProbe>,
    /// While any clone of it is there the lock is left alone.
    #[expect(dead_code, reason = "it is there to be dropped")]
    renewal_pause: Option<Arc<RenewalPause>>,
}

#[derive(Debug)]
struct RenewalPause {
    probe: Arc<dyn LockProbe>,
}

impl Drop for RenewalPause {
    fn drop(&mut self) {
        self.probe.resume_renewal();
    }
}

impl LockCheck {
    pub(crate) fn new(lock: LockOwnership, probe: Arc<dyn LockProbe>) -> Self {
        Self { lock, probe, renewal_pause: None }
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.probe.is_lost()
    }

    /// The server answered that it is lost: its guard is, from now on.
    pub(crate) fn mark_lost(&self) {
        self.probe.mark_lost();
    }

    /// The lock of one transaction, which watches it.
    pub(crate) fn with_renewal_paused(&self) -> Self {
        self.probe.pause_renewal();
        let pause = RenewalPause { probe: Arc::clone(&self.probe) };
        Self { renewal_pause: Some(Arc::new(pause)), ..self.clone() }
    }
}
