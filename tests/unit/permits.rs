//! Permits under a crowd of callers.
//!
//! Guarantee: tasks

use std::time::Duration;

use super::*;

/// Longer than any wait here.
const SOON: Duration = Duration::from_secs(20);

/// A search of all that wait, by each of them, takes minutes.
#[test]
fn callers_that_give_up_together_cost_no_more_than_their_number() {
    const CALLERS: usize = 100_000;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let permits = Arc::new(Permits::new(1));
    assert!(matches!(permits.try_acquire(), Some(Acquired::Right(_))));
    let begun = Instant::now();
    runtime.block_on(async {
        let deadline = begun + Duration::from_secs(2);
        let callers: Vec<_> = (0..CALLERS)
            .map(|_| {
                let permits = Arc::clone(&permits);
                tokio::spawn(async move { permits.acquire(deadline, |_| {}).await })
            })
            .collect();
        for caller in callers {
            assert!(matches!(caller.await.unwrap(), Acquired::TimedOut { waiters: 1.. }));
        }
    });
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    assert_eq!((permits.waiting(), permits.in_use()), (0, 1));
}
