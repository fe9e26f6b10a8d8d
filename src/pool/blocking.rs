//! The blocking commands of a pool, each with the socket that can end it.
//!
//! After the pool was closed, no blocking command begins.

use std::panic::Location;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use crate::error::open_scope::OpenScope;
use crate::process::sockets::OwnSocket;
use crate::sync::{lock, thread_name};

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
    state: Mutex<BlockingState>,
}

#[derive(Default)]
struct BlockingState {
    closed: bool,
    number: u64,
    entries: Vec<BlockedEntry>,
}

struct BlockedEntry {
    number: u64,
    command: BlockingCommand,
    thread: Arc<str>,
    begun: Instant,
    socket: Option<Weak<OwnSocket>>,
}

/// A registered blocking command, until its reply has arrived.
pub(crate) struct BlockingGuard {
    commands: Arc<BlockingCommands>,
    number: u64,
}

impl BlockingCommands {
    /// Registers a command that is about to be sent on this socket. `None`: the pool is closed.
    pub(crate) fn begin(
        self: &Arc<Self>,
        command: &BlockingCommand,
        socket: Option<&Arc<OwnSocket>>,
    ) -> Option<BlockingGuard> {
        let mut state = lock(&self.state);
        if state.closed {
            return None;
        }
        state.number += 1;
        let number = state.number;
        let socket = socket.map(Arc::downgrade);
        let (command, thread) = (command.clone(), thread_name());
        state.entries.push(BlockedEntry { number, command, thread, begun: Instant::now(), socket });
        Some(BlockingGuard { commands: Arc::clone(self), number })
    }

    /// Ends all blocking commands: their calls fail at once, and no further one begins.
    pub(crate) fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        for socket in state.entries.iter().filter_map(|entry| entry.socket.as_ref()?.upgrade()) {
            socket.shut_down();
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.state).closed
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
        lock(&self.state).entries.iter().map(scope).collect()
    }
}

impl Drop for BlockingGuard {
    fn drop(&mut self) {
        lock(&self.commands.state).entries.retain(|entry| entry.number != self.number);
    }
}
