//! The steps of a program, on the server and on the model.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use proptest::prelude::*;
use rediscope::commands::QueueCommands;
use rediscope::{CommitError, Error, Outcome, Replies, Savepoint, Watching};

use super::fixture::Judged;
use super::model::{KEYS, Model, Write};
use super::program::{End, Ending, Node, Part};

/// What a transaction came to, in the model's words.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reported {
    Committed { commands: usize },
    Conflict,
    NotApplied,
    PartlyApplied { failures: usize },
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("the program's own")]
    Own,
    #[error(transparent)]
    Redis(#[from] Error),
}

pub(super) fn names(keys: &[usize]) -> Vec<&'static str> {
    keys.iter().map(|key| KEYS[*key]).collect()
}

pub(super) fn read(watching: &mut Watching, key: usize, model: &Model) -> Judged {
    let reported: Result<Option<String>, Error> = watching.get(KEYS[key]);
    match (reported, model.text(key)) {
        (Ok(reported), Ok(text)) => prop_assert_eq!(reported.as_deref(), text),
        (Err(Error::Command { error, .. }), Err(())) => prop_assert_eq!(error.code(), "WRONGTYPE"),
        (reported, text) => prop_assert!(false, "read {:?} where {:?} is", reported, text),
    }
    Ok(())
}

/// Queues on both sides.
pub(super) fn queue(node: &Node, tx: &mut impl QueueCommands, writes: &mut Vec<Write>) {
    match node {
        Node::Write(write) => {
            tx.queue::<()>(write.command());
            writes.push(*write);
        }
        Node::Part(part) => queue_part(part, tx.savepoint(), writes),
    }
}

pub(super) fn queue_part(part: &Part, mut savepoint: Savepoint<'_>, writes: &mut Vec<Write>) {
    let before = writes.len();
    if part.ending == Ending::Failed {
        let failed: Result<(), ()> = savepoint.part(|inner| {
            part.nodes.iter().for_each(|node| queue(node, inner, writes));
            Err(())
        });
        assert_eq!(failed, Err(()));
    } else {
        part.nodes.iter().for_each(|node| queue(node, &mut savepoint, writes));
    }
    match part.ending {
        // What failed is forgotten inside a part that is kept.
        Ending::Released | Ending::Failed => savepoint.release(),
        Ending::Dropped => drop(savepoint),
        Ending::Forgotten => std::mem::forget(savepoint),
    }
    if part.ending != Ending::Released {
        writes.truncate(before);
    }
}

pub(super) fn leave_closure(end: End) -> Result<(), Fault> {
    match end {
        End::Ok => Ok(()),
        End::Err => Err(Fault::Own),
        End::Panic => resume_unwind(Box::new(())),
    }
}

/// `None` for the intended panic.
pub(super) fn caught<R>(f: impl FnOnce() -> R) -> Option<R> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(value) => Some(value),
        Err(panic) if panic.is::<()>() => None,
        Err(panic) => resume_unwind(panic),
    }
}

pub(super) fn panicking(f: impl FnOnce()) {
    assert!(caught(f).is_none());
}

pub(super) fn reported(outcome: Result<Outcome, Error>) -> Reported {
    let count = |replies: &Replies| replies.len();
    match outcome {
        Ok(Outcome::Committed(replies)) => Reported::Committed { commands: count(&replies) },
        Ok(Outcome::Conflict) => Reported::Conflict,
        Err(Error::Commit(CommitError::PartlyApplied { replies, .. })) => {
            Reported::PartlyApplied { failures: replies.failures() }
        }
        Err(Error::Commit(CommitError::Rejected { .. })) => Reported::NotApplied,
        Err(Error::Commit(CommitError::NotSent { source, .. }))
            if matches!(*source, Error::Refused { .. }) =>
        {
            Reported::NotApplied
        }
        Err(error) => panic!("returned {error:?}"),
    }
}
