//! When blocks take turns, and what becomes of a turn.
//!
//! Guarantee: turns

use std::pin::pin;
use std::time::{Duration, Instant};

use super::*;
use crate::error::any::{CommitError, Error};
use crate::pool::semaphore::QueuePlace;
use crate::pool::tests::Server;
use crate::prelude::*;
use crate::session::manager::SessionManager;
use crate::sync::now::now;
use crate::transaction::keys::IntoKeys as _;

fn soon() -> Instant {
    Instant::now() + Duration::from_millis(20)
}

fn wait(deadline: Instant) -> TurnWait {
    TurnWait { deadline, place: QueuePlace::Last, patience: Duration::MAX, term: Duration::MAX }
}

/// Enters as a block that is not inside another one.
fn enter(hot_keys: &Arc<HotKeys>, buckets: &[u16], deadline: Instant) -> Turn {
    now(pin!(hot_keys.enter(buckets, false, wait(deadline), None)))
}

fn hot(buckets: &[u16]) -> Arc<HotKeys> {
    let hot_keys = Arc::new(HotKeys::new());
    hot_keys.on_conflict(buckets);
    hot_keys
}

#[test]
fn blocks_take_turns_from_the_first_conflict_until_a_run_of_commits_without_a_write() {
    let hot_keys = Arc::new(HotKeys::new());
    assert!(!enter(&hot_keys, &[7], soon()).is_held(), "no conflict was seen");
    hot_keys.on_conflict(&[7]);
    for written in [&[][..], &[7], &[8]] {
        let turn = enter(&hot_keys, &[7], soon());
        assert!(turn.is_held());
        (1..COOLING).for_each(|_| turn.on_commit(Vec::new));
        turn.on_commit(|| written.to_vec());
        assert_eq!(hot_keys.is_hot(7), written == [7]);
        hot_keys.on_conflict(&[7]);
    }
    assert!(!hot_keys.is_hot(8), "another bucket");
}

/// A block that was applied in part is committed too.
#[test]
fn commits_that_were_applied_in_part_count_as_others_do() {
    let server = Server::start();
    let sessions = SessionManager::connect(server.url()).unwrap();
    let (accounts, buckets) = (sessions.transactional(), ["k"].into_keys().buckets().to_vec());
    let hot_keys = &sessions.hot_keys;
    hot_keys.on_conflict(&buckets);
    accounts.run(|tx| Ok::<_, Error>(tx.set("text", "x"))).unwrap();
    let in_part = |key: &str| {
        let run =
            accounts.watch(["k"]).run(|_, tx| Ok::<_, Error>((tx.set(key, 1), tx.incr("text", 1))));
        assert!(matches!(run, Err(Error::Commit(CommitError::PartlyApplied { .. }))), "{run:?}");
    };
    (1..COOLING).for_each(|_| in_part("other"));
    assert!(hot_keys.is_any_hot(&buckets));
    in_part("k");
    (1..COOLING).for_each(|_| in_part("other"));
    assert!(hot_keys.is_any_hot(&buckets), "the key was changed meanwhile");
    in_part("other");
    assert!(!hot_keys.is_any_hot(&buckets));
}

#[test]
fn one_block_has_the_turn_and_the_next_one_gets_it_at_its_end() {
    let hot_keys = hot(&[7]);
    let first = enter(&hot_keys, &[7], soon());
    assert!(first.is_held());
    assert!(!enter(&hot_keys, &[7], soon()).is_held(), "it attempts without a turn in time");
    assert!(!enter(&hot_keys, &[3], soon()).is_held(), "that bucket is not hot");
    let late = Instant::now() + Duration::from_secs(20);
    std::thread::scope(|scope| {
        let next = scope.spawn(|| enter(&hot_keys, &[7], late).is_held());
        drop(first);
        assert!(next.join().unwrap());
    });
    assert!(enter(&hot_keys, &[7], soon()).is_held(), "it was returned");
}

#[test]
fn a_block_has_the_turn_in_all_its_hot_buckets_or_returns_what_it_has() {
    let hot_keys = hot(&[3, 7]);
    let both = enter(&hot_keys, &[3, 5, 7], soon());
    assert_eq!(both.entered, [(3, ()), (7, ())]);
    drop(both);
    let one = enter(&hot_keys, &[7], soon());
    drop(enter(&hot_keys, &[3, 7], soon()));
    assert!(enter(&hot_keys, &[3], soon()).is_held());
    drop(one);
    let many: Vec<u16> = (0..=MAX_KEYS as u16).collect();
    assert!(!enter(&hot_keys, &many, soon()).is_held(), "too many keys");
}

/// Those that wait go on one by one otherwise, although nothing is gained by it.
#[test]
fn a_bucket_that_is_not_hot_any_more_lets_all_go_on_that_wait() {
    let hot_keys = hot(&[7]);
    let first = enter(&hot_keys, &[7], soon());
    let late = Instant::now() + Duration::from_secs(20);
    std::thread::scope(|scope| {
        let waiting: Vec<_> =
            (0..4).map(|_| scope.spawn(|| enter(&hot_keys, &[7], late))).collect();
        let queue = hot_keys.queue(7).unwrap();
        while queue.waiting() < 4 {
            std::thread::yield_now();
        }
        (0..COOLING).for_each(|_| first.on_commit(Vec::new));
        drop(first);
        let turns: Vec<_> = waiting.into_iter().map(|turn| turn.join().unwrap()).collect();
        assert!(turns.iter().all(|turn| !turn.is_held()));
    });
}

#[test]
fn a_block_inside_a_block_does_not_wait() {
    let hot_keys = hot(&[7]);
    let outer = OuterBlock::enter();
    let turn = enter(&hot_keys, &[7], soon());
    assert!(outer.is_some() && turn.is_held() && turn.waits(&[1]));
    let late = Instant::now() + Duration::from_secs(20);
    let is_nested = OuterBlock::enter().is_none();
    let nested = now(pin!(hot_keys.enter(&[7], is_nested, wait(late), None)));
    assert!(!nested.is_held() && !nested.waits(&[1]));
    assert!(Instant::now() < late);
}

#[test]
fn buckets_are_entered_in_one_order_and_once_each() {
    assert_eq!(buckets([5, 3, 5, 3 + BUCKETS as u64].into_iter()), [3, 5]);
}
