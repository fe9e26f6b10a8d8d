//! The connection of a lane, and what is recorded on it.

use std::sync::Arc;
use std::time::Instant;

use tracing::Level;

use crate::connection::connection::Connection;
use crate::connection::tasks::wire::TaskWire;
use crate::error::checkout::CheckoutError;
use crate::pool::blocking::BlockingCommand;
use crate::pool::context::PoolContext;
use crate::pool::line::Line;

/// The connection of a lane. Another one takes its place only in another task.
pub(crate) struct LaneLine {
    context: Arc<PoolContext>,
    connection: Option<Connection<TaskWire>>,
}

impl LaneLine {
    pub(crate) fn new(context: Arc<PoolContext>, connection: Connection<TaskWire>) -> Self {
        Self { context, connection: Some(connection) }
    }
}

impl Line for LaneLine {
    type Wire = TaskWire;

    fn context(&self) -> &PoolContext {
        &self.context
    }

    fn needs_asking(&self) -> bool {
        false
    }

    fn current(&mut self) -> Option<&mut Connection<TaskWire>> {
        self.connection.as_mut()
    }

    async fn connect(&mut self, _deadline: Instant) -> Result<(), CheckoutError> {
        Err(CheckoutError::Closed)
    }

    fn close(&mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        let generation = self.context.generation();
        // Without a reason its pool is closed, or it was idle for too long.
        let Some(reason) = connection.close_reason(Instant::now(), generation) else { return };
        self.context.shared.counters.replaced(reason);
        let address = self.context.endpoint.address().into_owned();
        self.log_later(Level::DEBUG, move || {
            let reason = reason.as_str();
            tracing::debug!(server.address = &*address, reason, "connection replaced");
        });
    }

    fn is_unwinding(&self) -> bool {
        false
    }

    /// Logs on the manager's thread: other tasks wait for this one.
    fn log_later(&mut self, level: Level, event: impl FnOnce() + Send + 'static) {
        self.context.config.logging.log_thread.log(level, event);
    }

    fn begin_blocking(
        &self,
        _command: &BlockingCommand,
    ) -> Result<impl Send + use<>, CheckoutError> {
        Err::<(), _>(CheckoutError::Closed)
    }

    fn is_closed(&self) -> bool {
        self.context.shared.is_closed()
    }
}
