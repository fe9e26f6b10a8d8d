//! Runs a watching block merged with others on the same keys, see [merges](crate::transaction::merge).
//! Written once for both sides.

use std::future::ready;
use std::iter;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::commit::outcome::Committed;
use crate::commit::side::Side;
use crate::connection::deadline;
use crate::error::any::{CommitError, Error};
use crate::pool::key_turn::{TurnQueue, TurnWait};
use crate::pool::own_writes::OwnWrites;
use crate::pool::router::Router;
use crate::protocol::effects::ReadValues;
use crate::reply::replies::Replies;
use crate::settings::settings::Settings;
use crate::sync::in_span::in_span;
use crate::transaction::block::Block;
use crate::transaction::hot_keys::{HotKeys, Turn};
use crate::transaction::keys::Keys;
use crate::transaction::merge::{
    self, Append, Commands, Found, Group, MergeEntry, Piece, Step, StepWaiter,
};
use crate::transaction::pending::{self, Pending};
use crate::transaction::reading::{Reading, WatchTarget};
use crate::transaction::resolve::Resolve;
use crate::transaction::retry_loop::{WatchAttempts, is_repeatable, on_commit, on_conflict};

/// How the callers of one side wait for each other.
pub(crate) trait MergeSide: Side {
    type Waiter: StepWaiter + Default + 'static;

    /// Runs `future` to its end, also if the caller is dropped or polled no more, and then what it
    /// returns, which may panic. `None`: its end is not known by `deadline`.
    fn to_its_end<T: Send + 'static>(
        settings: &Settings,
        deadline: Instant,
        future: impl Future<Output = (T, impl FnOnce() + Send + 'static)> + Send + 'static,
    ) -> impl Future<Output = Option<T>> + Send;
}

/// What a closure has returned, and queued.
pub(crate) struct Ran<R, E> {
    pub(crate) result: Result<R, E>,
    pub(crate) block: Block,
}

/// A scope after its closure has run in it.
pub(crate) struct Closed<P: Side, R, E> {
    pub(crate) reading: Reading<P>,
    pub(crate) ran: Ran<R, E>,
    pub(crate) writes: Option<OwnWrites>,
}

/// The parts of a run that stay.
struct MergedRun<'r, P: MergeSide, Q: TurnQueue> {
    router: &'r Router<P>,
    target: WatchTarget<'r>,
    attempts: &'r mut WatchAttempts<Q>,
    waiter: P::Waiter,
}

