//! Merges watching blocks on a hot key: each closure runs on the values that the blocks before it will
//! leave, and one EXEC under one WATCH applies them all.
//!
//! Each caller runs its closure itself, in its turn, and appends its commands. The caller whose block is
//! first leads: it sends WATCH and the declared reads, and then all blocks that have been appended. If
//! the values are not those on which the first closure ran, all closures run again. A closure's result
//! is not given out before the EXEC of its group is known to have been applied.
//!
//! Only blocks with the same WATCH and the same declared reads meet here, and only while what their
//! commands do to the values is [known](crate::protocol::effects). No user code runs under a mutex.
//!
//! A closure that does not end, and a leader that is polled no more, keep their turn for a short time: then
//! another caller takes it back, and they go alone.

#[cfg(all(test, rediscope_shuttle))]
#[path = "../../tests/model/merge.rs"]
mod model;
#[cfg(all(test, not(rediscope_shuttle)))]
#[path = "../../tests/unit/hot_watch.rs"]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use redis::Value;

use crate::error::any::CommitError;
use crate::process::current::Process;
use crate::protocol::checksum::fnv1a;
use crate::protocol::effects::ReadValues;
use crate::protocol::queue::CommandQueue;
use crate::protocol::resp::reply::is_too_large;
use crate::sync::caught::wake;
use crate::sync::fork_check::ForkCheck;
use crate::sync::shim::{Arc, Mutex, lock};

/// Number of parts of the table, so that blocks on different keys seldom meet.
const SHARDS: u64 = 64;

/// Maximum bytes of the commands in one EXEC.
const MAX_BYTES: usize = 64 * 1024;

/// Time in which a closure ends, and a leader shows that it is polled. Then others go on without it.
#[cfg(not(rediscope_shuttle))]
pub(crate) const TERM: Duration = Duration::from_millis(100);
/// A model takes turns back itself, however long the machine stands still.
#[cfg(rediscope_shuttle)]
pub(crate) const TERM: Duration = Duration::from_secs(3600);

/// The watches on which blocks are under way.
pub(crate) struct MergeTable {
    shards: Box<[Mutex<Vec<Arc<HotWatch>>>]>,
    process: Process,
}

/// The blocks that are under way with one WATCH and one list of declared reads.
pub(crate) struct HotWatch {
    watch: Box<[u8]>,
    reads: Box<[u8]>,
    state: Mutex<State>,
}

struct State {
    /// Number of the next caller to arrive.
    next: u64,
    /// Number of callers that have a place, also between two runs.
    places: usize,
    /// The callers whose closures have not run, by their arrival.
    waiting: BTreeMap<u64, Arc<Caller>>,
    /// The caller whose closure runs.
    turn: Option<Held>,
    /// Changes when values that a closure may run on turn out to be wrong, or its turn is taken back.
    epoch: u64,
    lead: Option<Held>,
    /// The blocks whose closures have run, in their order.
    line: VecDeque<Appended>,
    /// The values before the first block in the line, and after the last one; `None`: unknown.
    start: Option<Arc<ReadValues>>,
    end: Option<Arc<ReadValues>>,
    /// Maximum number of blocks in one EXEC at this time, and at any time.
    limit: usize,
    most: usize,
    /// The table has it no more.
    is_removed: bool,
}

/// A turn or the lead, which a caller has.
struct Held {
    caller: Arc<Caller>,
    /// When it is taken back.
    until: Instant,
}

/// A block whose closure has run.
struct Appended {
    caller: Arc<Caller>,
    commands: Commands,
    after: Option<Arc<ReadValues>>,
}

/// The commands that a closure has queued.
#[derive(Clone, Default)]
pub(crate) struct Commands {
    pub(crate) bytes: Vec<u8>,
    pub(crate) count: u32,
    /// Indices of those that change the values.
    pub(crate) changing: Vec<u32>,
    /// The closure has not failed.
    pub(crate) has_outcome: bool,
}

