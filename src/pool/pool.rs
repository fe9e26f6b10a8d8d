//! A pool of connections to one server: a caller gets one in the order of waiting.

use std::any::Any;
use std::future::ready;
use std::ops::Deref;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use scheduled_thread_pool::ScheduledThreadPool;
use tracing::Level;

use crate::connection::deadline::Deadline;
use crate::connection::endpoint::Endpoint;
use crate::connection::threads::Threads;
use crate::error::any::Error;
use crate::error::checkout::{CheckoutError, CheckoutTimeout};
use crate::error::connection::ConnectionError;
use crate::error::open_scope::OpenScope;
use crate::logging::deferred::DeferredEvents;
use crate::pool::batch::{LedGroup, ensure_multi, send_batch};
use crate::pool::batch_request::BatchRequest;
use crate::pool::batch_response::BatchResponse;
use crate::pool::checkout::{Checkout, Permit, ThreadKeyQueue, ThreadKeyTurn};
use crate::pool::config::PoolConfig;
use crate::pool::context::PoolContext;
use crate::pool::core::{PoolCore, ThreadEarlyRequest, ThreadRequest};
use crate::pool::early_watch::WatchOffer;
use crate::pool::first_packet::FirstPacket;
use crate::pool::group;
use crate::pool::idle::TakenConnection;
use crate::pool::line::{Line, ensure_alive};
use crate::pool::scope_origin::ScopeOrigin;
use crate::pool::scopes::{OpenScopes, PinnedConnection, ReaperState, WouldDeadlock};
use crate::pool::semaphore::{AcquireError, Acquired, Granted, IsWaiting};
use crate::pool::server_pool::{BatchCheckout, ServerPool};
use crate::pool::waiter::LeftRequest;
use crate::status::lanes::LaneStatus;
use crate::status::metrics::PoolLevels;
use crate::status::node::NodeStatus;
use crate::sync::cancel;
use crate::sync::this_thread;

/// Time in addition to its timeout that a closing pool waits for connections that are being opened.
const CLOSE_GRACE: Duration = Duration::from_millis(100);

/// Delay between two sweeps of a closed pool.
const SWEEP_INTERVAL: Duration = Duration::from_millis(20);

/// A pool of connections to one server. Clones are the same pool.
#[derive(Clone)]
pub(crate) struct Pool {
    pub(in crate::pool) scopes: Arc<OpenScopes<Checkout>>,
}

impl Deref for Pool {
    type Target = Arc<PoolCore>;

    fn deref(&self) -> &Arc<PoolCore> {
        self.scopes.core()
    }
}

/// A check before a wait begins.
type MayWait<'p> = dyn Fn(&IsWaiting<'_>) -> Result<(), WouldDeadlock> + 'p;

impl Pool {
    /// Takes the connection that came with the caller's turn. `None`: none came, or it is to another server, or
    /// the pool is being closed.
    fn take_with_turn(&self, offer: Option<WatchOffer<'_, ThreadKeyTurn>>) -> Option<Checkout> {
        let mut checkout = offer?.turn?.take_connection()?;
        let is_usable = Arc::ptr_eq(checkout.pool(), self)
            && !self.semaphore.is_closed()
            && !cancel::is_cancelled();
        is_usable.then(|| {
            checkout.begin_turn(Instant::now());
            self.count(&mut checkout);
            checkout
        })
    }

    /// Whether this thread has an open scope.
    pub(in crate::pool) fn is_held_by_this_thread(&self) -> bool {
        let this = this_thread();
        self.scopes.is_held_by(|holder, _| holder.id == this)
    }

    /// Takes a connection for the permit, and counts and logs the outcome.
    fn connect(
        &self,
        permit: Result<(Permit, Option<TakenConnection>), CheckoutError>,
        started: Instant,
        deadline: Instant,
    ) -> Result<Checkout, CheckoutError> {
        self.counted(
            permit.and_then(|(permit, passed_on)| {
                Checkout::new(permit, passed_on, started, deadline)
            }),
        )
    }

    /// Counts and logs the outcome.
    fn counted(
        &self,
        mut checkout: Result<Checkout, CheckoutError>,
    ) -> Result<Checkout, CheckoutError> {
        match &mut checkout {
            Ok(checkout) => self.count(checkout),
            Err(error) => self.on_refused(error),
        }
        checkout
    }

