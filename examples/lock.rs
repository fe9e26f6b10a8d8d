//! Locks: one holder at a time, who is told when he is no longer it, and whose late writes are
//! refused.
//!
//! ```text
//! cargo run --example lock                        # a Redis server on 127.0.0.1:6379
//! REDIS_URL=redis://host/ cargo run --example lock
//! ```
//!
//! Its keys begin with `lock-example:` and are removed at the end.

#[path = "support/keys.rs"]
mod keys;

use std::error::Error;
use std::thread;
use std::time::Duration;

use rediscope::{CommitError, LockError, SessionManager, prelude::*};

const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> Result<(), Box<dyn Error>> {
    keys::with_prefix("lock-example", show)
}

fn show(url: &str, prefix: &str) -> Result<(), Box<dyn Error>> {
    // Two session managers, as in two processes.
    let manager = || SessionManager::builder(url).prefix(format!("{prefix}l")).build();
    let (here, there) = (manager()?, manager()?);
    let report = here.lock("report").label("worker 1");

    let guard = report.acquire(PATIENCE)?;
    match there.lock("report").acquire(Duration::from_millis(50)) {
        Err(LockError::Timeout { holder: Some(holder), .. }) => {
            println!("held by {:?}", holder.label.as_deref().unwrap_or("somebody"));
        }
        other => return Err(format!("two hold it: {other:?}").into()),
    }

    // A release wakes who waits, wherever he is.
    let waiting = there.lock("report").label("worker 2");
    let waiter = thread::spawn(move || waiting.acquire(PATIENCE));
    guard.release()?;
    let guard = waiter.join().map_err(|_| "the waiter panicked")??;
    println!("handed over");

    // Somebody decides that worker 2 is gone. It is not, and goes on.
    let stale = there.transactional().fenced_by(&guard);
    report.force_release()?;
    let new = report.acquire(PATIENCE)?;
    let state = format!("{prefix}state");
    here.transactional().fenced_by(&new).run(|tx| Ok(tx.set(&state, "worker 1's")))?;
    match stale.run(|tx| Ok(tx.set(&state, "worker 2's"))) {
        Err(error) if matches!(error.as_commit(), Some(CommitError::LockLost)) => {
            println!("the late write of the old holder was refused");
        }
        other => return Err(format!("not refused: {other:?}").into()),
    }
    let state: String = here.pooled().get(&state)?;
    println!("the state is {state}");
    if new.fencing_token() <= guard.fencing_token() {
        return Err("the fencing token did not grow".into());
    }
    println!("the old holder is told: {}", guard.release().is_err());
    new.release()?;

    let permits = here.semaphore("printers", 2);
    let both = (permits.try_acquire()?, permits.try_acquire()?);
    println!("two of three print: {}", both.0.is_some() && permits.try_acquire()?.is_none());
    Ok(())
}
