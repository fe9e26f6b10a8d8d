//! A socket of a connection's task: TCP or a unix socket.

use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::net::Shutdown;

use redis::io::tcp::socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::process::sockets::OwnSocket;

/// Whether a read that does not fill its buffer has read all bytes: the runtime is woken by the
/// next ones.
const EMPTY_AFTER_SHORT_READ: bool = cfg!(any(target_os = "linux", target_os = "android"));

/// A socket that is registered with its runtime. A stream socket works alike in every family; the
/// type is only named TCP.
pub(super) type TaskSocket = OwnSocket<TcpStream>;

/// Reads what has arrived. `WouldBlock`: nothing, as far as the runtime knows.
pub(super) fn read(socket: &TaskSocket, buffer: &mut [u8]) -> io::Result<usize> {
    let (mut bytes, most) = (0, buffer.len());
    let tried = socket.try_io(Interest::READABLE, || {
        bytes = read_now(socket, buffer)?;
        // Has the runtime forget that the socket is readable, which spares the read that would fail.
        let is_all = EMPTY_AFTER_SHORT_READ && (1..most).contains(&bytes);
        if is_all { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    if bytes > 0 { Ok(bytes) } else { tried.map(|()| 0) }
}

/// Reads what has arrived, also if the runtime does not know of it yet.
pub(super) fn read_now(socket: &TaskSocket, buffer: &mut [u8]) -> io::Result<usize> {
    (&*SockRef::from(&**socket)).read(buffer)
}

/// Returns whether bytes have arrived, without taking them. An error is the socket's; so is the end
/// of the stream.
pub(super) fn has_come(socket: &TaskSocket) -> io::Result<bool> {
    match SockRef::from(&**socket).peek(&mut [MaybeUninit::uninit()]) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => has_come(socket),
        Err(error) => Err(error),
    }
}

/// Returns the first byte that has arrived, without taking it. `None`: it is not known.
#[cold]
pub(super) fn first_byte(socket: &TaskSocket) -> Option<u8> {
    #[cfg(unix)]
    {
        use std::os::fd::AsFd as _;

        // `peek` of socket2 fills memory that cannot be read without unsafe code.
        let same = socket.as_fd().try_clone_to_owned().ok()?;
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
