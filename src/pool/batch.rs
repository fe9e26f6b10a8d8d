//! One write for several threads: the leader of a group sends the requests of waiting callers with its
//! own. Each gets its own response, and one wake-up is for all.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::time::Instant;

use crate::connection::connection::Interruption;
use crate::connection::deadline::Deadline;
use crate::error::any::Error;
use crate::error::applied::Applied;
use crate::error::checkout::CheckoutError;
use crate::error::connection::{ConnectionError, ConnectionErrorKind};
use crate::pool::batch_response::{BatchResponse, Interrupted};
use crate::pool::checkout::Checkout;
use crate::pool::core::{PoolCore, ThreadJob, ThreadMembership, ThreadRequest};
use crate::pool::group::{self, Group};
use crate::pool::group_prepare;
use crate::pool::group_request::settle;
use crate::pool::line::Line;
use crate::protocol::connection_state::CloseReason;
use crate::sync::now::now;

/// The group that a caller with a permit leads. Its drop has the next member lead; while the caller sends
/// the requests, it ends those that were not sent.
pub(crate) struct LedGroup {
    core: Arc<PoolCore>,
    /// Number of its leader's permit.
    permit: usize,
    place: ThreadMembership,
    is_taken: bool,
    /// Whether all members were woken to see their responses.
    is_woken: bool,
    waiting: VecDeque<Arc<ThreadJob>>,
}

impl Drop for LedGroup {
    fn drop(&mut self) {
        if self.core.config.settings.is_forked_child() {
            return;
        }
        if !self.is_taken {
            return self.core.semaphore.abandon_group(&self.place);
        }
        if !self.is_woken {
            let text = "the caller that leads the group has ended";
            self.fail(&ConnectionError::new(ConnectionErrorKind::Closed, text));
            self.place.group.wake_members();
        }
    }
}

impl LedGroup {
    pub(crate) fn new(core: &Arc<PoolCore>, permit: usize, place: ThreadMembership) -> Self {
        let (core, waiting) = (Arc::clone(core), VecDeque::new());
        Self { core, permit, place, is_taken: false, is_woken: false, waiting }
    }

    /// Whether the caller's own request, which was not taken yet, is a block.
    pub(crate) fn begins_with_block(&self) -> bool {
        self.place.job.look(|request| request.batch.kind.is_block()) == Some(true)
    }

    /// Takes the requests. Until one is sent, its caller may withdraw it.
    fn take(&mut self) {
        self.waiting = self.core.semaphore.take_group(self.permit, &self.place);
        self.is_taken = true;
    }

    /// Has the next member send the requests that are left.
    fn hand_over(&mut self) {
        self.waiting.clear();
        self.is_taken = false;
    }

    /// Ends the requests that were not sent.
    fn fail(&mut self, cause: &ConnectionError) {
        for job in mem::take(&mut self.waiting) {
            if let Some(request) = job.take() {
                let interrupted = Interrupted { left: false, trusted: true, cause: cause.clone() };
                settle(&job, request, Ok(BatchResponse::Interrupted(interrupted)));
            }
        }
    }
}

/// Makes sure that the connection is alive before the blocks are sent on it, as
/// [`ensure_alive`](crate::pool::line::ensure_alive) does for reads. A connection that has not replied
/// lately is asked with MULTI.
///
/// # Errors
/// No connection replies by `checkout_deadline`. Nothing was sent.
pub(crate) fn ensure_multi(
    checkout: &mut Checkout,
    group: &mut LedGroup,
    checkout_deadline: Instant,
) -> Result<(), Error> {
    loop {
        while !checkout.has_connection() {
            now(checkout.connect(checkout_deadline))?;
        }
        if checkout.is_trusted_with_multi() {
            return Ok(());
        }
        let deadline = checkout.response_deadline().capped(checkout_deadline);
        let exactly_once = |request: &mut ThreadRequest| request.batch.exactly_once;
        let keeps_watch = group.place.job.look(exactly_once) == Some(true);
        let cause = match now(group_prepare::open_multi(checkout, keeps_watch, deadline)) {
            Ok(None) => return Ok(()),
            Ok(Some(refused)) => {
                group.take();
                group_prepare::reject_blocks(&mut group.waiting, refused, || ());
                return Ok(());
            }
            Err(cause) => cause,
        };
        checkout.on_no_reply(&cause, deadline);
        if Instant::now() >= checkout_deadline {
            let during = "MULTI".to_owned();
            return Err(Error::Lost { during, applied: Applied::No, source: cause });
        }
        checkout.log_replaced(&cause);
    }
}

