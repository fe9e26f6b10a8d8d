//! A caller's access to the task that owns a connection.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::mem;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::runtime;

use crate::connection::deadline::Deadline;
use crate::connection::sentinel::queries::MasterConnection;
use crate::connection::tasks::exchange::{Failure, Shared};
use crate::connection::tasks::socket::{self, TaskSocket};
use crate::connection::tasks::socket_loop::ConnectionLoop;
use crate::connection::transport::closed;
use crate::connection::wire::Wire;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::protocol::resp::decode::SharedArrays;
use crate::protocol::resp::reply::Reply;
use crate::sync::timer::DeadlineTimer;

/// Maximum number of replies for which memory is kept.
const MAX_KEPT_REPLIES: usize = 1024;

/// A caller's access to the task that owns a connection. Its drop closes the connection.
pub(crate) struct TaskWire {
    task: ConnectionTask,
    /// The replies that the caller has not taken yet.
    replies: VecDeque<Reply>,
    failure: Option<Failure>,
    /// If the next message's first replies are for several callers: their parts, and their number.
    shared_replies: Option<(SharedArrays, u64)>,
}

/// A reference to a connection's task, which does not keep the connection open.
#[derive(Clone)]
pub(crate) struct ConnectionTask {
    pub(super) shared: Arc<Shared>,
}

/// The access to a connection, and the task that owns its socket, to be run by `runtime`.
pub(super) fn pair(socket: TaskSocket, runtime: runtime::Id) -> (TaskWire, ConnectionLoop) {
    let socket = Arc::new(socket);
    let shared = Arc::new(Shared::new(&socket, runtime));
    let task = ConnectionTask { shared: Arc::clone(&shared) };
    let wire = TaskWire { task, replies: VecDeque::new(), failure: None, shared_replies: None };
    (wire, ConnectionLoop::new(shared, socket))
}

impl TaskWire {
    /// The task of the connection.
    pub(crate) fn task(&self) -> &ConnectionTask {
        &self.task
    }

    fn start(
        &mut self,
        bytes: &[u8],
        awaited: u64,
        deadline: Deadline,
    ) -> Result<(), (usize, ConnectionError)> {
        if bytes.is_empty() {
            return Ok(());
        }
        if deadline.at() <= Instant::now() {
            return Err((0, ConnectionError::timed_out("no time left to send")));
        }
        let shared = &*self.task.shared;
        let mut exchange = shared.lock();
        if let Some(failure) = &exchange.failure {
            return Err((0, failure.error.clone()));
        }
        // Nothing of an earlier message is left.
        self.replies.clear();
        exchange.replies.clear();
        exchange.bytes.extend_from_slice(bytes);
        exchange.message = Some(awaited + exchange.message.unwrap_or_default());
        exchange.awaits = awaited > 0;
        exchange.shared_replies = self.shared_replies.take();
        exchange.deadline = deadline.at();
        shared.wake_after(exchange);
        Ok(())
    }

    fn poll_fill(
        &mut self,
        context: &mut Context<'_>,
        deadline: Deadline,
    ) -> Poll<Result<(), ConnectionError>> {
        let shared = &*self.task.shared;
        let mut exchange = shared.lock();
        if let Some(failure) = &exchange.failure {
            self.failure = Some(failure.clone());
        }
        if !exchange.replies.is_empty() {
            mem::swap(&mut self.replies, &mut exchange.replies);
            return Poll::Ready(Ok(()));
        }
        match &self.failure {
            // The replies are all taken; the next one is the error.
            Some(failure) if failure.is_of_reply => return Poll::Ready(Ok(())),
            Some(failure) => return Poll::Ready(Err(failure.error.clone())),
            None => {}
        }
        if !exchange.awaits {
            return Poll::Ready(Err(ConnectionError::unexpected("no reply is awaited")));
        }
        let former = match &exchange.caller {
            Some(caller) if caller.will_wake(context.waker()) => None,
            _ => exchange.caller.replace(context.waker().clone()),
        };
        let before = mem::replace(&mut exchange.deadline, deadline.at());
        if deadline.at() < before {
            shared.wake_after(exchange);
        } else {
            drop(exchange);
        }
        drop(former);
        Poll::Pending
    }
}

/// Whether the caller is a task of another runtime.
fn is_foreign(own: runtime::Id) -> bool {
    runtime::Handle::try_current().is_ok_and(|runtime| runtime.id() != own)
}

/// Returns whether the bytes that have arrived begin a push or an attribute, as far as is known.
fn begins_push(socket: &TaskSocket) -> bool {
    matches!(socket::first_byte(socket), None | Some(b'>' | b'|'))
}

impl Drop for TaskWire {
    fn drop(&mut self) {
        let _: bool = self.task.shared.close();
    }
}

impl ConnectionTask {
    /// The runtime that runs the task.
    pub(crate) fn runtime(&self) -> runtime::Id {
        self.shared.runtime
    }

