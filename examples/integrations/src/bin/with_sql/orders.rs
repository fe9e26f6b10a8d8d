//! Places an order on both sides, and delivers lost effects later.

use std::error::Error;

use rediscope::error::ReplyError;
use rediscope::{CommitError, Outcome, Replies, SessionManager, Transactional, prelude::*, redis};

use crate::database::{Database, Effect, Order, Row};
use crate::proxy::{Fault, FaultProxy};

/// Lifetime of a marker: longer than any row stays in the outbox.
const MARKER_SECONDS: u64 = 24 * 60 * 60;

/// The event between SQL's commit and EXEC.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Between {
    Nothing,
    /// The process dies; another one reads the outbox.
    Crash,
    Fault(Fault),
}

/// Both sides.
#[derive(Debug)]
pub(crate) struct Orders {
    redis: Transactional,
    pub(crate) database: Database,
    prefix: String,
}

impl Orders {
    pub(crate) fn new(sessions: &SessionManager, database: Database, prefix: &str) -> Self {
        Self { redis: sessions.transactional(), database, prefix: prefix.to_owned() }
    }

    /// Runs both transactions, SQL inside Redis.
    pub(crate) fn place(
        &mut self,
        order: &Order,
        between: Between,
        proxy: &FaultProxy,
    ) -> Result<(), Box<dyn Error>> {
        let row = Row { order: order.clone(), effect: Effect::Reserve };
        let scope = self.redis.watch([self.marker(&row)]).begin()?;
        let mut tx = scope.multi();
        self.queue(&row, &mut tx);
        let sql = self.database.place(order)?;
        if let Err(error) = sql.commit() {
            println!("  error: {error:#}");
            println!("  neither side has it: the Redis transaction is dropped, nothing was sent");
            return Ok(());
        }
        match between {
            Between::Nothing => {}
            Between::Crash => return Ok(()),
            Between::Fault(fault) => proxy.cause(fault),
        }
        match tx.commit() {
            Ok(Outcome::Committed(_)) => self.delivered(&row, "applied"),
            // Its marker changed: another process has delivered the row.
            Ok(Outcome::Conflict) => Ok(()),
            Err(error) => self.repair(&row, &error),
        }
    }

    /// Delivers the rows of the outbox. It may run at any time, in any number of processes.
    ///
    /// Every delivery watches its marker, the first one included, and sets it. So a row can be
    /// delivered even if its first EXEC is in doubt: an EXEC that arrives after the marker was set
    /// here finds a watched key changed, and applies nothing. (A marker that is read without WATCH
    /// proves nothing while it is missing.)
    pub(crate) fn deliver_outbox(&mut self) -> Result<(), Box<dyn Error>> {
        for row in self.database.outbox()? {
            println!("  in the outbox: {} for order {}", row.effect.as_str(), row.order.id);
            let marker = self.marker(&row);
            let delivered = self.redis.watch([&marker]).run(|read, tx| {
                let exists = read.exists(&marker)? == 1;
                if !exists {
                    self.queue(&row, tx);
                }
                Ok(Ready(exists))
            });
            match delivered {
                Ok(true) => self.delivered(&row, "its marker exists, so it was applied before")?,
                Ok(false) => self.delivered(&row, "applied now")?,
                Err(error) => self.repair(&row, &error)?,
            }
        }
        Ok(())
    }

    fn delivered(&mut self, row: &Row, how: &str) -> Result<(), Box<dyn Error>> {
        println!("  {how}; Redis has it, the row is deleted");
        Ok(self.database.delivered(row)?)
    }

    /// The commit failed, and the order stands in SQL.
    fn repair(&mut self, row: &Row, error: &rediscope::Error) -> Result<(), Box<dyn Error>> {
        println!("  error: {error:#}");
        match error.as_commit() {
            Some(CommitError::Rejected { .. }) if !error.is_retryable() => {
                println!("  Redis has nothing of it and never will: the order is cancelled");
                self.database.cancel(row, None)?;
            }
            Some(CommitError::PartlyApplied { replies, .. }) if row.effect == Effect::Reserve => {
                let owed = has_taken_a_piece(replies).then_some(Effect::GiveBack);
                println!("  the order is cancelled; owed to Redis: {owed:?}");
                self.database.cancel(row, owed)?;
                if owed.is_some() {
                    self.deliver_outbox()?;
                }
            }
            // Not applied, or in doubt: the next delivery finds out by the marker.
            _ if error.replies().is_none() => println!("  the row stays"),
            // The undo was applied in part, or the server runs transactions without isolation.
            _ => return Err(format!("an operator must check: {error:#}").into()),
        }
        Ok(())
    }

    fn marker(&self, row: &Row) -> String {
        format!("{}done:{}:{}", self.prefix, row.order.id, row.effect.as_str())
    }

    /// Queues the row's effect and its marker.
    fn queue(&self, row: &Row, tx: &mut impl QueueCommands) {
        let stock = format!("{}stock", self.prefix);
        match row.effect {
            Effect::Reserve => {
                tx.decr(stock, 1);
                tx.rpush(format!("{}picking:{}", self.prefix, row.order.list), row.order.id);
                if row.order.gift {
                    // No server knows this command, so it is rejected while queueing.
                    tx.queue::<()>(redis::cmd("GIFTWRAP").arg(row.order.id).take());
                }
            }
            Effect::GiveBack => {
                tx.incr(stock, 1);
            }
        }
        tx.set_ex(self.marker(row), "done", MARKER_SECONDS);
    }
}

/// Whether DECRBY was applied, by the reply to that command.
fn has_taken_a_piece(replies: &Replies) -> bool {
    !replies
        .errors()
        .any(|error| matches!(error, ReplyError::Failed { command, .. } if command == "DECRBY"))
}
