//! A load of transactions that end in every way, and the checks after it.
//!
//! One in ten is dropped and one in a hundred panics, in equal parts with nothing queued, with
//! MULTI sent, after a chunk was sent, and while watching. The others commit, in every form. Their
//! writes are also kept in a ledger here, which is compared with the server's balances.
//!
//! Never: a pause, or a fault from outside. So every error is a fault of the library.

#![expect(clippy::indexing_slicing, reason = "by stages and accounts, which are as many")]

mod check;
mod choice;
mod figures;
mod tally;

use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rediscope::{
    Begin, Outcome, RetryPolicy, SessionManager, TransactionOptions, Transactional, prelude::*,
};

use check::{Observer, check};
use choice::{Choice, Ending, FLUSH_BYTES, Form, POISON, Stage, account, chunk};
use figures::Figures;
use tally::{Tally, resident_bytes};

const POOL: u32 = 8;
/// Checkout timeout; other timeouts are a quarter of it.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum number of conflicts of one transaction.
const CONFLICTS: u32 = 10_000;
/// Number of samples of resident memory over the whole load.
const SAMPLES: u64 = 200;

type Failure = Box<dyn Error>;

/// The size of a load, and its seed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) transactions: u64,
    pub(crate) threads: u64,
    pub(crate) seed: u64,
}

/// Runs the load on a server without other clients, and checks it afterwards.
pub(crate) fn run(
    url: &str,
    plan: Plan,
    progress: impl Fn(u64) + Sync,
) -> Result<Figures, Failure> {
    let mut observer = Observer::connect(url)?;
    let sessions = SessionManager::builder(url)
        .max_size(POOL)
        .flush_bytes(FLUSH_BYTES)
        // Long, because a busy machine is no failure.
        .checkout_timeout(TIMEOUT)
        .response_timeout(TIMEOUT / 4)
        .cleanup_timeout(TIMEOUT / 4)
        .build()?;
    let begun = Instant::now();
    let tally = all_threads(&sessions.transactional(), plan, &progress);
    let took = begun.elapsed();
    check(&mut observer, &sessions, plan, tally, took)
}

fn all_threads(accounts: &Transactional, plan: Plan, progress: &(impl Fn(u64) + Sync)) -> Tally {
    let next = AtomicU64::new(0);
    let total = Mutex::new(Tally::new());
    thread::scope(|scope| {
        for _ in 0..plan.threads {
            scope.spawn(|| {
                let tally = one_thread(accounts, plan, &next, progress);
                total.lock().unwrap_or_else(|broken| broken.into_inner()).add(tally);
            });
        }
    });
    total.into_inner().unwrap_or_else(|broken| broken.into_inner())
}

fn one_thread(
    accounts: &Transactional,
    plan: Plan,
    next: &AtomicU64,
    progress: &impl Fn(u64),
) -> Tally {
    let options = TransactionOptions::new()
        .retry(RetryPolicy::default().attempts(CONFLICTS).deadline(TIMEOUT));
    let deferred = accounts.with(options);
    let immediate = deferred.with(TransactionOptions::new().begin(Begin::Immediate));
    let mut tally = Tally::new();
    let every = (plan.transactions / SAMPLES).max(1);
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= plan.transactions {
            return tally;
        }
        if number.is_multiple_of(every) {
            progress(number);
            tally.samples.extend(resident_bytes().map(|bytes| (number, bytes)));
        }
        let choice = Choice::of(plan.seed, number);
        match one(&deferred, &immediate, choice, &mut tally) {
            Ok(()) => tally.count(choice),
            Err(error) => {
                tally.errors.push(format!("transaction {number} ({choice:?}): {error:#}"))
            }
        }
    }
}

fn one(
    deferred: &Transactional,
    immediate: &Transactional,
    choice: Choice,
    tally: &mut Tally,
) -> Result<(), rediscope::Error> {
    let form = match choice.ending {
        Ending::Committed(form) => form,
        Ending::Dropped(stage) => return leave(deferred, immediate, stage, choice, || {}),
        Ending::Panicked(stage) => {
            let panic =
                || leave(deferred, immediate, stage, choice, || resume_unwind(Box::new(())));
            return match catch_unwind(AssertUnwindSafe(panic)) {
                Err(panic) if panic.is::<()>() => Ok(()),
                Err(panic) => resume_unwind(panic),
                Ok(ended) => ended,
            };
        }
    };
    match form {
        Form::Block => deferred.run(|tx| {
            choice.transfer(tx);
            Ok(())
        })?,
        Form::Guard | Form::Immediate => {
            let accounts = if form == Form::Immediate { immediate } else { deferred };
            let mut tx = accounts.begin()?;
            choice.transfer(&mut tx);
            tx.commit()?;
        }
        Form::Chunked => {
            let mut tx = deferred.begin()?;
            chunk(&mut tx, "chunk");
            choice.transfer(&mut tx);
            tx.commit()?;
        }
        Form::Watching => {
            deferred.watch([account(choice.from)]).run(|read, tx| {
                tally.conflicts += u64::from(read.attempt() > 1);
                let _: Option<i64> = read.get(account(choice.from))?;
                choice.transfer(tx);
                Ok(())
            })?;
        }
        Form::WatchingByHand => {
            for attempt in 1.. {
                let mut watching = deferred.watch([account(choice.from)]).begin()?;
                let _: Option<i64> = watching.get(account(choice.from))?;
                let mut tx = watching.multi();
                choice.transfer(&mut tx);
                match tx.commit()? {
                    Outcome::Committed(_) => break,
                    Outcome::Conflict if attempt == CONFLICTS => {
                        tally.errors.push(format!("{attempt} conflicts of {choice:?}"));
                        break;
                    }
                    Outcome::Conflict => tally.conflicts += 1,
                }
            }
        }
    }
    Ok(())
}

/// Brings a scope to a stage and ends it there.
fn leave(
    deferred: &Transactional,
    immediate: &Transactional,
    stage: Stage,
    choice: Choice,
    end: impl FnOnce(),
) -> Result<(), rediscope::Error> {
    match stage {
        Stage::NothingQueued => {
            let _tx = deferred.begin()?;
            end();
        }
        Stage::MultiSent => {
            let mut tx = immediate.begin()?;
            tx.incr(POISON, 1);
            end();
        }
        Stage::ChunkSent => {
            let mut tx = deferred.begin()?;
            chunk(&mut tx, POISON);
            tx.check()?;
            end();
        }
        Stage::Watching => {
            let mut watching = deferred.watch([account(choice.from)]).begin()?;
            let _: Option<i64> = watching.get(account(choice.from))?;
            if choice.amount % 2 == 0 {
                end();
                drop(watching);
            } else {
                let mut tx = watching.multi();
                tx.incr(POISON, 1);
                end();
            }
        }
    }
    Ok(())
}
