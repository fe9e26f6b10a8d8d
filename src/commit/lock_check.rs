//! The lock that a transaction is fenced by.
//!
//! Never: a lock's state kept here. The server has it, and the guard's clock.

use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;

use crate::protocol::lock::ownership::HeldLock;

/// What knows the lock on this side.
pub(crate) trait Witness: fmt::Debug + Send + Sync + UnwindSafe + RefUnwindSafe {
    /// Whether it is known to be lost, without a question.
    fn is_lost(&self) -> bool;
    /// The server answered that it is lost.
    fn lose(&self);
    /// A transaction begins to watch the lock: what touches it had better wait.
    fn begin(&self);
    /// And ends.
    fn end(&self);
}

/// The lock that a transaction is fenced by.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) lock: HeldLock,
    witness: Arc<dyn Witness>,
    /// While any clone of it is there the lock is left alone.
    #[expect(dead_code, reason = "it is there to be dropped")]
    watching: Option<Arc<Watching>>,
}

#[derive(Debug)]
struct Watching {
    witness: Arc<dyn Witness>,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.witness.end();
    }
}

impl Held {
    pub(crate) fn new(lock: HeldLock, witness: Arc<dyn Witness>) -> Self {
        Self { lock, witness, watching: None }
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.witness.is_lost()
    }

    /// The server answered that it is lost: its guard is, from now on.
    pub(crate) fn lose(&self) {
        self.witness.lose();
    }

    /// The lock of one transaction, which watches it.
    pub(crate) fn watching(&self) -> Self {
        self.witness.begin();
        let watching = Watching { witness: Arc::clone(&self.witness) };
        Self { watching: Some(Arc::new(watching)), ..self.clone() }
    }
}
