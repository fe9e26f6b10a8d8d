//! The names of the synchronisation that hand-written waiting uses: the standard library's, or a
//! model checker's in its place (`--cfg rediscope_shuttle`).

#[cfg(not(rediscope_shuttle))]
pub(crate) use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
#[cfg(rediscope_shuttle)]
pub(crate) use {
    shuttle::sync::{Arc, Condvar, Mutex, MutexGuard},
    std::sync::PoisonError,
};

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
