//! Turns whose holders are polled no more.
//!
//! Guarantee: turns

use super::*;

/// Longer than any wait here.
const SOON: Duration = Duration::from_secs(20);

/// Takes the turn within a time, for a term.
fn take(turns: &TaskTurns, within: Duration, term: Duration) -> Result<usize, NoPlace> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(turns.take(Instant::now() + within, term))
}

#[test]
fn a_turn_whose_term_is_over_goes_to_the_next_caller_and_is_not_given_twice() {
    let (turns, term) = (TaskTurns::new(), Duration::from_millis(50));
    let lost = take(&turns, SOON, term).unwrap();
    let second = take(&turns, SOON, SOON).unwrap();
    assert!(!turns.attempts(lost), "it was taken back");
    turns.release(lost);
    assert_eq!(turns.places.free(), 0);
    assert!(turns.attempts(second));
    turns.release(second);
    assert_eq!(turns.places.free(), 1);
}

#[test]
fn an_attempt_begins_the_term_anew() {
    let (turns, term) = (TaskTurns::new(), Duration::from_millis(200));
    let turn = take(&turns, SOON, term).unwrap();
    let begun = Instant::now();
    while begun.elapsed() < term * 2 {
        assert!(turns.attempts(turn), "{:?}", begun.elapsed());
        assert_eq!(take(&turns, term / 10, SOON), Err(NoPlace::TimedOut));
    }
    assert!(turns.attempts(turn));
    assert!(take(&turns, SOON, SOON).is_ok());
    assert_eq!(turns.places.free(), 0);
}

/// Callers that wait behind a lost turn, all of them, get it one after another.
#[test]
fn every_caller_that_waits_for_a_lost_turn_gets_it_in_the_order_of_arrival() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let turns = Arc::new(TaskTurns::new());
    let order = runtime.block_on(async {
        turns.take(Instant::now() + SOON, Duration::from_millis(100)).await.unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let callers = (0..8).map(|nth| {
            let (turns, order) = (Arc::clone(&turns), Arc::clone(&order));
            tokio::spawn(async move {
                let turn = turns.take(Instant::now() + SOON, SOON).await.unwrap();
                order.lock().unwrap().push(nth);
                tokio::task::yield_now().await;
                assert!(turns.attempts(turn));
                turns.release(turn);
            })
        });
        for caller in callers.collect::<Vec<_>>() {
            caller.await.unwrap();
        }
        std::mem::take(&mut *order.lock().unwrap())
    });
    assert_eq!(order, (0..8).collect::<Vec<_>>());
    assert_eq!(turns.places.free(), 1);
}
