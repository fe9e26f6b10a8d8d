//! The loops of `run` and `watch(..).run`, which send or run a block again.
//!
//! They never do so after the block's commands may have been applied.

use std::time::{Duration, Instant};

use tracing::Span;

use crate::commit::outcome::{self, Committed, classify};
use crate::commit::plan::CommitPlan;
use crate::commit::side::Side;
use crate::commit::wait_limit::WaitLimit;
use crate::connection::deadline;
use crate::connection::io::Io;
use crate::error::any::{CommitError, Error};
use crate::error::connection::ConnectionError;
use crate::error::in_doubt::{InDoubt, Resolution};
use crate::pool::checkout::ThreadKeyQueue;
use crate::pool::early_watch::{self, WatchOffer};
use crate::pool::key_turn::{TurnQueue, TurnWait};
use crate::pool::own_writes::OwnWrites;
use crate::pool::router::Router;
use crate::pool::scope_origin::ScopeOrigin;
use crate::pool::semaphore::QueuePlace;
use crate::protocol::cluster::route::{Redirect, Route};
use crate::protocol::cluster::slot::SlotBinding;
use crate::protocol::command::keys;
use crate::protocol::effects::{self, ReadValues};
use crate::protocol::exec::{Unproven, Verdict};
use crate::protocol::replication::ReplicaAcks;
use crate::protocol::retry::{Attempts, RetryPolicy};
use crate::reply::replies::Replies;
use crate::status::metrics::Started;
use crate::sync::boxed::boxed;
use crate::transaction::hot_keys::Turn;
use crate::transaction::keys::Keys;
use crate::transaction::merge::Piece;
use crate::transaction::pending::Pending;
use crate::transaction::pinned::{Pinned, transaction_span};
use crate::transaction::reading::{self, Reading, WatchTarget};
use crate::transaction::redirects::{CheckoutBudget, RedirectCause};

/// Conflicts retried without backoff by a block that takes turns: at once, or first in the queue. Beyond
/// this, contention comes from another process.
const MAX_IMMEDIATE_RETRIES: u32 = 8;

/// Number of attempts after which the keys are hot also for a block that does not change them.
const ATTEMPTS_BESIDE_WRITERS: u32 = 4;

/// The limits of one run: its attempts, and its time for connections.
struct RunLimits {
    policy: RetryPolicy,
    /// `None` before the first attempt that counts.
    attempts: Option<Attempts>,
    checkout: CheckoutBudget,
    wait: WaitLimit,
}

impl RunLimits {
    fn new<P: Side>(router: &Router<P>, policy: RetryPolicy, wait: WaitLimit) -> Self {
        let checkout = CheckoutBudget::new(router.settings(), wait);
        RunLimits { policy, attempts: None, checkout, wait }
    }

    fn attempts(&mut self) -> &mut Attempts {
        let until = self.wait.until;
        self.attempts.get_or_insert_with(|| self.policy.begin(Instant::now()).until(until))
    }

    /// Number of attempts so far.
    fn number(&self) -> u32 {
        self.attempts.as_ref().map_or(1, Attempts::number)
    }

    /// The same without those that the policy does not count.
    fn counted(&self) -> u32 {
        self.attempts.as_ref().map_or(1, Attempts::counted)
    }

    /// Waits until the next attempt. Returns false if the policy allows none.
    async fn retry<P: Side>(&mut self, router: &Router<P>, why: &str, immediately: bool) -> bool {
        let attempts = self.attempts();
        let Some(wait) = attempts.next(Instant::now()) else { return false };
        let (wait, attempt) = (if immediately { Duration::ZERO } else { wait }, attempts.number());
        router.counters().retries.add();
        tracing::debug!(attempt, ?wait, why, "retry");
        P::Io::pause(wait).await;
        self.checkout.restart();
        true
    }
}

