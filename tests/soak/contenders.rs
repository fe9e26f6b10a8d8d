//! The callers of one lock, each of which is a thread.

use std::thread;
use std::time::Instant;

use rediscope::status::Status;
use rediscope::{Builder, SessionManager};

use super::lock_soak::listen;
use super::lock_soak::regression::{Caller, LEASE, Tally, WAIT};

pub(crate) struct Contenders {
    sessions: SessionManager,
}

impl Contenders {
    /// Whether some of the calls are dropped before they have ended.
    pub(crate) const DROP: bool = false;

    pub(crate) fn new(builder: Builder) -> Self {
        Self { sessions: builder.build().unwrap() }
    }

    pub(crate) fn status(&self) -> Status {
        self.sessions.status()
    }

    /// Returns when all tries of all callers are over.
    pub(crate) fn contend(&self, tally: &Tally, callers: Vec<Caller>) {
        thread::scope(|scope| {
            for mut caller in callers {
                let lock = self.sessions.lock("l").lease(LEASE);
                scope.spawn(move || {
                    for _ in 0..caller.tries {
                        let holds = caller.holds();
                        listen::waited_subscribed();
                        let begun = Instant::now();
                        let tried = lock.acquire(WAIT);
                        let held = tally.add(begun, Some(tried), listen::waited_subscribed());
                        if held.is_some() {
                            thread::sleep(holds);
                        }
                        // Lost or not: with restarts either may be.
                        drop(held);
                    }
                });
            }
        });
    }

    /// Drops the last handle, and returns the number of tasks that it leaves.
    pub(crate) fn end(self) -> usize {
        0
    }
}
