//! A `redis-server` of the program's own: a free port, a temporary folder, nothing kept on disk.
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

const PATIENCE: Duration = Duration::from_secs(10);
/// A free port may be taken by somebody else before the server has bound it.
const TRIES: usize = 5;

/// A running server. Dropped, it is killed and its folder removed.
#[derive(Debug)]
pub(crate) struct PrivateServer {
    child: Child,
    port: u16,
    _home: TempDir,
}

impl Drop for PrivateServer {
    fn drop(&mut self) {
        // It has nothing to save, and there is nobody left to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl PrivateServer {
    /// Starts a server and waits until it answers.
    pub(crate) fn start() -> Result<Self, Box<dyn Error>> {
        let mut failure = "no free port".into();
        for _ in 0..TRIES {
            let mut server = Self::launch()?;
            match server.wait_until_it_answers() {
                Ok(()) => return Ok(server),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    pub(crate) fn url(&self) -> String {
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

    fn wait_until_it_answers(&mut self) -> Result<(), Box<dyn Error>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // First, so that what answers below is not another process on the same port.
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("redis-server ended with {status}").into());
            }
            let answer = keys::connect(&self.url()).and_then(|mut connection| {
                let info: String = redis::cmd("INFO").arg("server").query(&mut connection)?;
                Ok(info)
            });
            let id = format!("process_id:{}\r\n", self.child.id());
            match answer {
                Ok(info) if info.contains(&id) => return Ok(()),
                Ok(_) => return Err("another server was faster on the port".into()),
                Err(error) if Instant::now() > deadline => return Err(error.into()),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}
