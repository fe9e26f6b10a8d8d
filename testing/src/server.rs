//! A real `redis-server` of the test's own: started, stopped, frozen and killed by its own handle.
//!
//! Each test starts its own. In a `static` it would never be dropped, and the process would stay.

mod admin;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use redis::{Connection, ConnectionInfo, IntoConnectionInfo};
use tempfile::TempDir;

use super::{eventually, home, try_for};

/// Maximum wait for the server. Long, because test machines are slow and shared.
const SERVER_WAIT: Duration = Duration::from_secs(60);
/// Timeout of every call on a connection of a `Server`.
const CALL: Duration = Duration::from_secs(20);
/// Number of ports that a start tries. A free port may be taken before the server binds it.
pub const PORT_TRIES: usize = 10;

/// A running server, killed when it is dropped.
pub struct Server {
    port: u16,
    program: OsString,
    extra: Vec<String>,
    child: Mutex<Child>,
    /// Kept open between questions, so that asking changes neither client list nor statistics
    /// more than it must. `None` until the first question and after an error.
    admin: Mutex<Option<Connection>>,
    home: TempDir,
}

/// Why a server did not come up.
enum Refusal {
    PortTaken,
    Other(String),
}

impl Server {
    /// Starts `redis-server` on a free port.
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// Starts with further command line arguments, such as `&["--maxmemory", "1mb"]`.
    #[track_caller]
    pub fn with(extra: &[&str]) -> Self {
        Self::of(redis_server(), extra)
    }

    /// Starts another server program that takes the arguments of `redis-server`: see [`valkey`].
    #[track_caller]
    pub fn of(program: impl Into<OsString>, extra: &[&str]) -> Self {
        let program = program.into();
        (0..PORT_TRIES).find_map(|_| Self::attempt(program.clone(), extra)).unwrap_or_else(|| {
            panic!("no free port for {} in {PORT_TRIES} tries", program.display())
        })
    }

    /// Starts one on a free port; `None` if this port, or another one of its settings, was taken
    /// meanwhile.
    #[track_caller]
    pub fn attempt(program: OsString, extra: &[&str]) -> Option<Self> {
        let extra: Vec<String> = extra.iter().map(|&arg| arg.to_owned()).collect();
        let home = home();
        let port = free_port();
        match launch(&program, &home, port, &extra) {
            Ok(child) => {
                let child = Mutex::new(child);
                Some(Self { port, program, extra, child, admin: Mutex::new(None), home })
            }
            Err(Refusal::PortTaken) => None,
            Err(Refusal::Other(why)) => panic!("{why}"),
        }
    }

