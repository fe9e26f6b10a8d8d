//! `reading()`: reads and a commit on one connection, watching nothing.
//!
//! Guarantee: reads

use rediscope::prelude::*;
use rediscope::{Error, Outcome};

use crate::fixture::proxied::{Proxied, client_ids, get, pool_is_whole};

#[test]
fn reads_and_the_commit_share_one_connection_and_nothing_is_watched() {
    let fixture = Proxied::start();
    let (sessions, server) = (fixture.trusting(), &fixture.server);
    server.ask::<()>(&["SET", "n", "41"]);
    let before = client_ids(server);
    let mut reading = sessions.transactional().reading().begin().unwrap();
    assert_eq!(reading.attempt(), 1);
    let n: i64 = reading.get("n").unwrap();
    let id: i64 = server.ask::<Option<i64>>(&["GET", "none"]).unwrap_or(n);
    assert_eq!(id, 41);
    // What was read may have changed by the time of the commit: that is no conflict.
    server.ask::<()>(&["SET", "n", "0"]);
    let mut tx = reading.multi();
    tx.set("n", n + 1);
    assert!(matches!(tx.commit().unwrap(), Outcome::Committed(_)));
    assert_eq!(get(server, "n").unwrap(), "42");
    assert_eq!(fixture.journal(), ["GET", "MULTI", "SET", "EXEC"]);
    assert_eq!(client_ids(server), before);
    pool_is_whole(&sessions, server);
}

#[test]
fn a_reading_block_runs_once_and_sends_neither_watch_nor_unwatch() {
    let fixture = Proxied::start();
    let (sessions, server) = (fixture.trusting(), &fixture.server);
    let mut runs = 0;
    let left = sessions.transactional().reading().run(|read, tx| {
        runs += 1;
        let keys: Vec<String> = read.query(redis::cmd("KEYS").arg("*").take())?;
        server.ask::<()>(&["SET", "n", "5"]);
        Ok((Ready(keys.len()), tx.incr("n", 1)))
    });
    assert_eq!((left.unwrap(), runs), ((0, 6), 1));
    let nothing: Result<(), Error> = sessions.transactional().reading().run(|read, _| {
        read.get::<_, i64>("n")?;
        Ok(())
    });
    nothing.unwrap();
    drop(sessions.transactional().reading().begin().unwrap());
    assert_eq!(fixture.journal(), ["KEYS", "MULTI", "INCRBY", "EXEC", "GET"]);
    assert_eq!((server.calls("watch"), server.calls("unwatch")), (0, 0));
    pool_is_whole(&sessions, server);
}

#[test]
fn a_read_on_a_connection_that_died_is_sent_again_on_another_one() {
    let fixture = Proxied::start();
    let (sessions, server) = (fixture.doubting(), &fixture.server);
    server.ask::<()>(&["SET", "n", "1"]);
    let mut reading = sessions.transactional().reading().begin().unwrap();
    for _ in 0..3 {
        server.kill_all_clients_except_me();
        assert_eq!(reading.get::<_, i64>("n").unwrap(), 1);
    }
    server.kill_all_clients_except_me();
    let mut tx = reading.multi();
    tx.incr("n", 1);
    assert!(!tx.commit().unwrap().is_conflict());
    assert_eq!(get(server, "n").unwrap(), "2");
    pool_is_whole(&sessions, server);
}
