//! The task that extends leases, and that releases the locks of dropped guards and calls.
//!
//! Each runtime that acquires locks has one such task while there is work. All of them do the work of
//! the session manager's locks, so a lease outlives a runtime that ends or stands still.

use std::future::poll_fn;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::runtime::{self, Handle};
use tokio::task::{AbortHandle, JoinSet};

use crate::connection::tasks::io::no_runtime;
use crate::error::any::Error;
use crate::error::checkout::CheckoutError;
use crate::lock::client::ScriptClient;
use crate::lock::io::Renewals;
use crate::lock::lease::LockLease;
use crate::lock::renewal::{Due, IDLE, MAX_STEP, RenewalState, forget};
use crate::pool::tasks::pool::TaskPool;
use crate::process::worker::Next;
use crate::protocol::lock::script::ScriptCall;
use crate::sync::caught::wake;
use crate::sync::own_mutex::OwnMutex;
use crate::sync::shim::MutexGuard;
use crate::sync::timer::{DeadlineTimer, until};

/// Delay between two looks at locks that are being closed.
const CLOSE_PAUSE: Duration = Duration::from_millis(1);
/// Maximum time that a close waits for the end of the tasks.
const CLOSE_GRACE: Duration = Duration::from_millis(100);

/// The tasks that extend leases, if they run. Its drop ends them.
pub(crate) struct TaskRenewer {
    client: ScriptClient<TaskPool>,
    shared: Arc<RenewalShared>,
}

/// What the tasks share with their callers.
struct RenewalShared {
    locked: OwnMutex<Locked>,
}

#[derive(Default)]
struct Locked {
    state: RenewalState,
    /// Calls that ended without a lock, and releases of dropped guards.
    cleanups: Vec<Cleanup>,
    /// Those that a task has taken, and the time after which another runtime's task drops them: their own
    /// may stand still.
    taken: Vec<(runtime::Id, Instant, Arc<Rest>)>,
    /// One for each runtime at most.
    tasks: Vec<RunningTask>,
    /// Number of tasks that were started.
    started: u64,
    closed: bool,
}

/// A task that exists; it sleeps or is at work.
struct RunningTask {
    runtime: runtime::Id,
    /// That of this task alone: a runtime may have started its next one before this one was dropped.
    number: u64,
    /// `None`: it is awake, or has not run yet.
    waker: Option<Waker>,
    /// `None`: it sleeps until it is woken.
    sleeps_until: Option<Instant>,
}

/// The rest of a call, which runs in a task of its own. `None`: it has ended, or was dropped.
type Rest = OwnMutex<Option<CountedRest>>;
type CountedRest = (BoxedRest, Counted);
type BoxedRest = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The task of the rest of a call.
struct Cleanup(Arc<Rest>);

/// The rest records what is left to send.
impl Drop for Cleanup {
    fn drop(&mut self) {
        let rest = self.0.lock_in_drop().and_then(|mut rest| rest.take());
        drop(rest);
    }
}

/// Counts as something under way until it is dropped.
struct Counted {
    shared: Arc<RenewalShared>,
    end: fn(&mut RenewalState),
}

impl Drop for Counted {
    fn drop(&mut self) {
        let Some(mut locked) = self.shared.locked.lock_in_drop() else { return };
        (self.end)(&mut locked.state);
        self.shared.wake_if_closing(locked);
    }
}

impl Future for Cleanup {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        match &mut *self.0.lock() {
            Some((rest, _)) => rest.as_mut().poll(context),
            None => Poll::Ready(()),
        }
    }
}

impl Locked {
    fn take_wakers(&mut self) -> Vec<Waker> {
        self.tasks.iter_mut().filter_map(|task| task.waker.take()).collect()
    }

    fn has_task_in(&self, runtime: runtime::Id) -> bool {
        self.tasks.iter().any(|task| task.runtime == runtime)
    }

    fn task(&mut self, number: u64) -> Option<&mut RunningTask> {
        self.tasks.iter_mut().find(|task| task.number == number)
    }

