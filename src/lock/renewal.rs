//! The thread that extends leases: one for all locks of a session manager, while there are any.
//!
//! It also gives back what could not be given back at once, and deletes what the server remembers of
//! releases that were answered. After the session manager was closed it goes on until the last
//! guard, or its lease, is gone, and closes the connections for renewals and releases then.
//!
//! Never: a lease extended that its guard has let go of. Never: a wait past the moment at which a
//! guard must be lost. Never: work forgotten because a log panicked.

use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use redis::Value;
use scopeguard::{defer_on_unwind, guard};
use tracing::Level;

use crate::error::lock::LostReason;
use crate::lock::client::{Courier, Over};
use crate::lock::lease::Hold;
use crate::protocol::cluster::slot;
use crate::protocol::lock::script::Call;
use crate::sync::lock;

/// How long the thread waits for another lock before it ends.
const IDLE: Duration = Duration::from_secs(10);
/// The longest pause before what could not be given back is tried again.
const PAUSE: Duration = Duration::from_millis(500);
/// The shortest time that one exchange for renewals gets: a busy machine may take as long.
const SHORTEST: Duration = Duration::from_millis(100);
/// How long the server may remember a release that was answered, where no other release goes by.
const FORGET: Duration = Duration::from_millis(100);
/// The most keys of answered releases that travel with the next one.
const ALONG: usize = 16;

/// The thread that extends leases, where there is one.
pub(crate) struct Keeper {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Of every guard that lives, or whose release is under way; until the lease is over.
    holds: HashMap<usize, Arc<Hold>>,
    chores: Vec<Chore>,
    /// Chores that are being tried.
    tried: usize,
    /// Acquisitions that are under way.
    attempts: usize,
    /// Keys by which the server remembers releases that were answered.
    answered: Vec<String>,
    /// When they are deleted, unless a release takes them along.
    forget_at: Option<Instant>,
    /// A thread is there, and sleeps until then; or is at work.
    running: bool,
    sleeps_until: Option<Instant>,
    /// No lease is extended any more: the time that the session manager was closed with is over.
    ceased: bool,
    /// The connections are closed: see [`Courier::finish`].
    finished: bool,
    over: bool,
}

/// Something to be given back, for as long as that makes a difference.
struct Chore {
    call: Call,
    next: Instant,
    pause: Duration,
    until: Instant,
}

/// What is to be done now.
#[derive(Default)]
struct Work {
    lost: Vec<Arc<Hold>>,
    due: Vec<Arc<Hold>>,
    chores: Vec<Chore>,
    answered: Vec<String>,
    /// When the first of all holds ends.
    bound: Option<Instant>,
    finishes: bool,
}

/// Why no acquisition can begin.
pub(crate) enum NotReady {
    /// The system started no thread.
    NoThread,
    Closed,
}

/// An acquisition that is under way: what it acquires will have to be looked after.
pub(crate) struct Begun<'k> {
    shared: &'k Shared,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        state.attempts -= 1;
        if state.ceased {
            self.shared.changed.notify_all();
        }
    }
}

impl Keeper {
    pub(crate) fn new() -> Self {
        Self { shared: Arc::default() }
    }