    /// Returns whether the socket is closed, or the task or its runtime has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.shared.is_closed()
    }

    /// Returns whether the task has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.shared.lock().has_ended
    }

    /// Returns whether replies are still to come, by the deadline of their message.
    pub(crate) fn awaits_reply(&self) -> bool {
        let exchange = self.shared.lock();
        exchange.awaits && exchange.deadline > Instant::now()
    }

    /// Closes the socket. A call in progress fails.
    pub(crate) fn shut_down(&self) {
        self.shared.shut_down();
    }

    /// A reference for the end of the connection to a former master.
    pub(crate) fn downgrade(&self) -> Weak<dyn MasterConnection> {
        Arc::<Shared>::downgrade(&self.shared) as _
    }

    /// Has the task run `future` beside its socket. If the task has ended, the future is returned.
    pub(crate) fn adopt(
        &self,
        future: Box<dyn Future<Output = ()> + Send>,
    ) -> Result<(), Box<dyn Future<Output = ()> + Send>> {
        let mut exchange = self.shared.lock();
        if exchange.has_ended {
            return Err(future);
        }
        exchange.adopted.push(Box::into_pin(future));
        self.shared.wake_after(exchange);
        Ok(())
    }
}

impl Shared {
    /// Closes the socket.
    fn shut_down(&self) {
        // Now, also if the runtime polls no task.
        if self.close()
            && let Some(socket) = self.socket.upgrade()
        {
            socket::shut_down(&socket);
        }
    }
}

impl MasterConnection for Shared {
    fn end(&self) -> bool {
        let is_first = !self.is_closed();
        self.shut_down();
        is_first
    }
}

impl Wire for TaskWire {
    const FINISHES_DROPPED: bool = true;

    fn limit_reply_size(&mut self, bytes: usize) {
        self.task.shared.lock().max_reply_bytes = Some(bytes);
    }

    fn share_replies(&mut self, arrays: SharedArrays, replies: u64) {
        // Not yet the task's: an earlier message may be waiting there.
        self.shared_replies = Some((arrays, replies));
    }

    fn split_replies(&mut self, own: u64) {
        self.task.shared.lock().own = Some(own);
    }

    fn may_be_watch(&self) -> Option<bool> {
        self.replies.front().map(Reply::may_be_of_watch)
    }

    /// Hands the message to the task, and does not wait until it is written.
    async fn send(
        &mut self,
        bytes: &[u8],
        awaited: u64,
        deadline: Deadline,
    ) -> Result<(), (usize, ConnectionError)> {
        self.start(bytes, awaited, deadline)
    }

    fn next(&mut self, most: u32) -> Result<Option<Reply>, ConnectionError> {
        match self.replies.pop_front() {
            Some(Reply::Queued(count)) if count > most => {
                self.replies.push_front(Reply::Queued(count - most));
                Ok(Some(Reply::Queued(most)))
            }
            Some(reply) => {
                if self.replies.is_empty() && self.replies.capacity() > MAX_KEPT_REPLIES {
                    self.replies = VecDeque::new();
                }
                Ok(Some(reply))
            }
            None => match &self.failure {
                Some(failure) if failure.is_of_reply => Err(failure.error.clone()),
                _ => Ok(None),
            },
        }
    }

    fn has_unread(&self) -> bool {
        !self.replies.is_empty()
    }

    /// Waits until all replies have arrived, or those before the [split](Wire::split_replies). The task fails
    /// the call at the deadline. In another runtime than the task's, which may not be run, the call has a
    /// timer of its own.
    fn fill(
        &mut self,
        deadline: Deadline,
    ) -> impl Future<Output = Result<(), ConnectionError>> + Send {
        let mut timer = None;
        poll_fn(move |context| match self.poll_fill(context, deadline) {
            Poll::Pending if is_foreign(self.task.runtime()) => {
                let timer = timer.get_or_insert_with(DeadlineTimer::default);
                ready!(timer.poll(context, deadline.at()));
                self.task.shut_down();
                Poll::Ready(Err(ConnectionError::timed_out("no reply in time")))
            }
            polled => polled,
        })
    }

    fn unsent(&self) -> Option<usize> {
        self.failure.as_ref().and_then(|failure| failure.unsent)
    }

    fn unread(&self) -> Option<usize> {
        self.failure.as_ref().and_then(|failure| failure.array)
    }

    fn check_socket(&mut self, pushes: bool) -> Result<(), ConnectionError> {
        self.check_unexpected(pushes)?;
        let shared = &*self.task.shared;
        // The task reads no byte under the lock without its consequence.
        let mut exchange = shared.lock();
        if shared.is_closed() {
            let failure = exchange.failure.clone();
            return Err(failure.map_or_else(closed, |failure| failure.error));
        }
        let Some(socket) = shared.socket.upgrade() else { return Err(closed()) };
        match socket::has_come(&socket) {
            Ok(false) => Ok(()),
            // The task reads them before it writes, and fails if there is more than pushes.
            Ok(true) if pushes && (shared.has_half() || begins_push(&socket)) => {
                exchange.has_come = true;
                Ok(())
            }
            Ok(true) => Err(ConnectionError::unexpected("a reply too many")),
            Err(error) => Err(ConnectionError::of_io(&error)),
        }
    }

    fn check_unexpected(&mut self, pushes: bool) -> Result<(), ConnectionError> {
        let shared = &*self.task.shared;
        if !self.replies.is_empty() || (shared.has_pushes() && !pushes) {
            return Err(ConnectionError::unexpected("a reply too many"));
        }
        if shared.is_closed()
            && let Some(Failure { error, .. }) = &shared.lock().failure
            && !matches!(error.kind(), ConnectionErrorKind::Closed | ConnectionErrorKind::Io)
        {
            return Err(error.clone());
        }
        Ok(())
    }
}
