//! A pool of connections behind a fair semaphore.
//!
//! r2d2 opens connections, backs off, and closes the ones that idle for too long. The semaphore
//! decides which caller gets one; the checkout decides whether it is trusted or replaced.
//! r2d2's `get` is called with a permit only, so it never waits for another scope.

pub(crate) mod batch;
pub(crate) mod batch_response;
pub(crate) mod blocking;
pub(crate) mod checkout;
pub(crate) mod manager;
#[cfg(all(test, rediscope_shuttle))]
#[path = "../../tests/model/harness.rs"]
pub(crate) mod model;
pub(crate) mod redirect_pause;
pub(crate) mod router;
pub(crate) mod scopes;
pub(crate) mod semaphore;
pub(crate) mod spin;
#[cfg(test)]
#[path = "../../tests/unit/pool.rs"]
mod tests;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use scheduled_thread_pool::ScheduledThreadPool;
use tracing::Level;

use crate::connection::endpoint::Endpoint;
use crate::error::checkout::{CheckoutError, CheckoutTimeout};
use crate::error::open_scope::OpenScope;
use crate::logging::deferred::{DeferredEvents, LogThread};
use crate::logging::rate_limit::{LimitedEvent, RateLimits};
use crate::pool::batch_response::BatchResponse;
use crate::pool::blocking::BlockingCommands;
use crate::pool::checkout::Checkout;
use crate::pool::checkout::Permit;
use crate::pool::manager::{ConnectionManager, PoolShared, Purpose};
use crate::pool::scopes::{OpenScopes, PinnedConnection, ReaperState, ScopeOrigin, WaitCheck};
use crate::pool::semaphore::{AcquireError, Acquired, BatchMember, FairSemaphore, IsWaiting};
use crate::protocol::batch::BatchRequest;
use crate::protocol::connection_state::Taint;
use crate::settings::settings::Settings;
use crate::status::counters::Counters;
use crate::status::report::PoolStatus;

/// How much longer than its timeout a closing pool waits for connections that are being opened.
const FAREWELL: Duration = Duration::from_millis(100);

/// The pause between two looks for connections that a closed pool has left to close.
const SWEEP: Duration = Duration::from_millis(20);

/// A pool of connections behind a fair gate. Clones are the same pool.
#[derive(Clone)]
pub(crate) struct Pool {
    inner: Arc<Inner>,
}

/// What a scope knows of its pool: a scope that was forgotten does not keep the pool alive. (The
/// lease in the scope's slot does, until the scope ends or is taken back.)
pub(crate) struct WeakPool {
    inner: Weak<Inner>,
}

impl fmt::Debug for WeakPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WeakPool")
    }
}

impl WeakPool {
    /// `None` once every handle of the pool is dropped.
    pub(crate) fn get(&self) -> Option<Pool> {
        self.inner.upgrade().map(|inner| Pool { inner })
    }
}

/// What came of waiting with a job.
pub(crate) enum BatchCheckout {
    /// A free connection; no caller waits.
    Alone(Checkout),
    /// A link, and the job back.
    Lead(Checkout, BatchRequest),
    Response(BatchResponse),
}

/// Every holder of a connection waits for one.
struct WouldDeadlock {
    /// No holder can have gone on elsewhere.
    certain: bool,
    holders: Vec<OpenScope>,
}

/// Judges a wait before it begins.
type MayWait<'p> = dyn Fn(&IsWaiting<'_>) -> Result<(), WouldDeadlock> + 'p;

/// How a session manager writes its events and warnings.
#[derive(Debug, Default)]
pub(crate) struct Logging {
    pub(crate) log_thread: Arc<LogThread>,
    pub(crate) rate_limits: RateLimits,
}

/// What all pools of one purpose have in common.
#[derive(Clone)]
pub(crate) struct PoolConfig {
    pub(crate) name: &'static str,
    pub(crate) purpose: Purpose,
    pub(crate) settings: Arc<Settings>,
    pub(crate) threads: Arc<ScheduledThreadPool>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) logging: Arc<Logging>,
    /// An unreachable server fails the call at once: another one may serve by now.
    pub(crate) fail_fast: bool,
}

struct Inner {
    name: &'static str,
    fail_fast: bool,
    endpoint: Endpoint,
    logging: Arc<Logging>,
    settings: Arc<Settings>,
    shared: Arc<PoolShared>,
    semaphore: FairSemaphore<BatchRequest, BatchResponse>,
    open_scopes: OpenScopes,
    blocking: BlockingCommands,
    connections: r2d2::Pool<ConnectionManager>,
    created: Instant,
    /// Links last proven before this (in nanoseconds since `created`) are not trusted: another one
    /// was found dead then.
    distrusted_before: AtomicU64,
    /// Links last proven before this are closed unprobed: another one was found silent then, and
    /// asking each of them would cost a timeout each.
    silent_before: AtomicU64,
    last_bump: AtomicU64,
}