    /// Sees to it that there is a thread before there is something that needs it.
    pub(crate) fn begin(&self, courier: &Courier) -> Result<Begun<'_>, NotReady> {
        let mut state = lock(&self.shared.state);
        if state.ceased {
            return Err(NotReady::Closed);
        }
        self.start(&mut state, courier).map_err(|_| NotReady::NoThread)?;
        state.attempts += 1;
        Ok(Begun { shared: &self.shared })
    }

    /// Looks after `hold` until [`forget`](Self::forget).
    pub(crate) fn keep(&self, hold: &Arc<Hold>, courier: &Courier) {
        let mut state = lock(&self.shared.state);
        state.holds.insert(key(hold), Arc::clone(hold));
        let next = hold.next_look(!state.ceased);
        self.expect(state, next, courier);
    }

    /// Nothing is left of it on the server that has to be looked after.
    pub(crate) fn forget(&self, hold: &Arc<Hold>) {
        let mut state = lock(&self.shared.state);
        let forgotten = state.holds.remove(&key(hold));
        if state.ceased {
            self.shared.changed.notify_all();
        }
        drop(state);
        drop(forgotten);
    }

    /// Has `call` made, again and again until it is answered, or until it makes no difference.
    pub(crate) fn chore(&self, call: Call, until: Instant, courier: &Courier) {
        let next = Instant::now();
        let mut state = lock(&self.shared.state);
        if state.finished {
            return;
        }
        state.chores.push(Chore { call, next, pause: PAUSE / 50, until });
        self.expect(state, next, courier);
    }

    /// The release that the server remembers by `key` was answered.
    pub(crate) fn answered(&self, key: String, courier: &Courier) {
        let mut state = lock(&self.shared.state);
        state.answered.push(key);
        if state.forget_at.is_none() {
            let at = Instant::now() + FORGET;
            state.forget_at = Some(at);
            self.expect(state, at, courier);
        }
    }

    /// Keys of answered releases that a release of `holders` takes along: in a cluster, those of
    /// its slot.
    pub(crate) fn take_answered(&self, holders: &str, in_cluster: bool) -> Vec<String> {
        let mut state = lock(&self.shared.state);
        if !in_cluster {
            let kept = state.answered.len().saturating_sub(ALONG);
            return state.answered.split_off(kept);
        }
        let slot = slot::of_key(holders.as_bytes());
        let answered = std::mem::take(&mut state.answered);
        let (along, rest) =
            answered.into_iter().partition(|key| slot::of_key(key.as_bytes()) == slot);
        state.answered = rest;
        along
    }

    /// Waits until no guard lives and nothing is to be given back, or until `deadline`; from then on
    /// no lease is extended. Returns how many locks are held.
    pub(crate) fn cease(&self, deadline: Instant, courier: &Courier) -> usize {
        let mut state = lock(&self.shared.state);
        while !state.is_idle() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            // Releases of other threads are not told here.
            let pause = left.min(Duration::from_millis(1));
            let waited = self.shared.changed.wait_timeout(state, pause);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.ceased = true;
        let held = state.holds.values().filter(|hold| hold.is_held()).count();
        let answered = std::mem::take(&mut state.answered);
        let finishes = state.finishes();
        self.shared.changed.notify_all();
        if finishes {
            drop(state);
        } else {
            // The thread notices when the last of them is gone.
            self.expect(state, Instant::now(), courier);
        }
        forget(answered, None, courier);
        if finishes {
            courier.finish();
        }
        held
    }

    /// Whether leases are extended.
    pub(crate) fn extends(&self) -> bool {
        !lock(&self.shared.state).ceased
    }

    fn expect(
        &self,
        mut state: std::sync::MutexGuard<'_, State>,
        next: Instant,
        courier: &Courier,
    ) {
        let failed = if !state.running {
            self.start(&mut state, courier).err()
        } else {
            if state.sleeps_until.is_some_and(|until| next < until) {
                self.shared.changed.notify_all();
            }
            None
        };
        drop(state);
        if let Some(error) = failed {
            tracing::warn!(%error, "no thread to extend leases: they just end");
        }
    }

    fn start(&self, state: &mut State, courier: &Courier) -> std::io::Result<()> {
        if !state.running {
            let (shared, courier) = (Arc::clone(&self.shared), courier.clone());
            let thread = std::thread::Builder::new().name("rediscope-leases".to_owned());
            thread.spawn(move || shared.run(&courier))?;
            state.running = true;
        }
        Ok(())
    }

    /// No lock is left, and no handle either.
    pub(crate) fn close(&self) {
        lock(&self.shared.state).over = true;
        self.shared.changed.notify_all();
    }
}

fn key(hold: &Arc<Hold>) -> usize {
    Arc::as_ptr(hold) as usize
}

impl Shared {
    fn run(self: Arc<Self>, courier: &Courier) {
        // Otherwise that was noted under the lock under which it was decided.
        defer_on_unwind! {
            lock(&self.state).running = false;
        }
        while let Some(work) = self.next() {
            // A log is the user's, and may panic: the next piece of work is done all the same.
            let step = |step: &mut dyn FnMut()| drop(catch_unwind(AssertUnwindSafe(step)));
            for hold in &work.lost {
                step(&mut || hold.lose(LostReason::Expired));
            }
            step(&mut || renew(&work.due, work.bound, courier));
            let mut chores = Some(work.chores);
            step(&mut || self.try_chores(chores.take().unwrap_or_default(), work.bound, courier));
            let mut answered = Some(work.answered);
            step(&mut || forget(answered.take().unwrap_or_default(), work.bound, courier));
            if work.finishes {
                step(&mut || courier.finish());
            }
        }
    }