/// One caller, and what it is to do next.
pub(crate) struct Caller {
    number: u64,
    slot: Mutex<StepSlot>,
}

#[derive(Default)]
struct StepSlot {
    step: Option<Step>,
    waker: Option<Waker>,
}

/// How the callers of one side wait.
pub(crate) trait StepWaiter: Send {
    /// Waits until there is a step for the caller. `None`: there is none by `until`, or the wait was
    /// cancelled. `is_taken`: a leader has taken its block, so that the wait is not cancelled.
    fn wait(
        &mut self,
        caller: &Caller,
        until: Instant,
        is_taken: bool,
    ) -> impl Future<Output = Option<Step>> + Send;

    /// Whether the waits are cancelled.
    fn is_cancelled(&self) -> bool {
        false
    }

    /// Waits as a leader. `keep` keeps the lead for a time from now; a caller that is polled no more does
    /// not keep it.
    fn leading<T: Send>(
        &mut self,
        keep: &(impl Fn(Duration) + Sync),
        wait: impl Future<Output = T> + Send,
    ) -> impl Future<Output = T> + Send;
}

/// What a caller does next.
pub(crate) enum Step {
    /// Run the closure on these values, and append its commands.
    Run(Arc<ReadValues>, u64),
    /// Send WATCH and the reads, and lead the blocks that have been appended.
    Lead,
    /// Arrive again: the closure's result is void, and nothing was applied.
    Again,
    /// This became of the block.
    Ended(Piece),
    /// Go alone: no time is left, or the turn was taken back.
    Alone,
}

/// What became of a closure that has run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Append {
    Done,
    /// The values that it ran on are void: the caller arrives again.
    Void,
    /// Its turn was taken back: the caller goes alone.
    Late,
}

/// What a leader is to do after its reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Send the line: the reads have found the values that its closure ran on.
    HasRun,
    /// Run the closure on what was found. All results are void.
    Runs,
    /// The same, and then go alone: the lead was taken back.
    Late,
}

/// What became of one block of a group.
#[derive(Clone)]
pub(crate) enum Piece {
    /// It was applied, and these are its replies.
    Applied(Vec<Value>),
    /// It was applied, and its replies are lost.
    RepliesLost,
    /// It was applied, although its closure ran on values that a block before it has not left.
    NotIsolated(Vec<Value>),
    /// Nothing was applied, because a watched key changed.
    Conflict,
    /// Nothing was applied. The block goes alone.
    Alone,
    Failed(CommitError),
}

/// A caller's place, which its drop gives up.
pub(crate) struct MergeEntry {
    table: Arc<MergeTable>,
    hot: Arc<HotWatch>,
    caller: Arc<Caller>,
    role: Role,
    /// Its turn or its lead was taken back.
    is_late: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Role {
    /// Waits for its turn, or for the outcome of its block.
    Waits,
    /// Runs its closure, on the values of this epoch.
    Runs(u64),
    Leads,
    Ended,
}

/// The blocks that a leader sends.
pub(crate) struct Group {
    /// The leader's.
    pub(crate) own: Commands,
    pub(crate) followers: Followers,
    pub(crate) lead: Lead,
}

/// The lead while a group is sent. Its drop ends it, without a commit.
pub(crate) struct Lead {
    table: Arc<MergeTable>,
    hot: Arc<HotWatch>,
    leader: Arc<Caller>,
    process: ForkCheck,
}

/// The other blocks that a leader sends. Its drop ends them.
pub(crate) struct Followers {
    members: Vec<Appended>,
    /// Their bytes may have been sent.
    is_sent: bool,
    process: ForkCheck,
}

impl MergeTable {
    pub(crate) fn new() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::new(Vec::new())).collect();
        Self { shards, process: Process::here() }
    }

    fn shard(&self, watch: &[u8]) -> Option<&Mutex<Vec<Arc<HotWatch>>>> {
        self.shards.get((fnv1a(watch) % SHARDS) as usize)
    }

    /// Joins the blocks of this watch. `most`: maximum number of blocks in one EXEC.
    pub(crate) fn arrive(
        self: &Arc<Self>,
        watch: &[u8],
        reads: &[u8],
        most: usize,
    ) -> Option<MergeEntry> {
        let shard = self.shard(watch)?;
        loop {
            let mut hots = lock(shard);
            let is_this = |hot: &&Arc<HotWatch>| *hot.watch == *watch && *hot.reads == *reads;
            let hot = match hots.iter().find(is_this) {
                Some(hot) => Arc::clone(hot),
                None => {
                    let hot = Arc::new(HotWatch::new(watch.into(), reads.into(), most));
                    hots.push(Arc::clone(&hot));
                    hot
                }
            };
            drop(hots);
            if let Some(caller) = hot.arrive() {
                let table = Arc::clone(self);
                return Some(MergeEntry { table, hot, caller, role: Role::Waits, is_late: false });
            }
        }
    }

    /// Forgets a watch on which no block is under way.
    fn forget(&self, hot: &Arc<HotWatch>) {
        let Some(shard) = self.shard(&hot.watch) else { return };
        let mut hots = lock(shard);
        let mut state = lock(&hot.state);
        if state.is_idle() && !mem::replace(&mut state.is_removed, true) {
            hots.retain(|kept| !Arc::ptr_eq(kept, hot));
        }
    }
}

