//! A former fault: 64 callers try for one lock with a wait that is too short, while the connection for
//! wakeups is killed, the server is paused and restarted.

use crate::SOON;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rediscope::error::LockError;
use rediscope::status::LockStatus;
use rediscope::{Builder, Error, SessionManager};

use super::contenders::Contenders;
use super::faults::{Faults, inject, stalled, stalls};
use super::listen;
use rediscope_testing::server::Server;
use rediscope_testing::{eventually, rss_bytes, try_for};

const CALLERS: u64 = 64;
pub(crate) const WAIT: Duration = Duration::from_millis(50);
pub(crate) const LEASE: Duration = Duration::from_millis(100);
const HOLD: std::ops::RangeInclusive<u64> = 20..=200;
const RESPONSE: Duration = Duration::from_millis(500);
/// A try is many turns of its caller, each of which may come a little late. One more exchange would be later.
const GRACE: Duration = Duration::from_millis(450);
/// In all, and for each try. A permit or waiter that stayed behind at each would be more.
const GROWTH: [u64; 2] = [4 << 20, 4];
const CHANNEL: &str = "rediscope:lock:{l}:wake";

/// What it came to.
#[derive(Debug, Default)]
pub(crate) struct Report {
    seed: u64,
    tries: u64,
    acquired: u64,
    timeouts: u64,
    subscribing: u64,
    /// The server did not reply until the wait was over.
    unreachable: u64,
    /// Calls that were dropped before they had ended.
    dropped: u64,
    strange: Vec<String>,
    longest: Duration,
    /// Waits longer than a wait and a `response_timeout`.
    long: u64,
    /// Of these the most by which one was longer than the machine stood still meanwhile.
    unexplained: Duration,
    stall: Duration,
    most_waiting: usize,
    faults: Faults,
    locks: LockStatus,
    in_use: u32,
    /// Tasks that the last handle has left.
    tasks: usize,
    subscribers: u64,
    clients: usize,
    /// After the first tenth of the tries and after the last.
    memory: [u64; 2],
    /// Keys that live for ever, or for longer than a late request may take.
    keys: Vec<String>,
    took: Duration,
}

/// What the calls returned.
#[derive(Default)]
pub(crate) struct Tally {
    done: AtomicU64,
    acquired: AtomicU64,
    timeouts: AtomicU64,
    subscribing: AtomicU64,
    unreachable: AtomicU64,
    dropped: AtomicU64,
    longest: AtomicU64,
    long: Mutex<Vec<(Instant, Instant)>>,
    strange: Mutex<Vec<String>>,
}

/// One caller.
pub(crate) struct Caller {
    pub(crate) tries: u64,
    pub(crate) random: Rng,
}

impl Caller {
    /// The time for which its next guard lives.
    pub(crate) fn holds(&mut self) -> Duration {
        let long = self.random.bool();
        if long { Duration::from_millis(self.random.u64(HOLD)) } else { Duration::ZERO }
    }
}

pub(crate) fn run(seed: u64, tries: u64) -> Report {
    listen::begin();
    let begun = Instant::now();
    let server = Server::start();
    let contenders = Contenders::new(builder(&server));
    let mut random = Rng::with_seed(seed);
    let (tally, over) = (Arc::<Tally>::default(), AtomicBool::new(false));
    let mut report = Report { seed, tries, ..Report::default() };
    let (mut early, mut still) = (0, Vec::new());
    thread::scope(|scope| {
        let (tally, over, contenders, server) = (&tally, &over, &contenders, &server);
        // Also if this panics: the others would go on for ever.
        scopeguard::defer! { over.store(true, Relaxed) }
        let callers = (0..CALLERS).map(|nth| Caller {
            tries: tries / CALLERS + u64::from(nth < tries % CALLERS),
            random: random.fork(),
        });
        let callers = callers.collect();
        let random = Rng::with_seed(random.u64(..));
        let injector = scope.spawn(move || inject(server, random, over));
        let meter = scope.spawn(|| stalls(over));
        let watcher = scope.spawn(|| {
            let (mut most, mut early) = (0, None);
            while !over.load(Relaxed) {
                most = most.max(contenders.status().locks.waiting);
                if early.is_none() && tally.done.load(Relaxed) >= tries / 10 {
                    early = rss_bytes();
                }
                thread::sleep(Duration::from_millis(20));
            }
            (most, early)
        });
        contenders.contend(tally, callers);
        over.store(true, Relaxed);
        report.faults = injector.join().expect("the injector");
        still = meter.join().expect("the meter");
        let (most, first) = watcher.join().expect("the watcher");
        (report.most_waiting, early) = (most, first.unwrap_or(0));
    });
    report.memory = [early, rss_bytes().unwrap_or(0)];
    report.add(&tally, &still);
    report.settle(&server, contenders);
    report.took = begun.elapsed();
    report
}

