//! The thread that extends leases: one for all locks of a session manager, while there are any.
//!
//! It also gives back what could not be given back at once.
//!
//! Never: a lease extended that its guard has let go of. Never: a wait past the moment at which
//! somebody must be told that his lock is lost.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use redis::Value;
use scopeguard::defer_on_unwind;

use super::courier::Courier;
use super::hold::Hold;
use super::script::Call;
use crate::connection::lock;
use crate::error::LostBecause;

/// So long the thread waits for another lock before it ends.
const IDLE: Duration = Duration::from_secs(10);
/// The longest pause before what could not be given back is tried again.
const PAUSE: Duration = Duration::from_millis(500);

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
    holds: HashMap<usize, Arc<Hold>>,
    chores: Vec<Chore>,
    /// A thread is there, and sleeps until then; or is at work.
    running: bool,
    sleeps_until: Option<Instant>,
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
    /// When somebody else's hold ends.
    bound: Option<Instant>,
}

impl Keeper {
    pub(crate) fn new() -> Self {
        Self { shared: Arc::default() }
    }

    /// Looks after `hold` until [`forget`](Self::forget).
    pub(crate) fn keep(&self, hold: &Arc<Hold>, courier: &Courier) {
        let next = hold.next_look();
        let mut state = lock(&self.shared.state);
        state.holds.insert(key(hold), Arc::clone(hold));
        self.expect(&mut state, next, courier);
    }

    /// From now on nobody extends it.
    pub(crate) fn forget(&self, hold: &Arc<Hold>) {
        let forgotten = lock(&self.shared.state).holds.remove(&key(hold));
        drop(forgotten);
    }

    /// Has `call` made, again and again until it is answered, or until nobody cares.
    pub(crate) fn chore(&self, call: Call, until: Instant, courier: &Courier) {
        let next = Instant::now();
        let mut state = lock(&self.shared.state);
        state.chores.push(Chore { call, next, pause: PAUSE / 50, until });
        self.expect(&mut state, next, courier);
    }

    fn expect(&self, state: &mut State, next: Instant, courier: &Courier) {
        if !state.running {
            let (shared, courier) = (Arc::clone(&self.shared), courier.clone());
            let thread = std::thread::Builder::new().name("rediscope-leases".to_owned());
            match thread.spawn(move || shared.run(&courier)) {
                Ok(_) => state.running = true,
                Err(error) => tracing::warn!(%error, "no thread to extend leases: they just end"),
            }
        } else if state.sleeps_until.is_some_and(|until| next < until) {
            self.shared.changed.notify_one();
        }
    }

    /// Nobody has a lock any more, or will.
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
            work.lost.iter().for_each(|hold| hold.lose(LostBecause::Expired));
            renew(&work.due, work.bound, courier);
            for chore in work.chores {
                self.try_chore(chore, work.bound, courier);
            }
        }
    }

    /// Waits until there is something to do; `None`: there has not been for long, or it is over.
    fn next(&self) -> Option<Work> {
        let mut state = lock(&self.state);
        let idle = Instant::now() + IDLE;
        loop {
            let now = Instant::now();
            if state.over {
                state.running = false;
                return None;
            }
            let work = state.work(now);
            if !work.lost.is_empty() || !work.due.is_empty() || !work.chores.is_empty() {
                return Some(work);
            }
            let nothing = state.holds.is_empty() && state.chores.is_empty();
            if nothing && now >= idle {
                // Under the lock: whoever comes now starts a new thread.
                state.running = false;
                return None;
            }
            let looks = state.holds.values().map(|hold| hold.next_look());
            let next = looks.chain(state.chores.iter().map(|chore| chore.next)).min();
            let until = next.unwrap_or(idle);
            state.sleeps_until = Some(until);
            let left = until.saturating_duration_since(now);
            state =
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            state.sleeps_until = None;
        }
    }

    fn try_chore(&self, mut chore: Chore, bound: Option<Instant>, courier: &Courier) {
        let limit = Instant::now() + PAUSE;
        let limit = bound.map_or(limit, |bound| bound.min(limit));
        let asked = courier.ask(std::slice::from_ref(&chore.call), None, limit);
        let settled = asked.as_ref().is_ok_and(|answers| {
            !answers.values.iter().any(|value| matches!(value, Value::ServerError(_)))
        });
        let now = Instant::now();
        if settled || now >= chore.until {
            return;
        }
        chore.next = now + chore.pause;
        chore.pause = PAUSE.min(2 * chore.pause);
        lock(&self.state).chores.push(chore);
    }
}

impl State {
    fn work(&mut self, now: Instant) -> Work {
        let mut work = Work::default();
        let any_due = self.holds.values().any(|hold| hold.is_due(now));
        for hold in self.holds.values() {
            let valid_until = hold.valid_until();
            if valid_until <= now {
                work.lost.push(Arc::clone(hold));
                continue;
            }
            work.bound = Some(work.bound.map_or(valid_until, |bound| bound.min(valid_until)));
            // Who is due soon goes along: it costs no write of its own.
            if any_due && hold.is_due(now + hold.lease / 6) {
                work.due.push(Arc::clone(hold));
            }
        }
        for hold in &work.lost {
            self.holds.remove(&key(hold));
        }
        let (due, later) =
            std::mem::take(&mut self.chores).into_iter().partition(|c| c.next <= now);
        (work.chores, self.chores) = (due, later);
        work
    }
}

/// Extends them all in one write.
fn renew(due: &[Arc<Hold>], bound: Option<Instant>, courier: &Courier) {
    if due.is_empty() {
        return;
    }
    let calls: Vec<_> = due.iter().map(|hold| hold.renewal()).collect();
    let limit = bound.unwrap_or_else(|| Instant::now() + PAUSE);
    let answers = match courier.ask(&calls, None, limit) {
        Ok(answers) => answers,
        Err(failed) => {
            let error = failed.told("renew");
            tracing::debug!(error = %format_args!("{error:#}"), locks = due.len(), "leases not extended");
            return due.iter().for_each(|hold| hold.postpone());
        }
    };
    for (hold, value) in due.iter().zip(&answers.values) {
        match value {
            Value::Int(1) => hold.extended(answers.sent, answers.took),
            Value::Int(_) => hold.lose(LostBecause::Gone),
            Value::ServerError(error) => {
                tracing::debug!(code = error.code(), "lease not extended");
                hold.postpone();
            }
            _ => hold.postpone(),
        }
    }
    tracing::trace!(locks = due.len(), "leases extended");
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
