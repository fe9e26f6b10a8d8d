//! Counts the calls of this process that wait: for replies, for a connection, or for their turn.
//!
//! Two calls that poll take each other's processor, and the server's; so a second call ends the polling. A
//! thread in BLPOP is such a call, and keeps all others from polling.
//!
//! Only a process with connections that [poll](crate::Builder::poll) pays for the count.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Number of connections that poll.
static POLLING: AtomicUsize = AtomicUsize::new(0);
static CALLS: AtomicUsize = AtomicUsize::new(0);

/// A call that waits, until it is dropped.
pub(crate) struct CallUnderWay {
    is_counted: bool,
}

impl CallUnderWay {
    #[inline]
    pub(crate) fn begin() -> Self {
        let is_counted = POLLING.load(Ordering::Relaxed) > 0;
        if is_counted {
            CALLS.fetch_add(1, Ordering::Relaxed);
        }
        Self { is_counted }
    }
}

impl Drop for CallUnderWay {
    #[inline]
    fn drop(&mut self) {
        if self.is_counted {
            CALLS.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Has the calls counted until it is dropped.
#[derive(Debug)]
pub(crate) struct CountCalls(());

impl CountCalls {
    pub(crate) fn begin() -> Self {
        POLLING.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for CountCalls {
    fn drop(&mut self) {
        POLLING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether the caller's own call is the only one under way.
pub(crate) fn is_alone() -> bool {
    CALLS.load(Ordering::Relaxed) <= 1
}
