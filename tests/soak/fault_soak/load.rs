//! The threads' work: operation after operation, with a note of what each returned.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rediscope::{
    Begin, Error, Outcome, Queued, Replies, SessionManager, Transaction, TransactionOptions,
    Transactional, Watched, Watching, prelude::*,
};

use super::barrier::Barrier;
use super::calls::{Call, Calls};
use super::expectations::Reported;
use super::fixture::{self, MAX_PIN_TIME};
use super::ledger::Ledger;
use super::operations::{self, End, Form, Operation};

/// One scope in this time keeps its connection until it is reclaimed.
const RATION: Duration = Duration::from_millis(500);

type Mark = (Queued<i64>, Queued<u64>);

/// What a closure ends with: its own error, or the library's.
#[derive(Debug)]
enum Stop {
    Errs,
    Redis(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Redis(error)
    }
}

/// What a operation that panics panics with.
#[derive(Debug)]
struct Planned;

#[derive(Debug)]
pub(crate) struct Load {
    sessions: SessionManager,
    deferred: Transactional,
    immediate: Transactional,
    pub(crate) barrier: Barrier,
    pub(crate) ledger: Ledger,
    pub(crate) calls: Calls,
    begun: Instant,
    /// When the next scope may keep its connection, in milliseconds since `begun`.
    ration: AtomicU64,
}

impl Load {
    pub(crate) fn new(sessions: SessionManager, ledger: Ledger) -> Self {
        let options = TransactionOptions::new().retry(fixture::policy());
        let deferred = sessions.transactional().with(options);
        let immediate = deferred.with(TransactionOptions::new().begin(Begin::Immediate));
        Self {
            sessions,
            deferred,
            immediate,
            barrier: Barrier::default(),
            ledger,
            calls: Calls::default(),
            begun: Instant::now(),
            ration: AtomicU64::new(0),
        }
    }

    /// One thread's work, until the barrier is closed for good.
    pub(crate) fn work(&self) {
        while let Some(pass) = self.barrier.enter() {
            let operation = self.ledger.open(pass.lawless);
            let reported = self.perform(&operation);
            self.ledger.note(&operation, reported);
        }
    }

    fn perform(&self, operation: &Operation) -> Reported {
        match operation.form {
            Form::Transfer => self.transfer(operation),
            Form::ByHand => self.by_hand(operation),
            Form::Pair => self.pair(operation, Call::Run, false),
            Form::LargePair => self.pair(operation, Call::LargeRun, true),
            Form::Guard => self.guard(operation, &self.deferred, false),
            Form::Immediate => self.guard(operation, &self.immediate, false),
            Form::LargeGuard => self.guard(operation, &self.deferred, true),
            Form::Reading => self.reading(operation),
            Form::Write => self.write(operation),
            Form::Pipeline => self.pipeline(operation),
            Form::Read => self.read(operation),
        }
    }

    fn transfer(&self, operation: &Operation) -> Reported {
        let keys = operation.accounts();
        let last = Cell::new(None);
        let ended = self.run(Call::Run, operation, || {
            self.deferred.watch(&keys).run_with(|read, tx| {
                let [from, to] = self.balances(operation, read, &keys)?;
                tx.set(&keys[0], from - operation.amount);
                tx.set(&keys[1], to + operation.amount);
                closure_ends(operation, last.insert_mark(operation.sign(tx)))
            })
        });
        self.reported(operation, ended, last.get())
    }

    fn pair(&self, operation: &Operation, call: Call, large: bool) -> Reported {
        let last = Cell::new(None);
        let ended = self.run(call, operation, || {
            self.deferred.run_with(|tx| {
                if large {
                    for (key, filler) in operation.fillers() {
                        tx.set(key, &filler[..]);
                    }
                }
                operation.count_pair(tx);
                closure_ends(operation, last.insert_mark(operation.sign(tx)))
            })
        });
        self.reported(operation, ended, last.get())
    }

    fn reading(&self, operation: &Operation) -> Reported {
        let last = Cell::new(None);
        let ended = self.run(Call::Run, operation, || {
            self.deferred.reading().run_with(|read, tx| {
                let number = operation.sign_of(0);
                let text: String = read.get(operations::sign(number))?;
                self.is_sign(operation, number, &text);
                closure_ends(operation, last.insert_mark(operation.sign(tx)))
            })
        });
        self.reported(operation, ended, last.get())
    }

