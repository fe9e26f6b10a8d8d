//! A thread that is started on demand, and ends without work.
//!
//! One mutex guards the work and the thread's end. So work that is added finds a thread that will
//! do it, or starts one.

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use scopeguard::defer_on_unwind;

use crate::process::current::Process;
use crate::sync::lock;

/// The work of a background thread.
pub(crate) trait Work: Send + 'static {
    /// The state that the thread shares with its callers.
    type State: Send;
    type Job;
    /// Time that the thread stays without work.
    const IDLE: Duration;

    /// Returns the thread's next step. The state is locked.
    fn next(&mut self, state: &mut Self::State, now: Instant) -> Next<Self::Job>;

    /// Does a job. Nothing is locked. A panic, such as one of the user's log, ends this job only.
    fn run(&mut self, shared: &Shared<Self::State>, job: Self::Job);
}

/// The next step of a background thread.
pub(crate) enum Next<J> {
    Run(J),
    /// There is no job before this instant, unless the state changes.
    WaitUntil(Instant),
    /// There is no work.
    Idle,
    /// There will be no work.
    End,
}

/// A thread that is started on demand. The drop ends it after its current job.
pub(crate) struct BackgroundWorker<S> {
    name: &'static str,
    process: Process,
    shared: Arc<Shared<S>>,
}

/// The state that a background thread shares with its callers.
pub(crate) struct Shared<S> {
    locked: Mutex<Locked<S>>,
    changed: Condvar,
}

/// The locked state.
pub(crate) struct Locked<S> {
    state: S,
    /// A thread exists; it sleeps or is at work.
    running: bool,
    closed: bool,
    sleeps_until: Option<Instant>,
}

impl<S> Drop for BackgroundWorker<S> {
    fn drop(&mut self) {
        self.close();
    }
}

impl<S: Send + 'static> BackgroundWorker<S> {
    pub(crate) fn new(name: &'static str, state: S) -> Self {
        let locked = Locked { state, running: false, closed: false, sleeps_until: None };
        let shared = Shared { locked: Mutex::new(locked), changed: Condvar::new() };
        Self { name, process: Process::here(), shared: Arc::new(shared) }
    }

    /// Starts the thread with `work`, unless it runs or the worker is closed.
    pub(crate) fn start<W: Work<State = S>>(
        &self,
        locked: &mut Locked<S>,
        work: impl FnOnce() -> W,
    ) -> io::Result<()> {
        if locked.running || locked.closed {
            return Ok(());
        }
        let (shared, work) = (Arc::clone(&self.shared), work());
        let thread = std::thread::Builder::new().name(self.name.to_owned());
        thread.spawn(move || shared.run(work))?;
        locked.running = true;
        Ok(())
    }
}

impl<S> BackgroundWorker<S> {
    /// Ends the thread after its current job; no other one is started. A forked child has no
    /// thread to end, and the mutex may stay locked there.
    pub(crate) fn close(&self) {
        if !self.process.is_forked_child() {
            self.lock().closed = true;
            self.wake();
        }
    }
}

impl<S> Deref for BackgroundWorker<S> {
    type Target = Shared<S>;

    fn deref(&self) -> &Shared<S> {
        &self.shared
    }
}

impl<S> Shared<S> {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Locked<S>> {
        lock(&self.locked)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Ends each wait: the state has changed.
    pub(crate) fn wake(&self) {
        self.changed.notify_all();
    }

    /// Wakes the thread if it sleeps past `at`.
    pub(crate) fn wake_by(&self, locked: &Locked<S>, at: Instant) {
        if locked.sleeps_until.is_some_and(|until| at < until) {
            self.wake();
        }
    }

