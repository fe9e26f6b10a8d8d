//! Parts of a transaction: kept, forgotten, nested.
//!
//! ```text
//! cargo run -p rediscope-examples --bin savepoint          # a Redis server on 127.0.0.1:6379
//! REDIS_URL=redis://host/ cargo run -p rediscope-examples --bin savepoint
//! ```
//!
//! Redis has no ROLLBACK. A part is undone before it is sent: its commands never leave this process,
//! so undoing it costs nothing and cannot fail.
//!
//! Its keys begin with `savepoint:` and are removed at the end.

use std::collections::BTreeMap;
use std::error::Error;
use std::num::ParseIntError;

use rediscope::error::ReplyError;
use rediscope::{SessionManager, Transactional, prelude::*};

fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1/".to_owned());
    let sessions = SessionManager::connect(url)?;
    let order = format!("savepoint:{:016x}:order", fastrand::u64(..));
    let shown = show(&sessions, &order);
    let removed = sessions.pooled().unlink(&order);
    // Keys are removed after a failure as well; the first error is returned.
    shown?;
    Ok(removed?)
}

fn show(sessions: &SessionManager, order: &str) -> Result<(), Box<dyn Error>> {
    let orders = sessions.transactional();
    by_guard(&orders, order)?;
    for code in ["15", "fifteen"] {
        by_closure(&orders, order, code)?;
    }
    nested(&orders, order)?;
    let fields: BTreeMap<String, String> = sessions.pooled().hgetall(order)?;
    println!("the order in the end: {fields:?}");
    let kept: Vec<_> = fields.keys().map(String::as_str).collect();
    let expected = ["discount", "discounted", "items", "parcel", "state"];
    if kept == expected { Ok(()) } else { Err("a part was kept or forgotten by mistake".into()) }
}

/// A savepoint is a guard: `release` keeps its commands, its drop forgets them.
fn by_guard(orders: &Transactional, order: &str) -> Result<(), rediscope::Error> {
    let mut tx = orders.begin()?;
    let items = tx.hincr(order, "items", 3);

    let mut state = tx.savepoint();
    state.hset(order, "state", "placed");
    state.release();

    let mut gift = tx.savepoint();
    let wrapped = gift.hset(order, "gift", "wrapped");
    drop(gift);

    let replies = tx.commit()?;
    println!("{} items; {} commands were applied", replies.get(items)?, replies.len());
    // A handle of a forgotten part returns an error, and never the reply of another command.
    match replies.get(wrapped) {
        Err(rediscope::Error::Reply(ReplyError::Forgotten)) => println!("the gift was forgotten"),
        other => println!("not as expected: {other:?}"),
    }
    Ok(())
}

/// A part by closure: kept if it returns `Ok`, forgotten if it returns `Err` or panics.
fn by_closure(orders: &Transactional, order: &str, code: &str) -> Result<(), rediscope::Error> {
    let discount = orders.run(|tx| {
        let discount = tx.part(|part| {
            part.hincr(order, "discounted", 1);
            let percent: u8 = code.parse()?;
            Ok::<_, ParseIntError>(part.hset(order, "discount", percent))
        });
        // The transaction goes on, with the part or without.
        Ok(discount.ok())
    })?;
    match discount {
        Some(_) => println!("code {code:?}: discount given"),
        None => println!("code {code:?}: not a number, and no discount counted"),
    }
    Ok(())
}

/// Parts nest. A forgotten part also forgets the parts inside it.
fn nested(orders: &Transactional, order: &str) -> Result<(), rediscope::Error> {
    let mut tx = orders.begin()?;

    let mut delivery = tx.savepoint();
    delivery.hset(order, "parcel", "small");
    let mut express = delivery.savepoint();
    express.hset(order, "express", "yes");
    drop(express); // forgotten alone
    delivery.release();

    let mut invoice = tx.savepoint();
    let mut reminder = invoice.savepoint();
    reminder.hset(order, "reminder", "in a week");
    reminder.release(); // kept only if the invoice is
    drop(invoice);

    let replies = tx.commit()?;
    println!("of three writes in four parts, {} was kept", replies.len());
    Ok(())
}
