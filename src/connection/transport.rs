//! The bytes of one connection: a socket, with or without TLS, and the parser of its replies.
//!
//! Every wait has a deadline. An error never reports fewer bytes than may have been sent.

use std::collections::VecDeque;
use std::future::ready;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use crate::connection::connect::Connected;
use crate::connection::deadline::Deadline;
use crate::connection::polling::Polling;
use crate::connection::wire::Wire;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::process::sockets::OwnSocket;
use crate::protocol::resp::decode::{
    Fault, FaultKind, MAX_DEPTH, Parser, SharedArrays, Unsolicited,
};
use crate::protocol::resp::reply::Reply;

/// Maximum number of reads in one check for unexpected bytes. A peer that has sent more is not
/// awaited.
pub(in crate::connection) const MOST_READS: usize = 16;

/// Minimum size of a message that is written in parts while replies are read. A peer that does not
/// read while it writes would otherwise wait for this side, and this side for the peer. A shorter
/// message fits into the socket's own buffer.
const LONG: usize = 16 * 1024;

/// Minimum wait that the system supports.
#[cfg(unix)]
const LEAST: Duration = Duration::from_millis(1);

#[cfg(test)]
thread_local! {
    /// Number of bytes that a socket accepts at once, for a test.
    pub(crate) static MOST_NOW: std::cell::Cell<usize> = const { std::cell::Cell::new(usize::MAX) };
}

/// The bytes of one connection.
pub(crate) struct Transport {
    stream: Stream,
    parser: Parser,
    /// Replies that arrived while the message was still being written, and their number.
    early: VecDeque<Reply>,
    early_replies: u64,
    /// The socket's current timeouts: each change costs a system call.
    read_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
    /// Length of the array whose end could not be read.
    unread: Option<usize>,
    polling: Polling,
}

enum Stream {
    Open(Connected),
    /// A borrowed connection of redis-rs.
    Raw(redis::Connection),
    Closed,
}

impl Transport {
    pub(crate) fn new(connected: Connected, polling: Polling) -> Self {
        Self {
            stream: Stream::Open(connected),
            parser: Parser::default(),
            early: VecDeque::new(),
            early_replies: 0,
            read_timeout: None,
            write_timeout: None,
            unread: None,
            polling,
        }
    }

    /// See [`Wire::send`].
    fn write(
        &mut self,
        bytes: &[u8],
        awaited: u64,
        deadline: Deadline,
    ) -> Result<(), (usize, ConnectionError)> {
        #[cfg(unix)]
        if bytes.len() > LONG {
            self.set_nonblocking(true).map_err(|error| (0, error))?;
            let sent = self.send_long(bytes, awaited, deadline);
            let restored = self.set_nonblocking(false);
            // The whole message was sent: the next read finds a failure of the socket.
            return sent.and_then(|()| restored.or(Ok(())));
        }
        #[cfg(not(unix))]
        let _ = (awaited, LONG);
        let mut left = 0;
        while let Some(rest) = bytes.get(left..).filter(|rest| !rest.is_empty()) {
            let Some(timeout) = deadline.timeout() else {
                return Err((left, ConnectionError::timed_out("no time left to send")));
            };
            self.set_write_timeout(timeout).map_err(|error| (left, error))?;
            match self.stream.write(rest) {
                Ok(written) => left += written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err((left, ConnectionError::of_io(&error))),
            }
        }
        Ok(())
    }

    /// Sends what the socket accepts without waiting, in one system call. Returns the number of bytes
    /// that were sent for good. An error proves that it is 0.
    pub(in crate::connection) fn send_now(
        &mut self,
        bytes: &[u8],
    ) -> Result<usize, ConnectionError> {
        #[cfg(test)]
        let bytes = bytes.get(..MOST_NOW.get()).unwrap_or(bytes);
        if bytes.is_empty() {
            return Ok(0);
        }
        #[cfg(unix)]
        return match self.stream.write_now(bytes) {
            Err(error) if !is_for_later(&error) => Err(ConnectionError::of_io(&error)),
            sent => Ok(sent.unwrap_or_default()),
        };
        // There is no flag for one call: the waiting caller sends all of it.
        #[cfg(not(unix))]
        {
            let _ = bytes;
            Ok(0)
        }
    }

