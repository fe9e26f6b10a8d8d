//! The commands that wait on the server, each with the socket by which it can be ended.
//!
//! Never: a command that begins to wait after the pool was closed.

use std::fmt;
use std::net::Shutdown;
use std::panic::Location;
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use crate::error::open_scope::OpenScope;
use crate::pool::scopes::thread_name;
use crate::process::sockets::OwnSocket;
use crate::sync::lock;

/// A command that waits on the server for its own timeout.
#[derive(Clone, Debug)]
pub(crate) struct BlockingCommand {
    pub(crate) command: Arc<str>,
    /// Where the handle was made: redis-rs's vocabulary does not pass the caller's own place on.
    pub(crate) place: &'static Location<'static>,
}

/// The commands of one pool that wait on the server.
#[derive(Default)]
pub(crate) struct BlockingCommands {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    closed: bool,
    number: u64,
    entries: Vec<Entry>,
}

struct Entry {
    number: u64,
    waiting: BlockingCommand,
    thread: Arc<str>,
    begun: Instant,
    socket: Option<Weak<OwnSocket>>,
}

/// One of them, until it has its answer.
pub(crate) struct BlockingGuard<'p> {
    blocking: &'p BlockingCommands,
    number: u64,
}

impl BlockingCommands {
    /// A command is about to be sent on this socket. `None`: the pool is closed.
    pub(crate) fn begin(
        &self,
        waiting: &BlockingCommand,
        socket: Option<&Arc<OwnSocket>>,
    ) -> Option<BlockingGuard<'_>> {
        let mut state = lock(&self.state);
        if state.closed {
            return None;
        }
        state.number += 1;
        let number = state.number;
        let socket = socket.map(Arc::downgrade);
        let (waiting, thread) = (waiting.clone(), thread_name());
        state.entries.push(Entry { number, waiting, thread, begun: Instant::now(), socket });
        Some(BlockingGuard { blocking: self, number })
    }

    /// Ends them all: their calls fail at once, and none begins any more.
    pub(crate) fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        for socket in state.entries.iter().filter_map(|entry| entry.socket.as_ref()?.upgrade()) {
            // It fails if the server was first.
            let _: std::io::Result<()> = socket.shutdown(Shutdown::Both);
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.state).closed
    }

    /// Each with its handle's place, its thread and its age.
    pub(crate) fn scopes(&self) -> Vec<OpenScope> {
        let scope = |entry: &Entry| OpenScope {
            name: None,
            blocking: Some(Arc::clone(&entry.waiting.command)),
            begun_at: entry.waiting.place,
            thread: Arc::clone(&entry.thread),
            age: entry.begun.elapsed(),
            is_closure: false,
        };
        lock(&self.state).entries.iter().map(scope).collect()
    }
}

impl Drop for BlockingGuard<'_> {
    fn drop(&mut self) {
        lock(&self.blocking.state).entries.retain(|entry| entry.number != self.number);
    }
}

impl fmt::Debug for BlockingCommands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockingCommands").finish_non_exhaustive()
    }
}
