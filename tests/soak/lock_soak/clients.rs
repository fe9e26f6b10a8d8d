//! The clients of the lock: threads of several processes, each process this test program again.
//!
//! A process ends when its standard input does, so none outlives the one that started it.

use crate::SOON;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use redis::Commands;
use rediscope::Error;
use rediscope::error::LockError;

use super::history::{Entry, What};
use super::side::{BuildSide as _, Lock, LockGuard, SessionManager};
use rediscope_testing::eventually;

/// What one of the processes is to do.
const ORDERS: &str = "REDISCOPE_LOCK_ORDERS";
const THREADS: u64 = 3;
const WAIT: Duration = Duration::from_secs(1);
const RESPONSE: Duration = Duration::from_millis(300);
/// Longest life of a process that was not ended.
const LONGEST: Duration = Duration::from_secs(600);
pub(crate) const HISTORY: &str = "history";
pub(crate) const ACQUIRED: &str = "acquired";

/// The source from which a holder learns whether it still holds the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asks {
    /// The server: `ensure_held`.
    Server,
    /// Its own clock: `is_lost`.
    Clock,
    Both,
}

/// The orders of all clients.
#[derive(Clone, Debug)]
pub(crate) struct Orders {
    pub(crate) server: String,
    pub(crate) recorder: String,
    pub(crate) seed: u64,
    pub(crate) permits: u32,
    pub(crate) lease: Duration,
    /// The longest pause between two questions.
    pub(crate) step: Duration,
    /// Every hold is long.
    pub(crate) slow: bool,
    pub(crate) asks: Asks,
    /// The lease is extended by itself.
    pub(crate) renewed: bool,
    pub(crate) replicas: bool,
}

impl Orders {
    fn text(&self, number: u64) -> String {
        let Self { server, recorder, seed, permits, slow, asks, renewed, replicas, .. } = self;
        let (lease, step) = (self.lease.as_millis(), self.step.as_millis());
        format!(
            "{number} {server} {recorder} {seed} {permits} {lease} {asks:?} {renewed} {replicas} \
             {step} {slow}"
        )
    }

    fn parse(text: &str) -> (u64, Self) {
        let words: Vec<_> = text.split(' ').collect();
        let number = |nth: usize| -> u64 { words[nth].parse().expect("a number in the orders") };
        let orders = Self {
            server: words[1].to_owned(),
            recorder: words[2].to_owned(),
            seed: number(3),
            permits: number(4) as u32,
            lease: Duration::from_millis(number(5)),
            asks: match words[6] {
                "Server" => Asks::Server,
                "Clock" => Asks::Clock,
                _ => Asks::Both,
            },
            renewed: words[7] == "true",
            replicas: words[8] == "true",
            step: Duration::from_millis(number(9)),
            slow: words[10] == "true",
        };
        (number(0), orders)
    }
}

/// The test of this side that is one of the processes.
fn entrance() -> String {
    let (_, module) = module_path!().split_once("::").expect("the program and its modules");
    let soak = module.strip_suffix("clients").expect("this module");
    format!("{soak}a_caller_that_believes_to_hold_the_lock_holds_it_alone")
}

/// One of the processes. Dropped, it is ended.
pub(crate) struct Other(Child);

