//! Placing an order on both sides, and delivering later what did not arrive.

use std::error::Error;

use rediscope::{
    CommitError, Outcome, Replies, ReplyError, SessionManager, Transactional, prelude::*, redis,
};

use crate::books::{Books, Effect, Order, Row};
use crate::wire::{Fault, Wire};

/// How long a marker stays: longer than any row stays in the outbox.
const MARKER_SECONDS: u64 = 24 * 60 * 60;

/// What happens between SQL's commit and EXEC.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Between {
    Nothing,
    /// The process dies; another one finds the outbox.
    Crash,
    Fault(Fault),
}

/// Both sides.
#[derive(Debug)]
pub(crate) struct Shop {
    redis: Transactional,
    pub(crate) books: Books,
    prefix: String,
}

impl Shop {
    pub(crate) fn new(sessions: &SessionManager, books: Books, prefix: &str) -> Self {
        Self { redis: sessions.transactional(), books, prefix: prefix.to_owned() }
    }

    /// Both transactions, one in the other.
    pub(crate) fn place(
        &mut self,
        order: &Order,
        between: Between,
        wire: &Wire,
    ) -> Result<(), Box<dyn Error>> {
        let row = Row { order: order.clone(), effect: Effect::Reserve };
        let scope = self.redis.watch([self.marker(&row)]).begin()?;
        let mut tx = scope.multi();
        self.queue(&row, &mut tx);
        let sql = self.books.place(order)?;
        if let Err(error) = sql.commit() {
            println!("  told: {error:#}");
            println!("  neither side has it: the Redis transaction is dropped, nothing was sent");
            return Ok(());
        }
        match between {
            Between::Nothing => {}
            Between::Crash => return Ok(()),
            Between::Fault(fault) => wire.will(fault),
        }
        match tx.commit() {
            Ok(Outcome::Committed(_)) => self.delivered(&row, "applied"),
            // Its marker changed: another process found the row and delivered it meanwhile.
            Ok(Outcome::Conflict) => Ok(()),
            Err(error) => self.repair(&row, &error),
        }
    }

    /// Delivers what is in the outbox. It may run at any time, in any number of processes.
    ///
    /// Every delivery watches its marker, the first one included, and sets it. That is what makes
    /// it safe to deliver a row whose first EXEC is in doubt: should that EXEC still be on its way
    /// when the marker is set here, it finds a watched key changed, and does nothing. (A marker
    /// that is only read, and not watched, proves nothing while it is missing.)
    pub(crate) fn deliver_outbox(&mut self) -> Result<(), Box<dyn Error>> {
        for row in self.books.outbox()? {
            println!("  in the outbox: {} for order {}", row.effect.as_str(), row.order.id);
            let marker = self.marker(&row);
            let delivered = self.redis.watch([&marker]).run(|read, tx| {
                let there = read.exists(&marker)? == 1;
                if !there {
                    self.queue(&row, tx);
                }
                Ok(Ready(there))
            });
            match delivered {
                Ok(true) => {
                    self.delivered(&row, "its marker is there, so it was applied before")?
                }
                Ok(false) => self.delivered(&row, "applied now")?,
                Err(error) => match error.as_commit() {
                    Some(error) => self.repair(&row, error)?,
                    // Nothing was sent. The row stays for the next time.
                    None => println!("  told: {error:#}"),
                },
            }
        }
        Ok(())
    }

    fn delivered(&mut self, row: &Row, how: &str) -> Result<(), Box<dyn Error>> {
        println!("  {how}; Redis has it, the row is deleted");
        Ok(self.books.delivered(row)?)
    }

    /// EXEC failed, and the order stands in SQL.
    fn repair(&mut self, row: &Row, error: &CommitError) -> Result<(), Box<dyn Error>> {
        println!("  told: {error:#}");
        match error {
            CommitError::Rejected { .. } if !error.is_retryable() => {
                println!("  Redis has nothing of it and never will: the order is cancelled");
                self.books.cancel(row, None)?;
            }
            CommitError::PartlyApplied { replies, .. } if row.effect == Effect::Reserve => {
                let owed = has_taken_a_piece(replies).then_some(Effect::GiveBack);
                println!("  the order is cancelled; owed to Redis: {owed:?}");
                self.books.cancel(row, owed)?;
                if owed.is_some() {
                    self.deliver_outbox()?;
                }
            }
            CommitError::NotSent { .. }
            | CommitError::InDoubt(_)
            | CommitError::PinExpired(_)
            | CommitError::Rejected { .. } => println!("  the row stays"),
            // Giving back failed half-way, or the server runs transactions without isolation.
            _ => return Err(format!("somebody must look: {error:#}").into()),
        }
        Ok(())
    }

    fn marker(&self, row: &Row) -> String {
        format!("{}done:{}:{}", self.prefix, row.order.id, row.effect.as_str())
    }

    /// The row's effect, and its marker with it.
    fn queue(&self, row: &Row, tx: &mut impl QueueCommands) {
        let stock = format!("{}stock", self.prefix);
        match row.effect {
            Effect::Reserve => {
                tx.decr(stock, 1);
                tx.rpush(format!("{}picking:{}", self.prefix, row.order.list), row.order.id);
                if row.order.gift {
                    // No server knows this command, so it is refused while it is queued.
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

/// Each reply says whether its own command was applied.
fn has_taken_a_piece(replies: &Replies) -> bool {
    !replies
        .errors()
        .any(|error| matches!(error, ReplyError::Failed { command, .. } if command == "DECRBY"))
}
