//! The shared state of the locks of a session manager for tasks.
//!
//! The tasks end with the last lock, guard and session manager.

use std::future::ready;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::runtime::{self, Handle};

use crate::lock::client::ScriptClient;
use crate::lock::io::LockIo;
use crate::lock::tasks::listener::TaskListener;
use crate::lock::tasks::renewer::TaskRenewer;
use crate::lock::tasks::task_waiters::{NextTask, TaskRegistration, TaskWaiters};
use crate::pool::router::Router;
use crate::pool::tasks::pool::TaskPool;
use crate::process::current::Process;
use crate::protocol::lock::acquire::LockRequest;
use crate::settings::settings::Settings;
use crate::status::locks::{LockCounters, LockStatus};
use crate::status::metrics::LockMetrics;
use crate::sync::lock;
use crate::sync::places::Places;

/// Maximum time that a change of a number of permits keeps other calls waiting: its future may not be
/// polled any more.
const MAX_CHANGE: Duration = Duration::from_secs(10);

/// The shared state of the locks of a session manager for tasks.
pub(crate) struct TaskLockManager {
    client: ScriptClient<TaskPool>,
    pooled: Router<TaskPool>,
    settings: Arc<Settings>,
    counters: Arc<LockCounters>,
    renewer: TaskRenewer,
    listeners: Mutex<Listeners>,
}

/// The listeners, one for each runtime that waits for locks.
#[derive(Default)]
struct Listeners {
    all: Vec<(Option<runtime::Id>, Arc<TaskListener>)>,
    closed: bool,
}

impl TaskLockManager {
    /// `own` has one connection to each master, for renewals and releases.
    pub(crate) fn new(pooled: Router<TaskPool>, own: Router<TaskPool>) -> Self {
        let settings = Arc::clone(pooled.settings());
        let counters = LockCounters::named_after(&own.counters().metrics);
        let client = ScriptClient::new(pooled.clone(), own);
        let renewer = TaskRenewer::new(client.clone());
        let listeners = Mutex::default();
        Self { client, pooled, settings, counters, renewer, listeners }
    }

    /// The listener of the runtime that polls the caller.
    fn listener(&self) -> Arc<TaskListener> {
        let runtime = Handle::try_current().ok().map(|runtime| runtime.id());
        let mut listeners = lock(&self.listeners);
        if let Some((_, known)) = listeners.all.iter().find(|(id, _)| *id == runtime) {
            return Arc::clone(known);
        }
        // Runtimes come and go. A call that has one of their listeners may be about to join it.
        listeners
            .all
            .retain_mut(|(_, listener)| !Arc::get_mut(listener).is_some_and(|it| it.is_idle()));
        let listener = TaskListener::new(self.settings.process.clone());
        if listeners.closed {
            listener.close();
        }
        listeners.all.push((runtime, Arc::clone(&listener)));
        listener
    }

    fn listeners(&self) -> Vec<Arc<TaskListener>> {
        lock(&self.listeners).all.iter().map(|(_, listener)| Arc::clone(listener)).collect()
    }

    /// Stops all acquisitions. A waiting call is woken and fails at once.
    pub(crate) fn close(&self) {
        self.client.close();
        lock(&self.listeners).closed = true;
        self.listeners().iter().for_each(|listener| listener.close());
    }

    /// See [`TaskRenewer::end_renewals`].
    pub(crate) async fn end_renewals(&self, deadline: Instant) -> usize {
        self.renewer.end_renewals(deadline).await
    }

    pub(crate) fn metrics(&self) -> &LockMetrics {
        &self.counters.metrics
    }

    /// Ends the tasks, unless they release locks.
    pub(crate) async fn end_tasks(&self) {
        if self.renewer.has_finished() {
            self.client.own().settings().tasks.end().await;
        }
    }

    pub(crate) fn status(&self) -> LockStatus {
        let mut status = self.counters.status();
        status.releasing = self.renewer.releasing();
        for listener in self.listeners() {
            status.waiting += listener.waiters.waiting();
            status.subscriptions += listener.waiters.subscriptions();
            status.permits += listener.waiters.wakeups();
        }
        status
    }
}

