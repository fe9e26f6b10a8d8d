//! The server to connect to: a fixed one, or the one that sentinels report.
//!
//! A server that sentinels have reported as replaced is not used.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use redis::{Connection, ConnectionInfo, RedisConnectionInfo as AuthInfo, Value};

use crate::connection::connect::{Connected, Server};
use crate::connection::login;
use crate::connection::login::Login;
use crate::connection::sentinel::blocking_queries::BlockingQueries;
use crate::connection::sentinel::client::SentinelClient;
use crate::connection::sentinel::queries::{MasterConnection, SentinelQueries};
use crate::connection::sentinel::watcher::WatchedMaster;
use crate::connection::url::SentinelConfig;
use crate::error::config::ConfigError;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::protocol::sentinel::{why_not_master, why_not_readable};
use crate::settings::credentials::Provider;
use crate::settings::settings::Settings;
use crate::sync::now::now;
use crate::text::brief;

/// The server to connect to.
#[derive(Clone)]
pub(crate) struct Endpoint {
    target: Target,
    credentials: Option<Provider>,
}

#[derive(Clone)]
enum Target {
    Server(Arc<Server>),
    Master(Arc<WatchedMaster>),
    Replica(Arc<WatchedMaster>),
}

impl Endpoint {
    /// An endpoint of one server.
    pub(crate) fn new(info: ConnectionInfo, settings: &Settings) -> Result<Self, ConfigError> {
        let credentials = settings.credentials.clone();
        login::check(info.redis_settings(), credentials.as_ref())?;
        let target = Target::Server(Arc::new(Server::new(info, settings)?));
        Ok(Self { target, credentials })
    }

    /// An endpoint of the master that sentinels know.
    pub(crate) fn sentinel(
        config: SentinelConfig,
        settings: &Settings,
    ) -> Result<Self, ConfigError> {
        let credentials = settings.credentials.clone();
        login::check(config.server_template.redis_settings(), credentials.as_ref())?;
        let client = SentinelClient::new(config, settings)?;
        let target = Target::Master(Arc::new(WatchedMaster::new(client)));
        Ok(Self { target, credentials })
    }

    /// Returns the endpoint of the replicas that sentinels know; without sentinels, of the server
    /// itself.
    pub(crate) fn replicas(&self) -> Self {
        let mut replicas = self.clone();
        if let Target::Master(client) = &self.target {
            replicas.target = Target::Replica(Arc::clone(client));
        }
        replicas
    }

    /// The endpoint of a sentinel, whose credentials are those of its own address.
    #[cfg(feature = "tokio")]
    pub(crate) fn of_sentinel(sentinel: &Server) -> Self {
        Self { target: Target::Server(Arc::new(sentinel.clone())), credentials: None }
    }

    /// The client of the sentinels, if there are any.
    pub(crate) fn sentinels(&self) -> Option<&Arc<WatchedMaster>> {
        match &self.target {
            Target::Server(_) => None,
            Target::Master(client) | Target::Replica(client) => Some(client),
        }
    }

    /// Returns the server that connections lead to now, and the time left to connect to it.
    pub(crate) async fn server_within<Q: SentinelQueries>(
        &self,
        timeout: Duration,
    ) -> Result<(Arc<Server>, Duration), ConnectionError> {
        match &self.target {
            Target::Server(server) => Ok((Arc::clone(server), timeout)),
            Target::Master(client) => client.master_within::<Q>(timeout).await,
            Target::Replica(client) => client.replica_within::<Q>(timeout).await,
        }
    }

    /// The same for a thread.
    fn server(&self, timeout: Duration) -> Result<(Arc<Server>, Duration), ConnectionError> {
        if let Some(client) = self.sentinels() {
            client.watch();
        }
        now(self.server_within::<BlockingQueries>(timeout))
    }

    /// Returns the credentials of a connection that is opened, or checked out, now.
    pub(crate) fn login(&self) -> Result<Login, ConnectionError> {
        Login::new(self.auth_info(), self.credentials.as_ref())
    }

    /// The provider of credentials. [`login`](Self::login) calls it, and may block.
    pub(crate) fn provider(&self) -> Option<&Provider> {
        self.credentials.as_ref()
    }

    /// Returns the error of a provider that has not returned for longer than `limit`: each further call
    /// would occupy a thread.
    pub(crate) fn silent_provider(&self, limit: Duration) -> Option<ConnectionError> {
        let silent = self.credentials.as_ref()?.silent_for().filter(|silent| *silent > limit)?;
        let text = format!("the provider has not returned for {}", brief(silent));
        Some(ConnectionError::new(ConnectionErrorKind::Credentials, text))
    }

    /// The same while a further call may find no thread.
    pub(crate) fn occupied_provider(&self, limit: Duration) -> Option<ConnectionError> {
        self.credentials.as_ref().filter(|provider| provider.is_occupied(limit))?;
        self.silent_provider(limit)
    }

    /// Returns the version of the credentials, if they may change and the provider does not panic.
    pub(crate) fn login_version(&self) -> Option<u64> {
        self.credentials.as_ref()?.version_unless_it_panics()
    }

    /// Opens a connection, on which nothing is sent yet. A connection to a master ends when another
    /// one takes its place.
    pub(crate) fn connect(&self, timeout: Duration) -> Result<Connected, ConnectionError> {
        let (server, left) = self.server(timeout)?;
        let connected = server.connect(left).inspect_err(|_| self.invalidate())?;
        let socket = Arc::downgrade(connected.socket());
        self.register(&server, socket)?;
        Ok(connected)
    }

