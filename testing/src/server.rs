//! A [`TestServer`] for the suites of rediscope: what it cannot do is a panic, and it can be asked.
//!
//! Each test starts its own. In a `static` it would never be dropped, and the process would stay.

mod admin;

use std::ffi::OsString;
use std::ops::Deref;
use std::sync::Mutex;
use std::time::Duration;

use redis::{Connection, ConnectionInfo, IntoConnectionInfo};

use crate::eventually;
use crate::test_server::{SERVER_WAIT, StartError, TestServer};

/// Timeout of every call on a connection of a `Server`.
const CALL: Duration = Duration::from_secs(20);
/// Number of ports that a start tries. A free port may be taken before the server binds it.
pub const PORT_TRIES: usize = crate::test_server::PORT_TRIES;

/// A running server, killed when it is dropped.
pub struct Server {
    process: TestServer,
    /// Kept open between questions, so that asking changes neither client list nor statistics
    /// more than it must. `None` until the first question and after an error.
    admin: Mutex<Option<Connection>>,
}

impl Deref for Server {
    type Target = TestServer;

    fn deref(&self) -> &TestServer {
        &self.process
    }
}

impl Server {
    /// Starts `redis-server` on a free port.
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// Starts with further command line arguments, such as `&["--maxmemory", "1mb"]`.
    #[track_caller]
    pub fn with(extra: &[&str]) -> Self {
        Self::started(TestServer::with(extra))
    }

    /// Starts another server program that takes the arguments of `redis-server`: see [`valkey`].
    #[track_caller]
    pub fn of(program: impl Into<OsString>, extra: &[&str]) -> Self {
        Self::started(TestServer::of(program, extra))
    }

    /// Starts one on a free port; `None` if this port, or another one of its settings, was taken
    /// meanwhile.
    #[track_caller]
    pub fn attempt(program: OsString, extra: &[&str]) -> Option<Self> {
        Self::unless_taken(TestServer::attempt(program, extra))
    }

    /// Like [`attempt`](Self::attempt), on this port.
    #[track_caller]
    pub(crate) fn attempt_at(port: u16, program: OsString, extra: &[&str]) -> Option<Self> {
        Self::unless_taken(TestServer::attempt_at(port, program, extra))
    }

    #[track_caller]
    fn unless_taken(started: Result<TestServer, StartError>) -> Option<Self> {
        match started {
            Err(StartError::PortTaken) => None,
            started => Some(Self::started(started)),
        }
    }

    #[track_caller]
    pub(crate) fn started(started: Result<TestServer, StartError>) -> Self {
        let process = started.unwrap_or_else(|error| panic!("{error}"));
        Self { process, admin: Mutex::new(None) }
    }

    /// Starts a replica of `primary` and waits until it is in sync.
    #[track_caller]
    pub fn replica_of(primary: &Server) -> Self {
        // Else the primary waits 5 s for further replicas before it sends its data.
        primary.config_set("repl-diskless-sync-delay", "0");
        let port = primary.port().to_string();
        let mut extra = vec!["--replicaof", "127.0.0.1", &port];
        if let Some(password) = primary.password() {
            extra.extend(["--masterauth", password, "--requirepass", password]);
        }
        let replica = Self::of(primary.program(), &extra);
        eventually(SERVER_WAIT, "the replica is in sync", || {
            replica.info("master_link_status").as_deref() == Some("up")
        });
        replica
    }

    /// The password of the default user, from `--requirepass`.
    pub fn password(&self) -> Option<&str> {
        let at = self.arguments().iter().position(|arg| arg == "--requirepass")?;
        self.arguments().get(at + 1).map(String::as_str)
    }

    /// An independent connection with timeouts set, logged in where a password is required.
    #[track_caller]
    pub fn connection(&self) -> Connection {
        self.try_connect(self.info_as(None)).expect("connect to the test server")
    }

    /// Like [`connection`](Self::connection), logged in as this user.
    #[track_caller]
    pub fn connection_as(&self, user: &str, password: &str) -> Connection {
        self.try_connect(self.info_as(Some((user, password)))).expect("connect as that user")
    }

    /// Like [`TestServer::pause`].
    pub fn sigstop(&self) {
        self.pause();
    }

    /// Like [`TestServer::resume`].
    pub fn sigcont(&self) {
        self.resume();
    }

    /// Like [`TestServer::kill`].
    pub fn sigkill(&self) {
        self.kill();
    }

    /// Like [`TestServer::stop`].
    pub fn sigterm_and_wait(&self) {
        self.stop();
    }

    /// Like [`TestServer::restart`].
    #[track_caller]
    pub fn restart_on_same_port(&self) {
        *self.admin.lock().unwrap() = None;
        self.restart().expect("restart the test server");
    }

    fn info_as(&self, login: Option<(&str, &str)>) -> ConnectionInfo {
        let info = self.url().into_connection_info().expect("the server's own URL");
        let mut settings = info.redis_settings().clone();
        if let Some((user, password)) = login {
            settings = settings.set_username(user).set_password(password);
        } else if let Some(password) = self.password() {
            settings = settings.set_password(password);
        }
        info.set_redis_settings(settings)
    }

    fn try_connect(&self, info: ConnectionInfo) -> redis::RedisResult<Connection> {
        let connection = redis::Client::open(info)?.get_connection_with_timeout(CALL)?;
        connection.set_read_timeout(Some(CALL))?;
        connection.set_write_timeout(Some(CALL))?;
        Ok(connection)
    }
}

/// The program that [`Server::with`] starts.
pub fn redis_server() -> OsString {
    crate::test_server::redis_server()
}

pub(super) fn free_port() -> u16 {
    crate::test_server::free_port().expect("a free port")
}

/// A Valkey server's program, where there is one: `VALKEY_SERVER`, else `valkey-server` on the
/// PATH.
pub fn valkey() -> Option<OsString> {
    let named = std::env::var_os("VALKEY_SERVER").filter(|named| !named.is_empty());
    if named.is_some() {
        return named;
    }
    let path = std::env::var_os("PATH")?;
    let places = std::env::split_paths(&path).map(|place| place.join("valkey-server"));
    places.into_iter().find(|program| program.is_file()).map(OsString::from)
}
