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
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::process::sockets::OwnSocket;
use crate::settings::settings::Settings;
use crate::sync::caught::caught;
use crate::sync::timer::until;

/// Delay between attempts to connect to a unix socket whose accept queue is full.
const FULL_QUEUE_PAUSE: Duration = Duration::from_millis(2);

/// Returns the credentials of a connection that is opened, or checked out, now. A provider that may block
/// is called on a thread of its own, an asynchronous one here. `deadline`: the caller waits no longer
/// than that.
pub(crate) async fn login(
    endpoint: &Endpoint,
    settings: &Settings,
    deadline: Option<Instant>,
) -> Result<Login, ConnectionError> {
    let Some(provider) = endpoint.provider() else { return endpoint.login() };
    let late = || {
        let text = "the provider has not returned in time";
        Err(ConnectionError::new(ConnectionErrorKind::Credentials, text))
    };
    if provider.is_asynchronous() {
        let by = deadline.unwrap_or_else(|| deadline::after(settings.checkout_timeout));
        let called = async {
            let version = provider.version();
            (version, provider.credentials_async().await)
        };
        return match until(by, caught(called)).await {
            Some(Some((version, credentials))) => {
                Login::with(endpoint.auth_info(), version, credentials)
            }
            Some(None) => Err(ConnectionError::panicked()),
            None => late(),
        };
    }
    let asked = endpoint.clone();
    let answer = provider.threads().start(move || asked.login());
    let by = deadline.unwrap_or_else(|| deadline::after(Duration::MAX));
    match until(by, answer.map_err(|error| ConnectionError::of_io(&error))?).await {
        Some(Ok(login)) => login,
        Some(Err(_)) => Err(ConnectionError::panicked()),
        None => late(),
    }
}

/// Returns the version of the credentials; `None`: they do not change, or it is not known within
/// `response_timeout` and by `deadline`. A provider that may block is called on a thread of its own.
pub(crate) async fn login_version(
    endpoint: &Endpoint,
    settings: &Settings,
    deadline: Instant,
) -> Option<u64> {
    let provider = endpoint.provider()?;
    if let Some(version) = provider.version_at_once() {
        return Some(version);
    }
    let limit = settings.response_timeout;
    // If it hangs, not every call waits for it.
    if provider.silent_for().is_some_and(|silent| silent > limit) {
        return None;
    }
    until(deadline::after(limit).min(deadline), provider.ask_version()).await?.ok()
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
