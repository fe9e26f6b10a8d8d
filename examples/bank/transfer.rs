//! One transfer: what it is to be, how it is made, and what its maker was told.

use std::panic::{catch_unwind, panic_any, resume_unwind};

use rediscope::{Begin, CommitError, Queued, TransactionOptions, Transactional, prelude::*, redis};

use crate::links::Links;

/// The ledger is one hash a shard, since a single one of 200,000 fields would be read in one go.
pub(crate) const LEDGER_SHARDS: u64 = 64;
/// Large enough, next to what an account begins with, that some run out of money.
const LARGEST_AMOUNT: i64 = 100;

/// One transfer. Number and seed say all about it, so that the audit can replay it.
#[derive(Debug)]
pub(crate) struct Transfer {
    pub(crate) id: u64,
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) amount: i64,
    fate: Fate,
}

/// What its maker does in the middle of it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    /// Nothing: it goes through, if there is money enough.
    Goes,
    /// Thinks better of it and drops the transaction.
    Dropped,
    /// Meets a bug.
    Panics,
}

impl Transfer {
    pub(crate) fn nth(id: u64, seed: u64, accounts: usize) -> Self {
        let mut random = fastrand::Rng::with_seed(seed ^ id.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let from = random.usize(..accounts);
        Self {
            id,
            from,
            to: (from + random.usize(1..accounts)) % accounts,
            amount: random.i64(1..=LARGEST_AMOUNT),
            fate: match random.u32(..1000) {
                0..10 => Fate::Dropped,
                10..15 => Fate::Panics,
                _ => Fate::Goes,
            },
        }
    }
}

/// What the maker of a transfer was told.
#[derive(Debug)]
pub(crate) enum Told {
    /// It was applied.
    Committed,
    /// Its own error, returned early: there was not money enough.
    Broke,
    /// It was dropped.
    Dropped,
    /// It panicked before its block was over.
    Panicked,
    /// EXEC was sent and the answer was lost.
    InDoubt,
    /// Anything else. Nobody is to see one of these.
    Failed(rediscope::Error),
}

/// What a transfer's closure can fail with: its own, or the library's.
#[derive(Debug)]
enum BankError {
    Broke,
    Redis(rediscope::Error),
}

impl From<rediscope::Error> for BankError {
    fn from(error: rediscope::Error) -> Self {
        Self::Redis(error)
    }
}

/// What a panicking transfer panics with.
#[derive(Debug)]
struct Bug;

/// Has the panics that belong to the demo say nothing, and all others what they always say.
pub(crate) fn expect_bugs() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !panic.payload().is::<Bug>() {
            usual(panic);
        }
    }));
}

/// Where the transfers are made.
#[derive(Debug)]
pub(crate) struct Bank {
    pub(crate) handle: Transactional,
    pub(crate) prefix: String,
    pub(crate) links: Links,
}

impl Bank {
    pub(crate) fn account(&self, number: usize) -> String {
        format!("{}account:{number}", self.prefix)
    }

    pub(crate) fn ledger(&self, shard: u64) -> String {
        format!("{}ledger:{shard}", self.prefix)
    }

    /// Makes one transfer, once, and says what came of it.
    pub(crate) fn make(&self, transfer: &Transfer) -> Told {
        if transfer.fate == Fate::Dropped {
            return match self.queue_and_drop(transfer) {
                Ok(()) => Told::Dropped,
                Err(error) => Told::Failed(error),
            };
        }
        match catch_unwind(|| self.watch_and_move(transfer)) {
            Ok(Ok(link)) => {
                self.links.note(link);
                Told::Committed
            }
            Ok(Err(BankError::Broke)) => Told::Broke,
            Ok(Err(BankError::Redis(error))) => match error.as_commit() {
                Some(CommitError::InDoubt(_)) => Told::InDoubt,
                _ => Told::Failed(error),
            },
            Err(panic) if panic.is::<Bug>() => Told::Panicked,
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Read, decide, write; some meet a bug when everything is queued already.
    ///
    /// Returns the server's number for the connection it went over.
    #[expect(clippy::panic, reason = "a panic inside the closure is one of the things shown")]
    fn watch_and_move(&self, transfer: &Transfer) -> Result<i64, BankError> {
        let keys = [self.account(transfer.from), self.account(transfer.to)];
        self.handle.watch(&keys).run_with(|read, tx| {
            let (from, _to): (i64, i64) = read.mget(&keys)?;
            if from < transfer.amount {
                return Err(BankError::Broke);
            }
            let link = self.queue(transfer, tx);
            if transfer.fate == Fate::Panics {
                panic_any(Bug);
            }
            Ok(link)
        })
    }

    /// MULTI is sent at once here, so that dropping has a DISCARD to send.
    fn queue_and_drop(&self, transfer: &Transfer) -> Result<(), rediscope::Error> {
        let at_once = TransactionOptions::new().begin(Begin::Immediate);
        let mut tx = self.handle.begin_with(at_once)?;
        self.queue(transfer, &mut tx);
        drop(tx);
        Ok(())
    }

    /// Moves the money and counts the transfer in the ledger, all in one transaction.
    ///
    /// CLIENT ID rides along: it costs no round trip, and tells the killer a connection that is
    /// this program's own.
    fn queue(&self, transfer: &Transfer, tx: &mut impl QueueCommands) -> Queued<i64> {
        tx.decr(self.account(transfer.from), transfer.amount);
        tx.incr(self.account(transfer.to), transfer.amount);
        tx.hincr(self.ledger(transfer.id % LEDGER_SHARDS), transfer.id, 1);
        tx.queue(redis::cmd("CLIENT").arg("ID").take())
    }
}
