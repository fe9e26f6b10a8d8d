//! The blocking commands of a pool, each with what can end it.
//!
//! After the pool was closed, no blocking command begins.

use std::panic::Location;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::open_scope::OpenScope;
use crate::sync::own_mutex::OwnMutex;

/// A command that blocks on the server for a timeout of its own.
#[derive(Clone, Debug)]
pub(crate) struct BlockingCommand {
    pub(crate) command: Arc<str>,
    /// The place that made the handle: the methods of redis-rs do not pass on the caller's own
    /// place.
    pub(crate) place: &'static Location<'static>,
    /// Maximum time that it blocks.
    pub(crate) timeout: Duration,
}

/// The blocking commands of one pool.
#[derive(Default)]
pub(crate) struct BlockingCommands {
    state: OwnMutex<BlockingState>,
}

#[derive(Default)]
struct BlockingState {
    closed: bool,
    number: u64,
    entries: Vec<BlockedEntry>,
}

/// Ends the command: its call fails.
pub(crate) type EndCommand = dyn Fn() + Send + Sync;

struct BlockedEntry {
    number: u64,
    command: BlockingCommand,
    thread: Arc<str>,
    begun: Instant,
    end: Option<Arc<EndCommand>>,
}

/// A registered blocking command, until its reply has arrived.
pub(crate) struct BlockingGuard {
    commands: Arc<BlockingCommands>,
    number: u64,
}

impl BlockingCommands {
    /// Registers a command that is about to be sent by this thread or task. `None`: the pool is closed.
    pub(crate) fn begin(
        self: &Arc<Self>,
        command: &BlockingCommand,
        thread: Arc<str>,
        end: Option<Arc<EndCommand>>,
    ) -> Option<BlockingGuard> {
        let mut state = self.state.lock();
        if state.closed {
            return None;
        }
        state.number += 1;
        let number = state.number;
        let (command, begun) = (command.clone(), Instant::now());
        state.entries.push(BlockedEntry { number, command, thread, begun, end });
        Some(BlockingGuard { commands: Arc::clone(self), number })
    }

    /// Ends all blocking commands: their calls fail at once, and no further one begins.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let ends: Vec<_> = state.entries.iter().filter_map(|entry| entry.end.clone()).collect();
        drop(state);
        ends.iter().for_each(|end| end());
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Returns each blocking command with its handle's place, its thread and its age.
    pub(crate) fn list(&self) -> Vec<OpenScope> {
        let scope = |entry: &BlockedEntry| OpenScope {
            name: None,
            blocking: Some(Arc::clone(&entry.command.command)),
            begun_at: entry.command.place,
            thread: Arc::clone(&entry.thread),
            age: entry.begun.elapsed(),
            is_closure: false,
        };
        self.state.lock().entries.iter().map(scope).collect()
    }
}

impl Drop for BlockingGuard {
    fn drop(&mut self) {
        if let Some(mut state) = self.commands.state.lock_in_drop() {
            state.entries.retain(|entry| entry.number != self.number);
        }
    }
}
