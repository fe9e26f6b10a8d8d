//! The bytes of one connection: a socket, with TLS on it or without, and the parser of its replies.
//!
//! Never: a wait without a deadline. Never: an error that says that fewer bytes left than may have.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use super::deadline::Deadline;
use crate::error::{LinkError, LinkErrorKind};
use crate::process::OwnSocket;
use crate::topology::Connected;
#[cfg(feature = "tls-rustls")]
use crate::topology::Session;
use crate::wire::parse::{DEEPEST, Fault, Parser, Unasked, Why};
use crate::wire::reply::Reply;

/// Reads of one look at what has come unasked. A peer that has sent more is not waited for.
const MOST_READS: usize = 16;

/// The bytes of one connection.
pub(crate) struct Transport {
    stream: Stream,
    parser: Parser,
    /// The socket's timeouts as they are set: setting them costs a system call each.
    read_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
    /// The length of the array that could not be read to its end.
    unread: Option<usize>,
}

enum Stream {
    Socket(Arc<OwnSocket>),
    #[cfg(feature = "tls-rustls")]
    Tls(Arc<OwnSocket>, Box<Session>),
    /// A connection of redis-rs's, which is lent out.
    Raw(redis::Connection),
    Closed,
}

impl Transport {
    pub(crate) fn new(connected: Connected) -> Self {
        let stream = match connected {
            Connected::Socket(socket) => Stream::Socket(socket),
            #[cfg(feature = "tls-rustls")]
            Connected::Tls(socket, session) => Stream::Tls(socket, session),
        };
        Self {
            stream,
            parser: Parser::default(),
            read_timeout: None,
            write_timeout: None,
            unread: None,
        }
    }

    /// Maximum bytes of one reply.
    pub(crate) fn bound_replies(&mut self, bytes: usize) {
        self.parser.bound(bytes);
    }

    /// Writes all of it. An error says how many bytes may have left: the last one never has.
    ///
    /// Bytes of a TLS record have left when the socket has taken the whole record: the peer cannot
    /// decrypt a part of it.
    pub(crate) fn send(
        &mut self,
        bytes: &[u8],
        deadline: Deadline,
    ) -> Result<(), (usize, LinkError)> {
        let mut left = 0;
        while let Some(rest) = bytes.get(left..).filter(|rest| !rest.is_empty()) {
            let Some(timeout) = deadline.timeout() else {
                return Err((left, LinkError::timed_out("no time left to send")));
            };
            self.set_write_timeout(timeout).map_err(|error| (left, error))?;
            match self.stream.write(rest) {
                Ok(written) => left += written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err((left, LinkError::of_io(&error))),
            }
        }
        Ok(())
    }

    /// The next reply, or up to `most` of them if each says QUEUED. What the server pushes is
    /// passed over.
    pub(crate) fn receive(&mut self, most: u32, deadline: Deadline) -> Result<Reply, LinkError> {
        loop {
            match self.parser.next(most) {
                Ok(Some(reply)) => return Ok(reply),
                Ok(None) => {}
                Err(fault) => {
                    self.unread = fault.array;
                    return Err(unreadable(fault));
                }
            }
            let timeout =
                deadline.timeout().ok_or_else(|| LinkError::timed_out("no answer in time"))?;
            self.set_read_timeout(timeout)?;
            self.fill()?;
        }
    }

    /// The length of the array whose end could not be read, if the reply that failed is an array.
    pub(crate) fn unread(&self) -> Option<usize> {
        self.unread
    }

    /// Looks at what has come although no reply is awaited, without waiting. An error if the
    /// connection is not as it should be: it was closed, or what came is not the server's to send
    /// now. Whole pushes and attributes are dropped; half a push is kept.
    pub(crate) fn look(&mut self, pushes: bool) -> Result<(), LinkError> {
        for _ in 0..MOST_READS {
            self.judge_unasked(pushes)?;
            match self.stream.socket().map(|socket| has_come(socket)) {
                Some(Ok(false)) => return Ok(()),
                // Of TLS it may be a part of a record, or a session ticket.
                Some(Ok(true)) => self.fill()?,
                Some(Err(error)) => return Err(LinkError::of_io(&error)),
                None => return Err(closed()),
            }
        }
        self.judge_unasked(pushes)?;
        Err(LinkError::unexpected("the server sends without an end what was not asked for"))
    }

