//! The permits of a pool of tasks, which callers get in the order of their waiting.
//!
//! A permit is granted as a right at once, not when its caller is polled next. So the pool can take it
//! back from a caller that was forgotten while it waited. (A semaphore of tokio would lose it.)
//!
//! A caller may leave a WATCH with its place, see [waiters](crate::pool::tasks::waiter). Other first packets
//! are not left: a hand-over from task to task takes a tenth of the time of a packet (3 of 30 µs).

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use tokio::runtime::Id as RuntimeId;

use crate::pool::semaphore::QueuePlace;
use crate::pool::tasks::holder::HolderTask;
use crate::pool::tasks::idle::TaskConnection;
use crate::pool::tasks::right::{Ended, Right};
use crate::pool::tasks::waiter::{Grant, LeftWatch, TakenWatch, Waiter};
use crate::sync::caught;
use crate::sync::own_mutex::OwnMutex;
use crate::sync::shim;
use crate::sync::timer::DeadlineTimer;

/// The permits of a pool.
pub(in crate::pool) struct Permits<C = TaskConnection> {
    state: OwnMutex<PermitState<C>>,
    max_size: usize,
}

struct PermitState<C> {
    closed: bool,
    /// The numbers of the free permits. While a caller waits in the queue, there is none.
    free: Vec<usize>,
    /// The lent permits by their numbers.
    rights: Vec<Option<Arc<Right>>>,
    /// In the order of their numbers. A caller whose WATCH was taken is not among them.
    waiters: VecDeque<InQueue<C>>,
    /// The callers whose WATCH is taken.
    taken: Vec<InQueue<C>>,
    last_number: i64,
    /// That of the caller that came before all others.
    first_number: i64,
}

/// A caller that waits. Each caller that begins to wait asks for the tasks of the others, so they are here.
struct InQueue<C> {
    holder: HolderTask,
    waiter: shim::Arc<Waiter<C>>,
}

/// The result of a wait for a permit.
pub(in crate::pool) enum Acquired<C = TaskConnection> {
    /// A permit, and the connection on which the caller's WATCH was sent, if it was.
    Right(Arc<Right>, Option<C>),
    TimedOut {
        /// Number of callers that waited, this one included.
        waiters: usize,
    },
    Closed,
}

impl<C> PermitState<C> {
    fn lend(&mut self, number: usize) -> Arc<Right> {
        let right = Arc::new(Right::new(number));
        if let Some(place) = self.rights.get_mut(number) {
            *place = Some(Arc::clone(&right));
        }
        right
    }

    /// Lends the permit to the caller that has waited longest, or keeps it.
    fn pass_on(&mut self, number: usize) -> Option<Waker> {
        if let Some(place) = self.rights.get_mut(number) {
            *place = None;
        }
        let Some(InQueue { waiter, .. }) = self.waiters.pop_front() else {
            self.free.push(number);
            return None;
        };
        let right = self.lend(number);
        waiter.lock().settle(Grant::Granted(right, None))
    }

    /// Number of callers that wait.
    fn waiting(&self) -> usize {
        self.waiters.len() + self.taken.len()
    }

    /// The place of this number in the queue, or the place where it belongs.
    fn place_of(&self, number: i64) -> Result<usize, usize> {
        // Callers that give up together do so in any order on a busy machine.
        self.waiters.binary_search_by_key(&number, |place| place.waiter.number)
    }

    /// The WATCH of this caller is not taken any more. Returns its place, if it was.
    fn end_taken(&mut self, waiter: &Waiter<C>) -> Option<InQueue<C>> {
        let is_this = |taken: &InQueue<C>| std::ptr::eq(&raw const *taken.waiter, waiter);
        let at = self.taken.iter().position(is_this)?;
        Some(self.taken.swap_remove(at))
    }

    /// Ends the right, and lends its permit again. `None`: it has ended before.
    fn lend_again(&mut self, from: &Right) -> Option<Arc<Right>> {
        let Ended { task } = from.end()?;
        let right = self.lend(from.number());
        if let Some(task) = task {
            right.attach(task);
        }
        Some(right)
    }

