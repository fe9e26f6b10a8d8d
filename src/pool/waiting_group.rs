//! Requests that wait together for a connection: one of their callers leads them, and one wake-up is
//! for all others.
//!
//! The first caller leads. If it gives up, the next one does.

use std::collections::VecDeque;
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use crate::connection::deadline::later;
use crate::pool::job::{GivenUp, Job, Token};
use crate::sync::cancel;
use crate::sync::shim::{Arc, Condvar, Mutex, MutexGuard, PoisonError, lock};
use crate::sync::this_thread;

/// Number of members for which memory is allocated at once.
const USUAL_MEMBERS: usize = 16;

/// Requests that wait together for a connection.
#[derive(Debug)]
pub(crate) struct WaitingGroup<T, R> {
    state: Mutex<GroupState<T, R>>,
    /// Wakes the leader.
    granted: Condvar,
    /// Wakes all other members at once.
    settled: Condvar,
}

#[derive(Debug)]
struct GroupState<T, R> {
    members: Vec<Member<T, R>>,
    /// Number of the member that leads.
    leader: usize,
    stage: Stage,
    bytes: usize,
    leader_sleeps: bool,
    /// Number of other members that sleep.
    asleep: usize,
}

#[derive(Debug)]
struct Member<T, R> {
    /// The thread, for a search without a visit of every caller.
    thread: ThreadId,
    job: Arc<Job<T, R>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Waiting,
    /// The leader has not seen its permit yet.
    Granted(usize),
    /// The leader has a permit.
    Led,
    /// No permit will be granted.
    Closed,
}

/// What has ended a member's sleep.
#[derive(Debug)]
pub(crate) enum Woken<R> {
    /// It leads, with this permit.
    Leads(usize),
    Response(R),
    /// No permit will be granted. The request is withdrawn.
    Closed,
    /// It leads and has waited for longer than its patience.
    Impatient,
    TimedOut,
}

/// What became of a member that has given up.
#[derive(Debug)]
pub(super) enum GaveUp<R> {
    /// It leads after all: the permit was granted before.
    Leads(usize),
    /// Its request is withdrawn.
    Withdrawn,
    /// The same, and no other member is left.
    Dissolved,
    /// A leader has taken its request, and will give it a response.
    Taken,
    /// The same, and a late member awaits it no more; that of an exactly-once block with this token.
    Unknown(Option<Token>),
    Response(R),
}

/// The largest size of a group.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GroupLimits {
    pub(crate) requests: usize,
    pub(crate) bytes: usize,
}

impl<T, R> WaitingGroup<T, R> {
    /// A group with one member, which leads.
    pub(super) fn new(job: Arc<Job<T, R>>, bytes: usize) -> Arc<Self> {
        let mut members = Vec::with_capacity(USUAL_MEMBERS);
        members.push(Member { thread: this_thread(), job });
        let state = GroupState {
            members,
            leader: 0,
            stage: Stage::Waiting,
            bytes,
            leader_sleeps: false,
            asleep: 0,
        };
        let (granted, settled) = (Condvar::new(), Condvar::new());
        Arc::new(Self { state: Mutex::new(state), granted, settled })
    }

    /// Adds a member if there is room. Returns its number.
    pub(super) fn join(
        &self,
        job: &Arc<Job<T, R>>,
        bytes: usize,
        limits: GroupLimits,
    ) -> Option<usize> {
        let mut state = lock(&self.state);
        let number = state.members.len();
        if number >= limits.requests || state.bytes + bytes > limits.bytes {
            return None;
        }
        state.bytes += bytes;
        state.members.push(Member { thread: this_thread(), job: Arc::clone(job) });
        Some(number)
    }

    /// Sleeps until the member leads, has its response, or `until`. `patience`: of a leader.
    pub(super) fn wait(
        &self,
        number: usize,
        job: &Job<T, R>,
        until: Instant,
        patience: Option<Duration>,
    ) -> Woken<R> {
        let mut impatient_at = None;
        let mut state = lock(&self.state);
        loop {
            if let Some(response) = job.response() {
                return Woken::Response(response);
            }
            match state.stage {
                Stage::Granted(permit) if state.leader == number => {
                    state.stage = Stage::Led;
                    return Woken::Leads(permit);
                }
                Stage::Closed if job.take().is_some() => return Woken::Closed,
                _ => {}
            }
            let now = Instant::now();
            let mut left = until.saturating_duration_since(now);
            let taken = || job.look(|_| ()).is_none();
            // A request that a leader has taken is not withdrawn.
            if left.is_zero() || cancel::is_cancelled() && !taken() {
                return Woken::TimedOut;
            }
            let leads = state.leader == number;
            let patience =
                patience.map(|patience| *impatient_at.get_or_insert(later(now, patience)));
            if let Some(impatient_at) = patience.filter(|_| leads) {
                if impatient_at <= now {
                    return Woken::Impatient;
                }
                left = left.min(impatient_at - now);
            }
            state.sleeps(leads, true);
            let condvar = if leads { &self.granted } else { &self.settled };
            let woken = condvar.wait_timeout(state, cancel::tick(left));
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
            state.sleeps(leads, false);
        }
    }

