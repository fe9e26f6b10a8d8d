//! Transfers by threads.

use std::panic::{catch_unwind, panic_any, resume_unwind};
use std::thread;
use std::time::Duration;

use rediscope::{
    Begin, Error, SessionManager, TransactionOptions, Transactional, prelude::*, redis,
};

use crate::transfer::{BankError, Bug, Ending, Ledger, Transfer, TransferResult};
use crate::workload::{Results, Workload};

/// Makes transfers on the accounts of one run.
#[derive(Debug)]
struct Bank<'a> {
    handle: Transactional,
    ledger: &'a Ledger,
}

/// Makes the workload's transfers, and reads beside them.
pub(crate) fn run(
    workload: &Workload,
    sessions: &SessionManager,
    options: TransactionOptions,
    ledger: &Ledger,
    admin: redis::Connection,
) -> Result<Results, Box<dyn std::error::Error>> {
    let bank = Bank { handle: sessions.transactional().with(options), ledger };
    thread::scope(|scope| {
        let killer = scope.spawn(|| workload.kill(ledger, admin));
        let reader = scope.spawn(|| read(workload, ledger, sessions));
        let workers: Vec<_> =
            (0..workload.plan.workers).map(|_| scope.spawn(|| transfer(workload, &bank))).collect();
        let results: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        workload.finish();
        killer.join().map_err(|_| "the killer panicked")??;
        reader.join().map_err(|_| "the reader panicked")?;
        let results: Result<Vec<_>, _> = results.into_iter().collect();
        let results = results.map_err(|_| "a worker panicked outside of its transfers")?;
        Ok(results.into_iter().flatten().collect())
    })
}

/// Makes transfers until all of the plan are made.
fn transfer(workload: &Workload, bank: &Bank<'_>) -> Results {
    std::iter::from_fn(|| workload.next())
        .map(|transfer| (transfer.id, bank.make(&transfer)))
        .collect()
}

/// Reads a balance now and then, over the pooled handle. In between, its connection is idle for
/// longer than `trust_window` and may be killed; no read may fail because of that.
fn read(workload: &Workload, ledger: &Ledger, sessions: &SessionManager) {
    let mut db = sessions.pooled();
    while let Some(reads) = workload.next_read() {
        if let Err(error) = db.get::<_, i64>(workload.any_account(ledger)) {
            workload.failed_read(error.into());
        }
        // Only makes the connection known to the killer, so a failure is ignored.
        if reads.is_multiple_of(8)
            && let Ok(id) = redis::cmd("CLIENT").arg("ID").query(&mut db)
        {
            ledger.connections.add(id);
        }
        thread::sleep(Duration::from_millis(7));
    }
}

impl Bank<'_> {
    /// Makes one transfer and returns what the caller saw.
    fn make(&self, transfer: &Transfer) -> TransferResult {
        if transfer.ending == Ending::Dropped {
            return match self.queue_and_drop(transfer) {
                Ok(()) => TransferResult::Dropped,
                Err(error) => TransferResult::Failed(error),
            };
        }
        match catch_unwind(|| self.watch_and_move(transfer)) {
            Ok(moved) => {
                self.ledger.note(&moved);
                moved.into()
            }
            Err(panic) if panic.is::<Bug>() => TransferResult::Panicked,
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Reads, decides and writes; some transfers panic once everything is queued.
    ///
    /// Returns the CLIENT ID of the connection.
    #[expect(clippy::panic, reason = "the demo shows a panic inside the closure")]
    fn watch_and_move(&self, transfer: &Transfer) -> Result<i64, BankError> {
        let keys = [self.ledger.account(transfer.from), self.ledger.account(transfer.to)];
        self.handle.watch(&keys).run_with(|read, tx| {
            let (from, _to): (i64, i64) = read.mget(&keys)?;
            if from < transfer.amount {
                return Err(BankError::Broke);
            }
            let id = self.ledger.queue(transfer, tx);
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
        self.ledger.queue(transfer, &mut tx);
        drop(tx);
        Ok(())
    }
}
