//! A few threads for code that may block, off the caller's thread.
//!
//! A thread ends when nothing is left to run. A job that lasts forever occupies its thread, and the
//! others go on.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Instant;

#[cfg(feature = "tokio")]
use tokio::sync::oneshot;

use crate::sync::lock;

/// Maximum number of threads.
pub(crate) const MOST_THREADS: usize = 3;

/// A few threads, which run one job each. Clones share them.
#[derive(Clone)]
pub(crate) struct Offload {
    shared: Arc<SharedThreads>,
}

struct SharedThreads {
    name: &'static str,
    state: Mutex<ThreadsState>,
}

#[derive(Default)]
struct ThreadsState {
    queue: VecDeque<Box<dyn Job>>,
    threads: usize,
}

/// What a thread runs.
trait Job: Send {
    /// Whether its result is still wanted.
    fn is_awaited(&self) -> bool;

    fn run(self: Box<Self>);
}

impl<F: FnOnce() + Send> Job for F {
    fn is_awaited(&self) -> bool {
        true
    }

    fn run(self: Box<Self>) {
        self();
    }
}

/// A job whose result is awaited until the deadline.
struct DatedJob<F> {
    job: F,
    deadline: Instant,
}

impl<F: FnOnce() + Send> Job for DatedJob<F> {
    fn is_awaited(&self) -> bool {
        Instant::now() < self.deadline
    }

    fn run(self: Box<Self>) {
        (self.job)();
    }
}

/// A job whose result a task awaits.
#[cfg(feature = "tokio")]
struct AwaitedJob<F, T> {
    job: F,
    sender: oneshot::Sender<T>,
}

#[cfg(feature = "tokio")]
impl<T: Send, F: FnOnce() -> T + Send> Job for AwaitedJob<F, T> {
    fn is_awaited(&self) -> bool {
        !self.sender.is_closed()
    }

    fn run(self: Box<Self>) {
        let _: Result<(), T> = self.sender.send((self.job)());
    }
}

impl Offload {
    /// Threads of this name. The system shows 15 characters of it.
    pub(crate) fn new(name: &'static str) -> Self {
        Self { shared: Arc::new(SharedThreads { name, state: Mutex::default() }) }
    }

    /// Runs `job` and returns its result. It does not begin after `deadline`, and a later result is dropped.
    ///
    /// # Errors
    /// No thread could be started, or the time is over, with the text `late`.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        deadline: Instant,
        late: &'static str,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let (sender, result) = sync_channel(1);
        let job = move || {
            let _: Result<(), _> = sender.try_send(job());
        };
        self.shared.enqueue(Box::new(DatedJob { job, deadline }))?;
        receive(&result, deadline, late)
    }

    /// Begins to run `job`. It does not begin if the result is dropped before.
    #[cfg(feature = "tokio")]
    pub(crate) fn start<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<oneshot::Receiver<T>> {
        let (sender, result) = oneshot::channel();
        self.shared.enqueue(Box::new(AwaitedJob { job, sender }))?;
        Ok(result)
    }

    /// Has `job` run when a thread is free.
    pub(crate) fn enqueue(&self, job: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.shared.enqueue(Box::new(job))
    }

    #[cfg(test)]
    pub(crate) fn threads(&self) -> usize {
        lock(&self.shared.state).threads
    }
}

/// Waits for a result until `deadline`. The error of a late one has the text `late`.
pub(crate) fn receive<T>(
    result: &Receiver<T>,
    deadline: Instant,
    late: &'static str,
) -> io::Result<T> {
    let left = deadline.saturating_duration_since(Instant::now());
    result.recv_timeout(left).map_err(|_| io::Error::new(io::ErrorKind::TimedOut, late))
}

impl SharedThreads {
    /// Adds a job to the queue, and starts another thread for it, unless there is the maximum
    /// number.
    fn enqueue(self: &Arc<Self>, job: Box<dyn Job>) -> io::Result<()> {
        let mut state = lock(&self.state);
        if state.threads < MOST_THREADS {
            let shared = Arc::clone(self);
            let thread = std::thread::Builder::new().name(self.name.to_owned());
            match thread.spawn(move || shared.work()) {
                Ok(_) => state.threads += 1,
                // A running thread takes it from the queue.
                Err(_) if state.threads > 0 => {}
                Err(error) => return Err(error),
            }
        }
        // A silent job may last longer than many tasks wait.
        state.queue.retain(|job| job.is_awaited());
        state.queue.push_back(job);
        Ok(())
    }

    /// Runs jobs until there are none left.
    fn work(&self) {
        loop {
            let mut state = lock(&self.state);
            let Some(job) = state.queue.pop_front() else {
                state.threads -= 1;
                return;
            };
            drop(state);
            if job.is_awaited() {
                let _: Result<(), _> = catch_unwind(AssertUnwindSafe(|| job.run()));
            }
        }
    }
}

#[cfg(all(test, not(rediscope_shuttle)))]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_job_does_not_begin_after_its_deadline() {
        let offload = Offload::new("test");
        let gates: Vec<_> = (0..MOST_THREADS)
            .map(|_| {
                let (gate, waits) = channel::<()>();
                let wait = move || {
                    let _: Result<(), _> = waits.recv();
                };
                offload.enqueue(wait).unwrap();
                gate
            })
            .collect();
        let has_begun = Arc::new(AtomicBool::new(false));
        let begins = Arc::clone(&has_begun);
        let by = Instant::now() + Duration::from_millis(10);
        let late = offload.run(by, "late", move || begins.store(true, Ordering::SeqCst));
        assert_eq!(late.unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(gates);
        // One behind it is run.
        let soon = Instant::now() + Duration::from_secs(20);
        offload.run(soon, "late", || ()).unwrap();
        assert!(!has_begun.load(Ordering::SeqCst));
    }
}
