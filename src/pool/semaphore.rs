//! The fair semaphore in front of a pool: as many permits as connections, first come first served.
//!
//! A returned permit goes directly to the caller that has waited longest; a later caller cannot
//! take it before. A permit is the number of an entry in the [open scopes](crate::pool::scopes). No
//! two callers hold one permit.
//!
//! A caller may wait with a request that another caller can send. Such requests gather in
//! [groups](crate::pool::waiting_group). A group has one place in the queue and gets one permit, for
//! its leader, so no later caller is passed over. A limited number of permits leads groups at once: with
//! fewer leaders there are more requests in each write.
//!
//! A caller may also leave a request with its place, see [waiters](crate::pool::waiter).

#[cfg(all(test, rediscope_shuttle))]
#[path = "../../tests/model/batch.rs"]
mod group_model;
#[cfg(all(test, rediscope_shuttle))]
#[path = "../../tests/model/left_requests.rs"]
mod left_request_model;
#[cfg(all(test, rediscope_shuttle))]
#[path = "../../tests/model/semaphore.rs"]
pub(in crate::pool) mod model;
#[cfg(all(test, not(rediscope_shuttle)))]
#[path = "../../tests/unit/semaphore.rs"]
mod tests;

use std::collections::VecDeque;
use std::sync::Weak;
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use scopeguard::{ScopeGuard, guard};

use crate::error::in_doubt::SharedToken;
use crate::pool::job::Job;
use crate::pool::waiter::{Grant, LeftRequest, TakenRequest, Waiter};
use crate::pool::waiting_group::{GaveUp, GroupLimits, WaitingGroup, Woken};
use crate::sync::cancel;
use crate::sync::shim::{Arc, Mutex, lock};
use crate::sync::this_thread;
use crate::sync::under_way::CallUnderWay;

/// As many permits as connections, first come first served.
#[derive(Debug)]
pub(crate) struct FairSemaphore<T, R, K = ()> {
    state: Mutex<SemaphoreState<T, R, K>>,
    limits: GroupLimits,
    leaders: LeaderLimits,
}

/// The number of permits that lead groups at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeaderLimits {
    pub(crate) most: usize,
    /// More than `most` permits lead while fewer requests are sent than there are permits, and where a
    /// group has waited that long, or eight times as long while all leads are shorter. `None`: never more.
    pub(crate) patience: Option<Duration>,
}

#[derive(Debug)]
struct SemaphoreState<T, R, K> {
    /// The free permits. If a caller waits, it is a group, and no more groups may be led.
    free: Vec<usize>,
    queue: VecDeque<QueueEntry<T, R, K>>,
    /// The group that later requests join: nothing waits behind it, and its leader has not taken its
    /// requests.
    open: Option<Arc<WaitingGroup<T, R>>>,
    /// The permits that lead groups.
    leading: Vec<Leading>,
    /// How long the last of them led.
    last_lead: Duration,
    /// The callers whose requests are taken, and some that wait no more.
    taken: Vec<Weak<Waiter<K>>>,
    closed: bool,
}

#[derive(Debug)]
enum QueueEntry<T, R, K> {
    Caller {
        /// The thread, stored here so that a search for a thread need not visit every waiter.
        thread: ThreadId,
        waiter: Arc<Waiter<K>>,
    },
    Group {
        group: Arc<WaitingGroup<T, R>>,
        /// It has waited for too long.
        is_impatient: bool,
    },
}

/// A permit that leads a group.
#[derive(Clone, Copy, Debug)]
struct Leading {
    permit: usize,
    /// Number of requests that its holder has taken; until then, of members of its group.
    requests: usize,
    since: Instant,
}

/// A caller that was granted a permit, and sleeps.
enum Asleep<T, R, K> {
    Caller(Arc<Waiter<K>>),
    Leader(Arc<WaitingGroup<T, R>>),
}

/// A permit that a caller was granted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Granted {
    pub(crate) permit: usize,
    /// It is the permit of the holder that has taken the caller's request.
    pub(crate) passed_on: bool,
}

