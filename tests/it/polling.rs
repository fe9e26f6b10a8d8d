//! A call that is alone polls for its reply before it sleeps.
//!
//! Guarantee: settings

use std::fs;
use std::thread;
use std::time::Duration;

use crate::fixture::SOON;
use redis::{Value, cmd};
use rediscope::redis;
use rediscope::{SessionManager, Transactional, prelude::*};

use rediscope_testing::eventually;
use rediscope_testing::own_process;
use rediscope_testing::proxy::Proxy;
use rediscope_testing::server::Server;

const CALLS: u64 = 60;
/// Longer than a thread takes to fall asleep.
const TRIP: Duration = Duration::from_millis(1);
/// The longest that may be set. A busy machine has nearly every reply within it.
const LIMIT: Duration = Duration::from_millis(10);

/// How often the calling thread has gone to sleep.
fn sleeps() -> u64 {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    count.unwrap().trim().parse().unwrap()
}

fn sleeps_of_calls(accounts: &Transactional) -> u64 {
    let before = sleeps();
    for _ in 0..CALLS {
        accounts.run(|tx| Ok((tx.incr("a", 1), tx.incr("b", 1)))).unwrap();
    }
    sleeps() - before
}

#[test]
fn a_call_polls_only_while_it_is_alone_and_where_that_was_asked_for() {
    own_process!();
    let server = Server::start();
    let proxy = Proxy::to(&server);
    proxy.set_delay(TRIP / 2);
    let off = SessionManager::connect(proxy.url()).unwrap();
    let on = SessionManager::builder(proxy.url()).poll(LIMIT).build().unwrap();
    let [without, with] = [&off, &on].map(SessionManager::transactional);
    // The connections are opened.
    let _ = [&without, &with].map(sleeps_of_calls);

    let (slept, polled) = (sleeps_of_calls(&without), sleeps_of_calls(&with));
    assert!(slept > CALLS / 2, "it sleeps by default: {slept} sleeps");
    assert!(polled < CALLS / 3, "it polls: {polled} sleeps");

    let beside_another = thread::scope(|scope| {
        // The other call is of another session manager, which does not poll.
        let mut pooled = off.pooled();
        let other =
            scope.spawn(move || cmd("BLPOP").arg("list").arg(20).query::<Value>(&mut pooled));
        let is_blocked = || server.info("blocked_clients").as_deref() == Some("1");
        eventually(SOON, "a blocked client", is_blocked);
        let beside_another = sleeps_of_calls(&with);
        let _: i64 = on.pooled().rpush("list", 1).unwrap();
        other.join().unwrap().unwrap();
        beside_another
    });
    assert!(beside_another > CALLS / 2, "another call is under way: {beside_another} sleeps");
    let polled = sleeps_of_calls(&with);
    assert!(polled < CALLS / 3, "it polls again: {polled} sleeps");
}
