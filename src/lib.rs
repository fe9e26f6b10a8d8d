// The code of README has both sides, so it compiles as a doctest only with both.
#![cfg_attr(doc, doc = include_str!("docs/links.md"), doc = "")]
#![cfg_attr(any(not(doctest), feature = "tokio"), doc = include_str!("../README.md"))]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "tokio")]
pub mod aio;
pub(crate) mod commit;
pub(crate) mod connection;
pub(crate) mod dns;
#[cfg(doc)]
pub mod docs;
pub mod error;
#[cfg(feature = "serde")]
pub(crate) mod json;
pub mod lock;
pub(crate) mod logging;
pub(crate) mod offload;
pub(crate) mod pool;
pub(crate) mod pooled;
pub mod prelude;
pub(crate) mod process;
pub(crate) mod protocol;
pub(crate) mod reply;
pub(crate) mod session;
pub(crate) mod settings;
pub mod status;
pub(crate) mod sync;
pub(crate) mod text;
pub(crate) mod transaction;

/// The traits with a method for each command: `use rediscope::prelude::*` brings all of them.
pub mod commands {
    pub use crate::transaction::commands::*;
}

pub use redis;

pub use crate::connection::url::IntoAddress;
pub use crate::error::any::{CommitError, Error};
#[cfg(feature = "serde")]
pub use crate::json::{Json, JsonText};
pub use crate::pooled::handle::Pooled;
pub use crate::protocol::retry::RetryPolicy;
pub use crate::reply::queued::{Queued, Ready};
pub use crate::reply::replies::Replies;
pub use crate::session::builder::Builder;
#[cfg(feature = "serde")]
pub use crate::session::config::Config;
pub use crate::session::manager::SessionManager;
pub use crate::settings::credentials::{Credentials, CredentialsProvider, RotatingCredentials};
#[cfg(feature = "tls-rustls")]
pub use crate::settings::tls::Tls;
pub use crate::sync::cancel::Cancel;
pub use crate::transaction::block::Block;
pub use crate::transaction::condition::Condition;
pub use crate::transaction::conditional::Conditional;
pub use crate::transaction::guard::{Mode, Plain, Transaction, Watched};
pub use crate::transaction::handle::Transactional;
pub use crate::transaction::keys::IntoKeys;
pub use crate::transaction::options::{Begin, TransactionOptions};
pub use crate::transaction::outcome::Outcome;
pub use crate::transaction::resolve::Resolve;
pub use crate::transaction::savepoint::Savepoint;
pub use crate::transaction::watch::Watch;
pub use crate::transaction::watch_scope::Watching;
pub use crate::transaction::watched_reads::WatchedRead;
