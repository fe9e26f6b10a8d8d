//! The keys and scripts of locks, and the check of the lock that fences a transaction.

pub(crate) mod acquire;
pub(crate) mod adopt;
pub(crate) mod hold_token;
pub(crate) mod keys;
pub(crate) mod lease;
pub(crate) mod ownership;
pub(crate) mod script;
