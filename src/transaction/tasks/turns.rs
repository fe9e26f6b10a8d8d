//! The turns of tasks on hot keys.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use crate::sync::places::Places;
use crate::transaction::hot_keys::{ContentionLimiter, Turn, TurnSemaphore};

tokio::task_local! {
    /// Set while the closure of a block that may have a permit is polled: a block inside it must not
    /// wait for the outer one.
    static INSIDE_BLOCK: ();
}

/// The permits for which tasks wait, first come first served.
pub(crate) struct TaskTurns(Places);

impl TurnSemaphore for TaskTurns {
    fn new(permits: usize) -> Self {
        Self(Places::new(permits))
    }

    fn give(&self, _permit: usize) {
        self.0.add();
    }
}

/// Waits for a permit until `deadline`; then the caller attempts without one. Dropped before its end,
/// the future has no permit.
pub(crate) async fn enter(
    limiter: &Arc<ContentionLimiter<TaskTurns>>,
    buckets: &[u16],
    deadline: Instant,
) -> Turn<TaskTurns> {
    let is_nested = INSIDE_BLOCK.try_with(|()| ()).is_ok();
    let (mut turn, buckets) = limiter.turn(buckets, is_nested);
    for bucket in buckets {
        let Some(TaskTurns(places)) = limiter.semaphore(*bucket) else { continue };
        if places.try_take() == Ok(true) || places.take(deadline).await.is_ok() {
            turn.entered(*bucket, 0);
        }
    }
    turn
}

/// Polls the closure of a block. `has_turn`: blocks inside it do not wait for permits.
pub(crate) async fn run_closure<F: Future>(has_turn: bool, mut closure: Pin<&mut F>) -> F::Output {
    poll_fn(|context| match has_turn {
        true => INSIDE_BLOCK.sync_scope((), || closure.as_mut().poll(context)),
        false => closure.as_mut().poll(context),
    })
    .await
}
