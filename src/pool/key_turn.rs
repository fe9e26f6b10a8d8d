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

use std::fmt;
use std::time::{Duration, Instant};

use crate::pool::early_watch::EarlyWatch;
use crate::pool::first_packet::Armed;
use crate::pool::semaphore::FairSemaphore;
use crate::pool::waiter::{LeftRequest, TakenRequest};
use crate::sync::shim::{Arc, Mutex, lock};

/// Maximum time and number of commits for which a connection stays with the turn while another caller
/// waits for a permit.
const MAX_KEPT: Duration = Duration::from_millis(10);
const MAX_COMMITS: u32 = 64;

/// The number of the only permit of a [`KeyQueue`].
pub(crate) const TURN: usize = 0;

/// The callers that wait for one turn, with what they leave.
pub(crate) type KeyQueue<C> = FairSemaphore<(), (), KeyRequest<C>>;

/// WATCH and the reads of a caller that waits for its turn.
pub(crate) struct KeyRequest<C> {
    watch: Arc<EarlyWatch>,
    /// What the caller gets with the turn.
    passed: Mutex<Option<Passed<C>>>,
    /// The buckets in which it needs the turn.
    buckets: Box<[u16]>,
}

/// A connection that is passed on with a turn.
pub(crate) struct Passed<C> {
    connection: C,
    kept: Kept,
}

/// How long the connection has stayed with the turn.
#[derive(Clone, Copy)]
struct Kept {
    since: Instant,
    commits: u32,
}

/// A turn on hot keys, with the queue of the callers that wait for it.
pub(crate) struct KeyTurn<C> {
    /// Those of its buckets, in their order. The next caller waits in the first one.
    queues: Box<[Arc<KeyQueue<C>>]>,
    /// The whole WATCH command: only a caller with the same one gets the connection.
    watch: Box<[u8]>,
    buckets: Box<[u16]>,
    state: Mutex<State<C>>,
}

struct State<C> {
    /// The connection that came with the turn, until the scope begins.
    passed: Option<C>,
    kept: Kept,
    /// The caller whose WATCH was taken.
    next_caller: Option<TakenRequest<KeyRequest<C>>>,
    /// The turn is over, and another caller may have it now.
    is_over: bool,
    /// No other caller gets it with the connection.
    is_kept: bool,
}

impl<C> KeyRequest<C> {
    pub(crate) fn new(watch: EarlyWatch, buckets: &[u16]) -> Self {
        let (watch, passed) = (Arc::new(watch), Mutex::new(None));
        Self { watch, passed, buckets: buckets.into() }
    }

    /// Leaves the request for as long as `patience`, see [`LeftRequest`].
    pub(crate) fn left(self, patience: Duration) -> LeftRequest<Self> {
        LeftRequest { request: Arc::new(self), patience }
    }

    /// Takes the connection that came with the turn.
    pub(crate) fn take(&self) -> Option<Passed<C>> {
        lock(&self.passed).take()
    }
}

impl<C> fmt::Debug for KeyRequest<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRequest").finish_non_exhaustive()
    }
}

impl Kept {
    fn now() -> Self {
        Self { since: Instant::now(), commits: 0 }
    }
}

impl<C> KeyTurn<C> {
    /// The turn of a caller with this WATCH, in the buckets of these queues.
    pub(crate) fn new(
        queues: Box<[Arc<KeyQueue<C>>]>,
        watch: &[u8],
        buckets: &[u16],
        passed: Option<Passed<C>>,
    ) -> Self {
        let (passed, kept) = match passed {
            Some(Passed { connection, kept }) => (Some(connection), kept),
            None => (None, Kept::now()),
        };
        let state = State { passed, kept, next_caller: None, is_over: false, is_kept: false };
        let (watch, buckets) = (watch.into(), buckets.into());
        Self { queues, watch, buckets, state: Mutex::new(state) }
    }

    /// Takes the connection that came with the turn. `None`: the scope takes one from its pool.
    pub(in crate::pool) fn take_connection(&self) -> Option<C> {
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
        commits >= MAX_COMMITS || since.elapsed() >= MAX_KEPT
    }

    /// Takes WATCH and the reads of the caller that gets the turn next, if it can get the connection
    /// with it. They travel behind an EXEC after which the connection watches the register `armed`.
    pub(in crate::pool) fn take_next(&self, armed: Option<Armed>) -> Option<Arc<EarlyWatch>> {
        let fits = |request: &KeyRequest<C>| {
            request.buckets == self.buckets
                && request.watch.bytes().starts_with(&self.watch)
                && request.watch.fits(armed)
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
        let taken = queue.take_request(TURN, fits)?;
        let watch = taken.request().map(|request| Arc::clone(&request.watch));
        lock(&self.state).next_caller = Some(taken);
        watch
    }

    /// Whether the caller whose WATCH was taken still waits.
    pub(in crate::pool) fn has_next(&self) -> bool {
        lock(&self.state).next_caller.as_ref().is_some_and(TakenRequest::is_awaited)
    }

    /// Whether the WATCH of a caller was taken.
    pub(in crate::pool) fn has_taken(&self) -> bool {
        lock(&self.state).next_caller.is_some()
    }

    /// Passes the turn to the caller whose WATCH was taken, with the connection. Returns the connection
    /// if that caller has given up, or the turn was over before.
    pub(in crate::pool) fn pass_on(&self, connection: C) -> Option<C> {
        // Before the turn is granted: from then on it is another caller's.
        if !self.end() {
            self.leave_next();
            return Some(connection);
        }
        let (next_caller, kept) = {
            let mut state = lock(&self.state);
            (state.next_caller.take(), state.kept)
        };
        let connection = match &next_caller {
            Some(taken) => match taken.request() {
                Some(request) => {
                    let kept = Kept { commits: kept.commits.saturating_add(1), ..kept };
                    *lock(&request.passed) = Some(Passed { connection, kept });
                    if taken.grant(TURN) {
                        return None;
                    }
                    request.take().map(|passed| passed.connection)
                }
                None => Some(connection),
            },
            None => Some(connection),
        };
        self.release();
        connection
    }

    /// Has the caller whose WATCH was taken wait on, first in the queue.
    pub(in crate::pool) fn leave_next(&self) {
        let taken = lock(&self.state).next_caller.take();
        if let Some((queue, taken)) = self.queues.first().zip(taken) {
            queue.return_request(taken);
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
        self.queues.iter().for_each(|queue| queue.release(TURN));
    }

    /// Whether the turn is over, and another caller may have it now.
    pub(crate) fn is_over(&self) -> bool {
        lock(&self.state).is_over
    }
}

impl<C> fmt::Debug for KeyTurn<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyTurn").finish_non_exhaustive()
    }
}
