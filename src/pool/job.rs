//! A job that one caller submits and another one does, and the queue between tasks.
//!
//! Until the job is taken, its submitter can withdraw it; both is one step of one state. A job that is
//! taken is done in any case: the response to an abandoned one is dropped. A submitter that gives up has
//! the token of its exactly-once block, whatever becomes of the one that has taken the job.

#[cfg(all(test, rediscope_shuttle, feature = "tokio"))]
#[path = "../../tests/model/job.rs"]
mod model;

#[cfg(feature = "tokio")]
use std::collections::VecDeque;
use std::mem;
use std::task::Waker;
#[cfg(feature = "tokio")]
use std::task::{Context, Poll};

use crate::error::in_doubt::SharedToken;
use crate::sync::caught::wake;
use crate::sync::shim::{Arc, Mutex, lock};

/// The token of an exactly-once block, shared by the blocks of its group.
pub(super) type Token = std::sync::Arc<SharedToken>;

/// A job that one caller submits and another one does.
#[derive(Debug)]
pub(crate) struct Job<T, R> {
    state: Mutex<JobState<T, R>>,
}

#[derive(Debug)]
struct JobState<T, R> {
    stage: Stage<T, R>,
    /// Wakes the submitter.
    submitter: Option<Waker>,
}

#[derive(Debug)]
enum Stage<T, R> {
    /// The submitter may withdraw the request.
    Queued(T),
    /// The request is being sent, or was; an exactly-once block with this token.
    Taken(Option<Token>),
    /// It was taken, and nothing waits for its response.
    #[cfg(feature = "tokio")]
    Abandoned,
    /// The same, but its submitter has the token.
    GaveUp,
    Done(R),
    /// The response was taken, or the request was withdrawn.
    Over,
}

/// The result of an attempt to take a request.
pub(crate) enum Taking<T> {
    Taken(T),
    /// It is not wanted yet.
    Left,
    /// It is not queued.
    Gone,
}

/// What a submitter that gives up has of its job.
#[derive(Debug)]
pub(crate) enum GivenUp<T, R> {
    /// It was not taken, and never will be.
    Withdrawn(T),
    Response(R),
    /// It may be done; an exactly-once block with this token.
    Taken(Option<Token>),
}

/// What the submitter of a taken job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Submitter {
    Waits,
    /// It has left, or has the response.
    Left,
    /// It has given up, and asks for the outcome by the token.
    HasToken,
}

/// What became of a job that its submitter has left.
#[cfg(feature = "tokio")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// It was not taken, and never will be.
    Withdrawn,
    /// It may be done. Its response is dropped.
    Abandoned,
    /// Its response was taken.
    Over,
}

