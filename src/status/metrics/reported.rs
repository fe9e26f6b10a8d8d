//! The metrics of a session manager, with OpenTelemetry's names for the pools.
//!
//! Events are reported where they happen. Levels are reported by the manager's own thread, once a second at
//! most, as differences to the last report: pools with one name add up, and a pool that ends leaves
//! nothing. Handles are registered when a pool is made, or by that thread once the program has
//! installed a recorder. A gauge that each checkout changes would cost every call, and be wrong for ever
//! with a recorder that comes late. The cost: a level that is shorter than a second shows in the histograms
//! only, and a recorder type of size zero is not found.

use std::panic::{AssertUnwindSafe, RefUnwindSafe, UnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use metrics::{Counter, Gauge, Histogram, Unit};
use scheduled_thread_pool::ScheduledThreadPool;

use crate::error::checkout::CheckoutError;

/// The label with the pool's name.
const POOL: &str = "db.client.connection.pool.name";
/// The label with a connection's state.
const STATE: &str = "db.client.connection.state";
/// The label with a transaction's outcome, as the span has it.
const OUTCOME: &str = "rediscope.outcome";

/// The outcomes of transactions, the most frequent first.
const OUTCOMES: [&str; 15] = [
    "committed",
    "conflict",
    "discarded",
    "rejected",
    "not sent",
    "in doubt",
    "partly applied",
    "condition failed",
    "already committed",
    "lock lost",
    "pin expired",
    "not isolated",
    "not replicated",
    "key not kept",
    "other",
];

/// The end of the name of the pool that has transactions.
const TRANSACTIONS: &str = "/transactional";

/// Interval between two reports of the levels of the locks.
const INTERVAL: Duration = Duration::from_secs(1);

/// When something began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Started(Instant);

impl Started {
    #[inline]
    pub(crate) fn now() -> Self {
        Self(Instant::now())
    }
}

/// Since when a connection is lent. `None`: it is not, or no recorder was installed then.
#[derive(Debug, Default)]
pub(crate) struct InUse(Option<Instant>);

/// Handles that are registered once there is a recorder.
#[derive(Debug)]
struct Registered<H> {
    name: OnceLock<String>,
    handles: OnceLock<H>,
}

/// Calls the program's recorder, which may panic. No outcome, permit or thread depends on it, and a second
/// panic would end the process. The program's panic hook has the panic.
fn guarded<T>(call: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(call)).ok()
}

/// A recorder that panics leaves nothing of these types half done.
impl<H> UnwindSafe for Registered<H> {}
impl<H> RefUnwindSafe for Registered<H> {}

impl<H> Default for Registered<H> {
    fn default() -> Self {
        Self { name: OnceLock::new(), handles: OnceLock::new() }
    }
}

impl<H> Registered<H> {
    #[inline]
    fn get(&self) -> Option<&H> {
        self.handles.get()
    }

    /// Registers the handles, unless they are or the program has installed no recorder.
    fn register(&self, new: impl FnOnce(&str) -> H) -> Option<&H> {
        if self.handles.get().is_none() {
            let name = self.name.get()?;
            // The facade's own recorder, which drops everything, is the one without any state.
            if metrics::with_recorder(|recorder| size_of_val(recorder) == 0) {
                return None;
            }
            let handles = guarded(|| new(name))?;
            return Some(self.handles.get_or_init(|| handles));
        }
        self.handles.get()
    }
}

/// The metrics of the pools of one purpose, and of their transactions. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct PoolMetrics {
    registered: Arc<Registered<PoolHandles>>,
}

#[derive(Debug)]
struct PoolHandles {
    idle: Gauge,
    used: Gauge,
    lanes: Gauge,
    max: Gauge,
    idle_min: Gauge,
    pending: Gauge,
    timeouts: Count,
    wait_time: Histogram,
    use_time: Histogram,
    create_time: Histogram,
    /// `None`: the pool is not that of the transactions.
    transactions: Option<TransactionHandles>,
}

