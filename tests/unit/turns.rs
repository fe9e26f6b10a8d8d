//! Turns whose holders are polled no more.
//!
//! Guarantee: turns

use std::future::poll_fn;
use std::task::Poll;

use super::*;

/// Longer than any wait here.
const SOON: Duration = Duration::from_secs(20);

type Turns = KeyQueue<()>;

fn wait(within: Duration, term: Duration) -> TurnWait {
    let deadline = Instant::now() + within;
    TurnWait { deadline, place: QueuePlace::Last, patience: SOON, term }
}

#[expect(clippy::unwrap_used, reason = "test code, which clippy sees in #[test] only")]
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

/// Takes the turn within a time. It is taken back from a holder that does not attempt for `term`.
fn take(turns: &Turns, within: Duration, term: Duration) -> Option<Arc<Right>> {
    if let Some(free) = turns.try_take() {
        return Some(free);
    }
    let taking = turns.take(wait(within, term), None, |_| {});
    runtime().block_on(taking).map(|(turn, _)| turn)
}

#[test]
fn a_turn_whose_term_is_over_goes_to_the_next_caller_and_is_not_given_twice() {
    let (turns, term) = (Turns::single(), Duration::from_millis(50));
    let lost = take(&turns, SOON, term).unwrap();
    let second = take(&turns, SOON, term).unwrap();
    assert!(!turns.attempts(&lost), "it was taken back");
    turns.release(&lost);
    assert!(turns.try_take().is_none());
    assert!(turns.attempts(&second));
    turns.release(&second);
    assert!(turns.try_take().is_some());
}

#[test]
fn an_attempt_begins_the_term_anew() {
    let (turns, term) = (Turns::single(), Duration::from_millis(200));
    let turn = take(&turns, SOON, term).unwrap();
    let begun = Instant::now();
    while begun.elapsed() < term * 2 {
        assert!(turns.attempts(&turn), "{:?}", begun.elapsed());
        assert!(take(&turns, term / 10, term).is_none());
    }
    assert!(turns.attempts(&turn));
    assert!(take(&turns, SOON, term).is_some());
    assert!(!turns.attempts(&turn));
}

#[test]
fn the_term_of_a_turn_begins_with_its_last_use_and_not_with_the_first_caller_that_waits() {
    let (turns, term) = (Turns::single(), Duration::from_millis(100));
    let _lost = turns.try_take().unwrap();
    std::thread::sleep(term * 2);
    assert!(take(&turns, term / 2, term).is_some());
}

/// Callers that wait behind a lost turn, all of them, get it one after another.
#[test]
fn every_caller_that_waits_for_a_lost_turn_gets_it_in_the_order_of_arrival() {
    let turns = Arc::new(Turns::single());
    let order = runtime().block_on(async {
        let _lost = turns.try_take().unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let callers = (0..8).map(|nth| {
            let (turns, order) = (Arc::clone(&turns), Arc::clone(&order));
            tokio::spawn(async move {
                let wait = wait(SOON, Duration::from_millis(200));
                let (turn, _) = turns.take(wait, None, |_| {}).await.unwrap();
                order.lock().unwrap().push(nth);
                tokio::task::yield_now().await;
                assert!(turns.attempts(&turn));
                turns.release(&turn);
            })
        });
        for caller in callers.collect::<Vec<_>>() {
            caller.await.unwrap();
        }
        std::mem::take(&mut *order.lock().unwrap())
    });
    assert_eq!(order, (0..8).collect::<Vec<_>>());
    assert!(turns.try_take().is_some());
}