impl<T, R> Job<T, R> {
    /// `submitter`: the task to be woken by the response, if it is known before its first poll.
    pub(crate) fn new(request: T, submitter: Option<Waker>) -> Arc<Self> {
        let state = JobState { stage: Stage::Queued(request), submitter };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// Returns the response, if there is one.
    pub(crate) fn response(&self) -> Option<R> {
        let mut state = lock(&self.state);
        if !matches!(state.stage, Stage::Done(_)) {
            return None;
        }
        match mem::replace(&mut state.stage, Stage::Over) {
            Stage::Done(response) => Some(response),
            _ => None,
        }
    }

    /// Returns the response. Wakes the task later if there is none yet.
    #[cfg(feature = "tokio")]
    pub(crate) fn poll(&self, context: &Context<'_>) -> Poll<R> {
        let mut state = lock(&self.state);
        if matches!(state.stage, Stage::Done(_))
            && let Stage::Done(response) = mem::replace(&mut state.stage, Stage::Over)
        {
            return Poll::Ready(response);
        }
        let former = match &state.submitter {
            Some(known) if known.will_wake(context.waker()) => None,
            _ => state.submitter.replace(context.waker().clone()),
        };
        drop(state);
        drop(former);
        Poll::Pending
    }

    /// Takes the request of a job that is queued.
    pub(crate) fn take(&self) -> Option<T> {
        self.take_with(None)
    }

    /// The same for an exactly-once block that is sent with this token.
    pub(crate) fn take_with(&self, token: Option<&Token>) -> Option<T> {
        let mut state = lock(&self.state);
        match mem::replace(&mut state.stage, Stage::Taken(token.cloned())) {
            Stage::Queued(request) => Some(request),
            other => {
                state.stage = other;
                None
            }
        }
    }

    /// Takes the request of a job that is queued, if it is `wanted`.
    pub(crate) fn take_if(&self, wanted: impl FnOnce(&mut T) -> bool) -> Taking<T> {
        let mut state = lock(&self.state);
        let Stage::Queued(request) = &mut state.stage else { return Taking::Gone };
        if !wanted(request) {
            return Taking::Left;
        }
        match mem::replace(&mut state.stage, Stage::Taken(None)) {
            Stage::Queued(request) => Taking::Taken(request),
            _ => Taking::Gone,
        }
    }

    /// Passes the request of a job that is queued to `look`.
    pub(crate) fn look<V>(&self, look: impl FnOnce(&mut T) -> V) -> Option<V> {
        match &mut lock(&self.state).stage {
            Stage::Queued(request) => Some(look(request)),
            _ => None,
        }
    }

    /// Makes a taken job a queued one again, of which nothing was done, if its submitter waits.
    pub(crate) fn requeue(&self, request: T) -> Submitter {
        let mut state = lock(&self.state);
        let submitter = state.submitter_of_taken();
        let waits = submitter == Submitter::Waits;
        state.stage = if waits { Stage::Queued(request) } else { Stage::Over };
        submitter
    }

    /// Sets the response of a taken job, and wakes the submitter.
    pub(crate) fn settle(&self, response: R) -> Submitter {
        let mut state = lock(&self.state);
        let submitter = state.submitter_of_taken();
        if submitter != Submitter::Waits {
            state.stage = Stage::Over;
            return submitter;
        }
        state.stage = Stage::Done(response);
        let waker = state.submitter.take();
        drop(state);
        waker.into_iter().for_each(wake);
        submitter
    }

    /// Records that the submitter waits no more, and returns what it has.
    pub(crate) fn give_up(&self) -> GivenUp<T, R> {
        let mut state = lock(&self.state);
        let given_up = match mem::replace(&mut state.stage, Stage::Over) {
            Stage::Queued(request) => GivenUp::Withdrawn(request),
            Stage::Done(response) => GivenUp::Response(response),
            Stage::Taken(token) => {
                if token.is_some() {
                    state.stage = Stage::GaveUp;
                }
                GivenUp::Taken(token)
            }
            // The response was taken before.
            _ => GivenUp::Taken(None),
        };
        let waker = state.submitter.take();
        drop(state);
        drop(waker);
        given_up
    }

    /// Has the submitter polled again.
    #[cfg(feature = "tokio")]
    pub(crate) fn wake(&self) {
        let submitter = lock(&self.state).submitter.take();
        submitter.into_iter().for_each(wake);
    }

    /// Records that the submitter waits no more.
    #[cfg(feature = "tokio")]
    pub(crate) fn leave(&self) -> Left {
        let mut state = lock(&self.state);
        let (stage, left) = match mem::replace(&mut state.stage, Stage::Over) {
            Stage::Queued(request) => (Some(Stage::Queued(request)), Left::Withdrawn),
            Stage::Taken(_) | Stage::Abandoned => {
                state.stage = Stage::Abandoned;
                (None, Left::Abandoned)
            }
            Stage::GaveUp => {
                state.stage = Stage::GaveUp;
                (None, Left::Abandoned)
            }
            Stage::Done(response) => (Some(Stage::Done(response)), Left::Abandoned),
            Stage::Over => (None, Left::Over),
        };
        let submitter = state.submitter.take();
        drop(state);
        // The request, the response and the waker belong to others.
        drop((stage, submitter));
        left
    }
}

impl<T, R> JobState<T, R> {
    fn submitter_of_taken(&self) -> Submitter {
        match self.stage {
            Stage::Taken(_) => Submitter::Waits,
            Stage::GaveUp => Submitter::HasToken,
            _ => Submitter::Left,
        }
    }
}

/// The jobs that wait, first come first served, and the task that takes them.
#[cfg(feature = "tokio")]
#[derive(Debug)]
pub(crate) struct JobQueue<T, R> {
    state: Mutex<QueueState<T, R>>,
}

#[cfg(feature = "tokio")]
#[derive(Debug)]
struct QueueState<T, R> {
    jobs: VecDeque<Arc<Job<T, R>>>,
    /// Wakes the task that takes the jobs.
    taker: Option<Waker>,
    closed: bool,
}

#[cfg(feature = "tokio")]
impl<T, R> JobQueue<T, R> {
    pub(crate) fn new() -> Self {
        let state = QueueState { jobs: VecDeque::new(), taker: None, closed: false };
        Self { state: Mutex::new(state) }
    }

