//! The buffers of a thread's last transactions, for its next ones.

use std::cell::RefCell;

/// Maximum size of the first buffer that a thread keeps from one transaction to the next, and of the others.
const MAX_POOLED_BUFFER: (usize, usize) = (64 * 1024, 4 * 1024);

/// Maximum number of buffers that a thread keeps: it may run many tasks.
const MAX_BUFFERS: usize = 16;

thread_local! {
    static BUFFERS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

pub(crate) fn take() -> Vec<u8> {
    BUFFERS.try_with(|buffers| buffers.borrow_mut().pop()).ok().flatten().unwrap_or_default()
}

pub(crate) fn put(bytes: Vec<u8>) {
    if bytes.capacity() == 0 {
        return;
    }
    let _: Result<(), _> = BUFFERS.try_with(|buffers| {
        let mut buffers = buffers.borrow_mut();
        let (first, other) = MAX_POOLED_BUFFER;
        let most = if buffers.is_empty() { first } else { other };
        if bytes.capacity() <= most && buffers.len() < MAX_BUFFERS {
            buffers.push(bytes);
        }
    });
}