impl Pool {
    pub(crate) fn new(kind: PoolConfig, endpoint: Endpoint) -> Self {
        let PoolConfig { name, purpose, settings, threads, counters, logging, fail_fast } = kind;
        let shared = Arc::new(PoolShared::counting(counters));
        let connections = r2d2::Pool::builder()
            .max_size(settings.max_size)
            .min_idle(Some(settings.min_idle))
            .idle_timeout(settings.idle_timeout)
            .max_lifetime(None)
            .test_on_check_out(false)
            // Half of this is the longest pause between two tries to connect.
            .connection_timeout(Duration::from_millis(500))
            .error_handler(Box::new(r2d2::NopErrorHandler))
            .thread_pool(Arc::clone(&threads))
            // Unchecked: a server that is down is not an error of building.
            .build_unchecked(ConnectionManager {
                endpoint: endpoint.clone(),
                settings: Arc::clone(&settings),
                purpose,
                shared: Arc::clone(&shared),
                log_thread: Arc::clone(&logging.log_thread),
            });
        let inner = Arc::new(Inner {
            name,
            fail_fast,
            endpoint,
            logging,
            shared,
            semaphore: FairSemaphore::new(settings.max_size as usize),
            open_scopes: OpenScopes::new(settings.max_size as usize),
            blocking: BlockingCommands::default(),
            settings,
            connections,
            created: Instant::now(),
            distrusted_before: AtomicU64::new(0),
            silent_before: AtomicU64::new(0),
            last_bump: AtomicU64::new(0),
        });
        inner.watch_over(&threads);
        Self { inner }
    }

    pub(crate) fn weak(&self) -> WeakPool {
        WeakPool { inner: Arc::downgrade(&self.inner) }
    }

    pub(crate) fn settings(&self) -> &Arc<Settings> {
        &self.inner.settings
    }

    pub(crate) fn shared(&self) -> &Arc<PoolShared> {
        &self.inner.shared
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.inner.shared.counters
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.inner.endpoint
    }

    pub(crate) fn open_scopes(&self) -> &OpenScopes {
        &self.inner.open_scopes
    }

    /// A link for one round trip.
    pub(crate) fn checkout(&self, deadline: Instant) -> Result<Checkout, CheckoutError> {
        let started = Instant::now();
        let checkout = self.permit(started, deadline);
        let mut checkout = checkout.and_then(|permit| Checkout::new(permit, started, deadline));
        self.count_checkout(checkout.as_mut());
        checkout
    }

    /// The same, where a permit is free; `None`: none is.
    pub(crate) fn try_checkout(
        &self,
        deadline: Instant,
    ) -> Result<Option<Checkout>, CheckoutError> {
        let started = Instant::now();
        let Some(slot) = self.inner.semaphore.try_acquire() else { return Ok(None) };
        let permit = Permit::new(self.clone(), slot);
        let mut checkout = Checkout::new(permit, started, deadline);
        self.count_checkout(checkout.as_mut());
        checkout.map(Some)
    }

    /// Begins to open a connection where there is none, and does not wait for it.
    pub(crate) fn warm(&self) {
        if self.inner.connections.state().connections > 0 {
            return;
        }
        if let Some(slot) = self.inner.semaphore.try_acquire() {
            let _permit = Permit::new(self.clone(), slot);
            drop(self.inner.connections.get_timeout(Duration::ZERO));
        }
    }

    fn count_checkout(&self, checkout: Result<&mut Checkout, &mut CheckoutError>) {
        let name = self.inner.name;
        match checkout {
            Ok(checkout) => {
                self.counters().checkouts.add();
                checkout.log_later(Level::TRACE, move || tracing::trace!(pool = name, "checkout"));
            }
            Err(error) => {
                self.counters().refused.add();
                match self.inner.logging.rate_limits.allow(LimitedEvent::CheckoutRefused) {
                    Some(suppressed) => {
                        tracing::warn!(pool = name, error = %format_args!("{error:#}"), suppressed, "checkout refused");
                    }
                    None => {
                        tracing::debug!(pool = name, error = %format_args!("{error:#}"), "checkout refused")
                    }
                }
            }
        }
    }

    pub(crate) fn logging(&self) -> &Arc<Logging> {
        &self.inner.logging
    }

    /// A link for a scope; see [`Checkout::with_ask`].
    pub(crate) fn pin(
        &self,
        origin: ScopeOrigin,
        deadline: Instant,
        asks: bool,
    ) -> Result<PinnedConnection, CheckoutError> {
        let checkout = self.checkout(deadline)?.with_ask(asks);
        Ok(self.inner.open_scopes.open(self, checkout, origin))
    }

