//! One slice: a crew works for a bounded time, and each operation's wait is kept.
//!
//! An operation begins when its worker asks for a connection and ends when the values are decoded,
//! retries included.

use std::future::Future;
use std::pin::Pin;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use tokio::runtime::Runtime;

use crate::server::Server;

/// When a slice counts: what ends before `start` is warm-up, what ends after `end` adds to the waits
/// and to the sum on the server, not to the rate.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    end: Instant,
}

/// What one worker did.
#[derive(Debug)]
pub struct Log {
    clock: Clock,
    began: Instant,
    /// All of them, the warm-up included.
    done: u64,
    counted: u64,
    tries: u64,
    waits: Vec<u64>,
}

impl Log {
    pub fn new(clock: Clock) -> Self {
        // Grown here and not while it is measured.
        let waits = Vec::with_capacity(1 << 14);
        Self { clock, began: Instant::now(), done: 0, counted: 0, tries: 0, waits }
    }

    pub fn goes_on(&self) -> bool {
        self.began < self.clock.end
    }

    /// One operation is over, after so many tries.
    pub fn took(&mut self, tries: u32) {
        self.over(1, tries);
    }

    /// So many operations that began together are over.
    pub fn all_took(&mut self, operations: usize) {
        self.over(operations, 1);
    }

    fn over(&mut self, operations: usize, tries: u32) {
        let now = Instant::now();
        let count = operations as u64;
        self.done += count;
        // Also what began in the warm-up: a worker that starves has nothing else.
        if now >= self.clock.start {
            let wait = (now - self.began).as_nanos() as u64;
            self.waits.extend(std::iter::repeat_n(wait, operations));
        }
        if now >= self.clock.start && now < self.clock.end {
            self.counted += count;
            self.tries += count * u64::from(tries);
        }
        self.began = now;
    }
}

/// Repeats an operation, which says how many tries it took, until the time is over.
#[macro_export]
macro_rules! work {
    ($clock:expr, $operation:expr) => {{
        let mut log = $crate::measure::Log::new($clock);
        while log.goes_on() {
            let tries: u32 = $operation;
            log.took(tries);
        }
        log
    }};
}

pub type Thread = Box<dyn FnOnce(Clock) -> Log + Send>;
pub type Task = Pin<Box<dyn Future<Output = Log> + Send>>;

/// Begins a task.
pub type Begin = Box<dyn FnOnce(Clock) -> Task + Send>;

/// The workers of one slice, ready to begin.
pub enum Crew {
    Threads(Vec<Thread>),
    Tasks(Vec<Begin>),
}

/// What a slice showed.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Operations a second.
    pub rate: f64,
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    /// The longest wait. All waits are seconds.
    pub longest: f64,
    /// Tries per operation.
    pub tries: f64,
    /// The slowest worker's operations, as a part of the mean.
    pub slowest: f64,
    /// Processor time of this process for one operation, the warm-up included.
    pub client_cpu: f64,
    /// The same of the server.
    pub server_cpu: f64,
}

/// Lets the crew work; returns what it showed and how many operations there were in all.
pub fn measure(
    server: &Server,
    runtime: &Runtime,
    crew: Crew,
    warm_up: Duration,
    slice: Duration,
) -> Result<(Sample, u64), String> {
    let mut admin = server.admin();
    let server_before = Server::cpu(&mut admin);
    let client_before = cpu();
    let start = Instant::now() + warm_up;
    let clock = Clock { start, end: start + slice };
    let logs: Vec<Log> = match crew {
        Crew::Threads(workers) => {
            let spawn = |work: Thread| thread::spawn(move || work(clock));
            let workers: Vec<_> = workers.into_iter().map(spawn).collect();
            workers.into_iter().filter_map(|worker| worker.join().ok()).collect()
        }
        Crew::Tasks(workers) => runtime.block_on(async {
            let mut logs = Vec::new();
            let workers: Vec<_> =
                workers.into_iter().map(|work| tokio::spawn(work(clock))).collect();
            for worker in workers {
                logs.extend(worker.await.ok());
            }
            logs
        }),
    };
    let client_cpu = cpu() - client_before;
    let server_cpu = Server::cpu(&mut admin) - server_before;
    let done: u64 = logs.iter().map(|log| log.done).sum();
    let mut waits: Vec<u64> = logs.iter().flat_map(|log| log.waits.iter().copied()).collect();
    waits.sort_unstable();
    let counted: u64 = logs.iter().map(|log| log.counted).sum();
    let tries: u64 = logs.iter().map(|log| log.tries).sum();
    if counted == 0 || waits.is_empty() {
        return Err("not one operation ended in time".to_owned());
    }
    let at = |part: f64| {
        let nth = ((waits.len() - 1) as f64 * part).round() as usize;
        waits[nth] as f64 / 1e9
    };
    let slowest = logs.iter().map(|log| log.counted).min().unwrap_or(0) as f64;
    let sample = Sample {
        rate: counted as f64 / slice.as_secs_f64(),
        p50: at(0.5),
        p99: at(0.99),
        p999: at(0.999),
        longest: at(1.0),
        tries: tries as f64 / counted as f64,
        slowest: slowest / (counted as f64 / logs.len() as f64),
        client_cpu: client_cpu / done as f64,
        server_cpu: server_cpu / done as f64,
    };
    Ok((sample, done))
}

/// Processor time of this process so far, in seconds.
fn cpu() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("this process's usage");
    let seconds =
        |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}
