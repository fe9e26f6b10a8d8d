//! Locks and thread identity.

pub(crate) mod shim;

/// Asked for once a thread: the standard library counts a reference each time.
pub(crate) fn this_thread() -> std::thread::ThreadId {
    thread_local! {
        static ME: std::thread::ThreadId = std::thread::current().id();
    }
    ME.try_with(|me| *me).unwrap_or_else(|_| std::thread::current().id())
}

/// A lock that a panicking holder does not break: whatever it guards is judged by its own state.
pub(crate) fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
