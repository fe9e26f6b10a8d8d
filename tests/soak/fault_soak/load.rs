//! What the threads do: deed after deed, and a note of what each was told.
//!
//! Never: a look at the server past the library.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rediscope::{
    Begin, CommitError, Error, Outcome, Queued, Replies, SessionManager, Transaction,
    TransactionOptions, Transactional, Watched, Watching, prelude::*,
};

use super::barrier::Street;
use super::calls::{Call, Calls};
use super::expectations::Told;
use super::fixture::{self, MAX_PIN_TIME};
use super::ledger::Books;
use super::operations::{self, Deed, End, Form};

/// One scope in this time keeps its connection until it is taken back.
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

/// What a deed that panics panics with.
#[derive(Debug)]
struct Planned;

#[derive(Debug)]
pub(crate) struct Load {
    sessions: SessionManager,
    deferred: Transactional,
    immediate: Transactional,
    pub(crate) street: Street,
    pub(crate) books: Books,
    pub(crate) calls: Calls,
    begun: Instant,
    /// When the next scope may keep its connection, in milliseconds since `begun`.
    ration: AtomicU64,
}

impl Load {
    pub(crate) fn new(sessions: SessionManager, books: Books) -> Self {
        let options = TransactionOptions::new().retry(fixture::policy());
        let deferred = sessions.transactional().with(options);
        let immediate = deferred.with(TransactionOptions::new().begin(Begin::Immediate));
        Self {
            sessions,
            deferred,
            immediate,
            street: Street::default(),
            books,
            calls: Calls::default(),
            begun: Instant::now(),
            ration: AtomicU64::new(0),
        }
    }

    /// One thread's work, until the street is closed for good.
    pub(crate) fn work(&self) {
        while let Some(pass) = self.street.enter() {
            let deed = self.books.open(pass.lawless);
            let told = self.perform(&deed);
            self.books.note(&deed, told);
        }
    }

    fn perform(&self, deed: &Deed) -> Told {
        match deed.form {
            Form::Transfer => self.transfer(deed),
            Form::ByHand => self.by_hand(deed),
            Form::Pair => self.pair(deed, Call::Run, false),
            Form::LargePair => self.pair(deed, Call::LargeRun, true),
            Form::Guard => self.guard(deed, &self.deferred, false),
            Form::Immediate => self.guard(deed, &self.immediate, false),
            Form::LargeGuard => self.guard(deed, &self.deferred, true),
            Form::Reading => self.reading(deed),
            Form::Write => self.write(deed),
            Form::Pipeline => self.pipeline(deed),
            Form::Read => self.read(deed),
        }
    }

    fn transfer(&self, deed: &Deed) -> Told {
        let keys = deed.accounts();
        let last = Cell::new(None);
        let ended = self.run(Call::Run, deed, || {
            self.deferred.watch(&keys).run_with(|read, tx| {
                let [from, to] = self.balances(deed, read, &keys)?;
                tx.set(&keys[0], from - deed.amount);
                tx.set(&keys[1], to + deed.amount);
                closure_ends(deed, last.insert_mark(deed.sign(tx)))
            })
        });
        self.told(deed, ended, last.get())
    }

    fn pair(&self, deed: &Deed, call: Call, large: bool) -> Told {
        let last = Cell::new(None);
        let ended = self.run(call, deed, || {
            self.deferred.run_with(|tx| {
                if large {
                    for (key, filler) in deed.fillers() {
                        tx.set(key, &filler[..]);
                    }
                }
                deed.count_pair(tx);
                closure_ends(deed, last.insert_mark(deed.sign(tx)))
            })
        });
        self.told(deed, ended, last.get())
    }

    fn reading(&self, deed: &Deed) -> Told {
        let last = Cell::new(None);
        let ended = self.run(Call::Run, deed, || {
            self.deferred.reading().run_with(|read, tx| {
                let number = deed.sign_of(0);
                let text: String = read.get(operations::sign(number))?;
                self.is_sign(deed, number, &text);
                closure_ends(deed, last.insert_mark(deed.sign(tx)))
            })
        });
        self.told(deed, ended, last.get())
    }

