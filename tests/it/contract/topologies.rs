//! The topologies on which the contract is tested.

use crate::side::SessionManager;
use rediscope::Builder;
#[cfg(feature = "tls-rustls")]
use rediscope::Tls;

use rediscope_testing::cluster::Cluster;
use rediscope_testing::sentinel::Group;
use rediscope_testing::server::Server;
#[cfg(feature = "tls-rustls")]
use rediscope_testing::tls::TlsServer;

/// What a row is played on: how to connect, a word that all keys begin with, and their server.
pub(crate) trait Topology: Sync {
    fn url(&self) -> String;

    fn reach(&self, url: String) -> Builder {
        SessionManager::builder(url)
    }

    fn builder(&self) -> Builder {
        self.reach(self.url())
    }

    /// The same as a user of that password.
    fn builder_as(&self, user: &str, password: &str) -> Builder {
        self.reach(self.url().replacen("://", &format!("://{user}:{password}@"), 1))
    }

    fn key(&self, word: &str) -> String {
        format!("{{contract}}:{word}")
    }

    /// Asks the master of those keys, past the library.
    fn with(&self, see: &mut dyn FnMut(&Server));

    /// Asks each server.
    fn each(&self, see: &mut dyn FnMut(&Server)) {
        self.with(see);
    }
}

pub(crate) struct Standalone(Server);

impl Standalone {
    pub(crate) fn start() -> Self {
        Self(Server::start())
    }
}

impl Topology for Standalone {
    fn url(&self) -> String {
        self.0.url()
    }

    fn with(&self, see: &mut dyn FnMut(&Server)) {
        see(&self.0);
    }
}

pub(crate) struct InCluster(Cluster);

impl InCluster {
    pub(crate) fn start() -> Self {
        Self(Cluster::start(3, 0))
    }
}

impl Topology for InCluster {
    fn url(&self) -> String {
        self.0.url()
    }

    fn with(&self, see: &mut dyn FnMut(&Server)) {
        let owner = self.0.owner(self.0.slot("{contract}")).unwrap();
        see(&self.0.nodes()[owner].server);
    }

    fn each(&self, see: &mut dyn FnMut(&Server)) {
        self.0.nodes().iter().for_each(|node| see(&node.server));
    }
}

pub(crate) struct BehindSentinels(Group);

impl BehindSentinels {
    pub(crate) fn start() -> Self {
        Self(Group::without_failovers())
    }
}

impl Topology for BehindSentinels {
    fn url(&self) -> String {
        self.0.url()
    }

    fn with(&self, see: &mut dyn FnMut(&Server)) {
        see(&self.0.servers[0]);
    }

    fn each(&self, see: &mut dyn FnMut(&Server)) {
        self.0.servers.iter().for_each(see);
    }
}

#[cfg(feature = "tls-rustls")]
pub(crate) struct OverTls(TlsServer);

#[cfg(feature = "tls-rustls")]
impl OverTls {
    pub(crate) fn start() -> Self {
        Self(TlsServer::start())
    }
}

#[cfg(feature = "tls-rustls")]
impl Topology for OverTls {
    fn url(&self) -> String {
        self.0.url()
    }

    fn reach(&self, url: String) -> Builder {
        let trusted = Tls::new().root_certificates(self.0.authority.pem());
        SessionManager::builder(url).tls(trusted)
    }

    fn with(&self, see: &mut dyn FnMut(&Server)) {
        see(&self.0.server);
    }
}
