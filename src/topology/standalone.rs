//! One server at one address.
//!
//! Never: shows user or password.

use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fmt, io};

use redis::io::tcp::TcpSettings;
use redis::io::tcp::socket2::{Domain, SockAddr, SockRef, Socket, TcpKeepalive, Type};
use redis::{Client, Connection, ConnectionAddr, ConnectionInfo, RedisConnectionInfo};

use crate::config::Settings;
use crate::error::{ConfigError, LinkError};

/// A connection that has just been opened.
pub(crate) enum Connected {
    /// TCP or a unix socket, on which nothing was said yet.
    Socket(Arc<TcpStream>),
    /// TLS, by redis-rs, which has said who it is.
    Client(Connection),
}

/// One server at one address, ready to be connected to.
#[derive(Clone)]
pub(crate) struct Server {
    info: ConnectionInfo,
    address: String,
    host: String,
    port: u16,
}

impl Server {
    pub(crate) fn new(info: ConnectionInfo, settings: &Settings) -> Result<Self, ConfigError> {
        let reason = |reason: String| ConfigError::Address { reason };
        if !info.addr().is_supported() {
            return Err(reason(match info.addr() {
                ConnectionAddr::TcpTls { .. } => "TLS needs the feature tls-rustls".to_owned(),
                _ => "this platform cannot connect to such an address".to_owned(),
            }));
        }
        #[cfg(feature = "tls-rustls")]
        if matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
            // rustls panics where there is none.
            super::tls::provider();
        }
        let db = info.redis_settings().db();
        if db < 0 {
            return Err(reason(format!("there is no database {db}")));
        }
        let mut tcp = TcpSettings::default().set_nodelay(true);
        if let Some(keepalive) = settings.tcp_keepalive {
            tcp = tcp.set_keepalive(TcpKeepalive::new().with_time(keepalive));
        }
        #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
        if let Some(timeout) = settings.tcp_user_timeout {
            tcp = tcp.set_user_timeout(timeout);
        }
        let address = info.addr().to_string();
        let (host, port) = match info.addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                (host.clone(), *port)
            }
            _ => (address.clone(), 0),
        };
        Ok(Self { info: info.set_tcp_settings(tcp), address, host, port })
    }

    /// Opens a connection.
    pub(crate) fn connect(
        &self,
        who: &RedisConnectionInfo,
        timeout: Duration,
    ) -> Result<Connected, LinkError> {
        let socket = match self.info.addr() {
            ConnectionAddr::Tcp(host, port) => tcp(host, *port, self.info.tcp_settings(), timeout),
            ConnectionAddr::Unix(path) => unix(path, timeout),
            _ => return self.client(who, timeout).map(Connected::Client),
        };
        let socket = socket.map_err(|error| LinkError::of_io(&error))?;
        Ok(Connected::Socket(Arc::new(socket)))
    }

    /// Opens a connection of redis-rs's, which has no timeouts yet.
    pub(crate) fn client(
        &self,
        who: &RedisConnectionInfo,
        timeout: Duration,
    ) -> Result<Connection, LinkError> {
        let info = self.info.clone().set_redis_settings(who.clone());
        let client = Client::open(info).and_then(|to| to.get_connection_with_timeout(timeout));
        client.map_err(|error| LinkError::of(&error))
    }

    /// User, password, database and protocol, as the address says.
    pub(crate) fn who(&self) -> &RedisConnectionInfo {
        self.info.redis_settings()
    }

    /// Host and port, or the socket's path.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// For spans: the host or the socket's path, and the port, which a socket has not (0).
    pub(crate) fn host_and_port(&self) -> (&str, u16) {
        (&self.host, self.port)
    }

    pub(crate) fn db(&self) -> i64 {
        self.who().db()
    }
}

/// Tries the host's addresses one after the other.
fn tcp(host: &str, port: u16, settings: &TcpSettings, timeout: Duration) -> io::Result<TcpStream> {
    let until = Instant::now() + timeout;
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in (host, port).to_socket_addrs()? {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match to(address, settings, left) {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

fn to(address: SocketAddr, settings: &TcpSettings, timeout: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_nodelay(settings.nodelay())?;
    let socket = SockRef::from(&stream);
    if let Some(keepalive) = settings.keepalive() {
        socket.set_tcp_keepalive(keepalive)?;
    }
    #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
    if let Some(timeout) = settings.user_timeout() {
        socket.set_tcp_user_timeout(Some(timeout))?;
    }
    Ok(stream)
}

/// A stream socket is one whatever its family: what comes out is only called TCP.
fn unix(path: &Path, timeout: Duration) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Bounds the wait for a place in the server's line too.
    socket.set_write_timeout(Some(timeout))?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(socket.into())
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("address", &self.address)
            .field("db", &self.db())
            .finish_non_exhaustive()
    }
}