    /// A connection if one is free; else one for a batch that the caller leads, unless
    /// another caller sends the request first.
    pub(crate) fn checkout_batched(
        &self,
        deadline: Instant,
        request: impl FnMut() -> BatchRequest,
    ) -> Result<BatchCheckout, CheckoutError> {
        // The leader needs one round trip. Allow four: a tracing subscriber may delay
        // it.
        let patience = 4 * self.settings().response_timeout;
        self.checkout_batched_within(deadline, patience, request)
    }

    /// The same; a job that was taken along by `deadline` is waited for until `patience` later.
    pub(crate) fn checkout_batched_within(
        &self,
        deadline: Instant,
        patience: Duration,
        mut request: impl FnMut() -> BatchRequest,
    ) -> Result<BatchCheckout, CheckoutError> {
        let started = Instant::now();
        let semaphore = &self.inner.semaphore;
        if let Some(slot) = semaphore.try_acquire() {
            let permit = Permit::new(self.clone(), slot);
            let mut alone = Checkout::new(permit, started, deadline);
            self.count_checkout(alone.as_mut());
            return alone.map(BatchCheckout::Alone);
        }
        let turn = self.waiting(started, |may_wait| {
            semaphore.acquire_batched(request(), deadline, patience, may_wait)
        });
        let mut led = turn.and_then(|turn| match turn {
            Acquired::Response(response) => Ok(BatchCheckout::Response(response)),
            Acquired::Permit(slot, request) => {
                let permit = Permit::new(self.clone(), slot);
                Ok(BatchCheckout::Lead(Checkout::new(permit, started, deadline)?, request))
            }
        });
        match &mut led {
            Ok(BatchCheckout::Alone(checkout) | BatchCheckout::Lead(checkout, _)) => {
                self.count_checkout(Ok(checkout))
            }
            // Another caller's connection was used.
            Ok(BatchCheckout::Response(_)) => {
                self.counters().checkouts.add();
                tracing::trace!(pool = self.inner.name, "checkout");
            }
            Err(error) => self.count_checkout(Err(error)),
        }
        led
    }

    /// The first waiting requests, as many as fit into one write with `bytes` that are
    /// there already.
    pub(crate) fn take_batch(
        &self,
        mut bytes: usize,
    ) -> Vec<BatchMember<BatchRequest, BatchResponse>> {
        let settings = &self.inner.settings;
        let (mut members, most) = (1, settings.max_group);
        self.inner.semaphore.take_batch(|request| {
            members += 1;
            bytes += request.bytes.len();
            members <= most && bytes <= settings.flush_bytes
        })
    }

    fn permit(&self, started: Instant, deadline: Instant) -> Result<Permit, CheckoutError> {
        let semaphore = &self.inner.semaphore;
        let slot = match semaphore.try_acquire() {
            Some(slot) => slot,
            None => self.waiting(started, |may_wait| semaphore.acquire(deadline, may_wait))?,
        };
        Ok(Permit::new(self.clone(), slot))
    }

