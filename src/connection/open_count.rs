//! The number of open connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The number of connections that are open or being opened.
#[derive(Clone, Debug, Default)]
pub(crate) struct OpenCount {
    number: Arc<AtomicUsize>,
}

impl OpenCount {
    pub(crate) fn get(&self) -> usize {
        self.number.load(Ordering::SeqCst)
    }

    /// Counts one connection, from before its first byte to after its last.
    pub(crate) fn count(&self) -> Counted {
        self.number.fetch_add(1, Ordering::SeqCst);
        Counted { number: Arc::clone(&self.number) }
    }
}

/// One connection that counts until this is dropped.
#[derive(Debug)]
pub(crate) struct Counted {
    number: Arc<AtomicUsize>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.number.fetch_sub(1, Ordering::SeqCst);
    }
}
