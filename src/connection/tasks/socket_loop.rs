//! The task of a connection: it writes messages, reads their replies, and runs adopted futures beside
//! that.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use crate::connection::tasks::exchange::{Adopted, Failure, Shared};
use crate::connection::tasks::socket::{self, TaskSocket};
use crate::connection::transport::{closed, unreadable};
use crate::error::connection::ConnectionError;
use crate::protocol::resp::decode::{Parser, Unsolicited};
use crate::protocol::resp::reply::Reply;
use crate::sync::caught::wake;
use crate::sync::timer::DeadlineTimer;

/// Maximum bytes of a write buffer that is kept for the next message.
const MAX_KEPT_BYTES: usize = 64 * 1024;

/// Maximum number of replies for which memory is kept.
const MAX_KEPT_REPLIES: usize = 1024;

/// The task of a connection. It ends when the socket is closed and no adopted future is left.
pub(super) struct ConnectionLoop {
    shared: Arc<Shared>,
    socket: Option<SocketLoop>,
    adopted: Vec<Adopted>,
}

impl ConnectionLoop {
    pub(super) fn new(shared: Arc<Shared>, socket: Arc<TaskSocket>) -> Self {
        let socket = SocketLoop {
            socket,
            shared: Arc::clone(&shared),
            parser: Parser::default(),
            message: Vec::new(),
            written: 0,
            due: 0,
            own_due: None,
            replies: VecDeque::new(),
            has_sent: false,
            has_replied: false,
            has_own_replies: false,
            streams: false,
            deadline: Instant::now(),
            timer: DeadlineTimer::default(),
        };
        Self { shared, socket: Some(socket), adopted: Vec::new() }
    }

    /// Polls the adopted futures. Returns whether one of them has asked the task for something.
    fn poll_adopted(&mut self, context: &mut Context<'_>) -> bool {
        let mut exchange = self.shared.lock();
        (exchange.polls_adopted, exchange.asked) = (true, false);
        drop(exchange);
        let mut at = 0;
        while let Some(future) = self.adopted.get_mut(at) {
            match future.as_mut().poll(context) {
                Poll::Ready(()) => drop(self.adopted.swap_remove(at)),
                Poll::Pending => at += 1,
            }
        }
        let mut exchange = self.shared.lock();
        exchange.polls_adopted = false;
        mem::take(&mut exchange.asked)
    }

    /// Ends the task if nothing is left to do.
    fn end(&mut self) -> bool {
        let mut exchange = self.shared.lock();
        self.adopted.append(&mut exchange.adopted);
        exchange.has_ended = self.adopted.is_empty();
        exchange.has_ended
    }
}

impl Future for ConnectionLoop {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        this.shared.polled_by(context.waker());
        let mut polls_adopted = true;
        loop {
            let before = this.adopted.len();
            if let Some(socket) = &mut this.socket {
                if let Err(failure) = socket.poll(context, &mut this.adopted) {
                    socket.fail(failure);
                    this.socket = None;
                    polls_adopted = true;
                } else {
                    polls_adopted |= mem::take(&mut socket.has_own_replies);
                }
            }
            if this.socket.is_none() && this.end() {
                return Poll::Ready(());
            }
            polls_adopted |= this.adopted.len() > before;
            if this.adopted.is_empty() || !mem::take(&mut polls_adopted) {
                return Poll::Pending;
            }
            let asked = this.poll_adopted(context);
            let is_last = this.socket.is_none() && this.adopted.is_empty();
            if !asked && !is_last {
                return Poll::Pending;
            }
        }
    }
}

/// The runtime was shut down, or an adopted future panicked.
impl Drop for ConnectionLoop {
    fn drop(&mut self) {
        if let Some(socket) = &mut self.socket {
            socket.fail(Failure::new(closed()));
        }
        self.shared.end();
    }
}

/// A socket with the message that is being sent, and the replies that have arrived.
struct SocketLoop {
    socket: Arc<TaskSocket>,
    shared: Arc<Shared>,
    parser: Parser,
    message: Vec<u8>,
    written: usize,
    /// Number of replies that are still to come.
    due: u64,
    /// The same of the first replies that are passed to the caller without the others.
    own_due: Option<u64>,
    replies: VecDeque<Reply>,
    /// Whether a message was taken, and whether the server has replied to it.
    has_sent: bool,
    has_replied: bool,
    /// Whether replies are for an adopted future, which is polled next.
    has_own_replies: bool,
    /// Whether the server sends messages at any time.
    streams: bool,
    deadline: Instant,
    timer: DeadlineTimer,
}

