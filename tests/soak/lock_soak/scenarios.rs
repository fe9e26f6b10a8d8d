//! The faults of holders and of the server while the history is written.
//!
//! The server with the history has no faults.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use super::clients::{ACQUIRED, Asks, HISTORY, Orders, Other};
use super::history::{Entry, Verdict, check};
use super::side::SessionManager;
use fastrand::Rng;
use rediscope_testing::eventually;
use rediscope_testing::proxy::Proxy;
use rediscope_testing::server::Server;

pub(crate) const PROCESSES: u64 = 4;
const LEASE: Duration = Duration::from_millis(60);
/// Longer than a failover, which the lock must outlive.
pub(crate) const LONG_LEASE: Duration = Duration::from_secs(1);
/// Time by which the replica is behind. The leases that it has are over by then.
pub(crate) const BEHIND: Duration = Duration::from_millis(1_200);
/// Time between two restarts.
const RUNS: Duration = Duration::from_millis(400);
/// Time within which all holds of a scenario must happen.
pub(crate) const SCENARIO: Duration = Duration::from_secs(600);
/// Number of holds before a master is killed, and after.
const BEFORE: usize = 4;
const AFTER: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// Leases end under their holders.
    Expiry,
    /// Holders are stopped for longer than their lease.
    Stops,
    /// The server is killed, and comes back with what it had.
    Restarts,
    /// A semaphore, with holders that are stopped and leases that end.
    Permits,
    /// The negative control: the lock is taken from holders that go by their clock.
    Forced,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) what: String,
    pub(crate) seed: u64,
    /// How often it was done to a holder.
    pub(crate) done: u64,
    pub(crate) must_lose: bool,
    pub(crate) verdict: Verdict,
    pub(crate) took: Duration,
}

pub(crate) fn run(scenario: Scenario, seed: u64, holds: usize) -> Found {
    let begun = Instant::now();
    let mut random = Rng::with_seed(seed ^ scenario as u64);
    let server = match scenario {
        Scenario::Restarts => Server::with(&["--appendonly", "yes", "--appendfsync", "always"]),
        _ => Server::start(),
    };
    let recorder = Server::start();
    let permits = if scenario == Scenario::Permits { 3 } else { 1 };
    let orders = Orders {
        server: server.url(),
        recorder: recorder.url(),
        seed: random.u64(..),
        permits,
        lease: LEASE,
        step: LEASE / 4,
        slow: false,
        asks: if scenario == Scenario::Forced { Asks::Clock } else { Asks::Both },
        renewed: !matches!(scenario, Scenario::Expiry | Scenario::Permits),
        replicas: false,
    };
    let operator = SessionManager::connect(server.url()).unwrap().lock("l");
    let others: Vec<_> = (0..PROCESSES).map(|number| Other::start(number, &orders)).collect();
    let (mut done, must_lose) = (0, scenario != Scenario::Restarts);
    let lost = || check(&entries(&recorder), permits as usize).lost > 0;
    eventually(SCENARIO, "the lock goes round, and a holder loses it", || {
        thread::sleep(Duration::from_millis(random.u64(5..80)));
        match scenario {
            Scenario::Expiry => {}
            Scenario::Stops | Scenario::Permits => {
                let pause = LEASE.mul_f64(1.0 + 2.0 * random.f64());
                others[random.usize(..others.len())].stop_for(pause);
                done += 1;
            }
            Scenario::Restarts => {
                server.sigkill();
                server.restart_on_same_port();
                done += 1;
                thread::sleep(RUNS);
            }
            Scenario::Forced => done += u64::from(operator.force_release().unwrap()),
        }
        acquired(&recorder) >= holds && (!must_lose || lost())
    });
    end(others);
    Found {
        what: format!("{scenario:?}"),
        seed,
        done,
        must_lose,
        verdict: check(&entries(&recorder), permits as usize),
        took: begun.elapsed(),
    }
}

