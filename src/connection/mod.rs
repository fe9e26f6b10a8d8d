//! One clean connection: r2d2 lives here and nowhere else.
//!
//! A [`Link`](link::Link) knows what the server believes about it. The [gate](checkout) hands out
//! the right to one, first come first served; the [registry] knows who holds it and takes it back.
//!
//! Never: transactions.

pub(crate) mod checkout;
pub(crate) mod deadline;
pub(crate) mod group;
pub(crate) mod link;
pub(crate) mod manager;
#[cfg(all(test, rediscope_shuttle))]
pub(crate) mod model;
pub(crate) mod nodes;
pub(crate) mod openings;
pub(crate) mod pool;
#[cfg(test)]
mod properties;
pub(crate) mod registry;
pub(crate) mod sync;
#[cfg(test)]
mod tests;
mod transport;
mod yielding;

/// Asked for once a thread: the standard library counts a reference each time.
fn this_thread() -> std::thread::ThreadId {
    thread_local! {
        static ME: std::thread::ThreadId = std::thread::current().id();
    }
    ME.try_with(|me| *me).unwrap_or_else(|_| std::thread::current().id())
}

/// A lock that a panicking holder does not break: whatever it guards is judged by its own state.
pub(crate) fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
