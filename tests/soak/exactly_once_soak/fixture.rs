//! The target of the transactions: one server, or the masters of a cluster; and a worker's own proxies.
//!
//! In a cluster each worker has an address of its own, with a proxy before each master at the master's
//! port. The nodes leave their host out of redirects and of the slot map, so both lead each worker to
//! its own proxies.

#![cfg_attr(
    not(target_os = "linux"),
    allow(unused_variables, reason = "to one server there is one way")
)]

use redis::FromRedisValue;

use super::operations::Client;
#[cfg(target_os = "linux")]
use rediscope_testing::cluster::Cluster;
use rediscope_testing::proxy::{Proxy, Script};
use rediscope_testing::server::Server;

/// The server of a key, which is the command's first argument.
pub(crate) trait Store {
    fn read<T: FromRedisValue>(&self, command: &[&str]) -> T;
}

impl Store for Server {
    fn read<T: FromRedisValue>(&self, command: &[&str]) -> T {
        self.ask(command)
    }
}

/// The target of the transactions.
pub(crate) enum Target {
    One(Server),
    #[cfg(target_os = "linux")]
    Many(Cluster),
}

impl Store for Target {
    fn read<T: FromRedisValue>(&self, command: &[&str]) -> T {
        match self {
            Self::One(server) => server.ask(command),
            #[cfg(target_os = "linux")]
            Self::Many(cluster) => cluster.read(command),
        }
    }
}

impl Target {
    /// Past all proxies.
    pub(crate) fn url(&self) -> String {
        match self {
            Self::One(server) => server.url(),
            #[cfg(target_os = "linux")]
            Self::Many(cluster) => cluster.url(),
        }
    }

    /// The way of this worker.
    pub(crate) fn proxies_of(&self, worker: u64) -> Proxies {
        match self {
            Self::One(server) => {
                let proxy = Proxy::to(server);
                Proxies { url: proxy.url(), proxies: vec![proxy] }
            }
            #[cfg(target_os = "linux")]
            Self::Many(cluster) => {
                let host = std::net::Ipv4Addr::new(127, 0, 1, u8::try_from(worker + 1).unwrap());
                let before =
                    |server: &Server| Proxy::at((host, server.port()).into(), server.address());
                let proxies: Vec<_> =
                    cluster.nodes().iter().map(|node| before(&node.server)).collect();
                let seeds: Vec<_> =
                    proxies.iter().map(|proxy| proxy.address().to_string()).collect();
                Proxies { url: format!("redis+cluster://{}/", seeds.join(",")), proxies }
            }
        }
    }

    /// The sum of the replies of all servers.
    pub(crate) fn sum(&self, question: impl Fn(&Server) -> u64) -> u64 {
        match self {
            Self::One(server) => question(server),
            #[cfg(target_os = "linux")]
            Self::Many(cluster) => cluster.sum(question),
        }
    }

    /// Asks the one that a worker knows by this address.
    pub(crate) fn at<T>(&self, address: &str, question: impl Fn(&Server) -> T) -> T {
        match self {
            Self::One(server) => question(server),
            #[cfg(target_os = "linux")]
            Self::Many(cluster) => {
                let nodes = cluster.nodes();
                let port = |server: &Server| format!(":{}", server.port());
                let is_it = |server: &&Server| address.ends_with(&port(server));
                let asked = nodes.iter().map(|node| &node.server).find(is_it);
                question(asked.expect("one of the nodes"))
            }
        }
    }

    /// False where it is not there any more.
    pub(crate) fn kill(&self, client: Client) -> bool {
        let kill = |server: &Server| {
            u64::from(server.port() == client.port && server.kill_client(client.id))
        };
        self.sum(kill) > 0
    }

    /// Number of connected clients, without other nodes that bring keys.
    pub(crate) fn clients(&self) -> u64 {
        self.sum(|server| {
            let nodes = server.client_list().into_iter().filter(|client| {
                client.get("cmd").is_some_and(|command| command.starts_with("restore"))
            });
            (server.clients() - nodes.count().min(server.clients())) as u64
        })
    }
}

/// A worker's proxies, all of which do the same.
pub(crate) struct Proxies {
    url: String,
    proxies: Vec<Proxy>,
}

impl Proxies {
    pub(crate) fn url(&self) -> String {
        self.url.clone()
    }

    /// What may fire once fires at one of them.
    pub(crate) fn arm(&self, script: &Script) {
        self.proxies.iter().for_each(|proxy| proxy.arm(script.clone()));
    }

    pub(crate) fn disarm(&self) {
        self.proxies.iter().for_each(Proxy::disarm);
    }

    pub(crate) fn release(&self) {
        self.proxies.iter().for_each(Proxy::release);
    }

    pub(crate) fn cut_all(&self) {
        self.proxies.iter().for_each(Proxy::cut_all);
    }

    pub(crate) fn connections(&self) -> usize {
        self.proxies.iter().map(Proxy::connections).sum()
    }

    pub(crate) fn fired(&self) -> usize {
        self.proxies.iter().map(Proxy::fired).sum()
    }

    pub(crate) fn client_bytes(&self) -> u64 {
        self.proxies.iter().map(Proxy::client_bytes).sum()
    }
}