fn builder(server: &Server) -> Builder {
    SessionManager::builder(server.url())
        .max_size(16)
        .connect_timeout(RESPONSE)
        .response_timeout(RESPONSE)
        .checkout_timeout(Duration::from_secs(3))
}

impl Tally {
    /// Adds what a call returned, which was made at `begun`, and returns the guard. `None`: it was dropped. `live`:
    /// whether its last wait was with a subscription.
    pub(crate) fn add<G>(
        &self,
        begun: Instant,
        tried: Option<Result<G, Error>>,
        live: Option<bool>,
    ) -> Option<G> {
        let count = |counter: &AtomicU64| _ = counter.fetch_add(1, Relaxed);
        count(&self.done);
        let Some(tried) = tried else {
            count(&self.dropped);
            return None;
        };
        let ended = Instant::now();
        self.longest.fetch_max((ended - begun).as_micros() as u64, Relaxed);
        if ended - begun > WAIT + RESPONSE {
            self.long.lock().unwrap().push((begun, ended));
        }
        match tried {
            Ok(guard) => {
                count(&self.acquired);
                return Some(guard);
            }
            Err(Error::Lock(LockError::Timeout { .. })) => {
                count(&self.timeouts);
                self.subscribing.fetch_add(u64::from(live == Some(false)), Relaxed);
            }
            Err(Error::Lock(LockError::Connection { .. }) | Error::Checkout(_)) => {
                count(&self.unreachable);
            }
            Err(error) => self.strange.lock().unwrap().push(error.to_string()),
        }
        None
    }
}

impl Report {
    fn add(&mut self, tally: &Tally, stalls: &[(Instant, Instant)]) {
        let get = |count: &AtomicU64| count.load(Relaxed);
        self.acquired = get(&tally.acquired);
        self.timeouts = get(&tally.timeouts);
        self.subscribing = get(&tally.subscribing);
        self.unreachable = get(&tally.unreachable);
        self.dropped = get(&tally.dropped);
        self.strange = std::mem::take(&mut tally.strange.lock().unwrap());
        self.longest = Duration::from_micros(get(&tally.longest));
        self.stall = stalls.iter().map(|(begun, ended)| *ended - *begun).max().unwrap_or_default();
        for (begun, ended) in &*tally.long.lock().unwrap() {
            self.long += 1;
            let excess = (*ended - *begun) - (WAIT + RESPONSE);
            let own = excess.saturating_sub(stalled(stalls, *begun, *ended));
            self.unexplained = self.unexplained.max(own);
        }
    }

    /// What is left after all clients have gone.
    fn settle(&mut self, server: &Server, contenders: Contenders) {
        let subscribers = || {
            let counts: Vec<redis::Value> = server.ask(&["PUBSUB", "NUMSUB", CHANNEL]);
            redis::from_redis_value::<u64>(counts[1].clone()).unwrap()
        };
        let _ = try_for(SOON, || {
            let locks = contenders.status().locks;
            let idle = locks.subscriptions == 0 && locks.held == 0 && locks.releasing == 0;
            (idle && subscribers() == 0).then_some(())
        });
        self.subscribers = subscribers();
        let status = contenders.status();
        (self.locks, self.in_use) = (status.locks, status.pooled.in_use);
        self.tasks = contenders.end();
        let _ = try_for(SOON, || (server.clients() + server.subscribers() == 0).then_some(()));
        self.clients = server.clients() + server.subscribers();
        eventually(SOON, "the lock is free", || {
            server.ask::<u64>(&["EXISTS", "rediscope:lock:{l}"]) == 0
        });
        let keys: Vec<String> = server.ask(&["KEYS", "rediscope:lock:*"]);
        for key in keys {
            let lives: i64 = server.ask(&["PTTL", &key]);
            // -2: it has just gone.
            if lives == -1 || lives > 60_000 {
                self.keys.push(key);
            }
        }
    }

