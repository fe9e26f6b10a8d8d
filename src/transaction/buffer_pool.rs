//! The buffer of a thread's last transaction, for its next one.

use std::cell::Cell;

/// Maximum size of the buffer that a thread keeps from one transaction to the next.
const MAX_POOLED_BUFFER: usize = 64 * 1024;

thread_local! {
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

pub(crate) fn take() -> Vec<u8> {
    BUFFER.try_with(Cell::take).unwrap_or_default()
}

pub(crate) fn put(bytes: Vec<u8>) {
    if bytes.capacity() <= MAX_POOLED_BUFFER {
        let _: Result<(), _> = BUFFER.try_with(|buffer| buffer.set(bytes));
    }
}
