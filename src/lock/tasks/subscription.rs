//! The channels that one connection is subscribed to, and the messages that arrive on it.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use redis::Value;

use crate::connection::tasks::stream::TaskStream;
use crate::error::connection::ConnectionError;
use crate::lock::tasks::task_waiters::TaskWaiters;
use crate::lock::waiters::{LISTENER_IDLE, LISTENER_QUIET};
use crate::protocol::resp::encode::{PING, command_with, words};
use crate::protocol::server_error::ServerError;
use crate::sync::timer::DeadlineTimer;

/// The channels that one connection is subscribed to.
pub(super) struct Subscription {
    stream: TaskStream,
    waiters: Arc<TaskWaiters>,
    response_timeout: Duration,
    /// The commands whose replies are still to come, in their order.
    sent: VecDeque<(Sent, Instant)>,
    /// Channels whose subscription is not confirmed yet.
    requested: HashSet<String>,
    /// When a channel last was wanted.
    wanted: Instant,
    last_message: Instant,
    timer: DeadlineTimer,
}

/// A command, each of which has one reply.
enum Sent {
    Subscribe(String),
    Unsubscribe,
    Ping,
}

impl Subscription {
    pub(super) fn new(
        stream: TaskStream,
        waiters: Arc<TaskWaiters>,
        response_timeout: Duration,
    ) -> Self {
        let now = Instant::now();
        Self {
            stream,
            waiters,
            response_timeout,
            sent: VecDeque::new(),
            requested: HashSet::new(),
            wanted: now,
            last_message: now,
            timer: DeadlineTimer::default(),
        }
    }

    /// Whether the connection authenticated with another version of the credentials.
    pub(super) fn needs_reauth(&self, version: u64) -> bool {
        self.stream.needs_reauth(version)
    }

    /// Sends what has to change, and passes messages on. Ready when no caller waits for any channel
    /// for long enough.
    ///
    /// # Errors
    /// The connection is lost, or the server refuses.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        loop {
            while let Poll::Ready(message) = self.stream.poll_next(context) {
                self.last_message = Instant::now();
                self.on_message(message?)?;
            }
            self.change()?;
            let now = Instant::now();
            if !self.waiters.is_empty() {
                self.wanted = now;
            } else if now >= self.wanted + LISTENER_IDLE {
                return Poll::Ready(Ok(()));
            }
            let next = match self.sent.front() {
                Some((_, at)) if now >= *at + self.response_timeout => {
                    return Poll::Ready(Err(ConnectionError::timed_out("no reply in time")));
                }
                Some((_, at)) => *at + self.response_timeout,
                None if now >= self.last_message + LISTENER_QUIET => {
                    self.send(Sent::Ping)?;
                    continue;
                }
                None => self.last_message + LISTENER_QUIET,
            };
            let idle = self.waiters.is_empty().then_some(self.wanted + LISTENER_IDLE);
            let due = [self.waiters.next_unsubscribe(), idle];
            let next = due.into_iter().flatten().fold(next, Instant::min);
            ready!(self.timer.poll(context, next));
        }
    }

    /// Sends one channel in each command: each command has one reply.
    fn change(&mut self) -> Result<(), ConnectionError> {
        let changes = self.waiters.changes();
        for channel in changes.unsubscribe {
            self.unsubscribe(&channel)?;
        }
        for channel in changes.subscribe {
            if self.requested.insert(channel.clone()) {
                self.send(Sent::Subscribe(channel))?;
            }
        }
        Ok(())
    }

    fn unsubscribe(&mut self, channel: &str) -> Result<(), ConnectionError> {
        let mut bytes = Vec::new();
        command_with(&mut bytes, words!("UNSUBSCRIBE"), channel);
        self.write(&bytes, Sent::Unsubscribe)
    }

    fn send(&mut self, command: Sent) -> Result<(), ConnectionError> {
        let mut bytes = Vec::new();
        match &command {
            Sent::Subscribe(channel) => command_with(&mut bytes, words!("SUBSCRIBE"), channel),
            Sent::Ping | Sent::Unsubscribe => bytes.extend_from_slice(PING),
        }
        self.write(&bytes, command)
    }

    fn write(&mut self, bytes: &[u8], command: Sent) -> Result<(), ConnectionError> {
        let now = Instant::now();
        self.stream.send(bytes, now + self.response_timeout)?;
        self.sent.push_back((command, now));
        Ok(())
    }

    fn on_message(&mut self, message: Value) -> Result<(), ConnectionError> {
        let (kind, channel, payload) = match &message {
            Value::ServerError(error) => {
                let is_ping = matches!(self.sent.pop_front(), Some((Sent::Ping, _)));
                return match is_ping {
                    // It is a reply all the same.
                    true => Ok(()),
                    false => Err(ConnectionError::refused(ServerError::from_reply(error, false))),
                };
            }
            Value::Array(parts) => (text(parts.first()), text(parts.get(1)), text(parts.get(2))),
            _ => ("pong", "", ""),
        };
        match kind {
            "message" => self.waiters.released(channel, payload),
            "subscribe" | "unsubscribe" | "pong" => {
                if let Some((Sent::Subscribe(channel), _)) = self.sent.pop_front() {
                    self.requested.remove(&channel);
                    if !self.waiters.live(&channel) {
                        self.unsubscribe(&channel)?;
                    }
                }
            }
            // A push of another kind.
            _ => {}
        }
        Ok(())
    }
}

fn text(part: Option<&Value>) -> &str {
    match part {
        Some(Value::BulkString(bytes)) => std::str::from_utf8(bytes).unwrap_or_default(),
        Some(Value::SimpleString(text)) => text,
        _ => "",
    }
}