    /// Waits at the gate, unless there is no point in it.
    fn waiting<T>(
        &self,
        started: Instant,
        mut wait: impl FnMut(&MayWait<'_>) -> Result<T, AcquireError<WouldDeadlock>>,
    ) -> Result<T, CheckoutError> {
        let inner = &self.inner;
        let mut warned = false;
        let granted = loop {
            let granted = wait(&|waits| match inner.open_scopes.check_wait(waits) {
                WaitCheck::Ok => Ok(()),
                WaitCheck::MayDeadlock(_) if warned => Ok(()),
                WaitCheck::MayDeadlock(holders) => Err(WouldDeadlock { certain: false, holders }),
                WaitCheck::Deadlock(holders) => Err(WouldDeadlock { certain: true, holders }),
            });
            let Err(AcquireError::Rejected(WouldDeadlock { certain: false, holders })) = granted
            else {
                break granted;
            };
            // Where no lock of ours is held: a log is the user's.
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
        match granted {
            Ok(granted) => Ok(granted),
            Err(AcquireError::Closed) => Err(CheckoutError::Closed),
            Err(AcquireError::Rejected(WouldDeadlock { holders, .. })) => {
                Err(CheckoutError::WouldDeadlock { holders })
            }
            Err(AcquireError::TimedOut { waiters }) => {
                let idle = inner.connections.state().idle_connections;
                Err(CheckoutError::Timeout(Box::new(CheckoutTimeout {
                    waited: started.elapsed(),
                    max_size: inner.settings.max_size,
                    in_use: inner.in_use() as u32,
                    idle,
                    waiters,
                    holders: self.scopes(),
                    last_connect_error: inner.shared.connect_error().map(|(_, error)| error),
                })))
            }
        }
    }

    /// The open scopes and the commands that wait on the server, oldest first.
    pub(crate) fn scopes(&self) -> Vec<OpenScope> {
        let mut scopes = self.inner.open_scopes.scopes();
        scopes.extend(self.inner.blocking.scopes());
        scopes.sort_by_key(|scope| std::cmp::Reverse(scope.age));
        scopes
    }

    /// No connection is given from now on, and commands that wait on the server are ended.
    pub(crate) fn close(&self) {
        self.inner.semaphore.close();
        self.inner.blocking.close();
    }

    /// Its server serves no slot any more: waiting callers are redirected, open scopes keep
    /// their connection to their end.
    #[cfg(feature = "cluster")]
    pub(crate) fn retire(&self) {
        self.inner.semaphore.close();
        self.inner.shared.end();
    }

    /// Waits until no connection is held, takes back what is still held at `deadline`, and closes
    /// every connection: the idle ones, the ones that calls use, and the ones that are being opened.
    /// Returns how many scopes were taken back.
    pub(crate) fn drain(&self, deadline: Instant) -> usize {
        let inner = &self.inner;
        while inner.in_use() > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        // Whatever still comes back is closed, and nothing is opened in its place.
        inner.shared.end();
        let taken = inner.open_scopes.reclaim_all();
        if inner.in_use() > 0 {
            // Calls that are under way fail now.
            inner.shared.shut_down_sockets();
        }
        // Not for longer: the sweeper closes what arrives later.
        let until = deadline.max(Instant::now() + FAREWELL);
        while !inner.sweep() {
            if Instant::now() >= until {
                inner.shared.shut_down_sockets();
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut later = DeferredEvents::default();
        later.collect();
        later.write();
        taken
    }

    pub(crate) fn status(&self) -> PoolStatus {
        let inner = &self.inner;
        let state = inner.connections.state();
        PoolStatus {
            name: inner.name,
            size: state.connections,
            max_size: inner.settings.max_size,
            in_use: inner.in_use() as u32,
            idle: state.idle_connections,
            waiting: inner.semaphore.waiting(),
            counts: self.counters().counts(),
            scopes: self.scopes(),
            last_connect_error: inner.shared.connect_error().map(|(_, error)| error),
            nodes: Vec::new(),
            redirections: 0,
        }
    }
}

/// In a forked child the connections and the threads are the parent's, and what they share may be locked for
/// ever.
impl Drop for Inner {
    fn drop(&mut self) {
        if self.settings.is_forked_child() {
            std::mem::forget(self.connections.clone());
        }
    }
}

impl Inner {
    /// Number of permits that callers hold.
    fn in_use(&self) -> usize {
        (self.settings.max_size as usize).saturating_sub(self.semaphore.free())
    }

    /// Closes the idle connections of a pool that has ended. True: none is left but those that calls
    /// still have, which are closed when they come back.
    fn sweep(&self) -> bool {
        // r2d2 lists a connection a moment after it was opened, so once is not enough.
        while let Some(mut connection) = self.connections.try_get() {
            connection.taint(Taint::Outdated);
        }
        // A caller has one connection at most, and gives it back before its permit.
        self.shared.alive() <= self.in_use()
    }

    fn generation(&self) -> u64 {
        self.shared.generation(&self.endpoint)
    }

    /// Nanoseconds since the pool was made; they last for 584 years.
    fn stamp(&self, instant: Instant) -> u64 {
        instant.saturating_duration_since(self.created).as_nanos() as u64
    }

    /// Has the reaper come by often enough for the shortest limit there is.
    fn watch_over(self: &Arc<Self>, threads: &ScheduledThreadPool) {
        let limit = self.settings.max_pin_time;
        let warning = self.settings.pin_warning;
        let shortest = warning.map_or(limit, |warning| warning.min(limit));
        let period = (shortest / 4).clamp(Duration::from_millis(5), Duration::from_secs(1));
        let pool = Arc::downgrade(self);
        let mut seen = ReaperState::default();
        threads.execute_at_dynamic_rate(period, move || {
            let pool = pool.upgrade()?;
            pool.open_scopes.reclaim_unused(&mut seen, limit, warning, &pool.logging.log_thread);
            if pool.shared.closed.load(Ordering::Acquire) && !pool.sweep() {
                return Some(SWEEP.min(period));
            }
            Some(period)
        });
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("name", &self.inner.name)
            .field("endpoint", &self.inner.endpoint)
            .finish_non_exhaustive()
    }
}
