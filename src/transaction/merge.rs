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

#[cfg(all(test, not(rediscope_shuttle)))]
#[path = "../../tests/unit/hot_watch.rs"]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::time::Instant;

use redis::Value;

use crate::error::any::CommitError;
use crate::process::current::Process;
use crate::protocol::effects::ReadValues;
use crate::protocol::queue::CommandQueue;
use crate::sync::cancel;
use crate::sync::fork_check::ForkCheck;
use crate::sync::shim::{Arc, Condvar, Mutex, PoisonError, lock};

/// Number of parts of the table, so that blocks on different keys seldom meet.
const SHARDS: u64 = 64;

/// Maximum bytes of the commands in one EXEC.
const MAX_BYTES: usize = 64 * 1024;

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
    /// The callers whose closures have not run, by their arrival.
    waiting: BTreeMap<u64, Arc<Caller>>,
    /// The caller whose closure runs.
    turn: Option<u64>,
    /// Changes when values that a closure may run on turn out to be wrong.
    epoch: u64,
    has_leader: bool,
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
}

/// One caller, and what it is to do next.
pub(crate) struct Caller {
    number: u64,
    step: Mutex<Option<Step>>,
    given: Condvar,
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
    /// Go alone: no time is left.
    Alone,
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
pub(crate) struct MergeEntry<'t> {
    table: &'t MergeTable,
    hot: Arc<HotWatch>,
    caller: Arc<Caller>,
    role: Role,
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
        // FNV: the bytes are few.
        let hash = watch.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        self.shards.get((hash % SHARDS) as usize)
    }

    /// Joins the blocks of this watch. `most`: maximum number of blocks in one EXEC.
    pub(crate) fn arrive(&self, watch: &[u8], reads: &[u8], most: usize) -> Option<MergeEntry<'_>> {
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
                return Some(MergeEntry { table: self, hot, caller, role: Role::Waits });
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
            waiting: BTreeMap::new(),
            turn: None,
            epoch: 0,
            has_leader: false,
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
        let mut state = lock(&self.state);
        if state.is_removed {
            return None;
        }
        let number = state.next;
        state.next += 1;
        let caller = Arc::new(Caller::new(number));
        state.waiting.insert(number, Arc::clone(&caller));
        let woken = state.admit();
        drop(state);
        Caller::wake_all(woken);
        Some(caller)
    }

    /// Changes the state, and wakes the callers that may go on by that.
    fn change<T>(&self, change: impl FnOnce(&mut State, &mut Vec<Arc<Caller>>) -> T) -> T {
        let mut state = lock(&self.state);
        let mut woken = Vec::new();
        let changed = change(&mut state, &mut woken);
        woken.extend(state.admit());
        drop(state);
        Caller::wake_all(woken);
        changed
    }
}

impl State {
    /// Lets callers go on: the next one in the line leads, the next one that waits runs its closure.
    /// Returns those to wake.
    fn admit(&mut self) -> Vec<Arc<Caller>> {
        let mut woken = Vec::new();
        if !self.has_leader
            && let Some(first) = self.line.front()
        {
            self.has_leader = true;
            first.caller.give(Step::Lead);
            woken.push(Arc::clone(&first.caller));
        }
        if self.turn.is_some() {
            return woken;
        }
        let step = match &self.end {
            Some(end) if self.line.len() < self.most => Step::Run(Arc::clone(end), self.epoch),
            // The values are unknown, and no caller asks for them.
            None if !self.has_leader => Step::Lead,
            _ => return woken,
        };
        if let Some((number, caller)) = self.waiting.pop_first() {
            self.has_leader |= matches!(step, Step::Lead);
            self.turn = Some(number);
            caller.give(step);
            woken.push(caller);
        }
        woken
    }

    /// The results of all closures from this place in the line on are void.
    fn void_from(&mut self, at: usize, woken: &mut Vec<Arc<Caller>>) {
        self.end = match at.checked_sub(1) {
            None => self.start.clone(),
            Some(before) => self.line.get(before).and_then(|block| block.after.clone()),
        };
        self.epoch += 1;
        self.turn = None;
        for block in self.line.drain(at..) {
            block.caller.give(Step::Again);
            woken.push(block.caller);
        }
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.line.is_empty() && self.turn.is_none() && !self.has_leader
    }
}

impl Caller {
    fn new(number: u64) -> Self {
        Self { number, step: Mutex::new(None), given: Condvar::new() }
    }

    fn give(&self, step: Step) {
        *lock(&self.step) = Some(step);
    }

    fn take(&self) -> Option<Step> {
        lock(&self.step).take()
    }

    fn wake_all(callers: Vec<Arc<Self>>) {
        for caller in callers {
            caller.given.notify_one();
        }
    }

