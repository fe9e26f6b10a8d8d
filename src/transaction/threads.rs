//! Runs the decisions of transactions on the caller's thread. The functions without a type parameter
//! keep the protocol's code out of the user's crate.

use std::future::ready;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crate::commit::plan::CommitPlan;
use crate::error::any::Error;
use crate::error::checkout::CheckoutError;
use crate::pool::checkout::ThreadKeyTurn;
use crate::pool::early_watch::WatchOffer;
use crate::pool::own_writes;
use crate::pool::pool::Pool;
use crate::pool::router::Router;
use crate::pool::scope_origin::ScopeOrigin;
use crate::protocol::retry::RetryPolicy;
use crate::reply::replies::Replies;
use crate::settings::settings::Settings;
use crate::sync::cancel;
use crate::sync::now::{now, now_in};
use crate::sync::under_way::CallUnderWay;
use crate::transaction::block::Block;
use crate::transaction::hot_keys::{HotKeys, OuterBlock};
use crate::transaction::keys::Keys;
use crate::transaction::merge::{Caller, Step, StepWaiter};
use crate::transaction::merged_run::{Closed, MergeSide, Ran, run_merged};
use crate::transaction::pending::Pending;
use crate::transaction::reading::WatchTarget;
use crate::transaction::resolve::Resolve;
use crate::transaction::retry_loop::{self, WatchAttempts, WatchRun};
use crate::transaction::watch_scope::Watching;

/// Time for which a thread keeps the lead: its waits have timeouts.
const LONG: Duration = Duration::from_secs(24 * 60 * 60);

/// Runs a block once and commits it. Bytes that were not sent are sent again.
#[inline]
pub(crate) fn run_block<R: Resolve, E: From<Error>>(
    router: &Router,
    owner: ScopeOrigin,
    plan: CommitPlan,
    policy: RetryPolicy,
    closure: impl FnOnce(&mut Block) -> Result<R, E>,
) -> Result<R::Output, E> {
    let mut block = Block::new(router, owner, plan);
    let handles = closure(&mut block)?;
    let replies = commit_block(router, policy, &mut block)?;
    Ok(handles.resolve(&replies).map_err(|error| block.pending.named(error))?)
}

fn commit_block(router: &Router, policy: RetryPolicy, block: &mut Block) -> Result<Replies, Error> {
    let Block { pending, pinned: Some(pinned) } = block else {
        return Err(CheckoutError::Closed.into());
    };
    // The closure may have forked.
    router.here()?;
    let span = pinned.span().clone();
    now_in(&span, pin!(retry_loop::commit_block(router, policy, pending, pinned)))
}

/// Runs a watching block until it commits, or until the policy ends it. `hot_keys`: the block
/// waits for its turn on hot keys.
pub(crate) fn run_watch<R: Resolve, E: From<Error>>(
    router: &Router,
    run: WatchRun,
    target: WatchTarget<'_>,
    hot_keys: Option<&Arc<HotKeys>>,
    mut closure: impl FnMut(&mut Watching, &mut Block) -> Result<R, E>,
) -> Result<R::Output, E> {
    let outer = hot_keys.zip(target.keys).and_then(|_| OuterBlock::enter());
    let mut attempts = attempts(router, run);
    if let (Some(hot_keys), Some(keys), Some(_)) = (hot_keys, target.keys, &outer)
        && attempts.can_be_merged(router, target)
        // Its leader might wait for the connection of this thread.
        && !router.is_held_by_this_thread()
    {
        let enter = |wait| {
            let is_nested = !may_wait(router, hot_keys, keys);
            hot_keys.enter(keys.buckets(), is_nested, wait, None)
        };
        let run = |reading, mut writes| {
            let mut watching = Watching::new(reading);
            let mut block = watching.block();
            let result = own_writes::during(&mut writes, || closure(&mut watching, &mut block));
            let (reading, ran) = (watching.into_reading(), Ran { result, block });
            ready(Closed { reading, ran, writes })
        };
        let merged = run_merged(&mut attempts, router, target, hot_keys, enter, run);
        if let Some(output) = now(pin!(merged))? {
            return Ok(output);
        }
    }
    loop {
        if let Some((hot_keys, keys)) = hot_keys.zip(target.keys) {
            let offer = attempts.offer(target);
            enter(&mut attempts, router, (hot_keys, keys, outer.is_some()), offer);
        }
        let mut watching = next(&mut attempts, router, target)?;
        let mut block = watching.block();
        let begun = attempts.closure_begins(router);
        let result =
            own_writes::during(attempts.own_writes(), || closure(&mut watching, &mut block));
        attempts.closure_ran(begun);
        let result = result.and_then(|handles| watching.unless_again(handles));
        // The closure may have forked.
        router.here().map_err(Error::from)?;
        match result {
            Ok(handles) => {
                let pending = &mut block.pending;
                if let Some(replies) =
                    commit_watched(&mut attempts, router, target.keys, &mut watching, pending)?
                {
                    let resolved = handles.resolve(&replies);
                    return Ok(resolved.map_err(|error| block.pending.named(error))?);
                }
            }
            Err(error) => {
                if !failed(&mut attempts, router, &mut watching) {
                    return Err(error);
                }
            }
        }
    }
}

