//! Promise: a readiness probe reports what the server does now, within its time, and takes no place of a pool.
//!
//! Guarantee: readiness

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rediscope::error::{CheckoutError, ConnectionError, ConnectionErrorKind, Resolution};
use rediscope::prelude::*;
use rediscope::{CommitError, Credentials, Error, RotatingCredentials, TransactionOptions};
use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Proxy, Script, Trigger};
use rediscope_testing::server::Server;
use rediscope_testing::unresponsive_port::UnresponsivePort;

use crate::fixture::{LONG, SLACK, SOON, unhurried};
use crate::side::{BuildSide, ResolveDoubt, SessionManager};

/// The reason why it is not ready.
#[track_caller]
fn reason(sessions: &SessionManager, within: Duration) -> ConnectionError {
    let begun = Instant::now();
    let error = sessions.ready(within).unwrap_err();
    assert!(begun.elapsed() < within + SLACK, "{:?}", begun.elapsed());
    match error {
        Error::Checkout(CheckoutError::Connect { source, .. }) => source,
        other => panic!("{other:?}"),
    }
}

fn code(reason: &ConnectionError) -> &str {
    reason.server_error().map_or("-", |error| error.code())
}

fn connect(url: &str) -> SessionManager {
    SessionManager::connect(url).unwrap()
}

#[test]
fn a_drained_pool_is_ready_and_all_probes_use_one_connection() {
    let server = Server::start();
    let sessions = SessionManager::builder(server.url()).max_size(1).build_side().unwrap();
    let mut tx = sessions.transactional().begin().unwrap();
    tx.incr("n", 1);
    for _ in 0..20 {
        sessions.ready(SOON).unwrap();
    }
    let status = sessions.status();
    assert_eq!((status.transactional.in_use, status.transactional.counts.checkouts), (1, 1));
    assert_eq!((status.pooled.size, status.pooled.counts.checkouts), (0, 0));
    tx.commit().unwrap();
    let opened = status.transactional.counts.connects as usize;
    eventually(SOON, "one more connection is open", || server.clients() == opened + 1);
    assert_eq!(server.calls("pexpire"), 20);
    assert_eq!(server.ask::<Vec<String>>(&["KEYS", "*"]), ["n"]);
}

#[test]
fn a_server_that_cannot_be_reached_is_reported_with_the_reason() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let closed = reason(&connect(&format!("redis://{free}/")), SOON);
    assert_eq!(closed.kind(), ConnectionErrorKind::Closed, "{closed}");

    let unknown = SessionManager::builder("redis://nowhere.test/")
        .look_up_names_with(|_| Err(std::io::Error::other("no such host")))
        .build_side()
        .unwrap();
    let unknown = reason(&unknown, SOON);
    assert!(unknown.to_string().contains("no such host"), "{unknown}");

    let within = Duration::from_millis(300);
    let silent = UnresponsivePort::open();
    let silent = reason(&connect(&silent.url()), within);
    assert_eq!(silent.kind(), ConnectionErrorKind::TimedOut, "{silent}");
}

#[test]
fn a_server_that_refuses_the_login_is_reported_with_its_code() {
    let server = Server::start();
    server.acl(&["SETUSER", "app", "on", ">secret", "~*", "&*", "+@all"]);
    let wrong = reason(&connect(&server.url_as("app", "guess")), SOON);
    assert_eq!((wrong.kind(), code(&wrong)), (ConnectionErrorKind::Refused, "WRONGPASS"));
    assert!(!wrong.to_string().contains("guess"), "{wrong}");
    server.acl(&["SETUSER", "nobody", "on", "nopass", "-@all"]);
    // A user without rights has a server that replies.
    connect(&server.url_as("nobody", "any")).ready(SOON).unwrap();
    server.acl(&["SETUSER", "default", "resetpass", ">hushed"]);
    let bare = format!("redis://{}/", server.address());
    assert_eq!(code(&reason(&connect(&bare), SOON)), "NOAUTH");
}