/// What became of a permit that its holder returns.
#[derive(Debug)]
pub(crate) enum Returned<K> {
    /// The first caller has it, with its request sent.
    PassedOn,
    /// The holder has it, and a request that was not sent.
    Unsent(TakenRequest<K>),
    /// The holder has it: no caller in front has left a request that fits.
    Kept,
}

/// The place of a caller that joins the queue.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum QueuePlace {
    First,
    Last,
}

/// The state of a caller that is first again.
enum Front<K> {
    Permit(usize),
    Waits(Arc<Waiter<K>>),
}

/// The reason why no permit was granted.
#[derive(Debug, PartialEq)]
pub(crate) enum AcquireError<E> {
    TimedOut {
        waiters: usize,
    },
    Closed,
    /// The caller's own check rejected the wait.
    Rejected(E),
}

/// Whether a thread already waits.
pub(crate) type IsWaiting<'w> = dyn Fn(ThreadId) -> bool + 'w;

/// The result of a wait with a request.
#[derive(Debug)]
pub(crate) enum Acquired<T, R> {
    /// A permit that was free, while no caller waited. The request was not made.
    Alone(usize),
    /// A permit, and the group whose requests the caller sends.
    Leads(usize, Membership<T, R>),
    /// A leader has sent the request.
    Response(R),
    /// A leader has taken the request, and has not returned a response in time. An exactly-once block has
    /// this token.
    Unknown(Option<std::sync::Arc<SharedToken>>),
}

/// A request's place in a group.
#[derive(Debug)]
pub(crate) struct Membership<T, R> {
    pub(super) group: Arc<WaitingGroup<T, R>>,
    /// Number of the member.
    number: usize,
    pub(super) job: Arc<Job<T, R>>,
}

/// A request that another caller may send.
pub(crate) trait Batchable {
    /// Number of bytes of the request.
    fn bytes(&self) -> usize;
}

/// How many times as long a group is patient while leads are short.
const SHORT_LEADS: u32 = 8;

/// A group of one request.
const NO_GROUPS: GroupLimits = GroupLimits { requests: 1, bytes: 0 };

impl<T: Batchable, R, K> FairSemaphore<T, R, K> {
    /// A semaphore for callers without requests.
    pub(crate) fn new(permits: usize) -> Self {
        Self::with_groups(permits, LeaderLimits { most: permits, patience: None }, NO_GROUPS)
    }

    /// A semaphore whose groups have at most that size.
    pub(crate) fn with_groups(permits: usize, leaders: LeaderLimits, limits: GroupLimits) -> Self {
        Self {
            state: Mutex::new(SemaphoreState {
                free: (0..permits).rev().collect(),
                queue: VecDeque::new(),
                open: None,
                leading: Vec::new(),
                last_lead: Duration::ZERO,
                taken: Vec::new(),
                closed: false,
            }),
            limits,
            leaders: LeaderLimits { most: leaders.most.min(permits), ..leaders },
        }
    }

    /// Takes a free permit.
    pub(crate) fn try_acquire(&self) -> Option<usize> {
        let mut state = lock(&self.state);
        if state.closed { None } else { state.free.pop() }
    }

