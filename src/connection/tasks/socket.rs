//! A socket of a connection's task: TCP, with TLS or without, or a unix socket.

use std::io;
use std::net::Shutdown;
use std::ops::Deref;
#[cfg(feature = "tls-rustls")]
use std::sync::Mutex;
use std::task::{Context, Poll};

use redis::io::tcp::socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::connection::tasks::raw::{is_readable, receive};
#[cfg(feature = "tls-rustls")]
use crate::connection::tasks::secured::{RawSocket, RuntimeSocket, Secured};
#[cfg(feature = "tls-rustls")]
use crate::connection::tls::Session;
use crate::process::sockets::OwnSocket;
#[cfg(feature = "tls-rustls")]
use crate::sync::lock;

/// Whether a read that does not fill its buffer has read all bytes: the runtime is woken by the
/// next ones.
const EMPTY_AFTER_SHORT_READ: bool = cfg!(any(target_os = "linux", target_os = "android"));

/// A socket that is registered with its runtime, with or without TLS. A stream socket works alike in
/// every family; the type is only named TCP.
pub(super) struct TaskSocket {
    stream: OwnSocket<TcpStream>,
    /// A caller may look into it between two polls of the task.
    #[cfg(feature = "tls-rustls")]
    tls: Option<Mutex<Secured>>,
}

impl TaskSocket {
    pub(super) fn plain(stream: OwnSocket<TcpStream>) -> Self {
        Self {
            stream,
            #[cfg(feature = "tls-rustls")]
            tls: None,
        }
    }

    /// A socket whose TLS handshake is over.
    #[cfg(feature = "tls-rustls")]
    pub(super) fn secured(stream: OwnSocket<TcpStream>, session: Session) -> Self {
        Self { stream, tls: Some(Mutex::new(Secured::new(session))) }
    }

    pub(super) fn has_tls(&self) -> bool {
        #[cfg(feature = "tls-rustls")]
        return self.tls.is_some();
        #[cfg(not(feature = "tls-rustls"))]
        false
    }
}

impl Deref for TaskSocket {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        &self.stream
    }
}

/// Waits until a read may find bytes.
pub(super) fn poll_read_ready(
    socket: &TaskSocket,
    context: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    #[cfg(feature = "tls-rustls")]
    if let Some(tls) = &socket.tls
        && lock(tls).has_plain()
    {
        return Poll::Ready(Ok(()));
    }
    socket.stream.poll_read_ready(context)
}

/// Reads what has arrived. `WouldBlock`: nothing, as far as the runtime knows. `Interrupted`: nothing
/// that the caller may see.
pub(super) fn read(socket: &TaskSocket, buffer: &mut [u8]) -> io::Result<usize> {
    #[cfg(feature = "tls-rustls")]
    if let Some(tls) = &socket.tls {
        return lock(tls).read(&mut RuntimeSocket(socket), buffer);
    }
    let (mut bytes, most) = (0, buffer.len());
    let tried = socket.try_io(Interest::READABLE, || {
        bytes = receive(socket, buffer)?;
        // Has the runtime forget that the socket is readable, which spares the read that would fail.
        let is_all = EMPTY_AFTER_SHORT_READ && (1..most).contains(&bytes);
        if is_all { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    if bytes > 0 { Ok(bytes) } else { tried.map(|()| 0) }
}

/// Reads what has arrived, also if the runtime does not know of it yet.
pub(super) fn read_now(socket: &TaskSocket, buffer: &mut [u8]) -> io::Result<usize> {
    #[cfg(feature = "tls-rustls")]
    if let Some(tls) = &socket.tls {
        return lock(tls).read(&mut RawSocket(socket), buffer);
    }
    receive(socket, buffer)
}

/// Writes bytes and returns the number of those that were sent. `WouldBlock`: the socket accepts none.
/// `Interrupted`: none was sent, and the next call may send some.
pub(super) fn write(socket: &TaskSocket, bytes: &[u8]) -> io::Result<usize> {
    #[cfg(feature = "tls-rustls")]
    if let Some(tls) = &socket.tls {
        return match lock(tls).write(&mut RawSocket(socket), bytes)? {
            0 => Err(io::ErrorKind::Interrupted.into()),
            sent => Ok(sent),
        };
    }
    match socket.try_write(bytes)? {
        0 => Err(io::ErrorKind::BrokenPipe.into()),
        sent => Ok(sent),
    }
}

/// Returns whether bytes have arrived, without taking them from the task. An error is the socket's; so
/// is the end of the stream. With TLS these are bytes of plaintext: what the caller may not see, as
/// session tickets, is taken.
pub(super) fn has_come(socket: &TaskSocket) -> io::Result<bool> {
    #[cfg(feature = "tls-rustls")]
    if let Some(tls) = &socket.tls {
        return lock(tls).has_come(socket);
    }
    is_readable(socket)
}

/// Returns the first byte that has arrived, without taking it. `None`: it is not known.
#[cold]
pub(super) fn first_byte(socket: &TaskSocket) -> Option<u8> {
    #[cfg(feature = "tls-rustls")]
    if let Some(tls) = &socket.tls {
        return lock(tls).first_byte();
    }
    #[cfg(unix)]
    {
        use std::os::fd::AsFd as _;

        // `peek` of socket2 fills memory that cannot be read without unsafe code.
        let same = socket.stream.as_fd().try_clone_to_owned().ok()?;
        let mut first = [0];
        let peeked = std::net::TcpStream::from(same).peek(&mut first).ok()?;
        let [first] = first;
        (peeked == 1).then_some(first)
    }
    #[cfg(not(unix))]
    {
        let _ = socket;
        None
    }
}

/// Ends the connection for the peer and for every user of the socket.
pub(super) fn shut_down(socket: &TaskSocket) {
    // It fails for a connection that has ended.
    let _: io::Result<()> = SockRef::from(&**socket).shutdown(Shutdown::Both);
}