    /// Reads what is watched, and on the way something whose value is known.
    fn balances(
        &self,
        deed: &Deed,
        read: &mut Watching,
        keys: &[String],
    ) -> Result<[i64; 2], Stop> {
        let number = deed.sign_of(0);
        let all = [keys[0].clone(), keys[1].clone(), operations::sign(number)];
        let (from, to, text): (i64, i64, String) =
            self.calls.time(Call::Single, deed, || read.mget(&all))?;
        self.is_sign(deed, number, &text);
        if from < deed.amount { Err(Stop::Errs) } else { Ok([from, to]) }
    }

    fn guard(&self, deed: &Deed, accounts: &Transactional, large: bool) -> Told {
        let mut tx = match self.calls.time(Call::Single, deed, || accounts.begin()) {
            Ok(tx) => tx,
            Err(error) => return self.books.read(deed, &error, never),
        };
        if large {
            for (key, filler) in deed.fillers() {
                self.calls.time(Call::Single, deed, || tx.set(key, &filler[..]));
            }
        }
        deed.move_money(&mut tx);
        let mark = deed.sign(&mut tx);
        let commit = |tx: Transaction| tx.commit().map(Outcome::Committed);
        self.leave(deed, tx, mark, Transaction::discard, commit)
    }

    fn by_hand(&self, deed: &Deed) -> Told {
        let keys = deed.accounts();
        let begun = || self.deferred.watch(&keys).begin();
        let mut watching = match self.calls.time(Call::Single, deed, begun) {
            Ok(watching) => watching,
            Err(error) => return self.books.read(deed, &error, never),
        };
        let [from, to] = match self.balances(deed, &mut watching, &keys) {
            Ok(balances) => balances,
            Err(Stop::Redis(error)) => return self.books.read(deed, &error, never),
            Err(Stop::Errs) => {
                return match self.calls.time(Call::Ending, deed, || watching.abandon()) {
                    Ok(()) => Told::Errs,
                    Err(error) => self.gave_up(deed, &error, Told::Errs),
                };
            }
        };
        let mut tx = watching.multi();
        tx.set(&keys[0], from - deed.amount);
        tx.set(&keys[1], to + deed.amount);
        let mark = deed.sign(&mut tx);
        self.leave(deed, tx, mark, Transaction::discard, Transaction::<Watched>::commit)
    }

    /// Ends a guard in the way the deed says.
    fn leave<T>(
        &self,
        deed: &Deed,
        tx: T,
        mark: Mark,
        discard: impl FnOnce(T) -> Result<(), Error>,
        commit: impl FnOnce(T) -> Result<Outcome, CommitError>,
    ) -> Told {
        match deed.end {
            End::Drop => {
                self.calls.time(Call::Ending, deed, || drop(tx));
                return Told::Dropped;
            }
            End::Discard => {
                return match self.calls.time(Call::Ending, deed, || discard(tx)) {
                    Ok(()) => Told::Discarded,
                    Err(error) => self.gave_up(deed, &error, Told::Discarded),
                };
            }
            End::Panic => {
                let unwinding = || {
                    let _tx = tx;
                    resume_unwind(Box::new(Planned))
                };
                let caught: Result<(), _> = self
                    .calls
                    .time(Call::Ending, deed, || catch_unwind(AssertUnwindSafe(unwinding)));
                return panicked(caught.err());
            }
            End::Forget if self.ration() => {
                std::mem::forget(tx);
                return Told::Forgotten;
            }
            // The deed itself: a caller who is busy with something else for too long.
            End::Expire if self.ration() => thread::sleep(2 * MAX_PIN_TIME),
            End::Commit | End::Forget | End::Expire => {}
        }
        match self.calls.time(Call::Single, deed, || commit(tx)) {
            Ok(Outcome::Conflict) => Told::Conflict,
            Ok(Outcome::Committed(replies)) => match replies.get(mark) {
                Ok(signature) => self.committed(deed, signature),
                Err(error) => self.told(deed, Ok(Err(Stop::Redis(error.into()))), Some(mark)),
            },
            Err(error) => self.told(deed, Ok(Err(Stop::Redis(error.into()))), Some(mark)),
        }
    }

