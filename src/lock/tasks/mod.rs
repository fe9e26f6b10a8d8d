//! Locks for callers that are tasks: the task that extends leases, the task that receives messages
//! about releases, and the waiters. Each runtime that uses a session manager has tasks of its own.

pub(crate) mod listener;
pub(crate) mod lost;
pub(crate) mod manager;
pub(crate) mod renewer;
pub(crate) mod subscription;
pub(crate) mod task_waiters;
