//! The same handles over TLS, with the feature for it.
//!
//! Guarantee: committed

use crate::fixture::SOON;
use crate::side::{BuildSide, SessionManager, threads_only};
use std::time::Duration;

use rediscope::error::{CheckoutError, ConfigError, ConnectionErrorKind};
use rediscope::prelude::*;
use rediscope::{Builder, Error, IntoAddress, Tls, redis};

use rediscope_testing::eventually;
use rediscope_testing::tls::{Authority, Identity, TlsServer};

/// Trusts this authority and no other.
fn trusted(authority: &Authority) -> Tls {
    Tls::new().root_certificates(authority.pem())
}

fn trusted_as(authority: &Authority, client: &Identity) -> Tls {
    trusted(authority).client_certificate(client.certificate.clone(), client.key.clone())
}

fn patient(to: impl IntoAddress, tls: Tls) -> Builder {
    SessionManager::builder(to)
        .tls(tls)
        .connect_timeout(Duration::from_secs(5))
        .response_timeout(Duration::from_secs(2))
        .checkout_timeout(Duration::from_secs(10))
}

fn refusal(to: impl IntoAddress, tls: Tls) -> (ConnectionErrorKind, String) {
    let sessions = patient(to, tls)
        .connect_timeout(Duration::from_secs(2))
        .response_timeout(Duration::from_millis(500))
        .checkout_timeout(Duration::from_secs(3))
        .build_side()
        .unwrap();
    let read = sessions.pooled().get::<_, Option<i64>>("a").map_err(Error::from);
    match read {
        Err(error @ Error::Checkout(CheckoutError::Connect { .. })) if error.is_retryable() => {
            panic!("a verdict of TLS's cannot pass, and is not waited for: {error:#}")
        }
        Err(Error::Checkout(CheckoutError::Connect { source, .. })) => {
            (source.kind(), source.to_string())
        }
        other => unreachable!("{other:?}"),
    }
}

