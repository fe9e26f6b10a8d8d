//! The server's faults while all clients wait for one lock.
//!
//! Guarantee: locks

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;

use rediscope_testing::server::Server;

/// Time between two restarts of the server.
const RESTART: Duration = Duration::from_secs(9);
const LONG_PAUSE: Duration = Duration::from_millis(700);
const SLIGHT: Duration = Duration::from_millis(5);

/// How often what happened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// Subscriber connections that were killed.
    pub(crate) kills: u64,
    pub(crate) pauses: u64,
    /// Longer than a `response_timeout`.
    pub(crate) long_pauses: u64,
    pub(crate) restarts: u64,
}

/// Until it is over.
pub(crate) fn inject(server: &Server, mut random: Rng, over: &AtomicBool) -> Faults {
    let mut faults = Faults::default();
    let mut restarted = Instant::now();
    while !over.load(Ordering::Relaxed) {
        let killed: i64 = server.ask(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        faults.kills += killed.unsigned_abs();
        if random.u8(..8) == 0 {
            // A client that subscribes again meanwhile receives no reply.
            server.pause_clients(random.u64(20..120));
            faults.pauses += 1;
        }
        if random.u8(..200) == 0 {
            server.pause_clients(LONG_PAUSE.as_millis() as u64);
            faults.long_pauses += 1;
        }
        if restarted.elapsed() > RESTART {
            server.restart_on_same_port();
            restarted = Instant::now();
            faults.restarts += 1;
        }
        thread::sleep(Duration::from_millis(random.u64(10..150)));
    }
    faults
}

/// When a thread with nothing to do but to wake up was kept from it, longer than [`SLIGHT`]: what
/// the machine adds to any wait.
pub(crate) fn stalls(over: &AtomicBool) -> Vec<(Instant, Instant)> {
    const NAP: Duration = Duration::from_millis(1);
    let mut stalls = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let due = Instant::now() + NAP;
        thread::sleep(NAP);
        let woke = Instant::now();
        if woke - due > SLIGHT {
            stalls.push((due, woke));
        }
    }
    stalls
}

/// So much of the time between two moments the machine stood still.
pub(crate) fn stalled(stalls: &[(Instant, Instant)], from: Instant, to: Instant) -> Duration {
    let part = |(begun, ended): &(Instant, Instant)| {
        (*ended).min(to).saturating_duration_since((*begun).max(from))
    };
    stalls.iter().map(part).sum()
}

#[test]
fn only_what_the_machine_stood_still_meanwhile_is_counted() {
    let begun = Instant::now();
    let at = |millis| begun + Duration::from_millis(millis);
    let stalls = [(at(10), at(20)), (at(30), at(70))];
    let millis = |from, to| stalled(&stalls, at(from), at(to)).as_millis();
    assert_eq!((millis(0, 100), millis(15, 40), millis(20, 30), millis(80, 90)), (50, 15, 0, 0));
}
