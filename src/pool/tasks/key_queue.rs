//! The turn on a hot key for which tasks wait: a permit, with which its holder passes on a connection.
//!
//! It is granted at once, not when its caller is polled next. So the callers that wait take it back from one
//! that was not polled since, and after a term without an attempt from any other.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::runtime::Id as RuntimeId;

use crate::connection::deadline::later;
use crate::pool::early_watch::EarlyWatch;
use crate::pool::key_turn::{Passed, TurnQueue, TurnWait, Turns};
use crate::pool::semaphore::QueuePlace;
use crate::pool::tasks::permits::{Acquired, Permits};
use crate::pool::tasks::right::Right;
use crate::pool::tasks::waiter::{LeftWatch, TakenWatch};
use crate::sync::lock;
use crate::sync::shim;
use crate::sync::timer::has_timers;

/// Time in which a caller that was granted the turn is polled.
const GRACE: Duration = Duration::from_millis(50);

/// Minimum time after which a waiting caller looks at the turn, and the time for each caller that waits.
const LOOK: (Duration, Duration) = (Duration::from_millis(100), Duration::from_micros(10));

/// What is passed on with a turn.
type PassedOn<C> = Passed<C, Arc<Right>>;

/// The turn for which tasks wait.
pub(crate) struct KeyQueue<C> {
    /// The only permit is the turn.
    turn: Permits<PassedOn<C>>,
    seen: Mutex<Option<Seen>>,
}

/// The turn, as it was used last, or seen first with this number of uses.
struct Seen {
    right: Arc<Right>,
    uses: u64,
    since: Instant,
}

impl<C: Send + 'static> KeyQueue<C> {
    /// Takes the turn back if its holder is polled no more. Returns when to look again.
    fn take_back(&self, term: Duration) -> Instant {
        let (now, (right, waiting)) = (Instant::now(), self.turn.first());
        let waiting = u32::try_from(waiting).unwrap_or(u32::MAX);
        let look = later(now, LOOK.0.max(LOOK.1.saturating_mul(waiting)));
        let Some(right) = right else { return look };
        let mut seen = lock(&self.seen);
        let uses = right.uses();
        let is_known = |seen: &&Seen| Arc::ptr_eq(&seen.right, &right) && seen.uses == uses;
        let since = match seen.as_ref().filter(is_known) {
            Some(seen) => seen.since,
            None => seen.insert(Seen { right: Arc::clone(&right), uses, since: now }).since,
        };
        drop(seen);
        let ends = later(since, if right.is_used() { term } else { GRACE });
        if ends > now {
            return look.min(ends);
        }
        self.release(&right);
        look
    }

    /// Records that the turn is used: its term begins again.
    fn on_use(&self, right: &Arc<Right>) {
        right.on_use();
        let (right, uses, since) = (Arc::clone(right), right.uses(), Instant::now());
        *lock(&self.seen) = Some(Seen { right, uses, since });
    }
}

impl<C: Send + 'static> TurnQueue for KeyQueue<C> {
    type Connection = C;
    type Turn = Arc<Right>;
    type Place = RuntimeId;
    type Taken = TakenWatch<PassedOn<C>>;

    fn single() -> Self {
        Self { turn: Permits::new(1), seen: Mutex::default() }
    }

    fn try_take(&self) -> Option<Arc<Right>> {
        let Some(Acquired::Right(right, _)) = self.turn.try_acquire() else { return None };
        self.on_use(&right);
        Some(right)
    }

    async fn take(
        &self,
        wait: TurnWait,
        watch: Option<(EarlyWatch, &[u16])>,
        release: impl Fn(&Turns<Arc<Right>>) + Send + Sync,
    ) -> Option<(Arc<Right>, Option<PassedOn<C>>)> {
        let TurnWait { deadline, mut place, patience, term } = wait;
        let give_back = |right: Arc<Right>, passed: Option<PassedOn<C>>| {
            self.release(&right);
            if let Some(passed) = &passed {
                release(&passed.others);
            }
        };
        let mut left = watch.map(|(watch, buckets)| LeftWatch::new(watch, patience, buckets));
        loop {
            if !has_timers() {
                // Without a runtime the attempt fails.
                return None;
            }
            // What it takes back is granted to a caller that waits, which is woken.
            let look = || self.take_back(term);
            let acquired = self.turn.acquire_looking(place, deadline, left.take(), look, give_back);
            let Acquired::Right(right, passed) = acquired.await else { return None };
            if self.attempts(&right) {
                return Some((right, passed));
            }
            // It was polled too late, and others may have changed the keys since its WATCH.
            if let Some(passed) = passed {
                release(&passed.others);
            }
            place = QueuePlace::First;
        }
    }

    fn release(&self, turn: &Arc<Right>) {
        if turn.end().is_some() {
            self.turn.give_back(turn.number());
        }
    }

    fn close(&self) {
        self.turn.close();
    }

    fn attempts(&self, turn: &Arc<Right>) -> bool {
        let is_held = turn.is_held();
        if is_held {
            self.on_use(turn);
        }
        is_held
    }

    fn is_held(turn: &Arc<Right>) -> bool {
        turn.is_held()
    }

    fn on_passed(turn: &Arc<Right>) {
        turn.on_passed();
    }

    fn queued(&self) -> usize {
        self.turn.queued()
    }

    fn take_watch(
        &self,
        runtime: RuntimeId,
        fits: impl FnOnce(&EarlyWatch, &[u16]) -> bool,
    ) -> Option<Self::Taken> {
        let fits = |left: &LeftWatch, of| of == Some(runtime) && fits(&left.watch, &left.buckets);
        self.turn.take_watch(fits)
    }

    fn watch_of(taken: &Self::Taken) -> Option<shim::Arc<EarlyWatch>> {
        taken.watch()
    }

    fn is_awaited(taken: &Self::Taken) -> bool {
        taken.is_awaited()
    }

    fn pass_on(
        &self,
        taken: Self::Taken,
        from: &Arc<Right>,
        passed: PassedOn<C>,
    ) -> Result<(), PassedOn<C>> {
        let passed = self.turn.pass_on(&taken, from, passed);
        if passed.is_err() {
            self.turn.return_watch(taken);
        }
        passed
    }

    fn return_watch(&self, taken: Self::Taken) {
        self.turn.return_watch(taken);
    }
}

#[cfg(all(test, rediscope_shuttle))]
#[path = "../../../tests/model/task_turns.rs"]
mod model;
#[cfg(all(test, not(rediscope_shuttle)))]
#[path = "../../../tests/unit/turns.rs"]
mod tests;
