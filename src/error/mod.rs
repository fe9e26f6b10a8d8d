//! What can go wrong, one enum an operation, all of them [`Into`] one [`Error`].
//!
//! Every error answers two questions: what did the server do ([`Error::applied`]), and is the
//! same call worth another try ([`Error::is_retryable`]).
//!
//! Never: a key, a value or a password. Never: a raw error of the `redis` crate, whose text
//! repeats what was sent.

pub(crate) mod any;
pub(crate) mod applied;
pub(crate) mod checkout;
pub(crate) mod commit;
pub(crate) mod condition;
pub(crate) mod config;
pub(crate) mod connection;
pub(crate) mod in_doubt;
pub(crate) mod lock;
pub(crate) mod open_scope;
pub(crate) mod pin_expired;

#[cfg(test)]
#[path = "../../tests/unit/error_causes.rs"]
mod causes;
