//! A queue of jobs for several workers, each of which finishes its jobs once, also if a worker dies or a reply is
//! lost.
//!
//! ```text
//! cargo run -p rediscope-examples --bin queue         # a Redis server on 127.0.0.1:6379
//! REDIS_URL=redis://host/ cargo run -p rediscope-examples --bin queue
//! ```
//!
//! A worker moves a job to a list of its own. One transaction takes it from that list and writes its result, so no
//! job is lost, and no result is written twice. One of the workers stops in the middle of a job; another one takes
//! that job. The keys begin with `queue-example:` and are removed at the end.

use std::error::Error;
use std::thread;

use rediscope::redis::{self, Commands};
use rediscope::{Ready, SessionManager, TransactionOptions, Transactional, prelude::*};
use rediscope_examples::keys;

const WORKERS: u32 = 4;
const JOBS: i64 = 100;

type Result<T> = std::result::Result<T, rediscope::Error>;

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let url = std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1/".to_owned());
    let prefix = keys::unique_prefix("queue-example");
    let sessions = SessionManager::builder(&*url).prefix(format!("{prefix}own")).build()?;
    let queue = Queue::new(&sessions, &prefix);
    let shown = queue.show();
    let removed = keys::remove_all(&url, &prefix);
    // Keys are removed after a failure as well; the first error is returned.
    shown?;
    removed?;
    Ok(())
}

struct Queue<'s> {
    sessions: &'s SessionManager,
    /// Exactly once: a lost reply is looked up before a block is sent again.
    once: Transactional,
    prefix: &'s str,
}

impl<'s> Queue<'s> {
    fn new(sessions: &'s SessionManager, prefix: &'s str) -> Self {
        let once = sessions.transactional().with(TransactionOptions::new().exactly_once());
        Self { sessions, once, prefix }
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The list of the jobs that this worker has taken and not finished.
    fn taken_by(&self, worker: u32) -> String {
        self.key(&format!("taken:{worker}"))
    }

    fn show(&self) -> Result<()> {
        let jobs: Vec<i64> = (1..=JOBS).collect();
        self.once.run(|tx| Ok(tx.rpush(self.key("jobs"), jobs)))?;
        thread::scope(|scope| {
            let work = |worker| scope.spawn(move || self.work(worker));
            let workers: Vec<_> = (1..=WORKERS).map(work).collect();
            workers.into_iter().try_for_each(|worker| worker.join().unwrap_or(Ok(())))
        })?;
        // The list of a worker that is gone is a queue for the others. Its name is known, or found by a lease.
        println!("worker 1 left {} job", self.give_back(1)?);
        self.work(2)?;
        let mut db = self.sessions.pooled();
        let (done, sum): (i64, i64) = db.mget(&[self.key("done"), self.key("sum")])?;
        println!("{done} of {JOBS} jobs are done, the sum of their results is {sum}");
        Ok(())
    }

    /// Works until there is no job for a tenth of a second. Worker 1 stops with its second job in hand, once.
    fn work(&self, worker: u32) -> Result<()> {
        let mut taken = 0;
        while let Some(job) = self.take(worker)? {
            taken += 1;
            if worker == 1 && taken == 2 {
                return Ok(());
            }
            self.finish(worker, job)?;
        }
        Ok(())
    }

    /// Moves the next job to the worker's list and waits for one. A waiting worker occupies a connection of the pool
    /// for single commands.
    fn take(&self, worker: u32) -> Result<Option<i64>> {
        let mut wait = redis::cmd("BLMOVE");
        wait.arg(self.key("jobs")).arg(self.taken_by(worker)).arg("LEFT").arg("RIGHT").arg(0.1);
        Ok(wait.query(&mut self.sessions.pooled())?)
    }

    /// Writes the result and ends the job, together.
    fn finish(&self, worker: u32, job: i64) -> Result<()> {
        self.once.run(|tx| {
            tx.lrem(self.taken_by(worker), 1, job);
            tx.incr(self.key("sum"), job);
            tx.incr(self.key("done"), 1);
            Ok(())
        })
    }

    /// Moves the jobs of a worker that is gone back to the queue. The number of them.
    fn give_back(&self, worker: u32) -> Result<usize> {
        self.once.watch([self.taken_by(worker)]).run(|read, tx| {
            let left: Vec<i64> = read.lrange(self.taken_by(worker), 0, -1)?;
            for job in &left {
                tx.rpush(self.key("jobs"), job);
            }
            tx.del(self.taken_by(worker));
            Ok(Ready(left.len()))
        })
    }
}