/// Runs a watching block merged with others on the same keys. `None`: the block goes alone. `enter` waits
/// for the turn on the keys, and `closure` runs the block's closure in a scope.
pub(crate) async fn run_merged<P, Q, R, E, Entering, Running>(
    attempts: &mut WatchAttempts<Q>,
    router: &Router<P>,
    target: WatchTarget<'_>,
    hot_keys: &Arc<HotKeys<Q>>,
    mut enter: impl FnMut(TurnWait) -> Entering,
    mut closure: impl FnMut(Reading<P>, Option<OwnWrites>) -> Running,
) -> Result<Option<R::Output>, E>
where
    P: MergeSide<Turns = Q>,
    Q: TurnQueue,
    R: Resolve,
    E: From<Error>,
    Entering: Future<Output = Turn<Q>> + Send,
    Running: Future<Output = Closed<P, R, E>>,
{
    let Some(keys) = target.keys.filter(|_| !router.is_closed()) else { return Ok(None) };
    let (reads, most) = (target.reads.bytes(), router.settings().max_merged as usize);
    let Some(mut place) = hot_keys.merges.arrive(keys.watch(), reads, most) else {
        return Ok(None);
    };
    let mut run = MergedRun { router, target, attempts, waiter: P::Waiter::default() };
    let mut ran: Option<Ran<R, E>> = None;
    loop {
        let committed = match run.wait(&mut place).await {
            Step::Alone => {
                run.ran_in_vain(ran);
                return Ok(None);
            }
            Step::Again => {
                run.ran_in_vain(ran.take());
                place.rejoin();
                continue;
            }
            // A block that begins after a close needs a connection, and gets none.
            Step::Run(..) if run.attempts.is_last() || router.is_closed() => return Ok(None),
            Step::Run(values, _) => {
                let reading = run.attempts.predicted(router, target, &values)?;
                let closed = closure(reading, run.attempts.own_writes().take()).await;
                let Closed { mut reading, ran: mut new, writes } = closed;
                *run.attempts.own_writes() = writes;
                // The closure may have forked.
                router.here().map_err(Error::from)?;
                if let Some(error) = reading.wants_again() {
                    drop(place);
                    return if run.failed(&mut reading).await {
                        Ok(None)
                    } else {
                        Err(error.into())
                    };
                }
                let pending = new.result.is_ok().then_some(&mut new.block.pending);
                let is_own = reading.is_of(target) && !reading.is_connection_lost();
                match append(&mut place, is_own, pending, &values) {
                    Append::Done => ran = Some(new),
                    Append::Void => {
                        run.ran_in_vain(Some(new));
                        place.rejoin();
                    }
                    Append::Late => {
                        run.ran_in_vain(Some(new));
                        return Ok(None);
                    }
                }
                continue;
            }
            Step::Lead => {
                if let Some(wait) = run.attempts.turn_wait(router) {
                    // A thread waits in the call itself.
                    run.leading(&place, ready(())).await;
                    let entered = pin!(enter(wait));
                    let turn = run.leading(&place, entered).await;
                    run.attempts.set_turn(turn);
                }
                let mut reading = run.watch(&place).await?;
                let found = ReadValues::of(reads, reading.declared.values());
                let compared = place.compare(found.as_ref());
                let mut own = match ran.take() {
                    Some(own) if compared == Found::HasRun => own,
                    void => {
                        run.ran_in_vain(void);
                        reading.attempt = run.attempts.number();
                        let closed = closure(reading, run.attempts.own_writes().take()).await;
                        *run.attempts.own_writes() = closed.writes;
                        router.here().map_err(Error::from)?;
                        reading = closed.reading;
                        closed.ran
                    }
                };
                if let Some(error) = reading.wants_again() {
                    own.result = Err(error.into());
                }
                if let Err(error) = own.result {
                    place.leave_lead();
                    run.attempts.end_turn();
                    if !run.failed(&mut reading).await {
                        return Err(error);
                    }
                    if compared == Found::Late {
                        return Ok(None);
                    }
                    place.rejoin();
                    continue;
                }
                let pending = &mut own.block.pending;
                let committed = run.lead(&mut place, reading, pending, (compared, found)).await;
                ran = Some(own);
                committed
            }
            Step::Ended(piece) => match &mut ran {
                Some(own) => run.follower_outcome(own, piece),
                None => None,
            },
        };
        let (committed, Some(Ran { result, mut block })) = (committed, ran.take()) else {
            return Ok(None);
        };
        let Some(committed) = committed else {
            run.attempts.ran_in_vain(router, true);
            return Ok(None);
        };
        let Some(replies) = run.end_block(&mut block.pending, committed, result.is_err()).await?
        else {
            if run.attempts.conflicts_with_itself(router, keys) || place.is_late() {
                return Ok(None);
            }
            place.rejoin();
            continue;
        };
        let resolved = result?.resolve(&replies);
        return Ok(Some(resolved.map_err(|error| block.pending.named(error))?));
    }
}

