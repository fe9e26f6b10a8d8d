//! One transfer: its amount and accounts, how it is made, and its result.

use std::panic::{catch_unwind, panic_any, resume_unwind};

use rediscope::{
    Begin, CommitError, Error, Queued, TransactionOptions, Transactional, prelude::*, redis,
};

use crate::connections::OwnConnections;

/// Number of hashes that hold the ledger: one HGETALL over 200,000 fields would block the server.
pub(crate) const LEDGER_SHARDS: u64 = 64;
/// Maximum amount, large enough that some accounts run out of money.
const LARGEST_AMOUNT: i64 = 100;

/// One transfer. It follows from number and seed alone, so that the audit can replay it.
#[derive(Debug)]
pub(crate) struct Transfer {
    pub(crate) id: u64,
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) amount: i64,
    ending: Ending,
}

/// How the closure of a transfer ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ending {
    /// It commits, if the account has enough money.
    Commits,
    /// The transaction is dropped.
    Dropped,
    /// It panics.
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
            ending: match random.u32(..1000) {
                0..10 => Ending::Dropped,
                10..15 => Ending::Panics,
                _ => Ending::Commits,
            },
        }
    }
}

/// What the caller saw of one transfer.
#[derive(Debug)]
pub(crate) enum TransferResult {
    /// The commit succeeded.
    Committed,
    /// The closure returned its own error: the account had too little money.
    Broke,
    /// The transaction was dropped.
    Dropped,
    /// The closure panicked.
    Panicked,
    /// EXEC was sent and its reply was lost.
    InDoubt,
    /// Any other error, which fails the run.
    Failed(Error),
}

/// Errors of a transfer's closure: its own, and the library's.
#[derive(Debug, thiserror::Error)]
enum BankError {
    #[error("there is not enough money")]
    Broke,
    #[error(transparent)]
    Redis(#[from] Error),
}

/// The payload of an intended panic.
#[derive(Debug)]
struct Bug;

/// Silences the intended panics; all others are printed as before.
pub(crate) fn expect_bugs() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !panic.payload().is::<Bug>() {
            usual(panic);
        }
    }));
}

/// Makes transfers on the accounts under one prefix.
#[derive(Debug)]
pub(crate) struct Bank {
    pub(crate) handle: Transactional,
    pub(crate) prefix: String,
    pub(crate) connections: OwnConnections,
}

impl Bank {
    pub(crate) fn account(&self, number: usize) -> String {
        format!("{}account:{number}", self.prefix)
    }

    pub(crate) fn ledger(&self, shard: u64) -> String {
        format!("{}ledger:{shard}", self.prefix)
    }

    /// Makes one transfer and returns what the caller saw.
    pub(crate) fn make(&self, transfer: &Transfer) -> TransferResult {
        if transfer.ending == Ending::Dropped {
            return match self.queue_and_drop(transfer) {
                Ok(()) => TransferResult::Dropped,
                Err(error) => TransferResult::Failed(error),
            };
        }
        match catch_unwind(|| self.watch_and_move(transfer)) {
            Ok(Ok(id)) => {
                self.connections.add(id);
                TransferResult::Committed
            }
            Ok(Err(BankError::Broke)) => TransferResult::Broke,
            Ok(Err(BankError::Redis(Error::Commit(CommitError::InDoubt(_))))) => {
                TransferResult::InDoubt
            }
            Ok(Err(BankError::Redis(error))) => TransferResult::Failed(error),
            Err(panic) if panic.is::<Bug>() => TransferResult::Panicked,
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Reads, decides and writes; some transfers panic once everything is queued.
    ///
    /// Returns the CLIENT ID of the connection.
    #[expect(clippy::panic, reason = "the demo shows a panic inside the closure")]
    fn watch_and_move(&self, transfer: &Transfer) -> Result<i64, BankError> {
        let keys = [self.account(transfer.from), self.account(transfer.to)];
        self.handle.watch(&keys).run_with(|read, tx| {
            let (from, _to): (i64, i64) = read.mget(&keys)?;
            if from < transfer.amount {
                return Err(BankError::Broke);
            }
            let id = self.queue(transfer, tx);
            if transfer.ending == Ending::Panics {
                panic_any(Bug);
            }
            Ok(id)
        })
    }

    /// Sends MULTI at once, so that the drop has to send DISCARD.
    fn queue_and_drop(&self, transfer: &Transfer) -> Result<(), Error> {
        let immediate = TransactionOptions::new().begin(Begin::Immediate);
        let mut tx = self.handle.begin_with(immediate)?;
        self.queue(transfer, &mut tx);
        drop(tx);
        Ok(())
    }

    /// Moves the money and counts the transfer in the ledger, all in one transaction.
    ///
    /// CLIENT ID is queued with them: it costs no round trip, and makes the connection known to the
    /// killer.
    fn queue(&self, transfer: &Transfer, tx: &mut impl QueueCommands) -> Queued<i64> {
        tx.decr(self.account(transfer.from), transfer.amount);
        tx.incr(self.account(transfer.to), transfer.amount);
        tx.hincr(self.ledger(transfer.id % LEDGER_SHARDS), transfer.id, 1);
        tx.queue(redis::cmd("CLIENT").arg("ID").take())
    }
}
