//! What each refusal over TLS looks like, as `docs/tls.md` has it.

use std::net::TcpListener;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rediscope::redis::{Client, ClientTlsConfig, ConnectionInfo, TlsCertificates};
use rediscope::{CheckoutError, Error, IntoAddress, LinkErrorKind, SessionManager};

use super::sample::{Log, block};
use crate::support::server::Server;
use crate::support::try_for;

const SOON: Duration = Duration::from_secs(20);

type Pem = (String, String);

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// A certificate and its key.
    fn vouches_for(&self, name: &str, expired: bool) -> Pem {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        // Of another name than its authority: it would be taken for one that signed itself.
        params.distinguished_name.push(DnType::CommonName, name);
        if expired {
            params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        }
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }
}

/// A server with a certificate of this authority, which asks its clients for one or does not.
struct Over {
    _server: Server,
    port: u16,
    _files: tempfile::TempDir,
}

impl Over {
    fn start(authority: &Authority, expired: bool, asks: &str) -> Self {
        let files = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = files.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let (certificate, key) = authority.vouches_for("localhost", expired);
        let named = [
            ("tls-cert-file", file("cert", &certificate)),
            ("tls-key-file", file("key", &key)),
            ("tls-ca-cert-file", file("ca", &authority.0.pem())),
        ];
        for _ in 0..20 {
            let free = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = free.local_addr().unwrap().port();
            drop(free);
            let server = Server::with(&["--tls-auth-clients", asks]);
            let mut set = rediscope::redis::cmd("CONFIG");
            set.arg("SET").arg(&named).arg("tls-port").arg(port);
            if set.exec(&mut server.connection()).is_ok() {
                return Self { _server: server, port, _files: files };
            }
        }
        panic!("no free port in 20 tries");
    }

    fn trusting(&self, host: &str, authority: &Authority, own: Option<Pem>) -> ConnectionInfo {
        let root_cert = Some(authority.0.pem().into_bytes());
        let client_tls = own.map(|(certificate, key)| ClientTlsConfig {
            client_cert: certificate.into_bytes(),
            client_key: key.into_bytes(),
        });
        let url = format!("rediss://{host}:{}/", self.port);
        let certificates = TlsCertificates { client_tls, root_cert };
        Client::build_with_tls(url, certificates).unwrap().get_connection_info().clone()
    }
}

/// In its words. A hand-shake that took longer than its time is tried once more: that is the
/// machine's doing.
fn refused(to: impl IntoAddress + Clone) -> String {
    let words = || {
        let sessions = SessionManager::builder(to.clone())
            .connect_timeout(Duration::from_millis(600))
            .response_timeout(Duration::from_millis(50))
            .checkout_timeout(Duration::from_millis(700))
            .build()
            .unwrap();
        match sessions.transactional().begin() {
            Err(Error::Checkout(CheckoutError::Connect { source, .. })) => {
                (source.kind() != LinkErrorKind::TimedOut).then(|| source.to_string())
            }
            other => panic!("{other:?}"),
        }
    };
    try_for(SOON, words).unwrap_or_default()
}

/// Numbers differ from run to run.
fn unnumbered(text: &str) -> String {
    text.split(|letter: char| letter.is_ascii_digit()).filter(|part| !part.is_empty()).collect()
}

#[test]
fn each_refusal_is_told_in_the_words_that_the_page_shows() {
    let log = Log::listen();
    let (authority, stranger) = (Authority::new("ours"), Authority::new("stranger"));
    let open = Over::start(&authority, false, "no");
    let expired = Over::start(&authority, true, "no");
    let asking = Over::start(&authority, false, "yes");
    let by_stranger = Some(stranger.vouches_for("client", false));
    let gone = Some(authority.vouches_for("client", true));
    let page = std::fs::read_to_string("docs/tls.md").unwrap();
    let shown = |what: &str| {
        let row = page.lines().find(|line| line.starts_with(&format!("| {what}"))).unwrap();
        row.split('`').nth(1).unwrap_or_else(|| panic!("no words: {row}")).to_owned()
    };
    let told: [(&str, ConnectionInfo); 6] = [
        ("the server's authority", open.trusting("localhost", &stranger, None)),
        ("the certificate has another name", open.trusting("127.0.0.1", &authority, None)),
        ("the server's certificate has expired", expired.trusting("localhost", &authority, None)),
        ("the server wants a client", asking.trusting("localhost", &authority, None)),
        ("the client's certificate is by", asking.trusting("localhost", &authority, by_stranger)),
        ("the client's certificate has expired", asking.trusting("localhost", &authority, gone)),
    ];
    let mut wrong = Vec::new();
    for (what, info) in told {
        let words = refused(info);
        if unnumbered(&words) != unnumbered(&shown(what)) {
            wrong.push(format!("{what}: {words}"));
        }
    }
    let by_the_system = refused(format!("rediss://localhost:{}/", open.port));
    assert_eq!(by_the_system, shown("the server's authority"));
    let words = refused(format!("redis://localhost:{}/", open.port));
    assert!(words.starts_with("connection closed: "), "{words}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let line = block("tls", "once for each try:").pop().unwrap();
    let (_, words) = line.split_once("error=").unwrap();
    assert!(log.take().iter().any(|line| {
        line.starts_with("DEBUG connect failed server.address=") && line.ends_with(words)
    }));
}

#[test]
fn tls_to_a_port_that_does_not_speak_it_is_told_as_the_page_shows_it() {
    let _log = Log::listen();
    let server = Server::start();
    let sessions = SessionManager::builder(format!("rediss://localhost:{}/", server.port()))
        .connect_timeout(Duration::from_millis(200))
        .response_timeout(Duration::from_millis(50))
        .checkout_timeout(Duration::from_millis(500))
        .build()
        .unwrap();
    let Err(Error::Checkout(CheckoutError::Connect { source, .. })) =
        sessions.transactional().begin()
    else {
        panic!("it spoke TLS")
    };
    let page = std::fs::read_to_string("docs/tls.md").unwrap();
    assert!(page.contains(&format!("| TLS to a port without it | `{source}` |")), "{source}");
}
