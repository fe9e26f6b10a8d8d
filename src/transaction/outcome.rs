//! The outcome of a transaction that watches. Failures are errors; a conflict is none.

use crate::reply::replies::Replies;

/// The outcome of a transaction that watches.
///
/// The enum is exhaustive, so that a conflict cannot be forgotten. A transaction that watches
/// nothing commits to [`Replies`], so no caller handles a conflict that cannot happen.
#[derive(Clone, Debug)]
#[must_use = "a conflict means that nothing was applied"]
pub enum Outcome {
    /// Every command was applied, in order, with no other client's command in between.
    Committed(Replies),
    /// Nothing was applied: a watched key changed, expired, or was written with the value it had.
    Conflict,
}

impl Outcome {
    /// Returns the replies, if the transaction was applied.
    pub fn committed(self) -> Option<Replies> {
        match self {
            Self::Committed(replies) => Some(replies),
            Self::Conflict => None,
        }
    }

    /// Returns whether nothing was applied because a watched key changed.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict)
    }
}
