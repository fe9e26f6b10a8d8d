//! How a transaction is committed, and what is known afterwards.

pub(crate) mod batch;
pub(crate) mod cleanup;
#[expect(clippy::module_inception, reason = "the folder is about this call")]
pub(crate) mod commit;
pub(crate) mod lock_check;
pub(crate) mod options;
pub(crate) mod outcome;
pub(crate) mod prepare;
pub(crate) mod resolve;
pub(crate) mod send;
