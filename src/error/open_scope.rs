//! A scope that holds a connection: named by errors and by the status report.

use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

/// One open scope, or one blocking command of a pooled handle, which holds a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OpenScope {
    /// The name given with [`TransactionOptions::name`](crate::TransactionOptions::name).
    pub name: Option<Arc<str>>,
    /// The command, if it is a blocking one (`BLPOP`, `XREAD` with `BLOCK`, `WAIT` and similar) and
    /// not a scope.
    pub blocking: Option<Arc<str>>,
    /// The place that began the scope. For a blocking command: the place that made its handle, by
    /// [`SessionManager::pooled`](crate::SessionManager::pooled).
    pub begun_at: &'static Location<'static>,
    /// The thread that began the scope; in `rediscope::aio`, the task: `task 17`, or the thread
    /// outside of any task.
    pub thread: Arc<str>,
    /// Time since the scope began.
    pub age: Duration,
    /// Whether the scope is the closure of a `run`, which cannot move to another thread.
    pub is_closure: bool,
}

impl fmt::Display for OpenScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = &self.name {
            write!(f, "{name:?} ")?;
        }
        if let Some(command) = &self.blocking {
            write!(f, "{command} of the handle made at ")?;
        }
        match self.thread.strip_prefix("task ") {
            Some(_) => write!(f, "{} in {} for {:.1?}", self.begun_at, self.thread, self.age),
            None => write!(f, "{} on thread {:?} for {:.1?}", self.begun_at, self.thread, self.age),
        }
    }
}
