//! Mutexes, thread identity, timers of tasks, and the single poll of a decision.

use std::sync::Arc;

pub(crate) mod binary_semaphore;
pub(crate) mod boxed;
pub(crate) mod cancel;
pub(crate) mod caught;
pub(crate) mod fork_check;
pub(crate) mod in_span;
pub(crate) mod now;
pub(crate) mod own_mutex;
#[cfg(feature = "tokio")]
pub(crate) mod places;
pub(crate) mod shim;
#[cfg(feature = "tokio")]
pub(crate) mod timer;
pub(crate) mod under_way;

/// The current thread's id, read once a thread: the standard library counts a reference each time.
pub(crate) fn this_thread() -> std::thread::ThreadId {
    thread_local! {
        static ME: std::thread::ThreadId = std::thread::current().id();
    }
    ME.try_with(|me| *me).unwrap_or_else(|_| std::thread::current().id())
}

/// The current thread's name, or its id if it has none; made once a thread.
pub(crate) fn thread_name() -> Arc<str> {
    thread_local! {
        static NAME: Arc<str> = {
            let thread = std::thread::current();
            match thread.name() {
                Some(name) => Arc::from(name),
                None => Arc::from(format!("{:?}", thread.id())),
            }
        };
    }
    NAME.try_with(Arc::clone).unwrap_or_else(|_| Arc::from("a thread that ends"))
}

/// Locks a mutex also after a panic of its holder: the guarded value is checked by its own state.
pub(crate) fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