    /// Takes a permit, and waits for it until `deadline`. Before the wait it calls `may_wait`,
    /// which can check whether a thread already waits. `may_wait` runs under the semaphore's mutex,
    /// so no code of the user's (such as a log) may run in it.
    pub(crate) fn acquire<E>(
        &self,
        deadline: Instant,
        may_wait: impl FnOnce(&IsWaiting<'_>) -> Result<(), E>,
    ) -> Result<usize, AcquireError<E>> {
        self.acquire_with(deadline, None, may_wait).map(|granted| granted.permit)
    }

    /// The same for a caller that leaves a request with its place.
    pub(crate) fn acquire_with<E>(
        &self,
        deadline: Instant,
        request: Option<LeftRequest<K>>,
        may_wait: impl FnOnce(&IsWaiting<'_>) -> Result<(), E>,
    ) -> Result<Granted, AcquireError<E>> {
        self.acquire_at(QueuePlace::Last, deadline, request, may_wait)
    }

    /// The same for a caller with this place in the queue.
    pub(crate) fn acquire_at<E>(
        &self,
        place: QueuePlace,
        deadline: Instant,
        request: Option<LeftRequest<K>>,
        may_wait: impl FnOnce(&IsWaiting<'_>) -> Result<(), E>,
    ) -> Result<Granted, AcquireError<E>> {
        let mut waiter = {
            let mut state = lock(&self.state);
            if state.closed {
                return Err(AcquireError::Closed);
            }
            if let Some(permit) = state.free.pop() {
                return Ok(Granted { permit, passed_on: false });
            }
            may_wait(&|thread| state.has(thread)).map_err(AcquireError::Rejected)?;
            let waiter = Arc::new(Waiter::new(request));
            // Later requests must not pass this caller.
            state.open = None;
            match place {
                QueuePlace::First => state.queue.push_front(QueueEntry::here(&waiter)),
                QueuePlace::Last => state.queue.push_back(QueueEntry::here(&waiter)),
            }
            waiter
        };
        let _call = CallUnderWay::begin();
        loop {
            let registration = guard(waiter, |waiter| self.cancel(&waiter));
            let mut grant = registration.wait(deadline);
            let left = ScopeGuard::into_inner(registration);
            let (was_taken, mut waiters) = (grant == Grant::Taken, 0);
            if let Grant::Waiting | Grant::Taken = grant {
                waiters = self.leave_queue(&left);
                grant = left.take();
            }
            match grant {
                Grant::Permit(permit) => return Ok(Granted { permit, passed_on: false }),
                Grant::PassedOn(permit) => return Ok(Granted { permit, passed_on: true }),
                Grant::Closed => return Err(AcquireError::Closed),
                Grant::Waiting | Grant::Taken | Grant::Abandoned => {}
            }
            if !was_taken || Instant::now() >= deadline || cancel::is_cancelled() {
                return Err(AcquireError::TimedOut { waiters });
            }
            waiter = match self.wait_in_front() {
                Some(Front::Permit(permit)) => return Ok(Granted { permit, passed_on: false }),
                Some(Front::Waits(waiter)) => waiter,
                None => return Err(AcquireError::Closed),
            };
        }
    }

    /// Has a caller wait again that was first before its request was taken. `None`: the semaphore is
    /// closed.
    fn wait_in_front(&self) -> Option<Front<K>> {
        let mut state = lock(&self.state);
        if state.closed {
            return None;
        }
        if let Some(permit) = state.free.pop() {
            return Some(Front::Permit(permit));
        }
        let waiter = Arc::new(Waiter::new(None));
        state.queue.push_front(QueueEntry::here(&waiter));
        Some(Front::Waits(waiter))
    }

    /// Takes the request of the caller that would be granted a permit now, if it has left one that
    /// `fits`. The caller leaves the queue, and is granted the permit of the one that has taken the
    /// request. `permit`: that of the holder. One that leads a group takes none: while it is passed on, it would
    /// count among those that lead, and the groups in the queue would be passed over.
    pub(crate) fn take_request(
        &self,
        permit: usize,
        fits: impl FnOnce(&K) -> bool,
    ) -> Option<TakenRequest<K>> {
        let mut state = lock(&self.state);
        if state.leading.iter().any(|leading| leading.permit == permit) {
            return None;
        }
        let at = state.next(self.leaders)?;
        let QueueEntry::Caller { thread, waiter } = state.queue.get(at)? else { return None };
        let taken = TakenRequest::take(*thread, waiter, fits)?;
        state.queue.remove(at);
        state.on_taken(&taken.waiter);
        Some(taken)
    }

    /// Whether the caller that would be granted a permit now has left a request.
    pub(crate) fn has_request(&self) -> bool {
        let state = lock(&self.state);
        let next = state.next(self.leaders).and_then(|at| state.queue.get(at));
        matches!(next, Some(QueueEntry::Caller { waiter, .. }) if waiter.request(|_| true).is_some())
    }

    /// Passes a permit to the caller that would be granted it now, if the caller has left a request that
    /// `fits` and `send` returns true. `send` runs under the waiter's mutex, so it may not wait.
    pub(crate) fn pass_on(
        &self,
        permit: usize,
        fits: impl FnOnce(&K) -> bool,
        send: impl FnOnce(&K) -> bool,
    ) -> Returned<K> {
        let mut state = lock(&self.state);
        state.end_lead(permit);
        let next = state.next(self.leaders);
        let Some((at, QueueEntry::Caller { thread, waiter })) =
            next.and_then(|at| Some((at, state.queue.get(at)?)))
        else {
            return Returned::Kept;
        };
        let (thread, waiter) = (*thread, Arc::clone(waiter));
        let Some(request) = waiter.request(fits) else { return Returned::Kept };
        state.queue.remove(at);
        // Before the semaphore's mutex is unlocked: the caller gives up either before or after all of this.
        let mut waiting = lock(&waiter.state);
        drop(state);
        if !send(request) {
            waiting.set_taken();
            drop(waiting);
            lock(&self.state).on_taken(&waiter);
            return Returned::Unsent(TakenRequest { thread, waiter });
        }
        waiting.set(Grant::PassedOn(permit));
        let asleep = waiting.asleep;
        drop(waiting);
        if asleep {
            waiter.ready.notify_one();
        }
        Returned::PassedOn
    }

    /// Returns a request that will have no replies: its caller is first in the queue again, unless it has
    /// given up.
    pub(crate) fn return_request(&self, TakenRequest { thread, waiter }: TakenRequest<K>) {
        let mut state = lock(&self.state);
        {
            let mut waiting = lock(&waiter.state);
            if waiting.grant != Grant::Taken {
                return;
            }
            if !state.closed {
                waiting.set(Grant::Waiting);
            }
        }
        if state.closed {
            return waiter.settle(Grant::Closed);
        }
        state.queue.push_front(QueueEntry::Caller { thread, waiter });
        let granted = state.grant(self.leaders);
        drop(state);
        granted.into_iter().for_each(Asleep::wake);
    }

    /// Takes a permit as [`acquire`](Self::acquire) does, unless a leader sends the request first. `request`
    /// makes it under the semaphore's mutex, if the caller has to wait.
    ///
    /// The response to a request that was taken by `deadline` is awaited until `response_wait` later;
    /// then its outcome is unknown.
    pub(crate) fn acquire_batched<E>(
        &self,
        request: impl FnOnce() -> T,
        deadline: Instant,
        response_wait: Duration,
        may_wait: impl FnOnce(&IsWaiting<'_>) -> Result<(), E>,
    ) -> Result<Acquired<T, R>, AcquireError<E>> {
        let (place, patience) = {
            let mut state = lock(&self.state);
            if state.closed {
                return Err(AcquireError::Closed);
            }
            if let Some(permit) = state.lead(self.leaders) {
                return Ok(Acquired::Alone(permit));
            }
            if state.free.is_empty() {
                may_wait(&|thread| state.has(thread)).map_err(AcquireError::Rejected)?;
            }
            let request = request();
            let bytes = request.bytes();
            (state.join(request, bytes, self.limits), state.patience(self.leaders))
        };
        self.wait_in_group(place, deadline, response_wait, patience)
    }

    fn wait_in_group<E>(
        &self,
        place: Membership<T, R>,
        deadline: Instant,
        response_wait: Duration,
        mut patience: Option<Duration>,
    ) -> Result<Acquired<T, R>, AcquireError<E>> {
        let _call = CallUnderWay::begin();
        let (mut until, mut is_late) = (deadline, false);
        loop {
            match place.group.wait(place.number, &place.job, until, patience) {
                Woken::Leads(permit) => return Ok(Acquired::Leads(permit, place)),
                Woken::Impatient => {
                    self.grant_beyond(&place.group);
                    patience = None;
                    continue;
                }
                Woken::Response(response) => return Ok(Acquired::Response(response)),
                Woken::Closed => return Err(AcquireError::Closed),
                Woken::TimedOut => {}
            }
            let (gave_up, waiters) = self.give_up(&place, is_late);
            match gave_up {
                GaveUp::Leads(permit) => return Ok(Acquired::Leads(permit, place)),
                GaveUp::Withdrawn | GaveUp::Dissolved => {
                    return Err(AcquireError::TimedOut { waiters });
                }
                GaveUp::Response(response) => return Ok(Acquired::Response(response)),
                // The leader is delayed.
                GaveUp::Unknown(token) => return Ok(Acquired::Unknown(token)),
                GaveUp::Taken => (until, is_late) = (Instant::now() + response_wait, true),
            }
        }
    }

    /// Grants a free permit beyond the limit, because a group has waited for too long.
    fn grant_beyond(&self, place: &Arc<WaitingGroup<T, R>>) {
        let mut state = lock(&self.state);
        for entry in &mut state.queue {
            if let QueueEntry::Group { group, is_impatient } = entry {
                *is_impatient |= Arc::ptr_eq(group, place);
            }
        }
        let granted = state.grant(self.leaders);
        drop(state);
        granted.into_iter().for_each(Asleep::wake);
    }

    /// Withdraws a request after its deadline, and returns the former number of waiting callers. A
    /// permit that arrived meanwhile stays valid, because it would otherwise be lost.
    fn give_up(&self, place: &Membership<T, R>, is_late: bool) -> (GaveUp<R>, usize) {
        let mut state = lock(&self.state);
        let waiters = state.waiting();
        let gave_up = place.group.give_up(place.number, &place.job, is_late);
        if matches!(gave_up, GaveUp::Dissolved) {
            state.forget(&place.group);
        }
        (gave_up, waiters)
    }

    /// Returns the requests of the group that a caller leads, its own and those that have joined. No more
    /// will join. `permit`: the caller's.
    pub(crate) fn take_group(
        &self,
        permit: usize,
        place: &Membership<T, R>,
    ) -> VecDeque<Arc<Job<T, R>>> {
        let mut state = lock(&self.state);
        if state.open.as_ref().is_some_and(|open| Arc::ptr_eq(open, &place.group)) {
            state.open = None;
        }
        let jobs = place.group.jobs();
        if let Some(leading) = state.leading.iter_mut().find(|leading| leading.permit == permit) {
            leading.requests = jobs.len();
        }
        jobs
    }

    /// Ends the lead of a caller that does not send what is left: the next member leads. The permit is
    /// returned separately.
    pub(crate) fn abandon_group(&self, place: &Membership<T, R>) {
        let mut state = lock(&self.state);
        if matches!(place.group.abandon(&place.job), GaveUp::Dissolved) {
            return state.forget(&place.group);
        }
        if state.closed {
            return place.group.close();
        }
        state.queue.push_front(QueueEntry::of(&place.group));
        let granted = state.grant(self.leaders);
        drop(state);
        granted.into_iter().for_each(Asleep::wake);
    }

    /// Cleans up after a panic during the wait: leaves the queue, or frees the granted permit.
    fn cancel(&self, waiter: &Arc<Waiter<K>>) {
        self.leave_queue(waiter);
        if let Grant::Permit(permit) | Grant::PassedOn(permit) = waiter.take() {
            self.release(permit);
        }
    }

    /// Leaves the queue after the deadline, and returns the former number of waiting callers. A grant
    /// that arrived meanwhile stays valid, because it would otherwise be lost.
    fn leave_queue(&self, waiter: &Arc<Waiter<K>>) -> usize {
        let mut state = lock(&self.state);
        let waiters = state.waiting();
        let is_this = |entry: &QueueEntry<T, R, K>| match entry {
            QueueEntry::Caller { waiter: queued, .. } => Arc::ptr_eq(queued, waiter),
            QueueEntry::Group { .. } => false,
        };
        match state.queue.iter().position(is_this) {
            Some(at) => _ = state.queue.remove(at),
            // Under the semaphore's mutex, because a taken request may just be returned.
            None => waiter.end_taken(Grant::Abandoned),
        }
        waiters
    }

    /// Returns a permit: to the first caller in the queue, or to the free permits.
    pub(crate) fn release(&self, permit: usize) {
        let mut state = lock(&self.state);
        state.end_lead(permit);
        state.free.push(permit);
        // Under the semaphore's mutex, so that a caller that gives up finds itself either queued or
        // granted.
        let granted = state.grant(self.leaders);
        drop(state);
        // Waking a thread takes longer than all the rest, so the mutex is released first.
        granted.into_iter().for_each(Asleep::wake);
    }

    /// Closes the semaphore: waiting and later callers fail. Permits can still be returned.
    pub(crate) fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        state.open = None;
        for entry in state.queue.drain(..) {
            match entry {
                QueueEntry::Caller { waiter, .. } => waiter.settle(Grant::Closed),
                QueueEntry::Group { group, .. } => group.close(),
            }
        }
        let taken: Vec<_> = state.taken.drain(..).filter_map(|it| it.upgrade()).collect();
        taken.iter().for_each(|waiter| waiter.end_taken(Grant::Closed));
        // A request that is dropped here may have a connection.
        drop(state);
        drop(taken);
    }

    /// Number of waiting callers, also of those whose requests are taken.
    pub(crate) fn waiting(&self) -> usize {
        lock(&self.state).waiting()
    }

    /// Number of callers in the queue.
    pub(crate) fn queued(&self) -> usize {
        lock(&self.state).queued()
    }

    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.state).closed
    }

    /// Number of free permits.
    pub(crate) fn free(&self) -> usize {
        lock(&self.state).free.len()
    }
}

impl<T, R, K> SemaphoreState<T, R, K> {
    /// Takes a free permit that leads a group, unless another group waits for one.
    fn lead(&mut self, limits: LeaderLimits) -> Option<usize> {
        if self.free.is_empty() || !self.queue.is_empty() || !self.may_lead(limits) {
            return None;
        }
        let permit = self.free.pop()?;
        self.leading.push(Leading { permit, requests: 1, since: Instant::now() });
        Some(permit)
    }

