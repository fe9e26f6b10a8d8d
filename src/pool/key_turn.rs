//! A caller's turn on hot keys, as the connection of that caller has it.
//!
//! A caller that waits for the same turn leaves its WATCH and its declared reads with its place. They
//! travel behind the EXEC of the turn's holder. The caller then gets the turn together with the
//! connection, its permit and the replies that are due, so each commit has one round trip.
//!
//! The connection stays with the turn although others wait for a permit, but not for long.

#[cfg(all(test, rediscope_shuttle))]
#[path = "../../tests/model/key_turns.rs"]
mod model;
#[cfg(all(test, not(rediscope_shuttle)))]
#[path = "../../tests/unit/key_turn.rs"]
mod tests;

use std::fmt;
use std::time::{Duration, Instant};

use crate::pool::early_watch::EarlyWatch;
use crate::pool::first_packet::Armed;
use crate::pool::semaphore::{FairSemaphore, Granted, IsWaiting, QueuePlace};
use crate::pool::waiter::{LeftRequest, TakenRequest};
use crate::sync::shim::{Arc, Mutex, lock};

/// Maximum time and number of commits for which a connection stays with the turn while another caller
/// waits for a permit.
const MAX_KEPT: Duration = Duration::from_millis(10);
const MAX_COMMITS: u32 = 64;

/// The number of the only permit of a [`KeyQueue`].
const TURN: usize = 0;

/// How a caller waits for its turn.
#[derive(Clone, Copy)]
pub(crate) struct TurnWait {
    /// The caller attempts without a turn after that.
    pub(crate) deadline: Instant,
    /// Its place in the queue.
    pub(crate) place: QueuePlace,
    /// Time after which it waits on by itself, if its WATCH was taken.
    pub(crate) patience: Duration,
    /// Time without an attempt after which a task loses its turn.
    #[cfg_attr(not(feature = "tokio"), expect(dead_code, reason = "a thread goes on in any case"))]
    pub(crate) term: Duration,
}

/// The turn on the keys of one bucket, which is granted in the order of arrival, and the callers that wait
/// for it. Each side waits in its own way.
pub(crate) trait TurnQueue: Sized + Send + Sync + 'static {
    /// What is passed on with a turn.
    type Connection: Send;
    /// The turn of one holder.
    type Turn: Clone + Send + Sync;
    /// Where a connection can be used.
    type Place: Copy;
    /// A caller whose WATCH was taken.
    type Taken: Send;

    /// A turn that is free.
    fn single() -> Self;

    /// Takes a free turn.
    fn try_take(&self) -> Option<Self::Turn>;

    /// Waits for the turn. The caller may leave its WATCH, and the buckets in which it needs the turn; it then
    /// gets what is passed on with the turn. `None`: it attempts without a turn. Dropped before its end, the
    /// future passes on what it was granted, and returns turns in other buckets by `release`.
    fn take(
        &self,
        wait: TurnWait,
        watch: Option<(EarlyWatch, &[u16])>,
        release: impl Fn(&Turns<Self::Turn>) + Send + Sync,
    ) -> impl Future<Output = Option<(Self::Turn, Option<PassedOf<Self>>)>> + Send;

    /// Returns the turn.
    fn release(&self, turn: &Self::Turn);

    /// No caller gets the turn from now on.
    fn close(&self);

    /// The holder attempts. Returns false if the turn was taken back.
    fn attempts(&self, _turn: &Self::Turn) -> bool {
        true
    }

    /// Returns whether the turn was not taken back.
    fn is_held(_turn: &Self::Turn) -> bool {
        true
    }

    /// The turn is passed to a caller that has not attempted yet.
    fn on_passed(_turn: &Self::Turn) {}

    /// Number of callers in the queue: those whose WATCH is taken are not among them.
    fn queued(&self) -> usize;

    /// Takes the WATCH of the caller that gets the turn next, if it has left one that `fits` and can use a
    /// connection in this place.
    fn take_watch(
        &self,
        place: Self::Place,
        fits: impl FnOnce(&EarlyWatch, &[u16]) -> bool,
    ) -> Option<Self::Taken>;

    fn watch_of(taken: &Self::Taken) -> Option<Arc<EarlyWatch>>;

    /// Returns whether the caller still waits.
    fn is_awaited(taken: &Self::Taken) -> bool;

    /// Passes the turn `from` to the caller whose WATCH was taken.
    ///
    /// # Errors
    /// It has given up, or the turn was taken back.
    fn pass_on(
        &self,
        taken: Self::Taken,
        from: &Self::Turn,
        passed: PassedOf<Self>,
    ) -> Result<(), PassedOf<Self>>;

    /// Has a caller whose WATCH was taken wait on, in front.
    fn return_watch(&self, taken: Self::Taken);
}

/// Buckets, with the turn in each.
pub(crate) type Turns<T> = [(u16, T)];

/// What a queue's callers get with the turn.
pub(crate) type PassedOf<Q> = Passed<<Q as TurnQueue>::Connection, <Q as TurnQueue>::Turn>;