impl HotWatch {
    fn new(watch: Box<[u8]>, reads: Box<[u8]>, most: usize) -> Self {
        let state = State {
            next: 0,
            places: 0,
            waiting: BTreeMap::new(),
            turn: None,
            epoch: 0,
            lead: None,
            line: VecDeque::new(),
            start: None,
            end: None,
            limit: most,
            most,
            is_removed: false,
        };
        Self { watch, reads, state: Mutex::new(state) }
    }

    /// `None`: the table has forgotten it.
    fn arrive(&self) -> Option<Arc<Caller>> {
        self.change(|state, _| {
            if state.is_removed {
                return None;
            }
            let number = state.next;
            state.next += 1;
            let caller = Arc::new(Caller::new(number));
            state.places += 1;
            state.waiting.insert(number, Arc::clone(&caller));
            Some(caller)
        })
    }

    /// Changes the state, and wakes the callers that may go on by that.
    fn change<T>(&self, change: impl FnOnce(&mut State, &mut Vec<Waker>) -> T) -> T {
        let mut state = lock(&self.state);
        let mut woken = Vec::new();
        let changed = change(&mut state, &mut woken);
        state.admit(&mut woken);
        drop(state);
        woken.into_iter().for_each(wake);
        changed
    }

    fn keep_lead(&self, leader: &Arc<Caller>, time: Duration) {
        let until = Instant::now() + time;
        let mut state = lock(&self.state);
        let State { lead, turn, .. } = &mut *state;
        for held in lead.iter_mut().chain(turn) {
            if Arc::ptr_eq(&held.caller, leader) {
                held.until = until;
            }
        }
    }

    /// Ends a lead, unless it was taken back, and has the next block led. `conflict`: a watched key was
    /// changed from outside.
    fn end_lead(&self, leader: &Arc<Caller>, committed: bool, conflict: bool) {
        self.change(|state, _| {
            if !state.leads(leader) {
                return;
            }
            state.lead = None;
            state.turn.take_if(|turn| Arc::ptr_eq(&turn.caller, leader));
            if conflict {
                state.limit = (state.limit / 2).max(1);
            } else if committed {
                state.limit = (state.limit * 2).min(state.most);
            }
            if !committed {
                state.end = None;
            }
        });
    }
}

