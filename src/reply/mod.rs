//! The replies of a transaction, and the handles that name them.

pub(crate) mod error;
pub(crate) mod failures;
pub(crate) mod queued;
pub(crate) mod replies;
