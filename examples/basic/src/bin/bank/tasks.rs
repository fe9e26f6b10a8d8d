//! Transfers by tasks of tokio. Some of their futures are dropped before their end.

use std::future::{Future, poll_fn};
use std::panic::{panic_any, resume_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use rediscope::aio::{SessionManager, Transactional};
use rediscope::redis::AsyncCommands;
use rediscope::{Begin, Error, TransactionOptions, redis};

use crate::transfer::{BankError, Bug, Ending, Ledger, Transfer, TransferResult};
use crate::workload::{Results, Workload};

/// Makes transfers on the accounts of one run.
#[derive(Clone, Debug)]
struct Bank {
    handle: Transactional,
    ledger: Arc<Ledger>,
}

/// Makes the workload's transfers, and reads beside them.
pub(crate) async fn run(
    workload: Arc<Workload>,
    sessions: SessionManager,
    options: TransactionOptions,
    ledger: Arc<Ledger>,
    admin: redis::Connection,
) -> Result<Results, Box<dyn std::error::Error>> {
    let bank = Bank { handle: sessions.transactional().with(options), ledger: Arc::clone(&ledger) };
    let killer = std::thread::spawn({
        let (workload, ledger) = (Arc::clone(&workload), Arc::clone(&ledger));
        move || workload.kill(&ledger, admin)
    });
    let reader = tokio::spawn(read(Arc::clone(&workload), ledger, sessions));
    let workers: Vec<_> = (0..workload.plan.workers)
        .map(|_| tokio::spawn(transfer(Arc::clone(&workload), bank.clone())))
        .collect();
    let mut results = Vec::new();
    for worker in workers {
        results.extend(worker.await?);
    }
    workload.finish();
    reader.await?;
    killer.join().map_err(|_| "the killer panicked")??;
    Ok(results)
}

/// Makes transfers until all of the plan are made.
async fn transfer(workload: Arc<Workload>, bank: Bank) -> Results {
    let mut results = Vec::new();
    while let Some(transfer) = workload.next() {
        let (id, ending) = (transfer.id, transfer.ending);
        let made = bank.clone().make(transfer);
        let result = match ending {
            // A task of its own, which the panic ends.
            Ending::Panics => match tokio::spawn(made).await {
                Ok(result) => result,
                Err(error) => match error.into_panic() {
                    panic if panic.is::<Bug>() => TransferResult::Panicked,
                    panic => resume_unwind(panic),
                },
            },
            Ending::Cancelled { polls } => {
                dropped_after(polls, made).await.unwrap_or(TransferResult::Cancelled)
            }
            Ending::Commits | Ending::Dropped => made.await,
        };
        results.push((id, result));
    }
    results
}

/// Polls a future so many times at most, then drops it.
async fn dropped_after<T>(mut polls: u32, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    poll_fn(|context| {
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return Poll::Ready(Some(output));
        }
        polls = polls.saturating_sub(1);
        if polls == 0 { Poll::Ready(None) } else { Poll::Pending }
    })
    .await
}

/// Reads a balance now and then, over the pooled handle. In between, its connection is idle for
/// longer than `trust_window` and may be killed; no read may fail because of that.
async fn read(workload: Arc<Workload>, ledger: Arc<Ledger>, sessions: SessionManager) {
    let mut db = sessions.pooled();
    while let Some(reads) = workload.next_read() {
        if let Err(error) = db.get::<_, i64>(workload.any_account(&ledger)).await {
            workload.failed_read(error.into());
        }
        // Only makes the connection known to the killer, so a failure is ignored.
        if reads.is_multiple_of(8)
            && let Ok(id) = redis::cmd("CLIENT").arg("ID").query_async(&mut db).await
        {
            ledger.connections.add(id);
        }
        tokio::time::sleep(Duration::from_millis(7)).await;
    }
}

impl Bank {
    /// Makes one transfer and returns what the caller saw.
    async fn make(self, transfer: Transfer) -> TransferResult {
        if transfer.ending == Ending::Dropped {
            return match self.queue_and_drop(&transfer).await {
                Ok(()) => TransferResult::Dropped,
                Err(error) => TransferResult::Failed(error),
            };
        }
        let moved = self.watch_and_move(&transfer).await;
        self.ledger.note(&moved);
        moved.into()
    }

    /// Reads, decides and writes; some transfers panic once everything is queued.
    ///
    /// Returns the CLIENT ID of the connection.
    #[expect(clippy::panic, reason = "the demo shows a panic inside the closure")]
    async fn watch_and_move(&self, transfer: &Transfer) -> Result<i64, BankError> {
        let keys = [self.ledger.account(transfer.from), self.ledger.account(transfer.to)];
        self.handle
            .watch(&keys)
            .run_with(async |read, tx| {
                let (from, _to): (i64, i64) = read.mget(&keys).await?;
                if from < transfer.amount {
                    return Err(BankError::Broke);
                }
                let id = self.ledger.queue(transfer, tx);
                if transfer.ending == Ending::Panics {
                    panic_any(Bug);
                }
                Ok(id)
            })
            .await
    }

    /// Sends MULTI at once, so that the connection's task has to send DISCARD after the drop.
    async fn queue_and_drop(&self, transfer: &Transfer) -> Result<(), Error> {
        let immediate = TransactionOptions::new().begin(Begin::Immediate);
        let mut tx = self.handle.begin_with(immediate).await?;
        self.ledger.queue(transfer, &mut tx);
        drop(tx);
        Ok(())
    }
}