impl SocketLoop {
    /// Reads and writes as far as the socket allows.
    fn poll(
        &mut self,
        context: &mut Context<'_>,
        adopted: &mut Vec<Adopted>,
    ) -> Result<(), Failure> {
        let is_first = !self.has_sent;
        self.read(context, !adopted.is_empty())?;
        self.take(adopted)?;
        self.write(context)?;
        if is_first {
            // Until now the runtime was not asked for bytes of the server.
            self.read(context, !adopted.is_empty())?;
        }
        let is_busy = self.due > 0 || self.is_writing();
        if is_busy && self.timer.poll_same_task(context, self.deadline).is_ready() {
            let text = if self.is_writing() { "no time left to send" } else { "no reply in time" };
            return Err(Failure::new(ConnectionError::timed_out(text)));
        }
        Ok(())
    }

    fn is_writing(&self) -> bool {
        self.written < self.message.len()
    }

    /// Takes what the caller asks for.
    fn take(&mut self, adopted: &mut Vec<Adopted>) -> Result<(), Failure> {
        let mut exchange = self.shared.lock();
        if exchange.closes {
            return Err(Failure::new(closed()));
        }
        if !exchange.adopted.is_empty() {
            adopted.append(&mut exchange.adopted);
        }
        if let Some(bytes) = exchange.max_reply_bytes.take() {
            self.parser.set_max_bytes(bytes);
        }
        if exchange.streams && !self.streams {
            self.streams = true;
            self.parser.keep_pushes();
        }
        self.deadline = exchange.deadline;
        if mem::take(&mut exchange.has_come) {
            drop(exchange);
            self.read_now()?;
            exchange = self.shared.lock();
        }
        if !self.is_writing()
            && let Some(replies) = exchange.message.take()
        {
            self.message.clear();
            mem::swap(&mut self.message, &mut exchange.bytes);
            if let Some((arrays, replies)) = exchange.shared_replies.take() {
                self.parser.share(arrays, replies);
            }
            (self.written, self.has_sent) = (0, true);
            self.due += replies;
            self.own_due = exchange.own.take();
        }
        Ok(())
    }

