//! Locks for callers that are tasks: the task that extends leases, the task that receives messages
//! about releases, and the waiters. Each runtime that uses a session manager has tasks of its own: one
//! runtime may end while another one holds a lock. The tasks share one state, and any of them does all that
//! is due. A release that one of them has taken and not sent in time is sent by another. A drop without a
//! task records the release as data.

pub(crate) mod listener;
pub(crate) mod lost;
pub(crate) mod manager;
pub(crate) mod renewer;
pub(crate) mod subscription;
pub(crate) mod task_waiters;
