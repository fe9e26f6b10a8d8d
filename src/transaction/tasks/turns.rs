//! Whether a task is inside a block that may have a turn on hot keys.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Mutex;
use std::thread::ThreadId;

use crate::pool::own_writes::{self, OwnWrites};
use crate::sync::fork_check::ForkCheck;
use crate::sync::lock;

tokio::task_local! {
    /// Set while the closure of a block that may have a turn is polled: a block inside it must not
    /// wait for the outer one.
    static INSIDE_BLOCK: ();
}

/// The tasks that have an attempt of a loop: what the task-local is for a closure, for code that no
/// future of this crate contains.
static LOOPS: Mutex<Vec<LoopTask>> = Mutex::new(Vec::new());

/// Whether the task is inside a block that may have a turn.
pub(crate) fn is_nested() -> bool {
    INSIDE_BLOCK.try_with(|()| ()).is_ok() || InLoop::is_here()
}

/// Polls the closure of a block, and keeps what it writes past the block. `has_turn`: blocks inside it do
/// not wait for turns.
pub(crate) async fn run_closure<F: Future>(
    has_turn: bool,
    writes: &mut Option<OwnWrites>,
    mut closure: Pin<&mut F>,
) -> F::Output {
    poll_fn(|context| {
        let mut poll = || closure.as_mut().poll(context);
        own_writes::during(writes, || match has_turn {
            true => INSIDE_BLOCK.sync_scope((), poll),
            false => poll(),
        })
    })
    .await
}

/// The task that is polled, or the thread that polls a future outside of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LoopTask {
    Task(tokio::task::Id),
    Thread(ThreadId),
}

impl LoopTask {
    fn here() -> Self {
        tokio::task::try_id().map_or_else(|| Self::Thread(std::thread::current().id()), Self::Task)
    }
}

/// Marks that the task is between the begin and the end of an attempt of a loop that may have a turn,
/// until this is dropped: blocks inside it do not wait for turns.
#[derive(Debug)]
pub(crate) struct InLoop(LoopTask, ForkCheck);

impl InLoop {
    pub(crate) fn enter() -> Self {
        let task = LoopTask::here();
        lock(&LOOPS).push(task);
        Self(task, ForkCheck::here())
    }

    fn is_here() -> bool {
        let loops = lock(&LOOPS);
        !loops.is_empty() && loops.contains(&LoopTask::here())
    }
}

impl Drop for InLoop {
    fn drop(&mut self) {
        if self.1.is_other_process() {
            return;
        }
        let mut loops = lock(&LOOPS);
        if let Some(at) = loops.iter().position(|task| *task == self.0) {
            loops.swap_remove(at);
        }
    }
}