    /// Whether one more permit may lead a group.
    fn may_lead(&self, limits: LeaderLimits) -> bool {
        if self.leading.len() < limits.most {
            return true;
        }
        let sent = || self.leading.iter().map(|leading| leading.requests).sum::<usize>();
        let is_impatient = |entry: &QueueEntry<T, R, K>| {
            matches!(entry, QueueEntry::Group { is_impatient: true, .. })
        };
        limits.patience.is_some()
            && (sent() < self.leading.len() + self.free.len()
                || self.queue.iter().any(is_impatient))
    }

    fn end_lead(&mut self, permit: usize) {
        let at = self.leading.iter().position(|leading| leading.permit == permit);
        if let Some(lead) = at.map(|at| self.leading.swap_remove(at)) {
            self.last_lead = lead.since.elapsed();
        }
    }

    /// Time after which a group that begins to wait now leads beyond the limit. It is longer while leads are short, so
    /// that the group will not wait for so long: a timer of less than a tick of the system's clock costs more than
    /// all the rest of a wait.
    fn patience(&self, limits: LeaderLimits) -> Option<Duration> {
        let (patience, now) = (limits.patience?, Instant::now());
        let is_short = |led: Duration| led < patience;
        let mut leads = self.leading.iter().map(|lead| now.saturating_duration_since(lead.since));
        let are_short = is_short(self.last_lead) && leads.all(is_short);
        Some(if are_short { SHORT_LEADS * patience } else { patience })
    }

