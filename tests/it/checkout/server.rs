//! A server that goes, comes back or changes its role, and connections that reach their age limits.
//!
//! Guarantee: dead-connections

use crate::fixture::SOON;
use crate::fixture::short_timeouts::{CHECKOUT, short_timeouts};
use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use rediscope::status::CloseReason;
use rediscope::{SessionManager, prelude::*, redis};

use super::{open_connections, patient};
use rediscope_testing::eventually;
use rediscope_testing::proxy::Proxy;
use rediscope_testing::server::Server;

#[test]
fn a_server_that_is_down_is_not_stormed() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    proxy.refuse_new(true);
    let sessions = short_timeouts(SessionManager::builder(proxy.url())).build().unwrap();
    let accounts = sessions.transactional();
    for _ in 0..3 {
        accounts.begin().map(drop).unwrap_err();
    }
    // One try is under way, with pauses of 0, 0.25 s, 0.25 s, … One for each permit would be eight.
    let most = 3 * CHECKOUT.as_millis() / 250 + 4;
    assert!(u128::from(proxy.accepted()) <= most, "{} tries", proxy.accepted());
}

#[test]
fn a_server_that_comes_back_serves_every_waiting_caller() {
    let server = Server::start();
    server.sigterm_and_wait();
    let sessions = patient(&server).max_size(2).build().unwrap();
    let accounts = sessions.transactional();
    let callers: Vec<_> = (0..6)
        .map(|_| {
            let accounts = accounts.clone();
            thread::spawn(move || accounts.run(|tx| Ok(tx.incr("a", 1))))
        })
        .collect();
    eventually(SOON, "two try to connect and four wait", || {
        let status = sessions.status().transactional;
        (status.in_use, status.waiting) == (2, 4) && status.last_connect_error.is_some()
    });
    server.restart_on_same_port();
    let served: BTreeSet<i64> =
        callers.into_iter().map(|caller| caller.join().unwrap().unwrap()).collect();
    assert_eq!(served, (1..=6).collect());
    assert!(sessions.status().transactional.last_connect_error.is_none());
}

#[test]
fn a_connection_past_its_lifetime_is_replaced() {
    let server = Server::start();
    let lifetime = Duration::from_millis(200);
    let sessions = patient(&server).max_lifetime(Some(lifetime)).build().unwrap();
    let (mut db, accounts) = (sessions.pooled(), sessions.transactional());
    let begun = Instant::now();
    let (mut pooled, mut transactional) = (BTreeSet::<i64>::new(), BTreeSet::new());
    eventually(SOON, "three connections one after the other", || {
        pooled.insert(redis::cmd("CLIENT").arg("ID").query(&mut db).unwrap());
        transactional.insert(accounts.run(|tx| Ok(client_id(tx))).unwrap());
        pooled.len() >= 3 && transactional.len() >= 3
    });
    assert!(begun.elapsed() >= 2 * lifetime * 9 / 10, "replaced before their time");
    let status = sessions.status();
    for pool in [status.pooled, status.transactional] {
        let lifetime = pool.counts.replaced.iter().find(|(why, _)| *why == CloseReason::Lifetime);
        assert!(lifetime.is_some_and(|(_, count)| *count >= 2), "{pool}");
        assert_eq!(pool.counts.all_replaced(), lifetime.unwrap().1, "{pool}");
    }
    assert!(server.clients() <= 2);
}

#[test]
fn a_connection_that_idles_for_too_long_is_closed() {
    let server = Server::start();
    let sessions = patient(&server).idle_timeout(Some(Duration::from_secs(1))).build().unwrap();
    open_connections(&sessions.transactional(), 3);
    assert_eq!(server.clients(), 3);
    // r2d2 looks after them every 30 seconds.
    eventually(2 * SOON, "idle connections are closed", || server.clients() == 0);
    assert_eq!(sessions.status().transactional.size, 0);
    sessions.transactional().run(|tx| Ok(tx.incr("a", 1))).unwrap();
}

#[test]
fn min_idle_opens_connections_before_they_are_needed() {
    let server = Server::start();
    let sessions = patient(&server).max_size(4).min_idle(3).build().unwrap();
    // The server counts a connection before its handshake is over.
    eventually(SOON, "three a pool are open", || {
        let status = sessions.status();
        (status.pooled.idle, status.transactional.idle) == (3, 3)
    });
    assert_eq!(server.clients(), 6);
    assert_eq!(sessions.status().transactional.counts.checkouts, 0);
}

fn client_id(tx: &mut impl QueueCommands) -> Queued<i64> {
    tx.queue(redis::cmd("CLIENT").arg("ID").take())
}
