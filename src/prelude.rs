//! The traits whose methods are called on the handles: `use rediscope::prelude::*`.
//!
//! A type with a common name is not in it.

#[cfg(feature = "tokio")]
pub use redis::AsyncCommands as _;
pub use redis::Commands as _;

pub use crate::reply::queued::Queued;
pub use crate::reply::queued::Ready;
pub use crate::transaction::commands::*;