    /// Notes a caller whose request was taken.
    fn on_taken(&mut self, waiter: &Arc<Waiter<K>>) {
        if self.closed {
            return waiter.end_taken(Grant::Closed);
        }
        let is_other = |taken: &Weak<_>| taken.as_ptr() != Arc::as_ptr(waiter);
        self.taken.retain(|taken| taken.strong_count() > 0 && is_other(taken));
        self.taken.push(Arc::downgrade(waiter));
    }

    /// The place of the first caller that may have a permit.
    fn next(&self, limits: LeaderLimits) -> Option<usize> {
        let may_lead = self.may_lead(limits);
        let is_next = |entry: &QueueEntry<T, R, K>| match entry {
            QueueEntry::Caller { .. } => true,
            QueueEntry::Group { .. } => may_lead,
        };
        self.queue.iter().position(is_next)
    }

    /// Grants a free permit to the first caller that may have it. Returns the caller if it sleeps.
    fn grant(&mut self, limits: LeaderLimits) -> Option<Asleep<T, R, K>> {
        let permit = *self.free.last()?;
        let at = self.next(limits)?;
        self.free.pop();
        match self.queue.remove(at)? {
            QueueEntry::Caller { waiter, .. } => {
                waiter.grant(Grant::Permit(permit)).then_some(Asleep::Caller(waiter))
            }
            QueueEntry::Group { group, .. } => {
                let (requests, is_asleep) = group.grant(permit);
                self.leading.push(Leading { permit, requests, since: Instant::now() });
                is_asleep.then_some(Asleep::Leader(group))
            }
        }
    }

