//! The lock clients, and what is done with a lock: acquired and released alone, and handed from one
//! client to the next if many wait.
//!
//! A hand-over begins when its holder asks for the release and ends when another one has the lock.
//! A client that released the lock waits until another one has it before it acquires again. So each
//! release is a hand-over, and the number of waiting clients stays the same.
//!
//! Never: a hand-over to oneself.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use redis::Connection;
use rediscope::lock::Lock;
use rediscope::{SessionManager, aio};
use rslock::LockManager;
use tokio::runtime::Runtime;

use crate::server::{Server, Via};

const NAME: &str = "l";
/// For all: the default of ours.
const LEASE: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(60);
/// Time for which a lock is held that others wait for: its last holder waits again by then.
const HOLD: Duration = Duration::from_millis(1);
/// Between two looks whether another one has it.
const LOOK: Duration = Duration::from_micros(200);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Locker {
    Ours,
    Fair,
    Tasks,
    TasksFair,
    Rslock,
    RslockQuick,
    Scripts,
}

impl Locker {
    /// The locks.
    pub const ALL: [Self; 6] =
        [Self::Ours, Self::Fair, Self::Tasks, Self::TasksFair, Self::Rslock, Self::RslockQuick];

    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "rediscope",
            Self::Fair => "rediscope, fair",
            Self::Tasks => "rediscope aio",
            Self::TasksFair => "rediscope aio, fair",
            Self::Rslock => "rslock",
            Self::RslockQuick => "rslock, 10 ms",
            Self::Scripts => "the same scripts, bare",
        }
    }

    pub fn settings(self) -> &'static str {
        match self {
            Self::Ours => "default settings, lease 30 s; threads, `acquire` and `release`",
            Self::Fair => "the same with `fair()`",
            Self::Tasks => {
                "default settings, lease 30 s; tasks on a tokio runtime with as many threads as there \
                 are cores, `acquire` and `release`"
            }
            Self::TasksFair => "the same with `fair()`",
            Self::Rslock => {
                "0.10, one server, `LockManager` with its defaults (3 tries, up to 200 ms between \
                 them), ttl 30 s; tasks on a tokio runtime with as many threads as there are \
                 cores, `acquire` and `release`"
            }
            Self::RslockQuick => "the same with `set_retry(3, 10 ms)`",
            Self::Scripts => {
                "no lock, but a bound: a loop that sends the scripts of this crate by EVALSHA on redis-rs's \
                 multiplexed connection, with prepared arguments, and looks at no reply"
            }
        }
    }

    fn is_fair(self) -> bool {
        matches!(self, Self::Fair | Self::TasksFair)
    }

    fn on_threads(self) -> bool {
        matches!(self, Self::Ours | Self::Fair)
    }

    fn is_ours(self) -> bool {
        !matches!(self, Self::Rslock | Self::RslockQuick | Self::Scripts)
    }

    /// Whether its releases are published.
    fn publishes(self) -> bool {
        !matches!(self, Self::Rslock | Self::RslockQuick)
    }

    fn lock(self, server: &Server, via: Via) -> Lock {
        let sessions = SessionManager::builder(server.info(via)).build().expect("settings");
        let lock = sessions.lock(NAME).lease(LEASE);
        if self.is_fair() { lock.fair() } else { lock }
    }

    fn task_lock(self, server: &Server, via: Via) -> TaskLock {
        if self.is_ours() {
            let builder = SessionManager::builder(server.info(via));
            let lock = builder.build_async().expect("settings").lock(NAME).lease(LEASE);
            return TaskLock::Ours(if self.is_fair() { lock.fair() } else { lock });
        }
        let mut manager = LockManager::from_clients(vec![server.client(via)]);
        if self == Self::RslockQuick {
            manager.set_retry(3, Duration::from_millis(10));
        }
        TaskLock::Rslock(manager)
    }
}

/// A lock of a client for tasks.
#[derive(Clone)]
enum TaskLock {
    Ours(aio::Lock),
    Rslock(LockManager),
}

enum TaskGuard {
    Ours(aio::LockGuard),
    Rslock(rslock::LockGuard),
}

impl TaskLock {
    async fn acquire(&self) -> TaskGuard {
        match self {
            Self::Ours(lock) => {
                TaskGuard::Ours(lock.acquire(PATIENCE).await.expect("its turn comes"))
            }
            Self::Rslock(manager) => {
                TaskGuard::Rslock(manager.acquire(NAME, LEASE).await.expect("its turn comes"))
            }
        }
    }
}

impl TaskGuard {
    async fn release(self) {
        match self {
            Self::Ours(guard) => guard.release().await.expect("released"),
            Self::Rslock(guard) => guard.release().await,
        }
    }
}

/// When it counts.
#[derive(Clone, Copy, Debug)]
pub struct Slice {
    pub warm_up: Duration,
    pub slice: Duration,
}