    /// Grants the leader a permit. Returns the number of members, also of those that have given up, and whether
    /// the leader is to be woken.
    pub(super) fn grant(&self, permit: usize) -> (usize, bool) {
        let mut state = lock(&self.state);
        state.stage = Stage::Granted(permit);
        (state.members.len(), state.leader_sleeps)
    }

    pub(super) fn wake_leader(&self) {
        self.granted.notify_one();
    }

    /// Wakes all members, to see their responses.
    pub(super) fn wake_members(&self) {
        let state = lock(&self.state);
        let asleep = state.asleep > 0;
        drop(state);
        if asleep {
            self.settled.notify_all();
        }
    }

    /// Ends the wait of a member; one that `is_late` awaits no response either. Called under the
    /// semaphore's mutex, so that the member finds itself either waiting or granted, and a leader does not
    /// meanwhile put back its request and pass the lead to it.
    pub(super) fn give_up(&self, number: usize, job: &Job<T, R>, is_late: bool) -> GaveUp<R> {
        let mut state = lock(&self.state);
        if state.leader == number
            && let Stage::Granted(permit) = state.stage
        {
            state.stage = Stage::Led;
            return GaveUp::Leads(permit);
        }
        let withdrawn = match is_late {
            false => job.take().is_some(),
            true => match job.give_up() {
                GivenUp::Withdrawn(_) => true,
                GivenUp::Taken(token) => return GaveUp::Unknown(token),
                GivenUp::Response(response) => return GaveUp::Response(response),
            },
        };
        match withdrawn {
            true if state.leader == number => self.pass_lead(state),
            true => GaveUp::Withdrawn,
            false => GaveUp::Taken,
        }
    }

    /// Ends the lead of a member, whose request is withdrawn if it was not sent. Called under the
    /// semaphore's mutex.
    pub(super) fn abandon(&self, job: &Job<T, R>) -> GaveUp<R> {
        let mut state = lock(&self.state);
        drop(job.take());
        state.stage = Stage::Waiting;
        self.pass_lead(state)
    }

    /// Has the next member lead.
    fn pass_lead(&self, mut state: MutexGuard<'_, GroupState<T, R>>) -> GaveUp<R> {
        let Some(next) = state.members.iter().position(Member::waits) else {
            return GaveUp::Dissolved;
        };
        state.leader = next;
        drop(state);
        // The new leader sleeps among the others.
        self.settled.notify_all();
        GaveUp::Withdrawn
    }

    /// Refuses a permit to all members.
    pub(super) fn close(&self) {
        lock(&self.state).stage = Stage::Closed;
        self.granted.notify_all();
        self.settled.notify_all();
    }

    /// The requests of the members that wait, in the order of their arrival.
    pub(super) fn jobs(&self) -> VecDeque<Arc<Job<T, R>>> {
        let state = lock(&self.state);
        let waiting = state.members.iter().filter(|member| member.waits());
        waiting.map(|member| Arc::clone(&member.job)).collect()
    }

    /// Whether a thread waits here.
    pub(super) fn has(&self, thread: ThreadId) -> bool {
        let is_this = |member: &Member<T, R>| member.thread == thread && member.waits();
        lock(&self.state).members.iter().any(is_this)
    }

    /// Number of members that wait.
    pub(super) fn waiting(&self) -> usize {
        lock(&self.state).members.iter().filter(|member| member.waits()).count()
    }
}

impl<T, R> Member<T, R> {
    /// Whether its request was neither taken nor withdrawn.
    fn waits(&self) -> bool {
        self.job.look(|_| ()).is_some()
    }
}

impl<T, R> GroupState<T, R> {
    fn sleeps(&mut self, leads: bool, sleeps: bool) {
        match (leads, sleeps) {
            (true, _) => self.leader_sleeps = sleeps,
            (false, true) => self.asleep += 1,
            (false, false) => self.asleep -= 1,
        }
    }
}