/// A connection that is passed on with a turn.
pub(crate) struct Passed<C, T = ()> {
    connection: C,
    kept: Kept,
    /// The turns in the other buckets.
    pub(crate) others: Box<Turns<T>>,
}

#[cfg(test)]
impl<C> Passed<C> {
    pub(in crate::pool) fn now(connection: C) -> Self {
        Self { connection, kept: Kept::now(), others: Box::default() }
    }
}

/// How long the connection has stayed with the turn.
#[derive(Clone, Copy)]
struct Kept {
    since: Instant,
    commits: u32,
}

/// A turn on hot keys, with the queues of the callers that wait for it.
pub(crate) struct KeyTurn<Q: TurnQueue> {
    /// Those of its buckets, in their order. The next caller waits in the first one.
    queues: Box<[Arc<Q>]>,
    /// The whole WATCH command: only a caller with the same one gets the connection.
    watch: Box<[u8]>,
    turns: Box<Turns<Q::Turn>>,
    state: Mutex<State<Q>>,
}

struct State<Q: TurnQueue> {
    /// The connection that came with the turn, until the scope begins.
    passed: Option<Q::Connection>,
    kept: Kept,
    /// The caller whose WATCH was taken.
    next_caller: Option<Q::Taken>,
    /// The turn is over, and another caller may have it now.
    is_over: bool,
    /// No other caller gets it with the connection.
    is_kept: bool,
}

impl Kept {
    fn now() -> Self {
        Self { since: Instant::now(), commits: 0 }
    }
}

impl<Q: TurnQueue> KeyTurn<Q> {
    /// The turn of a caller with this WATCH, in the buckets of these queues.
    pub(crate) fn new(
        queues: Box<[Arc<Q>]>,
        watch: &[u8],
        turns: &Turns<Q::Turn>,
        passed: Option<PassedOf<Q>>,
    ) -> Self {
        let (passed, kept) = match passed {
            Some(Passed { connection, kept, .. }) => (Some(connection), kept),
            None => (None, Kept::now()),
        };
        let state = State { passed, kept, next_caller: None, is_over: false, is_kept: false };
        let (watch, turns) = (watch.into(), turns.into());
        Self { queues, watch, turns, state: Mutex::new(state) }
    }

    /// Takes the connection that came with the turn. `None`: the scope takes one from its pool.
    pub(in crate::pool) fn take_connection(&self) -> Option<Q::Connection> {
        let mut state = lock(&self.state);
        let passed = state.passed.take();
        if passed.is_none() {
            state.kept = Kept::now();
        }
        passed
    }

    /// Whether the connection has stayed with the turn for so long that others get it first.
    pub(in crate::pool) fn is_kept_long(&self) -> bool {
        let Kept { since, commits } = lock(&self.state).kept;
        // Those before the commit of this turn.
        commits >= MAX_COMMITS - 1 || since.elapsed() >= MAX_KEPT
    }

    /// Takes WATCH and the reads of the caller that gets the turn next, if it can get the connection in this
    /// place with it. They travel behind an EXEC after which the connection watches the register `armed`.
    pub(in crate::pool) fn take_next(
        &self,
        place: Q::Place,
        armed: Option<Armed>,
    ) -> Option<Arc<EarlyWatch>> {
        let fits = |watch: &EarlyWatch, buckets: &[u16]| {
            let own = self.turns.iter().map(|(bucket, _)| bucket);
            buckets.iter().eq(own) && watch.bytes().starts_with(&self.watch) && watch.fits(armed)
        };
        let (queue, others) = self.queues.split_first()?;
        // A caller that waits in another bucket alone would be passed over.
        if others.iter().any(|queue| queue.queued() > 0) {
            return None;
        }
        {
            let state = lock(&self.state);
            if state.is_kept || state.is_over {
                return None;
            }
        }
        if !self.turns.iter().all(|(_, turn)| Q::is_held(turn)) {
            return None;
        }
        let taken = queue.take_watch(place, fits)?;
        let watch = Q::watch_of(&taken);
        lock(&self.state).next_caller = Some(taken);
        watch
    }

    /// Whether the caller whose WATCH was taken still waits.
    pub(in crate::pool) fn has_next(&self) -> bool {
        lock(&self.state).next_caller.as_ref().is_some_and(Q::is_awaited)
    }

    /// Whether the WATCH of a caller was taken.
    pub(in crate::pool) fn has_taken(&self) -> bool {
        lock(&self.state).next_caller.is_some()
    }

    /// Passes the turn to the caller whose WATCH was taken, with the connection. Returns the connection
    /// if that caller has given up, or the turn was over before.
    pub(in crate::pool) fn pass_on(&self, connection: Q::Connection) -> Option<Q::Connection> {
        // Before the turn is granted: from then on it is another caller's.
        if !self.end() {
            self.leave_next();
            return Some(connection);
        }
        let (next_caller, kept) = {
            let mut state = lock(&self.state);
            (state.next_caller.take(), state.kept)
        };
        let passed = match (next_caller, self.queues.first(), self.turns.split_first()) {
            (Some(taken), Some(queue), Some(((_, turn), others))) => {
                others.iter().for_each(|(_, turn)| Q::on_passed(turn));
                let kept = Kept { commits: kept.commits.saturating_add(1), ..kept };
                queue.pass_on(taken, turn, Passed { connection, kept, others: others.into() })
            }
            _ => Err(Passed { connection, kept, others: Box::default() }),
        };
        let Err(Passed { connection, .. }) = passed else { return None };
        self.release();
        Some(connection)
    }

