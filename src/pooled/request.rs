//! A request of the pooled handle: checked by the names of its commands, then sent. No write is
//! sent twice.

use std::panic::Location;
use std::time::{Duration, Instant};

use redis::Value;

use crate::connection::deadline::Deadline;
use crate::error::any::Error;
use crate::error::applied::Applied;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::pool::batch::send_batch;
use crate::pool::batch_response::{BatchResponse, Interrupted};
use crate::pool::blocking::BlockingCommand;
use crate::pool::checkout::BatchCheckout;
use crate::pool::checkout::Checkout;
use crate::pool::retry_budget::RetryBudget;
use crate::pool::router::Router;
use crate::pooled::error_tag;
use crate::protocol::batch;
use crate::protocol::batch::{BatchRequest, RequestKind};
use crate::protocol::cluster::route::Route;
use crate::protocol::command::blocking::Blocking;
use crate::protocol::command::blocking::blocking;
use crate::protocol::command::display_name::display_name;
use crate::protocol::command::reader::CommandReader;
use crate::protocol::command::refused::SendContext;
use crate::protocol::command::refused::is_refused;
use crate::protocol::command::table::is_read_only;
use crate::protocol::connection_state::Expect;

/// A request, with the properties that the names of its commands imply.
pub(crate) struct Request {
    /// The first command's name, for errors.
    pub(crate) name: String,
    commands: usize,
    pub(crate) read_only: bool,
    /// A reply may contain nested errors.
    pub(crate) may_nest: bool,
    /// The request may be sent in one write with other callers' requests.
    batchable: bool,
    blocks_for: Duration,
    /// The first command that blocks on the server.
    blocking: Option<String>,
    /// The place that made the handle.
    place: &'static Location<'static>,
}

impl Request {
    #[track_caller]
    pub(crate) fn parse(bytes: &[u8], replies: usize) -> Result<Self, Error> {
        let mut request = Self {
            name: String::new(),
            commands: 0,
            read_only: true,
            may_nest: false,
            batchable: false,
            blocks_for: Duration::ZERO,
            blocking: None,
            place: Location::caller(),
        };
        for args in CommandReader::new(bytes) {
            let Ok(args) = args else {
                return Err(Error::Refused {
                    command: "a request that is not RESP".to_owned(),
                    hint: "build it with redis::cmd(name) or redis::pipe()",
                });
            };
            let (name, sub) = (args.first().copied().unwrap_or_default(), args.get(1).copied());
            if request.name.is_empty() {
                request.name = display_name(name);
            }
            if is_refused(name, sub, SendContext::Alone) {
                return Err(Error::refused(display_name(name), SendContext::Alone));
            }
            match blocking(&args) {
                Blocking::No => {}
                Blocking::For(timeout) => {
                    request.blocks_for += timeout;
                    request.blocking.get_or_insert_with(|| display_name(name));
                }
                Blocking::Forever => {
                    return Err(Error::Refused {
                        command: display_name(name),
                        hint: "it would occupy a shared connection forever; give it a timeout",
                    });
                }
            }
            request.commands += 1;
            request.read_only &= is_read_only(name, sub);
            request.may_nest |= error_tag::may_nest(name);
        }
        request.batchable = request.read_only
            && request.commands == 1
            && batch::is_batchable_read(&request.name)
            && batch::fits_in_batch(1, bytes.len());
        if request.commands == 0 {
            return Err(Error::Refused {
                command: "a request without a command".to_owned(),
                hint: "add one to the pipeline",
            });
        }
        // An unread reply would go to the connection's next caller.
        if request.commands != replies {
            return Err(Error::Refused {
                command: format!(
                    "a request of {} commands for {replies} replies",
                    request.commands
                ),
                hint: "request one reply for each command",
            });
        }
        Ok(request)
    }

    /// Sets the place that made the handle.
    pub(crate) fn of_handle(mut self, place: &'static Location<'static>) -> Self {
        self.place = place;
        self
    }

    fn waiting(&self) -> Option<BlockingCommand> {
        let command = self.blocking.as_deref()?.into();
        Some(BlockingCommand { command, place: self.place })
    }

