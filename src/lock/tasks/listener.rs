//! The task that receives messages about releases: one for all locks that a runtime waits for, while
//! any caller waits.
//!
//! SUBSCRIBE and UNSUBSCRIBE are sent on the connection that receives the messages. Waiters do not
//! depend on the task: without it they send a request from time to time.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;

use redis::Value;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use crate::connection::connection::Connection;
use crate::connection::deadline::{self, Deadline};
use crate::connection::endpoint::Endpoint;
use crate::connection::handshake::OpenOptions;
use crate::connection::io::Io;
use crate::connection::tasks::connect::login_version;
use crate::connection::tasks::io::Tasks;
use crate::connection::tasks::stream::TaskStream;
use crate::connection::tasks::wire::TaskWire;
use crate::error::checkout::CheckoutError;
use crate::error::connection::ConnectionError;
use crate::lock::tasks::subscription::Subscription;
use crate::lock::tasks::task_waiters::TaskWaiters;
use crate::lock::waiters::{LISTENER_PAUSE, LISTENER_QUIET, listener_pauses};
use crate::pool::router::Router;
use crate::pool::tasks::pool::TaskPool;
use crate::process::current::Process;
use crate::protocol::cluster::route::{Redirect, Route};
use crate::protocol::resp::encode::{self, words};
use crate::protocol::server_error::ServerError;
use crate::settings::settings::Settings;
use crate::sync::caught::wake;
use crate::sync::lock;
use crate::sync::timer::DeadlineTimer;

/// The waiters of one runtime, and the task that wakes them, if it runs.
pub(crate) struct TaskListener {
    pub(crate) waiters: Arc<TaskWaiters>,
    state: Mutex<ListenerState>,
    process: Process,
}

#[derive(Default)]
struct ListenerState {
    running: bool,
    /// Number of tasks that were started: that of the last one.
    started: u64,
    closed: bool,
    /// Woken by a caller that has recorded a channel, and by the close.
    task: Option<Waker>,
}

impl TaskListener {
    pub(crate) fn new(process: Process) -> Arc<Self> {
        let waiters = Arc::new(TaskWaiters::new(process.clone()));
        Arc::new(Self { waiters, state: Mutex::default(), process })
    }

    /// Has a channel subscribed soon that a caller has just recorded.
    pub(crate) fn listen(self: &Arc<Self>, router: &Router<TaskPool>, runtime: &Handle) {
        let mut state = lock(&self.state);
        if state.closed {
            return;
        }
        if std::mem::replace(&mut state.running, true) {
            let task = state.task.take();
            drop(state);
            task.into_iter().for_each(wake);
            return;
        }
        state.started += 1;
        let number = state.started;
        drop(state);
        // A runtime that has ended drops the task at once.
        let running = Running { listener: Arc::clone(self), number };
        let task = listen(router.clone(), running);
        let _: AbortHandle = router.settings().tasks.spawn(runtime, task);
    }

    /// Whether nothing would be lost with it.
    pub(crate) fn is_idle(&self) -> bool {
        !lock(&self.state).running && self.waiters.is_empty()
    }

    /// Ends the task: no caller waits any more, or will.
    pub(crate) fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        let task = state.task.take();
        drop(state);
        task.into_iter().for_each(wake);
    }

    /// Returns whether the task ends. A caller that records a channel later starts another one.
    fn ends(&self) -> bool {
        let mut state = lock(&self.state);
        state.running = !state.closed && !self.waiters.is_empty();
        !state.running
    }

    /// Ready once the listener is closed. Otherwise its next change wakes the task.
    fn poll_closed(&self, context: &Context<'_>) -> Poll<()> {
        let mut state = lock(&self.state);
        if state.closed {
            return Poll::Ready(());
        }
        let former = state.task.replace(context.waker().clone());
        drop(state);
        drop(former);
        Poll::Pending
    }
}

/// The registration of the task.
struct Running {
    listener: Arc<TaskListener>,
    /// That of this task alone: the next one may have been started before this one was dropped.
    number: u64,
}

/// The task or its runtime has ended: waiters must not rely on it any more.
impl Drop for Running {
    fn drop(&mut self) {
        // In a forked child the task belongs to the parent.
        if self.listener.process.is_forked_child() {
            return;
        }
        let task = {
            let mut state = lock(&self.listener.state);
            if state.started != self.number {
                return;
            }
            state.running = false;
            state.task.take()
        };
        drop(task);
        self.listener.waiters.down();
    }
}

async fn listen(router: Router<TaskPool>, running: Running) {
    let listener = &running.listener;
    let mut pauses = listener_pauses();
    while !listener.ends() {
        let begun = Instant::now();
        let served = serve(&router, listener).await;
        listener.waiters.down();
        if let Err(error) = served {
            router.log_thread().log(tracing::Level::DEBUG, move || {
                tracing::debug!(error = %format_args!("{error:#}"), "not subscribed to releases; waiters poll");
            });
        }
        if begun.elapsed() > LISTENER_PAUSE {
            pauses = listener_pauses();
        }
        let (next, mut timer) = (begun + pauses.wait(), DeadlineTimer::default());
        poll_fn(|context| match listener.poll_closed(context) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => timer.poll(context, next),
        })
        .await;
    }
}