/// What a slice showed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shown {
    /// Acquisitions, each with its release, a second.
    pub rate: f64,
    /// From the release to the next holder, in seconds: the median and the slow ones.
    pub p50: f64,
    pub p99: f64,
    /// Of each acquisition: what clients sent, and for how many seconds the server was at work.
    pub requests: f64,
    pub server: f64,
}

/// One acquires and releases.
pub fn alone(locker: Locker, server: &Server, runtime: &Runtime, via: Via, plan: Slice) -> Shown {
    let mut admin = empty(server);
    let start = Instant::now() + plan.warm_up;
    let end = start + plan.slice;
    let count = |began: Instant| u64::from(began >= start);
    let done: u64 = if locker.on_threads() {
        let lock = locker.lock(server, via);
        let mut done = 0;
        while Instant::now() < end {
            let began = Instant::now();
            let guard = lock.acquire(PATIENCE).expect("a free lock");
            guard.release().expect("released");
            done += count(began);
        }
        done
    } else if locker == Locker::Scripts {
        let client = server.client(via);
        runtime
            .block_on(async { tokio::spawn(scripts(client, start, end)).await.expect("the task") })
    } else {
        let lock = locker.task_lock(server, via);
        let task = async move {
            let mut done = 0;
            while Instant::now() < end {
                let began = Instant::now();
                lock.acquire().await.release().await;
                done += u64::from(began >= start);
            }
            done
        };
        runtime.block_on(async { tokio::spawn(task).await.expect("the task") })
    };
    let seconds = (Instant::now() - start).as_secs_f64();
    // The warm-up is in these, too: they are means of one kind of thing.
    let spent = Spent::of(&mut admin, locker);
    let all = spent.released.max(1) as f64;
    Shown {
        rate: done as f64 / seconds,
        requests: spent.requests as f64 / all,
        server: spent.seconds / all,
        ..Shown::default()
    }
}

/// Sends the scripts of an acquisition and of its release, and returns the number of both after `start`.
async fn scripts(client: redis::Client, start: Instant, end: Instant) -> u64 {
    const TAKE: &str = include_str!("../../../src/protocol/lock/scripts/take.lua");
    const ACQUIRE: &str = include_str!("../../../src/protocol/lock/scripts/acquire.lua");
    const RELEASE: &str = include_str!("../../../src/protocol/lock/scripts/release.lua");
    let mut connection = client.get_multiplexed_async_connection().await.expect("a connection");
    let [acquire, release] =
        [ACQUIRE, RELEASE].map(|text| redis::Script::new(&(TAKE.to_owned() + text)));
    for script in [&acquire, &release] {
        script.load_async(&mut connection).await.expect("SCRIPT LOAD");
    }
    let key = |end: &str| format!("rediscope:lock:{{{NAME}}}{end}");
    let state = ["", ":info", ":queue", ":alive"].map(key);
    let wake = key(":wake");
    let (mut done, mut former) = (0, None);
    while Instant::now() < end {
        let began = Instant::now();
        let token = format!("x{:032x}", fastrand::u128(..));
        let released = key(&format!(":done:{token}"));
        let mut taken = redis::cmd("EVALSHA");
        taken.arg(acquire.get_hash()).arg(6).arg(&state).arg(&released).arg("rediscope:fence");
        taken
            .arg(&token)
            .arg(LEASE.as_millis() as u64)
            .arg(&["x", "1", "", "0", "1"])
            .arg(&wake)
            .arg("");
        let _: String = taken.query_async(&mut connection).await.expect("it is free");
        let mut given = redis::cmd("EVALSHA");
        given
            .arg(release.get_hash())
            .arg(5 + usize::from(former.is_some()))
            .arg(&state)
            .arg(&released);
        given.arg(&former).arg(&token).arg(12_000).arg(&wake).arg(0);
        let held: u64 = given.query_async(&mut connection).await.expect("it is held");
        assert_eq!(held, 1, "it was released");
        former = Some(released);
        done += u64::from(began >= start);
    }
    done
}