impl State {
    /// Lets callers go on: the next one in the line leads, the next one that waits runs its closure.
    fn admit(&mut self, woken: &mut Vec<Waker>) {
        if self.lead.is_none()
            && let Some(first) = self.line.front()
        {
            self.lead = Some(Held::by(&first.caller));
            woken.extend(first.caller.give(Step::Lead));
        }
        if self.turn.is_some() {
            return;
        }
        let step = match &self.end {
            Some(end) if self.line.len() < self.most => Step::Run(Arc::clone(end), self.epoch),
            // The values are unknown, and no caller asks for them.
            None if self.lead.is_none() => Step::Lead,
            _ => return,
        };
        if let Some((_, caller)) = self.waiting.pop_first() {
            if matches!(step, Step::Lead) {
                self.lead = Some(Held::by(&caller));
            }
            self.turn = Some(Held::by(&caller));
            woken.extend(caller.give(step));
        }
    }

    /// Takes the turn and the lead back from callers that keep them for too long.
    fn take_back(&mut self, now: Instant, woken: &mut Vec<Waker>) {
        if let Some(Held { caller, .. }) = self.lead.take_if(|lead| lead.until <= now) {
            self.turn.take_if(|turn| Arc::ptr_eq(&turn.caller, &caller));
            let is_own = |first: &Appended| Arc::ptr_eq(&first.caller, &caller);
            if self.line.front().is_some_and(is_own) {
                // It has one step, which it may take at once.
                self.line.pop_front();
                self.void_from(0, woken);
            }
            woken.extend(caller.give(Step::Alone));
        }
        if let Some(Held { caller, .. }) = self.turn.take_if(|turn| turn.until <= now) {
            self.epoch += 1;
            woken.extend(caller.give(Step::Alone));
        }
    }

    fn leads(&self, caller: &Arc<Caller>) -> bool {
        self.lead.as_ref().is_some_and(|lead| Arc::ptr_eq(&lead.caller, caller))
    }

    /// The results of all closures from this place in the line on are void.
    fn void_from(&mut self, at: usize, woken: &mut Vec<Waker>) {
        self.end = match at.checked_sub(1) {
            None => self.start.clone(),
            Some(before) => self.line.get(before).and_then(|block| block.after.clone()),
        };
        self.epoch += 1;
        self.turn = None;
        for block in self.line.drain(at..) {
            woken.extend(block.caller.give(Step::Again));
        }
    }

    /// Whether no caller is under way, and none arrives again.
    fn is_idle(&self) -> bool {
        self.places == 0 && self.lead.is_none()
    }
}

impl Held {
    fn by(caller: &Arc<Caller>) -> Self {
        Self { caller: Arc::clone(caller), until: Instant::now() + TERM }
    }
}

impl Caller {
    fn new(number: u64) -> Self {
        Self { number, slot: Mutex::default() }
    }

    /// Returns the waker of a caller that waits, to be woken without a lock.
    #[must_use]
    fn give(&self, step: Step) -> Option<Waker> {
        let mut slot = lock(&self.slot);
        slot.step = Some(step);
        slot.waker.take()
    }

    fn take(&self) -> Option<Step> {
        lock(&self.slot).step.take()
    }

    /// Returns the step. Wakes the caller later if there is none yet.
    pub(crate) fn poll(&self, context: &Context<'_>) -> Poll<Step> {
        let mut slot = lock(&self.slot);
        if let Some(step) = slot.step.take() {
            return Poll::Ready(step);
        }
        let former = match &slot.waker {
            Some(known) if known.will_wake(context.waker()) => None,
            _ => slot.waker.replace(context.waker().clone()),
        };
        drop(slot);
        drop(former);
        Poll::Pending
    }
}

impl MergeEntry {
    /// Waits for the caller's next step. It goes alone if there is none by `until`. The outcome of a
    /// block that a leader has taken is awaited until `late`, and is unknown after that.
    pub(crate) async fn wait(
        &mut self,
        waiter: &mut impl StepWaiter,
        until: Instant,
        late: impl FnOnce() -> Instant,
    ) -> Step {
        let step = loop {
            let look = until.min(Instant::now() + TERM);
            match waiter.wait(&self.caller, look, false).await {
                Some(step) => break Some(step),
                None if look == until || waiter.is_cancelled() => break self.withdraw(),
                None => self.look(Instant::now()),
            }
        };
        let step = match step {
            Some(step) => Some(step),
            None => waiter.wait(&self.caller, late(), true).await,
        };
        let step = step.unwrap_or_else(|| {
            // What the leader still gives is for this block, and not for a later one.
            self.caller = Arc::new(Caller::new(self.caller.number));
            Step::Ended(Piece::Failed(ended()))
        });
        self.follow(&step);
        step
    }

