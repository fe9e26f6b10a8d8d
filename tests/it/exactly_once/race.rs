//! Many threads, sessions and processes with the same keys, and a network that loses replies: each
//! key is committed once.
//!
//! Guarantee: exactly-once

use crate::fixture::SOON;
use crate::side::BuildSide as _;
use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::side::{SessionManager, Transactional};
use fastrand::Rng;
use rediscope::error::Applied;
use rediscope::prelude::*;
use rediscope::{CommitError, TransactionOptions};

use rediscope_testing::eventually;
use rediscope_testing::proxy::{Fault, Proxy, Script, Trigger};
use rediscope_testing::server::Server;

const THREADS: usize = 16;
const ROUNDS: usize = 100;
const HOUR: Duration = Duration::from_secs(3600);
/// Variable with the server's address, when this test program is the other process.
const THERE: &str = "REDISCOPE_RACE_URL";

fn session(url: &str) -> SessionManager {
    SessionManager::builder(url)
        .max_size(8)
        .connect_timeout(Duration::from_millis(500))
        .response_timeout(Duration::from_millis(300))
        .checkout_timeout(Duration::from_secs(5))
        .build_side()
        .unwrap()
}

/// Whether the call returned that it was the one.
fn race(handle: &Transactional, round: usize) -> Applied {
    let once = TransactionOptions::new().exactly_once_as(format!("round:{round}"), HOUR);
    match handle.with(once).run(|tx| Ok(tx.incr(format!("n:{round}"), 1))) {
        Ok(_) => Applied::Yes,
        Err(error) => match error.as_commit() {
            // A later caller has the proof.
            Some(CommitError::AlreadyCommitted | CommitError::NotSent { .. }) => Applied::No,
            Some(CommitError::InDoubt(_)) => Applied::Unknown,
            None if error.applied() != Applied::Unknown => error.applied(),
            _ => panic!("{error:?}"),
        },
    }
}

/// Every thread tries every round.
fn race_all(sessions: &[SessionManager], threads: usize) -> Vec<(usize, Applied)> {
    let run = |nth: usize| {
        let handle = sessions.iter().cycle().nth(nth).unwrap().transactional();
        (0..ROUNDS).map(move |round| (round, race(&handle, round)))
    };
    std::thread::scope(|scope| {
        let racers: Vec<_> =
            (0..threads).map(|nth| scope.spawn(move || run(nth).collect::<Vec<_>>())).collect();
        racers.into_iter().flat_map(|racer| racer.join().unwrap()).collect()
    })
}

#[track_caller]
fn one_winner_a_round(server: &Server, reported: &[(usize, Applied)]) {
    for round in 0..ROUNDS {
        let count = |what| reported.iter().filter(|reported| **reported == (round, what)).count();
        let (yes, unknown) = (count(Applied::Yes), count(Applied::Unknown));
        let applied: i64 = server.ask(&["GET", &format!("n:{round}")]);
        assert_eq!(applied, 1, "round {round}");
        assert!(yes <= 1 && yes + unknown >= 1, "round {round}: {yes} won, {unknown} do not know");
    }
}

/// Cuts and holds, each once, some at the same time.
fn weather(random: &mut Rng) -> Script {
    let mut script = Script::new();
    for _ in 0..random.usize(1..=3) {
        let trigger = match random.u8(0..6) {
            0 => Trigger::BeforeCommandNamed("EXEC"),
            1 => Trigger::BeforeReplyTo("EXEC"),
            2 => Trigger::AfterReplyTo("EXEC"),
            3 => Trigger::BeforeReplyTo("EXISTS"),
            4 => Trigger::InsideCommandNamed("EXEC", random.u64(1..14)),
            _ => Trigger::ClientBytes(random.u64(1..1500)),
        };
        let fault = match random.u8(0..4) {
            0 => Fault::HoldRequests,
            1 => Fault::Reset,
            _ => Fault::Cut,
        };
        script = script.on(trigger, fault);
    }
    script.once()
}

#[test]
fn of_sixteen_threads_in_two_sessions_one_commits_however_the_network_is() {
    let server = Server::start();
    let proxy = Proxy::to(&server);
    let sessions = [session(&proxy.url()), session(&proxy.url())];
    let mut random = Rng::with_seed(4711);
    std::thread::scope(|scope| {
        let racing = scope.spawn(|| race_all(&sessions, THREADS));
        while !racing.is_finished() {
            proxy.arm(weather(&mut random));
            // What was held arrives late, when another caller may have won.
            let fired = proxy.fired();
            rediscope_testing::try_for(Duration::from_millis(20), || {
                (proxy.fired() > fired + 1 || racing.is_finished()).then_some(())
            });
            if random.u8(0..3) == 0 {
                proxy.release();
            }
        }
        proxy.disarm();
        proxy.release();
        one_winner_a_round(&server, &racing.join().unwrap());
    });
    assert!(proxy.fired() > 5, "{} faults", proxy.fired());
}

/// Is itself the other process where it finds an address to race at.
#[test]
fn of_two_processes_one_commits() {
    if let Ok(url) = std::env::var(THERE) {
        let sessions = [session(&url)];
        let mut db = sessions[0].pooled();
        let () = db.set("ready", 1).unwrap();
        let go = || db.get::<_, Option<i64>>("go").unwrap().is_some();
        eventually(SOON, "the other process is ready", go);
        for (round, applied) in race_all(&sessions, 4) {
            println!("raced {round} {applied:?}");
        }
        return;
    }
    let server = Server::start();
    let sessions = [session(&server.url())];
    let other = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "exactly_once::race::of_two_processes_one_commits", "--nocapture"])
        .env(THERE, server.url())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    eventually(SOON, "the other process is there", || server.ask(&["EXISTS", "ready"]));
    server.ask::<()>(&["SET", "go", "1"]);
    let mut reported = race_all(&sessions, 4);
    let output = other.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let words = BTreeMap::from([("Yes", Applied::Yes), ("No", Applied::No)]);
    let heard: Vec<_> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .filter_map(|line| {
            let (round, applied) = line.split_once("raced ")?.1.split_once(' ')?;
            Some((round.parse().unwrap(), words[applied]))
        })
        .collect();
    assert_eq!(heard.len(), 4 * ROUNDS, "the other process raced");
    reported.extend(heard);
    one_winner_a_round(&server, &reported);
}
