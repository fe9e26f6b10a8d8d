//! Whether a task may wait for a turn on hot keys: not inside a block that may have one, nor while it has a
//! connection.
//!
//! A closure's scope is that of the futures inside it, so other futures of the task wait.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::Poll;

use crate::pool::own_writes::{self, OwnWrites};
use crate::pool::router::Router;
use crate::pool::tasks::holder::HolderTask;
use crate::pool::tasks::line::TaskKeyQueue;
use crate::pool::tasks::pool::TaskPool;
use crate::sync::fork_check::ForkCheck;
use crate::sync::lock;
use crate::transaction::hot_keys::HotKeys;
use crate::transaction::keys::Keys;

tokio::task_local! {
    /// Set while the closure of a block is polled; true: the block, or one around it, may have a turn.
    static INSIDE_BLOCK: bool;
}

/// The tasks that have an attempt of a loop, and whether the loop may have a turn: what the task-local is
/// for a closure, for code that no future of this crate contains.
static LOOPS: Mutex<Vec<(HolderTask, bool)>> = Mutex::new(Vec::new());

/// Whether the block around this one may have a turn. `None`: the task is inside no block.
fn outer() -> Option<bool> {
    INSIDE_BLOCK.try_with(|has_turn| *has_turn).ok().max(InLoop::here())
}

/// Whether the task may wait for other blocks on these keys. One with a connection might wait for a caller
/// that waits for that connection.
pub(crate) fn may_wait(router: &Router<TaskPool>) -> bool {
    let outer = outer();
    outer != Some(true) && !router.is_held_by_this_task(outer.is_some())
}

/// The same for its turn on these keys.
pub(crate) fn may_take_turn(
    router: &Router<TaskPool>,
    hot_keys: &HotKeys<TaskKeyQueue>,
    keys: &Keys,
) -> bool {
    match hot_keys.is_any_hot(keys.buckets()) {
        true => may_wait(router),
        false => outer() != Some(true),
    }
}

/// Lets the task that has got this one's turn run first. The woken task is the next of this worker, and this one is
/// queued behind it, where an idle worker may take it: `tokio::task::yield_now` would queue it only when the worker has
/// nothing else to do.
pub(crate) async fn let_next_run() {
    let mut is_queued = false;
    poll_fn(|context| {
        if std::mem::replace(&mut is_queued, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Polls the closure of a block, and keeps what it writes past the block. `has_turn`: blocks inside it do
/// not wait for turns, whatever connections they use.
pub(crate) async fn run_closure<F: Future>(
    has_turn: bool,
    writes: &mut Option<OwnWrites>,
    mut closure: Pin<&mut F>,
) -> F::Output {
    let has_turn = has_turn || outer() == Some(true);
    poll_fn(|context| {
        let poll = || closure.as_mut().poll(context);
        own_writes::during(writes, || INSIDE_BLOCK.sync_scope(has_turn, poll))
    })
    .await
}

/// Marks that the task is between the begin and the end of an attempt of a loop, until this is dropped.
#[derive(Debug)]
pub(crate) struct InLoop((HolderTask, bool), ForkCheck);

impl InLoop {
    /// `has_turn`: blocks inside it do not wait for turns, whatever connections they use.
    pub(crate) fn enter(has_turn: bool) -> Self {
        let entry = (HolderTask::here(), has_turn);
        lock(&LOOPS).push(entry.clone());
        Self(entry, ForkCheck::here())
    }

    /// Whether a loop of this task may have a turn. `None`: the task is in no loop.
    fn here() -> Option<bool> {
        let loops = lock(&LOOPS);
        if loops.is_empty() {
            return None;
        }
        let this = HolderTask::here();
        loops.iter().filter(|(task, _)| *task == this).map(|(_, has_turn)| *has_turn).max()
    }
}

impl Drop for InLoop {
    fn drop(&mut self) {
        if self.1.is_other_process() {
            return;
        }
        let mut loops = lock(&LOOPS);
        if let Some(at) = loops.iter().position(|entry| *entry == self.0) {
            loops.swap_remove(at);
        }
    }
}
