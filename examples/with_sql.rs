//! A SQL transaction and a Redis transaction together, and what to do when the second one fails.
//!
//! ```text
//! cargo run --example with_sql                   # a Redis server on 127.0.0.1:6379
//! REDIS_URL=redis://host/ cargo run --example with_sql
//! ```
//!
//! An order is written to SQL (SQLite, in memory); its effects, one piece less in stock and a line
//! on the picking list, are written to Redis. No commit spans both, so:
//!
//! 1. The Redis scope is opened first: its connection is there and alive before SQL decides.
//! 2. The SQL transaction writes the order, and a row in the *outbox*: what Redis has not got yet.
//! 3. SQL commits. From here on the order stands, whatever happens.
//! 4. EXEC. What the library tells then decides what becomes of the row:
//!
//! | told | the row |
//! |---|---|
//! | `Committed` | is deleted |
//! | `NotSent`, or the process died | stays, and is delivered later |
//! | `InDoubt` | stays, and is delivered later, unless its marker is there |
//! | `Rejected` | is deleted and the order cancelled: Redis has nothing of it |
//! | `PartlyApplied` | is replaced by one that takes back what was applied; the order is cancelled |
//!
//! Each failure is brought about here on purpose, by a proxy that loses what it is told to.
//!
//! Its keys are under one random prefix and are removed at the end.

#[path = "with_sql/books.rs"]
mod books;
#[path = "support/keys.rs"]
mod keys;
#[path = "with_sql/shop.rs"]
mod shop;
#[path = "with_sql/wire.rs"]
mod wire;

use std::error::Error;
use std::time::Duration;

use rediscope::redis::IntoConnectionInfo;
use rediscope::{SessionManager, prelude::*};

use books::{Books, Order};
use shop::{Between, Shop};
use wire::{Fault, Wire};

const STOCK: i64 = 100;

fn main() -> Result<(), Box<dyn Error>> {
    keys::with_prefix("with_sql", show)
}

fn show(url: &str, prefix: &str) -> Result<(), Box<dyn Error>> {
    let info = url.into_connection_info()?;
    let wire = Wire::to(info.addr())?;
    let sessions = SessionManager::builder(info.set_addr(wire.address()))
        // Every connection is asked before it is used, so that which failure is told does not
        // depend on how fast this program gets along. (In a program of yours the default will do:
        // all of these failures are handled, whichever it is.)
        .trust_window(Duration::ZERO)
        .build()?;
    let mut db = sessions.pooled();
    let _: () = db.set(format!("{prefix}stock"), STOCK)?;
    // Somebody's mistake: this should be a list.
    let _: () = db.set(format!("{prefix}picking:express"), "no list")?;

    let mut shop = Shop::new(&sessions, Books::open()?, prefix);
    for (title, order, between) in incidents() {
        println!("order {}: {title}", order.id);
        shop.place(&order, between, &wire)?;
        shop.deliver_outbox()?;
    }
    compare(&mut db, &shop, prefix)
}

/// One order for each thing that can happen.
fn incidents() -> [(&'static str, Order, Between); 8] {
    let order = |id| Order { id, customer: 1, list: "standard".to_owned(), gift: false };
    [
        ("nothing goes wrong", order(1), Between::Nothing),
        ("SQL refuses to commit", Order { customer: 404, ..order(2) }, Between::Nothing),
        ("the process dies between the commits", order(3), Between::Crash),
        (
            "the connection dies before the commands",
            order(4),
            Between::Fault(Fault::BeforeCommands),
        ),
        ("EXEC is lost", order(5), Between::Fault(Fault::ExecLost)),
        ("EXEC's answer is lost", order(6), Between::Fault(Fault::AnswerLost)),
        ("the server refuses a command", Order { gift: true, ..order(7) }, Between::Nothing),
        (
            "a command fails while the others are applied",
            Order { list: "express".to_owned(), ..order(8) },
            Between::Nothing,
        ),
    ]
}

/// Both sides must tell the same story in the end.
fn compare(db: &mut rediscope::Pooled, shop: &Shop, prefix: &str) -> Result<(), Box<dyn Error>> {
    let placed = shop.books.placed()?;
    let picking: Vec<i64> = db.lrange(format!("{prefix}picking:standard"), 0, -1)?;
    let left: i64 = db.get(format!("{prefix}stock"))?;
    let waiting = shop.books.outbox()?.len();
    println!("SQL: orders {placed:?} stand, {waiting} rows in the outbox");
    println!("Redis: {left} of {STOCK} left, to be picked: {picking:?}");
    if placed == picking && left == STOCK - placed.len() as i64 && waiting == 0 {
        Ok(())
    } else {
        Err("SQL and Redis do not agree".into())
    }
}
