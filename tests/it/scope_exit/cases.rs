//! The matrix: every form of a scope, every way out of it, and what may be open in it.
//!
//! A case that is left out has a reason why it cannot be written.

use crate::side;

/// How a scope sends what it queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// A guard whose connection is trusted: nothing is sent before one write with everything.
    Trusted,
    /// A guard whose connection is checked first.
    Untrusted,
    /// A guard that has sent MULTI already.
    Immediate,
    /// Reading with WATCH armed, not queueing yet.
    Reading,
    /// Watching by hand, queueing.
    Watching,
    WatchRun,
    Run,
    /// A guard that has sent a chunk.
    LargeGuard,
    /// The same, watching.
    LargeWatching,
    /// A `run` block that has sent a chunk.
    LargeRun,
}

/// How the scope ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Commit,
    Conflict,
    /// The consuming pair of dropping: `discard()`, `abandon()`.
    Discard,
    Drop,
    QuestionMark,
    Panic,
    /// The server refuses a command while it is queued.
    QueueError,
    /// This crate refuses a command by its name.
    Refused,
    WrongType,
    ClosureError,
    /// `mem::forget`, and then the reaper.
    Forget,
    /// Used again after the reaper came.
    Outlive,
}

/// A part of the transaction at the moment of the exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    None,
    Open,
    Forgotten,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Cell {
    pub(crate) form: Form,
    pub(crate) exit: Exit,
    pub(crate) part: Part,
}

const FORMS: [Form; 10] = [
    Form::Trusted,
    Form::Untrusted,
    Form::Immediate,
    Form::Reading,
    Form::Watching,
    Form::WatchRun,
    Form::Run,
    Form::LargeGuard,
    Form::LargeWatching,
    Form::LargeRun,
];

const EXITS: [Exit; 12] = [
    Exit::Commit,
    Exit::Conflict,
    Exit::Discard,
    Exit::Drop,
    Exit::QuestionMark,
    Exit::Panic,
    Exit::QueueError,
    Exit::Refused,
    Exit::WrongType,
    Exit::ClosureError,
    Exit::Forget,
    Exit::Outlive,
];

const PARTS: [Part; 3] = [Part::None, Part::Open, Part::Forgotten];

/// Every cell there is, the impossible ones included.
pub(crate) fn all() -> impl Iterator<Item = Cell> {
    FORMS.into_iter().flat_map(|form| {
        EXITS
            .into_iter()
            .flat_map(move |exit| PARTS.into_iter().map(move |part| Cell { form, exit, part }))
    })
}

impl Form {
    pub(crate) fn is_closure(self) -> bool {
        matches!(self, Self::WatchRun | Self::Run | Self::LargeRun)
    }

    pub(crate) fn watches(self) -> bool {
        matches!(self, Self::Reading | Self::Watching | Self::WatchRun | Self::LargeWatching)
    }

    pub(crate) fn is_large(self) -> bool {
        matches!(self, Self::LargeGuard | Self::LargeWatching | Self::LargeRun)
    }

    /// MULTI was sent and its reply read before the scope ends.
    pub(crate) fn is_in_multi(self) -> bool {
        self == Self::Immediate || (self.is_large() && side::SENDS_CHUNKS)
    }
}

impl Cell {
    /// Why this cell cannot be written, if it cannot.
    pub(crate) fn impossible(self) -> Option<&'static str> {
        use {Exit::*, Form::*};
        let Self { form, exit, part } = self;
        match exit {
            Conflict if !form.watches() => Some("what watches nothing cannot conflict"),
            Commit | Conflict if form == Reading => Some("it has no transaction to commit yet"),
            Discard | Drop | Forget if form.is_closure() => {
                Some("a closure does not own the guard it works on")
            }
            ClosureError if !form.is_closure() => Some("a guard has no closure"),
            _ if form == LargeRun && !side::SENDS_CHUNKS => {
                Some("a block of any size is kept until its commit")
            }
            Outlive if form == Run => Some("it holds no connection before its commit"),
            _ if form == Reading && part != Part::None => {
                Some("without a transaction there are no parts")
            }
            QuestionMark | Panic => None,
            _ if part == Part::Open && !form.is_closure() => {
                Some("an open part borrows its guard, which cannot be used or moved meanwhile")
            }
            _ => None,
        }
    }

    /// Whether the server applies what the scope queued.
    pub(crate) fn is_applied(self) -> bool {
        matches!(self.exit, Exit::Commit | Exit::WrongType) && self.form != Form::Reading
    }

    /// Whether the scope ends by a call, which returns after the permit is back.
    pub(crate) fn has_call_at_its_end(self) -> bool {
        self.form.is_closure() || matches!(self.exit, Exit::Commit | Exit::Conflict | Exit::Discard)
    }

    /// Whether the reaper ends it.
    pub(crate) fn is_reclaimed(self) -> bool {
        matches!(self.exit, Exit::Forget | Exit::Outlive)
    }

    /// Whether the connection is replaced. Else it has to be the same one afterwards.
    pub(crate) fn is_replaced(self) -> bool {
        let something_was_sent = self.form.watches() || self.form.is_in_multi();
        self.is_reclaimed() || (self.exit == Exit::Panic && something_was_sent)
    }
}
