//! One transfer: its amount and accounts, what is queued for it, and its result.

use rediscope::{CommitError, Error, Queued, prelude::*, redis};

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
    pub(crate) ending: Ending,
}

/// How the closure of a transfer ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Ending {
    /// It commits, if the account has enough money.
    Commits,
    /// The transaction is dropped.
    Dropped,
    /// It panics.
    Panics,
    /// A task drops the future after so many polls; a thread commits.
    Cancelled { polls: u32 },
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
                15..35 => Ending::Cancelled { polls: random.u32(1..=6) },
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
    /// The future was dropped before its end, so the caller knows nothing.
    Cancelled,
    /// Any other error, which fails the run.
    Failed(Error),
}

/// Errors of a transfer's closure: its own, and the library's.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BankError {
    #[error("there is not enough money")]
    Broke,
    #[error(transparent)]
    Redis(#[from] Error),
}

/// The payload of an intended panic.
#[derive(Debug)]
pub(crate) struct Bug;

/// Silences the intended panics; all others are printed as before.
pub(crate) fn expect_bugs() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !panic.payload().is::<Bug>() {
            usual(panic);
        }
    }));
}

impl From<Result<i64, BankError>> for TransferResult {
    fn from(moved: Result<i64, BankError>) -> Self {
        match moved {
            Ok(_) => Self::Committed,
            Err(BankError::Broke) => Self::Broke,
            Err(BankError::Redis(Error::Commit(CommitError::InDoubt(_)))) => Self::InDoubt,
            Err(BankError::Redis(error)) => Self::Failed(error),
        }
    }
}

/// The keys of one run, and its connections.
#[derive(Debug)]
pub(crate) struct Ledger {
    pub(crate) prefix: String,
    pub(crate) connections: OwnConnections,
}

impl Ledger {
    pub(crate) fn account(&self, number: usize) -> String {
        format!("{}account:{number}", self.prefix)
    }

    pub(crate) fn shard(&self, shard: u64) -> String {
        format!("{}ledger:{shard}", self.prefix)
    }

    /// Moves the money and counts the transfer in the ledger, all in one transaction.
    ///
    /// CLIENT ID is queued with them: it costs no round trip, and makes the connection known to the
    /// killer.
    pub(crate) fn queue(&self, transfer: &Transfer, tx: &mut impl QueueCommands) -> Queued<i64> {
        tx.decr(self.account(transfer.from), transfer.amount);
        tx.incr(self.account(transfer.to), transfer.amount);
        tx.hincr(self.shard(transfer.id % LEDGER_SHARDS), transfer.id, 1);
        tx.queue(redis::cmd("CLIENT").arg("ID").take())
    }

    /// Notes the CLIENT ID of a transfer that was applied.
    pub(crate) fn note(&self, moved: &Result<i64, BankError>) {
        if let Ok(id) = moved {
            self.connections.add(*id);
        }
    }
}
