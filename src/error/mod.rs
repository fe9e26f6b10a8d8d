//! Errors: one enum per operation, all of them [`Into`] one [`Error`](any::Error).
//!
//! Every error returns what the server did (`applied`), and whether the same call may be retried
//! (`is_retryable`). None contains a key, a value or a password. So no raw error of the `redis`
//! crate is kept, because its text repeats what was sent.

pub(crate) mod any;
pub(crate) mod applied;
pub(crate) mod checkout;
pub(crate) mod commit;
pub(crate) mod condition;
pub(crate) mod config;
pub(crate) mod connection;
pub(crate) mod hint;
pub(crate) mod in_doubt;
pub(crate) mod lock;
pub(crate) mod open_scope;
pub(crate) mod pin_expired;

#[cfg(test)]
#[path = "../../tests/unit/error_causes.rs"]
mod causes;
