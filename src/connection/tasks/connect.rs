//! Opens sockets and asks for credentials without blocking a thread of the runtime.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use redis::io::tcp::socket2::{Domain, SockAddr, SockRef, Socket, Type};
use tokio::net::TcpStream;

use crate::connection::connect::Server;
use crate::connection::deadline;
use crate::connection::endpoint::Endpoint;
use crate::connection::login::Login;
#[cfg(feature = "tls-rustls")]
use crate::connection::tasks::secured;
use crate::connection::tasks::socket::TaskSocket;
use crate::error::connection::ConnectionError;
use crate::process::sockets::OwnSocket;
use crate::settings::settings::Settings;
use crate::sync::timer::until;

/// Delay between attempts to connect to a unix socket whose accept queue is full.
const FULL_QUEUE_PAUSE: Duration = Duration::from_millis(2);

/// Returns the credentials of a connection that is opened, or checked out, now. The provider is asked
/// on a thread of the resolver. `deadline`: the caller waits no longer than that.
pub(crate) async fn login(
    endpoint: &Endpoint,
    settings: &Settings,
    deadline: Option<Instant>,
) -> Result<Login, ConnectionError> {
    if !endpoint.login_may_block() {
        return endpoint.login();
    }
    let of_io = |error| ConnectionError::of_io(&error);
    let asked = endpoint.clone();
    let answer = settings.resolver.start(move || asked.login()).map_err(of_io)?;
    let by = deadline.unwrap_or_else(|| deadline::after(Duration::MAX));
    match until(by, answer).await {
        Some(Ok(login)) => login,
        Some(Err(_)) => Err(ConnectionError::panicked()),
        None => Err(ConnectionError::timed_out("no credentials in time")),
    }
}

/// Opens a connection, on which nothing is sent yet.
pub(super) async fn connect(
    server: &Server,
    timeout: Duration,
) -> Result<TaskSocket, ConnectionError> {
    let by = deadline::after(timeout);
    let connected = match server.unix_path() {
        Some(path) => unix(path, by).await,
        None => any_address(server, by).await,
    };
    let socket = connected.map(OwnSocket::new).map_err(|error| ConnectionError::of_io(&error))?;
    #[cfg(feature = "tls-rustls")]
    if let Some(trust) = server.trust() {
        return match secured::secure(trust, server, &socket, by).await {
            Ok(session) => Ok(TaskSocket::secured(socket, session)),
            Err(error) => {
                if let Ok(peer) = socket.peer_addr() {
                    server.resolver().failed(peer);
                }
                Err(error)
            }
        };
    }
    Ok(TaskSocket::plain(socket))
}

/// Tries the host's addresses one after the other. Each address has its share of the time, so that
/// a silent one does not keep the next one from being tried.
async fn any_address(server: &Server, by: Instant) -> io::Result<TcpStream> {
    let (host, port) = server.host_and_port();
    let addresses = server.resolver().addresses_of(host, port, by).await?;
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for (nth, address) in addresses.iter().enumerate() {
        let left = by.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let share = left / (addresses.len() - nth) as u32;
        match to(server, *address, deadline::after(share)).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
        server.resolver().failed(*address);
    }
    Err(failed)
}

async fn to(server: &Server, address: SocketAddr, by: Instant) -> io::Result<TcpStream> {
    let stream = until(by, TcpStream::connect(address)).await;
    let stream = stream.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))?;
    server.set_options(SockRef::from(&stream))?;
    Ok(stream)
}

/// Connects to a unix socket.
async fn unix(path: &Path, by: Instant) -> io::Result<TcpStream> {
    let address = SockAddr::unix(path)?;
    loop {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        match socket.connect(&address) {
            Ok(()) => return TcpStream::from_std(socket.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < by => {
                tokio::time::sleep(FULL_QUEUE_PAUSE).await;
            }
            Err(error) => return Err(error),
        }
    }
}
