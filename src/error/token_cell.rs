//! The token of a submitted block, which exists only once the block is about to be sent.

use std::fmt;
use std::sync::{Arc, Mutex};

use crate::error::in_doubt::CommitToken;
use crate::sync::lock;

/// Why a block is not sent again whose token the user has read.
pub(crate) const TOKEN_WAS_READ: &str = "it was not applied; its token was read, so that it is not sent again \
    under another one";

/// The token of a block that a task has submitted. Clones are the same cell.
///
/// The cell is empty at first. It is filled when the block's number is drawn, before a byte of the
/// block is sent. A block that was proven not applied may be sent again, with another number: the cell
/// is filled anew. So a cell that is empty after the block's future is gone proves that nothing was
/// applied, and nothing will be. `resolve` of the session manager takes a cell and knows this.
///
/// A token that was [read](Self::get) may be asked about anywhere, and *not applied* is then its last
/// word. So such a block is not sent again with another number: its future ends with an error, not
/// applied, where it would have been sent again.
///
/// The cell of a block that is not exactly once stays empty.
///
/// Dropping the cell changes nothing.
///
/// ```
/// use rediscope::error::TokenCell;
///
/// fn write_down(cell: &TokenCell) -> Option<String> {
///     cell.get().map(|token| token.to_string())
/// }
/// ```
#[derive(Clone, Default)]
pub struct TokenCell {
    last: Arc<Mutex<LastToken>>,
    /// Lives as long as the block may be sent.
    #[cfg(feature = "tokio")]
    future: std::sync::Weak<()>,
    #[cfg(feature = "tokio")]
    exactly_once: bool,
}

/// The number with which the block was last sent.
#[derive(Default)]
struct LastToken {
    token: Option<CommitToken>,
    /// The user has it.
    is_read: bool,
}

/// What a cell proves.
#[cfg(feature = "tokio")]
#[derive(Debug)]
pub(crate) enum TokenState {
    /// The block's bytes may have left.
    Drawn(CommitToken),
    /// Nothing was applied, and nothing will be.
    NeverSent,
    /// The block may still be sent.
    Waiting,
    /// The block has no token.
    NotExactlyOnce,
}

impl TokenCell {
    /// The cell of a block that is sent only while `future` lives.
    #[cfg(feature = "tokio")]
    pub(crate) fn new(future: &Arc<()>, exactly_once: bool) -> Self {
        Self { last: Arc::default(), future: Arc::downgrade(future), exactly_once }
    }

    /// Whether the block's future is alive: the block may be sent, or sent again.
    #[cfg(feature = "tokio")]
    pub(crate) fn is_waiting(&self) -> bool {
        self.future.strong_count() > 0
    }

    /// Returns what is proven now.
    #[cfg(feature = "tokio")]
    pub(crate) fn state(&self) -> TokenState {
        // The order matters: the token is set while the future lives.
        let is_waiting = self.is_waiting();
        match self.last() {
            Some(token) => TokenState::Drawn(token),
            None if !self.exactly_once => TokenState::NotExactlyOnce,
            None if is_waiting => TokenState::Waiting,
            None => TokenState::NeverSent,
        }
    }

    /// Returns the token with which the block was last sent, or is about to be sent. Once it has returned
    /// one, the block is sent with no other. `None`: it was not sent, or was proven not applied and may be
    /// sent again.
    pub fn get(&self) -> Option<CommitToken> {
        let mut last = lock(&self.last);
        last.is_read = last.token.is_some();
        last.token.clone()
    }

    /// The same for a caller that keeps it for itself.
    pub(crate) fn last(&self) -> Option<CommitToken> {
        lock(&self.last).token.clone()
    }

    /// Empties the cell of a block that was proven not applied. Returns whether the block may be sent
    /// again: the user has not read the token.
    pub(crate) fn take_back(&self) -> bool {
        let mut last = lock(&self.last);
        if !last.is_read {
            last.token = None;
        }
        !last.is_read
    }

    /// Sets the token if `take` returns true, in one step: a reader of the cell waits until the block
    /// is taken or withdrawn.
    pub(crate) fn fill(&self, token: &CommitToken, take: impl FnOnce() -> bool) -> bool {
        let mut last = lock(&self.last);
        let taken = take();
        if taken {
            *last = LastToken { token: Some(token.clone()), is_read: false };
        }
        taken
    }
}

impl fmt::Debug for TokenCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TokenCell").field(&self.last()).finish()
    }
}
