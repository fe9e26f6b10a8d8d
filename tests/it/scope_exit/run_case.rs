//! Runs one cell: opens the scope, queues, and leaves it by the cell's exit.

use std::fmt::Debug;
use std::num::ParseIntError;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::side::{self, Transaction, Watching};
use rediscope::commands::QueueCommands;
use rediscope::{Block, CommitError, Error, Outcome, Replies, RetryPolicy, Watched, prelude::*};

use super::cases::{Cell, Exit, Form, Part};
use super::fixture::ScopeFixture;

/// What the scope returned to its caller.
#[derive(Debug)]
enum Reported {
    Committed,
    Conflict,
    /// Given up, with an error.
    GivenUp,
    /// No result: dropped or forgotten.
    Nothing,
    Panicked,
    Failed(Fault),
}

#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("the caller's own")]
    Own,
    #[error(transparent)]
    Number(#[from] ParseIntError),
    #[error(transparent)]
    Redis(#[from] Error),
}

impl<E: Into<Fault>> From<Result<Reported, E>> for Reported {
    fn from(result: Result<Reported, E>) -> Self {
        result.unwrap_or_else(|error| Self::Failed(error.into()))
    }
}

/// Plays the cell and checks what it returned.
pub(crate) fn play(fixture: &ScopeFixture<'_>, cell: Cell) {
    let accounts = fixture.accounts();
    let watch = || accounts.watch([&fixture.names.watched]).retry(RetryPolicy::never());
    let reported = match cell.form {
        Form::Trusted | Form::Untrusted | Form::Immediate | Form::LargeGuard => {
            guard(fixture, cell, || accounts.begin())
        }
        Form::Watching | Form::LargeWatching => {
            guard(fixture, cell, || Ok(watch().begin()?.multi()))
        }
        Form::Reading => reading(fixture, cell, || watch().begin()),
        Form::Run | Form::LargeRun => {
            closure(cell, || accounts.run_with(|tx| block(fixture, cell, tx)))
        }
        Form::WatchRun => closure(cell, || {
            watch().run_with(|read, tx| {
                let _: Option<i64> = read.get(&fixture.names.watched)?;
                block(fixture, cell, tx)
            })
        }),
    };
    // The first thing that is looked at: the permit is back before the call returns.
    fixture.look_at_the_slot();
    let right = match (cell.exit, &reported) {
        (Exit::Commit, Reported::Committed) => true,
        (Exit::Conflict, Reported::Conflict) => true,
        (Exit::Conflict, Reported::Failed(Fault::Redis(error))) => {
            matches!(error, Error::RetriesExhausted { attempts: 1, .. })
        }
        (Exit::Discard, Reported::GivenUp) => true,
        (Exit::Drop | Exit::Forget, Reported::Nothing) => true,
        (Exit::QuestionMark, Reported::Failed(Fault::Number(_))) => true,
        (Exit::ClosureError, Reported::Failed(Fault::Own)) => true,
        (Exit::Panic, Reported::Panicked) => true,
        (_, Reported::Failed(fault)) => is_right(cell, fault),
        _ => false,
    };
    assert!(right, "returned {reported:?}");
}

fn is_right(cell: Cell, fault: &Fault) -> bool {
    let Fault::Redis(error) = fault else { return false };
    let refused = |error: &Error| matches!(error, Error::Refused { .. });
    match (cell.exit, error.as_commit()) {
        (Exit::QueueError, Some(CommitError::Rejected { index: Some(_), command, code, .. })) => {
            command == "NOSUCHCOMMAND" && code == "ERR"
        }
        (Exit::Refused, Some(CommitError::NotSent { source, .. })) => refused(source),
        (Exit::WrongType, Some(CommitError::PartlyApplied { replies, .. })) => {
            replies.failures() == 1
        }
        (Exit::Outlive, None) => matches!(error, Error::PinExpired(_)),
        (Exit::QueueError | Exit::WrongType, None) if cell.form == Form::Reading => {
            matches!(error, Error::Command { .. })
        }
        (Exit::Refused, None) if cell.form == Form::Reading => refused(error),
        _ => false,
    }
}

/// The two kinds of transaction differ in how they commit.
trait Guard: Sized {
    fn queue(&mut self) -> &mut impl QueueCommands;
    fn committed(self) -> Result<Reported, Error>;
    fn discarded(self) -> Result<Reported, Error>;
}

impl Guard for Transaction {
    fn queue(&mut self) -> &mut impl QueueCommands {
        side::queue(self)
    }

    fn committed(self) -> Result<Reported, Error> {
        let _: Replies = self.commit()?;
        Ok(Reported::Committed)
    }

    fn discarded(self) -> Result<Reported, Error> {
        self.discard().map(|()| Reported::GivenUp)
    }
}

impl Guard for Transaction<Watched> {
    fn queue(&mut self) -> &mut impl QueueCommands {
        side::queue(self)
    }

    fn committed(self) -> Result<Reported, Error> {
        Ok(match self.commit()? {
            Outcome::Committed(_) => Reported::Committed,
            Outcome::Conflict => Reported::Conflict,
        })
    }

    fn discarded(self) -> Result<Reported, Error> {
        self.discard().map(|()| Reported::GivenUp)
    }
}

fn guard<G: Guard>(
    fixture: &ScopeFixture<'_>,
    cell: Cell,
    begin: impl FnOnce() -> Result<G, Error>,
) -> Reported {
    match cell.exit {
        Exit::QuestionMark => leave_by_question_mark(fixture, cell, begin).into(),
        Exit::Panic => panicking(|| {
            let mut tx = begin().unwrap();
            fill(fixture, cell, tx.queue());
            let _part = (cell.part == Part::Open).then(|| open_savepoint(fixture, tx.queue()));
            resume_unwind(Box::new("the caller's own"))
        }),
        _ => {
            let mut tx = begin().unwrap();
            fill(fixture, cell, tx.queue());
            match cell.exit {
                Exit::Discard => return tx.discarded().into(),
                Exit::Drop => drop(tx),
                Exit::Forget => std::mem::forget(tx),
                Exit::Conflict => {
                    fixture.touch_watched();
                    return tx.committed().into();
                }
                Exit::Outlive => {
                    fixture.wait_until_reclaimed();
                    return tx.committed().into();
                }
                _ => return tx.committed().into(),
            }
            Reported::Nothing
        }
    }
}

fn leave_by_question_mark<G: Guard>(
    fixture: &ScopeFixture<'_>,
    cell: Cell,
    begin: impl FnOnce() -> Result<G, Error>,
) -> Result<Reported, Fault> {
    let mut tx = begin()?;
    fill(fixture, cell, tx.queue());
    if cell.part == Part::Open {
        let part = open_savepoint(fixture, tx.queue());
        not_a_number()?;
        part.release();
    } else {
        not_a_number()?;
    }
    Ok(tx.committed()?)
}

fn reading(
    fixture: &ScopeFixture<'_>,
    cell: Cell,
    begin: impl FnOnce() -> Result<Watching, Error>,
) -> Reported {
    // A refused read returns its error; the scope ends by `?`.
    let by_question_mark = |mut watching: Watching| -> Result<Reported, Fault> {
        fixture.look_inside();
        match cell.exit {
            Exit::QuestionMark => _ = not_a_number()?,
            Exit::QueueError => watching.query::<()>(redis::cmd("GET"))?,
            Exit::Refused => {
                let set = redis::cmd("SET").arg(&fixture.names.data).arg(1).take();
                watching.query::<()>(set)?;
            }
            Exit::WrongType => _ = watching.llen(&fixture.names.text)?,
            Exit::Outlive => {
                fixture.wait_until_reclaimed();
                let _: Option<i64> = watching.get(&fixture.names.watched)?;
            }
            _ => unreachable!("{cell:?}"),
        }
        watching.abandon()?;
        Ok(Reported::GivenUp)
    };
    match cell.exit {
        Exit::Discard => begin().and_then(Watching::abandon).map(|()| Reported::GivenUp).into(),
        Exit::Drop => {
            drop(begin().unwrap());
            Reported::Nothing
        }
        Exit::Forget => {
            std::mem::forget(begin().unwrap());
            Reported::Nothing
        }
        Exit::Panic => panicking(|| {
            let _watching = begin().unwrap();
            resume_unwind(Box::new("the caller's own"))
        }),
        _ => by_question_mark(begin().unwrap()).into(),
    }
}

/// Every closure form, called with its own closure.
fn closure(cell: Cell, run: impl FnOnce() -> Result<(), Fault>) -> Reported {
    let run = || Reported::from(run().map(|()| Reported::Committed));
    if cell.exit == Exit::Panic { panicking(run) } else { run() }
}

fn block(fixture: &ScopeFixture<'_>, cell: Cell, tx: &mut Block) -> Result<(), Fault> {
    fill(fixture, cell, tx);
    // Open until the closure is left, in whatever way.
    let _part = (cell.part == Part::Open).then(|| open_savepoint(fixture, tx));
    match cell.exit {
        Exit::QuestionMark => _ = not_a_number()?,
        Exit::ClosureError => return Err(Fault::Own),
        Exit::Panic => resume_unwind(Box::new("the caller's own")),
        Exit::Conflict => fixture.touch_watched(),
        Exit::Outlive => fixture.wait_until_reclaimed(),
        _ => {}
    }
    Ok(())
}

/// What every transaction queues, and what the cell's exit needs besides.
fn fill(fixture: &ScopeFixture<'_>, cell: Cell, tx: &mut impl QueueCommands) {
    if cell.exit == Exit::QueueError {
        tx.queue::<()>(redis::cmd("NOSUCHCOMMAND"));
    }
    let size = if cell.form.is_large() { 600 } else { 10 };
    tx.set(&fixture.names.data, vec![b'x'; size]);
    if cell.exit == Exit::WrongType {
        tx.lpush(&fixture.names.text, 1);
    }
    fixture.look_inside();
    if cell.exit == Exit::Refused {
        tx.queue::<()>(redis::cmd("Watch").arg("k").take());
    }
    if cell.part == Part::Forgotten {
        std::mem::forget(open_savepoint(fixture, tx));
    }
}

fn open_savepoint<'q>(
    fixture: &ScopeFixture<'_>,
    tx: &'q mut impl QueueCommands,
) -> rediscope::Savepoint<'q> {
    let mut part = tx.savepoint();
    part.set(&fixture.names.part, 1);
    part
}

fn not_a_number() -> Result<i64, ParseIntError> {
    "not a number".parse()
}

/// Without the panic hook, whose words would fill the screen.
fn panicking(f: impl FnOnce() -> Reported) -> Reported {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        // The panic of an own assertion is not the intended one.
        match panic.downcast_ref::<&str>() {
            Some(&"the caller's own") => Reported::Panicked,
            _ => resume_unwind(panic),
        }
    })
}
