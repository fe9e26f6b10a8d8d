//! One server at one address.
//!
//! Never: shows user or password.

use std::fmt;
use std::time::Duration;

use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{Client, Connection, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisResult};

use crate::config::Settings;
use crate::error::ConfigError;

/// One server at one address, ready to be connected to.
#[derive(Clone)]
pub(crate) struct Endpoint {
    client: Client,
    address: String,
    host: String,
    port: u16,
}

impl Endpoint {
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
            use rustls::crypto::{CryptoProvider, ring};
            // rustls panics where there is none. One that the program has chosen stays.
            if CryptoProvider::get_default().is_none() {
                let _: Result<_, _> = ring::default_provider().install_default();
            }
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
        let client = Client::open(info.set_tcp_settings(tcp)).map_err(|e| reason(plain(&e)))?;
        Ok(Self { client, address, host, port })
    }

    pub(crate) fn connect(&self, timeout: Duration) -> RedisResult<Connection> {
        self.client.get_connection_with_timeout(timeout)
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
        self.client.get_connection_info().redis_settings().db()
    }
}

/// Understands an address, or says what is wrong with it without repeating it.
pub(crate) fn parse(to: impl IntoConnectionInfo) -> Result<ConnectionInfo, ConfigError> {
    to.into_connection_info().map_err(|error| ConfigError::Address { reason: plain(&error) })
}

/// The fixed part of the error's text: its detail may hold a piece of the address.
fn plain(error: &redis::RedisError) -> String {
    let text = error.to_string();
    text.split(" - ").next().unwrap_or_default().to_owned()
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("address", &self.address)
            .field("db", &self.db())
            .finish_non_exhaustive()
    }
}
