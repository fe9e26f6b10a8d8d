//! The library for tasks of tokio. (Feature `tokio`.)
//!
//! [`Builder::build_async`](crate::Builder::build_async) and [`SessionManager::connect`] make a
//! [`SessionManager`] whose handles return futures. Everything that waits for nothing is the same type as
//! on threads: [`Block`](crate::Block), [`Savepoint`](crate::Savepoint), [`Queued`](crate::Queued),
//! [`Replies`](crate::Replies), [`Outcome`](crate::Outcome), [`Condition`](crate::Condition), the options
//! and the errors.
//!
//! ```no_run
//! use rediscope::aio::SessionManager;
//! use rediscope::prelude::*;
//!
//! # async fn example() -> Result<(), rediscope::Error> {
//! let accounts = SessionManager::connect("redis://127.0.0.1/")?.transactional();
//! // A block.
//! let (alice, bob) = accounts.run(|tx| Ok((tx.decr("alice", 30), tx.incr("bob", 30)))).await?;
//! // Read, decide, write: the closure runs again after a conflict.
//! let left = accounts
//!     .watch(["stock"])
//!     .run(async |read, tx| {
//!         let stock: i64 = read.get("stock").await?;
//!         Ok(tx.decr("stock", stock.min(1)))
//!     })
//!     .await?;
//! # let _ = (alice, bob, left); Ok(()) }
//! ```
//!
//! # Dropped futures and guards
//!
//! Every future may be dropped at any time, by `select!`, by a timeout or with its task. No future and no
//! guard waits, sends, spawns or panics when it is dropped, with or without a runtime. What it has sent is
//! answered on the connection's own task, so the next caller finds a clean connection. Each method's page
//! names what dropping its future means for the server.
//!
//! A future that is kept but not polled, or forgotten, is a stuck scope: after
//! [`max_pin_time`](crate::Builder::max_pin_time) its connection is closed and its place is free again.
//!
//! # Runtimes
//!
//! The runtime needs its I/O and time drivers (`enable_all`). A connection belongs to the runtime that
//! opened it; on another runtime a new one is opened. So a manager in a `static` may serve several
//! runtimes, one after another or at the same time.

#![expect(clippy::manual_async_fn, reason = "the signature promises that the future is Send")]

mod block_run;
mod closure;
mod conditional;
mod guard;
mod handle;
mod lock;
mod lock_all;
mod lock_guard;
mod pooled;
mod session;
mod submitted;
mod tries;
mod watch;

pub use crate::aio::conditional::Conditional;
pub use crate::aio::guard::Transaction;
pub use crate::aio::handle::Transactional;
pub use crate::aio::lock::{Lock, RwLock};
pub use crate::aio::lock_all::{LockAll, LockAllGuard};
pub use crate::aio::lock_guard::LockGuard;
pub use crate::aio::pooled::Pooled;
pub use crate::aio::session::{ResolveToken, SessionManager};
pub use crate::aio::submitted::Submitted;
pub use crate::aio::tries::Tries;
pub use crate::aio::watch::Watch;
pub use crate::lock::tasks::lost::LockLost;
pub use crate::settings::credentials::AsyncCredentialsProvider;
pub use crate::transaction::tasks::attempt::Attempt;
pub use crate::transaction::tasks::watching::Watching;
