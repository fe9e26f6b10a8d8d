//! WATCH: read, decide and write without another write in between; by hand and by `run`, with conflicts.
//!
//! ```text
//! cargo run -p rediscope-examples --bin inventory          # a Redis server on 127.0.0.1:6379
//! REDIS_URL=redis://host/ cargo run -p rediscope-examples --bin inventory
//! ```
//!
//! Its keys begin with `inventory:` and are removed at the end.

use std::error::Error;
use std::thread;

use rediscope::{Outcome, SessionManager, Transactional, prelude::*};

const STOCK: i64 = 500;
const BUYERS: usize = 8;

fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1/".to_owned());
    let sessions = SessionManager::connect(url)?;
    let run = fastrand::u64(..);
    let inventory = Inventory {
        stock: format!("inventory:{run:016x}:stock"),
        sold: format!("inventory:{run:016x}:sold"),
        handle: sessions.transactional(),
    };
    let shown = show(&sessions, &inventory);
    let removed = sessions.pooled().unlink(&[&inventory.stock, &inventory.sold]);
    // Keys are removed after a failure as well; the first error is returned.
    shown?;
    Ok(removed?)
}

fn show(sessions: &SessionManager, inventory: &Inventory) -> Result<(), Box<dyn Error>> {
    let mut db = sessions.pooled();
    let _: () = db.set(&inventory.stock, STOCK)?;
    // Another buyer, which buys one piece during the first attempt.
    let rival = |attempt| if attempt == 1 { inventory.buy_unwatched() } else { Ok(()) };

    println!("by hand, and another buyer buys in between:");
    let left = inventory.buy_by_hand(rival)?;
    println!("  sold, {left:?} left");

    println!("by run, with the same rival:");
    let left = inventory.buy(|attempt| {
        println!("  attempt {attempt}");
        rival(attempt)
    })?;
    println!("  sold, {left} left");

    println!("{BUYERS} buyers at once, until all is sold:");
    let before = sessions.status().transactional.counts;
    rush(inventory)?;
    let after = sessions.status().transactional.counts;
    println!("  {} conflicts on the way", after.conflicts - before.conflicts);

    let (stock, sold): (i64, i64) = db.mget(&[&inventory.stock, &inventory.sold])?;
    println!("{sold} sold and {stock} left, of {STOCK}");
    if (stock, sold) == (0, STOCK) { Ok(()) } else { Err("stock and sales do not add up".into()) }
}

/// Errors of a purchase.
#[derive(Debug, thiserror::Error)]
enum PurchaseError {
    #[error("sold out")]
    SoldOut,
    #[error(transparent)]
    Redis(#[from] rediscope::Error),
}

/// A stock that is never sold below zero.
#[derive(Debug)]
struct Inventory {
    stock: String,
    sold: String,
    handle: Transactional,
}

impl Inventory {
    /// Buys one piece with a loop of its own. Returns the rest, or `None` if there is no stock.
    ///
    /// `meanwhile` is called between read and write, so that it can cause a conflict.
    fn buy_by_hand(
        &self,
        meanwhile: impl Fn(u32) -> Result<(), rediscope::Error>,
    ) -> Result<Option<i64>, rediscope::Error> {
        let watch = self.handle.watch([&self.stock]);
        let mut attempt = 0;
        loop {
            attempt += 1;
            // WATCH has its reply when this returns: every later change causes a conflict.
            let mut watching = watch.begin()?;
            let left: i64 = watching.get(&self.stock)?;
            println!("  attempt {attempt} reads {left}");
            if left < 1 {
                return Ok(None); // dropped: UNWATCH
            }
            let mut tx = watching.multi();
            let left = tx.decr(&self.stock, 1);
            tx.incr(&self.sold, 1);
            meanwhile(attempt)?;
            match tx.commit()? {
                Outcome::Committed(replies) => return Ok(Some(replies.get(left)?)),
                Outcome::Conflict => println!("  conflict: nothing was written"),
            }
        }
    }

    /// Buys one piece; the library retries, with a backoff and a bound.
    fn buy(
        &self,
        meanwhile: impl Fn(u32) -> Result<(), rediscope::Error>,
    ) -> Result<i64, PurchaseError> {
        self.handle.watch([&self.stock]).run_with(|read, tx| {
            let left: i64 = read.get(&self.stock)?;
            if left < 1 {
                return Err(PurchaseError::SoldOut);
            }
            meanwhile(read.attempt())?;
            let left = tx.decr(&self.stock, 1);
            tx.incr(&self.sold, 1);
            Ok(left)
        })
    }

    /// Writes without a read, and so without WATCH.
    fn buy_unwatched(&self) -> Result<(), rediscope::Error> {
        self.handle.run(|tx| Ok((tx.decr(&self.stock, 1), tx.incr(&self.sold, 1))))?;
        Ok(())
    }
}

/// All buyers buy until there is no stock.
fn rush(inventory: &Inventory) -> Result<(), Box<dyn Error>> {
    let buyer = || -> Result<u32, PurchaseError> {
        for bought in 0.. {
            match inventory.buy(|_| Ok(())) {
                Ok(_) => {}
                Err(PurchaseError::SoldOut) => return Ok(bought),
                Err(error) => return Err(error),
            }
        }
        Ok(u32::MAX)
    };
    thread::scope(|scope| {
        let buyers: Vec<_> = (0..BUYERS).map(|_| scope.spawn(buyer)).collect();
        for buyer in buyers {
            let bought = buyer.join().map_err(|_| "a buyer panicked")??;
            println!("  a buyer got {bought}");
        }
        Ok(())
    })
}