/// Receives messages until no caller waits any more, or the listener is closed.
async fn serve(
    router: &Router<TaskPool>,
    listener: &Arc<TaskListener>,
) -> Result<(), ConnectionError> {
    let (mut connection, endpoint) = connect(router).await?;
    let generation = connection.generation();
    prove_publish(router, &mut connection).await?;
    let stream = TaskStream::new(connection);
    let response_timeout = router.settings().response_timeout;
    let mut subscription =
        Subscription::new(stream, Arc::clone(&listener.waiters), response_timeout);
    let mut versions = VersionWatch::new(&endpoint, router.settings());
    poll_fn(|context| {
        if listener.poll_closed(context).is_ready() {
            return Poll::Ready(Ok(()));
        }
        let version = match versions.poll(context) {
            Poll::Ready(version) => Some(version),
            Poll::Pending => None,
        };
        if endpoint.generation() != generation
            || version.is_some_and(|version| subscription.needs_reauth(version))
        {
            let text = "another master, or other credentials";
            return Poll::Ready(Err(ConnectionError::unexpected(text)));
        }
        subscription.poll(context)
    })
    .await
}

/// Asks for the version of the credentials from time to time. A provider that may block is called on a thread
/// of its own, and one that panics changes nothing.
struct VersionWatch {
    endpoint: Endpoint,
    settings: Arc<Settings>,
    asked: Option<Pin<Box<dyn Future<Output = Option<u64>> + Send>>>,
    next: Instant,
    timer: DeadlineTimer,
}

impl VersionWatch {
    fn new(endpoint: &Endpoint, settings: &Arc<Settings>) -> Self {
        let (endpoint, settings) = (endpoint.clone(), Arc::clone(settings));
        let (next, timer) = (Instant::now(), DeadlineTimer::default());
        Self { endpoint, settings, asked: None, next, timer }
    }

    /// Ready with a version that has just arrived.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<u64> {
        if self.endpoint.provider().is_none() {
            return Poll::Pending;
        }
        loop {
            if self.asked.is_none() {
                ready!(self.timer.poll(context, self.next));
            }
            let asked = self.asked.get_or_insert_with(|| {
                let (endpoint, settings) = (self.endpoint.clone(), Arc::clone(&self.settings));
                let by = deadline::after(settings.response_timeout);
                Box::pin(async move { login_version(&endpoint, &settings, by).await })
            });
            let version = ready!(asked.as_mut().poll(context));
            (self.asked, self.next) = (None, Instant::now() + LISTENER_QUIET);
            if let Some(version) = version {
                // The caller polls again, which sets the timer, or leaves.
                context.waker().wake_by_ref();
                return Poll::Ready(version);
            }
        }
    }
}

/// Publishes on a channel that has no subscriber. A user without the right to PUBLISH sends no message
/// about a release, so its waiters poll.
async fn prove_publish(
    router: &Router<TaskPool>,
    connection: &mut Connection<TaskWire>,
) -> Result<(), ConnectionError> {
    let settings = router.settings();
    let channel = format!("{}:ctl:publish", settings.prefix);
    let mut bytes = Vec::new();
    encode::command_with(&mut bytes, words!("PUBLISH"), (&*channel, ""));
    let by = Deadline::after(settings.response_timeout);
    match connection.ask_all(&bytes, 1, by).await?.first() {
        Some(Value::ServerError(error)) => {
            Err(ConnectionError::refused(ServerError::from_reply(error, false)))
        }
        _ => Ok(()),
    }
}

/// Connects to any node: a message published on one node arrives on all.
async fn connect(
    router: &Router<TaskPool>,
) -> Result<(Connection<TaskWire>, Endpoint), ConnectionError> {
    let (settings, any) = (router.settings(), Route::default());
    let by = Instant::now() + settings.connect_timeout;
    let closed = |_| ConnectionError::unexpected("there is no server to subscribe to");
    let endpoint = router.endpoint(&any, by).await.map_err(closed)?;
    let options = OpenOptions::for_query(endpoint.generation(), by);
    let opened = Tasks::open(&endpoint, settings, options).await;
    if let Err(source) = &opened {
        let waited = settings.connect_timeout;
        let error = CheckoutError::Connect { waited, source: source.clone() };
        let by = Instant::now() + settings.checkout_timeout;
        let _: Option<Redirect> = router.on_unreachable(&any, &error, by).await;
    }
    Ok((opened?, endpoint))
}

#[cfg(all(test, not(rediscope_shuttle)))]
mod tests {
    use super::*;
    use crate::lock::tasks::renewer::tests::client;

    /// The tasks of the runtime are not run: each step is one here.
    #[test]
    fn a_task_that_is_dropped_late_leaves_the_next_one_registered() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (client, listener) = (client(), TaskListener::new(Process::here()));
        listener.listen(client.own(), runtime.handle());
        let first = Running { listener: Arc::clone(&listener), number: 1 };
        // No caller waits, and it ends.
        assert!(listener.ends());
        listener.listen(client.own(), runtime.handle());
        drop(first);
        assert!(lock(&listener.state).running, "another one would be started beside it");
    }
}