impl Other {
    pub(crate) fn start(number: u64, orders: &Orders) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &entrance(), "--nocapture"])
            .env(ORDERS, orders.text(number))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn();
        Self(child.expect("start this program again"))
    }

    /// Stops it, wherever it is, for so long.
    pub(crate) fn stop_for(&self, pause: Duration) {
        self.signal("-STOP");
        thread::sleep(pause);
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = self.0.id().to_string();
        let status = Command::new("kill").args([signal, &pid]).status().expect("run kill");
        assert!(status.success(), "{signal} to {pid}");
    }

    /// Has it end; true: it ended as it should.
    pub(crate) fn ends(mut self) -> bool {
        drop(self.0.stdin.take());
        let mut ended = None;
        eventually(SOON, "the process ends", || {
            ended = self.0.try_wait().expect("ask after it");
            ended.is_some()
        });
        ended.is_some_and(|status| status.success())
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Does what one of the processes does, where this is one of them.
pub(crate) fn be_one_of_them() -> bool {
    let Ok(orders) = std::env::var(ORDERS) else { return false };
    let (number, orders) = Orders::parse(&orders);
    let over = AtomicBool::new(false);
    let sessions = SessionManager::builder(orders.server.as_str())
        .connect_timeout(RESPONSE)
        .response_timeout(RESPONSE)
        .checkout_timeout(Duration::from_secs(2))
        .build_side()
        .unwrap();
    thread::scope(|scope| {
        for nth in 0..THREADS {
            let random = Rng::with_seed(orders.seed ^ (number << 32) ^ (nth << 48));
            let mut person = Client {
                name: format!("{number}.{nth}"),
                recorder: recorder(&orders.recorder),
                lock: orders.lock(&sessions),
                orders: &orders,
                random,
            };
            let over = &over;
            scope.spawn(move || {
                let until = Instant::now() + LONGEST;
                for hold in 0.. {
                    if over.load(Ordering::Relaxed) || Instant::now() > until {
                        break;
                    }
                    person.hold(hold);
                }
            });
        }
        // Its parent ends it, or is gone.
        let _ = std::io::stdin().read(&mut [0]);
        over.store(true, Ordering::Relaxed);
    });
    true
}

/// Without a timeout: a read that has one fails when its process was stopped meanwhile.
fn recorder(url: &str) -> redis::Connection {
    let client = redis::Client::open(url).expect("the recorder's address");
    client.get_connection().expect("the recorder is there")
}

impl Orders {
    fn lock(&self, sessions: &SessionManager) -> Lock {
        let lock = match self.permits {
            1 => sessions.lock("l"),
            permits => sessions.semaphore("l", permits),
        };
        let lock = lock.lease(self.lease);
        let lock = if self.renewed { lock } else { lock.fixed_lease() };
        if self.replicas { lock.wait_replicas(1, Duration::from_millis(100)) } else { lock }
    }
}

/// One client of the lock.
struct Client<'a> {
    name: String,
    recorder: redis::Connection,
    lock: Lock,
    orders: &'a Orders,
    random: Rng,
}

impl Client<'_> {
    fn note(&mut self, hold: u64, what: What) {
        let entry = Entry { hold: format!("{}.{hold}", self.name), what };
        let _: i64 = self.recorder.rpush(HISTORY, entry.to_string()).expect("the recorder writes");
        if let What::Acquired(_) = what {
            let _: i64 = self.recorder.incr(ACQUIRED, 1).expect("the recorder counts");
        }
    }

    fn hold(&mut self, hold: u64) {
        self.note(hold, What::Wants);
        let Ok(guard) = self.lock.acquire(WAIT) else { return self.note(hold, What::GaveUp) };
        self.note(hold, What::Acquired(guard.fencing_token()));
        // Most are quick; some hold it for longer than the lease is.
        let slow = self.orders.slow || self.random.u8(..6) == 0;
        let times = if slow { self.random.u32(4..=12) } else { self.random.u32(..=3) };
        for _ in 0..times {
            thread::sleep(self.pause());
            self.note(hold, What::Asks);
            let answer = self.ask(&guard);
            self.note(hold, answer);
        }
        self.note(hold, What::Asks);
        let answer = held_or_not(guard.release());
        self.note(hold, answer);
    }

    /// A lease without renewal sometimes ends meanwhile.
    fn pause(&mut self) -> Duration {
        let Orders { lease, step, slow, renewed, .. } = self.orders;
        let late = !slow && !renewed && self.random.u8(..8) == 0;
        let longest = if late { 2 * *lease } else { *step };
        longest.mul_f64(self.random.f64())
    }

    fn ask(&mut self, guard: &LockGuard) -> What {
        let clock = match self.orders.asks {
            Asks::Clock => true,
            Asks::Server => false,
            Asks::Both => self.random.bool(),
        };
        match clock {
            true if guard.is_lost() => What::No,
            true => What::Yes,
            false => held_or_not(guard.ensure_held()),
        }
    }
}

fn held_or_not(answer: Result<(), Error>) -> What {
    match answer {
        Ok(()) => What::Yes,
        Err(Error::Lock(LockError::Lost { .. })) => What::No,
        Err(_) => What::Unanswered,
    }
}