    /// Sends the request on a connection of the route, and again on another one if that changes
    /// nothing.
    pub(crate) fn ask(
        &self,
        router: &Router,
        route: &Route,
        (bytes, offset, count): (&[u8], usize, usize),
        checkout_deadline: Instant,
    ) -> Result<Vec<Value>, Error> {
        let settings = router.settings();
        let mut repeats = RetryBudget::new(settings.max_size);
        let mut checkout = None;
        while self.batchable && checkout.is_none() {
            let job = || BatchRequest { bytes: bytes.to_vec(), kind: RequestKind::Read };
            let settled = match router.checkout_batched(route, checkout_deadline, job)? {
                BatchCheckout::Alone(alone) => {
                    checkout = Some(alone);
                    break;
                }
                BatchCheckout::Lead(mut leading, own) => {
                    leading.ensure_alive(checkout_deadline)?;
                    send_batch(leading, &own)
                }
                BatchCheckout::Response(settled) => settled,
            };
            let cause = match settled {
                BatchResponse::Read(value) => return Ok(vec![value]),
                BatchResponse::Interrupted(Interrupted { cause, .. }) => cause,
                BatchResponse::Block(_) | BatchResponse::Calls(_) => {
                    ConnectionError::unexpected("another request's replies for a read")
                }
            };
            if !repeats.allow(true, &cause) || Instant::now() >= checkout_deadline {
                return Err(Error::Lost {
                    during: self.name.clone(),
                    applied: Applied::No,
                    source: cause,
                });
            }
            tracing::debug!(%cause, "read sent again on another connection");
        }
        let mut checkout = match checkout {
            Some(checkout) => checkout,
            None => router.checkout(route, checkout_deadline)?,
        };
        let waiting = self.waiting();
        loop {
            if !self.read_only {
                checkout.ensure_alive(checkout_deadline)?;
            }
            checkout.connection(checkout_deadline)?;
            let trusted = checkout.is_trusted();
            let deadline = Deadline::after(settings.response_timeout + self.blocks_for);
            let pool = waiting.is_some().then(|| checkout.pool().clone());
            let begun = match (&waiting, &pool) {
                (Some(waiting), Some(pool)) => Some(checkout.begin_blocking(pool, waiting)?),
                _ => None,
            };
            let asked = ask(&mut checkout, bytes, offset, count, deadline, checkout_deadline);
            drop(begun);
            match asked {
                Ok(replies) => {
                    if !self.read_only
                        && !matches!(replies.first(), Some(Value::ServerError(_)))
                        && let Some(connection) = checkout.current()
                    {
                        connection.mark_written();
                    }
                    for value in &replies {
                        if let Value::ServerError(error) = value {
                            checkout.on_server_error(error.code());
                        }
                    }
                    return Ok(replies);
                }
                Err(Failed::Checkout(error)) => return Err(error),
                Err(Failed::Lost { sent, cause }) => {
                    let closed = waiting.is_some() && checkout.is_pool_closed();
                    checkout.on_lost(&cause);
                    let cause = if closed { ended_by_close() } else { cause };
                    // Reads apply nothing, and half a command is not run. The first commands of a
                    // cut pipeline may have arrived whole.
                    let harmless = self.read_only || (!sent && self.commands == 1);
                    let again = harmless && !closed && repeats.allow(trusted, &cause);
                    if !again || Instant::now() >= checkout_deadline {
                        let applied = if harmless { Applied::No } else { Applied::Unknown };
                        let during = self.name.clone();
                        return Err(Error::Lost { during, applied, source: cause });
                    }
                    checkout.log_retry(&cause);
                }
            }
        }
    }
}

fn ended_by_close() -> ConnectionError {
    let text = "the session manager was closed while the command waited on the server";
    ConnectionError::new(ConnectionErrorKind::Closed, text)
}

enum Failed {
    Checkout(Error),
    Lost { sent: bool, cause: ConnectionError },
}

fn ask(
    checkout: &mut Checkout,
    bytes: &[u8],
    offset: usize,
    count: usize,
    deadline: Deadline,
    checkout_deadline: Instant,
) -> Result<Vec<Value>, Failed> {
    let connection = checkout.connection(checkout_deadline).map_err(Failed::Checkout)?;
    let expected = [(Expect::Plain, (offset + count) as u32)];
    connection
        .send(bytes, &expected, deadline)
        .map_err(|cause| Failed::Lost { sent: false, cause })?;
    let mut replies = Vec::with_capacity(count);
    for nth in 0..offset + count {
        let value =
            connection.value(deadline).map_err(|cause| Failed::Lost { sent: true, cause })?;
        if nth >= offset {
            replies.push(value);
        }
    }
    connection.mark_alive();
    Ok(replies)
}
