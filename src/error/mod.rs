//! One [`Error`] for each call, and the enums of single operations that it holds.
//!
//! Every error returns what the server did (`applied`), and whether the same call may be retried
//! (`is_retryable`). None contains a key, a value or a password. So no raw error of the `redis`
//! crate is kept, because its text repeats what was sent.

pub(crate) mod any;
pub(crate) mod applied;
pub(crate) mod checkout;
pub(crate) mod commit;
pub(crate) mod config;
pub(crate) mod connection;
pub(crate) mod hint;
pub(crate) mod in_doubt;
pub(crate) mod lock;
pub(crate) mod open_scope;
pub(crate) mod pin_expired;
pub(crate) mod token_cell;

#[doc(no_inline)]
pub use crate::error::any::{CommitError, Error};
pub use crate::error::applied::Applied;
pub use crate::error::checkout::{CheckoutError, CheckoutTimeout};
pub use crate::error::config::ConfigError;
pub use crate::error::connection::{ConnectionError, ConnectionErrorKind};
pub use crate::error::in_doubt::{
    CommitToken, InDoubt, InvalidToken, Resolution, UnresolvedReason,
};
pub use crate::error::lock::LockError;
pub use crate::error::pin_expired::PinExpired;
pub use crate::error::token_cell::TokenCell;
pub use crate::protocol::lock::hold_token::InvalidHoldToken;
pub use crate::protocol::replication::ReplicaAcks;
pub use crate::protocol::server_error::ServerError;
pub use crate::reply::error::{DecodeError, ReplyError};

#[cfg(test)]
#[path = "../../tests/unit/error_causes.rs"]
mod causes;
