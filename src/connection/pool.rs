//! A pool of links behind a fair gate.
//!
//! r2d2 opens links, backs off, and closes the ones that idle for too long. Who gets one, when it
//! may be trusted and when it must be replaced is decided here.
//!
//! Never: an r2d2 `get` without a permit, so that none of them waits for another scope.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use scheduled_thread_pool::ScheduledThreadPool;

use super::checkout::{Gate, Refused};
use super::link::{Deadline, Link};
use super::manager::{Health, LinkManager, Purpose};
use super::registry::{Outlook, Owner, Pin, Registry, Seen};
use crate::config::Settings;
use crate::error::{CheckoutError, CheckoutTimeout, Error, LinkError, LinkErrorKind};
use crate::observe::{Counters, PoolStatus};
use crate::topology::Endpoint;
use crate::wire::state::Taint;

/// How long one look into r2d2's pool lasts: connecting goes on behind it, and a verdict of the
/// server's (a wrong password, say) is to be noticed in between.
const LOOK: Duration = Duration::from_millis(50);

/// A pool of links behind a fair gate. Clones are the same pool.
#[derive(Clone)]
pub(crate) struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    name: &'static str,
    endpoint: Endpoint,
    settings: Arc<Settings>,
    health: Arc<Health>,
    gate: Gate,
    registry: Registry,
    links: r2d2::Pool<LinkManager>,
    epoch: Instant,
    /// Links last proven before this (in nanoseconds since `epoch`) are not trusted: another one
    /// was found dead then.
    distrusted_before: AtomicU64,
    /// Links last proven before this are closed unprobed: another one was found silent then, and
    /// asking each of them would cost a timeout each.
    silent_before: AtomicU64,
    last_bump: AtomicU64,
}

impl Pool {
    pub(crate) fn new(
        name: &'static str,
        purpose: Purpose,
        endpoint: Endpoint,
        settings: Arc<Settings>,
        threads: Arc<ScheduledThreadPool>,
    ) -> Self {
        let health = Arc::new(Health::default());
        let links = r2d2::Pool::builder()
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
            .build_unchecked(LinkManager {
                endpoint: endpoint.clone(),
                settings: Arc::clone(&settings),
                purpose,
                health: Arc::clone(&health),
            });
        let inner = Arc::new(Inner {
            name,
            endpoint,
            health,
            gate: Gate::new(settings.max_size as usize),
            registry: Registry::new(settings.max_size as usize),
            settings,
            links,
            epoch: Instant::now(),
            distrusted_before: AtomicU64::new(0),
            silent_before: AtomicU64::new(0),
            last_bump: AtomicU64::new(0),
        });
        inner.watch_over(&threads);
        Self { inner }
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.inner.health.counters
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.inner.endpoint
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.inner.registry
    }

    /// A link for one round trip.
    pub(crate) fn lease(&self, deadline: Instant) -> Result<Lease, CheckoutError> {
        let started = Instant::now();
        let leased = self.permit(started, deadline).and_then(|permit| {
            let mut lease = Lease { link: None, permit };
            lease.fetch(deadline)?;
            Ok(lease)
        });
        match &leased {
            Ok(_) => {
                self.counters().checkouts.add();
                tracing::trace!(pool = self.inner.name, "checkout");
            }
            Err(error) => {
                self.counters().refused.add();
                tracing::debug!(pool = self.inner.name, %error, "checkout refused");
            }
        }
        leased
    }

    /// A link for a scope.
    pub(crate) fn pin(&self, owner: Owner, deadline: Instant) -> Result<Pin, CheckoutError> {
        let lease = self.lease(deadline)?;
        Ok(self.inner.registry.open(self, lease, owner))
    }

