//! The same contract over RESP3, over a unix socket, over IPv6, and in another database.
//!
//! Guarantee: committed

use crate::fixture::{LONG, SOON};
use crate::side::{BuildSide as _, SessionManager};
use rediscope::error::{Applied, ReplyError};
use rediscope::prelude::*;
use rediscope::{CommitError, Error, Outcome};

use super::rejected::rejected;
use crate::fixture::proxied::{assert_outcome, client_ids, commit_error, warm};
use rediscope_testing::server::Server;
use rediscope_testing::{eventually, not_run};

/// The contract's rows that need no broken connection, seen by another connection in `db`.
fn contract(server: &Server, url: &str, db: i64) {
    let builder = SessionManager::builder(url).max_size(1).trust_window(LONG);
    let sessions = builder.build_side().unwrap();
    let mut other = server.connection();
    redis::cmd("SELECT").arg(db).exec(&mut other).unwrap();
    let mut other = |words: &[&str]| -> redis::Value {
        redis::cmd(words[0]).arg(&words[1..]).query(&mut other).unwrap()
    };
    let int = redis::Value::Int;
    warm(&sessions);
    let ids = client_ids(server);
    let accounts = sessions.transactional();

    let committed = accounts.run(|tx| {
        tx.hset("hash", "field", "value");
        tx.zadd("board", "alice", 1.5);
        let all: Queued<std::collections::HashMap<String, String>> = tx.hgetall("hash");
        let score: Queued<Option<f64>> = tx.zscore("board", "alice");
        let none: Queued<Option<String>> = tx.get("none");
        Ok((all, score, none, tx.exists("hash"), tx.sismember("set", "nobody")))
    });
    let (all, score, none, exists, member) = committed.unwrap();
    assert_eq!((all["field"].as_str(), score, none), ("value", Some(1.5), None));
    assert_eq!((exists > 0.into(), member), (true, false));
    assert_eq!(other(&["HLEN", "hash"]), int(1));

    let watching = accounts.watch(["key"]).begin().unwrap();
    other(&["SET", "key", "changed"]);
    let mut tx = watching.multi();
    tx.set("done", 1);
    assert!(matches!(tx.commit(), Ok(Outcome::Conflict)));
    let mut watching = accounts.watch(["key"]).begin().unwrap();
    assert_eq!(watching.get::<_, String>("key").unwrap(), "changed");
    assert_eq!(watching.hgetall::<_, Vec<(String, String)>>("hash").unwrap().len(), 1);
    watching.abandon().unwrap();

    let error = commit_error(accounts.run(|tx| {
        tx.set("done", 1);
        Ok(tx.queue::<()>(redis::cmd("NOSUCH").arg("x").take()))
    }));
    assert_eq!(rejected(&error), (Some(1), "NOSUCH", "ERR"));
    assert_outcome(&error, Applied::No, false);
    assert_eq!(other(&["EXISTS", "done"]), int(0));

    let error = commit_error(accounts.run(|tx| {
        tx.lpush("key", "not a list");
        Ok(tx.set("partly", 1))
    }));
    assert_outcome(&error, Applied::Partly, false);
    match &error {
        Error::Commit(CommitError::PartlyApplied { replies, .. }) => {
            match replies.errors().next() {
                Some(ReplyError::Failed { index: 0, command, error, .. }) => {
                    assert_eq!((command.as_str(), error.code()), ("LPUSH", "WRONGTYPE"));
                }
                other => panic!("{other:?}"),
            }
        }
        error => panic!("{error:?}"),
    }
    assert_eq!(other(&["EXISTS", "partly"]), int(1));

    accounts.begin().unwrap().discard().unwrap();
    assert_eq!(accounts.run(|tx| Ok(tx.incr("n", 1))).unwrap(), 1);
    assert_eq!(other(&["GET", "n"]), redis::Value::BulkString(b"1".to_vec()));
    let lasting = client_ids(server);
    assert!(ids.is_subset(&lasting), "one connection did all of it");

    let mut db_handle = sessions.pooled();
    assert_eq!(redis::ConnectionLike::get_db(&db_handle), db);
    let n: i64 = db_handle.incr("n", 1).unwrap();
    assert_eq!(n, 2);
    let wrong = Error::from(db_handle.lpush::<_, _, ()>("n", 1).unwrap_err());
    assert!(matches!(&wrong, Error::Command { error, .. } if error.code() == "WRONGTYPE"));

    // Connections that died while idle, in both pools.
    server.kill_all_clients_except_me();
    let doubting = SessionManager::builder(url).trust_window(std::time::Duration::ZERO);
    let doubting = doubting.build_side().unwrap();
    for nth in 3..6 {
        server.kill_all_clients_except_me();
        assert_eq!(doubting.transactional().run(|tx| Ok(tx.incr("n", 1))).unwrap(), nth);
    }
    drop((sessions, doubting, db_handle, accounts));
    eventually(SOON, "every client is gone", || server.clients() == 0);
}

#[test]
fn resp3_keeps_the_contract() {
    let server = Server::start();
    contract(&server, &format!("{}?protocol=resp3", server.url()), 0);
}

#[test]
fn a_unix_socket_keeps_the_contract() {
    let server = Server::start();
    contract(&server, &server.unix_url(), 0);
}

#[test]
fn another_database_keeps_the_contract_and_stays_out_of_the_first() {
    let server = Server::start();
    contract(&server, &server.url_db(7), 7);
    assert_eq!(server.ask::<i64>(&["DBSIZE"]), 0);
}

#[test]
fn all_of_it_together_keeps_the_contract() {
    let server = Server::start();
    contract(&server, &format!("{}?db=3&protocol=resp3", server.unix_url()), 3);
    assert_eq!(server.ask::<i64>(&["DBSIZE"]), 0);
}

#[test]
fn an_ipv6_address_keeps_the_contract() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        not_run("there is no IPv6 loopback here");
        return;
    }
    // The test's own connections come by IPv4.
    let server = Server::with(&["--bind", "127.0.0.1", "::1"]);
    contract(&server, &format!("redis://[::1]:{}/", server.port()), 0);
}