    /// Reads what is watched, and on the way something whose value is known.
    fn balances(
        &self,
        operation: &Operation,
        read: &mut Watching,
        keys: &[String],
    ) -> Result<[i64; 2], Stop> {
        let number = operation.sign_of(0);
        let all = [keys[0].clone(), keys[1].clone(), operations::sign(number)];
        let (from, to, text): (i64, i64, String) =
            self.calls.time(Call::Single, operation, || read.mget(&all))?;
        self.is_sign(operation, number, &text);
        if from < operation.amount { Err(Stop::Errs) } else { Ok([from, to]) }
    }

    fn guard(&self, operation: &Operation, accounts: &Transactional, large: bool) -> Reported {
        let mut tx = match self.calls.time(Call::Single, operation, || accounts.begin()) {
            Ok(tx) => tx,
            Err(error) => return self.ledger.read(operation, &error, never),
        };
        if large {
            for (key, filler) in operation.fillers() {
                self.calls.time(Call::Single, operation, || tx.set(key, &filler[..]));
            }
        }
        operation.move_money(&mut tx);
        let mark = operation.sign(&mut tx);
        let commit = |tx: Transaction| tx.commit().map(Outcome::Committed);
        self.leave(operation, tx, mark, Transaction::discard, commit)
    }

    fn by_hand(&self, operation: &Operation) -> Reported {
        let keys = operation.accounts();
        let begun = || self.deferred.watch(&keys).begin();
        let mut watching = match self.calls.time(Call::Single, operation, begun) {
            Ok(watching) => watching,
            Err(error) => return self.ledger.read(operation, &error, never),
        };
        let [from, to] = match self.balances(operation, &mut watching, &keys) {
            Ok(balances) => balances,
            Err(Stop::Redis(error)) => return self.ledger.read(operation, &error, never),
            Err(Stop::Errs) => {
                return match self.calls.time(Call::Ending, operation, || watching.abandon()) {
                    Ok(()) => Reported::Errs,
                    Err(error) => self.gave_up(operation, &error, Reported::Errs),
                };
            }
        };
        let mut tx = watching.multi();
        tx.set(&keys[0], from - operation.amount);
        tx.set(&keys[1], to + operation.amount);
        let mark = operation.sign(&mut tx);
        self.leave(operation, tx, mark, Transaction::discard, Transaction::<Watched>::commit)
    }

    /// Ends a guard in the way of the operation.
    fn leave<T>(
        &self,
        operation: &Operation,
        tx: T,
        mark: Mark,
        discard: impl FnOnce(T) -> Result<(), Error>,
        commit: impl FnOnce(T) -> Result<Outcome, Error>,
    ) -> Reported {
        match operation.end {
            End::Drop => {
                self.calls.time(Call::Ending, operation, || drop(tx));
                return Reported::Dropped;
            }
            End::Discard => {
                return match self.calls.time(Call::Ending, operation, || discard(tx)) {
                    Ok(()) => Reported::Discarded,
                    Err(error) => self.gave_up(operation, &error, Reported::Discarded),
                };
            }
            End::Panic => {
                let unwinding = || {
                    let _tx = tx;
                    resume_unwind(Box::new(Planned))
                };
                let caught: Result<(), _> = self
                    .calls
                    .time(Call::Ending, operation, || catch_unwind(AssertUnwindSafe(unwinding)));
                return panicked(caught.err());
            }
            End::Forget if self.ration() => {
                std::mem::forget(tx);
                return Reported::Forgotten;
            }
            // The operation itself: a caller that is busy with something else for too long.
            End::Expire if self.ration() => thread::sleep(2 * MAX_PIN_TIME),
            End::Commit | End::Forget | End::Expire => {}
        }
        match self.calls.time(Call::Single, operation, || commit(tx)) {
            Ok(Outcome::Conflict) => Reported::Conflict,
            Ok(Outcome::Committed(replies)) => match replies.get(mark) {
                Ok(signature) => self.committed(operation, signature),
                Err(error) => self.reported(operation, Ok(Err(Stop::Redis(error))), Some(mark)),
            },
            Err(error) => self.reported(operation, Ok(Err(Stop::Redis(error))), Some(mark)),
        }
    }

    fn write(&self, operation: &Operation) -> Reported {
        let mut db = self.sessions.pooled();
        let write = || db.hincr::<_, _, _, i64>(operation.ledger(), operation.id, 1);
        match self.calls.time(Call::Single, operation, write).map_err(Error::from) {
            Ok(entry) => self.committed(operation, (entry, operation.id)),
            Err(error) => self.ledger.read(operation, &error, never),
        }
    }

