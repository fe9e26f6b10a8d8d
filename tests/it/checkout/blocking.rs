//! Commands that wait on the server: a close ends them, and reports name them as holders of connections.
//!
//! Guarantee: ends

use crate::fixture::{LARGE_SLACK, SOON};
use std::panic::Location;
use std::thread;
use std::time::{Duration, Instant};

use rediscope::error::{Applied, CheckoutError, ConnectionErrorKind};
use rediscope::{Builder, CommitError, Error, SessionManager, prelude::*, redis};

use super::fail_fast;
use rediscope_testing::cluster::Cluster;
use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Proxy, Trigger};
use rediscope_testing::server::Server;

/// Commands that wait for a minute, on keys of one slot, and whether they change anything.
const WAITING: [(&str, Applied); 12] = [
    ("BLPOP {j}obs 60", Applied::Unknown),
    ("brpop {j}obs 60", Applied::Unknown),
    ("BRPOPLPUSH {j}obs {j}done 60", Applied::Unknown),
    ("BLMOVE {j}obs {j}done LEFT RIGHT 60", Applied::Unknown),
    ("BLMPOP 60 1 {j}obs LEFT", Applied::Unknown),
    ("BZPOPMIN {j}scores 60", Applied::Unknown),
    ("BZPOPMAX {j}scores 60", Applied::Unknown),
    ("BZMPOP 60 1 {j}scores MIN", Applied::Unknown),
    ("XREADGROUP GROUP g me BLOCK 60000 STREAMS {j}stream >", Applied::Unknown),
    ("WAIT 1 60000", Applied::Unknown),
    ("XREAD BLOCK 60000 STREAMS {j}stream $", Applied::No),
    // A pipeline with one of them in it.
    ("SET {j}before 1|BLPOP {j}obs 60", Applied::Unknown),
];

fn ask(db: &mut impl redis::ConnectionLike, text: &str) -> redis::RedisResult<redis::Value> {
    let command = |text: &str| {
        let mut words = text.split(' ');
        let mut command = redis::cmd(words.next().unwrap());
        for word in words {
            command.arg(word);
        }
        command
    };
    match text.split_once('|') {
        None => command(text).query(db),
        Some((one, two)) => {
            redis::pipe().add_command(command(one)).add_command(command(two)).query(db)
        }
    }
}

/// All of them at once; then a close, and a job pushed afterwards.
fn ends_them_all(transport: &str, builder: Builder, direct: &mut impl redis::ConnectionLike) {
    ask(direct, "DEL {j}obs {j}scores {j}stream").unwrap();
    ask(direct, "XGROUP CREATE {j}stream g $ MKSTREAM").unwrap();
    let sessions = builder.max_size(16).checkout_timeout(SOON).build().unwrap();
    let calls = WAITING.map(|(text, applied)| {
        let mut db = sessions.pooled();
        (text, applied, thread::spawn(move || ask(&mut db, text).map_err(Error::from)))
    });
    eventually(SOON, "all of them wait", || {
        sessions.open_scopes().iter().filter(|scope| scope.blocking.is_some()).count()
            == WAITING.len()
    });
    // Named before they are sent, they wait there a moment later.
    eventually(SOON, "on the server too", || {
        let info: String = redis::cmd("INFO").arg("clients").query(direct).unwrap();
        let blocked = info.lines().find_map(|line| line.strip_prefix("blocked_clients:"));
        blocked.unwrap().trim() == WAITING.len().to_string()
    });
    let begun = Instant::now();
    let left = sessions.close(Duration::MAX);
    assert!(begun.elapsed() < LARGE_SLACK, "{transport}: {:?}", begun.elapsed());
    assert_eq!(left.scopes, 0);
    for (text, applied, call) in calls {
        match call.join().unwrap() {
            Err(Error::Lost { during, applied: reported, source, .. }) => {
                assert_eq!(
                    (source.kind(), reported),
                    (ConnectionErrorKind::Closed, applied),
                    "{text}"
                );
                assert!(source.to_string().contains("manager was closed"), "{text}: {source}");
                let first = text.split(' ').next().unwrap().to_uppercase();
                assert_eq!(during.to_uppercase(), first);
            }
            other => panic!("{transport}, {text}: {other:?}"),
        }
    }
    let job: i64 = redis::cmd("RPUSH").arg("{j}obs").arg("job").query(direct).unwrap();
    assert_eq!(job, 1, "{transport}: no closed command takes it");
    let _: () = redis::cmd("DEL").arg("{j}obs").query(direct).unwrap();
    let late = ask(&mut sessions.pooled(), "BLPOP {j}obs 60").map_err(Error::from);
    assert!(matches!(late, Err(Error::Checkout(CheckoutError::Closed))), "{late:?}");
}

