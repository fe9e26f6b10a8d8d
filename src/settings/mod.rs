//! The settings of a session manager and the values they take.

pub(crate) mod account;
pub(crate) mod credentials;
#[expect(clippy::module_inception, reason = "the folder is named after this type")]
pub(crate) mod settings;
pub(crate) mod table;
#[cfg(feature = "tls-rustls")]
pub(crate) mod tls;
