#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub(crate) mod commit;
pub(crate) mod connection;
pub(crate) mod dns;
#[cfg(doctest)]
mod docs;
pub(crate) mod error;
pub(crate) mod lock;
pub(crate) mod logging;
pub(crate) mod pool;
pub(crate) mod pooled;
pub mod prelude;
pub(crate) mod process;
pub(crate) mod protocol;
pub(crate) mod reply;
pub(crate) mod session;
pub(crate) mod settings;
pub(crate) mod status;
pub(crate) mod sync;
pub(crate) mod text;
pub(crate) mod transaction;

pub use redis;

pub use crate::connection::url::IntoAddress;
pub use crate::error::any::CommitError;
pub use crate::error::any::Error;
pub use crate::error::applied::Applied;
pub use crate::error::checkout::{CheckoutError, CheckoutTimeout};
pub use crate::error::condition::FailedCondition;
pub use crate::error::config::ConfigError;
pub use crate::error::connection::{ConnectionError, ConnectionErrorKind};
pub use crate::error::in_doubt::{
    CommitToken, InDoubt, InvalidToken, Resolution, UnresolvedReason,
};
pub use crate::error::lock::{LockError, LostReason};
pub use crate::error::open_scope::OpenScope;
pub use crate::error::pin_expired::PinExpired;
pub use crate::lock::guard::LockGuard;
pub use crate::lock::handle::{Lock, RwLock};
pub use crate::pooled::handle::Pooled;
pub use crate::protocol::connection_state::CloseReason;
pub use crate::protocol::lock::acquire::LockHolder;
pub use crate::protocol::replication::ReplicaAcks;
pub use crate::protocol::retry::RetryPolicy;
pub use crate::protocol::server_error::ServerError;
pub use crate::reply::error::{DecodeError, ReplyError};
pub use crate::reply::queued::Queued;
pub use crate::reply::queued::Ready;
pub use crate::reply::replies::Replies;
pub use crate::reply::resolve::Resolve;
pub use crate::session::builder::Builder;
#[cfg(feature = "serde")]
pub use crate::session::config::Config;
pub use crate::session::manager::SessionManager;
pub use crate::settings::credentials::{Credentials, CredentialsProvider, RotatingCredentials};
#[cfg(feature = "tls-rustls")]
pub use crate::settings::tls::Tls;
pub use crate::status::counters::PoolCounters;
pub use crate::status::locks::LockStatus;
pub use crate::status::node::NodeStatus;
pub use crate::status::report::{Closed, PoolStatus, Status};
pub use crate::transaction::block::Block;
pub use crate::transaction::commands::*;
pub use crate::transaction::condition::Condition;
pub use crate::transaction::conditional::Conditional;
pub use crate::transaction::guard::{Mode, Plain, Transaction, Watched};
pub use crate::transaction::handle::Transactional;
pub use crate::transaction::keys::IntoKeys;
pub use crate::transaction::options::{Begin, TransactionOptions};
pub use crate::transaction::outcome::Outcome;
pub use crate::transaction::savepoint::Savepoint;
pub use crate::transaction::watch::Watch;
pub use crate::transaction::watch_scope::Watching;
pub use crate::transaction::watched_reads::WatchedRead;
