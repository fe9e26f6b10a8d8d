//! The idle connections of a pool of tasks, and the attempts to open further ones.
//!
//! Connections that are idle, lent or being opened are together never more than `max_size`. A
//! connection belongs to the runtime that opened it. The tasks of another runtime do not use it. They
//! close it if they need its place.

use std::time::{Duration, Instant};

use tokio::runtime::{Handle, Id as RuntimeId};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::connection::connection::Connection;
use crate::connection::tasks::wire::{ConnectionTask, TaskWire};
use crate::settings::settings::Settings;
use crate::sync::own_mutex::OwnMutex;

/// Minimum and maximum delay after a failed connect.
const BACKOFF: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(250)];

/// Delay before a caller looks again whether the task of a closed connection has ended.
const END_PAUSE: Duration = Duration::from_millis(1);

/// A connection, boxed because it is moved often.
pub(in crate::pool) type TaskConnection = Box<Connection<TaskWire>>;

/// The idle connections of a pool, and the attempts to open further ones.
pub(in crate::pool) struct TaskIdle {
    max_size: usize,
    min_idle: usize,
    state: OwnMutex<IdleState>,
    /// Notified when a connection has become idle or was closed, and when a connect has failed.
    changed: Notify,
}

struct IdleState {
    closed: bool,
    /// Whether connections stay open that no caller with a permit waits for. Not while the pool is being closed.
    keeps: bool,
    /// The connections, the latest used last.
    idle: Vec<IdleConnection>,
    /// Number of connections that are idle, lent or being opened.
    total: usize,
    attempts: Vec<Attempt>,
    next_attempt: u64,
    /// The runtimes of the callers that have a permit and wait for a connection.
    requesters: Vec<RuntimeId>,
    /// Number of connects that have failed in a row, and the earliest time of the next one.
    failures: u32,
    retry_at: Option<Instant>,
    /// The runtime that last asked for a connection. It opens those for `min_idle`.
    runtime: Option<Handle>,
    /// The tasks that may still run.
    tasks: Vec<ConnectionTask>,
}

struct IdleConnection {
    connection: TaskConnection,
    since: Instant,
}

struct Attempt {
    number: u64,
    runtime: RuntimeId,
    task: Option<AbortHandle>,
}

/// What a caller gets that needs a connection.
pub(in crate::pool) enum Found {
    Idle(TaskConnection),
    /// The caller opens a connection, under this number.
    Open(u64),
    /// The caller waits for a change, until that time at the latest.
    Wait(Option<Instant>),
}

impl TaskIdle {
    pub(in crate::pool) fn new(settings: &Settings) -> Self {
        let [max_size, min_idle] = [settings.max_size, settings.min_idle].map(|size| size as usize);
        Self {
            max_size,
            min_idle,
            state: OwnMutex::new(IdleState {
                closed: false,
                keeps: true,
                idle: Vec::new(),
                total: 0,
                attempts: Vec::new(),
                next_attempt: 0,
                requesters: Vec::new(),
                failures: 0,
                retry_at: None,
                runtime: None,
                tasks: Vec::new(),
            }),
            changed: Notify::new(),
        }
    }

    /// Takes a lent connection back, which is idle from now on. Returns a connection that is not kept.
    pub(in crate::pool) fn give_back(&self, connection: TaskConnection) -> Option<TaskConnection> {
        let mut state = self.state.lock();
        let refused = if state.keeps {
            state.idle.push(IdleConnection { connection, since: Instant::now() });
            None
        } else {
            state.total -= 1;
            Some(connection)
        };
        let is_awaited = !state.requesters.is_empty();
        drop(state);
        if is_awaited {
            self.changed.notify_waiters();
        }
        refused
    }

    /// Records that a lent connection was closed.
    pub(in crate::pool) fn closed_one(&self) {
        self.state.lock().total -= 1;
        self.changed.notify_waiters();
    }