#[test]
fn transactions_and_single_commands_work_over_tls() {
    let tls = TlsServer::start();
    let sessions = patient(tls.url(), trusted(&tls.authority)).build_side().unwrap();
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

threads_only! {
#[test]
fn the_raw_connection_takes_the_place_of_the_one_it_is_lent_for() {
    let tls = TlsServer::start();
    let sessions = patient(tls.url(), trusted(&tls.authority)).max_size(1).build_side().unwrap();
    let mut db = sessions.pooled();
    db.set::<_, _, ()>("key", 1).unwrap();
    db.with_raw(|raw| {
        eventually(SOON, "there is one connection", || tls.server.clients() == 1);
        assert_eq!(redis::Commands::get::<_, i64>(raw, "key").unwrap(), 1);
    })
    .unwrap();
    assert_eq!(db.get::<_, i64>("key").unwrap(), 1);
}
}

threads_only! {
#[test]
fn raw_connections_present_the_client_certificate_and_check_a_name_that_is_an_address() {
    let tls = TlsServer::choosy();
    let client = tls.authority.client();
    let sessions = patient(tls.url(), trusted_as(&tls.authority, &client)).build_side().unwrap();
    let raw = |sessions: &SessionManager| {
        sessions.pooled().with_raw(|raw| redis::Commands::get::<_, Option<i64>>(raw, "a"))
    };
    assert_eq!(raw(&sessions).unwrap().unwrap(), None);
    let authority = Authority::new();
    let identity = authority.server(&["127.0.0.1"]);
    let tls = TlsServer::with(authority, &identity, &["--tls-auth-clients", "no"]);
    let sessions =
        patient(tls.url_of("127.0.0.1"), trusted(&tls.authority)).build_side().unwrap();
    assert_eq!(raw(&sessions).unwrap().unwrap(), None);
}
}

#[test]
fn a_server_without_a_trusted_certificate_is_refused_with_a_reason() {
    let tls = TlsServer::start();
    let (kind, text) = refusal(tls.url(), Tls::new());
    assert_eq!(kind, ConnectionErrorKind::Io, "{text}");
    assert!(text.to_lowercase().contains("certificate"), "{text}");
    let (kind, text) = refusal(tls.url(), trusted(&Authority::new()));
    assert_eq!(kind, ConnectionErrorKind::Io, "{text}");
    assert!(text.to_lowercase().contains("certificate"), "{text}");
}

#[test]
fn a_server_of_another_name_is_refused_with_a_reason() {
    let tls = TlsServer::start();
    let (kind, text) = refusal(tls.url_of("127.0.0.1"), trusted(&tls.authority));
    assert_eq!(kind, ConnectionErrorKind::Io, "{text}");
    assert!(text.to_lowercase().contains("certificate"), "{text}");
}

#[test]
fn a_server_whose_certificate_has_expired_is_refused_with_a_reason() {
    let authority = Authority::new();
    let expired = authority.expired_server(&["localhost"]);
    let tls = TlsServer::with(authority, &expired, &["--tls-auth-clients", "no"]);
    let (kind, text) = refusal(tls.url(), trusted(&tls.authority));
    assert_eq!(kind, ConnectionErrorKind::Io, "{text}");
    assert!(text.to_lowercase().contains("expired"), "{text}");
}

#[test]
fn a_server_that_wants_a_client_certificate_takes_one_of_its_authority_and_no_other() {
    let tls = TlsServer::choosy();
    let client = tls.authority.client();
    let sessions = patient(tls.url(), trusted_as(&tls.authority, &client)).build_side().unwrap();
    assert_eq!(sessions.transactional().run(|tx| Ok(tx.incr("a", 1))).unwrap(), 1);
    assert_eq!(tls.server.ask::<i64>(&["GET", "a"]), 1);
    // The connection that locks listen on presents it too.
    let held = sessions.lock("l").acquire(SOON).unwrap();
    let waiting = sessions.lock("l");
    let waiter = std::thread::spawn(move || waiting.acquire(SOON).map(drop));
    eventually(SOON, "it listens", || tls.server.subscribers() == 1);
    held.release().unwrap();
    waiter.join().unwrap().unwrap();

    let (_, none) = refusal(tls.url(), trusted(&tls.authority));
    assert!(none.to_lowercase().contains("certificate"), "{none}");
    let (_, other) = refusal(tls.url(), trusted_as(&tls.authority, &Authority::new().client()));
    assert!(!other.is_empty(), "{other}");
    assert_eq!(tls.server.ask::<i64>(&["GET", "a"]), 1);
}

#[test]
fn every_node_of_a_cluster_is_reached_by_tls_also_one_that_a_slot_has_moved_to() {
    use rediscope_testing::cluster::Cluster;
    use rediscope_testing::tls::Files;

    let authority = Authority::new();
    let files = Files::of(&authority, &authority.server(&["127.0.0.1"]));
    let files = files.arguments();
    let mut arguments: Vec<_> = files.iter().map(String::as_str).collect();
    arguments.extend(["--tls-cluster", "yes", "--tls-auth-clients", "yes"]);
    let cluster = Cluster::with(3, 0, &arguments);
    let presented = trusted_as(&authority, &authority.client());
    let sessions = patient(cluster.tls_url(), presented).build_side().unwrap();
    for slot in [1, 8000, 16000] {
        let key = cluster.key_in(slot, "n");
        assert_eq!(sessions.transactional().run(|tx| Ok(tx.incr(&key, 1))).unwrap(), 1);
        assert_eq!(sessions.pooled().get::<_, i64>(&key).unwrap(), 1);
        assert_eq!(cluster.read::<i64>(&["GET", &key]), 1);
    }
    assert_eq!(sessions.status().transactional.nodes.len(), 3, "one pool a master");
    let moved = cluster.key_in(2, "n");
    let owner = cluster.owner(2).unwrap();
    cluster.migrate(2, (owner + 1) % 3);
    assert_eq!(sessions.transactional().run(|tx| Ok(tx.incr(&moved, 1))).unwrap(), 1);
    assert!(sessions.status().transactional.redirections > 0, "it was sent on");

    let (_, none) = refusal(cluster.tls_url(), trusted(&authority));
    assert!(none.to_lowercase().contains("certificate"), "{none}");
    let (_, stranger) = refusal(cluster.tls_url(), trusted(&Authority::new()));
    assert!(stranger.to_lowercase().contains("certificate"), "{stranger}");
}

#[test]
fn sentinels_and_the_servers_behind_them_are_reached_by_tls() {
    use rediscope_testing::sentinel::{NAME, Sentinel};
    use rediscope_testing::tls::Files;

    let authority = Authority::new();
    let identity = authority.server(&["localhost", "127.0.0.1"]);
    let files = Files::of(&authority, &identity);
    let tls = TlsServer::with(authority, &identity, &["--tls-auth-clients", "yes"]);
    let mut lines = "port 0\ntls-port {port}\ntls-replication yes\n".to_owned();
    for (name, path) in files.settings() {
        lines += &format!("{name} {path}\n");
    }
    let sentinel = Sentinel::watching(&tls.server, tls.port, None, &lines);
    let url = format!("rediss+sentinel://localhost:{}/{NAME}", sentinel.port());
    let presented = trusted_as(&tls.authority, &tls.authority.client());
    let sessions = patient(url.as_str(), presented.clone()).build_side().unwrap();
    assert_eq!(sessions.transactional().run(|tx| Ok(tx.incr("a", 1))).unwrap(), 1);
    assert_eq!(tls.server.ask::<i64>(&["GET", "a"]), 1);
    // Said apart, they are the same.
    let sentinels = [format!("rediss://localhost:{}/", sentinel.port())];
    let sessions = SessionManager::sentinel(NAME, sentinels)
        .server_info("rediss://any/")
        .tls(presented)
        .build_side()
        .unwrap();
    assert_eq!(sessions.pooled().get::<_, i64>("a").unwrap(), 1);

    let (_, none) = refusal(url.as_str(), trusted(&tls.authority));
    assert!(none.to_lowercase().contains("certificate"), "{none}");
}

/// Why it is not built. Nothing is connected: there is no server here.
#[track_caller]
fn wrong(to: impl IntoAddress, tls: Tls) -> String {
    let error = SessionManager::builder(to).tls(tls).build_side().map(drop).unwrap_err();
    assert_eq!(error.setting_name(), Some("tls"), "{error}");
    for text in [error.to_string(), format!("{error:?}")] {
        assert!(!text.contains("BEGIN") && !text.contains("MII"), "{text}");
    }
    let ConfigError::Setting { reason, .. } = error else { unreachable!() };
    reason
}

#[test]
fn an_invalid_certificate_or_key_is_refused_by_build() {
    let authority = Authority::new();
    let (one, other) = (authority.client(), authority.client());
    let roots = |pem: &str| wrong("rediss://h/", Tls::new().root_certificates(pem));
    assert!(roots("").contains("root_certificates: the PEM holds no certificate"));
    assert!(roots("a certificate").contains("no certificate"));
    assert!(roots(&one.key).contains("no certificate"), "a key is none");
    let cut = one.certificate.replace("-----END CERTIFICATE-----", "");
    assert!(roots(&cut).contains("cannot be read"));
    let nonsense = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
    assert!(roots(nonsense).contains("X.509"));
    assert!(roots(&(authority.pem() + nonsense)).contains("X.509"), "all of them are read");

    let client = |certificate: &str, key: &str| {
        wrong("rediss://h/", Tls::new().client_certificate(certificate, key))
    };
    assert!(client(&one.certificate, &other.key).contains("the key is not the certificate's"));
    assert!(client(&one.certificate, "").contains("no private key"));
    assert!(client(&one.certificate, &one.certificate).contains("no private key"));
    assert!(client("", &one.key).contains("client_certificate: the PEM holds no certificate"));
    assert!(client(&one.key, &one.certificate).contains("no certificate"), "one for the other");
    assert!(client(nonsense, &one.key).contains("client_certificate"));
    let broken = one.key.replace("-----END PRIVATE KEY-----", "");
    assert!(client(&one.certificate, &broken).contains("cannot be read"));
    let right = Tls::new().client_certificate(one.certificate, one.key);
    assert!(SessionManager::builder("rediss://h/").tls(right).build_side().is_ok());
}

#[test]
fn tls_for_an_address_without_it_is_refused() {
    let roots = || trusted(&Authority::new());
    for url in ["redis://h/", "redis+unix:///tmp/s"] {
        assert!(wrong(url, roots()).contains("rediss"), "{url}");
    }
    assert!(wrong("redis+cluster://h,g/", roots()).contains("rediss"));
    {
        assert!(wrong("redis+sentinel://h/m", roots()).contains("server_info"));
        let sentinels = |url| SessionManager::sentinel("m", [url]).tls(roots());
        let refused = sentinels("rediss://h/").build_side().map(drop).unwrap_err();
        assert!(refused.to_string().contains("server_info"), "the servers are what counts");
        let allowed = sentinels("redis://h/").server_info("rediss://any/").build_side();
        assert_ne!(allowed.err().and_then(|error| error.setting_name()), Some("tls"));
    }
}

#[test]
fn neither_a_key_nor_a_certificate_is_shown() {
    let authority = Authority::new();
    let client = authority.client();
    let tls = trusted_as(&authority, &client);
    let builder = SessionManager::builder("rediss://h/").tls(tls.clone());
    let texts = [
        format!("{tls:?}"),
        format!("{tls:#?}"),
        format!("{builder:?}"),
        format!("{:?}", builder.build_side().unwrap()),
    ];
    let line = |pem: &str| pem.lines().nth(1).unwrap().to_owned();
    for text in texts {
        for secret in [&client.key, &client.certificate, &authority.pem()] {
            assert!(!text.contains(&line(secret)), "{text}");
            assert!(!text.contains(&format!("{:?}", &secret.as_bytes()[..8])[1..20]), "{text}");
        }
    }
    assert_eq!(format!("{tls:?}"), "Tls { root_certificates: true, client_certificate: true }");
    assert!(format!("{:?}", Tls::new()).contains("root_certificates: false"));
}

#[test]
fn a_server_is_named_by_an_ip_address_that_its_certificate_has() {
    let authority = Authority::new();
    let identity = authority.server(&["127.0.0.1"]);
    let tls = TlsServer::with(authority, &identity, &["--tls-auth-clients", "no"]);
    let sessions = patient(tls.url_of("127.0.0.1"), trusted(&tls.authority)).build_side().unwrap();
    assert_eq!(sessions.transactional().run(|tx| Ok(tx.incr("a", 1))).unwrap(), 1);
    assert_eq!(sessions.pooled().get::<_, i64>("a").unwrap(), 1);
}

#[test]
fn both_versions_of_tls_are_spoken() {
    for version in ["TLSv1.2", "TLSv1.3"] {
        let tls = TlsServer::start();
        tls.server.config_set("tls-protocols", version);
        let sessions = patient(tls.url(), trusted(&tls.authority)).build_side().unwrap();
        let big = "x".repeat(1 << 20);
        let (n, read) = sessions
            .transactional()
            .run(|tx| {
                tx.set("big", &big);
                Ok((tx.incr("n", 1), tx.get::<_, String>("big")))
            })
            .unwrap();
        assert_eq!((n, read.len()), (1, big.len()), "{version}");
        let resp3 = format!("{}?protocol=resp3", tls.url());
        let sessions = patient(resp3, trusted(&tls.authority)).build_side().unwrap();
        assert_eq!(sessions.pooled().get::<_, String>("big").unwrap(), big, "{version}");
    }
}

#[test]
fn certificates_that_cannot_be_read_are_refused_instead_of_left_out() {
    let tls = TlsServer::choosy();
    let client = tls.authority.client();
    let certificates = redis::TlsCertificates {
        client_tls: Some(redis::ClientTlsConfig {
            client_cert: client.certificate.clone().into_bytes(),
            client_key: client.key.clone().into_bytes(),
        }),
        root_cert: Some(tls.authority.pem().into_bytes()),
    };
    let info = redis::Client::build_with_tls(tls.url(), certificates).unwrap();
    let info = info.get_connection_info().clone();
    let refused = SessionManager::connect(info.clone()).map(drop).unwrap_err().to_string();
    assert!(refused.contains("Builder::tls"), "{refused}");
    let sessions = patient(info, trusted_as(&tls.authority, &client)).build_side().unwrap();
    assert_eq!(sessions.transactional().run(|tx| Ok(tx.incr("a", 1))).unwrap(), 1);
}

/// A connection to the server that a proxy may break, which sees what TLS hides.
fn behind_a_proxy(
    server: &rediscope_testing::server::Server,
) -> (rediscope_testing::proxy::Proxy, rediscope_testing::front::Front, Builder) {
    let proxy = rediscope_testing::proxy::Proxy::to(server);
    let authority = Authority::new();
    let front =
        rediscope_testing::front::Front::tls(proxy.address(), &authority.server(&["localhost"]));
    let builder = patient(front.url(), trusted(&authority)).max_size(1);
    (proxy, front, builder)
}

#[test]
fn a_lost_reply_is_reported_as_over_tcp() {
    use rediscope::error::Applied;
    use rediscope::{CommitError, TransactionOptions};
    use rediscope_testing::proxy::{Fault, Script, Trigger};

    let server = rediscope_testing::server::Server::start();
    let (proxy, _front, builder) = behind_a_proxy(&server);
    let sessions = builder.build_side().unwrap();
    let accounts = sessions.transactional();
    let cases = [
        (Trigger::BeforeReplyTo("EXEC"), 1),
        (Trigger::InsideReplyTo("EXEC", 2), 1),
        (Trigger::AfterCommandNamed("EXEC"), 1),
        (Trigger::BeforeCommandNamed("EXEC"), 0),
        (Trigger::InsideCommandNamed("EXEC", 5), 0),
    ];
    for (nth, (trigger, applied)) in cases.into_iter().enumerate() {
        let key = format!("key{nth}");
        accounts.run(|tx| Ok(tx.ping())).unwrap();
        proxy.arm(Script::from((trigger, Fault::Cut)).once());
        let error = accounts.run(|tx| Ok(tx.incr(&key, 1))).unwrap_err();
        assert!(matches!(error.as_commit(), Some(CommitError::InDoubt(_))), "{trigger:?}: {error}");
        assert_eq!(error.applied(), Applied::Unknown);
        proxy.disarm();
        eventually(SOON, "it is as it was", || {
            server.ask::<Option<i64>>(&["GET", &key]).unwrap_or(0) == applied
        });
        // With a fence it is found out which.
        let once = accounts.with(TransactionOptions::new().exactly_once());
        once.run(|tx| Ok(tx.ping())).unwrap();
        proxy.arm(Script::from((trigger, Fault::Cut)).once());
        let lost = once.run(|tx| Ok(tx.incr(&key, 10)));
        proxy.disarm();
        match lost {
            Ok(n) => assert_eq!(n, applied + 10, "{trigger:?}"),
            Err(error) => assert_ne!(error.applied(), Applied::Unknown, "{trigger:?}: {error}"),
        }
        assert_eq!(server.ask::<i64>(&["GET", &key]), applied + 10, "{trigger:?}");
    }
}

#[test]
fn a_write_over_tls_that_is_not_read_is_not_sent_and_ends_in_time() {
    use rediscope::CommitError;
    use rediscope_testing::proxy::{Fault, Trigger};

    const LARGE: usize = 32 << 20;
    let server = rediscope_testing::server::Server::start();
    let (proxy, _front, builder) = behind_a_proxy(&server);
    let limit = Duration::from_millis(600);
    let sessions = builder
        .response_timeout(limit)
        .trust_window(SOON)
        .flush_bytes(4 * LARGE)
        .build_side()
        .unwrap();
    sessions.transactional().run(|tx| Ok(tx.ping())).unwrap();
    proxy.arm((Trigger::AfterCommandNamed("MULTI"), Fault::HoldRequests));
    let mut tx = sessions.transactional().begin().unwrap();
    tx.set("key", vec![b'x'; LARGE]);
    let begun = std::time::Instant::now();
    let error = tx.commit().unwrap_err();
    assert!(matches!(error, Error::Commit(CommitError::NotSent { .. })), "{error}");
    assert!(begun.elapsed() < 20 * limit, "{:?}", begun.elapsed());
    proxy.disarm();
    proxy.release();
    sessions.transactional().run(|tx| Ok(tx.ping())).unwrap();
    assert_eq!(server.ask::<i64>(&["EXISTS", "key"]), 0, "half a command is no command");
}
