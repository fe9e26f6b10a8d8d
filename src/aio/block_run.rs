//! The future of a block that a lane carries.
//!
//! Most blocks are small, find a free place in a lane, and are applied. For these the future is small and
//! decides nothing. Every other block, and all that can go wrong, is left to the general future, which is
//! made only then.

use std::borrow::Borrow;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tracing::level_filters::LevelFilter;

use crate::error::any::Error;
use crate::error::token_cell::TokenCell;
use crate::pool::router::Router;
use crate::pool::tasks::lane::LaneCall;
use crate::pool::tasks::pool::TaskPool;
use crate::transaction::block::Block;
use crate::transaction::pending::Pending;
use crate::transaction::pinned::Pinned;
use crate::transaction::resolve::Resolve;

/// A block that is left to the general future.
#[expect(
    clippy::large_enum_variant,
    reason = "it is moved once, and a box would cost each block more"
)]
pub(super) enum Unfinished<C, R> {
    /// Its closure has not run.
    New(C),
    /// Its closure has returned these handles.
    Queued(R, Pending),
}

impl<C, R> Unfinished<C, R> {
    /// Returns the handles and the commands. The closure runs if it has not.
    pub(super) fn queued<E>(
        self,
        router: &Router<TaskPool>,
        pinned: &Pinned<TaskPool>,
    ) -> Result<(R, Pending), E>
    where
        C: FnOnce(&mut Block) -> Result<R, E>,
    {
        let closure = match self {
            Self::New(closure) => closure,
            Self::Queued(handles, pending) => return Ok((handles, pending)),
        };
        let binding = pinned.plan().binding(router);
        let pending = Pending::new(pinned.settings(), binding);
        let mut block = Block { pending, pinned: None };
        let handles = closure(&mut block)?;
        Ok((handles, block.pending))
    }
}

/// The future of a block. `W`: a reference to its servers, or its own; `C`: its closure, `R`: its handles,
/// `M`: makes the general future `G`.
///
/// Its parts are used in place, so that no part is moved while the block is under way. Its drop withdraws
/// a block that was not taken for sending.
pub(super) struct BlockRun<W, C, R, M, G> {
    router: W,
    /// Whether the block is exactly once; `None`: its options are not for a lane.
    exactly_once: Option<bool>,
    /// Set when the number of an exactly-once block is drawn.
    token: Option<TokenCell>,
    begun: bool,
    /// `None` once the closure has run.
    closure: Option<C>,
    block: Option<Block>,
    handles: Option<R>,
    /// The block in its lane.
    call: Option<LaneCall>,
    /// `None` once the general future is made.
    make: Option<M>,
    general: Option<Pin<Box<G>>>,
}

/// No part of it is pinned but the general future, which is boxed.
impl<W, C, R, M, G> Unpin for BlockRun<W, C, R, M, G> {}

/// The closure of a block that is queued already.
pub(super) type NoClosure<R> = fn(&mut Block) -> Result<R, Error>;

impl<W, R, M, G> BlockRun<W, NoClosure<R>, R, M, G> {
    /// The future of a block whose closure has returned `handles`.
    pub(super) fn queued(
        router: W,
        exactly_once: Option<bool>,
        token: Option<TokenCell>,
        (handles, pending): (R, Pending),
        make: M,
    ) -> Self {
        Self {
            router,
            exactly_once,
            token,
            begun: false,
            closure: None,
            block: Some(Block { pending, pinned: None }),
            handles: Some(handles),
            call: None,
            make: Some(make),
            general: None,
        }
    }
}

/// How a block begins.
enum Begun<E> {
    /// A lane has it. The response wakes the task.
    InLane,
    /// Its closure has failed.
    Failed(E),
    /// The general future decides.
    Unfinished,
}