    /// Adds a request to the open group, or to a new one.
    fn join(&mut self, request: T, bytes: usize, limits: GroupLimits) -> Membership<T, R> {
        let job = Job::new(request, None);
        if let Some(open) = &self.open
            && let Some(number) = open.join(&job, bytes, limits)
        {
            return Membership { group: Arc::clone(open), number, job };
        }
        let group = WaitingGroup::new(Arc::clone(&job), bytes);
        self.open = Some(Arc::clone(&group));
        self.queue.push_back(QueueEntry::of(&group));
        Membership { group, number: 0, job }
    }

    /// Removes a group without members.
    fn forget(&mut self, group: &Arc<WaitingGroup<T, R>>) {
        self.open.take_if(|open| Arc::ptr_eq(open, group));
        self.queue.retain(|entry| match entry {
            QueueEntry::Group { group: queued, .. } => !Arc::ptr_eq(queued, group),
            QueueEntry::Caller { .. } => true,
        });
    }

    /// The groups whose requests were not taken.
    fn groups(&self) -> impl Iterator<Item = &Arc<WaitingGroup<T, R>>> {
        let queued = self.queue.iter().filter_map(|entry| match entry {
            QueueEntry::Group { group, .. } => Some(group),
            QueueEntry::Caller { .. } => None,
        });
        let is_queued = |open: &&Arc<WaitingGroup<T, R>>| {
            self.queue.iter().any(|entry| match entry {
                QueueEntry::Group { group, .. } => Arc::ptr_eq(group, open),
                QueueEntry::Caller { .. } => false,
            })
        };
        queued.chain(self.open.iter().filter(move |open| !is_queued(open)))
    }