    /// Waits for a change of the state, until `until` at most.
    pub(crate) fn wait<'s>(
        &'s self,
        locked: MutexGuard<'s, Locked<S>>,
        until: Instant,
    ) -> MutexGuard<'s, Locked<S>> {
        let left = until.saturating_duration_since(Instant::now());
        self.changed.wait_timeout(locked, left).unwrap_or_else(PoisonError::into_inner).0
    }

    fn run<W: Work<State = S>>(&self, mut work: W) {
        defer_on_unwind! { self.lock().running = false; }
        while let Some(job) = self.next(&mut work) {
            let _: Result<(), _> = catch_unwind(AssertUnwindSafe(|| work.run(self, job)));
        }
    }

    /// Waits for a job. `None`: the thread ends.
    fn next<W: Work<State = S>>(&self, work: &mut W) -> Option<W::Job> {
        let idle_until = Instant::now() + W::IDLE;
        let mut locked = self.lock();
        while !locked.closed {
            let now = Instant::now();
            let until = match work.next(&mut locked.state, now) {
                Next::Run(job) => return Some(job),
                Next::WaitUntil(until) => until,
                Next::Idle if now < idle_until => idle_until,
                Next::Idle | Next::End => break,
            };
            locked.sleeps_until = Some(until);
            locked = self.wait(locked, until);
            locked.sleeps_until = None;
        }
        locked.running = false;
        None
    }
}

impl<S> Deref for Locked<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.state
    }
}

impl<S> DerefMut for Locked<S> {
    fn deref_mut(&mut self) -> &mut S {
        &mut self.state
    }
}

/// Shows no state.
impl<S> fmt::Debug for BackgroundWorker<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackgroundWorker").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes numbers off a list and adds them up; a zero panics.
    struct Sum;

    #[derive(Default)]
    struct Numbers {
        open: Vec<u32>,
        sum: u32,
    }

    impl Work for Sum {
        type State = Numbers;
        type Job = u32;
        const IDLE: Duration = Duration::from_millis(20);

        fn next(&mut self, state: &mut Numbers, _: Instant) -> Next<u32> {
            state.open.pop().map_or(Next::Idle, Next::Run)
        }

        fn run(&mut self, shared: &Shared<Numbers>, number: u32) {
            assert_ne!(number, 0, "planted");
            shared.lock().sum += number;
            shared.wake();
        }
    }

    fn add(worker: &BackgroundWorker<Numbers>, number: u32) {
        let mut locked = worker.lock();
        locked.open.push(number);
        worker.start(&mut locked, || Sum).unwrap();
        worker.wake_by(&locked, Instant::now());
    }

    #[track_caller]
    fn wait_for(worker: &BackgroundWorker<Numbers>, what: impl Fn(&Locked<Numbers>) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut locked = worker.lock();
        while !what(&locked) {
            assert!(Instant::now() < deadline, "it did not come to that");
            locked = worker.wait(locked, Instant::now() + Duration::from_millis(1));
        }
    }

    #[test]
    fn work_is_done_while_the_thread_sleeps_after_it_ended_and_after_a_panic() {
        let worker = BackgroundWorker::new("sum", Numbers::default());
        add(&worker, 1);
        wait_for(&worker, |locked| locked.sum == 1);
        add(&worker, 2);
        wait_for(&worker, |locked| locked.sum == 3 && !locked.running);
        add(&worker, 0);
        add(&worker, 4);
        wait_for(&worker, |locked| locked.sum == 7 && !locked.running);
    }

    #[test]
    fn no_work_is_lost_at_the_moment_when_the_thread_ends() {
        let worker = BackgroundWorker::new("sum", Numbers::default());
        for nth in 1..=20 {
            add(&worker, 1);
            wait_for(&worker, |locked| locked.sum == nth);
            std::thread::sleep(Sum::IDLE - Duration::from_millis(1));
        }
    }

    #[test]
    fn a_closed_worker_ends_its_thread_and_starts_no_other() {
        let worker = BackgroundWorker::new("sum", Numbers::default());
        add(&worker, 1);
        worker.close();
        wait_for(&worker, |locked| !locked.running);
        add(&worker, 1);
        assert!(!worker.lock().running && worker.is_closed());
    }
}
