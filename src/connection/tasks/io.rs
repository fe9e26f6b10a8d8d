//! What a decision waits for, as tasks do it.

use std::future::poll_fn;
use std::mem;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use scopeguard::ScopeGuard;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tracing::Instrument as _;
use tracing::instrument::WithSubscriber as _;

use crate::connection::connection::Connection;
use crate::connection::deadline::{self, Deadline};
use crate::connection::endpoint::Endpoint;
use crate::connection::handshake::{OpenOptions, shake_hands};
use crate::connection::io::Io;
use crate::connection::tasks::connect::{connect, login, login_version};
use crate::connection::tasks::master;
use crate::connection::tasks::wire::{TaskWire, pair};
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::settings::settings::Settings;
use crate::sync::timer::until;

/// Maximum time past its deadline in which the result of a query is awaited, for its reason.
pub(crate) const QUERY_GRACE: Duration = Duration::from_millis(50);

/// The callers are tasks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tasks;

impl Io for Tasks {
    type Wire = TaskWire;

    fn is_usable_here(wire: &TaskWire) -> bool {
        let here = Handle::try_current().map(|runtime| runtime.id());
        !wire.task().is_closed() && here.is_ok_and(|here| wire.task().runtime() == here)
    }

    async fn login_version(
        endpoint: &Endpoint,
        settings: &Settings,
        deadline: Instant,
    ) -> Option<u64> {
        login_version(endpoint, settings, deadline).await
    }

    async fn pause(time: Duration) {
        if time > Duration::ZERO {
            let _: Option<()> = until(deadline::after(time), std::future::pending()).await;
        }
    }

    async fn apart<T: Send + 'static>(
        settings: &Settings,
        deadline: Instant,
        query: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let Ok(runtime) = Handle::try_current() else { return Some(query.await) };
        let (mut sender, output) = oneshot::channel();
        let mut output = QueryCaller::new(settings, output);
        let task = async move {
            let mut query = pin!(query);
            let output = poll_fn(|context| match sender.poll_closed(context) {
                Poll::Ready(()) => Poll::Ready(None),
                Poll::Pending => query.as_mut().poll(context).map(Some),
            });
            if let Some(output) = output.await {
                let _: Result<(), T> = sender.send(output);
            }
        };
        spawn_query(settings, &runtime, task);
        until(deadline::later(deadline, QUERY_GRACE), output.receiver()?).await?.ok()
    }

    async fn open(
        endpoint: &Endpoint,
        settings: &Settings,
        options: OpenOptions,
    ) -> Result<Connection<TaskWire>, ConnectionError> {
        let runtime = Handle::try_current().map_err(|_| no_runtime())?;
        let (sender, opened) = oneshot::channel();
        let settings = Arc::new(settings.clone());
        let then = move |opened| {
            let _: Result<(), _> = sender.send(opened);
        };
        let task = spawn_connection(&runtime, endpoint.clone(), settings, options, then);
        let aborts = scopeguard::guard(task, |task| task.abort());
        let opened = opened.await;
        let _: AbortHandle = ScopeGuard::into_inner(aborts);
        opened.unwrap_or_else(|_| Err(ended()))
    }
}

/// What the caller of a query waits with. Its drop ends the query; in a forked child the query and its
/// locks are the parent's.
pub(crate) struct QueryCaller<'s, R> {
    settings: &'s Settings,
    receiver: Option<R>,
}

impl<'s, R> QueryCaller<'s, R> {
    pub(crate) fn new(settings: &'s Settings, receiver: R) -> Self {
        Self { settings, receiver: Some(receiver) }
    }

    pub(crate) fn receiver(&mut self) -> Option<&mut R> {
        self.receiver.as_mut()
    }
}

impl<R> Drop for QueryCaller<'_, R> {
    fn drop(&mut self) {
        if self.settings.is_forked_child() {
            mem::forget(self.receiver.take());
        }
    }
}

/// Runs a query in a task of its own, with the caller's span and subscriber.
pub(crate) fn spawn_query(
    settings: &Settings,
    runtime: &Handle,
    query: impl Future<Output = ()> + Send + 'static,
) {
    let query = query.in_current_span().with_current_subscriber();
    let _: AbortHandle = settings.tasks.spawn(runtime, query);
}

/// Opens a connection in a task of its own on `runtime`, which passes the result to `then` and runs on
/// until the connection is closed.
///
/// `then` is called once, in any case: with an error if the task is aborted or its runtime is shut
/// down, which may be before this function returns. The caller holds no lock that `then` takes.
pub(crate) fn spawn_connection(
    runtime: &Handle,
    endpoint: Endpoint,
    settings: Arc<Settings>,
    options: OpenOptions,
    then: impl FnOnce(Result<Connection<TaskWire>, ConnectionError>) + Send + 'static,
) -> AbortHandle {
    let (id, tasks) = (runtime.id(), settings.tasks.clone());
    let then = scopeguard::guard(then, |then| then(Err(ended())));
    let opening = async move {
        let socket = async {
            // Before the timer starts: the provider's latency does not count against the server.
            let login = login(&endpoint, &settings, options.deadline).await?;
            let left = options
                .deadline
                .map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()));
            let limit = settings.connect_timeout.min(left);
            let deadline = Deadline::after(limit);
            let (server, left) = master::server(&endpoint, limit).await?;
            let socket = connect(&server, left).await.inspect_err(|_| endpoint.invalidate())?;
            Ok((login, server, socket, deadline))
        };
        let (login, server, socket, deadline) = match socket.await {
            Ok(connected) => connected,
            Err(error) => return ScopeGuard::into_inner(then)(Err(error)),
        };
        let peer = socket.peer_addr().ok();
        let in_clear = !socket.has_tls() && endpoint.host_and_port().1 != 0;
        let (wire, task) = pair(socket, id);
        let connection = wire.task().clone();
        if let Err(error) = endpoint.register(&server, connection.downgrade()) {
            return ScopeGuard::into_inner(then)(Err(error));
        }
        let shaking = async move {
            let opened =
                shake_hands(&endpoint, &settings, options, (login, wire, in_clear), deadline).await;
            if let (Err(error), Some(peer)) = (&opened, peer)
                && matches!(
                    error.kind(),
                    ConnectionErrorKind::TimedOut | ConnectionErrorKind::Closed
                )
            {
                settings.resolver.failed(peer);
            }
            ScopeGuard::into_inner(then)(opened);
        };
        // The task has not ended: it has not been polled.
        let _: Result<(), _> = connection.adopt(Box::new(shaking));
        task.await;
    };
    tasks.spawn(runtime, opening)
}

/// Opens a connection without its handshake, for tests of the wire.
#[cfg(all(test, feature = "tls-rustls"))]
pub(crate) async fn open_unproven(
    endpoint: &Endpoint,
    timeout: Duration,
) -> Result<Connection<TaskWire>, ConnectionError> {
    let runtime = Handle::current();
    let (server, left) = master::server(endpoint, timeout).await?;
    let (wire, task) = pair(connect(&server, left).await?, runtime.id());
    drop(runtime.spawn(task));
    Ok(Connection::new(wire, None, 0))
}

/// The error of a call outside of a runtime.
pub(crate) fn no_runtime() -> ConnectionError {
    let text = "the call is not polled by a runtime of tokio";
    ConnectionError::new(ConnectionErrorKind::Io, text).permanent()
}

fn ended() -> ConnectionError {
    let text = "the runtime of the connection has ended";
    ConnectionError::new(ConnectionErrorKind::Closed, text)
}