/// Waits on the caller's thread.
#[derive(Default)]
pub(crate) struct ThreadWaiter;

/// Wakes a thread.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

thread_local! {
    static WAKER: Waker = waker();
}

fn waker() -> Waker {
    Arc::new(Unpark(thread::current())).into()
}

impl ThreadWaiter {
    fn sleep(caller: &Caller, until: Instant) -> Option<Step> {
        let _call = CallUnderWay::begin();
        let waker = WAKER.try_with(Waker::clone).unwrap_or_else(|_| waker());
        let context = Context::from_waker(&waker);
        loop {
            if let Poll::Ready(step) = caller.poll(&context) {
                return Some(step);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || cancel::is_cancelled() {
                return None;
            }
            thread::park_timeout(cancel::tick(left));
        }
    }
}

impl StepWaiter for ThreadWaiter {
    async fn wait(&mut self, caller: &Caller, until: Instant, is_taken: bool) -> Option<Step> {
        match is_taken {
            true => cancel::suspended(|| Self::sleep(caller, until)),
            false => Self::sleep(caller, until),
        }
    }

    fn is_cancelled(&self) -> bool {
        cancel::is_cancelled()
    }

    /// A thread goes on in any case.
    async fn leading<T: Send>(
        &mut self,
        keep: &(impl Fn(Duration) + Sync),
        wait: impl Future<Output = T> + Send,
    ) -> T {
        keep(LONG);
        wait.await
    }
}

impl MergeSide for Pool {
    type Waiter = ThreadWaiter;

    async fn to_its_end<T: Send + 'static>(
        _: &Settings,
        _: Instant,
        future: impl Future<Output = (T, impl FnOnce() + Send + 'static)> + Send + 'static,
    ) -> Option<T> {
        let (output, then) = future.await;
        then();
        Some(output)
    }
}

fn attempts(router: &Router, run: WatchRun) -> WatchAttempts {
    WatchAttempts::new(router, run)
}

/// Waits for the turn of a run on its keys, if it has none. `offer`: its WATCH, which the caller before it
/// may send.
fn enter(
    attempts: &mut WatchAttempts,
    router: &Router,
    (hot_keys, keys, is_outer): (&Arc<HotKeys>, &Keys, bool),
    offer: Option<WatchOffer<'_, ThreadKeyTurn>>,
) {
    if let Some(wait) = attempts.turn_wait(router) {
        let is_nested = !is_outer || !may_wait(router, hot_keys, keys);
        attempts.set_turn(now(pin!(hot_keys.enter(keys.buckets(), is_nested, wait, offer))));
    }
}

/// Whether the thread may wait for its turn: one that has a connection might wait for a caller that waits for
/// that connection.
fn may_wait(router: &Router, hot_keys: &HotKeys, keys: &Keys) -> bool {
    !hot_keys.is_any_hot(keys.buckets()) || !router.is_held_by_this_thread()
}

fn next(
    attempts: &mut WatchAttempts,
    router: &Router,
    target: WatchTarget<'_>,
) -> Result<Watching, Error> {
    let span = attempts.span().clone();
    now_in(&span, pin!(attempts.next(router, target))).map(Watching::new)
}

fn failed(attempts: &mut WatchAttempts, router: &Router, watching: &mut Watching) -> bool {
    let span = attempts.span().clone();
    now_in(&span, pin!(attempts.failed(router, watching.reading())))
}

fn commit_watched(
    attempts: &mut WatchAttempts,
    router: &Router,
    keys: Option<&Keys>,
    watching: &mut Watching,
    pending: &mut Pending,
) -> Result<Option<Replies>, Error> {
    let span = attempts.span().clone();
    now_in(&span, pin!(attempts.commit(router, keys, watching.reading(), pending)))
}
