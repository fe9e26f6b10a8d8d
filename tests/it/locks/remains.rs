//! The keys that are left on the server, and keys that a foreign client may have put there.
//!
//! Guarantee: locks

use crate::fixture::{Fixture, LONG, SOON, Way};
use std::time::{Duration, Instant};

use rediscope::Error;
use rediscope::error::{Applied, LockError};

use super::fixture::{all_ways, every_kind, is_lost, start, timed_out};
use rediscope_testing::eventually;

/// Less than a release is remembered for.
const IN_TIME: Duration = Duration::from_secs(4);
/// A deletion that takes a busy machine too long is left to the time to live.
const TRIES: u32 = 3;

/// After `release` the keys of locks are deleted before their time to live is over.
fn is_deleted(fixture: &Fixture, way: Way, release: impl Fn()) {
    let in_time = (0..TRIES).any(|_| {
        release();
        let begun = Instant::now();
        eventually(SOON, "nothing is remembered", || {
            fixture.server.ask::<Vec<String>>(&["KEYS", "*"]) == ["rediscope:fence"]
        });
        begun.elapsed() < IN_TIME
    });
    assert!(in_time, "{way}: by their time to live");
}

fn remembered(fixture: &Fixture) -> usize {
    fixture.server.ask::<Vec<String>>(&["KEYS", "rediscope:*:done:*"]).len()
}

#[test]
fn a_release_with_a_reply_is_not_remembered() {
    for (way, fixture) in all_ways() {
        for nth in 0..300 {
            let lock = fixture.sessions.lock(format!("l{nth}"));
            lock.acquire(SOON).unwrap().release().unwrap();
        }
        assert!(remembered(&fixture) <= 2, "{way}: {} are remembered", remembered(&fixture));
        // Nor is the last one.
        is_deleted(&fixture, way, || fixture.sessions.lock("l").run(SOON, |_| Ok(())).unwrap());
        is_deleted(&fixture, way, || {
            for (_, lock) in every_kind(&fixture.sessions) {
                drop(lock.acquire(SOON).unwrap());
            }
            // Nor is a caller that gave up waiting, in line or not.
            for (_, lock) in every_kind(&fixture.sessions) {
                let held = [lock.acquire(SOON).unwrap()];
                let held = [Some(held), lock.try_acquire().unwrap().map(|guard| [guard])];
                let waited = lock.acquire(Duration::from_millis(20)).map(drop);
                drop((held, waited));
            }
        });
    }
}

#[test]
fn releases_of_many_threads_are_not_remembered_either() {
    let fixture = start();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let sessions = &fixture.sessions;
            scope.spawn(move || {
                for nth in 0..40 {
                    let lock = sessions.lock(format!("l{thread} {nth}"));
                    lock.acquire(SOON).unwrap().release().unwrap();
                }
            });
        }
    });
    assert!(remembered(&fixture) <= 24, "{} are remembered", remembered(&fixture));
    eventually(SOON, "nor are the last ones", || remembered(&fixture) == 0);
}

#[test]
fn a_fencing_token_beyond_what_a_script_can_count_is_refused() {
    let last = (1_u64 << 53) - 1;
    for counter in [
        "9007199254740992",
        "9007199254740993",
        "18446744073709551615",
        "99999999999999999999999",
        "zzzzzzzzzzzzzzzzzzzz",
    ] {
        let fixture = start();
        for (kind, lock) in every_kind(&fixture.sessions) {
            fixture.server.ask::<()>(&["SET", "rediscope:fence", counter]);
            let error = lock.acquire(SOON).expect_err(kind);
            assert!(matches!(error, Error::Lock(LockError::NoFencingToken)), "{kind}: {error:?}");
            assert_eq!((error.applied(), error.is_retryable()), (Applied::No, false));
            assert_eq!(fixture.server.ask::<String>(&["GET", "rediscope:fence"]), counter);
            assert!(fixture.held_keys().is_empty(), "{kind}");
            // The last one there is.
            fixture.server.ask::<()>(&["SET", "rediscope:fence", &last.to_string()]);
            let guard = lock.acquire(SOON).unwrap();
            assert_eq!(guard.fencing_token(), last + 1);
            guard.release().unwrap();
            assert!(matches!(lock.acquire(SOON), Err(Error::Lock(LockError::NoFencingToken))));
        }
    }
}

#[test]
fn a_lock_whose_keys_a_foreign_client_has_overwritten_can_be_forced() {
    let fixture = start();
    let overwrite: [&[&str]; 3] = [&["SET"], &["RPUSH"], &["SADD"]];
    for (kind, lock) in every_kind(&fixture.sessions) {
        for words in overwrite {
            for suffix in ["", ":info", ":queue", ":alive"] {
                let guard = lock.clone().lease(LONG).acquire(SOON).unwrap();
                let base = fixture.held_keys().into_iter().next().unwrap();
                let key = format!("{base}{suffix}");
                fixture.server.ask::<i64>(&["DEL", &key]);
                let command: Vec<&str> = words.iter().copied().chain([&*key, "foreign"]).collect();
                fixture.server.ask::<redis::Value>(&command);
                assert!(lock.force_release().unwrap(), "{kind}, {key}");
                let left: i64 = fixture.server.ask(&["EXISTS", &base, &format!("{base}:info")]);
                assert_eq!(left, 0, "{kind}, {key}");
                is_lost(guard.release());
                lock.acquire(SOON).unwrap().release().unwrap();
            }
        }
    }
}

#[test]
fn a_wait_in_a_line_without_a_holder_names_none() {
    let fixture = start();
    let other = fixture.other();
    let lock = other.lock("l").fair();
    // A place in line of a process that has just died, and no holder.
    let now: Vec<u64> = fixture.server.ask(&["TIME"]);
    let until = (now[0] * 1000 + 60_000).to_string();
    fixture.server.ask::<i64>(&["ZADD", "rediscope:lock:{l}:queue", "1", "x0"]);
    fixture.server.ask::<i64>(&["ZADD", "rediscope:lock:{l}:alive", &until, "x0"]);
    for wait in [Duration::ZERO, Duration::from_millis(50)] {
        let error = lock.acquire(wait).unwrap_err();
        assert!(matches!(error, Error::Lock(LockError::Timeout { holder: None, .. })), "{error:?}");
        let text = error.to_string();
        assert!(!text.contains("held by") && !text.contains("0ns"), "{text}");
        timed_out(Err::<(), _>(error));
    }
}
