//! One node of a cluster: how it is started, and joined to another one.

use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

use super::super::server::{PORT_TRIES, Server, redis_server};
use super::super::try_for;

/// Time within which a free port is found.
const FREE_PORT: Duration = Duration::from_secs(30);
/// Time in milliseconds after which a silent master counts as failed.
const NODE_TIMEOUT: &str = "800";

/// One node of it.
pub struct Node {
    /// Its server.
    pub server: Server,
    /// Its id in the cluster.
    pub id: String,
    /// Its TLS port, in a cluster that was started with `--tls-cluster yes`.
    pub tls: Option<u16>,
    pub(super) bus: u16,
}

pub(super) fn launch(extra: &[String]) -> Node {
    (0..PORT_TRIES).find_map(|_| attempt(extra)).expect("free ports for a node")
}

/// With other ports each time: not only the one for clients may be taken.
fn attempt(extra: &[String]) -> Option<Node> {
    let (bus, given) = bus_port();
    let port = bus.to_string();
    let tls = extra.iter().any(|arg| arg == "--tls-cluster").then(low_port);
    let tls_port = tls.map(|port| port.to_string());
    let mut arguments = vec!["--cluster-enabled", "yes"];
    if given.is_none() {
        arguments.extend(["--cluster-port", &port]);
    }
    arguments.extend(["--cluster-node-timeout", NODE_TIMEOUT]);
    arguments.extend(["--cluster-replica-validity-factor", "0"]);
    arguments.extend(["--cluster-allow-replica-migration", "no"]);
    arguments.extend(["--cluster-replica-no-failover", "yes"]);
    arguments.extend(["--repl-diskless-sync-delay", "0"]);
    arguments.extend(extra.iter().map(String::as_str));
    arguments.extend(tls_port.iter().flat_map(|port| ["--tls-port", port]));
    let server = match given {
        Some(port) => Server::attempt_at(port, redis_server(), &arguments)?,
        None => Server::attempt(redis_server(), &arguments)?,
    };
    let id = server.ask(&["CLUSTER", "MYID"]);
    Some(Node { server, id, tls, bus })
}

/// The port of the cluster's own connections, and that of clients if the former depends on it: Redis 6 knows no
/// `--cluster-port` and takes the port 10,000 above.
fn bus_port() -> (u16, Option<u16>) {
    static IS_OLD: LazyLock<bool> = LazyLock::new(|| {
        let output = Command::new(redis_server()).arg("--version").output();
        output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(" v=6."))
    });
    if !*IS_OLD {
        return (low_port(), None);
    }
    let pair = || {
        let bus = low_port();
        let port = bus.checked_sub(10_000).filter(|port| *port > 10_000)?;
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok().then_some((bus, Some(port)))
    };
    try_for(FREE_PORT, pair).expect("two free ports")
}

/// A free port below those that the system gives to outgoing connections: it must still be free
/// when the server has tried a few others for its clients.
fn low_port() -> u16 {
    let free = || {
        let port = fastrand::u16(11_000..32_000);
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok().then_some(port)
    };
    try_for(FREE_PORT, free).expect("a free port")
}

pub(super) fn meet(node: &Node, other: &Node) {
    let (port, bus) = (other.server.port().to_string(), other.bus.to_string());
    node.server.ask::<()>(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]);
}