/// Commits a block whose closure has returned. Bytes that were not sent are sent again. Dropped
/// before its end, it may have sent EXEC.
pub(crate) async fn commit_block<P: Side>(
    router: &Router<P>,
    policy: RetryPolicy,
    pending: &mut Pending,
    pinned: &mut Pinned<P>,
) -> Result<Replies, Error> {
    pinned.closure_returned();
    let mut limits = RunLimits::new(router, policy, pinned.plan().wait);
    if P::HAS_LANES
        && let Some(deadline) = pending.carried_deadline()
    {
        limits.checkout.deadline = deadline;
    }
    loop {
        let deadline = limits.checkout.deadline;
        let mut committed = pending.attempt(pinned, deadline).await;
        if committed.is_err() {
            boxed(resolve_in_doubt::<P>(&mut committed, pending, pinned.plan())).await;
        }
        if let Err(error) = &committed
            && pending.can_resend()
        {
            let next = boxed(pinned.redirect_for(error, deadline)).await;
            if let Some(route) = limits.checkout.follow::<P::Io>(next).await
                && pinned.plan().may_send_again()
            {
                pinned.set_route(route);
                continue;
            }
            if is_repeatable(error, router)
                && pinned.plan().may_send_again()
                && limits.retry(router, "not sent", false).await
            {
                continue;
            }
        }
        pending.record(pinned, &committed, limits.number());
        return replies(committed, 1);
    }
}

/// The replies of a transaction that was applied.
fn replies(committed: Result<Committed, CommitError>, attempts: u32) -> Result<Replies, Error> {
    match committed? {
        Committed::Applied(replies) => Ok(replies),
        Committed::Conflict => Err(Error::RetriesExhausted { attempts }),
    }
}

/// The parts of a watching run.
pub(crate) struct WatchRun {
    pub(crate) owner: ScopeOrigin,
    pub(crate) plan: CommitPlan,
    pub(crate) policy: RetryPolicy,
    /// The slot of the keys.
    pub(crate) binding: SlotBinding,
}

/// The attempts of one watching run. The caller loops: [`next`](Self::next), then its closure, then
/// [`failed`](Self::failed) or [`commit`](Self::commit).
pub(crate) struct WatchAttempts<Q: TurnQueue = ThreadKeyQueue> {
    run: WatchRun,
    span: Span,
    limits: RunLimits,
    route: Route,
    /// `None`: the run waits for its turn before the next attempt, if it takes turns.
    turn: Option<Turn<Q>>,
    /// The commit passed its turn on to another caller, for which all others wait now.
    pub(crate) was_passed_on: bool,
    /// Its place in the queue for the next turn.
    place: QueuePlace,
    begun: Started,
    own_writes: Option<OwnWrites>,
    /// The caller writes the loop, which may end after any attempt. It then [records](Self::record_end) that.
    pub(crate) is_written: bool,
}

impl<Q: TurnQueue> WatchAttempts<Q> {
    pub(crate) fn new<P: Side>(router: &Router<P>, run: WatchRun) -> Self {
        let span = transaction_span(router, &run.owner);
        let limits = RunLimits::new(router, run.policy, run.plan.wait);
        let route = Route::to(run.binding.slot());
        // A block that writes its own keys is not merged with others, whatever is logged.
        let is_merged = router.settings().max_merged > 1;
        let own_writes = if run.plan.watched { OwnWrites::new(is_merged) } else { None };
        Self {
            run,
            span,
            limits,
            route,
            turn: None,
            was_passed_on: false,
            place: QueuePlace::Last,
            begun: Started::now(),
            own_writes,
            is_written: false,
        }
    }

    /// Records the outcome of a run that ends after an attempt which could be followed by another one.
    #[cfg(feature = "tokio")]
    pub(crate) fn record_end<P: Side>(&self, router: &Router<P>, outcome: &'static str) {
        self.scope(router).record_end(outcome);
    }

    /// The span of all attempts.
    pub(crate) fn span(&self) -> &Span {
        &self.span
    }

