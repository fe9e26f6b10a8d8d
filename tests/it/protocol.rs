//! The contract: every outcome that a call can return, each against a real server, and the forms in
//! which a commit goes over the wire.
//!
//! Each row checks the outcome, `applied()` and `is_retryable()` of the error, the server's data as
//! another connection sees it, and that the pool's next caller finds a clean connection.

mod turned_away;

mod addresses;
mod checkout;
pub(crate) mod committed;
mod conflict;
pub(crate) mod forms;
mod in_doubt;
pub(crate) mod large;
mod long;
mod not_isolated;
mod not_sent;
mod partly;
mod reading;
mod rejected;
mod rejected_by_state;
mod replies;
mod unproven;
