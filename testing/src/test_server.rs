//! A `redis-server` of a test's own, ended by its handle. It does not speak the protocol beyond one `ECHO`.

mod error;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tempfile::TempDir;

use crate::home::home;
use crate::poll::{eventually, try_for};

pub use self::error::StartError;

/// Maximum wait for the start or the end of a server. Long, because test machines are slow and shared.
pub(crate) const SERVER_WAIT: Duration = Duration::from_secs(60);
/// Maximum wait for one reply.
const CALL: Duration = Duration::from_secs(20);
/// Number of ports that a start tries. A free port may be taken before the server binds it.
pub(crate) const PORT_TRIES: usize = 10;
/// Program that is started if `REDIS_SERVER` names none.
const PROGRAM: &str = "redis-server";

/// A `redis-server` process of the test's own, on a free port of the loopback interface and on a unix socket.
///
/// It has a temporary folder, keeps nothing on disk, and replies before [`start`](Self::start) returns. The drop of
/// the handle kills the process and removes the folder. A handle in a `static` is never dropped: its server goes on.
///
/// Each method that waits blocks its thread, usually for a few milliseconds, and may be called in a task of tokio.
///
/// ```
/// use rediscope::{SessionManager, prelude::*};
///
/// let server = rediscope_testing::TestServer::start()?;
/// let sessions = SessionManager::connect(server.url())?;
/// let stock = sessions.transactional().run(|tx| Ok(tx.incr("stock", 3)))?;
/// assert_eq!(stock, 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct TestServer {
    port: u16,
    program: OsString,
    arguments: Vec<String>,
    child: Mutex<Child>,
    home: TempDir,
}

impl Drop for TestServer {
    fn drop(&mut self) {
        end(&mut self.child());
    }
}

impl TestServer {
    /// Starts the program in the environment variable `REDIS_SERVER`, else `redis-server` on the `PATH`.
    ///
    /// # Errors
    /// [`StartError::NotInstalled`] if there is no such program; its text names the packages that have it. Otherwise
    /// the server ended or does not reply within 60 s.
    pub fn start() -> Result<Self, StartError> {
        Self::with(&[])
    }

    /// Like [`start`](Self::start), with further command line arguments.
    ///
    /// ```
    /// # use rediscope_testing::TestServer;
    /// let full = TestServer::with(&["--maxmemory", "1mb", "--maxmemory-policy", "noeviction"])?;
    /// # Ok::<(), rediscope_testing::StartError>(())
    /// ```
    ///
    /// # Errors
    /// As for [`start`](Self::start); [`StartError::Ended`] has what the server logged about an argument it refuses.
    pub fn with(arguments: &[&str]) -> Result<Self, StartError> {
        Self::of(redis_server(), arguments)
    }

    /// Like [`with`](Self::with), with another program that takes the arguments of `redis-server`, such as
    /// `valkey-server`.
    ///
    /// # Errors
    /// As for [`with`](Self::with).
    pub fn of(program: impl Into<OsString>, arguments: &[&str]) -> Result<Self, StartError> {
        let program = program.into();
        for _ in 0..PORT_TRIES {
            match Self::attempt(program.clone(), arguments) {
                Err(StartError::PortTaken) => {}
                started => return started,
            }
        }
        Err(StartError::PortTaken)
    }

    /// Tries one free port, and once.
    pub(crate) fn attempt(program: OsString, arguments: &[&str]) -> Result<Self, StartError> {
        Self::attempt_at(free_port()?, program, arguments)
    }

    /// Tries this port, and once.
    pub(crate) fn attempt_at(
        port: u16,
        program: OsString,
        arguments: &[&str],
    ) -> Result<Self, StartError> {
        let arguments: Vec<String> =
            arguments.iter().map(|&argument| argument.to_owned()).collect();
        let home = home()?;
        let child = Mutex::new(launch(&program, &home, port, &arguments)?);
        Ok(Self { port, program, arguments, child, home })
    }

    /// The URL of its port: `redis://127.0.0.1:PORT/`, without a password.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// Like [`url`](Self::url), with the number of a database, so that tests can share a server.
    pub fn url_db(&self, db: u32) -> String {
        format!("{}{db}", self.url())
    }

    /// Like [`url`](Self::url), with user and password as they are: use no character that a URL escapes.
    pub fn url_as(&self, user: &str, password: &str) -> String {
        format!("redis://{user}:{password}@127.0.0.1:{}/", self.port)
    }

    /// The URL of its unix socket: `redis+unix:///…`.
    pub fn unix_url(&self) -> String {
        format!("redis+unix://{}", socket(&self.home).display())
    }

    /// The address of its port.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The id of its process.
    pub fn pid(&self) -> u32 {
        self.child().id()
    }

    /// What the server has logged since its last start, at the level `warning`.
    pub fn log(&self) -> String {
        std::fs::read_to_string(log_file(&self.home)).unwrap_or_default()
    }

    /// Whether the process exists. A paused one does.
    pub fn is_running(&self) -> bool {
        self.child().try_wait().expect("the state of the server's process").is_none()
    }

    /// Stops the process by `SIGSTOP`: connects still succeed, and no reply comes. What a client sees of a machine
    /// that hangs.
    ///
    /// # Panics
    /// The server has ended.
    pub fn pause(&self) {
        self.signal("-STOP");
        if cfg!(target_os = "linux") {
            eventually(SERVER_WAIT, "the server is stopped", || self.state() == Some('T'));
        }
    }