impl<P: MergeSide<Turns = Q>, Q: TurnQueue> MergedRun<'_, P, Q> {
    /// Waits for the block's next step.
    async fn wait(&mut self, place: &mut MergeEntry) -> Step {
        let until = self.attempts.turn_deadline();
        let late = late(self.router.settings());
        place.wait(&mut self.waiter, until, || deadline::after(late)).await
    }

    /// Waits as the leader, and keeps the lead.
    async fn leading<T: Send>(
        &mut self,
        place: &MergeEntry,
        wait: impl Future<Output = T> + Send,
    ) -> T {
        self.waiter.leading(&|time| place.keep_lead(time), wait).await
    }

    /// Takes a connection for the leader, and waits for the reply to WATCH.
    async fn watch(&mut self, place: &MergeEntry) -> Result<Reading<P>, Error> {
        let span = self.attempts.span().clone();
        let next = pin!(self.attempts.next(self.router, self.target));
        let keep = |time| place.keep_lead(time);
        self.waiter.leading(&keep, in_span(&span, next)).await
    }

    /// The closure has run on values that are void, and nothing was sent.
    fn ran_in_vain<R, E>(&mut self, ran: Option<Ran<R, E>>) {
        if ran.is_some() {
            self.attempts.ran_in_vain(self.router, false);
        }
    }

    /// The outcome of a block that another caller has sent.
    fn follower_outcome<R, E>(
        &self,
        own: &mut Ran<R, E>,
        piece: Piece,
    ) -> Option<Result<Committed, CommitError>> {
        let committed = self.attempts.outcome_of(&mut own.block.pending, piece);
        if let Some(committed) = committed.as_ref().filter(|_| own.result.is_ok()) {
            let _in = self.attempts.span().enter();
            pending::log(pending::outcome(committed), committed.as_ref().err());
        }
        committed
    }

    async fn failed(&mut self, reading: &mut Reading<P>) -> bool {
        let span = self.attempts.span().clone();
        in_span(&span, pin!(self.attempts.failed(self.router, reading))).await
    }

    /// Returns the replies to a block; `None`: it runs again. `has_failed`: its closure has, and has
    /// queued nothing.
    async fn end_block(
        &mut self,
        pending: &mut Pending,
        committed: Result<Committed, CommitError>,
        has_failed: bool,
    ) -> Result<Option<Replies>, Error> {
        let span = self.attempts.span().clone();
        let ended = self.attempts.end_block(self.router, pending, committed, has_failed);
        in_span(&span, pin!(ended)).await
    }

    /// Commits the leader's block and those that follow it. If its closure has run on what was found, its
    /// block is not in the line yet. `None`: it goes alone.
    async fn lead(
        &mut self,
        place: &mut MergeEntry,
        mut reading: Reading<P>,
        pending: &mut Pending,
        (compared, found): (Found, Option<ReadValues>),
    ) -> Option<Result<Committed, CommitError>> {
        let span = self.attempts.span().clone();
        let is_merged = match compared {
            Found::HasRun => true,
            // The closure may have swapped another scope in, which watches other keys.
            Found::Runs if reading.is_of(self.target) && pending.can_be_merged() => {
                let found = found.filter(|_| place.is_followed());
                let (commands, after) = Commands::of(pending.queue(), found.as_ref());
                place.append_first(commands, after)
            }
            Found::Runs | Found::Late => false,
        };
        let Some(group) = is_merged.then(|| place.take()).flatten() else {
            let committed = {
                let keys = self.target.keys;
                let attempt = pin!(self.attempts.attempt(keys, &mut reading, pending));
                let keep = |time| place.keep_lead(time);
                self.waiter.leading(&keep, in_span(&span, attempt)).await
            };
            self.attempts.end_turn();
            let conflict = matches!(committed, Ok(Committed::Conflict));
            place.end_lead(committed.is_ok() && !conflict, conflict);
            return Some(committed);
        };
        let settings = self.router.settings();
        let (limit, late) = (self.attempts.commit_deadline(), deadline::after(late(settings)));
        let turn = self.attempts.take_turn(self.target.keys);
        let group = commit_group(self.router.clone(), reading, limit, turn, group);
        let sent = pin!(P::to_its_end(settings, late, group));
        let piece = in_span(&span, sent).await;
        self.attempts.outcome_of(pending, piece.unwrap_or_else(|| Piece::Failed(merge::ended())))
    }
}

/// Time after which the outcome of a block that a leader has taken is unknown.
fn late(settings: &Settings) -> Duration {
    settings.checkout_timeout + 2 * settings.response_timeout
}

/// Appends what a closure has queued. `is_own`: it has not swapped another scope in, which watches other keys,
/// and it has read what it was given. `pending`: `None` if it has failed.
fn append(
    place: &mut MergeEntry,
    is_own: bool,
    pending: Option<&mut Pending>,
    values: &ReadValues,
) -> Append {
    if !is_own {
        return Append::Late;
    }
    let (commands, after) = match pending {
        None => (Commands::default(), Some(values.clone())),
        Some(pending) => match pending.can_be_merged() {
            true => Commands::of(pending.queue(), Some(values)),
            false => return Append::Late,
        },
    };
    place.append(commands, after)
}

