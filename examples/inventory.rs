//! WATCH: read, decide, write, with nobody in between; by hand and by `run`, conflicts shown.
//!
//! ```text
//! cargo run --example inventory                   # a Redis server on 127.0.0.1:6379
//! REDIS_URL=redis://host/ cargo run --example inventory
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
    let shop = Shop {
        stock: format!("inventory:{run:016x}:stock"),
        sold: format!("inventory:{run:016x}:sold"),
        handle: sessions.transactional(),
    };
    let shown = show(&sessions, &shop);
    let removed = sessions.pooled().unlink(&[&shop.stock, &shop.sold]);
    // The first error is the one to tell.
    shown?;
    Ok(removed?)
}

fn show(sessions: &SessionManager, shop: &Shop) -> Result<(), Box<dyn Error>> {
    let mut db = sessions.pooled();
    let _: () = db.set(&shop.stock, STOCK)?;
    // Somebody who always buys one while another buyer is at their first attempt.
    let rival = |attempt| if attempt == 1 { shop.buy_unwatched() } else { Ok(()) };

    println!("by hand, and somebody else buys in between:");
    let left = shop.buy_by_hand(rival)?;
    println!("  sold, {left:?} left");

    println!("by run, with the same rival:");
    let left = shop.buy(|attempt| {
        println!("  attempt {attempt}");
        rival(attempt)
    })?;
    println!("  sold, {left} left");

    println!("{BUYERS} buyers at once, until all is sold:");
    let before = sessions.status().transactional.counts;
    rush(shop)?;
    let after = sessions.status().transactional.counts;
    println!("  {} conflicts on the way", after.conflicts - before.conflicts);

    let (stock, sold): (i64, i64) = db.mget(&[&shop.stock, &shop.sold])?;
    println!("{sold} sold and {stock} left, of {STOCK}");
    if (stock, sold) == (0, STOCK) { Ok(()) } else { Err("the books do not add up".into()) }
}

/// What buying can fail with.
#[derive(Debug, thiserror::Error)]
enum ShopError {
    #[error("sold out")]
    SoldOut,
    #[error(transparent)]
    Redis(#[from] rediscope::Error),
}

/// A shop that never sells what it has not got.
#[derive(Debug)]
struct Shop {
    stock: String,
    sold: String,
    handle: Transactional,
}

impl Shop {
    /// With the loop written out. Returns what is left, or `None` where nothing was to be had.
    ///
    /// `meanwhile` is called between reading and writing, where others get in.
    fn buy_by_hand(
        &self,
        meanwhile: impl Fn(u32) -> Result<(), rediscope::Error>,
    ) -> Result<Option<i64>, rediscope::Error> {
        let watch = self.handle.watch([&self.stock]);
        let mut attempt = 0;
        loop {
            attempt += 1;
            // WATCH was answered when this returns: no change from here on goes unnoticed.
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

    /// The same, but the library has the loop, with a backoff and a bound.
    fn buy(
        &self,
        meanwhile: impl Fn(u32) -> Result<(), rediscope::Error>,
    ) -> Result<i64, ShopError> {
        self.handle.watch([&self.stock]).run_with(|read, tx| {
            let left: i64 = read.get(&self.stock)?;
            if left < 1 {
                return Err(ShopError::SoldOut);
            }
            meanwhile(read.attempt())?;
            let left = tx.decr(&self.stock, 1);
            tx.incr(&self.sold, 1);
            Ok(left)
        })
    }

    /// Two writes at once, and no look at what is there.
    fn buy_unwatched(&self) -> Result<(), rediscope::Error> {
        self.handle.run(|tx| Ok((tx.decr(&self.stock, 1), tx.incr(&self.sold, 1))))?;
        Ok(())
    }
}

/// Everybody buys until there is nothing left.
fn rush(shop: &Shop) -> Result<(), Box<dyn Error>> {
    let buyer = || -> Result<u32, ShopError> {
        for bought in 0.. {
            match shop.buy(|_| Ok(())) {
                Ok(_) => {}
                Err(ShopError::SoldOut) => return Ok(bought),
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