    /// Looks for callers that keep the turn or the lead for too long.
    fn look(&self, now: Instant) {
        self.hot.change(|state, woken| state.take_back(now, woken));
    }

    /// Keeps the lead for `time` from now.
    pub(crate) fn keep_lead(&self, time: Duration) {
        self.hot.keep_lead(&self.caller, time);
    }

    /// Records the role that a step gives.
    fn follow(&mut self, step: &Step) {
        self.role = match step {
            Step::Run(_, epoch) => Role::Runs(*epoch),
            Step::Lead => Role::Leads,
            Step::Again | Step::Ended(_) | Step::Alone => Role::Ended,
        };
    }

    /// Takes the caller's block out, with all that follow it. `None`: a leader has taken it.
    fn withdraw(&self) -> Option<Step> {
        self.hot.change(|state, woken| {
            if let Some(step) = self.caller.take() {
                return Some(step);
            }
            if state.waiting.remove(&self.caller.number).is_some() {
                return Some(Step::Alone);
            }
            let is_own = |block: &Appended| Arc::ptr_eq(&block.caller, &self.caller);
            let at = state.line.iter().position(is_own)?;
            state.void_from(at, woken);
            // Its own step is not to arrive again.
            self.caller.take();
            Some(Step::Alone)
        })
    }

    /// Arrives again, in the place that it had.
    pub(crate) fn rejoin(&mut self) {
        debug_assert_eq!(self.role, Role::Ended, "its former place has ended");
        self.role = Role::Waits;
        self.hot.change(|state, _| {
            state.waiting.insert(self.caller.number, Arc::clone(&self.caller));
        });
    }

    /// Appends the commands of the closure that has run.
    pub(crate) fn append(&mut self, commands: Commands, after: Option<ReadValues>) -> Append {
        let Role::Runs(epoch) = self.role else { return Append::Late };
        let appended = self.hot.change(|state, _| {
            if state.epoch != epoch {
                // The turn may have been taken back.
                let is_late = matches!(self.caller.take(), Some(Step::Alone));
                return if is_late { Append::Late } else { Append::Void };
            }
            state.turn = None;
            state.push(&self.caller, commands, after);
            Append::Done
        });
        self.role = if appended == Append::Done { Role::Waits } else { Role::Ended };
        appended
    }

    /// Compares what the leader's reads have found with the values that its closure ran on. If they are
    /// others, all results are void.
    pub(crate) fn compare(&mut self, found: Option<&ReadValues>) -> Found {
        let step = self.hot.change(|state, woken| {
            if !state.leads(&self.caller) {
                // Its own step is to go alone, and it does.
                self.caller.take();
                return Found::Late;
            }
            let first = state.line.front();
            let has_run = first.is_some_and(|first| Arc::ptr_eq(&first.caller, &self.caller));
            if has_run && found.is_some() && state.start.as_deref() == found {
                return Found::HasRun;
            }
            state.start = found.cloned().map(Arc::new);
            state.void_from(0, woken);
            // Its own step is to go on.
            self.caller.take();
            state.end = None;
            state.turn = Some(Held::by(&self.caller));
            state.lead = Some(Held::by(&self.caller));
            Found::Runs
        });
        self.is_late |= step == Found::Late;
        step
    }