#[derive(Debug)]
struct TransactionHandles {
    outcomes: [Count; OUTCOMES.len()],
    attempts: Histogram,
    duration: Histogram,
}

impl PoolHandles {
    fn new(pool: &str) -> Self {
        let label = || (POOL, pool.to_owned());
        let count = |state: &'static str| {
            let labels = [label(), (STATE, state.to_owned())];
            metrics::gauge!("db.client.connection.count", &labels)
        };
        describe_pools();
        let has_transactions = pool.ends_with(TRANSACTIONS);
        Self {
            idle: count("idle"),
            used: count("used"),
            lanes: count("lane"),
            max: metrics::gauge!("db.client.connection.max", &[label()]),
            idle_min: metrics::gauge!("db.client.connection.idle.min", &[label()]),
            pending: metrics::gauge!("db.client.connection.pending_requests", &[label()]),
            timeouts: Count::new(metrics::counter!("db.client.connection.timeouts", &[label()])),
            wait_time: metrics::histogram!("db.client.connection.wait_time", &[label()]),
            use_time: metrics::histogram!("db.client.connection.use_time", &[label()]),
            create_time: metrics::histogram!("db.client.connection.create_time", &[label()]),
            transactions: has_transactions.then(|| TransactionHandles::new(pool)),
        }
    }
}

impl TransactionHandles {
    fn new(pool: &str) -> Self {
        let label = || (POOL, pool.to_owned());
        let outcome = |outcome: &'static str| {
            let labels = [label(), (OUTCOME, outcome.to_owned())];
            Count::new(metrics::counter!("rediscope.transaction.outcomes", &labels))
        };
        describe_transactions();
        Self {
            outcomes: OUTCOMES.map(outcome),
            attempts: metrics::histogram!("rediscope.transaction.attempts", &[label()]),
            duration: metrics::histogram!("rediscope.transaction.duration", &[label()]),
        }
    }

    fn outcome(&self, outcome: &str) {
        let at = OUTCOMES.iter().position(|known| *known == outcome);
        if let Some(counter) = self.outcomes.get(at.unwrap_or(OUTCOMES.len() - 1)) {
            counter.add_one();
        }
    }
}

fn describe_pools() {
    use metrics::{describe_counter as counter, describe_gauge as gauge};
    gauge!(
        "db.client.connection.count",
        Unit::Count,
        "Connections that are open, in the state of the label"
    );
    gauge!("db.client.connection.max", Unit::Count, "Maximum number of connections");
    gauge!("db.client.connection.idle.min", Unit::Count, "Minimum number of idle connections");
    gauge!(
        "db.client.connection.pending_requests",
        Unit::Count,
        "Calls that wait for a connection"
    );
    counter!(
        "db.client.connection.timeouts",
        Unit::Count,
        "Calls that got no connection within checkout_timeout, because all were in use"
    );
    let times = [
        ("db.client.connection.wait_time", "Time until a call got a connection"),
        ("db.client.connection.use_time", "Time from checkout to return of a connection"),
        ("db.client.connection.create_time", "Time to open a connection, with the handshake"),
    ];
    for (name, text) in times {
        metrics::describe_histogram!(name, Unit::Seconds, text);
    }
}

fn describe_transactions() {
    use metrics::{describe_counter as counter, describe_histogram as histogram};
    counter!("rediscope.transaction.outcomes", Unit::Count, "Transactions that ended, by outcome");
    histogram!(
        "rediscope.transaction.attempts",
        Unit::Count,
        "Attempts of a transaction until it ended"
    );
    histogram!(
        "rediscope.transaction.duration",
        Unit::Seconds,
        "Time of a transaction, with its attempts"
    );
}

impl PoolMetrics {
    pub(crate) const ARE_REPORTED: bool = true;

    /// Sets the name of the pools, and registers the handles. `name`: the setting, or nothing for the
    /// server's `address`.
    pub(crate) fn name(&self, name: &str, address: impl FnOnce() -> String, pool: &'static str) {
        let base = if name.is_empty() { address() } else { name.to_owned() };
        let _: &String = self.registered.name.get_or_init(|| format!("{base}/{pool}"));
        let _: Option<&PoolHandles> = self.registered.register(PoolHandles::new);
    }