    fn write(&self, deed: &Deed) -> Told {
        let mut db = self.sessions.pooled();
        let write = || db.hincr::<_, _, _, i64>(deed.ledger(), deed.id, 1);
        match self.calls.time(Call::Single, deed, write).map_err(Error::from) {
            Ok(entry) => self.committed(deed, (entry, deed.id)),
            Err(error) => self.books.read(deed, &error, never),
        }
    }

    fn pipeline(&self, deed: &Deed) -> Told {
        let mut db = self.sessions.pooled();
        let mut pipe = redis::pipe();
        pipe.hincr(deed.ledger(), deed.id, 1).add_command(deed.echo());
        let query = || pipe.query::<(i64, u64)>(&mut db);
        match self.calls.time(Call::Single, deed, query).map_err(Error::from) {
            Ok(signature) => self.committed(deed, signature),
            Err(error) => self.books.read(deed, &error, never),
        }
    }

    fn read(&self, deed: &Deed) -> Told {
        let mut db = self.sessions.pooled();
        let numbers = [deed.sign_of(0), deed.sign_of(1)];
        let keys = numbers.map(operations::sign);
        let read = || db.mget::<_, [String; 2]>(&keys);
        match self.calls.time(Call::Single, deed, read).map_err(Error::from) {
            Ok(texts) => {
                numbers
                    .iter()
                    .zip(&texts)
                    .for_each(|(number, text)| self.is_sign(deed, *number, text));
                Told::Answered
            }
            Err(error) => self.books.read(deed, &error, never),
        }
    }

    fn run<R>(
        &self,
        call: Call,
        deed: &Deed,
        run: impl FnOnce() -> Result<R, Stop>,
    ) -> thread::Result<Result<R, Stop>> {
        self.calls.time(call, deed, || catch_unwind(AssertUnwindSafe(run)))
    }

    fn told(
        &self,
        deed: &Deed,
        ended: thread::Result<Result<(i64, u64), Stop>>,
        mark: Option<Mark>,
    ) -> Told {
        match ended {
            Ok(Ok(signature)) => self.committed(deed, signature),
            Ok(Err(Stop::Errs)) => Told::Errs,
            Ok(Err(Stop::Redis(error))) => {
                self.books.read(deed, &error, |replies| self.has_entry(deed, replies, mark))
            }
            Err(panic) => panicked(Some(panic)),
        }
    }

    /// Whether the ledger's command is among those that were applied.
    fn has_entry(&self, deed: &Deed, replies: &Replies, mark: Option<Mark>) -> bool {
        match mark.map(|(entry, _)| replies.get(entry)) {
            Some(Ok(1)) => true,
            Some(Err(rediscope::ReplyError::Failed { .. })) => false,
            other => {
                self.books.wrong(deed, &format!("the ledger's own reply is {other:?}"));
                false
            }
        }
    }

    fn committed(&self, deed: &Deed, signature: (i64, u64)) -> Told {
        if signature != deed.signature() {
            self.books.wrong(deed, &format!("committed, but answered {signature:?}"));
        }
        Told::Committed
    }

    /// Cleaning failed, which changes nothing of what was given up.
    fn gave_up(&self, deed: &Deed, error: &Error, told: Told) -> Told {
        let _ = self.books.read(deed, error, never);
        told
    }

    fn is_sign(&self, deed: &Deed, number: usize, text: &str) {
        if text != operations::sign_text(number) {
            self.books.wrong(deed, &format!("read sign {number} and was answered {text:?}"));
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

/// What a closure makes of its deed's end; only guards can be dropped or forgotten.
fn closure_ends(deed: &Deed, mark: Mark) -> Result<Mark, Stop> {
    match deed.end {
        End::Panic => resume_unwind(Box::new(Planned)),
        End::Drop | End::Discard => Err(Stop::Errs),
        End::Commit | End::Forget | End::Expire => Ok(mark),
    }
}

fn panicked(panic: Option<Box<dyn std::any::Any + Send>>) -> Told {
    match panic {
        Some(panic) if panic.is::<Planned>() => Told::Panicked,
        Some(panic) => resume_unwind(panic),
        None => Told::Impossible,
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
