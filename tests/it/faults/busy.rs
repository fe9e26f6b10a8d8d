//! Connections in use: a busy one has no extra cost, and when it dies the returned outcome is true.
//!
//! Guarantee: in-doubt

use crate::fixture::{LONG, SOON, add_on};
use crate::side::{BuildSide as _, LANES, open_lanes, open_pooled_lanes};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::side::{SessionManager, Transactional};
use rediscope::prelude::*;
use rediscope::{CommitError, Error};

use rediscope_testing::proxy::Fault::Cut;
use rediscope_testing::proxy::Trigger::{AfterCommandNamed, BeforeReplyTo};
use rediscope_testing::proxy::{Proxy, Script, Which};
use rediscope_testing::server::Server;
use rediscope_testing::{eventually, unique};

/// The default `trust_window`.
const WINDOW: Duration = Duration::from_millis(5);

#[test]
fn a_busy_connection_pays_no_extra_round_trip() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    // A slow machine must not make a busy connection look idle.
    let builder = SessionManager::builder(proxy.url()).max_size(1).trust_window(LONG);
    let sessions = builder.build_side().unwrap();
    let (accounts, mut db) = (sessions.transactional(), sessions.pooled());
    accounts.run(|tx| Ok(tx.incr("n", 1))).unwrap();
    let _: i64 = db.incr("n", 1).unwrap();
    open_lanes(&sessions, "n");
    open_pooled_lanes(&sessions, "n");
    let turns = proxy.turns();
    (0..1000).for_each(|_| _ = accounts.run(|tx| Ok(tx.incr("n", 1))).unwrap());
    assert_eq!(proxy.turns() - turns, 1000, "transactions");
    let turns = proxy.turns();
    (0..1000).for_each(|_| db.incr::<_, _, ()>("n", 1).unwrap());
    assert_eq!(proxy.turns() - turns, 1000, "commands");
    assert_eq!(server.ask::<u64>(&["GET", "n"]), 2002);
}

/// The keys of transactions, one each, by what the transactions returned.
#[derive(Debug, Default)]
struct Reported {
    committed: Vec<String>,
    not_sent: Vec<String>,
    in_doubt: Vec<String>,
}

impl Reported {
    fn commit(&mut self, accounts: &Transactional) {
        let key = unique("key");
        let mut tx = accounts.begin().unwrap();
        tx.incr(&key, 1);
        match tx.commit() {
            Ok(_) => self.committed.push(key),
            Err(Error::Commit(CommitError::NotSent { .. })) => self.not_sent.push(key),
            Err(Error::Commit(CommitError::InDoubt(_))) => self.in_doubt.push(key),
            Err(error) => panic!("{error}"),
        }
    }
}

fn applied(server: &Server, keys: &[String]) -> Vec<Option<u32>> {
    keys.iter().map(|key| server.ask(&["GET", key])).collect()
}

#[test]
fn outcomes_on_connections_that_died_a_moment_ago_are_true() {
    type Kill = fn(&Server, &Proxy);
    let kills: [(&str, Kill); 3] = [
        ("killed", |server, _| _ = server.kill_all_clients_except_me()),
        ("cut", |_, proxy| proxy.cut_all()),
        ("reset", |_, proxy| proxy.reset_all()),
    ];
    thread::scope(|scope| {
        for (how, kill) in kills {
            scope.spawn(move || dies_around_commits(200, how, kill));
        }
    });
}

/// Each round uses a connection, kills it up to 5 ms later, and uses it again up to 5 ms later.
fn dies_around_commits(rounds: usize, how: &str, kill: fn(&Server, &Proxy)) {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let sessions = SessionManager::builder(proxy.url()).max_size(2).build_side().unwrap();
    let accounts = sessions.transactional();
    let mut reported = Reported::default();
    for _ in 0..rounds {
        reported.commit(&accounts);
        let used = Instant::now();
        let [killed, again] = [(); 2].map(|()| WINDOW.mul_f64(fastrand::f64()));
        // Not waiting for anything: these are the two ages that the round is about.
        let at =
            |age: Duration| thread::sleep((used + age).saturating_duration_since(Instant::now()));
        thread::scope(|scope| {
            scope.spawn(|| {
                at(killed);
                kill(&server, &proxy);
            });
            at(again);
            reported.commit(&accounts);
        });
    }
    crate::side::settled(&sessions);
    assert_eq!(sessions.status().transactional.in_use, 0);
    drop((accounts, sessions));
    eventually(SOON, "nothing is under way", || server.clients() == 0);
    let [committed, not_sent, in_doubt] =
        [&reported.committed, &reported.not_sent, &reported.in_doubt]
            .map(|keys| applied(&server, keys));
    let late = in_doubt.iter().filter(|value| **value == Some(1)).count();
    println!(
        "{how}: {} committed, {} not sent, {} in doubt of which {late} applied",
        committed.len(),
        not_sent.len(),
        in_doubt.len()
    );
    assert!(committed.iter().all(|value| *value == Some(1)), "{how}: committed {committed:?}");
    assert!(not_sent.iter().all(Option::is_none), "{how}: not sent {not_sent:?}");
    assert!(in_doubt.iter().all(|value| value.is_none_or(|n| n == 1)), "{how}: {in_doubt:?}");
    assert_eq!(committed.len() + not_sent.len() + in_doubt.len(), 2 * rounds);
}

