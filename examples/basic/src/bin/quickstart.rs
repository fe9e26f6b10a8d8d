//! The example of the README, as a program.
//!
//! ```text
//! cargo run -p rediscope-examples --bin quickstart          # a Redis server on 127.0.0.1:6379
//! REDIS_URL=redis://host/ cargo run -p rediscope-examples --bin quickstart
//! ```
//!
//! Its keys begin with `quickstart:` and are removed at the end.

use std::error::Error;

use rediscope::{Outcome, SessionManager, Transactional, prelude::*};

fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1/".to_owned());
    let sessions = SessionManager::connect(url)?;
    let keys = Keys::new();
    let shown = show(&sessions, &keys);
    let removed = sessions.pooled().unlink(&keys.all());
    // Keys are removed after a failure as well; the first error is returned.
    shown?;
    Ok(removed?)
}

/// The keys of one run.
struct Keys {
    alice: String,
    bob: String,
    hits: String,
    last: String,
    stock: String,
}

impl Keys {
    fn new() -> Self {
        let run = fastrand::u64(..);
        let key = |name| format!("quickstart:{run:016x}:{name}");
        Self {
            alice: key("balance:alice"),
            bob: key("balance:bob"),
            hits: key("hits"),
            last: key("last"),
            stock: key("stock"),
        }
    }

    fn all(&self) -> [&str; 5] {
        [&self.alice, &self.bob, &self.hits, &self.last, &self.stock]
    }
}

fn show(sessions: &SessionManager, keys: &Keys) -> Result<(), Box<dyn Error>> {
    // Pooled handle: a command borrows a connection for its own round trip only.
    let mut db = sessions.pooled();
    let _: () = db.set(&keys.alice, 100)?;
    let _: () = db.set(&keys.stock, 3)?;

    // Transactional handle: the only way to MULTI and WATCH.
    let accounts = sessions.transactional();

    block(&accounts, keys)?;
    guard(&accounts, keys)?;
    read_decide_write(&accounts, keys)?;
    by_hand(&accounts, keys)?;
    part(&accounts, keys)?;

    println!("{}", sessions.status());
    Ok(())
}

/// A block: queued handles go out, typed values come back.
fn block(accounts: &Transactional, keys: &Keys) -> Result<(), rediscope::Error> {
    let (alice, bob) = accounts.run(|tx| Ok((tx.decr(&keys.alice, 30), tx.incr(&keys.bob, 30))))?;
    println!("block: alice has {alice}, bob has {bob}");
    Ok(())
}

/// A guard: the first one is dropped, only the second one is committed.
fn guard(accounts: &Transactional, keys: &Keys) -> Result<(), rediscope::Error> {
    for cancelled in [true, false] {
        let mut tx = accounts.begin()?;
        let hits = tx.incr(&keys.hits, 1);
        tx.set(&keys.last, "now");
        if cancelled {
            println!("guard: dropped, its connection is back in the pool");
            continue;
        }
        let replies = tx.commit()?;
        println!("guard: committed, {} hit", replies.get(hits)?);
    }
    Ok(())
}

/// Errors of [`read_decide_write`].
#[derive(Debug, thiserror::Error)]
enum BankError {
    #[error("alice has only {0} left")]
    Broke(i64),
    #[error(transparent)]
    Redis(#[from] rediscope::Error),
}

/// WATCH with bounded, jittered retries, until alice has too little left.
fn read_decide_write(accounts: &Transactional, keys: &Keys) -> Result<(), rediscope::Error> {
    loop {
        let left = accounts.watch([&keys.alice]).run_with(|read, tx| {
            let alice: i64 = read.get(&keys.alice)?; // on the pinned connection, WATCH armed
            if alice < 30 {
                return Err(BankError::Broke(alice)); // abandoned: UNWATCH, nothing written
            }
            Ok(tx.decr(&keys.alice, 30))
        });
        match left {
            Ok(left) => println!("read, decide, write: {left} left"),
            Err(BankError::Redis(error)) => return Err(error),
            Err(broke) => {
                println!("read, decide, write: {broke}");
                return Ok(());
            }
        }
    }
}

/// The same by hand, when the loop is yours.
fn by_hand(accounts: &Transactional, keys: &Keys) -> Result<(), rediscope::Error> {
    loop {
        let mut watching = accounts.watch([&keys.stock]).begin()?;
        let stock: i64 = watching.get(&keys.stock)?;
        let mut tx = watching.multi();
        tx.set(&keys.stock, stock - 1);
        match tx.commit()? {
            Outcome::Committed(_) => {
                println!("by hand: sold, {} left", stock - 1);
                return Ok(());
            }
            Outcome::Conflict => println!("by hand: the stock was changed, next attempt"),
        }
    }
}

/// Part of a transaction, undone alone.
fn part(accounts: &Transactional, keys: &Keys) -> Result<(), rediscope::Error> {
    let mut tx = accounts.begin()?;
    let bob = tx.incr(&keys.bob, 1);
    let mut gift = tx.savepoint();
    gift.incr(&keys.bob, 1_000_000);
    drop(gift); // not released: forgotten, and never sent
    println!("part: bob has {}", tx.commit()?.get(bob)?);
    Ok(())
}