    /// Writes a long message and reads replies meanwhile. The socket does not block.
    #[cfg(unix)]
    fn send_long(
        &mut self,
        bytes: &[u8],
        awaited: u64,
        deadline: Deadline,
    ) -> Result<(), (usize, ConnectionError)> {
        let mut left = 0;
        while let Some(rest) = bytes.get(left..).filter(|rest| !rest.is_empty()) {
            let Some(timeout) = deadline.timeout() else {
                return Err((left, ConnectionError::timed_out("no time left to send")));
            };
            // Further replies are left in the peer's own buffers.
            let reads = self.early_replies < awaited;
            let socket = self.stream.socket().ok_or_else(|| (left, closed()))?;
            let ready =
                wait(socket, reads, timeout).map_err(|e| (left, ConnectionError::of_io(&e)))?;
            if ready.reads {
                match self.fill_once() {
                    Ok(true) => self.keep_early(awaited).map_err(|error| (left, error))?,
                    Ok(false) => return Err((left, closed())),
                    Err(error) if is_for_later(&error) => {}
                    Err(error) => return Err((left, ConnectionError::of_io(&error))),
                }
            }
            if ready.writes {
                match self.stream.write(rest) {
                    Ok(written) => left += written,
                    Err(error) if is_for_later(&error) => {}
                    Err(error) => return Err((left, ConnectionError::of_io(&error))),
                }
            }
        }
        Ok(())
    }

    /// Keeps the replies that have arrived, up to the awaited number.
    #[cfg(unix)]
    fn keep_early(&mut self, awaited: u64) -> Result<(), ConnectionError> {
        while let Some(most @ 1..) = awaited.checked_sub(self.early_replies) {
            let most = u32::try_from(most).unwrap_or(u32::MAX);
            match self.parser.next(most) {
                Ok(Some(reply)) => {
                    self.early_replies += u64::from(reply.count());
                    self.early.push_back(reply);
                }
                Ok(None) => break,
                Err(fault) => return Err(unreadable(fault)),
            }
        }
        Ok(())
    }

    /// Returns the next reply that arrived while the message was being written.
    fn take_early(&mut self, most: u32) -> Option<Reply> {
        let reply = match self.early.pop_front()? {
            Reply::Queued(count) if count > most => {
                self.early.push_front(Reply::Queued(count - most));
                Reply::Queued(most)
            }
            reply => reply,
        };
        self.early_replies = self.early_replies.saturating_sub(reply.count().into());
        if self.early.is_empty() {
            self.early = VecDeque::new();
        }
        Some(reply)
    }

    /// Reads once, within the deadline.
    fn read(&mut self, deadline: Deadline) -> Result<(), ConnectionError> {
        let left =
            || deadline.timeout().ok_or_else(|| ConnectionError::timed_out("no reply in time"));
        let mut timeout = left()?;
        // A failure of the socket is found by the read.
        if let Some(socket) = self.stream.socket()
            && self.polling.poll(timeout, || !matches!(has_come(socket), Ok(false)))
        {
            timeout = left()?;
        }
        self.set_read_timeout(timeout)?;
        self.fill_or_fail().map_err(|error| match error.kind() {
            ConnectionErrorKind::Closed => {
                ConnectionError::from_foreign_protocol(self.parser.unparsed()).unwrap_or(error)
            }
            _ => error,
        })
    }

