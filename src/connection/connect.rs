//! One server at one address. User and password are never shown.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::io::tcp::TcpSettings;
use redis::io::tcp::socket2::{Domain, SockAddr, SockRef, Socket, TcpKeepalive, Type};
use redis::{Client, Connection, ConnectionAddr, ConnectionInfo, RedisConnectionInfo, RedisResult};

#[cfg(feature = "tls-rustls")]
use crate::connection::tls::{Session, Trust};
use crate::dns::Resolver;
use crate::error::config::ConfigError;
use crate::error::connection::ConnectionError;
use crate::process::sockets::OwnSocket;
use crate::settings::settings::Settings;

/// Minimum timeout: redis-rs refuses a timeout of zero.
const MOMENT: Duration = Duration::from_millis(1);

/// A connection that has just been opened.
pub(crate) enum Connected {
    /// TCP or a unix socket, on which nothing was sent yet.
    Socket(Arc<OwnSocket>),
    /// TCP with TLS, after its handshake.
    #[cfg(feature = "tls-rustls")]
    Tls(Arc<OwnSocket>, Box<Session>),
}

impl Connected {
    pub(crate) fn socket(&self) -> &Arc<OwnSocket> {
        match self {
            Self::Socket(socket) => socket,
            #[cfg(feature = "tls-rustls")]
            Self::Tls(socket, _) => socket,
        }
    }
}

const USER_ALONE: &str = "a user needs a password: redis://user:password@host, or no user in the address, and \
                          `username` with `password` or `password_file`";

/// One server at one address, with all that a connection to it needs.
#[derive(Clone)]
pub(crate) struct Server {
    info: ConnectionInfo,
    address: String,
    host: String,
    port: u16,
    /// Empty: connections have no name.
    client_name: String,
    resolver: Resolver,
    #[cfg(feature = "tls-rustls")]
    trust: Option<Trust>,
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
        let trust = trust(&info, settings)?;
        let auth = info.redis_settings();
        // Without a password nothing is sent, and the server's user would be `default`.
        if auth.username().is_some() && auth.password().is_none() {
            return Err(reason(USER_ALONE.to_owned()));
        }
        let db = auth.db();
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
        let resolver = settings.resolver.clone();
        let info = info.set_tcp_settings(tcp);
        let client_name = settings.client_name.clone();
        Ok(Self {
            info,
            address,
            host,
            port,
            client_name,
            resolver,
            #[cfg(feature = "tls-rustls")]
            trust,
        })
    }

    /// Opens a connection, with TLS if the address has TLS.
    pub(crate) fn connect(&self, timeout: Duration) -> Result<Connected, ConnectionError> {
        #[cfg(feature = "tls-rustls")]
        let until = Instant::now() + timeout;
        let socket = match self.info.addr() {
            ConnectionAddr::Unix(path) => unix(path, timeout),
            _ => self.any_address(timeout, |at, share| to(at, self.info.tcp_settings(), share)),
        };
        let socket =
            Arc::new(OwnSocket::new(socket.map_err(|error| ConnectionError::of_io(&error))?));
        #[cfg(feature = "tls-rustls")]
        if let Some(trust) = &self.trust {
            return match trust.secure(&self.host, &socket, until) {
                Ok(session) => Ok(Connected::Tls(socket, Box::new(session))),
                Err(error) => {
                    if let Ok(peer) = socket.peer_addr() {
                        self.resolver.failed(peer);
                    }
                    Err(error)
                }
            };
        }
        Ok(Connected::Socket(socket))
    }

    /// Tries the host's addresses one after the other. Each address has its share of the time, so that
    /// a silent one does not keep the next one from being tried.
    fn any_address<T>(
        &self,
        timeout: Duration,
        mut connect: impl FnMut(SocketAddr, Duration) -> io::Result<T>,
    ) -> io::Result<T> {
        let until = Instant::now() + timeout;
        let addresses = self.resolver.addresses(&self.host, self.port, until)?;
        let mut failed = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
        for (nth, address) in addresses.iter().enumerate() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let share = left / (addresses.len() - nth) as u32;
            match connect(*address, share) {
                Ok(connected) => return Ok(connected),
                Err(error) => failed = error,
            }
            self.resolver.failed(*address);
        }
        Err(failed)
    }

    /// Opens a connection of redis-rs, which has no timeouts yet.
    pub(crate) fn client(
        &self,
        auth: &RedisConnectionInfo,
        timeout: Duration,
    ) -> Result<Connection, ConnectionError> {
        let mut client = self.open_client(auth, timeout)?;
        if !self.client_name.is_empty() {
            self.name(&mut client, timeout).map_err(|error| ConnectionError::of(&error))?;
        }
        Ok(client)
    }

    /// Gives a connection its name. A refusal changes nothing.
    fn name(&self, client: &mut Connection, timeout: Duration) -> RedisResult<()> {
        client.set_read_timeout(Some(timeout))?;
        client.set_write_timeout(Some(timeout))?;
        let name = redis::cmd("CLIENT").arg("SETNAME").arg(&self.client_name).get_packed_command();
        client.send_packed_command(&name)?;
        client.recv_response()?;
        client.set_read_timeout(None)?;
        client.set_write_timeout(None)
    }

    fn open_client(
        &self,
        auth: &RedisConnectionInfo,
        timeout: Duration,
    ) -> Result<Connection, ConnectionError> {
        let info = self.info.clone().set_redis_settings(auth.clone());
        match info.addr() {
            ConnectionAddr::Tcp(..) => {
                let mut verdict = None;
                let connected = self.any_address(timeout, |address, share| {
                    let addr = ConnectionAddr::Tcp(literal(address), address.port());
                    open(info.clone().set_addr(addr), share).map_err(|error| {
                        verdict = Some(ConnectionError::of(&error));
                        io::Error::other("refused")
                    })
                });
                connected.map_err(|error| verdict.unwrap_or_else(|| ConnectionError::of_io(&error)))
            }
            // redis-rs looks the name up itself, because the certificate must have that name. The
            // name was looked up here before, in a look-up that callers share.
            ConnectionAddr::TcpTls { .. } if self.host.parse::<IpAddr>().is_err() => {
                let until = Instant::now() + timeout;
                let known = self.resolver.addresses(&self.host, self.port, until);
                let connected = known.and_then(|_| {
                    let left = until.saturating_duration_since(Instant::now()).max(MOMENT);
                    self.resolver.run(until, move || open(info, left))
                });
                let connected = connected.map_err(|error| ConnectionError::of_io(&error))?;
                connected.map_err(|error| ConnectionError::of(&error))
            }
            // redis-rs waits in the server's accept queue for as long as it takes.
            ConnectionAddr::Unix(_) => {
                let until = Instant::now() + timeout;
                let connected = self.resolver.run(until, move || open(info, timeout.max(MOMENT)));
                let connected = connected.map_err(|error| ConnectionError::of_io(&error))?;
                connected.map_err(|error| ConnectionError::of(&error))
            }
            _ => open(info, timeout).map_err(|error| ConnectionError::of(&error)),
        }
    }

    /// User, password, database and protocol from the address.
    pub(crate) fn auth_info(&self) -> &RedisConnectionInfo {
        self.info.redis_settings()
    }

    /// The path of a unix socket.
    #[cfg(feature = "tokio")]
    pub(crate) fn unix_path(&self) -> Option<&Path> {
        match self.info.addr() {
            ConnectionAddr::Unix(path) => Some(path),
            _ => None,
        }
    }

    /// The certificates of its TLS; `None`: connections have no TLS.
    #[cfg(all(feature = "tokio", feature = "tls-rustls"))]
    pub(crate) fn trust(&self) -> Option<&Trust> {
        self.trust.as_ref()
    }

    #[cfg(feature = "tokio")]
    pub(crate) fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    /// Sets the options of a TCP connection.
    #[cfg(feature = "tokio")]
    pub(crate) fn set_options(&self, socket: SockRef<'_>) -> io::Result<()> {
        set_options(&socket, self.info.tcp_settings())
    }

    /// Host and port, or the socket's path.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// For spans: the host or the socket's path, and the port, which is 0 for a socket.
    pub(crate) fn host_and_port(&self) -> (&str, u16) {
        (&self.host, self.port)
    }
}

