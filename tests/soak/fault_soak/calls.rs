//! The duration of calls, compared with their limits and with the machine's own stalls.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::fixture::{CHECKOUT, CLEANUP, RESPONSE, RETRY_DEADLINE};
use rediscope_testing::rss_bytes;

/// One call of the library's, by what bounds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// A command, a begin, a read, a chunk, a commit: a connection and one exchange (of which one
    /// reply may come in two pieces, each within the time), and what has to be cleaned up.
    Single,
    /// A drop or a discard.
    Ending,
    /// A whole `run`, or `watch(..).run`: the last attempt begins within the policy's deadline,
    /// and is a begin, a read and a commit.
    Run,
    /// A `run` that sends chunks ahead in its closure, each an exchange.
    LargeRun,
}

impl Call {
    pub(crate) const ALL: [Self; 4] = [Self::Single, Self::Ending, Self::Run, Self::LargeRun];

    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Single => "begin, read, commit or command",
            Self::Ending => "drop or discard",
            Self::Run => "`run`",
            Self::LargeRun => "`run` sent in chunks",
        }
    }

    /// By its deadlines.
    pub(crate) fn limit(self) -> Duration {
        match self {
            Self::Single => CHECKOUT + 2 * RESPONSE + CLEANUP,
            Self::Ending => CLEANUP,
            Self::Run => RETRY_DEADLINE + CHECKOUT + 4 * RESPONSE + 2 * CLEANUP,
            Self::LargeRun => Self::Run.limit() + CHECKOUT + 4 * RESPONSE,
        }
    }
}

/// The longest call of each kind.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    longest: [AtomicU64; Call::ALL.len()],
    culprits: Mutex<[String; Call::ALL.len()]>,
}

impl Calls {
    pub(crate) fn time<R>(
        &self,
        call: Call,
        what: &dyn std::fmt::Debug,
        f: impl FnOnce() -> R,
    ) -> R {
        let begun = Instant::now();
        let result = f();
        let took = begun.elapsed().as_micros() as u64;
        if self.longest[call as usize].fetch_max(took, Ordering::Relaxed) < took {
            self.culprits.lock().unwrap()[call as usize] = format!("{what:?}");
        }
        result
    }

    pub(crate) fn longest(&self, call: Call) -> Duration {
        Duration::from_micros(self.longest[call as usize].load(Ordering::Relaxed))
    }

    pub(crate) fn culprit(&self, call: Call) -> String {
        self.culprits.lock().unwrap()[call as usize].clone()
    }
}

/// What the machine was like during the run.
#[derive(Debug)]
pub(crate) struct Machine {
    /// Longest time by which a short sleep was exceeded: no call can be shorter than that.
    pub(crate) stall: Duration,
    /// Mean resident memory of the first tenth, without its first half, and of the last tenth.
    pub(crate) memory: Option<(u64, u64)>,
}

/// A thread that does nothing but look at the clock and at the memory.
#[derive(Debug)]
pub(crate) struct Observer {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Machine>,
}

impl Observer {
    const PAUSE: Duration = Duration::from_millis(5);
    const EVERY: u32 = 20;

    /// Watches a run that will last about this long.
    pub(crate) fn start(lasts: Duration) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        // Made before the first look: its growing is not the library's.
        let most = lasts.as_millis() / (Self::PAUSE * Self::EVERY).as_millis();
        let mut samples = Vec::with_capacity(2 * most as usize + 1000);
        let is_over = Arc::clone(&over);
        let watch = move || {
            let mut stall = Duration::ZERO;
            let mut looks = 0_u32;
            while !is_over.load(Ordering::Relaxed) {
                let begun = Instant::now();
                thread::sleep(Self::PAUSE);
                stall = stall.max(begun.elapsed() - Self::PAUSE);
                looks += 1;
                if looks.is_multiple_of(Self::EVERY) && samples.len() < samples.capacity() {
                    samples.extend(rss_bytes());
                }
            }
            Machine { stall, memory: both_ends(&samples) }
        };
        let thread = thread::Builder::new().name("observer".to_owned()).spawn(watch);
        Self { over, thread: thread.unwrap() }
    }

    pub(crate) fn end(self) -> Machine {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn both_ends(samples: &[u64]) -> Option<(u64, u64)> {
    let mean = |from: usize, to: usize| {
        let part = &samples[samples.len() * from / 20..samples.len() * to / 20];
        part.iter().sum::<u64>().checked_div(part.len() as u64)
    };
    Some((mean(1, 2)?, mean(18, 20)?))
}