    /// Sleeps until there is a step; `None`: there is none by `until`, or the wait was cancelled.
    fn wait(&self, until: Instant) -> Option<Step> {
        let mut step = lock(&self.step);
        loop {
            if let Some(step) = step.take() {
                return Some(step);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || cancel::is_cancelled() {
                return None;
            }
            let woken = self.given.wait_timeout(step, cancel::tick(left));
            step = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl MergeEntry<'_> {
    /// Waits for the caller's next step. It goes alone if there is none by `until`. The outcome of a
    /// block that a leader has taken is awaited until `late`, and is unknown after that.
    pub(crate) fn wait(&mut self, until: Instant, late: impl FnOnce() -> Instant) -> Step {
        let step = self.caller.wait(until).or_else(|| self.withdraw());
        let step = step.unwrap_or_else(|| {
            let step = cancel::suspended(|| self.caller.wait(late()));
            step.unwrap_or_else(|| {
                // What the leader still gives is for this block, and not for a later one.
                self.caller = Arc::new(Caller::new(self.caller.number));
                Step::Ended(Piece::Failed(ended()))
            })
        });
        self.follow(&step);
        step
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

    /// Appends the commands of the closure that has run. Returns false if the values that it ran on
    /// are void: then it has to [arrive again](Self::rejoin).
    pub(crate) fn append(&mut self, commands: Commands, after: Option<ReadValues>) -> bool {
        let Role::Runs(epoch) = self.role else { return false };
        let is_valid = self.hot.change(|state, _| {
            if state.epoch != epoch {
                return false;
            }
            state.turn = None;
            state.push(&self.caller, commands, after);
            true
        });
        self.role = if is_valid { Role::Waits } else { Role::Ended };
        is_valid
    }

    /// Whether the closure's result is valid, because the leader's reads have found the values that it
    /// ran on. Otherwise all results are void, and the leader runs its closure on what was found.
    pub(crate) fn has_run_on(&mut self, found: Option<&ReadValues>) -> bool {
        self.hot.change(|state, woken| {
            let has_run =
                state.line.front().is_some_and(|first| Arc::ptr_eq(&first.caller, &self.caller));
            if has_run && found.is_some() && state.start.as_deref() == found {
                return true;
            }
            state.start = found.cloned().map(Arc::new);
            state.void_from(0, woken);
            // Its own step is to go on.
            self.caller.take();
            state.end = None;
            state.turn = Some(self.caller.number);
            false
        })
    }

    /// Appends the leader's commands, of a closure that has run on what was found.
    pub(crate) fn append_first(&mut self, commands: Commands, after: Option<ReadValues>) {
        self.hot.change(|state, _| {
            state.turn = None;
            state.push(&self.caller, commands, after);
        });
    }

    /// Whether other callers wait, which would run on the values that this block leaves.
    pub(crate) fn is_followed(&self) -> bool {
        !lock(&self.hot.state).waiting.is_empty()
    }

    /// Takes the leader's block and those that follow it. Returns the leader's commands.
    pub(crate) fn take(&mut self) -> (Commands, Followers) {
        let members = self.hot.change(|state, _| {
            let mut bytes = 0;
            let fits = |block: &&Appended| {
                bytes += block.commands.bytes.len();
                bytes <= MAX_BYTES
            };
            let count = state.line.iter().take(state.limit).take_while(fits).count().max(1);
            let members: Vec<_> = state.line.drain(..count.min(state.line.len())).collect();
            state.start = members.last().and_then(|last| last.after.clone());
            members
        });
        let mut members = members.into_iter();
        let own = members.next().map(|own| own.commands).unwrap_or_default();
        (own, Followers { members: members.collect(), is_sent: false, process: ForkCheck::here() })
    }

    /// Ends the lead, and has the next block led. `conflict`: a watched key was changed from outside.
    pub(crate) fn end_lead(&mut self, committed: bool, conflict: bool) {
        self.role = Role::Ended;
        self.hot.change(|state, _| {
            state.has_leader = false;
            state.turn.take_if(|turn| *turn == self.caller.number);
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
    fn push(&mut self, caller: &Arc<Caller>, commands: Commands, after: Option<ReadValues>) {
        self.end = after.map(Arc::new);
        let (caller, after) = (Arc::clone(caller), self.end.clone());
        self.line.push_back(Appended { caller, commands, after });
    }
}

impl Drop for MergeEntry<'_> {
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
            Role::Leads => {
                // Its block, if it is still in the line, and those that ran on what it leaves.
                self.hot.change(|state, woken| match state.line.front() {
                    Some(first) if !Arc::ptr_eq(&first.caller, &self.caller) => {}
                    // It leaves what it has found.
                    Some(first) if first.commands.count == 0 => _ = state.line.pop_front(),
                    _ => state.void_from(0, woken),
                });
                self.end_lead(false, false);
            }
            Role::Waits | Role::Ended => {}
        }
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
        (Self { bytes, count, changing: changing.unwrap_or_default() }, after)
    }
}

impl Followers {
    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
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
        let members: Vec<_> = self.members.drain(..).zip(pieces).collect();
        let mut woken = Vec::with_capacity(members.len());
        for (member, piece) in members {
            member.caller.give(Step::Ended(piece));
            woken.push(member.caller);
        }
        Caller::wake_all(woken);
    }
}

impl Drop for Followers {
    fn drop(&mut self) {
        if self.process.is_other_process() {
            return;
        }
        for member in self.members.drain(..) {
            member.caller.give(match self.is_sent {
                true => Step::Ended(Piece::Failed(ended())),
                false => Step::Again,
            });
            member.caller.given.notify_one();
        }
    }
}

/// The error of a block whose leader has ended without an outcome.
fn ended() -> CommitError {
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
        if was_predicted { Piece::Applied(replies) } else { Piece::NotIsolated(replies) }
    })
}