    fn permit(&self, started: Instant, deadline: Instant) -> Result<Permit, CheckoutError> {
        let inner = &self.inner;
        if let Some(slot) = inner.gate.try_acquire() {
            return Ok(Permit { pool: self.clone(), slot });
        }
        if let Outlook::Doubtful(holders) = inner.registry.outlook(&inner.gate.waiting_threads()) {
            for scope in holders {
                tracing::warn!(%scope, "every thread that began a scope waits for a connection");
            }
        }
        let granted =
            inner.gate.acquire(deadline, |waiting| match inner.registry.outlook(waiting) {
                Outlook::Open | Outlook::Doubtful(_) => Ok(()),
                Outlook::Deadlock(holders) => Err(holders),
            });
        match granted {
            Ok(slot) => Ok(Permit { pool: self.clone(), slot }),
            Err(Refused::Closed) => Err(CheckoutError::Closed),
            Err(Refused::Hopeless(holders)) => Err(CheckoutError::WouldDeadlock { holders }),
            Err(Refused::TimedOut { waiters }) => {
                let idle = inner.links.state().idle_connections;
                Err(CheckoutError::Timeout(Box::new(CheckoutTimeout {
                    waited: started.elapsed(),
                    max_size: inner.settings.max_size,
                    in_use: inner.settings.max_size - inner.gate.free() as u32,
                    idle,
                    waiters,
                    holders: inner.registry.scopes(),
                    last_connect_error: inner.health.connect_error().map(|(_, error)| error),
                })))
            }
        }
    }

    /// Nobody gets a connection from now on.
    pub(crate) fn close(&self) {
        self.inner.gate.close();
    }

    /// Waits until nobody holds a connection, takes back what is still held at `deadline`, and
    /// closes the idle ones. Says how many scopes were taken back.
    pub(crate) fn drain(&self, deadline: Instant) -> usize {
        let everything = self.inner.settings.max_size as usize;
        while self.inner.gate.free() < everything && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        let taken = self.inner.registry.reap_all();
        while let Some(mut link) = self.inner.links.try_get() {
            link.taint(Taint::Outdated);
        }
        taken
    }

    pub(crate) fn status(&self) -> PoolStatus {
        let inner = &self.inner;
        let state = inner.links.state();
        PoolStatus {
            name: inner.name,
            size: state.connections,
            max_size: inner.settings.max_size,
            in_use: inner.settings.max_size - inner.gate.free() as u32,
            idle: state.idle_connections,
            waiting: inner.gate.waiting(),
            counts: self.counters().counts(),
            scopes: inner.registry.scopes(),
            last_connect_error: inner.health.connect_error().map(|(_, error)| error),
        }
    }
}

impl Inner {
    /// Nanoseconds since the pool was made; they last for 584 years.
    fn stamp(&self, instant: Instant) -> u64 {
        instant.saturating_duration_since(self.epoch).as_nanos() as u64
    }

