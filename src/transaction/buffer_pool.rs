//! The buffers of a thread's last transactions, for its next ones.

use std::cell::RefCell;

/// Maximum size of a buffer that a thread keeps from one transaction to the next.
const MAX_POOLED_BUFFER: usize = 64 * 1024;

/// Maximum number of buffers that a thread keeps: it may run many tasks.
const MAX_BUFFERS: usize = 16;

thread_local! {
    static BUFFERS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

pub(crate) fn take() -> Vec<u8> {
    BUFFERS.try_with(|buffers| buffers.borrow_mut().pop()).ok().flatten().unwrap_or_default()
}

pub(crate) fn put(bytes: Vec<u8>) {
    if (1..=MAX_POOLED_BUFFER).contains(&bytes.capacity()) {
        let _: Result<(), _> = BUFFERS.try_with(|buffers| {
            let mut buffers = buffers.borrow_mut();
            if buffers.len() < MAX_BUFFERS {
                buffers.push(bytes);
            }
        });
    }
}
