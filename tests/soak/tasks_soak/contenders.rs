//! The callers of one lock, each of which is a task. A third of their calls and more is dropped at a random poll, or
//! after a random time.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rediscope::Builder;
use rediscope::aio::{Lock, SessionManager};
use rediscope::status::Status;
use rediscope_testing::try_for;
use tokio::runtime::Runtime;

use super::dropped::DropAfter;
use super::lock_soak::listen;
use super::lock_soak::regression::{Caller, LEASE, Tally, WAIT};
use super::runtime;
use crate::SOON;

/// Number of polls after which a call is dropped at the latest. Most calls have no more.
const MOST_POLLS: u32 = 5;

pub(crate) struct Contenders {
    runtime: Runtime,
    sessions: SessionManager,
}

impl Contenders {
    /// Whether some of the calls are dropped before they have ended.
    pub(crate) const DROP: bool = true;

    pub(crate) fn new(builder: Builder) -> Self {
        let runtime = runtime();
        let sessions = {
            let _runtime = runtime.enter();
            builder.build_async().unwrap()
        };
        Self { runtime, sessions }
    }

    pub(crate) fn status(&self) -> Status {
        self.sessions.status()
    }

    /// Returns when all tries of all callers are over.
    pub(crate) fn contend(&self, tally: &Arc<Tally>, callers: Vec<Caller>) {
        let spawn = |caller| {
            let lock = self.sessions.lock("l").lease(LEASE);
            self.runtime.spawn(contend(lock, caller, Arc::clone(tally)))
        };
        let callers: Vec<_> = callers.into_iter().map(spawn).collect();
        callers.into_iter().for_each(|caller| self.runtime.block_on(caller).expect("a caller"));
    }

    /// Drops the last handle, and returns the number of tasks that it leaves.
    pub(crate) fn end(self) -> usize {
        let Self { runtime, sessions } = self;
        drop(sessions);
        let left = || runtime.metrics().num_alive_tasks();
        let _ = try_for(SOON, || (left() == 0).then_some(()));
        left()
    }
}

async fn contend(lock: Lock, mut caller: Caller, tally: Arc<Tally>) {
    for _ in 0..caller.tries {
        let holds = caller.holds();
        let (polls, time) = match caller.random.u8(..8) {
            0..4 => (caller.random.u32(..MOST_POLLS), Duration::MAX),
            4 => (u32::MAX, WAIT.mul_f64(caller.random.f64())),
            _ => (u32::MAX, Duration::MAX),
        };
        let begun = Instant::now();
        let call = Listening { live: None, call: pin!(lock.acquire(WAIT)) };
        let tried = tokio::time::timeout(time, DropAfter::new(polls, call)).await;
        let (tried, live) = tried.ok().flatten().unzip();
        let held = tally.add(begun, tried, live.flatten());
        if held.is_some() {
            tokio::time::sleep(holds).await;
        }
        // Lost or not: with restarts either may be.
        drop(held);
    }
}

/// A call, and whether its last wait was with a subscription: its events belong to the thread that polls it.
struct Listening<'a, F> {
    live: Option<bool>,
    call: Pin<&'a mut F>,
}

impl<F: Future> Future for Listening<'_, F> {
    type Output = (F::Output, Option<bool>);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        listen::waited_subscribed();
        let polled = self.call.as_mut().poll(context);
        self.live = listen::waited_subscribed().or(self.live);
        polled.map(|output| (output, self.live))
    }
}
