//! A certificate authority of the test's own, its certificates, and a server with one more port for
//! TLS.

use std::fs;
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;

use super::front::Front;
use super::server::Server;
use crate::{StartError, TestServer};

const PORT_TRIES: usize = 20;

/// Signs the certificates of servers and clients.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, both PEM.
pub struct Identity {
    /// The certificate.
    pub certificate: String,
    /// The private key.
    pub key: String,
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl Authority {
    /// A new authority with a key of its own.
    pub fn new() -> Self {
        Self::called("an authority")
    }

    /// One of the same name as another would be taken for that one, with a broken signature.
    pub fn called(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Its certificate, PEM.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A server of these names or addresses.
    pub fn server(&self, names: &[&str]) -> Identity {
        self.sign(names, |_| {})
    }

    /// The same, long ago.
    pub fn expired_server(&self, names: &[&str]) -> Identity {
        self.sign(names, |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1))
    }

    /// A client's identity.
    pub fn client(&self) -> Identity {
        self.sign(&["client"], |_| {})
    }

    /// The same, long ago.
    pub fn expired_client(&self) -> Identity {
        self.sign(&["client"], |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1))
    }

    fn sign(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        // Of another name than its authority: OpenSSL would take it for one that signed itself.
        params.distinguished_name.push(DnType::CommonName, "somebody");
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap().pem();
        Identity { certificate, key: key.serialize_pem() }
    }
}

/// What a server's settings name: its identity and its authority, as files.
pub struct Files {
    folder: TempDir,
}

impl Files {
    /// Writes both into a temporary folder.
    pub fn of(authority: &Authority, server: &Identity) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("ca"), authority.pem()).unwrap();
        fs::write(folder.path().join("cert"), &server.certificate).unwrap();
        fs::write(folder.path().join("key"), &server.key).unwrap();
        Self { folder }
    }

    /// Names of settings, and their values.
    pub fn settings(&self) -> [(&'static str, String); 3] {
        [("tls-ca-cert-file", "ca"), ("tls-cert-file", "cert"), ("tls-key-file", "key")]
            .map(|(name, file)| (name, self.path(file)))
    }

    /// For the command line.
    pub fn arguments(&self) -> Vec<String> {
        let argument = |(name, path)| [format!("--{name}"), path];
        self.settings().into_iter().flat_map(argument).collect()
    }

    fn path(&self, file: &str) -> String {
        let path: &Path = self.folder.path();
        path.join(file).to_str().unwrap().to_owned()
    }
}

/// A server that speaks TLS on one more port.
pub struct TlsServer {
    /// The server; its other port is without TLS.
    pub server: Server,
    /// The port that speaks TLS.
    pub port: u16,
    /// The authority that signed the server's certificate.
    pub authority: Authority,
    _files: Files,
    front: Option<Front>,
}

impl TlsServer {
    /// `localhost`, for every client.
    pub fn start() -> Self {
        let authority = Authority::new();
        let localhost = authority.server(&["localhost"]);
        Self::with(authority, &localhost, &["--tls-auth-clients", "no"])
    }

    /// `localhost`, for clients with a certificate of its authority only.
    pub fn choosy() -> Self {
        let authority = Authority::new();
        let localhost = authority.server(&["localhost"]);
        Self::with(authority, &localhost, &["--tls-auth-clients", "yes"])
    }

    /// With further arguments for the server.
    pub fn with(authority: Authority, identity: &Identity, arguments: &[&str]) -> Self {
        let files = Files::of(&authority, identity);
        // A server that was built without TLS refuses the argument, or crashes when it is to open the port.
        let is_without =
            |log: &str| log.contains("tls-auth-clients") && !arguments.contains(&"yes");
        let server = match TestServer::with(arguments) {
            Err(StartError::Ended { log, .. }) if is_without(&log) => {
                return Self::with_front(authority, identity, files);
            }
            started => Server::started(started),
        };
        for _ in 0..PORT_TRIES {
            let port = super::server::free_port();
            let mut set = redis::cmd("CONFIG");
            set.arg("SET").arg(&files.settings()).arg("tls-port").arg(port);
            match set.exec(&mut server.connection()) {
                Ok(()) => return Self { server, port, authority, _files: files, front: None },
                Err(error) if error.is_io_error() && !arguments.contains(&"yes") => {
                    return Self::with_front(authority, identity, files);
                }
                Err(_) => {}
            }
        }
        panic!("no free port in {PORT_TRIES} tries");
    }

    /// A front has TLS in the server's place, for clients without certificates.
    fn with_front(authority: Authority, identity: &Identity, files: Files) -> Self {
        let server = Server::start();
        let front = Front::tls(server.address(), identity);
        let port = front.url().trim_end_matches('/').rsplit(':').next();
        let port = port.and_then(|port| port.parse().ok()).expect("the front's port");
        Self { server, port, authority, _files: files, front: Some(front) }
    }

    /// Whether the server speaks TLS itself, and not a front.
    pub fn is_of_the_server(&self) -> bool {
        self.front.is_none()
    }

    /// The URL under the name `localhost`.
    pub fn url(&self) -> String {
        self.url_of("localhost")
    }

    /// The URL under another name or address.
    pub fn url_of(&self, host: &str) -> String {
        format!("rediss://{host}:{}/", self.port)
    }
}
