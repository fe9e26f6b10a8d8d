//! The lock that fences a transaction.
//!
//! Its state is not kept here: the server has it, and the guard's clock.

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;

use crate::protocol::lock::ownership::LockOwnership;

/// The guard's side of the lock.
pub(crate) trait LockProbe: fmt::Debug + Send + Sync + UnwindSafe + RefUnwindSafe {
    /// Returns whether the lock is known to be lost. This sends nothing.
    fn is_lost(&self) -> bool;
    /// Records that the server reported the lock as lost.
    fn mark_lost(&self);
    /// Called when a transaction begins to watch the lock: changes of the lock should wait.
    fn pause_renewal(&self);
    /// Called when that transaction ends.
    fn resume_renewal(&self);
}

/// The lock that fences a transaction.
#[derive(Clone, Debug)]
pub(crate) struct LockCheck {
    pub(crate) lock: LockOwnership,
    pub(crate) probe: Arc<dyn LockProbe>,
    /// Renewal pauses while any clone of it exists.
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

    /// Returns the lock for one transaction, which watches it.
    pub(crate) fn with_renewal_paused(&self) -> Self {
        self.probe.pause_renewal();
        let pause = RenewalPause { probe: Arc::clone(&self.probe) };
        Self { renewal_pause: Some(Arc::new(pause)), ..self.clone() }
    }
}