/// The tasks end. In a forked child they belong to the parent, and a mutex may stay locked.
impl Drop for TaskLockManager {
    fn drop(&mut self) {
        if !self.settings.is_forked_child() {
            self.listeners().iter().for_each(|listener| listener.close());
        }
    }
}

/// The order of the changes of a semaphore's number of permits.
pub(crate) struct TaskChanges {
    places: Places,
    process: Process,
}

impl Default for TaskChanges {
    fn default() -> Self {
        Self { places: Places::new(1), process: Process::here() }
    }
}

/// The right to change the number. Its drop passes it on.
struct Changing<'c>(Option<&'c TaskChanges>);

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        if let Some(changes) = self.0
            && !changes.process.is_forked_child()
        {
            changes.places.add();
        }
    }
}

impl LockIo for TaskLockManager {
    type Pool = TaskPool;
    type Renewals = TaskRenewer;
    type Waiter = TaskRegistration;
    type NextWaiter = NextTask;
    type Changes = TaskChanges;

    fn client(&self) -> &ScriptClient<TaskPool> {
        &self.client
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn counters(&self) -> &Arc<LockCounters> {
        &self.counters
    }

    fn renewals(&self) -> &TaskRenewer {
        &self.renewer
    }

    fn join(&self, request: &LockRequest, owner_token: &str) -> TaskRegistration {
        let next_holder = request.next_holder(owner_token);
        TaskWaiters::join(&self.listener().waiters, &request.names.wake, owner_token, next_holder)
    }

    fn join_live(&self, request: &LockRequest, owner_token: &str) -> Option<TaskRegistration> {
        let (waiters, wake) = (&self.listener().waiters, &request.names.wake);
        TaskWaiters::join_live(waiters, wake, owner_token, request.next_holder(owner_token))
    }

    /// Of this runtime: another one may not be run.
    fn next_waiter(&self, channel: &str) -> Option<NextTask> {
        let runtime = Handle::try_current().ok()?.id();
        let listeners = lock(&self.listeners);
        let (_, listener) = listeners.all.iter().find(|(id, _)| *id == Some(runtime))?;
        listener.waiters.next_holder(channel)
    }

    fn listen(&self, _limit: Instant) -> impl Future<Output = ()> + Send {
        if let Ok(runtime) = Handle::try_current() {
            self.listener().listen(&self.pooled, &runtime);
        }
        ready(())
    }

    async fn settle(changes: &TaskChanges, by: Instant) -> Option<impl Send> {
        let places = &changes.places;
        let has_right = match places.try_take() {
            Ok(true) => true,
            _ => places.take(by.min(Instant::now() + MAX_CHANGE)).await.is_ok(),
        };
        (has_right || Instant::now() < by).then(|| Changing(has_right.then_some(changes)))
    }

    fn clean_up(&self, rest: impl Future<Output = ()> + Send + 'static) {
        self.renewer.run_later(rest);
    }
}

#[cfg(all(test, not(rediscope_shuttle)))]
mod tests {
    use super::*;
    use crate::lock::tasks::renewer::tests::client;

    #[test]
    fn a_listener_that_a_call_is_about_to_join_stays_when_another_runtime_comes() {
        let runtimes = [(); 3].map(|()| runtime::Builder::new_current_thread().build().unwrap());
        let client = client();
        let manager = TaskLockManager::new(client.own().clone(), client.own().clone());
        let listener_of = |runtime: &runtime::Runtime| {
            let _in = runtime.enter();
            manager.listener()
        };
        let [first, second, third] = &runtimes;
        let about_to_join = listener_of(first);
        drop(listener_of(second));
        assert!(Arc::ptr_eq(&about_to_join, &listener_of(first)), "its waiter is heard of");
        drop(about_to_join);
        drop(listener_of(third));
        assert_eq!(manager.listeners().len(), 1, "the idle ones are dropped");
    }
}
