//! Locks that several processes share: acquired, extended, waited for, released, lost.
//!
//! [`SessionManager::lock`](crate::SessionManager::lock) and its kin return the handles. The server
//! decides which process holds a lock, in scripts that can be sent twice; a thread extends the
//! leases, and another receives the messages about releases and wakes the waiting callers.

pub(crate) mod acquire;
pub(crate) mod all;
pub(crate) mod all_guard;
pub(crate) mod all_handle;
pub(crate) mod callbacks;
pub(crate) mod client;
pub(crate) mod fencing;
pub(crate) mod given;
pub(crate) mod guard;
pub(crate) mod handle;
pub(crate) mod held;
pub(crate) mod io;
pub(crate) mod lease;
pub(crate) mod manager;
pub(crate) mod renewal;
pub(crate) mod renewer;
pub(crate) mod target;
#[cfg(feature = "tokio")]
pub(crate) mod tasks;
pub(crate) mod thread_waiters;
pub(crate) mod waiters;
pub(crate) mod wakeups;

pub use crate::error::lock::LostReason;
pub use crate::lock::all_guard::LockAllGuard;
pub use crate::lock::all_handle::LockAll;
pub use crate::lock::guard::LockGuard;
pub use crate::lock::handle::{Lock, RwLock};
pub use crate::protocol::lock::acquire::LockHolder;
pub use crate::protocol::lock::hold_token::HoldToken;