    /// Has a caller wait again, before all that came after it. Returns its permit, if one is free.
    fn wait_again(&mut self, place: InQueue<C>) -> Option<Arc<Right>> {
        if let Some(number) = self.free.pop() {
            return Some(self.lend(number));
        }
        let (Ok(at) | Err(at)) = self.place_of(place.waiter.number);
        self.waiters.insert(at, place);
        None
    }
}

impl<C: Send> Permits<C> {
    pub(in crate::pool) fn new(max_size: u32) -> Self {
        let max_size = max_size as usize;
        let (free, rights) = ((0..max_size).rev().collect(), vec![None; max_size]);
        let (waiters, taken) = (VecDeque::new(), Vec::new());
        let (closed, last_number, first_number) = (false, 0, 0);
        let state = PermitState { closed, free, rights, waiters, taken, last_number, first_number };
        Self { state: OwnMutex::new(state), max_size }
    }

    /// Takes a permit that is free; `None`: there is none.
    pub(in crate::pool) fn try_acquire(&self) -> Option<Acquired<C>> {
        let mut state = self.state.lock();
        if state.closed {
            return Some(Acquired::Closed);
        }
        let number = state.free.pop()?;
        Some(Acquired::Right(state.lend(number), None))
    }

    /// Waits for a permit, with a WATCH that a holder may send meanwhile. Dropped before its end, the
    /// future passes on what it was granted, by `give_back`.
    pub(in crate::pool) fn acquire(
        &self,
        place: QueuePlace,
        deadline: Instant,
        left: Option<LeftWatch>,
        give_back: impl Fn(Arc<Right>, Option<C>) + Send,
    ) -> impl Future<Output = Acquired<C>> + Send {
        self.acquire_looking(place, deadline, left, move || deadline, give_back)
    }

    /// The same for a caller that has to `look` at something else each time it waits on. That returns when to
    /// look again.
    pub(in crate::pool) async fn acquire_looking(
        &self,
        place: QueuePlace,
        deadline: Instant,
        left: Option<LeftWatch>,
        look: impl Fn() -> Instant + Send,
        give_back: impl Fn(Arc<Right>, Option<C>) + Send,
    ) -> Acquired<C> {
        let mut waiting = match self.queue(place, left) {
            Ok(waiter) => Waiting { permits: self, waiter, give_back },
            Err(acquired) => return acquired,
        };
        let mut timer = DeadlineTimer::default();
        poll_fn(|context| {
            loop {
                let wakes_at = match waiting.poll(context) {
                    Ok(acquired) => return Poll::Ready(acquired),
                    Err(gives_up_at) => gives_up_at.map_or(deadline, |at| at.min(deadline)),
                };
                ready!(timer.poll(context, wakes_at.min(look())));
                if let Some(acquired) = waiting.give_up(Instant::now(), deadline) {
                    return Poll::Ready(acquired);
                }
            }
        })
        .await
    }

