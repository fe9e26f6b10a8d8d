//! Pools of connections: a fair semaphore, the idle connections behind it, and the open scopes.

pub(crate) mod ask;
pub(crate) mod batch;
pub(crate) mod batch_request;
pub(crate) mod batch_response;
pub(crate) mod blocking;
pub(crate) mod checkout;
pub(crate) mod cleanup;
pub(crate) mod config;
pub(crate) mod connect_attempts;
pub(crate) mod context;
pub(crate) mod core;
pub(crate) mod early_watch;
pub(crate) mod entry;
pub(crate) mod first_packet;
pub(crate) mod group;
pub(crate) mod group_prepare;
pub(crate) mod group_request;
pub(crate) mod idle;
pub(crate) mod job;
pub(crate) mod key_turn;
pub(crate) mod line;
#[cfg(all(test, rediscope_shuttle))]
#[path = "../../tests/model/harness.rs"]
pub(crate) mod model;
pub(crate) mod own_writes;
#[cfg(test)]
#[path = "../../tests/unit/pending/mod.rs"]
mod pending;
#[expect(clippy::module_inception, reason = "the folder is named after this type")]
pub(crate) mod pool;
pub(crate) mod reauthentication;
pub(crate) mod redirect_pause;
pub(crate) mod rejected_shapes;
pub(crate) mod retry_budget;
pub(crate) mod router;
pub(crate) mod scope_origin;
pub(crate) mod scopes;
pub(crate) mod semaphore;
#[cfg(test)]
#[path = "../../tests/unit/sent_ahead.rs"]
mod sent_ahead;
pub(crate) mod server_pool;
pub(crate) mod shared;
#[cfg(feature = "tokio")]
pub(crate) mod tasks;
#[cfg(test)]
#[path = "../../tests/unit/pool.rs"]
pub(crate) mod tests;
pub(crate) mod threads;
pub(crate) mod waiter;
pub(crate) mod waiting_group;
