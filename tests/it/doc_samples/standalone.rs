//! A restart of one server, as `docs/standalone.md` shows it.
//!
//! Guarantee: none

use crate::fixture::SOON;
use std::thread;
use std::time::Duration;

use rediscope::{Error, SessionManager, prelude::*};

use super::sample::{Log, abridged, block, plain};
use rediscope_testing::eventually;
use rediscope_testing::server::Server;

/// In the page's samples.
const PORT: u16 = 6379;

/// The report after the restart. The page leaves it out: every number is what it should be.
const AFTERWARDS: &str = "redis 127.0.0.1:6379\n\
pooled: 1 of 4 open, 0 in use, 1 idle, 0 waiting\n\
\x20\x202 checkouts, 0 commits, 0 conflicts, 0 discards, 0 retries, 0 in doubt, 0 resolved as committed, 0 resolved as not committed, 0 unresolved, 0 checkouts refused, 2 connects, 0 failed connects, 0 re-authentications, 1 replaced (1 closed)\n\
transactional: 1 of 4 open, 0 in use, 1 idle, 0 waiting\n\
\x20\x204 checkouts, 1 commits, 0 conflicts, 3 discards, 0 retries, 0 in doubt, 0 resolved as committed, 0 resolved as not committed, 0 unresolved, 0 checkouts refused, 4 connects, 1 failed connects, 0 re-authentications, 3 replaced (3 closed)";

#[track_caller]
fn same(shown: &[String], happened: &[String], port: u16) {
    let shown = plain(shown.iter().map(String::as_str), PORT);
    let happened = plain(happened.iter().map(String::as_str), port);
    let happened = abridged(&happened, &shown);
    assert_eq!(shown, happened, "\n--- happened:\n{}", happened.join("\n"));
}

/// The same lines in any order: two threads write them.
#[track_caller]
fn same_lines(shown: &[String], happened: &[String], port: u16) {
    let lines = |lines: &[String], port| {
        let lines = plain(lines.iter().map(String::as_str), port);
        lines.into_iter().collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(lines(shown, PORT), lines(happened, port));
}

/// Without how often it was tried: as often as the restart took long.
fn untimed(report: &str) -> Vec<String> {
    let line = |line: &str| {
        let mut parts: Vec<_> = line.split(", ").map(str::to_owned).collect();
        for part in &mut parts {
            if part.ends_with(" failed connects") {
                *part = "some failed connects".to_owned();
            }
        }
        parts.join(", ")
    };
    report.lines().map(line).collect()
}

#[test]
fn a_restart_looks_as_the_page_shows_it() {
    rediscope_testing::own_process!();
    let log = Log::listen();
    let server = Server::start();
    let sessions = SessionManager::builder(server.url()).max_size(4).build().unwrap();
    let (mut db, accounts) = (sessions.pooled(), sessions.transactional());
    let _: i64 = db.incr("n", 1).unwrap();
    let open: Vec<_> = (0..3).map(|_| accounts.begin().unwrap()).collect();
    drop(open);
    log.take();
    server.sigterm_and_wait();
    let calling = thread::spawn(move || accounts.run(|tx| Ok(tx.incr("n", 1))));
    eventually(SOON, "it found no server", || {
        sessions.status().transactional.counts.connect_failures > 0
    });
    let meanwhile = sessions.status().to_string();
    server.restart_on_same_port();
    assert_eq!(calling.join().unwrap().unwrap(), 1);
    let _: i64 = db.incr("n", 1).unwrap();
    let after = sessions.status().to_string();

    let port = server.port();
    same_lines(&block("standalone", "at `debug` and above:"), &log.take_with(" connected "), port);
    let shown = block("standalone", "While it is away:").join("\n");
    same(&untimed(&shown), &untimed(&meanwhile), port);
    same(&untimed(AFTERWARDS), &untimed(&after), port);
}

#[test]
fn a_wait_longer_than_a_checkout_is_reported_as_the_page_shows() {
    rediscope_testing::own_process!();
    let _log = Log::listen();
    let server = Server::start();
    let sessions = SessionManager::builder(server.url())
        .connect_timeout(Duration::from_millis(100))
        .response_timeout(Duration::from_millis(100))
        .checkout_timeout(Duration::from_millis(300))
        .build()
        .unwrap();
    server.sigkill();
    let error: Error = sessions.transactional().run(|tx| Ok(tx.incr("n", 1))).unwrap_err();
    let text = format!("{error:#}").replace(&format!(":{} ", server.port()), ":6379 ");
    let (before, _) = text.split_once("after ").unwrap();
    let (_, behind) = text.split_once("s: ").unwrap();
    let shown = block("standalone", "fails with:").join("\n");
    assert!(shown.starts_with(before) && shown.ends_with(behind), "{text}");
}

#[test]
fn a_socket_and_an_ipv6_address_are_named_as_the_page_shows() {
    rediscope_testing::own_process!();
    let _log = Log::listen();
    let server = Server::start();
    let path = server.unix_url();
    let path = path.trim_start_matches("redis+unix://");
    let sessions = SessionManager::connect(format!("redis+unix://{path}?db=1")).unwrap();
    let _: i64 = sessions.pooled().incr("n", 1).unwrap();
    let first = |sessions: &SessionManager| {
        sessions.status().to_string().lines().next().unwrap().to_owned()
    };
    assert_eq!(first(&sessions), format!("redis {path}"));
    let six = SessionManager::connect("redis://[::1]:6379/").unwrap();
    let shown = block("standalone", "The report calls them:");
    assert_eq!(shown, ["redis /run/redis/redis.sock".to_owned(), first(&six)]);
}