    /// Waits until there is something to do; `None`: there has not been for long, or it is over.
    fn next(&self) -> Option<Work> {
        let mut state = lock(&self.state);
        let idle = Instant::now() + IDLE;
        loop {
            let now = Instant::now();
            if state.over || state.finished {
                state.running = false;
                return None;
            }
            let work = state.work(now);
            if work.is_some() {
                return work;
            }
            let nothing = state.is_idle() && state.answered.is_empty();
            if nothing && now >= idle {
                // Under the lock: a caller that comes now starts a new thread.
                state.running = false;
                return None;
            }
            let extends = !state.ceased;
            let looks = state.holds.values().filter_map(|hold| hold.next_step(extends));
            let next = looks.chain(state.chores.iter().map(|chore| chore.next));
            let until = next.chain(state.forget_at).min().unwrap_or(idle);
            state.sleeps_until = Some(until);
            let left = until.saturating_duration_since(now);
            state =
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            state.sleeps_until = None;
        }
    }

    /// Tries them in one write. What was not answered is tried again later.
    fn try_chores(&self, chores: Vec<Chore>, bound: Option<Instant>, courier: &Courier) {
        if chores.is_empty() {
            return;
        }
        // Also where this panics they are to be done.
        let mut left = guard(chores, |chores| {
            let mut state = lock(&self.state);
            state.tried = 0;
            state.chores.extend(chores);
            drop(state);
            self.changed.notify_all();
        });
        let now = Instant::now();
        for chore in left.iter_mut() {
            chore.next = now + chore.pause;
            chore.pause = PAUSE.min(2 * chore.pause);
        }
        if courier.is_in_cluster() {
            left.sort_by_key(|chore| chore.call.slot());
        }
        let limit = bound.map_or(now + PAUSE, |bound| share(bound, now).min(now + PAUSE));
        let parts = left.chunk_by(|one, other| {
            !courier.is_in_cluster() || one.call.slot() == other.call.slot()
        });
        let mut settled = Vec::with_capacity(left.len());
        for chores in parts {
            let calls: Vec<_> = chores.iter().map(|chore| chore.call.clone()).collect();
            let answers = courier.ask(&calls, Over::Strictly, limit);
            let is_settled = |nth: usize| {
                let value = answers.as_ref().ok().and_then(|answers| answers.values.get(nth));
                value.is_some_and(|value| !matches!(value, Value::ServerError(_)))
            };
            settled.extend((0..chores.len()).map(is_settled));
        }
        let (now, mut settled) = (Instant::now(), settled.into_iter());
        left.retain(|chore| !settled.next().unwrap_or(false) && now < chore.until);
        drop(left);
    }
}

impl State {
    /// No guard lives and nothing is to be given back.
    fn is_idle(&self) -> bool {
        self.holds.is_empty() && self.chores.is_empty() && self.tried + self.attempts == 0
    }

    /// Notes that the connections are to be closed now, where that is so.
    fn finishes(&mut self) -> bool {
        let finishes = self.ceased && !self.finished && self.is_idle();
        self.finished |= finishes;
        finishes
    }