    /// Counts and logs a connection that a caller has got.
    fn count(&self, checkout: &mut Checkout) {
        let name = self.config.name;
        self.config.counters.checkouts.add();
        checkout.log_later(Level::TRACE, move || tracing::trace!(pool = name, "checkout"));
    }

    /// `packet`: the first packet, if the caller has to wait.
    #[inline(never)]
    fn take(
        &self,
        deadline: Instant,
        packet: &dyn Fn() -> Option<ThreadEarlyRequest>,
    ) -> Result<Checkout, CheckoutError> {
        let started = Instant::now();
        self.connect(self.permit(started, deadline, packet), started, deadline)
    }

    fn batched(
        &self,
        deadline: Instant,
        response_wait: Duration,
        request: &impl Fn() -> BatchRequest,
    ) -> Result<BatchCheckout<Self>, CheckoutError> {
        let started = Instant::now();
        let acquired = self.wait(started, |may_wait| {
            let request = || ThreadRequest::new(request(), ());
            self.semaphore.acquire_batched(request, deadline, response_wait, may_wait)
        });
        let response = match acquired {
            Ok(Acquired::Alone(number)) => {
                let permit = Ok((self.permit_of(number), None));
                return self.connect(permit, started, deadline).map(BatchCheckout::Alone);
            }
            Ok(Acquired::Leads(number, place)) => {
                let mut group = Some(LedGroup::new(self, number, place));
                let checkout = Checkout::new(self.permit_of(number), None, started, deadline);
                if checkout.is_err() {
                    // Before a log is written: the next member leads.
                    group = None;
                }
                let checkout = self.counted(checkout)?;
                return Ok(match group {
                    Some(group) => BatchCheckout::Lead(checkout, group),
                    None => BatchCheckout::Alone(checkout),
                });
            }
            Ok(Acquired::Response((response, _))) => response,
            Ok(Acquired::Unknown(token)) => {
                let text = "the caller that sent the batch returned no result";
                Ok(group::unanswered(ConnectionError::timed_out(text), token.as_ref()))
            }
            Err(error) => {
                self.on_refused(&error);
                return Err(error);
            }
        };
        // Another caller's connection was used.
        self.config.counters.checkouts.add();
        tracing::trace!(pool = self.config.name, "checkout");
        response.map(BatchCheckout::Response)
    }

    fn permit_of(&self, number: usize) -> Permit {
        Permit::new(Arc::clone(self), number)
    }

    fn try_permit(&self) -> Option<Permit> {
        self.semaphore.try_acquire().map(|number| self.permit_of(number))
    }

    /// Returns a permit, and the connection on which `packet` was sent, if it was.
    fn permit(
        &self,
        started: Instant,
        deadline: Instant,
        packet: &dyn Fn() -> Option<ThreadEarlyRequest>,
    ) -> Result<(Permit, Option<TakenConnection>), CheckoutError> {
        if cancel::is_cancelled() {
            return Err(CheckoutError::Cancelled);
        }
        if let Some(number) = self.semaphore.try_acquire() {
            return Ok((self.permit_of(number), None));
        }
        let response_timeout = self.settings().response_timeout;
        let request = packet().map(|request| LeftRequest {
            patience: request.patience(response_timeout),
            request: Arc::new(request),
        });
        let Granted { permit, passed_on } = self.wait(started, |may_wait| {
            self.semaphore.acquire_with(deadline, request.clone(), may_wait)
        })?;
        let passed_on = request.filter(|_| passed_on).and_then(|left| left.request.take());
        Ok((self.permit_of(permit), passed_on))
    }