    /// A connection was opened.
    pub(crate) fn created(&self, begun: Started) {
        self.report(|handles| handles.create_time.record(begun.0.elapsed()));
    }

    /// A caller that began to wait at `started` got a connection.
    #[inline]
    pub(crate) fn checked_out(&self, started: Instant) -> InUse {
        let Some(handles) = self.registered.get() else { return InUse(None) };
        let now = Instant::now();
        guarded(|| handles.wait_time.record(now.saturating_duration_since(started)));
        InUse(Some(now))
    }

    /// A caller returned its connection.
    #[inline]
    pub(crate) fn returned(&self, in_use: &mut InUse) {
        if let Some(since) = in_use.0.take() {
            self.report(|handles| handles.use_time.record(since.elapsed()));
        }
    }

    /// A call got no connection.
    pub(crate) fn refused(&self, error: &CheckoutError) {
        if let CheckoutError::Timeout(_) = error {
            self.report(|handles| handles.timeouts.add_one());
        }
    }

    /// A transaction ended.
    #[inline]
    pub(crate) fn ended(&self, outcome: &'static str, attempts: u32, begun: Started) {
        self.report_transaction(|handles| {
            handles.outcome(outcome);
            guarded(|| handles.attempts.record(attempts));
            guarded(|| handles.duration.record(begun.0.elapsed()));
        });
    }

    /// A transaction ended without a commit.
    pub(crate) fn ended_early(&self, outcome: &'static str) {
        self.report_transaction(|handles| handles.outcome(outcome));
    }

    #[inline]
    fn report(&self, report: impl FnOnce(&PoolHandles)) {
        if let Some(handles) = self.registered.get() {
            guarded(|| report(handles));
        }
    }

    #[inline]
    fn report_transaction(&self, report: impl FnOnce(&TransactionHandles)) {
        self.report(|handles| {
            if let Some(handles) = &handles.transactions {
                report(handles);
            }
        });
    }
}

/// A number of events. What a recorder that panics has not taken is in the next report.
#[derive(Debug)]
struct Count {
    counter: Counter,
    owed: AtomicU64,
}

impl Count {
    fn new(counter: Counter) -> Self {
        Self { counter, owed: AtomicU64::new(0) }
    }

    fn add_one(&self) {
        let owed = match self.owed.load(Ordering::Relaxed) {
            0 => 0,
            _ => self.owed.swap(0, Ordering::Relaxed),
        };
        if guarded(|| self.counter.increment(1 + owed)).is_none() {
            self.owed.fetch_add(1 + owed, Ordering::Relaxed);
        }
    }
}

/// A level, as a recorder has taken it last.
#[derive(Debug, Default)]
struct Level(i64);

impl Level {
    fn report(&mut self, to: &Gauge, now: i64) {
        let taken = guarded(|| match now - self.0 {
            0 => {}
            less if less < 0 => to.decrement(less.unsigned_abs() as f64),
            more => to.increment(more as f64),
        });
        if taken.is_some() {
            self.0 = now;
        }
    }
}

/// The levels of one pool. Its drop takes them back.
#[derive(Debug)]
pub(crate) struct PoolLevels {
    metrics: PoolMetrics,
    sizes: [u32; 2],
    levels: [Level; 6],
}

impl PoolLevels {
    /// `sizes`: `max_size` and `min_idle`.
    pub(crate) fn new(metrics: &PoolMetrics, sizes: [u32; 2]) -> Self {
        Self { metrics: metrics.clone(), sizes, levels: Default::default() }
    }

    /// `now`: the connections that are idle, used and in lanes, and the calls that wait.
    pub(crate) fn report(&mut self, now: impl FnOnce() -> [usize; 4]) {
        if self.metrics.registered.register(PoolHandles::new).is_some() {
            let [max_size, min_idle] = self.sizes.map(i64::from);
            let [idle, used, lanes, waiting] = now().map(|number| number as i64);
            self.set([idle, used, lanes, waiting, max_size, min_idle]);
        }
    }