#[test]
fn close_ends_commands_that_wait_on_the_server_at_once() {
    let server = Server::start();
    let mut direct = server.connection();
    let to = |url: &str| SessionManager::builder(url);
    ends_them_all("TCP", to(&server.url()), &mut direct);
    ends_them_all("RESP3", to(&format!("{}?protocol=resp3", server.url())), &mut direct);
    ends_them_all("a unix socket", to(&server.unix_url()), &mut direct);
    #[cfg(feature = "tls-rustls")]
    {
        let tls = rediscope_testing::tls::TlsServer::start();
        let trusted = rediscope::Tls::new().root_certificates(tls.authority.pem());
        ends_them_all("TLS", to(&tls.url()).tls(trusted), &mut tls.server.connection());
    }
}

#[test]
fn close_ends_commands_that_wait_in_a_cluster_at_once() {
    let cluster = Cluster::start(3, 0);
    let sessions = SessionManager::builder(cluster.url()).build().unwrap();
    let calls: Vec<_> = ["a", "b", "c", "d", "e"]
        .map(|key| {
            let mut db = sessions.pooled();
            thread::spawn(move || db.blpop::<_, Option<(String, String)>>(key, 60.0))
        })
        .into();
    eventually(SOON, "they wait", || {
        cluster.sum(|node| node.info("blocked_clients").unwrap().parse().unwrap()) == 5
    });
    let begun = Instant::now();
    sessions.close(SOON);
    assert!(begun.elapsed() < LARGE_SLACK);
    for call in calls {
        let error = Error::from(call.join().unwrap().unwrap_err());
        assert_eq!(error.applied(), Applied::Unknown, "{error}");
    }
}

#[test]
fn a_checkout_that_times_out_names_the_commands_that_wait() {
    let server = Server::start();
    let sessions = fail_fast(&server).max_size(2).build().unwrap();
    let (mut db, line) = (sessions.pooled(), line!());
    let place = format!("{}:{line}", Location::caller().file());
    let waits = |text: &'static str, name: &str| {
        let mut db = db.clone();
        let named = thread::Builder::new().name(name.to_owned());
        named.spawn(move || ask(&mut db, text).map_err(Error::from)).unwrap()
    };
    let calls = [waits("BLPOP jobs 60", "consumer"), waits("WAIT 1 60000", "waiter")];
    eventually(SOON, "both wait", || sessions.open_scopes().len() == 2);
    let error = Error::from(db.get::<_, Option<i64>>("a").unwrap_err());
    let Error::Checkout(CheckoutError::Timeout(timeout)) = &error else { panic!("{error}") };
    let mut held: Vec<_> = timeout.holders.iter().map(ToString::to_string).collect();
    held.sort();
    for (held, (command, thread)) in held.iter().zip([("BLPOP", "consumer"), ("WAIT", "waiter")]) {
        for part in [command, &format!("{place}:"), &format!("{thread:?}")] {
            assert!(held.contains(part), "{held} does not name {part}");
            assert!(error.to_string().contains(part), "{error} does not name {part}");
        }
    }
    assert!(!error.to_string().contains("jobs"), "{error}");
    sessions.close(Duration::ZERO);
    calls.into_iter().for_each(|call| drop(call.join().unwrap().unwrap_err()));
    assert_eq!(sessions.open_scopes().len(), 0);
}

#[test]
fn a_call_that_is_under_way_ends_with_the_timeout_of_close() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let builder = SessionManager::builder(proxy.url());
    let builder = builder.response_timeout(SOON / 4).checkout_timeout(SOON);
    let sessions = builder.build().unwrap();
    let accounts = sessions.transactional();
    accounts.run(|tx| Ok(tx.incr("a", 1))).unwrap();
    proxy.arm((Trigger::BeforeReplyTo("EXEC"), Fault::BlackHole));
    let call = thread::spawn(move || accounts.run(|tx| Ok(tx.incr("a", 1))));
    eventually(SOON, "it was applied", || server.ask::<i64>(&["GET", "a"]) == 2);
    let begun = Instant::now();
    let limit = Duration::from_millis(200);
    sessions.close(limit);
    let error = call.join().unwrap().unwrap_err();
    assert!(begun.elapsed() >= limit && begun.elapsed() < SOON / 4, "{:?}", begun.elapsed());
    assert!(matches!(error.as_commit(), Some(CommitError::InDoubt(_))), "{error}");
}
