//! How tasks wait for each other in merged blocks.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::connection::tasks::io::{QueryCaller, spawn_query};
use crate::pool::tasks::pool::TaskPool;
use crate::settings::settings::Settings;
use crate::sync::timer::{DeadlineTimer, has_timers, until};
use crate::transaction::merge::{Caller, Step, StepWaiter, TERM};
use crate::transaction::merged_run::MergeSide;

/// Waits in a task. Dropped before its end, each future has taken no step.
#[derive(Default)]
pub(crate) struct TaskWaiter {
    timer: DeadlineTimer,
}

impl StepWaiter for TaskWaiter {
    async fn wait(&mut self, caller: &Caller, until: Instant, is_taken: bool) -> Option<Step> {
        poll_fn(|context| match caller.poll(context) {
            Poll::Ready(step) => Poll::Ready(Some(step)),
            // The leader ends its block in any case.
            Poll::Pending if !has_timers() && is_taken && Instant::now() < until => Poll::Pending,
            Poll::Pending if !has_timers() => Poll::Ready(None),
            Poll::Pending => self.timer.poll(context, until).map(|()| None),
        })
        .await
    }

    /// Outside of a runtime a block waits for no other one: alone it fails.
    fn is_cancelled(&self) -> bool {
        !has_timers()
    }

    /// Each poll keeps the lead, and there is one in each half of the term.
    async fn leading<T: Send>(
        &mut self,
        keep: &(impl Fn(Duration) + Sync),
        wait: impl Future<Output = T> + Send,
    ) -> T {
        let mut wait = pin!(wait);
        poll_fn(|context| {
            loop {
                if let Poll::Ready(output) = wait.as_mut().poll(context) {
                    return Poll::Ready(output);
                }
                keep(TERM);
                if !has_timers() {
                    return Poll::Pending;
                }
                if self.timer.poll(context, Instant::now() + TERM / 2).is_pending() {
                    return Poll::Pending;
                }
            }
        })
        .await
    }
}

impl MergeSide for TaskPool {
    type Waiter = TaskWaiter;

    /// A task of its own. Aborted before its end, it drops `future`.
    async fn to_its_end<T: Send + 'static>(
        settings: &Settings,
        deadline: Instant,
        future: impl Future<Output = (T, impl FnOnce() + Send + 'static)> + Send + 'static,
    ) -> Option<T> {
        let Ok(runtime) = Handle::try_current() else {
            let (output, then) = future.await;
            then();
            return Some(output);
        };
        let (sender, output) = oneshot::channel();
        let mut output = QueryCaller::new(settings, output);
        let task = async move {
            let (output, then) = future.await;
            let _: Result<(), T> = sender.send(output);
            then();
        };
        spawn_query(settings, &runtime, task);
        until(deadline, output.receiver()?).await?.ok()
    }
}