/// Commits the blocks of a group, and gives its followers their outcomes. Returns what became of the leader's
/// block, and what logs it. Dropped before its end, it may have sent EXEC. `turn`: the leader's, the watched
/// keys, and the number of its attempt.
async fn commit_group<P: MergeSide, Q: TurnQueue>(
    router: Router<P>,
    mut reading: Reading<P>,
    deadline: Instant,
    turn: Option<(Turn<Q>, Keys, u32)>,
    group: Group,
) -> (Piece, impl FnOnce() + Send) {
    let Group { own, mut followers, lead } = group;
    let mut merged = Pending::new(router.settings(), reading.binding);
    for commands in iter::once(&own).chain(followers.commands()) {
        merged.queue().append_all(&commands.bytes, commands.count);
    }
    followers.sent();
    merged.bind(reading.binding);
    if let Some((turn, keys, _)) = &turn {
        on_commit(turn, keys, &mut merged);
    }
    reading.pinned.closure_returned();
    let attempt = merged.attempt_unlogged(&mut reading.pinned, deadline);
    let mut waiter = P::Waiter::default();
    let committed = waiter.leading(&|time| lead.keep(time), attempt).await;
    let (outcome, error) = (pending::outcome(&committed), committed.as_ref().err().cloned());
    let blocks = iter::once(&own).chain(followers.commands()).collect();
    let mut pieces = pieces_of(committed, &router, blocks).into_iter();
    let piece = pieces.next().unwrap_or(Piece::Alone);
    if let Some((turn, keys, number)) = &turn
        && matches!(piece, Piece::Conflict)
    {
        on_conflict(turn, keys, &mut merged, *number);
    }
    drop(turn);
    // The next block is led before the others wake.
    lead.end(piece.is_applied(), matches!(piece, Piece::Conflict));
    followers.end(pieces);
    // A subscriber is the user's code, which may panic or wait: last.
    (piece, move || pending::log(outcome, error.as_ref()))
}

/// What became of each block of a group. The first one is counted already.
fn pieces_of<P: Side>(
    committed: Result<Committed, CommitError>,
    router: &Router<P>,
    blocks: Vec<&Commands>,
) -> Vec<Piece> {
    let all = |piece: Piece| vec![piece; blocks.len()];
    // A block whose closure has failed has no outcome of its own.
    let others = blocks.iter().skip(1).filter(|block| block.has_outcome).count();
    let counters = router.counters();
    let applied = |replies: Replies| {
        counters.commits.add_all(others);
        match replies.into_values() {
            Some(values) => merge::cut(values, blocks.iter().copied()).collect(),
            None => all(Piece::RepliesLost),
        }
    };
    match committed {
        Ok(Committed::Applied(replies)) => applied(replies),
        Err(CommitError::PartlyApplied { replies }) => applied(replies),
        Ok(Committed::Conflict) => {
            counters.conflicts.add_all(others);
            all(Piece::Conflict)
        }
        // Each command may have run by itself.
        Err(CommitError::NotIsolated { replies }) => {
            let values = replies.into_values().unwrap_or_default();
            let mut values = values.into_iter();
            let pieces = blocks.iter().map(|block| {
                Piece::NotIsolated(values.by_ref().take(block.count as usize).collect())
            });
            pieces.collect()
        }
        Err(error @ CommitError::InDoubt(_)) => {
            counters.in_doubt.add_all(others);
            all(Piece::Failed(error))
        }
        // The connection was lost, which concerns each block.
        Err(error @ CommitError::NotSent { .. }) if is_repeatable(&error, router) => {
            all(Piece::Failed(error))
        }
        // Nothing was applied, and alone each block gets its own error. A refusal is one block's, also one of a
        // former master.
        Err(CommitError::NotSent { .. } | CommitError::Rejected { .. }) => all(Piece::Alone),
        Err(error) => all(Piece::Failed(error)),
    }
}
