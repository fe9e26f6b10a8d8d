//! The bytes of one connection: over a socket of our own, or over redis-rs where that has TLS.
//!
//! Never: a wait without a deadline. Never: an error that says that fewer bytes left than may have.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use redis::Value;

use super::deadline::Deadline;
use crate::error::{LinkError, LinkErrorKind};
use crate::topology::Connected;
use crate::wire::parse::{DEEPEST, Fault, Parser, Why};
use crate::wire::reply::Reply;

/// So much redis-rs is given to write between two looks at the clock: the socket's timeout begins
/// anew whenever the peer takes a little, so one that crawls would stretch a single write without
/// end.
const STEP: usize = 16 * 1024;

/// The bytes of one connection.
pub(crate) struct Transport {
    kind: Kind,
    /// The socket's timeouts as they are set: setting them costs a system call each.
    read_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
    /// The length of the array that could not be read to its end.
    unread: Option<usize>,
}

enum Kind {
    Socket(Arc<TcpStream>, Parser),
    Client(redis::Connection),
    Closed,
}

impl Transport {
    pub(crate) fn new(connected: Connected) -> Self {
        let kind = match connected {
            Connected::Socket(socket) => Kind::Socket(socket, Parser::default()),
            Connected::Client(connection) => Kind::Client(connection),
        };
        Self { kind, read_timeout: None, write_timeout: None, unread: None }
    }

    /// Maximum bytes of one reply.
    pub(crate) fn bound_replies(&mut self, bytes: usize) {
        if let Kind::Socket(_, parser) = &mut self.kind {
            parser.bound(bytes);
        }
    }

    /// Writes all of it. An error says how many bytes may have left.
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
            left += match &mut self.kind {
                Kind::Socket(socket, _) => match (&**socket).write(rest) {
                    Ok(0) => return Err((left, closed())),
                    Ok(written) => written,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                    Err(error) => return Err((left, LinkError::of_io(&error))),
                },
                Kind::Client(connection) => {
                    let step = rest.get(..STEP).unwrap_or(rest);
                    let sent = connection.send_packed_command(step);
                    sent.map_err(|error| (left + step.len(), LinkError::of(&error)))?;
                    step.len()
                }
                Kind::Closed => return Err((left, closed())),
            }
        }
        Ok(())
    }

    /// The next reply, or up to `most` of them where each says QUEUED. What the server pushes is
    /// passed over.
    pub(crate) fn receive(&mut self, most: u32, deadline: Deadline) -> Result<Reply, LinkError> {
        loop {
            if let Kind::Socket(_, parser) = &mut self.kind {
                match parser.next(most) {
                    Ok(Some(reply)) => return Ok(reply),
                    Ok(None) => {}
                    Err(fault) => {
                        self.unread = fault.array;
                        return Err(unreadable(fault));
                    }
                }
            }
            let timeout =
                deadline.timeout().ok_or_else(|| LinkError::timed_out("no answer in time"))?;
            self.set_read_timeout(timeout)?;
            match &mut self.kind {
                Kind::Socket(socket, parser) => match (&**socket).read(parser.room()) {
                    Ok(0) => return Err(closed()),
                    Ok(bytes) => parser.filled(bytes),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(LinkError::of_io(&error)),
                },
                Kind::Client(connection) => match connection.recv_response() {
                    Ok(Value::Push { .. }) => {}
                    Ok(Value::Attribute { data, .. }) => return Ok(Reply::from(*data)),
                    Ok(value) => return Ok(Reply::from(value)),
                    Err(error) => return Err(LinkError::of(&error)),
                },
                Kind::Closed => return Err(closed()),
            }
        }
    }

    /// The length of the array whose end could not be read, if the reply that failed is an array.
    pub(crate) fn unread(&self) -> Option<usize> {
        self.unread
    }

    /// Whether something came that nobody has asked for, or has read, as far as can be seen here.
    pub(crate) fn has_unread(&self) -> bool {
        matches!(&self.kind, Kind::Socket(_, parser) if !parser.is_empty())
    }

    /// The socket, unless the connection is redis-rs's.
    pub(crate) fn socket(&self) -> Option<&Arc<TcpStream>> {
        match &self.kind {
            Kind::Socket(socket, _) => Some(socket),
            Kind::Client(_) | Kind::Closed => None,
        }
    }

    /// Ends it. What is done with it afterwards fails.
    pub(crate) fn close(&mut self) {
        self.kind = Kind::Closed;
    }

    /// Takes a connection of redis-rs's in its place, and hands it out.
    pub(crate) fn become_client(
        &mut self,
        connection: redis::Connection,
        timeout: Duration,
    ) -> Result<&mut redis::Connection, LinkError> {
        *self = Self::new(Connected::Client(connection));
        self.set_read_timeout(timeout)?;
        self.set_write_timeout(timeout)?;
        match &mut self.kind {
            Kind::Client(connection) => Ok(connection),
            Kind::Socket(..) | Kind::Closed => Err(closed()),
        }
    }

    fn set_write_timeout(&mut self, timeout: Duration) -> Result<(), LinkError> {
        if self.write_timeout.replace(timeout) == Some(timeout) {
            return Ok(());
        }
        match &self.kind {
            Kind::Socket(socket, _) => {
                socket.set_write_timeout(Some(timeout)).map_err(|error| LinkError::of_io(&error))
            }
            Kind::Client(connection) => {
                connection.set_write_timeout(Some(timeout)).map_err(|error| LinkError::of(&error))
            }
            Kind::Closed => Err(closed()),
        }
    }

    fn set_read_timeout(&mut self, timeout: Duration) -> Result<(), LinkError> {
        if self.read_timeout.replace(timeout) == Some(timeout) {
            return Ok(());
        }
        match &self.kind {
            Kind::Socket(socket, _) => {
                socket.set_read_timeout(Some(timeout)).map_err(|error| LinkError::of_io(&error))
            }
            Kind::Client(connection) => {
                connection.set_read_timeout(Some(timeout)).map_err(|error| LinkError::of(&error))
            }
            Kind::Closed => Err(closed()),
        }
    }
}

fn closed() -> LinkError {
    LinkError::new(LinkErrorKind::Closed, "it is closed")
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