impl<W, C, R, E, M, G> BlockRun<W, C, R, M, G>
where
    W: Borrow<Router<TaskPool>>,
    C: FnOnce(&mut Block) -> Result<R, E>,
    R: Resolve,
    E: From<Error>,
    M: FnOnce(Unfinished<C, R>) -> G,
    G: Future<Output = Result<R::Output, E>>,
{
    /// `exactly_once`: `None` if the block's options are not for a lane.
    pub(super) fn new(router: W, exactly_once: Option<bool>, closure: C, make: M) -> Self {
        Self {
            router,
            exactly_once,
            token: None,
            begun: false,
            closure: Some(closure),
            block: None,
            handles: None,
            call: None,
            make: Some(make),
            general: None,
        }
    }

    /// Runs the closure, and submits its commands to a lane if one can take them at once.
    fn begin(&mut self, context: &Context<'_>) -> Begun<E> {
        // A transaction's span is made by the general future.
        let Some(exactly_once) =
            self.exactly_once.filter(|_| LevelFilter::current() < LevelFilter::INFO)
        else {
            return Begun::Unfinished;
        };
        // Of a forked child the general future decides.
        let router = self.router.borrow();
        let Ok(only_pool) = router.only_pool() else { return Begun::Unfinished };
        if let Some(closure) = self.closure.take() {
            let pending = Pending::new(router.settings(), router.binding());
            match closure(self.block.insert(Block { pending, pinned: None })) {
                Ok(handles) => self.handles = Some(handles),
                Err(error) => return Begun::Failed(error),
            }
        }
        let Some(Block { pending, .. }) = &mut self.block else { return Begun::Unfinished };
        // The closure may have forked.
        if pending.is_for_lane() && router.here().is_ok() {
            // In a cluster, of the slot's master.
            let slot = pending.slot();
            let of_slot = slot.and_then(|slot| router.open_pool(slot));
            let Some(pool) = only_pool.or(of_slot.as_ref()) else { return Begun::Unfinished };
            let token = self.token.clone();
            let settings = router.settings();
            let request = || pending.lane_request(settings, exactly_once, slot, token);
            if let Some(call) = pool.try_submit(None, context, request) {
                self.call = Some(call);
                return Begun::InLane;
            }
        }
        Begun::Unfinished
    }

    /// Polls the future of a block that no lane has carried to its end.
    #[cold]
    #[inline(never)]
    fn poll_general(&mut self, context: &mut Context<'_>) -> Poll<Result<R::Output, E>> {
        if let Some(make) = self.make.take() {
            let queued = self.handles.take().zip(self.block.take());
            let unfinished = match (queued, self.closure.take()) {
                (Some((handles, block)), _) => Unfinished::Queued(handles, block.pending),
                (None, Some(closure)) => Unfinished::New(closure),
                // The closure has panicked or failed.
                (None, None) => return Poll::Pending,
            };
            self.general = Some(Box::pin(make(unfinished)));
        }
        match &mut self.general {
            Some(general) => general.as_mut().poll(context),
            None => Poll::Pending,
        }
    }
}

impl<W, C, R, E, M, G> Future for BlockRun<W, C, R, M, G>
where
    W: Borrow<Router<TaskPool>>,
    C: FnOnce(&mut Block) -> Result<R, E>,
    R: Resolve,
    E: From<Error>,
    M: FnOnce(Unfinished<C, R>) -> G,
    G: Future<Output = Result<R::Output, E>>,
{
    type Output = Result<R::Output, E>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Some(call) = &mut this.call {
            let answer = ready!(call.poll(context));
            let deadline = call.deadline();
            this.call = None;
            if let Some(block) = &mut this.block
                && let Some(replies) =
                    block.pending.carried(this.router.borrow().counters(), answer, deadline)
                && let Some(handles) = this.handles.take()
            {
                let resolved = handles.resolve(&replies);
                let resolved = resolved.map_err(|error| block.pending.named(error).into());
                this.block = None;
                return Poll::Ready(resolved);
            }
        } else if !this.begun {
            this.begun = true;
            match this.begin(context) {
                Begun::InLane => return Poll::Pending,
                Begun::Failed(error) => return Poll::Ready(Err(error)),
                Begun::Unfinished => {}
            }
        }
        this.poll_general(context)
    }
}
