//! The callbacks for the loss of a lock, which are the user's.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use crate::sync::lock;

pub(crate) type Callback = Box<dyn FnOnce() + Send>;

/// Runs the callbacks on a thread of their own: they may take long while other leases need renewal.
pub(crate) fn run_callbacks(callbacks: Vec<Callback>) {
    if callbacks.is_empty() {
        return;
    }
    let callbacks = Arc::new(Mutex::new(callbacks));
    let shared = Arc::clone(&callbacks);
    let call = move |callbacks: &Mutex<Vec<Callback>>| {
        let callbacks = std::mem::take(&mut *lock(callbacks));
        for callback in callbacks {
            if catch_unwind(AssertUnwindSafe(callback)).is_err() {
                tracing::warn!("a callback about a lost lock panicked");
            }
        }
    };
    let thread = std::thread::Builder::new().name("rediscope-on-lost".to_owned());
    if thread.spawn(move || call(&shared)).is_err() {
        call(&callbacks);
    }
}
