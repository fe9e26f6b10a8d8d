//! A request that is sent in one write with other callers' requests.

use std::fmt;

use crate::error::token_cell::TokenCell;
use crate::protocol::batch::RequestKind;

/// A request that another caller, or a lane, may send on its connection.
pub(crate) struct BatchRequest {
    pub(crate) bytes: Vec<u8>,
    /// Number of bytes before the request's own, which are not sent.
    pub(crate) skipped: usize,
    pub(crate) kind: RequestKind,
    /// Whether a block is to be committed exactly once.
    pub(crate) exactly_once: bool,
    /// The slot of a block's keys, in a cluster. One EXEC has the blocks of one slot.
    pub(crate) slot: Option<u16>,
    /// Set when the number of an exactly-once block is drawn.
    pub(crate) token: Option<TokenCell>,
}

impl BatchRequest {
    pub(crate) fn new(bytes: Vec<u8>, kind: RequestKind) -> Self {
        Self { bytes, skipped: 0, kind, exactly_once: false, slot: None, token: None }
    }

    /// Whether the block, of which nothing was applied, may be sent again with another token.
    pub(crate) fn may_send_again(&self) -> bool {
        self.token.as_ref().is_none_or(TokenCell::take_back)
    }

    /// The bytes to be sent.
    pub(crate) fn sent_bytes(&self) -> &[u8] {
        self.bytes.get(self.skipped..).unwrap_or_default()
    }
}

/// Shows the kind, not the content.
impl fmt::Debug for BatchRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchRequest")
            .field("kind", &self.kind)
            .field("exactly_once", &self.exactly_once)
            .finish_non_exhaustive()
    }
}
