//! The commit of a transaction, and what is known after it.

pub(crate) mod batch;
pub(crate) mod cleanup;
#[expect(clippy::module_inception, reason = "the folder is named after this call")]
pub(crate) mod commit;
pub(crate) mod last_write;
pub(crate) mod lock_check;
pub(crate) mod outcome;
mod own_connections;
pub(crate) mod plan;
pub(crate) mod prepare;
pub(crate) mod ready;
pub(crate) mod resolve;
pub(crate) mod side;
#[cfg(feature = "tokio")]
pub(crate) mod tasks;
pub(crate) mod threads;
pub(crate) mod wait_limit;