/// Sends the requests of the group, sets the response of each, and returns the connection. After the deadline
/// of a write the connection is lost for all of them. A caller that has its own response by the first
/// deadline, or later, sends nothing after it.
pub(crate) fn send_batch(
    mut checkout: Checkout,
    mut group: LedGroup,
    mut deadline: Deadline,
) -> Result<BatchResponse, CheckoutError> {
    if !group.is_taken {
        group.take();
    }
    let (first, mut own, mut lost) = (deadline, None, None);
    while lost.is_none() && !group.waiting.is_empty() {
        if own.is_some() && first.timeout().is_none() {
            group.hand_over();
            break;
        }
        lost = send_once(&mut checkout, &mut group, deadline).err();
        // From here on a log may be written; it belongs to the user and may take its time.
        group.place.group.wake_members();
        group.is_woken = group.waiting.is_empty();
        own = own.or_else(|| group.place.job.response());
        deadline = checkout.response_deadline();
    }
    let own = own.or_else(|| group.place.job.response());
    drop(group);
    if let Some(cause) = lost {
        checkout.on_lost(&cause);
    }
    // This comes last: some of these callers wait again before the next leader runs, and join its
    // group. A lost connection is closed here.
    drop(checkout);
    let unknown =
        || Ok(group::unanswered(ConnectionError::timed_out("the request has no response"), None));
    own.map_or_else(unknown, |(response, _)| response)
}

/// Sends the requests that fit into one write, and reads the replies. Those of which nothing was applied
/// wait again.
///
/// # Errors
/// The connection was lost. The requests that still wait have failed.
fn send_once(
    checkout: &mut Checkout,
    group: &mut LedGroup,
    deadline: Deadline,
) -> Result<(), ConnectionError> {
    let core = Arc::clone(&group.core);
    match exchange(checkout, group, &core, deadline) {
        Ok(true) => Ok(()),
        Ok(false) => {
            group.fail(&ConnectionError::unexpected("the connection cannot be used any more"));
            Ok(())
        }
        Err(cause) => {
            // Before a member makes its next attempt.
            core.distrust_idle(&cause);
            group.fail(&cause);
            Err(cause)
        }
    }
}

/// Returns false if the connection may not be used any more.
fn exchange(
    checkout: &mut Checkout,
    group: &mut LedGroup,
    core: &PoolCore,
    deadline: Deadline,
) -> Result<bool, ConnectionError> {
    let waiting = &mut group.waiting;
    if group_prepare::awaits_register(waiting)
        && let Some(tag) = group_prepare::must_arm(checkout, waiting)
        && let Some(refusal) = now(group_prepare::arm(checkout, tag, deadline))?
    {
        group_prepare::reject_exactly_once(waiting, tag, &refusal, || ());
    }
    let is_armed = group_prepare::is_armed(checkout);
    let connection = checkout.current().filter(|one| one.state().tainted().is_none());
    let Some(connection) = connection else { return Ok(false) };
    let taken = Group::take(waiting, connection, core, is_armed, &core.shapes, |_, _| ());
    // `None`: the register cannot be made.
    let Some(mut taken) = taken else { return Ok(false) };
    if taken.is_empty() {
        // The blocks that MULTI was sent for were withdrawn, or are rejected.
        if connection.state().is_in_multi() {
            connection.taint(CloseReason::LeftDirty);
        }
        return Ok(waiting.is_empty());
    }
    let lost = now(taken.exchange(connection, true, deadline));
    if let Some(lost) = &lost {
        core.distrust_idle(&lost.cause);
    }
    for job in taken.settle(checkout, lost.as_ref(), &core.shapes).into_iter().rev() {
        waiting.push_front(job);
    }
    lost.map_or(Ok(true), |Interruption { cause, .. }| Err(cause))
}
