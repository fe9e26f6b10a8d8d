//! A right that one caller has at a time, and may keep over a wait.

use std::sync::{Condvar, Mutex, PoisonError};

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
    /// Waits until no other caller has the right.
    pub(crate) fn acquire(&self) -> BinaryPermit<'_> {
        let taken = lock(&self.taken);
        let waited = self.freed.wait_while(taken, |taken| *taken);
        *waited.unwrap_or_else(PoisonError::into_inner) = true;
        BinaryPermit { semaphore: self }
    }
}
