//! The session manager, its builder and its configuration.

pub(crate) mod builder;
#[cfg(feature = "serde")]
pub(crate) mod config;
#[cfg(feature = "serde")]
pub(crate) mod config_value;
pub(crate) mod manager;
pub(crate) mod threads;