    fn set(&mut self, now: [i64; 6]) {
        let Some(handles) = self.metrics.registered.get() else { return };
        let PoolHandles { idle, used, lanes, pending, max, idle_min, .. } = handles;
        let gauges = [idle, used, lanes, pending, max, idle_min];
        for ((level, gauge), now) in self.levels.iter_mut().zip(gauges).zip(now) {
            level.report(gauge, now);
        }
    }
}

impl Drop for PoolLevels {
    fn drop(&mut self) {
        self.set([0; 6]);
    }
}

/// The metrics of the locks. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct LockMetrics {
    registered: Arc<Registered<LockHandles>>,
}

#[derive(Debug)]
struct LockHandles {
    held: Gauge,
    waiting: Gauge,
    acquire_time: Histogram,
    lost: Count,
}

impl LockHandles {
    fn new(pool: &str) -> Self {
        use metrics::{describe_counter, describe_gauge, describe_histogram};
        describe_gauge!("rediscope.lock.held", Unit::Count, "Locks that are held");
        describe_gauge!("rediscope.lock.waiting", Unit::Count, "Calls that wait for a lock");
        describe_histogram!(
            "rediscope.lock.acquire_time",
            Unit::Seconds,
            "Time until a call got its lock"
        );
        describe_counter!("rediscope.lock.lost", Unit::Count, "Locks that were lost");
        let label = [(POOL, pool.to_owned())];
        Self {
            held: metrics::gauge!("rediscope.lock.held", &label),
            waiting: metrics::gauge!("rediscope.lock.waiting", &label),
            acquire_time: metrics::histogram!("rediscope.lock.acquire_time", &label),
            lost: Count::new(metrics::counter!("rediscope.lock.lost", &label)),
        }
    }
}

impl LockMetrics {
    /// Gives the locks the name of their pool, and registers the handles.
    pub(crate) fn name_after(&self, pool: &PoolMetrics) {
        if let Some(name) = pool.registered.name.get() {
            let _: &String = self.registered.name.get_or_init(|| name.clone());
            let _: Option<&LockHandles> = self.registered.register(LockHandles::new);
        }
    }

    /// A call that began at `started` got its lock.
    pub(crate) fn acquired(&self, started: Instant) {
        if let Some(handles) = self.registered.get() {
            guarded(|| handles.acquire_time.record(started.elapsed()));
        }
    }

    /// A lock was lost.
    pub(crate) fn lost(&self) {
        if let Some(handles) = self.registered.get() {
            handles.lost.add_one();
        }
    }

    /// Reports the locks that are held and the calls that wait, from one of the manager's threads, until
    /// `now` returns `None`.
    pub(crate) fn report(
        &self,
        threads: &ScheduledThreadPool,
        now: impl Fn() -> Option<[u64; 2]> + Send + 'static,
    ) {
        let mut levels = LockLevels { metrics: self.clone(), levels: Default::default() };
        threads.execute_at_dynamic_rate(INTERVAL, move || {
            let now = now()?;
            let _: Option<&LockHandles> = levels.metrics.registered.register(LockHandles::new);
            levels.set(now.map(|number| number as i64));
            Some(INTERVAL)
        });
    }
}

/// The levels of the locks. Its drop takes them back.
#[derive(Debug)]
struct LockLevels {
    metrics: LockMetrics,
    levels: [Level; 2],
}

impl LockLevels {
    fn set(&mut self, now: [i64; 2]) {
        let Some(handles) = self.metrics.registered.get() else { return };
        let gauges = [&handles.held, &handles.waiting];
        for ((level, gauge), now) in self.levels.iter_mut().zip(gauges).zip(now) {
            level.report(gauge, now);
        }
    }
}

impl Drop for LockLevels {
    fn drop(&mut self) {
        self.set([0; 2]);
    }
}

#[cfg(test)]
#[path = "../../../tests/unit/metrics.rs"]
mod tests;
