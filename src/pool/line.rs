//! A checked-out connection, as threads and tasks hold it, and what is recorded on it.
//!
//! A connection that is found dead is replaced under its checkout, and the idle connections of its
//! pool are probed.
//!
//! A future that is dropped before its end may leave a connection that awaits a reply. That one is
//! closed when it is returned.

use std::sync::Arc;
use std::time::Instant;

use redis::Value;
use tracing::Level;

use crate::connection::connection::Connection;
use crate::connection::deadline::Deadline;
use crate::connection::wire::Wire;
use crate::error::any::Error;
use crate::error::applied::Applied;
use crate::error::checkout::CheckoutError;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::pool::blocking::BlockingCommand;
use crate::pool::context::PoolContext;
use crate::pool::early_watch::EarlyWatch;
use crate::pool::first_packet::Armed;
use crate::pool::retry_budget::RetryBudget;
use crate::protocol::connection_state::CloseReason;
use crate::protocol::server_error::ServerError;

/// A checked-out connection, or a permit for one.
pub(crate) trait Line: Send {
    type Wire: Wire;

    /// The pool's settings, counters and endpoint.
    fn context(&self) -> &PoolContext;

    /// Returns whether each command or MULTI needs ASKING before it: the server is the target of a
    /// migration.
    fn needs_asking(&self) -> bool;

    /// The connection as it is, unchecked.
    fn current(&mut self) -> Option<&mut Connection<Self::Wire>>;

    /// Takes an idle connection or waits for a new one. Dropped before its end, it leaves the line
    /// without a connection.
    fn connect(
        &mut self,
        deadline: Instant,
    ) -> impl Future<Output = Result<(), CheckoutError>> + Send;

    /// Closes a connection whose state forbids its reuse.
    fn close(&mut self);

    /// Returns whether a panic unwinds the caller, which may then wait for nothing.
    fn is_unwinding(&self) -> bool;