/// A server that replies to each command with this error, and to the handshake of a connection as usual
/// if `greets`.
fn refusing(error: &'static str, greets: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}/", listener.local_addr().unwrap());
    thread::spawn(move || {
        for peer in listener.incoming() {
            let mut peer = peer.unwrap();
            thread::spawn(move || {
                let mut bytes = [0; 4096];
                while let Ok(read @ 1..) = peer.read(&mut bytes) {
                    let text = String::from_utf8_lossy(&bytes[..read]).to_uppercase();
                    let replies = text.matches('*').count();
                    let is_greeting = greets && text.contains("PING");
                    let reply =
                        if is_greeting { "+PONG\r\n".to_owned() } else { format!("-{error}\r\n") };
                    if peer.write_all(reply.repeat(replies).as_bytes()).is_err() {
                        break;
                    }
                }
            });
        }
    });
    url
}

#[test]
fn a_server_that_replies_with_an_error_is_reported_with_its_code() {
    for error in [
        "LOADING Redis is loading the dataset in memory",
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        "BUSY Redis is busy running a script.",
        "MISCONF Redis is configured to save RDB snapshots, but it is currently unable to",
        "NOREPLICAS Not enough good replicas to write.",
    ] {
        let expected = error.split(' ').next().unwrap();
        for greets in [true, false] {
            let sessions = connect(&refusing(error, greets));
            for _ in 0..2 {
                let reason = reason(&sessions, SOON);
                assert_eq!(code(&reason), expected, "{reason}");
                assert_eq!(reason.kind(), ConnectionErrorKind::Refused, "{reason}");
            }
        }
    }
}

#[test]
fn a_replica_is_not_ready_and_is_when_it_becomes_the_master() {
    let (primary, other) = (Server::start(), Server::start());
    let sessions = connect(&other.url());
    sessions.ready(SOON).unwrap();
    let port = primary.port().to_string();
    other.ask::<()>(&["REPLICAOF", "127.0.0.1", &port]);
    // The connection from before is still there.
    assert_eq!(code(&reason(&sessions, SOON)), "READONLY");
    other.ask::<()>(&["REPLICAOF", "NO", "ONE"]);
    sessions.ready(SOON).unwrap();
}

/// As behind an address that leads to the master: connections from before stay with the former one.
#[test]
fn a_kept_connection_to_a_former_master_is_asked_no_longer() {
    let former = Server::start();
    let next = Server::replica_of(&former);
    let proxy = Proxy::to(&former);
    let [probed, resolved] = [(), ()].map(|()| connect(&proxy.url()));
    probed.ready(SOON).unwrap();
    resolved.ready(SOON).unwrap();
    let once = resolved.transactional().with(TransactionOptions::new().exactly_once());
    proxy.arm(Script::from((Trigger::BeforeReplyTo("EXEC"), Fault::Cut)).once());
    let mut tx = once.begin().unwrap();
    tx.incr("n", 1);
    let Err(Error::Commit(CommitError::InDoubt(doubt))) = tx.commit() else { panic!("no doubt") };
    eventually(SOON, "the replica has it", || next.ask::<Option<u64>>(&["GET", "n"]) == Some(1));

    next.ask::<()>(&["REPLICAOF", "NO", "ONE"]);
    former.ask::<()>(&["REPLICAOF", "127.0.0.1", &next.port().to_string()]);
    proxy.set_upstream(next.address());
    probed.ready(SOON).unwrap();
    assert_eq!(doubt.resolved(), Resolution::Committed);
}

#[test]
fn a_probe_after_a_restart_or_a_lost_connection_opens_another_one() {
    let server = Server::start();
    let sessions = connect(&server.url());
    sessions.ready(SOON).unwrap();
    server.kill_all_clients_except_me();
    sessions.ready(SOON).unwrap();
    server.sigterm_and_wait();
    assert_eq!(reason(&sessions, SOON).kind(), ConnectionErrorKind::Closed);
    server.restart_on_same_port();
    eventually(SOON, "it is ready again", || sessions.ready(SOON).is_ok());
    server.sigstop();
    let stopped = reason(&sessions, Duration::from_millis(300));
    server.sigcont();
    assert_eq!(stopped.kind(), ConnectionErrorKind::TimedOut, "{stopped}");
    sessions.ready(SOON).unwrap();
}