    /// Has the connection ended when another server takes the master's place.
    ///
    /// # Errors
    /// That has happened already.
    pub(crate) fn register(
        &self,
        server: &Server,
        connection: Weak<dyn MasterConnection>,
    ) -> Result<(), ConnectionError> {
        match &self.target {
            Target::Master(client) => client.register(server, connection),
            // Without a replica it leads to the master.
            Target::Replica(client) => {
                client.register_replica(server, connection);
                Ok(())
            }
            Target::Server(_) => Ok(()),
        }
    }

    /// Opens a connection of redis-rs, which has no timeouts yet.
    pub(crate) fn client(&self, timeout: Duration) -> Result<Connection, ConnectionError> {
        self.client_as(&self.login()?, timeout)
    }

    /// The same with these credentials.
    pub(crate) fn client_as(
        &self,
        login: &Login,
        timeout: Duration,
    ) -> Result<Connection, ConnectionError> {
        let (server, left) = self.server(timeout)?;
        let generation = self.generation();
        let mut client = server.client(&login.auth, left).inspect_err(|_| self.invalidate())?;
        if let Target::Master(_) = &self.target {
            let asked = client
                .set_read_timeout(Some(timeout))
                .and_then(|()| redis::cmd("ROLE").query(&mut client));
            self.judge_role(&asked.map_err(|error| ConnectionError::of(&error))?, generation)?;
        }
        Ok(client)
    }

    /// Returns a number that rises with each failover: an older connection leads to a former
    /// master.
    pub(crate) fn generation(&self) -> u64 {
        self.sentinels().map_or(0, |client| client.generation())
    }

    /// Records a doubt about the server: before the next connection, the sentinels are queried.
    pub(crate) fn invalidate(&self) {
        if let Some(client) = self.sentinels() {
            client.invalidate();
        }
    }

    /// Returns whether another server may take this one's place. A new connection then sends ROLE
    /// to check the server's role.
    pub(crate) fn may_switch(&self) -> bool {
        self.sentinels().is_some()
    }

    /// Checks that the server has the expected role, by its reply to ROLE. `generation`: of the connection.
    pub(crate) fn judge_role(
        &self,
        answer: &Value,
        generation: u64,
    ) -> Result<(), ConnectionError> {
        let wrong = match self.target {
            Target::Server(_) => None,
            Target::Master(_) => why_not_master(answer),
            Target::Replica(_) => why_not_readable(answer),
        };
        let Some(wrong) = wrong else { return Ok(()) };
        match &self.target {
            Target::Master(client) => client.disprove(generation),
            Target::Replica(_) | Target::Server(_) => self.invalidate(),
        }
        Err(ConnectionError::unexpected(wrong))
    }

    /// User, password, database and protocol from the address.
    pub(crate) fn auth_info(&self) -> &AuthInfo {
        match &self.target {
            Target::Server(server) => server.auth_info(),
            Target::Master(client) | Target::Replica(client) => client.auth_info(),
        }
    }

    /// Host and port, or the socket's path; behind sentinels, the master's name too.
    pub(crate) fn address(&self) -> Cow<'_, str> {
        match &self.target {
            Target::Server(server) => server.address().into(),
            Target::Master(client) | Target::Replica(client) => client.address().into(),
        }
    }

    /// The same, but behind sentinels only the master's name, which does not change.
    pub(crate) fn constant_address(&self) -> &str {
        match &self.target {
            Target::Server(server) => server.address(),
            Target::Master(client) | Target::Replica(client) => &client.name,
        }
    }

    /// For spans: the host or the socket's path, and the port, which is 0 for a socket.
    pub(crate) fn host_and_port(&self) -> (Cow<'_, str>, u16) {
        match &self.target {
            Target::Server(server) => {
                let (host, port) = server.host_and_port();
                (host.into(), port)
            }
            Target::Master(client) | Target::Replica(client) => {
                let (host, port) = client.host_and_port();
                (host.into(), port)
            }
        }
    }

    pub(crate) fn db(&self) -> i64 {
        self.auth_info().db()
    }

    /// Closes the endpoint: no connection will be opened any more.
    pub(crate) fn close(&self) {
        if let Some(client) = self.sentinels() {
            client.close();
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

#[cfg(test)]
mod tests {
    use redis::IntoConnectionInfo as _;

    use super::*;

    struct Kept;

    impl MasterConnection for Kept {
        fn end(&self) -> bool {
            true
        }
    }

    #[test]
    fn a_read_that_found_no_replica_ends_with_the_master() {
        let info = |host: &str| format!("redis://{host}:1").into_connection_info().unwrap();
        let settings = Settings::default();
        let config = SentinelConfig {
            name: "mymaster".to_owned(),
            sentinels: vec![info("sentinel")],
            server_template: info("template"),
            server_template_given: false,
        };
        let endpoint = Endpoint::sentinel(config, &settings).unwrap().replicas();
        let server = |host: &str| Arc::new(Server::new(info(host), &settings).unwrap());
        let (client, master) = (endpoint.sentinels().unwrap(), server("master"));
        client.state().master = Some(Arc::clone(&master));
        let connection: Arc<dyn MasterConnection> = Arc::new(Kept);
        endpoint.register(&server("replica"), Arc::downgrade(&connection)).unwrap();
        assert_eq!(client.state().connections.len(), 0, "a replica stays");
        endpoint.register(&master, Arc::downgrade(&connection)).unwrap();
        assert_eq!(client.state().connections.len(), 1);
    }
}
