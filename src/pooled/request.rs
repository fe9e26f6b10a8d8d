//! A request of the pooled handle: checked by the names of its commands, then sent. No write is
//! sent twice.

use std::borrow::Cow;
use std::panic::Location;
use std::time::{Duration, Instant};

use redis::Value;

use crate::error::any::Error;
use crate::error::applied::Applied;
use crate::error::connection::ConnectionError;
use crate::pool::ask::{Question, ask};
use crate::pool::batch_request::BatchRequest;
use crate::pool::batch_response::{BatchResponse, Interrupted};
use crate::pool::blocking::BlockingCommand;
use crate::pool::first_packet::FirstPacket;
use crate::pool::line::Line;
use crate::pool::retry_budget::RetryBudget;
use crate::pool::router::{Joined, Router};
use crate::pool::server_pool::ServerPool;
use crate::pooled::error_tag;
use crate::protocol::batch;
use crate::protocol::batch::RequestKind;
use crate::protocol::cluster::route::Route;
use crate::protocol::command::blocking::Blocking;
use crate::protocol::command::blocking::blocking;
use crate::protocol::command::display_name::display_name;
use crate::protocol::command::reader::CommandReader;
use crate::protocol::command::refused::SendContext;
use crate::protocol::command::refused::is_refused;
use crate::protocol::command::table::{self, Command, is_read_only};

/// The response to a command that a lane has carried, if it is not the command's reply.
pub(crate) struct Carried {
    pub(crate) response: BatchResponse,
    /// When another connection is no longer waited for.
    pub(crate) deadline: Instant,
}

/// How a command is sent with those of other callers; `None`: it is sent alone.
pub(crate) fn batch_kind(row: &Command, bytes: usize) -> Option<RequestKind> {
    let read_only = row.has(table::READ);
    let flag = if read_only { table::BATCH_READ } else { table::BATCH };
    let fits = batch::fits_in_batch(1, bytes) && row.has(flag);
    fits.then_some(if read_only { RequestKind::Read } else { RequestKind::Calls { count: 1 } })
}

/// Returns the reply to a command that was sent with those of other callers, or the other response.
pub(crate) fn reply(read_only: bool, response: BatchResponse) -> Result<Value, BatchResponse> {
    match response {
        BatchResponse::Read(value) if read_only => Ok(value),
        BatchResponse::Calls(mut values) if !read_only => Ok(values.pop().unwrap_or(Value::Nil)),
        other => Err(other),
    }
}

/// A request, with the properties that the names of its commands imply.
pub(crate) struct Request {
    /// The first command's name, for errors.
    pub(crate) name: Cow<'static, str>,
    commands: usize,
    pub(crate) read_only: bool,
    /// A reply may contain nested errors.
    pub(crate) may_nest: bool,
    /// How the request may be sent in one write with other callers' requests. A write may only be sent
    /// so on a lane.
    batch: Option<RequestKind>,
    /// The first command that blocks on the server, and the time that all of them block.
    blocking: Option<BlockingCommand>,
}

