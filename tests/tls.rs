//! The same handles over TLS, where the feature is on.
#![cfg(feature = "tls-rustls")]
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod support;

use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use redis::{Client, ClientTlsConfig, ConnectionInfo, TlsCertificates};
use rediscope::prelude::*;
use rediscope::{CheckoutError, Error, LinkErrorKind, SessionManager};

use support::eventually;
use support::server::Server;

const SOON: Duration = Duration::from_secs(20);

/// A server that speaks TLS on one more port, and the authority that vouches for it.
struct Tls {
    server: Server,
    port: u16,
    authority: String,
    /// A client's certificate by the same authority, and its key.
    client: (String, String),
    _files: tempfile::TempDir,
}

fn start() -> Tls {
    with(&["--tls-auth-clients", "no"], false)
}

/// With further arguments for the server, and a certificate that has expired.
fn with(arguments: &[&str], expired: bool) -> Tls {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned()];
    let mut params = CertificateParams::new(names).unwrap();
    if expired {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    }
    let certificate = params.signed_by(&key, &authority).unwrap();
    let own = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["client".to_owned()]).unwrap();
    // Of another name than its authority: it would be taken for one that signed itself.
    params.distinguished_name.push(DnType::CommonName, "client");
    let client = (params.signed_by(&own, &authority).unwrap().pem(), own.serialize_pem());
    let files = tempfile::tempdir().unwrap();
    let file = |name: &str, text: String| {
        let path = files.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (certificate, key) = (file("cert", certificate.pem()), file("key", key.serialize_pem()));
    let ca = file("ca", authority.pem());
    for _ in 0..20 {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let tls_port = port.to_string();
        let server = Server::with(arguments);
        let set = redis::cmd("CONFIG")
            .arg("SET")
            .arg(&[
                ("tls-cert-file", &certificate),
                ("tls-key-file", &key),
                ("tls-ca-cert-file", &ca),
                ("tls-port", &tls_port),
            ])
            .exec(&mut server.connection());
        if set.is_ok() {
            return Tls { server, port, authority: authority.pem(), client, _files: files };
        }
    }
    unreachable!("no free port in 20 tries")
}

impl Tls {
    fn trusted(&self, host: &str) -> ConnectionInfo {
        self.presenting(host, None)
    }

    fn presenting(&self, host: &str, client: Option<&(String, String)>) -> ConnectionInfo {
        let root_cert = Some(self.authority.clone().into_bytes());
        let client_tls = client.map(|(certificate, key)| ClientTlsConfig {
            client_cert: certificate.clone().into_bytes(),
            client_key: key.clone().into_bytes(),
        });
        let certificates = TlsCertificates { client_tls, root_cert };
        let url = format!("rediss://{host}:{}/", self.port);
        Client::build_with_tls(url, certificates).unwrap().get_connection_info().clone()
    }
}

fn refusal(to: impl rediscope::IntoAddress) -> (LinkErrorKind, String) {
    let sessions = SessionManager::builder(to)
        .connect_timeout(Duration::from_secs(2))
        .response_timeout(Duration::from_millis(500))
        .checkout_timeout(Duration::from_secs(3))
        .build()
        .unwrap();
    match sessions.transactional().begin() {
        Err(Error::Checkout(CheckoutError::Connect { source, .. })) => {
            (source.kind(), source.to_string())
        }
        other => unreachable!("{other:?}"),
    }
}

#[test]
fn transactions_and_single_commands_work_over_tls() {
    let tls = start();
    let sessions = SessionManager::connect(tls.trusted("localhost")).unwrap();
    let accounts = sessions.transactional();
    let (a, b) = accounts.run(|tx| Ok((tx.incr("a", 1), tx.incr("b", 2)))).unwrap();
    assert_eq!((a, b), (1, 2));
    let c = accounts.watch(["a"]).run(|read, tx| {
        let a: i64 = read.get("a")?;
        Ok(tx.incr("c", a))
    });
    assert_eq!(c.unwrap(), 1);
    let big = "x".repeat(100_000);
    accounts
        .run(|tx| {
            for key in 0..10 {
                tx.set(key, &big);
            }
            Ok(())
        })
        .unwrap();
    let mut db = sessions.pooled();
    let read: String = db.get(9).unwrap();
    assert_eq!(read, big);
    assert_eq!(tls.server.ask::<i64>(&["GET", "b"]), 2);
}

#[test]
fn the_raw_connection_takes_the_place_of_the_one_it_is_lent_for() {
    let tls = start();
    let sessions = SessionManager::builder(tls.trusted("localhost")).max_size(1).build().unwrap();
    let mut db = sessions.pooled();
    db.set::<_, _, ()>("key", 1).unwrap();
    db.with_raw(|raw| {
        eventually(SOON, "there is one connection", || tls.server.clients() == 1);
        assert_eq!(redis::Commands::get::<_, i64>(raw, "key").unwrap(), 1);
    })
    .unwrap();
    assert_eq!(db.get::<_, i64>("key").unwrap(), 1);
}

#[test]
fn a_server_that_nobody_vouches_for_is_refused_with_a_reason() {
    let tls = start();
    let (kind, text) = refusal(format!("rediss://localhost:{}/", tls.port));
    assert_eq!(kind, LinkErrorKind::Io, "{text}");
    assert!(text.to_lowercase().contains("certificate"), "{text}");
}

#[test]
fn a_server_of_another_name_is_refused_with_a_reason() {
    let tls = start();
    let (kind, text) = refusal(tls.trusted("127.0.0.1"));
    assert_eq!(kind, LinkErrorKind::Io, "{text}");
    assert!(text.to_lowercase().contains("certificate"), "{text}");
}

#[test]
fn a_server_whose_certificate_has_expired_is_refused_with_a_reason() {
    let tls = with(&["--tls-auth-clients", "no"], true);
    let (kind, text) = refusal(tls.trusted("localhost"));
    assert_eq!(kind, LinkErrorKind::Io, "{text}");
    assert!(text.to_lowercase().contains("expired"), "{text}");
}

#[test]
fn a_server_that_wants_a_client_certificate_takes_one_of_its_authority_and_no_other() {
    let tls = with(&["--tls-auth-clients", "yes"], false);
    let sessions = SessionManager::connect(tls.presenting("localhost", Some(&tls.client))).unwrap();
    assert_eq!(sessions.transactional().run(|tx| Ok(tx.incr("a", 1))).unwrap(), 1);
    assert_eq!(tls.server.ask::<i64>(&["GET", "a"]), 1);

    let (_, none) = refusal(tls.trusted("localhost"));
    assert!(none.to_lowercase().contains("certificate"), "{none}");
    let stranger = start();
    let (_, other) = refusal(tls.presenting("localhost", Some(&stranger.client)));
    assert!(!other.is_empty(), "{other}");
    assert_eq!(tls.server.ask::<i64>(&["GET", "a"]), 1);
}