#[test]
fn after_one_death_every_older_connection_is_checked_first() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let builder = SessionManager::builder(proxy.url()).trust_window(LONG);
    let sessions = builder.build_side().unwrap();
    let accounts = sessions.transactional();
    let scopes: Vec<_> = (0..8).map(|_| accounts.begin().unwrap()).collect();
    drop(scopes);
    open_lanes(&sessions, "n");
    // All eight are trusted, and so are the lanes. The first dies under its EXEC; the others at their check.
    // Without a check the transaction would be in doubt.
    proxy.arm(Script::from((AfterCommandNamed("EXEC"), Cut)).once());
    let guard = || -> Result<(), Error> {
        let mut tx = accounts.begin()?;
        tx.incr("n", 1);
        tx.commit().map(drop)
    };
    let first = guard();
    let in_doubt = |error: &Error| matches!(error.as_commit(), Some(CommitError::InDoubt(_)));
    assert!(first.as_ref().is_err_and(in_doubt), "{first:?}");
    proxy.arm((BeforeReplyTo("MULTI"), Cut));
    proxy.script(Which::All, Script::new());
    let run = |_| accounts.run(|tx| Ok(tx.incr("n", 1))).map(drop);
    let reported: Vec<_> = (0..8).map(|_| guard()).chain((0..LANES).map(run)).collect();
    assert!(reported.iter().all(Result::is_ok), "{reported:?}");
    assert_eq!(proxy.fired(), 8 + LANES);
    // The first one may have been applied.
    let n: usize = server.ask(&["GET", "n"]);
    assert!((8 + LANES..=9 + LANES).contains(&n), "{n}");
}

#[test]
fn connections_that_are_known_to_be_dead_cost_no_call_anything_though_all_are_trusted() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let builder = SessionManager::builder(proxy.url()).trust_window(LONG);
    let sessions = builder.build_side().unwrap();
    let accounts = sessions.transactional();
    let scopes: Vec<_> = (0..8).map(|_| accounts.begin().unwrap()).collect();
    drop(scopes);
    open_lanes(&sessions, "n");
    proxy.cut_all();
    for nth in 0..8 {
        add_on(nth % 2, &accounts, "n");
    }
    assert_eq!(server.ask::<u32>(&["GET", "n"]), 8);
}

#[test]
fn a_restart_costs_at_most_one_doubt_per_busy_connection() {
    const CONNECTIONS: u32 = 8;
    const KILLS: u32 = 12;
    let server = Server::start();
    // A lane has the blocks of several callers, and so may have several in doubt.
    let builder = SessionManager::builder(server.url()).max_size(CONNECTIONS).without_lanes();
    let sessions = builder.build_side().unwrap();
    let over = AtomicBool::new(false);
    // What each thread's calls returned: committed, in doubt.
    let reported: Vec<(String, u32, u32)> = thread::scope(|scope| {
        let busy = |_| {
            scope.spawn(|| {
                let (key, mut committed, mut in_doubt) = (unique("busy"), 0, 0);
                while !over.load(Ordering::Acquire) {
                    match sessions.transactional().run(|tx| Ok(tx.incr(&key, 1))) {
                        Ok(_) => committed += 1,
                        Err(error) => match error.as_commit() {
                            Some(CommitError::InDoubt(_)) => in_doubt += 1,
                            _ => panic!("{error}"),
                        },
                    }
                }
                (key, committed, in_doubt)
            })
        };
        let threads: Vec<_> = (0..CONNECTIONS).map(busy).collect();
        // Also if what follows fails.
        scopeguard::defer! { over.store(true, Ordering::Release) }
        for _ in 0..KILLS {
            // The same for a connection as a restart, but the counters survive it.
            let connects = sessions.status().transactional.counts.connects;
            server.kill_all_clients_except_me();
            eventually(SOON, "all of them work on new connections", || {
                let status = sessions.status().transactional;
                status.counts.connects >= connects + u64::from(CONNECTIONS)
            });
        }
        over.store(true, Ordering::Release);
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let doubts: u32 = reported.iter().map(|(_, _, in_doubt)| in_doubt).sum();
    println!("{doubts} in doubt over {KILLS} kills of {CONNECTIONS} connections");
    assert!(doubts <= KILLS * CONNECTIONS);
    for (key, committed, in_doubt) in reported {
        let value: u32 = server.ask(&["GET", &key]);
        assert!(
            (committed..=committed + in_doubt).contains(&value),
            "{value}: {committed}, {in_doubt}"
        );
    }
}