    /// Takes a free permit, or a place in the queue.
    fn queue(
        &self,
        place: QueuePlace,
        left: Option<LeftWatch>,
    ) -> Result<shim::Arc<Waiter<C>>, Acquired<C>> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Acquired::Closed);
        }
        if let Some(number) = state.free.pop() {
            return Err(Acquired::Right(state.lend(number), None));
        }
        let waiting = |number| {
            let (holder, waiter) = (HolderTask::here(), Waiter::new(number, left));
            (shim::Arc::clone(&waiter), InQueue { holder, waiter })
        };
        Ok(match place {
            QueuePlace::First => {
                state.first_number -= 1;
                let (waiter, place) = waiting(state.first_number);
                state.waiters.push_front(place);
                waiter
            }
            QueuePlace::Last => {
                state.last_number += 1;
                let (waiter, place) = waiting(state.last_number);
                state.waiters.push_back(place);
                waiter
            }
        })
    }

    /// Ends a wait before its end, and returns what the caller was granted.
    fn leave(&self, waiter: &Waiter<C>) -> Grant<C> {
        let mut state = self.state.lock();
        let at = state.place_of(waiter.number).ok();
        let removed = at.and_then(|at| state.waiters.remove(at));
        let mut waiting = waiter.lock();
        let grant = std::mem::replace(&mut waiting.grant, Grant::Left);
        let waker = waiting.waker.take();
        drop(waiting);
        let taken = state.end_taken(waiter);
        drop(state);
        drop((removed, taken, waker));
        grant
    }

    /// Takes the WATCH of the caller that gets a permit next, if it has left one that `fits`. It leaves the
    /// queue, and gets the permit of the one that has taken its WATCH.
    pub(in crate::pool) fn take_watch(
        &self,
        fits: impl FnOnce(&LeftWatch, Option<RuntimeId>) -> bool,
    ) -> Option<TakenWatch<C>> {
        let mut state = self.state.lock();
        let taken = TakenWatch::take(&state.waiters.front()?.waiter, fits)?;
        let place = state.waiters.pop_front();
        state.taken.extend(place);
        Some(taken)
    }

    /// Passes the permit of `from` and its connection to the caller whose WATCH was sent on it. Returns the
    /// connection if the caller has given up, or the pool has taken the permit back.
    pub(in crate::pool) fn pass_on(
        &self,
        taken: &TakenWatch<C>,
        from: &Right,
        connection: C,
    ) -> Result<(), C> {
        let mut state = self.state.lock();
        let mut waiter = taken.0.lock();
        if state.closed || !waiter.grant.is_taken() {
            return Err(connection);
        }
        let Some(right) = state.lend_again(from) else { return Err(connection) };
        let waker = waiter.settle(Grant::Granted(right, Some(connection)));
        drop(waiter);
        let taken = state.end_taken(&taken.0);
        drop(state);
        drop(taken);
        wake(waker);
        Ok(())
    }

    /// Takes the permit of `from` for another caller. `None`: the pool has taken it back, or is closed.
    pub(in crate::pool) fn take_over(&self, from: &Right) -> Option<Arc<Right>> {
        let mut state = self.state.lock();
        if state.closed { None } else { state.lend_again(from) }
    }

    /// Returns a WATCH that will have no replies: its caller waits in its former place again, unless it has
    /// given up.
    pub(in crate::pool) fn return_watch(&self, TakenWatch(waiter): TakenWatch<C>) {
        let mut state = self.state.lock();
        let mut waiting = waiter.lock();
        if !waiting.grant.is_taken() {
            return;
        }
        let Some(place) = state.end_taken(&waiter) else { return };
        let waker = if let Some(right) = state.wait_again(place) {
            waiting.settle(Grant::Granted(right, None))
        } else {
            waiting.grant = Grant::Waiting;
            None
        };
        drop(waiting);
        drop(state);
        wake(waker);
    }

    /// Takes a permit back, and passes it on.
    pub(in crate::pool) fn give_back(&self, number: usize) {
        let waker = self.state.lock().pass_on(number);
        wake(waker);
    }

    /// No caller gets a permit from now on.
    pub(in crate::pool) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let (waiters, taken) =
            (std::mem::take(&mut state.waiters), std::mem::take(&mut state.taken));
        // The holder of a WATCH that was taken learns it when it has the replies.
        let settle = |place: &InQueue<C>| place.waiter.lock().settle(Grant::Closed);
        let wakers: Vec<_> = waiters.iter().chain(&taken).map(settle).collect();
        drop(state);
        wakers.into_iter().for_each(wake);
    }

    pub(in crate::pool) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// The lent permits.
    pub(in crate::pool) fn rights(&self) -> Vec<Arc<Right>> {
        self.state.lock().rights.iter().flatten().cloned().collect()
    }

    /// The right to the first permit, if it is lent, and the number of callers that wait.
    pub(in crate::pool) fn first(&self) -> (Option<Arc<Right>>, usize) {
        let state = self.state.lock();
        (state.rights.first().cloned().flatten(), state.waiting())
    }

    /// Returns whether the task or thread waits for a permit.
    pub(in crate::pool) fn is_waiting(&self, holder: &HolderTask) -> bool {
        self.state.lock().waiters.iter().any(|place| place.holder == *holder)
    }

    /// Number of callers in the queue.
    pub(in crate::pool) fn queued(&self) -> usize {
        self.state.lock().waiters.len()
    }

    /// Number of callers that wait for a permit, also of those whose WATCH is taken.
    pub(in crate::pool) fn waiting(&self) -> usize {
        self.state.lock().waiting()
    }

    /// Number of permits that callers hold.
    pub(in crate::pool) fn in_use(&self) -> usize {
        self.max_size.saturating_sub(self.state.lock().free.len())
    }
}