    /// A future that is ready after the next change from now on.
    pub(in crate::pool) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// Begins the search of a caller that has a permit.
    pub(in crate::pool) fn requester(&self) -> Requester<'_> {
        Requester { idle: self, runtime: None }
    }

    /// Records the task that opens a connection, so that it can be aborted.
    pub(in crate::pool) fn begun(&self, number: u64, task: AbortHandle) {
        let mut state = self.state.lock();
        if let Some(attempt) = state.attempts.iter_mut().find(|attempt| attempt.number == number) {
            attempt.task = Some(task);
        } else if state.closed {
            drop(state);
            task.abort();
        }
    }

    /// Records the end of an attempt. Returns a connection that is not kept.
    pub(in crate::pool) fn opened(
        &self,
        number: u64,
        connection: Option<TaskConnection>,
    ) -> Option<TaskConnection> {
        let mut state = self.state.lock();
        let at = state.attempts.iter().position(|attempt| attempt.number == number);
        // Without an entry, the connection's place was given to another one.
        let Some(at) = at else { return connection };
        drop(state.attempts.swap_remove(at));
        let refused = match connection {
            Some(connection) if !state.closed && state.is_kept(&connection) => {
                (state.failures, state.retry_at) = (0, None);
                state.tasks.retain(|task| !task.has_ended());
                state.tasks.push(connection.wire().task().clone());
                state.idle.push(IdleConnection { connection, since: Instant::now() });
                None
            }
            refused => {
                state.total -= 1;
                let [first, longest] = BACKOFF;
                let step = first.saturating_mul(1 << state.failures.min(16)).min(longest);
                state.failures += 1;
                state.retry_at = Some(Instant::now() + step.mul_f64(0.5 + fastrand::f64() / 2.0));
                refused
            }
        };
        drop(state);
        self.changed.notify_waiters();
        refused
    }

    /// Begins an attempt for the future, if there are fewer than `least` connections and nothing
    /// hinders it.
    pub(in crate::pool) fn open_below(&self, least: usize, runtime: RuntimeId) -> Option<u64> {
        let mut state = self.state.lock();
        let waits = state.retry_at.is_some_and(|at| at > Instant::now());
        let enough = state.total >= least.min(self.max_size);
        (state.keeps && !waits && !enough).then(|| state.begin_attempt(runtime))
    }

    /// Begins an attempt if too few connections are idle or being opened.
    pub(in crate::pool) fn open_idle(&self) -> Option<(u64, Handle)> {
        let mut state = self.state.lock();
        let runtime = state.runtime.clone()?;
        let waits = state.retry_at.is_some_and(|at| at > Instant::now());
        let enough = state.idle.len() + state.attempts.len() >= self.min_idle;
        if !state.keeps || waits || enough || state.total >= self.max_size {
            return None;
        }
        Some((state.begin_attempt(runtime.id()), runtime))
    }

    /// Records the runtime that opens connections for `min_idle`.
    pub(in crate::pool) fn set_runtime(&self, runtime: &Handle) {
        // A handle keeps parts of a runtime that has ended.
        if self.min_idle > 0 {
            self.state.lock().set_runtime(runtime);
        }
    }

    /// Takes the connections out that are to be closed.
    pub(in crate::pool) fn take_if(
        &self,
        mut is_to_be_closed: impl FnMut(&mut Connection<TaskWire>, Instant) -> bool,
    ) -> Vec<TaskConnection> {
        let mut state = self.state.lock();
        let (mut kept, mut taken) = (Vec::new(), Vec::new());
        for mut idle in std::mem::take(&mut state.idle) {
            let is_kept = state.is_kept(&idle.connection);
            match !is_kept || is_to_be_closed(&mut idle.connection, idle.since) {
                true => taken.push(idle.connection),
                false => kept.push(idle),
            }
        }
        state.idle = kept;
        state.total -= taken.len();
        drop(state);
        if !taken.is_empty() {
            self.changed.notify_waiters();
        }
        taken
    }

    /// Closes the idle connections, and ends the attempts. None is opened or used from here on.
    pub(in crate::pool) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let tasks: Vec<_> =
            state.attempts.iter_mut().filter_map(|attempt| attempt.task.take()).collect();
        drop(state);
        tasks.iter().for_each(AbortHandle::abort);
        self.keep_none();
    }

    /// Closes the idle connections. Those that are returned from here on are not kept, and others are opened
    /// only for callers that have a permit.
    pub(in crate::pool) fn keep_none(&self) {
        let mut state = self.state.lock();
        state.keeps = false;
        let idle = std::mem::take(&mut state.idle);
        state.total -= idle.len();
        state.runtime = None;
        drop(state);
        for idle in idle {
            idle.connection.wire().task().shut_down();
        }
        self.changed.notify_waiters();
    }

    /// Closes all connections. Calls that use one fail.
    pub(in crate::pool) fn shut_down(&self) {
        let tasks = self.state.lock().tasks.clone();
        tasks.iter().for_each(ConnectionTask::shut_down);
    }

    /// Returns whether no task of a connection runs, and none is being opened.
    pub(in crate::pool) fn has_ended(&self) -> bool {
        let mut state = self.state.lock();
        state.tasks.retain(|task| !task.has_ended());
        state.tasks.is_empty() && state.attempts.is_empty()
    }

    /// Number of connections that are open, and of those that are idle.
    pub(in crate::pool) fn sizes(&self) -> [u32; 2] {
        let state = self.state.lock();
        [state.total - state.attempts.len(), state.idle.len()].map(|size| size as u32)
    }

    /// Ends the attempts, whose connections no caller will use.
    pub(in crate::pool) fn abort_attempts(&self) {
        let attempts = std::mem::take(&mut self.state.lock().attempts);
        attempts.iter().filter_map(|attempt| attempt.task.as_ref()).for_each(AbortHandle::abort);
    }

    /// In a forked child: the connections belong to the parent.
    pub(in crate::pool) fn leak(&mut self) {
        let state = self.state.get_mut();
        std::mem::forget(std::mem::take(&mut state.idle));
        std::mem::forget(std::mem::take(&mut state.tasks));
        std::mem::forget(std::mem::take(&mut state.attempts));
        std::mem::forget(state.runtime.take());
    }
}

