//! A private `redis-server`: a free port, a temporary folder, nothing kept on disk.
//!
//! The binary is `$REDIS_SERVER`, or `redis-server` on the PATH.

use std::error::Error;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rediscope::redis;
use tempfile::TempDir;

use crate::keys;

/// Maximum time from the start of the process to its first reply.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// Attempts to start a server, since another process may take the free port first.
const ATTEMPTS: usize = 5;

/// A running server. Its drop kills the process and removes its folder.
#[derive(Debug)]
pub struct PrivateServer {
    child: Child,
    port: u16,
    _home: TempDir,
}

impl Drop for PrivateServer {
    fn drop(&mut self) {
        // It keeps nothing on disk, so an error here has no consequence.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl PrivateServer {
    /// Starts a server and waits for its first reply.
    ///
    /// # Errors
    /// The program cannot be run, or sends no reply in time.
    pub fn start() -> Result<Self, Box<dyn Error>> {
        let mut failure = "no free port".into();
        for _ in 0..ATTEMPTS {
            let mut server = Self::launch()?;
            match server.wait_for_reply() {
                Ok(()) => return Ok(server),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// The URL to connect to.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    fn launch() -> Result<Self, Box<dyn Error>> {
        let binary = std::env::var_os("REDIS_SERVER").unwrap_or_else(|| "redis-server".into());
        let home = tempfile::Builder::new().prefix("rediscope-").tempdir()?;
        let port = free_port()?;
        let child = Command::new(&binary)
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--daemonize", "no", "--dir"])
            .arg(home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| {
                format!(
                    "cannot run {}: {error}; install redis-server, or name one in REDIS_SERVER, \
                     or a server that runs in REDIS_URL",
                    binary.display()
                )
            })?;
        Ok(Self { child, port, _home: home })
    }

    fn wait_for_reply(&mut self) -> Result<(), Box<dyn Error>> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            // Checked first: if it has ended, another process may own the port.
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("redis-server ended with {status}").into());
            }
            let reply = keys::connect(&self.url()).and_then(|mut connection| {
                let info: String = redis::cmd("INFO").arg("server").query(&mut connection)?;
                Ok(info)
            });
            let id = format!("process_id:{}\r\n", self.child.id());
            match reply {
                Ok(info) if info.contains(&id) => return Ok(()),
                Ok(_) => return Err("another server took the port".into()),
                Err(error) if Instant::now() > deadline => return Err(error.into()),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
