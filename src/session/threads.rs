//! The threads of a session manager: they open connections, wait for backoffs and reclaim stuck
//! scopes.
//!
//! If the system has no thread left, their start fails without a panic.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::time::Duration;

use scheduled_thread_pool::{OnPoolDropBehavior, ScheduledThreadPool};

use crate::error::config::ConfigError;

const THREADS: usize = 3;

/// Maximum number of attempts to start the threads, if the system had enough a moment before.
const TRIES: u32 = 3;

pub(crate) fn start() -> Result<ScheduledThreadPool, ConfigError> {
    for nth in 1..=TRIES {
        probe().map_err(|error| ConfigError::threads(&error))?;
        // The crate panics if the system refuses a thread; another program may have taken the last
        // one.
        if let Ok(threads) = catch_unwind(AssertUnwindSafe(make)) {
            return Ok(threads);
        }
        std::thread::sleep(Duration::from_millis(1) * nth);
    }
    Err(ConfigError::threads(&io::ErrorKind::WouldBlock.into()))
}

fn make() -> ScheduledThreadPool {
    ScheduledThreadPool::builder()
        .num_threads(THREADS)
        .thread_name_pattern("rediscope-{}")
        .on_drop_behavior(OnPoolDropBehavior::DiscardPendingScheduled)
        .build()
}

/// Returns an error if the system cannot start that many threads at once.
fn probe() -> io::Result<()> {
    let mut probes = Vec::with_capacity(THREADS);
    for _ in 0..THREADS {
        let (end, ended) = mpsc::channel::<()>();
        let thread = std::thread::Builder::new().name("rediscope-probe".to_owned());
        let probe = thread.spawn(move || ended.recv().is_err())?;
        probes.push((end, probe));
    }
    for (end, probe) in probes {
        drop(end);
        let _: std::thread::Result<bool> = probe.join();
    }
    Ok(())
}