    /// Waits for a permit, unless that would be a deadlock.
    fn wait<T>(
        &self,
        started: Instant,
        mut acquire: impl FnMut(&MayWait<'_>) -> Result<T, AcquireError<WouldDeadlock>>,
    ) -> Result<T, CheckoutError> {
        let mut warned = false;
        let acquired = loop {
            let acquired = acquire(&|is_waiting| match self
                .scopes
                .check_wait(|holder| is_waiting(holder.id))
            {
                Err(WouldDeadlock { certain: false, .. }) if warned => Ok(()),
                checked => checked,
            });
            let Err(AcquireError::Rejected(WouldDeadlock { certain: false, holders })) = acquired
            else {
                break acquired;
            };
            // Logged while no mutex is locked: a subscriber may block or call back.
            for scope in holders {
                let OpenScope { name, begun_at: place, thread, age, .. } = scope;
                let name = name.as_deref();
                tracing::warn!(
                    name, %place, %thread, ?age,
                    "every thread that began a scope waits for a connection"
                );
            }
            warned = true;
        };
        match acquired {
            Ok(acquired) => Ok(acquired),
            Err(AcquireError::Closed) => Err(CheckoutError::Closed),
            Err(AcquireError::Rejected(WouldDeadlock { holders, .. })) => {
                Err(CheckoutError::WouldDeadlock { holders })
            }
            Err(AcquireError::TimedOut { .. }) if cancel::is_cancelled() => {
                Err(CheckoutError::Cancelled)
            }
            Err(AcquireError::TimedOut { waiters }) => {
                let idle = self.idle.idle();
                Err(CheckoutError::Timeout(Box::new(CheckoutTimeout {
                    waited: started.elapsed(),
                    max_size: self.settings().max_size,
                    in_use: self.in_use() as u32,
                    idle,
                    waiters,
                    holders: ServerPool::open_scopes(self),
                    last_connect_error: self.shared.connect_error(),
                })))
            }
        }
    }

    /// Waits until no connection is in use, reclaims the scopes that are open at `deadline`, and
    /// closes all connections: idle, in use, and being opened. Returns the number of scopes that
    /// were reclaimed.
    pub(crate) fn drain(&self, deadline: Instant) -> usize {
        while self.in_use() > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        // A connection that is returned from here on is closed, and none is opened in its place.
        self.shared.close();
        let reclaimed = self.scopes.reclaim_all();
        if self.in_use() > 0 {
            // Running calls fail now.
            self.shared.shut_down_sockets();
        }
        // The wait ends here: the reaper closes connections that arrive later.
        let until = deadline.max(Instant::now() + CLOSE_GRACE);
        while !self.sweep() {
            if Instant::now() >= until {
                self.shared.shut_down_sockets();
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut events = DeferredEvents::default();
        events.collect();
        events.write();
        reclaimed
    }

    /// Runs the reaper often enough for the shortest limit.
    fn start_reaper(&self, threads: &ScheduledThreadPool) {
        let settings = self.settings();
        let (limit, warning) = (settings.max_pin_time, settings.pin_warning);
        let shortest = warning.map_or(limit, |warning| warning.min(limit));
        let period = (shortest / 4).clamp(Duration::from_millis(5), Duration::from_secs(1));
        let pool = ServerPool::weak(self);
        let mut seen = ReaperState::default();
        let sizes = [settings.max_size, settings.min_idle];
        let mut levels = PoolLevels::new(&self.config.counters.metrics, sizes);
        threads.execute_at_dynamic_rate(period, move || {
            let pool = Self::upgrade(&pool)?;
            let log_thread = &pool.config.logging.log_thread;
            pool.scopes.reclaim_unused(&mut seen, limit, warning, log_thread);
            levels.report(|| {
                let [size, idle] = [pool.idle.size(), pool.idle.idle()].map(|size| size as usize);
                [idle, size.saturating_sub(idle), 0, pool.semaphore.waiting()]
            });
            if pool.shared.is_closed() && !pool.sweep() {
                return Some(SWEEP_INTERVAL.min(period));
            }
            Some(period)
        });
    }
}

impl ServerPool for Pool {
    type Io = Threads;
    type Line = Checkout;
    type Pin = PinnedConnection<Checkout>;
    type Turns = ThreadKeyQueue;
    type Group = LedGroup;
    /// A forgotten scope does not keep the pool alive. (The checkout in the scope's entry does, until
    /// the scope ends or is reclaimed.)
    type Weak = Weak<OpenScopes<Checkout>>;

    fn new(config: PoolConfig, endpoint: Endpoint) -> Self {
        let threads = Arc::clone(&config.threads);
        let pool =
            Self { scopes: Arc::new(OpenScopes::new(Arc::new(PoolCore::new(config, endpoint)))) };
        pool.start_reaper(&threads);
        pool
    }

    fn weak(&self) -> Weak<OpenScopes<Checkout>> {
        Arc::downgrade(&self.scopes)
    }

    fn upgrade(weak: &Weak<OpenScopes<Checkout>>) -> Option<Self> {
        weak.upgrade().map(|scopes| Self { scopes })
    }

    fn context(&self) -> &PoolContext {
        self
    }

    fn checkout(
        &self,
        deadline: Instant,
    ) -> impl Future<Output = Result<Checkout, CheckoutError>> + Send {
        ready(self.take(deadline, &|| None))
    }

    fn checkout_with(
        &self,
        deadline: Instant,
        packet: &(impl Fn() -> Option<FirstPacket> + Sync),
    ) -> impl Future<Output = Result<Checkout, CheckoutError>> + Send {
        ready(self.take(deadline, &|| packet().map(ThreadEarlyRequest::first)))
    }

    fn try_checkout(
        &self,
        deadline: Instant,
    ) -> impl Future<Output = Result<Option<Checkout>, CheckoutError>> + Send {
        let connect = |permit| self.connect(Ok((permit, None)), Instant::now(), deadline);
        ready(self.try_permit().map(connect).transpose())
    }

    async fn checkout_batched(
        &self,
        deadline: Instant,
        response_wait: Duration,
        request: &(impl Fn() -> BatchRequest + Sync),
    ) -> Result<BatchCheckout<Self>, CheckoutError> {
        self.batched(deadline, response_wait, request)
    }

    async fn prepare_batch(
        line: &mut Checkout,
        group: &mut LedGroup,
        deadline: Instant,
    ) -> Result<(), Error> {
        match group.begins_with_block() {
            true => ensure_multi(line, group, deadline),
            false => ensure_alive(line, deadline).await,
        }
    }

    fn send_batch(
        line: Checkout,
        group: LedGroup,
        deadline: Deadline,
    ) -> impl Future<Output = Result<BatchResponse, CheckoutError>> + Send {
        ready(send_batch(line, group, deadline))
    }

    fn pin(
        &self,
        origin: ScopeOrigin,
        deadline: Instant,
        needs_asking: bool,
        router: Arc<dyn Any + Send + Sync>,
    ) -> impl Future<Output = Result<PinnedConnection<Checkout>, CheckoutError>> + Send {
        self.pin_watching(origin, deadline, needs_asking, router, None)
    }

    fn pin_watching(
        &self,
        origin: ScopeOrigin,
        deadline: Instant,
        needs_asking: bool,
        router: Arc<dyn Any + Send + Sync>,
        offer: Option<WatchOffer<'_, ThreadKeyTurn>>,
    ) -> impl Future<Output = Result<PinnedConnection<Checkout>, CheckoutError>> + Send {
        let watch = || offer.and_then(|offer| offer.early_watch()).map(ThreadEarlyRequest::new);
        let checkout = match self.take_with_turn(offer) {
            Some(checkout) => Ok(checkout),
            None => self.take(deadline, &watch),
        };
        let open = |mut checkout: Checkout| {
            if let Some(turn) = offer.and_then(|offer| offer.turn) {
                checkout.set_turn(turn);
            }
            self.scopes.open(checkout.with_ask(needs_asking), origin, router)
        };
        ready(checkout.map(open))
    }

    fn with_ask(line: Checkout, needs_asking: bool) -> Checkout {
        line.with_ask(needs_asking)
    }

    fn warm(&self) {
        if self.idle.size() == 0
            && let Some(_permit) = self.try_permit()
        {
            drop(self.idle.open_one());
        }
    }

    fn close(&self) {
        self.semaphore.close();
        self.blocking.close();
    }

    fn retire(&self) {
        self.semaphore.close();
        self.shared.close();
    }

    fn open_scopes(&self) -> Vec<OpenScope> {
        let mut scopes = self.scopes.list();
        scopes.extend(self.blocking.list());
        scopes.sort_by_key(|scope| std::cmp::Reverse(scope.age));
        scopes
    }

    fn status(&self, address: String, slots: usize) -> NodeStatus {
        NodeStatus {
            address,
            slots,
            size: self.idle.size(),
            in_use: self.in_use() as u32,
            idle: self.idle.idle(),
            waiting: self.semaphore.waiting(),
            lanes: LaneStatus::default(),
            last_connect_error: self.shared.connect_error(),
        }
    }
}
