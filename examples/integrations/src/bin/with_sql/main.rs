//! A SQL transaction and a Redis transaction together, and what to do when the second one fails.
//!
//! ```text
//! cargo run -p rediscope-integrations --bin with_sql          # a Redis server on 127.0.0.1:6379
//! REDIS_URL=redis://host/ cargo run -p rediscope-integrations --bin with_sql
//! ```
//!
//! An order is written to SQL (SQLite, in memory). Its effects, one piece less in stock and a line on
//! the picking list, are written to Redis. No commit spans both, so:
//!
//! 1. The Redis scope is opened first: its connection is alive before SQL decides.
//! 2. The SQL transaction writes the order, and a row in the *outbox*: the effect that Redis lacks.
//! 3. SQL commits. From here on the order stands, even if the process dies.
//! 4. EXEC. Its result decides about the row:
//!
//! | result | the row |
//! |---|---|
//! | `Committed` | is deleted |
//! | `NotSent`, or the process died | stays, and is delivered later |
//! | `InDoubt` | stays, and is delivered later, unless its marker exists |
//! | `Rejected` | is deleted and the order cancelled: nothing was applied |
//! | `PartlyApplied` | is replaced by one that undoes the applied part; the order is cancelled |
//!
//! A proxy causes each failure here on purpose.
//!
//! Its keys are under one random prefix and are removed at the end.

mod database;
mod orders;
mod proxy;

use std::error::Error;
use std::time::Duration;

use rediscope::redis::IntoConnectionInfo;
use rediscope::{SessionManager, prelude::*};
use rediscope_examples::keys;

use database::{Database, Order};
use orders::{Between, Orders};
use proxy::{Fault, FaultProxy};

const STOCK: i64 = 100;

fn main() -> Result<(), Box<dyn Error>> {
    keys::with_prefix("with_sql", show)
}

fn show(url: &str, prefix: &str) -> Result<(), Box<dyn Error>> {
    let info = url.into_connection_info()?;
    let proxy = FaultProxy::start(info.addr())?;
    let sessions = SessionManager::builder(info.set_addr(proxy.address()))
        // Every connection is checked before use, so that the kind of each failure does not depend
        // on this program's speed. A program that handles all of them can keep the default.
        .trust_window(Duration::ZERO)
        .build()?;
    let mut db = sessions.pooled();
    let _: () = db.set(format!("{prefix}stock"), STOCK)?;
    // A mistake on purpose: this should be a list.
    let _: () = db.set(format!("{prefix}picking:express"), "no list")?;

    let mut orders = Orders::new(&sessions, Database::open()?, prefix);
    for (title, order, between) in incidents() {
        println!("order {}: {title}", order.id);
        orders.place(&order, between, &proxy)?;
        orders.deliver_outbox()?;
    }
    compare(&mut db, &orders, prefix)
}

/// One order for each kind of failure, and one without.
fn incidents() -> [(&'static str, Order, Between); 8] {
    let order = |id| Order { id, customer: 1, list: "standard".to_owned(), gift: false };
    [
        ("nothing goes wrong", order(1), Between::Nothing),
        ("SQL rejects the commit", Order { customer: 404, ..order(2) }, Between::Nothing),
        ("the process dies between the commits", order(3), Between::Crash),
        (
            "the connection dies before the commands",
            order(4),
            Between::Fault(Fault::BeforeCommands),
        ),
        ("EXEC is lost", order(5), Between::Fault(Fault::ExecLost)),
        ("the reply to EXEC is lost", order(6), Between::Fault(Fault::ReplyLost)),
        ("the server rejects a command", Order { gift: true, ..order(7) }, Between::Nothing),
        (
            "a command fails while the others are applied",
            Order { list: "express".to_owned(), ..order(8) },
            Between::Nothing,
        ),
    ]
}

/// Fails unless both sides have the same orders.
fn compare(
    db: &mut rediscope::Pooled,
    orders: &Orders,
    prefix: &str,
) -> Result<(), Box<dyn Error>> {
    let placed = orders.database.placed()?;
    let picking: Vec<i64> = db.lrange(format!("{prefix}picking:standard"), 0, -1)?;
    let left: i64 = db.get(format!("{prefix}stock"))?;
    let waiting = orders.database.outbox()?.len();
    println!("SQL: orders {placed:?} stand, {waiting} rows in the outbox");
    println!("Redis: {left} of {STOCK} left, to be picked: {picking:?}");
    if placed == picking && left == STOCK - placed.len() as i64 && waiting == 0 {
        Ok(())
    } else {
        Err("SQL and Redis do not agree".into())
    }
}
