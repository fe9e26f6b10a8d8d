//! What a waiter knows of a release that gives it the lock.

use crate::protocol::lock::lease::Timing;

/// Whether a release has given the lock to a waiter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Given {
    #[default]
    No,
    /// A release that may give it, or may have given it, is or was under way.
    Maybe,
    Yes(GivenLock),
}

/// A lock that a release has given to a waiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GivenLock {
    pub(crate) fencing: u64,
    pub(crate) timing: Timing,
    /// Another copy of the request may still arrive.
    pub(crate) repeated: bool,
}
