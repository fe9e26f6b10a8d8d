//! The turns of tasks on hot keys.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use crate::pool::own_writes::{self, OwnWrites};
use crate::sync::fork_check::ForkCheck;
use crate::sync::lock;
use crate::sync::places::{NoPlace, Places};
use crate::sync::timer::{DeadlineTimer, has_timers};
use crate::transaction::hot_keys::{HotKeys, Turn, TurnSemaphore, TurnWait};

tokio::task_local! {
    /// Set while the closure of a block that may have a turn is polled: a block inside it must not
    /// wait for the outer one.
    static INSIDE_BLOCK: ();
}

/// The tasks that have an attempt of a loop: what the task-local is for a closure, for code that no
/// future of this crate contains.
static LOOPS: Mutex<Vec<LoopTask>> = Mutex::new(Vec::new());

/// The turn for which tasks wait, first come first served. A turn has a term, which each attempt begins
/// anew: a future that is polled no more holds up no other one for longer.
pub(crate) struct TaskTurns {
    places: Places,
    lent: Mutex<Lent>,
}

#[derive(Default)]
struct Lent {
    turn: Option<LentTurn>,
    last_number: usize,
}

struct LentTurn {
    number: usize,
    term: Duration,
    /// When it is taken back, if its term is not begun anew.
    until: Instant,
}

impl TurnSemaphore for TaskTurns {
    type Key = ();

    fn new() -> Self {
        Self { places: Places::new(1), lent: Mutex::default() }
    }

    fn release(&self, turn: usize) {
        let released = lock(&self.lent).turn.take_if(|lent| lent.number == turn);
        if released.is_some() {
            self.places.add();
        }
    }

    fn close(&self) {
        self.places.close();
    }

    fn attempts(&self, turn: usize) -> bool {
        let mut lent = lock(&self.lent);
        let Some(lent) = lent.turn.as_mut().filter(|lent| lent.number == turn) else {
            return false;
        };
        lent.until = Instant::now() + lent.term;
        true
    }
}

impl TaskTurns {
    /// Takes the turn back if its term is over. Returns when the term is over.
    fn take_back(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut lent = lock(&self.lent);
        let is_over = lent.turn.take_if(|turn| turn.until <= now).is_some();
        let next = lent.turn.as_ref().map(|turn| turn.until);
        drop(lent);
        if is_over {
            self.places.add();
        }
        next
    }

    fn lend(&self, term: Duration) -> usize {
        let mut lent = lock(&self.lent);
        lent.last_number += 1;
        let (number, until) = (lent.last_number, Instant::now() + term);
        lent.turn = Some(LentTurn { number, term, until });
        number
    }

    /// Waits for the turn until `deadline`. Dropped before its end, the future has not taken it.
    async fn take(&self, deadline: Instant, term: Duration) -> Result<usize, NoPlace> {
        self.take_back();
        if self.places.try_take()? {
            return Ok(self.lend(term));
        }
        if !has_timers() {
            // Without a runtime the attempt fails.
            return Err(NoPlace::TimedOut);
        }
        let (mut taking, mut timer) = (pin!(self.places.take(deadline)), DeadlineTimer::default());
        poll_fn(|context| {
            loop {
                // First: this caller may get what it takes back.
                let next = self.take_back();
                match taking.as_mut().poll(context) {
                    Poll::Ready(taken) => return Poll::Ready(taken.map(|()| self.lend(term))),
                    Poll::Pending if next.is_none_or(|next| next >= deadline) => {
                        return Poll::Pending;
                    }
                    Poll::Pending => {}
                }
                if timer.poll(context, next.unwrap_or(deadline)).is_pending() {
                    return Poll::Pending;
                }
            }
        })
        .await
    }
}

/// Whether the task is inside a block that may have a turn.
pub(crate) fn is_nested() -> bool {
    INSIDE_BLOCK.try_with(|()| ()).is_ok() || InLoop::is_here()
}

/// Waits for the turn in these buckets. It is taken back `term` after the last attempt. Dropped before
/// its end, the future has no turn.
pub(crate) async fn enter(
    hot_keys: &Arc<HotKeys<TaskTurns>>,
    buckets: &[u16],
    wait: TurnWait,
    term: Duration,
) -> Turn<TaskTurns> {
    let is_nested = is_nested();
    let mut turn = hot_keys.turn(is_nested);
    let hot = if is_nested { Vec::new() } else { hot_keys.hot(buckets) };
    for bucket in &hot {
        let Some(turns) = hot_keys.turns(*bucket) else { continue };
        let Ok(number) = turns.take(wait.deadline, term).await else { return turn };
        turn.entered(*bucket, number);
    }
    turn.leave_cold();
    turn
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

#[cfg(test)]
#[path = "../../../tests/unit/turns.rs"]
mod tests;