    /// The scope of one attempt, without a connection.
    fn scope<P: Side>(&self, router: &Router<P>) -> Pinned<P> {
        let (owner, plan) = (self.run.owner.clone(), self.run.plan.clone());
        Pinned::within(self.span.clone(), router, owner, plan).of_loop(self.is_written)
    }

    /// The slot of the keys.
    #[cfg(feature = "tokio")]
    pub(crate) fn binding(&self) -> SlotBinding {
        self.run.binding
    }

    /// Returns the instant until which the run may wait for its turn: it leaves some time for attempts without
    /// one. A run without a turn loses its place, so it waits for most of the time.
    pub(crate) fn turn_deadline(&mut self) -> Instant {
        let (now, deadline) = (Instant::now(), self.limits.attempts().deadline());
        let left = deadline.saturating_duration_since(now);
        let wait = left - self.limits.checkout.limit.min(left / 8);
        now + self.limits.wait.within.map_or(wait, |within| within.min(wait))
    }

    /// Returns how the run waits for its turn. `None`: it has its turn, or gets no connection.
    pub(crate) fn turn_wait<P: Side>(&mut self, router: &Router<P>) -> Option<TurnWait> {
        if self.turn.is_some() || router.is_closed() {
            return None;
        }
        let patience = early_watch::patience(router.settings().response_timeout);
        let (deadline, place) = (self.turn_deadline(), self.place);
        Some(TurnWait { deadline, place, patience, term: router.settings().max_pin_time })
    }