    /// Whether a thread waits.
    fn has(&self, thread: ThreadId) -> bool {
        let is_caller = |entry: &QueueEntry<T, R, K>| match entry {
            QueueEntry::Caller { thread: queued, .. } => *queued == thread,
            QueueEntry::Group { .. } => false,
        };
        self.queue.iter().any(is_caller) || self.groups().any(|group| group.has(thread))
    }

    /// Number of waiting callers.
    fn waiting(&self) -> usize {
        let taken = self.taken.iter().filter_map(Weak::upgrade);
        self.queued() + taken.filter(|waiter| waiter.is_taken()).count()
    }

    fn queued(&self) -> usize {
        let is_caller = |entry: &&QueueEntry<T, R, K>| matches!(entry, QueueEntry::Caller { .. });
        let callers = self.queue.iter().filter(is_caller).count();
        callers + self.groups().map(|group| group.waiting()).sum::<usize>()
    }
}

impl<T, R, K> Asleep<T, R, K> {
    fn wake(self) {
        match self {
            Self::Caller(waiter) => waiter.ready.notify_one(),
            Self::Leader(group) => group.wake_leader(),
        }
    }
}

impl<T, R, K> QueueEntry<T, R, K> {
    fn here(waiter: &Arc<Waiter<K>>) -> Self {
        Self::Caller { thread: this_thread(), waiter: Arc::clone(waiter) }
    }

    fn of(group: &Arc<WaitingGroup<T, R>>) -> Self {
        Self::Group { group: Arc::clone(group), is_impatient: false }
    }
}

impl Batchable for () {
    fn bytes(&self) -> usize {
        0
    }
}