impl IdleState {
    /// Whether the connection stays open while it is idle.
    fn is_kept(&self, connection: &Connection<TaskWire>) -> bool {
        self.keeps || self.requesters.contains(&connection.wire().task().runtime())
    }

    fn begin_attempt(&mut self, runtime: RuntimeId) -> u64 {
        self.total += 1;
        self.next_attempt += 1;
        let number = self.next_attempt;
        self.attempts.push(Attempt { number, runtime, task: None });
        number
    }

    fn set_runtime(&mut self, runtime: &Handle) {
        if self.runtime.as_ref().is_none_or(|known| known.id() != runtime.id()) {
            self.runtime = Some(runtime.clone());
        }
    }

    /// Number of closed connections of `runtime` whose task, and with it the socket, has not ended.
    fn ending(&self, runtime: RuntimeId) -> usize {
        let ends = |task: &&ConnectionTask| {
            task.is_closed() && task.runtime() == runtime && !task.has_ended()
        };
        self.tasks.iter().filter(ends).count()
    }

    /// Makes room for a connection of `runtime`, by closing one of another runtime.
    fn make_room(&mut self, runtime: RuntimeId) -> Option<Evicted> {
        let of_other = |idle: &IdleConnection| idle.connection.wire().task().runtime() != runtime;
        if let Some(at) = self.idle.iter().position(of_other) {
            self.total -= 1;
            return Some(Evicted::Idle(self.idle.remove(at).connection));
        }
        // If the other runtime has ended or is not run, its attempt never ends.
        let at = self.attempts.iter().position(|attempt| attempt.runtime != runtime)?;
        self.total -= 1;
        Some(Evicted::Attempt(self.attempts.swap_remove(at).task))
    }
}

/// What was closed to make room, dropped without the lock.
enum Evicted {
    Idle(TaskConnection),
    Attempt(Option<AbortHandle>),
}

impl Evicted {
    fn close(self) {
        match self {
            // At once, also if its runtime is not run.
            Self::Idle(connection) => connection.wire().task().shut_down(),
            Self::Attempt(task) => task.iter().for_each(AbortHandle::abort),
        }
    }
}

/// A caller that has a permit and needs a connection, until this is dropped.
pub(in crate::pool) struct Requester<'i> {
    idle: &'i TaskIdle,
    /// Its runtime, once it waits.
    runtime: Option<RuntimeId>,
}

impl Requester<'_> {
    /// Takes an idle connection of the runtime. If there is none, and a further one is needed, the
    /// caller begins it.
    pub(in crate::pool) fn take(&mut self, runtime: &Handle) -> Found {
        let id = runtime.id();
        let mut dead = Vec::new();
        let mut state = self.idle.state.lock();
        let mut at = state.idle.len();
        while let Some(before) = at.checked_sub(1) {
            at = before;
            let task = state.idle.get(at).map(|idle| idle.connection.wire().task());
            let Some(task) = task else { break };
            if task.is_closed() {
                dead.push(state.idle.remove(at));
                state.total -= 1;
            } else if task.runtime() == id {
                let IdleConnection { connection, .. } = state.idle.remove(at);
                self.leave(&mut state);
                drop(state);
                drop(dead);
                return Found::Idle(connection);
            }
        }
        let waits = *self.runtime.get_or_insert_with(|| {
            state.requesters.push(id);
            id
        });
        if self.idle.min_idle > 0 {
            state.set_runtime(runtime);
        }
        let requesters = state.requesters.iter().filter(|runtime| **runtime == waits).count();
        let attempts = state.attempts.iter().filter(|attempt| attempt.runtime == id).count();
        let retry_at = state.retry_at.filter(|at| *at > Instant::now());
        let (mut found, mut evicted) = (Found::Wait(retry_at), None);
        let full = self.idle.max_size.saturating_sub(state.ending(id));
        if retry_at.is_none() && attempts < requesters && !state.closed {
            if state.total >= self.idle.max_size {
                evicted = state.make_room(id);
            }
            found = match state.total < full {
                true => Found::Open(state.begin_attempt(id)),
                false => Found::Wait(Some(Instant::now() + END_PAUSE)),
            };
        }
        drop(state);
        drop(dead);
        if let Some(evicted) = evicted {
            evicted.close();
        }
        found
    }

    fn leave(&mut self, state: &mut IdleState) {
        if let Some(runtime) = self.runtime.take()
            && let Some(at) = state.requesters.iter().position(|waiting| *waiting == runtime)
        {
            state.requesters.swap_remove(at);
        }
    }
}

impl Drop for Requester<'_> {
    fn drop(&mut self) {
        if self.runtime.is_some() {
            let idle = self.idle;
            if let Some(mut state) = idle.state.lock_in_drop() {
                self.leave(&mut state);
            }
        }
    }
}
