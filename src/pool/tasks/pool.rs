//! The pool of one server, for callers that are tasks.

use std::any::Any;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::connection::deadline::Deadline;
use crate::connection::endpoint::Endpoint;
use crate::connection::tasks::io::Tasks;
use crate::error::checkout::CheckoutError;
use crate::error::open_scope::OpenScope;
use crate::pool::batch_request::BatchRequest;
use crate::pool::batch_response::BatchResponse;
use crate::pool::config::PoolConfig;
use crate::pool::context::PoolContext;
use crate::pool::scope_origin::ScopeOrigin;
use crate::pool::server_pool::{BatchCheckout, ServerPool};
use crate::pool::tasks::lanes::Lanes;
use crate::pool::tasks::line::TaskLine;
use crate::pool::tasks::pin::TaskPin;
use crate::status::node::NodeStatus;

/// The pool of one server, for callers that are tasks. Clones are the same pool.
#[derive(Clone)]
pub(crate) struct TaskPool {
    shared: Arc<TaskPoolShared>,
}

pub(crate) struct TaskPoolShared {
    context: Arc<PoolContext>,
    lanes: Lanes,
}

impl TaskPool {
    /// Waits until no connection is in use, reclaims the scopes that are open at `deadline`, and
    /// closes all connections. Returns the number of scopes that were reclaimed.
    pub(crate) async fn drain(&self, _deadline: Instant) -> usize {
        todo!()
    }
}

impl ServerPool for TaskPool {
    type Io = Tasks;
    type Line = TaskLine;
    type Pin = TaskPin;
    type Weak = Weak<TaskPoolShared>;

    const HAS_LANES: bool = true;

    fn new(config: PoolConfig, endpoint: Endpoint) -> Self {
        let context = Arc::new(PoolContext::new(config, endpoint));
        let lanes = Lanes::new(Arc::clone(&context));
        Self { shared: Arc::new(TaskPoolShared { context, lanes }) }
    }

    fn weak(&self) -> Self::Weak {
        Arc::downgrade(&self.shared)
    }

    fn upgrade(weak: &Self::Weak) -> Option<Self> {
        weak.upgrade().map(|shared| Self { shared })
    }

    fn context(&self) -> &PoolContext {
        &self.shared.context
    }

    async fn checkout(&self, _deadline: Instant) -> Result<TaskLine, CheckoutError> {
        todo!()
    }

    async fn try_checkout(&self, _deadline: Instant) -> Result<Option<TaskLine>, CheckoutError> {
        todo!()
    }

    async fn checkout_batched(
        &self,
        deadline: Instant,
        _response_wait: Duration,
        request: &(impl Fn() -> BatchRequest + Sync),
    ) -> Result<BatchCheckout<TaskLine>, CheckoutError> {
        if self.shared.context.settings().lanes == 0 {
            return self.checkout(deadline).await.map(BatchCheckout::Alone);
        }
        self.shared.lanes.submit(deadline, request).await.map(BatchCheckout::Response)
    }

    async fn send_batch(
        _line: TaskLine,
        _own: &BatchRequest,
        _deadline: Deadline,
    ) -> BatchResponse {
        todo!()
    }

    async fn pin(
        &self,
        _origin: ScopeOrigin,
        _deadline: Instant,
        _needs_asking: bool,
        _router: Arc<dyn Any + Send + Sync>,
    ) -> Result<TaskPin, CheckoutError> {
        todo!()
    }

    fn with_ask(_line: TaskLine, _needs_asking: bool) -> TaskLine {
        todo!()
    }

    fn warm(&self) {
        todo!()
    }

    fn close(&self) {
        todo!()
    }

    fn retire(&self) {
        todo!()
    }

    fn open_scopes(&self) -> Vec<OpenScope> {
        todo!()
    }

    fn status(&self, _address: String, _slots: usize) -> NodeStatus {
        todo!()
    }
}