#[test]
fn many_callers_share_a_probe_and_each_keeps_its_own_time() {
    const CALLERS: usize = 40;
    let server = Server::start();
    let proxy = Proxy::to(&server);
    // The probe that is held up ends when it is released, and not before.
    let sessions = unhurried(SessionManager::builder(proxy.url())).build_side().unwrap();
    let (begun, ready) = (AtomicUsize::new(0), AtomicUsize::new(0));
    sessions.ready(SOON).unwrap();
    let before = server.calls("pexpire");
    proxy.arm(Script::from((Trigger::BeforeCommandNamed("PEXPIRE"), Fault::HoldRequests)).once());
    thread::scope(|scope| {
        for _ in 0..CALLERS {
            scope.spawn(|| {
                begun.fetch_add(1, Ordering::SeqCst);
                sessions.ready(LONG).unwrap();
                ready.fetch_add(1, Ordering::SeqCst);
            });
        }
        eventually(SOON, "all have begun", || begun.load(Ordering::SeqCst) == CALLERS);
        // A probe is under way now, and does not end.
        let late = reason(&sessions, Duration::from_millis(300));
        assert_eq!(late.kind(), ConnectionErrorKind::TimedOut, "{late}");
        assert_eq!(ready.load(Ordering::SeqCst), 0);
        proxy.disarm();
        proxy.release();
    });
    assert_eq!(ready.load(Ordering::SeqCst), CALLERS);
    let probes = server.calls("pexpire") - before;
    assert!(probes <= 5, "{probes} probes of {CALLERS} callers");
}

#[test]
fn a_probe_and_a_doubt_are_asked_one_after_the_other() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let sessions = connect(&proxy.url());
    let once = sessions.transactional().with(TransactionOptions::new().exactly_once());
    for _ in 0..5 {
        proxy.arm(Script::from((Trigger::BeforeReplyTo("EXEC"), Fault::Cut)).once());
        let mut tx = once.begin().unwrap();
        tx.incr("n", 1);
        let lost = tx.commit();
        let Err(Error::Commit(CommitError::InDoubt(doubt))) = lost else { panic!("no doubt") };
        proxy.disarm();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| sessions.ready(SOON).unwrap());
                scope.spawn(|| assert_eq!(doubt.resolved(), Resolution::Committed));
            }
        });
    }
    assert_eq!(server.ask::<i64>(&["GET", "n"]), 5);
}

#[test]
fn a_doubt_that_cannot_be_resolved_does_not_hide_the_reason() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let sessions = connect(&proxy.url());
    let once = sessions.transactional().with(TransactionOptions::new().exactly_once());
    proxy.arm(Script::from((Trigger::BeforeReplyTo("EXEC"), Fault::Cut)).once());
    let mut tx = once.begin().unwrap();
    tx.incr("n", 1);
    let Err(Error::Commit(CommitError::InDoubt(doubt))) = tx.commit() else { panic!("no doubt") };
    proxy.disarm();
    proxy.refuse_new(true);
    proxy.cut_all();
    thread::scope(|scope| {
        let resolution = scope.spawn(|| doubt.resolved());
        for _ in 0..5 {
            let reason = reason(&sessions, Duration::from_secs(2));
            assert_eq!(reason.kind(), ConnectionErrorKind::Closed, "{reason}");
        }
        proxy.refuse_new(false);
        assert_eq!(resolution.join().unwrap(), Resolution::Committed);
    });
}

