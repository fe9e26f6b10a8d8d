//! What the lines of one pool of tasks share: permits, blocking commands, idle connections, lanes.
//!
//! This module depends on no line and no scope, so that both can hold it.

use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tracing::Level;

use crate::connection::connection::Connection;
use crate::connection::endpoint::Endpoint;
use crate::connection::tasks::io::spawn_connection;
use crate::connection::tasks::wire::TaskWire;
use crate::error::connection::ConnectionError;
use crate::pool::blocking::BlockingCommands;
use crate::pool::config::PoolConfig;
use crate::pool::context::PoolContext;
use crate::pool::tasks::idle::{TaskConnection, TaskIdle};
use crate::pool::tasks::lanes::Lanes;
use crate::pool::tasks::permits::Permits;
use crate::pool::tasks::right::{Ended, Right};
use crate::protocol::connection_state::CloseReason;
use crate::status::metrics::Started;

/// Time in addition to `cleanup_timeout` after which a connection that is being cleaned is closed:
/// its runtime is not run.
const CLEANUP_GRACE: Duration = Duration::from_millis(500);

/// What the lines of one pool share.
pub(crate) struct TaskCore {
    context: Arc<PoolContext>,
    /// As many as the pool has connections at most.
    pub(in crate::pool) permits: Permits,
    pub(in crate::pool) idle: TaskIdle,
    pub(in crate::pool) blocking: Arc<BlockingCommands>,
    pub(in crate::pool) lanes: Lanes,
}

impl Deref for TaskCore {
    type Target = PoolContext;

    fn deref(&self) -> &PoolContext {
        &self.context
    }
}

impl TaskCore {
    pub(crate) fn new(config: PoolConfig, endpoint: Endpoint) -> Self {
        let context = Arc::new(PoolContext::new(config, endpoint));
        let max_size = context.settings().max_size;
        Self {
            lanes: Lanes::new(Arc::clone(&context)),
            permits: Permits::new(max_size),
            idle: TaskIdle::new(context.settings()),
            context,
            blocking: Arc::default(),
        }
    }

    /// Number of permits that callers hold.
    pub(in crate::pool) fn in_use(&self) -> usize {
        self.permits.in_use()
    }

    /// Returns a permit, and its connection if that may be used again.
    pub(in crate::pool) fn give_back(&self, right: &Right, connection: Option<TaskConnection>) {
        // If the pool has taken the permit back, the connection does not count any more.
        let Some(Ended { task }) = right.end() else { return drop(connection) };
        self.end(right, connection, task.is_some());
    }

    /// Takes permit and connection from a line that its caller keeps. The connection is closed.
    pub(in crate::pool) fn revoke(&self, right: &Right) {
        let Some(Ended { task }) = right.end() else { return };
        if let Some(task) = &task {
            task.shut_down();
            self.config.counters.replaced(CloseReason::Reclaimed);
        }
        self.end(right, None, task.is_some());
    }

    /// `counts`: the right had a connection.
    fn end(&self, right: &Right, connection: Option<TaskConnection>, counts: bool) {
        let refused = match connection {
            Some(connection) => self.idle.give_back(connection),
            None => {
                if counts {
                    self.idle.closed_one();
                }
                None
            }
        };
        self.permits.give_back(right.number());
        drop(refused);
    }

    /// Has a runtime open the connection with this number.
    pub(in crate::pool) fn open(self: &Arc<Self>, number: u64, runtime: &Handle) {
        let options = self.shared.open_options(self.config.purpose, &self.endpoint);
        let (endpoint, settings) = (self.endpoint.clone(), Arc::clone(self.settings()));
        let core = Arc::downgrade(self);
        let (since, begun) = (Instant::now(), Started::now());
        let task = spawn_connection(runtime, endpoint, settings, options, move |opened| {
            // Without a pool the connection is closed.
            if let Some(core) = core.upgrade() {
                core.opened(number, opened, since, begun);
            }
        });
        self.idle.begun(number, task);
    }

