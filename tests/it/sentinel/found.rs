//! The master is found by its name, and a failed search returns the reason.
//!
//! Guarantee: sentinels

use crate::fixture::SOON;
use crate::side::{BuildSide as _, SessionManager};
use std::time::{Duration, Instant};

use rediscope::error::{CheckoutError, ConfigError, ConnectionErrorKind};
use rediscope::prelude::*;
use rediscope::{Error, TransactionOptions};

use rediscope_testing::eventually;
use rediscope_testing::sentinel::{Group, NAME, Sentinel, clients};

const CHECKOUT: Duration = Duration::from_secs(4);

fn refused(builder: rediscope::Builder) -> rediscope::error::ConnectionError {
    let sessions = builder
        .connect_timeout(Duration::from_secs(1))
        .response_timeout(Duration::from_secs(1))
        .checkout_timeout(CHECKOUT)
        .build_side()
        .unwrap();
    match sessions.transactional().begin() {
        Err(Error::Checkout(CheckoutError::Connect { source, .. })) => source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_master_is_found_by_its_name_and_everything_goes_to_it() {
    let group = Group::start();
    let sessions = SessionManager::connect(group.url()).unwrap();
    let accounts = sessions.transactional();
    let two = TransactionOptions::new().exactly_once().wait_replicas(2, Duration::from_secs(5));
    assert_eq!(accounts.with(two).run(|tx| Ok(tx.incr("a", 1))).unwrap(), 1);
    let watched = accounts.watch(["a"]).run(|read, tx| {
        let a: i64 = read.get("a")?;
        Ok(tx.incr("b", a + 1))
    });
    assert_eq!(watched.unwrap(), 2);
    let mut db = sessions.pooled();
    let b: i64 = db.get("b").unwrap();
    assert_eq!((b, group.servers[0].ask::<i64>(&["GET", "b"])), (2, 2));
    drop(sessions.lock("name").acquire(Duration::from_secs(5)).unwrap());
    let status = sessions.status();
    assert_eq!(status.server, format!("{NAME} at 127.0.0.1:{}", group.servers[0].port()));
    assert!(clients(&group.servers[1]) + clients(&group.servers[2]) == 0, "{status}");
}

#[test]
fn reads_go_to_replicas_and_nothing_else_does() {
    let group = Group::start();
    group.servers[0].ask::<()>(&["SET", "k", "v"]);
    group.servers[0].ask::<i64>(&["WAIT", "2", "5000"]);
    let sessions = SessionManager::connect(group.url()).unwrap();
    let mut reads = sessions.replica_reads();
    let before = group.servers[0].calls("get");
    for _ in 0..20 {
        let value: String = reads.get("k").unwrap();
        assert_eq!(value, "v");
    }
    let on_replicas: u64 = group.servers[1..].iter().map(|one| one.calls("get")).sum();
    assert_eq!((on_replicas, group.servers[0].calls("get")), (20, before));
    let refused = Error::from(redis_error(reads.set("k", "w")));
    assert!(matches!(refused, Error::Refused { .. }), "{refused}");
    assert_eq!(group.servers[0].ask::<String>(&["GET", "k"]), "v");
    assert_eq!(sessions.status().replicas.map(|pool| pool.in_use), Some(0));
}

/// It replies to reads all the same.
#[test]
fn a_replica_that_is_out_of_step_is_read_no_longer() {
    let group = Group::start();
    let (master, replica) = (&group.servers[0], &group.servers[1]);
    master.ask::<()>(&["SET", "k", "old"]);
    master.ask::<i64>(&["WAIT", "2", "5000"]);
    // Each takes one of the replicas.
    let sessions = (0..8).map(|_| SessionManager::connect(group.url()).unwrap());
    let sessions: Vec<_> = sessions.collect();
    let mut reads: Vec<_> = sessions.iter().map(SessionManager::replica_reads).collect();
    let mut read = || reads.iter_mut().map(|db| db.get::<_, String>("k").unwrap()).collect();
    let before: Vec<_> = read();
    assert_eq!(before, ["old"; 8]);
    replica.config_set("masteruser", "nobody");
    replica.config_set("masterauth", "wrong");
    master.ask::<i64>(&["CLIENT", "KILL", "TYPE", "replica"]);
    eventually(SOON, "the other one is in step", || {
        group.servers[2].info("master_link_status").as_deref() == Some("up")
    });
    master.ask::<()>(&["SET", "k", "new"]);
    eventually(SOON, "the other one is read", || read() == ["new"; 8]);
    assert_eq!(replica.ask::<String>(&["GET", "k"]), "old");
}

fn redis_error(result: rediscope::redis::RedisResult<()>) -> rediscope::redis::RedisError {
    result.expect_err("refused")
}

#[test]
fn sentinels_and_servers_have_passwords_of_their_own() {
    let group = Group::with(&["--requirepass", "data", "--masterauth", "data"], Some("watch"));
    let with_login = group.url().replace("redis+sentinel://", "redis+sentinel://:data@");
    let sessions = SessionManager::connect(with_login.as_str()).unwrap();
    assert_eq!(sessions.transactional().run(|tx| Ok(tx.incr("a", 1))).unwrap(), 1);
    let sentinels: Vec<_> = group.sentinels.iter().map(|one| one.url()).collect();
    let built = SessionManager::sentinel(NAME, sentinels).server_info("redis://:data@any/3");
    let built = built.build_side().unwrap();
    assert_eq!(built.transactional().run(|tx| Ok(tx.incr("a", 1))).unwrap(), 1, "database 3");

    let begun = Instant::now();
    let wrong = refused(SessionManager::builder(with_login.replace("=watch", "=wrong")));
    assert_eq!(wrong.kind(), ConnectionErrorKind::Refused, "{wrong}");
    assert!(wrong.server_error().is_some_and(|error| error.code() == "WRONGPASS"), "{wrong}");
    let none = refused(SessionManager::builder(with_login.replace("?sentinel_password=watch", "")));
    assert!(none.server_error().is_some_and(|error| error.code() == "NOAUTH"), "{none}");
    let server = refused(SessionManager::builder(with_login.replace(":data@", ":secret@")));
    assert!(server.server_error().is_some_and(|error| error.code() == "WRONGPASS"), "{server}");
    let text = format!("{wrong} {none} {server} {sessions:?}");
    for secret in ["data@", "secret", "=watch", "wrong"] {
        assert!(!text.contains(secret), "{text}");
    }
    assert!(begun.elapsed() < 2 * CHECKOUT, "three verdicts are not waited for");
}

#[test]
fn a_name_that_no_sentinel_knows_and_sentinels_that_are_down_are_named_in_the_error() {
    let group = Group::start();
    let unknown = refused(SessionManager::builder(group.url().replace(NAME, "nobody")));
    assert_eq!(unknown.kind(), ConnectionErrorKind::Refused, "{unknown}");
    assert!(unknown.to_string().contains("nobody"), "{unknown}");
    let down = refused(SessionManager::builder("redis+sentinel://127.0.0.1:1,127.0.0.1:2/m"));
    assert_eq!(down.kind(), ConnectionErrorKind::Closed, "{down}");
    // One that is down or silent keeps no caller from asking the others.
    let mixed = group.url().replace("redis+sentinel://", "redis+sentinel://127.0.0.1:1,");
    let sessions = SessionManager::connect(mixed).unwrap();
    assert_eq!(sessions.transactional().run(|tx| Ok(tx.incr("a", 1))).unwrap(), 1);
}

/// Each sentinel is real: the one monitors a replica under the master's name.
#[test]
fn a_sentinel_that_names_a_replica_keeps_no_caller_from_the_master_that_others_name() {
    let group = Group::start();
    let (master, replica) = (&group.servers[0], &group.servers[1]);
    let wrong = Sentinel::watching(master, replica.port(), None, "");
    let first = format!("redis+sentinel://127.0.0.1:{},", wrong.port());
    let sessions = SessionManager::connect(group.url().replace("redis+sentinel://", &first));
    let sessions = sessions.unwrap();
    assert_eq!(sessions.transactional().run(|tx| Ok(tx.incr("a", 1))).unwrap(), 1);
    let mut db = sessions.pooled();
    assert_eq!(db.incr::<_, _, i64>("a", 1).unwrap(), 2);
    drop(sessions.lock("name").acquire(CHECKOUT).unwrap());
    let status = sessions.status();
    assert_eq!(status.server, format!("{NAME} at 127.0.0.1:{}", master.port()));
    assert!(clients(replica) == 0, "{status}");

    // Alone it leads to no master.
    let alone = format!("redis+sentinel://127.0.0.1:{}/{NAME}", wrong.port());
    let error = refused(SessionManager::builder(alone));
    assert_eq!(error.kind(), ConnectionErrorKind::Unexpected, "{error}");
    assert!(error.to_string().contains("not a master"), "{error}");
    assert_eq!(replica.ask::<i64>(&["GET", "a"]), 2);
}

#[test]
fn server_info_is_only_for_servers_that_sentinels_know() {
    let one = SessionManager::builder("redis://127.0.0.1/").server_info("redis://:pw@any/");
    let error = one.build_side().unwrap_err();
    assert_eq!(error.setting_name(), Some("server_info"));
    let none: [&str; 0] = [];
    let empty = SessionManager::sentinel("m", none).build_side().unwrap_err();
    assert!(matches!(empty, ConfigError::Address { .. }), "{empty}");
}

#[test]
fn the_documented_rights_are_enough_and_one_less_is_an_error() {
    let group = Group::start();
    for one in &group.sentinels {
        let rights = [
            "SETUSER",
            "watcher",
            "on",
            ">watch",
            "resetchannels",
            "&+switch-master",
            "-@all",
            "+sentinel|master",
            "+sentinel|get-master-addr-by-name",
            "+sentinel|replicas",
            "+subscribe",
            "+ping",
        ];
        let mut connection = rediscope_testing::connect(&one.url());
        rediscope::redis::cmd("ACL").arg(&rights).exec(&mut connection).unwrap();
    }
    for server in &group.servers {
        let rights = "+multi +exec +discard +watch +unwatch +ping +select +role +incrby";
        let mut user = vec!["SETUSER", "app", "on", ">secret", "~*", "-@all"];
        user.extend(rights.split(' '));
        server.acl(&user);
    }
    let url = group.url().replace("redis+sentinel://", "redis+sentinel://app:secret@");
    let url = format!("{url}?sentinel_username=watcher&sentinel_password=watch");
    let sessions = SessionManager::connect(url.as_str()).unwrap();
    assert_eq!(sessions.transactional().run(|tx| Ok(tx.incr("a", 1))).unwrap(), 1);
    let former = &group.servers[0];
    group.fail_over();
    eventually(Duration::from_secs(30), "the switch is known", || {
        !sessions.status().server.ends_with(&format!(":{}", former.port()))
    });
    for server in &group.servers {
        server.acl(&["SETUSER", "app", "-role"]);
    }
    let error = refused(SessionManager::builder(url));
    assert_eq!(error.server_error().map(|error| error.code()), Some("NOPERM"), "{error}");
}