    fn pipeline(&self, operation: &Operation) -> Reported {
        let mut db = self.sessions.pooled();
        let mut pipe = redis::pipe();
        pipe.hincr(operation.ledger(), operation.id, 1).add_command(operation.echo());
        let query = || pipe.query::<(i64, u64)>(&mut db);
        match self.calls.time(Call::Single, operation, query).map_err(Error::from) {
            Ok(signature) => self.committed(operation, signature),
            Err(error) => self.ledger.read(operation, &error, never),
        }
    }

    fn read(&self, operation: &Operation) -> Reported {
        let mut db = self.sessions.pooled();
        let numbers = [operation.sign_of(0), operation.sign_of(1)];
        let keys = numbers.map(operations::sign);
        let read = || db.mget::<_, [String; 2]>(&keys);
        match self.calls.time(Call::Single, operation, read).map_err(Error::from) {
            Ok(texts) => {
                numbers
                    .iter()
                    .zip(&texts)
                    .for_each(|(number, text)| self.is_sign(operation, *number, text));
                Reported::Answered
            }
            Err(error) => self.ledger.read(operation, &error, never),
        }
    }

    fn run<R>(
        &self,
        call: Call,
        operation: &Operation,
        run: impl FnOnce() -> Result<R, Stop>,
    ) -> thread::Result<Result<R, Stop>> {
        self.calls.time(call, operation, || catch_unwind(AssertUnwindSafe(run)))
    }

    fn reported(
        &self,
        operation: &Operation,
        ended: thread::Result<Result<(i64, u64), Stop>>,
        mark: Option<Mark>,
    ) -> Reported {
        match ended {
            Ok(Ok(signature)) => self.committed(operation, signature),
            Ok(Err(Stop::Errs)) => Reported::Errs,
            Ok(Err(Stop::Redis(error))) => self
                .ledger
                .read(operation, &error, |replies| self.has_entry(operation, replies, mark)),
            Err(panic) => panicked(Some(panic)),
        }
    }

    /// Whether the ledger's command is among those that were applied.
    fn has_entry(&self, operation: &Operation, replies: &Replies, mark: Option<Mark>) -> bool {
        match mark.map(|(entry, _)| replies.get(entry)) {
            Some(Ok(1)) => true,
            Some(Err(Error::Reply(rediscope::error::ReplyError::Failed { .. }))) => false,
            other => {
                self.ledger.wrong(operation, &format!("the ledger's own reply is {other:?}"));
                false
            }
        }
    }

    fn committed(&self, operation: &Operation, signature: (i64, u64)) -> Reported {
        if signature != operation.signature() {
            self.ledger.wrong(operation, &format!("committed, but the reply was {signature:?}"));
        }
        Reported::Committed
    }

    /// Cleaning failed, which changes nothing of what was given up.
    fn gave_up(&self, operation: &Operation, error: &Error, reported: Reported) -> Reported {
        let _ = self.ledger.read(operation, error, never);
        reported
    }

    fn is_sign(&self, operation: &Operation, number: usize, text: &str) {
        if text != operations::sign_text(number) {
            self.ledger.wrong(operation, &format!("read sign {number} and got {text:?}"));
        }
    }

    /// Whether it is time for another scope to keep its connection.
    fn ration(&self) -> bool {
        let now = self.begun.elapsed().as_millis() as u64;
        let due = self.ration.load(Ordering::Relaxed);
        let next = now + RATION.as_millis() as u64;
        now >= due
            && self.ration.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// No replies are expected with this error.
fn never(_: &Replies) -> bool {
    false
}

/// What a closure makes of its operation's end; only guards can be dropped or forgotten.
fn closure_ends(operation: &Operation, mark: Mark) -> Result<Mark, Stop> {
    match operation.end {
        End::Panic => resume_unwind(Box::new(Planned)),
        End::Drop | End::Discard => Err(Stop::Errs),
        End::Commit | End::Forget | End::Expire => Ok(mark),
    }
}

fn panicked(panic: Option<Box<dyn std::any::Any + Send>>) -> Reported {
    match panic {
        Some(panic) if panic.is::<Planned>() => Reported::Panicked,
        Some(panic) => resume_unwind(panic),
        None => Reported::Impossible,
    }
}

/// The handles of the last attempt, for the replies that come with an error.
trait Last {
    fn insert_mark(&self, mark: Mark) -> Mark;
}

impl Last for Cell<Option<Mark>> {
    fn insert_mark(&self, mark: Mark) -> Mark {
        self.set(Some(mark));
        mark
    }
}