    fn opened(
        &self,
        number: u64,
        opened: Result<Connection<TaskWire>, ConnectionError>,
        since: Instant,
        begun: Started,
    ) {
        let log_thread = &self.config.logging.log_thread;
        let opened = self.shared.opened(opened, since, &self.endpoint, log_thread, begun);
        drop(self.idle.opened(number, opened.ok().map(Box::new)));
    }

    /// Closes idle connections that are dead, outdated, too old or idle for too long, and opens others
    /// up to `min_idle`.
    pub(in crate::pool) fn tend_idle(self: &Arc<Self>) {
        let (now, generation) = (Instant::now(), self.generation());
        let idle_timeout = self.settings().idle_timeout;
        let mut reasons = Vec::new();
        let closed = self.idle.take_if(|connection, since| {
            let reason = if connection.wire().task().is_closed() {
                Some(CloseReason::Closed)
            } else {
                connection.close_reason(now, generation)
            };
            reasons.extend(reason);
            let late =
                idle_timeout.is_some_and(|limit| now.saturating_duration_since(since) >= limit);
            reason.is_some() || late
        });
        drop(closed);
        for reason in reasons {
            self.on_replaced(reason);
        }
        if self.shared.is_closed() {
            return;
        }
        while let Some((number, runtime)) = self.idle.open_idle() {
            self.open(number, &runtime);
        }
    }

    /// Takes back permits of lines without a scope that were not used for `limit`, and of connections
    /// whose cleanup takes too long.
    pub(in crate::pool) fn revoke_unused(&self, seen: &mut LinesSeen, limit: Duration) {
        let (now, rights) = (Instant::now(), self.permits.rights());
        seen.0.retain(|line| rights.iter().any(|right| Arc::ptr_eq(right, &line.right)));
        for right in rights {
            let cleanup = self.settings().cleanup_timeout + CLEANUP_GRACE;
            let is_stuck = right.cleaned_since().is_some_and(|since| since.elapsed() >= cleanup);
            let uses = right.uses();
            let known = seen.0.iter_mut().find(|line| Arc::ptr_eq(&line.right, &right));
            let unused = match known {
                Some(line) if line.uses == uses => now.saturating_duration_since(line.since),
                Some(line) => {
                    (line.uses, line.since) = (uses, now);
                    Duration::ZERO
                }
                None => {
                    let right = Arc::clone(&right);
                    seen.0.push(LineSeen { right, uses, since: now });
                    Duration::ZERO
                }
            };
            let is_forgotten = !right.is_scoped() && unused >= limit && !right.awaits_reply();
            if is_stuck || is_forgotten {
                self.revoke(&right);
                if is_forgotten {
                    let name = self.config.name;
                    self.config.logging.log_thread.log(Level::WARN, move || {
                        tracing::warn!(
                            pool = name,
                            ?limit,
                            "connection reclaimed from a call that was not polled for max_pin_time"
                        );
                    });
                }
            }
        }
    }

    /// Counts and logs a connection that was closed instead of being reused.
    pub(in crate::pool) fn on_replaced(&self, reason: CloseReason) {
        self.config.counters.replaced(reason);
        let address = self.endpoint.address().into_owned();
        self.config.logging.log_thread.log(Level::DEBUG, move || {
            let reason = reason.as_str();
            tracing::debug!(server.address = &*address, reason, "connection replaced");
        });
    }
}

/// In a forked child the connections belong to the parent.
impl Drop for TaskCore {
    fn drop(&mut self) {
        match self.settings().is_forked_child() {
            true => self.idle.leak(),
            false => self.idle.abort_attempts(),
        }
    }
}

/// The use of the lent connections, as the reaper saw it in its last run.
#[derive(Default)]
pub(in crate::pool) struct LinesSeen(Vec<LineSeen>);

struct LineSeen {
    right: Arc<Right>,
    uses: u64,
    since: Instant,
}
