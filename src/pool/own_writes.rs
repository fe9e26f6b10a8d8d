//! The keys that a watching closure writes past its own transaction, on other connections of its session
//! manager. Such a write of a watched key makes each attempt of the closure a conflict.
//!
//! Never: a key itself; its hash is enough to compare.

use std::cell::RefCell;
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use tracing::Level;
use tracing::level_filters::LevelFilter;

use crate::protocol::command::keys;
use crate::protocol::command::reader::CommandReader;
use crate::settings::settings::Settings;

/// Maximum number of keys of one attempt that are kept.
const MOST: usize = 4096;

thread_local! {
    /// Of the watching closures that run on this thread, each inside the one before.
    static RUNNING: RefCell<Vec<OwnWrites>> = const { RefCell::new(Vec::new()) };
}

/// Hashes of the keys that one attempt of a closure has written, each with its session manager.
#[derive(Debug)]
pub(crate) struct OwnWrites {
    keys: HashSet<u64>,
}

impl OwnWrites {
    /// `None`: no warning would be logged. `is_decisive`: they decide more than that.
    pub(crate) fn new(is_decisive: bool) -> Option<Self> {
        let is_logged = || Level::WARN <= LevelFilter::current();
        (is_decisive || is_logged()).then(|| Self { keys: HashSet::new() })
    }

    /// Whether that session manager has written the key.
    pub(crate) fn contain(&self, settings: &Settings, key: &[u8]) -> bool {
        !self.keys.is_empty() && self.keys.contains(&hash(settings, key))
    }
}

/// Runs a closure, or polls its future once, and keeps the keys that it writes.
pub(crate) fn during<T>(writes: &mut Option<OwnWrites>, run: impl FnOnce() -> T) -> T {
    /// Takes them back, also after a panic.
    struct Running<'w>(&'w mut Option<OwnWrites>);

    impl Drop for Running<'_> {
        fn drop(&mut self) {
            let last = RUNNING.try_with(|running| running.borrow_mut().pop());
            *self.0 = last.ok().flatten();
        }
    }

    let Some(begun) = writes.take() else { return run() };
    if RUNNING.try_with(|running| running.borrow_mut().push(begun)).is_err() {
        return run();
    }
    let _running = Running(writes);
    run()
}

/// Keeps the keys that these commands write, if a watching closure sends them.
#[inline]
pub(crate) fn record(settings: &Settings, commands: &[u8]) {
    let runs = RUNNING.try_with(|running| !running.borrow().is_empty());
    if runs.unwrap_or(false) {
        record_all(settings, commands);
    }
}

#[cold]
fn record_all(settings: &Settings, commands: &[u8]) {
    let mut written = Vec::new();
    for args in CommandReader::new(commands).flatten() {
        keys::for_each_written(&args, |key| written.push(hash(settings, key)));
    }
    let _: Result<(), _> = RUNNING.try_with(|running| {
        for writes in running.borrow_mut().iter_mut() {
            let left = MOST.saturating_sub(writes.keys.len());
            writes.keys.extend(written.iter().take(left));
        }
    });
}

/// Both handles of a session manager have the same settings, in the same place.
fn hash(settings: &Settings, key: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (std::ptr::from_ref(settings) as usize, key).hash(&mut hasher);
    hasher.finish()
}