    /// Removes a task, if it was not removed before.
    fn end_task(&mut self, number: u64) {
        self.tasks.retain(|task| task.number != number);
    }

    /// Takes the cleanups for the task of this runtime.
    fn take_cleanups(&mut self, runtime: runtime::Id, now: Instant) -> Vec<Cleanup> {
        let cleanups = mem::take(&mut self.cleanups);
        let taken =
            cleanups.iter().map(|Cleanup(rest)| (runtime, now + MAX_STEP, Arc::clone(rest)));
        self.taken.extend(taken);
        cleanups
    }

    /// Removes the cleanups that runtimes other than this one have had for too long, to be dropped without the
    /// mutex, and returns when there is one.
    fn take_stalled(
        &mut self,
        runtime: runtime::Id,
        now: Instant,
    ) -> (Vec<CountedRest>, Option<Instant>) {
        let (mut stalled, mut next) = (Vec::new(), None);
        self.taken.retain_mut(|(of, until, rest)| {
            // The task has ended.
            if Arc::strong_count(rest) == 1 {
                return false;
            }
            if *of == runtime {
                return true;
            }
            if *until <= now {
                // Otherwise it is being polled.
                if let Some(mut rest) = rest.try_lock() {
                    stalled.extend(rest.take());
                    return false;
                }
                *until = now + MAX_STEP;
            }
            next = Some(next.map_or(*until, |next: Instant| next.min(*until)));
            true
        });
        (stalled, next)
    }
}

impl RenewalShared {
    fn lock(&self) -> MutexGuard<'_, Locked> {
        self.locked.lock()
    }

    fn wake(&self, mut locked: MutexGuard<'_, Locked>) {
        let woken = locked.take_wakers();
        drop(locked);
        woken.into_iter().for_each(wake);
    }

    /// Wakes the tasks that sleep past `next`.
    fn wake_by(&self, mut locked: MutexGuard<'_, Locked>, next: Instant) {
        let late = |task: &&mut RunningTask| task.sleeps_until.is_none_or(|until| next < until);
        let woken: Vec<_> =
            locked.tasks.iter_mut().filter(late).filter_map(|task| task.waker.take()).collect();
        drop(locked);
        woken.into_iter().for_each(wake);
    }

    /// After the close, a task ends the connections when the last lock is gone.
    fn wake_if_closing(&self, locked: MutexGuard<'_, Locked>) {
        if !locked.state.extends() {
            self.wake(locked);
        }
    }
}

impl Drop for TaskRenewer {
    fn drop(&mut self) {
        let Some(mut locked) = self.shared.locked.lock_in_drop() else { return };
        locked.closed = true;
        self.shared.wake(locked);
    }
}

impl Renewals for TaskRenewer {
    fn begin_acquisition(&self) -> Result<impl Drop + Send, Error> {
        let runtime = Handle::try_current()
            .map_err(|_| CheckoutError::Connect { waited: Duration::ZERO, source: no_runtime() })?;
        let mut locked = self.shared.lock();
        if !locked.state.extends() {
            return Err(CheckoutError::Closed.into());
        }
        locked.state.begin_acquisition();
        let shared = Arc::clone(&self.shared);
        let counted = Counted { shared, end: RenewalState::end_acquisition };
        self.start(locked, &runtime);
        Ok(counted)
    }

    fn watch(&self, lock_lease: &Arc<LockLease>) {
        let mut locked = self.shared.lock();
        let next = locked.state.watch(lock_lease);
        self.wake_by(locked, next);
    }

    fn forget(&self, lock_lease: &Arc<LockLease>) {
        let mut locked = self.shared.lock();
        let forgotten = locked.state.forget(lock_lease);
        self.shared.wake_if_closing(locked);
        drop(forgotten);
    }

    fn pending_release(&self, call: ScriptCall, until: Instant) {
        let mut locked = self.shared.lock();
        if let Some(next) = locked.state.add_release(call, until) {
            self.wake_by(locked, next);
        }
    }