    /// Logs an event when the connection is returned: a subscriber may use the pool itself.
    fn log_later(&mut self, level: Level, event: impl FnOnce() + Send + 'static);

    /// Registers a blocking command that is about to be sent. Until the result is dropped, closing
    /// the pool ends the command.
    ///
    /// # Errors
    /// The pool is closed.
    fn begin_blocking(
        &self,
        command: &BlockingCommand,
    ) -> Result<impl Send + use<Self>, CheckoutError>;

    /// Returns whether the pool is closed for blocking commands.
    fn is_closed(&self) -> bool;

    /// Takes the WATCH and the reads of the caller that gets this connection next, to be sent behind an
    /// EXEC after which the connection watches the register `armed`. When the line is dropped, that
    /// caller gets the connection if the replies are [due](Connection::early_watch_is_due), and otherwise waits
    /// on, first in the queue.
    fn take_early_watch(&mut self, _armed: Option<Armed>) -> Option<Arc<EarlyWatch>> {
        None
    }

    /// Returns whether the caller whose WATCH was taken still waits for this connection.
    fn has_early_watch(&self) -> bool {
        false
    }

    /// Has that caller wait on for another connection. This one is closed if anything was sent for it.
    fn leave_early_watch(&mut self) {}

    /// Returns whether there is a connection. One without a scope's state is checked first, and
    /// closed if the peer closed it or sent unexpected bytes.
    fn has_connection(&mut self) -> bool {
        let checked = match self.current() {
            None => return false,
            Some(connection) if connection.state().is_clean() => connection.check_socket(),
            Some(_) => return true,
        };
        match checked {
            Ok(()) => true,
            Err(cause) => {
                self.on_lost(&cause);
                self.log_replaced(&cause);
                false
            }
        }
    }

    fn taint(&mut self, reason: CloseReason) {
        if let Some(connection) = self.current() {
            connection.taint(reason);
        }
    }

    /// Returns whether the connection replied so recently that it needs no probe.
    fn is_trusted(&mut self) -> bool {
        let last_alive = self.current().map(|connection| connection.last_alive());
        last_alive.is_some_and(|last_alive| self.context().trusts(last_alive))
    }

    /// The same before MULTI and commands in one write: a reply to other commands proves no right to it.
    fn is_trusted_with_multi(&mut self) -> bool {
        self.is_trusted()
            && self.current().is_some_and(|connection| !connection.state().refuses_multi())
    }

    /// Closes the connection, which was found dead, and has the idle ones probed.
    fn on_lost(&mut self, cause: &ConnectionError) {
        self.context().distrust_idle(cause);
        // The connection's state has the reason with which the pool closes it.
        self.close();
    }

    /// The same for replies that were awaited until `deadline`. If that was cut short by the caller's own
    /// deadline, the idle connections are probed, and not closed.
    fn on_no_reply(&mut self, cause: &ConnectionError, deadline: Deadline) {
        if deadline.is_cut() && cause.kind() == ConnectionErrorKind::TimedOut {
            self.context().probe_idle();
            return self.close();
        }
        self.on_lost(cause);
    }

    /// Replaces older connections if the error shows that the server's role has changed.
    fn on_server_error(&mut self, code: &str) {
        if self.on_server_error_quiet(code) {
            self.log_server_change();
        }
    }

    /// The same without a log. Returns true if the server's role has changed, so that the caller
    /// logs it.
    fn on_server_error_quiet(&mut self, code: &str) -> bool {
        let shows_change = ServerError::is_of_replica(code);
        let changed = shows_change && self.server_changed();
        if shows_change && self.context().endpoint.may_switch() {
            self.taint(CloseReason::Outdated);
        }
        changed
    }

    /// Replaces all older connections after the server rejected a write, at most once a second. A
    /// connection from before the last replacement proves nothing new. A newer one does only if it
    /// has written: a server that was read-only all along has not changed.
    fn server_changed(&mut self) -> bool {
        let connection = self.current();
        let seen = connection.map(|connection| (connection.generation(), connection.has_written()));
        let Some((of_connection, has_written)) = seen else { return false };
        let context = self.context();
        context.endpoint.invalidate();
        let generation = context.generation();
        let unchanged = generation > 0 && !has_written;
        of_connection >= generation && !unchanged && context.replace_all()
    }

    fn log_server_change(&mut self) {
        let address = self.context().endpoint.address().into_owned();
        self.log_later(Level::WARN, move || {
            tracing::warn!(
                server.address = &*address,
                "the server is read-only or without a master: all older connections are replaced"
            );
        });
    }

    /// Logs that a read is retried on another connection.
    fn log_retry(&mut self, cause: &ConnectionError) {
        self.log_lost(cause, "read sent again on another connection");
    }

    /// Logs that the connection was found dead before anything was sent on it.
    fn log_replaced(&mut self, cause: &ConnectionError) {
        self.log_lost(cause, "dead connection replaced before use");
    }

    fn log_lost(&mut self, cause: &ConnectionError, text: &'static str) {
        let cause = cause.clone();
        self.log_later(Level::DEBUG, move || {
            tracing::debug!(cause = %format_args!("{cause:#}"), "{text}");
        });
    }

    /// Records what the replies prove: that the server's role has changed, or that a write was
    /// applied. `writes` are the replies to commands that write.
    fn on_replies(&mut self, replies: &[Value], writes: &[Value]) {
        let applied = writes.iter().any(|reply| !matches!(reply, Value::ServerError(_)));
        // This comes first: READONLY shows a change of role only after an applied write.
        if let Some(connection) = self.current()
            && applied
        {
            connection.mark_written();
        }
        for reply in replies {
            if let Value::ServerError(error) = reply {
                self.on_server_error(error.code());
            }
        }
    }

    fn retry_budget(&self, deadline: Instant) -> RetryBudget {
        RetryBudget::new(self.context().settings().max_size, deadline)
    }

    /// Returns the deadline of one exchange with the server, by the pool's `response_timeout`.
    fn response_deadline(&self) -> Deadline {
        Deadline::after(self.context().settings().response_timeout)
    }
}

/// Makes sure that the connection is alive before a write is sent on it. It replied within the trust
/// window, or it replies to PING, or it is replaced.
pub(crate) async fn ensure_alive<L: Line>(
    line: &mut L,
    checkout_deadline: Instant,
) -> Result<(), Error> {
    loop {
        while !line.has_connection() {
            line.connect(checkout_deadline).await?;
        }
        if line.is_trusted() {
            return Ok(());
        }
        let deadline = line.response_deadline().capped(checkout_deadline);
        let Some(connection) = line.current() else { return Err(CheckoutError::Closed.into()) };
        let Err(cause) = connection.ping(deadline).await else { return Ok(()) };
        line.on_no_reply(&cause, deadline);
        if Instant::now() >= checkout_deadline {
            let during = "PING".to_owned();
            return Err(Error::Lost { during, applied: Applied::No, source: cause });
        }
        line.log_replaced(&cause);
    }
}