    /// WATCH and the reads, which the caller before it may send.
    pub(crate) fn offer<'w, T>(&self, target: WatchTarget<'w>) -> Option<WatchOffer<'w, T>> {
        target.offer(&self.run.plan, &self.route, None)
    }

    /// Sets the turn of a run on hot keys. The turn comes before the connection, so that a waiting
    /// block holds no connection. The time until then does not count as a wait for one.
    pub(crate) fn set_turn(&mut self, turn: Turn<Q>) {
        (self.turn, self.place) = (Some(turn), QueuePlace::Last);
        self.limits.checkout.restart();
    }

    /// Records that the block commits in its turn.
    fn on_commit(&self, keys: Option<&Keys>, pending: &mut Pending) {
        if let (Some(turn), Some(keys)) = (&self.turn, keys) {
            on_commit(turn, keys, pending);
        }
    }

    /// Records a conflict on hot keys. Returns whether the next attempt follows without backoff.
    fn on_conflict(&mut self, keys: Option<&Keys>, pending: &mut Pending) -> bool {
        let (Some(turn), Some(keys)) = (&self.turn, keys) else { return false };
        if !on_conflict(turn, keys, pending, self.limits.counted()) {
            return false;
        }
        let at_once = self.limits.counted() <= MAX_IMMEDIATE_RETRIES;
        let had_turn = turn.is_over() || turn.is_held();
        if !turn.is_held_in(keys.buckets()) {
            // It waits for all its turns, and not with some of them.
            self.turn = None;
            if at_once && had_turn {
                self.place = QueuePlace::First;
            }
        }
        at_once
    }

    /// Takes a connection and waits for the reply to WATCH. Dropped before its end, it has applied
    /// nothing.
    pub(crate) async fn next<P: Side<Turns = Q>>(
        &mut self,
        router: &Router<P>,
        target: WatchTarget<'_>,
    ) -> Result<Reading<P>, Error> {
        loop {
            let (attempt, deadline) =
                (self.limits.attempts().number(), self.limits.checkout.deadline);
            let mut pinned = self.scope(router);
            pinned.set_route(self.route.clone());
            let turn = self.turn.as_ref().and_then(|turn| turn.key.as_ref());
            match reading::arm(&mut pinned, target, attempt, deadline, turn).await {
                Ok(declared) => {
                    if let Some(turn) = &mut self.turn {
                        turn.attempted();
                    }
                    return Ok(Reading::new(pinned, target, attempt, declared));
                }
                Err(error) => boxed(self.not_armed(router, pinned, error, deadline)).await?,
            }
        }
    }

    /// Sets the route of the next attempt after one that failed before the closure ran.
    ///
    /// # Errors
    /// There is no further attempt.
    async fn not_armed<P: Side>(
        &mut self,
        router: &Router<P>,
        mut pinned: Pinned<P>,
        error: Error,
        deadline: Instant,
    ) -> Result<(), Error> {
        let Some(cause) = RedirectCause::of(&error) else {
            reading::stop(&mut pinned, &error).await;
            return Err(error);
        };
        let was_pinned = pinned.release_or_log().await;
        let next = cause.redirect(router, &self.route, deadline).await;
        let Some(route) = self.limits.checkout.follow::<P::Io>(next).await else {
            pinned.record_failure(&error);
            if was_pinned {
                pinned.record_early_failure(&error);
            }
            return Err(error);
        };
        self.route = route;
        Ok(())
    }

    /// The writes of the closure past its block, for [`own_writes::during`](crate::pool::own_writes::during).
    pub(crate) fn own_writes(&mut self) -> &mut Option<OwnWrites> {
        &mut self.own_writes
    }

    /// Warns of a closure whose attempts conflict with its own writes, once for its place.
    fn warn_of_own_writes<P: Side>(&self, router: &Router<P>, keys: Option<&Keys>) {
        let (Some(writes), Some(keys)) = (&self.own_writes, keys) else { return };
        let ScopeOrigin { name, place, .. } = &self.run.owner;
        if keys.are_written_by(writes, router.settings()) && router.rate_limits().allow_once(place)
        {
            tracing::warn!(
                name = name.as_deref(),
                %place,
                hint = "each attempt is a conflict with itself: queue the write on the block",
                "a watching closure writes a watched key past its block"
            );
        }
    }

    /// Returns when the closure begins, if its time matters: in a cluster.
    pub(crate) fn closure_begins<P: Side>(&self, router: &Router<P>) -> Option<Instant> {
        router.is_cluster().then(Instant::now)
    }

    /// Adds the time that the closure ran.
    pub(crate) fn closure_ran(&mut self, begun: Option<Instant>) {
        self.limits.checkout.extend(begun.map(|begun| begun.elapsed()));
    }

    /// Waits before an attempt after one that ended without a commit.
    ///
    /// # Errors
    /// The policy allows no further attempt.
    #[cfg(feature = "tokio")]
    pub(crate) async fn after_abandoned<P: Side>(
        &mut self,
        router: &Router<P>,
    ) -> Result<(), Error> {
        let attempts = self.limits.counted();
        self.turn = None;
        match self.limits.retry(router, "abandoned", false).await {
            true => Ok(()),
            false => Err(Error::RetriesExhausted { attempts }),
        }
    }

    /// Ends an attempt whose closure has failed. Returns true if there is another attempt, because the
    /// closure has asked for it, or its error only follows from the server or the connection.
    pub(crate) async fn failed<P: Side>(
        &mut self,
        router: &Router<P>,
        reading: &mut Reading<P>,
    ) -> bool {
        let why = match (reading.is_connection_lost(), reading.wants_again()) {
            (_, Some(_)) => Some("again"),
            (true, None) => Some("connection lost"),
            (false, None) => None,
        };
        let redirect = reading.take_redirect();
        let was_pinned = reading.pinned.release_or_log().await;
        if let Some(next) = self.limits.checkout.follow::<P::Io>(redirect).await {
            self.route = next;
            return true;
        }
        // No other block waits for this one's backoff.
        self.turn = None;
        if let Some(why) = why
            && self.limits.retry(router, why, false).await
        {
            return true;
        }
        if was_pinned {
            reading.pinned.record_discard();
        }
        false
    }

    /// Commits the commands that the closure queued under a watch of `keys`. `None`: there is another attempt. Dropped
    /// before its end, it may have sent EXEC.
    pub(crate) async fn commit<P: Side>(
        &mut self,
        router: &Router<P>,
        keys: Option<&Keys>,
        reading: &mut Reading<P>,
        pending: &mut Pending,
    ) -> Result<Option<Replies>, Error> {
        pending.bind(reading.binding);
        self.on_commit(keys, pending);
        let (plan, attempt) = (&self.run.plan, reading.attempt);
        let pinned = &mut reading.pinned;
        pinned.closure_returned();
        let deadline = match pinned.is_pinned() {
            true => self.commit_deadline(),
            false => self.limits.checkout.deadline,
        };
        let mut committed = pending.attempt(pinned, deadline).await;
        if committed.is_err() {
            // No other block waits for this one's query.
            self.turn.take_if(|_| matches!(committed, Err(CommitError::InDoubt(_))));
            boxed(resolve_in_doubt::<P>(&mut committed, pending, plan)).await;
        }
        if let Err(error) = &committed {
            let next = boxed(pinned.redirect_for(error, deadline)).await;
            let next = next.map(|next| if plan.watched { next } else { without_ask(next) });
            if let Some(next) = self.limits.checkout.follow::<P::Io>(next).await {
                self.route = next;
                self.turn.take_if(|turn| !turn.is_held());
                return Ok(None);
            }
        }
        let mut at_once = false;
        if matches!(committed, Ok(Committed::Conflict)) {
            self.warn_of_own_writes(router, keys);
            at_once = self.on_conflict(keys, pending);
        }
        let why = why_again(&committed, router);
        if let Some(why) = why {
            if !at_once {
                self.turn = None;
            }
            if self.limits.retry(router, why, at_once).await {
                return Ok(None);
            }
        }
        pending.begun_at(self.begun);
        pending.record(pinned, &committed, attempt);
        // The turn ends with the last attempt, however long this value lives.
        let turn = self.turn.take();
        self.was_passed_on = turn.is_some_and(|turn| turn.is_over());
        replies(committed, self.limits.counted()).map(Some)
    }
}