    fn answered(&self, key: String) {
        let mut locked = self.shared.lock();
        if let Some(at) = locked.state.add_answered(key) {
            self.wake_by(locked, at);
        }
    }

    fn take_answered(&self, holders: &str) -> Vec<String> {
        self.shared.lock().state.take_answered(holders, self.client.is_in_cluster())
    }

    fn extends(&self) -> bool {
        self.shared.lock().state.extends()
    }
}

impl TaskRenewer {
    pub(crate) fn new(client: ScriptClient<TaskPool>) -> Self {
        Self { client, shared: Arc::new(RenewalShared { locked: OwnMutex::default() }) }
    }

    /// Has a task run the rest of a call. Without a task it is dropped: no runtime would run it, and
    /// it would keep the session manager alive.
    pub(crate) fn run_later(&self, rest: impl Future<Output = ()> + Send + 'static) {
        let mut locked = self.shared.lock();
        if locked.tasks.is_empty() {
            drop(locked);
            return drop(rest);
        }
        locked.state.begin_cleanup();
        let counted = Counted { shared: Arc::clone(&self.shared), end: RenewalState::end_cleanup };
        let rest: BoxedRest = Box::pin(rest);
        locked.cleanups.push(Cleanup(Arc::new(OwnMutex::new(Some((rest, counted))))));
        self.shared.wake(locked);
    }

    /// Waits until no guard lives and no release is pending, or until `deadline`. From then on no
    /// lease is extended. Returns the number of held locks; their guards can still release them.
    pub(crate) async fn end_renewals(&self, deadline: Instant) -> usize {
        if let Ok(runtime) = Handle::try_current() {
            let locked = self.shared.lock();
            if !locked.state.is_idle() {
                self.start(locked, &runtime);
            }
        }
        while !self.shared.lock().state.is_idle() && Instant::now() < deadline {
            pause(deadline).await;
        }
        let (held, answered, finishes) = {
            let mut locked = self.shared.lock();
            let ended = locked.state.end_renewals();
            self.shared.wake(locked);
            ended
        };
        forget(answered, None, &self.client).await;
        if finishes {
            finish(&self.client).await;
            let by = Instant::now() + CLOSE_GRACE;
            while !self.shared.lock().tasks.is_empty() && Instant::now() < by {
                pause(by).await;
            }
        }
        held
    }

    /// Returns whether the tasks have ended, or end now, and their connections are closed.
    pub(crate) fn has_finished(&self) -> bool {
        self.shared.lock().state.has_finished()
    }

    /// Returns the number of releases that have no reply yet.
    pub(crate) fn releasing(&self) -> usize {
        self.shared.lock().state.releasing()
    }

    /// Wakes a task by `next` at the latest.
    fn wake_by(&self, locked: MutexGuard<'_, Locked>, next: Instant) {
        self.shared.wake_by(locked, next);
    }

    /// Starts the runtime's task, unless it runs.
    fn start(&self, mut locked: MutexGuard<'_, Locked>, runtime: &Handle) {
        let id = runtime.id();
        if locked.closed || locked.has_task_in(id) {
            return;
        }
        locked.started += 1;
        let number = locked.started;
        locked.tasks.push(RunningTask { runtime: id, number, waker: None, sleeps_until: None });
        drop(locked);
        // A runtime that has ended drops the task at once.
        let running = Running { shared: Arc::clone(&self.shared), runtime: id, number };
        let task = renew(self.client.clone(), running);
        let _: AbortHandle = self.client.own().settings().tasks.spawn(runtime, task);
    }
}

async fn pause(deadline: Instant) {
    let by = deadline.min(Instant::now() + CLOSE_PAUSE);
    let _: Option<()> = until(by, std::future::pending()).await;
}

/// Closes the connections for renewals and releases; nothing is sent any more.
async fn finish(client: &ScriptClient<TaskPool>) {
    let own = client.own();
    own.close();
    own.drain(Instant::now()).await;
    own.stop_connecting();
}

