//! Each refusal over TLS, as `docs/tls.md` shows it.
//!
//! Guarantee: none

use crate::fixture::SOON;
use std::time::Duration;

use rediscope::error::{CheckoutError, ConnectionErrorKind};
use rediscope::{Error, SessionManager, Tls};

use super::sample::{Log, block};
use rediscope_testing::server::Server;
use rediscope_testing::tls::{Authority, Identity, TlsServer};
use rediscope_testing::try_for;

fn trusting(authority: &Authority) -> Option<Tls> {
    Some(Tls::new().root_certificates(authority.pem()))
}

fn presenting(authority: &Authority, own: &Identity) -> Option<Tls> {
    trusting(authority).map(|tls| tls.client_certificate(&*own.certificate, &*own.key))
}

/// In its words. A handshake that took longer than its time is tried once more: that is the
/// machine's doing.
fn refused(to: &str, tls: Option<Tls>) -> String {
    let words = || {
        let mut builder = SessionManager::builder(to)
            .connect_timeout(Duration::from_millis(600))
            .response_timeout(Duration::from_millis(50))
            .checkout_timeout(Duration::from_millis(700));
        if let Some(tls) = &tls {
            builder = builder.tls(tls.clone());
        }
        let sessions = builder.build().unwrap();
        match sessions.transactional().begin() {
            Err(Error::Checkout(CheckoutError::Connect { source, .. })) => {
                (source.kind() != ConnectionErrorKind::TimedOut).then(|| source.to_string())
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
fn each_refusal_has_the_words_that_the_page_shows() {
    rediscope_testing::own_process!();
    let log = Log::listen();
    let stranger = Authority::called("a stranger");
    let open = TlsServer::start();
    let authority = Authority::new();
    let long_ago = authority.expired_server(&["localhost"]);
    let expired = TlsServer::with(authority, &long_ago, &["--tls-auth-clients", "no"]);
    let asking = TlsServer::choosy();
    let asked = &asking.authority;
    let page = std::fs::read_to_string("docs/tls.md").unwrap();
    let shown = |what: &str| {
        let row = page.lines().find(|line| line.starts_with(&format!("| {what}"))).unwrap();
        row.split('`').nth(1).unwrap_or_else(|| panic!("no words: {row}")).to_owned()
    };
    let reported = [
        ("the server's authority", open.url(), trusting(&stranger)),
        ("the certificate has another name", open.url_of("127.0.0.1"), trusting(&open.authority)),
        ("the server's certificate has expired", expired.url(), trusting(&expired.authority)),
        ("the server wants a client", asking.url(), trusting(asked)),
        ("the client's certificate is by", asking.url(), presenting(asked, &stranger.client())),
        (
            "the client's certificate has expired",
            asking.url(),
            presenting(asked, &asked.expired_client()),
        ),
    ];
    let mut wrong = Vec::new();
    for (what, url, tls) in reported {
        let words = refused(&url, tls);
        if unnumbered(&words) != unnumbered(&shown(what)) {
            wrong.push(format!("{what}: {words}"));
        }
    }
    let by_the_system = refused(&open.url(), None);
    assert_eq!(by_the_system, shown("the server's authority"));
    let words = refused(&format!("redis://localhost:{}/", open.port), None);
    assert!(words.starts_with("connection closed: "), "{words}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let line = block("tls", "once for each try:").pop().unwrap();
    let (_, words) = line.split_once("error=").unwrap();
    assert!(log.take().iter().any(|line| {
        line.starts_with("DEBUG connect failed server.address=") && line.ends_with(words)
    }));
}

#[test]
fn tls_to_a_port_without_it_fails_as_the_page_shows() {
    rediscope_testing::own_process!();
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
