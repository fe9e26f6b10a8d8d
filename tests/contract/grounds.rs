//! The topologies that the contract is kept on.

#[cfg(feature = "tls-rustls")]
use std::net::{Ipv4Addr, TcpListener};

use rediscope::{Builder, SessionManager};

#[cfg(feature = "cluster")]
use crate::support::cluster::Cluster;
#[cfg(feature = "sentinel")]
use crate::support::sentinel::Group;
use crate::support::server::Server;

/// What a row is played on: how to connect, a word that all keys begin with, and whoever has them.
pub(crate) trait Ground {
    fn builder(&self) -> Builder;

    /// The same as a user of that password.
    fn builder_as(&self, user: &str, password: &str) -> Builder;

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

fn as_user(url: &str, user: &str, password: &str) -> String {
    url.replacen("://", &format!("://{user}:{password}@"), 1)
}

pub(crate) struct Standalone(Server);

impl Standalone {
    pub(crate) fn start() -> Self {
        Self(Server::start())
    }
}

impl Ground for Standalone {
    fn builder(&self) -> Builder {
        SessionManager::builder(self.0.url())
    }

    fn builder_as(&self, user: &str, password: &str) -> Builder {
        SessionManager::builder(as_user(&self.0.url(), user, password))
    }

    fn with(&self, see: &mut dyn FnMut(&Server)) {
        see(&self.0);
    }
}

#[cfg(feature = "cluster")]
pub(crate) struct InCluster(Cluster);

#[cfg(feature = "cluster")]
impl InCluster {
    pub(crate) fn start() -> Self {
        Self(Cluster::start(3, 0))
    }
}

#[cfg(feature = "cluster")]
impl Ground for InCluster {
    fn builder(&self) -> Builder {
        SessionManager::builder(self.0.url())
    }

    fn builder_as(&self, user: &str, password: &str) -> Builder {
        SessionManager::builder(as_user(&self.0.url(), user, password))
    }

    fn with(&self, see: &mut dyn FnMut(&Server)) {
        let owner = self.0.owner(self.0.slot("{contract}")).unwrap();
        see(&self.0.nodes()[owner].server);
    }

    fn each(&self, see: &mut dyn FnMut(&Server)) {
        self.0.nodes().iter().for_each(|node| see(&node.server));
    }
}

#[cfg(feature = "sentinel")]
pub(crate) struct BehindSentinels(Group);

#[cfg(feature = "sentinel")]
impl BehindSentinels {
    pub(crate) fn start() -> Self {
        Self(Group::start())
    }
}

#[cfg(feature = "sentinel")]
impl Ground for BehindSentinels {
    fn builder(&self) -> Builder {
        SessionManager::builder(self.0.url())
    }

    fn builder_as(&self, user: &str, password: &str) -> Builder {
        SessionManager::builder(as_user(&self.0.url(), user, password))
    }

    fn with(&self, see: &mut dyn FnMut(&Server)) {
        see(&self.0.servers[0]);
    }

    fn each(&self, see: &mut dyn FnMut(&Server)) {
        self.0.servers.iter().for_each(see);
    }
}

#[cfg(feature = "tls-rustls")]
pub(crate) struct OverTls {
    server: Server,
    info: redis::ConnectionInfo,
    _files: tempfile::TempDir,
}

#[cfg(feature = "tls-rustls")]
impl OverTls {
    pub(crate) fn start() -> Self {
        use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &ca).unwrap();
        let files = tempfile::tempdir().unwrap();
        let file = |name: &str, text: String| {
            let path = files.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let named = [
            ("tls-cert-file", file("cert", certificate.pem())),
            ("tls-key-file", file("key", key.serialize_pem())),
            ("tls-ca-cert-file", file("ca", ca.pem())),
        ];
        let server = Server::with(&["--tls-auth-clients", "no"]);
        for _ in 0..20 {
            let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let port = free.local_addr().unwrap().port();
            drop(free);
            let mut set = redis::cmd("CONFIG");
            set.arg("SET").arg(&named).arg("tls-port").arg(port);
            if set.exec(&mut server.connection()).is_ok() {
                let root_cert = Some(ca.pem().into_bytes());
                let certificates = redis::TlsCertificates { client_tls: None, root_cert };
                let url = format!("rediss://localhost:{port}/");
                let client = redis::Client::build_with_tls(url, certificates).unwrap();
                let info = client.get_connection_info().clone();
                return Self { server, info, _files: files };
            }
        }
        unreachable!("no free port in 20 tries")
    }
}

#[cfg(feature = "tls-rustls")]
impl Ground for OverTls {
    fn builder(&self) -> Builder {
        SessionManager::builder(self.info.clone())
    }

    fn builder_as(&self, user: &str, password: &str) -> Builder {
        let who = self.info.redis_settings().clone().set_username(user).set_password(password);
        SessionManager::builder(self.info.clone().set_redis_settings(who))
    }

    fn with(&self, see: &mut dyn FnMut(&Server)) {
        see(&self.server);
    }
}