    /// Lets a paused process go on (`SIGCONT`). It reads and executes what was sent meanwhile.
    ///
    /// # Panics
    /// The server has ended.
    pub fn resume(&self) {
        self.signal("-CONT");
    }

    /// Kills the process (`SIGKILL`) and waits for its end: the kernel closes its connections, its data are lost.
    ///
    /// # Panics
    /// The server has ended before.
    pub fn kill(&self) {
        self.signal("-KILL");
        self.wait_for_end();
    }

    /// Ends the process in order (`SIGTERM`) and waits for its end.
    ///
    /// # Panics
    /// The server has ended before, or is paused.
    pub fn stop(&self) {
        self.signal("-TERM");
        self.wait_for_end();
    }

    /// Ends the server in order, if it runs, and starts an empty one with the same port and arguments.
    ///
    /// # Errors
    /// As for [`start`](Self::start); [`StartError::PortTaken`] if another program has the port for 60 s.
    pub fn restart(&self) -> Result<(), StartError> {
        if self.is_running() {
            self.stop();
        }
        // An outgoing connection of another program may have the port for a moment.
        let launched = try_for(SERVER_WAIT, || {
            match launch(&self.program, &self.home, self.port, &self.arguments) {
                Err(StartError::PortTaken) => None,
                launched => Some(launched),
            }
        });
        *self.child() = launched.unwrap_or(Err(StartError::PortTaken))?;
        Ok(())
    }

    #[cfg(feature = "harness")]
    pub(crate) fn program(&self) -> &OsStr {
        &self.program
    }

    #[cfg(feature = "harness")]
    pub(crate) fn arguments(&self) -> &[String] {
        &self.arguments
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self, signal: &str) {
        let mut child = self.child();
        // A reaped process gave its id back: another process may have it by now.
        let running = child.try_wait().expect("the state of the server's process").is_none();
        assert!(running, "{signal} for a server that has ended");
        // The shell's own: a small image has no program of this name.
        let kill = ["-c", "kill \"$0\" \"$1\"", signal, &child.id().to_string()];
        let status = Command::new("sh").args(kill).status().expect("run sh");
        assert!(status.success(), "kill {signal} {} failed", child.id());
    }

    fn wait_for_end(&self) {
        eventually(SERVER_WAIT, "the server has ended", || !self.is_running());
    }

    /// The process's state letter from `/proc`.
    fn state(&self) -> Option<char> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).ok()?;
        let (_, after_name) = stat.rsplit_once(')')?;
        after_name.trim_start().chars().next()
    }
}

/// The program that [`TestServer::with`] starts.
pub(crate) fn redis_server() -> OsString {
    let named = std::env::var_os("REDIS_SERVER").filter(|named| !named.is_empty());
    named.unwrap_or_else(|| PROGRAM.into())
}

pub(crate) fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Kills and reaps, also a stopped process, also one that has ended.
fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

fn socket(home: &TempDir) -> PathBuf {
    home.path().join("s")
}

fn log_file(home: &TempDir) -> PathBuf {
    home.path().join("log")
}

/// Starts the process and waits until it replies.
fn launch(
    program: &OsStr,
    home: &TempDir,
    port: u16,
    arguments: &[String],
) -> Result<Child, StartError> {
    // Left by a killed server; it would look like the new one's.
    let _ = std::fs::remove_file(socket(home));
    let _ = std::fs::remove_file(log_file(home));
    // Complaints about arguments come before the log is open; they are to end up in it as well.
    let complaints = File::options().append(true).create(true).open(log_file(home))?;
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
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(complaints)
        .spawn()
        .map_err(|source| StartError::NotInstalled { program: program.to_owned(), source })?;
    let log = || std::fs::read_to_string(log_file(home)).unwrap_or_default();
    let verdict = try_for(SERVER_WAIT, || {
        if replies(home) {
            return Some(Ok(()));
        }
        let status = match child.try_wait() {
            Ok(ended) => ended?,
            Err(error) => return Some(Err(error.into())),
        };
        Some(Err(match log() {
            log if log.contains("Address already in use") => StartError::PortTaken,
            log => StartError::Ended { status, log },
        }))
    });
    match verdict {
        Some(Ok(())) => Ok(child),
        Some(Err(error)) => {
            end(&mut child);
            Err(error)
        }
        None => {
            end(&mut child);
            Err(StartError::Silent { log: log() })
        }
    }
}

/// Connects by the unix socket, which is this server's alone, while the port could belong to
/// another process. Redis opens the socket after the port.
fn replies(home: &TempDir) -> bool {
    let ask = || -> io::Result<String> {
        let mut stream = UnixStream::connect(socket(home))?;
        stream.set_read_timeout(Some(CALL))?;
        // ECHO, because tests count PINGs. QUIT, and reading to the end, so that this client is
        // gone from the server's list.
        stream.write_all(b"ECHO ready\r\nQUIT\r\n")?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply)?;
        Ok(reply)
    };
    let ready = |reply: String| {
        ["$5\r\nready", "-NOAUTH", "-NOPERM"].iter().any(|sign| reply.starts_with(sign))
    };
    ask().is_ok_and(ready)
}