/// A master is killed under its holders and its only replica promoted, which was behind at the time.
pub(crate) fn fail_over(seed: u64, rounds: u64, asks: Asks, replicas: bool) -> Found {
    let begun = Instant::now();
    let mut random = Rng::with_seed(seed);
    let (mut verdict, mut done) = (Verdict::default(), 0);
    for round in 0..rounds {
        let master = Server::start();
        let replica = Server::replica_of(&master);
        let (recorder, proxy) = (Server::start(), Proxy::to(&master));
        let orders = Orders {
            server: proxy.url(),
            recorder: recorder.url(),
            seed: random.u64(..),
            permits: 1,
            lease: LONG_LEASE,
            step: LONG_LEASE / 10,
            slow: true,
            asks,
            // A renewal does not wait for replicas: a holder that goes by its clock has none.
            renewed: asks == Asks::Server,
            replicas,
        };
        let others: Vec<_> = (0..PROCESSES).map(|number| Other::start(number, &orders)).collect();
        eventually(SCENARIO, "the lock goes round", || acquired(&recorder) >= BEFORE);
        let behind = round % 2 == 0 || !replicas;
        if behind {
            replica.sigstop();
            // Or what the master still sends would be read before the promotion.
            master.ask::<i64>(&["CLIENT", "KILL", "TYPE", "replica"]);
            thread::sleep(BEHIND);
        }
        master.sigkill();
        if behind {
            replica.sigcont();
        }
        replica.ask::<()>(&["REPLICAOF", "NO", "ONE"]);
        // Of what is to come there is one more to wait for.
        let _second = replicas.then(|| Server::replica_of(&replica));
        proxy.set_upstream(replica.address());
        proxy.cut_all();
        let more = acquired(&recorder) + AFTER;
        eventually(SCENARIO, "it goes round on the new master", || acquired(&recorder) >= more);
        end(others);
        verdict.add(check(&entries(&recorder), 1));
        done += 1;
        // A control has shown what it was to show.
        if !verdict.faults.is_empty() {
            break;
        }
    }
    let waited = if replicas { "a replica waited for" } else { "no replica waited for" };
    Found {
        what: format!("Failover, {waited}, holders ask: {asks:?}"),
        seed,
        done,
        must_lose: false,
        verdict,
        took: begun.elapsed(),
    }
}

pub(crate) fn acquired(recorder: &Server) -> usize {
    recorder.ask::<Option<usize>>(&["GET", ACQUIRED]).unwrap_or(0)
}

pub(crate) fn entries(recorder: &Server) -> Vec<Entry> {
    let read = |line: &String| Entry::parse(line).unwrap_or_else(|| panic!("not an entry: {line}"));
    recorder.ask::<Vec<String>>(&["LRANGE", HISTORY, "0", "-1"]).iter().map(read).collect()
}

pub(crate) fn end(others: Vec<Other>) {
    let ended: Vec<_> = others.into_iter().map(Other::ends).collect();
    assert!(ended.iter().all(|well| *well), "a process did not end well");
}

impl Found {
    /// What must be true and is not.
    pub(crate) fn broken(&self) -> Vec<String> {
        let Self { verdict, .. } = self;
        let mut broken = verdict.faults.clone();
        let mut must = |holds: bool, what: &str| {
            if !holds {
                broken.push(format!("{}: {what}", self.what));
            }
        };
        must(2 * verdict.sure > verdict.holds, "few were sure of their hold");
        must(!self.must_lose || verdict.lost > 0, "no holder lost it");
        must(self.what == "Expiry" || self.done > 0, "no holder was disturbed");
        broken
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Verdict { holds, sure, lost, gave_up, answers, unanswered, faults } = &self.verdict;
        write!(
            f,
            "| {} | seed {} | {} times | {holds} holds, {sure} sure, {lost} lost, {gave_up} gave \
             up | {answers} answers, {unanswered} without | {} faults | {:.1} s |",
            self.what,
            self.seed,
            self.done,
            faults.len(),
            self.took.as_secs_f64()
        )
    }
}
