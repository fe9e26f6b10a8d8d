//! A right that one caller has at a time, and may keep over a wait.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

use crate::sync::cancel;
use crate::sync::lock;

/// A right that one caller has at a time. Unlike a mutex, it does not belong to a thread.
#[derive(Debug, Default)]
pub(crate) struct BinarySemaphore {
    taken: Mutex<bool>,
    freed: Condvar,
}

/// The right. Its drop passes it on.
pub(crate) struct BinaryPermit<'s> {
    semaphore: &'s BinarySemaphore,
}

impl Drop for BinaryPermit<'_> {
    fn drop(&mut self) {
        *lock(&self.semaphore.taken) = false;
        self.semaphore.freed.notify_one();
    }
}

impl BinarySemaphore {
    /// Waits until no other caller has the right, until `by` at most, or until the thread is cancelled.
    pub(crate) fn acquire(&self, by: Instant) -> Option<BinaryPermit<'_>> {
        let mut taken = lock(&self.taken);
        while *taken {
            let left = by.saturating_duration_since(Instant::now());
            if left.is_zero() || cancel::is_cancelled() {
                return None;
            }
            let waited = self.freed.wait_timeout(taken, cancel::tick(left));
            taken = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        *taken = true;
        Some(BinaryPermit { semaphore: self })
    }
}
