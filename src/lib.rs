#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod commit;
mod config;
mod connection;
mod credentials;
#[cfg(doctest)]
mod docs;
mod error;
mod lock;
mod observe;
mod pooled;
pub mod prelude;
mod process;
mod reply;
mod retry;
mod session;
mod topology;
mod transaction;
mod transactional;
mod wire;

pub use redis;

#[cfg(feature = "tls-rustls")]
pub use config::tls::Tls;
pub use credentials::{Credentials, CredentialsProvider, RotatingCredentials};
pub use error::{
    Applied, CheckoutError, CheckoutTimeout, CommitError, CommitToken, ConfigError, DecodeError,
    Error, FailedCondition, Holder, InDoubt, LinkError, LinkErrorKind, LockError, LostBecause,
    PinExpired, ReplyError, Resolution, ServerError, Unresolved,
};
pub use lock::guard::LockGuard;
pub use lock::handle::{Lock, RwLock};
pub use observe::{
    Closed, Counts, LockStatus, NodeStatus, OpenScope, PoolStatus, Replaced, Status,
};
pub use pooled::Pooled;
pub use reply::{Queued, Ready, Replies, Resolve};
pub use retry::RetryPolicy;
#[cfg(feature = "serde")]
pub use session::Config;
pub use session::{Builder, SessionManager};
pub use topology::IntoAddress;
pub use transaction::block::Block;
pub use transaction::commands::*;
pub use transaction::condition::Condition;
pub use transaction::conditional::Conditional;
pub use transaction::declared::Declared;
pub use transaction::guard::{Mode, Plain, Transaction, Watched};
pub use transaction::keys::IntoKeys;
pub use transaction::options::{Begin, TransactionOptions};
pub use transaction::outcome::Outcome;
pub use transaction::savepoint::Savepoint;
pub use transaction::watch::Watch;
pub use transaction::watching::Watching;
pub use transactional::Transactional;
pub use wire::durability::Acks;
