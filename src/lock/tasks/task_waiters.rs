//! The waiters for locks that are tasks.

use std::future::poll_fn;
use std::sync::Mutex as PlainMutex;
use std::task::{Poll, Waker};
use std::time::Instant;

use crate::lock::waiters::{Flags, Giving, Notifier, Registration, Waiters};
use crate::sync::caught::wake;
use crate::sync::shim::{Mutex, lock};
use crate::sync::timer::DeadlineTimer;

pub(crate) type TaskWaiters = Waiters<TaskNotifier>;
pub(crate) type TaskRegistration = Registration<TaskNotifier>;
pub(crate) type NextTask = Giving<TaskNotifier>;

/// Wakes a task that waits for a lock.
#[derive(Debug, Default)]
pub(crate) struct TaskNotifier {
    waker: PlainMutex<Option<Waker>>,
}

impl TaskNotifier {
    fn replace(&self, waker: Option<Waker>) -> Option<Waker> {
        std::mem::replace(&mut *crate::sync::lock(&self.waker), waker)
    }
}

impl Notifier for TaskNotifier {
    fn notify(&self) {
        self.replace(None).into_iter().for_each(wake);
    }

    async fn wait(&self, flags: &Mutex<Flags>, until: Instant) -> bool {
        let mut timer = DeadlineTimer::default();
        poll_fn(|context| {
            // Before the look: a reason that comes after it finds the waker.
            drop(self.replace(Some(context.waker().clone())));
            if lock(flags).take_reason() {
                return Poll::Ready(true);
            }
            timer.poll(context, until).map(|()| false)
        })
        .await
    }
}
