//! A `redis-server` of the benchmark's own, on a free port and a unix socket; nothing is kept on
//! disk.
//!
//! Never: a signal by name. It is stopped by its own handle.

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use redis::io::tcp::TcpSettings;
use redis::{Client, Connection, ConnectionInfo, IntoConnectionInfo};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(10);
/// Number of ports tried: a free port may be taken by another program before the server binds it.
const TRIES: usize = 5;

/// How the workers reach the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    Tcp,
    Unix,
}

/// A running server. Dropped, it is killed and its folder removed.
#[derive(Debug)]
pub struct Server {
    child: Child,
    port: u16,
    home: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts `$REDIS_SERVER`, or `redis-server` from the PATH, and waits until it answers.
    pub fn start() -> Self {
        for _ in 0..TRIES {
            let mut server = Self::launch();
            if server.answers() {
                return server;
            }
        }
        panic!("redis-server did not come up in {TRIES} tries");
    }

    pub fn binary() -> std::ffi::OsString {
        std::env::var_os("REDIS_SERVER").unwrap_or_else(|| "redis-server".into())
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn socket(&self) -> PathBuf {
        self.home.path().join("s")
    }

    pub fn url(&self, via: Via) -> String {
        match via {
            Via::Tcp => format!("redis://127.0.0.1:{}/", self.port),
            Via::Unix => format!("redis+unix://{}", self.socket().display()),
        }
    }

    /// For redis-rs and everything made of it: TCP_NODELAY is on.
    pub fn info(&self, via: Via) -> ConnectionInfo {
        let info = self.url(via).into_connection_info().expect("the server's own address");
        info.set_tcp_settings(TcpSettings::default().set_nodelay(true))
    }

    pub fn client(&self, via: Via) -> Client {
        Client::open(self.info(via)).expect("the server's own address")
    }

    /// For what is asked about the measured work, not for the work.
    pub fn admin(&self) -> Connection {
        self.client(Via::Unix).get_connection().expect("connect to the private server")
    }

    /// Processor time of the server so far, in seconds.
    pub fn cpu(admin: &mut Connection) -> f64 {
        let info: String = redis::cmd("INFO").arg("cpu").query(admin).expect("INFO cpu");
        let fields = ["used_cpu_sys:", "used_cpu_user:"];
        let of =
            |line: &str| fields.iter().find_map(|field| line.strip_prefix(field)?.parse().ok());
        info.lines().filter_map(of).fold(0.0, |sum, part: f64| sum + part)
    }

    fn launch() -> Self {
        let home = tempfile::Builder::new().prefix("peers-").tempdir().expect("a folder");
        let probe = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind a free port");
        let port = probe.local_addr().expect("the probe's address").port();
        drop(probe);
        let binary = Self::binary();
        let child = Command::new(&binary)
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--unixsocket"])
            .arg(home.path().join("s"))
            .args(["--save", "", "--appendonly", "no", "--daemonize", "no", "--dir"])
            .arg(home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {}: {error}", binary.display()));
        Self { child, port, home }
    }

    /// Over both ways, and it is this process that answers, not another one on the same port.
    fn answers(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        let id = format!("process_id:{}\r\n", self.child.id());
        while Instant::now() < deadline {
            if self.child.try_wait().expect("ask after the server").is_some() {
                return false;
            }
            let ready = [Via::Unix, Via::Tcp].iter().all(|via| {
                let info = self.client(*via).get_connection().and_then(|mut connection| {
                    redis::cmd("INFO").arg("server").query::<String>(&mut connection)
                });
                info.is_ok_and(|info| info.contains(&id))
            });
            if ready {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }
}
