//! A connection that one task has alone, and the permit for it.

use std::time::Instant;

use tracing::Level;

use crate::connection::connection::Connection;
use crate::connection::tasks::wire::TaskWire;
use crate::error::checkout::CheckoutError;
use crate::pool::blocking::BlockingCommand;
use crate::pool::context::PoolContext;
use crate::pool::line::Line;

/// A connection that one task has alone, and the permit for it. On drop a clean connection is idle
/// again; any other is cleaned by its own task, which then passes the permit on.
pub(crate) struct TaskLine {}

impl Line for TaskLine {
    type Wire = TaskWire;

    fn context(&self) -> &PoolContext {
        todo!()
    }

    fn needs_asking(&self) -> bool {
        todo!()
    }

    fn current(&mut self) -> Option<&mut Connection<TaskWire>> {
        todo!()
    }

    async fn connect(&mut self, _deadline: Instant) -> Result<(), CheckoutError> {
        todo!()
    }

    fn close(&mut self) {
        todo!()
    }

    fn is_unwinding(&self) -> bool {
        todo!()
    }

    fn log_later(&mut self, _level: Level, _event: impl FnOnce() + Send + 'static) {
        todo!()
    }

    fn begin_blocking(
        &self,
        _command: &BlockingCommand,
    ) -> Result<impl Send + use<>, CheckoutError> {
        Ok(())
    }

    fn is_closed(&self) -> bool {
        todo!()
    }
}