    /// An error if a part of what was read is not the server's to send while no reply is awaited.
    pub(crate) fn judge_unasked(&mut self, pushes: bool) -> Result<(), LinkError> {
        if self.parser.is_empty() {
            return Ok(());
        }
        match self.parser.unasked().map_err(unreadable)? {
            Unasked::Nothing | Unasked::Push if pushes => Ok(()),
            _ => Err(LinkError::unexpected("a reply too many")),
        }
    }

    /// Reads once.
    fn fill(&mut self) -> Result<(), LinkError> {
        let read = match &mut self.stream {
            Stream::Socket(socket) => (&**socket).read(self.parser.room()).map(|read| match read {
                0 => false,
                read => {
                    self.parser.filled(read);
                    true
                }
            }),
            #[cfg(feature = "tls-rustls")]
            Stream::Tls(socket, session) => session.read(socket).inspect(|_| {
                while let read @ 1.. = session.take(self.parser.room()) {
                    self.parser.filled(read);
                }
            }),
            Stream::Raw(_) | Stream::Closed => return Err(closed()),
        };
        match read {
            Ok(true) => Ok(()),
            Ok(false) => Err(closed()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(LinkError::of_io(&error)),
        }
    }

    /// The socket, unless the connection is redis-rs's.
    pub(crate) fn socket(&self) -> Option<&Arc<OwnSocket>> {
        self.stream.socket()
    }

    /// Ends it. What is done with it afterwards fails. Nothing is sent.
    pub(crate) fn close(&mut self) {
        self.stream = Stream::Closed;
    }

    /// Takes a connection of redis-rs's in its place, and hands it out.
    pub(crate) fn become_client(
        &mut self,
        client: redis::Connection,
        timeout: Duration,
    ) -> Result<&mut redis::Connection, LinkError> {
        let set = client
            .set_read_timeout(Some(timeout))
            .and_then(|()| client.set_write_timeout(Some(timeout)));
        set.map_err(|error| LinkError::of(&error))?;
        self.stream = Stream::Raw(client);
        match &mut self.stream {
            Stream::Raw(client) => Ok(client),
            _ => Err(closed()),
        }
    }

    fn set_write_timeout(&mut self, timeout: Duration) -> Result<(), LinkError> {
        if self.write_timeout == Some(timeout) {
            return Ok(());
        }
        let socket = self.stream.socket().ok_or_else(closed)?;
        socket.set_write_timeout(Some(timeout)).map_err(|error| LinkError::of_io(&error))?;
        self.write_timeout = Some(timeout);
        Ok(())
    }

    fn set_read_timeout(&mut self, timeout: Duration) -> Result<(), LinkError> {
        if self.read_timeout == Some(timeout) {
            return Ok(());
        }
        let socket = self.stream.socket().ok_or_else(closed)?;
        socket.set_read_timeout(Some(timeout)).map_err(|error| LinkError::of_io(&error))?;
        self.read_timeout = Some(timeout);
        Ok(())
    }
}

impl Stream {
    fn socket(&self) -> Option<&Arc<OwnSocket>> {
        match self {
            Self::Socket(socket) => Some(socket),
            #[cfg(feature = "tls-rustls")]
            Self::Tls(socket, _) => Some(socket),
            Self::Raw(_) | Self::Closed => None,
        }
    }

    /// One system call; see [`Session::write`] for TLS.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Socket(socket) => match (&**socket).write(bytes) {
                Ok(0) => Err(io::ErrorKind::BrokenPipe.into()),
                written => written,
            },
            #[cfg(feature = "tls-rustls")]
            Self::Tls(socket, session) => session.write(socket, bytes),
            Self::Raw(_) | Self::Closed => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

/// Whether a read would not wait: bytes are there, or the end of them. An error is the socket's.
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

fn closed() -> LinkError {
    LinkError::new(LinkErrorKind::Closed, "the other side has closed it")
}

fn unreadable(fault: Fault) -> LinkError {
    match fault.why {
        Why::Malformed => {
            LinkError::new(LinkErrorKind::Protocol, "the reply is not the Redis protocol")
        }
        Why::TooLarge => {
            LinkError::new(LinkErrorKind::TooLarge, "the reply is larger than max_reply_bytes")
        }
        Why::TooDeep => LinkError::new(
            LinkErrorKind::TooLarge,
            format!("the reply is nested deeper than {DEEPEST} levels"),
        ),
    }
}