/// Watching blocks that are sent as one: see [`merged_run`](crate::transaction::merged_run).
impl<Q: TurnQueue> WatchAttempts<Q> {
    /// Whether the run may be merged with others.
    pub(crate) fn can_be_merged<P: Side>(
        &self,
        router: &Router<P>,
        target: WatchTarget<'_>,
    ) -> bool {
        let (plan, reads) = (&self.run.plan, target.reads);
        let is_plain = !plan.immediate && !plan.watches_internal_key() && plan.durability.is_none();
        let watch = target.keys.map(Keys::watch).unwrap_or_default();
        router.settings().max_merged > 1
            && !router.is_cluster()
            && is_plain
            && !reads.has_conditions()
            && effects::are_predictable(reads.bytes())
            && keys::are_among(reads.bytes(), watch)
    }

    /// Number of attempts so far.
    pub(crate) fn number(&self) -> u32 {
        self.limits.number()
    }

    /// Whether the policy allows only one more run of the closure. That is not spent on predicted values,
    /// which may turn out to be wrong.
    pub(crate) fn is_last(&mut self) -> bool {
        self.limits.attempts().is_last()
    }

    /// Counts a run of the closure whose result is void, because the values that it ran on are. It is no
    /// attempt of the policy's if nothing `was_sent`.
    pub(crate) fn ran_in_vain<P: Side>(&mut self, router: &Router<P>, was_sent: bool) {
        self.limits.attempts().next_at_once(was_sent);
        router.counters().retries.add();
        tracing::debug!(attempt = self.limits.number(), why = "other values", "retry");
    }

    /// A scope for a closure that runs on predicted values.
    pub(crate) fn predicted<P: Side>(
        &mut self,
        router: &Router<P>,
        target: WatchTarget<'_>,
        values: &ReadValues,
    ) -> Result<Reading<P>, Error> {
        let pinned = self.scope(router);
        let (attempt, values) =
            (self.limits.attempts().number(), values.replies(target.reads.bytes()));
        Reading::predicted(pinned, target, attempt, values)
    }

