//! One write of plain commands and its replies, repeated on other connections while that changes
//! nothing.

use redis::Value;

use crate::connection::deadline::Deadline;
use crate::error::any::Error;
use crate::error::applied::Applied;
use crate::error::checkout::CheckoutError;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::pool::blocking::BlockingCommand;
use crate::pool::line::{Line, ensure_alive};
use crate::pool::retry_budget::RetryBudget;

/// Plain commands, sent in one write.
pub(crate) struct Question<'q> {
    /// The first command's name, for errors.
    pub(crate) name: &'q str,
    pub(crate) bytes: &'q [u8],
    /// Number of replies.
    pub(crate) replies: usize,
    /// The commands change nothing, so they may be sent again. Other commands are sent only on a
    /// connection that has just replied.
    pub(crate) read_only: bool,
    /// There is one command, which did not run if its last byte was not sent. The first commands of
    /// a cut pipeline may have arrived whole.
    pub(crate) single: bool,
    /// The first command that blocks on the server. Closing the pool ends it.
    pub(crate) blocking: Option<&'q BlockingCommand>,
}

/// Sends the commands and passes each reply with its number to `take`, from 0 again after each
/// repetition. After a loss another connection is used while `budget` allows it.
///
/// # Errors
/// No connection was available, or the connection was lost.
pub(crate) async fn ask<L: Line>(
    line: &mut L,
    question: &Question<'_>,
    mut budget: RetryBudget,
    take: &mut (dyn FnMut(usize, Value) + Send),
) -> Result<(), Error> {
    let Question { name, bytes, replies, read_only, single, blocking } = *question;
    let timeout = line.context().settings().response_timeout
        + blocking.map(|command| command.timeout).unwrap_or_default();
    loop {
        let was_sent = line.current().is_some_and(|connection| connection.sent_ahead().is_some());
        if !read_only && !was_sent {
            ensure_alive(line, budget.deadline).await?;
        }
        while !line.has_connection() {
            line.connect(budget.deadline).await?;
        }
        // One that was sent by the caller before was sent on a connection that had just replied.
        let trusted = was_sent || line.is_trusted();
        let registered = blocking.map(|command| line.begin_blocking(command)).transpose()?;
        let connection = line.current().ok_or(CheckoutError::Closed)?;
        let asked = connection.ask(bytes, replies, Deadline::after(timeout), take).await;
        drop(registered);
        let Err((sent, mut source)) = asked else { return Ok(()) };
        let is_closed = blocking.is_some() && line.is_closed();
        line.on_lost(&source);
        if is_closed {
            source = ended_by_close();
        }
        let harmless = read_only || (single && !sent);
        if !harmless || is_closed || !budget.allow(trusted, &source) {
            let applied = if harmless { Applied::No } else { Applied::Unknown };
            return Err(Error::Lost { during: name.to_owned(), applied, source });
        }
        line.log_retry(&source);
    }
}

fn ended_by_close() -> ConnectionError {
    let text = "the session manager was closed while the command waited on the server";
    ConnectionError::new(ConnectionErrorKind::Closed, text)
}