/// So many want it, and it goes round.
pub fn handed_over(
    locker: Locker,
    server: &Server,
    runtime: &Runtime,
    (via, waiters): (Via, usize),
    plan: Slice,
) -> Shown {
    let mut admin = empty(server);
    let baton = Arc::new(Baton::default());
    let mut measure = |baton: &Baton| {
        thread::sleep(plan.warm_up);
        redis::cmd("CONFIG").arg("RESETSTAT").exec(&mut admin).expect("CONFIG RESETSTAT");
        baton.begin();
        thread::sleep(plan.slice);
        let latencies = baton.end();
        (latencies, Spent::of(&mut admin, locker))
    };
    // One has it, so many wait.
    let workers = 0..=waiters;
    let (mut latencies, spent) = if locker.on_threads() {
        let lock = locker.lock(server, via);
        thread::scope(|scope| {
            for _ in workers {
                let (lock, baton) = (lock.clone(), &baton);
                scope.spawn(move || baton.run(&lock));
            }
            measure(&baton)
        })
    } else {
        let lock = locker.task_lock(server, via);
        let run = |_| runtime.spawn(Baton::run_task(Arc::clone(&baton), lock.clone()));
        let tasks: Vec<_> = workers.map(run).collect();
        let measured = measure(&baton);
        tasks.iter().for_each(|task| task.abort());
        tasks.into_iter().for_each(|task| drop(runtime.block_on(task)));
        measured
    };
    latencies.sort_by(f64::total_cmp);
    let at = |part: f64| {
        let nth = (latencies.len().saturating_sub(1) as f64 * part).round() as usize;
        latencies.get(nth).copied().unwrap_or(f64::NAN)
    };
    let all = latencies.len() as f64;
    // One each is the release's own; the others are messages to the subscriber.
    let wakeups = match locker.is_ours() {
        true => spent.released.saturating_sub(latencies.len() as u64),
        false => 0,
    };
    Shown {
        rate: all / plan.slice.as_secs_f64(),
        p50: at(0.5),
        p99: at(0.99),
        requests: (spent.requests + wakeups) as f64 / all,
        server: spent.seconds / all,
    }
}

fn empty(server: &Server) -> Connection {
    let mut admin = server.admin();
    redis::cmd("FLUSHALL").arg("SYNC").exec(&mut admin).expect("FLUSHALL");
    redis::cmd("CONFIG").arg("RESETSTAT").exec(&mut admin).expect("CONFIG RESETSTAT");
    admin
}

/// The lock as it goes round.
#[derive(Default)]
struct Baton {
    over: AtomicBool,
    turn: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    released: Option<Instant>,
    counts: bool,
    latencies: Vec<f64>,
}

impl Baton {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) {
        self.state().counts = true;
    }

    fn end(&self) -> Vec<f64> {
        self.over.store(true, Ordering::Relaxed);
        let mut state = self.state();
        state.counts = false;
        std::mem::take(&mut state.latencies)
    }

    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    /// The lock is held: returns the number of the turn.
    fn taken(&self) -> u64 {
        let now = Instant::now();
        let mut state = self.state();
        let released = state.released.take();
        if let Some(released) = released
            && state.counts
        {
            state.latencies.push((now - released).as_secs_f64());
        }
        self.turn.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn releases(&self) {
        self.state().released = Some(Instant::now());
    }

    fn is_still(&self, turn: u64) -> bool {
        self.goes_on() && self.turn.load(Ordering::Relaxed) == turn
    }

    fn run(&self, lock: &Lock) {
        while self.goes_on() {
            let guard = lock.acquire(PATIENCE).expect("its turn comes");
            let turn = self.taken();
            thread::sleep(if self.goes_on() { HOLD } else { Duration::ZERO });
            self.releases();
            guard.release().expect("released");
            while self.is_still(turn) {
                thread::sleep(LOOK);
            }
        }
    }

    async fn run_task(baton: Arc<Self>, lock: TaskLock) {
        while baton.goes_on() {
            let guard = lock.acquire().await;
            let turn = baton.taken();
            tokio::time::sleep(HOLD).await;
            baton.releases();
            guard.release().await;
            while baton.is_still(turn) {
                tokio::time::sleep(LOOK).await;
            }
        }
    }
}

/// What it cost, by the server's own books.
struct Spent {
    requests: u64,
    seconds: f64,
    released: u64,
}

impl Spent {
    fn of(admin: &mut Connection, locker: Locker) -> Self {
        let stats: String = redis::cmd("INFO").arg("commandstats").query(admin).expect("INFO");
        let number = |facts: &str, name: &str| -> u64 {
            let found = facts.split(',').find_map(|fact| fact.strip_prefix(name));
            found.and_then(|value| value.parse().ok()).unwrap_or(0)
        };
        let stats: BTreeMap<&str, (u64, u64)> = stats
            .lines()
            .filter_map(|line| line.strip_prefix("cmdstat_")?.split_once(':'))
            .map(|(name, facts)| (name, (number(facts, "calls="), number(facts, "usec="))))
            .collect();
        let of = |name: &str| stats.get(name).copied().unwrap_or_default();
        // What scripts call is counted by the server as well, and timed twice: a script is a request,
        // and what it calls is not.
        let sent: &[&str] = match locker.publishes() {
            true => &["evalsha", "eval", "subscribe", "unsubscribe", "ping"],
            false => &["set", "evalsha", "eval", "script|load"],
        };
        let (mut requests, mut micros) = (0, 0);
        for name in sent {
            requests += of(name).0;
            micros += of(name).1;
        }
        let released = if locker.publishes() { of("publish").0 } else { of("del").0 };
        Self { requests, seconds: micros as f64 / 1e6, released }
    }
}
