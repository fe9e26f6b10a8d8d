//! Permits under a crowd of callers.
//!
//! Guarantee: tasks

use std::time::Duration;

use super::*;

/// Longer than any wait here.
const SOON: Duration = Duration::from_secs(20);

/// The processor time of this thread, however many others share the processor; where there is no such
/// number, none.
fn processor_time() -> Duration {
    let read = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = read.split(' ').next().and_then(|nanos| nanos.parse().ok());
    Duration::from_nanos(nanos.unwrap_or_default())
}

/// A search of all that wait, by each of them, takes minutes.
#[test]
fn callers_that_give_up_together_cost_no_more_than_their_number() {
    const CALLERS: usize = 100_000;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let permits = Arc::new(Permits::<()>::new(1));
    assert!(matches!(permits.try_acquire(), Some(Acquired::Right(..))));
    let before = processor_time();
    runtime.block_on(async {
        let deadline = Instant::now() + Duration::from_secs(2);
        let callers: Vec<_> = (0..CALLERS)
            .map(|_| {
                let permits = Arc::clone(&permits);
                tokio::spawn(async move {
                    permits.acquire(QueuePlace::Last, deadline, None, |_, _| {}).await
                })
            })
            .collect();
        for caller in callers {
            assert!(matches!(caller.await.unwrap(), Acquired::TimedOut { waiters: 1.. }));
        }
    });
    let used = processor_time().saturating_sub(before);
    assert!(used < SOON, "{used:?}");
    assert_eq!((permits.waiting(), permits.in_use()), (0, 1));
}

#[cfg(unix)]
#[test]
fn a_caller_that_waits_ends_in_a_forked_child() {
    let permits = Permits::<()>::new(1);
    let Some(Acquired::Right(_right, _)) = permits.try_acquire() else { panic!("none is free") };
    let mut waiting =
        Box::pin(permits.acquire(QueuePlace::Last, Instant::now() + SOON, None, |_, _| ()));
    let polled = async { poll_fn(|context| Poll::Ready(waiting.as_mut().poll(context))).await };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert!(runtime.block_on(polled).is_pending());
    assert_eq!(permits.waiting(), 1);
    crate::sync::own_mutex::tests::is_dropped_in_a_child(&permits.state, waiting);
    assert_eq!(permits.waiting(), 0);
}
