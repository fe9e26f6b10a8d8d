//! A job that one of several processes runs, and that another one takes over when that one dies.
//!
//! ```text
//! cargo run -p rediscope-examples --bin cron          # a Redis server on 127.0.0.1:6379
//! REDIS_URL=redis://host/ cargo run -p rediscope-examples --bin cron
//! ```
//!
//! Three processes wait for the lock `cron`. Its holder runs the job, fenced by the lock. The program
//! kills the holder, twice, and shows which process takes over. Its keys begin with `cron-example:`
//! and are removed at the end.

use std::error::Error;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use rediscope::lock::LockGuard;
use rediscope::{SessionManager, prelude::*};
use rediscope_examples::keys;

const WORKERS: usize = 3;
/// Lease of the lock: the maximum pause of the job after its process dies.
const LEASE: Duration = Duration::from_secs(1);
/// Interval between two runs of the job.
const PERIOD: Duration = Duration::from_millis(50);
/// Maximum time until another process runs the job.
const TIMEOUT: Duration = Duration::from_secs(60);

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let url = std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1/".to_owned());
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [name, prefix] = args.as_slice() {
        return work(&manager(&url, prefix)?, name, prefix);
    }
    let prefix = keys::unique_prefix("cron-example");
    let shown = watch(&url, &prefix);
    let removed = keys::remove_all(&url, &prefix);
    // Keys are removed after a failure as well; the first error is returned.
    shown?;
    removed?;
    Ok(())
}

fn manager(url: &str, prefix: &str) -> Result<SessionManager> {
    Ok(SessionManager::builder(url).prefix(format!("{prefix}l")).build()?)
}

/// A worker: waits for the lock, then runs the job until it loses the lock.
fn work(sessions: &SessionManager, name: &str, prefix: &str) -> Result<()> {
    loop {
        let lock = sessions.lock("cron").lease(LEASE).label(name);
        let guard = lock.acquire(Duration::from_secs(3600))?;
        while !guard.is_lost() {
            if let Err(error) = job(sessions, &guard, prefix) {
                eprintln!("{name}: {error:#}");
                break;
            }
            thread::sleep(PERIOD);
        }
    }
}

/// The job: nothing of it is applied once another process may run it.
fn job(sessions: &SessionManager, guard: &LockGuard, prefix: &str) -> Result<()> {
    let (runs, token) = (format!("{prefix}runs"), guard.fencing_token());
    sessions.transactional().fenced_by(guard).run(|tx| Ok(tx.rpush(&runs, token)))?;
    Ok(())
}

/// The worker processes. Its drop kills them.
struct Workers(Vec<(String, Child)>);

impl Drop for Workers {
    fn drop(&mut self) {
        for (_, child) in &mut self.0 {
            // An error means that the process has ended before.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn watch(url: &str, prefix: &str) -> Result<()> {
    let sessions = manager(url, prefix)?;
    let program = std::env::current_exe()?;
    let mut workers = Workers(Vec::new());
    for nth in 1..=WORKERS {
        let name = format!("worker {nth}");
        let child = Command::new(&program).args([&name, prefix]).env("REDIS_URL", url).spawn()?;
        workers.0.push((name, child));
    }
    let mut leaders = Vec::new();
    loop {
        let leader = leader(&sessions, prefix, &leaders)?;
        println!("{leader} runs the job");
        leaders.push(leader.clone());
        if leaders.len() == WORKERS {
            break;
        }
        let found = workers.0.iter_mut().find(|(name, _)| *name == leader);
        let (name, child) = found.ok_or("the holder is no worker")?;
        child.kill()?;
        println!("{name} was killed");
    }
    drop(workers);
    let tokens: Vec<u64> = sessions.pooled().lrange(format!("{prefix}runs"), 0, -1)?;
    let mut holders = tokens.clone();
    holders.dedup();
    println!("{} processes ran it, one after the other", holders.len());
    if !tokens.is_sorted() || holders.len() != WORKERS {
        return Err(format!("two ran it at once: {holders:?}").into());
    }
    Ok(())
}

/// The label of the next process that has run the job and is not in `before`.
fn leader(sessions: &SessionManager, prefix: &str, before: &[String]) -> Result<String> {
    let begun = Instant::now();
    let ran = || -> Result<usize> { Ok(sessions.pooled().llen(format!("{prefix}runs"))?) };
    let at_first = ran()?;
    while begun.elapsed() < TIMEOUT {
        let holder = sessions.lock("cron").holder()?.and_then(|holder| holder.label);
        match holder {
            Some(name) if !before.iter().any(|b| **b == *name) && ran()? > at_first + 2 => {
                return Ok(name.to_string());
            }
            _ => thread::sleep(PERIOD),
        }
    }
    Err("no process runs the job".into())
}