    /// Has the caller whose WATCH was taken wait on, first in the queue.
    pub(in crate::pool) fn leave_next(&self) {
        let taken = lock(&self.state).next_caller.take();
        if let Some((queue, taken)) = self.queues.first().zip(taken) {
            queue.return_watch(taken);
        }
    }

    /// Has the turn passed to no other caller with the connection.
    pub(crate) fn keep(&self) {
        lock(&self.state).is_kept = true;
    }

    /// Ends the turn. Returns false if it was over: then it is not the caller's to release.
    pub(crate) fn end(&self) -> bool {
        !std::mem::replace(&mut lock(&self.state).is_over, true)
    }

    /// Ends the turn of a scope that was reclaimed: its holder may never do so.
    pub(in crate::pool) fn give_back(&self) {
        self.leave_next();
        if self.end() {
            self.release();
        }
    }

    fn release(&self) {
        self.queues.iter().zip(&self.turns).for_each(|(queue, (_, turn))| queue.release(turn));
    }

    /// Whether the turn is over, and another caller may have it now.
    pub(crate) fn is_over(&self) -> bool {
        lock(&self.state).is_over
    }
}

impl<Q: TurnQueue> fmt::Debug for KeyTurn<Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyTurn").finish_non_exhaustive()
    }
}

/// The turn for which threads wait.
pub(crate) type KeyQueue<C> = FairSemaphore<(), (), KeyRequest<C>>;

/// WATCH and the reads of a thread that waits for its turn.
pub(crate) struct KeyRequest<C> {
    watch: Arc<EarlyWatch>,
    /// The buckets in which it needs the turn.
    buckets: Box<[u16]>,
    /// What the caller gets with the turn.
    passed: Mutex<Option<Passed<C>>>,
}

impl<C> KeyRequest<C> {
    fn left(watch: EarlyWatch, buckets: &[u16], patience: Duration) -> LeftRequest<Self> {
        let (watch, passed) = (Arc::new(watch), Mutex::new(None));
        let request = Arc::new(Self { watch, buckets: buckets.into(), passed });
        LeftRequest { request, patience }
    }

    /// Takes what came with the turn.
    fn take(&self) -> Option<Passed<C>> {
        lock(&self.passed).take()
    }
}

impl<C> fmt::Debug for KeyRequest<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRequest").finish_non_exhaustive()
    }
}

impl<C: Send + 'static> TurnQueue for KeyQueue<C> {
    type Connection = C;
    type Turn = ();
    type Place = ();
    type Taken = TakenRequest<KeyRequest<C>>;

    fn single() -> Self {
        Self::new(1)
    }

    fn try_take(&self) -> Option<()> {
        self.try_acquire().map(drop)
    }

    async fn take(
        &self,
        wait: TurnWait,
        watch: Option<(EarlyWatch, &[u16])>,
        _release: impl Fn(&Turns<()>) + Send + Sync,
    ) -> Option<((), Option<Passed<C>>)> {
        let left = watch.map(|(watch, buckets)| KeyRequest::left(watch, buckets, wait.patience));
        let may_wait = |_: &IsWaiting<'_>| Ok::<(), ()>(());
        let granted = self.acquire_at(wait.place, wait.deadline, left.clone(), may_wait);
        let Granted { passed_on, .. } = granted.ok()?;
        let left = left.filter(|_| passed_on);
        Some(((), left.and_then(|left| left.request.take())))
    }

    fn release(&self, (): &()) {
        FairSemaphore::release(self, TURN);
    }

    fn close(&self) {
        FairSemaphore::close(self);
    }

    fn queued(&self) -> usize {
        FairSemaphore::queued(self)
    }

    fn take_watch(
        &self,
        (): (),
        fits: impl FnOnce(&EarlyWatch, &[u16]) -> bool,
    ) -> Option<Self::Taken> {
        self.take_request(TURN, |request| fits(&request.watch, &request.buckets))
    }

    fn watch_of(taken: &Self::Taken) -> Option<Arc<EarlyWatch>> {
        taken.request().map(|request| Arc::clone(&request.watch))
    }

    fn is_awaited(taken: &Self::Taken) -> bool {
        taken.is_awaited()
    }

    fn pass_on(&self, taken: Self::Taken, (): &(), passed: Passed<C>) -> Result<(), Passed<C>> {
        let Some(request) = taken.request() else { return Err(passed) };
        *lock(&request.passed) = Some(passed);
        if taken.grant(TURN) {
            return Ok(());
        }
        // It has given up.
        request.take().map_or(Ok(()), Err)
    }

    fn return_watch(&self, taken: Self::Taken) {
        self.return_request(taken);
    }
}
