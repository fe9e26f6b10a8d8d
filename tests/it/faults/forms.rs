//! The calls under test, one for each form, with a hook at each point at which the caller's code runs.

use crate::side::{self, Transactional};
use redis::{Value, cmd};
use rediscope::error::{Applied, ConnectionErrorKind};
use rediscope::prelude::*;
use rediscope::{Begin, CommitError, Error, Outcome, Queued, TransactionOptions};

use super::model::{Block, Call, Form, Reported};

/// The keys of one cell, all of the same length for the sake of the chunks' size.
#[derive(Debug)]
pub(crate) struct Keys {
    pub(crate) number: String,
    pub(crate) hash: String,
    pub(crate) list: String,
    pub(crate) watched: String,
}

impl Keys {
    pub(crate) fn of(cell: usize) -> Self {
        let key = |what| format!("cell:{cell:06}:{what}");
        Self { number: key("n"), hash: key("h"), list: key("l"), watched: key("w") }
    }

    /// Chunks of two commands: less than two of the three, more than one.
    pub(crate) fn flush_bytes(&self) -> usize {
        rediscope_testing::packed(&["INCRBY", &self.number, "1"]).len() + 1
    }
}

/// What a call is given by the test.
pub(crate) struct Attempt<'s> {
    pub(crate) form: &'s Form,
    pub(crate) keys: &'s Keys,
    /// Called in front of each flight that has the user's time before it.
    pub(crate) gap: &'s mut (dyn FnMut(usize) + Send),
    /// Changes the watched key from outside.
    pub(crate) touch: &'s (dyn Fn() + Sync),
}

impl Attempt<'_> {
    /// Runs the transaction and returns its outcome; an `Err` is none of the rows.
    pub(crate) fn play(mut self, accounts: &Transactional) -> Result<Reported, String> {
        (self.gap)(0);
        let immediate = accounts.with(TransactionOptions::new().begin(Begin::Immediate));
        match self.form.call {
            Call::Guard | Call::ChunkedGuard => self.guard(accounts),
            Call::ImmediateGuard => self.guard(&immediate),
            Call::Watching => self.watching(accounts),
            Call::ImmediateWatching => self.watching(&immediate),
            Call::WatchRun => self.watch_run(accounts),
            Call::Run => reported(accounts.run(|tx| Ok(queue(tx, self.form.block, self.keys)))),
            Call::ImmediateRun => {
                reported(immediate.run(|tx| Ok(queue(tx, self.form.block, self.keys))))
            }
            Call::ChunkedRun => reported(accounts.run(|tx| {
                let queued = queue(tx, self.form.block, self.keys);
                (self.gap)(2);
                Ok((queued, tx.rpush(&self.keys.list, 1)))
            })),
            Call::Discard => {
                let mut tx = immediate.begin().map_err(|error| format!("begin: {error}"))?;
                (self.gap)(1);
                queue(side::queue(&mut tx), self.form.block, self.keys);
                given_up(tx.discard())
            }
            Call::Abandon => {
                let watch = accounts.watch([&self.keys.watched]);
                let watching = watch.begin().map_err(|error| format!("watch: {error}"))?;
                (self.gap)(1);
                given_up(watching.abandon())
            }
        }
    }

    fn guard(&mut self, accounts: &Transactional) -> Result<Reported, String> {
        let mut tx = accounts.begin().map_err(|error| format!("begin: {error}"))?;
        if self.form.call == Call::ImmediateGuard {
            (self.gap)(1);
        }
        queue(side::queue(&mut tx), self.form.block, self.keys);
        if self.form.call == Call::ChunkedGuard {
            side::send_ahead(&mut tx);
            (self.gap)(2);
            tx.rpush(&self.keys.list, 1);
        }
        reported(tx.commit())
    }

    fn watching(&mut self, accounts: &Transactional) -> Result<Reported, String> {
        let mut watching =
            accounts.watch([&self.keys.watched]).begin().map_err(|e| format!("watch: {e}"))?;
        if self.form.block == Block::Conflicting {
            (self.touch)();
        }
        (self.gap)(1);
        // A caller that goes on after a failed read must not be able to commit.
        let _: Result<i64, Error> = watching.get(&self.keys.watched);
        (self.gap)(2);
        let mut tx = watching.multi();
        queue(side::queue(&mut tx), self.form.block, self.keys);
        match tx.commit() {
            Ok(Outcome::Committed(_)) => Ok(Reported::Committed),
            Ok(Outcome::Conflict) => Ok(Reported::Conflict),
            Err(error) => reported_error(&error),
        }
    }

    fn watch_run(&mut self, accounts: &Transactional) -> Result<Reported, String> {
        let mut attempts = 0;
        let result = accounts.watch([&self.keys.watched]).run(|read, tx| {
            attempts += 1;
            if attempts == 1 {
                (self.gap)(1);
            }
            let _: i64 = read.get(&self.keys.watched)?;
            if attempts == 1 {
                (self.gap)(2);
            }
            Ok(queue(tx, self.form.block, self.keys))
        });
        reported(result)
    }
}

fn queue(tx: &mut impl QueueCommands, block: Block, keys: &Keys) -> (Queued<Value>, Queued<Value>) {
    let first = tx.incr(&keys.number, 1).cast();
    match block {
        Block::Refused => (first, tx.queue(cmd("HINCRBY").arg(&keys.hash).to_owned())),
        _ => (first, tx.hincr(&keys.hash, "field", 1).cast()),
    }
}

/// The row of a result, whatever the values are.
fn reported<T>(result: Result<T, Error>) -> Result<Reported, String> {
    match result {
        Ok(_) => Ok(Reported::Committed),
        Err(error) => reported_error(&error),
    }
}

fn reported_error(error: &Error) -> Result<Reported, String> {
    match error {
        Error::Commit(CommitError::NotSent { .. }) if error.is_retryable() => Ok(Reported::NotSent),
        Error::Commit(CommitError::Rejected { index: Some(1), code, .. }) if code == "ERR" => {
            Ok(Reported::Rejected)
        }
        Error::Commit(CommitError::InDoubt(in_doubt)) => match in_doubt.cause().kind() {
            ConnectionErrorKind::TimedOut => Ok(Reported::InDoubt { silence: true }),
            ConnectionErrorKind::Closed => Ok(Reported::InDoubt { silence: false }),
            kind => Err(format!("in doubt because of {kind:?}: {error}")),
        },
        _ => Err(format!("{error} ({error:?})")),
    }
}

fn given_up(result: Result<(), Error>) -> Result<Reported, String> {
    match result {
        Ok(()) => Ok(Reported::GivenUp),
        Err(Error::Lost { applied: Applied::No, .. }) => Ok(Reported::Unclean),
        Err(error) => Err(format!("{error} ({error:?})")),
    }
}