#[test]
fn a_probe_proves_the_present_credentials() {
    let server = Server::start();
    server.acl(&["SETUSER", "app", "on", ">former", "~*", "&*", "+@all"]);
    let credentials = Arc::new(RotatingCredentials::new(Credentials::new("app", "former")));
    let sessions = SessionManager::builder(server.url())
        .credentials_provider(Arc::clone(&credentials))
        .trust_window(LONG)
        .build_side()
        .unwrap();
    sessions.ready(SOON).unwrap();
    credentials.rotate(Credentials::new("app", "latter"));
    assert_eq!(code(&reason(&sessions, SOON)), "WRONGPASS");
    server.acl(&["SETUSER", "app", ">latter"]);
    sessions.ready(SOON).unwrap();
}

#[test]
fn a_closed_manager_is_not_ready_and_keeps_no_connection() {
    let server = Server::start();
    let sessions = connect(&server.url());
    sessions.ready(SOON).unwrap();
    sessions.close(Duration::ZERO);
    assert!(matches!(sessions.ready(SOON), Err(Error::Checkout(CheckoutError::Closed))));
    eventually(SOON, "no connection is left", || server.clients() == 0);
    let sessions = connect(&server.url());
    sessions.ready(SOON).unwrap();
    drop(sessions);
    eventually(SOON, "no connection is left", || server.clients() == 0);
}

#[cfg(feature = "tls-rustls")]
#[test]
fn a_certificate_that_is_not_trusted_is_the_reason() {
    let tls = rediscope_testing::tls::TlsServer::start();
    let trusted = rediscope::Tls::new().root_certificates(tls.authority.pem());
    let sessions = SessionManager::builder(tls.url()).tls(trusted).build_side().unwrap();
    sessions.ready(SOON).unwrap();
    sessions.ready(SOON).unwrap();
    let refused = reason(&connect(&tls.url()), SOON);
    assert_eq!(refused.kind(), ConnectionErrorKind::Io, "{refused}");
    assert!(refused.to_string().contains("certificate"), "{refused}");
}

#[test]
fn a_cluster_is_ready_if_each_slot_has_a_master_that_replies() {
    use rediscope_testing::cluster::Cluster;

    let cluster = Cluster::start(3, 0);
    let sessions = connect(&cluster.url());
    for _ in 0..3 {
        sessions.ready(SOON).unwrap();
    }
    assert_eq!(sessions.status().transactional.size, 0);
    // The slots of one master move on: the map is out of date.
    cluster.migrate(0, 1);
    sessions.ready(SOON).unwrap();
    cluster.nodes()[2].server.sigstop();
    let silent = reason(&sessions, Duration::from_millis(400));
    cluster.nodes()[2].server.sigcont();
    assert_eq!(silent.kind(), ConnectionErrorKind::TimedOut, "{silent}");
    sessions.ready(SOON).unwrap();
    let slot = cluster.slot("key").to_string();
    for node in cluster.nodes().iter() {
        node.server.ask::<()>(&["CLUSTER", "DELSLOTS", &slot]);
    }
    eventually(SOON, "a slot without a master is noticed", || {
        sessions.ready(SOON).is_err_and(|error| format!("{error:#}").contains("CLUSTERDOWN"))
    });
}

#[test]
fn the_master_of_sentinels_is_asked() {
    use rediscope_testing::sentinel::{NAME, Sentinel};

    let server = Server::start();
    let sentinel = Sentinel::watching(&server, server.port(), None, "port {port}\n");
    let url = format!("redis+sentinel://127.0.0.1:{}/{NAME}", sentinel.port());
    let sessions = connect(&url);
    sessions.ready(SOON).unwrap();
    sessions.ready(SOON).unwrap();
    server.sigstop();
    let silent = reason(&sessions, Duration::from_millis(300));
    server.sigcont();
    assert_eq!(silent.kind(), ConnectionErrorKind::TimedOut, "{silent}");
    sessions.ready(SOON).unwrap();
    drop(sentinel);
    let unknown = connect(&url).ready(Duration::from_secs(2)).unwrap_err();
    assert!(format!("{unknown:#}").contains("sentinels"), "{unknown:#}");
}