    /// Adds a job. Returns false if the queue is closed.
    #[must_use]
    pub(crate) fn push(&self, job: &Arc<Job<T, R>>) -> bool {
        let mut state = lock(&self.state);
        if state.closed {
            return false;
        }
        state.jobs.push_back(Arc::clone(job));
        let taker = state.taker.take();
        drop(state);
        taker.into_iter().for_each(wake);
        true
    }

    /// Removes a job that was withdrawn, if it waits here.
    pub(crate) fn remove(&self, job: &Arc<Job<T, R>>) {
        let mut state = lock(&self.state);
        let at = state.jobs.iter().position(|queued| Arc::ptr_eq(queued, job));
        let removed = at.and_then(|at| state.jobs.remove(at));
        drop(state);
        drop(removed);
    }

    /// Removes the jobs for which `removes` returns true. The others stay in their places.
    pub(crate) fn remove_if(&self, mut removes: impl FnMut(&Arc<Job<T, R>>) -> bool) {
        let mut state = lock(&self.state);
        let mut removed = Vec::new();
        state.jobs.retain(|job| {
            let stays = !removes(job);
            if !stays {
                removed.push(Arc::clone(job));
            }
            stays
        });
        drop(state);
        drop(removed);
    }

    /// Puts jobs back in front of the others.
    pub(crate) fn put_back(&self, mut jobs: VecDeque<Arc<Job<T, R>>>) {
        let mut state = lock(&self.state);
        jobs.append(&mut state.jobs);
        state.jobs = jobs;
    }

    /// Moves the waiting jobs behind those in `jobs`.
    pub(crate) fn drain_into(&self, jobs: &mut VecDeque<Arc<Job<T, R>>>) {
        let mut state = lock(&self.state);
        match jobs.is_empty() {
            true => mem::swap(jobs, &mut state.jobs),
            false => jobs.append(&mut state.jobs),
        }
    }

    /// Returns whether jobs wait, or false once the queue is closed and empty. Wakes the task later if
    /// neither is so.
    pub(crate) fn poll_waiting(&self, context: &Context<'_>) -> Poll<bool> {
        let mut state = lock(&self.state);
        if !state.jobs.is_empty() {
            return Poll::Ready(true);
        }
        if state.closed {
            return Poll::Ready(false);
        }
        let former = match &state.taker {
            Some(known) if known.will_wake(context.waker()) => None,
            _ => state.taker.replace(context.waker().clone()),
        };
        drop(state);
        drop(former);
        Poll::Pending
    }

    /// Number of jobs that wait.
    #[cfg(feature = "tokio")]
    pub(crate) fn len(&self) -> usize {
        lock(&self.state).jobs.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.state).jobs.is_empty()
    }

    /// Wakes the submitters of all waiting jobs.
    pub(crate) fn wake_submitters(&self) {
        let jobs = lock(&self.state).jobs.clone();
        jobs.iter().for_each(|job| job.wake());
    }

    /// Refuses further jobs. Those that wait stay.
    pub(crate) fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        let taker = state.taker.take();
        drop(state);
        taker.into_iter().for_each(wake);
    }
}
