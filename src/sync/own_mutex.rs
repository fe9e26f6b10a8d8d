//! A mutex for what a value does when it is dropped: in a forked child nothing.
//!
//! A child has the parent's mutexes as they were at the fork. One that another thread of the parent had
//! locked stays locked there for ever.

use crate::sync::fork_check::ForkCheck;
#[cfg(feature = "tokio")]
use crate::sync::shim::PoisonError;
use crate::sync::shim::{Mutex, MutexGuard, lock};

/// A mutex, and the process that made it.
#[derive(Debug)]
pub(crate) struct OwnMutex<T> {
    value: Mutex<T>,
    process: ForkCheck,
}

impl<T> OwnMutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { value: Mutex::new(value), process: ForkCheck::here() }
    }

    /// Locks it, also after a panic of its holder.
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        lock(&self.value)
    }

    /// Locks it if that takes no wait.
    #[cfg(feature = "tokio")]
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.value.try_lock().ok()
    }

    /// The value of a mutex that nothing else refers to.
    #[cfg(feature = "tokio")]
    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.value.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks it for a drop. `None`: this is a forked child, whose parent has what the value stands for.
    pub(crate) fn lock_in_drop(&self) -> Option<MutexGuard<'_, T>> {
        (!self.is_of_parent()).then(|| self.lock())
    }

    /// Whether this is a forked child, and the mutex its parent's.
    pub(crate) fn is_of_parent(&self) -> bool {
        self.process.is_other_process()
    }
}

impl<T: Default> Default for OwnMutex<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

#[cfg(all(test, unix))]
pub(crate) mod tests {
    use std::process::Command;
    use std::sync::mpsc::channel;
    use std::time::{Duration, Instant};

    use fork::Fork;

    use super::*;

    /// Drops `value` in a forked child, and asserts that this ends although another thread had locked the
    /// mutex at the fork.
    #[expect(clippy::unwrap_used, reason = "test code, which clippy sees in #[test] only")]
    #[track_caller]
    pub(crate) fn is_dropped_in_a_child<T: Send, V>(mutex: &OwnMutex<T>, value: V) {
        let (locked, is_locked) = channel();
        let (end, may_end) = channel::<()>();
        std::thread::scope(|threads| {
            threads.spawn(move || {
                let _held = mutex.lock();
                locked.send(()).unwrap();
                may_end.recv().unwrap_err();
            });
            is_locked.recv().unwrap();
            match fork::fork().unwrap() {
                Fork::Child => {
                    drop(value);
                    let _: std::io::Error =
                        std::os::unix::process::CommandExt::exec(&mut Command::new("true"));
                    std::process::abort();
                }
                Fork::Parent(child) => {
                    let begun = Instant::now();
                    let mut ended = None;
                    while ended.is_none() && begun.elapsed() < Duration::from_secs(10) {
                        std::thread::sleep(Duration::from_millis(2));
                        ended = fork::waitpid_nohang(child).unwrap();
                    }
                    if ended.is_none() {
                        Command::new("kill").args(["-9", &child.to_string()]).status().unwrap();
                        fork::waitpid(child).unwrap();
                    }
                    drop(end);
                    assert!(ended.is_some(), "the drop waits for a mutex of the parent's");
                    drop(value);
                }
            }
        });
    }

    #[test]
    fn a_child_does_not_lock_what_a_thread_of_its_parent_had_locked() {
        struct Drops<'m>(&'m OwnMutex<u32>);

        impl Drop for Drops<'_> {
            fn drop(&mut self) {
                if let Some(mut number) = self.0.lock_in_drop() {
                    *number += 1;
                }
            }
        }

        let mutex = OwnMutex::new(0);
        is_dropped_in_a_child(&mutex, Drops(&mutex));
        assert_eq!(*mutex.lock(), 1);
    }
}