/// A caller that was granted the turn and is not polled holds the others up for a moment, and goes before
/// them when it is polled again.
#[test]
fn a_granted_turn_passes_over_a_caller_that_is_not_polled() {
    let turns = Turns::single();
    runtime().block_on(async {
        let held = turns.try_take().unwrap();
        let mut unpolled = Box::pin(turns.take(wait(SOON, SOON), None, |_| {}));
        assert!(poll_once(unpolled.as_mut()).await.is_pending());
        let mut next = Box::pin(turns.take(wait(SOON, SOON), None, |_| {}));
        assert!(poll_once(next.as_mut()).await.is_pending());
        turns.release(&held);
        let (turn, _) = next.await.unwrap();
        let mut last = Box::pin(turns.take(wait(SOON, SOON), None, |_| {}));
        assert!(poll_once(last.as_mut()).await.is_pending());
        assert!(poll_once(unpolled.as_mut()).await.is_pending(), "its turn is another one's");
        turns.release(&turn);
        let (turn, _) = unpolled.await.unwrap();
        assert!(poll_once(last.as_mut()).await.is_pending());
        turns.release(&turn);
        turns.release(&last.await.unwrap().0);
    });
    assert!(turns.try_take().is_some());
}

/// A dropped caller returns what it was granted, also the turns in other buckets.
#[test]
fn a_dropped_caller_returns_the_turns_that_were_passed_to_it() {
    let (one, other) = (Arc::new(Turns::single()), Arc::new(Turns::single()));
    runtime().block_on(async {
        let turns = [(3, one.try_take().unwrap()), (7, other.try_take().unwrap())];
        let queues = Box::new([Arc::clone(&one), Arc::clone(&other)]);
        let key = crate::pool::key_turn::KeyTurn::new(queues, b"WATCH", &turns, None);
        let offer = crate::pool::early_watch::WatchOffer::<()> {
            watch: b"WATCH",
            travels: true,
            reads: (b"", 0),
            needs: None,
            turn: None,
        };
        let watch = offer.early_watch().unwrap();
        let release = |turns: &[(u16, Arc<Right>)]| {
            turns.iter().for_each(|(_, turn)| other.release(turn));
        };
        let mut waits = Box::pin(one.take(wait(SOON, SOON), Some((watch, &[3, 7])), release));
        assert!(poll_once(waits.as_mut()).await.is_pending());
        let place = tokio::runtime::Handle::current().id();
        assert!(key.take_next(place, None).is_some());
        assert!(key.pass_on(()).is_none() && key.is_over());
        assert!(one.try_take().is_none() && other.try_take().is_none());
        drop(waits);
    });
    assert!(one.try_take().is_some() && other.try_take().is_some());
}

/// Polls the future once, with the waker of this task.
async fn poll_once<F: Future>(mut future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await
}

/// Another block may attempt in the bucket whose turn was taken back.
#[test]
fn a_holder_whose_turn_was_taken_back_in_one_bucket_takes_no_watch_along() {
    use crate::pool::early_watch::WatchOffer;
    use crate::pool::key_turn::KeyTurn;

    const WATCH: &[u8] = b"*3\r\n$5\r\nWATCH\r\n$1\r\nk\r\n$1\r\nl\r\n";
    for lost in [None, Some(0), Some(1)] {
        let queues = [shim::Arc::new(Turns::single()), shim::Arc::new(Turns::single())];
        let rights = queues.each_ref().map(|queue| queue.try_take().unwrap());
        let [first, second] = rights.clone();
        let turn = KeyTurn::new(queues.clone().into(), WATCH, &[(7, first), (9, second)], None);
        let offer = WatchOffer {
            watch: WATCH,
            travels: true,
            reads: (b"", 0),
            needs: None,
            turn: None::<&Arc<()>>,
        };
        let left = offer.early_watch().unwrap();
        runtime().block_on(async {
            let taking = queues[0].take(wait(SOON, SOON), Some((left, &[7, 9])), |_| {});
            let mut waits = Box::pin(taking);
            assert!(poll_once(waits.as_mut()).await.is_pending());
            if let Some(lost) = lost {
                rights[lost].end();
            }
            let place = tokio::runtime::Handle::current().id();
            assert_eq!(turn.take_next(place, None).is_some(), lost.is_none(), "{lost:?}");
            turn.leave_next();
        });
    }
}
