//! Whose WATCH the holder of a turn takes along.
//!
//! Guarantee: turns

use std::pin::pin;
use std::thread;

use super::*;
use crate::pool::early_watch::WatchOffer;
use crate::sync::now::now;

const WATCH: &[u8] = b"*2\r\n$5\r\nWATCH\r\n$1\r\nk\r\n";

/// A caller waits for the turn in the bucket 7 with this WATCH. Returns whether the holder, after `change`,
/// takes it along.
#[expect(clippy::unwrap_used, reason = "test code, which clippy sees in #[test] only")]
fn is_taken(watch: &[u8], change: impl FnOnce(&KeyTurn<KeyQueue<()>>)) -> bool {
    let queue = Arc::new(KeyQueue::single());
    queue.try_take().unwrap();
    let turn = KeyTurn::new([Arc::clone(&queue)].into(), WATCH, &[(7, ())], None);
    let offer =
        WatchOffer { watch, travels: true, reads: (b"", 0), needs: None, turn: None::<&Arc<()>> };
    let left = offer.early_watch().unwrap();
    thread::scope(|scope| {
        let queue = &*queue;
        let (place, patience) = (QueuePlace::Last, Duration::MAX);
        let deadline = Instant::now() + Duration::from_secs(20);
        let wait = TurnWait { deadline, place, patience, term: Duration::MAX };
        let waits = move || now(pin!(queue.take(wait, Some((left, &[7])), |_| {}))).is_some();
        let waits = scope.spawn(waits);
        while TurnQueue::queued(queue) == 0 {
            thread::yield_now();
        }
        change(&turn);
        let is_taken = turn.take_next((), None).is_some();
        turn.leave_next();
        turn.release();
        assert!(waits.join().unwrap(), "it has the turn");
        is_taken
    })
}

/// Another key of the same bucket may be on another server.
#[test]
fn only_a_caller_with_the_same_watch_gets_the_connection() {
    assert!(is_taken(WATCH, |_| {}));
    assert!(!is_taken(b"*2\r\n$5\r\nWATCH\r\n$1\r\nl\r\n", |_| {}));
    assert!(!is_taken(b"*3\r\n$5\r\nWATCH\r\n$1\r\nk\r\n$1\r\nl\r\n", |_| {}));
}

#[test]
fn a_turn_that_is_kept_takes_no_watch_along() {
    assert!(!is_taken(WATCH, |turn| turn.keep()));
}

#[test]
fn a_turn_that_is_over_takes_no_watch_along() {
    assert!(!is_taken(WATCH, |turn| assert!(turn.end())));
}
