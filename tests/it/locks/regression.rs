//! A former fault, in small: many threads wait too short for one lock, while the connection for
//! wakeups is killed. Nothing of it may be left behind.
//!
//! Guarantee: locks

use super::fixture::start;
use crate::fixture::SOON;
use crate::side::BuildSide as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::side::SessionManager;
use rediscope::Error;
use rediscope::error::{ConnectionErrorKind, LockError};

use rediscope_testing::eventually;

const THREADS: u64 = 64;
const TRIES: u64 = 48;
const WAIT: Duration = Duration::from_millis(50);
const LEASE: Duration = Duration::from_millis(100);
/// Longer than a busy machine keeps 64 threads and a server from running.
const RESPONSE: Duration = Duration::from_secs(5);
/// A release after an attempt whose request may still arrive is remembered for a minute.
const REMEMBERED: Duration = Duration::from_secs(60);

#[test]
fn of_thousands_of_contended_waits_with_a_dying_subscriber_nothing_is_left() {
    let fixture = start();
    let builder = SessionManager::builder(fixture.server.url()).max_size(16);
    let builder = builder.response_timeout(RESPONSE).checkout_timeout(3 * RESPONSE);
    let sessions = builder.build_side().unwrap();
    let (over, acquired, timeouts) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let (longest, late) = (AtomicU64::new(0), AtomicU64::new(0));
    let (mut kills, mut most_waiting) = (0, 0);
    thread::scope(|scope| {
        // Also after a panic: the killer would go on for ever.
        scopeguard::defer! { over.store(true, Ordering::Relaxed) }
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                let lock = sessions.lock("l").lease(LEASE);
                let (acquired, timeouts, longest) = (&acquired, &timeouts, &longest);
                let late = &late;
                scope.spawn(move || {
                    for _ in 0..TRIES {
                        let begun = Instant::now();
                        let tried = lock.acquire(WAIT);
                        let waited = begun.elapsed().as_millis() as u64;
                        longest.fetch_max(waited, Ordering::Relaxed);
                        match tried {
                            Ok(guard) => {
                                acquired.fetch_add(1, Ordering::Relaxed);
                                if fastrand::bool() {
                                    thread::sleep(Duration::from_millis(fastrand::u64(1..40)));
                                }
                                drop(guard);
                            }
                            Err(Error::Lock(LockError::Timeout { .. })) => {
                                timeouts.fetch_add(1, Ordering::Relaxed);
                            }
                            // A busy machine took a lease's time for one exchange.
                            Err(Error::Lock(LockError::Connection { source, .. }))
                                if source.kind() == ConnectionErrorKind::TimedOut =>
                            {
                                late.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(error) => panic!("{error:?}"),
                        }
                    }
                })
            })
            .collect();
        let over = &over;
        let killer = scope.spawn(|| {
            let (mut kills, mut most) = (0_i64, 0);
            while !over.load(Ordering::Relaxed) {
                most = most.max(sessions.status().locks.waiting);
                kills += fixture.server.ask::<i64>(&["CLIENT", "KILL", "TYPE", "pubsub"]);
                thread::sleep(Duration::from_millis(fastrand::u64(10..100)));
            }
            (kills, most)
        });
        for thread in threads {
            thread.join().unwrap();
        }
        over.store(true, Ordering::Relaxed);
        (kills, most_waiting) = killer.join().unwrap();
    });
    let (acquired, timeouts) = (acquired.into_inner(), timeouts.into_inner());
    let late = late.into_inner();
    assert_eq!(acquired + timeouts + late, THREADS * TRIES);
    assert!(timeouts >= THREADS * TRIES / 3 && acquired > 0, "{acquired} {timeouts}");
    assert!(kills > 0 && most_waiting > 10, "{kills} kills, {most_waiting} waited");
    let longest = Duration::from_millis(longest.into_inner());
    assert!(longest < WAIT + RESPONSE + SOON, "{longest:?}");

    let locks = sessions.status().locks;
    assert_eq!((locks.held, locks.waiting, locks.permits), (0, 0, 0));
    assert_eq!(locks.timeouts, timeouts + late);
    eventually(SOON, "nothing is subscribed to", || {
        fixture.subscribers_of("rediscope:lock:{l}:wake") == 0
            && sessions.status().locks.subscriptions == 0
    });
    assert_eq!(sessions.status().pooled.in_use, 0);
    drop(sessions);
    eventually(SOON, "no client is connected", || {
        fixture.server.clients() == 0 && fixture.server.subscribers() == 0
    });
    // No client is left that could prolong a key's life: each ends within a minute.
    for key in fixture.server.ask::<Vec<String>>(&["KEYS", "rediscope:lock:*"]) {
        let left = fixture.server.ask::<i64>(&["PTTL", &key]);
        assert!(left != -1 && left <= REMEMBERED.as_millis() as i64, "{key} lives for {left} ms");
    }
}