    /// Starts a replica of `primary` and waits until it is in sync.
    #[track_caller]
    pub fn replica_of(primary: &Server) -> Self {
        // Else the primary waits 5 s for further replicas before it sends its data.
        primary.config_set("repl-diskless-sync-delay", "0");
        let port = primary.port.to_string();
        let mut extra = vec!["--replicaof", "127.0.0.1", &port];
        if let Some(password) = primary.password() {
            extra.extend(["--masterauth", password, "--requirepass", password]);
        }
        let replica = Self::of(&primary.program, &extra);
        eventually(SERVER_WAIT, "the replica is in sync", || {
            replica.info("master_link_status").as_deref() == Some("up")
        });
        replica
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// Without user and password, whatever the server was started with.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// Like [`url`](Self::url), with a database.
    pub fn url_db(&self, db: u32) -> String {
        format!("{}{db}", self.url())
    }

    /// User and password are put in as they are: no character that an URL would escape.
    pub fn url_as(&self, user: &str, password: &str) -> String {
        format!("redis://{user}:{password}@127.0.0.1:{}/", self.port)
    }

    /// The URL of its unix socket.
    pub fn unix_url(&self) -> String {
        format!("redis+unix://{}", socket(&self.home).display())
    }

    /// The id of its process.
    pub fn pid(&self) -> u32 {
        self.child().id()
    }

    /// The password of the default user, from `--requirepass`.
    pub fn password(&self) -> Option<&str> {
        let at = self.extra.iter().position(|arg| arg == "--requirepass")?;
        self.extra.get(at + 1).map(String::as_str)
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

    /// Freezes the process: its kernel still accepts, and there is no reply.
    pub fn sigstop(&self) {
        self.signal("-STOP");
        if cfg!(target_os = "linux") {
            eventually(SERVER_WAIT, "the server is stopped", || self.state() == Some('T'));
        }
    }

    /// Lets a frozen process go on.
    pub fn sigcont(&self) {
        self.signal("-CONT");
    }

    /// Kills the process and waits for its end: the kernel closes its connections.
    pub fn sigkill(&self) {
        self.signal("-KILL");
        self.wait_for_end();
    }

    /// The orderly end: redis closes its connections itself.
    pub fn sigterm_and_wait(&self) {
        self.signal("-TERM");
        self.wait_for_end();
    }

    /// Whether the process runs, frozen ones included.
    pub fn is_running(&self) -> bool {
        self.child().try_wait().expect("ask after the server").is_none()
    }

    /// Ends the server in order, if it still runs, and starts an empty one: same port, same arguments.
    #[track_caller]
    pub fn restart_on_same_port(&self) {
        if self.is_running() {
            self.sigterm_and_wait();
        }
        *self.admin.lock().unwrap() = None;
        // An outgoing connection of another program may sit on the port for a moment.
        let child = try_for(SERVER_WAIT, || {
            match launch(&self.program, &self.home, self.port, &self.extra) {
                Ok(child) => Some(child),
                Err(Refusal::PortTaken) => None,
                Err(Refusal::Other(why)) => panic!("{why}"),
            }
        });
        *self.child() = child.expect("the server's old port is free again");
    }

    /// What the server logged since it was last started.
    pub fn log(&self) -> String {
        std::fs::read_to_string(log_file(&self.home)).unwrap_or_default()
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap()
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

    fn signal(&self, signal: &str) {
        let mut child = self.child();
        // A reaped process gave its id back: another process may have it by now.
        let running = child.try_wait().expect("ask after the server").is_none();
        assert!(running, "{signal} for a server that has ended");
        let pid = child.id().to_string();
        let status = Command::new("kill").args([signal, &pid]).status().expect("run kill");
        assert!(status.success(), "kill {signal} {pid} failed");
    }

    fn wait_for_end(&self) {
        eventually(SERVER_WAIT, "the server ended", || !self.is_running());
    }

    /// The process's state letter from `/proc`.
    fn state(&self) -> Option<char> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).ok()?;
        let (_, after_name) = stat.rsplit_once(')')?;
        after_name.trim_start().chars().next()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        end(&mut self.child());
    }
}

/// Kills and reaps, also a stopped process, also one that has ended.
fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

pub(super) fn free_port() -> u16 {
    let probe = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind a free port");
    probe.local_addr().expect("the probe's address").port()
}

fn socket(home: &TempDir) -> PathBuf {
    home.path().join("s")
}

fn log_file(home: &TempDir) -> PathBuf {
    home.path().join("log")
}

/// The program that [`Server::with`] starts.
pub fn redis_server() -> OsString {
    std::env::var_os("REDIS_SERVER").unwrap_or_else(|| "redis-server".into())
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

/// Starts the process and waits until it replies.
fn launch(program: &OsStr, home: &TempDir, port: u16, extra: &[String]) -> Result<Child, Refusal> {
    // Left by a killed server; it would look like the new one's.
    let _ = std::fs::remove_file(socket(home));
    let _ = std::fs::remove_file(log_file(home));
    // Complaints about arguments come before the log is open; they are to end up in it as well.
    let complaints = File::options().append(true).create(true).open(log_file(home));
    let mut child = Command::new(program)
        // Protected mode takes a connection that was reset before it was accepted for a foreign one
        // and denies it, bytes and all. The address is loopback anyway.
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--protected-mode", "no"])
        .arg("--unixsocket")
        .arg(socket(home))
        .args(["--save", "", "--appendonly", "no", "--daemonize", "no"])
        .args(["--loglevel", "warning", "--logfile"])
        .arg(log_file(home))
        .arg("--dir")
        .arg(home.path())
        .args(extra)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(complaints.expect("the log file"))
        .spawn()
        .unwrap_or_else(|error| {
            panic!(
                "cannot run {}: {error}. These tests need redis-server on the PATH, \
                 or its place in the environment variable REDIS_SERVER",
                program.display()
            )
        });
    let log = || std::fs::read_to_string(log_file(home)).unwrap_or_default();
    let verdict = try_for(SERVER_WAIT, || {
        if answers(home) {
            return Some(Ok(()));
        }
        let ended = child.try_wait().expect("ask after the new server")?;
        Some(Err(match log() {
            log if log.contains("Address already in use") => Refusal::PortTaken,
            log => Refusal::Other(format!("the server ended with {ended} and logged: {log}")),
        }))
    });
    match verdict {
        Some(Ok(())) => Ok(child),
        Some(Err(refusal)) => Err(refusal),
        None => {
            end(&mut child);
            Err(Refusal::Other(format!("the server is silent; it logged: {}", log())))
        }
    }
}

/// Connects by the unix socket, which is this server's alone, while the port could belong to
/// another process. Redis opens the socket after the port.
fn answers(home: &TempDir) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = UnixStream::connect(socket(home))?;
        stream.set_read_timeout(Some(CALL))?;
        // ECHO, because tests count PINGs. QUIT, and reading to the end, so that this client is
        // gone from the server's list.
        stream.write_all(b"ECHO ready\r\nQUIT\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let ready = |answer: String| {
        ["$5\r\nready", "-NOAUTH", "-NOPERM"].iter().any(|sign| answer.starts_with(sign))
    };
    ask().is_ok_and(ready)
}
