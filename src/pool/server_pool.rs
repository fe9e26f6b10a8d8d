//! The pool of one server, as threads and tasks use it.

use std::any::Any;
use std::ops::DerefMut;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::connection::deadline::Deadline;
use crate::connection::endpoint::Endpoint;
use crate::connection::io::Io;
use crate::error::any::Error;
use crate::error::checkout::CheckoutError;
use crate::error::open_scope::OpenScope;
use crate::error::pin_expired::PinExpired;
use crate::pool::batch_request::BatchRequest;
use crate::pool::batch_response::BatchResponse;
use crate::pool::config::PoolConfig;
use crate::pool::context::PoolContext;
use crate::pool::early_watch::WatchOffer;
use crate::pool::first_packet::FirstPacket;
use crate::pool::key_turn::{KeyTurn, TurnQueue};
use crate::pool::line::Line;
use crate::pool::scope_origin::ScopeOrigin;
use crate::status::node::NodeStatus;

/// A turn on hot keys, as a connection has it.
pub(crate) type TurnOf<P> = KeyTurn<<P as ServerPool>::Turns>;

/// The pool of one server. Clones are the same pool.
pub(crate) trait ServerPool: Clone + Send + Sync + 'static {
    type Io: Io;
    type Line: Line<Wire = <Self::Io as Io>::Wire>;
    type Pin: PinnedLine<Line = Self::Line>;
    /// The turns on hot keys of its callers.
    type Turns: TurnQueue;
    /// The requests that a caller with a connection sends with its own.
    type Group: Send;
    /// A reference that does not keep the pool alive.
    type Weak: Send + Sync + 'static;

    /// Whether lanes carry the small requests of all callers, also exactly-once blocks.
    const HAS_LANES: bool = false;

    fn new(config: PoolConfig, endpoint: Endpoint) -> Self;

    fn weak(&self) -> Self::Weak;

    /// `None`: the pool is gone.
    fn upgrade(weak: &Self::Weak) -> Option<Self>;

    /// Settings, counters and endpoint.
    fn context(&self) -> &PoolContext;

    /// Takes a connection. Dropped before its end, the future has taken nothing.
    fn checkout(
        &self,
        deadline: Instant,
    ) -> impl Future<Output = Result<Self::Line, CheckoutError>> + Send;

    /// The same for a caller that begins with this packet. If the caller has to wait, another one may send it:
    /// the connection then awaits the replies, and an [exchange](Connection::exchange) of the same message
    /// must follow.
    ///
    /// [Connection::exchange]: crate::connection::connection::Connection::exchange
    fn checkout_with(
        &self,
        deadline: Instant,
        _packet: &(impl Fn() -> Option<FirstPacket> + Sync),
    ) -> impl Future<Output = Result<Self::Line, CheckoutError>> + Send {
        self.checkout(deadline)
    }

    /// The same if a permit is free; `None`: no permit is free. Dropped before its end, the future
    /// has taken nothing.
    fn try_checkout(
        &self,
        deadline: Instant,
    ) -> impl Future<Output = Result<Option<Self::Line>, CheckoutError>> + Send;

    /// Takes a connection if one is free. Otherwise waits for a connection that leads a batch,
    /// unless another caller sends the request first. The response to a request that was taken by
    /// `deadline` is awaited until `response_wait` later.
    ///
    /// Dropped before its end, the future has taken nothing. A request that another caller took may
    /// still be sent.
    fn checkout_batched(
        &self,
        deadline: Instant,
        response_wait: Duration,
        request: &(impl Fn() -> BatchRequest + Sync),
    ) -> impl Future<Output = Result<BatchCheckout<Self>, CheckoutError>> + Send;

    /// Makes sure that the connection is alive before the requests are sent on it. Dropped before its
    /// end, the future has sent none of them.
    ///
    /// # Errors
    /// There is no live connection by `deadline`. Another caller then leads the group.
    fn prepare_batch(
        line: &mut Self::Line,
        group: &mut Self::Group,
        deadline: Instant,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Sends the leader's request with those of waiting callers, and returns the connection. After
    /// the deadline the connection is lost for all of them. Dropped before its end, the future leaves
    /// the outcome unknown to all of them, and the connection is closed.
    fn send_batch(
        line: Self::Line,
        group: Self::Group,
        deadline: Deadline,
    ) -> impl Future<Output = Result<BatchResponse, CheckoutError>> + Send;

    /// Takes a connection for a scope, which keeps `router` alive. Dropped before its end, the future
    /// has opened no scope.
    fn pin(
        &self,
        origin: ScopeOrigin,
        deadline: Instant,
        needs_asking: bool,
        router: Arc<dyn Any + Send + Sync>,
    ) -> impl Future<Output = Result<Self::Pin, CheckoutError>> + Send;

    /// The same for a scope that begins with the WATCH and the reads of `offer`. If it has to wait, they may
    /// travel behind the EXEC of another caller; their replies are then due on its connection.
    fn pin_watching(
        &self,
        origin: ScopeOrigin,
        deadline: Instant,
        needs_asking: bool,
        router: Arc<dyn Any + Send + Sync>,
        _offer: Option<WatchOffer<'_, TurnOf<Self>>>,
    ) -> impl Future<Output = Result<Self::Pin, CheckoutError>> + Send {
        self.pin(origin, deadline, needs_asking, router)
    }

    /// Marks the connection's server as the target of a migration.
    fn with_ask(line: Self::Line, needs_asking: bool) -> Self::Line;

    /// Begins to open a connection if there is none, without waiting for it.
    fn warm(&self);

    /// Closes the pool: checkouts fail from now on, and blocking commands are ended.
    fn close(&self);

    /// Retires the pool of a former master: waiting callers fail and look for another server; a
    /// connection in use is kept to the end of its scope.
    fn retire(&self);

    /// The open scopes and the blocking commands, oldest first.
    fn open_scopes(&self) -> Vec<OpenScope>;

    /// The connections of the pool, for the report of its router.
    fn status(&self, address: String, slots: usize) -> NodeStatus;
}

/// A scope's access to its connection.
pub(crate) trait PinnedLine: Sized + Send + Sync {
    type Line: Line;
    /// The connection for one call of the scope. Its drop ends the call.
    type Call: DerefMut<Target = Self::Line> + Send;

    /// Begins a call of the scope.
    ///
    /// # Errors
    /// The scope was reclaimed before the call. Once a call has begun, its result stands. Or another
    /// call of the scope has the connection; since a call borrows the scope, that one was forgotten.
    fn call<E: From<PinExpired> + From<CheckoutError>>(&self) -> Result<Self::Call, E>;

    /// Begins the scope's last call: connection and permit are returned, in this order, when the call
    /// is dropped.
    ///
    /// # Errors
    /// As [`call`](Self::call); the scope has ended then too.
    fn last_call<E: From<PinExpired> + From<CheckoutError>>(self) -> Result<Self::Call, E>;

    /// Shows the reaper that the scope is in use although it sends nothing.
    fn touch(&self);
}

/// The result of a checkout whose request another caller's write may carry.
pub(crate) enum BatchCheckout<P: ServerPool> {
    /// A connection that was free, while no caller waited.
    Alone(P::Line),
    /// A connection, and the group with the caller's request and those of other waiting callers.
    Lead(P::Line, P::Group),
    /// Another caller has sent the request.
    Response(BatchResponse),
}