    /// Appends the leader's commands, of a closure that has run on what was found. Returns false if the
    /// lead was taken back.
    pub(crate) fn append_first(&mut self, commands: Commands, after: Option<ReadValues>) -> bool {
        let leads = self.hot.change(|state, _| {
            let leads = state.leads(&self.caller);
            if leads {
                state.turn = None;
                state.push(&self.caller, commands, after);
            } else {
                // Its own step is to go alone, and it does.
                self.caller.take();
            }
            leads
        });
        self.is_late |= !leads;
        leads
    }

    /// Whether other callers wait, which would run on the values that this block leaves.
    pub(crate) fn is_followed(&self) -> bool {
        !lock(&self.hot.state).waiting.is_empty()
    }

    /// Takes the leader's block and those that follow it, to be sent as one. `None`: none follows it, or
    /// the lead was taken back, and the leader sends its own block.
    pub(crate) fn take(&mut self) -> Option<Group> {
        let mut members = self.hot.change(|state, _| {
            if !state.leads(&self.caller) {
                return VecDeque::new();
            }
            let mut bytes = 0;
            let fits = |block: &&Appended| {
                bytes += block.commands.bytes.len();
                bytes <= MAX_BYTES
            };
            let count = state.line.iter().take(state.limit).take_while(fits).count().max(1);
            let members: VecDeque<_> = state.line.drain(..count.min(state.line.len())).collect();
            state.start = members.back().and_then(|last| last.after.clone());
            members
        });
        if members.len() < 2 {
            return None;
        }
        let own = members.pop_front().map(|own| own.commands).unwrap_or_default();
        self.role = Role::Ended;
        let (table, hot) = (Arc::clone(&self.table), Arc::clone(&self.hot));
        // The lead may last longer than this place, or its next run.
        let next = Arc::new(Caller::new(self.caller.number));
        let leader = mem::replace(&mut self.caller, next);
        let process = ForkCheck::here();
        let lead = Lead { table, hot, leader, process: process.clone() };
        let members = members.into();
        Some(Group { own, followers: Followers { members, is_sent: false, process }, lead })
    }

    /// Ends the lead, and has the next block led. `conflict`: a watched key was changed from outside.
    pub(crate) fn end_lead(&mut self, committed: bool, conflict: bool) {
        if self.role == Role::Leads {
            self.role = Role::Ended;
            self.hot.end_lead(&self.caller, committed, conflict);
            // If the lead was taken back, its own step is to go alone.
            self.is_late |= matches!(self.caller.take(), Some(Step::Alone));
        }
    }

    /// Ends the lead of a block that is not sent.
    pub(crate) fn leave_lead(&mut self) {
        // Its block, if it is still in the line, and those that ran on what it leaves.
        self.hot.change(|state, woken| match state.line.front() {
            _ if !state.leads(&self.caller) => {}
            Some(first) if !Arc::ptr_eq(&first.caller, &self.caller) => {}
            // It leaves what it has found.
            Some(first) if first.commands.count == 0 => _ = state.line.pop_front(),
            _ => state.void_from(0, woken),
        });
        self.end_lead(false, false);
    }

    /// Whether its lead was taken back, so that the block goes alone.
    pub(crate) fn is_late(&self) -> bool {
        self.is_late
    }
}

impl Lead {
    /// Keeps the lead for `time` from now.
    pub(crate) fn keep(&self, time: Duration) {
        self.hot.keep_lead(&self.leader, time);
    }

    /// Ends the lead, and has the next block led.
    pub(crate) fn end(self, committed: bool, conflict: bool) {
        self.hot.end_lead(&self.leader, committed, conflict);
    }
}

/// A lead that has ended ends no other one.
impl Drop for Lead {
    fn drop(&mut self) {
        // The mutexes of a forked child may be locked for good.
        if !self.process.is_other_process() {
            self.hot.end_lead(&self.leader, false, false);
            self.table.forget(&self.hot);
        }
    }
}

impl State {
    fn push(&mut self, caller: &Arc<Caller>, commands: Commands, after: Option<ReadValues>) {
        self.end = after.map(Arc::new);
        let (caller, after) = (Arc::clone(caller), self.end.clone());
        self.line.push_back(Appended { caller, commands, after });
    }
}