impl Request {
    /// `place`: the place that made the handle.
    pub(crate) fn parse(
        bytes: &[u8],
        replies: usize,
        place: &'static Location<'static>,
    ) -> Result<Self, Error> {
        let mut request = Self {
            name: Cow::Borrowed(""),
            commands: 0,
            read_only: true,
            may_nest: false,
            batch: None,
            blocking: None,
        };
        let mut small = None;
        for args in CommandReader::new(bytes) {
            let Ok(args) = args else {
                return Err(Error::Refused {
                    command: "a request that is not RESP".to_owned(),
                    hint: "build it with redis::cmd(name) or redis::pipe()",
                });
            };
            let (name, sub) = (args.first().copied().unwrap_or_default(), args.get(1).copied());
            let row = table::find(name);
            if request.name.is_empty() {
                request.name = match row {
                    Some(row) => Cow::Borrowed(row.name),
                    None => Cow::Owned(display_name(name)),
                };
            }
            request.commands += 1;
            // Neither refused nor blocking, so the row is all there is to know.
            small = row.filter(|row| row.is_small());
            if let Some(row) = small {
                request.read_only &= row.has(table::READ);
                continue;
            }
            if is_refused(name, sub, SendContext::Alone) {
                return Err(Error::refused(display_name(name), SendContext::Alone));
            }
            match blocking(&args) {
                Blocking::No => {}
                Blocking::For(timeout) => {
                    let blocking = request.blocking.get_or_insert_with(|| {
                        let command = display_name(name).into();
                        BlockingCommand { command, place, timeout: Duration::ZERO }
                    });
                    blocking.timeout += timeout;
                }
                Blocking::Forever => {
                    return Err(Error::Refused {
                        command: display_name(name),
                        hint: "it would occupy a shared connection forever; give it a timeout",
                    });
                }
            }
            request.read_only &= is_read_only(name, sub);
            request.may_nest |= error_tag::may_nest(name);
        }
        if request.commands == 1 {
            request.batch = small.and_then(|row| batch_kind(row, bytes.len()));
        }
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

    /// The commands of a whole transaction, whose queue has checked them.
    pub(crate) fn of_block(body: &[u8]) -> Self {
        let mut request = Self {
            name: Cow::Borrowed("a pipeline"),
            commands: 0,
            read_only: true,
            may_nest: false,
            batch: None,
            blocking: None,
        };
        for args in CommandReader::new(body).flatten() {
            let (name, sub) = (args.first().copied().unwrap_or_default(), args.get(1).copied());
            request.commands += 1;
            request.read_only &= is_read_only(name, sub);
            request.may_nest |= error_tag::may_nest(name);
        }
        request
    }

    /// # Errors
    /// The request is not a read, and its handle reads from replicas.
    pub(crate) fn ensure_read(&self) -> Result<(), Error> {
        if self.read_only {
            return Ok(());
        }
        let hint = "this handle reads from replicas: use SessionManager::pooled";
        Err(Error::Refused { command: self.name.to_string(), hint })
    }

    /// Sends the request on a connection of the route, and again on another one if that changes
    /// nothing. `carried`: what became of it on a lane.
    ///
    /// Dropped before its end, it may have sent any part of the request. A connection that awaits
    /// replies is then closed. A request in another caller's batch may still be sent.
    /// Returns the connection too, unless another caller's carried the request.
    pub(crate) async fn ask<P: ServerPool>(
        &self,
        router: &Router<P>,
        route: &Route,
        (bytes, replies): (&[u8], usize),
        checkout_deadline: Instant,
        carried: Option<Box<Carried>>,
    ) -> Result<(Vec<Value>, Option<P::Line>), Error> {
        let mut budget = RetryBudget::new(router.settings().max_size, checkout_deadline);
        let mut line = None;
        let batch = self.batch.filter(|_| self.read_only || P::HAS_LANES);
        let mut carried = carried.map(|carried| carried.response);
        while let Some(kind) = batch.filter(|_| line.is_none()) {
            let job = || BatchRequest::new(bytes.to_vec(), kind);
            let response = match carried.take() {
                Some(response) => response,
                None => match router.join(route, checkout_deadline, job).await? {
                    Joined::Alone(alone) => {
                        line = Some(alone);
                        break;
                    }
                    Joined::Response(response) => response,
                },
            };
            let other = match reply(self.read_only, response) {
                Ok(value) => return Ok((vec![value], None)),
                Err(other) => other,
            };
            let (left, trusted, cause) = match other {
                BatchResponse::Interrupted(Interrupted { left, trusted, cause }) => {
                    (left, trusted, cause)
                }
                _ => (true, true, ConnectionError::unexpected("another request's replies")),
            };
            let harmless = self.read_only || !left;
            if !harmless || !budget.allow(trusted, &cause) {
                let applied = if harmless { Applied::No } else { Applied::Unknown };
                return Err(Error::Lost { during: self.name.to_string(), applied, source: cause });
            }
            tracing::debug!(%cause, "command sent again on another connection");
        }
        let packet = || match self.blocking {
            None => FirstPacket::calls(bytes, replies),
            Some(_) => None,
        };
        let mut line = match line {
            Some(line) => line,
            None => router.checkout_with(route, checkout_deadline, &packet).await?,
        };
        let question = Question {
            name: &self.name,
            bytes,
            replies,
            read_only: self.read_only,
            single: self.commands == 1,
            blocking: self.blocking.as_ref(),
        };
        let mut replies = Vec::with_capacity(replies);
        let mut take = |nth, value| {
            // A repetition begins anew.
            replies.truncate(nth);
            replies.push(value);
        };
        ask(&mut line, &question, budget, &mut take).await?;
        // The later commands of a pipeline may be reads.
        let writes = replies.get(..usize::from(!self.read_only)).unwrap_or_default();
        line.on_replies(&replies, writes);
        Ok((replies, Some(line)))
    }
}
