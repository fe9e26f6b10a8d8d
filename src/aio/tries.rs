//! The loop of a watching run, for a caller that writes it.

use std::fmt;
use std::mem;
use std::panic::Location;
use std::pin::pin;

use crate::aio::watch::Watch;
use crate::error::any::Error;
use crate::pool::tasks::line::TaskKeyQueue;
use crate::sync::in_span::in_span;
use crate::transaction::outcome::Outcome;
use crate::transaction::pinned::{CONFLICT, DISCARDED, early_outcome};
use crate::transaction::retry_loop::WatchAttempts;
use crate::transaction::tasks::attempt::{Attempt, AttemptEnd, InAttempt};
use crate::transaction::tasks::turns::{self, InLoop};

/// The attempts of one watching run, as [`Watch::tries`] returns them.
///
/// Between two attempts it holds no connection, and its turn on a hot key only after a conflict. If it is
/// dropped, no attempt follows.
#[must_use = "nothing is sent before next()"]
pub struct Tries {
    watch: Watch,
    place: &'static Location<'static>,
    /// `None` before the first attempt.
    attempts: Option<WatchAttempts<TaskKeyQueue>>,
    end: AttemptEnd,
}

/// No attempt follows.
impl Drop for Tries {
    fn drop(&mut self) {
        let router = self.watch.router();
        if let (Some(attempts), Some(outcome)) = (&self.attempts, self.end.outcome)
            && router.here().is_ok()
        {
            attempts.record_end(router, outcome);
        }
    }
}

impl fmt::Debug for Tries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tries").field("watch", &self.watch).finish_non_exhaustive()
    }
}

impl Watch {
    /// Returns the loop of `run` for a caller that writes it: for code that a closure cannot hold.
    ///
    /// The returned value owns all it needs. Nothing is sent before its first
    /// [`next`](Tries::next).
    ///
    /// ```no_run
    /// # use rediscope::{Outcome, aio::SessionManager, prelude::*};
    /// # async fn example() -> Result<(), rediscope::Error> {
    /// # let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
    /// let mut tries = accounts.watch(["stock"]).tries();
    /// let left: i64 = loop {
    ///     let mut at = tries.next().await?;
    ///     let stock: i64 = at.get("stock").await?;
    ///     let left = at.decr("stock", stock.min(1));
    ///     if let Outcome::Committed(replies) = at.commit().await? {
    ///         break replies.get(left)?;
    ///     }
    /// };
    /// # let _ = left; Ok(()) }
    /// ```
    #[track_caller]
    pub fn tries(&self) -> Tries {
        let end = AttemptEnd { counted: true, outcome: None, is_over: false };
        Tries { watch: self.clone(), place: Location::caller(), attempts: None, end }
    }
}

impl Tries {
    /// Waits for the next attempt: for its turn on hot keys, for a connection and for the reply to WATCH.
    ///
    /// An attempt that ended without a [`commit`](Attempt::commit) counts as one of the
    /// [`RetryPolicy`](crate::RetryPolicy)'s attempts, and this call waits for its backoff. After a commit
    /// this call begins a run of its own: with a first attempt and with an outcome of its own.
    ///
    /// If the future is dropped, nothing was applied, and the connection's own task sends UNWATCH. A
    /// later call begins the attempt anew.
    ///
    /// # Errors
    /// [`Error::RetriesExhausted`] if the policy allows no further attempt; [`Error::ConditionFailed`];
    /// else as [`Watch::begin`].
    #[expect(clippy::should_implement_trait, reason = "an iterator cannot wait")]
    pub fn next(&mut self) -> impl Future<Output = Result<Attempt<'_>, Error>> + Send {
        async move {
            let Self { watch, place, attempts, end } = self;
            if mem::take(&mut end.is_over) {
                (*attempts, end.counted) = (None, true);
            }
            let attempts = match attempts {
                Some(attempts) => attempts,
                None => attempts.insert(watch.attempts(place)?),
            };
            attempts.is_written = true;
            let router = watch.router();
            if !end.counted {
                let span = attempts.span().clone();
                in_span(&span, pin!(attempts.after_abandoned(router))).await?;
                end.counted = true;
            }
            let current = InAttempt { attempts, keeps_turn: false };
            let watching = match watch.next(current.attempts).await {
                Ok(watching) => watching,
                Err(error) => {
                    if !matches!(error, Error::Checkout(_)) {
                        end.outcome = Some(early_outcome(&error));
                    }
                    return Err(error);
                }
            };
            end.outcome = Some(DISCARDED);
            end.counted = false;
            let pending = watching.pending();
            let in_loop = InLoop::enter(watch.limited_keys().is_some());
            let keys = watch.keys();
            Ok(Attempt { router, current, keys, end, watching, pending, in_loop })
        }
    }
}

impl Attempt<'_> {
    /// Commits the commands that were queued on this attempt.
    ///
    /// [`Conflict`](Outcome::Conflict) means that nothing was applied and another attempt is allowed: a
    /// watched key changed, or the connection was lost before EXEC was sent. The backoff before the next
    /// attempt is then over. Call [`Tries::next`] again.
    ///
    /// If the future is dropped before EXEC was sent, nothing is applied. If it is dropped later, the
    /// block may be applied.
    ///
    /// # Errors
    /// [`Error::RetriesExhausted`] if the policy allows no further attempt; else as
    /// [`Transactional::run`](crate::aio::Transactional::run).
    pub fn commit(self) -> impl Future<Output = Result<Outcome, Error>> + Send {
        async move {
            let Self { router, mut current, keys, end, mut watching, .. } = self;
            let (mut pending, _in_loop) = (self.pending, self.in_loop);
            router.here()?;
            let attempts = &mut *current.attempts;
            let span = attempts.span().clone();
            // Dropped from here on, the block may be applied.
            end.outcome = None;
            let committed = attempts.commit(router, keys, &mut watching.reading, &mut pending);
            let replies = in_span(&span, pin!(committed)).await;
            end.outcome = matches!(replies, Ok(None)).then_some(CONFLICT);
            end.is_over = matches!(replies, Ok(Some(_)));
            let replies = replies?;
            end.counted = replies.is_none();
            current.keeps_turn = replies.is_none();
            if attempts.was_passed_on {
                turns::let_next_run().await;
            }
            Ok(match replies {
                Some(replies) => Outcome::Committed(pending.keep(replies)),
                None => Outcome::Conflict,
            })
        }
    }
}
