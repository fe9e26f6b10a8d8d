//! A master, two replicas and three sentinels of the test's own, which fail over fast.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use redis::Value;

use super::server::Server;
use crate::home::home;
use crate::{eventually, try_for};

/// Maximum wait for the sentinels. On a busy machine an election fails and is repeated after twice
/// the failover timeout.
const ELECTION: Duration = Duration::from_secs(90);
/// The name that the sentinels know the master by.
pub const NAME: &str = "mymaster";

/// Three servers, the first of which is the master in the beginning, and their sentinels.
pub struct Group {
    /// The master and its replicas.
    pub servers: Vec<Server>,
    /// The sentinels, which know each other.
    pub sentinels: Vec<Sentinel>,
}

/// A running sentinel, killed when it is dropped.
pub struct Sentinel {
    port: u16,
    password: Option<String>,
    child: Child,
    _home: tempfile::TempDir,
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Sentinel {
    /// One that reaches the master at `at`, with further lines in its configuration; they may
    /// name its own port as `{port}`.
    pub fn watching(master: &Server, at: u16, password: Option<&str>, lines: &str) -> Self {
        let home = home().expect("a temporary directory");
        let file = home.path().join("sentinel.conf");
        for _ in 0..10 {
            let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let port = free.local_addr().unwrap().port();
            drop(free);
            let mut text = format!(
                "port {port}\nbind 127.0.0.1\nprotected-mode no\ndir {}\nlogfile {}\n\
                 sentinel monitor {NAME} 127.0.0.1 {at} 2\n\
                 sentinel down-after-milliseconds {NAME} 1000\n\
                 sentinel failover-timeout {NAME} 3000\n\
                 sentinel parallel-syncs {NAME} 2\n",
                home.path().display(),
                home.path().join("log").display(),
            );
            text += &lines.replace("{port}", &port.to_string());
            if let Some(secret) = master.password() {
                text += &format!("sentinel auth-pass {NAME} {secret}\n");
            }
            if let Some(password) = password {
                text += &format!("requirepass {password}\nsentinel sentinel-pass {password}\n");
            }
            fs::write(&file, text).unwrap();
            let program = super::server::redis_server();
            let mut child = Command::new(program)
                .arg(&file)
                .arg("--sentinel")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let up = try_for(ELECTION, || {
                if child.try_wait().unwrap().is_some() {
                    return Some(false);
                }
                std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok().map(|_| true)
            });
            if up == Some(true) {
                let password = password.map(str::to_owned);
                return Self { port, password, child, _home: home };
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!("no sentinel came up in 10 tries");
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// With the password where there is one.
    pub fn url(&self) -> String {
        match &self.password {
            Some(password) => format!("redis://:{password}@127.0.0.1:{}/", self.port),
            None => format!("redis://127.0.0.1:{}/", self.port),
        }
    }

    /// Runs one SENTINEL subcommand.
    pub fn ask(&self, words: &[&str]) -> redis::RedisResult<Value> {
        let client = redis::Client::open(self.url())?;
        let mut connection = client.get_connection_with_timeout(ELECTION)?;
        connection.set_read_timeout(Some(ELECTION))?;
        redis::cmd("SENTINEL").arg(words).query(&mut connection)
    }

    /// A field of SENTINEL MASTER.
    fn field(&self, name: &str) -> Option<String> {
        let fields: Vec<String> =
            redis::from_redis_value(self.ask(&["MASTER", NAME]).ok()?).ok()?;
        fields.chunks_exact(2).find(|pair| pair[0] == name).map(|pair| pair[1].clone())
    }

    fn master(&self) -> Option<u16> {
        let answer = self.ask(&["GET-MASTER-ADDR-BY-NAME", NAME]).ok()?;
        let (_, port): (String, u16) = redis::from_redis_value(answer).ok()?;
        Some(port)
    }
}

impl Group {
    /// A group without passwords.
    pub fn start() -> Self {
        Self::with(&[], None)
    }

    /// One whose master is not replaced by itself, however slow the machine is.
    pub fn without_failovers() -> Self {
        let patient = format!("sentinel down-after-milliseconds {NAME} 3600000\n");
        Self::watched(&[], None, &patient)
    }

    /// With further arguments for the servers, and a password for the sentinels.
    pub fn with(extra: &[&str], password: Option<&str>) -> Self {
        Self::watched(extra, password, "")
    }

    fn watched(extra: &[&str], password: Option<&str>, lines: &str) -> Self {
        let fast = ["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"];
        let arguments = [&fast[..], extra].concat();
        let master = Server::with(&arguments);
        let port = master.port().to_string();
        let mut replicating = arguments.clone();
        replicating.extend(["--replicaof", "127.0.0.1", &port]);
        let servers = vec![master, Server::with(&replicating), Server::with(&replicating)];
        eventually(ELECTION, "the replicas are in sync", || {
            servers[1..].iter().all(|one| one.info("master_link_status").as_deref() == Some("up"))
        });
        let watch = || Sentinel::watching(&servers[0], servers[0].port(), password, lines);
        let sentinels: Vec<_> = (0..3).map(|_| watch()).collect();
        let group = Self { servers, sentinels };
        group.settled();
        group
    }

    /// Every sentinel knows the others and both replicas.
    fn settled(&self) {
        eventually(ELECTION, "the sentinels know each other and the replicas", || {
            self.sentinels.iter().all(|one| {
                one.field("num-other-sentinels").as_deref() == Some("2")
                    && one.field("num-slaves").as_deref() == Some("2")
            })
        });
    }

    /// The URL that a session manager takes.
    pub fn url(&self) -> String {
        let hosts: Vec<_> =
            self.sentinels.iter().map(|one| format!("127.0.0.1:{}", one.port)).collect();
        let query = match self.sentinels.first().and_then(|one| one.password.clone()) {
            Some(password) => format!("?sentinel_password={password}"),
            None => String::new(),
        };
        format!("redis+sentinel://{}/{NAME}/0{query}", hosts.join(","))
    }

    /// The server that most sentinels call the master.
    pub fn master(&self) -> Option<&Server> {
        let named: Vec<_> = self.sentinels.iter().filter_map(Sentinel::master).collect();
        self.servers
            .iter()
            .find(|server| named.iter().filter(|port| **port == server.port()).count() >= 2)
    }

    /// Waits until another server than this one is the master, also by its own role.
    pub fn successor_of(&self, former: u16) -> &Server {
        try_for(ELECTION, || {
            let server = self.master().filter(|server| server.port() != former)?;
            (server.info("role").as_deref() == Some("master")).then_some(server)
        })
        .expect("another server became the master")
    }

    /// From here on no master is replaced by itself, however slow the machine is.
    pub fn end_failovers(&self) {
        for one in &self.sentinels {
            one.ask(&["SET", NAME, "down-after-milliseconds", "3600000"]).unwrap();
        }
    }

    /// Has the sentinels put another master in the place of a healthy one.
    pub fn fail_over(&self) {
        eventually(ELECTION, "a sentinel fails over", || {
            self.sentinels.iter().any(|one| one.ask(&["FAILOVER", NAME]).is_ok())
        });
    }
}

/// Clients of the server that are neither replicas nor sentinels, nor subscribers.
pub fn clients(server: &Server) -> usize {
    count(server, |flags| !flags.contains(['S', 'M', 'O', 'P']))
}

/// Subscribers that are no sentinels.
pub fn listeners(server: &Server) -> usize {
    count(server, |flags| flags.contains('P'))
}

fn count(server: &Server, wanted: impl Fn(&str) -> bool) -> usize {
    let ours = |name: &str| !name.starts_with("sentinel-");
    let list = server.client_list();
    list.iter().filter(|client| wanted(&client["flags"]) && ours(&client["name"])).count()
}