    fn write(&mut self, context: &mut Context<'_>) -> Result<(), Failure> {
        while let Some(rest) = self.message.get(self.written..).filter(|rest| !rest.is_empty()) {
            match socket::write(&self.socket, rest) {
                Ok(written) => self.written += written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    match self.socket.poll_write_ready(context) {
                        Poll::Ready(Ok(())) => {}
                        Poll::Ready(Err(error)) => return Err(self.write_failed(&error)),
                        Poll::Pending => return Ok(()),
                    }
                }
                Err(error) => return Err(self.write_failed(&error)),
            }
        }
        if self.message.capacity() > MAX_KEPT_BYTES {
            (self.message, self.written) = (Vec::new(), 0);
        }
        Ok(())
    }

    /// A server that rejects the connection sends its error and closes at once.
    #[cold]
    fn write_failed(&mut self, error: &io::Error) -> Failure {
        let failure = Failure::new(ConnectionError::of_io(error));
        if !self.has_replied {
            let _: Result<(), Failure> = self.read_now();
        }
        failure
    }

    /// Reads until nothing more has arrived. Bytes before the first message are left for it.
    fn read(&mut self, context: &mut Context<'_>, has_adopted: bool) -> Result<(), Failure> {
        while self.has_sent {
            match socket::poll_read_ready(&self.socket, context) {
                Poll::Pending => break,
                Poll::Ready(Err(error)) => {
                    return Err(Failure::new(ConnectionError::of_io(&error)));
                }
                Poll::Ready(Ok(())) => {}
            }
            if self.due == 0 && !self.streams {
                self.read_idle()?;
                continue;
            }
            let read = socket::read(&self.socket, self.parser.read_buffer());
            if self.on_read(read)? {
                self.parse(has_adopted.then_some(context.waker()))?;
            }
        }
        Ok(())
    }

    /// Reads while no reply is awaited. The lock keeps a caller from a look into the socket between the
    /// read and its consequence: it would find nothing, and send.
    fn read_idle(&mut self) -> Result<(), Failure> {
        let shared = Arc::clone(&self.shared);
        let _exchange = shared.lock();
        let read = socket::read(&self.socket, self.parser.read_buffer());
        let parsed = match self.on_read(read) {
            Ok(true) => self.parse(None),
            Ok(false) => Ok(()),
            Err(failure) => Err(failure),
        };
        parsed.inspect_err(|_| shared.mark_closed())
    }

    /// Reads also what the runtime does not know of yet.
    #[cold]
    fn read_now(&mut self) -> Result<(), Failure> {
        loop {
            let read = socket::read_now(&self.socket, self.parser.read_buffer());
            let would_block =
                matches!(&read, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
            if would_block {
                return Ok(());
            }
            if self.on_read(read)? {
                self.parse(None)?;
            }
        }
    }

    /// Returns whether bytes were read.
    fn on_read(&mut self, read: io::Result<usize>) -> Result<bool, Failure> {
        match read {
            Ok(0) => {
                let other = ConnectionError::from_foreign_protocol(self.parser.unparsed());
                Err(Failure::new(other.unwrap_or_else(closed)))
            }
            Ok(bytes) => {
                self.parser.filled(bytes);
                Ok(true)
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(false),
                _ => Err(Failure::new(ConnectionError::of_io(&error))),
            },
        }
    }

    /// Takes the replies that have arrived. The last one wakes the caller, unless that is `own`, which
    /// is polled next.
    fn parse(&mut self, own: Option<&Waker>) -> Result<(), Failure> {
        if self.streams {
            return self.parse_stream();
        }
        if self.due > 0 {
            while let Some(reply) = self.next_reply()? {
                let count = u64::from(reply.count());
                self.due = self.due.saturating_sub(count);
                self.own_due = self.own_due.map(|due| due.saturating_sub(count));
                self.replies.push_back(reply);
                if self.due == 0 {
                    break;
                }
            }
            if self.due > 0 && self.own_due.take_if(|due| *due == 0).is_none() {
                return Ok(());
            }
            self.has_replied = true;
            // The caller finds one too many with the others.
            let checked = if self.due == 0 { self.check_last() } else { Ok(()) };
            if checked.is_ok() {
                self.publish(own);
            }
            return checked;
        }
        self.check_last()
    }

    /// Fails if replies have arrived that are not awaited.
    fn check_last(&mut self) -> Result<(), Failure> {
        if self.parser.is_empty() {
            self.shared.set_half(false);
            return Ok(());
        }
        let unsolicited = self.parser.check_unsolicited();
        match unsolicited.map_err(|fault| Failure::new(unreadable(fault)))? {
            Unsolicited::Nothing | Unsolicited::Push => {
                self.shared.on_push();
                self.shared.set_half(!self.parser.is_empty());
                Ok(())
            }
            Unsolicited::Reply => {
                Err(Failure::new(ConnectionError::unexpected("a reply too many")))
            }
        }
    }

    /// Passes on all that has arrived.
    fn parse_stream(&mut self) -> Result<(), Failure> {
        while let Some(reply) = self.next_reply()? {
            self.replies.push_back(reply);
        }
        if self.replies.is_empty() {
            return Ok(());
        }
        let mut exchange = self.shared.lock();
        exchange.replies.append(&mut self.replies);
        let caller = exchange.caller.take();
        drop(exchange);
        caller.into_iter().for_each(wake);
        Ok(())
    }

    fn next_reply(&mut self) -> Result<Option<Reply>, Failure> {
        let most = u32::try_from(self.due).unwrap_or(u32::MAX);
        self.parser.next(most).map_err(|fault| {
            let other = ConnectionError::from_foreign_protocol(self.parser.unparsed());
            let error = other.unwrap_or_else(|| unreadable(fault));
            Failure { is_of_reply: true, array: fault.array, ..Failure::new(error) }
        })
    }

    /// Passes the replies that have arrived to the caller.
    fn publish(&mut self, own: Option<&Waker>) {
        let mut exchange = self.shared.lock();
        if exchange.replies.is_empty() {
            mem::swap(&mut exchange.replies, &mut self.replies);
        } else {
            exchange.replies.append(&mut self.replies);
        }
        exchange.awaits = self.due > 0;
        let caller = exchange.caller.take();
        drop(exchange);
        if self.replies.capacity() > MAX_KEPT_REPLIES {
            self.replies = VecDeque::new();
        }
        match caller {
            Some(caller) if own.is_some_and(|own| own.will_wake(&caller)) => {
                self.has_own_replies = true;
            }
            Some(caller) => wake(caller),
            None => {}
        }
    }

    /// Ends the connection. Replies to a message that was not sent completely are dropped, apart from
    /// the error of a server that rejects the connection.
    fn fail(&mut self, mut failure: Failure) {
        if self.is_writing() {
            failure.unsent = Some(self.written);
            if self.has_replied {
                self.replies.clear();
            }
        }
        self.shared.fail(failure, &mut self.replies);
    }
}