    /// Reads once.
    fn fill_or_fail(&mut self) -> Result<(), ConnectionError> {
        match self.fill_once() {
            Ok(true) => Ok(()),
            Ok(false) => Err(closed()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(ConnectionError::of_io(&error)),
        }
    }

    /// Reads in one system call; `false`: the peer has closed.
    fn fill_once(&mut self) -> io::Result<bool> {
        match &mut self.stream {
            Stream::Open(Connected::Socket(socket)) => {
                (&***socket).read(self.parser.read_buffer()).map(|read| match read {
                    0 => false,
                    read => {
                        self.parser.filled(read);
                        true
                    }
                })
            }
            #[cfg(feature = "tls-rustls")]
            Stream::Open(Connected::Tls(socket, session)) => {
                session.read(&mut &***socket).inspect(|_| {
                    while let read @ 1.. = session.take(self.parser.read_buffer()) {
                        self.parser.filled(read);
                    }
                })
            }
            Stream::Raw(_) | Stream::Closed => Ok(false),
        }
    }

    #[cfg(unix)]
    fn set_nonblocking(&self, nonblocking: bool) -> Result<(), ConnectionError> {
        let socket = self.stream.socket().ok_or_else(closed)?;
        socket.set_nonblocking(nonblocking).map_err(|error| ConnectionError::of_io(&error))
    }

    /// Returns the socket, unless this is a connection of redis-rs.
    pub(crate) fn socket(&self) -> Option<&Arc<OwnSocket>> {
        self.stream.socket()
    }

    /// Closes the connection without sending anything. Every later call fails.
    pub(crate) fn close(&mut self) {
        self.stream = Stream::Closed;
    }

    /// Replaces the socket by a connection of redis-rs, and returns that.
    pub(crate) fn become_client(
        &mut self,
        client: redis::Connection,
        timeout: Duration,
    ) -> Result<&mut redis::Connection, ConnectionError> {
        let set = client
            .set_read_timeout(Some(timeout))
            .and_then(|()| client.set_write_timeout(Some(timeout)));
        set.map_err(|error| ConnectionError::of(&error))?;
        self.stream = Stream::Raw(client);
        match &mut self.stream {
            Stream::Raw(client) => Ok(client),
            _ => Err(closed()),
        }
    }

    fn set_write_timeout(&mut self, timeout: Duration) -> Result<(), ConnectionError> {
        if self.write_timeout == Some(timeout) {
            return Ok(());
        }
        let socket = self.stream.socket().ok_or_else(closed)?;
        socket.set_write_timeout(Some(timeout)).map_err(|error| ConnectionError::of_io(&error))?;
        self.write_timeout = Some(timeout);
        Ok(())
    }

    fn set_read_timeout(&mut self, timeout: Duration) -> Result<(), ConnectionError> {
        if self.read_timeout == Some(timeout) {
            return Ok(());
        }
        let socket = self.stream.socket().ok_or_else(closed)?;
        socket.set_read_timeout(Some(timeout)).map_err(|error| ConnectionError::of_io(&error))?;
        self.read_timeout = Some(timeout);
        Ok(())
    }
}

/// Each future is ready when it is returned: the call itself has waited.
impl Wire for Transport {
    fn limit_reply_size(&mut self, bytes: usize) {
        self.parser.set_max_bytes(bytes);
    }

    fn share_replies(&mut self, arrays: SharedArrays, replies: u64) {
        self.parser.share(arrays, replies);
    }

    fn send(
        &mut self,
        bytes: &[u8],
        awaited: u64,
        deadline: Deadline,
    ) -> impl Future<Output = Result<(), (usize, ConnectionError)>> + Send {
        ready(self.write(bytes, awaited, deadline))
    }

    #[inline]
    fn next(&mut self, most: u32) -> Result<Option<Reply>, ConnectionError> {
        if !self.early.is_empty() {
            return Ok(self.take_early(most));
        }
        self.parser.next(most).map_err(|fault| {
            self.unread = fault.array;
            let other = ConnectionError::from_foreign_protocol(self.parser.unparsed());
            other.unwrap_or_else(|| unreadable(fault))
        })
    }

    fn may_be_watch(&self) -> Option<bool> {
        match self.early.front() {
            Some(reply) => Some(reply.may_be_of_watch()),
            // A push or an attribute may be before it.
            None => self.parser.unparsed().first().map(|kind| b"+->|".contains(kind)),
        }
    }

    fn has_unread(&self) -> bool {
        !self.early.is_empty() || !self.parser.is_empty()
    }

    fn fill(
        &mut self,
        deadline: Deadline,
    ) -> impl Future<Output = Result<(), ConnectionError>> + Send {
        ready(self.read(deadline))
    }

    fn unread(&self) -> Option<usize> {
        self.unread
    }

    fn check_socket(&mut self, pushes: bool) -> Result<(), ConnectionError> {
        for _ in 0..MOST_READS {
            self.check_unexpected(pushes)?;
            match self.stream.socket().map(|socket| has_come(socket)) {
                Some(Ok(false)) => return Ok(()),
                // With TLS the bytes may be a part of a record, or a session ticket.
                Some(Ok(true)) => self.fill_or_fail()?,
                Some(Err(error)) => return Err(ConnectionError::of_io(&error)),
                None => return Err(closed()),
            }
        }
        self.check_unexpected(pushes)?;
        Err(ConnectionError::unexpected("the server sends unexpected bytes without an end"))
    }

    fn check_unexpected(&mut self, pushes: bool) -> Result<(), ConnectionError> {
        if !self.early.is_empty() {
            return Err(ConnectionError::unexpected("a reply too many"));
        }
        if self.parser.is_empty() {
            return Ok(());
        }
        match self.parser.check_unsolicited().map_err(unreadable)? {
            Unsolicited::Nothing | Unsolicited::Push if pushes => Ok(()),
            _ => Err(ConnectionError::unexpected("a reply too many")),
        }
    }
}

impl Stream {
    fn socket(&self) -> Option<&Arc<OwnSocket>> {
        match self {
            Self::Open(connected) => Some(connected.socket()),
            Self::Raw(_) | Self::Closed => None,
        }
    }

