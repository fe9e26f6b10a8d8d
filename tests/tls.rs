//! The same handles over TLS, where the feature is on.
#![cfg(feature = "tls-rustls")]
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod support;

use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use redis::{Client, ConnectionInfo, TlsCertificates};
use rediscope::prelude::*;
use rediscope::{CheckoutError, Error, LinkErrorKind, SessionManager};

use support::server::Server;

/// A server that speaks TLS on one more port, and the authority that vouches for it.
struct Tls {
    server: Server,
    port: u16,
    authority: String,
    _files: tempfile::TempDir,
}

fn start() -> Tls {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned()];
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &authority).unwrap();
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
        let server = Server::with(&["--tls-auth-clients", "no"]);
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
            return Tls { server, port, authority: authority.pem(), _files: files };
        }
    }
    unreachable!("no free port in 20 tries")
}

impl Tls {
    fn trusted(&self, host: &str) -> ConnectionInfo {
        let root_cert = Some(self.authority.clone().into_bytes());
        let certificates = TlsCertificates { client_tls: None, root_cert };
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
