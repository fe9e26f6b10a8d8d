//! The replies of a transaction, and the handles that name them.

pub(crate) mod error;
pub(crate) mod failures;
#[cfg(feature = "serde")]
pub(crate) mod json;
pub(crate) mod queued;
pub(crate) mod replies;