    /// Writes in one system call; see [`Session::write`] for TLS.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Open(Connected::Socket(socket)) => match (&***socket).write(bytes) {
                Ok(0) => Err(io::ErrorKind::BrokenPipe.into()),
                written => written,
            },
            #[cfg(feature = "tls-rustls")]
            Self::Open(Connected::Tls(socket, session)) => session.write(&mut &***socket, bytes),
            Self::Raw(_) | Self::Closed => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// The same without waiting.
    #[cfg(unix)]
    fn write_now(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Open(Connected::Socket(socket)) => Unblocked(socket).write(bytes),
            #[cfg(feature = "tls-rustls")]
            Self::Open(Connected::Tls(socket, session)) => {
                session.write(&mut Unblocked(socket), bytes)
            }
            Self::Raw(_) | Self::Closed => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

/// A blocking socket, used without waiting.
#[cfg(unix)]
struct Unblocked<'s>(&'s TcpStream);

#[cfg(unix)]
impl Read for Unblocked<'_> {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

#[cfg(unix)]
impl Write for Unblocked<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        use redis::io::tcp::socket2::SockRef;

        // On other systems the standard library has set the same for the socket.
        #[cfg(target_vendor = "apple")]
        let flags = libc::MSG_DONTWAIT;
        #[cfg(not(target_vendor = "apple"))]
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        match SockRef::from(self.0).send_with_flags(bytes, flags) {
            Ok(0) => Err(io::ErrorKind::BrokenPipe.into()),
            sent => sent,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The readiness of a socket.
#[cfg(unix)]
struct Readiness {
    reads: bool,
    writes: bool,
}

/// Waits until the socket accepts bytes or, if `reads`, has some. A failed socket counts as ready
/// for both, and the next call returns its error.
#[cfg(unix)]
fn wait(socket: &TcpStream, reads: bool, timeout: Duration) -> io::Result<Readiness> {
    use std::os::fd::AsFd;

    use nix::errno::Errno;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    let events = if reads { PollFlags::POLLIN | PollFlags::POLLOUT } else { PollFlags::POLLOUT };
    let mut sockets = [PollFd::new(socket.as_fd(), events)];
    let timeout = PollTimeout::try_from(timeout.max(LEAST)).unwrap_or(PollTimeout::MAX);
    match poll(&mut sockets, timeout) {
        Ok(0) => Err(io::ErrorKind::TimedOut.into()),
        Ok(_) => {
            let [socket] = &sockets;
            let found = socket.revents().unwrap_or(PollFlags::POLLERR);
            let failed = PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL;
            Ok(Readiness {
                reads: reads && found.intersects(failed | PollFlags::POLLIN),
                writes: found.intersects(failed | PollFlags::POLLOUT),
            })
        }
        Err(Errno::EINTR) => Ok(Readiness { reads: false, writes: false }),
        Err(error) => Err(error.into()),
    }
}

#[cfg(unix)]
fn is_for_later(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Returns whether a read would return at once, with bytes or at their end. An error is the
/// socket's.
fn has_come(socket: &TcpStream) -> io::Result<bool> {
    match peek(socket) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => has_come(socket),
        Err(error) => Err(error),
    }
}

#[cfg(unix)]
fn peek(socket: &TcpStream) -> io::Result<usize> {
    use redis::io::tcp::socket2::SockRef;

    let mut one = [std::mem::MaybeUninit::uninit()];
    SockRef::from(socket).recv_with_flags(&mut one, libc::MSG_PEEK | libc::MSG_DONTWAIT)
}

#[cfg(not(unix))]
fn peek(socket: &TcpStream) -> io::Result<usize> {
    socket.set_nonblocking(true)?;
    let peeked = socket.peek(&mut [0]);
    socket.set_nonblocking(false)?;
    peeked
}

pub(in crate::connection) fn closed() -> ConnectionError {
    ConnectionError::new(ConnectionErrorKind::Closed, "the other side has closed it")
}

pub(crate) fn unreadable(fault: Fault) -> ConnectionError {
    match fault.kind {
        FaultKind::Malformed => ConnectionError::new(
            ConnectionErrorKind::Protocol,
            "the reply is not the Redis protocol",
        ),
        FaultKind::TooLarge => ConnectionError::new(
            ConnectionErrorKind::TooLarge,
            "the reply is larger than max_reply_bytes",
        ),
        FaultKind::TooDeep => ConnectionError::new(
            ConnectionErrorKind::TooLarge,
            format!("the reply is nested deeper than {MAX_DEPTH} levels"),
        ),
    }
}