    /// What must be true and is not.
    pub(crate) fn broken(&self) -> Vec<String> {
        let mut broken = self.strange.clone();
        let mut must = |holds: bool, what: String| {
            if !holds {
                broken.push(what);
            }
        };
        let reported = self.acquired + self.timeouts + self.unreachable + self.dropped;
        must(reported == self.tries, format!("{reported} tries returned"));
        must(self.acquired > self.tries / 500, format!("{} acquired", self.acquired));
        must(
            3 * self.timeouts >= self.tries - self.dropped,
            format!("only {} timed out", self.timeouts),
        );
        must(self.subscribing >= 1_000, format!("only {} while subscribing", self.subscribing));
        let enough = !Contenders::DROP || 3 * self.dropped >= self.tries;
        must(enough, format!("only {} were dropped", self.dropped));
        must(self.most_waiting > 10, format!("at most {} waited", self.most_waiting));
        let Faults { kills, pauses, restarts, .. } = self.faults;
        must(kills > 50 && pauses > 5 && restarts > 0, format!("{:?}", self.faults));
        let long = self.unexplained;
        must(long < GRACE, format!("waited {long:?} too long while the machine ran"));
        let LockStatus { held, waiting, permits, subscriptions, .. } = self.locks;
        let left = (held, waiting, permits, subscriptions);
        must(left == (0, 0, 0, 0), format!("held, waiting, permits, subscriptions: {left:?}"));
        must(self.in_use == 0, format!("{} connections in use", self.in_use));
        must(self.locks.releasing == 0, format!("{} being released", self.locks.releasing));
        must(self.tasks == 0, format!("{} tasks", self.tasks));
        must(self.subscribers == 0, format!("{} subscriptions on the server", self.subscribers));
        must(self.clients == 0, format!("{} connections on the server", self.clients));
        must(self.keys.is_empty(), format!("keys: {:?}", self.keys));
        let counted = self.locks.timeouts;
        must(counted == self.timeouts + self.unreachable, format!("{counted} timeouts counted"));
        let [early, late] = self.memory;
        // Nothing if the system does not have it.
        let limit = early + GROWTH[0] + self.tries * GROWTH[1];
        must(early == 0 || late < limit, format!("memory: {early} to {late}"));
        broken
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20));
        let Faults { kills, pauses, long_pauses, restarts } = self.faults;
        let mut row = |what: &str, value: String| writeln!(f, "| {what} | {value} |");
        row("the accident", format!("{} tries, seed {}", self.tries, self.seed))?;
        row("---", "---:".to_owned())?;
        row("acquired", self.acquired.to_string())?;
        row("timed out", self.timeouts.to_string())?;
        row("of these with the subscription sent and not confirmed", self.subscribing.to_string())?;
        row("server out of reach to the end of the wait", self.unreachable.to_string())?;
        if Contenders::DROP {
            row("dropped at a random poll, or after a random time", self.dropped.to_string())?;
        }
        row("longest wait", format!("{:.0?}", self.longest))?;
        row("longest that the machine kept an idle thread", format!("{:.0?}", self.stall))?;
        row("waits longer than 50 ms and one `response_timeout`", self.long.to_string())?;
        row("most of that while the machine ran", format!("{:.0?}", self.unexplained))?;
        row("most callers that waited at once", self.most_waiting.to_string())?;
        row("subscriber connections killed", kills.to_string())?;
        row("CLIENT PAUSE, of these longer than `response_timeout`", {
            format!("{}, {long_pauses}", pauses + long_pauses)
        })?;
        row("restarts", restarts.to_string())?;
        row("lost to restarts and pauses", self.locks.lost.to_string())?;
        let LockStatus { held, waiting, permits, .. } = self.locks;
        row("left: held, waiting, permits", format!("{held}, {waiting}, {permits}"))?;
        if Contenders::DROP {
            row("left: tasks", self.tasks.to_string())?;
        }
        row("left on the server: subscriptions, connections, keys", {
            format!("{}, {}, {}", self.subscribers, self.clients, self.keys.len())
        })?;
        let [early, late] = self.memory;
        row("memory after a tenth, at the end", format!("{}, {}", mib(early), mib(late)))?;
        row("seconds", format!("{:.1}", self.took.as_secs_f64()))
    }
}
