//! Deadlines by the clock of the system. The clock of tokio may be paused or ahead.

use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::runtime::{self, Handle};
use tokio::time::Sleep;

/// One timer for deadlines that change often. It is set anew only if it would fire too late; if it
/// fires too early, it is set again. Outside of a runtime there is no timer, so the task is polled again.
#[derive(Default)]
pub(crate) struct DeadlineTimer {
    sleep: Option<Pin<Box<Sleep>>>,
    /// When it fires.
    fires: Option<Instant>,
    /// The runtime that has it fire.
    runtime: Option<runtime::Id>,
}

impl DeadlineTimer {
    /// Returns whether the deadline has come. If it has not, the task is woken then at the latest.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let runtime = Handle::try_current().ok().map(|runtime| runtime.id());
        if runtime.is_some() && self.runtime != runtime {
            // The former runtime may not be run any more.
            *self = Self { runtime, ..Self::default() };
        }
        if runtime.is_none() && self.sleep.is_none() {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        loop {
            if let (Some(sleep), Some(_)) =
                (&mut self.sleep, self.fires.filter(|at| *at <= deadline))
            {
                ready!(sleep.as_mut().poll(context));
                self.fires = None;
            }
            if !self.set(deadline) {
                return Poll::Ready(());
            }
        }
    }

    /// The same for a task that has polled it before, with the same waker.
    pub(crate) fn poll_same_task(
        &mut self,
        context: &mut Context<'_>,
        deadline: Instant,
    ) -> Poll<()> {
        let is_set = self.fires.is_some_and(|at| at <= deadline);
        match &self.sleep {
            Some(sleep) if is_set && !sleep.is_elapsed() => Poll::Pending,
            _ => self.poll(context, deadline),
        }
    }

    /// Sets it, unless the deadline has come.
    fn set(&mut self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            self.fires = None;
            return false;
        }
        let at = tokio::time::Instant::now() + left;
        match &mut self.sleep {
            Some(sleep) => sleep.as_mut().reset(at),
            none => *none = Some(Box::pin(tokio::time::sleep_until(at))),
        }
        self.fires = Some(deadline);
        true
    }
}

/// Whether the caller is polled by a runtime, which a new timer needs.
pub(crate) fn has_timers() -> bool {
    Handle::try_current().is_ok()
}

/// Waits for `future` until the deadline; `None`: the deadline came first.
pub(crate) async fn until<T>(deadline: Instant, future: impl Future<Output = T>) -> Option<T> {
    let (mut future, mut timer) = (pin!(future), DeadlineTimer::default());
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => timer.poll(context, deadline).map(|()| None),
    })
    .await
}
