//! The handles' scopes: blocks, transactions, watching scopes, savepoints and the command table.

pub(crate) mod block;
pub(crate) mod buffer_pool;
pub(crate) mod commands;
pub(crate) mod condition;
pub(crate) mod conditional;
pub(crate) mod guard;
pub(crate) mod handle;
pub(crate) mod hot_keys;
pub(crate) mod keys;
pub(crate) mod merge;
pub(crate) mod options;
pub(crate) mod outcome;
pub(crate) mod pending;
pub(crate) mod pinned;
pub(crate) mod reading;
pub(crate) mod redirects;
pub(crate) mod resolve;
pub(crate) mod retry_loop;
pub(crate) mod savepoint;
pub(crate) mod scope_calls;
#[cfg(feature = "tokio")]
pub(crate) mod tasks;
pub(crate) mod threads;
pub(crate) mod watch;
pub(crate) mod watch_scope;
pub(crate) mod watched_reads;