    /// Whether the block is to go alone, because its closure writes a watched key past it: each group
    /// with it would end in a conflict.
    pub(crate) fn conflicts_with_itself<P: Side>(&self, router: &Router<P>, keys: &Keys) -> bool {
        self.warn_of_own_writes(router, Some(keys));
        let writes = self.own_writes.as_ref();
        writes.is_some_and(|writes| keys.are_written_by(writes, router.settings()))
    }

    /// Ends the turn on hot keys.
    pub(crate) fn end_turn(&mut self) {
        self.turn = None;
    }

    /// Commits the commands of one block under a watch of `keys`, once.
    pub(crate) async fn attempt<P: Side>(
        &mut self,
        keys: Option<&Keys>,
        reading: &mut Reading<P>,
        pending: &mut Pending,
    ) -> Result<Committed, CommitError> {
        pending.bind(reading.binding);
        self.on_commit(keys, pending);
        let pinned = &mut reading.pinned;
        pinned.closure_returned();
        let committed = pending.attempt(pinned, self.commit_deadline()).await;
        if matches!(committed, Ok(Committed::Conflict)) {
            self.on_conflict(keys, pending);
        }
        committed
    }

    /// The deadline of a commit on a connection that the run has.
    pub(crate) fn commit_deadline(&self) -> Instant {
        self.run.plan.wait.cap(deadline::after(self.limits.checkout.limit))
    }

    /// Takes the turn on hot keys out, which ends with it. Returns also the keys, and the number of the
    /// attempt.
    pub(crate) fn take_turn(&mut self, keys: Option<&Keys>) -> Option<(Turn<Q>, Keys, u32)> {
        let taken = self.turn.take().zip(keys.cloned());
        taken.map(|(turn, keys)| (turn, keys, self.limits.counted()))
    }

    /// The outcome of a block that was sent with others. `None`: it goes alone.
    pub(crate) fn outcome_of(
        &self,
        pending: &mut Pending,
        piece: Piece,
    ) -> Option<Result<Committed, CommitError>> {
        let (plan, queue) = (&self.run.plan, pending.queue());
        let none = |_: &Unproven| InDoubt::new(ConnectionError::unexpected("no reply"));
        Some(match piece {
            Piece::Applied(values) => classify(queue, plan, Verdict::Applied(values), None, none),
            Piece::RepliesLost => classify(queue, plan, Verdict::RepliesLost, None, none),
            Piece::NotIsolated(values) => {
                Err(CommitError::NotIsolated { replies: outcome::replies(queue, values) })
            }
            Piece::Conflict => Ok(Committed::Conflict),
            Piece::Failed(error) => Err(error),
            Piece::Alone => return None,
        })
    }

    /// Ends a block that was committed, alone or with others. `None`: there is another attempt.
    /// `has_failed`: its closure has, and has queued nothing.
    pub(crate) async fn end_block<P: Side>(
        &mut self,
        router: &Router<P>,
        pending: &mut Pending,
        committed: Result<Committed, CommitError>,
        has_failed: bool,
    ) -> Result<Option<Replies>, Error> {
        let why = why_again(&committed, router);
        let is_empty = has_failed || pending.queue().commands() == 0;
        let (why, committed) = match committed {
            // It has queued nothing, so only its result is in doubt.
            Err(CommitError::InDoubt(_) | CommitError::NotIsolated { .. }) if is_empty => {
                (Some("the group failed"), Ok(Committed::Conflict))
            }
            committed => (why, committed),
        };
        let immediately = matches!(committed, Ok(Committed::Conflict))
            && self.limits.counted() <= MAX_IMMEDIATE_RETRIES;
        if let Some(why) = why
            && self.limits.retry(router, why, immediately).await
        {
            return Ok(None);
        }
        let pinned = self.scope(router);
        if has_failed && committed.is_ok() {
            // Its own error is returned.
            pinned.record_discard();
            return replies(committed, self.limits.counted()).map(Some);
        }
        pending.begun_at(self.begun);
        pending.record(&pinned, &committed, self.limits.number());
        replies(committed, self.limits.counted()).map(Some)
    }
}

