//! What the system knows of a socket, also if its runtime does not know of it yet.

use std::io::{self, Read};
use std::mem::MaybeUninit;

use redis::io::tcp::socket2::SockRef;
use tokio::net::TcpStream;

/// Reads what has arrived.
pub(super) fn receive(socket: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    (&*SockRef::from(socket)).read(buffer)
}

/// Returns whether bytes have arrived, without taking them. An error is the socket's; so is the end of
/// the stream.
pub(super) fn is_readable(socket: &TcpStream) -> io::Result<bool> {
    match SockRef::from(socket).peek(&mut [MaybeUninit::uninit()]) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => is_readable(socket),
        Err(error) => Err(error),
    }
}