/// Returns the certificates that the server's TLS uses, if the address has TLS. An address that
/// would check less than [`Tls`](crate::Tls) does, or in a way that is not known here, is refused.
#[cfg(feature = "tls-rustls")]
fn trust(info: &ConnectionInfo, settings: &Settings) -> Result<Option<Trust>, ConfigError> {
    let refused = |reason: &str| Err(ConfigError::Address { reason: reason.to_owned() });
    match info.addr() {
        ConnectionAddr::TcpTls { insecure: true, .. } => {
            refused("#insecure: TLS without a check of the server's certificate is not made here")
        }
        ConnectionAddr::TcpTls { tls_params: Some(_), .. } if settings.tls.is_none() => refused(
            "the certificates of a redis::ConnectionInfo cannot be read: give them to Builder::tls",
        ),
        ConnectionAddr::TcpTls { .. } => Trust::new(settings.tls.as_ref()).map(Some),
        _ => Ok(None),
    }
}

fn open(info: ConnectionInfo, timeout: Duration) -> RedisResult<Connection> {
    Client::open(info)?.get_connection_with_timeout(timeout)
}

/// Returns the address as a host that needs no look-up.
fn literal(address: SocketAddr) -> String {
    match address {
        SocketAddr::V6(address) if address.scope_id() != 0 => {
            format!("{}%{}", address.ip(), address.scope_id())
        }
        address => address.ip().to_string(),
    }
}

fn to(address: SocketAddr, settings: &TcpSettings, timeout: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, timeout)?;
    set_options(&SockRef::from(&stream), settings)?;
    Ok(stream)
}

fn set_options(socket: &Socket, settings: &TcpSettings) -> io::Result<()> {
    socket.set_tcp_nodelay(settings.nodelay())?;
    if let Some(keepalive) = settings.keepalive() {
        socket.set_tcp_keepalive(keepalive)?;
    }
    #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
    if let Some(timeout) = settings.user_timeout() {
        socket.set_tcp_user_timeout(Some(timeout))?;
    }
    Ok(())
}

/// Connects to a unix socket. A stream socket works alike in every family; the type is only named
/// TCP.
fn unix(path: &Path, timeout: Duration) -> io::Result<TcpStream> {
    if timeout.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // This also limits the wait in the server's accept queue. Less than a microsecond would be no limit.
    socket.set_write_timeout(Some(timeout.max(MOMENT)))?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(socket.into())
}
