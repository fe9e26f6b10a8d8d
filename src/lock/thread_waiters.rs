//! The waiters for locks that are threads.

use std::future::ready;
use std::time::Instant;

use crate::lock::waiters::{Flags, Giving, Notifier, Registration, Waiters};
use crate::sync::cancel;
use crate::sync::shim::{Condvar, Mutex, PoisonError, lock};

pub(crate) type ThreadWaiters = Waiters<Condvar>;
pub(crate) type ThreadRegistration = Registration<Condvar>;
pub(crate) type NextThread = Giving<Condvar>;

impl Notifier for Condvar {
    fn notify(&self) {
        self.notify_one();
    }

    fn wait(&self, flags: &Mutex<Flags>, until: Instant) -> impl Future<Output = bool> + Send {
        ready(wait(self, flags, until))
    }
}

fn wait(changed: &Condvar, flags: &Mutex<Flags>, until: Instant) -> bool {
    let mut flags = lock(flags);
    loop {
        if flags.take_reason() {
            return true;
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || cancel::is_cancelled() {
            return false;
        }
        let waited = changed.wait_timeout(flags, cancel::tick(left));
        flags = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
}