    fn work(&mut self, now: Instant) -> Option<Work> {
        let mut work = Work::default();
        let extends = !self.ceased;
        self.holds.retain(|_, hold| !hold.is_gone(now));
        let any_due = extends && self.holds.values().any(|hold| hold.is_due(now));
        for hold in self.holds.values().filter(|hold| hold.is_held()) {
            let valid_until = hold.valid_until();
            if valid_until <= now {
                work.lost.push(Arc::clone(hold));
                continue;
            }
            work.bound = Some(work.bound.map_or(valid_until, |bound| bound.min(valid_until)));
            // A lease that is due soon goes along: it costs no write of its own.
            if any_due && hold.is_due(now + hold.lease / 6) {
                work.due.push(Arc::clone(hold));
            }
        }
        let chores = std::mem::take(&mut self.chores);
        (work.chores, self.chores) = chores.into_iter().partition(|chore| chore.next <= now);
        self.tried = work.chores.len();
        if self.forget_at.is_some_and(|at| at <= now) {
            self.forget_at = None;
            work.answered = std::mem::take(&mut self.answered);
        }
        work.finishes = self.finishes();
        if work.finishes {
            work.answered.append(&mut self.answered);
        }
        let nothing = work.lost.is_empty()
            && work.due.is_empty()
            && work.chores.is_empty()
            && work.answered.is_empty()
            && !work.finishes;
        (!nothing).then_some(work)
    }
}

/// By when one exchange is to be over: half of the time is left for another one, on a new
/// connection where this one is silent.
fn share(bound: Instant, now: Instant) -> Instant {
    let half = bound.saturating_duration_since(now) / 2;
    bound.min(now + half.max(SHORTEST))
}

/// Extends them in one write; in a cluster, in one for each slot.
fn renew(due: &[Arc<Hold>], bound: Option<Instant>, courier: &Courier) {
    let mut due: Vec<_> = due.iter().collect();
    // Where one master is away, the locks on the others come first the next time.
    due.sort_by_key(|hold| {
        let slot = courier.is_in_cluster().then(|| slot::of_key(hold.names.holders.as_bytes()));
        (hold.failures(), slot)
    });
    // Before anything is sent: an answer that is not heard is none.
    due.iter().for_each(|hold| hold.postpone());
    let together = |one: &&Arc<Hold>, other: &&Arc<Hold>| {
        let slot = |hold: &Hold| slot::of_key(hold.names.holders.as_bytes());
        !courier.is_in_cluster() || slot(one) == slot(other)
    };
    for holds in due.chunk_by(together) {
        let calls: Vec<_> = holds.iter().map(|hold| hold.renewal()).collect();
        let now = Instant::now();
        let limit = bound.map_or(now + PAUSE, |bound| share(bound, now));
        let answers = match courier.ask(&calls, Over::Strictly, limit) {
            Ok(answers) => answers,
            Err(failed) => {
                let (error, locks) = (failed.told("renew"), holds.len());
                courier.herald().tell(Level::DEBUG, move || {
                    tracing::debug!(error = %format_args!("{error:#}"), locks, "leases not extended");
                });
                continue;
            }
        };
        let mut refused = None;
        for (hold, value) in holds.iter().zip(&answers.values) {
            match value {
                Value::Int(1) => hold.extended(answers.sent, answers.took),
                Value::Int(_) => hold.lose(LostReason::Gone),
                Value::ServerError(error) => refused = Some(error),
                _ => {}
            }
        }
        match refused {
            Some(error) => {
                let code = error.code().to_owned();
                let event = move || tracing::debug!(code, "lease not extended");
                courier.herald().tell(Level::DEBUG, event);
            }
            None => {
                let locks = holds.len();
                let event = move || tracing::trace!(locks, "leases extended");
                courier.herald().tell(Level::TRACE, event);
            }
        }
    }
}

/// Deletes keys by which the server remembers releases. They have a time to live, so one that is
/// not deleted is no loss.
fn forget(mut keys: Vec<String>, bound: Option<Instant>, courier: &Courier) {
    let slot = |key: &String| courier.is_in_cluster().then(|| slot::of_key(key.as_bytes()));
    keys.sort_by_key(slot);
    let now = Instant::now();
    let limit = bound.map_or(now + PAUSE, |bound| share(bound, now).min(now + PAUSE));
    let calls: Vec<_> = keys
        .chunk_by(|one, other| slot(one) == slot(other))
        .map(|keys| Call::delete(keys.iter().cloned()))
        .collect();
    if !calls.is_empty() && courier.ask(&calls, Over::Strictly, limit).is_err() {
        courier.herald().tell(Level::TRACE, || {
            tracing::trace!("releases that were answered are remembered for a while");
        });
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = lock(&self.shared.state);
        f.debug_struct("Keeper")
            .field("locks", &state.holds.len())
            .field("running", &state.running)
            .finish_non_exhaustive()
    }
}
