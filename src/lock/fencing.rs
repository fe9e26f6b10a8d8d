//! A guard that fences a transaction, on either side.
//!
//! The trait is public in a private module, so that other crates cannot implement it.

use crate::commit::lock_check::LockCheck;

/// A guard that can fence a transaction: [`LockGuard`](crate::lock::LockGuard), or that of tasks.
pub trait FencingGuard {
    /// The data that a fenced transaction checks.
    #[doc(hidden)]
    fn fencing_lock(&self) -> FencingLock;
}

/// The data that a fenced transaction checks.
#[derive(Debug)]
#[doc(hidden)]
pub struct FencingLock(pub(crate) LockCheck);
