//! Locks: one holder at a time; a lost lock is reported, and writes after the loss are rejected.
//!
//! ```text
//! cargo run -p rediscope-examples --bin lock          # a Redis server on 127.0.0.1:6379
//! REDIS_URL=redis://host/ cargo run -p rediscope-examples --bin lock
//! ```
//!
//! Its keys begin with `lock-example:` and are removed at the end.

use std::error::Error;
use std::thread;
use std::time::Duration;

use rediscope::error::LockError;
use rediscope::lock::HoldToken;
use rediscope::{CommitError, SessionManager, prelude::*};
use rediscope_examples::keys;

/// Maximum time to wait for a lock.
const TIMEOUT: Duration = Duration::from_secs(10);

fn main() -> Result<(), Box<dyn Error>> {
    keys::with_prefix("lock-example", show)
}

fn show(url: &str, prefix: &str) -> Result<(), Box<dyn Error>> {
    // Two session managers, as in two processes.
    let manager = || SessionManager::builder(url).prefix(format!("{prefix}l")).build();
    let (here, there) = (manager()?, manager()?);
    let report = here.lock("report").label("worker 1");

    let guard = report.acquire(TIMEOUT)?;
    match there.lock("report").acquire(Duration::from_millis(50)) {
        Err(rediscope::Error::Lock(LockError::Timeout { holder: Some(holder), .. })) => {
            println!("held by {:?}", holder.label.as_deref().unwrap_or("no label"));
        }
        other => return Err(format!("two hold it: {other:?}").into()),
    }

    // A release wakes a waiter in any process.
    let waiting = there.lock("report").label("worker 2");
    let waiter = thread::spawn(move || waiting.acquire(TIMEOUT));
    guard.release()?;
    let guard = waiter.join().map_err(|_| "the waiter panicked")??;
    println!("handed over");

    // An operator takes the lock from worker 2, which goes on.
    let stale = there.transactional().fenced_by(&guard);
    report.force_release()?;
    let new = report.acquire(TIMEOUT)?;
    let state = format!("{prefix}state");
    here.transactional().fenced_by(&new).run(|tx| Ok(tx.set(&state, "from worker 1")))?;
    match stale.run(|tx| Ok(tx.set(&state, "from worker 2"))) {
        Err(rediscope::Error::Commit(CommitError::LockLost)) => {
            println!("the late write of the old holder was rejected");
        }
        other => return Err(format!("not rejected: {other:?}").into()),
    }
    let state: String = here.pooled().get(&state)?;
    println!("the state is {state}");
    if new.fencing_token() <= guard.fencing_token() {
        return Err("the fencing token did not grow".into());
    }
    println!("release by the old holder fails: {}", guard.release().is_err());
    new.release()?;

    let permits = here.semaphore("printers", 2);
    let both = (permits.try_acquire()?, permits.try_acquire()?);
    println!("two of three print: {}", both.0.is_some() && permits.try_acquire()?.is_none());
    drop(both);
    let both = permits.clone().permits(2).acquire(TIMEOUT)?;
    println!("{} permits are left", permits.available()?);
    both.release()?;

    // Several names at once, in one order, whatever the order here.
    let transfer = here.lock_all(["account:9", "account:7"]).acquire(TIMEOUT)?;
    let names: Vec<_> = transfer.fencing_tokens().map(|(name, _)| name.to_owned()).collect();
    println!("held together: {}", names.join(", "));
    transfer.release()?;

    // The process that accepts a job hands its lock to the process that carries it out.
    let word = here.lock("job").acquire(TIMEOUT)?.into_token()?.to_string();
    let token: HoldToken = word.parse()?;
    let guard = there.lock("job").adopt(&token)?;
    println!("adopted once: {}", here.lock("job").adopt(&token).is_err());
    guard.release()?;
    Ok(())
}
