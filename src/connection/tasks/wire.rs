//! A caller's access to the task that owns a connection.

use tokio::runtime;

use crate::connection::deadline::Deadline;
use crate::connection::wire::Wire;
use crate::error::connection::ConnectionError;
use crate::protocol::resp::reply::Reply;

/// A caller's access to the task that owns a connection. Its drop closes the connection.
pub(crate) struct TaskWire {}

/// A reference to a connection's task, which does not keep the connection open.
#[derive(Clone)]
pub(crate) struct ConnectionTask {}

impl TaskWire {
    /// The task of the connection.
    pub(crate) fn task(&self) -> &ConnectionTask {
        todo!()
    }
}

impl ConnectionTask {
    /// The runtime that runs the task.
    pub(crate) fn runtime(&self) -> runtime::Id {
        todo!()
    }

    /// Returns whether the socket is closed, or the task or its runtime has ended.
    pub(crate) fn is_closed(&self) -> bool {
        todo!()
    }

    /// Closes the socket. A call in progress fails.
    pub(crate) fn shut_down(&self) {
        todo!()
    }

    /// Has the task run `future` beside its socket. One future at a time; if the task has ended, the
    /// future is returned.
    pub(crate) fn adopt(
        &self,
        _future: Box<dyn Future<Output = ()> + Send>,
    ) -> Result<(), Box<dyn Future<Output = ()> + Send>> {
        todo!()
    }
}

impl Wire for TaskWire {
    fn limit_reply_size(&mut self, _bytes: usize) {
        todo!()
    }

    async fn send(
        &mut self,
        _bytes: &[u8],
        _awaited: u64,
        _deadline: Deadline,
    ) -> Result<(), (usize, ConnectionError)> {
        todo!()
    }

    fn next(&mut self, _most: u32) -> Result<Option<Reply>, ConnectionError> {
        todo!()
    }

    fn has_unread(&self) -> bool {
        todo!()
    }

    async fn fill(&mut self, _deadline: Deadline) -> Result<(), ConnectionError> {
        todo!()
    }

    fn unread(&self) -> Option<usize> {
        todo!()
    }

    fn check_socket(&mut self, _pushes: bool) -> Result<(), ConnectionError> {
        todo!()
    }

    fn check_unexpected(&mut self, _pushes: bool) -> Result<(), ConnectionError> {
        todo!()
    }
}