/// The registration of a runtime's task.
struct Running {
    shared: Arc<RenewalShared>,
    runtime: runtime::Id,
    number: u64,
}

/// The task has ended, or its runtime has.
impl Drop for Running {
    fn drop(&mut self) {
        let Some(mut locked) = self.shared.locked.lock_in_drop() else { return };
        locked.end_task(self.number);
        let left = match locked.tasks.is_empty() {
            true => mem::take(&mut locked.cleanups),
            false => Vec::new(),
        };
        self.shared.wake(locked);
        // Each of them records what is left to send.
        drop(left);
    }
}

/// The work of one task.
struct Work {
    client: ScriptClient<TaskPool>,
    cleanups: JoinSet<()>,
    step: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    timer: DeadlineTimer,
    /// Without work the task ends then.
    idle_until: Instant,
    /// Dropped last.
    running: Running,
}

async fn renew(client: ScriptClient<TaskPool>, running: Running) {
    let mut work = Work {
        client,
        cleanups: JoinSet::new(),
        step: None,
        timer: DeadlineTimer::default(),
        idle_until: Instant::now() + IDLE,
        running,
    };
    poll_fn(|context| work.poll(context)).await;
}

impl Work {
    /// Ready when the task has no work, and will not get any.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            while let Poll::Ready(Some(_)) = self.cleanups.poll_join_next(context) {}
            if let Some(step) = &mut self.step
                && step.as_mut().poll(context).is_ready()
            {
                (self.step, self.idle_until) = (None, Instant::now() + IDLE);
            }
            let shared = Arc::clone(&self.running.shared);
            let mut locked = shared.lock();
            let (runtime, now) = (self.running.runtime, Instant::now());
            let cleanups = locked.take_cleanups(runtime, now);
            let (stalled, look) = locked.take_stalled(runtime, now);
            if !cleanups.is_empty() || !stalled.is_empty() {
                drop(locked);
                drop(stalled);
                cleanups.into_iter().for_each(|cleanup| drop(self.cleanups.spawn(cleanup)));
                continue;
            }
            let until = match self.next(&mut locked) {
                Next::Run(due) => {
                    drop(locked);
                    self.step = Some(Box::pin(step(self.client.clone(), shared, due)));
                    continue;
                }
                Next::WaitUntil(until) => Some(look.map_or(until, |look| look.min(until))),
                Next::Idle => look,
                Next::End => {
                    // Under the mutex, so that work which is added finds a task or starts one.
                    locked.end_task(self.running.number);
                    return Poll::Ready(());
                }
            };
            let mut former = None;
            if let Some(task) = locked.task(self.running.number) {
                former = task.waker.replace(context.waker().clone());
                task.sleeps_until = until;
            }
            drop(locked);
            drop(former);
            match until {
                Some(until) if self.timer.poll(context, until).is_ready() => {}
                _ => return Poll::Pending,
            }
        }
    }

    /// Returns the next step. `Idle`: something is under way, which wakes the task.
    fn next(&mut self, locked: &mut Locked) -> Next<Due> {
        let now = Instant::now();
        if locked.closed {
            return Next::End;
        }
        if self.step.is_some() {
            return Next::Idle;
        }
        match locked.state.next(now) {
            Next::Idle | Next::End if !self.cleanups.is_empty() => Next::Idle,
            Next::Idle if now < self.idle_until => Next::WaitUntil(self.idle_until),
            Next::Idle => Next::End,
            next => next,
        }
    }
}

/// Sends what is due.
async fn step(client: ScriptClient<TaskPool>, shared: Arc<RenewalShared>, due: Due) {
    let finishes = due.finishes;
    due.run(&client, |releases| {
        let Some(mut locked) = shared.locked.lock_in_drop() else { return };
        locked.state.end_releases(&releases);
        shared.wake(locked);
    })
    .await;
    if finishes {
        finish(&client).await;
    }
}

#[cfg(all(test, not(rediscope_shuttle)))]
#[path = "../../../tests/unit/renewer.rs"]
pub(super) mod tests;
