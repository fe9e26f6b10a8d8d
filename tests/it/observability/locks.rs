//! The reports about locks: the status and the events, without names.
//!
//! Guarantee: reports

use crate::fixture::SOON;
use std::time::Duration;

use rediscope::error::LockError;
use rediscope::{Error, SessionManager};
use tracing::Level;

use super::listen::Seen;
use rediscope_testing::eventually;
use rediscope_testing::server::Server;

const NAME: &str = "secret-name-of-a-lock";

#[test]
fn status_counts_locks_and_the_report_has_them_once_there_are_any() {
    rediscope_testing::own_process!();
    let server = Server::start();
    let sessions = SessionManager::connect(server.url()).unwrap();
    let lock = sessions.lock(NAME).lease(Duration::from_secs(60));
    assert!(!sessions.status().to_string().contains("locks:"));
    let guard = lock.try_acquire().unwrap().unwrap();
    assert!(lock.try_acquire().unwrap().is_none());
    assert!(lock.acquire(Duration::from_millis(5)).is_err());
    guard.ensure_held().unwrap();
    let waiter = std::thread::spawn({
        let lock = lock.clone();
        move || lock.acquire(SOON).map(drop)
    });
    eventually(SOON, "a caller waits", || {
        let locks = sessions.status().locks;
        (locks.waiting, locks.subscriptions) == (1, 1)
    });
    let report = sessions.status().to_string();
    let expected = "locks: 1 held, 1 waiting, 1 subscriptions, 0 permits out\n  \
                    1 acquired, 1 timeouts, 1 renewals, 0 lost";
    assert!(report.ends_with(expected), "{report}");
    lock.force_release().unwrap();
    waiter.join().unwrap().unwrap();
    assert!(guard.release().is_err());
    let locks = sessions.status().locks;
    assert_eq!((locks.held, locks.waiting, locks.permits), (0, 0, 0));
    assert_eq!((locks.acquired, locks.timeouts, locks.renewals, locks.lost), (2, 1, 1, 1));
}

#[test]
fn every_step_of_a_lock_is_an_event_and_no_name_or_token_is_shown() {
    rediscope_testing::own_process!();
    let server = Server::start();
    let sessions = SessionManager::connect(server.url()).unwrap();
    let everywhere = Seen::everywhere();
    let seen = Seen::from_here();
    let lock = sessions.lock(NAME).label("a label");
    let mut shown = vec![format!("{lock:?}"), format!("{:?}", sessions.rw_lock(NAME))];

    let guard = lock.try_acquire().unwrap().unwrap();
    shown.push(format!("{guard:?}"));
    let timeout = lock.acquire(Duration::from_millis(5)).unwrap_err();
    shown.push(format!("{timeout} {timeout:?}"));
    shown.push(format!("{:?}", sessions.transactional().fenced_by(&guard)));
    let member: Vec<String> =
        server.ask(&["ZRANGE", &format!("rediscope:lock:{{{NAME}}}"), "0", "-1"]);
    lock.force_release().unwrap();
    let lost = guard.ensure_held().unwrap_err();
    assert!(matches!(lost, Error::Lock(LockError::Lost { .. })));
    shown.push(format!("{lost} {lost:?}"));
    drop(guard);
    let token = lock.try_acquire().unwrap().unwrap().into_token().unwrap();
    shown.push(format!("{token:?}"));
    lock.adopt(&token).unwrap().release().unwrap();
    let late = lock.adopt(&token).unwrap_err();
    shown.push(format!("{late} {late:?}"));
    let owner = token.to_string();
    let owner = owner.split('.').next().unwrap();
    let all = sessions.lock_all([NAME, "another"]);
    shown.push(format!("{all:?} {:?}", all.acquire(SOON).unwrap()));
    shown.push(format!("{sessions:?} {}", sessions.status()));

    for (name, level) in [
        ("lock acquired", Level::DEBUG),
        ("lock not acquired", Level::DEBUG),
        ("lock forced", Level::WARN),
        ("lock lost", Level::WARN),
        ("lock released", Level::DEBUG),
        ("lock adopted", Level::DEBUG),
    ] {
        let events = seen.named(name);
        assert!(!events.is_empty(), "no event {name:?}: {seen:?}");
        assert!(events.iter().all(|event| event.level == level), "{name}");
    }
    let recorded = everywhere.all().into_iter().flat_map(|recorded| recorded.fields);
    shown.extend(recorded.map(|(name, value)| format!("{name} {value}")));
    for text in &shown {
        assert!(!text.contains(NAME) && !text.contains(&member[0][1..]), "{text}");
        assert!(!text.contains(owner), "{text}");
    }
}
