//! WATCH and declared reads that a waiting caller leaves with its place: they travel behind the EXEC of
//! another caller, whose connection it gets next.
//!
//! They apply nothing, so the two callers share no fate. What an EXEC cannot prove ends the connection,
//! and the waiting caller begins on another one.

use std::sync::{Arc, Mutex};

use crate::protocol::connection_state::Expect;
use crate::sync::lock;
use crate::text::opaque_debug;

/// Maximum number of bytes of WATCH and the reads: the holder's message stays a short one.
const MAX_BYTES: usize = 4096;

/// The hash tag of a connection's register, which is armed.
pub(crate) type Armed = Option<u32>;

/// WATCH and the reads of a caller that may have to wait.
#[derive(Clone, Copy)]
pub(crate) struct WatchOffer<'r> {
    pub(crate) watch: &'r [u8],
    /// The bytes of the reads, and their number.
    pub(crate) reads: (&'r [u8], usize),
    /// The caller's transaction needs a register with this tag.
    pub(crate) needs: Option<Armed>,
}

impl WatchOffer<'_> {
    /// `None`: they are too long.
    pub(in crate::pool) fn early_watch(&self) -> Option<EarlyWatch> {
        let (watch, (reads, count)) = (self.watch, self.reads);
        let (bytes, reads) = ([watch, reads].concat(), u32::try_from(count).ok()?);
        (bytes.len() <= MAX_BYTES).then_some(EarlyWatch { bytes, reads, needs: self.needs })
    }
}

/// WATCH and the reads of a caller that waits.
pub(crate) struct EarlyWatch {
    bytes: Vec<u8>,
    reads: u32,
    needs: Option<Armed>,
}

impl EarlyWatch {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn expected(&self) -> [(Expect, u32); 2] {
        [(Expect::Watch, 1), (Expect::Plain, self.reads)]
    }

    /// Returns whether they can travel behind an EXEC after which the connection watches this register.
    pub(in crate::pool) fn fits(&self, armed: Option<Armed>) -> bool {
        self.needs.is_none() || self.needs == armed
    }
}

/// A caller's request, with which it gets the connection.
pub(crate) struct EarlyRequest<C> {
    pub(in crate::pool) watch: Arc<EarlyWatch>,
    connection: Mutex<Option<C>>,
}

impl<C> EarlyRequest<C> {
    pub(in crate::pool) fn new(watch: EarlyWatch) -> Self {
        Self { watch: Arc::new(watch), connection: Mutex::new(None) }
    }

    pub(in crate::pool) fn put(&self, connection: C) {
        *lock(&self.connection) = Some(connection);
    }

    pub(in crate::pool) fn take(&self) -> Option<C> {
        lock(&self.connection).take()
    }
}

impl<C> std::fmt::Debug for EarlyRequest<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EarlyRequest").finish_non_exhaustive()
    }
}

opaque_debug!(EarlyWatch);
