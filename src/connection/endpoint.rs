//! The server to connect to: always the same one, or whichever sentinels say.
//!
//! Never: a server of which sentinels have said that it is no longer the one.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use redis::{Connection, ConnectionInfo, RedisConnectionInfo as Who, Value};

use crate::connection::connect::{Connected, Server};
use crate::connection::dns::Resolver;
use crate::connection::login;
use crate::connection::login::Login;
#[cfg(feature = "sentinel")]
use crate::connection::sentinel::client::Directory;
#[cfg(feature = "sentinel")]
use crate::connection::url::Behind;
use crate::error::config::ConfigError;
use crate::error::connection::ConnectionError;
use crate::settings::Settings;
use crate::settings::credentials::Provider;

/// The server to connect to.
#[derive(Clone)]
pub(crate) struct Endpoint {
    kind: Kind,
    credentials: Option<Provider>,
    resolver: Resolver,
}

#[derive(Clone)]
enum Kind {
    One(Arc<Server>),
    #[cfg(feature = "sentinel")]
    Master(Arc<Directory>),
    #[cfg(feature = "sentinel")]
    Replica(Arc<Directory>),
}

impl Endpoint {
    /// One server.
    pub(crate) fn new(info: ConnectionInfo, settings: &Settings) -> Result<Self, ConfigError> {
        let credentials = settings.credentials.clone();
        login::check(info.redis_settings(), credentials.as_ref())?;
        let kind = Kind::One(Arc::new(Server::new(info, settings)?));
        Ok(Self { kind, credentials, resolver: settings.resolver.clone() })
    }

    /// The master that sentinels know.
    #[cfg(feature = "sentinel")]
    pub(crate) fn behind(behind: Behind, settings: &Settings) -> Result<Self, ConfigError> {
        let credentials = settings.credentials.clone();
        login::check(behind.like.redis_settings(), credentials.as_ref())?;
        let kind = Kind::Master(Arc::new(Directory::new(behind, settings)?));
        Ok(Self { kind, credentials, resolver: settings.resolver.clone() })
    }

    /// Its replicas, where sentinels know them; else the server itself.
    #[cfg(feature = "sentinel")]
    pub(crate) fn replicas(&self) -> Self {
        let kind = match &self.kind {
            Kind::Master(directory) => Kind::Replica(Arc::clone(directory)),
            kind => kind.clone(),
        };
        Self { kind, credentials: self.credentials.clone(), resolver: self.resolver.clone() }
    }

    /// Who a connection says it is that is opened, or checked out, now.
    pub(crate) fn login(&self) -> Result<Login, ConnectionError> {
        Login::new(self.who(), self.credentials.as_ref())
    }

    /// For how long the provider of credentials has not answered, if it is being asked.
    pub(crate) fn provider_is_silent_for(&self) -> Option<Duration> {
        self.credentials.as_ref()?.silent_for()
    }

    /// The version of that, where it may change.
    pub(crate) fn login_version(&self) -> Option<u64> {
        self.credentials.as_ref().map(Provider::version)
    }

    /// Opens a connection, on which nothing was sent yet.
    pub(crate) fn connect(&self, timeout: Duration) -> Result<Connected, ConnectionError> {
        match &self.kind {
            Kind::One(server) => server.connect(timeout),
            #[cfg(feature = "sentinel")]
            Kind::Master(directory) => directory.connect(timeout),
            #[cfg(feature = "sentinel")]
            Kind::Replica(directory) => directory.connect_replica(timeout),
        }
    }

    /// What was opened to this address was of no use: other addresses of its host are tried first.
    pub(crate) fn failed(&self, address: SocketAddr) {
        self.resolver.failed(address);
    }

    /// Opens a connection of redis-rs's, which has no timeouts yet.
    pub(crate) fn client(&self, timeout: Duration) -> Result<Connection, ConnectionError> {
        let who = &self.login()?.who;
        match &self.kind {
            Kind::One(server) => server.client(who, timeout),
            #[cfg(feature = "sentinel")]
            Kind::Master(directory) => {
                let mut client = directory.client(who, timeout)?;
                let asked = client
                    .set_read_timeout(Some(timeout))
                    .and_then(|()| redis::cmd("ROLE").query(&mut client));
                self.judge_role(&asked.map_err(|error| ConnectionError::of(&error))?)?;
                Ok(client)
            }
            #[cfg(feature = "sentinel")]
            Kind::Replica(directory) => directory.client_of_replica(who, timeout),
        }
    }

    /// Rises with each switch of masters: what was opened before leads elsewhere.
    pub(crate) fn term(&self) -> u64 {
        match &self.kind {
            Kind::One(_) => 0,
            #[cfg(feature = "sentinel")]
            Kind::Master(directory) | Kind::Replica(directory) => directory.term(),
        }
    }

    /// Something makes it unlikely that the server is still the one: before the next connection,
    /// sentinels are asked.
    pub(crate) fn doubt(&self) {
        #[cfg(feature = "sentinel")]
        if let Kind::Master(directory) | Kind::Replica(directory) = &self.kind {
            directory.doubt();
        }
    }

    /// Whether the server may be replaced by another one, so that a new connection asks it whether
    /// it is what it was taken for.
    pub(crate) fn may_switch(&self) -> bool {
        !matches!(self.kind, Kind::One(_))
    }

    /// Whether the server is what it was taken for, by its answer to ROLE.
    pub(crate) fn judge_role(&self, answer: &Value) -> Result<(), ConnectionError> {
        #[cfg(feature = "sentinel")]
        if let Some(wrong) = match self.kind {
            Kind::One(_) => None,
            Kind::Master(_) => crate::protocol::sentinel::why_not_master(answer),
            Kind::Replica(_) => crate::protocol::sentinel::why_not_readable(answer),
        } {
            self.doubt();
            return Err(ConnectionError::unexpected(wrong));
        }
        let _ = answer;
        Ok(())
    }

    /// User, password, database and protocol, as the address says.
    fn who(&self) -> &Who {
        match &self.kind {
            Kind::One(server) => server.who(),
            #[cfg(feature = "sentinel")]
            Kind::Master(directory) | Kind::Replica(directory) => directory.who(),
        }
    }

    /// Host and port, or the socket's path; behind sentinels, the master's name too.
    pub(crate) fn address(&self) -> Cow<'_, str> {
        match &self.kind {
            Kind::One(server) => server.address().into(),
            #[cfg(feature = "sentinel")]
            Kind::Master(directory) | Kind::Replica(directory) => directory.address().into(),
        }
    }

    /// For spans: the host or the socket's path, and the port, which a socket has not (0).
    pub(crate) fn host_and_port(&self) -> (Cow<'_, str>, u16) {
        match &self.kind {
            Kind::One(server) => {
                let (host, port) = server.host_and_port();
                (host.into(), port)
            }
            #[cfg(feature = "sentinel")]
            Kind::Master(directory) | Kind::Replica(directory) => {
                let (host, port) = directory.host_and_port();
                (host.into(), port)
            }
        }
    }

    pub(crate) fn db(&self) -> i64 {
        self.who().db()
    }

    /// Nobody will connect any more.
    pub(crate) fn close(&self) {
        #[cfg(feature = "sentinel")]
        if let Kind::Master(directory) | Kind::Replica(directory) = &self.kind {
            directory.close();
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("address", &self.address())
            .field("db", &self.db())
            .finish_non_exhaustive()
    }
}