impl Drop for MergeEntry {
    fn drop(&mut self) {
        // The mutexes of a forked child may be locked for good.
        if self.table.process.is_forked_child() {
            return;
        }
        if self.role == Role::Waits
            && let Some(step) = self.withdraw()
        {
            self.follow(&step);
        }
        match self.role {
            Role::Runs(epoch) => self.hot.change(|state, _| {
                if state.epoch == epoch {
                    state.turn = None;
                }
            }),
            Role::Leads => self.leave_lead(),
            Role::Waits | Role::Ended => {}
        }
        lock(&self.hot.state).places -= 1;
        self.table.forget(&self.hot);
    }
}

impl Piece {
    pub(crate) fn is_applied(&self) -> bool {
        matches!(self, Self::Applied(_) | Self::RepliesLost | Self::NotIsolated(_))
    }
}

impl Commands {
    /// The commands of a queue, and the values after them; `None`: the effect is unknown.
    pub(crate) fn of(
        queue: &CommandQueue,
        before: Option<&ReadValues>,
    ) -> (Self, Option<ReadValues>) {
        let (bytes, count) = (queue.body().to_vec(), queue.commands());
        let mut after = before.cloned();
        let changing = after.as_mut().and_then(|values| values.apply(&bytes));
        let after = if changing.is_some() { after } else { None };
        let changing = changing.unwrap_or_default();
        (Self { bytes, count, changing, has_outcome: true }, after)
    }
}

impl Followers {
    #[cfg(all(test, not(rediscope_shuttle)))]
    fn len(&self) -> usize {
        self.members.len()
    }

    pub(crate) fn commands(&self) -> impl Iterator<Item = &Commands> {
        self.members.iter().map(|member| &member.commands)
    }

    /// Their bytes may leave from now on.
    pub(crate) fn sent(&mut self) {
        self.is_sent = true;
    }

    /// Ends them with these outcomes.
    pub(crate) fn end(mut self, pieces: impl Iterator<Item = Piece>) {
        let members = self.members.drain(..).zip(pieces);
        let give = |(member, piece): (Appended, _)| member.caller.give(Step::Ended(piece));
        let woken: Vec<_> = members.filter_map(give).collect();
        woken.into_iter().for_each(wake);
    }
}

impl Drop for Followers {
    fn drop(&mut self) {
        if self.process.is_other_process() {
            return;
        }
        for member in self.members.drain(..) {
            let woken = member.caller.give(match self.is_sent {
                true => Step::Ended(Piece::Failed(ended())),
                false => Step::Again,
            });
            woken.into_iter().for_each(wake);
        }
    }
}

/// The error of a block whose leader has ended without an outcome.
pub(crate) fn ended() -> CommitError {
    use crate::error::connection::{ConnectionError, ConnectionErrorKind};
    use crate::error::in_doubt::InDoubt;
    let text = "the caller that sent the block has ended";
    CommitError::InDoubt(InDoubt::new(ConnectionError::new(ConnectionErrorKind::Closed, text)))
}

/// Cuts the replies to a group into those of its blocks.
pub(crate) fn cut<'c>(
    values: Vec<Value>,
    blocks: impl Iterator<Item = &'c Commands>,
) -> impl Iterator<Item = Piece> {
    let (mut values, mut is_predicted) = (values.into_iter(), true);
    blocks.map(move |block| {
        let replies: Vec<_> = values.by_ref().take(block.count as usize).collect();
        let failed = |index: &u32| {
            matches!(replies.get(*index as usize), None | Some(Value::ServerError(_)))
        };
        let has_failed = block.changing.iter().any(failed);
        let was_predicted = is_predicted;
        is_predicted &= !has_failed;
        match was_predicted {
            true if replies.iter().any(is_too_large) => Piece::RepliesLost,
            true => Piece::Applied(replies),
            false => Piece::NotIsolated(replies),
        }
    })
}