    /// Has the reaper come by often enough for the shortest limit there is.
    fn watch_over(self: &Arc<Self>, threads: &ScheduledThreadPool) {
        let limit = self.settings.max_pin_time;
        let warning = self.settings.pin_warning;
        let shortest = warning.map_or(limit, |warning| warning.min(limit));
        let period = (shortest / 4).clamp(Duration::from_millis(5), Duration::from_secs(1));
        let pool = Arc::downgrade(self);
        let mut seen = Seen::default();
        threads.execute_at_dynamic_rate(period, move || {
            let pool = pool.upgrade()?;
            pool.registry.reap(&mut seen, limit, warning);
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

/// The right to one link.
struct Permit {
    pool: Pool,
    slot: usize,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.pool.inner.gate.release(self.slot);
        tracing::trace!(pool = self.pool.inner.name, "check in");
    }
}

/// The right to one link, and the link where there is one. Dropped, the link goes back first.
pub(crate) struct Lease {
    link: Option<r2d2::PooledConnection<LinkManager>>,
    permit: Permit,
}

impl Lease {
    pub(crate) fn slot(&self) -> usize {
        self.permit.slot
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.permit.pool
    }

    /// The link, opened or taken from the pool if there is none yet.
    pub(crate) fn link(&mut self, deadline: Instant) -> Result<&mut Link, Error> {
        if self.link.is_none() {
            self.fetch(deadline)?;
        }
        match &mut self.link {
            Some(link) => Ok(link),
            None => Err(CheckoutError::Closed.into()),
        }
    }

    /// The link as it is.
    pub(crate) fn current(&mut self) -> Option<&mut Link> {
        self.link.as_deref_mut()
    }

    pub(crate) fn taint(&mut self, reason: Taint) {
        if let Some(link) = &mut self.link {
            link.taint(reason);
        }
    }

    /// Whether the link answered so lately that it need not be asked again.
    pub(crate) fn is_trusted(&self) -> bool {
        let inner = &self.permit.pool.inner;
        self.link.as_ref().is_some_and(|link| {
            link.proven().elapsed() <= inner.settings.trust_window
                && inner.stamp(link.proven()) >= inner.distrusted_before.load(Ordering::Acquire)
        })
    }

    /// The link was found dead: closes it, and draws the conclusions for the others.
    pub(crate) fn found_dead(&mut self, cause: &LinkError) {
        let inner = &self.permit.pool.inner;
        let now = inner.stamp(Instant::now());
        inner.distrusted_before.fetch_max(now, Ordering::AcqRel);
        if cause.kind() == LinkErrorKind::TimedOut {
            inner.silent_before.fetch_max(now, Ordering::AcqRel);
        }
        // Its state says why, and has_broken reads it.
        self.link = None;
    }

    /// The server said that it is no longer the one to write to: all older links go, at most once
    /// a second. A link from before the last time this happened adds nothing new; one from after
    /// it does, if it could write once: a server that was read-only all along has not changed.
    pub(crate) fn server_changed(&mut self) {
        let Some(link) = &self.link else { return };
        let inner = &self.permit.pool.inner;
        let generation = inner.health.generation.load(Ordering::Acquire);
        let now = inner.stamp(Instant::now()).max(1);
        let last = inner.last_bump.load(Ordering::Acquire);
        let too_soon = last != 0 && now - last.min(now) < Duration::from_secs(1).as_nanos() as u64;
        let unchanged = generation > 0 && !link.has_written();
        if link.generation() < generation || unchanged || too_soon {
            return;
        }
        let mine = inner.last_bump.compare_exchange(last, now, Ordering::AcqRel, Ordering::Acquire);
        if mine.is_ok() {
            inner.health.generation.fetch_add(1, Ordering::AcqRel);
            tracing::warn!(
                server.address = inner.endpoint.address(),
                "the server is read-only or without a master: all older connections are replaced"
            );
        }
    }

    fn fetch(&mut self, deadline: Instant) -> Result<(), CheckoutError> {
        let inner = Arc::clone(&self.permit.pool.inner);
        let started = Instant::now();
        loop {
            let found = match inner.links.try_get() {
                Some(link) => Some(link),
                None => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    inner.links.get_timeout(left.min(LOOK)).ok()
                }
            };
            let now = Instant::now();
            let failure = inner.health.connect_error().filter(|(at, _)| *at >= started);
            match (found, failure) {
                (Some(mut link), _) => {
                    let silent = inner.silent_before.load(Ordering::Acquire);
                    let generation = inner.health.generation.load(Ordering::Acquire);
                    if inner.stamp(link.proven()) < silent {
                        link.taint(Taint::TimedOut);
                    } else if link.generation() < generation {
                        link.taint(Taint::Outdated);
                    } else if link.verdict(now, generation).is_some() {
                        link.taint(Taint::Lifetime);
                    } else {
                        self.link = Some(link);
                        return Ok(());
                    }
                }
                (None, Some((_, source))) if !source.is_passing() || now >= deadline => {
                    return Err(CheckoutError::Connect { waited: started.elapsed(), source });
                }
                (None, None) if now >= deadline => {
                    // A try to connect is still under way.
                    let source = LinkError::timed_out("no connection was established in time");
                    return Err(CheckoutError::Connect { waited: started.elapsed(), source });
                }
                (None, _) => {}
            }
        }
    }

    /// A deadline for one exchange with the server, by the pool's setting.
    pub(crate) fn response_deadline(&self) -> Deadline {
        Deadline::after(self.permit.pool.inner.settings.response_timeout)
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("slot", &self.permit.slot).finish_non_exhaustive()
    }
}