fn wake(waker: Option<Waker>) {
    waker.into_iter().for_each(caught::wake);
}

/// A caller that waits for a permit, until this is dropped.
struct Waiting<'p, C: Send, G: Fn(Arc<Right>, Option<C>)> {
    permits: &'p Permits<C>,
    waiter: shim::Arc<Waiter<C>>,
    give_back: G,
}

impl<C: Send, G: Fn(Arc<Right>, Option<C>)> Waiting<'_, C, G> {
    /// Returns what the caller gets, or the time at which it looks again whether its WATCH is kept for too
    /// long.
    fn poll(&self, context: &Context<'_>) -> Result<Acquired<C>, Option<Instant>> {
        let mut state = self.waiter.lock();
        let patience = self.waiter.left.as_ref().map(|left| left.patience);
        let since = match state.grant {
            Grant::Waiting => patience.map(|_| Instant::now()),
            Grant::Taken(since) => Some(since),
            _ => {
                let ended = std::mem::replace(&mut state.grant, Grant::Left);
                return Ok(match ended {
                    Grant::Granted(right, connection) => Acquired::Right(right, connection),
                    _ => Acquired::Closed,
                });
            }
        };
        let former = state.polled_by(context.waker());
        drop(state);
        drop(former);
        Err(since.zip(patience).and_then(|(since, patience)| since.checked_add(patience)))
    }

    /// Ends a wait at its deadline; a permit that came late wins. Before it, has a caller wait for any permit
    /// whose WATCH is kept for too long.
    fn give_up(&mut self, now: Instant, deadline: Instant) -> Option<Acquired<C>> {
        let mut state = self.permits.state.lock();
        let waiters = state.waiting();
        let mut waiting = self.waiter.lock();
        let patience = self.waiter.left.as_ref().map_or(Duration::MAX, |left| left.patience);
        let is_over = now >= deadline;
        let at = state.place_of(self.waiter.number);
        match (&waiting.grant, at) {
            (Grant::Waiting, Ok(at)) if is_over => {
                let removed = state.waiters.remove(at);
                drop(state);
                let waker = waiting.settle(Grant::Left);
                drop(waiting);
                drop((removed, waker));
                Some(Acquired::TimedOut { waiters })
            }
            (Grant::Taken(_), _) if is_over => {
                let waker = waiting.settle(Grant::Left);
                drop(waiting);
                let taken = state.end_taken(&self.waiter);
                drop(state);
                drop((taken, waker));
                Some(Acquired::TimedOut { waiters })
            }
            (Grant::Taken(since), _) if now.saturating_duration_since(*since) >= patience => {
                let waker = waiting.settle(Grant::Left);
                drop(waiting);
                let taken = state.end_taken(&self.waiter).filter(|_| !state.closed);
                let again = taken.map(|InQueue { holder, waiter: former }| {
                    let waiter = Waiter::new(former.number, None);
                    let place = InQueue { holder, waiter: shim::Arc::clone(&waiter) };
                    (state.wait_again(place), waiter)
                });
                drop(state);
                drop(waker);
                match again {
                    Some((None, waiter)) => {
                        self.waiter = waiter;
                        None
                    }
                    Some((Some(right), _)) => Some(Acquired::Right(right, None)),
                    None => Some(Acquired::Closed),
                }
            }
            // It is looked at again.
            _ => None,
        }
    }
}

impl<C: Send, G: Fn(Arc<Right>, Option<C>)> Drop for Waiting<'_, C, G> {
    fn drop(&mut self) {
        if self.permits.state.is_of_parent() {
            return;
        }
        if self.waiter.has_left() {
            return;
        }
        // The holder of a WATCH that was taken learns it when it has the replies.
        if let Grant::Granted(right, connection) = self.permits.leave(&self.waiter) {
            (self.give_back)(right, connection);
        }
    }
}

#[cfg(all(test, rediscope_shuttle))]
#[path = "../../../tests/model/permits.rs"]
mod model;
#[cfg(all(test, not(rediscope_shuttle)))]
#[path = "../../../tests/unit/permits.rs"]
mod tests;
