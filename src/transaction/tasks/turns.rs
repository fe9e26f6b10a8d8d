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
use crate::sync::timer::DeadlineTimer;
use crate::transaction::hot_keys::{ContentionLimiter, Turn, TurnSemaphore};

tokio::task_local! {
    /// Set while the closure of a block that may have a permit is polled: a block inside it must not
    /// wait for the outer one.
    static INSIDE_BLOCK: ();
}

/// The tasks that have an attempt of a loop: what the task-local is for a closure, for code that no
/// future of this crate contains.
static LOOPS: Mutex<Vec<LoopTask>> = Mutex::new(Vec::new());

/// The permits for which tasks wait, first come first served. A permit has a term, which each attempt
/// begins anew: a future that is polled no more holds up no other one for longer.
pub(crate) struct TaskTurns {
    places: Places,
    lent: Mutex<LentPermits>,
}

#[derive(Default)]
struct LentPermits {
    permits: Vec<LentPermit>,
    last_number: usize,
}

struct LentPermit {
    number: usize,
    term: Duration,
    /// When it is taken back, if its term is not begun anew.
    until: Instant,
    /// Number of permits that its holder keeps from others.
    withheld: usize,
}

impl TurnSemaphore for TaskTurns {
    fn new(permits: usize) -> Self {
        Self { places: Places::new(permits), lent: Mutex::default() }
    }

    fn give(&self, _permit: usize) {
        self.places.add();
    }

    fn attempts(&self, permit: usize, withheld: u32) -> bool {
        let mut lent = lock(&self.lent);
        let Some(permit) = lent.permits.iter_mut().find(|lent| lent.number == permit) else {
            return false;
        };
        permit.until = Instant::now() + permit.term;
        permit.withheld += withheld as usize;
        true
    }

    fn end(&self, permit: usize) -> bool {
        let mut lent = lock(&self.lent);
        let at = lent.permits.iter().position(|lent| lent.number == permit);
        at.map(|at| lent.permits.swap_remove(at)).is_some()
    }
}

impl TaskTurns {
    /// Takes the permits back whose term is over. Returns when the term of the next one is.
    fn take_back(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut freed = 0;
        let mut lent = lock(&self.lent);
        lent.permits.retain(|permit| {
            let is_over = permit.until <= now;
            freed += if is_over { 1 + permit.withheld } else { 0 };
            !is_over
        });
        let next = lent.permits.iter().map(|permit| permit.until).min();
        drop(lent);
        if freed > 0 {
            self.places.add_all(freed);
        }
        next
    }

    fn lend(&self, term: Duration) -> usize {
        let mut lent = lock(&self.lent);
        lent.last_number += 1;
        let (number, until) = (lent.last_number, Instant::now() + term);
        lent.permits.push(LentPermit { number, term, until, withheld: 0 });
        number
    }

    /// Waits for a permit until `deadline`. Dropped before its end, the future has taken none.
    async fn take(&self, deadline: Instant, term: Duration) -> Result<usize, NoPlace> {
        self.take_back();
        if self.places.try_take()? {
            return Ok(self.lend(term));
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

/// Whether the task is inside a block that may have a permit.
pub(crate) fn is_nested() -> bool {
    INSIDE_BLOCK.try_with(|()| ()).is_ok() || InLoop::is_here()
}

/// Waits for a permit until `deadline`; then the caller attempts without one. The permit is taken back
/// `term` after the last attempt. Dropped before its end, the future has no permit.
pub(crate) async fn enter(
    limiter: &Arc<ContentionLimiter<TaskTurns>>,
    buckets: &[u16],
    deadline: Instant,
    term: Duration,
) -> Turn<TaskTurns> {
    let (mut turn, buckets) = limiter.turn(buckets, is_nested());
    for bucket in buckets {
        let Some(turns) = limiter.semaphore(*bucket) else { continue };
        if let Ok(permit) = turns.take(deadline, term).await {
            turn.entered(*bucket, permit);
        }
    }
    turn
}

/// Polls the closure of a block, and keeps what it writes past the block. `has_turn`: blocks inside it do
/// not wait for permits.
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

/// Marks that the task is between the begin and the end of an attempt of a loop that may have a permit,
/// until this is dropped: blocks inside it do not wait for permits.
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
