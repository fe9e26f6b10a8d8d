//! A connection on which the server sends messages at any time, such as those of subscribed channels.

use std::collections::VecDeque;
use std::mem;
use std::task::{Context, Poll};
use std::time::Instant;

use redis::Value;

use crate::connection::connection::Connection;
use crate::connection::tasks::exchange::Shared;
use crate::connection::tasks::wire::TaskWire;
use crate::error::connection::ConnectionError;
use crate::protocol::resp::reply::Reply;

/// A connection on which the server sends messages at any time. Its drop closes the connection.
pub(crate) struct TaskStream {
    connection: Connection<TaskWire>,
    /// The messages that were not taken yet.
    replies: VecDeque<Reply>,
}

impl TaskStream {
    /// From now on each reply and each push is one message.
    pub(crate) fn new(connection: Connection<TaskWire>) -> Self {
        let stream = Self { connection, replies: VecDeque::new() };
        let shared = stream.shared();
        let mut exchange = shared.lock();
        exchange.streams = true;
        exchange.replies.clear();
        shared.wake_after(exchange);
        stream
    }

    fn shared(&self) -> &Shared {
        &self.connection.wire().task().shared
    }

    /// See [`Connection::needs_reauth`].
    pub(crate) fn needs_reauth(&self, version: u64) -> bool {
        self.connection.needs_reauth(version)
    }

    /// Hands bytes to the connection's task, which has until `deadline` to write them.
    ///
    /// # Errors
    /// The connection has ended.
    pub(crate) fn send(&self, bytes: &[u8], deadline: Instant) -> Result<(), ConnectionError> {
        let shared = self.shared();
        let mut exchange = shared.lock();
        if let Some(failure) = &exchange.failure {
            return Err(failure.error.clone());
        }
        exchange.bytes.extend_from_slice(bytes);
        exchange.message = Some(0);
        exchange.deadline = deadline;
        shared.wake_after(exchange);
        Ok(())
    }

    /// Returns the next message. Wakes the task later if there is none yet.
    ///
    /// # Errors
    /// The connection has ended, and all messages were returned.
    pub(crate) fn poll_next(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Value, ConnectionError>> {
        if let Some(reply) = self.replies.pop_front() {
            return Poll::Ready(Ok(reply.into_value()));
        }
        let mut exchange = self.connection.wire().task().shared.lock();
        mem::swap(&mut self.replies, &mut exchange.replies);
        if let Some(reply) = self.replies.pop_front() {
            return Poll::Ready(Ok(reply.into_value()));
        }
        if let Some(failure) = &exchange.failure {
            return Poll::Ready(Err(failure.error.clone()));
        }
        let former = match &exchange.caller {
            Some(caller) if caller.will_wake(context.waker()) => None,
            _ => exchange.caller.replace(context.waker().clone()),
        };
        drop(exchange);
        drop(former);
        Poll::Pending
    }
}
