//! TLS on the socket of a connection's task: the session of threads, driven without blocking.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Instant;

use rustls::ClientConfig;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::connection::connect::Server;
use crate::connection::tasks::raw::{is_readable, receive};
use crate::connection::tls::{HandshakeStep, Session, Trust, handshake_failed};
use crate::connection::transport::MOST_READS;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::sync::timer::until;

/// Runs the TLS handshake on a socket that has just been connected to `server`.
pub(super) async fn secure(
    trust: &Trust,
    server: &Server,
    socket: &TcpStream,
    by: Instant,
) -> Result<Session, ConnectionError> {
    let config = config(trust, server, by).await?;
    let mut session = Session::new(config, server.host_and_port().0)?;
    shake_hands(&mut session, socket, by).await.map_err(|error| handshake_failed(&error))?;
    Ok(session)
}

/// Returns the configuration of the session. The system's root certificates are files: they are read
/// on a thread of the resolver.
async fn config(
    trust: &Trust,
    server: &Server,
    by: Instant,
) -> Result<Arc<ClientConfig>, ConnectionError> {
    if !trust.config_may_block() {
        return trust.config();
    }
    let trust = trust.clone();
    let read = server.resolver().start(move || trust.config());
    match until(by, read.map_err(|error| ConnectionError::of_io(&error))?).await {
        Some(Ok(config)) => config,
        Some(Err(_)) => {
            let text = "the system's root certificates could not be read";
            Err(ConnectionError::new(ConnectionErrorKind::Io, text))
        }
        None => Err(ConnectionError::timed_out("the system's root certificates took too long")),
    }
}

async fn shake_hands(session: &mut Session, socket: &TcpStream, by: Instant) -> io::Result<()> {
    while let Some(step) = session.handshake_step() {
        let interest = match step {
            HandshakeStep::Read => Interest::READABLE,
            HandshakeStep::Write => Interest::WRITABLE,
        };
        let Some(ready) = until(by, socket.ready(interest)).await else {
            return Err(io::ErrorKind::TimedOut.into());
        };
        ready?;
        match session.take_step(&step, &mut RuntimeSocket(socket)) {
            Err(error) if is_for_later(&error) => {}
            step => step?,
        }
    }
    Ok(())
}

fn is_for_later(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// A socket that is read when its runtime knows of bytes.
pub(super) struct RuntimeSocket<'s>(pub(super) &'s TcpStream);

impl Read for RuntimeSocket<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

/// A socket that is read also if its runtime does not know of bytes yet.
pub(super) struct RawSocket<'s>(pub(super) &'s TcpStream);

impl Read for RawSocket<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        receive(self.0, buffer)
    }
}

macro_rules! writes {
    ($($socket:ident),*) => {
        $(
            impl Write for $socket<'_> {
                fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                    self.0.try_write(bytes)
                }

                fn flush(&mut self) -> io::Result<()> {
                    Ok(())
                }
            }
        )*
    };
}

writes!(RuntimeSocket, RawSocket);

/// A session, and the plaintext that a caller has decrypted and the task has not read yet.
pub(super) struct Secured {
    session: Session,
    early: VecDeque<u8>,
    /// Whether the session may have more plaintext.
    has_more: bool,
}

impl Secured {
    pub(super) fn new(session: Session) -> Self {
        Self { session, early: VecDeque::new(), has_more: true }
    }

    /// Returns whether a read may succeed without the socket.
    pub(super) fn has_plain(&self) -> bool {
        self.has_more || !self.early.is_empty()
    }

    /// Reads plaintext. `Interrupted`: what has arrived holds none; 0: the peer has closed.
    pub(super) fn read(
        &mut self,
        socket: &mut (impl Read + Write),
        buffer: &mut [u8],
    ) -> io::Result<usize> {
        let early = self.early.read(buffer)?;
        if early > 0 {
            return Ok(early);
        }
        match self.take(buffer) {
            0 if !self.session.read(socket)? => return Ok(0),
            0 => {}
            taken => return Ok(taken),
        }
        match self.take(buffer) {
            0 => Err(io::ErrorKind::Interrupted.into()),
            taken => Ok(taken),
        }
    }

    fn take(&mut self, buffer: &mut [u8]) -> usize {
        let taken = self.session.take(buffer);
        self.has_more = taken == buffer.len();
        taken
    }

    /// See [`Session::write`].
    pub(super) fn write(
        &mut self,
        socket: &mut (impl Read + Write),
        plain: &[u8],
    ) -> io::Result<usize> {
        self.session.write(socket, plain)
    }

    /// Returns whether plaintext has arrived, which stays for the task. An error is the socket's; so is
    /// the end of the stream, with an alert or without.
    pub(super) fn has_come(&mut self, socket: &TcpStream) -> io::Result<bool> {
        for _ in 0..MOST_READS {
            self.take_early();
            if !self.early.is_empty() {
                return Ok(true);
            }
            // The bytes may be a part of a record, or a session ticket.
            if !is_readable(socket)? {
                return Ok(false);
            }
            match self.session.read(&mut RawSocket(socket)) {
                Ok(true) => self.has_more = true,
                Ok(false) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other("the server sends unexpected bytes without an end"))
    }

    fn take_early(&mut self) {
        let mut part = [0; 1024];
        while self.has_more {
            let taken = self.take(&mut part);
            self.early.extend(part.iter().take(taken));
        }
    }

    /// The first byte of plaintext that has arrived.
    pub(super) fn first_byte(&self) -> Option<u8> {
        self.early.front().copied()
    }
}