/// Records that commands are committed in this turn.
pub(crate) fn on_commit<Q: TurnQueue>(turn: &Turn<Q>, keys: &Keys, pending: &mut Pending) {
    turn.on_commit(|| written_buckets(keys, pending));
}

/// Records that the attempt of this number was a conflict. Returns whether blocks with these keys wait for
/// their turns.
pub(crate) fn on_conflict<Q: TurnQueue>(
    turn: &Turn<Q>,
    keys: &Keys,
    pending: &mut Pending,
    number: u32,
) -> bool {
    let waits = turn.waits(keys.buckets());
    match number < ATTEMPTS_BESIDE_WRITERS {
        _ if !waits => {}
        true => turn.on_conflict(&written_buckets(keys, pending)),
        // A block that does not change the keys needs its turn among those that do.
        false => turn.on_conflict(keys.buckets()),
    }
    waits
}

/// The buckets of the keys that the block changes, as far as that is known.
fn written_buckets(keys: &Keys, pending: &mut Pending) -> Vec<u16> {
    let queue = pending.queue();
    match queue.is_flushed() {
        true => keys.buckets().to_vec(),
        false => keys.written_buckets(queue.body()),
    }
}

/// Resolves an exactly-once transaction in doubt: either it was applied, with its replies lost, or
/// it counts as not sent.
async fn resolve_in_doubt<P: Side>(
    committed: &mut Result<Committed, CommitError>,
    pending: &Pending,
    plan: &CommitPlan,
) {
    let Err(CommitError::InDoubt(doubt)) = committed else { return };
    if doubt.token().is_none() {
        return;
    }
    *committed = match P::resolve(doubt).await {
        // The commit may have been applied without one of its commands.
        Resolution::Committed if doubt.is_incomplete() => return,
        Resolution::Committed => match plan.durability {
            None => Ok(Committed::Applied(pending.lost_replies())),
            Some(durability) => Err(CommitError::NotReplicated {
                wanted: durability.wanted(),
                got: ReplicaAcks::default(),
                refused: None,
                replies: pending.lost_replies(),
            }),
        },
        Resolution::NotCommitted => Err(CommitError::lost_before_exec(doubt.cause().clone())),
        Resolution::StillUnknown { .. } => return,
    };
}

/// Returns why a block that was not applied is sent again, if it is.
fn why_again<P: Side>(
    committed: &Result<Committed, CommitError>,
    router: &Router<P>,
) -> Option<&'static str> {
    match committed {
        Ok(Committed::Conflict) => Some("conflict"),
        Err(error) if is_repeatable(error, router) => Some("not sent"),
        _ => None,
    }
}

/// Returns whether another attempt may succeed after one that failed without an effect.
///
/// It may if the connection failed before EXEC's last byte was sent, or led to a former master.
/// Other failures, such as a full pool or a refused command, would only repeat.
pub(crate) fn is_repeatable<P: Side>(error: &CommitError, router: &Router<P>) -> bool {
    match error {
        CommitError::NotSent { source } => matches!(**source, Error::Lost { .. }),
        CommitError::Rejected { .. } => error.code() == Some("READONLY") && router.may_switch(),
        _ => false,
    }
}

/// Replaces an ASK redirect for a scope that reads without a watch. Some keys may not have arrived
/// at the new node yet, so the block waits until the slot has arrived.
fn without_ask(redirect: Redirect) -> Redirect {
    match redirect {
        Redirect::Immediately(route) if route.ask => Redirect::AfterDelay(Route::to(route.slot)),
        redirect => redirect,
    }
}
